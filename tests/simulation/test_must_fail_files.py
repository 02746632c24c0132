"""With one rule removed, the namespace is found not to be serializable.

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
from bftfs.simulation.workloads.files import FileMix
from tests.simulation.mutants import attacked, hunt

SEEDS = range(8)
NAMES = FileMix(names=2, contents=0.0, directories=0.4, private=0.0)


def attacks(
    *,
    client: str | None = None,
) -> Iterator[Configuration]:
    for seed in SEEDS:
        yield attacked(
            seed,
            kind="files",
            client=client,
            files=NAMES,
            operations=80,
        )


def about_the_namespace(finding: str) -> bool:
    return finding.startswith("namespace:")


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
