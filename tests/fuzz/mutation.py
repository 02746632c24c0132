"""A small coverage-guided fuzzer in pure Python, seeded: what the tests run, and who has no engine.

It keeps inputs that take an edge which none before took, and mutates those. The same seed, corpus
and product give the same run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from tests.fuzz.target import Target, judge

_INTERESTING = (0, 1, 2, 16, 32, 57, 63, 64, 0x7F, 0x80, 0xC4, 0xDD, 0xFE, 0xFF)
_MOST_MUTATIONS = 4
_MEASURED_EACH = 8


@dataclass
class Campaign:
    """A run of the fuzzer on one target."""

    target: Target
    random: Random
    inputs: list[bytes] = field(default_factory=list)
    edges: set[int] = field(default_factory=set)
    executions: int = 0
    work: int = 0

    def start(self, inputs: Iterable[bytes]) -> None:
        """Run the inputs to begin with. Raises Finding."""
        for data in inputs:
            self.inputs.append(data)
            self._run(data)
        if not self.inputs:
            self.inputs.append(b"")

    def step(self) -> bool:
        """Run one new input; whether it took new edges. Raises Finding."""
        data = self._mutated()
        if not self._run(data):
            return False
        self.inputs.append(data)
        return True

    def _run(self, data: bytes) -> bool:
        self.executions += 1
        outcome = judge(self.target, data, measure_memory=False)
        self.work += outcome.work
        new = not outcome.edges <= self.edges
        if new or self.executions % _MEASURED_EACH == 0:
            judge(self.target, data)  # measuring memory takes several times as long
        self.edges |= outcome.edges
        return new

    def _mutated(self) -> bytes:
        random = self.random
        # Every other time one of the newest: what led to them leads further.
        if random.random() < 0.5:
            data = bytearray(random.choice(self.inputs[-16:]))
        else:
            data = bytearray(random.choice(self.inputs))
        for _ in range(random.randint(1, _MOST_MUTATIONS)):
            self._mutate(data)
        return bytes(data[: self.target.most_bytes])

    def _mutate(self, data: bytearray) -> None:
        random = self.random
        kind = random.randrange(8)
        at = random.randrange(len(data) + 1)
        if kind == 0 or not data:
            data[at:at] = random.randbytes(random.choice((1, 1, 2, 4, 8, 32)))
            return
        at %= len(data)
        length = random.choice((1, 1, 2, 4, 16, 57, len(data)))
        if kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 3:
            data[at] = random.choice(_INTERESTING)
        elif kind == 4:
            data[at] = random.randrange(256)
        elif kind == 5:
            piece = data[at : at + length]
            to = random.randrange(len(data) + 1)
            data[to:to] = piece
        elif kind == 6:
            other = random.choice(self.inputs)
            start = random.randrange(len(other) + 1)
            data[at:] = other[start : start + self.target.most_bytes]
        else:
            width = random.choice((2, 4, 8))
            number = int.from_bytes(data[at : at + width], "big") + random.choice((-1, 1, 256))
            data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "big")
