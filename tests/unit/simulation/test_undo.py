"""The checker of undos: files that both sides have written, whose names undo has to change, too."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bftfs.filesystem import object_types, registry
from bftfs.filesystem.attributes import NO_CHANGES, Attributes
from bftfs.filesystem.block_names import CoveredBlock
from bftfs.filesystem.directory import (
    RENAME_EXCHANGE,
    Creation,
    DirectoryCreation,
    Name,
    Relocation,
    Renaming,
)
from bftfs.filesystem.inode import Writing
from bftfs.filesystem.volume import Format
from bftfs.identifiers import ClientId, ObjectId, ObjectKind, object_id
from bftfs.query_update.history import LogicalTimestamp, Operation, logical_timestamp, time_of
from bftfs.query_update.object_type import encode_record
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.restoration.changes import Slot
from bftfs.restoration.name_plan import UndoStep
from bftfs.simulation.checkers.candidates import CandidateRecord
from bftfs.simulation.checkers.namespace import Established
from bftfs.simulation.checkers.past import WrittenContents
from bftfs.simulation.checkers.tree import SeenObject
from bftfs.simulation.checkers.undo import Undone, check_undone
from bftfs.simulation.deployment import client_named

OTHER, INTRUDER, AUDITOR = map(client_named, ("other", "intruder", "auditor"))


def _new(kind: ObjectKind, name: str) -> ObjectId:
    return object_id(kind, placement=0, unique=name.encode().ljust(14))


VOLUME = _new(ObjectKind.VOLUME, "volume")
ROOT, UPPER, LOWER, ANEW = (
    _new(ObjectKind.DIRECTORY, name) for name in ("root", "upper", "lower", "anew")
)
FILE, COPY = (_new(ObjectKind.INODE, name) for name in ("file", "copy"))


class Story:
    """What others and the intruder did, one operation each microsecond."""

    def __init__(self) -> None:
        self.taken = Established(CandidateRecord(), 1, object_types())
        self.written = WrittenContents()
        self.since_us = 0
        self._now_us = 0
        self.do(OTHER, registry.FORMAT, (VOLUME, ROOT), Format(4096, 0o755))

    def do(self, client: ClientId, method: str, objects: Sequence[ObjectId], said: Any) -> None:
        self._now_us += 1
        operation = Operation(method, tuple(objects), encode_record(said), 0, 0, (), self._now_us)
        timestamp = logical_timestamp(
            time_us=self._now_us, barrier=False, client=client, digest=bytes(32)
        )
        self.taken.operations[timestamp] = operation

    def mkdir(self, directory: ObjectId, name: bytes, made: ObjectId) -> None:
        said = DirectoryCreation(name, 0o700, 0)
        self.do(OTHER, registry.MAKE_DIRECTORY, (directory, made), said)

    def create(self, directory: ObjectId, name: bytes) -> None:
        said = Creation(name, stat.S_IFREG | 0o600, 0, 0, b"", 4096)
        self.do(OTHER, registry.CREATE, (directory, FILE), said)

    def write(self, client: ClientId, content: bytes) -> None:
        block = CoveredBlock(0, self._now_us + 1, bytes(32))
        self.written.begins(content)
        self.written.ends(content, BlockTimestamp(block.time_us, client, block.verifier))
        self.do(client, registry.WRITE, (FILE,), Writing(1, 0, 1, NO_CHANGES, (block,)))

    def begin(self) -> None:
        """From now on the intruder's changes are to be taken back."""
        self.since_us = self._now_us + 1

    def undone(self, *conflicts: Slot) -> Undone:
        """An undo that reports these conflicts."""
        own: frozenset[LogicalTimestamp] = frozenset(
            each
            for each in self.taken.operations
            if INTRUDER in each and time_of(each) >= self.since_us
        )
        undone = Undone(INTRUDER, self.since_us, own, {}, "K")
        undone.steps = [UndoStep("", conflict=True, name=each) for each in conflicts]
        return undone

    def findings(self, undone: Undone) -> list[str]:
        contents = {FILE: self.written}
        return check_undone(undone, self.taken, contents=contents, auditor=AUDITOR, root=ROOT)


def directory(mode: int = 0o700, **entries: ObjectId) -> SeenObject:
    said = Attributes(stat.S_IFDIR | mode, 0, 0, 0, 0, 0, 0, 0, 0)
    return SeenObject(said, {name.encode(): each for name, each in entries.items()})


def file(content: bytes) -> SeenObject:
    return SeenObject(Attributes(stat.S_IFREG | 0o600, 0, 0, 0, 0, 0, 0, 0, 0), content=content)


def file_whose_name_is_taken() -> tuple[Story, Undone]:
    """What took the file's name has to stay there, so the file is put beside.

    The intruder has exchanged it for `upper/lower`, and others have moved `upper` in there. Both
    have written it, before and after that.
    """
    story = Story()
    story.mkdir(ROOT, b"upper", UPPER)
    story.mkdir(UPPER, b"lower", LOWER)
    story.create(ROOT, b"x")
    story.write(OTHER, b"first")
    story.begin()
    story.write(INTRUDER, b"evil")
    exchange = Relocation(b"lower", b"x", RENAME_EXCHANGE, 0)
    story.do(INTRUDER, registry.RELOCATE, (UPPER, ROOT, LOWER, FILE, VOLUME), exchange)
    story.write(OTHER, b"others'")
    move = Relocation(b"upper", b"upper", 0, 1)
    story.do(OTHER, registry.RELOCATE, (ROOT, LOWER, UPPER, UPPER, VOLUME), move)
    story.write(INTRUDER, b"last")
    undone = story.undone(Slot(ROOT, b"x"), Slot(ROOT, b"x.before-K"))
    undone.before = {
        ROOT: directory(0o755, x=LOWER),
        LOWER: directory(upper=UPPER),
        UPPER: directory(lower=FILE),
        FILE: file(b"last"),
    }
    undone.after = {
        ROOT: directory(0o755, x=LOWER),
        LOWER: directory(upper=UPPER),
        UPPER: directory(),
        FILE: file(b"last"),
        COPY: file(b"first"),
    }
    undone.after[ROOT].entries |= {b"x.before-K": FILE, b"x.before-K.before-K": COPY}
    return story, undone


def file_in_a_removed_directory() -> tuple[Story, Undone]:
    """The intruder has moved a file out of a directory and removed that; both have written it."""
    story = Story()
    story.mkdir(ROOT, b"upper", UPPER)
    story.create(UPPER, b"x")
    story.write(OTHER, b"first")
    story.begin()
    story.do(INTRUDER, registry.RENAME, (UPPER, ROOT, FILE, FILE), Renaming(b"x", b"y", 0))
    story.do(INTRUDER, registry.REMOVE_DIRECTORY, (ROOT, UPPER), Name(b"upper"))
    story.write(INTRUDER, b"last")
    story.write(OTHER, b"others'")
    story.write(INTRUDER, b"last")
    undone = story.undone(Slot(UPPER, b"x"))
    undone.before = {ROOT: directory(0o755, y=FILE), FILE: file(b"last")}
    undone.after = {
        ROOT: directory(0o755, upper=ANEW),
        ANEW: directory(x=FILE),
        FILE: file(b"last"),
        COPY: file(b"first"),
    }
    undone.after[ANEW].entries[b"x.before-K"] = COPY
    return story, undone


SITUATIONS = pytest.mark.parametrize(
    "situation", [file_whose_name_is_taken, file_in_a_removed_directory]
)
Situation = Callable[[], tuple[Story, Undone]]


@SITUATIONS
def test_the_present_contents_may_stay_if_both_versions_are_kept(situation: Situation) -> None:
    story, undone = situation()
    assert story.findings(undone) == []


# --- must fail ---------------------------------------------------------------------------------


def _say_nothing(undone: Undone) -> None:
    undone.steps.pop()


def _keep_nothing(undone: Undone) -> None:
    for each in undone.after.values():
        each.entries = {name: child for name, child in each.entries.items() if child != COPY}


def _say_and_keep_nothing(undone: Undone) -> None:
    _say_nothing(undone)
    _keep_nothing(undone)


def _keep_something_else(undone: Undone) -> None:
    undone.after[COPY].content = b"evil"


def _keep_the_same_twice(undone: Undone) -> None:
    undone.after[COPY].content = b"others'"


def _leave_something_else(undone: Undone) -> None:
    undone.after[FILE].content = b"evil"


@SITUATIONS
@pytest.mark.parametrize(
    "spoil",
    [
        _say_nothing,
        _keep_nothing,
        _say_and_keep_nothing,
        _keep_something_else,
        _keep_the_same_twice,
        _leave_something_else,
    ],
)
def test_must_fail_an_undo_that_conceals_or_loses_a_version(
    situation: Situation, spoil: Callable[[Undone], None]
) -> None:
    story, undone = situation()
    spoil(undone)
    assert story.findings(undone)
