"""Restore and undo: bring back a tree as of a time, or take back all that one client has changed.

`viewpoint` is what a user sees through a client, now and at any time. `restore` writes a tree as it
was to a `restore.Target`: a path, or the file system itself. `undo` takes back what a client has
changed; its header names the steps. All are conversations, which the command line and the simulator
perform. Nothing here knows of mounts.
"""
