"""All clients write two files at the same time, with faults: what was closed is there, once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.errors import NoLongerKept
from bftfs.filesystem.block_writing import BlockWriter
from bftfs.simulation.configuration import ClientPlan, Configuration, from_json
from bftfs.simulation.scenario import Simulation, run
from bftfs.simulation.workloads.files import FileMix
from tests.simulation.mutants import attacked, hunt, ignore_bases, lay_patches_on_any_version

MIX = FileMix(names=2, contents=0.1, directories=0.1, private=0.0, shared=0.9)


def contended(seeds: range) -> Iterator[Configuration]:
    """Three clients, of which two crash now and then, on a bad network; one node lies."""
    for seed in seeds:
        yield replace(
            attacked(seed, kind="files", node="block-forger", files=MIX, operations=80),
            clients=(
                ClientPlan(width=2, crash_every_us=300_000),
                ClientPlan(width=2),
                ClientPlan(width=1, crash_every_us=500_000),
            ),
        )


def test_what_was_closed_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    overtaken = []
    look_again = BlockWriter._look_again

    async def counted(writer: BlockWriter, *cover: object) -> None:
        overtaken.append(cover)
        await look_again(writer, *cover)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockWriter, "_look_again", counted)
    for configuration in contended(range(6)):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)
    assert len(overtaken) > 20


def test_nodes_that_do_not_look_what_was_merged_on_which_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Must fail."""
    ignore_bases(monkeypatch)
    assert hunt(contended(range(2)), lambda finding: finding.startswith("shared: "))


def test_nodes_that_do_not_look_for_which_version_a_patch_was_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Must fail."""
    lay_patches_on_any_version(monkeypatch)
    assert hunt(contended(range(4)), lambda finding: finding.startswith("shared: "))


# --- what was not covered within the window ------------------------------------------------------

# A mount is held up for longer than nodes keep what it wrote. (`test_seeds` runs it as it is.)
HELD_UP = Path(__file__).parent / "seeds" / "files-800252-150.json"


@pytest.mark.parametrize(("at_us", "may"), [(99, True), (100, False)])
def test_only_what_nodes_need_not_keep_may_be_gone_when_it_is_saved(
    monkeypatch: pytest.MonkeyPatch, at_us: int, may: bool
) -> None:
    monkeypatch.setattr(Simulation, "_kept_since_us", lambda _: 100)
    simulation: Any = Simulation(from_json(HELD_UP.read_bytes()))
    error = NoLongerKept(subject="what was written", at_us=at_us)
    saving: Any = SimpleNamespace(saves=True)
    assert simulation.may_end_so(saving, None, error) is may
