"""Random operations on names, against a model of dictionaries.

Every operation, also one that must fail, is done to both; the error numbers must agree, and at the
end, and now and then before, the whole tree. A failure names its seed, which repeats it.
"""

import errno
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.end_to_end import linux

OPERATIONS = 350
NAMES = ["a", "b", "c", "d", "eeee", "ünï"]


@dataclass(eq=False)
class File:
    contents: bytes = b""
    links: int = 1


@dataclass(eq=False)
class Symlink:
    target: str


@dataclass(eq=False)
class Directory:
    entries: dict[str, "Entry"] = field(default_factory=dict)

    def contains(self, other: "Entry") -> bool:
        return self is other or any(
            isinstance(entry, Directory) and entry.contains(other)
            for entry in self.entries.values()
        )


Entry = File | Symlink | Directory
Way = tuple[str, ...]


class Refused(Exception):
    """The model's answer to what must fail; any of these numbers is right."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(*numbers)
        self.numbers = numbers


class Model:
    """What the tree must be; never follows symlinks, because the test does not."""

    def __init__(self) -> None:
        self.root = Directory()

    def parent(self, way: Way) -> Directory:
        here: Entry = self.root
        for name in way[:-1]:
            if not isinstance(here, Directory):
                raise Refused(errno.ENOTDIR)
            if name not in here.entries:
                raise Refused(errno.ENOENT)
            here = here.entries[name]
        if not isinstance(here, Directory):
            raise Refused(errno.ENOTDIR)
        return here

    def find(self, way: Way) -> Entry:
        entries = self.parent(way).entries
        if way[-1] not in entries:
            raise Refused(errno.ENOENT)
        return entries[way[-1]]

    def add(self, way: Way, entry: Entry) -> None:
        entries = self.parent(way).entries
        if way[-1] in entries:
            raise Refused(errno.EEXIST)
        entries[way[-1]] = entry

    def write(self, way: Way, contents: bytes) -> None:
        entries = self.parent(way).entries
        match entries.get(way[-1]):
            case None:
                entries[way[-1]] = File(contents)
            case File() as file:
                file.contents = contents
            case Directory():
                raise Refused(errno.EISDIR)
            case Symlink():
                raise Refused(errno.ELOOP)

    def link(self, source: Way, target: Way) -> None:
        file = self.find(source)
        entries = self.parent(target).entries
        if target[-1] in entries:
            raise Refused(errno.EEXIST, *([errno.EPERM] if isinstance(file, Directory) else []))
        if isinstance(file, Directory):
            raise Refused(errno.EPERM)
        entries[target[-1]] = file
        if isinstance(file, File):
            file.links += 1

    def unlink(self, way: Way) -> None:
        if isinstance(self.find(way), Directory):
            raise Refused(errno.EISDIR)
        self._drop(self.parent(way).entries.pop(way[-1]))

    def rmdir(self, way: Way) -> None:
        entry = self.find(way)
        if not isinstance(entry, Directory):
            raise Refused(errno.ENOTDIR)
        if entry.entries:
            raise Refused(errno.ENOTEMPTY, errno.EEXIST)
        del self.parent(way).entries[way[-1]]

    def rename(self, source: Way, target: Way, flags: int) -> None:
        # Both parents are looked up before either name is.
        origin, goal = self.parent(source), self.parent(target)
        moving = self.find(source)
        replaced = goal.entries.get(target[-1])
        if flags == linux.RENAME_NOREPLACE and replaced is not None:
            raise Refused(errno.EEXIST)
        if flags == linux.RENAME_EXCHANGE and replaced is None:
            raise Refused(errno.ENOENT)
        if isinstance(moving, Directory) and moving.contains(goal):
            raise Refused(errno.EINVAL)
        if isinstance(replaced, Directory) and replaced.contains(origin):
            if flags == linux.RENAME_EXCHANGE:
                raise Refused(errno.EINVAL)
            raise Refused(errno.ENOTEMPTY, errno.EEXIST)
        if moving is replaced:
            return
        if flags == linux.RENAME_EXCHANGE:
            assert replaced is not None
            origin.entries[source[-1]], goal.entries[target[-1]] = replaced, moving
            return
        match moving, replaced:
            case Directory(), Directory() if replaced.entries:
                raise Refused(errno.ENOTEMPTY, errno.EEXIST)
            case Directory(), File() | Symlink():
                raise Refused(errno.ENOTDIR)
            case File() | Symlink(), Directory():
                raise Refused(errno.EISDIR)
        del origin.entries[source[-1]]
        if replaced is not None:
            self._drop(replaced)
        goal.entries[target[-1]] = moving

    @staticmethod
    def _drop(entry: Entry) -> None:
        if isinstance(entry, File):
            entry.links -= 1


def _write(path: Path, contents: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    try:
        os.write(descriptor, contents)
    finally:
        os.close(descriptor)


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


class Exerciser:
    """The model and the directory, side by side."""

    def __init__(self, top: Path, seed: int) -> None:
        self._top = top
        self._choice = random.Random(seed)
        self._model = Model()
        self._log: list[str] = []

    def run(self, operations: int) -> None:
        acts: dict[Callable[[], None], int] = {
            self._do_create: 14,
            self._do_write: 14,
            self._do_mkdir: 16,
            self._do_symlink: 6,
            self._do_link: 10,
            self._do_unlink: 8,
            self._do_rmdir: 6,
            self._do_rename: 26,
        }
        chosen = self._choice.choices(list(acts), weights=list(acts.values()), k=operations)
        for number, act in enumerate(chosen):
            act()
            if number % 100 == 99:
                self._compare(self._top, self._model.root)
        self._compare(self._top, self._model.root)

    def _way(self) -> Way:
        """A path of up to four names; mostly one whose parent exists."""
        here: Entry = self._model.root
        way: list[str] = []
        while len(way) < 3 and self._choice.random() < 0.6:
            entries = here.entries if isinstance(here, Directory) else {}
            folders = [name for name in entries if isinstance(entries[name], Directory)]
            if folders and self._choice.random() < 0.9:
                way.append(self._choice.choice(folders))
            elif self._choice.random() < 0.2:
                way.append(self._choice.choice(NAMES))
            else:
                break
            here = entries.get(way[-1], File())
            if isinstance(here, Symlink):
                # The kernel would follow it; the model would not.
                way.pop()
                break
        return (*way, self._choice.choice(NAMES))

    def _both(self, what: str, real: Callable[[], object], model: Callable[[], object]) -> None:
        self._log.append(f"{len(self._log)}: {what}")
        expected: tuple[int, ...] = (0,)
        try:
            model()
        except Refused as refused:
            expected = refused.numbers
        got = 0
        try:
            real()
        except OSError as error:
            got = error.errno or -1
        if got not in expected:
            wanted = " or ".join(errno.errorcode.get(number, "success") for number in expected)
            self._fail(f"{errno.errorcode.get(got, 'success')} instead of {wanted}")

    def _fail(self, problem: str) -> None:
        pytest.fail("\n".join([*self._log, problem]))

    def _do_create(self) -> None:
        way = self._way()
        path = self._top.joinpath(*way)
        self._both(f"create {way}", lambda: _create(path), lambda: self._model.add(way, File()))

    def _do_write(self) -> None:
        way = self._way()
        path = self._top.joinpath(*way)
        contents = b"contents %d" % len(self._log)
        self._both(
            f"write {way}",
            lambda: _write(path, contents),
            lambda: self._model.write(way, contents),
        )

    def _do_mkdir(self) -> None:
        way = self._way()
        path = self._top.joinpath(*way)
        self._both(f"mkdir {way}", path.mkdir, lambda: self._model.add(way, Directory()))

    def _do_symlink(self) -> None:
        way = self._way()
        path = self._top.joinpath(*way)
        target = f"target-{len(self._log)}"
        self._both(
            f"symlink {way}",
            lambda: path.symlink_to(target),
            lambda: self._model.add(way, Symlink(target)),
        )

    def _do_link(self) -> None:
        source, target = self._way(), self._way()
        self._both(
            f"link {source} {target}",
            lambda: os.link(
                self._top.joinpath(*source), self._top.joinpath(*target), follow_symlinks=False
            ),
            lambda: self._model.link(source, target),
        )

    def _do_unlink(self) -> None:
        way = self._way()
        self._both(
            f"unlink {way}", self._top.joinpath(*way).unlink, lambda: self._model.unlink(way)
        )

    def _do_rmdir(self) -> None:
        way = self._way()
        self._both(f"rmdir {way}", self._top.joinpath(*way).rmdir, lambda: self._model.rmdir(way))

    def _do_rename(self) -> None:
        source, target = self._way(), self._way()
        flags = self._choice.choice([0, 0, 0, linux.RENAME_NOREPLACE, linux.RENAME_EXCHANGE])
        self._both(
            f"rename {source} {target} flags {flags}",
            lambda: linux.rename(self._top.joinpath(*source), self._top.joinpath(*target), flags),
            lambda: self._model.rename(source, target, flags),
        )

    def _compare(self, path: Path, directory: Directory) -> None:
        names = sorted(os.listdir(path))
        if names != sorted(directory.entries):
            self._fail(f"{path} lists {names} instead of {sorted(directory.entries)}")
        for name, entry in directory.entries.items():
            status = (path / name).lstat()
            match entry:
                case Directory():
                    if not stat.S_ISDIR(status.st_mode):
                        self._fail(f"{path / name} is no directory")
                    self._compare(path / name, entry)
                case File():
                    if (path / name).read_bytes() != entry.contents:
                        self._fail(f"{path / name} has other contents")
                    if status.st_nlink != entry.links:
                        self._fail(f"{path / name}: {status.st_nlink} links, not {entry.links}")
                case Symlink():
                    if os.readlink(path / name) != entry.target:
                        self._fail(f"{path / name} leads elsewhere")


@pytest.mark.parametrize("seed", range(5))
def test_random_operations(directory: Path, seed: int) -> None:
    Exerciser(directory, seed).run(OPERATIONS)
