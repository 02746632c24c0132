"""What a node makes of its peers' clocks."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from bftfs.asking.refusal import Refused
from bftfs.credentials import Grant
from bftfs.envelope import ClockReply, ClockRequest
from bftfs.identifiers import NodeId
from bftfs.limits import (
    BORNE_BEYOND_US,
    CLOCK_JUMP_US,
    CLOCKS_AGREE_US,
    CLOCKS_COMPARED_EVERY_US,
    SECOND_US,
    SET_BACK_US,
)
from bftfs.server.clock_comparison import ClockServer, recall
from bftfs.server.own_clock import OwnClock
from bftfs.server.step import Ready, Role, Sender
from bftfs.simulation.deployment import client_named
from bftfs.simulation.disk import Disk
from tests.seams.world import World

NOW_US = 10**15
FAR_US = CLOCKS_AGREE_US + 1
FAR_AHEAD_US = CLOCK_JUMP_US + 1


def seen(*differences_us: int) -> dict[NodeId, int]:
    return {NodeId(node): each for node, each in enumerate(differences_us)}


@pytest.mark.parametrize("t", [1, 2])
@pytest.mark.parametrize("far_us", [FAR_US, -FAR_US])
def test_more_than_t_others_end_trust_and_bring_it_back(t: int, far_us: int) -> None:
    told: list[str] = []
    clock = OwnClock(t, told.append)
    clock.compared(seen(*[far_us] * t, *[0] * (2 * t)), NOW_US)
    assert clock.refusal(NOW_US) is None
    clock.compared(seen(*[far_us] * (t + 1), *[0] * t), NOW_US)
    clock.compared(seen(*[far_us] * (t + 1), *[1] * t), NOW_US)
    refused = clock.refusal(NOW_US)
    assert refused is not None
    assert refused.code == errno.EAGAIN
    assert "node 0's by 600 s" in refused.reason
    clock.compared(seen(*[0] * t), NOW_US)  # too few say so
    assert clock.refusal(NOW_US) is not None
    clock.compared(seen(*[far_us] * t, *[0] * (2 * t)), NOW_US)
    assert clock.refusal(NOW_US) is None
    assert len(told) == 2
    assert told[-1] == ""


CLUSTERS = [
    (t, b, 3 * t + 2 * b + 1 + more)
    for t in range(4)
    for b in range(t + 1)
    for more in range(3)
    if t or more
]


def confirming(t: int, b: int) -> int:
    """How many others have to agree with a clock."""
    for agree in range(3 * t + 2 * b + 2):
        clock = OwnClock(t, b=b, compared=True)
        clock.compared(seen(*[0] * agree), NOW_US)
        if clock.refusal(NOW_US) is None:
            return agree
    raise AssertionError("nobody is trusted")


@pytest.mark.parametrize(("t", "b", "n"), CLUSTERS)
def test_whoever_confirms_a_clock_enough_are_left_that_tell_of_it(t: int, b: int, n: int) -> None:
    """Some of them lie, some fail later: a server bears with the time whoever that is."""
    agree = confirming(t, b)
    for lying in range(min(b, agree) + 1):
        for failed in range(min(t - lying, agree - lying) + 1):
            for takes in (True, False):  # the server that has taken something by that clock
                told_us = [FAR_AHEAD_US] * (agree - lying - failed + (not takes))
                told_us += [0] * (n - 1 - failed - len(told_us))
                clock = OwnClock(t, b=b)
                if takes:
                    clock.compared({}, NOW_US + FAR_AHEAD_US)
                clock.compared(seen(*[0] * len(told_us)), NOW_US, told_us)
                assert clock.before_us(NOW_US) >= FAR_AHEAD_US


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize(("t", "b"), [(1, 0), (1, 1), (2, 1), (2, 2)])
def test_clocks_that_were_wrong_in_turn_count_together(t: int, b: int, *, more: bool) -> None:
    """Within an hour: t of them and b liars move nothing, t + 1 are taken for a jump of all. Then
    servers bear with what the least of them has borne, and no more."""
    wrong = [OwnClock(t, b=b) for _ in range(t + more)]
    now_us, minutes_us = NOW_US, 10 * CLOCKS_COMPARED_EVERY_US
    for number, clock in enumerate(wrong):
        clock.compared({}, now_us)
        clock.compared({}, now_us + FAR_AHEAD_US * (number + 1))
        now_us += minutes_us
        clock.compared({}, now_us)
    borne_us = [clock.borne_us(now_us) for clock in wrong]
    lies_us = [2**62] * b
    right = OwnClock(t, b=b)
    right.compared({}, now_us, [*borne_us, *lies_us, *[0] * (t + b)])
    assert right.before_us(now_us) == (min(borne_us) + BORNE_BEYOND_US if more else 0)


@pytest.mark.parametrize(("t", "b", "n"), CLUSTERS)
def test_a_right_clock_is_confirmed_and_a_wrong_one_is_not_whatever_t_do(
    t: int, b: int, n: int
) -> None:
    for wrong in range(t + 1):
        for down in range(t - wrong + 1):
            right = n - 1 - wrong - down
            clock = OwnClock(t, b=b, compared=True)
            clock.compared(seen(*[FAR_US] * wrong, *[0] * right), NOW_US)
            assert clock.refusal(NOW_US) is None
    for agree in range(t):  # others that are wrong alike, or lie
        for answer in range(n - t + 1):
            clock = OwnClock(t, b=b, compared=True)
            clock.compared(seen(*[0] * agree, *[FAR_US] * answer), NOW_US)
            assert clock.refusal(NOW_US) is not None


@pytest.mark.parametrize(("t", "b"), [(1, 0), (1, 1), (2, 1), (2, 2)])
def test_more_than_t_and_b_servers_have_to_tell_of_a_time(t: int, b: int) -> None:
    clock = OwnClock(t, b=b)
    clock.compared(seen(), NOW_US, [FAR_AHEAD_US] * (t + b))
    assert clock.before_us(NOW_US) == 0
    clock.compared(seen(), NOW_US, [FAR_AHEAD_US] * (t + b + 1))
    assert clock.before_us(NOW_US) == FAR_AHEAD_US + BORNE_BEYOND_US


def test_clocks_may_differ_by_the_bound() -> None:
    clock = OwnClock(1)
    clock.compared(seen(*[FAR_US - 1, 1 - FAR_US] * 3), NOW_US)
    assert clock.is_confirmed(NOW_US)


@pytest.mark.parametrize(
    ("gone_on_us", "trusted"),
    [
        (CLOCKS_COMPARED_EVERY_US + CLOCKS_AGREE_US, True),
        (CLOCKS_COMPARED_EVERY_US + CLOCKS_AGREE_US + 1, False),
        (-CLOCKS_AGREE_US, True),
        (-CLOCKS_AGREE_US - 1, False),
    ],
)
def test_a_clock_that_jumps_waits_for_others_to_confirm_it(gone_on_us: int, trusted: bool) -> None:
    clock = OwnClock(1)
    clock.compared(seen(0, 0, 0), NOW_US)
    now_us = NOW_US + gone_on_us
    assert (clock.refusal(now_us) is None) is trusted
    clock.compared({}, now_us)  # nobody answers
    assert (clock.refusal(now_us) is None) is trusted
    clock.compared(seen(0, 0), now_us)
    assert clock.refusal(now_us) is None


def test_without_a_comparison_a_clock_is_trusted_and_not_confirmed() -> None:
    clock = OwnClock(1)
    assert clock.refusal(NOW_US) is None
    assert not clock.is_confirmed(NOW_US)
    clock.compared(seen(0), NOW_US)
    assert not clock.is_confirmed(NOW_US)
    clock.compared(seen(0, 0), NOW_US)
    assert clock.is_confirmed(NOW_US)
    assert not clock.is_confirmed(NOW_US + 3 * CLOCKS_AGREE_US)


def test_a_node_that_has_just_started_distrusts_its_clock_until_others_agree() -> None:
    told: list[str] = []
    clock = OwnClock(1, told.append, compared=True)
    for answers in (seen(), seen(0), seen(0, FAR_US)):
        clock.compared(answers, NOW_US)
        stopped = clock.stops(NOW_US)
        assert stopped is not None
        assert stopped.wants, "it is refused at once"
    clock.compared(seen(0, 0), NOW_US)
    assert clock.stops(NOW_US) is None
    assert clock.is_confirmed(NOW_US)
    assert told == [], "a start is nothing to be told"
    other = OwnClock(1, told.append, compared=True)
    other.compared(seen(FAR_US, FAR_US), NOW_US)
    stopped = other.stops(NOW_US)
    assert stopped is not None
    assert isinstance(stopped.reply, Refused)
    other.compared(seen(0, 0), NOW_US)
    assert [bool(reason) for reason in told] == [True, False]


def test_a_jump_ahead_is_remembered_for_a_while_and_forgotten_when_it_is_taken_back() -> None:
    clock = OwnClock(1)
    clock.compared(seen(0, 0), NOW_US)
    clock.compared(seen(0, 0), NOW_US + SECOND_US)
    assert clock.jumped_ahead_us(NOW_US, FAR_US) == 0
    clock.compared(seen(0, 0), NOW_US + CLOCK_JUMP_US)  # this much is none
    assert clock.jumped_ahead_us(NOW_US, FAR_US) == 0
    clock.compared(seen(0, 0), NOW_US)
    ahead_us = NOW_US + FAR_AHEAD_US
    clock.compared(seen(0, 0), ahead_us)
    assert clock.jumped_ahead_us(ahead_us + FAR_US - 1, FAR_US) == FAR_AHEAD_US
    assert clock.jumped_ahead_us(ahead_us + FAR_US, FAR_US) == 0
    clock.compared(seen(0, 0), NOW_US)
    assert clock.jumped_ahead_us(NOW_US, FAR_US) == 0


def test_what_a_clock_has_borne_is_told_for_a_while_after_it_was_set_back() -> None:
    clock = OwnClock(1)
    clock.compared(seen(0, 0), NOW_US)
    for gone_on_us in (0, SECOND_US):  # nothing was set back
        assert clock.borne_us(NOW_US + gone_on_us) == 0
    ahead_us = NOW_US + FAR_AHEAD_US
    clock.compared(seen(0, 0), ahead_us)
    assert clock.borne_us(ahead_us + SECOND_US) == 0
    remembered = clock.remembered
    for number in (clock, OwnClock(1)):  # the second has started again
        number.recall(remembered)
        borne_us = number.borne_us(NOW_US)
        assert 0 <= borne_us - ahead_us - SECOND_US <= FAR_AHEAD_US // 2
        for passed_us in range(0, SET_BACK_US + 1, CLOCKS_COMPARED_EVERY_US):
            assert number.borne_us(NOW_US + passed_us) == borne_us
        assert number.borne_us(NOW_US + SET_BACK_US + 1) == 0


@pytest.mark.parametrize("t", [1, 2])
def test_a_server_bears_with_what_more_than_t_tell(t: int) -> None:
    """It may be one of them, and may have been down while the clocks were ahead."""
    ahead_us = NOW_US + FAR_AHEAD_US
    clock = OwnClock(t)
    assert clock.borne_us(ahead_us) == 0
    told_us = clock.borne_us(NOW_US)
    assert clock.before_us(NOW_US) == 0
    clock.compared(seen(*[0] * (t + 1)), NOW_US, [told_us] * (t - 1) + [0, 0])
    assert clock.before_us(NOW_US) == 0
    clock.compared(seen(*[0] * (t + 1)), NOW_US, [told_us] * (t - 1) + [2 * told_us, 0])
    assert clock.before_us(NOW_US) == told_us + BORNE_BEYOND_US
    other = OwnClock(t)
    other.compared(seen(*[0] * (t + 1)), NOW_US, [told_us] * t + [0])
    assert other.before_us(NOW_US) == 0
    other.compared(seen(*[0] * (t + 1)), NOW_US, [told_us] * (t + 1))
    assert other.before_us(NOW_US) == told_us + BORNE_BEYOND_US
    other.compared(seen(*[0] * (t + 1)), NOW_US)
    assert other.before_us(NOW_US) == 0


def test_a_clock_that_has_gone_on_while_its_node_was_down_waits_to_be_confirmed() -> None:
    clock = OwnClock(1)
    clock.compared(seen(0, 0), NOW_US)
    for down_us, trusted in ((CLOCKS_AGREE_US, True), (FAR_AHEAD_US, False)):
        again = OwnClock(1)
        again.recall(clock.remembered)
        assert (again.refusal(NOW_US + down_us) is None) is trusted
        again.compared(seen(0, 0), NOW_US + down_us)
        assert again.refusal(NOW_US + down_us) is None
    last = OwnClock(1)
    last.recall(again.remembered)
    for number in (again, last):
        assert number.jumped_ahead_us(NOW_US + FAR_AHEAD_US, FAR_US) == FAR_AHEAD_US


# --- nodes ---------------------------------------------------------------------------------------


class Liar:
    """A node that tells any time."""

    def __init__(self, by_us: int) -> None:
        self._by_us = by_us

    def step(
        self, _view: Any, _sender: Any, _message: ClockRequest, _body: Any, now_us: int
    ) -> Ready:
        return Ready(ClockReply(now_us + self._by_us, now_us + self._by_us))


def world(*, t: int = 1, b: int = 1, **options: Any) -> World:
    return World(t, b, verifying=False, compares_clocks=True, **options)


def distrusting(cluster: World) -> list[int]:
    clocks = cluster.deployment.clocks
    return [int(node) for node, clock in sorted(clocks.items()) if clock.reason]


@pytest.mark.parametrize("by_us", [2 * CLOCKS_AGREE_US, -(10**14)])
@pytest.mark.parametrize("b", [0, 1])
def test_a_node_whose_clock_is_wrong_finds_out_and_the_others_go_on(b: int, by_us: int) -> None:
    cluster = world(b=b)
    cluster.run_for(90 * SECOND_US)
    cluster.nodes[0].skew_us += by_us
    cluster.run_for(90 * SECOND_US)
    assert distrusting(cluster) == [0]
    cluster.nodes[0].skew_us = 0
    cluster.run_for(90 * SECOND_US)
    assert distrusting(cluster) == []


@pytest.mark.parametrize(("t", "b"), [(1, 1), (2, 1), (2, 2)])
def test_liars_and_wrong_clocks_up_to_t_stop_nobody(t: int, b: int) -> None:
    """And a wrong one finds out all the same, whatever liars tell it."""
    cluster = world(t=t, b=b)
    for liar in range(b):
        node = cluster.nodes[liar]
        servers = cluster.deployment.servers(node.node)
        servers[ClockRequest] = Liar(10**13)  # type: ignore[index]
        node.become(lambda servers=servers: servers)  # type: ignore[misc]
    wrong = list(range(b, t))
    for number in wrong:
        cluster.nodes[number].skew_us = 10**13
    cluster.run_for(90 * SECOND_US)
    assert [node for node in distrusting(cluster) if node >= b] == wrong


def test_slow_answers_are_no_difference() -> None:
    cluster = world(delay_us=(900_000, 990_000))
    cluster.run_for(90 * SECOND_US)
    assert distrusting(cluster) == []
    assert all(clock.is_confirmed(cluster.now_us) for clock in cluster.deployment.clocks.values())


@pytest.mark.parametrize("down", [0, 1])
def test_nodes_that_start_at_once_trust_their_clocks_at_once(down: int) -> None:
    """Also if t do not start, for which a node would wait for seconds."""
    cluster = world(delay_us=(100, 1_000))
    for node in cluster.nodes:
        node.crash(down_us=None)
    cluster.run_for(SECOND_US)
    for node in cluster.nodes[down:]:
        node.start()
    assert distrusting(cluster) == [0, 1, 2, 3, 4, 5]
    cluster.run_for(5_000)
    assert distrusting(cluster) == list(range(down))


def test_a_node_that_starts_alone_goes_on_when_others_start() -> None:
    cluster = world()
    for node in cluster.nodes:
        node.crash(down_us=None)
    cluster.nodes[0].start()
    cluster.run_for(600 * SECOND_US)
    for node in cluster.nodes[1:]:
        node.start()
    cluster.run_for(5 * SECOND_US)
    assert distrusting(cluster) == []


def test_a_node_stores_its_time_before_it_tells_it() -> None:
    """Unless it has stored one of the last minute, as it does whenever it compares."""
    clock, disk = OwnClock(1), Disk()
    sender = Sender(Role.NODE, client_named("node"), NodeId(1), Grant())
    server = ClockServer(clock)
    for now_us, stores in (
        (NOW_US, True),
        (NOW_US + CLOCKS_COMPARED_EVERY_US, False),
        (NOW_US + CLOCKS_COMPARED_EVERY_US + 1, True),
        (NOW_US, False),
    ):
        ready = server.step(disk, sender, ClockRequest(), b"", now_us)
        assert ready.reply.now_us == now_us
        assert bool(ready.writes) is stores
        disk.apply(ready.writes)
    again = OwnClock(1)
    recall(disk, again)
    assert again.borne_us(NOW_US) > NOW_US + CLOCKS_COMPARED_EVERY_US


def test_a_common_jump_is_confirmed_at_once() -> None:
    """All agree: nobody can notice, and writers wait for one comparison."""
    cluster = world()
    cluster.run_for(90 * SECOND_US)
    for node in cluster.nodes:
        node.skew_us += 10**13
    now_us = cluster.now_us + 10**13
    clocks = cluster.deployment.clocks.values()
    assert all(clock.refusal(now_us) is not None for clock in clocks)
    cluster.run_for(SECOND_US // 2)
    assert all(clock.refusal(now_us + SECOND_US // 2) is None for clock in clocks)
