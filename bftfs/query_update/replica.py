"""One server's copy of one object: replica history, versions, and the state at each of them.

A version is its parent plus a delta, and nothing that an update does grows with the object or its
history. [Q/U §4.2.1: versioning servers]

Tables, with `number` the position of a version on the chain from ⟨0, 0⟩ to the head (local to this
server; 8 bytes, big-endian):

- OBJECT: object id -> `ObjectRow`.
- VERSION: object id + timestamp -> `Version`; number 0 for versions that are known but not on the
  head's chain.
- STATE: object id + key -> number of the version that wrote it + value: the head's map.
- PAST: object id + escaped key + number of the version that overwrote it -> the overwritten row;
  and object id + two zero bytes + serial + number of a version that removed a serial behind it ->
  the serial up to which, from that one on, all had gone then (lists in `object_type`).
- REQUEST: timestamp -> the `Conditioned` of a candidate that may still need inline repair; and
  what object sync has fetched, until it is used.

**Invariants.** The head is the greatest object candidate of the replica history. The chain is only
ever moved back to versions later than `established`. All changes of a step are in `writes`; the
view that is read stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from heapq import merge
from operator import attrgetter, itemgetter
from typing import Annotated, TypeAlias

import msgspec

from bftfs import limits
from bftfs.crypto.digest import AuthenticatorKeys, replica_history_digest
from bftfs.errors import DamagedRow, MalformedMessage
from bftfs.identifiers import ObjectId
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    LogicalTimestamp,
    Operation,
    ReplicaHistory,
    history_of,
    latest_in,
    parse_history,
    time_of,
)
from bftfs.query_update.holes import Holes
from bftfs.query_update.messages import Verdict
from bftfs.query_update.object_type import serial_from, serial_key
from bftfs.storage import StorageView, Table, Write, after_keys
from bftfs.wire.codec import UNREADABLE, Value, encode

NUMBER_BYTES = 8

# Members of a class take longer to find.
_OBJECT, _VERSION = Table.OBJECT, Table.VERSION
_STATE, _PAST = Table.STATE, Table.PAST

_Steps: TypeAlias = "list[tuple[LogicalTimestamp, Version]]"
KeyChange = tuple[bytes, bytes | None]  # key and new value; None: the key is gone
_Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class ObjectRow(Value, frozen=True):
    """The OBJECT row: the chain's head and the replica history."""

    number: _Natural  # of the head
    established: LogicalTimestamp  # the greatest version on the chain that is known established
    floor: LogicalTimestamp  # below it, versions of the chain may be missing here
    history: bytes
    authenticator: bytes
    collected_us: _Natural = 0  # versions that no time from here on shows may be gone [design §8]
    unswept_us: _Natural = 0  # collection up to here may have left values that no version sees


class Version(Value, frozen=True):
    """A version of an object. The operation and its answer stand with the first of its objects."""

    number: _Natural  # on the head's chain; 0 if not on it
    parent: LogicalTimestamp
    objects: tuple[ObjectId, ...]
    copy: bool
    delta: tuple[KeyChange, ...]
    operation: Operation | None = None
    answer: bytes = b""
    gap: bool = False  # parent and delta are not the operation's: versions between are missing
    until_us: _Natural = 0  # time of the version that followed it, if that was collected
    holes: tuple[_Natural, ...] = ()  # where those begin that it has left in a sequence here


class Link(Value, frozen=True):
    """A version as one server sends it to another: `Version` without its local fields."""

    timestamp: LogicalTimestamp
    parent: LogicalTimestamp
    objects: tuple[ObjectId, ...]
    copy: bool
    delta: tuple[KeyChange, ...]
    operation: Operation | None
    answer: bytes


class StatePage(Value, frozen=True):
    """A run of an object's state in key order; `more` if it does not reach the end."""

    pairs: tuple[tuple[bytes, bytes], ...]
    more: bool


INITIAL_ROW = ObjectRow(0, ZERO, ZERO, b"", b"")

# They raise msgspec's errors if a row is damaged.
stored_row = msgspec.msgpack.Decoder(ObjectRow).decode
stored_version = msgspec.msgpack.Decoder(Version).decode


def latest_of(name: ObjectId, stored: bytes) -> LogicalTimestamp:
    """The latest timestamp in the replica history of an object's row. Raises `DamagedRow`."""
    try:
        return latest_in(stored_row(stored).history)
    except (*UNREADABLE, MalformedMessage) as error:
        raise DamagedRow(name, str(error)) from error


def own_authenticator(keys: AuthenticatorKeys, name: ObjectId, history: bytes) -> bytes:
    """This server's authenticator over its replica history of an object.

    It tells which lives of others this server knows of: what it has accepted since it heard of
    one is not to be counted with what was signed in an earlier one. [`.consistent`]
    """
    return keys.make_knowing(replica_history_digest(object=name, encoded=history))


def is_signed(keys: AuthenticatorKeys, name: ObjectId, row: ObjectRow) -> bool:
    """True if the row's authenticator is this server's own, of whatever life: all of its MACs."""
    digest = replica_history_digest(object=name, encoded=row.history)
    return row.authenticator == keys.made_alike(digest, row.authenticator)


# What servers tell each other of a version: the same at every benign one that has it.
_told = attrgetter("parent", "objects", "copy", "delta", "operation", "answer")


def link_of(timestamp: LogicalTimestamp, version: Version) -> Link:
    """A version as servers tell it each other."""
    return Link(timestamp, *_told(version))


def rows_of(view: StorageView, identifier: ObjectId) -> Iterator[tuple[Table, bytes]]:
    """All rows of an object but its OBJECT row and the requests."""
    stop = (int.from_bytes(identifier, "big") + 1).to_bytes(len(identifier) + 1, "big")[1:]
    for table in (Table.VERSION, Table.STATE, Table.PAST):
        for key in view.keys(table, identifier, stop):
            yield table, key


def past_prefix(identifier: ObjectId, key: bytes) -> bytes:
    """The start of all PAST keys of `key`. Keeps the order of keys; no prefix of another key's."""
    return identifier + escaped(key) + b"\0\0"


def escaped(key: bytes) -> bytes:
    """A key as it stands in PAST keys."""
    return key.replace(b"\0", b"\0\xff")


def unescaped(key: bytes) -> bytes:
    """Undoes `escaped`."""
    return key.replace(b"\0\xff", b"\0")


def hole_prefix(identifier: ObjectId, serial: int) -> bytes:
    """The start of the PAST keys of holes from `serial` on. (No key of a state is empty.)"""
    return identifier + b"\0\0" + serial_key(serial)


def hole_start(identifier: ObjectId, key: bytes) -> int:
    """Where the hole begins that the row with this key notes."""
    return serial_from(key[len(hole_prefix(identifier, 0)) - len(serial_key(0)) : -NUMBER_BYTES])


def _hole_key(identifier: ObjectId, serial: int, number: int) -> bytes:
    return hole_prefix(identifier, serial) + stamp_of(number)


def holes_forgotten(identifier: ObjectId, version: Version) -> list[Write]:
    """The writes that remove a version's notes of holes."""
    return [
        Write(Table.PAST, _hole_key(identifier, start, version.number), None)
        for start in version.holes
    ]


def stamp_of(number: int) -> bytes:
    """A version's number as rows begin with it and PAST keys end with it."""
    return number.to_bytes(NUMBER_BYTES, "big")


class Reach(Enum):
    """How a server can get to a version of an object, to build on it."""

    HERE = "here"  # it is the head
    KNOWN = "known"  # the head can be moved to it
    MISSING = "missing"  # object sync has to bring it
    BLOCKED = "blocked"  # the established version here is not below it


class Workspace:
    """The state at the version that an update builds on, and the changes it makes to it."""

    __slots__ = (
        "_finder",
        "_moved",
        "_prefix",
        "_rewound",
        "_rows",
        "_view",
        "delta",
        "holes",
        "object",
    )

    def __init__(self, view: StorageView, identifier: ObjectId) -> None:
        self.object = identifier
        self._view = view
        self._prefix = bytes(identifier)
        self._rows: dict[bytes, bytes | None] = {}  # rows as moved, and those read
        self._moved: set[bytes] = set()  # keys whose rows differ from the view's
        self._rewound = False  # True once a version was taken back in this step
        self.holes: tuple[int, ...] = ()  # beginnings of those that the last version applied left
        self._finder: Holes | None = None  # from the first removal in this step on
        self.delta: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """The value at `key`, or None."""
        if key in self.delta:
            return self.delta[key]
        rows = self._rows
        row = rows[key] if key in rows else self.row(key)
        return None if row is None else row[NUMBER_BYTES:]

    def put(self, key: bytes, value: bytes) -> None:
        """Make `value` the value at `key`."""
        if (
            not key
            or len(key) > limits.STATE_KEY_BYTES
            or key.count(0) > limits.STATE_KEY_BYTES // 2
            or len(value) > limits.STATE_VALUE_BYTES
        ):
            raise ValueError("a key or value that a state cannot hold")
        delta = self.delta
        delta[key] = value
        if len(delta) > limits.DELTA_ENTRIES:
            self._bound()

    def delete(self, key: bytes) -> None:
        """Remove `key`."""
        self.delta[key] = None
        self._bound()

    def _bound(self) -> None:
        if len(self.delta) > limits.DELTA_ENTRIES:
            raise ValueError("an update changes too much of one object")

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop in key order, or in reverse key order. Lazy."""
        skip = len(self._prefix)
        low, high = self._prefix + start, self._prefix + stop
        stored = self._view.scan(Table.STATE, low, high, reverse=reverse)
        changed = self._changed(start, stop) if self._moved or self.delta else {}
        if not changed:
            return ((key[skip:], row[NUMBER_BYTES:]) for key, row in stored)
        kept = (
            (key[skip:], row[NUMBER_BYTES:]) for key, row in stored if key[skip:] not in changed
        )
        put = [(key, value) for key, value in changed.items() if value is not None]
        put.sort(reverse=reverse)
        return merge(kept, put, key=itemgetter(0), reverse=reverse)

    def _changed(self, start: bytes, stop: bytes) -> dict[bytes, bytes | None]:
        """The values that this step has changed between the keys; None: removed."""
        changed: dict[bytes, bytes | None] = {}
        for key in self._moved:
            row = self._rows[key]
            changed[key] = None if row is None else row[NUMBER_BYTES:]
        changed.update(self.delta)
        return {key: value for key, value in changed.items() if start <= key < stop}

    # --- for the replica ------------------------------------------------------------------------

    def row(self, key: bytes) -> bytes | None:
        """The row at `key` in STATE, with the moves of this step applied."""
        rows = self._rows
        if key not in rows:
            rows[key] = self._view.get(_STATE, self._prefix + key)
        return rows[key]

    def undo(self, version: Version) -> list[Write]:
        """Take back the version of the head."""
        number = version.number
        self._rewound, self._finder = True, None
        writes = holes_forgotten(self.object, version)
        for key, _ in version.delta:
            past_key = past_prefix(self.object, key) + stamp_of(number)
            row = self._view.get(Table.PAST, past_key)
            if row is not None:
                writes.append(Write(Table.PAST, past_key, None))
            writes.append(Write(Table.STATE, self._prefix + key, row))
            self._rows[key] = row
            self._moved.add(key)
        return writes

    def apply(self, number: int, changes: tuple[KeyChange, ...]) -> list[Write]:
        """Apply version `number` on top."""
        writes = []
        stamp, prefix, rows = stamp_of(number), self._prefix, self._rows
        removes = False
        for key, value in changes:
            row = rows[key] if key in rows else self.row(key)
            if row is not None:
                writes.append(Write(_PAST, past_prefix(self.object, key) + stamp, row))
            if value is None:
                rows[key] = row = None
                removes = True
            else:
                rows[key] = row = stamp + value
            writes.append(Write(_STATE, prefix + key, row))
            self._moved.add(key)
        self.holes = ()
        if (removes or self._finder is not None) and (holes := self._holes(changes)):
            self.holes = tuple(holes)
            writes += (
                Write(Table.PAST, _hole_key(self.object, start, number), serial_key(end))
                for start, end in holes.items()
            )
        return writes

    def _holes(self, changes: tuple[KeyChange, ...]) -> dict[int, int]:
        """Beginnings and ends of the holes that the head has left in a sequence."""
        # A state that object sync has brought: without its holes it is only slower.
        if len(changes) > limits.DELTA_ENTRIES:
            self._finder = None
            return {}
        if self._finder is None:
            self._finder = Holes(
                self._view, self._prefix, self._rows, moved=self._moved, rewound=self._rewound
            )
        return self._finder.left_by(changes)

    def take_delta(self) -> tuple[KeyChange, ...]:
        """The changes of the method in key order, without values that stay the same."""
        changes = []
        rows = self._rows
        for key, value in sorted(self.delta.items()):
            row = rows[key] if key in rows else self.row(key)
            if (None if row is None else row[NUMBER_BYTES:]) != value:
                changes.append((key, value))
        self.delta = {}
        return tuple(changes)


class Replica:
    """An object at one server, during one step. Raises `DamagedRow` if a row cannot be read."""

    __slots__ = ("_versions", "history", "object", "row", "stored", "view", "workspace", "writes")

    def __init__(self, view: StorageView, identifier: ObjectId) -> None:
        self.view = view
        self.object = identifier
        stored = view.get(_OBJECT, identifier)
        try:
            self.row: ObjectRow = INITIAL_ROW if stored is None else stored_row(stored)
            self.history: ReplicaHistory = parse_history(self.row.history)
        except (*UNREADABLE, MalformedMessage) as error:
            raise DamagedRow(identifier, str(error)) from error
        self.stored = self.row  # as it was before this step
        self.writes: list[Write] = []
        self.workspace = Workspace(view, identifier)
        self._versions: dict[LogicalTimestamp, Version] = {}  # those that this step has stored

    @property
    def head(self) -> LogicalTimestamp:
        """The latest object version here."""
        return self.history.latest_object.timestamp

    @property
    def is_shallow(self) -> bool:
        """True if versions of the chain are missing here that were not collected."""
        return self.row.floor > ZERO and not self.has_collected(self.row.floor)

    def has_collected(self, timestamp: LogicalTimestamp) -> bool:
        """True if the version at `timestamp`, when it is missing, may have been collected."""
        return time_of(timestamp) <= self.row.collected_us

    def version(self, timestamp: LogicalTimestamp) -> Version | None:
        """The version at `timestamp`, if it is known here."""
        version = self._versions.get(timestamp)
        if version is not None:
            return version
        stored = self.view.get(Table.VERSION, self.object + timestamp)
        try:
            return None if stored is None else stored_version(stored)
        except UNREADABLE as error:
            raise DamagedRow(self.object, str(error)) from error

    # --- what is in the chain ---------------------------------------------------------------------

    def verdict(self, timestamp: LogicalTimestamp) -> Verdict:
        """Is a candidate on the chain of the established version here? [Q/U §4.3.7]"""
        if timestamp > self.row.established:
            return Verdict.UNKNOWN
        return self._on_chain(timestamp)

    def verdict_at(self, timestamp: LogicalTimestamp, version: LogicalTimestamp) -> Verdict:
        """Is a candidate on the chain of `version`?"""
        if version == ZERO:
            return Verdict.DEAD
        known = self.version(version)
        if known is None or not known.number:
            return Verdict.UNKNOWN
        return Verdict.DEAD if timestamp > version else self._on_chain(timestamp)

    def _on_chain(self, timestamp: LogicalTimestamp) -> Verdict:
        version = self.version(timestamp)
        if version is not None and version.number:
            return Verdict.ESTABLISHED
        return Verdict.DEAD if timestamp > self.row.floor else Verdict.UNKNOWN

    # --- moving the head --------------------------------------------------------------------------

    def reach(self, target: LogicalTimestamp) -> Reach:
        """How the head can be moved to `target`, if it can."""
        if target == self.head:
            return Reach.HERE
        route = self._route(target)
        return route if isinstance(route, Reach) else Reach.KNOWN

    def move_to(self, target: LogicalTimestamp) -> None:
        """Move the head to `target`, undoing and redoing versions.

        Requires: `reach(target)` is HERE or KNOWN.
        """
        if target == self.head:
            return
        route = self._route(target)
        assert not isinstance(route, Reach)
        undone, redone = route
        number = self.row.number
        for timestamp, version in undone:
            self.writes += self.workspace.undo(version)
            self._store_version(timestamp, msgspec.structs.replace(version, number=0, holes=()))
            number -= 1
        for timestamp, version in redone:
            number += 1
            self.writes += self.workspace.apply(number, version.delta)
            placed = msgspec.structs.replace(version, number=number, holes=self.workspace.holes)
            self._store_version(timestamp, placed)
        self.row = msgspec.structs.replace(self.row, number=number)

    def _route(self, target: LogicalTimestamp) -> tuple[_Steps, _Steps] | Reach:
        """The versions to undo and then those to redo on the way from the head to `target`."""
        redone = []
        meeting = target
        while meeting != ZERO:
            version = self.version(meeting)
            if version is None:
                return Reach.MISSING
            if version.number:
                break
            redone.append((meeting, version))
            meeting = version.parent
        undone = []
        if meeting < self.row.established:
            return Reach.BLOCKED
        at = self.head
        while at != meeting:
            version = self.version(at)
            if version is None or at <= self.row.established:
                return Reach.BLOCKED
            undone.append((at, version))
            at = version.parent
        redone.reverse()
        return undone, redone

    def learn(self, links: tuple[Link, ...]) -> None:
        """Store versions that object sync has brought, off the chain, unless they are known."""
        for link in links:
            if self.version(link.timestamp) is None:
                self._store_version(link.timestamp, Version(0, *_told(link)))

    def install(self, target: LogicalTimestamp, state: Iterator[tuple[bytes, bytes]]) -> None:
        """Move the head to `target`, whose whole `state` object sync has brought.

        What lies between the established version here and `target` stays unknown: a gap.
        """
        number = self.row.number
        at = self.head
        while at > self.row.established:
            version = self.version(at)
            if version is None:
                raise DamagedRow(self.object, "a version is missing")
            self.writes += self.workspace.undo(version)
            self._store_version(at, msgspec.structs.replace(version, number=0, holes=()))
            number -= 1
            at = version.parent
        changes: list[KeyChange] = []
        before = self.workspace.scan(b"", after_keys(limits.STATE_KEY_BYTES))
        old = next(before, None)
        for key, value in state:
            while old is not None and old[0] < key:
                changes.append((old[0], None))
                old = next(before, None)
            if old is not None and old[0] == key:
                if old[1] != value:
                    changes.append((key, value))
                old = next(before, None)
            else:
                changes.append((key, value))
        while old is not None:
            changes.append((old[0], None))
            old = next(before, None)
        delta = tuple(changes)
        number += 1
        self.writes += self.workspace.apply(number, delta)
        self._store_version(
            target, Version(number, at, (), False, delta, gap=True, holes=self.workspace.holes)
        )
        self.row = msgspec.structs.replace(self.row, number=number, floor=target)

    def retreat(self, target: LogicalTimestamp, keys: AuthenticatorKeys) -> bool:
        """Go back to an earlier version of the chain, and give up all that came after.

        False if it is not here; what was written then does not count.
        """
        version = self.version(target)
        if version is None or not version.number or version.gap:
            return False
        at, number = self.head, self.row.number
        while at != target:
            undone = self.version(at)
            if undone is None or undone.gap:
                return False
            self.writes += self.workspace.undo(undone)
            self._store_version(at, msgspec.structs.replace(undone, number=0, holes=()))
            number -= 1
            at = undone.parent
        left = Candidate(target, version.parent, version.objects, version.copy)
        history = history_of((left,), initial=False)
        self.row = msgspec.structs.replace(self.row, number=number, established=target)
        self.report(history, own_authenticator(keys, self.object, history), established=target)
        return True

    # --- accepting --------------------------------------------------------------------------------

    def append(
        self, candidate: Candidate, *, operation: Operation | None = None, answer: bytes = b""
    ) -> None:
        """Make the workspace's changes the version of `candidate`, on top of the head."""
        delta = self.workspace.take_delta()
        number = self.row.number + 1
        self.writes += self.workspace.apply(number, delta)
        self._store_version(
            candidate.timestamp,
            Version(
                number,
                candidate.conditioned_on,
                candidate.objects,
                candidate.copy,
                delta,
                operation,
                answer,
                holes=self.workspace.holes,
            ),
        )
        self.row = msgspec.structs.replace(self.row, number=number)

    def extend(self, candidate: Candidate, keys: AuthenticatorKeys, *, complete: Candidate) -> bool:
        """RH ∪ {candidate}, pruned below the greatest complete object candidate.

        False, and nothing is changed, if the history is as long as it may be.

        A barrier supersedes earlier ones: no history that holds it has them as its latest, so that
        they play no part in any classification. The latest object version stays in any case.
        """
        history = self.history
        head = history.latest_object if candidate.barrier else None
        kept = [
            old
            for old in history.candidates
            if (old.timestamp >= complete.timestamp or old is head)
            and not (candidate.barrier and old.barrier)
        ]
        if len(kept) >= limits.HISTORY_CANDIDATES_MOST:
            return False
        established = ZERO if candidate.barrier else complete.timestamp
        initial = history.initial and complete.timestamp == ZERO
        encoded = history_of((*kept, candidate), initial=initial)
        self.report(encoded, own_authenticator(keys, self.object, encoded), established=established)
        return True

    def report(
        self, history: bytes, authenticator: bytes, *, established: LogicalTimestamp
    ) -> None:
        """Make `history` the replica history."""
        self.row = msgspec.structs.replace(
            self.row,
            established=max(established, self.row.established),
            history=history,
            authenticator=authenticator,
        )
        self.history = parse_history(history)
        self.writes.append(Write(_OBJECT, self.object, encode(self.row)))

    def _store_version(self, timestamp: LogicalTimestamp, version: Version) -> None:
        self._versions[timestamp] = version
        self.writes.append(Write(_VERSION, self.object + timestamp, encode(version)))
