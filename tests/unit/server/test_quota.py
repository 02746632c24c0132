"""What a client's versions use is counted per client, and bounded if a bound is set."""

from __future__ import annotations

import errno

from bftfs.asking.refusal import Refused
from bftfs.identifiers import BlockId, ClientId
from bftfs.server.room import ClientQuota, Room
from bftfs.storage import MemoryStorage

ALICE, BOB = ClientId(b"a" * 16), ClientId(b"b" * 16)
BLOCK = BlockId(bytes(32))


def charge(quota: ClientQuota, store: MemoryStorage, client: ClientId, volume: int) -> int:
    """0, or the errno with which the version was refused."""
    outcome = quota.charge(store, client, BLOCK, volume)
    if isinstance(outcome, Refused):
        return outcome.code
    store.apply(outcome)
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
        assert not isinstance(quota.charge(store, ALICE, BLOCK, 60), Refused)
    assert charge(quota, store, ALICE, 100) == 0


def test_without_a_bound_nothing_is_refused() -> None:
    quota, store = ClientQuota(Room()), MemoryStorage()
    assert charge(quota, store, ALICE, 1 << 50) == 0
    assert charge(quota, store, ALICE, 1 << 50) == 0
