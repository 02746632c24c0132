"""`bftfs usage` tells what nodes say that they store, and believes none of them alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from bftfs import cluster, description_files
from bftfs.cli import usage
from bftfs.cli.decisions import decisions_known
from bftfs.cluster import ClientEntry, ClusterDescription
from bftfs.crypto.keys import Identity
from bftfs.envelope import (
    Announcement,
    Decision,
    HeldVersions,
    UpkeepReply,
    UpkeepRequest,
    UsagePage,
)
from bftfs.identifiers import ClientId, ObjectId, ObjectKind, object_id
from bftfs.wire.codec import encode
from tests.unit.cli.test_reach import Office

ALICE = ClientId(b"a" * 16)
BOB = ClientId(b"b" * 16)
FILE = object_id(ObjectKind.INODE, placement=0, unique=b"f" * 14)
LIAR = 5
CLUSTER = cluster.create(
    [f"tcp:10.0.0.{node}:7000" for node in range(6)], t=1, b=1, draw=os.urandom
)

Told = Callable[[UpkeepRequest], UsagePage]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    for each in office.sockets:
        each.close()


def held(client: ClientId, now: int, *past: int, file: ObjectId = FILE) -> HeldVersions:
    return HeldVersions(file, client, now, 0, past or (0, 0, 0, 0))


def row(number: int) -> bytes:
    return number.to_bytes(8, "big")


def honest(request: UpkeepRequest) -> UsagePage:
    """Three pages."""
    page = int.from_bytes(request.after, "big")
    client, past = (ALICE, (10, 0, 0, 30)) if page < 2 else (BOB, (0, 0, 0, 0))
    return UsagePage((held(client, 500, *past),), row(page + 1) if page < 2 else b"")


def asked(office: Office, liar: Told | None, *words: str) -> Result:
    with ExitStack() as nodes:
        for number in range(6):
            told = liar if number == LIAR and liar is not None else honest

            def answer(request: UpkeepRequest, told: Told = told) -> bytes:
                return encode(UpkeepReply(usage=told(request)))

            nodes.enter_context(office.running(number, answer))
        return office.bftfs("usage", *words)


TRUTH = {
    ALICE.hex()[:12]: {"now": 3000, "snapshots": 0, "past": 240},
    BOB.hex()[:12]: {"now": 1500, "snapshots": 0, "past": 0},
}


def more(_: UpkeepRequest) -> UsagePage:
    return UsagePage((held(ALICE, 1 << 40), held(ClientId(b"c" * 16), 1 << 40)), b"")


def nothing(_: UpkeepRequest) -> UsagePage:
    return UsagePage((), b"")


def endless(request: UpkeepRequest) -> UsagePage:
    return UsagePage((), row(int.from_bytes(request.after, "big") + 1))


def backwards(_: UpkeepRequest) -> UsagePage:
    return UsagePage((held(BOB, 1),), row(1))


@pytest.mark.parametrize(
    ("liar", "why"),
    [
        (None, ""),
        (more, ""),
        (nothing, ""),
        (endless, "tells much more than other nodes"),
        (backwards, "tells what it stores out of order"),
    ],
)
def test_one_liar_changes_no_figure(office: Office, liar: Told | None, why: str) -> None:
    result = asked(office, liar, "--json")
    assert result.exception is None, result.output
    report = json.loads(result.stdout)
    assert report["clients"] == TRUTH
    assert report["past_free"] == {"now": 60, "within_a_day": 0, "within_a_week": 0, "later": 180}
    assert result.return_value == bool(why)
    assert why in result.stderr


@pytest.mark.parametrize("liar", [more, nothing])
@pytest.mark.parametrize("believed", [max, min, lambda claims: sum(claims) // len(claims)])
def test_must_fail_where_all_are_believed(
    office: Office, liar: Told, believed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_middle", believed)
    clients = json.loads(asked(office, liar, "--json").stdout)["clients"]
    is_fooled = clients != TRUTH
    assert is_fooled or (believed, liar) in {(max, nothing), (min, more)}


def test_too_few_nodes_are_not_believed(office: Office) -> None:
    for number in (0, 1):
        office.sockets[number].close()
    with ExitStack() as nodes:
        for number in range(2, 6):
            nodes.enter_context(
                office.running(number, lambda request: encode(UpkeepReply(usage=honest(request))))
            )
        result = office.bftfs("usage")
    assert "only 4 of 6 nodes tell what they store, and 5 are needed" in str(result.exception)


def test_it_needs_the_administrators_key(office: Office) -> None:
    office.directory.administrator_key.unlink()
    result = office.bftfs("usage")
    assert "only the administrator is told what is stored" in str(result.exception)


def test_the_tables_fit_eighty_columns(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = asked(office, None).stdout
    assert ALICE.hex()[:12] in shown
    assert "the past that becomes free" in shown
    assert max(map(len, shown.splitlines())) <= 80


# --- letting go -----------------------------------------------------------------------------------


def let_go(office: Office, *words: str) -> Result:
    """The nodes tell honestly, and take what they are told."""
    with ExitStack() as nodes:
        for number in range(6):

            def answer(request: UpkeepRequest | Announcement) -> bytes:
                if not isinstance(request, UpkeepRequest):
                    return encode(UpkeepReply())
                return encode(UpkeepReply(usage=honest(request)))

            nodes.enter_context(office.running(number, answer))
        return office.bftfs("cluster", "let-go", *words)


def described(office: Office) -> ClusterDescription:
    return description_files.load(office.directory.description)


def revoked(office: Office) -> ClientId:
    """A client of the past."""
    entry = ClientEntry("mallory", Identity.generate(b"m" * 32).public_key)
    later = office.made.description.with_client(entry).without_client("mallory", at_s=7)
    description_files.store(office.directory.description, later, office.made.administrator)
    return entry.client


def test_letting_go_says_how_much_and_does_nothing_unless_told_twice(office: Office) -> None:
    result = let_go(office)
    assert result.exception is None, result.output
    assert "at most 60 B of contents, of the past" in result.stdout
    assert "say --yes" in result.stdout
    assert described(office) == office.made.description


def test_what_is_let_go_is_signed_told_and_shown(office: Office) -> None:
    client = revoked(office)
    result = let_go(office, "--client", "mallory", "--since", "2026-11-21T10:02", "--yes")
    assert result.return_value == 0, result.output
    assert "Nodes 0, 1, 2, 3, 4, 5 have it." in result.stdout
    [decision] = described(office).let_go
    assert (decision.client, decision.number) == (client, 3)
    assert decision.since_s % 60 == 0 < decision.before_s <= decision.signed_s
    shown = office.bftfs("cluster", "clients").stderr
    assert "what client mallory made since 2026-11-21T10:02:00, and was superseded" in shown
    assert "let go by the cluster's administrator on" in shown


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--client", "nobody"), "no client is called so"),
        (("--client", "laptop"), "laptop may still connect"),
        (("--since", "5m"), "--since is for the versions of one client"),
        (("--before", "now"), "choose a time of 10min ago or earlier"),
        (("--before", "soonish"), "is not a time"),
    ],
)
def test_mistakes(office: Office, words: tuple[str, ...], why: str) -> None:
    entry = ClientEntry("laptop", Identity.generate(b"l" * 32).public_key)
    description = office.made.description.with_client(entry)
    description_files.store(office.directory.description, description, office.made.administrator)
    result = let_go(office, *words, "--yes")
    assert why in str(result.exception)
    assert described(office).let_go == ()


def test_what_was_let_go_is_believed_of_more_than_b_nodes() -> None:
    description = CLUSTER.description
    true, false = (Decision(1, 1000, number, None, 0) for number in (7, 8))
    known = decisions_known(description, [(true, false, false), (true,), ()])
    assert [each.number for each in known] == [7]
