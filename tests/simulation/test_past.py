"""What clients are shown of the past is what was, whoever lies; else it would be found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bftfs.filesystem.file_history import past_file_system
from bftfs.query_update import past_reading, past_state, server
from bftfs.query_update.history import LogicalTimestamp, time_of
from bftfs.query_update.rounds import Votes
from bftfs.read_write.reading import FoundVersion
from bftfs.simulation.configuration import Configuration
from bftfs.simulation.scenario import Simulation, run
from bftfs.simulation.workloads.files import FileMix
from tests.simulation.mutants import attacked, hunt

SEEDS = range(6)
MIX = FileMix(names=3, contents=0.3, directories=0.3, private=0.0)


def attacks(node: str | None = "past-liar") -> Iterator[Configuration]:
    for seed in SEEDS:
        yield attacked(seed, kind="files", node=node, files=MIX, operations=60)


def about_the_past(finding: str) -> bool:
    return finding.startswith("past:")


def test_nodes_that_rewrite_the_past_deceive_nobody() -> None:
    for configuration in attacks():
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)


def test_the_past_is_looked_at() -> None:
    listed = contents = 0
    for configuration in attacks():
        simulation = Simulation(configuration)
        simulation.run()
        workload = simulation.workload
        assert len(workload.pasts) == 5
        trees = [
            {name: sorted(seen.entries) for name, seen in tree.objects.items()}
            for tree in workload.pasts
        ]
        assert len({str(tree) for tree in trees}) > 2
        contents += any(seen.content for tree in workload.pasts for seen in tree.objects.values())
        listed += sum(len(each.versions) for each in workload.listed.values())
    assert contents > 1
    assert listed > 100


# --- must fail ---------------------------------------------------------------------------------


class Credulous(Votes[Any]):
    """One server's word is enough."""

    def agreed(self) -> Any:
        return next(iter(self.by), None)


def test_an_answer_about_the_past_that_one_node_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past_reading, "Votes", Credulous)
    deceived = [run(configuration) for configuration in attacks()]
    assert sum(not report.passed for report in deceived) >= 2
    assert hunt(attacks(), about_the_past)


def test_objects_as_of_different_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one state: each object a little earlier or later than the others."""
    newest_at = past_state.newest_at

    def shifted(replica: Any, at_us: int, below: bytes) -> Any:
        return newest_at(replica, at_us - replica.object[-1] * 4_000, below)

    monkeypatch.setattr(server, "newest_at", shifted)
    assert hunt(attacks(None), about_the_past)


def test_contents_as_of_another_time_than_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks as of the time of the view, and not those that the inode names in it."""

    class AsAskedFor:
        def __init__(self, blocks: Any, at_us: int) -> None:
            self._blocks, self._at_us = blocks, at_us

        async def written(self, block: Any, timestamp: Any, who: Any, **_: Any) -> Any:
            found = await self._blocks.read(block, who, at_time_us=self._at_us)
            return FoundVersion(timestamp, found.item)

    def past(present: Any, objects: Any, blocks: Any, *, at_us: int) -> Any:
        return past_file_system(present, objects, AsAskedFor(blocks, at_us), at_us=at_us)

    monkeypatch.setattr("bftfs.simulation.workloads.files.past_file_system", past)
    contents = FileMix(names=1, contents=0.9, directories=0.0, private=0.0)
    found = hunt(
        (attacked(seed, kind="files", files=contents, operations=150) for seed in range(12)),
        about_the_past,
    )
    assert found


def test_versions_that_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All nodes forget every third version of an object."""
    listed = past_state._listed

    def forgetful(view: Any, replica: Any, timestamp: LogicalTimestamp, *more: Any) -> Any:
        found = listed(view, replica, timestamp, *more)
        if found is not None and time_of(timestamp) % 3 == 0:
            return past_state.PastVersion(found.timestamp, found.parent, found.objects, None, ())
        return found

    monkeypatch.setattr(past_state, "_listed", forgetful)
    assert hunt(attacks(None), about_the_past)
