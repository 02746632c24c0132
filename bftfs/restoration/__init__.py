"""Bringing back what was: a tree as of a time, or everything but what one client did.

`viewpoint` is what a user sees through a client, now and then. `restore` makes a tree what it was,
in any target that `restore.Target` describes. `undo` takes back what a client has changed; its
header names the steps. All are conversations, which the command line and the simulator perform
alike. Nothing here knows of mounts.
"""
