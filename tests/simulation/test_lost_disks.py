"""A node loses its disk again and again, and heals; the checkers look on.

It is all that fails for long; in the audit another node is down, so that what it has rebuilt is
needed. With a part of healing removed, the same checkers find what is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes
from bftfs.identifiers import NodeId
from bftfs.query_update.between_nodes import PageAsking
from bftfs.server.block_healing import BlockHealer
from bftfs.server.block_verification import VerificationPolicy, VerificationSettings
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.recovery import Recovery
from bftfs.server.runs import Runs
from bftfs.simulation.configuration import KINDS, ClientPlan, Configuration
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.faults import FaultPlan
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.scenario import run
from bftfs.simulation.world import SECOND_US
from tests.simulation.mutants import ENOUGH, Trusting, hunt


def losing(kind: str, seeds: range, **more: Any) -> Iterator[Configuration]:
    """Node 2 loses its disk; nodes crash now and then, and messages get lost."""
    for seed in seeds:
        yield Configuration(
            seed=seed,
            kind=kind,
            operations=100,
            sizes=ENOUGH,
            node_skews_us=(),
            commit_us=(20, 200),
            clients=(ClientPlan(width=2, think_us=(0, 200_000)), ClientPlan(think_us=(0, 200_000))),
            faults=FaultPlan(
                network=NetworkFaults(loss=0.02, delay_us=(50, 2_000), straggling=0.02),
                crash_every_us=2 * SECOND_US,
                lose_every_us=SECOND_US,
                losers=(NodeId(2),),
            ),
            # Nobody else brings what is lost: neither verification nor, mostly, readers.
            verification=VerificationSettings(VerificationPolicy.READ_TIME),
            down_in_audit=(NodeId(4),),
            **more,
        )


def copied(kind: str, seeds: range) -> Iterator[Configuration]:
    """Now and then the node's folder is put back from an older copy instead."""
    for configuration in losing(kind, seeds):
        yield replace(configuration, faults=replace(configuration.faults, copies=True))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_survives_lost_disks(kind: str) -> None:
    for configuration in losing(kind, range(4)):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)
        assert report.fault_counts.lost_disks >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_survives_folders_that_are_put_back(kind: str) -> None:
    folders = 0
    for configuration in copied(kind, range(2)):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)
        folders += report.fault_counts.folders
    assert folders


def test_must_fail_a_node_that_does_not_notice_what_it_is_started_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Runs, "_forget", lambda *_: None)
    small = Sizes.smallest(t=1, b=0)
    for kind in ("blocks", "objects"):
        assert hunt(
            replace(configuration, sizes=small, down_in_audit=(NodeId(3),))
            for configuration in copied(kind, range(8))
        )


def beside_liars(kind: str, seeds: range, *adversaries: str) -> Iterator[Configuration]:
    """Where two nodes may fail, one of which lies: to those that heal, too."""
    for configuration in losing(kind, seeds):
        yield replace(
            configuration,
            sizes=Sizes.smallest(t=2, b=1),
            byzantine_nodes=((NodeId(5), adversaries),),
        )


@pytest.mark.parametrize(
    ("kind", "adversaries"),
    [
        ("blocks", ("concealer",)),
        ("objects", ("sync-liar",)),
        ("files", ("concealer", "sync-liar")),
    ],
)
def test_liars_neither_hinder_healing_nor_make_it_false(
    kind: str, adversaries: tuple[str, ...]
) -> None:
    for configuration in beside_liars(kind, range(2), *adversaries):
        report = run(configuration)
        assert report.passed, "\n".join(report.findings)
        assert report.fault_counts.lost_disks >= 2


def test_must_fail_a_node_that_believes_one_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin: Callable[..., None] = PageAsking.__init__

    def credulous(asking: Any, order: Any, peers: Peers, *hosts: Nodes) -> None:
        begin(asking, order, Peers(Trusting(peers.quorums)), *hosts)

    monkeypatch.setattr(PageAsking, "__init__", credulous)
    assert hunt(beside_liars("objects", range(4), "sync-liar"))


@pytest.mark.parametrize(
    ("kind", "healer", "part"),
    [
        ("blocks", BlockHealer, "_rebuild"),
        ("objects", ObjectHealer, "_heal_chunk"),
    ],
)
def test_must_fail_without_healing_a_node_lacks_what_it_had(
    monkeypatch: pytest.MonkeyPatch, kind: str, healer: type, part: str
) -> None:
    async def nothing(*_: object) -> int:
        return 0  # bytes handled, and no failure counted: the page passes for healed

    monkeypatch.setattr(healer, part, nothing)
    assert hunt(losing(kind, range(6)), lambda finding: finding.startswith("redundancy"))


def test_must_fail_a_node_that_never_ends_to_rebuild_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Recovery, "rebuilt", lambda *_: None)
    assert hunt(losing("blocks", range(2)), lambda finding: "still rebuilds" in finding)
