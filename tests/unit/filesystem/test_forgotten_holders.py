"""Who has got an epoch's key, as far as a client remembers: never fewer than it is."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.filesystem import epochs
from bftfs.filesystem.epochs import FIRST_EPOCH, EpochFollower

EARLY = [f"early {number}" for number in range(epochs._HOLDERS_KEPT)]
GONE = [f"gone {number}" for number in range(epochs._HOLDERS_KEPT)]  # each has had one of these
SHARED = ["shared"]  # x and y have its key


class Keys:
    """A cipher that seals nothing."""

    present = FIRST_EPOCH

    def learn(self, _epoch: Any, _key: Any) -> None:
        """Every key is known."""

    def knows(self, _epoch: Any) -> bool:
        """True: every key is known."""
        return True


def described(serial: int, chain: list[str], holders: list[str], past: list[str]) -> Any:
    return SimpleNamespace(
        digest=f"{chain[-1]} {holders}",
        serial=serial,
        epoch=chain[-1],
        epochs=[SimpleNamespace(epoch=each) for each in chain],
        past_clients=[SimpleNamespace(client=each) for each in past],
        clients=[SimpleNamespace(client=each, epoch_key=b"key") for each in holders],
        b=1,
        t=1,
    )


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "epoch_keys_in", lambda *_: {})


def test_an_old_description_makes_no_epoch_better_than_it_is() -> None:
    """Three machines begin epochs, and two of them revoke x and y; the third one's key has both.

    Old descriptions have forgotten that. Then one comes that was signed before x and y were
    clients: they seemed not to have the third one's key.
    """
    cipher: Any = Keys()
    follower = EpochFollower(described(22, SHARED, ["me", "x", "y"], GONE), Any, cipher, Any)
    for machine, stays, revoked in (("one", "y", "x"), ("two", "x", "y")):
        follower._use(described(23, [machine], ["me", stays], [*GONE, revoked]))
    claims: list[Any] = [SimpleNamespace(epoch="one", others=("two", "shared"))] * 5
    follower._choose(claims)
    assert cipher.present == "two"
    for number, gone in enumerate(GONE):
        follower._use(described(number, [EARLY[number]], ["me", gone], GONE[:number]))
    follower._use(described(20, SHARED, ["me"], GONE))
    follower._choose(claims)
    assert cipher.present == "two"


FORK = [
    described(1, ["first"], ["me"], []),
    described(4, ["first", "second"], ["me", "x", "y"], []),
    described(5, ["first", "second", "one"], ["me", "y"], ["x"]),
    described(5, ["first", "second", "two"], ["me", "x"], ["y"]),
]


@pytest.mark.parametrize("order", list(permutations(range(len(FORK)))))
def test_who_came_later_has_the_keys_of_before(order: tuple[int, ...]) -> None:
    """Two machines revoke x and y. Both came in the second epoch, and got the first one's key."""
    assert chosen_in_a_fork(order) == "two"


def chosen_in_a_fork(order: Iterable[int]) -> str:
    cipher: Any = Keys()
    start, *others = (FORK[each] for each in order)
    follower = EpochFollower(start, Any, cipher, Any)
    for each in others:
        follower._use(each)
    claims: list[Any] = [SimpleNamespace(epoch="one", others=("two",))] * 5
    follower._choose(claims)
    return str(cipher.present)


def test_must_fail_where_a_key_is_got_in_its_own_epoch_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = EpochFollower._use

    def its_own_alone(self: EpochFollower, found: Any) -> None:
        known = dict(self._holders)
        real(self, found)
        held = frozenset(each.client for each in found.clients)
        self._holders |= known | {found.epoch: known.get(found.epoch, frozenset()) | held}

    monkeypatch.setattr(EpochFollower, "_use", its_own_alone)
    assert chosen_in_a_fork(range(len(FORK))) == "first"
