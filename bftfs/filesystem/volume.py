"""The volume as a replicated object, one per file system: its limits, relocations and snapshots.

Map keys of its state: b"v" the record, b"n" + name a snapshot, b"c" + directory and uid in
digits a schedule of snapshots.

The epoch counts relocations: renames that moved a directory to another directory. Each of them
conditions on the epoch, so that they happen one after the other, and two clients cannot make a loop
together. [design §5]

Snapshots are names for times. A snapshot shows the file system as of its time. Nothing is copied:
retention keeps the versions that a snapshot shows.

A schedule makes snapshots and lets go of them, by rules, whenever a client asks for that. It is one
user's, for one directory. It removes only snapshots that it has made: their names and times are
part of it.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
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
from bftfs.filesystem.schedule import KEPT, RULES, Rule, fault_of_rules, is_due, kept_times
from bftfs.filesystem.time_names import format_utc, looks_like_a_time_name
from bftfs.identifiers import OBJECT_ID_BYTES, ObjectId
from bftfs.query_update.object_type import Caller, MutableState, Record, Refusal, State
from bftfs.wire.codec import ObjectField, TimeField, UserField

SNAPSHOTS: Final = 1024  # of one volume: a list of all of them is one answer
SNAPSHOTS_OF_ONE: Final = 128  # …and of one user, root excepted
SCHEDULES: Final = 64  # of one volume
SCHEDULES_OF_ONE: Final = 8  # …and of one user, root excepted
LABEL_BYTES: Final = 64  # with which the names of a schedule's snapshots begin
PATH_BYTES: Final = 512  # of a schedule's directory, for people

_RECORD_KEY = b"v"
_SNAPSHOT_KEY = b"n"
_SCHEDULE_KEY = b"c"


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
    _require_name(arguments.name)
    if arguments.time_us > caller.time_us:
        raise Refusal(errno.ERANGE)
    record_of(states[0])
    there = _snapshots(states[0])
    if any(snapshot.name == arguments.name for snapshot in there):
        raise Refusal(errno.EEXIST)
    time_us = arguments.time_us or caller.time_us
    return _add(states[0], there, Snapshot(arguments.name, time_us, caller.uid, caller.time_us))


def _require_name(name: bytes) -> None:
    if fault := fault_of(name):
        raise Refusal(fault)
    # In `.history`, names must not look like times or be hidden.
    if name.startswith(b".") or looks_like_a_time_name(name):
        raise Refusal(errno.EINVAL)


def _add(volume: MutableState, there: Collection[Snapshot], snapshot: Snapshot) -> Snapshot:
    """Add a snapshot to those that are there, if its author may have another one."""
    own = sum(each.uid == snapshot.uid for each in there)
    if len(there) >= SNAPSHOTS or (snapshot.uid != ROOT and own >= SNAPSHOTS_OF_ONE):
        raise Refusal(errno.EDQUOT)
    volume.put(_SNAPSHOT_KEY + snapshot.name, _encode(snapshot))
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


# --- schedules -------------------------------------------------------------------------------


class Made(Record, frozen=True):
    """A snapshot that a schedule has made. One that has its name but not its time is another."""

    name: bytes
    made_us: int


class ScheduleSetting(Record, frozen=True):
    """The rules by which the caller wants snapshots for a directory."""

    directory: ObjectField
    label: Annotated[bytes, Meta(max_length=LABEL_BYTES)]
    path: Annotated[bytes, Meta(max_length=PATH_BYTES)]
    rules: Annotated[tuple[Rule, ...], Meta(max_length=RULES)]


class ScheduleName(Record, frozen=True):
    """Which schedule: that of a user, for a directory."""

    directory: ObjectField
    uid: UserField


class Schedule(Record, frozen=True):
    """One user's schedule of snapshots for one directory."""

    directory: ObjectId
    uid: int
    label: bytes
    path: bytes  # where the directory was when the rules were given, from the root on
    rules: tuple[Rule, ...]
    made: tuple[Made, ...] = ()  # the oldest first


class Schedules(Record, frozen=True):
    """All schedules, by directory and user."""

    schedules: tuple[Schedule, ...]


class Followed(Record, frozen=True):
    """What a schedule has made and removed."""

    made: Snapshot | None
    removed: tuple[bytes, ...]


_decode_schedule = msgspec.msgpack.Decoder(Schedule).decode


def _key(directory: ObjectId, uid: int) -> bytes:
    return _SCHEDULE_KEY + f"{directory.hex()}/{uid}".encode()  # few zeros: see MutableState


def _schedules(volume: State) -> tuple[Schedule, ...]:
    return tuple(_decode_schedule(value) for _, value in volume.scan(_SCHEDULE_KEY, b"d"))


def _schedule(volume: MutableState, name: ScheduleName, caller: Caller) -> Schedule:
    """A schedule that the caller may use; ENOENT if there is none."""
    record_of(volume)
    encoded = volume.get(_key(name.directory, name.uid))
    if encoded is None:
        raise Refusal(errno.ENOENT)
    if caller.uid not in (ROOT, name.uid):
        raise Refusal(errno.EPERM)
    return _decode_schedule(encoded)


def list_schedules(states: States, arguments: NoArguments, caller: Caller) -> Schedules:
    """All schedules."""
    del arguments, caller
    record_of(states[0])
    return Schedules(_schedules(states[0]))


def set_schedule(states: States, arguments: ScheduleSetting, caller: Caller) -> Schedule:
    """Give a directory a schedule, or the caller's schedule for it other rules.

    Each user has schedules of their own, so that nobody can keep anybody from having one.
    """
    _require_name(arguments.label)
    if fault_of_rules(arguments.rules):
        raise Refusal(errno.EINVAL)
    record_of(states[0])
    there = _schedules(states[0])
    made: tuple[Made, ...] = ()
    own = 0
    for each in there:
        own += each.uid == caller.uid
        if (each.directory, each.uid) == (arguments.directory, caller.uid):
            made = each.made
            break
    else:
        if len(there) >= SCHEDULES or (caller.uid != ROOT and own >= SCHEDULES_OF_ONE):
            raise Refusal(errno.EDQUOT)
    schedule = Schedule(
        arguments.directory, caller.uid, arguments.label, arguments.path, arguments.rules, made
    )
    states[0].put(_key(schedule.directory, schedule.uid), _encode(schedule))
    return schedule


def delete_schedule(states: States, arguments: ScheduleName, caller: Caller) -> Schedule:
    """Remove a schedule; its snapshots stay, and are like any others then."""
    schedule = _schedule(states[0], arguments, caller)
    states[0].delete(_key(schedule.directory, schedule.uid))
    return schedule


def follow_schedule(states: States, arguments: ScheduleName, caller: Caller) -> Followed:
    """Make the snapshot that is due, and remove those that no rule keeps. Idempotent.

    The snapshot is that of the schedule's user, whichever client asks. EDQUOT if that user has too
    many.
    """
    volume = states[0]
    schedule = _schedule(volume, arguments, caller)
    there = {snapshot.name: snapshot for snapshot in _snapshots(volume)}
    made = [
        each
        for each in schedule.made
        if each.name in there and there[each.name].made_us == each.made_us
    ]
    times = [each.made_us for each in made]
    new_us = caller.time_us if is_due(schedule.rules, times, caller.time_us) else None
    kept = kept_times(schedule.rules, times if new_us is None else [*times, new_us])
    removed = tuple(each.name for each in made if each.made_us not in kept)
    for name in removed:
        volume.delete(_SNAPSHOT_KEY + name)
        del there[name]
    made = [each for each in made if each.made_us in kept]
    snapshot = None
    if new_us is not None:
        name = _free_name(schedule.label + b"-" + format_utc(new_us).encode(), there)
        snapshot = Snapshot(name, new_us, schedule.uid, new_us)
        _add(volume, there.values(), snapshot)
        made.append(Made(name, new_us))
    if tuple(made) != schedule.made:
        changed = msgspec.structs.replace(schedule, made=tuple(made))
        volume.put(_key(schedule.directory, schedule.uid), _encode(changed))
    return Followed(snapshot, removed)


def _free_name(name: bytes, taken: dict[bytes, Snapshot]) -> bytes:
    number, free = 1, name
    while free in taken:
        number += 1
        free = b"%s-%d" % (name, number)
    return free


_MADE_BYTES = LABEL_BYTES + 48  # encoded
_SCHEDULE_BYTES = OBJECT_ID_BYTES + LABEL_BYTES + PATH_BYTES + 64 + RULES * 32 + KEPT * _MADE_BYTES
assert SNAPSHOTS * (limits.NAME_BYTES + 64) < limits.ANSWER_BYTES
assert SCHEDULES * _SCHEDULE_BYTES < limits.ANSWER_BYTES
assert _SCHEDULE_BYTES < limits.STATE_VALUE_BYTES
assert KEPT + 2 < limits.DELTA_ENTRIES  # all that it has made, a new one, and itself
