"""All clocks jump ahead together, and back, again and again, while clients work and nodes crash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from bftfs.errors import AdmissionRefused
from bftfs.filesystem.block_rewriting import BlockRewriter
from bftfs.filesystem.content_store import ContentStore
from bftfs.filesystem.contents import Contents, OpenFile
from bftfs.query_update.history import CulledObjectHistorySet
from bftfs.server.block_verification import VerificationSettings
from bftfs.simulation.configuration import ClientPlan, Configuration, draw
from bftfs.simulation.scenario import run
from bftfs.simulation.workloads.files import FileMix
from bftfs.simulation.world import SECOND_US
from tests.simulation.mutants import attacked, hunt

DAYS_US = 10**12


def jumping(
    kind: str, seeds: Iterable[int], *, client: str | None = None, operations: int = 60
) -> Iterator[Configuration]:
    """Nodes and a client crash; half of the operations are left when the clocks are right."""
    for seed in seeds:
        configuration = attacked(
            seed,
            kind=kind,
            operations=operations,
            faulty_share=0.5,
            client=client,
            verification=VerificationSettings() if seed % 2 else None,
            files=FileMix(names=2, contents=0.8, directories=0.1, private=0.0),
        )
        faults = replace(
            configuration.faults,
            crash_every_us=2 * SECOND_US,
            jump_every_us=SECOND_US // 10,
            jumps_us=(DAYS_US,),
            jumped_us=(1_000, SECOND_US // 10),
        )
        crashing = ClientPlan(width=2, crash_every_us=SECOND_US // 5)
        yield replace(configuration, faults=faults, clients=(crashing, *configuration.clients))


@pytest.mark.parametrize(
    ("kind", "client"), [("objects", "partial-updater"), ("files", None), ("objects", None)]
)
def test_everything_goes_on(kind: str, client: str | None) -> None:
    jumps = 0
    for configuration in jumping(kind, range(8), client=client):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)
        jumps += report.fault_counts.jumps
    assert jumps > 8


def test_must_fail_where_an_object_has_to_wait_for_the_clocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CulledObjectHistorySet, "reached_us", lambda *_: 0)
    assert hunt(
        jumping("objects", [96, 22], operations=20), lambda each: each.startswith("progress:")
    )


def give_up_blocks_of_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounts do not leave blocks behind whose times nodes refuse."""

    async def give_up(_writer: Any, _contents: Any, refused: AdmissionRefused) -> None:
        raise refused

    monkeypatch.setattr(BlockRewriter, "leave_behind", give_up)


def test_must_fail_where_a_block_has_to_wait_for_the_clocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_up_blocks_of_the_future(monkeypatch)
    assert hunt(jumping("files", range(70, 110)), lambda each: each.startswith("progress:"))


def test_seeds_draw_them() -> None:
    drawn = [draw(seed, operations=1) for seed in range(1_000)]
    jumping = [each for each in drawn if each.faults.jump_every_us > 0]
    assert len(jumping) > 25
    assert any(each.kind == "files" and each.files.shared for each in jumping)


# --- shared files --------------------------------------------------------------------------------


def sharing(seeds: Iterable[int]) -> Iterator[Configuration]:
    """All clients write the same files, and no others."""
    for configuration in jumping("files", seeds):
        files = replace(configuration.files, shared=0.8, contents=0.0)
        yield replace(configuration, files=files)


def test_what_is_closed_in_shared_files_is_there() -> None:
    for configuration in sharing(range(8)):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)


def test_must_fail_where_saving_ends_at_the_first_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    give_up_blocks_of_the_future(monkeypatch)
    assert hunt(sharing(range(8)), lambda each: each.startswith("progress:") and "(62" in each)


def test_must_fail_mounts_that_tell_nobody_of_times_that_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_up_blocks_of_the_future(monkeypatch)
    save = ContentStore._save

    async def say_nothing(store: ContentStore, contents: Contents, *file: OpenFile) -> None:
        try:
            await save(store, contents, *file)
        except AdmissionRefused:
            contents.failures = file[0].failures_seen

    monkeypatch.setattr(ContentStore, "_save", say_nothing)
    assert hunt(sharing(range(8)), lambda each: each.startswith("shared:") and "lost" in each)
