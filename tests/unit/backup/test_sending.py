"""What cannot be sent is named, and nothing is left out silently."""

from __future__ import annotations

import errno
import io
import stat
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.backup.sending import BackupSource, Sending
from bftfs.backup.stream import DEPTH, BackupReader, FileData, FileVersion
from bftfs.errors import FileSystemError, NoLongerKept, UsageError, VersionUnrecoverable
from bftfs.filesystem.registry import CREATE, TRUNCATE, WRITE
from bftfs.identifiers import ClientId, ObjectId
from tests.unit.backup.trees import CLUSTER, Trees, run, sent

FILE = stat.S_IFREG | 0o644


@dataclass
class Failing:
    """The same trees, of which one object cannot be read."""

    trees: Trees
    failing: ObjectId
    error: Exception
    who = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.trees, name)
        if name in ("contents", "reading", "entries", "link_target"):

            async def fails(identifier: ObjectId, time_us: int) -> Any:
                if identifier == self.failing:
                    raise self.error
                return await method(identifier, time_us)

            return fails
        return method


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (FileSystemError(errno.EACCES), "/mnt/tree/d/f: you may not read it; run this as root"),
        (FileSystemError(errno.EIO), "/mnt/tree/d/f: it cannot be read; `bftfs inspect` shows why"),
        (NoLongerKept(subject="block", at_us=5), "/mnt/tree/d/f: what it was at that time is no"),
        (FileSystemError(errno.EUCLEAN), "/mnt/tree/d/f: Structure needs cleaning"),
    ],
)
@pytest.mark.parametrize("size", [10, 300_000])
def test_what_cannot_be_read_is_named(error: Exception, why: str, size: int) -> None:
    trees = Trees()
    directory = trees.make(trees.top, b"d", stat.S_IFDIR | 0o755)
    file = trees.make(directory, b"f", FILE, b"x" * size)
    mark = trees.mark()
    with pytest.raises(UsageError) as refused:
        sent(Failing(trees, file, error), mark, top=trees.top)
    assert str(refused.value).startswith(why)


def test_a_name_of_which_nothing_is_left_is_named() -> None:
    trees = Trees()
    file = trees.make(trees.top, b"lost", FILE)
    mark = trees.mark()
    del trees.marks[mark][file]
    with pytest.raises(UsageError, match="/mnt/tree/lost: nothing is left of what this name"):
        sent(trees, mark)


def test_what_was_not_there_yet_is_no_base() -> None:
    trees = Trees()
    trees.make(trees.top, b"d", stat.S_IFDIR | 0o755)
    before = trees.mark()
    later = trees.make(trees.top, b"later", stat.S_IFDIR | 0o755)
    with pytest.raises(UsageError, match="it was not there at that time"):
        sent(trees, trees.mark(), before, top=later)


def test_paths_that_are_too_long_for_a_receiver_are_named() -> None:
    trees = Trees()
    directory = trees.top
    for _ in range(DEPTH + 1):
        directory = trees.make(directory, b"d", stat.S_IFDIR | 0o755)
    with pytest.raises(UsageError, match="directories in more than 1024 others"):
        sent(trees, trees.mark())


# --- versions -----------------------------------------------------------------------------------


class WithHistory(Trees):
    """A tree with one file, whose contents were replaced; some of what it was is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.file = self.make(self.top, b"file", FILE)
        self.log: list[Any] = []
        self.gone: set[int] = set()
        self._note(CREATE)

    def _note(self, method: str) -> int:
        mark = self.mark()
        attributes = self.things[self.file].attributes
        change = SimpleNamespace(
            time_us=mark,
            operation=SimpleNamespace(method=method),
            attributes=attributes,
            client=ClientId(bytes(16)),
        )
        self.log.insert(0, change)
        return mark

    def save(self, contents: bytes) -> int:
        """As programs do it: first the file is made empty."""
        self.write(self.file, b"")
        self._note(TRUNCATE)
        self.write(self.file, contents)
        return self._note(WRITE)

    async def changes(self, identifier: ObjectId) -> list[Any]:
        return self.log if identifier == self.file else []

    async def reading(self, identifier: ObjectId, time_us: int) -> Any:
        if time_us in self.gone:
            raise NoLongerKept(subject="file", at_us=time_us)
        return await super().reading(identifier, time_us)


def versions(trees: WithHistory, at_us: int, from_us: int | None = None) -> tuple[list[bytes], int]:
    """The contents of the versions that a backup has; and how many are lost."""
    stream = io.BytesIO()
    source = BackupSource(CLUSTER, trees.top, "/mnt/tree", at_us, from_us, history=True)
    sending = Sending(trees, source, stream.write)  # type: ignore[arg-type]
    run(sending.send())
    stream.seek(0)
    found: list[bytes] = []
    is_version = False
    for record in BackupReader(stream.read).records():
        if isinstance(record, FileVersion):
            is_version = True
            found.append(b"")
        elif isinstance(record, FileData) and is_version:
            found[-1] += record.data
    return found, sending.lost_versions


def test_each_version_is_sent_by_the_backup_that_finds_it_replaced() -> None:
    trees = WithHistory()
    marks = [trees.save(b"%d" % number) for number in range(5)]
    assert versions(trees, marks[4]) == ([b"0", b"1", b"2", b"3"], 0)
    assert versions(trees, marks[0]) == ([], 0)
    assert versions(trees, marks[2]) == ([b"0", b"1"], 0)
    assert versions(trees, marks[4], marks[2]) == ([b"2", b"3"], 0)
    trees.gone.add(marks[1])
    assert versions(trees, marks[4]) == ([b"0", b"2", b"3"], 1)


def test_a_version_that_cannot_be_read_is_named() -> None:
    trees = WithHistory()
    marks = [trees.save(b"%d" % number) for number in range(2)]
    failing = Failing(trees, trees.file, VersionUnrecoverable("block"))
    source = BackupSource(CLUSTER, trees.top, "/mnt/tree", *reversed(marks), history=True)
    trees.marks[marks[0]] = trees.marks[marks[1]]  # nothing has to be read but a version
    with pytest.raises(UsageError, match="/mnt/tree/file: it cannot be read"):
        run(Sending(failing, source, io.BytesIO().write).send())  # type: ignore[arg-type]
