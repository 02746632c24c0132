"""Snapshots: names for times, kept in the volume.

A snapshot shows the file system as of its time. Nothing is copied: retention keeps the versions
that a snapshot shows.

Map key of the volume's state: b"n" + name the record.
"""

from __future__ import annotations

import errno
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from bftfs import limits
from bftfs.filesystem.names import fault_of, is_dots
from bftfs.filesystem.objects import NoArguments, States
from bftfs.filesystem.permission import ROOT
from bftfs.filesystem.time_names import looks_like_a_time_name
from bftfs.filesystem.volume import is_formatted
from bftfs.query_update.object_type import Caller, Record, Refusal, State
from bftfs.wire.fields import TimeField

SNAPSHOTS: Final = 1024  # of one volume: a list of all of them is one answer
SNAPSHOTS_OF_ONE: Final = 128  # …and of one user, root excepted

_KEY = b"n"


class Snapshot(Record, frozen=True):
    """A name for a time."""

    name: bytes
    time_us: int
    uid: int  # of its author
    made_us: int


class SnapshotName(Record, frozen=True):
    """The name of a snapshot."""

    name: Annotated[bytes, Meta(max_length=4096)]


class SnapshotCreation(Record, frozen=True):
    """A new snapshot; `time_us` of 0 stands for the time of the operation."""

    name: Annotated[bytes, Meta(max_length=4096)]
    time_us: TimeField = 0


class Snapshots(Record, frozen=True):
    """All snapshots, by name."""

    snapshots: tuple[Snapshot, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Snapshot).decode


def _all(states: States) -> tuple[Snapshot, ...]:
    if not is_formatted(states[0]):
        raise Refusal(errno.ESTALE)
    return tuple(_decode(value) for _, value in states[0].scan(_KEY, b"o"))


def times_of_snapshots(volume: State) -> tuple[int, ...]:
    """The times of all snapshots, for garbage collection."""
    return tuple(_decode(value).time_us for _, value in volume.scan(_KEY, b"o"))


def list_snapshots(states: States, arguments: NoArguments, caller: Caller) -> Snapshots:
    """All snapshots."""
    del arguments, caller
    return Snapshots(_all(states))


def create_snapshot(states: States, arguments: SnapshotCreation, caller: Caller) -> Snapshot:
    """Give a time a name. Anybody may; only the author or root may delete it."""
    name = arguments.name
    if fault := fault_of(name):
        raise Refusal(fault)
    # In `.history`, names must not look like times or be hidden.
    if not name or is_dots(name) or name.startswith(b".") or looks_like_a_time_name(name):
        raise Refusal(errno.EINVAL)
    if arguments.time_us > caller.time_us:
        raise Refusal(errno.ERANGE)
    there = _all(states)
    if any(snapshot.name == name for snapshot in there):
        raise Refusal(errno.EEXIST)
    own = sum(snapshot.uid == caller.uid for snapshot in there)
    if len(there) >= SNAPSHOTS or (caller.uid != ROOT and own >= SNAPSHOTS_OF_ONE):
        raise Refusal(errno.EDQUOT)
    snapshot = Snapshot(name, arguments.time_us or caller.time_us, caller.uid, caller.time_us)
    states[0].put(_KEY + name, _encode(snapshot))
    return snapshot


def delete_snapshot(states: States, arguments: SnapshotName, caller: Caller) -> Snapshot:
    """Delete a snapshot's name; the versions it showed stay as long as retention says."""
    there = _all(states)
    for snapshot in there:
        if snapshot.name == arguments.name:
            if caller.uid not in (ROOT, snapshot.uid):
                raise Refusal(errno.EPERM)
            states[0].delete(_KEY + snapshot.name)
            return snapshot
    raise Refusal(errno.ENOENT)


assert SNAPSHOTS * (limits.NAME_BYTES + 64) < limits.ANSWER_BYTES
