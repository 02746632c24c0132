"""What a node takes while its history pool or its disk is short of room."""

from __future__ import annotations

import errno
from collections import Counter

import pytest

from bftfs.asking.refusal import Refused
from bftfs.identifiers import ClientId
from bftfs.limits import MIB
from bftfs.server.room import (
    SHORT,
    SLOW,
    TIGHT,
    ClientQuota,
    Figures,
    ReserveShares,
    Room,
    charged,
    used_bytes,
)
from bftfs.storage import MemoryStorage, Table, Write

ALICE, BOB, CAROL = (ClientId(name * 16) for name in (b"a", b"b", b"c"))
LIMIT = 1_000_000


class Disk:
    """What a pool asks of the store."""

    def __init__(self) -> None:
        self.taken = 0
        self.free_bytes = LIMIT

    def measure(self) -> Figures:
        return Figures(self.taken, self.free_bytes, 0, 0)


class Node:
    """The accounts, the room, and the store under them."""

    def __init__(self, budget_bytes: int | None = LIMIT) -> None:
        self.disk = Disk()
        self.room = Room(pool_bytes=budget_bytes)
        self.room.attach(self.disk.measure)
        self.quota = ClientQuota(self.room)
        self.view = MemoryStorage()

    def write(self, client: ClientId, volume: int) -> int:
        """0, or the errno with which a version is refused."""
        if (refusal := self.quota.refusal(self.view, client, volume)) is not None:
            return refusal.code
        self.view.apply(charged(self.view, [(client, volume)]))
        self.disk.taken += volume
        self.room.measure()
        return 0

    def update(self, client: ClientId, volume: int, *, uses_reserve: bool = False) -> int:
        """The same for metadata."""
        writes = [Write(Table.VERSION, b"key", bytes(volume)), Write(Table.STATE, b"key", None)]
        rejected = self.room.admits_update(self.view, client, writes, uses_reserve=uses_reserve)
        if rejected is not None:
            return rejected.code
        self.disk.taken += volume
        return 0

    def fill(self, client: ClientId, share: float) -> None:
        """Let `client` take so much of the pool."""
        self.view.apply(charged(self.view, [(client, int(share * LIMIT))]))
        self.disk.taken += int(share * LIMIT)
        self.room.measure()


def test_greedy_clients_are_slowed_then_refused_others_not() -> None:
    node = Node()
    node.fill(BOB, 0.02)
    node.fill(ALICE, SLOW - 0.02)
    outcomes = Counter(node.write(ALICE, 1_000) for _ in range(400))
    assert set(outcomes) == {0, errno.EAGAIN, errno.EDQUOT}
    assert node.room.share == pytest.approx(TIGHT, abs=0.01)
    assert [node.write(BOB, 1_000) for _ in range(20)] == [0] * 20
    assert node.write(CAROL, 1_000) == 0
    assert node.write(ALICE, 1) == errno.EDQUOT


def test_a_full_pool_takes_no_versions_until_there_is_room() -> None:
    node = Node()
    node.fill(ALICE, 0.99)
    while node.write(BOB, 1_000) == 0:
        pass
    assert node.write(BOB, 1_000) == errno.ENOSPC
    assert node.write(ALICE, 1_000) == errno.ENOSPC
    node.view.apply(charged(node.view, [(ALICE, -LIMIT // 2)]))
    node.disk.taken -= LIMIT // 2
    node.room.measure()
    assert node.write(BOB, 1_000) == 0
    assert node.write(ALICE, 1_000) == 0


def test_a_full_pool_is_called_full_for_metadata_too() -> None:
    node = Node()
    node.fill(ALICE, 0.97)
    assert node.update(ALICE, 100) == errno.EDQUOT
    node.fill(ALICE, 0.04)
    assert node.update(ALICE, 100) == errno.ENOSPC
    assert node.update(BOB, 100) == 0


def test_greedy_clients_remove_and_repair_within_bounds() -> None:
    """Who could remove nothing would never have room again."""
    node = Node()
    node.fill(ALICE, 0.97)
    assert node.update(ALICE, 100) == errno.EDQUOT
    removed = 0
    while node.update(ALICE, 100, uses_reserve=True) == 0:
        removed += 1
    overdraft = LIMIT / 16
    assert overdraft / 5 < removed * 612 < overdraft / 2
    assert node.room.share < 1
    assert node.update(ALICE, 100) == errno.EDQUOT
    assert node.update(BOB, 100) == 0
    node.disk.taken = 0
    node.room.measure()
    assert node.update(ALICE, 100) == 0


@pytest.mark.parametrize("budget_bytes", [None, LIMIT // 2])
def test_removals_are_taken_however_full_the_pool_is(budget_bytes: int | None) -> None:
    """Others have filled the disk, or the operator has asked for less."""
    node = Node(budget_bytes)
    node.disk.free_bytes = 0
    node.fill(ALICE, 1)
    assert node.room.share > 1.1
    assert node.update(ALICE, 100) == errno.ENOSPC
    removed = 0
    while node.update(ALICE, 100, uses_reserve=True) == 0:
        removed += 1
    overdraft = node.room.limit_bytes / 16
    assert overdraft / 5 < removed * 612 < overdraft / 2
    assert node.write(BOB, 100) == errno.ENOSPC


def test_released_bytes_are_not_counted_and_never_negative() -> None:
    node = Node()
    node.fill(ALICE, 0.1)
    node.view.apply(charged(node.view, [(ALICE, -LIMIT), (BOB, -5)]))
    node.fill(BOB, 0.85)
    node.fill(ALICE, 0.01)
    assert node.write(ALICE, 1) == 0


def test_shortage_is_announced_where_it_is_met() -> None:
    node = Node()
    announced = []
    node.room.shortage.attach(object(), lambda: announced.append(True))
    for _ in range(200):
        assert node.write(ALICE, 1_000) == 0
    assert not announced
    node.fill(ALICE, SHORT - 0.19)
    for _ in range(70):
        node.write(ALICE, 100)
    assert announced
    assert node.room.is_short()


def test_metadata_make_a_client_greedy_too() -> None:
    node = Node()
    node.fill(CAROL, 0.3)
    node.fill(BOB, 0.01)
    node.fill(ALICE, 0.55)
    written = 0
    while node.update(ALICE, 1_000) == 0:
        written += 1
        assert node.update(BOB, 10) == 0
    assert 80 < written < 110
    node.room.measure()
    assert TIGHT <= node.room.share < 1
    assert node.update(ALICE, 1) == errno.EDQUOT
    assert [node.update(BOB, 100), node.update(CAROL, 1)] == [0, 0]
    node.disk.taken = LIMIT // 2
    node.room.measure()
    assert node.update(ALICE, 1_000) == 0


def test_without_a_budget_the_pool_is_most_of_the_disk() -> None:
    node = Node(None)
    node.disk.taken, node.disk.free_bytes = 100_000, 900_000
    node.room.measure()
    assert node.room.limit_bytes == 900_000
    assert not node.room.is_short()


# --- shares ---------------------------------------------------------------------------------------

ROW = (Write(Table.STATE, b"k", bytes(1_000)),)
WHOLE = 1_000_000


def client(number: int) -> ClientId:
    return ClientId(number.to_bytes(16, "big"))


def drawn(shares: ReserveShares, who: ClientId) -> int:
    """What a client gets that asks until it is refused."""
    before = shares.left
    while shares.gives(who, ROW):
        pass
    return before - shares.left


def test_each_gets_a_third_of_what_is_left() -> None:
    shares = ReserveShares()
    shares.left = WHOLE
    drawn_shares = [drawn(shares, client(number)) for number in range(8)]
    left = WHOLE
    for share in drawn_shares:
        assert abs(share - left / 3) < 2_000
        left -= share
    assert shares.gives(client(99), ROW)


def test_a_share_grows_when_room_comes_back() -> None:
    shares = ReserveShares()
    shares.left = WHOLE
    share = drawn(shares, client(1))
    shares.left = WHOLE  # measured anew: room has come back
    assert 0 < drawn(shares, client(1)) < share
    shares.end()
    assert not shares.gives(client(1), ROW)  # there is nothing to give
    shares.left = WHOLE
    assert drawn(shares, client(1)) == share


def test_removals_take_little_of_a_share() -> None:
    shares = ReserveShares()
    shares.left = 2_000
    assert not shares.gives(client(1), ROW)
    assert shares.gives(client(1), (Write(Table.STATE, b"k", None),))


# --- the disk ------------------------------------------------------------------------------------

FULL = "the disk is full"


def full(drawable_bytes: int) -> Room:
    """The room of a node whose disk is full, with so much of its reserve left."""
    room = Room()
    room.disk_is_full(FULL, figures(drawable_bytes))
    return room


def figures(drawable_bytes: int, free_bytes: int = 0) -> Figures:
    return Figures(LIMIT, free_bytes, 8 * MIB, drawable_bytes)


def test_without_shortage_everything_is_taken() -> None:
    room = Room()
    assert not room.full
    assert room.admits(ALICE, ROW, uses_reserve=False) is None


def test_a_full_disk_takes_nothing_but_what_uses_the_reserve() -> None:
    room = full(WHOLE)
    assert room.full
    assert room.admits(ALICE, ROW, uses_reserve=False) == Refused(errno.ENOSPC, FULL)
    assert room.admits(ALICE, ROW, uses_reserve=True) is None


def test_a_reserve_that_a_batch_did_not_fit_into_is_used_up() -> None:
    room = full(WHOLE)
    room.disk_is_full(FULL, figures(WHOLE))
    assert room.admits(ALICE, ROW, uses_reserve=True) == Refused(errno.ENOSPC, FULL)


def test_a_full_disk_stays_full_until_there_is_room_to_speak_of() -> None:
    room = full(0)
    room.look_again(figures(WHOLE, free_bytes=8 * MIB - 1))
    assert room.full
    assert room.admits(ALICE, ROW, uses_reserve=True) is None
    room.look_again(figures(WHOLE, free_bytes=8 * MIB))
    assert not room.full
    assert room.admits(ALICE, ROW, uses_reserve=False) is None


def test_shares_begin_anew_when_the_disk_is_full_again() -> None:
    room = full(WHOLE)

    def taken() -> int:
        times = 0
        while room.admits(ALICE, ROW, uses_reserve=True) is None:
            times += 1
        return times

    first = taken()
    assert WHOLE // 3 - 2_000 < first * 1_257 < WHOLE // 3 + 2_000
    room.look_again(figures(WHOLE, free_bytes=LIMIT * 100))
    room.disk_is_full(FULL, figures(WHOLE))
    assert taken() == first


def test_an_account_that_has_rotted_stops_no_node() -> None:
    view = MemoryStorage()
    view.apply([Write(Table.ADMISSION, ALICE, b"\xff" * 8)])
    view.apply(charged(view, [(ALICE, 5)]))
    assert used_bytes(view, ALICE) == (1 << 64) - 1
