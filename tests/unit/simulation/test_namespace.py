"""The checker of the namespace finds what is not strictly serializable, or not what POSIX says."""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from bftfs.filesystem import registry
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.directory import (
    Child,
    Creation,
    DirectoryCreation,
    LookupAnswer,
    Name,
    Relocation,
    Renaming,
)
from bftfs.filesystem.objects import AttributesAfter, NoArguments
from bftfs.filesystem.registry import file_system_types
from bftfs.filesystem.volume import Format, Volume
from bftfs.identifiers import NodeId, ObjectId, ObjectKind, object_id
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    LogicalTimestamp,
    Operation,
    logical_timestamp,
)
from bftfs.query_update.object_type import Record, encode_record
from bftfs.query_update.replica import Version
from bftfs.simulation.checkers.candidates import CandidateRecord
from bftfs.simulation.checkers.namespace import Call, Established, check_namespace
from bftfs.simulation.deployment import client_named

CLIENT = client_named("a client")
ROOT = object_id(ObjectKind.DIRECTORY, placement=0, unique=b"root".ljust(14))
VOLUME = object_id(ObjectKind.VOLUME, placement=0, unique=b"volume".ljust(14))


def inode(number: int) -> ObjectId:
    return object_id(ObjectKind.INODE, placement=0, unique=b"%014d" % number)


def directory(number: int) -> ObjectId:
    return object_id(ObjectKind.DIRECTORY, placement=0, unique=b"%014d" % number)


def file_with(links: int) -> Attributes:
    return Attributes(stat.S_IFREG | 0o600, 0, 0, links, 0, 0, 0, 0, version=0)


def directory_with(entries: int, *, links: int = 2, parent: ObjectId = ROOT) -> Attributes:
    return Attributes(
        stat.S_IFDIR | 0o700, 0, 0, links, 0, 0, 0, 0, version=0, entries=entries, parent=parent
    )


@dataclass
class History:
    """What clients did, one thing after the other unless told otherwise."""

    calls: list[Call] = field(default_factory=list)
    record: CandidateRecord = field(default_factory=CandidateRecord)
    latest: dict[ObjectId, LogicalTimestamp] = field(default_factory=dict)
    now: int = 0

    def update(
        self,
        method: str,
        objects: Sequence[ObjectId],
        arguments: Record,
        *answer: Attributes,
        ended: bool = True,
        asked: bool = True,
        at: Sequence[ObjectId] | None = None,
    ) -> Call:
        self.now += 10
        names = tuple(sorted(set(objects)))
        timestamp = logical_timestamp(
            time_us=self.now, barrier=False, client=CLIENT, digest=bytes(32)
        )
        operation = Operation(
            method, tuple(objects), encode_record(arguments), 0, 0, (), serial=self.now
        )
        for name in at or names:
            before = self.latest.get(name, ZERO)
            candidate = Candidate(timestamp, before, names if len(names) > 1 else ())
            self.record.accepted.setdefault(name, {})[candidate] = {NodeId(0), NodeId(1)}
            self.record.contents[name, timestamp] = Version(
                1, before, names, False, (), operation if name == names[0] else None
            )
            self.latest[name] = timestamp
        call = Call("a client", method, tuple(objects), arguments, True, self.now, author=CLIENT)
        if ended:
            call.responded = self.now + 5
            call.answer = AttributesAfter(answer)
            call.named = (timestamp,) * len(names)
        if asked:
            self.calls.append(call)
        return call

    def query(
        self, method: str, objects: Sequence[ObjectId], arguments: Record, answer: Any
    ) -> Call:
        self.now += 10
        call = Call(
            "a client",
            method,
            tuple(objects),
            arguments,
            False,
            self.now,
            self.now + 5,
            answer,
            author=CLIENT,
            named=tuple(self.latest.get(name, ZERO) for name in sorted(set(objects))),
        )
        self.calls.append(call)
        return call

    def refused(
        self, method: str, objects: Sequence[ObjectId], arguments: Record, code: int
    ) -> Call:
        call = self.query(method, objects, arguments, None)
        call.update, call.error = True, code
        return call

    def lookup(self, name: bytes, child: ObjectId | None, entries: int, *, links: int = 2) -> Call:
        found = None if child is None else Child(child, 8)
        answer = LookupAnswer(directory_with(entries, links=links), found)
        return self.query(registry.LOOKUP, (ROOT,), Name(name), answer)

    def create(self, name: bytes, child: ObjectId, entries: int, **more: Any) -> Call:
        return self.update(
            registry.CREATE,
            (ROOT, child),
            Creation(name, stat.S_IFREG | 0o600, 0, 0, b"", 4096),
            directory_with(entries),
            file_with(1),
            **more,
        )

    def unlink(self, name: bytes, child: ObjectId, entries: int, **more: Any) -> Call:
        return self.update(
            registry.UNLINK,
            (ROOT, child),
            Name(name),
            directory_with(entries),
            file_with(0),
            **more,
        )

    def findings(self) -> list[str]:
        taken = Established(self.record, 2, file_system_types())
        return check_namespace(self.calls, taken, correct={CLIENT})


@pytest.fixture
def history() -> History:
    made = History()
    call = made.update(registry.FORMAT, (VOLUME, ROOT), Format(4096, 0o700))
    call.answer = Volume(ROOT, 4096, 0)
    return made


def test_a_history_that_is_as_it_should_be(history: History) -> None:
    one, other = inode(1), directory(2)
    history.lookup(b"a", None, 0)
    history.create(b"a", one, 1)
    history.refused(
        registry.CREATE, (ROOT, inode(9)), Creation(b"a", 0o100600, 0, 0, b"", 4096), errno.EEXIST
    )
    history.update(
        registry.MAKE_DIRECTORY,
        (ROOT, other),
        DirectoryCreation(b"d", 0o700, 0),
        directory_with(2, links=3),
        directory_with(0),
    )
    history.update(registry.LINK, (other, one), Name(b"b"), directory_with(1), file_with(2))
    history.refused(registry.REMOVE_DIRECTORY, (ROOT, other), Name(b"d"), errno.ENOTEMPTY)
    history.update(
        registry.RENAME,
        (ROOT, ROOT, one, one),
        Renaming(b"a", b"c", 0),
        directory_with(2, links=3),
        directory_with(2, links=3),
        file_with(2),
        file_with(2),
    )
    history.lookup(b"a", None, 2, links=3)
    history.lookup(b"c", one, 2, links=3)
    history.refused(registry.UNLINK, (ROOT, one), Name(b"a"), errno.ENOENT)
    history.update(
        registry.UNLINK, (ROOT, one), Name(b"c"), directory_with(1, links=3), file_with(1)
    )
    history.query(registry.GET_ATTRIBUTES, (one,), NoArguments(), file_with(1))
    assert history.findings() == []


def found(history: History, words: str) -> bool:
    return any(words in finding for finding in history.findings())


def test_permissions_that_nobody_gave(history: History) -> None:
    history.update(
        registry.MAKE_DIRECTORY,
        (ROOT, directory(1)),
        DirectoryCreation(b"d", 0o750, 0),
        directory_with(1, links=3),
        directory_with(0),
    )
    (finding,) = history.findings()
    assert "has the mode 750" in finding


def test_an_answer_that_is_not_the_models(history: History) -> None:
    history.create(b"a", inode(1), 1)
    history.lookup(b"a", inode(2), 1)
    assert found(history, "the answer should have been")


def test_a_link_count_that_is_not_the_number_of_names(history: History) -> None:
    history.create(b"a", inode(1), 1)
    history.query(registry.GET_ATTRIBUTES, (inode(1),), NoArguments(), file_with(2))
    assert found(history, "has (links, entries, is directory) (1, 0, False)")


def test_a_refusal_without_a_reason(history: History) -> None:
    history.refused(
        registry.CREATE, (ROOT, inode(9)), Creation(b"a", 0o100600, 0, 0, b"", 4096), errno.EEXIST
    )
    assert found(history, "errno 0")


def test_a_name_taken_twice(history: History) -> None:
    history.create(b"a", inode(1), 1)
    history.create(b"a", inode(2), 1)
    assert found(history, f"errno {errno.EEXIST}")


def test_an_acknowledged_operation_that_is_lost(history: History) -> None:
    call = history.create(b"a", inode(1), 1)
    lost = logical_timestamp(time_us=77, barrier=False, client=CLIENT, digest=bytes(32))
    call.named = (lost, lost)
    assert found(history, "not on its chain")


def test_an_answer_from_the_past(history: History) -> None:
    """It read what it says, and that was no longer so when it was asked."""
    before = history.latest[ROOT]
    history.create(b"a", inode(1), 1)
    stale = history.lookup(b"a", None, 0)
    stale.named = (before,)
    assert found(history, "no serial order")


def test_half_of_an_operation(history: History) -> None:
    history.create(b"a", inode(1), 1, at=(ROOT,))
    assert found(history, "took place at some of its objects")


def test_an_operation_that_nobody_asked_for(history: History) -> None:
    history.create(b"a", inode(1), 1, asked=False)
    assert found(history, "did not ask for it")


def test_an_operation_that_took_place_after_it_was_refused(history: History) -> None:
    call = history.create(b"a", inode(1), 1)
    call.error, call.answer, call.named = errno.EEXIST, None, (ZERO, ZERO)
    assert found(history, "did not ask for it, or was told that it did not")


def test_an_operation_that_took_place_twice(history: History) -> None:
    history.create(b"a", inode(1), 1, ended=False)
    history.create(b"a", inode(1), 1, ended=False)
    for key, version in history.record.contents.items():
        if version.operation is not None and version.operation.method == registry.CREATE:
            once = msgspec.structs.replace(version.operation, serial=1)
            history.record.contents[key] = msgspec.structs.replace(version, operation=once)
    assert found(history, "took place at")


def test_one_that_never_ended_may_have_taken_place(history: History) -> None:
    history.create(b"a", inode(1), 1, ended=False)
    history.lookup(b"a", inode(1), 1)
    assert history.findings() == []


def test_a_relocation_that_did_not_see_another(history: History) -> None:
    one, other, third = directory(1), directory(2), directory(3)
    for position, (each, name) in enumerate(((one, b"1"), (other, b"2"), (third, b"3"))):
        history.update(
            registry.MAKE_DIRECTORY,
            (ROOT, each),
            DirectoryCreation(name, 0o700, 0),
            directory_with(position + 1, links=3 + position),
            directory_with(0),
        )

    def relocate(name: bytes, moved: ObjectId, into: ObjectId, entries: int) -> None:
        history.update(
            registry.RELOCATE,
            (ROOT, into, moved, moved, VOLUME),
            Relocation(name, b"below", 0, epoch=0),
            directory_with(entries, links=2 + entries),
            directory_with(1, links=3),
            directory_with(0, parent=into),
            directory_with(0, parent=into),
        )

    relocate(b"1", one, other, 2)
    assert history.findings() == []
    relocate(b"2", other, third, 1)
    assert found(history, f"errno {errno.EAGAIN}")
