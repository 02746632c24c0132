"""What must-fail runs need: configurations to attack, rules removed, a hunt for findings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest

from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.credentials import Grant, UserClaimed
from bftfs.crypto.digest import DIGEST_BYTES, AuthenticatorKeys
from bftfs.filesystem import block_names, inode
from bftfs.identifiers import NodeId
from bftfs.query_update import accepting, history, observation
from bftfs.query_update.classification import Classification, OperationType, classify
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.history import (
    CulledObjectHistorySet,
    LogicalTimestamp,
    ObjectHistorySet,
    parse_set,
)
from bftfs.query_update.messages import Verdict
from bftfs.query_update.observation import Observed
from bftfs.simulation.configuration import ClientPlan, Configuration
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.faults import FaultPlan
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.scenario import Report, run

Value = TypeVar("Value")

ENOUGH = Sizes.smallest(t=1, b=1)


def unchecked(kind: type[Value], **fields: Any) -> Value:
    """A value of `kind` whose validation did not take place."""
    value = object.__new__(kind)
    for name, content in fields.items():
        object.__setattr__(value, name, content)
    return value


def remove_culling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers believe whatever histories a client shows them."""

    def believe(
        history_set: ObjectHistorySet,
        _authenticators: bytes,
        _keys: AuthenticatorKeys,
        *,
        quorums: QuorumSystem,
        latest_sane_us: int,
    ) -> tuple[CulledObjectHistorySet, Nodes, Nodes, Nodes]:
        return parse_set(history_set, n=quorums.n), NOBODY, NOBODY, NOBODY

    monkeypatch.setattr(accepting, "cull", believe)


def remove_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are made without keeping what is earlier from completing."""

    def without_barriers(*arguments: Any) -> Classification:
        found = classify(*arguments)
        if found.type in {OperationType.BARRIER, OperationType.INLINE_BARRIER}:
            return found._replace(type=OperationType.COPY)
        return found

    monkeypatch.setattr(observation, "classify", without_barriers)
    monkeypatch.setattr(accepting, "classify", without_barriers)


def remove_binding_to_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timestamps of objects have time and client, and nothing that stands for the operation."""
    monkeypatch.setattr(history, "operation_digest", _one_for_all)


def remove_binding_to_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timestamps of blocks have time and client, and nothing that stands for the value."""
    for name, module in sorted(sys.modules.items()):
        if name.startswith("bftfs.") and hasattr(module, "verifier_of"):
            monkeypatch.setattr(module, "verifier_of", _one_for_all)


def ignore_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inodes name what was merged on any version of a block, and appended at any size."""
    monkeypatch.setattr(block_names, "is_merged_on_latest", lambda *_: True)
    lay_patches_on_any_version(monkeypatch)
    monkeypatch.setattr(inode, "is_appended_at_end", lambda *_: True)


def lay_patches_on_any_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inodes name patches that were written for any version of their block."""
    monkeypatch.setattr(block_names, "is_laid_on_latest", lambda *_: True)


def believe_claims_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes take a client's word for the groups that its users are in."""

    def uncovered(grant: Grant, claim: UserClaimed) -> str:
        return "" if grant.allows(claim.uid) else f"uid {claim.uid}"

    monkeypatch.setattr(Grant, "uncovered", uncovered)


def end_attempts_by_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients forget an attempt at an update that a quorum has refused, for whatever reason."""
    ended: set[LogicalTimestamp] = set()
    send = QueryUpdateClient._send

    async def sending(client: Any, update: Any, observed: Any) -> Any:
        tally, timestamp, message = await send(client, update, observed)
        failed = tally.failed
        for nodes in tally.refused.values():
            failed |= nodes
        if client.quorums.is_quorum(failed):
            ended.add(timestamp)
        if timestamp in ended:
            client._forget(update, timestamp)
        return tally, timestamp, message

    monkeypatch.setattr(QueryUpdateClient, "_send", sending)


def leave_requests_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that give up an update exclude none of its attempts."""

    async def leave(*_: Any, **__: Any) -> None:
        return None

    monkeypatch.setattr(QueryUpdateClient, "_settled", leave)


def hold_older_versions_against_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients give up an attempt if it is not in the chain of a version, however old that is."""
    verdict = QueryUpdateClient._verdict

    async def judging(
        client: Any, update: Any, attempt: Any, observed: list[Observed]
    ) -> tuple[Verdict | None, bytes]:
        for each, version in zip(observed, attempt.conditioned_on, strict=True):
            if each.version < version:
                return Verdict.DEAD, b""
        return await verdict(client, update, attempt, observed)

    monkeypatch.setattr(QueryUpdateClient, "_verdict", judging)


def _one_for_all(_encoded: bytes) -> bytes:
    return bytes(DIGEST_BYTES)


class Trusting:
    """A quorum system that believes every single server."""

    def __init__(self, quorums: QuorumSystem) -> None:
        self._quorums = quorums

    def __getattr__(self, name: str) -> Any:
        return getattr(self._quorums, name)

    def includes_benign(self, nodes: Nodes) -> bool:
        return bool(nodes)


def attacked(
    seed: int,
    *,
    kind: str,
    sizes: Sizes = ENOUGH,
    node: str | None = None,
    client: str | None = None,
    operations: int = 150,
    network: NetworkFaults | None = None,
    **more: Any,
) -> Configuration:
    """Clients in each other's way on a bad network, one Byzantine node, two Byzantine clients."""
    return Configuration(
        seed=seed,
        kind=kind,
        operations=operations,
        sizes=sizes,
        node_skews_us=(),
        commit_us=(20, 200),
        clients=(ClientPlan(width=2), ClientPlan(width=2)),
        faults=FaultPlan(
            network=network or NetworkFaults(loss=0.02, delay_us=(50, 2_000), straggling=0.05)
        ),
        byzantine_nodes=((NodeId(seed % sizes.n), (node,)),) if node else (),
        byzantine_clients=(client, client) if client else (),
        **more,
    )


def hunt(
    configurations: Iterable[Configuration], wanted: Callable[[str], bool] = lambda _: True
) -> Report | None:
    """The first report with a finding that is wanted."""
    for configuration in configurations:
        report = run(configuration)
        if any(wanted(finding) for finding in report.findings):
            return report
    return None
