"""A node compares its clock with those of its peers.

It asks them the time when it starts, again and again, and at once if its own clock has jumped. What
follows from the answers is decided by `bftfs.server.own_clock`.

As long as it does not trust its clock it is in a hurry: it does not wait for those that may be
down, and asks again soon. What all others tell it hears once more when it does trust it.

What it makes of its own clock it stores each time, and before it tells others: it has to know it
after a restart, too.

A peer's clock has read what it says at some moment between question and answer: a difference is
counted only as far as it cannot be explained by the time that these took.

Tests: `tests/unit/server/test_own_clock.py`; with real nodes,
`tests/integration/test_clocks.py`.

**Concurrency.** One thread.
"""

from __future__ import annotations

from bftfs import limits
from bftfs.asking.ask import ask_all
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes
from bftfs.conversation import Delivery, Now, Pause, Spawn, Wait
from bftfs.crypto.digest import Body
from bftfs.envelope import ClockReply, ClockRequest
from bftfs.identifiers import NodeId
from bftfs.server.own_clock import OwnClock
from bftfs.server.step import Host, Ready, Sender
from bftfs.storage import StorageView, Table, Write

_REMEMBERED = b"clock"  # in Table.META: what the node remembers of its clock
_PATIENCE_US = 2 * limits.SECOND_US
_HURRIED_US = limits.SECOND_US // 4  # at first, of a node that does not trust its clock; doubles
_LEAST_US = 1_000  # between two comparisons


def recall(view: StorageView, clock: OwnClock) -> None:
    """Load what the node remembers of its clock, when it starts."""
    clock.recall(view.get(Table.META, _REMEMBERED) or b"")


def _stored(clock: OwnClock) -> Write:
    return Write(Table.META, _REMEMBERED, clock.remembered)


class ClockServer:
    """Answers other nodes that ask what time it is here."""

    def __init__(self, clock: OwnClock) -> None:
        """`clock` is the node's."""
        self._clock = clock

    def step(
        self, view: StorageView, sender: Sender, message: ClockRequest, body: Body, now_us: int
    ) -> Ready:
        """Tell the time. The node stores it first, unless it has stored a time close before."""
        clock = self._clock
        reply = ClockReply(now_us, clock.borne_us(now_us))
        if clock.is_stored(view.get(Table.META, _REMEMBERED) or b"", now_us):
            return Ready(reply)
        return Ready(reply, writes=[_stored(clock)], uses_reserve=True)


class ClockComparison:
    """A node's background work: it asks its peers for the time."""

    def __init__(self, node: NodeId, peers: Peers, clock: OwnClock) -> None:
        self._node = node
        self._others = peers.others(node)
        self._peers = peers
        self._clock = clock

    async def run(self, host: Host) -> None:
        """Compare at the start, from time to time, and when it is due, as long as the node runs."""
        await Spawn(self._remind)
        clock, hurried_us = self._clock, _HURRIED_US
        while True:
            hurries = bool(clock.reason)
            took_us = await self._compare(hurried_us if hurries else _PATIENCE_US, hurries=hurries)
            host.arrange(lambda _view, _now_us: [_stored(clock)])
            if clock.reason:
                await Pause(min(max(hurried_us - took_us, _LEAST_US), hurried_us))
                hurried_us = min(2 * hurried_us, _PATIENCE_US)
            elif not hurries:
                hurried_us = _HURRIED_US
                await Wait(clock.due)

    async def _remind(self) -> None:
        while True:
            await Pause(limits.CLOCKS_COMPARED_EVERY_US)
            self._clock.due.announce()

    async def _compare(self, patience_us: int, *, hurries: bool) -> int:
        """Compare with those that answer within `patience_us`; return how long that took."""
        asked_us = await Now()

        def told(delivery: Delivery, heard_us: int) -> tuple[int, int] | None:
            """By how much a peer's clock is ahead of this one, or behind (< 0), at least.

            And the latest time that it had shown when it was set back.
            """
            reply = delivery.message
            if not isinstance(reply, ClockReply):
                return None
            ahead_us = max(reply.now_us - heard_us, min(reply.now_us - asked_us, 0))
            return ahead_us, reply.borne_us

        def enough(found: dict[NodeId, tuple[int, int]]) -> bool:
            """As many have answered as one can wait for, and they agree."""
            return (
                hurries
                and self._peers.quorums.is_quorum(Nodes.of(found).plus(self._node))
                and self._clock.is_confirmed_by(_ahead_us(found))
            )

        requests = dict.fromkeys(self._others, ClockRequest())
        found = await ask_all(self._peers, requests, told, patience_us=patience_us, enough=enough)
        ended_us = await Now()
        if 0 <= ended_us - asked_us <= limits.CLOCKS_AGREE_US:  # else it was set meanwhile
            borne = [borne_us for _, borne_us in found.values()]
            self._clock.compared(_ahead_us(found), ended_us, borne)
        return ended_us - asked_us


def _ahead_us(found: dict[NodeId, tuple[int, int]]) -> dict[NodeId, int]:
    return {node: ahead_us for node, (ahead_us, _) in found.items()}
