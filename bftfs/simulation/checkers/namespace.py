"""Strict serializability of the namespace, against a reference model.

Clients' operations on directories, inodes and the volume must have got the answers of a file system
that does one operation after the other, in an order that respects real time. The order comes from
the versions: each answer names the versions that it read or made, and these must lie on the
objects' chains of established candidates. Chains are evidence, and are checked as well: each
operation in them must have been requested once by the client that is named as its author; chains
and real time together must have no cycle; and every answer, refusals included, must be the answer
of the model, which is replayed in that order and counts links and entries from the tree itself.

The model has the semantics of POSIX, and the few additions of this file system (ESTALE for an
object that does not exist or is not what a name stands for, the volume's relocation epoch). It does
not model permissions: nearly all operations are done for one user, who owns everything.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from bftfs.filesystem import registry
from bftfs.filesystem.acl import ACCESS, AccessControlList
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.directory import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Creation,
    DirectoryCreation,
    DirectoryPage,
    LookupAnswer,
    Relocation,
    Renaming,
)
from bftfs.filesystem.objects import AttributesAfter
from bftfs.filesystem.volume import Volume
from bftfs.identifiers import ClientId, ObjectId, ObjectKind, kind_of
from bftfs.query_update.history import (
    ZERO,
    LogicalTimestamp,
    Operation,
    client_of,
    time_of,
)
from bftfs.query_update.object_type import ObjectTypes, encode_record
from bftfs.simulation.checkers.candidates import CandidateRecord, chain_of
from bftfs.simulation.checkers.serializability import ObjectEntry, check_operations


@dataclass(slots=True, kw_only=True)
class Call(ObjectEntry):
    """One operation on the namespace, as its client saw it."""

    author: ClientId
    # The versions of the distinct objects, in the order of their ids.
    named: tuple[LogicalTimestamp, ...] = ()

    @property
    def asked(self) -> tuple[ClientId, str, tuple[ObjectId, ...], bytes]:
        """The client and its call, for findings."""
        return self.author, self.method, self.objects, encode_record(self.arguments)


def check_namespace(
    calls: Sequence[Call], taken: Established, *, correct: Collection[ClientId]
) -> list[str]:
    """Findings against `calls`, which are all that clients in `correct` have made."""
    findings = list(taken.findings)
    placed: list[ObjectEntry] = []
    pending: dict[Hashable, list[Call]] = {}
    acknowledged: set[LogicalTimestamp] = set()
    for call in calls:
        if call.responded == inf:
            if call.update:
                pending.setdefault(call.asked, []).append(call)
            continue
        call.versions = taken.places(call, findings)
        if call.update and not call.error and call.named:
            timestamp = call.named[0]
            acknowledged.add(timestamp)
            operation = taken.operations.get(timestamp)
            if operation is not None and _asked(timestamp, operation) != call.asked:
                findings.append(f"namespace: {_shown(call)} is another operation on the disks")
        placed.append(call)
    for timestamp, operation in taken.operations.items():
        if timestamp in acknowledged:
            continue
        invoked = 0.0
        if client_of(timestamp) in correct:
            waiting = pending.get(_asked(timestamp, operation))
            if not waiting:
                findings.append(
                    f"namespace: {operation.method} at {time_of(timestamp)} took place, and its "
                    "client did not ask for it, or was told that it did not"
                )
                continue
            invoked = waiting.pop(0).invoked
        placed.append(
            ObjectEntry(
                "another",
                operation.method,
                operation.objects,
                taken.arguments_of(operation),
                True,
                invoked,
                versions=taken.places_of(timestamp, operation.objects),
            )
        )
    if findings:
        return findings
    return [f"namespace: {finding}" for finding in check_operations(placed, model=NamespaceModel())]


class Established:
    """What took place, by the established versions on the chains of correct nodes.

    `findings` if an operation took place in part, or twice.
    """

    def __init__(self, record: CandidateRecord, established: int, types: ObjectTypes) -> None:
        """`established` is how many correct nodes make a candidate established."""
        self.record = record
        self._types = types
        self.findings: list[str] = []
        # Made by operations, of each object, the oldest first; a copy is what it copies.
        self.versions: dict[ObjectId, list[LogicalTimestamp]] = {}
        self._places: dict[ObjectId, dict[LogicalTimestamp, int]] = {}
        for identifier, candidates in record.accepted.items():
            copies = {each.timestamp for each in candidates if each.copy}
            places = self._places[identifier] = {}
            made = self.versions[identifier] = []
            for timestamp in chain_of(candidates, established=established):
                if timestamp != ZERO and timestamp not in copies:
                    made.append(timestamp)
                places[timestamp] = len(made)
        self.operations = self._operations()

    def arguments_of(self, operation: Operation) -> Any:
        """The arguments of an operation that took place."""
        method = self._types.method(operation.method)
        assert method is not None, "correct nodes have executed it"
        return self._types.decode_arguments(method, operation.arguments)

    def places(self, call: Call, findings: list[str]) -> dict[Hashable, int]:
        """Where the versions that `call` names stand on their chains."""
        found: dict[Hashable, int] = {}
        for identifier, timestamp in zip(sorted(set(call.objects)), call.named, strict=False):
            place = self._places.get(identifier, {ZERO: 0}).get(timestamp)
            if place is None:
                findings.append(
                    f"namespace: {_shown(call)} names a version of {_short(identifier)} at "
                    f"{time_of(timestamp)} that is not on its chain"
                )
            else:
                found[identifier] = place
        return found

    def places_of(
        self, timestamp: LogicalTimestamp, objects: Iterable[ObjectId]
    ) -> dict[Hashable, int]:
        """Where the versions that one update made stand."""
        return {each: self._places[each][timestamp] for each in dict.fromkeys(objects)}

    def _operations(self) -> dict[LogicalTimestamp, Operation]:
        found: dict[LogicalTimestamp, Operation] = {}
        serials: dict[tuple[ClientId, int], LogicalTimestamp] = {}
        contents = self.record.contents
        made = ((each, at) for each, versions in self.versions.items() for at in versions)
        for identifier, timestamp in made:
            version = contents.get((identifier, timestamp))
            objects = (version and version.objects) or (identifier,)
            first = contents.get((min(objects), timestamp))
            if version is None or first is None or first.operation is None:
                self._find(f"nobody has the operation at {time_of(timestamp)}")
                continue
            operation = first.operation
            what = f"{operation.method} at {time_of(timestamp)}"
            if any(timestamp not in self.versions.get(other, ()) for other in operation.objects):
                self._find(f"{what} took place at some of its objects")
                continue
            found[timestamp] = operation
            known = serials.setdefault((client_of(timestamp), operation.serial), timestamp)
            if known != timestamp:
                self._find(f"{what} took place at {time_of(known)} as well")
        return found

    def _find(self, finding: str) -> None:
        self.findings.append(f"namespace: {finding}")


def _asked(
    timestamp: LogicalTimestamp, operation: Operation
) -> tuple[ClientId, str, tuple[ObjectId, ...], bytes]:
    return client_of(timestamp), operation.method, operation.objects, operation.arguments


def _shown(call: Call) -> str:
    objects = " ".join(map(_short, call.objects))
    return f"{call.client} {call.method} {objects} {call.arguments} [{call.invoked}]"


def _short(identifier: ObjectId | None) -> str:
    return "nothing" if identifier is None else identifier.hex()[-6:]


# --- the model -------------------------------------------------------------------------------


class _RefusedByModel(Exception):
    """The model refuses, and nothing has changed."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True)
class _Object:
    """A directory or an inode."""

    directory: bool
    mode: int  # its permission bits
    parent: ObjectId | None = None  # of a directory that is in use
    entries: dict[bytes, ObjectId] = field(default_factory=dict)
    names: int = 0  # how many entries stand for it


@dataclass(slots=True)
class NamespaceModel:
    """The names of a file system that does one operation after the other."""

    objects: dict[ObjectId, _Object] = field(default_factory=dict)
    root: ObjectId | None = None
    relocations: int = 0

    def __call__(self, operation: ObjectEntry) -> Any:
        """The operation's own answer, if the model gives the same; else what it should be."""
        unmodelled = operation.method in _UNMODELLED
        if unmodelled and operation.error in {errno.EPERM, errno.EACCES}:
            return operation.answer  # permissions are not the model's subject
        error = self.apply(operation.method, operation.objects, operation.arguments)
        if operation.error != error:
            return operation.answer if operation.error and unmodelled else f"errno {error}"
        if error or operation.answer is None:  # its client got no answer
            return operation.answer
        return self._compare(operation) or operation.answer

    def apply(self, method: str, objects: Sequence[ObjectId], arguments: Any) -> int:
        """Perform an operation; its errno if it is refused, else 0."""
        try:
            self._do(method, objects, arguments)
        except _RefusedByModel as refused:
            return refused.code
        return 0

    def reachable(self) -> set[ObjectId]:
        """All objects below the root."""
        reached: set[ObjectId] = set()
        waiting = [] if self.root is None else [self.root]
        while waiting:
            identifier = waiting.pop()
            if identifier not in reached:
                reached.add(identifier)
                waiting += self.objects[identifier].entries.values()
        return reached

    def entries(self, identifier: ObjectId) -> dict[bytes, ObjectId]:
        """The entries of a directory."""
        return self.objects[identifier].entries

    def _do(self, method: str, objects: Sequence[ObjectId], arguments: Any) -> None:
        match method:
            case registry.FORMAT:
                if self.root is None:
                    self.root = objects[1]
                    self.objects[self.root] = _Object(True, arguments.mode, self.root)
            case registry.CREATE:
                made = _Object(False, _bits(arguments))
                self._add(objects[0], arguments.name, objects[1], made)
            case registry.MAKE_DIRECTORY:
                made = _Object(True, _bits(arguments), objects[0])
                self._add(objects[0], arguments.name, objects[1], made)
            case registry.LINK:
                self._link(objects[0], arguments.name, objects[1])
            case registry.UNLINK | registry.REMOVE_DIRECTORY:
                self._remove(objects[0], arguments.name, objects[1])
            case registry.RENAME | registry.RELOCATE:
                self._rename(objects, arguments)
            case registry.CHANGE_ATTRIBUTES:
                changed = self._existing(objects[0])
                if arguments.mode is not None:
                    changed.mode = stat.S_IMODE(arguments.mode)
            case registry.SET_EXTENDED:
                changed = self._existing(objects[0])
                if arguments.name == ACCESS and arguments.value:
                    acl = AccessControlList.decode(arguments.value)
                    changed.mode = changed.mode & ~0o777 | acl.mode
            case registry.DESCRIBE:
                if self.root is None:
                    raise _RefusedByModel(errno.ESTALE)
            case _:
                for each in objects:
                    self._existing(each)

    def _existing(self, identifier: ObjectId) -> _Object:
        found = self.objects.get(identifier)
        if found is None:
            raise _RefusedByModel(errno.ESTALE)
        return found

    def _require_room(self, directory: _Object, name: bytes) -> None:
        if name in directory.entries:
            raise _RefusedByModel(errno.EEXIST)
        if not self._stands(directory):
            raise _RefusedByModel(errno.ENOENT)

    def _stands(self, each: _Object) -> bool:
        return each.names > 0 or (self.root is not None and self.objects[self.root] is each)

    def _add(self, directory: ObjectId, name: bytes, child: ObjectId, made: _Object) -> None:
        parent = self._existing(directory)
        self._require_room(parent, name)
        if child in self.objects:
            raise _RefusedByModel(errno.ESTALE)
        self.objects[child] = made
        self._enter(parent, name, child)

    def _link(self, directory: ObjectId, name: bytes, child: ObjectId) -> None:
        parent, inode = self._existing(directory), self._existing(child)
        self._require_room(parent, name)
        if not inode.names:
            raise _RefusedByModel(errno.ENOENT)
        self._enter(parent, name, child)

    def _remove(self, directory: ObjectId, name: bytes, child: ObjectId) -> None:
        parent, removed = self._existing(directory), self._existing(child)
        if name not in parent.entries:
            raise _RefusedByModel(errno.ENOENT)
        if parent.entries[name] != child:
            raise _RefusedByModel(errno.ESTALE)
        if removed.entries:
            raise _RefusedByModel(errno.ENOTEMPTY)
        self._leave(parent, name)

    def _enter(self, directory: _Object, name: bytes, child: ObjectId) -> None:
        directory.entries[name] = child
        self.objects[child].names += 1

    def _leave(self, directory: _Object, name: bytes) -> ObjectId:
        child = directory.entries.pop(name)
        self.objects[child].names -= 1
        return child

    def _rename(self, objects: Sequence[ObjectId], arguments: Renaming | Relocation) -> None:
        source_id, target_id, _, replaced_id = objects[:4]
        source, target, child, replaced = map(self._existing, objects[:4])
        found = self._renamed_onto(objects, arguments)
        moved = source.entries[arguments.name]
        exchange = bool(arguments.flags & RENAME_EXCHANGE)
        if found not in {None, moved} and not exchange:
            _require_replaceable(child, replaced)
        if isinstance(arguments, Relocation):
            if arguments.epoch != self.relocations:
                raise _RefusedByModel(errno.EAGAIN)
            self.relocations += 1
        if found == moved:
            return
        self._leave(source, arguments.name)
        if found is not None:
            self._leave(target, arguments.target_name)
        self._enter(target, arguments.target_name, moved)
        child.parent = target_id if child.directory else None
        if exchange:
            self._enter(source, arguments.name, replaced_id)
            replaced.parent = source_id if replaced.directory else None

    def _renamed_onto(
        self, objects: Sequence[ObjectId], arguments: Renaming | Relocation
    ) -> ObjectId | None:
        """The object that has the target's name, if the names and directories allow the rename."""
        source_id, target_id, child_id, replaced_id = objects[:4]
        source, target, child, replaced = map(self._existing, objects[:4])
        exchange = bool(arguments.flags & RENAME_EXCHANGE)
        moves_directory = child.directory or (exchange and replaced.directory)
        if isinstance(arguments, Renaming) and source_id != target_id and moves_directory:
            raise _RefusedByModel(errno.EXDEV)
        moved, found = _named(source, target, arguments)
        if moved != child_id or replaced_id != (child_id if found is None else found):
            raise _RefusedByModel(errno.ESTALE)
        if child_id == target_id:
            raise _RefusedByModel(errno.EINVAL)
        if replaced_id == source_id:
            raise _RefusedByModel(errno.EINVAL if exchange else errno.ENOTEMPTY)
        if found != moved and not self._stands(target):
            raise _RefusedByModel(errno.ENOENT)
        return found

    # --- answers -----------------------------------------------------------------------------

    def _compare(self, call: ObjectEntry) -> str:
        """The error in the answer to `call`, given the state after it; empty if there is none."""
        objects, answer = call.objects, call.answer
        match answer:
            case LookupAnswer(directory, child):
                wrong = self.differs(objects[0], directory)
                there = self.objects[objects[0]].entries.get(call.arguments.name)
                if (None if child is None else child.identifier) != there:
                    wrong = f"{call.arguments} stands for {_short(there)}"
                return wrong
            case Attributes():
                return self.differs(objects[0], answer)
            case AttributesAfter(attributes):
                return "".join(map(self.differs, objects, attributes))
            case DirectoryPage(entries, complete, directory):
                wrong = self.differs(objects[0], directory)
                listed = {each.name: each.identifier for each in entries}
                whole = complete and not call.arguments.after
                if whole and (
                    listed != self.objects[objects[0]].entries or len(listed) < len(entries)
                ):
                    wrong = f"the entries are {self.objects[objects[0]].entries}"
                return wrong
            case Volume(relocations=relocations):
                return "" if relocations == self.relocations else f"{self.relocations} relocations"
            case _:
                return ""

    def differs(self, identifier: ObjectId, attributes: Attributes) -> str:
        """The error in the attributes of one object; empty if there is none."""
        known = self.objects[identifier]
        links = known.names
        if known.directory:
            below = sum(self.objects[child].directory for child in known.entries.values())
            links = 2 + below if self._stands(known) else 0
        found = (attributes.links, attributes.entries, attributes.is_directory)
        right = (links, len(known.entries), known.directory)
        if found != right:
            return f"{_short(identifier)} has (links, entries, is directory) {right}"
        if known.directory and links and attributes.parent != known.parent:
            return f"{_short(identifier)} stands in {_short(known.parent)}"
        if stat.S_IMODE(attributes.mode) != known.mode:
            return f"{_short(identifier)} has the mode {known.mode:o}"
        if stat.S_ISDIR(attributes.mode) != (kind_of(identifier) == ObjectKind.DIRECTORY):
            return f"{_short(identifier)} has a mode that is not its kind's"
        return ""


def _named(
    source: _Object, target: _Object, arguments: Renaming | Relocation
) -> tuple[ObjectId, ObjectId | None]:
    """The objects with the source's and with the target's name, if the flags allow that."""
    exchange = bool(arguments.flags & RENAME_EXCHANGE)
    if exchange and arguments.flags & RENAME_NOREPLACE:
        raise _RefusedByModel(errno.EINVAL)
    moved = source.entries.get(arguments.name)
    found = target.entries.get(arguments.target_name)
    if moved is None or (found is None and exchange):
        raise _RefusedByModel(errno.ENOENT)
    if found is not None and arguments.flags & RENAME_NOREPLACE:
        raise _RefusedByModel(errno.EEXIST)
    return moved, found


def _require_replaceable(child: _Object, replaced: _Object) -> None:
    """An object gives way to one of its kind only, and a directory only if it is empty."""
    if child.directory != replaced.directory:
        raise _RefusedByModel(errno.ENOTDIR if child.directory else errno.EISDIR)
    if replaced.entries:
        raise _RefusedByModel(errno.ENOTEMPTY)


def _bits(arguments: Creation | DirectoryCreation) -> int:
    """The permission bits of something new; there are no ACLs that say otherwise."""
    return stat.S_IMODE(arguments.mode) & ~arguments.umask


# Methods whose refusals are about what the model does not know: permissions, a file's layout,
# extended attributes.
_UNMODELLED = (
    registry.WRITE,
    registry.TRUNCATE,
    registry.MERGE,
    registry.REWRITE,
    registry.PERMIT_WRITING,
    registry.PERMIT_READING,
    registry.CHANGE_ATTRIBUTES,
    registry.GET_EXTENDED,
    registry.SET_EXTENDED,
)
