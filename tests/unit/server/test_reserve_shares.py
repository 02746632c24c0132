"""Room that is kept back, and who gets how much of it."""

from __future__ import annotations

from bftfs.identifiers import ClientId
from bftfs.server.reserve_shares import ReserveShares
from bftfs.storage import Table, Write

ROW = (Write(Table.STATE, b"k", bytes(1_000)),)
WHOLE = 1_000_000


def client(number: int) -> ClientId:
    return ClientId(number.to_bytes(16, "big"))


def drawn(shares: ReserveShares, who: ClientId) -> int:
    """What a client gets that asks until it is refused."""
    before = shares.left
    while shares.lends(who, ROW):
        pass
    return before - shares.left


def test_each_gets_a_third_of_the_rest_and_something_is_left_for_the_next() -> None:
    shares = ReserveShares()
    shares.left = WHOLE
    drawn_shares = [drawn(shares, client(number)) for number in range(8)]
    left = WHOLE
    for share in drawn_shares:
        assert abs(share - left / 3) < 2_000
        left -= share
    assert shares.lends(client(99), ROW)


def test_who_has_had_his_share_gets_more_when_there_is_more() -> None:
    shares = ReserveShares()
    shares.left = WHOLE
    share = drawn(shares, client(1))
    shares.left = WHOLE  # measured anew: room has come back
    assert 0 < drawn(shares, client(1)) < share
    shares.end()
    assert not shares.lends(client(1), ROW)  # nothing is lent
    shares.left = WHOLE
    assert drawn(shares, client(1)) == share


def test_what_is_taken_away_costs_little() -> None:
    shares = ReserveShares()
    shares.left = 2_000
    assert not shares.lends(client(1), ROW)
    assert shares.lends(client(1), (Write(Table.STATE, b"k", None),))
