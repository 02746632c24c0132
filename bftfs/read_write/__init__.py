"""PASIS read/write: linearizable erasure-coded blocks on versioning storage nodes.

[PASIS] is chapter 3 of the source; `docs/protocols-read-write.md` says which rule is where.
"""
