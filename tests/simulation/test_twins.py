"""Twins of a node, and of a client: all schedules of few rounds; and must-fail with too many."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from bftfs.identifiers import NodeId
from bftfs.simulation.twins import (
    CLIENTS,
    SCENES,
    Cut,
    Scene,
    enumerate_schedules,
    run,
    schedules,
)

ROUNDS = 2


def _name(scene: Scene) -> str:
    nodes = "".join(f" node {node}" for node in scene.twinned_nodes)
    return f"{scene.kind}:{nodes}{' client' if scene.twinned_client else ''}"


def test_all_schedules_are_enumerated_once_and_none_twice_with_the_twins_swapped() -> None:
    each = 2**CLIENTS * len(Cut)
    found = list(schedules(ROUNDS))
    assert len(found) == len(set(found)) == each**ROUNDS // 2
    assert {schedule[0].sides[0] for schedule in found} == {0}
    assert {schedule[1].sides for schedule in found} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("scene", SCENES, ids=_name)
def test_twins_within_the_bound_are_harmless(scene: Scene) -> None:
    for schedule, findings in enumerate_schedules(scene, ROUNDS):
        assert not findings, schedule


def test_twins_lead_two_lives() -> None:
    """Or they would prove nothing: what one of them has accepted, the other has not."""
    from bftfs.simulation.twins import _Run

    scene = Scene("blocks", twinned_nodes=(NodeId(1),))
    differing = 0
    for schedule in schedules(1):
        one = _Run(scene)
        assert not one.run(schedule)
        lives = [one.deployment.nodes[1].disk, *(twin.disk for twin in one.twins)]
        assert len(lives) == 2
        differing += lives[0].commits != lives[1].commits
    assert differing


def _first_violation(scene: Scene, signs: Iterable[str]) -> str | None:
    for _, findings in enumerate_schedules(scene, ROUNDS):
        for finding in findings:
            if any(sign in finding for sign in signs):
                return finding
    return None


def test_two_twins_where_one_node_may_lie_break_objects() -> None:
    """(4.4): established and potential candidates need not meet in a benign server any more."""
    scene = Scene("objects", twinned_nodes=(NodeId(3), NodeId(5)))
    signs = ("two updates made version", "was established, and is not on the chain")
    assert _first_violation(scene, signs)


def test_more_twins_than_liars_are_borne_break_blocks() -> None:
    """(3.1): QC benign nodes no longer host what was acknowledged."""
    scene = Scene("blocks", twinned_nodes=tuple(map(NodeId, (1, 2, 3, 4))))
    assert _first_violation(scene, ("took place between",))


def test_a_schedule_replays() -> None:
    scene = Scene("objects", twinned_nodes=(NodeId(3), NodeId(5)))
    for schedule, findings in enumerate_schedules(scene, ROUNDS):
        if findings:
            assert run(scene, schedule) == findings
            return
    raise AssertionError("nothing was found that could be replayed")
