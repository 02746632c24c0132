"""A node compares its description of the cluster with those of its peers.

A node's files may be outdated: it was down when the administrator revoked a client, or its folder
was restored from a backup and still admits clients that have been revoked since. Nothing in the
folder tells so; the peers do.

**Rules.**

1. Each node asks its peers once a minute which serial theirs has, and those that claim a later one
   for the description. It takes the description for what it is worth by itself: signed by the
   administrator, and later than its own. So one peer that has heard of a revocation is enough, and
   liars can only make the node read what is of no use, a few descriptions a minute each.
   The same holds of another one with the same serial, and of older ones that a peer keeps because
   they take rights that the latest one does not take (`nodes.membership`, rule 2). Each is read
   once, whatever a liar calls it.
2. A serial is believed without the description only if at least b + 1 peers report it or a later
   one, because b of them may lie. Then the node says that its own is old.

Tests: `tests/unit/server/test_comparison.py`, `tests/seams/test_descriptions.py`; with real nodes,
`tests/integration/test_descriptions.py`.

**Concurrency.** One thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar

from bftfs.asking.ask import SURPLUS_US, ask_all
from bftfs.asking.peers import Peers
from bftfs.cluster import ClusterDescription
from bftfs.conversation import Delivery, Pause
from bftfs.envelope import DescriptionReply, DescriptionRequest, HealthReply, HealthRequest
from bftfs.identifiers import NodeId
from bftfs.limits import SECOND_US
from bftfs.server.step import Host

Claim = TypeVar("Claim")

FIRST_AFTER_US = 5 * SECOND_US  # by then, nodes that were started together are up
EVERY_US = 60 * SECOND_US
_PATIENCE_US = 2 * SECOND_US


async def health_reports(
    peers: Peers, nodes: Iterable[int], *, needed: int = 0
) -> dict[NodeId, HealthReply]:
    """The health reports of `nodes` that answer in time. They are claims: a node may lie.

    With `needed`, it ends as soon as so many have answered. It waits a little for nodes that are
    slower by far than a quorum of the others.
    """

    def judge(delivery: Delivery, _now_us: int) -> HealthReply | None:
        return delivery.message if isinstance(delivery.message, HealthReply) else None

    requests = {NodeId(node): HealthRequest() for node in nodes}
    return await ask_all(
        peers,
        requests,
        judge,
        patience_us=_PATIENCE_US,
        surplus_us=SURPLUS_US,
        enough=lambda answers: 0 < needed <= len(answers),
    )


def told_by_a_correct_one(claims: Iterable[Iterable[Claim]], *, b: int) -> list[Claim]:
    """What more than b nodes claim, in the order in which it is met; `claims` has one for each."""
    naming = Counter(each for told in claims for each in dict.fromkeys(told))
    return [each for each, count in naming.items() if count > b]


def with_a_correct_one(claimed: Iterable[int], *, b: int) -> int:
    """The highest number that at least one correct node certainly reaches; 0 if there is none."""
    highest = sorted(claimed, reverse=True)
    return highest[b] if len(highest) > b else 0


class Descriptions(Protocol):
    """What a node knows of its cluster's description. (`nodes.membership`)"""

    @property
    def serial(self) -> int:
        """That of the latest description that it has seen."""

    def offer(self, encoded: bytes, signature: bytes, *, by: NodeId) -> None:
        """Use a peer's description if it is signed, and later."""

    def lacks(self, digest: bytes) -> bool:
        """True if it has not seen the description with this digest."""

    def compare(self, peers_serial: int) -> None:
        """Some correct peer has the description with this serial, or a later one."""


class Comparison:
    """A node's background work: it asks its peers how they are, once a minute."""

    def __init__(
        self,
        node: NodeId,
        description: ClusterDescription,
        peers: Peers,
        known: Descriptions,
    ) -> None:
        self._others = peers.others(node)
        self._b = description.b
        self._peers = peers
        self._known = known

    async def run(self, host: Host) -> None:
        """Compare once a minute, as long as the node runs."""
        await Pause(FIRST_AFTER_US)
        while True:
            reports = await health_reports(self._peers, self._others)
            serials = {node: report.description_serial for node, report in reports.items()}
            for node, report in reports.items():
                await self._fetch(node, report)
            self._known.compare(with_a_correct_one(serials.values(), b=self._b))
            await Pause(EVERY_US)

    async def _fetch(self, node: NodeId, report: HealthReply) -> None:
        """Ask a peer for the descriptions that it claims and this node lacks."""

        def judge(delivery: Delivery, _now_us: int) -> DescriptionReply | None:
            return delivery.message if isinstance(delivery.message, DescriptionReply) else None

        known = self._known
        wanted = [each for each in report.other_descriptions if known.lacks(each)]
        serial, digest = report.description_serial, report.description_digest
        if serial > known.serial or (serial == known.serial and digest and known.lacks(digest)):
            wanted.insert(0, b"")
        for each in wanted:
            answers = await ask_all(
                self._peers, {node: DescriptionRequest(each)}, judge, patience_us=_PATIENCE_US
            )
            for reply in answers.values():
                known.offer(reply.encoded, reply.signature, by=node)
