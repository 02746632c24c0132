"""Tells everybody what history was let go before its time: what, by whose decision, and when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import click

from bftfs import limits
from bftfs.cluster import ClusterDescription
from bftfs.envelope import Decision
from bftfs.filesystem.time_names import format_time_name
from bftfs.identifiers import ClientId
from bftfs.known_clients import SHORT_DIGITS, labels_of
from bftfs.retention import LetGo
from bftfs.server.comparison import told_by_a_correct_one


def decisions_known(
    description: ClusterDescription, told: Iterable[tuple[Decision, ...]]
) -> tuple[LetGo, ...]:
    """Those in this machine's description, and those that more than b nodes tell, by number."""
    heard = (
        LetGo(each.before_s, each.signed_s, each.number, each.client, each.since_s)
        for each in told_by_a_correct_one(told, b=description.b)
    )
    found = dict.fromkeys((*description.let_go, *heard))
    return tuple(sorted(found, key=lambda each: each.number))


def decisions_told(description: ClusterDescription, decisions: Iterable[LetGo]) -> list[str]:
    """A sentence for each of these decisions."""
    labels = labels_of(description)
    return [
        f"{what_goes(each, labels)}: let go by the cluster's administrator on "
        f"{_moment(each.signed_s)} (description number {each.number})"
        for each in decisions
    ]


def tell_decisions(description: ClusterDescription, decisions: Iterable[LetGo]) -> None:
    """Print these sentences on the standard error."""
    for sentence in decisions_told(description, decisions):
        click.echo(f"bftfs: {sentence}", err=True)


def what_goes(decision: LetGo, labels: Mapping[ClientId, str]) -> str:
    """The history that a decision is about."""
    past = f"superseded before {_moment(decision.before_s)}"
    if decision.client is None:
        return f"history {past}"
    whose = labels.get(decision.client, decision.client.hex()[:SHORT_DIGITS])
    since = f" since {_moment(decision.since_s)}" if decision.since_s else ""
    return f"what client {whose} made{since}, and was {past}"


def _moment(since_epoch_s: int) -> str:
    return format_time_name(since_epoch_s * limits.SECOND_US)[:19]
