"""Backups: a tree as a stream of records, and the tree that a stream makes on another machine.

`stream` has the records, and reads and writes them; `increments` finds the records that lead from
one tree to another; `sending` reads trees from the nodes; `receiving` makes them in a directory.
[docs/backup.md, docs/decisions/0022-backup-format.md]
"""
