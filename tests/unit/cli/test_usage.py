"""`bftfs usage` tells what nodes say that they store, and believes none of them alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from bftfs.cli import usage
from bftfs.envelope import HeldVersions, UpkeepReply, UpkeepRequest, UsagePage
from bftfs.identifiers import ClientId, ObjectId, ObjectKind, object_id
from bftfs.wire.codec import encode
from tests.unit.cli.test_reach import Office

ALICE = ClientId(b"a" * 16)
BOB = ClientId(b"b" * 16)
FILE = object_id(ObjectKind.INODE, placement=0, unique=b"f" * 14)
LIAR = 5

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
