"""The volume as a replicated object, one per file system: its limits, relocations and snapshots.

Map keys of its state: b"v" the record, b"n" + name a snapshot.

The epoch counts relocations: renames that moved a directory to another directory. Each of them
conditions on the epoch, so that they happen one after the other, and two clients cannot make a loop
together. [design §5]

Snapshots are names for times. A snapshot shows the file system as of its time. Nothing is copied:
retention keeps the versions that a snapshot shows.
"""

from __future__ import annotations

import errno
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from bftfs import limits
from bftfs.filesystem.directory import (
    Name,
    NameField,
    Relocation,
    fault_of,
    new_directory,
    rename_objects,
)
from bftfs.filesystem.objects import ROOT, AttributesAfter, NoArguments, States, Subject, loaded
from bftfs.filesystem.time_names import looks_like_a_time_name
from bftfs.query_update.object_type import Caller, MutableState, Record, Refusal, State
from bftfs.wire.codec import ObjectField, TimeField

SNAPSHOTS: Final = 1024  # of one volume: a list of all of them is one answer
SNAPSHOTS_OF_ONE: Final = 128  # …and of one user, root excepted

_RECORD_KEY = b"v"
_SNAPSHOT_KEY = b"n"


class Volume(Record, frozen=True):
    """The record of a file system."""

    root: ObjectField
    block_bytes: int  # of new files
    created_us: int
    relocations: int = 0  # the epoch
    capacity_inodes: int = 1 << 32


class Snapshot(Record, frozen=True):
    """A name for a time."""

    name: bytes
    time_us: int
    uid: int  # of its author
    made_us: int


_encode = msgspec.msgpack.Encoder().encode
_decode_volume = msgspec.msgpack.Decoder(Volume).decode
_decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode


def record_of(state: MutableState) -> Volume:
    """The volume's record; ESTALE if it was never formatted."""
    encoded = state.get(_RECORD_KEY)
    if encoded is None:
        raise Refusal(errno.ESTALE)
    return _decode_volume(encoded)


def describe(states: States, arguments: NoArguments, caller: Caller) -> Volume:
    """The volume's record."""
    del arguments, caller
    return record_of(states[0])


class Format(Record, frozen=True):
    """The arguments that make a new file system."""

    block_bytes: Annotated[int, Meta(ge=limits.BLOCK_BYTES_MIN, le=limits.BLOCK_BYTES_MAX)]
    mode: Annotated[int, Meta(ge=0, le=0o7777)]  # of the root directory


def format_volume(states: States, arguments: Format, caller: Caller) -> Volume:
    """Make the file system, owned by the caller, unless it exists. Roles: volume, root directory.

    Repeating it changes nothing, so that every start of a cluster may begin with it.
    """
    state, root = states
    if state.get(_RECORD_KEY) is not None:
        return record_of(state)
    attributes = new_directory(caller, mode=arguments.mode, gid=caller.gid, parent=root.object)
    Subject.created(root, attributes).conclude(caller)
    volume = Volume(root.object, arguments.block_bytes, caller.time_us)
    state.put(_RECORD_KEY, _encode(volume))
    return volume


def relocate(states: States, arguments: Relocation, caller: Caller) -> AttributesAfter:
    """Rename a directory into another directory. Roles: those of `rename`, then the volume.

    EAGAIN if other directories were relocated since the client read the epoch.
    """
    after = rename_objects(loaded(*states[:4]), arguments, caller)
    volume = record_of(states[4])
    if volume.relocations != arguments.epoch:
        raise Refusal(errno.EAGAIN)
    counted = msgspec.structs.replace(volume, relocations=volume.relocations + 1)
    states[4].put(_RECORD_KEY, _encode(counted))
    return after


# --- snapshots -------------------------------------------------------------------------------


class SnapshotCreation(Record, frozen=True):
    """A new snapshot; `time_us` of 0 stands for the time of the operation."""

    name: NameField
    time_us: TimeField = 0


class Snapshots(Record, frozen=True):
    """All snapshots, by name."""

    snapshots: tuple[Snapshot, ...]


def _snapshots(volume: State) -> tuple[Snapshot, ...]:
    return tuple(_decode_snapshot(value) for _, value in volume.scan(_SNAPSHOT_KEY, b"o"))


def times_of_snapshots(volume: State) -> tuple[int, ...]:
    """The times of all snapshots, for garbage collection."""
    return tuple(snapshot.time_us for snapshot in _snapshots(volume))


def list_snapshots(states: States, arguments: NoArguments, caller: Caller) -> Snapshots:
    """All snapshots."""
    del arguments, caller
    record_of(states[0])
    return Snapshots(_snapshots(states[0]))


def create_snapshot(states: States, arguments: SnapshotCreation, caller: Caller) -> Snapshot:
    """Give a time a name. Anybody may; only the author or root may delete it."""
    name = arguments.name
    if fault := fault_of(name):
        raise Refusal(fault)
    # In `.history`, names must not look like times or be hidden.
    if name.startswith(b".") or looks_like_a_time_name(name):
        raise Refusal(errno.EINVAL)
    if arguments.time_us > caller.time_us:
        raise Refusal(errno.ERANGE)
    record_of(states[0])
    there = _snapshots(states[0])
    if any(snapshot.name == name for snapshot in there):
        raise Refusal(errno.EEXIST)
    own = sum(snapshot.uid == caller.uid for snapshot in there)
    if len(there) >= SNAPSHOTS or (caller.uid != ROOT and own >= SNAPSHOTS_OF_ONE):
        raise Refusal(errno.EDQUOT)
    snapshot = Snapshot(name, arguments.time_us or caller.time_us, caller.uid, caller.time_us)
    states[0].put(_SNAPSHOT_KEY + name, _encode(snapshot))
    return snapshot


def delete_snapshot(states: States, arguments: Name, caller: Caller) -> Snapshot:
    """Delete a snapshot's name; the versions it showed stay as long as retention says."""
    record_of(states[0])
    for snapshot in _snapshots(states[0]):
        if snapshot.name == arguments.name:
            if caller.uid not in (ROOT, snapshot.uid):
                raise Refusal(errno.EPERM)
            states[0].delete(_SNAPSHOT_KEY + snapshot.name)
            return snapshot
    raise Refusal(errno.ENOENT)


assert SNAPSHOTS * (limits.NAME_BYTES + 64) < limits.ANSWER_BYTES
