"""A tree that is sent and received is the same tree; increments compose, and can be repeated."""

from __future__ import annotations

import errno
import io
import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bftfs.backup.receiving import Receiving
from bftfs.errors import UsageError
from tests.unit.backup.trees import GID, UID, Trees, expected, held, receive, sent

SEEDS = range(12)


def grown(
    seed: int, *, times: int = 3, changes: int = 14, owner: tuple[int, int] = (UID, GID)
) -> tuple[Trees, list[int]]:
    """A tree, and the times between its changes."""
    draw = random.Random(seed)
    trees = Trees(owner)
    marks = []
    for _ in range(times):
        for _ in range(changes):
            trees.change_something(draw)
        marks.append(trees.mark())
    return trees, marks


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tree_is_received_as_it_was_sent(tmp_path: Path, seed: int) -> None:
    trees, marks = grown(seed)
    for number, mark in enumerate(marks):
        receive(tmp_path / str(number), sent(trees, mark))
        assert held(tmp_path / str(number)) == expected(trees.marks[mark], trees.top)


@pytest.mark.parametrize("seed", SEEDS)
def test_increments_compose(tmp_path: Path, seed: int) -> None:
    trees, marks = grown(seed)
    backup = tmp_path / "backup"
    before: int | None = None
    for mark in marks:
        receive(backup, sent(trees, mark, before))
        assert held(backup) == expected(trees.marks[mark], trees.top)
        before = mark
    whole = tmp_path / "at-once"
    receive(whole, sent(trees, marks[0]))
    receive(whole, sent(trees, marks[-1], marks[0]))
    assert held(whole) == held(backup)
    assert os.listdir(whole / ".bftfs-backup") == ["state"]


@contextmanager
def ordinary_user(place: Path) -> Iterator[tuple[int, int]]:
    """In this block, the test is not root, and `place` is its own."""
    if os.geteuid():
        yield os.geteuid(), os.getegid()
        return
    user = 1000, 1000
    os.chown(place, *user)
    for above in place.parents[:3]:
        above.chmod(above.stat().st_mode | 0o011)
    os.setegid(user[1])
    os.seteuid(user[0])
    try:
        yield user
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_ordinary_user_receives_what_is_read_only(tmp_path: Path, seed: int) -> None:
    """Directories in which their owner may not work are no obstacle, and stay so."""
    with ordinary_user(tmp_path) as user:
        trees, marks = grown(seed, changes=20, owner=user)
        before: int | None = None
        for mark in marks:
            counts = receive(tmp_path / "b", sent(trees, mark, before)).counts
            before = mark
            assert not counts.refused, counts.first_refused
    assert held(tmp_path / "b") == expected(trees.marks[marks[-1]], trees.top)


def test_what_an_ordinary_user_may_not_set_is_counted(tmp_path: Path) -> None:
    trees = Trees((12345, 12345))
    device = trees.make(trees.top, b"device", stat.S_IFCHR | 0o600)
    trees.change(device, device=os.makedev(1, 3))
    file = trees.make(trees.top, b"file", stat.S_IFREG | 0o640, b"x")
    trees.things[file].extended = {b"trusted.k": b"v"}
    mark = trees.mark()
    with ordinary_user(tmp_path):
        counts = receive(tmp_path / "b", sent(trees, mark)).counts
    assert counts.refused == 4, "a device, two owners, an attribute"
    assert "the device of device: Operation not permitted" in counts.first_refused
    assert sorted(os.listdir(tmp_path / "b")) == [".bftfs-backup", "file"]
    assert (tmp_path / "b" / "file").stat().st_mode == stat.S_IFREG | 0o640


@pytest.mark.parametrize("is_mine", [False, True])
def test_no_program_is_received_that_runs_as_its_receiver(tmp_path: Path, is_mine: bool) -> None:
    """By an ordinary user, to whom its owner cannot be given. Directories pass their group on."""
    with ordinary_user(tmp_path) as user:
        trees = Trees(user if is_mine else (0, 0))
        trees.make(trees.top, b"shell", stat.S_IFREG | 0o6755, b"#!")
        trees.make(trees.top, b"shared", stat.S_IFDIR | 0o2755)
        counts = receive(tmp_path / "b", sent(trees, trees.mark())).counts
    assert stat.S_IMODE((tmp_path / "b" / "shell").stat().st_mode) == 0o755
    assert (tmp_path / "b" / "shared").stat().st_mode & stat.S_ISGID or not is_mine
    assert counts.refused == (1 if is_mine else 4), "set-id bits, and three owners"


def test_set_id_bits_are_not_given_where_the_owner_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system whose server takes root for nobody."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    trees = Trees((12345, 12345))
    trees.make(trees.top, b"shell", stat.S_IFREG | 0o4755, b"#!")
    stream = sent(trees, trees.mark())
    monkeypatch.setattr(os, "chown", refuse)
    receive(tmp_path / "b", stream)
    assert stat.S_IMODE((tmp_path / "b" / "shell").stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_plans_of_another_user_are_not_carried_out(tmp_path: Path) -> None:
    trees = Trees()
    stream = sent(trees, trees.mark())
    (tmp_path / "b" / ".bftfs-backup").mkdir(parents=True)
    os.chown(tmp_path / "b" / ".bftfs-backup", 1000, 1000)
    with pytest.raises(UsageError, match="belongs to another user"):
        receive(tmp_path / "b", stream)


def test_an_increment_tells_only_what_has_changed(tmp_path: Path) -> None:
    trees = Trees()
    directory = trees.make(trees.top, b"many", stat.S_IFDIR | 0o755)
    for number in range(200):
        trees.make(directory, b"%d" % number, stat.S_IFREG | 0o644, b"x" * 1000)
    one = trees.mark()
    trees.put(trees.top, b"many", None)
    trees.put(trees.top, b"moved", directory)
    other = trees.mark()
    whole, increment = sent(trees, one), sent(trees, other, one)
    assert len(whole) > 200_000
    assert len(increment) < 1000
    receive(tmp_path / "b", whole)
    number = (tmp_path / "b" / "many" / "7").stat().st_ino
    receive(tmp_path / "b", increment)
    assert (tmp_path / "b" / "moved" / "7").stat().st_ino == number
    assert not (tmp_path / "b" / "many").exists()


def test_holes_stay_holes(tmp_path: Path) -> None:
    trees = Trees()
    contents = bytes(3 << 20) + b"x" + bytes(5 << 20)
    trees.make(trees.top, b"sparse", stat.S_IFREG | 0o644, contents)
    stream = sent(trees, trees.mark())
    assert len(stream) < 100_000
    receive(tmp_path / "b", stream)
    file = tmp_path / "b" / "sparse"
    assert file.read_bytes() == contents
    assert file.stat().st_blocks * 512 < 1 << 20


# --- bases ------------------------------------------------------------------------------------


def refusal(directory: Path, stream: bytes) -> str:
    """Why a stream is not received; nothing has changed then."""
    before = held(directory) if directory.exists() else None
    with pytest.raises(UsageError) as refused:
        receive(directory, stream)
    assert (held(directory) if directory.exists() else None) == before
    return str(refused.value)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    trees, (one, two, three) = grown(1)
    backup = tmp_path / "backup"
    assert "holds no backup, and this is an increment" in refusal(backup, sent(trees, two, one))
    assert not backup.exists(), "it leaves nothing behind"
    receive(backup, sent(trees, one))
    assert "send one with --from" in refusal(backup, sent(trees, three, two))
    assert "send an increment to it" in refusal(backup, sent(trees, two))
    other = trees.make(trees.top, b"other", stat.S_IFDIR | 0o755)
    assert "another directory" in refusal(backup, sent(trees, trees.mark(), top=other))
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    assert "not empty" in refusal(full, sent(trees, one))
    assert os.listdir(full) == ["file"]
    (tmp_path / "a-file").touch()
    with pytest.raises(UsageError, match="not a directory"):
        receive(tmp_path / "a-file", sent(trees, one))
    with pytest.raises(UsageError, match="there is no"):
        receive(tmp_path / "not" / "there", sent(trees, one))


def test_what_was_added_to_the_past_is_noticed(tmp_path: Path) -> None:
    """By a client whose clock was behind, after that time was sent."""
    trees, (one, two, _) = grown(3)
    backup = tmp_path / "backup"
    receive(backup, sent(trees, one))
    late = trees.marks[one][trees.top]
    late.entries[b"late"] = trees.make(trees.top, b"late", stat.S_IFREG | 0o600, b"late")
    trees.marks[one][late.entries[b"late"]] = trees.things[late.entries[b"late"]]
    assert "a client whose clock was behind" in refusal(backup, sent(trees, two, one))
    assert "a client whose clock was behind" in refusal(backup, sent(trees, one))


def test_to_receive_it_again_changes_nothing(tmp_path: Path) -> None:
    trees, (one, two, _) = grown(4)
    backup = tmp_path / "backup"
    for stream in (sent(trees, one), sent(trees, one), sent(trees, two, one)):
        receive(backup, stream)
    before = held(backup)
    again = receive(backup, sent(trees, two, one))
    assert held(backup) == before
    assert again.counts.files == 0


def test_a_tree_that_somebody_has_changed_is_not_changed_further(tmp_path: Path) -> None:
    trees = Trees()
    inner = trees.make(trees.top, b"inner", stat.S_IFDIR | 0o755)
    file = trees.make(inner, b"file", stat.S_IFREG | 0o644, b"one")
    one = trees.mark()
    trees.put(inner, b"file", None)
    trees.put(trees.top, b"moved", file)
    two = trees.mark()
    backup = tmp_path / "backup"
    receive(backup, sent(trees, one))
    (backup / "inner" / "file").rename(backup / "elsewhere")
    with pytest.raises(UsageError, match="is not what was received, or in the way"):
        receive(backup, sent(trees, two, one))
    (backup / "elsewhere").rename(backup / "inner" / "file")
    receive(backup, sent(trees, two, one))
    assert held(backup) == expected(trees.marks[two], trees.top)


def test_two_receivers_do_not_work_at_the_same_time(tmp_path: Path) -> None:
    trees, (one, *_) = grown(5)
    backup = tmp_path / "backup"
    stream = io.BytesIO(sent(trees, one))
    refusals = []

    def read(count: int) -> bytes:
        if (backup / ".bftfs-backup").exists():
            with pytest.raises(UsageError) as refused:
                receive(backup, sent(trees, one))
            refusals.append(str(refused.value))
        return stream.read(count)

    Receiving(backup).receive(read)
    assert refusals
    assert all("another `bftfs receive` is at work" in each for each in refusals)
    assert held(backup) == expected(trees.marks[one], trees.top)


# --- interruptions ----------------------------------------------------------------------------


class Ended(BaseException):
    """The program is ended here."""


CHANGING = (
    "rename", "replace", "mkdir", "rmdir", "link", "symlink", "mknod", "chmod", "utime", "write",
    "unlink",
)  # fmt: skip


@pytest.mark.parametrize(("seed", "is_killed"), [(100, True), (101, True), (102, False)])
def test_an_interrupted_receive_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, is_killed: bool
) -> None:
    """Ended before each of its changes of the disk in turn, and received again.

    Who is killed changes nothing any more; who is only interrupted may clear up.
    """
    trees, (one, two, *_) = grown(seed, times=2, changes=10)
    streams = sent(trees, one), sent(trees, two, one)
    wanted = [expected(trees.marks[mark], trees.top) for mark in (one, two)]
    free = 1 << 60
    left = free

    def count(name: str) -> None:
        original = getattr(os, name)

        def change(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0 or (left < 0 and is_killed):
                raise Ended
            return original(*arguments, **options)

        monkeypatch.setattr(os, name, change)

    for name in CHANGING:
        count(name)
    for which, stream in enumerate(streams):
        for end in range(1, 400):
            backup = tmp_path / f"{which}-{end}"
            if which:
                receive(backup, streams[0])
            left = end
            try:
                receive(backup, stream)
            except Ended:
                left = free
                receive(backup, stream)
                assert held(backup) == wanted[which]
                continue
            left = free
            assert held(backup) == wanted[which]
            break
        else:
            raise AssertionError("it never came to its end")
        assert end > 20
