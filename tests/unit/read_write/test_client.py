"""Writes and reads against real servers: rounds, silence, refusals, and who is asked for what."""

from __future__ import annotations

import errno
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking.peers import SILENCE_US
from bftfs.asking.refusal import Refused
from bftfs.coding import cross_checksum
from bftfs.coding.erasure import ErasureCode
from bftfs.credentials import Grant
from bftfs.errors import (
    AdmissionRefused,
    NoLongerKept,
    QuorumUnavailable,
    VersionUnrecoverable,
)
from bftfs.identifiers import NodeId, block_id
from bftfs.read_write.messages import (
    Below,
    Listed,
    ReadReply,
    ReadRequest,
    TimeReply,
    TimeRequest,
    VouchRequest,
    WriteRequest,
)
from bftfs.read_write.reading import NEVER_WRITTEN, BlockRead
from bftfs.read_write.timestamp import BlockTimestamp, successor_of, version_key
from bftfs.read_write.version_row import VERIFIED
from bftfs.read_write.writing import Encoded, least_safe_time
from bftfs.server.step import Sender
from bftfs.simulation.world import START_US
from bftfs.storage import Table, Write
from bftfs.thresholds import ReadWriteThresholds
from tests.builders import USER
from tests.unit.read_write import adversaries
from tests.unit.read_write.harness import BLOCK, INODE, Answer, Honest, Node, Principal, World, mute

ITEM = bytes(range(256)) * 40


def kinds(principal: Principal) -> list[str]:
    return [type(message).__name__ for _, message in principal.sent]


def requests(principal: Principal, kind: type) -> list[tuple[int, Any]]:
    return [(node, message) for node, message in principal.sent if isinstance(message, kind)]


# --- writing -------------------------------------------------------------------------------------


def test_a_write_is_one_time_round_and_one_write_round() -> None:
    world = World()
    alice = world.client()
    alice.write(ITEM)
    assert kinds(alice) == ["TimeRequest"] * 4 + ["WriteRequest"] * 6
    world.settle()
    assert sum(len(node.served) for node in world.nodes) == 10


def test_a_node_without_a_usable_time_is_replaced() -> None:
    world = World()
    alice = world.client()
    world.nodes[0].behaviour = adversaries.answer_nonsense
    alice.write(ITEM)
    assert kinds(alice) == ["TimeRequest"] * 5 + ["WriteRequest"] * 6
    assert world.now_us < START_US + limits.READ_PATIENCE_US


def test_others_are_soon_asked_the_time_for_a_silent_node() -> None:
    world = World()
    alice = world.client()
    world.nodes[0].behaviour = mute
    alice.write(ITEM)
    assert kinds(alice) == ["TimeRequest"] * 5 + ["WriteRequest"] * 6
    assert world.now_us < START_US + 2 * limits.READ_PATIENCE_US
    alice.sent.clear()
    alice.write(ITEM)
    assert kinds(alice) == ["TimeRequest"] * 4 + ["WriteRequest"] * 6
    assert [node for node, _ in requests(alice, TimeRequest)] == [1, 2, 3, 4]


def test_a_write_uses_the_clock_or_a_later_nodes_time() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    bob.skew_us = 200 * limits.SECOND_US
    first = alice.write(b"first")
    assert START_US <= first.time <= START_US + world.now_us
    second = bob.write(b"second")
    assert second.time >= START_US + bob.skew_us
    third = alice.write(b"third")
    assert third.time == second.time + 1
    assert alice.read().item == b"third"


@pytest.mark.parametrize(
    ("reported", "b", "least"),
    [([0, 0, 0, 0, 9], 1, 0), ([5, 5, 5, 5, 9], 1, 5), ([1, 2, 3, 4, 5], 2, 3), ([1, 2], 0, 2)],
)
def test_the_least_safe_time(reported: list[int], b: int, least: int) -> None:
    assert least_safe_time(reported, b) == least


def test_a_write_does_not_wait_for_the_slowest_t_nodes() -> None:
    world = World()
    alice = world.client()
    world.nodes[3].behaviour = mute
    timestamp = alice.write(ITEM)
    assert world.now_us < limits.WRITE_PATIENCE_US
    assert (NodeId(3), WriteRequest) in [(node, type(message)) for node, message in alice.sent]
    assert all(node.hosts(timestamp) for node in world.nodes if node.number != 3)


def test_a_silent_node_gets_the_request_again() -> None:
    world = World()
    alice = world.client()
    forgetful = {2: 3, 4: 2}  # node -> requests that get lost

    def lossy(node: Node, _sender: Sender, _message: Any, honest: Honest) -> Answer | None:
        forgetful[node.number] -= 1
        return honest() if forgetful[node.number] < 0 else None

    for number in forgetful:
        world.nodes[number].behaviour = lossy
    timestamp = alice.write(ITEM)
    assert sum(node.hosts(timestamp) for node in world.nodes) >= 5
    assert alice.read().item == ITEM


def test_a_write_without_n_minus_t_nodes_gives_up() -> None:
    world = World()
    for number in (1, 4):
        world.nodes[number].behaviour = mute
    alice = world.client(patience_total_us=10 * limits.SECOND_US)
    with pytest.raises(QuorumUnavailable) as failure:
        alice.write(ITEM)
    assert (failure.value.heard, failure.value.required) == (4, 5)
    assert BLOCK.hex() in str(failure.value)
    assert 10 * limits.SECOND_US <= world.now_us < 11 * limits.SECOND_US


def test_a_write_with_too_few_usable_answers_fails() -> None:
    """More than t nodes lie: what fewer than N - t host is not taken for written."""
    world = World()
    for number in (1, 4):
        world.nodes[number].behaviour = adversaries.answer_nonsense
    alice = world.client(patience_total_us=10 * limits.SECOND_US)
    with pytest.raises(QuorumUnavailable):
        alice.write(ITEM)
    for number in (1, 4):
        world.nodes[number].behaviour = lambda _node, _sender, _message, honest: honest()
    assert world.nodes[0].hosts(alice.write(ITEM))


def test_a_patient_write_waits_until_nodes_are_back() -> None:
    world = World()
    for number in (1, 3, 4):
        world.nodes[number].behaviour = mute
    alice = world.client()
    outcome = alice.start(alice.client.write(BLOCK, ITEM, USER))
    while world.now_us < 3600 * limits.SECOND_US:
        world.next_event()
    assert not outcome.done
    for node in world.nodes:
        node.behaviour = lambda _node, _sender, _message, honest: honest()
    world.run(outcome)
    assert outcome.error is None
    # Its first time had passed, so the nodes would have refused it.
    assert outcome.result.time >= START_US + 3600 * limits.SECOND_US
    assert alice.read().item == ITEM


def test_a_write_held_up_is_finished_where_it_was_seen() -> None:
    """Its value must not appear twice: before and after another client's write."""
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    for number in (3, 4, 5):
        world.nodes[number].behaviour = lambda _node, _sender, message, honest: (
            None if isinstance(message, WriteRequest) else honest()
        )
    outcome = alice.start(alice.client.write(BLOCK, ITEM, USER))
    while world.now_us < 301 * limits.SECOND_US:
        world.next_event()
    (first,) = {message.timestamp for _, message in requests(alice, WriteRequest)}
    for node in world.nodes:
        node.behaviour = lambda _node, _sender, _message, honest: honest()
    assert bob.write(b"in between").time > first.time
    world.run(outcome)
    assert outcome.result == first
    assert bob.read().item == b"in between"


def test_a_refusal_by_more_than_t_is_final_with_its_reason() -> None:
    world = World()
    alice = world.client(grant=Grant(write=False))
    with pytest.raises(AdmissionRefused) as refusal:
        alice.write(ITEM)
    assert refusal.value.code == errno.EROFS
    assert "grant" in str(refusal.value)


def test_a_refusal_by_t_nodes_is_worked_around() -> None:
    world = World()
    alice = world.client()
    world.nodes[0].behaviour = adversaries.refuse_everything
    alice.write(ITEM)
    assert alice.read().item == ITEM


def test_a_liars_reason_is_not_given_for_a_refusal() -> None:
    """Another node's clock is behind for now; one full disk must not make that final."""
    world = World()
    alice = world.client()
    behind = 3

    def late(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer | None:
        nonlocal behind
        if not isinstance(message, WriteRequest) or not behind:
            return honest()
        behind -= 1
        return Refused(errno.ETIME, "ahead of this node"), b""

    world.nodes[0].behaviour = adversaries.refuse_everything
    world.nodes[1].behaviour = late
    alice.write(ITEM)
    assert behind == 0
    assert alice.read().item == ITEM


def test_a_time_pushed_ahead_delays_a_write_only() -> None:
    """[design §4] "This can only delay": the nodes whose clocks are behind catch up."""
    world = World()
    alice = world.client()
    ahead_us = START_US + limits.CLOCK_SKEW_US + 3 * limits.SECOND_US
    refused = []

    def fast(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
        return (TimeReply((ahead_us,)), b"") if isinstance(message, TimeRequest) else honest()

    def note(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
        answer = honest()
        if isinstance(answer[0], Refused):
            refused.append(answer[0].code)
        return answer

    for node in (0, 1, 3):
        world.nodes[node].behaviour = fast
    world.nodes[2].behaviour = note
    timestamp = alice.write(ITEM)
    assert timestamp.time == ahead_us + 1
    assert set(refused) == {errno.ETIME}
    assert alice.read().item == ITEM


def test_eagain_is_no_verdict() -> None:
    world = World()
    alice = world.client()
    busy = dict.fromkeys(range(6), 2)

    def overloaded(node: Node, _sender: Sender, _message: Any, honest: Honest) -> Answer | None:
        busy[node.number] -= 1
        return honest() if busy[node.number] < 0 else (Refused(errno.EAGAIN, "busy"), b"")

    for node in world.nodes:
        node.behaviour = overloaded
    alice.write(ITEM)
    assert alice.read().item == ITEM


def test_a_write_that_nodes_put_off_is_sent_again_after_a_while() -> None:
    """Nodes that are short of room slow greedy writers down so. [bftfs.server.room]"""
    world = World()
    alice = world.client()
    slowed = set(range(6))

    def slow(node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer | None:
        if isinstance(message, WriteRequest) and node.number in slowed:
            slowed.discard(node.number)
            return Refused(errno.EAGAIN, "slowed"), b""
        return honest()

    for node in world.nodes:
        node.behaviour = slow
    began_us = world.now_us
    alice.write(ITEM)
    assert world.now_us - began_us >= limits.WRITE_PATIENCE_US
    assert len(requests(alice, WriteRequest)) == 12


@pytest.mark.parametrize("skew_s", [-400, 400])
def test_a_client_with_a_wrong_clock_is_told_so(skew_s: int) -> None:
    world = World()
    alice = world.client()
    alice.skew_us = skew_s * limits.SECOND_US
    with pytest.raises(AdmissionRefused, match="clock") as refusal:
        alice.write(ITEM)
    assert refusal.value.code == errno.ETIME
    assert len(requests(alice, TimeRequest)) == 4 * limits.TIMES_PER_WRITE


def test_writes_after_a_known_time_ask_for_none() -> None:
    """The clock tells a later one; if it does not, the next is taken."""
    alice = World().client()
    items = [(block_id(INODE, incarnation=0, number=number), ITEM) for number in range(3)]
    first = alice.do(alice.client.write_many(items, USER, is_asking=False))
    assert {written.time for written in first} == {START_US}
    again = alice.do(
        alice.client.write_many(items, USER, after_us=START_US + 9_000, is_asking=False)
    )
    assert {written.time for written in again} == {START_US + 9_001}
    assert kinds(alice) == ["WriteRequest"] * 6 * 6
    assert alice.do(alice.client.read(items[0][0])).timestamp == again[0]


def test_writes_are_later_than_their_caller_knows() -> None:
    alice = World().client()
    items = [(BLOCK, ITEM)]
    (written,) = alice.do(alice.client.write_many(items, USER, after_us=START_US + 9_000))
    assert written.time == START_US + 9_001
    (again,) = alice.do(alice.client.write_many(items, USER, after_us=START_US))
    assert again.time == written.time + 1


def test_many_writes_share_one_time_round() -> None:
    world = World()
    alice = world.client()
    items = [
        (block_id(INODE, incarnation=0, number=number), b"%d" % number * 99)
        for number in range(300)
    ]
    timestamps = alice.do(alice.client.write_many(items, USER))
    assert len(requests(alice, TimeRequest)) == 2 * 4
    assert len(requests(alice, WriteRequest)) == 300 * 6
    versions = alice.do(alice.client.read_many([block for block, _ in items]))
    assert [version.item for version in versions] == [item for _, item in items]
    assert [version.timestamp for version in versions] == list(timestamps)
    assert alice.do(alice.client.write_many([], USER)) == ()
    assert alice.do(alice.client.read_many([])) == ()


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 7, 8191, 8192, 100_003])
def test_items_of_every_length_come_back(length: int) -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    item = (ITEM * 10)[:length]
    alice.write(item)
    assert alice.read().item == item
    assert bob.read().item == item


@pytest.mark.parametrize(
    "sizes",
    [
        ReadWriteThresholds(N=1, t=0, b=0, QC=1, m=1),
        ReadWriteThresholds(N=3, t=1, b=0, QC=2, m=1),
        ReadWriteThresholds.smallest(t=1, b=1),
        ReadWriteThresholds.smallest(t=2, b=1),
        ReadWriteThresholds.smallest(t=2, b=2),
        ReadWriteThresholds.for_nodes(11, t=3, b=1),
        ReadWriteThresholds.for_nodes(12, t=2, b=1),
        ReadWriteThresholds(N=12, t=2, b=1, QC=5, m=2),
        ReadWriteThresholds.smallest(t=4, b=4),
    ],
    ids=str,
)
def test_any_valid_configuration(sizes: ReadWriteThresholds) -> None:
    world = World(sizes)
    alice, bob = world.client("alice"), world.client("bob")
    assert alice.read() == NEVER_WRITTEN
    for number in range(3):
        block = block_id(INODE, incarnation=0, number=number)
        first = alice.write(ITEM, block)
        for down in range(sizes.t):
            world.nodes[down].behaviour = mute
        second = bob.write(ITEM[::-1], block)
        assert alice.read(block).item == ITEM[::-1]
        assert alice.read(block, before=second).timestamp == first
        for node in world.nodes:
            node.behaviour = lambda _node, _sender, _message, honest: honest()
        assert world.client("carol").read(block).item == ITEM[::-1]


# --- reading: whom it asks, and for what ---------------------------------------------------------


def test_a_read_asks_stripes_and_witnesses_in_one_round() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    alice.write(ITEM)
    world.settle()
    assert bob.read().item == ITEM
    asked = requests(bob, ReadRequest)
    assert [(node, message.want_data) for node, message in asked] == [
        (0, True),
        (1, True),
        (2, True),
        (3, False),
        (4, False),
    ]


def test_stripes_of_another_block_are_at_other_nodes() -> None:
    world = World()
    alice = world.client("alice")
    block = block_id(INODE, incarnation=0, number=4)
    alice.write(ITEM, block)
    world.settle()
    alice.sent.clear()
    alice.read(block)
    asked = requests(alice, ReadRequest)
    assert [(node, message.want_data) for node, message in asked] == [
        (4, True),
        (5, True),
        (0, True),
        (1, False),
        (2, False),
    ]


def test_silence_widens_a_read_with_data_elsewhere() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    alice.write(ITEM)
    world.settle()
    world.nodes[1].behaviour = mute
    started = world.now_us
    assert bob.read().item == ITEM
    assert limits.READ_PATIENCE_US <= world.now_us - started < 2 * limits.READ_PATIENCE_US
    assert requests(bob, ReadRequest)[5][0] == 5
    assert requests(bob, ReadRequest)[5][1].want_data


def test_a_silent_node_costs_no_second_wait() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    alice.write(ITEM)
    world.settle()
    world.nodes[1].behaviour = mute
    bob.read()
    started = world.now_us
    bob.sent.clear()
    assert bob.read().item == ITEM
    assert world.now_us - started < limits.READ_PATIENCE_US
    assert 1 not in [node for node, _ in bob.sent]


def test_a_node_that_is_back_is_asked_again_after_a_while() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    alice.write(ITEM)
    world.settle()
    world.nodes[1].behaviour = mute
    bob.read()
    world.nodes[1].behaviour = lambda _node, _sender, _message, honest: honest()
    world.now_us += SILENCE_US
    bob.sent.clear()
    bob.read()
    assert [node for node, _ in bob.sent] == [0, 2, 3, 4, 5, 1]  # a probe that nobody waits for
    world.settle()
    bob.read()
    bob.sent.clear()
    bob.read()
    assert [node for node, _ in bob.sent] == [0, 1, 2, 3, 4]


def test_patience_adapts_to_a_slow_network() -> None:
    world = World(delay_us=(60_000, 70_000))
    alice = world.client()
    alice.write(ITEM)
    for _ in range(4):
        alice.read()
    alice.sent.clear()
    alice.read()
    assert len(alice.sent) == 5


def test_writes_are_not_sent_again_on_a_slow_network() -> None:
    world = World(delay_us=(700_000, 800_000))
    alice = world.client()
    for _ in range(3):
        alice.write(ITEM)
    alice.sent.clear()
    alice.write(ITEM)
    assert kinds(alice) == ["TimeRequest"] * 4 + ["WriteRequest"] * 6


def test_a_false_fragment_counts_and_is_worked_around() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    alice.write(ITEM)
    world.settle()
    world.nodes[0].behaviour = adversaries.corrupt_fragments
    started = world.now_us
    assert bob.read().item == ITEM
    assert world.now_us - started < limits.READ_PATIENCE_US
    assert bob.peers.faults == [1, 0, 0, 0, 0, 0]
    bob.sent.clear()
    assert bob.read().item == ITEM
    assert [node for node, _ in bob.sent] == [1, 2, 3, 4, 5]
    assert bob.peers.faults == [1, 0, 0, 0, 0, 0]


def test_a_read_without_n_minus_t_nodes_gives_up() -> None:
    world = World()
    alice = world.client(patience_total_us=5 * limits.SECOND_US)
    alice.write(ITEM)
    world.settle()
    for number in (0, 1):
        world.nodes[number].behaviour = mute
    with pytest.raises(QuorumUnavailable) as failure:
        alice.read()
    assert (failure.value.heard, failure.value.required) == (4, 5)


def test_a_patient_read_goes_on_when_nodes_are_back() -> None:
    world = World()
    alice = world.client()
    alice.write(ITEM)
    world.settle()
    for number in (0, 1):
        world.nodes[number].behaviour = mute
    outcome = alice.start(alice.client.read(BLOCK))
    while world.now_us < 60 * limits.SECOND_US:
        world.next_event()
    world.nodes[0].behaviour = lambda _node, _sender, _message, honest: honest()
    world.run(outcome)
    assert outcome.result.item == ITEM


def test_a_read_refused_by_more_than_t_fails_with_a_reason() -> None:
    world = World()
    alice = world.client()
    for number in (0, 1):
        world.nodes[number].behaviour = adversaries.refuse_everything
    with pytest.raises(AdmissionRefused, match="no space"):
        alice.read()


# --- reading: versions ---------------------------------------------------------------------------


def test_versions_of_the_past() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    written = []
    for number in range(40):
        world.now_us += 1_000
        written.append(alice.write(b"version %d" % number))
    world.settle()
    for number, timestamp in enumerate(written):
        at = bob.read(at_time_us=timestamp.time)
        assert (at.item, at.timestamp) == (b"version %d" % number, timestamp)
        before = bob.read(before=timestamp)
        earlier = bob.read(at_time_us=timestamp.time - 1)
        assert before == earlier
        if number:
            assert before.timestamp == written[number - 1]
        else:
            assert before == NEVER_WRITTEN


def test_before_and_at_time_together_mean_the_earlier_bound() -> None:
    world = World()
    alice = world.client()
    first = alice.write(b"first")
    second = alice.write(b"second")
    assert alice.read(before=second, at_time_us=second.time).timestamp == first
    assert alice.read(before=second, at_time_us=first.time - 1) == NEVER_WRITTEN


def test_long_histories_of_partial_writes_are_descended() -> None:
    world = World()
    alice, mallory = world.client("alice"), world.client("mallory")
    alice.write(ITEM)
    world.settle()
    for number in range(100):
        world.placed(
            mallory,
            b"%d" % number,
            [number % 6, (number + 1) % 6],
            time_us=START_US + 10**6 + number,
        )
    assert alice.read().item == ITEM
    # Version histories make most of the descent free.
    assert len(requests(alice, ReadRequest)) < 5 + 12 * 6


def test_a_descent_goes_on_below_all_that_was_listed() -> None:
    world = World()
    alice, mallory = world.client("alice"), world.client("mallory")
    complete = alice.write(ITEM)
    world.settle()
    for number in range(limits.HISTORY_AT_FIRST + 1):
        for pair in ([0, 1], [2, 3], [4, 5]):
            time_us = START_US + 10**6 + number
            world.placed(mallory, b"%d %d" % (number, pair[0]), pair, time_us=time_us)
    started = world.now_us
    assert alice.read().timestamp == complete
    assert world.now_us - started < limits.READ_PATIENCE_US


def test_what_b_plus_one_have_verified_is_not_regenerated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    alice, bob, carol = world.client("alice"), world.client("bob"), world.client("carol")
    timestamp = alice.write(ITEM)
    world.settle()
    regenerated = []
    monkeypatch.setattr(
        "bftfs.read_write.validation.regenerate", lambda *given: regenerated.append(given)
    )

    def mark_verified(number: int) -> None:
        storage = world.nodes[number].storage
        key = version_key(BLOCK, timestamp)
        row = storage.get(Table.BLOCK, key)
        assert row is not None
        storage.apply([Write(Table.BLOCK, key, bytes([VERIFIED]) + row[1:])])

    mark_verified(4)
    assert bob.read() == NEVER_WRITTEN  # since regeneration, replaced above, gave None
    assert len(regenerated) == 1
    mark_verified(0)
    assert carol.read().item == ITEM
    assert len(regenerated) == 1


def test_versions_written_or_read_are_not_regenerated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    alice.write(ITEM)
    assert bob.read().item == ITEM
    monkeypatch.setattr("bftfs.read_write.validation.regenerate", None)
    assert alice.read().item == ITEM
    assert bob.read().item == ITEM
    with pytest.raises(TypeError):
        world.client("carol").read()


def test_too_few_fragments_left_fail_a_read_and_it_says_so() -> None:
    world = World()
    alice = world.client()
    timestamp = alice.write(ITEM)
    world.settle()
    for number in range(4):
        world.nodes[number].rot(timestamp)
    with pytest.raises(VersionUnrecoverable, match="2 of the 3 fragments") as failure:
        alice.read()
    assert BLOCK.hex() in str(failure.value)


def test_collected_history_is_said_to_be_so() -> None:
    world = World()
    alice = world.client()
    timestamp = alice.write(ITEM)

    def collected(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
        if isinstance(message, ReadRequest) and message.before is not None:
            return ReadReply((), Below.COLLECTED, b""), b""
        return honest()

    for node in world.nodes:
        node.behaviour = collected
    with pytest.raises(NoLongerKept):
        alice.read(before=timestamp)
    assert alice.read().item == ITEM


@pytest.mark.parametrize(("hosts", "item"), [((0, 1, 2), b"later"), ((0,), ITEM)])
def test_a_past_read_ends_with_one_collected_and_one_silent(
    hosts: tuple[int, ...], item: bytes
) -> None:
    """Whether or not it hosted the candidate makes no difference here."""
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    world.placed(alice, ITEM, range(6), time_us=START_US + 1)
    later = world.placed(alice, b"later", hosts, time_us=START_US + 2)

    def collected(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
        if isinstance(message, ReadRequest):
            return ReadReply((), Below.COLLECTED, b""), b""
        return honest()

    world.nodes[4].behaviour = collected
    world.nodes[5].behaviour = mute
    assert bob.read(before=successor_of(later)).item == item


# --- repair --------------------------------------------------------------------------------------


def test_a_repair_is_vouched_for_and_completes() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    timestamp = world.placed(alice, ITEM, [0, 2, 5])
    assert bob.read().timestamp == timestamp
    assert len(requests(bob, VouchRequest)) == 6
    writes = requests(bob, WriteRequest)
    assert len(writes) == 6
    assert {voucher.node for voucher in writes[0][1].vouchers} <= {0, 2, 5}
    world.settle()
    assert all(node.hosts(timestamp) for node in world.nodes)
    bob.sent.clear()
    assert bob.read().item == ITEM
    assert kinds(bob) == ["ReadRequest"] * 5


def test_a_reader_may_repair_what_it_may_not_write() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    bob.sender = Sender(bob.sender.role, bob.id, None, type(bob.sender.grant)(write=False))
    timestamp = world.placed(alice, ITEM, [0, 1, 2])
    assert bob.read().timestamp == timestamp
    world.settle()
    assert all(node.hosts(timestamp) for node in world.nodes)


def test_asking_the_rest_comes_before_a_repair() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    timestamp = world.placed(alice, ITEM, [1, 2, 3, 4, 5])
    assert bob.read().timestamp == timestamp
    assert kinds(bob) == ["ReadRequest"] * 6
    assert not requests(bob, WriteRequest)


def test_a_repair_without_vouchers_means_incomplete() -> None:
    """Smallest cluster: a liar and one correct node make a candidate repairable, and no more."""
    world = World(ReadWriteThresholds.smallest(t=1, b=1))
    alice, mallory = world.client("alice"), world.client("mallory")
    before = alice.write(b"before")
    world.settle()
    world.placed(mallory, b"partial", [0, 1], time_us=START_US + 10**7)
    world.nodes[0].behaviour = adversaries.vouch_falsely
    assert alice.read().timestamp == before
    world.nodes[0].behaviour = lambda _node, _sender, _message, honest: (
        adversaries.deny_everything(_node, _sender, _message, honest)
        if isinstance(_message, VouchRequest)
        else honest()
    )
    assert world.client("carol").read().timestamp == before


def test_timestamps_name_their_author() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    world.placed(alice, ITEM, [0, 1, 2])
    assert bob.read().timestamp.client == alice.id
    assert bob.write(b"mine").client == bob.id
    assert isinstance(alice.read().timestamp, BlockTimestamp)


def test_a_host_that_goes_silent_does_not_stop_a_repair() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    timestamp = world.placed(alice, ITEM, [0, 1, 2, 3])
    world.nodes[1].behaviour = lambda _node, _sender, message, honest: (
        None if isinstance(message, VouchRequest) else honest()
    )
    assert bob.read().timestamp == timestamp


def test_a_repair_refused_by_more_than_t_fails_the_read() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    world.placed(alice, ITEM, [0, 1, 2])

    def full(
        _node: Node, _sender: Sender, message: Any, honest: Honest
    ) -> Answer | tuple[Refused, bytes]:
        if isinstance(message, WriteRequest):
            return Refused(errno.ENOSPC, "the disk is full"), b""
        return honest()

    for number in (4, 5):
        world.nodes[number].behaviour = full
    with pytest.raises(AdmissionRefused, match="disk is full"):
        bob.read()


def test_nonsense_counts_against_its_node() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    world.nodes[2].behaviour = adversaries.answer_nonsense
    alice.write(ITEM)
    world.settle()
    assert bob.read().item == ITEM
    # A time, and that it hosts a write; and what it hosts.
    assert (alice.peers.faults[2], bob.peers.faults[2]) == (2, 1)


def test_an_overtaken_read_retries_with_a_node_down() -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    newest = world.placed(alice, b"newest", range(6), time_us=START_US + 1)
    world.nodes[5].behaviour = mute
    asked = 0

    def first_partial_then_collected(
        _node: Node, _sender: Sender, message: Any, honest: Honest
    ) -> Answer | None:
        """Lists a version that is nowhere else; asked for older ones, it has none any more."""
        nonlocal asked
        if not isinstance(message, ReadRequest):
            return honest()
        asked += 1
        if message.before is None and asked == 1:
            partial = BlockTimestamp(START_US + 9, alice.id, newest.verifier)
            return ReadReply((Listed(partial, False),), Below.COLLECTED, b""), b""
        return honest()

    world.nodes[4].behaviour = first_partial_then_collected
    assert bob.read().timestamp == newest
    assert asked == 2


class AlwaysOvertaken(BlockRead):
    """A read of a patch that nodes have collected, though they have no later one."""

    async def _descend(self) -> None:
        return None


def test_a_read_that_is_always_overtaken_pauses_and_ends() -> None:
    session: Any = SimpleNamespace(
        patience_total_us=limits.VERIFY_PATIENCE_US, thresholds=World().thresholds
    )
    reading = AlwaysOvertaken(session, BLOCK, None).run()
    pauses: list[int] = []
    effects: Any = iter(partial(reading.send, None), None)
    with pytest.raises(QuorumUnavailable):
        pauses.extend(effect.duration_us for effect in islice(effects, 1_000))
    assert len(pauses) < 20
    assert max(pauses) <= limits.PATIENCE_MOST_US


def test_an_encoding_of_no_item_is_poisonous_to_readers() -> None:
    world = World()
    alice, mallory, bob = (world.client(name) for name in ("alice", "mallory", "bob"))
    alice.write(ITEM)
    world.settle()
    world.now_us += 1
    code = ErasureCode(world.thresholds.m, world.thresholds.N)
    fragments = code.regenerate(dict.fromkeys(range(3), b"\xff" * 10))
    checksum = cross_checksum.make(fragments)
    no_item = Encoded(fragments, checksum, cross_checksum.verifier(checksum))
    world.place(mallory, no_item, range(6))
    assert bob.read().item == ITEM


def test_a_fragment_that_was_withheld_is_asked_for_again() -> None:
    """Node 0 answers the third time; its fragment of an older version is needed."""
    world = World(ReadWriteThresholds.smallest(t=1, b=0))
    alice, bob = world.client("alice"), world.client("bob")
    code_m = world.thresholds.m
    assert code_m == 1
    timestamp = world.placed(alice, ITEM, [1, 2], time_us=START_US)
    refusals = {1: 3, 2: 3}

    def slow_with_data(node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer | None:
        if isinstance(message, ReadRequest) and message.want_data:
            refusals[node.number] -= 1
            return honest() if refusals[node.number] < 0 else None
        return honest()

    for number in refusals:
        world.nodes[number].behaviour = slow_with_data
    assert bob.read().timestamp == timestamp


def test_an_operation_remembers_a_bound_of_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "LATE_REQUESTS", 12)
    world = World()
    alice = world.client()
    for node in world.nodes[1:]:
        node.behaviour = mute
    reading = BlockRead(alice.client._session, BLOCK, None)
    read = alice.start(reading.run())
    write = alice.start(alice.client.write(BLOCK, ITEM, USER))
    while world.now_us < 120 * limits.SECOND_US:
        world.next_event()
        assert len(reading._inquiry.unanswered) <= 12 + 6
    for node in world.nodes:
        node.behaviour = lambda _node, _sender, _message, honest: honest()
    world.run(read, write)
    assert read.error is write.error is None
