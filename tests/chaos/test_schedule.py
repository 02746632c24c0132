"""The schedule is drawn from the seed alone, and keeps to the fault model."""

from __future__ import annotations

import pytest

from tests.chaos.faults import BENIGN, BYZANTINE, EVERYTHING, OF_MOUNTS
from tests.chaos.schedule import Round, draw_schedule, each_kind_once


def draw(seed: int, seconds: float = 300, t: int = 1, b: int = 1) -> tuple[Round, ...]:
    return draw_schedule(seed, seconds, EVERYTHING, nodes=3 * t + 2 * b + 1, mounts=4, t=t, b=b)


def test_it_depends_on_the_seed_alone() -> None:
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_every_kind_comes_before_any_comes_again() -> None:
    kinds = [injection.kind for turn in draw(3) for injection in turn.injections]
    assert set(kinds) == set(EVERYTHING)
    benign = [kind for kind in kinds if kind in BENIGN]
    once = len(set(benign))
    assert len(set(benign[:once])) == once


@pytest.mark.parametrize(("t", "b"), [(1, 1), (2, 1), (2, 2)])
def test_a_short_schedule_has_every_kind(t: int, b: int) -> None:
    schedule = each_kind_once(1, EVERYTHING, nodes=3 * t + 2 * b + 1, mounts=4, t=t, b=b)
    kinds = [injection.kind for turn in schedule for injection in turn.injections]
    assert set(kinds) == set(EVERYTHING)
    if t == 1:
        assert len(kinds) == len(EVERYTHING)


@pytest.mark.parametrize(("t", "b"), [(1, 1), (2, 1), (2, 2), (1, 0)])
@pytest.mark.parametrize("seed", range(20))
def test_never_more_than_t_nodes_are_disturbed(seed: int, t: int, b: int) -> None:
    bad: set[int] = set()
    for turn in draw(seed, t=t, b=b):
        nodes = [each for each in turn.injections if each.kind not in OF_MOUNTS]
        assert len({each.victim for each in nodes}) == len(nodes)
        bad |= {each.victim for each in nodes if each.kind in BYZANTINE}
        assert len(bad) <= b
        assert len(bad | {each.victim for each in nodes}) <= t
