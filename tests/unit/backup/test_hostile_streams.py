"""Hostile streams: nothing outside the directory is touched, and nothing of the tree is changed."""

from __future__ import annotations

import io
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.backup.stream import (
    DATA_BYTES,
    DEPTH,
    MAGIC,
    RECORD_BYTES,
    RESERVED,
    VERSION,
    BackupEnd,
    BackupHeader,
    BackupReader,
    BackupWriter,
    FileData,
    FileHole,
    FileVersion,
    GivenAttributes,
    Names,
    NewDirectory,
    NewFile,
    NewLink,
    NewNode,
    NewSymlink,
    PlacedName,
    TakenName,
)
from bftfs.crypto.digest import Digest
from bftfs.errors import UsageError
from bftfs.identifiers import ClientId
from tests.unit.backup.trees import CLUSTER, Trees, held, receive, sent

TREE = Digest(bytes(32))
CLIENT = ClientId(bytes(16))
DIRECTORY = Trees().top
FULL = BackupHeader(VERSION, CLUSTER, DIRECTORY, b"/tree", 5, False)
MORE = BackupHeader(VERSION, CLUSTER, DIRECTORY, b"/tree", 6, False, 5, TREE)
FILE = stat.S_IFREG | 0o644


def stream_of(*records: Any, header: BackupHeader = FULL, end: Any = None) -> bytes:
    """A stream whose digests are right, whatever its records are."""
    stream = io.BytesIO()
    writer = BackupWriter(stream.write)
    for record in (header, *records):
        writer.add(record)
    if end is None:
        writer.end(TREE)
    else:
        writer.add(end)
    return stream.getvalue()


def given(path: Names, mode: int, **fields: Any) -> GivenAttributes:
    attributes = GivenAttributes(path, mode, os.getuid(), os.getgid(), 0, 0)
    return msgspec.structs.replace(attributes, **fields)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody may touch, with a file in it."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "file").write_text("precious")
    os.utime(place / "file", ns=(7, 7))
    os.utime(place, ns=(7, 7))
    before = held(place)
    yield place
    assert held(place) == before


@pytest.fixture
def backup(tmp_path: Path, outside: Path) -> Path:
    """A received backup: a file, a directory, and symlinks that lead outside."""
    place = tmp_path / "backup"
    first = stream_of(
        NewDirectory((b"inner",)),
        NewFile((b"file",), 3),
        FileData(b"one"),
        NewSymlink((b"out",), os.fsencode(outside)),
        NewSymlink((b"out-file",), os.fsencode(outside / "file")),
    )
    receive(place, first)
    return place


def refused(directory: Path, stream: bytes) -> str:
    """Why a stream is refused; it has changed nothing of the tree, and is forgotten."""
    before = held(directory)
    with pytest.raises(UsageError) as refusal:
        receive(directory, stream)
    assert held(directory) == before
    return str(refusal.value)


# --- names ------------------------------------------------------------------------------------

WRONG_NAMES: list[Names] = [
    (b"..",),
    (b".",),
    (b"inner", b"..", b"..", b"outside", b"evil"),
    (b"/etc", b"evil"),
    (b"inner/evil",),
    (b"../outside/evil",),
    (b"a\0b",),
    (b"",),
    (b"x" * (limits.NAME_BYTES + 1),),
    (b"x",) * (DEPTH + 1),
    (RESERVED, b"state"),
    (RESERVED,),
]

MAKERS: list[Callable[[Names], list[Any]]] = [
    lambda path: [NewDirectory(path)],
    lambda path: [NewFile(path, 0)],
    lambda path: [NewSymlink(path, b"x")],
    lambda path: [NewNode(path, stat.S_IFIFO, 0)],
    lambda path: [NewLink((b"file",), path)],
    lambda path: [NewLink(path, (b"new",))],
    lambda path: [given(path, FILE)],
    lambda path: [TakenName(path, 0)],
    lambda path: [TakenName((b"file",), 0), PlacedName(0, path)],
    lambda path: [FileVersion(path, 1, CLIENT, FILE, 0)],
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("path", WRONG_NAMES, ids=lambda path: str(path)[:24])
def test_no_path_leads_elsewhere(backup: Path, path: Names, make: Any) -> None:
    why = refused(backup, stream_of(*make(path), header=MORE))
    assert "of the backup" in why or "the backup " in why


@pytest.mark.parametrize("path", [(b"out", b"evil"), (b"out", b"file"), (b"file", b"evil")])
@pytest.mark.parametrize("make", MAKERS[:-1])
def test_nothing_is_reached_through_a_symlink_or_a_file(
    backup: Path, path: Names, make: Any
) -> None:
    stream = stream_of(*make(path), header=MORE)
    with pytest.raises(UsageError, match="is not what was received, or in the way"):
        receive(backup, stream)


@pytest.mark.parametrize(
    ("path", "mode"), [((b"out",), stat.S_IFDIR | 0o777), ((b"out-file",), FILE)]
)
def test_the_attributes_of_a_symlinks_target_stay(
    backup: Path, outside: Path, path: Names, mode: int
) -> None:
    extended = ((b"user.evil", b"evil"),)
    with pytest.raises(UsageError, match="is not what was received"):
        receive(backup, stream_of(given(path, mode, extended=extended), header=MORE))
    place = backup.with_name("second")
    link = given((b"x",), stat.S_IFLNK | 0o777, mtime_ns=1234, extended=extended)
    receive(place, stream_of(NewSymlink((b"x",), os.fsencode(outside / "file")), link))
    assert (place / "x").lstat().st_mtime_ns == 1234


def test_a_symlink_that_the_stream_itself_makes_is_not_followed(
    tmp_path: Path, outside: Path
) -> None:
    link = NewSymlink((b"a",), os.fsencode(outside))
    for number, evil in enumerate(
        (
            [NewFile((b"a", b"evil"), 4), FileData(b"evil")],
            [NewFile((b"a",), 4), FileData(b"evil")],
            [NewDirectory((b"a",))],
            [NewDirectory((b"a", b"evil"))],
        )
    ):
        with pytest.raises(UsageError, match="in the way"):
            receive(tmp_path / str(number), stream_of(link, *evil))
    receive(tmp_path / "versions", stream_of(link, FileVersion((b"a", b"b"), 1, CLIENT, FILE, 0)))
    assert (tmp_path / "versions" / "a").is_symlink()


@pytest.mark.parametrize(
    "evil", [NewDirectory((b"inner", b"evil")), TakenName((b"inner", b"file"), 0)]
)
def test_a_symlink_that_somebody_else_has_put_there_is_not_followed(
    backup: Path, outside: Path, evil: Any
) -> None:
    (backup / "inner").rmdir()
    (backup / "inner").symlink_to(outside)
    with pytest.raises(UsageError, match="is not what was received"):
        receive(backup, stream_of(evil, header=MORE))


def test_a_link_of_a_directory_is_refused(backup: Path) -> None:
    with pytest.raises(UsageError, match="is not what was received"):
        receive(backup, stream_of(NewLink((b"inner",), (b"other",)), header=MORE))


@pytest.mark.parametrize(
    "evil",
    [
        [NewFile((b"file",), 0)],
        [TakenName((b"file",), 0), PlacedName(0, (b"inner",))],
        [NewSymlink((b"file",), b"x")],
        [NewLink((b"out",), (b"file",))],
    ],
)
def test_what_is_in_the_way_is_not_replaced(backup: Path, evil: list[Any]) -> None:
    with pytest.raises(UsageError, match="in the way"):
        receive(backup, stream_of(*evil, header=MORE))
    assert (backup / "inner").is_dir()
    assert not (backup / "file").exists() or (backup / "file").read_text() == "one"


# --- order, numbers and sizes -------------------------------------------------------------------

TAKEN = TakenName((b"file",), 0)
WRONG_ORDER: list[list[Any]] = [
    [NewDirectory((b"a",)), TAKEN],
    [NewLink((b"file",), (b"b",)), NewDirectory((b"a",))],
    [given((b"file",), FILE), NewLink((b"file",), (b"b",))],
    [FileVersion((b"file",), 1, CLIENT, FILE, 0), given((b"file",), FILE)],
    [MORE],
    [FileData(b"x")],
    [FileHole(1)],
    [NewFile((b"a",), 3), FileData(b"four")],
    [NewFile((b"a",), 3), FileHole(4)],
    [NewFile((b"a",), 3), FileData(b"on"), NewDirectory((b"b",))],
    [NewFile((b"a",), 3)],
    [NewFile((b"a",), 0), FileData(b"x")],
    [NewFile((b"a",), -1)],
    [NewFile((b"a",), limits.FILE_BYTES + 1)],
    [NewFile((b"a",), 3), FileData(b"")],
    [NewFile((b"a",), 3), FileHole(0), FileData(b"one")],
    [TakenName((b"file",), 1)],
    [TAKEN, TAKEN],
    [PlacedName(0, (b"a",))],
    [TAKEN, PlacedName(0, (b"a",)), PlacedName(0, (b"b",))],
    [TAKEN, PlacedName(1, (b"a",))],
    [TakenName((), 0)],
    [NewFile((b"a",), 1 << 22), FileData(bytes(DATA_BYTES + 1))],
    [NewSymlink((b"a",), b"x" * 5000)],
    [given((b"file",), 1 << 20)],
    [given((b"file",), FILE, uid=-1)],
    [given((b"file",), FILE, extended=((b"user.x" * 50, b""),))],
    [given((b"file",), FILE, extended=((b"user.x", b""),) * (limits.XATTRS + 1))],
]


@pytest.mark.parametrize("records", WRONG_ORDER, ids=lambda records: str(records)[:40])
def test_the_reader_refuses_what_cannot_be(backup: Path, records: list[Any]) -> None:
    why = refused(backup, stream_of(*records, header=MORE))
    assert "the backup" in why


def test_a_whole_backup_takes_nothing_away(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes away what there is not"):
        receive(tmp_path / "new", stream_of(TAKEN))


def test_special_files_are_such(tmp_path: Path) -> None:
    for mode in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, 0):
        with pytest.raises(UsageError, match="a NewNode in the backup is none"):
            receive(tmp_path / str(mode), stream_of(NewNode((b"a",), mode | 0o644, 0)))


FARTHEST = 9_200_000_000_000_000


def test_extremes_are_refused_or_received(tmp_path: Path) -> None:
    """None ends in a traceback."""
    place = tmp_path / "b"
    header = msgspec.structs.replace(FULL, at_us=FARTHEST, path=b"\xff" * 4096)
    path = (b"a",)
    receive(
        place,
        stream_of(
            NewFile(path, 1 << 40),
            FileHole(1 << 40),
            NewNode((b"d",), stat.S_IFCHR | 0o644, (1 << 63) - 1),
            NewLink((b"d",), (b"e",)),
            given((b"e",), stat.S_IFCHR | 0o644),
            given(path, FILE, atime_ns=-(1 << 63), mtime_ns=(1 << 63) - 1, uid=(1 << 32) - 1),
            FileVersion(path, FARTHEST, CLIENT, 0o177777, 0),
            header=header,
        ),
    )
    assert (place / "a").stat().st_size == 1 << 40
    with pytest.raises(UsageError, match="send an increment to it"):
        receive(place, stream_of(header=FULL))
    for wrong in (
        NewSymlink(path, b"a\0b"),
        given(path, FILE, extended=((b"user.a\0b", b""),)),
        FileVersion(path, FARTHEST + 1, CLIENT, FILE, 0),
        NewNode(path, stat.S_IFCHR, 1 << 63),
    ):
        with pytest.raises(UsageError, match=r"(of|in) the backup"):
            receive(tmp_path / "other", stream_of(wrong))


def test_the_end_is_the_end(backup: Path) -> None:
    good = stream_of(header=MORE)
    assert "goes on behind" in refused(backup, good + b"x")
    wrong = BackupEnd(TREE, 7)
    assert "records are missing" in refused(backup, stream_of(header=MORE, end=wrong))
    second = stream_of(BackupEnd(TREE, 1), NewDirectory((b"a",)), header=MORE)
    assert "goes on behind" in refused(backup, second)


# --- bytes --------------------------------------------------------------------------------------


def test_what_was_cut_off_is_noticed_wherever_it_was(backup: Path) -> None:
    whole = stream_of(TAKEN, NewFile((b"new",), 5), FileData(b"hello"), header=MORE)
    for length in range(len(whole)):
        assert "ends too early" in refused(backup, whole[:length])
    receive(backup, whole)
    assert (backup / "new").read_text() == "hello"


def test_what_was_altered_is_noticed_wherever_it_was(backup: Path) -> None:
    whole = stream_of(TAKEN, NewFile((b"new",), 5), FileData(b"hello"), header=MORE)
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 1 << place % 8
        refused(backup, bytes(altered))


def test_no_memory_is_taken_for_what_is_only_announced(backup: Path) -> None:
    asked = []

    def read(count: int) -> bytes:
        asked.append(count)
        return stream.read(count)

    for length in (0, RECORD_BYTES + 1, 0xFFFFFFFF):
        stream = io.BytesIO(MAGIC + length.to_bytes(4, "big") + bytes(100))
        with pytest.raises(UsageError, match="which none has"):
            BackupReader(read)
    assert max(asked) <= len(MAGIC)


def test_other_formats_are_named(backup: Path) -> None:
    for stream in (b"", b"x", b"PK\3\4" + bytes(100), MAGIC):
        refused(backup, stream)
    later = msgspec.structs.replace(MORE, version=2)
    assert "receive it with the release" in refused(backup, stream_of(header=later))
    assert "header is wrong" in refused(
        backup, stream_of(header=msgspec.structs.replace(MORE, base=b"x"))
    )
    assert "begin with its header" in refused(backup, stream_of(header=TAKEN))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_random_streams_are_refused_or_stay_inside(
    tmp_path: Path, outside: Path, seed: int
) -> None:
    """Right and wrong records in random order, with right digests, and what that leaves."""
    draw = random.Random(seed)
    names = [b"a", b"b", b"out", b"inner", b"file", b"..", RESERVED, b"x/y"]

    def path() -> Names:
        return tuple(draw.choices(names[: draw.choice((5, 5, 8))], k=draw.randrange(1, 4)))

    def record(stage: int) -> list[Any]:
        return draw.choice(
            (
                [lambda: [TakenName(path(), draw.randrange(2))]],
                [
                    lambda: [NewDirectory(path())],
                    lambda: [NewFile(path(), 4), FileData(b"evil")],
                    lambda: [NewSymlink(path(), os.fsencode(outside))],
                    lambda: [PlacedName(draw.randrange(2), path())],
                ],
                [lambda: [NewLink(path(), path())]],
                [lambda: [given(path(), draw.choice((FILE, stat.S_IFDIR | 0o777)))]],
                [lambda: [FileVersion(path(), 1, CLIENT, FILE, 4), FileData(b"evil")]],
            )[stage]
        )()

    accepted = 0
    for number in range(25):
        place = tmp_path / str(number)
        receive(
            place,
            stream_of(
                NewDirectory((b"inner",)),
                NewFile((b"file",), 3),
                FileData(b"one"),
                NewSymlink((b"out",), os.fsencode(outside)),
            ),
        )
        stages = sorted(draw.choices(range(5), k=draw.randrange(1, 6)))
        records = [each for stage in stages for each in record(stage)]
        try:
            receive(place, stream_of(*records, header=MORE))
            accepted += 1
        except UsageError:
            pass
    assert accepted, "some are harmless"


def test_what_a_backup_is_of_is_printed_as_text(tmp_path: Path) -> None:
    """A header's path is for people: it forges no line."""
    trees = Trees()
    place = tmp_path / "b"
    receive(place, sent(trees, trees.mark()))
    header = msgspec.structs.replace(FULL, path=b"x\n\x1b[2J", directory=DIRECTORY)
    assert "\x1b" not in refused(place, stream_of(header=header))
