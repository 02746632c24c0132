"""One test per sentence of the source on PASIS read/write, in its order.

Each docstring quotes the sentence. The restatement of the rules is in docs/protocols-read-write.md.
"""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.coding.erasure import ErasureCode
from bftfs.crypto.digest import authenticator_bytes, fragment_digest, verifier_of
from bftfs.errors import QuorumUnavailable
from bftfs.read_write.messages import (
    Below,
    ReadReply,
    ReadRequest,
    TimeReply,
    TimeRequest,
    VouchRequest,
    WriteReply,
    WriteRequest,
)
from bftfs.read_write.reading import NEVER_WRITTEN
from bftfs.read_write.timestamp import BlockTimestamp, successor_of
from bftfs.read_write.writing import Encoded
from bftfs.server.step import Sender
from bftfs.simulation.world import START_US
from bftfs.thresholds import ReadWriteThresholds
from tests.builders import USER
from tests.unit.read_write import adversaries
from tests.unit.read_write.harness import (
    BLOCK,
    DEFAULT,
    Answer,
    Honest,
    Node,
    Principal,
    World,
    mute,
    poisoned,
)

ITEM = b"the data-item " * 500
NEWER = b"a newer value " * 500


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def alice(world: World) -> Principal:
    return world.client("alice")


@pytest.fixture
def bob(world: World) -> Principal:
    return world.client("bob")


def requests(principal: Principal, kind: type) -> list[tuple[int, Any]]:
    return [(node, message) for node, message in principal.sent if isinstance(message, kind)]


def poisonous(world: World, *, foreign: int = 5) -> Encoded:
    """Fragments that do not encode one item, with a cross-checksum that lists them."""
    return poisoned(world.encoded(NEWER), foreign)


# --- 3.4.2.1 Erasure codes -----------------------------------------------------------------------


def test_any_m_fragments_decode_the_original_data_item() -> None:
    """'any m of those data-fragments can be used to decode the original data-item.'"""
    code = ErasureCode(DEFAULT.m, DEFAULT.N)
    fragments = code.encode(ITEM)
    for chosen in combinations(range(DEFAULT.N), DEFAULT.m):
        assert code.decode({index: fragments[index] for index in chosen}) == ITEM


def test_any_m_fragments_generate_the_others() -> None:
    """'any m of those data-fragments can deterministically generate the other N - m'."""
    code = ErasureCode(DEFAULT.m, DEFAULT.N)
    fragments = tuple(map(bytes, code.encode(ITEM)))
    for chosen in combinations(range(DEFAULT.N), DEFAULT.m):
        generated = code.regenerate({index: fragments[index] for index in chosen})
        assert tuple(map(bytes, generated)) == fragments


def test_the_first_m_fragments_are_stripes_of_the_item() -> None:
    """'stripes the data-item across the first m data-fragments' (3.5.1.3)."""
    fragments = ErasureCode(DEFAULT.m, DEFAULT.N).encode(ITEM)
    assert b"".join(fragments[: DEFAULT.m]).startswith(ITEM)


# --- 3.4.2.2 Data-fragment integrity -------------------------------------------------------------


def test_the_cross_checksum_concatenates_n_hashes(world: World) -> None:
    """'The set of N hashes are concatenated to form the cross checksum of the data-item.'"""
    encoded = world.encoded(ITEM)
    assert encoded.cross_checksum == b"".join(map(fragment_digest, encoded.fragments))


def test_the_cross_checksum_is_stored_with_each_fragment(world: World, alice: Principal) -> None:
    """'The cross checksum is stored with each data-fragment (i.e., it is replicated N times).'"""
    alice.write(ITEM)
    world.settle()
    for node in world.nodes:
        reply, _ = node.step(alice.sender, ReadRequest(BLOCK, None, True, 0), b"", START_US)
        assert reply.cross_checksum == world.encoded(ITEM).cross_checksum


@pytest.mark.parametrize("liar", range(DEFAULT.N))
def test_modified_fragments_are_detected_and_masked(liar: int) -> None:
    """'Cross checksums enable read operations to detect data-fragments that have been modified'."""
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    alice.write(ITEM)
    world.settle()
    world.nodes[liar].behaviour = adversaries.corrupt_fragments
    assert bob.read().item == ITEM
    assert bob.peers.faults[liar] == (1 if liar < DEFAULT.m else 0)


# --- 3.4.2.3 Write operation integrity -----------------------------------------------------------


def test_the_checksums_hash_is_in_the_low_order_bits(alice: Principal) -> None:
    """'the hash of the cross checksum is placed in the low order bits of the logical timestamp.'"""
    timestamp = alice.write(ITEM)
    assert timestamp.verifier == verifier_of(alice.world.encoded(ITEM).cross_checksum)
    fields = BlockTimestamp.__struct_fields__
    assert fields[-1] == "verifier"


def test_one_set_of_fragments_at_any_logical_time(world: World, alice: Principal) -> None:
    """'To ensure that only a single set of data-fragments can be written at any logical time'."""
    one = world.placed(alice, ITEM, range(6), time_us=START_US)
    other = world.placed(alice, NEWER, range(6), time_us=START_US)
    assert one.time == other.time
    assert one != other


@pytest.mark.parametrize("node", range(DEFAULT.N))
def test_a_node_verifies_its_fragment(world: World, alice: Principal, node: int) -> None:
    """'each storage-node verifies its data-fragment against its hash in the cross checksum.'"""
    encoded = world.encoded(ITEM)
    wrong = Encoded(world.encoded(NEWER).fragments, encoded.cross_checksum, encoded.verifier)
    timestamp, replies = world.place(alice, wrong, [node])
    assert isinstance(replies[0], Refused)
    assert not world.nodes[node].hosts(timestamp)


@pytest.mark.parametrize("node", range(DEFAULT.N))
def test_a_node_verifies_the_cross_checksum(world: World, alice: Principal, node: int) -> None:
    """'The storage-node also verifies the cross checksum against the hash in the timestamp.'"""
    encoded = world.encoded(ITEM)
    wrong = encoded._replace(verifier=world.encoded(NEWER).verifier)
    timestamp, replies = world.place(alice, wrong, [node])
    assert isinstance(replies[0], Refused)
    assert not world.nodes[node].hosts(timestamp)


def test_no_client_makes_a_correct_node_look_byzantine() -> None:
    """'a Byzantine client cannot make a correct storage-node appear Byzantine.'"""
    world = World()
    alice, mallory, bob = (world.client(name) for name in ("alice", "mallory", "bob"))
    alice.write(ITEM)
    world.settle()
    encoded = world.encoded(NEWER)
    mangled = tuple(bytes(fragment)[::-1] for fragment in encoded.fragments)
    world.place(mallory, encoded._replace(fragments=mangled), range(6))
    world.place(mallory, encoded._replace(cross_checksum=bytes(192)), range(6))
    world.place(mallory, poisonous(world), range(6))
    world.place(mallory, poisonous(world, foreign=0), range(3))
    assert bob.read().item == ITEM
    assert bob.peers.faults == [0] * 6


@pytest.mark.parametrize("foreign", range(DEFAULT.N))
def test_the_reader_validates_the_cross_checksum(foreign: int) -> None:
    """'If the generated cross checksum does not match the verified cross checksum, then a
    Byzantine client performed the write operation.' The write is treated as incomplete."""
    world = World()
    alice, mallory, bob = (world.client(name) for name in ("alice", "mallory", "bob"))
    alice.write(ITEM)
    world.settle()
    world.now_us += 1
    _, replies = world.place(mallory, poisonous(world, foreign=foreign), range(6))
    assert replies == [WriteReply()] * 6
    assert bob.read().item == ITEM


def test_validation_fails_for_all_clients_or_for_none() -> None:
    """'this check either succeeds or fails for all correct clients regardless of which
    storage-nodes are represented within the candidate set.'"""
    for down in range(DEFAULT.N):
        for bad in (False, True):
            world = World()
            alice, mallory = world.client("alice"), world.client("mallory")
            alice.write(ITEM)
            world.settle()
            world.now_us += 1
            encoded = poisonous(world) if bad else world.encoded(NEWER)
            world.place(mallory, encoded, range(6))
            world.nodes[down].behaviour = mute
            assert world.client("bob").read().item == (ITEM if bad else NEWER)


# --- 3.4.3.1 Storage-node interface --------------------------------------------------------------


def test_nodes_host_every_version(world: World, alice: Principal) -> None:
    """'Storage-nodes keep all versions of the fragments they are sent' (3.1.1)."""
    written = [alice.write(b"%d" % number) for number in range(10)]
    world.settle()
    assert all(node.hosts(timestamp) for node in world.nodes for timestamp in written)


def test_time_request_gives_the_greatest_logical_time(world: World, alice: Principal) -> None:
    """'query the greatest logical time of a hosted data fragment (TIME_REQUEST)'"""
    world.placed(alice, ITEM, [0], time_us=START_US + 7)
    world.placed(alice, NEWER, [0], time_us=START_US + 4)
    reply, _ = world.nodes[0].step(alice.sender, TimeRequest((BLOCK,)), b"", START_US)
    assert reply == TimeReply((START_US + 7,))


def test_the_initial_version_is_hosted_by_everyone(world: World, alice: Principal) -> None:
    """Zero time and value ⊥ are hosted by everyone from the start (protocols.md 1.1)."""
    for node in world.nodes:
        reply, _ = node.step(alice.sender, TimeRequest((BLOCK,)), b"", START_US)
        assert reply == TimeReply((0,))
        reply, _ = node.step(alice.sender, ReadRequest(BLOCK, None, True, 9), b"", START_US)
        assert reply == ReadReply((), Below.ORIGIN, b"")
    assert alice.read() == NEVER_WRITTEN


# --- 3.4.3.2 Write -------------------------------------------------------------------------------


def test_the_time_exceeds_the_latest_complete_writes() -> None:
    """'a timestamp greater than, or equal to, that of the latest complete write must be
    determined. Collecting N - t responses ensures that the response set intersects a complete
    write at a correct storage-node.' Also if the client's clock is behind that write."""
    for hosts in combinations(range(DEFAULT.N), DEFAULT.QC):
        for silent in range(DEFAULT.N):
            world = World()
            alice, bob = world.client("alice"), world.client("bob")
            ahead = START_US + 100 * limits.SECOND_US
            complete = world.placed(alice, ITEM, list(hosts), time_us=ahead)
            world.nodes[silent].behaviour = mute
            assert bob.write(NEWER) > complete


@pytest.mark.parametrize("liar", range(DEFAULT.N))
def test_one_liar_cannot_skip_time_ahead(liar: int) -> None:
    """Writers take the (b+1)-th largest reported time, not the largest (design §4)."""
    world = World()
    alice = world.client("alice")
    world.nodes[liar].behaviour = adversaries.fabricate_newer_versions
    timestamp = alice.write(ITEM)
    assert timestamp.time <= START_US + world.now_us
    assert alice.read().item == ITEM


def test_write_requests_go_to_all_with_a_fragment_each(world: World, alice: Principal) -> None:
    """'write requests are issued to all storage-nodes. Each storage-node is sent a specific
    data-fragment, the logical timestamp, and the cross checksum.'"""
    timestamp = alice.write(ITEM)
    writes = requests(alice, WriteRequest)
    assert [node for node, _ in writes] == list(range(DEFAULT.N))
    assert {message.timestamp for _, message in writes} == {timestamp}
    assert {message.cross_checksum for _, message in writes} == {world.encoded(ITEM).cross_checksum}
    world.settle()
    assert all(node.hosts(timestamp) for node in world.nodes)


def test_a_write_returns_after_n_minus_t_acknowledgements(world: World, alice: Principal) -> None:
    """'The write operation returns to the issuing client once WRITE_RESPONSE messages are received
    from N - t storage-nodes.'"""
    outcome = alice.start(alice.client.write(BLOCK, ITEM, USER))
    acknowledged = 0
    deliver = alice.engine.deliver

    def counting(node: Any, number: int, message: Any, body: Any = b"") -> None:
        nonlocal acknowledged
        if isinstance(message, WriteReply):
            assert outcome.done == (acknowledged >= DEFAULT.responses)
            acknowledged += 1
        deliver(node, number, message, body)

    alice.engine.deliver = counting  # type: ignore[method-assign]
    world.settle()
    assert outcome.done
    assert acknowledged == DEFAULT.N


def test_each_node_is_counted_once(world: World) -> None:
    """'it ensures that only a single response from each Byzantine storage-node is counted.'"""
    alice = world.client("alice", patience_total_us=30 * limits.SECOND_US)
    for number in (1, 2):
        world.nodes[number].behaviour = mute
    with pytest.raises(QuorumUnavailable, match="only 4 of the 5"):
        alice.write(ITEM)
    assert len(requests(alice, WriteRequest)) > DEFAULT.N


def test_a_repeated_write_is_idempotent(world: World, alice: Principal) -> None:
    """'A repairing or repeating write uses the same LT and is idempotent' (protocols.md 1.3)."""
    timestamp = world.placed(alice, ITEM, range(6), time_us=START_US)
    stored = [node.storage.snapshot() for node in world.nodes]
    assert world.placed(alice, ITEM, range(6), time_us=START_US) == timestamp
    assert [node.storage._tables for node in world.nodes] == [one._tables for one in stored]


# --- 3.4.3.3 Read --------------------------------------------------------------------------------


def test_false_responses_are_discarded_and_one_more_awaited() -> None:
    """'For every discarded Byzantine storage-node response, an additional response can be
    awaited.'"""
    for liar in range(DEFAULT.N):
        world = World()
        alice, bob = world.client("alice"), world.client("bob")
        alice.write(ITEM)
        world.settle()
        world.nodes[liar].behaviour = adversaries.lie_about_cross_checksums
        started = world.now_us
        assert bob.read().item == ITEM
        assert world.now_us - started < limits.READ_PATIENCE_US
        assert len(bob.sent) == (6 if liar < DEFAULT.m else 5)


def test_only_timestamps_strictly_below_the_bound_count() -> None:
    """'the client only considers responses to READ_PREV requests that have timestamps strictly
    less than that given in the request.'"""
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    first = alice.write(ITEM)
    second = alice.write(NEWER)
    world.settle()

    def ignores_the_bound(
        node: Node, sender: Sender, message: Any, honest: Honest
    ) -> Answer | None:
        if isinstance(message, ReadRequest):
            return node.step(
                sender, ReadRequest(BLOCK, None, message.want_data, message.history), b"", 0
            )
        return honest()

    world.nodes[0].behaviour = ignores_the_bound
    assert bob.read(before=second).timestamp == first
    assert bob.peers.faults[0] == 1


def test_the_candidate_is_the_greatest_timestamp(world: World, alice: Principal) -> None:
    """'which is the greatest timestamp found in the response set.'"""
    alice.write(ITEM)
    newest = alice.write(NEWER)
    world.settle()
    assert alice.read().timestamp == newest


def test_an_incomplete_candidate_is_passed_over(world: World) -> None:
    """'If the candidate is classified as incomplete, a READ_PREV request is sent to each
    storage-node with its timestamp.' Version histories make it free (3.5.1.1)."""
    for hosts in combinations(range(DEFAULT.N), DEFAULT.repairable - 1):
        fresh = World()
        alice, bob = fresh.client("alice"), fresh.client("bob")
        complete = alice.write(ITEM)
        fresh.settle()
        fresh.placed(alice, NEWER, list(hosts), time_us=START_US + 10**6)
        assert bob.read().timestamp == complete


def test_a_repairable_candidate_is_repaired_then_returned() -> None:
    """'write requests are issued with the generated data-fragments, the validated cross checksum,
    and the logical timestamp.' The next reader finds it complete."""
    for hosts in combinations(range(DEFAULT.N), DEFAULT.repairable):
        world = World()
        alice, bob, carol = (world.client(name) for name in ("alice", "bob", "carol"))
        alice.write(ITEM)
        world.settle()
        repairable = world.placed(alice, NEWER, list(hosts), time_us=START_US + 10**6)
        version = bob.read()
        assert (version.timestamp, version.item) == (repairable, NEWER)
        assert sum(node.hosts(repairable) for node in world.nodes) >= DEFAULT.responses
        assert carol.read().timestamp == repairable
        assert not requests(carol, WriteRequest)


def test_a_repairable_poisonous_candidate_is_not_repaired() -> None:
    """'Prior to performing repair, data-fragments are validated in the same manner'."""
    world = World()
    alice, mallory, bob = (world.client(name) for name in ("alice", "mallory", "bob"))
    alice.write(ITEM)
    world.settle()
    world.now_us += 1
    bad, _ = world.place(mallory, poisonous(world), [0, 1, 4])
    assert bob.read().item == ITEM
    assert not requests(bob, WriteRequest)
    assert sum(node.hosts(bad) for node in world.nodes) == 3


def test_nodes_that_host_a_repaired_write_ignore_it(world: World, bob: Principal) -> None:
    """'those already hosting the write are safe to ignore it.'"""
    alice = world.client("alice")
    world.placed(alice, ITEM, [0, 1, 2])
    stored = world.nodes[0].storage.snapshot()
    bob.read()
    world.settle()
    assert world.nodes[0].storage._tables == stored._tables


# --- 3.4.4 Constraints: liars fabricate nothing, whatever is repairable decodes ------------------


@pytest.mark.parametrize("sizes", [DEFAULT, ReadWriteThresholds.smallest(t=1, b=1)], ids=str)
def test_liars_cannot_fabricate_a_candidate(sizes: ReadWriteThresholds) -> None:
    """'a candidate set of size b must be classifiable as incomplete' (3.4)."""
    for liar in range(sizes.N):
        world = World(sizes)
        alice, bob = world.client("alice"), world.client("bob")
        alice.write(ITEM)
        world.settle()
        world.nodes[liar].behaviour = adversaries.fabricate_newer_versions
        assert bob.read().item == ITEM


@pytest.mark.parametrize(
    "sizes",
    [DEFAULT, ReadWriteThresholds.smallest(t=1, b=1), ReadWriteThresholds.smallest(t=2, b=1)],
    ids=str,
)
def test_any_repairable_candidate_can_be_decoded(sizes: ReadWriteThresholds) -> None:
    """'Any repairable candidate must be decodable' (3.5): from whichever nodes host it."""
    for hosts in combinations(range(sizes.first_asked), sizes.repairable):
        world = World(sizes)
        alice, bob = world.client("alice"), world.client("bob")
        world.placed(alice, ITEM, list(hosts))
        assert bob.read().item == ITEM


# --- 3.5.1.2 Read witnesses and histories --------------------------------------------------------


def test_first_asked_are_qc_plus_b_nodes_m_for_data(
    world: World, alice: Principal, bob: Principal
) -> None:
    """'Initially, read requests are issued to QC + b storage nodes. Only m of the initial requests
    request the data-fragment, while all request version histories.'"""
    alice.write(ITEM)
    world.settle()
    bob.read()
    first = requests(bob, ReadRequest)[: DEFAULT.QC + DEFAULT.b]
    assert len({node for node, _ in first}) == DEFAULT.QC + DEFAULT.b == len(bob.sent)
    assert sum(message.want_data for _, message in first) == DEFAULT.m
    assert all(message.history > 0 for _, message in first)


def test_the_rest_is_asked_if_the_candidate_is_not_complete() -> None:
    """'If the read responses do not yield a candidate that is classified as complete, read
    requests are issued to the remaining storage-nodes (and a total of up to N - t responses are
    awaited).'"""
    sizes = ReadWriteThresholds(N=12, t=2, b=1, QC=5, m=2)
    world = World(sizes)
    alice, bob, carol = (world.client(name) for name in ("alice", "bob", "carol"))
    world.placed(alice, ITEM, [0, 1, 2, 3, 4])
    assert bob.read().item == ITEM
    assert {node for node, _ in requests(bob, ReadRequest)} == set(range(12))
    world.settle()
    assert carol.read().item == ITEM
    assert {node for node, _ in carol.sent} == set(range(sizes.first_asked))


def test_histories_are_bounded(world: World, alice: Principal) -> None:
    """'read responses contain a limited version history' (3.5.1.1)."""
    for number in range(30):
        world.placed(alice, b"%d" % number, [0], time_us=START_US + number)
    message = ReadRequest(BLOCK, None, False, limits.HISTORY_IN_REPLY)
    reply, _ = world.nodes[0].step(alice.sender, message, b"", START_US)
    assert len(reply.versions) == limits.HISTORY_IN_REPLY + 1
    assert reply.below is Below.MORE


def test_extra_fragments_are_fetched_by_timestamp(
    world: World, alice: Principal, bob: Principal
) -> None:
    """'If necessary, after classification, extra data fragments are fetched according to the
    candidate timestamp.'"""
    complete = alice.write(ITEM)
    world.settle()
    world.placed(alice, NEWER, [1], time_us=START_US + 10**6)
    assert bob.read().timestamp == complete
    fetched = [
        (node, message.want_data, message.history)
        for node, message in requests(bob, ReadRequest)
        if message.before == successor_of(complete)
    ]
    assert fetched == [(1, True, 0)]


def test_nodes_without_data_count_as_witnesses_only(world: World, alice: Principal) -> None:
    """'Storage-nodes can also return read responses that contain no data other than version
    histories, which makes candidate classification more network-efficient.'"""
    alice.write(ITEM)
    world.settle()
    bodies = []
    deliver = alice.engine.deliver

    def noting(node: Any, number: int, message: Any, body: Any = b"") -> None:
        bodies.append(len(body))
        deliver(node, number, message, body)

    alice.engine.deliver = noting  # type: ignore[method-assign]
    alice.read()
    assert sorted(size > 0 for size in bodies) == [False] * 2 + [True] * 3


# --- 3.8.1, 3.8.3: what lazy verification and collection will mean to a reader -------------------


def test_a_read_that_garbage_collection_overtook_retries() -> None:
    """'Such a read operation must be retried.' Version 3 is incomplete when it is read first, then
    completes, and every version below it is collected before the reader looks there."""
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    version2 = alice.write(ITEM)
    world.settle()
    version3 = world.placed(alice, NEWER, [0, 1], time_us=START_US + 10**6)

    def collect() -> None:
        for node in world.nodes:
            node.lose(version2)
            node.behaviour = collected

    def collected(node: Node, sender: Sender, message: Any, honest: Honest) -> Answer | None:
        reply, body = honest()
        if isinstance(reply, ReadReply):
            reply = ReadReply(reply.versions, Below.COLLECTED, reply.cross_checksum)
        return reply, body

    def completes_the_write(
        node: Node, sender: Sender, message: Any, honest: Honest
    ) -> Answer | None:
        if isinstance(message, ReadRequest) and message.before is not None:
            world.placed(alice, NEWER, range(6), time_us=version3.time)
            collect()
            return node.behaviour(node, sender, message, honest)
        return honest()

    for node in world.nodes:
        node.behaviour = completes_the_write
    version = bob.read()
    assert (version.timestamp, version.item) == (version3, NEWER)


@pytest.mark.parametrize("liar", range(DEFAULT.N))
def test_one_liar_cannot_make_reads_retry_for_ever(liar: int) -> None:
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    complete = alice.write(ITEM)
    world.settle()
    world.placed(alice, NEWER, [0, 3], time_us=START_US + 10**6)
    world.nodes[liar].behaviour = adversaries.claim_collection
    assert bob.read().timestamp == complete


def test_b_verified_flags_do_not_spare_validation() -> None:
    """'A client that observes b + 1 storage-node responses that indicate a specific block version
    has been verified need not itself perform timestamp validation': b of them may be lies."""
    world = World()
    alice, mallory, bob = (world.client(name) for name in ("alice", "mallory", "bob"))
    alice.write(ITEM)
    world.settle()
    world.now_us += 1
    world.place(mallory, poisonous(world), range(6))
    world.nodes[0].behaviour = adversaries.claim_verified
    assert bob.read().item == ITEM


# --- Byzantine clients ---------------------------------------------------------------------------


@pytest.mark.parametrize("reached", range(DEFAULT.N + 1))
def test_partial_writes_of_any_number_of_nodes(reached: int) -> None:
    """A write that stops after k nodes leaves a readable block, and all later readers agree."""
    for hosts in combinations(range(DEFAULT.N), reached):
        world = World(seed=reached)
        alice, mallory = world.client("alice"), world.client("mallory")
        alice.write(ITEM)
        world.settle()
        world.placed(mallory, NEWER, list(hosts), time_us=START_US + 10**6)
        first = world.client("bob").read()
        assert first.item in (ITEM, NEWER)
        if reached >= DEFAULT.QC:
            assert first.item == NEWER
        if reached < DEFAULT.repairable:
            assert first.item == ITEM
        second = world.client("carol").read()
        assert second == first


def test_stuttering(world: World, alice: Principal, bob: Principal) -> None:
    """'A stuttering client repeatedly sends a number of fragments that is insufficient to form a
    complete write operation.' (3.7.1) Reads and writes go on."""
    mallory = world.client("mallory")
    alice.write(ITEM)
    world.settle()
    for number in range(60):
        world.placed(mallory, b"%d" % number, [number % 6, (number + 3) % 6])
        world.now_us += 10
        assert bob.read().item == ITEM
    alice.write(NEWER)
    bob.sent.clear()
    assert bob.read().item == NEWER


def test_different_values_to_different_nodes(world: World) -> None:
    """One client, one time, another value for each half: different versions in a fixed order."""
    alice, mallory = world.client("alice"), world.client("mallory")
    alice.write(ITEM)
    world.settle()
    time_us = START_US + 10**6
    world.placed(mallory, b"left", [0, 1, 2], time_us=time_us)
    world.placed(mallory, b"right", [3, 4, 5], time_us=time_us)
    seen = [world.client(name).read().item for name in ("bob", "carol", "dave")]
    assert len(set(seen)) == 1
    assert seen[0] in (b"left", b"right")


@pytest.mark.parametrize("order", list(permutations(["early", "late"])))
def test_insane_times_are_refused_by_correct_nodes(order: tuple[str, ...]) -> None:
    """Anything whose Time is beyond a node's clock plus a bound is as if malformed (design §4)."""
    world = World()
    alice, mallory = world.client("alice"), world.client("mallory")
    alice.write(ITEM)
    world.settle()
    for which in order:
        shift = 301 * limits.SECOND_US * (1 if which == "late" else -1)
        time_us = START_US + world.now_us + shift
        _, replies = world.place(mallory, world.encoded(NEWER), range(6), time_us=time_us)
        assert all(isinstance(reply, Refused) for reply in replies)
    assert alice.read().item == ITEM
    assert alice.write(NEWER).time <= START_US + world.now_us


def test_racing_time_delays_nobody(world: World, alice: Principal, bob: Principal) -> None:
    """A client that writes at the very edge of the bound cannot lock others out: the next time is
    one microsecond more, and the nodes' clocks go on."""
    mallory = world.client("mallory")
    for _ in range(5):
        edge = START_US + world.now_us + limits.CLOCK_SKEW_US
        world.placed(mallory, NEWER, range(6), time_us=edge)
        timestamp = alice.write(ITEM)
        assert timestamp.time == edge + 1
        assert bob.read().item == ITEM


def test_a_vouch_request_tells_no_more_than_a_listing(world: World, alice: Principal) -> None:
    """A voucher is about one version that its asker can already name."""
    timestamp = alice.write(ITEM)
    world.settle()
    reply, body = world.nodes[0].step(alice.sender, VouchRequest(BLOCK, timestamp), b"", START_US)
    assert len(reply.authenticator) == authenticator_bytes(DEFAULT.N)
    assert body == b""
