"""Background verification is no burden, neither for a node's clients nor for its peers'."""

from __future__ import annotations

import pytest

from bftfs import limits
from bftfs.identifiers import NodeId
from bftfs.read_write.messages import ReadRequest, TimeRequest
from bftfs.server.block_verification import LazyVerifier, VerificationPolicy, VerificationSettings
from bftfs.server.worker import IdleTime, claimed_ms
from bftfs.simulation.network import Kind, NetworkFaults
from bftfs.simulation.principals import node_endpoint
from tests.unit.server.verifying import SECOND_US, Client, Cluster, block

NOW_US = 1_700_000_000 * SECOND_US
IDLE_US, MOST_US = limits.VERIFY_IDLE_US, limits.VERIFY_IDLE_MOST_US


def after_work(idle: IdleTime, *claims_ms: int, here_us: int = 0) -> bool:
    """Whether a millisecond's work was undisturbed, during which peers claimed this."""
    idle.begin()
    for node, claim_ms in enumerate(claims_ms):
        idle.heard(NodeId(node), claim_ms, NOW_US)
    return idle.end(NOW_US - 1_000, here_us)


def test_the_silence_that_is_required_is_learnt() -> None:
    idle = IdleTime(b=1)
    for step in range(1, 12):
        assert not after_work(idle, here_us=NOW_US - 500)
        assert idle.required_us == min(IDLE_US << step, MOST_US)
    for step in range(1, 12):
        assert after_work(idle, here_us=NOW_US - 2 * MOST_US)
        assert idle.required_us == max(MOST_US >> step, IDLE_US)


def test_the_latest_claim_but_b_counts() -> None:
    assert after_work(IdleTime(b=1), 0, 500, 500, 500)  # one who says that he is busy may lie
    assert not after_work(IdleTime(b=1), 0, 0, 500, 500)
    assert not after_work(IdleTime(b=1), 1000, 0, 0, 0)  # and so may one who says that he is not
    assert after_work(IdleTime(b=2), 0, 0, 500, 500)
    assert after_work(IdleTime(b=1), 0)  # b claims are none


def test_claims_last_for_one_piece_of_work() -> None:
    idle = IdleTime(b=1)
    assert not after_work(idle, 3, 2, 4)
    assert idle.foreground_us(0) == NOW_US - 3_000
    assert idle.foreground_us(NOW_US - 1) == NOW_US - 1
    assert not after_work(idle)  # nothing that was heard makes this one undisturbed
    assert idle.foreground_us(0) == NOW_US - 3_000


def test_what_a_node_claims_is_bounded() -> None:
    assert claimed_ms(NOW_US - 12_345, NOW_US) == 12
    assert claimed_ms(0, NOW_US) == MOST_US // 1_000
    assert claimed_ms(NOW_US + 5, NOW_US) == 0  # the clock was set back


# --- with nodes that verify --------------------------------------------------------------------


def ask(cluster: Cluster, client: Client, nodes: range, every_us: int, seconds: int) -> None:
    """A client that asks `nodes` for something again and again."""
    for _ in range(seconds * SECOND_US // every_us):
        for node in nodes:
            cluster.network.send(
                client.host.endpoint,
                node_endpoint(NodeId(node)),
                Kind.REQUEST,
                0,
                TimeRequest((block(7),)),
            )
        cluster.run_for(every_us)


def written(cluster: Cluster, client: Client, blocks: int = 60) -> None:
    for number in range(blocks):
        client.write(block(number), b"item")


def possible(cluster: Cluster) -> int:
    return sum(cluster.verifier(node).backlog.total for node in range(cluster.sizes.n))


POLICIES = pytest.mark.parametrize(
    "policy", [VerificationPolicy.LAZY, VerificationPolicy.COOPERATIVE]
)


@POLICIES
def test_a_node_whose_peers_are_busy_is_not_idle(policy: VerificationPolicy) -> None:
    """Clients prefer a quorum: who is not in it must not read from those who are."""
    cluster = Cluster(VerificationSettings(policy))
    client = cluster.client()
    written(cluster, client)
    cluster.network.between_nodes.clear()
    ask(cluster, client, range(5), every_us=2_000, seconds=10)
    # One block a second, after the first few.
    assert 5 <= cluster.verifier(5).tally.verified <= 20
    assert cluster.network.between_nodes[ReadRequest] <= 20 * 4
    cluster.run_for(10 * SECOND_US)
    assert possible(cluster) == 0


def test_must_fail_a_node_that_hears_nothing_of_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with its own idle time only, node 5 verifies all there is."""
    monkeypatch.setattr(IdleTime, "heard", lambda *_: None)
    cluster = Cluster(VerificationSettings(VerificationPolicy.LAZY))
    client = cluster.client()
    written(cluster, client)
    ask(cluster, client, range(5), every_us=2_000, seconds=3)
    assert cluster.verifier(5).tally.verified == 60


def gaps(cluster: Cluster) -> list[int]:
    """What each node verifies in gaps of 12 ms, where a verification takes as long as a gap."""
    cluster.network.faults = NetworkFaults(delay_us=(3_000, 4_000))
    client = cluster.client()
    written(cluster, client)
    ask(cluster, client, range(6), every_us=12_000, seconds=10)
    return [cluster.verifier(node).tally.verified for node in range(6)]


def test_gaps_shorter_than_the_work_are_no_idle_time() -> None:
    cluster = Cluster(VerificationSettings(VerificationPolicy.LAZY))
    assert max(gaps(cluster)) <= 4
    cluster.run_for(10 * SECOND_US)
    assert possible(cluster) == 0


def test_must_fail_without_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with a fixed silence, every gap is used."""
    monkeypatch.setattr(limits, "VERIFY_IDLE_MOST_US", limits.VERIFY_IDLE_US)
    assert min(gaps(Cluster(VerificationSettings(VerificationPolicy.LAZY)))) == 60


@POLICIES
@pytest.mark.parametrize("claim_ms", [0, MOST_US // 1_000])
def test_b_liars_neither_stop_verification_nor_burden_clients(
    policy: VerificationPolicy, claim_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(VerificationSettings(policy))
    liar = cluster.verifier(0)
    honest = LazyVerifier.idle_ms
    monkeypatch.setattr(
        LazyVerifier,
        "idle_ms",
        lambda self, now_us: claim_ms if self is liar else honest(self, now_us),
    )
    client = cluster.client()
    written(cluster, client)
    ask(cluster, client, range(5), every_us=2_000, seconds=10)
    assert cluster.verifier(5).tally.verified <= 20
    cluster.run_for(10 * SECOND_US)
    assert possible(cluster) == 0
