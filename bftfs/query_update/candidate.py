"""Candidates: what a server says it has accepted. [Q/U §4.3.4, line 104; §4.3.7]

A candidate is ⟨LT, LT_conditioned-on⟩, and, beyond the single-object pseudo-code, the objects of
the operation that made it (none listed if it touched one object only), and whether it is a copy.
All of it is part of the candidate's identity: servers share a candidate only if they agree on it.

Layout: timestamp (57 bytes), conditioned-on (57), one byte (bit 7: copy; below: number of objects),
the objects' ids in ascending order.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from bftfs.errors import MalformedMessage
from bftfs.identifiers import OBJECT_ID_BYTES, ObjectId
from bftfs.limits import OBJECTS_PER_OPERATION
from bftfs.query_update.timestamp import TIMESTAMP_BYTES, ZERO, LogicalTimestamp, is_barrier

_COPY = 0x80
_FLAG_AT = 2 * TIMESTAMP_BYTES
FIXED_BYTES = _FLAG_AT + 1
_BEYOND_TIME = 0x80  # times have 63 bits: one more than any of them is a time of 64


class Candidate(msgspec.Struct, frozen=True, eq=False, gc=False):
    """An operation that a server accepted for an object. Equal if encoded equally."""

    timestamp: LogicalTimestamp
    conditioned_on: LogicalTimestamp
    objects: tuple[ObjectId, ...] = ()  # of a multi-object operation: all of them, ascending
    copy: bool = False
    encoded: bytes = b""

    def __post_init__(self) -> None:
        if not self.encoded:
            flag = len(self.objects) | (_COPY if self.copy else 0)
            msgspec.structs.force_setattr(
                self,
                "encoded",
                self.timestamp + self.conditioned_on + bytes((flag,)) + b"".join(self.objects),
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and self.encoded == other.encoded

    def __hash__(self) -> int:
        return hash(self.encoded)

    @property
    def barrier(self) -> bool:
        """Whether it is a barrier, which has no object version."""
        return is_barrier(self.timestamp)


INITIAL = Candidate(ZERO, ZERO)  # ⟨0, 0⟩: complete at everyone from the start


def parse_candidates(encoded: bytes, *, limit: int) -> tuple[Candidate, ...]:
    """The candidates whose encodings `encoded` is the concatenation of. Raises MalformedMessage.

    Ensures: they ascend strictly, condition on the past, and none is ⟨0, 0⟩; there is a time after
    each; barriers list no objects and are no copies.
    """
    candidates: list[Candidate] = []
    position = 0
    before = ZERO
    size = len(encoded)
    while position < size:
        flag_at = position + _FLAG_AT
        if flag_at >= size or len(candidates) == limit:
            raise MalformedMessage("a replica history is cut short or too long")
        flag = encoded[flag_at]
        count = flag & ~_COPY
        end = position + FIXED_BYTES + count * OBJECT_ID_BYTES
        if end > size or count == 1 or count > OBJECTS_PER_OPERATION:
            raise MalformedMessage("a candidate lists an impossible number of objects")
        timestamp = LogicalTimestamp(encoded[position : position + TIMESTAMP_BYTES])
        conditioned_on = LogicalTimestamp(encoded[position + TIMESTAMP_BYTES : flag_at])
        if timestamp <= before or conditioned_on >= timestamp:
            raise MalformedMessage("candidates are out of order")
        if timestamp[0] & _BEYOND_TIME:
            raise MalformedMessage("a candidate is beyond all times")
        objects = tuple(
            ObjectId(encoded[start : start + OBJECT_ID_BYTES])
            for start in range(position + FIXED_BYTES, end, OBJECT_ID_BYTES)
        )
        if any(low >= high for low, high in pairwise(objects)):
            raise MalformedMessage("a candidate's objects are out of order")
        if is_barrier(conditioned_on) or (flag and is_barrier(timestamp)):
            raise MalformedMessage("a barrier is conditioned on, copied, or lists objects")
        candidates.append(
            Candidate(timestamp, conditioned_on, objects, flag >= _COPY, encoded[position:end])
        )
        before = timestamp
        position = end
    return tuple(candidates)
