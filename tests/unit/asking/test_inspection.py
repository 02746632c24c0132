"""What `bftfs inspect` concludes from what the nodes show, and that its promise is kept."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from bftfs.asking.ask import INSPECTED_PATIENCE_US, SURPLUS_US
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.credentials import NOBODY
from bftfs.identifiers import NodeId
from bftfs.query_update.counter import Fetch
from bftfs.query_update.inspection import Copy, ObjectReport
from bftfs.query_update.inspection import inspect as inspect_object
from bftfs.query_update.messages import QueryReply
from bftfs.read_write import version_row
from bftfs.read_write.inspection import BlockReport, Fragment
from bftfs.read_write.inspection import inspect as inspect_block
from bftfs.read_write.messages import Listed, ReadReply
from bftfs.read_write.timestamp import version_key
from bftfs.read_write.version_row import VERIFIED
from bftfs.server.block_verification import VerificationPolicy, VerificationSettings
from bftfs.storage import Table, Write
from tests.unit.server.test_healing import Counting, counter
from tests.unit.server.verifying import SECOND_US, USER, Client, Cluster, block

READ_TIME = VerificationSettings(
    VerificationPolicy.READ_TIME
)  # nothing happens in the background to blocks


def seen(client: Client, number: int = 0) -> BlockReport:
    sizes = client.cluster.sizes
    peers = Peers(ThresholdQuorums(sizes.query_update))
    report: BlockReport = client.do(inspect_block(peers, sizes.read_write, block(number), NOBODY))
    return report


def fragments(report: BlockReport) -> list[Fragment]:
    return [holding.fragment for holding in report.holdings]


def lose(cluster: Cluster, node: int, key: bytes) -> None:
    """The node has neither the version nor a reason to heal it soon."""
    cluster.nodes[node].disk.lose(Table.BLOCK, key)
    cluster.nodes[node].disk.lose(Table.FRAGMENT, key)


def test_a_block_that_is_whole() -> None:
    cluster = Cluster(READ_TIME)
    client = cluster.client()
    timestamp = client.write(block(0), b"item")
    report = seen(client)
    assert report.version == timestamp
    assert fragments(report) == [Fragment.GOOD] * 6
    assert sorted(holding.index for holding in report.holdings) == list(range(6))
    assert report.survives == 1
    assert not report.degraded


@pytest.mark.parametrize("lacking", [(), (0,), (2, 3), (0, 4, 5)])
@pytest.mark.parametrize("down", [(), (1,)])
def test_a_block_survives_as_many_faults_as_inspect_says(
    lacking: tuple[int, ...], down: tuple[int, ...]
) -> None:
    """Whichever nodes fail."""
    cluster = Cluster(READ_TIME)
    client = cluster.client()
    timestamp = client.write(block(0), b"item")
    for node in lacking:
        lose(cluster, node, version_key(block(0), timestamp))
    for node in down:
        cluster.nodes[node].crash(down_us=None)
    report = seen(client)
    if len(lacking) + len(down) > 3:  # more than there may be: for readers it was never complete
        assert report.version is None
        assert [each.hosts for each in report.passed_over] == [6 - len(lacking) - len(down)]
        return
    survives = report.survives
    assert survives == min(1 - len(down), 6 - len(lacking) - len(down) - 3)
    assert len(report.reasons) == len(lacking) + len(down)
    others = [node for node in range(6) if node not in down]
    for failing in combinations(others, survives):
        again = Cluster(READ_TIME)
        writer = again.client()
        timestamp = writer.write(block(0), b"item")
        for node in lacking:
            lose(again, node, version_key(block(0), timestamp))
        for node in (*down, *failing):
            again.nodes[node].crash(down_us=None)
        assert again.client("reader").read(block(0)) == b"item"


def test_false_fragments_and_claims_are_detected() -> None:
    cluster = Cluster(READ_TIME)
    client = cluster.client()
    timestamp = client.write(block(0), b"item")
    cluster.nodes[4].disk.rot(Table.FRAGMENT, version_key(block(0), timestamp), 0)
    send = cluster.network.send

    def sends(
        source: Any, target: Any, kind: Any, number: int, message: Any, body: Any = b""
    ) -> None:
        if source == ("node", 2) and isinstance(message, ReadReply):
            listed = tuple(Listed(each.timestamp, True) for each in message.versions)
            message = ReadReply(listed, message.below, message.cross_checksum)
        send(source, target, kind, number, message, body)

    cluster.network.send = sends  # type: ignore[method-assign]
    report = seen(client)
    assert fragments(report)[4] is Fragment.FALSE
    assert report.survives == 0
    assert [holding.node for holding in report.holdings if holding.claims_verified] == [2]
    assert report.reasons == (
        "node 4 sent a fragment that is not the version's: its disk is damaged, or it lies",
    )


def test_no_b_liars_say_since_when_a_block_is_verified() -> None:
    cluster = Cluster(VerificationSettings())
    client = cluster.client()
    timestamp = client.write(block(0), b"item")
    report = seen(client)
    assert report.verified_since_us is None
    cluster.run_for(3 * SECOND_US)
    done_us = cluster.now_us
    report = seen(client)
    claims = sorted(holding.claims_since_us for holding in report.holdings)
    assert timestamp.time < claims[0] <= claims[-1] <= done_us
    assert report.verified_since_us == claims[1]
    cluster.run_for(60 * SECOND_US)
    assert seen(client).verified_since_us == claims[1]  # not verified again

    # One liar claims what is too early, too late, or impossible: what is said stays true.
    liar = report.holdings[0].node
    honest = sorted(each.claims_since_us for each in report.holdings if each.node != liar)
    for said, expected in (
        (timestamp.time, honest[0]),
        (cluster.now_us, honest[1]),
        (1, honest[1]),
        ((1 << 63) - 1, honest[1]),
    ):
        row = cluster.row(liar, block(0), timestamp)
        assert row is not None
        row = version_row.verified(version_row.checksum_of(row), said)
        key = version_key(block(0), timestamp)
        cluster.nodes[liar].disk.apply([Write(Table.BLOCK, key, row)])
        assert seen(client).verified_since_us == expected
    for node in range(5):  # as in stores of before
        row = cluster.row(node, block(0), timestamp)
        assert row is not None
        row = bytes((VERIFIED,)) + version_row.checksum_of(row)
        cluster.nodes[node].disk.apply([Write(Table.BLOCK, key, row)])
    assert seen(client).verified_since_us == 0


def test_incomplete_and_poisonous_versions_are_passed_over() -> None:
    cluster = Cluster(READ_TIME)
    client = cluster.client()
    good = client.write(block(0), b"item")
    cluster.place(client, block(0), cluster.pieces(b"never finished"), range(1))
    report = seen(client)
    assert report.version == good
    assert report.survives == 1
    assert [(each.hosts, each.poisonous) for each in report.passed_over] == [(1, False)]
    # Poison at all nodes is complete, and no reader takes it.
    cluster.place(client, block(1), cluster.poisoned(b"bad"), range(6))
    report = seen(client, 1)
    assert report.version is None
    assert [(each.hosts, each.poisonous) for each in report.passed_over] == [(6, True)]


def test_with_too_few_nodes_it_is_not_taken_for_gone() -> None:
    cluster = Cluster(READ_TIME)
    client = cluster.client()
    timestamp = client.write(block(0), b"item")
    for node in (1, 2, 3, 5):
        cluster.nodes[node].crash(down_us=None)
    report = seen(client)
    assert report.version == timestamp
    assert report.survives == -3
    assert not report.passed_over
    assert seen(client, 1).survives == -3  # whether it is a hole nobody can tell


def test_a_hole_is_no_loss() -> None:
    report = seen(Cluster(READ_TIME).client())
    assert report.version is None
    assert report.survives == 1
    assert not report.degraded


# --- objects ---------------------------------------------------------------------------------


def looked(client: Client, number: int = 0) -> ObjectReport:
    sizes = client.cluster.sizes.query_update
    peers = Peers(ThresholdQuorums(sizes))
    report: ObjectReport = client.do(
        inspect_object(peers, counter(number), sizes, "counter.fetch", Fetch(), USER)
    )
    return report


def test_who_hosts_the_latest_version_of_an_object() -> None:
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(0)
    report = looked(counting.client)
    copies = [hosting.copy for hosting in report.hostings]
    assert copies == [*[Copy.LATEST] * 5, Copy.BEHIND]  # it is not of the preferred quorum
    assert report.complete
    assert report.survives == 1
    cluster.nodes[3].crash(down_us=None)
    report = looked(counting.client)
    assert report.hostings[3].copy is Copy.SILENT
    assert report.survives == 0
    assert counting.increment(0) == 2


def test_a_server_that_claims_a_version_and_answers_falsely() -> None:
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(0)
    send = cluster.network.send

    def sends(
        source: Any, target: Any, kind: Any, number: int, message: Any, body: Any = b""
    ) -> None:
        if source == ("node", 1) and isinstance(message, QueryReply) and message.answered:
            message = QueryReply(
                message.histories,
                message.authenticators,
                message.lives,
                True,
                0,
                b"\x91\x07",
                True,
            )
        send(source, target, kind, number, message, body)

    cluster.network.send = sends  # type: ignore[method-assign]
    report = looked(counting.client)
    assert report.hostings[1].copy is Copy.DIFFERENT
    assert report.survives == 0
    assert report.hostings[1].claims == report.version


def test_with_too_few_servers_it_cannot_be_used() -> None:
    cluster = Cluster()
    counting = Counting(cluster)
    counting.increment(0)
    for node in (1, 2):
        cluster.nodes[NodeId(node)].crash(down_us=None)
    assert looked(counting.client).survives == -1


@pytest.mark.parametrize(("silent", "takes_us"), [((), 0), ((4,), SURPLUS_US)])
def test_one_slow_node_is_hardly_waited_for(silent: tuple[int, ...], takes_us: int) -> None:
    """A quorum has answered."""
    assert takes_us <= _inspected_in_us(silent) < takes_us + SECOND_US // 2


def test_nodes_that_a_quorum_needs_are_waited_for() -> None:
    """Else two slow nodes would pass for two that are down, which is more than there may be."""
    assert _inspected_in_us((3, 4)) >= INSPECTED_PATIENCE_US


def _inspected_in_us(silent: tuple[int, ...]) -> int:
    cluster = Cluster(READ_TIME)
    client = cluster.client()
    client.write(block(0), b"item")
    for node in silent:
        cluster.nodes[node].crash(down_us=None)
    began_us = cluster.world.now_us
    assert [each is Fragment.GOOD for each in fragments(seen(client))].count(False) == len(silent)
    return int(cluster.world.now_us - began_us)
