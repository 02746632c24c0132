"""Versions of blocks, and disks that are lost: what a node has said before counts no more after.

A client may have heard that a node hosts a version, in an acknowledgement, a list or a voucher, and
the node may lose its disk before the client's round is over. If the others have not got the version
yet when the node asks them what it has lost, the version has a host less than the client counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec
import pytest

from bftfs.asking.lives import Heard, Lives, Told
from bftfs.asking.quorum import NOBODY
from bftfs.crypto.digest import AuthenticatorKeys
from bftfs.identifiers import BlockId, NodeId, ObjectKind, block_id, object_id
from bftfs.read_write.messages import (
    InventoryReply,
    InventoryRequest,
    ReadReply,
    WriteReply,
    WriteRequest,
)
from bftfs.read_write.server import ReadWriteServer
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.read_write.writing import WriteRound
from bftfs.server.block_verification import VerificationPolicy
from bftfs.server.step import Ready
from bftfs.simulation.network import Kind
from bftfs.simulation.world import SECOND_US
from bftfs.storage import Table, Write, after_keys
from tests.seams.world import SUPERUSER, User, World

LOSER = NodeId(0)
FILE = object_id(ObjectKind.INODE, placement=0, unique=bytes(14))
BLOCK: BlockId = block_id(FILE, incarnation=0, number=0)  # node i hosts fragment i
OTHER: BlockId = block_id(FILE, incarnation=0, number=6)  # and of this one
CASES = [(1, 0, 0), (2, 0, 0), (2, 1, 1), (1, 1, 1)]  # t, b, and how many lie in the end


class Scene:
    """A block of which all nodes host the first version, and messages that wait for their cue."""

    def __init__(self, t: int, b: int) -> None:
        self.world = World(t, b, policy=VerificationPolicy.READ_TIME)
        self.sizes = self.world.sizes.read_write
        self.writer = self.world.user("writer")
        self.writer.run(self.write(b"before"))
        self.world.run_for(SECOND_US)
        self.unwritten: Iterable[int] = ()  # nodes that the writer's WRITE does not reach for now
        self.far: dict[Any, Iterable[int]] = {}  # by client, nodes that it does not reach for now
        self.is_late: Callable[[Any, Any, Any], bool] = lambda *_: False
        self.world.ways.hold(self._holds)

    def _holds(self, source: Any, target: Any, kind: Kind, message: Any) -> bool:
        if kind is Kind.REPLY or target[0] != "node":
            return False
        if source == self.writer.host.endpoint and isinstance(message, WriteRequest):
            return target[1] in self.unwritten
        return target[1] in self.far.get(source, ()) or self.is_late(source, target, message)

    def release(self) -> None:
        """What is late no more arrives."""
        self.world.ways.release(lambda *message: not self._holds(*message))
        self.world.run_for(SECOND_US // 100)

    def write(self, item: bytes) -> Coroutine[Any, Any, BlockTimestamp]:
        return self.writer.blocks.write(BLOCK, item, SUPERUSER)

    def until_sent(self, source: Any, kind: type) -> None:
        """Let things happen until `source` sends a message of this kind."""
        sent: list[Any] = []

        def watch(by: Any, _target: Any, _kind: Kind, message: Any) -> None:
            if by == source and isinstance(message, kind):
                sent.append(message)

        self.world.ways.watch = watch
        self.world.run_until(lambda: bool(sent), within_us=60 * SECOND_US)
        self.world.ways.watch = None

    def outcome(self, ended: list[Any]) -> Any:
        """What a conversation has come to."""
        self.world.run_until(lambda: bool(ended), within_us=60 * SECOND_US)
        if isinstance(ended[0], BaseException):
            raise ended[0]
        return ended[0]

    def lose_disks(self, *nodes: int) -> None:
        """These come back with empty disks, and have rebuilt their stores after a while."""
        for node in nodes:
            self.world.deployment.lose_disk(NodeId(node))
        self.world.run_for(40 * SECOND_US)

    def lie(self, liars: Iterable[int]) -> None:
        """These deny the version that they have acknowledged."""
        for liar in liars:
            disk = self.world.nodes[liar].disk
            key = next(iter(disk.keys(Table.BLOCK, BLOCK, BLOCK + after_keys(64))))
            disk.apply([Write(Table.BLOCK, key, None), Write(Table.FRAGMENT, key, None)])
            disk.commit()

    def reader(self, name: str, far: Iterable[int]) -> User:
        """A reader that does not reach these nodes."""
        reader = self.world.user(name)
        self.far[reader.host.endpoint] = far
        return reader

    def read(self, name: str, far: Iterable[int]) -> bytes | None:
        reader = self.reader(name, far)
        item: bytes | None = reader.run(reader.blocks.read(BLOCK)).item
        return item


# --- acknowledgements -----------------------------------------------------------------------------


def lost_between_acknowledgements(t: int, b: int, liars: int) -> bytes | None:
    """The first node to acknowledge a write loses its disk before the others have got it.

    The last t never get it. What is read then, without t of its hosts.
    """
    scene = Scene(t, b)
    N = scene.sizes.N
    scene.unwritten = range(1, N)
    ended = scene.world.start(scene.writer.host, scene.write(b"after"))
    scene.until_sent(("node", LOSER), WriteReply)
    scene.lose_disks(LOSER)
    scene.unwritten = range(N - t, N)
    scene.release()
    scene.outcome(ended)
    scene.lie(range(1, 1 + liars))
    return scene.read("reader", far=range(1 + liars, 1 + liars + t))


@pytest.mark.parametrize(("t", "b", "liars"), CASES)
def test_what_was_acknowledged_before_a_loss_counts_no_more(t: int, b: int, liars: int) -> None:
    assert lost_between_acknowledgements(t, b, liars) == b"after"


def test_must_fail_writers_that_count_earlier_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lives, "outlived", lambda *_: NOBODY)
    assert lost_between_acknowledgements(1, 1, 1) == b"before"


def late_acknowledgements() -> bytes | None:
    """A node acknowledges two writes and loses its disk; that word reaches the writer last of all.

    The first write that hears it asks the node anew, which does not answer; by then the other one
    has asked it again, too. What is read of that other one, without one of its hosts.
    """
    scene = Scene(1, 1)
    world, writer, loser = scene.world, scene.writer, ("node", LOSER)
    me = writer.host.endpoint
    blocks = (BLOCK, OTHER)
    reached: dict[BlockId, Iterable[int]] = dict.fromkeys(blocks, (LOSER,))

    def late(source: Any, target: Any, _kind: Kind, message: Any) -> bool:
        if source == me and isinstance(message, WriteRequest):
            return target[1] not in reached[message.block]
        return target[1] in scene.far.get(source, ()) or (source == loser and target == me)

    world.ways.hold(late)
    writes = {}
    for block in blocks:
        writes[block] = world.start(writer.host, writer.blocks.write(block, b"after", SUPERUSER))
        world.run_for(SECOND_US // 10)
        reached[block] = ()
    scene.lose_disks(LOSER)

    def arrive(block: BlockId, acknowledgement: int) -> None:
        """The write arrives at all nodes but one, then the word of the one that lost its disk."""
        acknowledgements = itertools.count()
        reached[block] = range(1, 5)

        def is_written(source: Any, target: Any, _kind: Kind, message: Any) -> bool:
            is_write = source == me and isinstance(message, WriteRequest)
            return is_write and message.block == block and target[1] in reached[block]

        def is_word(source: Any, target: Any, _kind: Kind, message: Any) -> bool:
            is_old = isinstance(message, WriteReply) and not message.lives
            return is_old and target == me and next(acknowledgements) == acknowledgement

        world.ways.release(is_written)
        world.run_for(SECOND_US)
        assert world.ways.release(is_word) == 1
        world.run_for(20 * SECOND_US)

    arrive(OTHER, 1)
    arrive(BLOCK, 0)
    if not writes[BLOCK]:  # it waits for one more
        reached[BLOCK] = range(1, 6)
        world.ways.release(lambda source, target, *_: source == me and target[1] == 5)
    scene.outcome(writes[BLOCK])
    scene.lie((1,))
    return scene.read("reader", far=(2,))


def test_what_was_acknowledged_in_an_earlier_life_comes_late_and_counts_no_more() -> None:
    assert late_acknowledgements() == b"after"


def test_must_fail_writers_that_take_old_word_for_an_answer_to_what_they_ask_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def outlived(writing: WriteRound, answers: dict[NodeId, Told]) -> Iterable[NodeId]:
        lives = writing._lives
        return lives.outlived({node: Heard(told, lives.begin()) for node, told in answers.items()})

    monkeypatch.setattr(WriteRound, "_outlived", outlived)
    assert late_acknowledgements() == b"before"


# --- lists ----------------------------------------------------------------------------------------


def lost_between_lists(t: int, b: int, liars: int) -> tuple[bytes | None, bytes | None]:
    """A reader hears that a node hosts a version; others get it then, and say so to it, too.

    What it finds, and what a later reader does, without t of the hosts.
    """
    scene = Scene(t, b)
    N = scene.sizes.N
    scene.unwritten = range(1, N)
    scene.world.start(scene.writer.host, scene.write(b"after"))
    scene.until_sent(("node", LOSER), WriteReply)
    reader = scene.reader("reader", far=range(1, N))
    found = scene.world.start(reader.host, reader.blocks.read(BLOCK))
    scene.until_sent(("node", LOSER), ReadReply)
    scene.world.run_for(SECOND_US // 100)
    scene.lose_disks(LOSER)
    scene.writer.host.crash()
    scene.unwritten = scene.far[reader.host.endpoint] = range(N - t, N)
    scene.release()
    first = scene.outcome(found).item
    scene.lie(range(1, 1 + liars))
    return first, scene.read("later reader", far=range(1 + liars, 1 + liars + t))


@pytest.mark.parametrize(("t", "b", "liars"), CASES)
def test_what_was_listed_before_a_loss_counts_no_more(t: int, b: int, liars: int) -> None:
    assert lost_between_lists(t, b, liars) == (b"after", b"after")


def test_must_fail_readers_that_count_earlier_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lives, "outlived", lambda *_: NOBODY)
    assert lost_between_lists(1, 1, 1) == (b"after", b"before")


# --- vouchers -------------------------------------------------------------------------------------


def lost_between_vouchers_and_repair() -> bytes | None:
    """A reader repairs a complete version that some lack; one that has vouched loses its disk."""
    scene = Scene(1, 1)
    scene.unwritten = (4, 5)
    scene.world.start(scene.writer.host, scene.write(b"after"))
    scene.world.run_for(SECOND_US)
    scene.writer.host.crash()
    reader = scene.reader("reader", far=(3,))
    scene.is_late = lambda source, _target, message: (
        source == reader.host.endpoint and isinstance(message, WriteRequest)
    )
    found = scene.world.start(reader.host, reader.blocks.read(BLOCK))
    scene.until_sent(reader.host.endpoint, WriteRequest)
    scene.lose_disks(LOSER)
    scene.is_late = lambda *_: False
    scene.release()
    item: bytes | None = scene.outcome(found).item
    return item


def test_a_repair_asks_anew_for_vouchers_that_count_no_more() -> None:
    assert lost_between_vouchers_and_repair() == b"after"


def test_must_fail_readers_that_take_it_for_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AuthenticatorKeys, "is_outlived", lambda *_, **__: False)
    assert lost_between_vouchers_and_repair() == b"before"


# --- several disks at once ------------------------------------------------------------------------


def lost_at_several_nodes(t: int, b: int) -> bytes | None:
    """t hosts lose their disks together; one host is slow to tell them what it has.

    What is read then, without t of the other hosts.
    """
    scene = Scene(t, b)
    N = scene.sizes.N
    scene.unwritten = range(N - t, N)
    scene.writer.run(scene.write(b"after"))
    scene.writer.host.crash()
    slow = N - t - 1
    scene.is_late = lambda source, target, message: (
        source[0] == "node"
        and source[1] < t
        and target[1] == slow
        and isinstance(message, InventoryRequest)
    )
    scene.lose_disks(*range(t))
    reader = scene.reader("reader", far=range(t, 2 * t))
    found = scene.world.start(reader.host, reader.blocks.read(BLOCK))
    scene.world.run_for(10 * SECOND_US)
    scene.is_late = lambda *_: False
    scene.release()
    item: bytes | None = scene.outcome(found).item
    return item


@pytest.mark.parametrize(("t", "b"), [(2, 0), (3, 1)])
def test_what_was_acknowledged_survives_t_lost_disks(t: int, b: int) -> None:
    assert lost_at_several_nodes(t, b) == b"after"


def test_must_fail_a_node_that_rests_on_forgetful_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = ReadWriteServer._inventory

    def sure(server: ReadWriteServer, *given: Any) -> Ready:
        ready = inventory(server, *given)
        assert isinstance(ready.reply, InventoryReply)
        ready.reply = msgspec.structs.replace(ready.reply, remembers=True)
        return ready

    monkeypatch.setattr(ReadWriteServer, "_inventory", sure)
    assert lost_at_several_nodes(2, 0) == b"before"


def test_a_node_that_is_alone_has_nobody_to_compare_with() -> None:
    world = World(0, 0)
    user = world.user("user")
    user.format()
    file = user.make("file", "contents")
    _, healer = world.deployment.healers[NodeId(0)]
    world.run_until(lambda: healer.tally.compared > 0, within_us=100_000 * SECOND_US)
    assert not healer.tally.failed
    assert user.read(file) == "contents"
