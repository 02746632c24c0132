"""The volume as a replicated object, one per file system: its limits, and the relocation epoch.

Map key of its state: b"v" the record.

The epoch counts relocations: renames that moved a directory to another directory. Each of them
conditions on the epoch, so that they happen one after the other, and two clients cannot make a loop
together. [design §5]
"""

from __future__ import annotations

import errno
from typing import Annotated

import msgspec
from msgspec import Meta

from bftfs import limits
from bftfs.filesystem.objects import NoArguments, States
from bftfs.identifiers import ObjectId
from bftfs.query_update.object_type import Caller, MutableState, Record, Refusal
from bftfs.wire.fields import ObjectField

_RECORD_KEY = b"v"


class Volume(Record, frozen=True):
    """The record of a file system."""

    root: ObjectField
    block_bytes: int  # of new files
    created_us: int
    relocations: int = 0  # the epoch
    capacity_inodes: int = 1 << 32


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Volume).decode


class Format(Record, frozen=True):
    """The arguments that make a new file system."""

    block_bytes: Annotated[int, Meta(ge=limits.BLOCK_BYTES_MIN, le=limits.BLOCK_BYTES_MAX)]
    mode: Annotated[int, Meta(ge=0, le=0o7777)]  # of the root directory


def record_of(state: MutableState) -> Volume:
    """The volume's record; ESTALE if it was never formatted."""
    encoded = state.get(_RECORD_KEY)
    if encoded is None:
        raise Refusal(errno.ESTALE)
    return _decode(encoded)


def describe(states: States, arguments: NoArguments, caller: Caller) -> Volume:
    """The volume's record."""
    del arguments, caller
    return record_of(states[0])


def is_formatted(state: MutableState) -> bool:
    """True if the volume exists."""
    return state.get(_RECORD_KEY) is not None


def store_new(state: MutableState, arguments: Format, caller: Caller, *, root: ObjectId) -> Volume:
    """The record of a volume that is being formatted."""
    volume = Volume(root=root, block_bytes=arguments.block_bytes, created_us=caller.time_us)
    state.put(_RECORD_KEY, _encode(volume))
    return volume


def conclude_relocation(state: MutableState, epoch: int) -> None:
    """Count a relocation; EAGAIN if others happened since `epoch`."""
    volume = record_of(state)
    if volume.relocations != epoch:
        raise Refusal(errno.EAGAIN)
    state.put(_RECORD_KEY, _encode(msgspec.structs.replace(volume, relocations=epoch + 1)))
