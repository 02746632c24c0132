"""The counter: the smallest object type, with one update and one query. [Q/U §4.3.4, Fig. 4.3]"""

from __future__ import annotations

import errno
from typing import Any

from bftfs.identifiers import ObjectKind
from bftfs.query_update.object_type import (
    Caller,
    Method,
    MutableState,
    ObjectTypes,
    Record,
    Refusal,
    State,
)

_VALUE = b"value"
_BOUND = 1 << 63


class Increment(Record, frozen=True):
    """Arguments of `counter.increment`."""

    by: int = 1


class Fetch(Record, frozen=True):
    """Arguments of `counter.fetch`."""


class Count(Record, frozen=True):
    """The answer of both methods: the counter's value."""

    value: int


def _value(state: State) -> int:
    stored = state.get(_VALUE)
    return 0 if stored is None else int.from_bytes(stored, "big", signed=True)


def _increment(states: tuple[MutableState], arguments: Increment, _: Caller) -> Count:
    value = _value(states[0]) + arguments.by
    if not -_BOUND <= value < _BOUND:
        raise Refusal(errno.EOVERFLOW)
    states[0].put(_VALUE, value.to_bytes(8, "big", signed=True))
    return Count(value)


def _fetch(states: tuple[State], _: Fetch, __: Caller) -> Count:
    return Count(_value(states[0]))


def counter_types() -> ObjectTypes:
    """The counter's methods."""
    kinds: tuple[frozenset[int], ...] = (frozenset({ObjectKind.COUNTER}),)
    increment: Any = _increment
    fetch: Any = _fetch
    return ObjectTypes(
        (
            Method("counter.increment", True, kinds, Increment, increment, Count),
            Method("counter.fetch", False, kinds, Fetch, fetch, Count, brief=True),
        )
    )
