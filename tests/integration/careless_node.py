"""`python -m tests.integration.careless_node`: a node without the rules that close the seams.

It takes a version for which b + 1 nodes vouch, every barrier, with a clock or without, and what one
server says of barriers; and charges nobody for what it stores.
"""

from __future__ import annotations

from bftfs.asking.quorum import ThresholdQuorums
from bftfs.query_update.accepting import Accepting
from bftfs.query_update.admission import BarrierBudget
from bftfs.query_update.history import Conditioned
from bftfs.server import room
from bftfs.thresholds import ReadWriteThresholds
from nodes.__main__ import main

if __name__ == "__main__":
    ReadWriteThresholds.repairable = property(lambda sizes: sizes.b + 1)  # type: ignore[assignment]
    Conditioned.fault = property(lambda _: "")  # type: ignore[assignment]
    Accepting._require_barrier = lambda *_: None  # type: ignore[method-assign]
    BarrierBudget.take = lambda *_: True  # type: ignore[method-assign]
    ThresholdQuorums.includes_benign = lambda _, nodes: bool(nodes)  # type: ignore[method-assign]
    room.charged = lambda *_: []
    raise SystemExit(main())
