"""Fair shares: who may have more of what is bounded, and who gives way."""

from __future__ import annotations

from random import Random

import pytest

from bftfs.server.shares import Shares, gives_way

MOST, SURE = 256, 8


def taken(shares: Shares[str], holder: str, tries: int = MOST) -> int:
    return sum(shares.take(holder, 1) for _ in range(tries))


def test_one_alone_leaves_half() -> None:
    shares: Shares[str] = Shares(MOST, SURE)
    assert taken(shares, "mallory") == MOST // 2
    assert taken(shares, "alice", 20) == 20


@pytest.mark.parametrize("count", [2, 4, 10, 20])
def test_equal_ones_have_equal_shares_and_leave_one_more(count: int) -> None:
    shares: Shares[str] = Shares(MOST, SURE)
    holders = [f"mallory {number}" for number in range(count)]
    held = dict.fromkeys(holders, 0)
    for _ in range(MOST):
        for holder in holders:
            held[holder] += shares.take(holder, 1)
    assert min(held.values()) >= MOST // (count + 1)
    assert max(held.values()) - min(held.values()) <= 1
    assert taken(shares, "alice") >= max(SURE, MOST // (2 * count + 2))


def test_everybody_has_a_little_whatever_others_hold() -> None:
    shares: Shares[str] = Shares(MOST, SURE)
    got = [taken(shares, f"mallory {number}") for number in range(100)]
    assert got[0] == MOST // 2
    assert set(got[20:]) == {SURE}


def test_what_is_given_back_can_be_taken_again() -> None:
    shares: Shares[str] = Shares(MOST, SURE)
    assert taken(shares, "mallory") == MOST // 2
    shares.give_back("mallory", MOST // 2)
    assert taken(shares, "alice") == MOST // 2


def test_shares_become_equal_where_places_come_free() -> None:
    """Who came first has no more in the end, if what is held is given back after some time."""
    shares: Shares[str] = Shares(MOST, SURE)
    held = {"early": taken(shares, "early"), "late": 0}
    order = Random(1)
    for _ in range(20 * MOST):
        holder = order.choice(("early", "late"))
        if held[holder]:
            shares.give_back(holder, 1)
            held[holder] -= 1
        for each in ("early", "late"):
            held[each] += shares.take(each, 1)
    assert abs(held["early"] - held["late"]) <= 2


def test_large_things_count_as_what_they_are() -> None:
    shares: Shares[str] = Shares(MOST, SURE)
    assert shares.take("mallory", MOST // 2)
    assert not shares.take("alice", MOST // 4 + 1)
    assert shares.take("alice", MOST // 4)
    assert not shares.take("bob", MOST)


def test_all_together_hold_a_bounded_amount() -> None:
    shares: Shares[int] = Shares(MOST, SURE)
    random = Random(2)
    total = 0
    for _ in range(10_000):
        amount = random.randrange(1, 40)
        total += amount * shares.take(random.randrange(50), amount)
    assert total <= MOST + 50 * SURE


def test_the_first_of_the_greediest_gives_way() -> None:
    crowd = ["alice 1", "mallory 1", "bob 1", "mallory 2", "alice 2", "mallory 3"]
    assert gives_way(crowd, lambda each: each.split()[0]) == "mallory 1"
    assert gives_way(crowd[:5], lambda each: each.split()[0]) == "alice 1"
    sizes = {"alice 1": 5, "mallory 1": 1, "bob 1": 2, "mallory 2": 1}
    assert gives_way(list(sizes), lambda each: each.split()[0], sizes.__getitem__) == "alice 1"
