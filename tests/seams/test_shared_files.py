"""Files that several mounts write at the same time, where answers are late, lost, or forged.

The nodes are real. What a mount has closed is there once, whatever became of the messages between.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from bftfs.errors import FileSystemError, NoLongerKept, QuorumUnavailable, VersionGone
from bftfs.filesystem import block_pushing, block_writing
from bftfs.filesystem.block_memory import without
from bftfs.filesystem.contents import Contents, OpenFile
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import WRITE
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import Update, UpdateReply
from bftfs.read_write import vouching
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.messages import VouchReply, WriteReply, WriteRequest
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.server.kept_blocks import CollectedPast
from bftfs.simulation.deployment import CollectionPlan
from bftfs.simulation.network import Kind
from bftfs.simulation.world import SECOND_US
from tests.seams.test_vouchers import forge
from tests.seams.world import BLOCK_BYTES, SUPERUSER, TYPES, VOLUME, User, World

PATIENCE_US = 20 * SECOND_US  # of a soft mount


class Scene:
    """A file, and two mounts that have it open to append to it."""

    def __init__(self, world: World | None = None, content: str = "0123456789") -> None:
        self.world = world or World()
        self.user, self.other = self.world.user("user"), self.world.user("other")
        self.user.objects.rounds.patience_total_us = PATIENCE_US
        self.user.format()
        self.identifier = self.user.make("file", content)
        self.mount, self.file = self.opened(self.user)
        self.second, self.theirs = self.opened(self.other)

    def opened(self, user: User, mount: FileSystem | None = None) -> tuple[FileSystem, OpenFile]:
        mount = mount or user.filesystem(Options(access_times=False))
        return mount, user.run(mount.open(self.identifier, os.O_RDWR, SUPERUSER))

    def append(self, mount: FileSystem, file: OpenFile, content: bytes) -> None:
        self.write(mount, file, None, content)

    def write(self, mount: FileSystem, file: OpenFile, offset: int | None, content: bytes) -> None:
        mount.write(file, offset, content, now_ns=self.world.now_us * 1_000)

    def push(self) -> None:
        """The first mount hands all that is dirty to the nodes, and covers nothing."""
        contents = self.file.contents
        self.user.run(self.mount._contents._writer.push(contents, tuple(contents.dirty)))

    def write_elsewhere_until_collected(self, offset: int) -> None:
        """The second mount writes there, twice; each time the window passes."""
        for _ in range(2):
            self.write(self.second, self.theirs, offset, b"x" * 40)
            self.other.run(self.second.flush(self.theirs))
            self.world.run_for(1_200 * SECOND_US)

    def append_elsewhere(self) -> None:
        self.append(self.second, self.theirs, b"<other>")
        self.other.run(self.second.flush(self.theirs))

    def seen(self, size: int = 100) -> str:
        return self.world.user("reader").read(self.identifier, size)

    def lose(self, kind: type, *, arrives: bool) -> None:
        """From now on, answers to updates of the first mount are lost, or the updates are late."""
        me = self.user.host.endpoint

        def holds(source: Any, target: Any, _kind: Kind, message: Any) -> bool:
            if arrives:
                return bool(target == me and isinstance(message, UpdateReply))
            return bool(source == me and isinstance(message, Update))

        self.world.ways.hold(holds)


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("meanwhile", [False, True])
@pytest.mark.parametrize("is_released", [True, False])
@pytest.mark.parametrize("ends", ["times out", "is interrupted"])
def test_an_append_whose_fate_is_unknown_is_made_once(
    arrives: bool, meanwhile: bool, is_released: bool, ends: str
) -> None:
    assert doubtful(arrives, meanwhile, is_released, ends) == 1


def doubtful(arrives: bool, meanwhile: bool, is_released: bool, ends: str) -> int:
    """How often a line is there that was appended by a cover whose answer the mount has missed."""
    scene = Scene()
    scene.append(scene.mount, scene.file, b"<mine>")
    scene.lose(Update, arrives=arrives)
    outcome: list[Any] = []
    flushing = scene.user.host.start(
        scene.mount.flush(scene.file), lambda _, error: outcome.append(error)
    )
    if ends == "times out":
        scene.world.run_until(lambda: bool(outcome), within_us=60 * SECOND_US)
        assert isinstance(outcome[0], QuorumUnavailable)
    else:
        scene.world.run_for(SECOND_US)
        flushing.cancel()
        assert not outcome
    if meanwhile:
        scene.append_elsewhere()
    if is_released:
        scene.world.ways.flow()
        scene.world.run_for(SECOND_US)
    scene.world.ways.hold(lambda *_: False)
    scene.append(scene.mount, scene.file, b"<more>")
    scene.user.run(scene.mount.flush(scene.file))
    scene.world.ways.flow()
    scene.world.run_for(SECOND_US)
    seen = scene.seen()
    assert seen.startswith("0123456789")
    assert seen.count("<more>") == 1
    assert seen.count("<other>") == meanwhile
    assert len(seen) == 10 + seen.count("<mine>") * 6 + 6 + 7 * meanwhile
    return seen.count("<mine>")


def forget(_writer: Any, contents: Contents) -> Any:
    """In place of `BlockWriter._settle`."""

    async def settled() -> None:
        contents.cover = None

    return settled()


def test_must_fail_a_mount_that_forgets_its_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_writing.BlockWriter, "_settle", forget)
    assert doubtful(True, True, True, "times out") == 2


def test_what_was_written_beside_a_cover_of_unknown_fate_is_saved_although_others_were_faster() -> (
    None
):
    """It ends before what that has covered."""
    assert written_beside() == "MINE......"


def written_beside() -> str:
    """What is seen of a file after a mount has saved bytes beside a cover of unknown fate."""
    scene = Scene(content="." * 2 * BLOCK_BYTES)
    mount = scene.user.filesystem(Options(access_times=False, patch_saves_bytes=0))
    _, file = scene.opened(scene.user, mount)
    now_ns = scene.world.now_us * 1_000
    mount.write(file, BLOCK_BYTES, b"<mine>", now_ns=now_ns)
    scene.lose(Update, arrives=True)
    with pytest.raises(QuorumUnavailable):
        scene.user.run(mount.flush(file))
    scene.second.write(scene.theirs, 100, b"<other>", now_ns=now_ns)
    scene.other.run(scene.second.flush(scene.theirs))
    scene.world.ways.hold(lambda *_: False)
    mount.write(file, 0, b"MINE", now_ns=now_ns)
    scene.user.run(mount.flush(file))
    return scene.seen(10)


def test_must_fail_a_mount_that_believes_that_nothing_is_dirty_after_a_cover(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Contents, "find_ends", believe_that_all_is_saved)
    assert written_beside() == ".........."


def believe_that_all_is_saved(contents: Contents) -> None:
    contents.pushed_end = contents._pushed_end()
    contents.end = 0


WRITTEN = {"line": (None, b"<mine>"), "bytes": (0, b"MINE"), "block": (0, b"M" * BLOCK_BYTES)}


@pytest.mark.parametrize("what", WRITTEN)
@pytest.mark.parametrize("looks", [True, False])
def test_what_was_covered_and_cut_off_since_does_not_come_back(what: str, looks: bool) -> None:
    assert replaced(what, looks) == "other mount's<more>"


def replaced(what: str, looks: bool) -> str:
    """What there is after another mount has replaced what was covered without an answer."""
    scene = Scene()
    offset, content = WRITTEN[what]
    scene.mount.write(scene.file, offset, content, now_ns=scene.world.now_us * 1_000)
    scene.lose(Update, arrives=True)
    with pytest.raises(QuorumUnavailable):
        scene.user.run(scene.mount.flush(scene.file))
    scene.other.run(scene.second.truncate(scene.identifier, 0, SUPERUSER))
    scene.append(scene.second, scene.theirs, b"other mount's")
    scene.other.run(scene.second.flush(scene.theirs))
    scene.world.ways.flow()
    if looks:  # a program of the first mount, which hears of the change by that
        _, file = scene.opened(scene.user, scene.mount)
        scene.user.run(scene.mount.read(file, 0, 100))
    scene.append(scene.mount, scene.file, b"<more>")
    scene.user.run(scene.mount.flush(scene.file))
    return scene.seen()


def test_an_append_is_made_once_although_its_blocks_are_gone_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nodes let go of what another mount has replaced: they vouch for it no more."""

    async def gone(*_: Any) -> Any:
        raise VersionGone("what was written")

    scene = Scene()
    scene.append(scene.mount, scene.file, b"<mine>")
    scene.lose(Update, arrives=True)
    with pytest.raises(QuorumUnavailable):
        scene.user.run(scene.mount.flush(scene.file))
    scene.world.ways.flow()
    scene.append_elsewhere()
    with monkeypatch.context() as patch:
        patch.setattr(ReadWriteClient, "vouched", gone)
        scene.user.run(scene.mount.flush(scene.file))
    scene.append(scene.mount, scene.file, b"<more>")
    scene.user.run(scene.mount.flush(scene.file))
    assert scene.seen() == "0123456789<mine><other><more>"


# An overwrite as well: a patch, or a whole block.
@pytest.mark.parametrize("saves", [0, 1 << 20])
@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("keeping", [(0, 1), (0, 1, 2)])
def test_what_is_appended_is_there_once_although_some_nodes_have_collected_it(
    keeping: tuple[int, ...], arrives: bool, saves: int
) -> None:
    """Its blocks were replaced and are gone at most nodes. Others know the fate of the update."""
    mount, file, user, reader = collected(keeping, arrives, saves)
    user.run(mount.flush(file))
    seen = reader.read(file.identifier)
    assert seen.startswith("x" * 40)
    # What took effect was overwritten since; what did not is appended.
    assert seen[40:] == ("x" * 6 + "<other>" if arrives else "<other><mine>")


def test_must_fail_where_an_update_fails_because_its_blocks_are_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vouching, "NoLongerKept", ZeroDivisionError)
    monkeypatch.setattr(CollectedPast, "may_be_named", lambda *_: True)
    mount, file, user, _ = collected((0, 1), True, 0)
    for _ in range(2):  # and so on, for ever
        with pytest.raises(NoLongerKept):
            user.run(mount.flush(file))


def collected(
    keeping: tuple[int, ...], arrives: bool, saves: int
) -> tuple[FileSystem, OpenFile, User, User]:
    """A mount has missed the answer to its cover; all but some nodes have collected its blocks."""
    plan = CollectionPlan(600 * SECOND_US, roomy=tuple(map(NodeId, keeping)))
    scene = Scene(World(collection=plan, volume=VOLUME), "." * 40)
    mount = scene.user.filesystem(Options(access_times=False, patch_saves_bytes=saves))
    _, file = scene.opened(scene.user, mount)
    scene.append(mount, file, b"<mine>")
    scene.lose(Update, arrives=arrives)
    with pytest.raises(QuorumUnavailable):
        scene.user.run(mount.flush(file))
    size = scene.other.attributes(scene.identifier).size
    scene.second.write(scene.theirs, 0, b"x" * size, now_ns=scene.world.now_us * 1_000)
    scene.other.run(scene.second.flush(scene.theirs))
    scene.append_elsewhere()
    scene.world.run_for(1_800 * SECOND_US)
    scene.world.user("third").chmod(scene.identifier, 0o640)
    scene.world.run_for(1_800 * SECOND_US)
    pushed = file.contents.uncovered[0].pushed
    block = file.contents.layout.block(scene.identifier, 0, pushed.slot)
    assert scene.world.hosting(block, pushed.timestamp) == list(keeping)
    scene.world.ways.hold(lambda *_: False)
    return mount, file, scene.user, scene.world.user("reader")


# --- what servers know nothing of any more -------------------------------------------------------


def forgotten(what: str, *, arrives: bool, is_replaced: bool) -> tuple[Scene, FileSystem]:
    """A mount has missed the answer to its cover; all servers have collected the versions of then.

    Others have written since: into the same block, if that `is_replaced`, or else into another one.
    """
    plan = CollectionPlan(600 * SECOND_US)
    scene = Scene(World(collection=plan, volume=VOLUME), "." * BLOCK_BYTES + "0123456789")
    offset, content = WRITTEN[what]
    scene.mount.write(scene.file, offset, content, now_ns=scene.world.now_us * 1_000)
    scene.lose(Update, arrives=arrives)
    with pytest.raises(QuorumUnavailable):
        scene.user.run(scene.mount.flush(scene.file))
    mine = BLOCK_BYTES if offset is None else 0
    place = mine if is_replaced else BLOCK_BYTES - mine
    scene.write_elsewhere_until_collected(place)
    scene.world.ways.hold(lambda *_: False)
    return scene, scene.mount


def all_of(scene: Scene) -> bytes:
    return scene.seen(4 * BLOCK_BYTES).encode()


@pytest.mark.parametrize("what", WRITTEN)
@pytest.mark.parametrize("arrives", [True, False])
def test_what_servers_have_forgotten_is_judged_by_what_the_inode_names(
    what: str, arrives: bool
) -> None:
    scene, mount = forgotten(what, arrives=arrives, is_replaced=False)
    scene.user.run(mount.flush(scene.file))
    assert all_of(scene).count(WRITTEN[what][1]) == 1


@pytest.mark.parametrize("what", WRITTEN)
@pytest.mark.parametrize("arrives", [True, False])
def test_a_program_is_told_once_that_nobody_knows_if_its_bytes_were_saved(
    what: str, arrives: bool
) -> None:
    """Nor are they put over others' bytes, or there twice."""
    scene, mount = forgotten(what, arrives=arrives, is_replaced=True)
    before = all_of(scene)
    with pytest.raises(FileSystemError, match="EIO"):
        scene.user.run(mount.flush(scene.file))
    assert all_of(scene) == before
    scene.append(mount, scene.file, b"<more>")
    scene.user.run(mount.flush(scene.file))
    assert all_of(scene) == before + b"<more>"


def test_must_fail_who_writes_again_what_servers_have_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def believes_that_it_has_not(*_: Any) -> bool:
        return False

    monkeypatch.setattr(block_writing.BlockWriter, "_took_effect", believes_that_it_has_not)
    scene, mount = forgotten("line", arrives=True, is_replaced=False)
    scene.user.run(mount.flush(scene.file))
    assert all_of(scene).count(b"<mine>") == 2


def test_must_fail_who_takes_for_saved_what_servers_have_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def believes_that_it_has(*_: Any) -> bool:
        return True

    monkeypatch.setattr(block_writing.BlockWriter, "_took_effect", believes_that_it_has)
    scene, mount = forgotten("line", arrives=False, is_replaced=False)
    scene.user.run(mount.flush(scene.file))
    assert b"<mine>" not in all_of(scene)


def test_who_has_written_is_told_though_another_program_finds_out() -> None:
    """A program that cuts the file has what was written before it saved first."""
    scene, mount = forgotten("line", arrives=True, is_replaced=True)
    scene.user.run(mount.truncate(scene.identifier, 4 * BLOCK_BYTES, SUPERUSER))
    with pytest.raises(FileSystemError, match="EIO"):
        scene.user.run(mount.flush(scene.file))
    scene.user.run(mount.flush(scene.file))


def test_a_program_is_told_of_a_block_that_the_forgotten_cover_may_have_put_behind() -> None:
    """Another block of that cover shows that it took effect."""
    scene = behind_and_forgotten()
    with pytest.raises(FileSystemError, match="EIO"):
        scene.user.run(scene.mount.flush(scene.file))
    scene.user.run(scene.mount.flush(scene.file))


def test_must_fail_who_takes_all_of_a_forgotten_cover_for_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def believes_that_it_has(*_: Any) -> bool:
        return True

    monkeypatch.setattr(block_writing.BlockWriter, "_took_effect", believes_that_it_has)
    scene = behind_and_forgotten()
    scene.user.run(scene.mount.flush(scene.file))
    assert all_of(scene)[: 2 * BLOCK_BYTES].count(b"M") == BLOCK_BYTES


def behind_and_forgotten() -> Scene:
    """A mount has missed the answer to its cover of two whole blocks; all servers forgot it.

    It has found one of them changed by others, later than it was written, and so put it behind.
    """
    plan = CollectionPlan(600 * SECOND_US)
    scene = Scene(World(collection=plan, volume=VOLUME), "." * 3 * BLOCK_BYTES)
    scene.write(scene.mount, scene.file, 0, b"M" * 2 * BLOCK_BYTES)
    scene.push()
    scene.write(scene.second, scene.theirs, BLOCK_BYTES, b"x" * 40)
    scene.other.run(scene.second.flush(scene.theirs))
    scene.user.attributes(scene.identifier)  # so that its cover is not refused first
    scene.lose(Update, arrives=True)
    with pytest.raises(QuorumUnavailable):
        scene.user.run(scene.mount.flush(scene.file))
    scene.write_elsewhere_until_collected(2 * BLOCK_BYTES)
    scene.world.ways.hold(lambda *_: False)
    return scene


# --- what was written and not covered, and is gone -----------------------------------------------


@pytest.mark.parametrize("appends", [False, True])
@pytest.mark.parametrize("cache_bytes", [0, Options().cache_bytes])
@pytest.mark.parametrize("then", [None, "over", "behind"])
def test_a_program_is_told_once_that_a_block_is_gone_before_it_was_covered(
    appends: bool, cache_bytes: int, then: str | None
) -> None:
    """Others have replaced it meanwhile. What programs have written since is saved, but for what
    they appended behind it, or wrote into what was appended."""
    scene = gone(Options(access_times=False, cache_bytes=cache_bytes), appends=appends)
    expected = all_of(scene)
    (number,) = scene.file.contents.uncovered
    if then == "over":
        place = number * BLOCK_BYTES + 100
        scene.write(scene.mount, scene.file, place, b"<over>")
        before, after = expected[:place], expected[place + 6 :]
        if not appends:
            expected = before + b"<over>" + after
    elif then == "behind":
        scene.append(scene.mount, scene.file, b"<more>")
        if not appends:  # else it was appended in one stretch with what is gone
            expected += b"<more>"
    if then == "over" and cache_bytes:  # the mount has it yet
        scene.user.run(scene.mount.flush(scene.file))
        assert all_of(scene).count(b"M") == BLOCK_BYTES - 6
        return
    with pytest.raises(NoLongerKept):
        scene.user.run(scene.mount.flush(scene.file))
    scene.user.run(scene.mount.flush(scene.file))
    assert all_of(scene) == expected


def test_must_fail_who_keeps_a_block_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_pushing, "_is_final", lambda _: False)
    scene = gone(Options(access_times=False), appends=False)
    for _ in range(3):  # and so on, for ever
        with pytest.raises(NoLongerKept):
            scene.user.run(scene.mount.flush(scene.file))


BESIDE = ("nothing", "a line behind", "bytes behind", "bytes between", "bytes in its last block")


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("pushed", [(1,), (1, 2)])
@pytest.mark.parametrize("over", [False, True])
def test_a_line_of_which_a_block_is_gone_is_not_there_at_all(
    beside: str, pushed: tuple[int, ...], over: bool
) -> None:
    """Its last bytes are dirty, or at the nodes. What else was written by offset is saved.

    `over`: a program has written into the line, so that it is to be merged on what is gone.
    """
    scene = torn(pushed, beside)
    expected = all_of(scene)
    if over:
        scene.write(scene.mount, scene.file, BLOCK_BYTES + 60, b"<over>")
    seen, size = saved_after_it_was_told(scene)
    if beside in ("nothing", "a line behind"):
        assert seen == expected
    elif beside == "bytes in its last block":
        assert seen == expected + bytes(3 * BLOCK_BYTES - 50 - len(expected)) + b"<bytes>"
    else:
        at = 2 * BLOCK_BYTES + 100
        line = b"<line>" * (beside == "bytes between")
        assert seen == expected + bytes(at - len(expected)) + b"<bytes>" + line
    assert size == len(seen)
    scene.append(scene.mount, scene.file, b"<next>")
    scene.user.run(scene.mount.flush(scene.file))
    assert all_of(scene) == seen + b"<next>"


@pytest.mark.parametrize("closes", [False, True])
def test_what_stands_before_a_lost_line_is_saved_at_once(closes: bool) -> None:
    """Nothing is left for a next time, which there is none of after the last close."""
    scene = saved_once(closes)
    contents = scene.file.contents
    assert not contents.dirty
    assert not contents.uncovered
    assert all_of(scene)[BLOCK_BYTES:] == b"<bytes>" + bytes(BLOCK_BYTES - 7) + b"x" * 40


@pytest.mark.parametrize("closes", [False, True])
def test_must_fail_a_mount_that_leaves_dirty_what_it_has_taken_back(
    monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    place = block_writing.BlockWriter._place_appends

    async def forget(writer: block_writing.BlockWriter, contents: Contents) -> frozenset[int]:
        await place(writer, contents)
        return frozenset()

    monkeypatch.setattr(block_writing.BlockWriter, "_place_appends", forget)
    scene = saved_once(closes)
    assert bool(scene.file.contents.dirty) == (not closes)
    assert b"<bytes>" not in all_of(scene)


def saved_once(closes: bool) -> Scene:
    """A mount has saved once, and found out that the last block of an appended line is gone.

    The line begins in a block with other bytes, all at the nodes. `closes`: it was the last close.
    """
    plan = CollectionPlan(600 * SECOND_US)
    scene = Scene(World(collection=plan, volume=VOLUME), "." * BLOCK_BYTES)
    options = Options(access_times=False, cache_bytes=0)
    scene.mount, scene.file = scene.opened(scene.user, scene.user.filesystem(options))
    scene.write(scene.mount, scene.file, BLOCK_BYTES, b"<bytes>")
    scene.append(scene.mount, scene.file, b"L" * (2 * BLOCK_BYTES - 7))
    scene.push()
    scene.write_elsewhere_until_collected(2 * BLOCK_BYTES)
    save = scene.mount.release if closes else scene.mount.synchronize
    with pytest.raises(NoLongerKept):
        scene.user.run(save(scene.file))
    return scene


def test_each_handle_is_told_once_that_a_line_is_gone() -> None:
    scene = torn((1, 2), "nothing")
    _, before = scene.opened(scene.user, scene.mount)
    for file in (scene.file, before):
        with pytest.raises(NoLongerKept):
            scene.user.run(scene.mount.synchronize(file))
    _, since = scene.opened(scene.user, scene.mount)
    for file in (scene.file, before, since):
        scene.user.run(scene.mount.synchronize(file))
    assert scene.mount._contents._unsaved.dirty_bytes == 0


def test_must_fail_a_mount_that_keeps_the_rest_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_the_block(contents: Contents, number: int) -> tuple[Any, Any]:
        first = number * BLOCK_BYTES
        (extent,) = contents.uncovered.pop(number).extents
        lost = (first + extent[0], first + extent[1])
        contents.appends = without(contents.appends, (lost,))
        return (), []

    monkeypatch.setattr(Contents, "lose", lose_the_block)
    seen, _ = saved_after_it_was_told(torn((1,), "nothing"))
    assert seen.endswith(b"L" * 100)


def test_must_fail_a_mount_that_does_not_write_again_what_stands_beside_a_lost_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lose = Contents.lose
    monkeypatch.setattr(Contents, "write_again", lambda *_: None)
    monkeypatch.setattr(Contents, "lose", lambda *block: (lose(*block)[0], []))
    scene = torn((1, 2), "bytes in its last block")
    scene.write(scene.mount, scene.file, BLOCK_BYTES + 60, b"<over>")
    seen, _ = saved_after_it_was_told(scene)
    assert b"L" in seen


def test_nothing_is_on_its_way_when_it_is_found_out_what_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the mount would take the file to be shorter than what it writes."""
    options = Options(access_times=False, cache_bytes=0, batch_bytes=BLOCK_BYTES)
    scene = gone(options, appends=False)
    contents, is_final, lose = scene.file.contents, block_pushing._is_final, Contents.lose
    on_its_way: list[set[int]] = []

    def watched(failure: Any) -> bool:
        on_its_way.append(set(contents.pushing))
        return is_final(failure)

    def lost(contents: Contents, number: int) -> Any:
        on_its_way.append(set(contents.pushing))
        scene.world.ways.hold(lambda *_: False)
        return lose(contents, number)

    monkeypatch.setattr(block_pushing, "_is_final", watched)
    monkeypatch.setattr(Contents, "lose", lost)
    expected = all_of(scene)
    scene.write(scene.mount, scene.file, 100, b"<over>")
    scene.write(scene.mount, scene.file, BLOCK_BYTES, b"n" * 2 * BLOCK_BYTES)
    scene.world.ways.hold(lambda *way: isinstance(way[-1], WriteRequest))
    seen, _ = saved_after_it_was_told(scene)
    assert on_its_way == [{1, 2}, set(), set()]
    assert seen == expected[:100] + b"<over>" + expected[106:] + b"n" * 2 * BLOCK_BYTES
    assert scene.mount._contents._unsaved.dirty_bytes == 0


def torn(pushed: tuple[int, ...], beside: str) -> Scene:
    """Nodes have collected the first block of an appended line, whose end is in the next block.

    `pushed`: the blocks that they were given; the others are dirty. `beside`: what the mount has
    written besides, before or behind.
    """
    plan = CollectionPlan(600 * SECOND_US)
    scene = Scene(World(collection=plan, volume=VOLUME), "." * BLOCK_BYTES)
    options = Options(access_times=False, cache_bytes=0)
    scene.mount, scene.file = scene.opened(scene.user, scene.user.filesystem(options))
    scene.append(scene.mount, scene.file, b"L" * (BLOCK_BYTES + 100))
    if beside == "a line behind":
        scene.append(scene.mount, scene.file, b"<line>")
    elif beside == "bytes in its last block":
        scene.write(scene.mount, scene.file, 3 * BLOCK_BYTES - 50, b"<bytes>")
    elif beside != "nothing":
        scene.write(scene.mount, scene.file, 2 * BLOCK_BYTES + 100, b"<bytes>")
    if beside == "bytes between":
        scene.append(scene.mount, scene.file, b"<line>")
    writer, contents = scene.mount._contents._writer, scene.file.contents
    scene.user.run(writer.push(contents, pushed))
    assert contents.uncovered.keys() == set(pushed)
    scene.write_elsewhere_until_collected(BLOCK_BYTES)
    return scene


def saved_after_it_was_told(scene: Scene) -> tuple[bytes, int]:
    """What others see, and which size the mount shows, once it has saved what it still had."""
    with pytest.raises(NoLongerKept):
        scene.user.run(scene.mount.synchronize(scene.file))
    scene.user.run(scene.mount.synchronize(scene.file))
    return all_of(scene), scene.file.contents.size


def gone(options: Options, *, appends: bool) -> Scene:
    """A whole block of a mount is at the nodes, and not covered; others have written there since.

    So nodes have collected it.
    """
    plan = CollectionPlan(600 * SECOND_US)
    scene = Scene(World(collection=plan, volume=VOLUME), "." * BLOCK_BYTES)
    scene.mount, scene.file = scene.opened(scene.user, scene.user.filesystem(options))
    scene.write(scene.mount, scene.file, None if appends else 0, b"M" * BLOCK_BYTES)
    scene.push()
    scene.write_elsewhere_until_collected(BLOCK_BYTES if appends else 0)
    return scene


# --- what can be named no more, and some nodes still have ----------------------------------------


def half_collected(keeping: tuple[int, ...], *, arrives: bool) -> tuple[Scene, FileSystem]:
    """A mount has missed the answer to its cover of a patch; others have replaced that since.

    All but some nodes have collected it, at once: so they do not say that they have, but that they
    never had it. The mount goes by no patience when it tries again.
    """
    plan = CollectionPlan(600 * SECOND_US, roomy=tuple(map(NodeId, keeping)))
    scene = Scene(World(collection=plan, volume=VOLUME), "." * 40)
    for _ in range(11):  # so that there is something to collect besides
        scene.append_elsewhere()
        scene.world.run_for(100 * SECOND_US)
    mount = scene.user.filesystem(Options(access_times=False, patch_saves_bytes=0))
    _, scene.file = scene.opened(scene.user, mount)
    scene.append(mount, scene.file, b"<mine>")
    scene.lose(Update, arrives=arrives)
    with pytest.raises(QuorumUnavailable):
        scene.user.run(mount.flush(scene.file))
    size = scene.other.attributes(scene.identifier).size
    scene.second.write(scene.theirs, 0, b"x" * size, now_ns=scene.world.now_us * 1_000)
    scene.other.run(scene.second.flush(scene.theirs))
    scene.append_elsewhere()
    pushed = scene.file.contents.uncovered[0].pushed
    block = scene.file.contents.layout.block(scene.identifier, 0, pushed.slot)
    hosting = partial(scene.world.hosting, block, pushed.timestamp)
    if not arrives:
        scene.world.run_until(lambda: hosting() == list(keeping))
    scene.user.objects.rounds.patience_total_us = None
    scene.world.ways.hold(lambda *_: False)
    return scene, mount


@pytest.mark.parametrize("keeping", [(0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("silent", [None, 0, 5])
def test_nobody_waits_for_vouchers_for_what_can_be_named_no_more(
    keeping: tuple[int, ...], arrives: bool, silent: int | None
) -> None:
    """Neither so many nodes have it that it is complete, nor so few that it is not. Readers repair
    it, and nodes do not take it again."""
    scene, mount = half_collected(keeping, arrives=arrives)
    if silent is not None:
        scene.world.nodes[silent].crash(down_us=None)
    scene.user.run(mount.flush(scene.file), within_us=60 * SECOND_US)
    seen = scene.seen(200)
    assert seen.count("<mine>") == (not arrives)
    assert seen.endswith("<other>" if arrives else "<other><mine>")


def test_must_fail_where_nodes_do_not_say_that_it_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CollectedPast, "may_be_named", lambda *_: True)
    scene, mount = half_collected((0, 1, 2), arrives=False)
    with pytest.raises(AssertionError, match="has not happened"):
        scene.user.run(mount.flush(scene.file), within_us=60 * SECOND_US)


class Belated:
    """A server that does not vouch for the first version that it is asked to vouch for, and says
    that it is too late to name that."""

    def __init__(self, honest: Any) -> None:
        self._honest = honest
        self._about: BlockTimestamp | None = None

    def step(self, *arguments: Any) -> Any:
        ready, message = self._honest.step(*arguments), arguments[2]
        if not isinstance(ready.reply, WriteReply | VouchReply):
            return ready
        timestamp = getattr(message, "versions", (message,))[0].timestamp
        self._about = self._about or timestamp
        if timestamp != self._about:
            return ready
        if isinstance(ready.reply, WriteReply):
            ready.reply = WriteReply(ready.reply.lives)
        else:
            ready.reply = VouchReply(b"", ready.reply.lives, is_late=True)
        return ready


def named_beside(liars: int) -> bool:
    """True if what a mount appends is named as it was written first, though some nodes say that it
    is too late, one is silent, and one has missed it."""
    scene = Scene(World(t=2, b=1))
    for number in range(liars):
        forge(scene.world, number, Belated)
    scene.world.nodes[liars].crash(down_us=None)
    lacking = scene.world.nodes[liars + 1].endpoint
    scene.world.ways.hold(
        lambda _source, target, _kind, message: (
            target == lacking and isinstance(message, WriteRequest)
        )
    )
    scene.append(scene.mount, scene.file, b"<mine>")
    writer = scene.mount._contents._writer
    scene.user.run(writer.push(scene.file.contents, tuple(scene.file.contents.dirty)))
    name = scene.file.contents.uncovered[0].name
    scene.world.ways.hold(lambda *_: False)
    scene.user.run(scene.mount.flush(scene.file), within_us=60 * SECOND_US)
    assert scene.seen() == "0123456789<mine>"
    return scene.file.contents.named(0) == name


def test_b_liars_do_not_make_it_late() -> None:
    assert named_beside(1)


def test_must_fail_where_more_than_b_say_so_in_vain() -> None:
    """Nothing is lost by it, nor there twice: it is written and named anew."""
    assert not named_beside(2)


@pytest.mark.parametrize("arrives", [True, False])
def test_what_more_than_b_liars_call_late_is_there_once(arrives: bool) -> None:
    scene = Scene()
    scene.append(scene.mount, scene.file, b"<mine>")
    scene.lose(Update, arrives=arrives)
    with pytest.raises(QuorumUnavailable):
        scene.user.run(scene.mount.flush(scene.file))
    scene.world.ways.flow()
    scene.append_elsewhere()
    for number in range(2):
        forge(scene.world, number, Belated)
    scene.user.run(scene.mount.flush(scene.file), within_us=60 * SECOND_US)
    assert scene.seen().count("<mine>") == 1


def test_a_cut_is_repeated_whose_block_can_be_named_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vouched, asked = ReadWriteClient.vouched, 0

    async def gone_at_first(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise VersionGone("what was shortened")
        return await vouched(*arguments)

    scene = Scene()
    monkeypatch.setattr(ReadWriteClient, "vouched", gone_at_first)
    scene.user.run(scene.mount.truncate(scene.identifier, 4, SUPERUSER))
    assert asked == 2
    assert scene.seen() == "0123"


def test_must_fail_who_writes_again_what_was_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_writing.BlockWriter, "_settle", forget)
    assert "<mine>" in replaced("line", looks=False)


def test_must_fail_who_goes_on_showing_what_was_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contents, "covered_before_others", lambda *_: None)
    assert "other" not in replaced("line", looks=True)


# --- turns ------------------------------------------------------------------------------------


def synced_in_a_second() -> list[int]:
    """How often each of two mounts has synced its own bytes of one block, for as long as it can."""
    world = World(verifying=False)
    maker = world.user("maker")
    maker.format()
    identifier = maker.make("file", "." * 1_000)
    until_us = world.agenda.now_us + SECOND_US
    synced = [0, 0]

    async def work(mount: FileSystem, index: int) -> None:
        file = await mount.open(identifier, os.O_RDWR, SUPERUSER)
        while world.agenda.now_us < until_us:
            content = b"%d of %d" % (synced[index], index)
            mount.write(file, 100 * index, content, now_ns=world.now_us * 1_000)
            await mount.synchronize(file)
            synced[index] += 1

    outcomes = []
    for index in range(2):
        user = world.user(f"user {index}")
        mount = user.filesystem(Options(access_times=False))
        outcomes.append(world.start(user.host, work(mount, index)))
    world.run_until(lambda: all(outcomes), within_us=10 * SECOND_US)
    assert outcomes == [[None], [None]]
    seen = world.user("reader").read(identifier)
    assert seen.startswith(f"{synced[0] - 1} of 0.")
    return synced


def test_writers_of_one_block_take_turns() -> None:
    """Who has written last needs fewer rounds for the next write than others, who look first."""
    synced = synced_in_a_second()
    assert min(synced) > max(synced) / 4
    assert sum(synced) > 100


def test_must_fail_writers_that_do_not_stand_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    write = TYPES.method(WRITE)
    assert write is not None
    monkeypatch.setitem(TYPES._methods, WRITE, replace(write, overtaken=0))
    synced = synced_in_a_second()
    assert min(synced) < max(synced) / 20
