"""What a client's versions use is counted per client, and bounded if a bound is set."""

from __future__ import annotations

import errno

from bftfs.identifiers import ClientId
from bftfs.server.room import ClientQuota, Figures, Room, charged
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


# --- shares ---------------------------------------------------------------------------------------


def shared(share_of: dict[ClientId, float], *, live_bytes: int = 0) -> ClientQuota:
    """A pool of 1,000 bytes, of which clients have shares."""
    room = Room(pool_bytes=1000)
    room.attach(lambda: Figures(live_bytes, 10_000, 0, 0))
    room.share_of = lambda client: share_of.get(client, 0.5)
    return ClientQuota(room)


def test_a_client_has_its_share_of_the_room() -> None:
    quota, store = shared({BOB: 0.2}), MemoryStorage()
    assert charge(quota, store, ALICE, 500) == 0
    assert charge(quota, store, ALICE, 1) == errno.EDQUOT
    assert charge(quota, store, BOB, 201) == errno.EDQUOT
    assert charge(quota, store, BOB, 200) == 0
    refusal = quota.refusal(store, BOB, 1)
    assert refusal is not None
    assert "`share` in the cluster's description" in refusal.reason


def filled_by(quota: ClientQuota) -> int:
    """What one client gets of a pool of 1,000 bytes, 10 at a time."""
    store = MemoryStorage()
    return sum(10 for _ in range(100) if not charge(quota, store, ALICE, 10))


def test_a_stolen_key_leaves_room_for_others() -> None:
    assert filled_by(shared({})) == 500


def test_must_fail_where_nobody_has_a_share() -> None:
    assert filled_by(shared({ALICE: 1.0})) == 1000


def test_a_share_that_was_made_smaller_holds_at_once() -> None:
    shares = {ALICE: 0.5}
    quota, store = shared(shares), MemoryStorage()
    assert charge(quota, store, ALICE, 300) == 0
    shares[ALICE] = 0.1
    assert charge(quota, store, ALICE, 1) == errno.EDQUOT
