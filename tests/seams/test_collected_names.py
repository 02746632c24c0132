"""What an inode names is there, whatever nodes have collected meanwhile.

A mount has written a block and not covered it yet, since the network is down or its program goes on
writing. Others write to the block, and the detection window passes, which may be short. Nodes have
vouched for the version by then, or have not heard of it: when it is covered it is there.
"""

from __future__ import annotations

import errno
import os
from functools import cache
from typing import Any, NamedTuple

import pytest

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.errors import FileSystemError, NoLongerKept
from bftfs.filesystem.attributes import NO_CHANGES
from bftfs.filesystem.block_names import covered, name_at
from bftfs.filesystem.block_reading import BlockReader
from bftfs.filesystem.inode import Writing
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import WRITE
from bftfs.identifiers import BlockId, NodeId, ObjectId
from bftfs.query_update.messages import Status
from bftfs.query_update.replica import Replica
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.messages import Below, ReadReply, ReadRequest
from bftfs.read_write.timestamp import BlockTimestamp, version_key
from bftfs.server import file_collection, kept_blocks
from bftfs.server.file_collection import BlockWalk, Collector
from bftfs.server.object_collection import establish
from bftfs.server.step import Ready, Sender, Server
from bftfs.simulation.deployment import CollectionPlan
from bftfs.simulation.principals import NodeServices
from bftfs.simulation.world import SECOND_US
from bftfs.storage import StorageView, Table, Write
from tests.seams.world import BLOCK_BYTES, ROOT, SUPERUSER, VOLUME, World

WINDOW_US = 600 * SECOND_US


class Written(NamedTuple):
    """A file, of which one block is written and not covered; and others' work on it."""

    world: World
    close: Any
    read: Any
    hosts: Any
    touch: Any
    remove: Any


def written(*, is_covered: bool = False) -> Written:
    """One mount writes a block, and a second one the same block, later. A third covers another.

    The second mount fails before it covers its block, unless that `is_covered`.
    """
    world = World(collection=CollectionPlan(WINDOW_US), volume=VOLUME)
    user = world.user("user")
    user.format()
    identifier = user.make("file", "." * 2 * BLOCK_BYTES)
    first, file = opened(world, user, identifier)
    pushed(world, user, first, file, b"first")
    block = file.contents.layout.block(identifier, 0)
    timestamp = file.contents.uncovered[0].name.timestamp
    world.run_for(SECOND_US)
    other = world.user("other")
    second, theirs = opened(world, other, identifier)
    pushed(world, other, second, theirs, b"second")
    if is_covered:
        other.run(second.flush(theirs))
    world.run_for(SECOND_US)
    world.user("third").put(identifier, "third", offset=BLOCK_BYTES)
    world.run_for(2 * WINDOW_US + SECOND_US)
    return Written(
        world,
        lambda: user.run(first.release(file), within_us=20 * SECOND_US),
        lambda: world.user("reader").read(identifier)[:6].rstrip("."),
        lambda: world.hosting(block, timestamp),
        lambda: world.user("fourth").chmod(identifier, 0o640),
        lambda: user.run(user.files.unlink(ROOT, b"file", user.who)),
    )


def opened(world: World, user: Any, identifier: Any) -> Any:
    mount = user.filesystem(Options())
    return mount, user.run(mount.open(identifier, os.O_RDWR, user.who))


def pushed(world: World, user: Any, mount: Any, file: Any, contents: bytes) -> None:
    whole = contents.ljust(BLOCK_BYTES, b".")  # of a part, the mount would keep the block
    mount.write(file, 0, whole, now_ns=world.now_us * 1000)
    user.run(mount._contents._writer.push(file.contents, tuple(file.contents.dirty)))


def test_what_its_author_may_still_name_is_kept() -> None:
    """Nodes have vouched for it long ago, and others' version is later, verified and old."""
    case = written()
    assert len(case.hosts()) == 6
    case.close()
    assert case.read() == "first"


def test_must_fail_where_what_is_superseded_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_blocks, "may_be_named", lambda *_: False)
    case = written()
    assert not case.hosts()
    with pytest.raises(NoLongerKept):
        case.close()


def test_what_gave_way_to_a_later_name_goes() -> None:
    """It can never be named any more. Its author, who would write its bytes again, is told."""
    case = written(is_covered=True)
    assert not case.hosts()
    with pytest.raises(NoLongerKept):
        case.close()
    assert case.read() == "second"


def test_what_nobody_names_goes_once_the_file_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time that passes says so, however long: an update that is later than all that name it."""
    monkeypatch.setattr(limits, "COVERED_WITHIN_US", 4 * WINDOW_US)
    case = written()
    case.world.run_for(4 * WINDOW_US)
    assert len(case.hosts()) == 6
    case.touch()
    case.world.run_for(WINDOW_US + 2 * limits.COLLECT_EVERY_US)
    assert not case.hosts()


def test_what_nobody_names_goes_with_the_file() -> None:
    case = written()
    assert len(case.hosts()) == 6
    case.remove()
    case.world.run_for(WINDOW_US + 2 * limits.COLLECT_EVERY_US)
    assert not case.hosts()


# --- updates that are finished late -------------------------------------------------------------


class Named(NamedTuple):
    """A file whose first block is named by an update that three nodes alone have accepted."""

    world: World
    identifier: ObjectId
    block: BlockId
    timestamp: BlockTimestamp

    def is_named(self, node: int) -> bool:
        """True if the update is the latest that this node knows of."""
        workspace = Replica(self.world.nodes[node].disk, self.identifier).workspace
        name = name_at(workspace, 0)
        return name is not None and name.timestamp == self.timestamp


FEW, OTHERS = (0, 1, 2), (3, 4, 5)


def named() -> Named:
    """A client writes a block that others write as well, names it at a few nodes, and stops."""
    world = World(collection=CollectionPlan(WINDOW_US), volume=VOLUME)
    user = world.user("user")
    user.format()
    identifier = user.make("file", "." * 2 * BLOCK_BYTES)
    layout = user.attributes(identifier).layout
    assert layout is not None
    hand = world.hand("hand")
    version = hand.version(layout.block(identifier, 0), "first", world.now_us)
    hand.write(version, range(6), who=SUPERUSER)
    world.run_for(SECOND_US)
    mount, file = opened(world, user, identifier)
    pushed(world, user, mount, file, b"second")
    world.run_for(SECOND_US)
    world.user("third").put(identifier, "third", offset=BLOCK_BYTES)
    world.run_for(2 * WINDOW_US)
    names = (covered(0, version.timestamp),)
    writing = Writing(0, layout.newest, 0, NO_CHANGES, names)
    claims = hand.claims([version])
    said = hand.update(identifier, WRITE, writing, SUPERUSER, claims=claims, asked=FEW)
    assert said == [Status.SUCCESS] * len(FEW)
    return Named(world, identifier, version.block, version.timestamp)


async def though_few_answer(*_: Any) -> bool:
    """In place of `Collector._knows_snapshots`: nodes collect while half of them are down."""
    return True


def finished_late(monkeypatch: pytest.MonkeyPatch) -> Named:
    """The nodes that have accepted it are down for a while. Then somebody finishes the update."""
    monkeypatch.setattr(limits, "COVERED_WITHIN_US", 4 * WINDOW_US)
    monkeypatch.setattr(Collector, "_knows_snapshots", though_few_answer)
    case = named()
    world = case.world
    for node in FEW:
        world.nodes[node].crash(down_us=None)
    world.run_for(4 * WINDOW_US + limits.CLOCKS_AGREE_US + 2 * limits.COLLECT_EVERY_US)
    for node in FEW:
        world.nodes[node].start()
    world.run_until(lambda: all(map(case.is_named, range(6))))
    world.nodes[FEW[0]].crash(down_us=None)
    return case


def test_what_is_named_by_an_update_that_is_finished_late_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = finished_late(monkeypatch)
    assert case.world.hosting(case.block, case.timestamp) == list(range(6))
    assert case.world.user("reader").read(case.identifier)[:6].rstrip("\0") == "first"


def test_must_fail_where_a_clock_says_that_it_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """No update of now names the version any more. One of then is still on its way."""
    may_be_named, begin = kept_blocks.may_be_named, file_collection._begin

    def collect(name: ObjectId, horizon_us: int, view: StorageView) -> Any:
        since_us = horizon_us + WINDOW_US - limits.COVERED_WITHIN_US - limits.CLOCKS_AGREE_US

        def by_the_clock(replica: Replica, block: BlockId, timestamp: BlockTimestamp) -> bool:
            return timestamp.time >= since_us and may_be_named(replica, block, timestamp)

        monkeypatch.setattr(kept_blocks, "may_be_named", by_the_clock)
        return begin(name, horizon_us, view)

    monkeypatch.setattr(file_collection, "_begin", collect)
    case = finished_late(monkeypatch)
    assert case.world.hosting(case.block, case.timestamp) == list(FEW)
    with pytest.raises(NoLongerKept):
        case.world.user("reader").read(case.identifier)


def test_what_is_named_while_a_node_collects_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps of its walk through the versions of one block."""
    monkeypatch.setattr(limits, "COLLECT_ROWS", 1)
    case = named()
    disk = case.world.nodes[OTHERS[0]].disk
    horizon_us = Replica(disk, case.identifier).row.collected_us
    walk = BlockWalk(case.identifier, horizon_us=horizon_us)
    walk.step(disk)  # the later version of the block
    case.world.run_until(lambda: case.is_named(OTHERS[0]))
    case.world.user("other").chmod(case.identifier, 0o600)  # that the name is established
    key = version_key(case.block, case.timestamp)
    while not walk.done:
        assert Write(Table.BLOCK, key, None) not in walk.step(disk)


# --- files that are deleted, and open ------------------------------------------------------------


def hosting_after_deletion(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A file is deleted that a program has open. After the window, while a node collects its
    blocks, the program writes one of them, and its update is known to be established. The nodes
    that have the block then."""
    monkeypatch.setattr(limits, "COLLECT_ROWS", 1)
    plan = CollectionPlan(WINDOW_US, roomy=tuple(map(NodeId, range(6))))
    world = World(collection=plan, volume=VOLUME)
    user = world.user("user")
    user.format()
    identifier = user.make("file", "." * 3 * BLOCK_BYTES)
    mount, file = opened(world, user, identifier)
    block = file.contents.layout.block(identifier, 2)
    world.user("other").run(user.files.unlink(ROOT, b"file", user.who))
    world.run_for(2 * WINDOW_US)
    disk = world.nodes[0].disk
    horizon_us = world.now_us - WINDOW_US
    disk.apply(establish(identifier, Replica(disk, identifier).head, disk, 0))
    begins, writes = file_collection._begin(identifier, horizon_us, disk)
    assert begins
    disk.apply(writes)
    walk = BlockWalk(identifier, horizon_us=horizon_us)
    disk.apply(walk.step(disk))
    mount.write(file, 2 * BLOCK_BYTES, b"later", now_ns=world.now_us * 1000)
    user.run(mount.flush(file))
    disk.apply(establish(identifier, Replica(disk, identifier).head, disk, 0))
    while not walk.done:
        disk.apply(walk.step(disk))
    name = name_at(Replica(disk, identifier).workspace, 2)
    assert name is not None
    return world.hosting(block, name.timestamp)


def test_what_is_written_to_a_deleted_file_while_a_node_collects_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert hosting_after_deletion(monkeypatch) == list(range(6))


def test_must_fail_where_a_walk_goes_by_what_the_file_was(monkeypatch: pytest.MonkeyPatch) -> None:
    shown_by = cache(lambda name, disk, horizon_us: genuine(Replica(disk, name), horizon_us))
    genuine = file_collection.shown_by
    monkeypatch.setattr(
        file_collection,
        "shown_by",
        lambda replica, horizon_us: shown_by(replica.object, replica.view, horizon_us),
    )
    assert hosting_after_deletion(monkeypatch) == list(range(1, 6))


# --- patches -------------------------------------------------------------------------------------


class Patched(NamedTuple):
    """A file of one block, with a patch that has been replaced since, and one that has not."""

    world: World
    identifier: ObjectId
    hosts: Any


def patched(*, is_written_whole: bool) -> Patched:
    """The first patch is replaced by one with the same bytes; then, perhaps, both by the whole."""
    world = World(collection=CollectionPlan(WINDOW_US), volume=VOLUME)
    user = world.user("user")
    user.format()
    identifier = user.make("file", "." * BLOCK_BYTES)
    mount = user.filesystem(Options(patch_saves_bytes=0))
    file = user.run(mount.open(identifier, os.O_RDWR, user.who))
    timestamps = []
    for content in (b"first", b"patch"):
        mount.write(file, 0, content, now_ns=world.now_us * 1000)
        user.run(mount.synchronize(file))
        name = file.contents.name(0)
        timestamps.append(name.patches[0].timestamp)
        assert [patch.slot for patch in name.patches] == [1]
        world.run_for(SECOND_US)
    if is_written_whole:
        mount.write(file, 0, b"n" * BLOCK_BYTES, now_ns=world.now_us * 1000)
    user.run(mount.release(file))
    block = file.contents.layout.block(identifier, 0, 1)
    return Patched(
        world,
        identifier,
        lambda: [len(world.hosting(block, timestamp)) for timestamp in timestamps],
    )


def test_a_patch_goes_that_another_has_replaced_and_the_named_one_stays() -> None:
    case = patched(is_written_whole=False)
    assert case.hosts() == [6, 6]
    case.world.run_for(WINDOW_US + 3 * limits.COLLECT_EVERY_US)
    assert case.hosts() == [0, 6]
    assert case.world.user("reader").read(case.identifier)[:6] == "patch."


def test_patches_go_when_their_block_was_written_whole() -> None:
    """Nothing of them would ever be shown again: they do not wait for later patches."""
    case = patched(is_written_whole=True)
    assert case.hosts() == [6, 6]
    case.world.run_for(WINDOW_US + 3 * limits.COLLECT_EVERY_US)
    assert case.hosts() == [0, 0]
    assert set(case.world.user("reader").read(case.identifier)) == {"n"}


def test_must_fail_where_a_patch_goes_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_blocks, "kept_names", lambda *_: frozenset())
    case = patched(is_written_whole=False)
    case.world.run_for(WINDOW_US + 3 * limits.COLLECT_EVERY_US)
    assert case.hosts() == [0, 0]
    with pytest.raises(NoLongerKept):
        case.world.user("reader").read(case.identifier)


def shown_on_what_is_gone() -> tuple[str, str]:
    """A mount has not looked at a file for long. It patches what others have replaced since, and
    nodes have collected; what its programs see then, and what there is when it has closed it."""
    world = World(collection=CollectionPlan(WINDOW_US), volume=VOLUME)
    user, other = world.user("user"), world.user("other")
    user.format()
    identifier = user.make("file", "." * BLOCK_BYTES)
    options = Options(access_times=False, patch_saves_bytes=0, cache_bytes=0)
    mount = user.filesystem(options)
    file = user.run(mount.open(identifier, os.O_RDWR, user.who))
    user.run(mount.read(file, 0, 1))
    other.put(identifier, "n" * BLOCK_BYTES)
    world.run_for(2 * WINDOW_US)
    other.chmod(identifier, 0o640)
    world.run_for(2 * WINDOW_US)
    mount.write(file, 2, b"mine", now_ns=world.now_us * 1000)
    user.run(mount._contents._writer.push(file.contents, tuple(file.contents.dirty)))
    assert file.contents.uncovered[0].pushed.under is not None
    shown = bytes(user.run(mount.read(file, 0, 10))).decode()
    user.run(mount.release(file))
    return shown, world.user("reader").read(identifier)[:10]


def test_a_patch_is_shown_although_what_it_was_written_for_has_gone() -> None:
    assert shown_on_what_is_gone() == ("nnminennnn", "nnminennnn")


def test_must_fail_where_a_patch_is_shown_on_what_it_was_written_for_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: Any) -> None:
        raise NoLongerKept(subject="block 0", at_us=0)

    monkeypatch.setattr(BlockReader, "_on_what_is_named", fail)
    with pytest.raises(NoLongerKept):
        shown_on_what_is_gone()


# --- reads that are held up ---------------------------------------------------------------------


def read_late() -> str:
    """What a mount reads of a file that others replace while it asks for the version that it has
    heard of: until its requests arrive, nodes have collected that."""
    world = World(collection=CollectionPlan(WINDOW_US), volume=VOLUME)
    user, other = world.user("user"), world.user("other")
    user.format()
    identifier = user.make("file", "first")
    mount, file = opened(world, user, identifier)
    other.put(identifier, "other")
    other.chmod(identifier, 0o640)
    me = user.host.endpoint

    def late(source: Any, _target: Any, _kind: Any, message: Any) -> bool:
        return bool(
            source == me and isinstance(message, ReadRequest) and message.before is not None
        )

    world.ways.hold(late)
    ended = world.start(user.host, mount.read(file, 0, 5))
    world.run_for(SECOND_US)
    other.put(identifier, "third")
    world.run_for(2 * WINDOW_US)
    other.chmod(identifier, 0o600)
    world.run_for(2 * WINDOW_US)
    assert not ended
    world.ways.flow()
    world.run_until(lambda: bool(ended), within_us=20 * SECOND_US)
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return bytes(ended[0]).decode()


def test_a_read_that_is_held_up_gives_what_is_there_when_it_ends() -> None:
    assert read_late() == "third"


def read_of_what_was_deleted() -> None:
    """A program reads a file that was deleted while it had it open, before the window began."""
    world = World(collection=CollectionPlan(WINDOW_US), volume=VOLUME)
    user = world.user("user")
    user.format()
    identifier = user.make("file", "." * BLOCK_BYTES)
    mount = user.filesystem(Options(access_times=False, patch_saves_bytes=0, cache_bytes=0))
    file = user.run(mount.open(identifier, os.O_RDWR, user.who))
    mount.write(file, 2, b"patch", now_ns=world.now_us * 1000)
    user.run(mount.flush(file))
    user.run(user.files.unlink(ROOT, b"file", user.who))
    world.run_for(2 * WINDOW_US)
    user.run(mount.read(file, 0, 10))


def test_what_was_deleted_and_collected_is_stale() -> None:
    """A block that was patched is asked for by name, as any of which a mount knows no better."""
    with pytest.raises(FileSystemError) as stale:
        read_of_what_was_deleted()
    assert stale.value.code == errno.ESTALE


def test_must_fail_where_a_mount_does_not_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def believes_what_it_has_heard(*_: Any) -> bool:
        return False

    monkeypatch.setattr(BlockReader, "_has_changed", believes_what_it_has_heard)
    with pytest.raises(NoLongerKept):
        read_late()


# --- what is written to a deleted file, and not covered yet ---------------------------------------


class WrittenLate(NamedTuple):
    """A block that a program has written to a file which was deleted long ago, and its mount."""

    world: World
    user: Any
    mount: Any
    file: Any

    def hosts(self) -> list[int]:
        block = self.file.contents.layout.block(self.file.contents.identifier, 0)
        return self.world.hosting(block, self.file.contents.uncovered[0].name.timestamp)

    def read(self) -> str:
        """What is in the file once the block is covered."""
        self.user.run(self.mount.flush(self.file))
        reader = self.user.filesystem(Options())
        identifier = self.file.contents.identifier
        file = self.user.run(reader.open(identifier, os.O_RDONLY, self.user.who))
        return bytes(self.user.run(reader.read(file, 0, 5))).decode()


def written_late() -> WrittenLate:
    """All nodes look for what may go, after the block was written and before it is covered."""
    world = World(collection=CollectionPlan(WINDOW_US), volume=VOLUME)
    user = world.user("user")
    user.format()
    identifier = user.make("file", "." * BLOCK_BYTES)
    mount, file = opened(world, user, identifier)
    user.run(user.files.unlink(ROOT, b"file", user.who))
    world.run_for(2 * WINDOW_US)
    pushed(world, user, mount, file, b"later")
    world.run_for(limits.COLLECT_EVERY_US - SECOND_US)
    return WrittenLate(world, user, mount, file)


def test_what_is_written_to_a_deleted_file_is_there_when_it_is_covered() -> None:
    case = written_late()
    assert case.hosts() == list(range(6))
    assert case.read() == "later"


def test_what_is_written_to_a_deleted_file_and_never_covered_goes() -> None:
    case = written_late()
    case.world.run_for(WINDOW_US + 2 * limits.COLLECT_EVERY_US)
    assert not case.hosts()


def test_must_fail_where_nothing_of_a_deleted_file_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = file_collection.shown_by

    def all_is_old(replica: Replica, horizon_us: int) -> Any:
        shown = genuine(replica, horizon_us)
        return None if shown is None else shown._replace(horizon_us=1 << 62)

    monkeypatch.setattr(file_collection, "shown_by", all_is_old)
    case = written_late()
    assert not case.hosts()
    with pytest.raises((FileSystemError, NoLongerKept)):
        case.read()


def test_what_was_deleted_and_never_covered_is_stale() -> None:
    """A program reads what it has itself written, and its mount has not covered since."""
    case = written_late()
    case.world.run_for(WINDOW_US + 2 * limits.COLLECT_EVERY_US)
    case.file.contents.drop_blocks(0)
    with pytest.raises(FileSystemError) as stale:
        case.user.run(case.mount.read(case.file, 0, 5))
    assert stale.value.code == errno.ESTALE


def test_what_is_gone_is_not_saved() -> None:
    """Its mount still has the vouchers that came with the write; and no copy of the block."""
    case = written_late()
    case.world.run_for(WINDOW_US + 2 * limits.COLLECT_EVERY_US)
    case.file.contents.drop_blocks(0)
    with pytest.raises(NoLongerKept):
        case.user.run(case.mount.synchronize(case.file))


def test_must_fail_where_old_vouchers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VOUCHED_FOR_US", limits.COVERED_WITHIN_US)
    with pytest.raises(pytest.fail.Exception):
        test_what_is_gone_is_not_saved()


# --- what is written to a deleted file, and others who say that it is gone ------------------------


class Denying:
    """A node that says of all blocks that their file was deleted and collected, or is silent."""

    def __init__(self, server: Server, *, is_silent: bool) -> None:
        self._server, self._is_silent = server, is_silent

    def step(self, view: Any, sender: Sender, message: Any, body: Any, now_us: int) -> Ready:
        ready = self._server.step(view, sender, message, body, now_us)
        if isinstance(message, ReadRequest) and self._is_silent:
            return Ready()
        if isinstance(message, ReadRequest) and isinstance(ready.reply, ReadReply):
            if message.before is None:
                ready.reply = Refused(errno.ESTALE, "it is gone")
            else:
                lives = ready.reply.lives
                ready.reply = ReadReply((), Below.COLLECTED, CrossChecksum(b""), lives=lives)
            ready.body = b""
        return ready


def read_beside_those_that_deny(
    t: int, b: int, *, late: int, down: int = 0, is_silent: bool = False
) -> str:
    """A program has written to a file that was deleted and collected before, and saved that.

    So many nodes have not heard of it yet, b lie, and others do not answer. What it reads then.
    """
    world = World(t, b, collection=CollectionPlan(WINDOW_US), volume=VOLUME)
    n, user, other = world.sizes.n, world.user("user"), world.user("other")
    user.format()
    identifier = user.make("file", "." * 2 * BLOCK_BYTES)
    mount = user.filesystem(Options(access_times=False, cache_bytes=0))
    file = user.run(mount.open(identifier, os.O_RDWR, user.who))
    other.run(other.files.unlink(ROOT, b"file", other.who))
    world.run_for(3 * WINDOW_US + 100 * SECOND_US)  # no node compares itself with others just now
    me, behind = user.host.endpoint, range(n - b - late, n - b)
    world.ways.hold(lambda source, target, *_: source == me and target[1] in behind)
    mount.write(file, 0, b"n" * BLOCK_BYTES, now_ns=world.now_us * 1000)
    user.run(mount.synchronize(file))
    world.ways.hold(lambda *_: False)  # what was held is lost

    def lying(node: NodeId) -> NodeServices:
        services = world.deployment.servers(node)
        servers = {kind: Denying(each, is_silent=is_silent) for kind, each in services.items()}
        return NodeServices(servers, services.background, services.on_damage)

    for node in map(NodeId, range(n - b, n)):
        world.nodes[node].become(lambda node=node: lying(node))  # type: ignore[misc]
    for silent in range(down):
        world.nodes[silent].crash(down_us=None)
    return bytes(user.run(mount.read(file, 0, 5), within_us=20 * SECOND_US)).decode()


LATE = [(1, 0, 1, 1), (1, 1, 1, 0), (2, 0, 2, 2), (2, 1, 2, 1), (2, 2, 2, 0)]


@pytest.mark.parametrize("is_silent", [False, True])
@pytest.mark.parametrize(("t", "b", "late", "down"), LATE)
def test_who_has_not_heard_of_it_hides_nothing_that_was_just_written(
    t: int, b: int, late: int, down: int, is_silent: bool
) -> None:
    read = read_beside_those_that_deny(t, b, late=late, down=down, is_silent=is_silent)
    assert read == "nnnnn"


def read_where_few_have_collected(t: int, b: int) -> str:
    """A file was deleted before the window began. t nodes are short of room; as many do not answer.

    A program that has it open reads it.
    """
    n = World(t, b).sizes.n
    plan = CollectionPlan(WINDOW_US, roomy=tuple(map(NodeId, range(t, n))))
    world = World(t, b, collection=plan, volume=VOLUME)
    user, other = world.user("user"), world.user("other")
    user.format()
    identifier = user.make("file", "." * BLOCK_BYTES)
    mount = user.filesystem(Options(access_times=False, cache_bytes=0))
    file = user.run(mount.open(identifier, os.O_RDWR, user.who))
    other.run(other.files.unlink(ROOT, b"file", other.who))
    world.run_for(3 * WINDOW_US)
    for silent in range(n - t, n):
        world.nodes[silent].crash(down_us=None)
    return bytes(user.run(mount.read(file, 0, 5), within_us=60 * SECOND_US)).decode()


@pytest.mark.parametrize(("t", "b"), [(1, 1), (2, 2)])
def test_nobody_waits_for_a_file_that_few_have_collected(t: int, b: int) -> None:
    assert read_where_few_have_collected(t, b) == "....."


@pytest.mark.parametrize(("t", "b"), [(1, 0), (2, 1)])
def test_what_more_than_lie_have_collected_is_stale(t: int, b: int) -> None:
    with pytest.raises(FileSystemError) as stale:
        read_where_few_have_collected(t, b)
    assert stale.value.code == errno.ESTALE


def test_must_fail_where_a_refusal_counts_and_not_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = ReadWriteClient.read

    def unnamed(client: ReadWriteClient, *given: Any, **options: Any) -> Any:
        return genuine(client, *given, **{**options, "is_named": False})

    monkeypatch.setattr(ReadWriteClient, "read", unnamed)
    with pytest.raises(AssertionError, match="it has not happened"):
        read_beside_those_that_deny(1, 1, late=1, is_silent=True)
    with pytest.raises(AssertionError, match="it has not happened"):
        read_where_few_have_collected(1, 1)


def test_must_fail_where_nodes_take_what_they_never_had_for_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_blocks.CollectedPast, "may_have_had", lambda *_: True)
    with pytest.raises(FileSystemError) as stale:
        read_beside_those_that_deny(1, 1, late=1)
    assert stale.value.code == errno.ESTALE
