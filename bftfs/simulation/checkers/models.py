"""Linearizability of any object that a small sequential model describes.

For histories that do not tell which versions the operations saw, such as those of programs on a
mounted file system. The search for an order takes time exponential in the number of operations that
overlap, and remembers the states that it has visited (Wing and Gong; Lowe). So it is for objects
that few clients use at a time, such as one directory of a large tree.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelOperation:
    """One operation as its client saw it; `responded` is infinite if it never ended."""

    client: str
    name: str
    arguments: tuple[Any, ...]
    answer: Any
    invoked: float
    responded: float = inf


# The states that the operation may lead to from a state, with the answer that was given (any, if it
# never ended); none if the answer cannot be.
Model = Callable[[Hashable, ModelOperation], Iterable[Hashable]]

STEPS_MOST = 500_000


class SearchExhausted(Exception):
    """The history cannot be judged: too many operations overlap."""


def check_model(
    operations: Iterable[ModelOperation], *, initial: Hashable, model: Model, name: str = ""
) -> list[str]:
    """Findings against the linearizability of `operations` on one object."""
    history = sorted(operations, key=lambda each: each.invoked)
    needed = sum(1 << at for at, each in enumerate(history) if each.responded < inf)
    seen: set[tuple[int, Hashable]] = {(0, initial)}
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    furthest, stuck_at = -1, initial
    while stack:
        done, state = stack.pop()
        if done & needed == needed:
            return []
        progress = (done & needed).bit_count()
        if progress > furthest:
            furthest, stuck_at, stuck = progress, state, done
        for at in _next(history, done):
            for following in model(state, history[at]):
                place = (done | 1 << at, following)
                if place not in seen:
                    if len(seen) > STEPS_MOST:
                        raise SearchExhausted(name)
                    seen.add(place)
                    stack.append(place)
    waiting = "; ".join(str(history[at]) for at in _next(history, stuck))
    return [
        f"{name}: no order explains the answers; {furthest} operations can be ordered, which leads "
        f"to {stuck_at!r}, and none of these can follow: {waiting}"
    ]


def _next(history: Sequence[ModelOperation], done: int) -> list[int]:
    """Which operations may come next: those invoked before any other one has ended."""
    candidates: list[int] = []
    first_response = inf
    first = (~done & (done + 1)).bit_length() - 1  # that is not done
    for at in range(first, len(history)):
        if done >> at & 1:
            continue
        if history[at].invoked > first_response:
            break
        candidates.append(at)
        first_response = min(first_response, history[at].responded)
    return [at for at in candidates if history[at].invoked <= first_response]
