"""Fuzz bytes as a sequence of choices: how a harness makes structure of what a fuzzer mutates.

Every choice takes as few bytes as its range needs, from the front, and is 0 once they are used up:
any bytes make some structure, and cutting bytes off the end makes a smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Chosen = TypeVar("Chosen")


class Choices:
    """What `data` chooses, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def exhausted(self) -> bool:
        """Whether every further choice is the first of its range."""
        return self._at >= len(self._data)

    def number(self, bound: int) -> int:
        """A number in [0, bound)."""
        if bound <= 1:
            return 0
        return int.from_bytes(self.octets((bound.bit_length() + 7) // 8), "big") % bound

    def flag(self, one_in: int = 2) -> bool:
        """True once in so many times; False when nothing is left."""
        return self.number(256) % one_in == one_in - 1

    def pick(self, among: Sequence[Chosen]) -> Chosen:
        """One of `among`, which is not empty."""
        return among[self.number(len(among))]

    def octets(self, count: int) -> bytes:
        """So many bytes, zeros where nothing is left."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")

    def rest(self) -> bytes:
        """All that is left."""
        taken = self._data[self._at :]
        self._at = len(self._data)
        return taken
