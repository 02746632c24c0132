"""What happens to whom and when: drawn from a seed before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from tests.chaos.faults import BENIGN, BYZANTINE, OF_MOUNTS


@dataclass(frozen=True, slots=True)
class Injection:
    """One fault of one node (or, if its kind says so, of one mount)."""

    kind: str
    victim: int
    seed: int


@dataclass(frozen=True, slots=True)
class Round:
    """Faults at one time: a pause, then they are there for a while, then they are healed."""

    pause_s: float
    injections: tuple[Injection, ...]
    hold_s: float


PAUSES_S = (0.5, 1.0, 2.0)
HOLDS_S = (1.5, 2.5, 4.0, 7.0)
_BRIEF_PAUSE_S, _BRIEF_HOLD_S = 0.3, 1.2
_OVERHEAD_S = 1.0  # of a round, for restarts
_SHARE_BENIGN = 0.6


def draw_schedule(
    seed: int, seconds: float, kinds: Sequence[str], *, nodes: int, mounts: int, t: int, b: int
) -> tuple[Round, ...]:
    """Rounds for about so many seconds; each kind comes once before any comes twice.

    Never more than t nodes are disturbed at a time. From its first Byzantine fault on a node counts
    as disturbed until the end: what it has forgotten it does not get back. So these come last, all
    to the same b nodes.
    """
    draw = _Drawing(seed, kinds, nodes=nodes, mounts=mounts, t=t, b=b)
    share = 1.0 if not draw.byzantine else _SHARE_BENIGN if draw.benign else 0.0
    rounds: list[Round] = []
    at = 0.0
    while at < seconds:
        rounds.append(draw.benign_round() if at < seconds * share else draw.byzantine_round())
        at += rounds[-1].pause_s + rounds[-1].hold_s + _OVERHEAD_S
    return tuple(rounds)


def each_kind_once(
    seed: int, kinds: Sequence[str], *, nodes: int, mounts: int, t: int, b: int
) -> tuple[Round, ...]:
    """A schedule as short as can be in which every kind has its turn."""
    draw = _Drawing(seed, kinds, nodes=nodes, mounts=mounts, t=t, b=b)
    rounds = [
        *(draw.benign_round() for _ in range(-(-len(draw.benign) // t))),
        *(draw.byzantine_round() for _ in range(-(-len(draw.byzantine) // b) if b else 0)),
    ]
    return tuple(replace(each, pause_s=_BRIEF_PAUSE_S, hold_s=_BRIEF_HOLD_S) for each in rounds)


class _Drawing:
    """A source of rounds."""

    def __init__(
        self, seed: int, kinds: Sequence[str], *, nodes: int, mounts: int, t: int, b: int
    ) -> None:
        self.benign = [kind for kind in kinds if kind in BENIGN]
        self.byzantine = [kind for kind in kinds if kind in BYZANTINE] if b else []
        self._choice = Random(seed)
        self._faulty = t
        self._nodes = range(nodes)
        self._mounts = range(mounts)
        self._liars = self._choice.sample(self._nodes, b)
        self._next_benign = self._in_turn(self.benign)
        self._next_byzantine = self._in_turn(self.byzantine)

    def benign_round(self) -> Round:
        """Any t nodes."""
        return self._round(self._benign(self._choice.sample(self._nodes, self._faulty)))

    def byzantine_round(self) -> Round:
        """The b nodes that have forgotten, or lie; and as many more as may be disturbed."""
        honest = [node for node in self._nodes if node not in self._liars]
        injections = [self._injection(next(self._next_byzantine), liar) for liar in self._liars]
        if self.benign:
            besides = self._choice.sample(honest, self._faulty - len(self._liars))
            injections += self._benign(besides)
        return self._round(injections)

    def _benign(self, victims: Sequence[int]) -> list[Injection]:
        return [self._injection(next(self._next_benign), victim) for victim in victims]

    def _injection(self, kind: str, victim: int) -> Injection:
        target = self._choice.choice(self._mounts) if kind in OF_MOUNTS else victim
        return Injection(kind, target, self._choice.getrandbits(32))

    def _round(self, injections: Sequence[Injection]) -> Round:
        choice = self._choice
        return Round(choice.choice(PAUSES_S), tuple(injections), choice.choice(HOLDS_S))

    def _in_turn(self, kinds: Sequence[str]) -> Iterator[str]:
        while kinds:
            yield from self._choice.sample(kinds, len(kinds))
