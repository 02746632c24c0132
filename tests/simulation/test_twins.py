"""Twins of a node, and of a client: all schedules of few rounds; and must-fail with too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from bftfs.identifiers import NodeId
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.recovery import Recovery, Stage
from bftfs.server.runs import Runs
from bftfs.simulation import deployment
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.twins import (
    CLIENTS,
    SCENES,
    Cut,
    Scene,
    Schedule,
    _Run,
    enumerate_losses,
    enumerate_schedules,
    run,
    schedules,
)
from tests.simulation.mutants import remove_binding_to_operations, remove_binding_to_values

ROUNDS = 2
FOUR, NINE = Sizes.smallest(t=1, b=0), Sizes.smallest(t=2, b=1)
CONTENDED = 4  # a seed in which clients get into each other's way


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


# --- disks lost after every commit ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "rounds"),
    [
        *(
            (Scene("objects", FOUR, loser=NodeId(loser), seed=CONTENDED), ROUNDS)
            for loser in range(FOUR.n)
        ),
        (Scene("blocks", FOUR, loser=NodeId(2)), ROUNDS),
        (Scene("objects", twinned_client=True, loser=NodeId(2)), 1),
        (Scene("objects", NINE, (NodeId(1),), loser=NodeId(2)), 1),
    ],
    ids=lambda value: f"{_name(value)} of {value.sizes.n}" if isinstance(value, Scene) else None,
)
def test_a_disk_may_be_lost_after_every_commit(scene: Scene, rounds: int) -> None:
    for schedule, commits, findings in enumerate_losses(scene, rounds):
        assert not findings, (schedule, commits)


def test_disks_are_lost_while_objects_are_barred_and_copied() -> None:
    """Before, in the midst of and after each of the two."""
    scene = Scene("objects", FOUR, loser=NodeId(0), seed=CONTENDED)
    schedule = next(each for each in schedules(ROUNDS, twins=False) if each[0].cut is Cut.HALVES)
    when = set()
    for commits in range(40):
        one = _Run(scene)
        lose = one.deployment.on_loss
        assert lose is not None

        def lost(node: NodeId, one: _Run = one, lose: Callable[[NodeId], None] = lose) -> None:
            when.add(_repairs(one))
            lose(node)

        one.deployment.on_loss = lost
        one.run(schedule, commits)
    quorum = FOUR.query_update.q
    assert {barriers for barriers, copies in when if not copies} >= set(range(quorum + 1))
    assert {copies for barriers, copies in when if barriers} >= set(range(quorum + 1))


def _repairs(one: _Run) -> tuple[int, int]:
    """How many barriers and copies correct nodes have accepted."""
    accepted = [each for of_object in one._record.accepted.values() for each in of_object.items()]
    barriers = sum(len(nodes) for candidate, nodes in accepted if candidate.barrier)
    return barriers, sum(len(nodes) for candidate, nodes in accepted if candidate.copy)


def _finds_after_a_loss(sign: str) -> bool:
    scene = Scene("objects", FOUR, loser=NodeId(0), seed=CONTENDED)
    return any(
        sign in finding
        for _, _, findings in enumerate_losses(scene, ROUNDS)
        for finding in findings
    )


def test_must_fail_a_node_that_does_not_know_that_it_has_lost_its_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unaware(stage: Stage = Stage.REBUILT) -> Recovery:
        del stage
        return Recovery()

    monkeypatch.setattr(deployment, "Recovery", unaware)
    monkeypatch.setattr(Runs, "_forget", lambda *_: None)  # nor hears of it from the others
    assert _finds_after_a_loss("two updates made version")


def test_must_fail_a_node_that_takes_nothing_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object, **__: object) -> bool:
        return True

    monkeypatch.setattr(ObjectHealer, "_take_over", nothing)
    assert _finds_after_a_loss("two updates made version")
