"""What is undone and restored equals the model, whoever lies; else it would be found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bftfs.restoration.changes import ChangeLog
from bftfs.restoration.restore import Restoring
from bftfs.restoration.undo import Undo, UndoStep
from bftfs.restoration.viewpoint import Viewpoint
from bftfs.simulation.configuration import Configuration, draw
from bftfs.simulation.scenario import Simulation, run
from bftfs.simulation.workloads import undo
from bftfs.simulation.workloads.files import FileMix
from tests.simulation.mutants import attacked, hunt

SEEDS = range(10)
MIX = FileMix(contents=0.3, directories=0.3, private=0.1, modes=0.1, undo=True)


def attacks(node: str | None = None, seeds: range = SEEDS) -> Iterator[Configuration]:
    for seed in seeds:
        yield attacked(seed, kind="files", node=node, files=MIX, operations=50)


def about_undo(finding: str) -> bool:
    return finding.startswith("undo:")


def about_restore(finding: str) -> bool:
    return finding.startswith("restore:")


def test_undo_and_restore_match_the_model() -> None:
    done: list[str] = []
    for configuration in attacks("past-liar"):
        simulation = Simulation(configuration)
        simulation.run()
        assert not simulation.findings, (configuration.seed, *simulation.findings)
        undone = simulation.workload.undone
        assert undone is not None
        assert simulation.workload.restored is not None
        done += [step.what for step in undone.steps]
    for sort in ("move", "remove", "bring back", "give", "made by", "removed by", "what was"):
        assert any(sort in what for what in done), sort


def test_amends_are_drawn_where_nothing_is_collected() -> None:
    drawn = [draw(seed, operations=10) for seed in range(300)]
    amending = [each for each in drawn if each.files.undo]
    assert len(amending) > 10
    assert all(each.collection is None for each in amending)


# --- must fail ---------------------------------------------------------------------------------


def test_an_undo_that_leaves_something_out(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Undo.steps

    async def all_but_one(undo: Undo) -> list[UndoStep]:
        found = await steps(undo)
        return [step for step in found if not step.conflict][1:]

    monkeypatch.setattr(Undo, "steps", all_but_one)
    assert hunt(attacks(), about_undo)


def test_an_undo_that_takes_back_what_others_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChangeLog, "by_client", lambda *_: True)
    assert hunt(attacks(), about_undo)


def test_a_conflict_that_nobody_hears_of(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Undo.steps

    async def unsaid(undo: Undo) -> list[UndoStep]:
        return [step for step in await steps(undo) if not step.conflict]

    monkeypatch.setattr(Undo, "steps", unsaid)
    assert hunt(attacks(seeds=range(20)), about_undo)


def test_a_file_that_is_left_as_it_is_where_both_have_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = Undo._contents_steps

    async def without_conflicts(undo: Undo, *arguments: Any) -> list[UndoStep]:
        return [step for step in await steps(undo, *arguments) if not step.conflict]

    monkeypatch.setattr(Undo, "_contents_steps", without_conflicts)
    writing = FileMix(contents=0.5, undo=True)  # every sixth seed has such a file
    attacked_files = (
        attacked(seed, kind="files", node=None, files=writing, operations=150) for seed in range(30)
    )
    assert hunt(attacked_files, about_undo)


def test_an_audit_that_conceals_something(monkeypatch: pytest.MonkeyPatch) -> None:
    audited = undo.audited

    def concealing(log: ChangeLog) -> Any:
        own, built = audited(log)
        return own[1:], built

    monkeypatch.setattr(undo, "audited", concealing)
    assert hunt(attacks(), about_undo)


def test_a_restore_of_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Restoring):
        def __init__(self, view: Viewpoint, target: Any, time_us: int) -> None:
            super().__init__(view, target, time_us + 200_000)

    monkeypatch.setattr(undo, "Restoring", Late)
    assert hunt(attacks(), about_restore)


def test_the_present_instead_of_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Viewpoint, "at", lambda view, _time_us: view.files)
    assert hunt(attacks(), about_restore)


def test_liars_about_the_past_are_needed_for_nothing() -> None:
    """The same seeds without a Byzantine node."""
    for configuration in attacks(seeds=range(3)):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)
