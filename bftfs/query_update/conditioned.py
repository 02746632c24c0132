"""What a timestamp stands for: an operation and the history sets it is conditioned on.

[Q/U §4.3.4, lines 102-103, 1100-1118; §4.3.5, Compact timestamps; §4.3.7]
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Annotated, TypeAlias

from msgspec import Meta

from bftfs import limits
from bftfs.crypto.digest import operation_digest
from bftfs.identifiers import ClientId
from bftfs.query_update.history import CulledObjectHistorySet, ObjectHistorySet
from bftfs.query_update.timestamp import (
    LogicalTimestamp,
    TimestampField,
    logical_timestamp,
    time_of,
)
from bftfs.wire.codec import Decoder, Value
from bftfs.wire.fields import ObjectField, TimeField, UserField

_OBJECTS = Meta(min_length=1, max_length=limits.OBJECTS_PER_OPERATION)
_SOME_OBJECTS = Meta(max_length=limits.OBJECTS_PER_OPERATION)

MethodField: TypeAlias = Annotated[str, Meta(max_length=limits.METHOD_NAME_BYTES)]
ArgumentsField: TypeAlias = Annotated[bytes, Meta(max_length=limits.OPERATION_BYTES)]
GroupsField: TypeAlias = Annotated[tuple[UserField, ...], Meta(max_length=limits.GROUPS)]
AnswerField: TypeAlias = Annotated[bytes, Meta(max_length=limits.ANSWER_BYTES)]


class Operation(Value, frozen=True):
    """One invocation of an update method. [Q/U §4.3.4, line 102]

    `objects` are in the order of the method's roles. `serial` is drawn by the client: two
    invocations alike are two operations.
    """

    method: MethodField
    objects: Annotated[tuple[ObjectField, ...], _OBJECTS]
    arguments: ArgumentsField
    uid: UserField
    gid: UserField
    groups: GroupsField
    serial: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class ConditionedKind(IntEnum):
    """What an operation does, and with it which classification it requires."""

    METHOD = 1
    COPY = 2
    BARRIER = 3


class Fact(Value, frozen=True):
    """What is known of a multi-object candidate by deduction: established, or dead. [Q/U §4.3.7]"""

    timestamp: TimestampField
    established: bool


class Conditioned(Value, frozen=True):
    """All that a timestamp stands for: what is to be done, and on what it is conditioned.

    `sets` are the history sets of the objects that it changes, ascending. `evidence` are those of
    other objects, and `facts` is what is known of candidates, that decide what a copy copies.
    `LT.Time` is the larger of `clock` and one more than the latest time in `sets`.
    """

    kind: ConditionedKind
    operation: Operation | None  # None unless kind is METHOD
    clock: TimeField
    sets: Annotated[tuple[ObjectHistorySet, ...], _OBJECTS]
    evidence: Annotated[tuple[ObjectHistorySet, ...], _SOME_OBJECTS] = ()
    facts: Annotated[tuple[Fact, ...], Meta(max_length=limits.FACTS)] = ()


_DECODER: Decoder[Conditioned] = Decoder(Conditioned, limit=limits.CONDITIONED_BYTES)
decode_conditioned = _DECODER.decode


def timestamp_of(
    conditioned: Conditioned,
    encoded: bytes,
    sets: Iterable[CulledObjectHistorySet],
    author: ClientId,
) -> LogicalTimestamp:
    """The timestamp of what `conditioned`, encoded as `encoded`, describes; one for all objects.

    `sets` is what its `sets` say. A deterministic function of operation and object history sets, so
    that all servers that receive the same set up the same candidate. [Q/U line 1102]
    """
    time_us = conditioned.clock
    for history_set in sets:
        time_us = max(time_us, time_of(history_set.latest) + 1)
    return logical_timestamp(
        time_us=time_us,
        barrier=conditioned.kind is ConditionedKind.BARRIER,
        client=author,
        digest=operation_digest(encoded),
    )
