"""How the nodes of a simulated cluster collect the past: which are short of room, and the window.

A real window is days, and longer by what clocks may differ by [design §8]. Here it is seconds, so
that within one run nearly everything becomes old. It is compared with the times of versions,
whatever the clocks of their authors: a version stays if its successor's time lies within the
window of the node.
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
    """Which nodes of a cluster collect, and what."""

    window_us: int
    roomy: tuple[NodeId, ...] = ()  # nodes that are never short of room, and keep everything
    rest_us: int = 0  # between quiet phase and audit, for what is old to go


class ConstantPool:
    """A pool that is always too small, or never."""

    def __init__(self, *, short: bool) -> None:
        self.shortage = Event()
        self._short = short

    def is_short(self) -> bool:
        """True if versions that no rule keeps have to go."""
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
