"""A node compares its clock with those of its peers.

It asks them the time, again and again, and at once if its own clock has jumped. What follows from
the answers is decided by `bftfs.server.own_clock`.

What it makes of its own clock it stores each time: it has to know it after a restart, too.

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
from bftfs.conversation import Delivery, Now, Pause, Spawn, Wait
from bftfs.crypto.digest import Body
from bftfs.envelope import ClockReply, ClockRequest
from bftfs.identifiers import NodeId
from bftfs.server.own_clock import OwnClock
from bftfs.server.step import Host, Ready, Sender
from bftfs.server.worker import look
from bftfs.storage import StorageView, Table, Write

_FIRST_AFTER_US = 5 * limits.SECOND_US  # by then, nodes that were started together are up
_REMEMBERED = b"clock"  # in Table.META: what the node remembers of its clock
_PATIENCE_US = 2 * limits.SECOND_US


class ClockServer:
    """Tells whoever asks what time it is here."""

    def __init__(self, clock: OwnClock) -> None:
        """`clock` is the node's."""
        self._clock = clock

    def step(
        self, view: StorageView, sender: Sender, message: ClockRequest, body: Body, now_us: int
    ) -> Ready:
        """Serve one request."""
        return Ready(ClockReply(now_us, self._clock.borne_us(now_us)))


class ClockComparison:
    """A node's background work: it asks its peers for the time."""

    def __init__(self, node: NodeId, peers: Peers, clock: OwnClock) -> None:
        self._others = peers.others(node)
        self._peers = peers
        self._clock = clock

    async def run(self, host: Host) -> None:
        """Compare from time to time, and when it is due, as long as the node runs."""
        row = await look(host, lambda view: view.get(Table.META, _REMEMBERED)) or b""
        self._clock.recall(row)
        await Spawn(self._remind)
        while True:
            await Wait(self._clock.due)
            await self._compare()
            if row != self._clock.remembered:
                row = self._clock.remembered
                host.arrange(lambda _view, _now_us, row=row: [Write(Table.META, _REMEMBERED, row)])  # type: ignore[misc]

    async def _remind(self) -> None:
        pause_us = _FIRST_AFTER_US
        while True:
            await Pause(pause_us)
            self._clock.due.announce()
            pause_us = limits.CLOCKS_COMPARED_EVERY_US

    async def _compare(self) -> None:
        asked_us = await Now()

        def told(delivery: Delivery, heard_us: int) -> tuple[int, int] | None:
            """By how much a peer's clock is ahead of this one, or behind (< 0), at least.

            And what it had borne when it was set back.
            """
            reply = delivery.message
            if not isinstance(reply, ClockReply):
                return None
            ahead_us = max(reply.now_us - heard_us, min(reply.now_us - asked_us, 0))
            return ahead_us, reply.borne_us

        requests = dict.fromkeys(self._others, ClockRequest())
        found = await ask_all(self._peers, requests, told, patience_us=_PATIENCE_US)
        ended_us = await Now()
        if 0 <= ended_us - asked_us <= limits.CLOCKS_AGREE_US:  # else it was set meanwhile
            differences = {node: ahead_us for node, (ahead_us, _) in found.items()}
            borne = [borne_us for _, borne_us in found.values()]
            self._clock.compared(differences, ended_us, borne)
