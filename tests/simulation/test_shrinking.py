"""A failing configuration becomes a small one that fails in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.coding.erasure import Buffer, ErasureCode
from bftfs.identifiers import NodeId
from bftfs.read_write import validation
from bftfs.simulation.campaign import examine
from bftfs.simulation.configuration import ClientPlan, Configuration, draw
from bftfs.simulation.faults import FaultPlan
from bftfs.simulation.principals import DiskFaults
from bftfs.simulation.shrinking import shrink, sort_of
from bftfs.simulation.world import SECOND_US
from tests.simulation.mutants import attacked


def test_a_planted_bug_is_shown_by_a_handful_of_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that do not regenerate all fragments return what poisonous writes decode to."""

    def decode_only(
        code: ErasureCode, checksum: CrossChecksum, fragments: Mapping[int, Buffer]
    ) -> tuple[Buffer, ...] | None:
        return code.regenerate({index: fragments[index] for index in sorted(fragments)[: code.m]})

    monkeypatch.setattr(validation, "regenerate", decode_only)
    configuration = attacked(1, kind="blocks", node="slow", client="poisonous-writer")
    outcome = examine(configuration)
    assert outcome.smallest is not None
    small = outcome.smallest.configuration
    assert {sort_of(finding) for finding in outcome.smallest.findings} <= {
        sort_of(finding) for finding in outcome.report.findings
    }
    assert not outcome.smallest.passed
    assert small.byzantine_clients == ("poisonous-writer",)
    assert small.byzantine_nodes == ()
    assert small.faults.network == FaultPlan().network
    assert small.kept is not None
    assert len(small.kept) <= 3


def test_only_what_a_failure_needs_is_left() -> None:
    """Against a judge that wants one client with two operations at once, and node crashes."""
    whole = attacked(3, kind="objects", node="mute", client="trespasser", operations=64)
    whole = type(whole)(
        **{
            **{name: getattr(whole, name) for name in whole.__slots__},
            "clients": (ClientPlan(width=2), ClientPlan(width=4, skew_us=9), ClientPlan()),
            "faults": FaultPlan(
                disk=DiskFaults(before_commit=0.1), crash_every_us=5, sever_every_us=7
            ),
            "down_in_audit": (NodeId(3),),
        }
    )
    runs = 0

    def fails(configuration: object) -> bool:
        nonlocal runs
        runs += 1
        assert isinstance(configuration, type(whole))
        kept = configuration.kept or range(1, configuration.operations + 1)
        return (
            configuration.faults.crash_every_us == 5
            and any(plan.width > 1 for plan in configuration.clients)
            and {17, 23} <= set(kept)
            and configuration.operations >= 23
        )

    small = shrink(whole, fails=fails)
    assert fails(small)
    assert small.kept == (17, 23)
    assert small.operations == 23
    assert small.faults == FaultPlan(crash_every_us=5, longest_us=SECOND_US)
    assert len(small.clients) == 1
    assert (small.byzantine_nodes, small.byzantine_clients, small.down_in_audit) == ((), (), ())
    assert runs < 300


def test_no_smaller_cluster_has_more_failures_than_it_bears() -> None:
    def fails(configuration: Configuration) -> bool:
        sizes = configuration.sizes.query_update
        assert sizes.t >= len(configuration.down_in_audit) == 2
        return True

    whole = draw(171, operations=1, kind="files")  # t = 2, b = 1
    audited = replace(whole, faults=FaultPlan(), byzantine_clients=())
    shrink(audited, fails=lambda small: len(small.down_in_audit) == 2 and fails(small))


def test_findings_are_of_one_sort_whatever_their_numbers() -> None:
    assert sort_of("progress: client 3 still waits") == "progress"
    assert sort_of("block 2: 'a' was read") == sort_of("block 0: 'b' was the value until 3")
    assert sort_of("file 3f: x") != sort_of("tree: 3f")
