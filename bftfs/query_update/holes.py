"""The holes that removals leave in a list of an object's state, as `object_type` describes them.

A server that catches up moves over thousands of versions in one step, and most of them may be
removals. What is stored still shows everything that the step has removed so far; so a search for
the next serial that is left would pass over all of that for each removal, k² for k of them. Here a
search goes on at the end of a hole that was found before in the same step: it reads a few rows,
however many have gone. `tests/unit/query_update/test_catching_up.py` counts them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping

from bftfs.query_update.object_type import (
    BEYOND_SEQUENCE,
    FIRST_SERIAL,
    SEQUENCE,
    key_of,
    serial_at,
    serial_from,
)
from bftfs.storage import StorageView, Table


class Holes:
    """Finds holes in one object's list, during one step in which no version is taken back."""

    __slots__ = ("_ends", "_prefix", "_put", "_rewound", "_rows", "_starts", "_tail", "_view")

    def __init__(
        self,
        view: StorageView,
        prefix: bytes,
        rows: Mapping[bytes, bytes | None],
        *,
        moved: Iterable[bytes],
        rewound: bool,
    ) -> None:
        """`rows` has the rows as the step has left them so far, of all keys in `moved`.

        `rewound` if versions were taken back before: then what the view says has gone may not have.
        """
        self._view = view
        self._prefix = prefix
        self._rows = rows
        self._rewound = rewound
        # Serials that the step has put there, or that were there and have another value now, each
        # once and ascending. A plain list: nearly every step has none or one of them.
        self._put = sorted(
            serial_at(key) for key in moved if key.startswith(SEQUENCE) and rows[key] is not None
        )
        # What is known to have gone: from the key up to the value, and from the value up to the
        # key. A serial that goes next to it finds it by its own number, which was its bound.
        self._ends: dict[int, int] = {}
        self._starts: dict[int, int] = {}

    def left_by(self, changes: Iterable[tuple[bytes, bytes | None]]) -> dict[int, int]:
        """Beginnings and ends of the holes that a version leaves whose `changes` are in the rows.

        Requires: called with each version that the step applies, in order.
        """
        gone, put = [], self._put
        for key, value in changes:
            if key.startswith(SEQUENCE):
                serial = serial_at(key)
                place = bisect_left(put, serial)
                is_there = place < len(put) and put[place] == serial
                if value is None:
                    gone.append(serial)
                    if is_there:
                        del put[place]
                elif not is_there:
                    put.insert(place, serial)
        found: dict[int, int] = {}
        end = 0
        for serial in sorted(gone):
            if serial >= end:  # else it lies in the hole before
                start, end = self._around(serial)
                found[start] = end
        return found

    def _around(self, serial: int) -> tuple[int, int]:
        start, end = self._start(serial), self._end(serial)
        self._ends[start], self._starts[end] = end, start
        return start, end

    def _start(self, serial: int) -> int:
        """From where on everything up to `serial` has gone."""
        below = FIRST_SERIAL - 1
        place = bisect_left(self._put, serial)
        if place:
            below = self._put[place - 1]
        at = serial
        while True:
            at = self._starts.get(at, at)
            stored = self._stored(SEQUENCE, key_of(at), reverse=True)
            if stored is None:
                return below + 1
            at = serial_at(stored)
            if self._rows.get(stored, b"") is not None:
                return max(below, at) + 1

    def _end(self, serial: int) -> int:
        """Up to where everything from `serial` on has gone, as far as it is known."""
        place = bisect_right(self._put, serial)
        above = self._put[place] if place < len(self._put) else None
        at = serial + 1
        while True:
            at = self._ends.get(at, at)
            stored = self._stored(key_of(at), BEYOND_SEQUENCE)
            if stored is None:
                break
            at = serial_at(stored)
            if self._rows.get(stored, b"") is not None:
                return at if above is None else min(above, at)
            at += 1
        if above is not None:
            return above
        # Nothing is left behind it. What has gone never comes back, unless it was taken back.
        return serial + 1 if self._rewound else max(at, self._newest_gone() + 1)

    def _newest_gone(self) -> int:
        """The greatest serial that had gone before this step; 0 if there is none."""
        low, high = self._prefix + SEQUENCE, self._prefix + BEYOND_SEQUENCE
        for key in self._view.keys(Table.PAST, low, high, reverse=True):
            encoded = key[len(low) :]  # the serial, which begins with its length, and more
            return serial_from(encoded[: 1 + encoded[0]])
        return 0

    def _stored(self, start: bytes, stop: bytes, *, reverse: bool = False) -> bytes | None:
        """The first key between these, or the last one, in the state as it is stored."""
        prefix = self._prefix
        for key in self._view.keys(Table.STATE, prefix + start, prefix + stop, reverse=reverse):
            return key[len(prefix) :]
        return None
