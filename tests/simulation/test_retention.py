"""Nodes collect among faults, with a window of seconds, and nothing that must be there is lost.

With a collector that takes what it must keep, the checkers find what has gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from bftfs.identifiers import BLOCK_ID_BYTES, WHOLE, BlockId, NodeId, slot_of
from bftfs.limits import CLOCK_SKEW_US
from bftfs.read_write.timestamp import beginning_of, time_of, version_key
from bftfs.read_write.version_row import VERIFIED
from bftfs.retention import Keeps, Retention
from bftfs.server import kept_blocks
from bftfs.server.block_verification import VerificationSettings
from bftfs.server.file_collection import Collector
from bftfs.server.kept_blocks import ShownBlocks
from bftfs.simulation import deployment
from bftfs.simulation.configuration import ClientPlan, Configuration, draw
from bftfs.simulation.deployment import CollectionPlan, ConstantPool
from bftfs.simulation.faults import FaultPlan
from bftfs.simulation.scenario import Simulation, run
from bftfs.simulation.workloads.files import FileMix, FileWorkload
from bftfs.simulation.world import SECOND_US
from bftfs.storage import Table
from tests.simulation.mutants import attacked, hunt

WINDOW_US = 10 * SECOND_US
ALL_SHORT = CollectionPlan(WINDOW_US)
MIX = FileMix(names=2, contents=0.6, directories=0.2, private=0.0, past=0.1)
SHARED = replace(MIX, shared=0.7)  # with patches
CLIENTS = (ClientPlan(width=2, think_us=(0, 2 * SECOND_US)),) * 2


def collected(
    kind: str,
    seeds: range = range(3),
    *,
    plan: CollectionPlan = ALL_SHORT,
    loses: bool = False,
    files: FileMix = MIX,
    **more: Any,
) -> Iterator[Configuration]:
    """Clients take their time, so that in a short run much becomes old."""
    for seed in seeds:
        configuration = attacked(
            seed,
            kind=kind,
            operations=60,
            verification=VerificationSettings(),
            collection=plan,
            files=files,
            **more,
        )
        faults = FaultPlan(network=configuration.faults.network, crash_every_us=5 * SECOND_US)
        if loses:
            faults = replace(faults, lose_every_us=10 * SECOND_US, losers=(NodeId(2),))
        yield replace(configuration, clients=CLIENTS, faults=faults)


def about_retention(finding: str) -> bool:
    return finding.startswith("retention:")


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("files", {"node": "past-liar", "client": "half-multi-object"}),
        ("files", {"loses": True}),
        ("files", {"node": "past-liar", "files": SHARED}),
        ("objects", {"node": "sync-liar", "client": "partial-updater"}),
        ("objects", {"loses": True}),
    ],
)
def test_what_has_to_be_kept_is(kind: str, more: dict[str, Any]) -> None:
    for configuration in collected(kind, **more):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)
        assert report.collected > 20


def test_readers_of_the_past_race_collection() -> None:
    seen: Counter[str] = Counter()
    for configuration in collected("files"):
        simulation = Simulation(configuration)
        simulation.run()
        assert simulation.findings == []
        workload, retention = simulation.workload, simulation.retention
        assert isinstance(workload, FileWorkload)
        assert retention is not None
        seen["trees in the faulty phase"] += workload.past_reads
        seen["trees of the audit"] += len(workload.pasts)
        seen["no longer kept"] += workload.no_longer_kept
        seen["versions of objects"] += retention.object_versions
        seen["versions of blocks"] += retention.block_versions
    assert all(seen.values())


def test_who_has_room_keeps_everything() -> None:
    plan = CollectionPlan(WINDOW_US, roomy=tuple(map(NodeId, range(3))))
    for configuration in collected("files", plan=plan):
        assert run(configuration).passed


def test_collection_is_drawn() -> None:
    drawn = [draw(seed, operations=10) for seed in range(300)]
    plans = [each.collection for each in drawn if each.collection is not None]
    assert len(plans) > 20
    assert {bool(plan.roomy) for plan in plans} == {True, False}
    assert any(each.faults.losers for each in drawn if each.collection is not None)
    assert any(each.byzantine_clients for each in drawn if each.collection is not None)


def test_windows_are_longer_by_what_clients_may_date_back() -> None:
    """Their versions count for when they say; nodes take none that are older than the skew."""
    behind = []
    for drawn in map(partial(draw, operations=10), range(1_000)):
        plan, skews_us = drawn.collection, [client.skew_us for client in drawn.clients]
        if plan is not None and min(skews_us) < -CLOCK_SKEW_US:
            behind.append(plan.window_us)
    assert behind
    assert min(behind) >= CLOCK_SKEW_US + WINDOW_US


def test_of_two_versions_at_one_time_the_older_is_past() -> None:
    simulation = Simulation(next(collected("files")))
    simulation.run()
    retention = simulation.retention
    assert retention is not None
    disk = simulation.deployment.nodes[0].disk
    rows = disk.scan(Table.BLOCK, b"", b"\xff")
    keys = [key for key, row in rows if row[0] & VERIFIED and retention.is_required(key, 0)]
    assert keys
    for key in keys:
        least = beginning_of(time_of(key))
        assert not retention.is_required(version_key(BlockId(key[:BLOCK_ID_BYTES]), least), 0)


# --- must fail -------------------------------------------------------------------------------


def test_must_fail_a_collector_that_ignores_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(*arguments: Any, **more: Any) -> Collector:
        return Collector(*arguments, **more | {"window_us": 0})

    monkeypatch.setattr(deployment, "Collector", hasty)
    for kind in ("files", "objects"):
        assert hunt(collected(kind), about_retention)
    # And readers miss what has gone.
    assert hunt(collected("files", range(7, 14)), lambda finding: "NoLongerKept" in finding)


def test_must_fail_a_collector_that_takes_a_version_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes by when a version was made, not by when it was superseded."""
    keeps = Retention.keeps
    monkeypatch.setattr(
        Retention, "keeps", lambda self, since_us, _: keeps(self, since_us, since_us)
    )
    assert hunt(collected("objects"), about_retention)


def test_must_fail_a_collector_that_takes_a_block_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes blocks that are shown by the version which the window begins with."""
    keeps_of = ShownBlocks.keeps

    def too_few(self: ShownBlocks, block: Any) -> Keeps:
        keeps: Callable[[int, int | None], bool] = keeps_of(self, block)
        return lambda since_us, until_us: until_us is None and keeps(since_us, until_us)

    monkeypatch.setattr(ShownBlocks, "keeps", too_few)
    monkeypatch.setattr(kept_blocks, "kept_names", lambda *_: frozenset())
    assert hunt(collected("files"), lambda finding: about_retention(finding) and "block" in finding)


def test_must_fail_a_collector_that_takes_patches_that_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = kept_blocks.kept_names

    def of_wholes(replica: Any, block: BlockId, shown: ShownBlocks) -> Any:
        return names(replica, block, shown) if slot_of(block) == WHOLE else frozenset()

    monkeypatch.setattr(kept_blocks, "kept_names", of_wholes)
    found = partial(hunt, collected("files", files=SHARED))
    assert found(lambda finding: about_retention(finding) and "block" in finding)


def test_must_fail_a_collector_that_takes_what_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ConstantPool, "is_short", lambda _: True)
    plan = CollectionPlan(WINDOW_US, roomy=(NodeId(1),))
    assert hunt(collected("objects", plan=plan), lambda finding: "has room" in finding)
