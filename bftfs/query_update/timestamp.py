"""Logical timestamps: the order of an object's versions. [Q/U §4.3.4, line 103; §4.3.5]

`LT = <Time, BarrierFlag, ClientID, Operation, OHS>`, compared in that order. A compact timestamp
has one digest in place of operation and object history set. It is kept as 57 bytes, each field
big-endian at its place, so that comparing, hashing, storing and sending it cost nothing.

Time is in microseconds and follows wall-clock time: the larger of the client's clock and one more
than the latest time in the object history set.
"""

from __future__ import annotations

from typing import Annotated, NewType, TypeAlias

from msgspec import Meta

from bftfs.crypto.digest import DIGEST_BYTES
from bftfs.identifiers import CLIENT_ID_BYTES, ClientId

LogicalTimestamp = NewType("LogicalTimestamp", bytes)

_TIME_BYTES = 8
_CLIENT_AT = _TIME_BYTES + 1
_DIGEST_AT = _CLIENT_AT + CLIENT_ID_BYTES
TIMESTAMP_BYTES = _DIGEST_AT + DIGEST_BYTES

ZERO = LogicalTimestamp(bytes(TIMESTAMP_BYTES))  # the initial version, which everyone hosts

TimestampField: TypeAlias = Annotated[
    LogicalTimestamp, Meta(min_length=TIMESTAMP_BYTES, max_length=TIMESTAMP_BYTES)
]

_FLAG = {False: b"\0", True: b"\1"}


def logical_timestamp(
    *, time_us: int, barrier: bool, client: ClientId, digest: bytes
) -> LogicalTimestamp:
    """The timestamp with these fields."""
    return LogicalTimestamp(time_us.to_bytes(_TIME_BYTES, "big") + _FLAG[barrier] + client + digest)


def time_of(timestamp: LogicalTimestamp) -> int:
    """`LT.Time`, in microseconds since the epoch."""
    return int.from_bytes(timestamp[:_TIME_BYTES], "big")


def is_barrier(timestamp: LogicalTimestamp) -> bool:
    """`LT.BarrierFlag`."""
    return timestamp[_TIME_BYTES] != 0


def client_of(timestamp: LogicalTimestamp) -> ClientId:
    """`LT.ClientID`: who made the operation."""
    return ClientId(timestamp[_CLIENT_AT:_DIGEST_AT])


def digest_of(timestamp: LogicalTimestamp) -> bytes:
    """What stands for `LT.Operation` and `LT.OHS`."""
    return timestamp[_DIGEST_AT:]
