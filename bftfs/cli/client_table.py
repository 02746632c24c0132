"""The clients of a cluster as a table: who may do what, and since and until when."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from bftfs.credentials import Grant
from bftfs.identifiers import ClientId
from bftfs.known_clients import SHORT_DIGITS, KnownClient

_DATED = {"id", "added", "revoked"}


def clients_table(
    clients: tuple[KnownClient, ...], *, dated: bool, seen_s: Mapping[ClientId, int] | None = None
) -> Table:
    """A row per client; `dated`: with ids and dates, too; `seen_s`: and when it was seen last."""
    narrow = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)  # fits 80 columns
    table = narrow if dated else Table()
    for name in ("client", "id", "uids", "gids", "may write", "added", "revoked"):
        if dated or name not in _DATED:
            table.add_column(name, no_wrap=name in _DATED, overflow="fold")
    if not dated:
        table.add_column("share of the room", justify="right")
    if seen_s is not None:
        table.add_column("last seen", no_wrap=True)
    for each in clients:
        grant = each.grant
        rights = (
            ("", "", "")
            if grant is None
            else (users_shown(grant), groups_shown(grant), "yes" if grant.write else "no")
        )
        seen = () if seen_s is None else (day(seen_s.get(each.client)) or "-",)
        dates = (day(each.added_s) or "unknown", day(each.revoked_s))
        table.add_row(
            each.name,
            *((each.client.hex()[:SHORT_DIGITS],) if dated else ()),
            *rights,
            *(dates if dated else (f"{each.share:.0%}",)),
            *seen,
        )
    return table


def facts(client: KnownClient) -> dict[str, Any]:
    """The same for programs."""
    grant = client.grant
    return {
        "name": client.name,
        "id": client.client.hex(),
        "added_s": client.added_s,
        "revoked_s": client.revoked_s,
        "uids": None if grant is None else grant.uids,
        "gids": None if grant is None else grant.gids,
        "share": client.share,
        "may_write": grant is not None and grant.write,
    }


def day(since_epoch_s: int | None) -> str:
    """The day of a moment, for people; empty if there is none."""
    if since_epoch_s is None:
        return ""
    return time.strftime("%Y-%m-%d", time.localtime(since_epoch_s))


def users_shown(grant: Grant) -> str:
    """The users that a client may act as."""
    return _listed(grant.uids) + (" (root as nobody)" if grant.squash_root else "")


def groups_shown(grant: Grant) -> str:
    """The groups that it may claim."""
    return _listed(None if grant.uids is None else grant.gids)


def _listed(numbers: tuple[int, ...] | None) -> str:
    return "any" if numbers is None else ", ".join(map(str, numbers)) or "none"
