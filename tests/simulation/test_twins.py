"""Twins of a node, and of a client: all schedules of few rounds; and must-fail with too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from bftfs.identifiers import NodeId
from bftfs.simulation.twins import (
    CLIENTS,
    SCENES,
    Cut,
    Scene,
    Schedule,
    enumerate_schedules,
    run,
    schedules,
)
from tests.simulation.mutants import remove_binding_to_operations, remove_binding_to_values

ROUNDS = 2


def _name(scene: Scene) -> str:
    nodes = "".join(f" node {node}" for node in scene.twinned_nodes)
    return f"{scene.kind}:{nodes}{' client' if scene.twinned_client else ''}"


def test_each_schedule_of_twins_is_enumerated_once() -> None:
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


def _first_violation(scene: Scene, signs: Iterable[str]) -> Schedule | None:
    for schedule, findings in enumerate_schedules(scene, ROUNDS):
        if any(sign in finding for finding in findings for sign in signs):
            return schedule
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


@pytest.mark.parametrize(
    ("kind", "remove_binding", "sign"),
    [
        ("objects", remove_binding_to_operations, "has another version"),
        ("blocks", remove_binding_to_values, "was acknowledged, but what is there is"),
    ],
)
def test_a_clients_twin_breaks_timestamps_that_bind_nothing(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    remove_binding: Callable[[pytest.MonkeyPatch], None],
    sign: str,
) -> None:
    """[Q/U §4.3.2; PASIS §3.4.2] Or what stands at one timestamp differs from node to node.

    Two instances of one client do different things at one time. Clients with names of their own
    have different timestamps all the same.
    """
    twinned = Scene(kind, twinned_client=True)
    assert twinned in SCENES  # of which nothing is found in any schedule
    with monkeypatch.context() as mutated:
        remove_binding(mutated)
        assert not any(findings for _, findings in enumerate_schedules(Scene(kind), ROUNDS))
        schedule = _first_violation(twinned, (sign,))
    assert schedule
    assert not run(twinned, schedule)


def test_a_schedule_replays() -> None:
    scene = Scene("objects", twinned_nodes=(NodeId(3), NodeId(5)))
    for schedule, findings in enumerate_schedules(scene, ROUNDS):
        if findings:
            assert run(scene, schedule) == findings
            return
    raise AssertionError("nothing was found that could be replayed")
