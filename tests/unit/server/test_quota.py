"""What a client's versions use is counted per client, and bounded if a bound is set."""

from __future__ import annotations

import errno

from bftfs.identifiers import ClientId
from bftfs.server.room import ClientQuota, Room, charged
from bftfs.storage import MemoryStorage

ALICE, BOB = ClientId(b"a" * 16), ClientId(b"b" * 16)


def charge(quota: ClientQuota, store: MemoryStorage, client: ClientId, volume: int) -> int:
    """0, or the errno with which the version was refused."""
    if (refusal := quota.refusal(store, client, volume)) is not None:
        return refusal.code
    store.apply(charged(store, [(client, volume)]))
    return 0


def test_each_client_has_its_own_account() -> None:
    quota, store = ClientQuota(Room(client_bytes=100)), MemoryStorage()
    assert charge(quota, store, ALICE, 60) == 0
    assert charge(quota, store, BOB, 100) == 0
    assert charge(quota, store, ALICE, 41) == errno.EDQUOT
    assert charge(quota, store, ALICE, 40) == 0
    assert charge(quota, store, ALICE, 1) == errno.EDQUOT


def test_a_version_that_is_not_stored_is_not_counted() -> None:
    quota, store = ClientQuota(Room(client_bytes=100)), MemoryStorage()
    for _ in range(10):
        assert quota.refusal(store, ALICE, 60) is None
        assert charged(store, [(ALICE, 60)])
    assert charge(quota, store, ALICE, 100) == 0


def test_without_a_bound_nothing_is_refused() -> None:
    quota, store = ClientQuota(Room()), MemoryStorage()
    assert charge(quota, store, ALICE, 1 << 50) == 0
    assert charge(quota, store, ALICE, 1 << 50) == 0


def test_who_is_charged_beyond_the_bound_is_refused_the_next() -> None:
    quota, store = ClientQuota(Room(client_bytes=100)), MemoryStorage()
    store.apply(charged(store, [(ALICE, 120)]))
    assert charge(quota, store, ALICE, 1) == errno.EDQUOT
