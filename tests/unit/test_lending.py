"""Room that is kept back, and who gets how much of it."""

from __future__ import annotations

from bftfs.identifiers import ClientId
from bftfs.lending import Lending
from bftfs.storage import Table, Write

ROW = (Write(Table.STATE, b"k", bytes(1_000)),)
WHOLE = 1_000_000


def client(number: int) -> ClientId:
    return ClientId(number.to_bytes(16, "big"))


def drawn(lending: Lending, who: ClientId) -> int:
    """What a client gets that asks until it is refused."""
    before = lending.left
    while lending.lends(who, ROW):
        pass
    return before - lending.left


def test_each_gets_a_third_of_the_rest_and_something_is_left_for_the_next() -> None:
    lending = Lending()
    lending.left = WHOLE
    shares = [drawn(lending, client(number)) for number in range(8)]
    left = WHOLE
    for share in shares:
        assert abs(share - left / 3) < 2_000
        left -= share
    assert lending.lends(client(99), ROW)


def test_who_has_had_his_share_gets_more_when_there_is_more() -> None:
    lending = Lending()
    lending.left = WHOLE
    share = drawn(lending, client(1))
    lending.left = WHOLE  # measured anew: room has come back
    assert 0 < drawn(lending, client(1)) < share
    lending.end()
    assert not lending.lends(client(1), ROW)  # nothing is lent
    lending.left = WHOLE
    assert drawn(lending, client(1)) == share


def test_what_is_taken_away_costs_little() -> None:
    lending = Lending()
    lending.left = 2_000
    assert not lending.lends(client(1), ROW)
    assert lending.lends(client(1), (Write(Table.STATE, b"k", None),))
