"""With one server too few, or one rule of Query/Update removed, the checkers find a violation.

Each rule is removed by a substitute that is injected here; the product has no option for it. The
same attacks on the whole protocol find nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes
from bftfs.query_update import between_nodes, history, repair
from bftfs.query_update.accepting import Accepting
from bftfs.query_update.observation import Deductions
from bftfs.simulation.configuration import Configuration, from_json
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.scenario import run
from bftfs.simulation.workloads.objects import ObjectMix
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds
from tests.simulation.mutants import (
    ENOUGH,
    Trusting,
    attacked,
    hunt,
    remove_barriers,
    remove_culling,
    unchecked,
)

SEEDS = range(12)

# n = 3t + 2b with everything else as it would be: q = n - t, r = 2q - b - n.
ONE_TOO_FEW = Sizes(
    unchecked(QueryUpdateThresholds, n=5, t=1, b=1, q=4, r=2),
    ReadWriteThresholds.smallest(t=1, b=1),
)

CONTENDED = ObjectMix(counters=1, accounts=0, updates=0.9, ledger=0.0, several=0.0)
LEDGER = ObjectMix(counters=1, accounts=2, updates=0.6, ledger=0.8, several=0.5)


def attacks(
    *,
    sizes: Sizes = ENOUGH,
    node: str | None = None,
    client: str | None = None,
    mix: ObjectMix = LEDGER,
    network: NetworkFaults | None = None,
    seeds: range = SEEDS,
) -> Iterator[Configuration]:
    for seed in seeds:
        yield attacked(
            seed,
            kind="objects",
            sizes=sizes,
            node=node,
            client=client,
            objects=mix,
            network=network,
        )


def not_serializable(finding: str) -> bool:
    return any(
        sign in finding
        for sign in (
            "no serial order",
            "should have been",
            "is lost",
            "not on the chain",
            "another past",
            "two updates made",
            "another version",
        )
    )


def test_one_server_too_few() -> None:
    """(4.4): an established and a potential candidate would no longer meet at a benign server."""
    slow = NetworkFaults(loss=0.05, delay_us=(50, 20_000), straggling=0.05)
    wild = attacks(sizes=ONE_TOO_FEW, node="equivocator", mix=CONTENDED, network=slow)
    assert hunt(wild, not_serializable)
    assert hunt(attacks(node="equivocator", mix=CONTENDED, network=slow)) is None


def test_no_culling(monkeypatch: pytest.MonkeyPatch) -> None:
    """[Q/U §4.3.4] lines 1001-1002: without them, a client undoes what was established."""
    assert hunt(attacks(client="fabricator")) is None
    remove_culling(monkeypatch)
    # In some seeds nothing comes to an end any more, which takes minutes to find: not in these.
    assert hunt(attacks(client="fabricator", seeds=range(3, 6, 2)), not_serializable)


def test_one_servers_word_for_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one server reports moves the times of objects as far as it likes."""
    configurations = list(attacks(node="history-forger", seeds=range(3)))
    assert not any(run(each).findings for each in configurations)
    monkeypatch.setattr(
        history, "reached_us", lambda latest_us, _: max(time_us for time_us, _ in latest_us)
    )
    assert hunt(configurations, lambda finding: "ahead of its clock" in finding)


def test_no_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    """[Q/U §4.3.2] without barriers, a copy overtakes an operation that is still completing."""
    assert hunt(attacks(mix=CONTENDED)) is None
    remove_barriers(monkeypatch)
    # As above: not all seeds come to an end.
    assert hunt(attacks(mix=CONTENDED, seeds=range(0, 7, 3)), not_serializable)


def test_no_second_opinion_in_object_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """[Q/U §4.3.2] b + 1: else one liar gives a server another past."""
    lossy = NetworkFaults(loss=0.1, delay_us=(50, 2_000), straggling=0.05)
    assert hunt(attacks(node="sync-liar", network=lossy)) is None
    begin: Callable[..., None] = between_nodes.PageAsking.__init__

    def credulous(asking: Any, order: Any, peers: Peers, *hosts: Nodes) -> None:
        begin(asking, order, Peers(Trusting(peers.quorums)), *hosts)

    monkeypatch.setattr(between_nodes.PageAsking, "__init__", credulous)
    assert hunt(attacks(node="sync-liar", network=lossy), not_serializable)


SEED = Path(__file__).parent / "seeds" / "objects-8-100.json"  # a node lies about its own lives


def test_facts_that_convince_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """What disbelieved servers state, or stated in an earlier life, counts for clients alone."""
    assert run(from_json(SEED.read_bytes())).passed
    monkeypatch.setattr(Deductions, "_counts", lambda *_: True)
    monkeypatch.setattr(repair, "_MOST_STEPS", 40)
    assert any("ContentionExhausted" in each for each in run(from_json(SEED.read_bytes())).findings)


def test_facts_of_any_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """[Q/U §4.3.7] a candidate is dead by one of its own objects, and by no other one."""
    slow = NetworkFaults(loss=0.05, delay_us=(50, 20_000), straggling=0.05)
    misquoted = partial(attacks, client="misquoter", network=slow)
    assert hunt(misquoted(seeds=range(1))) is None
    monkeypatch.setattr(Accepting, "_require_pertinent", lambda *_: None)
    assert hunt(misquoted(), not_serializable)
