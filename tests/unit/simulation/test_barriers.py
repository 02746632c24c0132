"""Barriers beyond what a correct node may take are found, and no others."""

from __future__ import annotations

from bftfs import limits
from bftfs.clock_skew import NEAR_US
from bftfs.identifiers import ClientId, NodeId, ObjectId, ObjectKind
from bftfs.query_update.history import ZERO, Candidate, logical_timestamp
from bftfs.simulation.checkers.barriers import BarriersRecord
from bftfs.simulation.checkers.candidates import Acceptance
from bftfs.simulation.deployment import client_named

NODE = NodeId(0)
OBJECT = ObjectId(bytes((ObjectKind.COUNTER,)) + bytes(15))
NOW_US = 10**15
CLIENT, OTHER = client_named("a client"), client_named("another")
FIRST = limits.BARRIERS_EARNED + limits.BARRIERS_OF_OTHERS


class Taken:
    """What one node accepts."""

    def __init__(self, *, healing: bool = False) -> None:
        self.record = BarriersRecord(healing=healing)
        self._number = 0

    def accept(
        self,
        *,
        barrier: bool = True,
        client: ClientId = CLIENT,
        time_us: int = NOW_US,
        elsewhere: int = 0,
        clock_us: int = NOW_US,
        lives: int = 1,
        jumps: int = 0,
    ) -> list[str]:
        self._number += 1
        timestamp = logical_timestamp(
            time_us=time_us, barrier=barrier, client=client, digest=self._number.to_bytes(32, "big")
        )
        candidate = Candidate(timestamp, ZERO)
        acceptance = Acceptance(OBJECT, candidate, (candidate,), elsewhere)
        self.record.accepted(NODE, clock_us, [acceptance], lives=lives, jumps=jumps)
        return self.record.findings


def test_a_client_bars_an_object_so_often() -> None:
    taken = Taken()
    assert not any([taken.accept() for _ in range(FIRST)][-1])
    assert "beyond the budget" in taken.accept()[0]


def test_each_client_has_its_own_and_all_share_the_rest() -> None:
    taken = Taken()
    for _ in range(FIRST):
        assert not taken.accept()
    for _ in range(limits.BARRIERS_EARNED):
        assert not taken.accept(client=OTHER)
    assert taken.accept(client=OTHER)


def test_updates_and_time_earn_barriers() -> None:
    taken = Taken()
    for _ in range(FIRST):
        taken.accept()
    taken.accept(barrier=False)
    for _ in range(limits.BARRIERS_EARNED):
        assert not taken.accept()
    assert not taken.accept(clock_us=NOW_US + limits.SECOND_US)
    assert taken.accept(clock_us=NOW_US + limits.SECOND_US)


def test_a_new_life_begins_with_a_whole_budget() -> None:
    taken = Taken()
    for _ in range(FIRST):
        taken.accept()
    assert not taken.accept(lives=2)


def test_what_others_have_is_charged_and_no_finding() -> None:
    taken = Taken()
    for _ in range(2 * FIRST):
        assert not taken.accept(elsewhere=1)
    assert taken.accept()


def test_where_nodes_heal_what_others_have_is_not_charged() -> None:
    taken = Taken(healing=True)
    for _ in range(2 * FIRST):
        assert not taken.accept(elsewhere=1)
    for _ in range(FIRST):
        assert not taken.accept()
    assert taken.accept()


def test_barriers_far_ahead() -> None:
    """Beyond what a correct node has accepted, and what its maker may."""
    far_us = NOW_US + limits.CLOCK_SKEW_US
    taken = Taken()
    assert not taken.accept(client=OTHER, time_us=far_us)
    assert not taken.accept(time_us=far_us + 1)
    assert "beyond the time" in taken.accept(time_us=2 * far_us)[0]


def test_a_client_moves_an_objects_time_by_so_many_steps() -> None:
    """Others have their own; and it has all of them again when it has updated the object."""
    taken = Taken()
    ahead_us = NOW_US + NEAR_US
    for client in (CLIENT, OTHER, CLIENT):
        for _ in range(limits.BARRIER_STEPS):
            ahead_us += limits.SECOND_US // 10
            assert not taken.accept(client=client, time_us=ahead_us)
        taken.accept(barrier=False, client=client)
    taken.accept(barrier=False)
    for _ in range(limits.BARRIER_STEPS):
        ahead_us += limits.SECOND_US // 10
        assert not taken.accept(time_us=ahead_us)
    assert "beyond the time" in taken.accept(time_us=ahead_us + limits.SECOND_US)[0]


def test_with_each_jump_of_all_clocks_come_barriers_for_all() -> None:
    taken = Taken()
    for _ in range(FIRST):
        assert not taken.accept()
    for jumps in (1, 2):
        for _ in range(1 + limits.BARRIERS_OF_OTHERS):  # the first may be from before it
            assert not taken.accept(jumps=jumps)
    assert "beyond the budget" in taken.accept(jumps=2)[0]
