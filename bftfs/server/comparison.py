"""A node compares its description of the cluster with those of its peers.

A node's files may be outdated: a folder restored from a backup has an old description of the
cluster, which still admits clients that have been revoked since. Nothing in the folder tells so;
the peers do.

**Rule.** A serial counts only if at least b + 1 peers report it or a later one, because b of them
may lie.

Tests: `tests/unit/server/test_comparison.py`; with real nodes,
`tests/integration/test_descriptions.py`.

**Concurrency.** One thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bftfs.asking.ask import ask_all
from bftfs.asking.peers import Peers
from bftfs.cluster import ClusterDescription
from bftfs.conversation import Delivery, Pause
from bftfs.envelope import HealthReply, HealthRequest
from bftfs.identifiers import NodeId
from bftfs.limits import SECOND_US
from bftfs.server.step import Host

FIRST_AFTER_US = 5 * SECOND_US  # by then, nodes that were started together are up
EVERY_US = 60 * SECOND_US
_PATIENCE_US = 2 * SECOND_US


async def health_reports(peers: Peers, nodes: Iterable[int]) -> dict[NodeId, HealthReply]:
    """The health reports of `nodes` that answer in time. They are claims: a node may lie."""

    def judge(delivery: Delivery, _now_us: int) -> HealthReply | None:
        return delivery.message if isinstance(delivery.message, HealthReply) else None

    requests = {NodeId(node): HealthRequest() for node in nodes}
    return await ask_all(peers, requests, judge, patience_us=_PATIENCE_US)


def with_a_correct_one(claimed: Iterable[int], *, b: int) -> int:
    """The highest number that at least one correct node certainly reaches; 0 if there is none."""
    highest = sorted(claimed, reverse=True)
    return highest[b] if len(highest) > b else 0


class Comparison:
    """A node's background work: it asks its peers how they are, once a minute."""

    def __init__(
        self,
        node: NodeId,
        description: ClusterDescription,
        peers: Peers,
        tell_serial: Callable[[int], None],
    ) -> None:
        """`tell_serial` is called with a serial that some correct peer's description reaches."""
        self._others = peers.others(node)
        self._b = description.b
        self._peers = peers
        self._tell_serial = tell_serial

    async def run(self, host: Host) -> None:
        """Compare once a minute, as long as the node runs."""
        await Pause(FIRST_AFTER_US)
        while True:
            reports = await health_reports(self._peers, self._others)
            serials = (report.description_serial for report in reports.values())
            self._tell_serial(with_a_correct_one(serials, b=self._b))
            await Pause(EVERY_US)
