"""With one rule removed, the namespace is found not to be serializable.

The rules are those of Query/Update, and of the methods: the model of the namespace knows neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bftfs.filesystem import directory
from bftfs.identifiers import NodeId
from bftfs.query_update.bundle import BundleTally
from bftfs.query_update.messages import BundleReply
from bftfs.simulation.configuration import Configuration
from bftfs.simulation.workloads.files import FileMix
from tests.simulation.mutants import attacked, hunt, remove_barriers, remove_culling

SEEDS = (*range(6), 15, 16)
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


BUNDLED = FileMix(contents=0.0, bundles=1.0)


def about_the_namespace(finding: str) -> bool:
    return finding.startswith("namespace:")


def test_no_culling(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hunt(attacks(client="fabricator")) is None
    remove_culling(monkeypatch)
    assert hunt(attacks(client="fabricator"), about_the_namespace)


def test_no_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    remove_barriers(monkeypatch)
    assert hunt(attacks(), about_the_namespace)


def test_a_method_that_forgets_that_names_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def require_nothing(*_: Any) -> None:
        pass

    monkeypatch.setattr(directory, "_require_room_for", require_nothing)
    report = hunt(attacks())
    assert report is not None
    assert any("errno 17" in finding for finding in report.findings if about_the_namespace(finding))
    assert any(finding.startswith("tree:") for finding in report.findings)


def test_must_fail_one_server_decides_on_an_answer_of_a_bundle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configurations = [
        attacked(seed, kind="files", files=BUNDLED, operations=80) for seed in range(12)
    ]
    assert hunt(configurations) is None
    learn = BundleTally._learn

    def credulous(self: BundleTally, node: NodeId, reply: BundleReply) -> bool:
        heard = learn(self, node, reply)
        for name, votes in self._votes.items():
            for vote in votes:
                self.agreed.setdefault(name, vote)
        return heard

    monkeypatch.setattr(BundleTally, "_learn", credulous)
    assert hunt(configurations, about_the_namespace)
