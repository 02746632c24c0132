"""Nobody is shown the blocks of a file that he may not read, whatever b nodes do for him.

A spy holds the key of a client, and the volume key: the contents are his as soon as he has m
fragments. Nodes that lie give him theirs. Nodes that are behind do not know that the file is, or
has become, private.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.coding.erasure import ErasureCode
from bftfs.conversation import Pause, Receive, Send
from bftfs.credentials import Credentials, Grant
from bftfs.errors import AdmissionRefused, FileSystemError
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.inode_authority import InodeAuthority
from bftfs.identifiers import BlockId, NodeId, ObjectId
from bftfs.query_update.accepting import Accepting
from bftfs.query_update.effort import BackOff
from bftfs.read_write.messages import AuthoredRequest, ReadReply, ReadRequest
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import version_key
from bftfs.server.step import Ready
from bftfs.simulation.world import SECOND_US
from bftfs.storage import Table
from tests.seams.disputes import (
    Hiding,
    Reserved,
    asking_anywhere,
    far_away,
    no_patience,
    refusing,
    without_asking,
)
from tests.seams.world import (
    BLOCK_BYTES,
    READERS_GRANT,
    STRANGER,
    STRANGERS_GRANT,
    SUPERUSER,
    Hand,
    User,
    World,
    private_file,
    refused,
)

SIZES = [(1, 1, 1), (1, 0, 0), (2, 1, 0), (2, 1, 1)]  # t, b, and how many lie
SECRET = "what root wrote"


def outside(world: World) -> list[int]:
    """The nodes outside of the preferred quorum of all objects here: placement 0."""
    return list(range(world.sizes.query_update.q, world.sizes.n))


def block_of(root: User, identifier: ObjectId) -> BlockId:
    layout = root.attributes(identifier).layout
    assert layout is not None
    return layout.block(identifier, 0)


class Spy:
    """A client that asks all nodes for their fragments of a block, and some give him theirs."""

    def __init__(self, world: World, liars: int = 0, grant: Grant = STRANGERS_GRANT) -> None:
        knowing = world.sizes.query_update.q
        self.world = world
        self.allies = range(knowing - liars, knowing)
        self.hand: Hand = world.hand(f"spy {grant}", grant=grant)

    def ask(self, message: Any) -> dict[int, tuple[Any, bytes]]:
        """What each node says, with its fragment."""

        async def ask() -> dict[int, tuple[Any, bytes]]:
            nodes = range(self.world.sizes.n)
            numbers = {await Send(NodeId(node), message): node for node in nodes}
            replies: dict[int, tuple[Any, bytes]] = {}
            while (delivery := await Receive(5 * SECOND_US)) is not None:
                replies[numbers[delivery.request_number]] = delivery.message, bytes(delivery.body)
            return replies

        found: dict[int, tuple[Any, bytes]] = self.hand.perform(ask())
        return found

    def steal(self, block: BlockId, who: Credentials = STRANGER) -> str | None:
        """The contents of the block's latest version, if he gets enough of its fragments."""
        world, sizes = self.world, self.world.sizes.read_write
        replies = self.ask(ReadRequest(block, None, True, 8, *who))
        gathered = {
            (node, reply.versions[0].timestamp): fragment
            for node, (reply, fragment) in replies.items()
            if isinstance(reply, ReadReply) and reply.versions
        }
        for node in self.allies:
            for key, _ in world.nodes[node].disk.scan(Table.BLOCK, block, block + b"\xff" * 60):
                for _, timestamp in list(gathered):
                    if version_key(block, timestamp) == key:
                        fragment = world.nodes[node].disk.get(Table.FRAGMENT, key)
                        assert fragment is not None
                        gathered[node, timestamp] = bytes(fragment)
        for latest in {timestamp for _, timestamp in gathered}:
            fragments = {
                fragment_index(block, NodeId(node), sizes.N): fragment
                for (node, timestamp), fragment in gathered.items()
                if timestamp == latest
            }
            if len(fragments) >= sizes.m:
                some = dict(list(fragments.items())[: sizes.m])
                return bytes(ErasureCode(sizes.m, sizes.N).decode(some)).decode()
        return None


# --- nodes that do not know that a file is private --------------------------------------------


def new_file(t: int, b: int) -> tuple[World, User, ObjectId]:
    """Root has made a file 0600, of which t nodes have not heard."""
    return private_file(t, b, SECRET)


def closed_file(t: int, b: int) -> tuple[World, User, ObjectId]:
    """All know a file that was 0644; root closes it at a quorum; t nodes still think it open."""
    world = World(t, b)
    root = world.user("root")
    root.format()
    identifier = root.make("secret", SECRET, mode=0o644)
    world.run_for(605 * SECOND_US)
    assert world.knowing(identifier) == list(range(world.sizes.n))
    root.chmod(identifier, 0o600)
    return world, root, identifier


FILES = [new_file, closed_file]


@pytest.mark.parametrize("made", FILES)
@pytest.mark.parametrize(("t", "b", "liars"), SIZES)
def test_private_files_are_shown_to_nobody_else(
    made: Callable[..., Any], t: int, b: int, liars: int
) -> None:
    world, root, identifier = made(t, b)
    block = block_of(root, identifier)
    assert Spy(world, liars).steal(block) is None
    assert root.read(identifier) == SECRET


@pytest.mark.parametrize("made", FILES)
@pytest.mark.parametrize(("t", "b", "liars"), SIZES)
def test_nor_by_nodes_that_have_lost_their_stores(
    made: Callable[..., Any], t: int, b: int, liars: int
) -> None:
    """As many as may fail, beside t that have not heard of it."""
    world, root, identifier = made(t, b)
    block = block_of(root, identifier)
    for node in range(t - liars):
        world.deployment.lose_disk(NodeId(node))
        world.nodes[node].start()
    assert Spy(world, liars).steal(block) is None


@pytest.mark.parametrize("made", FILES)
@pytest.mark.parametrize(("t", "b", "liars"), SIZES)
def test_must_fail_where_nodes_show_blocks_to_all(
    made: Callable[..., Any], t: int, b: int, liars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InodeAuthority, "may_read", lambda *_: None)
    world, root, identifier = made(t, b)
    assert Spy(world, liars).steal(block_of(root, identifier)) == SECRET


def test_nobody_reads_in_anothers_name() -> None:
    world, root, identifier = closed_file(1, 1)
    block, spy = block_of(root, identifier), Spy(world)
    for who in (SUPERUSER, STRANGER._replace(gid=0), STRANGER._replace(groups=(0,))):
        replies = {node: reply for node, (reply, _) in spy.ask(request(block, who)).items()}
        assert refused(replies) == dict.fromkeys(range(6), errno.EPERM)


def request(block: BlockId, who: Credentials, *, want_data: bool = True) -> ReadRequest:
    return ReadRequest(block, None, want_data, 8, *who)


def test_nor_is_he_told_which_versions_there_are() -> None:
    world, root, identifier = closed_file(1, 1)
    world.run_for(605 * SECOND_US)
    question = request(block_of(root, identifier), STRANGER, want_data=False)
    replies = {node: reply for node, (reply, _) in Spy(world).ask(question).items()}
    assert refused(replies) == dict.fromkeys(range(6), errno.EACCES)


def listed(identifier: ObjectId, spy: Spy, who: Credentials) -> dict[int, Any]:
    """What nodes say to the question who has written which blocks of the file."""
    return spy.hand.ask_all(AuthoredRequest((identifier,), None, 0, b"", *who))


def test_nor_who_has_written_them() -> None:
    world, _, identifier = closed_file(1, 1)
    world.run_for(605 * SECOND_US)
    told = listed(identifier, Spy(world), STRANGER)
    assert [each.keys for each in told.values()] == [()] * 6
    told = listed(identifier, Spy(world, grant=Grant(uids=(0,))), SUPERUSER)
    assert all(each.keys for each in told.values())


def test_must_fail_where_nodes_tell_all_who_has_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InodeAuthority, "may_read", lambda *_: None)
    world, _, identifier = closed_file(1, 1)
    told = listed(identifier, Spy(world), STRANGER)
    assert all(each.keys for each in told.values())


OWN = STRANGER.uid


@pytest.mark.parametrize(
    ("mode", "uid", "is_shown"),
    [
        (0o604, 0, True),
        (0o601, 0, True),  # the kernel reads it for whoever executes it
        (0o602, 0, True),  # a client needs the bytes beside those that it writes
        (0o660, 0, False),
        (0o670, 0, False),
        (0o000, OWN, True),  # he may open it to himself, and may have it open
        (0o066, OWN + 1, True),
        (0o060, OWN + 1, False),
    ],
)
def test_who_is_shown_blocks(mode: int, uid: int, is_shown: bool) -> None:
    world = World(verifying=False)
    root = world.user("root")
    root.format()
    identifier = root.make("file", SECRET, mode=0o600)
    changes = Changes(mode=mode, uid=uid)
    root.run(root.files.change_attributes(identifier, changes, root.who))
    assert (Spy(world).steal(block_of(root, identifier)) == SECRET) is is_shown


# --- readers who are permitted ------------------------------------------------------------------


def let_in(t: int, b: int, liars: int, down: int, *, full: bool = False) -> str:
    """All nodes know that a file is private; then it is not, and t nodes do not know it.

    What somebody reads at once whose client may do nothing but read. Some nodes are down, and
    others lie that it is private. The disks of all others may be full but for their reserve.
    """
    world = World(t, b)
    root, reader = world.user("root"), world.user("stranger", STRANGER, grant=READERS_GRANT)
    root.format()
    identifier = root.make("shared", SECRET, mode=0o600)
    world.run_for(605 * SECOND_US)
    root.chmod(identifier, 0o644)
    refusing(*range(liars), kind=Hiding)(world)
    if full:
        refusing(*range(liars, world.sizes.n), kind=Reserved)(world)
    for number in range(liars, liars + down):
        world.nodes[number].crash(down_us=None)

    async def read() -> bytes:
        file = await reader.files.open(identifier, os.O_RDONLY, STRANGER)
        return bytes(await reader.files.read(file, 0, 100))

    found: bytes = reader.run(read(), within_us=10 * SECOND_US)
    return found.decode()


LET_IN = [(t, b, liars, t - liars) for t, b, liars in SIZES]


@pytest.mark.parametrize(("t", "b", "liars", "down"), LET_IN)
def test_who_was_let_in_reads_though_others_are_behind_or_lie(
    t: int, b: int, liars: int, down: int
) -> None:
    assert let_in(t, b, liars, down) == SECRET


@pytest.mark.parametrize(("t", "b", "liars", "down"), LET_IN)
def test_who_was_let_in_reads_though_all_disks_are_full(
    t: int, b: int, liars: int, down: int
) -> None:
    """To ask the inode is an update: it may use the reserve."""
    assert let_in(t, b, liars, down, full=True) == SECRET


def test_must_fail_where_questions_use_no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = Accepting._accept_method

    def unreserved(self: Accepting, *arguments: Any, **options: Any) -> Ready:
        return accept(self, *arguments, **options | {"uses_reserve": False})

    monkeypatch.setattr(Accepting, "_accept_method", unreserved)
    with pytest.raises(AdmissionRefused, match="the disk is full"):
        let_in(1, 1, 1, 0, full=True)


def test_must_fail_where_it_counts_what_more_than_t_nodes_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_asking(monkeypatch, "read")
    with pytest.raises(AdmissionRefused):
        let_in(1, 1, 1, 0)


def read_of_an_open_file(t: int, b: int) -> list[Any]:
    """The same, with t nodes down, by somebody who knows the names of blocks: what comes of it."""
    world = World(t, b)
    root, reader = world.user("root"), world.user("stranger", STRANGER, grant=READERS_GRANT)
    root.format()
    identifier = root.make("shared", SECRET, mode=0o600)
    world.run_for(605 * SECOND_US)
    block = block_of(root, identifier)
    root.chmod(identifier, 0o644)
    for number in range(t):
        world.nodes[number].crash(down_us=None)
    permit = partial(reader.files._metadata.permit_reading, identifier, STRANGER)
    ended = world.start(reader.host, reader.blocks.read(block, STRANGER, permit=permit))
    world.run_for(4 * SECOND_US)
    return [found.item.decode() for found in ended]


OPEN = [(1, 0), (1, 1), (2, 0), (2, 1)]


@pytest.mark.parametrize(("t", "b"), OPEN)
def test_readers_of_open_files_wait_for_no_node(t: int, b: int) -> None:
    assert read_of_an_open_file(t, b) == [SECRET]


@pytest.mark.parametrize(("t", "b"), OPEN)
def test_must_fail_where_readers_wait_for_nodes_to_agree(
    t: int, b: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_asking(monkeypatch, "read")
    assert read_of_an_open_file(t, b) == []


def test_must_fail_where_the_question_goes_to_the_usual_quorum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking_anywhere(monkeypatch)
    with pytest.raises(AssertionError, match="it has not happened"):
        let_in(1, 1, 1, 0)


FAR_US = [100_000, 400_000, 1_500_000]


def read_beside_a_liar(t: int, b: int, distance_us: int) -> list[Any]:
    """The first read of a client that only a liar is near to, who refuses it: what comes of it."""
    world = World(t, b)
    root, reader = world.user("root"), world.user("stranger", STRANGER, grant=READERS_GRANT)
    root.format()
    identifier = root.make("shared", SECRET, mode=0o644)
    world.run_for(605 * SECOND_US)
    block = block_of(root, identifier)
    refusing(0, kind=Hiding)(world)
    far_away(world, range(1, world.sizes.n), distance_us)
    permit = partial(reader.files._metadata.permit_reading, identifier, STRANGER)
    ended = world.start(reader.host, reader.blocks.read(block, STRANGER, permit=permit))
    world.run_for(60 * SECOND_US)
    return [found.item.decode() for found in ended]


@pytest.mark.parametrize("distance_us", FAR_US)
@pytest.mark.parametrize(("t", "b"), [(1, 1), (2, 1)])
def test_a_liar_does_not_keep_those_reading_who_are_far_from_the_others(
    t: int, b: int, distance_us: int
) -> None:
    assert read_beside_a_liar(t, b, distance_us) == [SECRET]


@pytest.mark.parametrize("distance_us", FAR_US)
def test_must_fail_where_no_read_bears_more_silences_than_the_first(
    distance_us: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_patience(monkeypatch)
    assert read_beside_a_liar(1, 1, distance_us) == []


def read_file_from_afar(
    readers: int = 0, blocks: int = 30, *, fluctuates: bool = False
) -> tuple[int, int]:
    """A liar and some other nodes are near; blocks read within a minute, and questions asked.

    Other readers ask the inode all the time, as fast as they can. If the distance `fluctuates`, the
    nodes that are far away are near at every other read.
    """
    world = World()
    root, reader = world.user("root"), world.user("stranger", STRANGER, grant=READERS_GRANT)
    root.format()
    identifier = root.make("shared", "x" * (blocks * BLOCK_BYTES), mode=0o644)
    world.run_for(605 * SECOND_US)
    layout = root.attributes(identifier).layout
    assert layout is not None
    refusing(0, kind=Hiding)(world)
    far_away(world, range(3, world.sizes.n), 80_000)
    read, asked = [], []

    async def permit(forbidding: Nodes) -> None:
        asked.append(forbidding)
        await reader.files._metadata.permit_reading(identifier, STRANGER, forbidding)

    async def read_all() -> None:
        for number in range(blocks):
            block = layout.block(identifier, number)
            if fluctuates:
                far_away(world, range(3, world.sizes.n), 1_000 if number % 2 else 80_000)
            read.append(await reader.blocks.read(block, STRANGER, permit=permit))

    async def ask_for_ever(user: User) -> None:
        while True:
            await user.files._metadata.permit_reading(identifier, STRANGER, NOBODY)

    for number in range(readers):
        user = world.user(f"other {number}", STRANGER, grant=READERS_GRANT)
        world.start(user.host, ask_for_ever(user))
    if readers:
        world.run_for(20 * SECOND_US)
    world.start(reader.host, read_all())
    world.run_for(60 * SECOND_US)
    return len(read), len(asked)


def remembers_the_last_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast read has the slow one before it forgotten."""

    def bore(session: Session, lapses: int, _now_us: int) -> None:
        session.silences = lapses + 1

    monkeypatch.setattr(Session, "bore", bore)


def each_finds_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No read knows how many silences the one before has needed."""
    always = property(lambda _: 1, lambda *_: None)
    monkeypatch.setattr(Session, "silences", always, raising=False)


def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody backs off for long."""
    monkeypatch.setattr(BackOff, "pause", lambda _: Pause(50_000))


def test_who_is_far_from_others_asks_once_and_not_for_each_block() -> None:
    assert read_file_from_afar() == (30, 1)


def test_must_fail_where_each_read_finds_out_again_how_far_others_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    each_finds_out_again(monkeypatch)
    assert read_file_from_afar() == (30, 30)


@pytest.mark.parametrize("fluctuates", [False, True])
def test_other_readers_keep_nobody_from_reading(
    monkeypatch: pytest.MonkeyPatch, fluctuates: bool
) -> None:
    without_pauses(monkeypatch)
    read, asked = read_file_from_afar(readers=2, fluctuates=fluctuates)
    assert read == 30
    assert asked <= 2


def test_must_fail_where_other_readers_use_up_the_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_pauses(monkeypatch)
    each_finds_out_again(monkeypatch)
    assert read_file_from_afar(readers=2)[0] < 30


def test_must_fail_where_one_fast_read_has_slow_ones_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remembers_the_last_read(monkeypatch)
    assert read_file_from_afar(fluctuates=True) == (30, 15)
    without_pauses(monkeypatch)
    assert read_file_from_afar(readers=2, fluctuates=True)[1] > 2


def test_who_permits_himself_gets_no_further() -> None:
    """A client that takes the inode's refusal for a permission."""
    world, root, identifier = closed_file(1, 1)
    stranger = world.user("stranger", STRANGER, grant=STRANGERS_GRANT)
    asked: list[Nodes] = []

    async def permit(forbidding: Nodes) -> None:
        asked.append(forbidding)
        with pytest.raises(FileSystemError):
            await stranger.files._metadata.permit_reading(identifier, STRANGER, forbidding)

    block = block_of(root, identifier)
    ended = world.start(stranger.host, stranger.blocks.read(block, STRANGER, permit=permit))
    world.run_for(60 * SECOND_US)
    assert asked
    assert not ended


def test_who_may_only_read_changes_nothing_by_asking() -> None:
    world = World()
    root, reader = world.user("root"), world.user("stranger", STRANGER, grant=READERS_GRANT)
    root.format()
    identifier = root.make("shared", SECRET, mode=0o646)
    before = root.attributes(identifier)
    reader.run(reader.files._metadata.permit_reading(identifier, STRANGER, NOBODY))
    with pytest.raises(AdmissionRefused) as failure:
        reader.run(reader.files._metadata.permit_writing(identifier, STRANGER, NOBODY))
    assert failure.value.code == errno.EROFS
    assert root.attributes(identifier) == before


def test_who_is_refused_is_told_so() -> None:
    """He has opened the file before it was closed: it ends with an error, and soon."""
    world = World()
    root, reader = world.user("root"), world.user("stranger", STRANGER, grant=READERS_GRANT)
    root.format()
    identifier = root.make("shared", SECRET, mode=0o644)
    file = reader.run(reader.files.open(identifier, os.O_RDONLY, STRANGER))
    root.chmod(identifier, 0o600)
    with pytest.raises(FileSystemError) as failure:
        reader.run(reader.files.read(file, 0, 100), within_us=5 * SECOND_US)
    assert failure.value.code == errno.EACCES
