"""With one server too few, or one rule removed, the namespace is found not to be serializable.

The rules are those of Query/Update, and of the methods: the model of the namespace knows neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bftfs.crypto.authenticator import AuthenticatorKeys
from bftfs.filesystem import directory
from bftfs.query_update import observation, server
from bftfs.query_update.classification import Classification, OperationType, classify
from bftfs.query_update.history import CulledObjectHistorySet, ObjectHistorySet, parse_set
from bftfs.quorum import Nodes
from bftfs.simulation.configuration import Configuration
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.workloads.files import FileMix
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds
from tests.simulation.mutants import ENOUGH, attacked, hunt, unchecked

SEEDS = range(8)
NAMES = FileMix(names=2, contents=0.0, directories=0.4, private=0.0)

# n = 3t + 2b with everything else as it would be: q = n - t, r = 2q - b - n.
ONE_TOO_FEW = Sizes(
    unchecked(QueryUpdateThresholds, n=5, t=1, b=1, q=4, r=2),
    ReadWriteThresholds.smallest(t=1, b=1),
)


def attacks(
    *,
    sizes: Sizes = ENOUGH,
    node: str | None = None,
    client: str | None = None,
    network: NetworkFaults | None = None,
) -> Iterator[Configuration]:
    for seed in SEEDS:
        yield attacked(
            seed,
            kind="files",
            sizes=sizes,
            node=node,
            client=client,
            files=NAMES,
            network=network,
            operations=80,
        )


def about_the_namespace(finding: str) -> bool:
    return finding.startswith("namespace:")


def test_one_server_too_few() -> None:
    slow = NetworkFaults(loss=0.05, delay_us=(50, 20_000), straggling=0.05)
    wild = attacks(sizes=ONE_TOO_FEW, node="equivocator", network=slow)
    assert hunt(wild, about_the_namespace)
    assert hunt(attacks(node="equivocator", network=slow)) is None


def test_no_culling(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hunt(attacks(client="fabricator")) is None

    def believe(
        history_set: ObjectHistorySet,
        _authenticators: bytes,
        _keys: AuthenticatorKeys,
        *,
        n: int,
        latest_sane_us: int,
    ) -> tuple[CulledObjectHistorySet, Nodes, Nodes]:
        return parse_set(history_set, n=n), 0, 0

    monkeypatch.setattr(server, "cull", believe)
    assert hunt(attacks(client="fabricator"), about_the_namespace)


def test_no_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_barriers(*arguments: Any) -> Classification:
        found = classify(*arguments)
        if found.type in {OperationType.BARRIER, OperationType.INLINE_BARRIER}:
            return found._replace(type=OperationType.COPY)
        return found

    monkeypatch.setattr(observation, "classify", without_barriers)
    monkeypatch.setattr(server, "classify", without_barriers)
    assert hunt(attacks(), about_the_namespace)


def test_a_method_that_forgets_that_names_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def require_nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr(directory, "_require_room_for", require_nothing)
    report = hunt(attacks())
    assert report is not None
    assert any("errno 17" in finding for finding in report.findings if about_the_namespace(finding))
    assert any(finding.startswith("tree:") for finding in report.findings)
