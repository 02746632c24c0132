"""The used and free room of a cluster, as reported by its nodes, for `statfs`.

Room is that of the nodes' history pools, of which `bftfs status` speaks, too. Each node holds 1/m
of every block. No single node decides the figures: up to b of them lie, and others may be full
without harm. A full node refuses writes itself, whatever is shown here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from bftfs.asking.ask import Asking
from bftfs.asking.peers import Peers
from bftfs.conversation import Delivery, Now, Send
from bftfs.envelope import HealthReply, HealthRequest
from bftfs.identifiers import NodeId
from bftfs.thresholds import ReadWriteThresholds


class Capacity(NamedTuple):
    """Bytes of contents."""

    used_bytes: int  # with all of their history
    free_bytes: int
    objects: int  # files, directories and the like, with those that only the past has


class ClusterCapacity:
    """Asks the nodes."""

    def __init__(
        self, thresholds: ReadWriteThresholds, peers: Peers, *, patience_total_us: int | None = None
    ) -> None:
        self._thresholds = thresholds
        self._patience_total_us = patience_total_us
        self._peers = peers

    async def capacity(self) -> Capacity:
        """The figures, from the answers of N - t nodes.

        Raises QuorumUnavailable after `patience_total_us` of silence, AdmissionRefused if more than
        t nodes refuse to answer.
        """
        thresholds = self._thresholds
        replies: list[HealthReply] = []
        asking = Asking(
            self._peers,
            tuple(NodeId(node) for node in range(thresholds.N)),
            lambda node: Send(node, HealthRequest()),
            first=thresholds.N,
            needed=lambda _: False,
            now_us=await Now(),
            subject="room on the nodes",
            patience_total_us=self._patience_total_us,
        )

        def take(reply: Delivery) -> None:
            if not isinstance(reply.message, HealthReply):
                asking.refused(reply)
                return
            replies.append(reply.message)
            if len(replies) == thresholds.responses:
                asking.enough()

        await asking.collect(take)
        return Capacity(
            thresholds.m * self._believable(reply.used_bytes for reply in replies),
            thresholds.m * self._believable(reply.free_bytes for reply in replies),
            self._believable(reply.objects for reply in replies),
        )

    def _believable(self, claimed: Iterable[int]) -> int:
        """The (b + 1)-th smallest: between the claims of two correct nodes, or one of them."""
        return sorted(claimed)[self._thresholds.b]
