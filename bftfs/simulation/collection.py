"""How nodes of a simulated cluster let go of the past: who is short of room, and the window.

A real window is days, and longer by what clocks may differ by [design §8]. Here it is seconds, so
that in one storm nearly everything becomes old; and it is given in the times of versions, whatever
the clocks of those who made them: what a version superseded whose time lies within the window of
the node stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bftfs.asking.quorum import QuorumSystem
from bftfs.conversation import Event
from bftfs.identifiers import NodeId, ObjectId
from bftfs.server.file_collection import Collector, Release


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """What the nodes of a cluster collect."""

    window_us: int
    roomy: tuple[NodeId, ...] = ()  # nodes that are never short of room, and keep everything
    rest_us: int = 0  # between calm and audit: whether what is old is gone by then


class ConstantPool:
    """A pool that is always too small, or never."""

    def __init__(self, *, short: bool) -> None:
        self.shortage = Event()
        self._short = short

    def is_short(self) -> bool:
        """Whether what retention does not need has to go."""
        return self._short


def collecting(
    plan: CollectionPlan, volume: ObjectId
) -> Callable[[NodeId, QuorumSystem, Release], Collector]:
    """Makes the collectors of all nodes."""
    return lambda node, quorums, release: Collector(
        node,
        quorums,
        volume,
        window_us=plan.window_us,
        pool=ConstantPool(short=node not in plan.roomy),
        release=release,
    )
