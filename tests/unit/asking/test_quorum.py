"""Quorum systems, probing, and asking: widening, judging, repeating, giving up."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking.quorum import (
    BUSY_US,
    HEDGE_US,
    PATIENCE_MAX_US,
    PATIENCE_US,
    SILENCE_US,
    Judgement,
    Probing,
    ThresholdQuorums,
    ask,
)
from bftfs.conversation import Send
from bftfs.engine import Engine
from bftfs.errors import QuorumUnavailable
from bftfs.identifiers import NodeId
from bftfs.thresholds import QueryUpdateThresholds

QUORUMS = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=1))
ORDER = QUORUMS.preference(0)


def test_thresholds_as_predicates() -> None:
    assert [QUORUMS.is_quorum((1 << size) - 1) for size in (4, 5, 6)] == [False, True, True]
    assert [QUORUMS.is_repairable((1 << size) - 1) for size in (2, 3)] == [False, True]
    assert [QUORUMS.includes_benign((1 << size) - 1) for size in (0, 1, 2)] == [False, False, True]


@pytest.mark.parametrize("placement", [0, 4, 5, 6, 255])
def test_preference_is_a_rotation(placement: int) -> None:
    order = QUORUMS.preference(placement)
    assert sorted(order) == list(range(6))
    assert order[0] == placement % 6
    assert QUORUMS.first_quorum(order) == 5
    assert QUORUMS.first_quorum(order[:3]) == 3


# --- probing --------------------------------------------------------------------------------


def test_the_silent_are_asked_last_and_along_when_it_is_time() -> None:
    probing = Probing()
    assert probing.order(ORDER, 0) == (ORDER, ())
    probing.avoid(NodeId(1), 0)
    assert probing.avoids(NodeId(1))
    assert probing.order(ORDER, 1) == ((0, 2, 3, 4, 5, 1), ())
    assert probing.order(ORDER, SILENCE_US) == ((0, 2, 3, 4, 5, 1), (1,))
    assert probing.order(ORDER, SILENCE_US) == ((0, 2, 3, 4, 5, 1), ()), "once per interval"
    probing.answered(NodeId(1))
    assert probing.order(ORDER, SILENCE_US) == (ORDER, ())


def test_who_stays_silent_is_tried_less_and_less() -> None:
    probing = Probing()
    now, intervals = 0, []
    for _ in range(8):
        probing.avoid(NodeId(0), now)
        later = now
        while not probing.order(ORDER, later)[1]:
            later += SILENCE_US
        intervals.append((later - now) // SILENCE_US)
        now = later + 100 * SILENCE_US
    assert intervals[:4] == [1, 2, 4, 8]
    assert intervals[-1] == 30


def test_an_outage_is_no_round() -> None:
    """Or who was cut off for an hour would back off for as long from whoever is at work."""
    probing = Probing()
    probing.took(3_600 * limits.SECOND_US)
    assert probing.mean_us <= limits.SECOND_US


def test_patience_adapts_within_bounds() -> None:
    probing = Probing()
    assert probing.patience_us == PATIENCE_US
    for _ in range(100):
        probing.took(100_000)
    assert 700_000 < probing.patience_us <= 800_000
    for _ in range(100):
        probing.took(10_000_000)
    assert probing.patience_us == 2_000_000
    for _ in range(200):
        probing.took(10)
    assert probing.patience_us == PATIENCE_US


# --- asking ---------------------------------------------------------------------------------


class Network:
    """Answers requests after a delay, if the node is one that answers."""

    def __init__(self, answers: Callable[[int, int], int | None]) -> None:
        self._answers = answers  # node and how often it was asked; gives a delay or None
        self.now = 0
        self.asked: list[tuple[int, int]] = []
        self._agenda: list[tuple[int, int, int, int]] = []
        self.engine = Engine(
            send=self._send,
            now_us=lambda: self.now,
            monotonic_us=lambda: self.now,
            draw=lambda bound: bound - 1,
        )
        self.outcome: list[tuple[Any, BaseException | None]] = []

    def _send(self, node: NodeId, number: int, message: Any, _: Any) -> None:
        self.asked.append((self.now, node))
        times = sum(1 for _, other in self.asked if other == node)
        delay = self._answers(node, times)
        if delay is not None:
            heapq.heappush(self._agenda, (self.now + delay, number, node, times))

    def run(self, conversation: Any, *, until: int = 60_000_000) -> None:
        self.engine.start(conversation, lambda *outcome: self.outcome.append(outcome))
        while not self.outcome and self.now < until:
            deadline = self.engine.next_deadline_us()
            if self._agenda and (deadline is None or self._agenda[0][0] <= deadline):
                self.now, number, node, times = heapq.heappop(self._agenda)
                self.engine.deliver(NodeId(node), number, times)
            elif deadline is not None:
                self.now = deadline
                self.engine.expire()
            else:
                return

    def nodes(self) -> list[int]:
        return [node for _, node in self.asked]


def conversation(
    judge: Callable[[NodeId, Any, Any], Judgement],
    probing: Probing | None = None,
    suffices: Callable[[], bool] = lambda: False,
    order: tuple[NodeId, ...] = ORDER,
    now_us: int = 0,
    **options: Any,
) -> Any:
    return ask(
        request=lambda node: Send(node, "request"),
        order=order,
        first=5,
        judge=judge,
        suffices=suffices,
        probing=probing or Probing(),
        now_us=now_us,
        subject="the test",
        **options,
    )


def counting(enough: int, heard: list[int]) -> Callable[[NodeId, Any, Any], Judgement]:
    def judge(node: NodeId, _: Any, __: Any) -> Judgement:
        heard.append(node)
        return Judgement.ENOUGH if len(heard) == enough else Judgement.PENDING

    return judge


def test_one_round_if_all_answer() -> None:
    network, heard = Network(lambda node, times: 100), []
    network.run(conversation(counting(5, heard)))
    assert network.nodes() == [0, 1, 2, 3, 4]
    assert network.outcome == [(None, None)]
    assert network.now == 100


def test_silence_widens_and_is_remembered() -> None:
    network, heard = Network(lambda node, times: None if node == 2 else 100), []
    probing = Probing()
    network.run(conversation(counting(5, heard), probing))
    assert network.nodes() == [0, 1, 2, 3, 4, 5]
    assert network.now == 100 + HEDGE_US + 100
    assert sorted(heard) == [0, 1, 3, 4, 5]
    # Once may have been an accident; time and again it is not waited for.
    for _ in range(3):
        network.outcome.clear()
        network.run(conversation(counting(5, []), probing, now_us=network.now))
    assert probing.avoids(NodeId(2))


def test_who_is_silent_for_long_is_not_waited_for_again() -> None:
    # Nobody is left who could be asked in its place.
    network, probing = Network(lambda node, times: None if node == 2 else 100), Probing()
    network.run(conversation(counting(6, []), probing), until=PATIENCE_US + 1_000)
    assert probing.avoids(NodeId(2))


def test_whom_nobody_hedges_with_is_asked_after_long_silence_only() -> None:
    network, heard = Network(lambda node, times: None if node == 2 else 100), []
    network.run(conversation(counting(5, heard), hedge=lambda silent: ()))
    assert network.asked[-1] == (100 + PATIENCE_US, 5)


def test_what_was_heard_may_do_when_the_others_are_overdue() -> None:
    overdue: list[int] = []
    network = Network(lambda node, times: None if node == 2 else 100)
    network.run(conversation(counting(6, []), hedge=overdue.extend))
    assert overdue == [2]
    assert network.outcome == [(None, None)]
    assert network.now == 100 + HEDGE_US


def test_who_is_late_time_and_again_is_asked_last() -> None:
    network, probing = Network(lambda node, times: 9_000 if node == 2 else 100), Probing()
    took = []
    for _ in range(10):
        network.outcome.clear()
        began = network.now
        order, probes = probing.order(ORDER, network.now)
        assert not probes
        network.run(conversation(counting(5, []), probing, order=order, now_us=began))
        took.append(network.now - began)
    assert took == [9_000] * 4 + [100] * 6


def test_who_answers_now_and_then_is_noticed_ever_more_rarely() -> None:
    probing, now, waits = Probing(), 0, []
    for _ in range(7):
        probing.avoid(NodeId(0), now)
        began = now
        while not probing.order(ORDER, now)[1]:
            now += SILENCE_US // 10
        probing.answered(NodeId(0))  # …to what it was asked along
        waits.append((now - began) // SILENCE_US)
        now += 1
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    now += 10 * 30 * SILENCE_US
    probing.avoid(NodeId(0), now)
    assert not probing.order(ORDER, now + SILENCE_US - 1)[1]
    assert probing.order(ORDER, now + SILENCE_US)[1], "it was well for a long time"


def test_who_is_busy_is_asked_again_soon_and_then_less_often() -> None:
    def judge(node: NodeId, times: Any, _: Any) -> Judgement:
        if node == 1:
            return Judgement.AGAIN if times < 4 else Judgement.ENOUGH
        return Judgement.PENDING

    network = Network(lambda node, times: 100)
    network.run(conversation(judge))
    asked = [time for time, node in network.asked if node == 1]
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert gaps[0] <= BUSY_US + 300
    assert gaps == sorted(gaps)
    assert asked[-1] < PATIENCE_US


def test_nobody_is_blamed_if_nobody_answers() -> None:
    network, heard = Network(lambda node, times: 100 if times > 1 else None), []
    probing = Probing()
    network.run(conversation(counting(5, heard), probing))
    assert network.outcome == [(None, None)]
    assert not any(probing.avoids(NodeId(node)) for node in range(6))


def test_requests_are_repeated_less_and_less_often() -> None:
    network = Network(lambda node, times: None)
    network.run(conversation(counting(1, [])), until=30_000_000)
    times = sorted({time for time, node in network.asked if node == 0})
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] <= 2 * PATIENCE_US
    assert gaps == sorted(gaps)
    assert gaps[-1] == PATIENCE_MAX_US


def test_a_late_first_answer_counts_and_a_second_does_not() -> None:
    # Node 0 is asked twice and answers both; the first answer to either request is judged.
    network, heard = Network(lambda node, times: 700_000 if node == 0 else None), []
    network.run(conversation(counting(2, heard)), until=5_000_000)
    assert heard == [0]


def test_impatience_ends_in_an_error() -> None:
    network, heard = Network(lambda node, times: 100 if node < 3 else None), []
    network.run(conversation(counting(5, heard), patience_total_us=1_000_000))
    ((_, error),) = network.outcome
    assert isinstance(error, QuorumUnavailable)
    assert (error.heard, error.required, error.subject) == (3, 5, "the test")


def test_what_was_heard_may_suffice() -> None:
    network, heard = Network(lambda node, times: 100 if node < 4 else None), []
    network.run(
        conversation(counting(5, heard), suffices=lambda: len(heard) == 4, hedge=lambda silent: ())
    )
    assert network.outcome == [(None, None)]
    assert network.nodes() == [0, 1, 2, 3, 4], "it ends instead of widening"


def test_a_judge_may_ask_for_more() -> None:
    heard: list[int] = []

    def judge(node: NodeId, _: Any, __: Any) -> Judgement:
        heard.append(node)
        if node == 1:
            return Judgement.MORE
        return Judgement.ENOUGH if node == 5 else Judgement.PENDING

    network = Network(lambda node, times: 100)
    network.run(conversation(judge))
    assert network.nodes() == [0, 1, 2, 3, 4, 5]
    assert network.now == 200


def test_an_answer_that_counts_as_none_is_asked_for_again() -> None:
    heard: list[tuple[int, int]] = []

    def judge(node: NodeId, times: Any, _: Any) -> Judgement:
        heard.append((node, times))
        if node == 1 and times == 1:
            return Judgement.AGAIN
        return Judgement.ENOUGH if (1, 2) in heard else Judgement.PENDING

    network = Network(lambda node, times: 100)
    network.run(conversation(judge))
    assert network.nodes() == [0, 1, 2, 3, 4, 5, 1]
    assert (1, 2) in heard


def test_servers_to_be_asked_along_do_not_delay_the_others() -> None:
    network, heard = Network(lambda node, times: 100 if node != 5 else 50), []
    network.run(conversation(counting(6, heard), probes=(NodeId(5), NodeId(0))))
    assert sorted(network.nodes()) == [0, 1, 2, 3, 4, 5]
    assert heard[0] == 5
