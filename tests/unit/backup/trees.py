"""Trees at several times, from which backups are sent without nodes; and what a directory holds."""

from __future__ import annotations

import errno
import io
import os
import random
import stat
from collections.abc import Coroutine
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bftfs.backup.receiving import Receiving
from bftfs.backup.sending import BackupSource, Sending
from bftfs.backup.stream import RESERVED
from bftfs.engine import Engine
from bftfs.errors import FileSystemError
from bftfs.filesystem.attributes import Attributes
from bftfs.identifiers import ObjectId, ObjectKind, object_id

CLUSTER = b"c" * 16
UID, GID = os.getuid(), os.getgid()
KINDS = (stat.S_IFREG, stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO)


def numbered(number: int, kind: int) -> ObjectId:
    is_directory = stat.S_ISDIR(kind)
    object_kind = ObjectKind.DIRECTORY if is_directory else ObjectKind.INODE
    return object_id(object_kind, placement=0, unique=number.to_bytes(14, "big"))


@dataclass
class Thing:
    """An object of a tree."""

    attributes: Attributes
    contents: bytes = b""  # of a file; the target of a symlink
    extended: dict[bytes, bytes] = field(default_factory=dict)
    entries: dict[bytes, ObjectId] = field(default_factory=dict)


class Trees:
    """One tree that changes, and what it was at each `mark`. It is a `Viewpoint` for `Sending`."""

    who = None

    def __init__(self, owner: tuple[int, int] = (UID, GID)) -> None:
        self.owner = owner
        self.now_us = 1
        self.numbers = 0
        self.things: dict[ObjectId, Thing] = {}
        self.marks: dict[int, dict[ObjectId, Thing]] = {}
        self.top = self._new(stat.S_IFDIR | 0o750)

    # --- changes -----------------------------------------------------------------------------

    def _new(self, mode: int, contents: bytes = b"") -> ObjectId:
        self.numbers += 1
        identifier = numbered(self.numbers, mode)
        self.now_us += 1
        attributes = Attributes(
            mode,
            *self.owner,
            1,
            len(contents),
            10**18,
            10**18,
            0,
            self.now_us,
            contents=self.now_us,
        )
        self.things[identifier] = Thing(attributes, contents)
        return identifier

    def change(self, identifier: ObjectId, **fields: Any) -> None:
        self.now_us += 1
        thing = self.things[identifier]
        thing.attributes = msgspec.structs.replace(thing.attributes, version=self.now_us, **fields)

    def put(self, directory: ObjectId, name: bytes, identifier: ObjectId | None) -> None:
        entries = self.things[directory].entries
        entries.pop(name, None)
        if identifier is not None:
            entries[name] = identifier
        self.change(directory, mtime_ns=10**18 + self.now_us)

    def make(self, directory: ObjectId, name: bytes, mode: int, contents: bytes = b"") -> ObjectId:
        identifier = self._new(mode, contents)
        self.put(directory, name, identifier)
        return identifier

    def write(self, identifier: ObjectId, contents: bytes) -> None:
        self.things[identifier].contents = contents
        self.change(identifier, size=len(contents), contents=self.now_us + 1)

    def mark(self) -> int:
        """The present is remembered as of this time."""
        self.now_us += 1
        self.marks[self.now_us] = deepcopy(self.things)
        return self.now_us

    def directories(self) -> list[ObjectId]:
        found = [self.top]
        for directory in found:
            inside = self.things[directory].entries.values()
            found += [each for each in inside if stat.S_ISDIR(self.mode(each))]
        return found

    def mode(self, identifier: ObjectId) -> int:
        return self.things[identifier].attributes.mode

    def is_below(self, identifier: ObjectId, above: ObjectId) -> bool:
        waiting = [above]
        while waiting:
            each = waiting.pop()
            if each == identifier:
                return True
            waiting += self.things[each].entries.values()
        return False

    def change_something(self, draw: random.Random) -> None:
        """One random change."""
        directory = draw.choice(self.directories())
        entries = self.things[directory].entries
        name = draw.choice((b"a", b"b", b"c", b"\xff\n", b"d" * 200))
        other = draw.choice(self.directories())
        there = entries.get(name)
        if there is None:
            kind = draw.choice(KINDS)
            contents = {stat.S_IFREG: some_contents(draw), stat.S_IFLNK: b"../leads/nowhere"}
            self.make(directory, name, kind | draw.choice((0o700, 0o644)), contents.get(kind, b""))
            return
        kind = stat.S_IFMT(self.mode(there))
        match draw.randrange(6):
            case 0:
                self.put(directory, name, None)
            case 1 if not self.is_below(other, there):
                self.put(directory, name, None)
                self.put(other, draw.choice((b"a", b"b", b"e")), there)
            case 2 if kind != stat.S_IFDIR:
                self.put(other, draw.choice((b"b", b"c", b"f")), there)
            case 3 if kind == stat.S_IFREG:
                self.write(there, some_contents(draw))
            case 4 if kind != stat.S_IFLNK:
                self.change(there, mode=kind | draw.choice((0o600, 0o755, 0o500)))
            case _:
                self.change(there, mtime_ns=draw.randrange(10**18))

    # --- as Sending sees it ------------------------------------------------------------------

    def at(self, time_us: int) -> Any:
        return _At(self.marks[time_us])

    async def entries(self, directory: ObjectId, time_us: int) -> dict[bytes, ObjectId]:
        return dict(self.marks[time_us][directory].entries)

    async def contents(self, identifier: ObjectId, time_us: int) -> bytes:
        return self.marks[time_us][identifier].contents

    async def link_target(self, identifier: ObjectId, time_us: int) -> bytes:
        return self.marks[time_us][identifier].contents

    async def extended(self, node: Any, time_us: int) -> dict[bytes, bytes]:
        return self.marks[time_us][node.identifier].extended

    async def reading(self, identifier: ObjectId, time_us: int) -> Any:
        return _ReadingOf(self.marks[time_us][identifier].contents)

    async def changes(self, identifier: ObjectId) -> list[Any]:
        return []


@dataclass
class _At:
    things: dict[ObjectId, Thing]

    async def attributes(self, identifier: ObjectId, who: Any) -> Attributes:
        if identifier not in self.things:
            raise FileSystemError(errno.ESTALE, "not there")
        return self.things[identifier].attributes


class _ReadingOf:
    def __init__(self, contents: bytes) -> None:
        self._file = io.BytesIO(contents)

    async def next(self) -> bytes:
        return self._file.read(4 << 20)

    async def close(self) -> None:
        pass


def some_contents(draw: random.Random) -> bytes:
    if draw.random() < 0.1:
        return bytes(150_000) + b"x" + bytes(140_000) + draw.randbytes(9)
    return draw.randbytes(draw.randrange(40))


def run(conversation: Coroutine[Any, Any, Any]) -> Any:
    """The result of a conversation that waits for nothing."""
    outcome: list[Any] = []
    engine = Engine(
        send=lambda *_: None,
        now_us=lambda: 0,
        monotonic_us=lambda: 0,
        draw=lambda most: 0,
    )
    engine.start(conversation, lambda result, error: outcome.append(error or result))
    assert outcome, "it waits"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def sent(trees: Any, at_us: int, from_us: int | None = None, *, top: Any = None) -> bytes:
    """The stream of a backup."""
    stream = io.BytesIO()
    source = BackupSource(CLUSTER, top or trees.top, "/mnt/tree", at_us, from_us)
    run(Sending(trees, source, stream.write).send())
    return stream.getvalue()


def receive(directory: Path, stream: bytes) -> Receiving:
    receiving = Receiving(directory)
    receiving.receive(io.BytesIO(stream).read)
    return receiving


# --- what there is ------------------------------------------------------------------------------


def expected(things: dict[ObjectId, Thing], top: ObjectId) -> dict[bytes, tuple[Any, ...]]:
    """What a directory holds that is equal to a tree."""
    found: dict[bytes, tuple[Any, ...]] = {}
    first: dict[ObjectId, bytes] = {}

    def visit(identifier: ObjectId, path: bytes) -> None:
        thing = things[identifier]
        attributes = thing.attributes
        found[path] = (
            first.setdefault(identifier, path),
            attributes.mode if not stat.S_ISLNK(attributes.mode) else stat.S_IFLNK,
            attributes.uid,
            attributes.gid,
            attributes.mtime_ns,
            thing.contents,
        )
        for name, child in sorted(thing.entries.items()):
            visit(child, os.path.join(path, name))

    visit(top, b".")
    return found


def held(directory: Path) -> dict[bytes, tuple[Any, ...]]:
    """What a directory holds, without what the receiver keeps there."""
    found: dict[bytes, tuple[Any, ...]] = {}
    first: dict[int, bytes] = {}

    def visit(path: bytes) -> None:
        full = os.path.join(os.fsencode(directory), path)
        status = os.lstat(full)
        kind = stat.S_IFMT(status.st_mode)
        contents = b""
        if kind == stat.S_IFREG:
            contents = Path(os.fsdecode(full)).read_bytes()
        elif kind == stat.S_IFLNK:
            contents = os.readlink(full)
        found[path] = (
            first.setdefault(status.st_ino, path),
            status.st_mode if kind != stat.S_IFLNK else kind,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            contents,
        )
        if kind == stat.S_IFDIR:
            for name in sorted(os.listdir(full)):
                if path != b"." or name != RESERVED:
                    visit(os.path.join(path, name))

    visit(b".")
    return found
