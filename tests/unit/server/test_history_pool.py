"""A history pool that gets short: who is slowed, who is refused, and who is not."""

from __future__ import annotations

import errno
from collections import Counter

import pytest

from bftfs.asking.refusal import Refused
from bftfs.identifiers import BlockId, ClientId
from bftfs.server.history_pool import SHORT, SLOW, TIGHT, HistoryPool
from bftfs.server.quota import ClientQuota
from bftfs.server.room import Figures
from bftfs.storage import MemoryStorage, Table, Write

ALICE, BOB, CAROL = (ClientId(name * 16) for name in (b"a", b"b", b"c"))
BLOCK = BlockId(bytes(32))
LIMIT = 1_000_000


class Disk:
    """What a pool asks of the store."""

    def __init__(self) -> None:
        self.taken = 0
        self.free_bytes = LIMIT

    def measure(self) -> Figures:
        return Figures(self.taken, self.free_bytes, 0, 0)


class Node:
    """A quota, its pool, and the store under them."""

    def __init__(self, budget_bytes: int | None = LIMIT) -> None:
        self.disk = Disk()
        self.pool = HistoryPool(budget_bytes)
        self.pool.attach(self.disk)  # type: ignore[arg-type]
        self.quota = ClientQuota(None, self.pool)
        self.view = MemoryStorage()

    def write(self, client: ClientId, volume: int) -> int:
        """0, or the errno with which a version is refused."""
        outcome = self.quota.charge(self.view, client, BLOCK, volume)
        if isinstance(outcome, Refused):
            return outcome.code
        self.view.apply(outcome)
        self.disk.taken += volume
        self.pool.measure()
        return 0

    def update(self, client: ClientId, volume: int, *, uses_reserve: bool = False) -> int:
        """The same for metadata."""
        writes = [Write(Table.VERSION, b"key", bytes(volume)), Write(Table.STATE, b"key", None)]
        rejected = self.quota.charge_metadata(self.view, client, writes, uses_reserve=uses_reserve)
        if rejected is not None:
            return rejected.code
        self.disk.taken += volume
        return 0

    def fill(self, client: ClientId, share: float) -> None:
        """Let `client` take so much of the pool."""
        outcome = self.quota.charge_anyway(self.view, client, BLOCK, int(share * LIMIT))
        self.view.apply(outcome)
        self.disk.taken += int(share * LIMIT)
        self.pool.measure()


def test_the_greediest_is_slowed_and_then_refused_and_the_others_work_on() -> None:
    node = Node()
    node.fill(BOB, 0.02)
    node.fill(ALICE, SLOW - 0.02)
    outcomes = Counter(node.write(ALICE, 1_000) for _ in range(400))
    assert set(outcomes) == {0, errno.EAGAIN, errno.EDQUOT}
    assert node.pool.share == pytest.approx(TIGHT, abs=0.01)
    assert [node.write(BOB, 1_000) for _ in range(20)] == [0] * 20
    assert node.write(CAROL, 1_000) == 0
    assert node.write(ALICE, 1) == errno.EDQUOT


def test_nobody_writes_to_a_full_pool_and_all_do_when_there_is_room_again() -> None:
    node = Node()
    node.fill(ALICE, 0.99)
    while node.write(BOB, 1_000) == 0:
        pass
    assert node.write(BOB, 1_000) == errno.ENOSPC
    assert node.write(ALICE, 1_000) == errno.ENOSPC
    node.view.apply(node.quota.release(node.view, {ALICE: LIMIT // 2}))
    node.disk.taken -= LIMIT // 2
    node.pool.measure()
    assert node.write(BOB, 1_000) == 0
    assert node.write(ALICE, 1_000) == 0


def test_a_full_pool_is_called_full_for_metadata_as_well() -> None:
    node = Node()
    node.fill(ALICE, 0.97)
    assert node.update(ALICE, 100) == errno.EDQUOT
    node.fill(ALICE, 0.04)
    assert node.update(ALICE, 100) == errno.ENOSPC
    assert node.update(BOB, 100) == 0


def test_the_greediest_removes_and_repairs_within_bounds() -> None:
    """Who could remove nothing would never have room again."""
    node = Node()
    node.fill(ALICE, 0.97)
    assert node.update(ALICE, 100) == errno.EDQUOT
    removed = 0
    while node.update(ALICE, 100, uses_reserve=True) == 0:
        removed += 1
    overdraft = LIMIT / 16
    assert overdraft / 5 < removed * 612 < overdraft / 2
    assert node.pool.share < 1
    assert node.update(ALICE, 100) == errno.EDQUOT
    assert node.update(BOB, 100) == 0
    node.disk.taken = 0
    node.pool.measure()
    assert node.update(ALICE, 100) == 0


@pytest.mark.parametrize("budget_bytes", [None, LIMIT // 2])
def test_removals_are_taken_however_far_beyond_its_pool_a_node_is(budget_bytes: int | None) -> None:
    """Others have filled the disk, or the operator has asked for less."""
    node = Node(budget_bytes)
    node.disk.free_bytes = 0
    node.fill(ALICE, 1)
    assert node.pool.share > 1.1
    assert node.update(ALICE, 100) == errno.ENOSPC
    removed = 0
    while node.update(ALICE, 100, uses_reserve=True) == 0:
        removed += 1
    overdraft = node.pool.limit_bytes / 16
    assert overdraft / 5 < removed * 612 < overdraft / 2
    assert node.write(BOB, 100) == errno.ENOSPC


def test_what_is_given_back_is_not_counted_and_never_too_much() -> None:
    node = Node()
    node.fill(ALICE, 0.1)
    node.view.apply(node.quota.release(node.view, {ALICE: LIMIT, BOB: 5}))
    node.fill(BOB, 0.85)
    node.fill(ALICE, 0.01)
    assert node.write(ALICE, 1) == 0


def test_shortage_is_announced_where_it_is_met() -> None:
    node = Node()
    announced = []
    node.pool.shortage.attach(object(), lambda: announced.append(True))
    for _ in range(200):
        assert node.write(ALICE, 1_000) == 0
    assert not announced
    node.fill(ALICE, SHORT - 0.19)
    for _ in range(70):
        node.write(ALICE, 100)
    assert announced
    assert node.pool.is_short()


def test_who_fills_the_pool_with_metadata_is_refused_and_the_others_are_not() -> None:
    node = Node()
    node.fill(CAROL, 0.3)
    node.fill(BOB, 0.01)
    node.fill(ALICE, 0.55)
    written = 0
    while node.update(ALICE, 1_000) == 0:
        written += 1
        assert node.update(BOB, 10) == 0
    assert 80 < written < 110
    node.pool.measure()
    assert TIGHT <= node.pool.share < 1
    assert node.update(ALICE, 1) == errno.EDQUOT
    assert [node.update(BOB, 100), node.update(CAROL, 1)] == [0, 0]
    node.disk.taken = LIMIT // 2
    node.pool.measure()
    assert node.update(ALICE, 1_000) == 0


def test_without_a_budget_it_is_most_of_what_there_is() -> None:
    node = Node(None)
    node.disk.taken, node.disk.free_bytes = 100_000, 900_000
    node.pool.measure()
    assert node.pool.limit_bytes == 900_000
    assert not node.pool.is_short()
