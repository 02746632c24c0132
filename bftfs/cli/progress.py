"""How far a command is that works through many things, on the terminal of its user.

A line on the standard error appears once that has taken a second. Nothing is printed where the
standard error is no terminal.
"""

from __future__ import annotations

import sys
import time
from typing import Final, Self

from bftfs.cli.upkeep import duration

_WORTH_SAYING_S: Final = 1.0
_AGAIN_S: Final = 0.2


class Progress:
    """`with Progress("restored") as progress: … progress(done, total)`.

    Without a total, it says only how many.
    """

    def __init__(self, what: str) -> None:
        self.done = 0
        self.total: int | None = None
        self._what = what
        self._begun = time.monotonic()
        self._say_at = self._begun + _WORTH_SAYING_S
        self._is_shown = False

    def __call__(self, done: int, total: int | None = None) -> None:
        """So many are done, of so many."""
        self.done, self.total = done, total
        now = time.monotonic()
        if now >= self._say_at and sys.stderr.isatty():
            self._say_at = now + _AGAIN_S
            self._is_shown = True
            print(f"\r{self}{self._left(now)}\033[K", end="", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        return f"{self._what} {self.done}" + ("" if self.total is None else f" of {self.total}")

    def _left(self, now: float) -> str:
        if not self.total or not self.done:
            return ""
        left_s = (now - self._begun) * (self.total - self.done) / self.done
        return f" ({self.done / self.total:.0%}), {duration(left_s)} left"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
