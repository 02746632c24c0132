"""bftfs: a Byzantine fault-tolerant file system that mounts like any other.

From the top: applications speak POSIX to `mount`, a FUSE adapter without semantics of its own. It
calls `bftfs.filesystem`, which expresses files and directories in terms of two protocols:
`bftfs.query_update` (Q/U: replicated metadata objects) and `bftfs.read_write` (PASIS:
erasure-coded blocks on versioning storage nodes). Both are sans-IO: their clients are coroutines
over the effects of `bftfs.conversation`, interpreted by `bftfs.engine`; their servers are
synchronous steps over `bftfs.storage`. `bftfs.runtime` gives the engine sockets, `nodes` hosts the
servers on LMDB, and `bftfs.simulation` runs the same code in virtual time under faults.
"""

__version__ = "0.1.0"
