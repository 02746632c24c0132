"""`python -m tests.integration.careless_node`: a node without the rules that close the seams.

It takes a version for which b + 1 nodes vouch, every barrier, with a clock or without, and what one
server says of barriers; shows every block and every request to everybody; charges nobody for what
it stores; and lets an inode name what few nodes host, and what lies behind the end of the file.
"""

from __future__ import annotations

from typing import Any

from bftfs import limits
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.filesystem import inode
from bftfs.filesystem.block_names import name_blocks
from bftfs.filesystem.inode_authority import InodeAuthority
from bftfs.query_update.accepting import Accepting
from bftfs.query_update.admission import BarrierBudget
from bftfs.query_update.history import Conditioned
from bftfs.query_update.server import QueryUpdateServer
from bftfs.server import room
from bftfs.thresholds import ReadWriteThresholds
from nodes.__main__ import main


def name_anywhere(*named: Any, size: int) -> tuple[int, ...]:
    """Name blocks of a file of any size."""
    del size
    return name_blocks(*named, size=limits.FILE_BYTES)


if __name__ == "__main__":
    ReadWriteThresholds.repairable = property(lambda sizes: sizes.b + 1)  # type: ignore[assignment]
    Conditioned.fault = property(lambda _: "")  # type: ignore[assignment]
    Accepting._require_barrier = lambda *_: set()  # type: ignore[method-assign]
    Accepting._require_hosts = lambda *_: None  # type: ignore[method-assign]
    BarrierBudget.take = lambda *_: True  # type: ignore[method-assign]
    ThresholdQuorums.includes_benign = lambda _, nodes: bool(nodes)  # type: ignore[method-assign]
    InodeAuthority.may_read = lambda *_: None  # type: ignore[method-assign]
    QueryUpdateServer._may_know = lambda *_: True  # type: ignore[method-assign]
    room.charged = lambda *_: []
    inode.name_blocks = name_anywhere  # type: ignore[assignment]
    inode.grow = lambda *_: None  # type: ignore[attr-defined]
    raise SystemExit(main())
