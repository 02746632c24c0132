"""Which epoch a writer takes while several revocations spread at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, combinations, product
from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.filesystem.epochs import EpochFollower
from tests.unit.filesystem.test_forgotten_holders import Keys, described, no_keys

__all__ = ["no_keys"]

T = B = 1  # as `described` has them
ANSWERS = 2 * T + 2 * B + 1  # n - t of the least n, 3t + 2b + 1
CERTAIN = T + 2 * B + 1  # n - 2t: of n - t correct nodes that have heard, so many answer
SERIALS = range(4)
MADE_UP = -1


def epoch(serial: int) -> str:
    return "made up" if serial == MADE_UP else f"epoch {serial}"


def revoking(serial: int) -> Any:
    """The description that revokes the client of this number, after those of before."""
    names = [f"client {each}" for each in SERIALS]
    listed = [epoch(each) for each in range(serial + 1)]
    return described(serial, listed, ["me", *names[serial:]], names[:serial])


def told(serials: Iterable[int]) -> list[Any]:
    return [SimpleNamespace(epoch=epoch(each), others=()) for each in serials]


def cases() -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What the nodes name, of which b may be made up; and what a client has read, after 0."""
    read = chain.from_iterable(combinations(SERIALS[1:], some) for some in SERIALS)
    for named, known in product(product((MADE_UP, *SERIALS), repeat=ANSWERS), list(read)):
        if named.count(MADE_UP) <= B:
            yield named, known


def stale() -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cases in which a writer seals under an epoch before one that n - t correct nodes have."""
    for named, known in cases():
        cipher: Any = Keys()
        follower = EpochFollower(revoking(0), Any, cipher, Any)
        for each in known:
            follower._use(revoking(each))
        claims = told(named)
        if follower._has_read(claims):
            assert follower._choose(claims), "without a fork it need not ask again"
            reached = sorted(named, reverse=True)[CERTAIN - 1]
            if str(cipher.present) < epoch(reached):
                yield named, known


def test_a_writer_has_an_epoch_that_enough_nodes_have_or_a_later_one() -> None:
    assert list(stale()) == []


def test_b_liars_keep_nobody_waiting() -> None:
    """Nobody waits who has read what the correct nodes name."""
    for named, known in cases():
        if set(named) <= {MADE_UP, 0, *known}:
            follower = EpochFollower(revoking(0), Any, Keys(), Any)  # type: ignore[arg-type]
            for each in known:
                follower._use(revoking(each))
            assert follower._has_read(told(named))


def one_by_one(self: EpochFollower, claims: Iterable[Any]) -> bool:
    """Only what more than b nodes name is waited for: several later ones count for nothing."""
    names = [each.epoch for each in claims]
    return all(each in self._lists or names.count(each) <= self._b for each in names)


def test_must_fail_where_epochs_are_awaited_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpochFollower, "_has_read", one_by_one)
    assert list(stale())
