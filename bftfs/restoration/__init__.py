"""What was, brought back: a tree as of a time, or all but what one client did. Knows no mount.

`sight` is what a user sees through a client, now and then; `restore` makes a tree what it was, in
any target that `restore.Target` describes; `trail` and `undo` find what a client did since a time
and take it back, `strays` among it what it wrote and others covered. All are conversations, which
the command line and the simulator perform alike.
"""
