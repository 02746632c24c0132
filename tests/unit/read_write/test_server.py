"""The node's step: what it stores, what it refuses, and what it answers."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.credentials import Grant
from bftfs.crypto.digest import LIFE_DIGEST, inventory_digest
from bftfs.identifiers import BlockId, ClientId, NodeId, block_id
from bftfs.read_write import version_row
from bftfs.read_write.messages import (
    Below,
    FragmentsReply,
    FragmentsRequest,
    HostedPart,
    InventoryReply,
    InventoryRequest,
    Listed,
    ReadReply,
    ReadRequest,
    TimeReply,
    TimeRequest,
    VouchReply,
    VouchRequest,
    WriteReply,
    WriteRequest,
)
from bftfs.read_write.server import ReadWriteServer
from bftfs.read_write.timestamp import BlockTimestamp, beginning_of, successor_of, version_key
from bftfs.read_write.version_row import VERIFIED
from bftfs.server.known_lives import proof_of
from bftfs.server.recovery import Recovery, Stage
from bftfs.server.room import used_bytes
from bftfs.server.step import Role, Sender
from bftfs.simulation.world import START_US
from bftfs.storage import StorageView, Table, Write
from bftfs.wire.codec import Voucher
from tests.builders import USER
from tests.unit.read_write.harness import BLOCK, INODE, Node, Principal, World

NODE = 2  # the node under test
ITEM = b"what is written" * 100


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def alice(world: World) -> Principal:
    return world.client("alice")


def request(
    world: World, author: Principal, item: bytes = ITEM, *, time_us: int = START_US, **changes: Any
) -> tuple[WriteRequest, bytes]:
    encoded = world.encoded(item)
    fields: dict[str, Any] = {
        "block": BLOCK,
        "timestamp": BlockTimestamp(time_us, author.id, encoded.verifier),
        "cross_checksum": encoded.cross_checksum,
        "uid": USER.uid,
        "gid": USER.gid,
        "groups": (),
    }
    return WriteRequest(**(fields | changes)), bytes(encoded.fragments[NODE])


def refused(node: Node, sender: Sender, message: Any, body: bytes = b"") -> int:
    before = node.storage.snapshot()
    reply, _ = node.step(sender, message, body, START_US)
    assert isinstance(reply, Refused), reply
    for table in Table:
        assert list(node.storage.scan(table, b"", b"\xff" * 99)) == list(
            before.scan(table, b"", b"\xff" * 99)
        )
    return reply.code


# --- WRITE ---------------------------------------------------------------------------------------


def test_a_write_is_stored_and_acknowledged(world: World, alice: Principal) -> None:
    message, fragment = request(world, alice)
    node = world.nodes[NODE]
    reply, _ = node.step(alice.sender, message, fragment, START_US)
    assert reply == WriteReply()
    key = version_key(BLOCK, message.timestamp)
    assert node.storage.get(Table.FRAGMENT, key) == fragment
    assert node.storage.get(Table.BLOCK, key) == b"\x00" + message.cross_checksum


def test_a_repeated_write_changes_nothing(world: World, alice: Principal) -> None:
    message, fragment = request(world, alice)
    node = world.nodes[NODE]
    node.step(alice.sender, message, fragment, START_US)
    ready = node.server.step(node.storage, alice.sender, message, fragment, START_US + 10**12)
    assert ready.reply == WriteReply()
    assert ready.writes == []


def test_a_repeated_write_heals_a_damaged_fragment(world: World, alice: Principal) -> None:
    message, fragment = request(world, alice)
    node = world.nodes[NODE]
    node.step(alice.sender, message, fragment, START_US)
    node.rot(message.timestamp)
    node.step(alice.sender, message, fragment, START_US)
    assert node.storage.get(Table.FRAGMENT, version_key(BLOCK, message.timestamp)) == fragment


def test_an_unlisted_fragment_is_refused(world: World, alice: Principal) -> None:
    message, fragment = request(world, alice)
    node = world.nodes[NODE]
    assert refused(node, alice.sender, message, fragment[:-1]) == errno.EBADMSG
    assert refused(node, alice.sender, message, b"") == errno.EBADMSG
    assert refused(node, alice.sender, message, b"x" + fragment[1:]) == errno.EBADMSG
    other = bytes(world.encoded(ITEM).fragments[NODE + 1])
    assert refused(node, alice.sender, message, other) == errno.EBADMSG


def test_an_unbound_cross_checksum_is_refused(world: World, alice: Principal) -> None:
    node = world.nodes[NODE]
    message, fragment = request(world, alice)
    other = world.encoded(b"another item" * 100).cross_checksum
    checksum = message.cross_checksum
    swapped = (
        checksum[:64] + checksum[64:96] + checksum[96:128] + checksum[160:] + checksum[128:160]
    )
    for wrong in (other, swapped, checksum[:-32], checksum + bytes(32), b"", b"short"):
        bad, _ = request(world, alice, cross_checksum=wrong)
        assert refused(node, alice.sender, bad, fragment) == errno.EBADMSG


def test_a_node_stores_its_own_fragment_only(world: World, alice: Principal) -> None:
    message, fragment = request(world, alice)
    for number, node in enumerate(world.nodes):
        if number != NODE:
            assert refused(node, alice.sender, message, fragment) == errno.EBADMSG


def test_a_nodes_fragment_rotates_with_the_block(world: World, alice: Principal) -> None:
    block = block_id(INODE, incarnation=0, number=1)
    message, _ = request(world, alice, block=block)
    encoded = world.encoded(ITEM)
    node = world.nodes[NODE]
    reply, _ = node.step(alice.sender, message, encoded.fragments[NODE - 1], START_US)
    assert reply == WriteReply()


@pytest.mark.parametrize("skew_s", [-301, 301, 10**6, -(10**6)])
def test_an_insane_time_is_refused(world: World, alice: Principal, skew_s: int) -> None:
    message, fragment = request(world, alice, time_us=START_US + skew_s * limits.SECOND_US)
    assert refused(world.nodes[NODE], alice.sender, message, fragment) == errno.ETIME


@pytest.mark.parametrize("skew_s", [-300, -1, 0, 1, 300])
def test_a_sane_time_is_accepted(world: World, alice: Principal, skew_s: int) -> None:
    message, fragment = request(world, alice, time_us=START_US + skew_s * limits.SECOND_US)
    reply, _ = world.nodes[NODE].step(alice.sender, message, fragment, START_US)
    assert reply == WriteReply()


def test_nobody_writes_under_anothers_name(world: World, alice: Principal) -> None:
    message, fragment = request(world, alice)
    mallory = world.client("mallory")
    assert refused(world.nodes[NODE], mallory.sender, message, fragment) == errno.EPERM


def test_a_node_is_no_author(world: World, alice: Principal) -> None:
    message, fragment = request(world, alice)
    peer = Sender(Role.NODE, alice.id, NodeId(1), Grant())
    assert refused(world.nodes[NODE], peer, message, fragment) == errno.EPERM


def test_the_grant_decides_where_nothing_else_does(world: World, alice: Principal) -> None:
    message, fragment = request(world, alice)
    node = world.nodes[NODE]
    read_only = Sender(Role.CLIENT, alice.id, None, Grant(write=False))
    assert refused(node, read_only, message, fragment) == errno.EROFS
    others = Sender(Role.CLIENT, alice.id, None, Grant(uids=(1, 2)))
    assert refused(node, others, message, fragment) == errno.EPERM
    own = Sender(Role.CLIENT, alice.id, None, Grant(uids=(USER.uid,), gids=(USER.gid,)))
    assert node.step(own, message, fragment, START_US)[0] == WriteReply()


# --- authority and quota are the host's ----------------------------------------------------------


AHEAD_US = START_US + 10**14  # what has been reached of a file


class OwnersOnly:
    """Lets the inode's owner write, as the object in the same view says."""

    def may_write(
        self, view: StorageView, sender: Sender, block: BlockId, credentials: Any
    ) -> Refused | None:
        owner = view.get(Table.STATE, block[:16] + b"owner")
        if owner == credentials.uid.to_bytes(4, "big"):
            return None
        return Refused(errno.EACCES, "not the owner")

    def may_read(
        self, view: StorageView, sender: Sender, block: BlockId, who: Any
    ) -> Refused | None:
        return self.may_write(view, sender, block, who)

    def reached_us(self, view: StorageView, block: BlockId) -> int:
        return AHEAD_US


def test_authority_sees_the_inode_in_the_view_of_the_write() -> None:
    world = World(server=lambda *given: ReadWriteServer(*given, authority=OwnersOnly()))
    alice = world.client("alice")
    node = world.nodes[NODE]
    message, fragment = request(world, alice)
    assert refused(node, alice.sender, message, fragment) == errno.EACCES
    owner = USER.uid.to_bytes(4, "big")
    node.storage.apply([Write(Table.STATE, INODE + b"owner", owner)])
    assert node.step(alice.sender, message, fragment, START_US)[0] == WriteReply()


def test_a_version_follows_the_time_of_its_file_by_a_few_steps() -> None:
    """However far that is ahead of this node's clock: all clocks were there, and went back."""
    world = World(server=lambda *given: ReadWriteServer(*given, authority=OwnersOnly()))
    alice, node = world.client("alice"), world.nodes[NODE]
    owner = USER.uid.to_bytes(4, "big")
    node.storage.apply([Write(Table.STATE, INODE + b"owner", owner)])
    for time_us, code in (
        (AHEAD_US + limits.STEPS_AHEAD_US, 0),
        (AHEAD_US + limits.STEPS_AHEAD_US + 1, errno.ETIME),
    ):
        message, fragment = request(world, alice, time_us=time_us)
        reply, _ = node.step(alice.sender, message, fragment, START_US)
        assert (reply.code if isinstance(reply, Refused) else 0) == code


class Purse:
    """Grants each client a number of bytes."""

    def __init__(self, most: int) -> None:
        self.most = most

    def refusal(self, view: StorageView, client: ClientId, volume: int) -> Refused | None:
        if used_bytes(view, client) + volume > self.most:
            return Refused(errno.EDQUOT, "history quota exceeded")
        return None


def test_quota_is_charged_and_refuses_the_next() -> None:
    world = World(server=lambda *given: ReadWriteServer(*given, quota=Purse(1_500)))
    alice = world.client("alice")
    node = world.nodes[NODE]
    first, fragment = request(world, alice)
    node.step(alice.sender, first, fragment, START_US)
    assert used_bytes(node.storage, alice.id) == len(fragment) + len(first.cross_checksum)
    node.step(alice.sender, first, fragment, START_US)
    assert used_bytes(node.storage, alice.id) == len(fragment) + len(first.cross_checksum)
    second, fragment = request(world, alice, b"second" * 200, time_us=START_US + 1)
    third, third_fragment = request(world, alice, b"third!" * 200, time_us=START_US + 2)
    assert node.step(alice.sender, second, fragment, START_US)[0] == WriteReply()
    assert refused(node, alice.sender, third, third_fragment) == errno.EDQUOT


# --- vouched repair ------------------------------------------------------------------------------


def vouchers(world: World, timestamp: BlockTimestamp, nodes: list[int]) -> tuple[Voucher, ...]:
    anyone = world.client("anyone")
    given = []
    for number in nodes:
        reply, _ = world.nodes[number].step(
            anyone.sender, VouchRequest(BLOCK, timestamp), b"", START_US
        )
        assert isinstance(reply, VouchReply)
        if reply.authenticator:
            given.append(Voucher(NodeId(number), reply.authenticator))
    return tuple(given)


def test_a_repair_needs_vouchers_of_qc_minus_t_nodes(world: World, alice: Principal) -> None:
    timestamp = world.placed(alice, ITEM, [0, 1, 4])
    bob = world.client("bob")
    node = world.nodes[NODE]
    two, fragment = request(world, alice, vouchers=vouchers(world, timestamp, [0, 4]))
    assert refused(node, bob.sender, two, fragment) == errno.EPERM
    twice, _ = request(world, alice, vouchers=vouchers(world, timestamp, [0, 0, 4, 4]))
    assert refused(node, bob.sender, twice, fragment) == errno.EPERM
    three, _ = request(world, alice, vouchers=vouchers(world, timestamp, [0, 1, 4]))
    assert node.step(bob.sender, three, fragment, START_US)[0] == WriteReply()
    assert node.hosts(timestamp)


def test_a_node_vouches_only_for_what_it_hosts(world: World, alice: Principal) -> None:
    timestamp = world.placed(alice, ITEM, [0, 1])
    assert len(vouchers(world, timestamp, [0, 1, 2, 3])) == 2


def test_vouchers_hold_for_one_block_and_one_timestamp(world: World, alice: Principal) -> None:
    other = world.placed(alice, b"other", [0, 1, 4], time_us=START_US + 1)
    bob = world.client("bob")
    elsewhere, fragment = request(world, alice, vouchers=vouchers(world, other, [0, 1, 4]))
    assert refused(world.nodes[NODE], bob.sender, elsewhere, fragment) == errno.EPERM


def test_a_node_cannot_vouch_in_anothers_name(world: World, alice: Principal) -> None:
    timestamp = world.placed(alice, ITEM, [0])
    (genuine,) = vouchers(world, timestamp, [0])
    bob = world.client("bob")
    forged = (genuine, Voucher(NodeId(1), genuine.authenticator), Voucher(NodeId(40), b""))
    message, fragment = request(world, alice, vouchers=forged)
    assert refused(world.nodes[NODE], bob.sender, message, fragment) == errno.EPERM


def test_a_repair_may_be_of_any_time(world: World, alice: Principal) -> None:
    """Of those that vouch one is correct: its clock has borne that time."""
    timestamp = world.placed(alice, ITEM, [0, 1, 4])
    message, fragment = request(world, alice, vouchers=vouchers(world, timestamp, [0, 1, 4]))
    bob = world.client("bob")
    for clock_us in (START_US - limits.CLOCK_SKEW_US - 1, START_US + 10**14):
        reply, _ = world.nodes[NODE].step(bob.sender, message, fragment, clock_us)
        assert reply == WriteReply()


def test_an_author_repairs_like_anyone_else(world: World, alice: Principal) -> None:
    """Its own partial write may be old, and its permission gone."""
    timestamp = world.placed(alice, ITEM, [0, 1, 4])
    message, fragment = request(world, alice, vouchers=vouchers(world, timestamp, [0, 1, 4]))
    sender = Sender(Role.CLIENT, alice.id, None, Grant(write=False))
    reply, _ = world.nodes[NODE].step(sender, message, fragment, START_US + 10**14)
    assert reply == WriteReply()
    few, fragment = request(world, alice, vouchers=vouchers(world, timestamp, [0, 1]))
    assert refused(world.nodes[NODE + 1], alice.sender, few, fragment) == errno.EBADMSG
    fragment = bytes(world.encoded(ITEM).fragments[NODE + 1])
    assert refused(world.nodes[NODE + 1], alice.sender, few, fragment) == errno.EPERM


def test_a_vouched_repair_is_bound_like_any_write(world: World, alice: Principal) -> None:
    timestamp = world.placed(alice, ITEM, [0, 1, 4])
    message, fragment = request(world, alice, vouchers=vouchers(world, timestamp, [0, 1, 4]))
    bob = world.client("bob")
    assert refused(world.nodes[NODE], bob.sender, message, fragment[::-1]) == errno.EBADMSG


def test_quota_does_not_stop_a_repair() -> None:
    world = World(server=lambda *given: ReadWriteServer(*given, quota=Purse(800)))
    alice, bob = world.client("alice"), world.client("bob")
    timestamp = world.placed(alice, ITEM, [0, 1, 4])
    world.placed(alice, b"uses the quota up", [NODE], time_us=START_US + 5)
    message, fragment = request(world, alice, vouchers=vouchers(world, timestamp, [0, 1, 4]))
    reply, _ = world.nodes[NODE].step(bob.sender, message, fragment, START_US)
    assert reply == WriteReply()
    assert world.nodes[NODE].hosts(timestamp)


# --- lives ---------------------------------------------------------------------------------------


def test_what_counts_tells_the_lives_that_the_node_knows_of(world: World, alice: Principal) -> None:
    """Nothing while all live the first. [protocols-read-write.md, What a node has forgotten]"""
    message, fragment = request(world, alice)
    node, vouch = world.nodes[NODE], VouchRequest(BLOCK, message.timestamp)
    asked: list[tuple[Any, bytes]] = [
        (message, fragment),
        (ReadRequest(BLOCK, None, False, 0), b""),
        (vouch, b""),
    ]
    for lives in ((), (0, 0, 0, 3, 0, 0)):
        for life in lives:
            world.keys[NODE].learn(3, life)
        for each, body in asked:
            assert node.step(alice.sender, each, body, START_US)[0].lives == lives


def test_vouchers_of_an_earlier_life_do_not_count(world: World, alice: Principal) -> None:
    """Whoever shows them is told so: the version may be complete all the same."""
    timestamp = world.placed(alice, ITEM, [0, 1, 4])
    bob, node = world.client("bob"), world.nodes[NODE]
    given = vouchers(world, timestamp, [0, 1, 4])
    world.keys[NODE].learn(4, 1)
    repair, fragment = request(world, alice, vouchers=given)
    assert refused(node, bob.sender, repair, fragment) == errno.EKEYEXPIRED
    forged, _ = request(world, alice, vouchers=(*given[1:], Voucher(NodeId(0), bytes(8 + 16 * 6))))
    assert refused(node, bob.sender, forged, fragment) == errno.EPERM
    world.keys[4].learn(4, 1)
    anew, _ = request(world, alice, vouchers=vouchers(world, timestamp, [0, 1, 4]))
    assert node.step(bob.sender, anew, fragment, START_US)[0] == WriteReply((0, 0, 0, 0, 1, 0))


class Walk:
    """The memory of a node that has come so far with rebuilding its store."""

    def __init__(self, until: bytes, stage: Stage = Stage.REBUILDING) -> None:
        self._until = until
        self.recovery = Recovery(stage)

    def may_answer(self, block: BlockId) -> bool:
        return block < self._until

    def remembers(self, until: bytes) -> bool:
        return until <= self._until


def test_before_it_has_begun_a_new_life_it_serves_nothing() -> None:
    """It does not know which lives others have begun, and replies tell that."""
    memory = Walk(b"", Stage.LOST)
    world = World(server=lambda *given: ReadWriteServer(*given, memory=memory))
    alice = world.client("alice")
    message, fragment = request(world, alice)
    assert refused(world.nodes[NODE], alice.sender, message, fragment) == errno.ENODATA
    memory.recovery.begun()
    assert world.nodes[NODE].step(alice.sender, message, fragment, START_US)[0] == WriteReply()
    assert refused(world.nodes[NODE], alice.sender, read()) == errno.ENODATA


def test_an_inventory_says_whether_it_may_be_rested_on() -> None:
    """It lacks nothing up to its end, and the life of the one that asks is stored first."""
    other = block_id(INODE, incarnation=0, number=9)
    world = World(server=lambda *given: ReadWriteServer(*given, memory=Walk(other)))
    peer = Sender(Role.NODE, ClientId(bytes(16)), NodeId(4))
    proof = world.keys[4].make(LIFE_DIGEST, life=7)
    node, nothing = world.nodes[NODE], inventory_digest(())
    for until, remembers in ((other, True), (other + b"\0", False)):
        listing = InventoryRequest(b"", until, nothing, proof)
        assert node.step(peer, listing, b"", START_US)[0] == InventoryReply(
            (), False, True, remembers, 7
        )
    assert proof_of(node.storage, 4) == proof
    earlier = InventoryRequest(b"", other, nothing, world.keys[4].make(LIFE_DIGEST, life=6))
    assert node.step(peer, earlier, b"", START_US)[0].life == 7


def test_a_node_gets_many_fragments_at_once_until_there_are_enough(
    world: World, alice: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = world.nodes[NODE]
    stored = [request(world, alice, time_us=START_US + number) for number in range(4)]
    for message, fragment in stored:
        node.step(alice.sender, message, fragment, START_US)
    keys = [version_key(BLOCK, message.timestamp) for message, _ in stored]
    unknown = bytes(len(keys[0]))
    peer = Sender(Role.NODE, ClientId(bytes(16)), NodeId(4))
    asks = FragmentsRequest((keys[2], unknown, keys[0], keys[1], keys[3]))
    size = len(stored[0][1])
    part, nothing = HostedPart(stored[0][0].cross_checksum, size), HostedPart(CrossChecksum(b""), 0)
    monkeypatch.setattr(limits, "FRAGMENTS_BYTES", 2 * size + 1)
    reply, body = node.step(peer, asks, b"", START_US)
    assert reply == FragmentsReply((part, nothing, part, part))
    assert body == stored[2][1] + stored[0][1] + stored[1][1]
    monkeypatch.setattr(limits, "FRAGMENTS_BYTES", size)
    reply, body = node.step(peer, asks, b"", START_US)
    assert reply == FragmentsReply((part,))
    assert body == stored[2][1]
    assert refused(node, alice.sender, asks) == errno.EPERM


# --- TIME_REQUEST, READ_LATEST, READ_PREV --------------------------------------------------------


def ask(node: Node, alice: Principal, message: Any) -> tuple[Any, bytes]:
    reply, body = node.step(alice.sender, message, b"", START_US)
    return reply, bytes(body)


def test_times_are_the_newest_of_each_block(world: World, alice: Principal) -> None:
    elsewhere = block_id(INODE, incarnation=0, number=6)
    never = block_id(INODE, incarnation=0, number=7)
    world.placed(alice, b"one", range(6), time_us=START_US + 5)
    world.placed(alice, b"two", range(6), time_us=START_US + 3)
    world.placed(alice, b"elsewhere", range(6), time_us=START_US + 9, block=elsewhere)
    message = TimeRequest((BLOCK, never, elsewhere))
    assert ask(world.nodes[NODE], alice, message)[0] == TimeReply((START_US + 5, 0, START_US + 9))


def read(
    before: BlockTimestamp | None = None, *, want_data: bool = False, history: int = 0
) -> ReadRequest:
    return ReadRequest(BLOCK, before, want_data, history)


def test_a_block_that_was_never_written(world: World, alice: Principal) -> None:
    never = ReadReply((), Below.ORIGIN, b"")
    assert ask(world.nodes[NODE], alice, read(want_data=True)) == (never, b"")
    other = block_id(INODE, incarnation=0, number=1)
    world.placed(alice, b"x", range(6), block=other)
    world.placed(alice, b"x", range(6), block=block_id(INODE, incarnation=1, number=0))
    assert ask(world.nodes[NODE], alice, read(want_data=True)) == (never, b"")


def test_versions_newest_first_with_a_bounded_history(world: World, alice: Principal) -> None:
    written = [
        world.placed(alice, b"%d" % number, range(6), time_us=START_US + number)
        for number in range(20)
    ]
    newest_first = [Listed(timestamp, False) for timestamp in reversed(written)]
    node = world.nodes[NODE]
    for history in range(17):
        reply, _ = ask(node, alice, read(history=history))
        assert list(reply.versions) == newest_first[: history + 1]
        assert reply.below is Below.MORE
    reply, _ = ask(node, alice, read(written[17], history=16))
    assert list(reply.versions) == newest_first[3:]
    assert reply.below is Below.ORIGIN
    reply, _ = ask(node, alice, read(written[0], history=16))
    assert (reply.versions, reply.below) == ((), Below.ORIGIN)


def test_read_prev_is_strictly_below(world: World, alice: Principal) -> None:
    old = world.placed(alice, b"old", range(6), time_us=START_US)
    new = world.placed(alice, b"new", range(6), time_us=START_US + 1)
    node = world.nodes[NODE]
    assert ask(node, alice, read(new))[0].versions == (Listed(old, False),)
    assert ask(node, alice, read(successor_of(new)))[0].versions == (Listed(new, False),)
    assert ask(node, alice, read(beginning_of(START_US + 1)))[0].versions == (Listed(old, False),)
    assert ask(node, alice, read(beginning_of(START_US)))[0].versions == ()


def test_data_has_its_cross_checksum_witnesses_send_neither(world: World, alice: Principal) -> None:
    encoded = world.encoded(ITEM)
    world.placed(alice, ITEM, range(6))
    node = world.nodes[NODE]
    reply, body = ask(node, alice, read(want_data=True))
    assert (reply.cross_checksum, body) == (encoded.cross_checksum, encoded.fragments[NODE])
    reply, body = ask(node, alice, read())
    assert (reply.cross_checksum, body) == (b"", b"")


def test_the_verified_flag_is_told(world: World, alice: Principal) -> None:
    timestamp = world.placed(alice, ITEM, range(6))
    node = world.nodes[NODE]
    key = version_key(BLOCK, timestamp)
    row = node.storage.get(Table.BLOCK, key)
    assert row is not None
    node.storage.apply([Write(Table.BLOCK, key, bytes([VERIFIED]) + row[1:])])
    assert ask(node, alice, read())[0].versions == (Listed(timestamp, True),)
    assert ask(node, alice, read(want_data=True))[0].verified_us == 0  # it does not know


def test_since_when_it_is_verified_is_told_with_data(world: World, alice: Principal) -> None:
    timestamp = world.placed(alice, ITEM, range(6))
    node = world.nodes[NODE]
    key = version_key(BLOCK, timestamp)
    row = version_row.verified(world.encoded(ITEM).cross_checksum, START_US + 7)
    node.storage.apply([Write(Table.BLOCK, key, row)])
    reply, body = ask(node, alice, read(want_data=True))
    assert reply.verified_us == START_US + 7
    assert (reply.cross_checksum, body) == (
        world.encoded(ITEM).cross_checksum,
        world.encoded(ITEM).fragments[NODE],
    )
    assert ask(node, alice, read())[0].verified_us == 0


def test_a_restored_fragment_is_unverified(world: World, alice: Principal) -> None:
    message, fragment = request(world, alice)
    node = world.nodes[NODE]
    node.step(alice.sender, message, fragment, START_US)
    key = version_key(BLOCK, message.timestamp)
    row = version_row.verified(message.cross_checksum, START_US)
    node.storage.apply(
        [
            Write(Table.BLOCK, key, version_row.with_versions_collected_below(row)),
            Write(Table.FRAGMENT, key, b"damaged"),
        ]
    )
    node.step(alice.sender, message, fragment, START_US)
    assert node.storage.get(Table.FRAGMENT, key) == fragment
    reply, _ = ask(node, alice, read(history=3))
    assert reply.versions == (Listed(message.timestamp, False),)
    assert reply.below is Below.COLLECTED


def test_late_writes_find_their_place_below_newer_ones(world: World, alice: Principal) -> None:
    new = world.placed(alice, b"new", range(6), time_us=START_US + 9)
    late = world.placed(alice, b"late", range(6), time_us=START_US + 4)
    reply, _ = ask(world.nodes[NODE], alice, read(history=3))
    assert [version.timestamp for version in reply.versions] == [new, late]
