"""A deterministic world: one agenda, virtual time, one source of randomness.

Everything that happens in a simulation happens because the agenda says so, in the order of (time,
sequence number); every random choice comes from the world's generator. A seed therefore replays,
in any process.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

SECOND_US = 1_000_000
START_US = 1_700_000_000_000_000  # the wall clock when a simulation starts


class World:
    """Virtual time, the agenda and the generator."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now_us = 0
        self.events = 0
        self._agenda: list[tuple[int, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._sequence = count()

    def after(self, delay_us: int, action: Callable[..., Any], *arguments: Any) -> None:
        """Do `action(*arguments)` when `delay_us` microseconds have passed."""
        heapq.heappush(
            self._agenda, (self.now_us + delay_us, next(self._sequence), action, arguments)
        )

    def run(
        self,
        *,
        until: Callable[[], bool],
        most_events: int,
        deadline_us: int | None = None,
    ) -> bool:
        """Let things happen until `until()`, or until `deadline_us`.

        False if the agenda or `most_events` ran out first.
        """
        agenda, pop = self._agenda, heapq.heappop
        last = self.events + most_events
        end_us = sys.maxsize if deadline_us is None else deadline_us
        while self.now_us < end_us and not until():
            if not agenda or self.events >= last:
                return False
            self.now_us, _, action, arguments = pop(agenda)
            self.events += 1
            action(*arguments)
        return True

    def draw(self, bound: int) -> int:
        """A random integer in [0, bound)."""
        return self.random.randrange(bound)

    def between(self, least: int, most: int) -> int:
        """A random integer in [least, most]; cheap, and even enough for delays."""
        return least + int(self.random.random() * (most - least + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability; draws even if the answer is certain, to keep seeds stable."""
        return self.random.random() < probability
