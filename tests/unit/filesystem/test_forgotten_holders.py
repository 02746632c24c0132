"""What a client has forgotten of an epoch's clients does not come back in part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.filesystem import epochs
from bftfs.filesystem.epochs import FIRST_EPOCH, EpochFollower

EARLY = [f"early {number}" for number in range(epochs._HOLDERS_KEPT)]
GONE = [f"gone {number}" for number in range(epochs._HOLDERS_KEPT)]  # each has had one of these
SHARED = [*EARLY, "shared"]  # x and y have the key of the last one


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


def test_an_old_description_makes_no_epoch_better_than_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two machines revoke x and y; old descriptions have forgotten who has got the key of before.

    Then one comes that was signed before x and y were clients: they seemed not to have that key.
    """
    monkeypatch.setattr(epochs, "epoch_keys_in", lambda *_: {})
    cipher: Any = Keys()
    follower = EpochFollower(described(22, SHARED, ["me", "x", "y"], GONE), Any, cipher, Any)
    for machine, stays, revoked in (("one", "y", "x"), ("two", "x", "y")):
        follower._use(described(23, [*SHARED, machine], ["me", stays], [*GONE, revoked]))
    claims: list[Any] = [SimpleNamespace(epoch="one", others=("two",))] * 5
    follower._choose(claims)
    assert cipher.present == "two"
    for number, gone in enumerate(GONE):
        follower._use(described(number, EARLY[: number + 1], ["me", gone], GONE[:number]))
    follower._use(described(20, SHARED, ["me"], GONE))
    follower._choose(claims)
    assert cipher.present == "two"
