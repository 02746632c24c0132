"""`bftfs ui`: pages in a browser that show a cluster's files, their past, and the nodes.

They show and change nothing. `source.py` says what they need of a cluster; the command in
`bftfs/cli/ui.py` gives it to them. `app.py` has the pages by address, `gate.py` who may see them;
each other module gathers what one page shows, and `templates/` have the HTML. Every page works
without scripts; `static/ui.js` makes a slider of the links to times of change.

Names, contents and nodes' words are hostile: templates escape them, and `printable` makes controls
visible. Everything is bounded: a page that leaves something out says so.

docs/decisions/0023-ui.md has the reasons; docs/ui.md is for users.
"""
