"""Asking: one reply from each of some nodes; widening, repeating, giving up."""

from __future__ import annotations

import errno
import heapq
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest

from bftfs import limits
from bftfs.asking.ask import BUSY_US, PATIENCE_MAX_US, Asking, Inquiry, ask_all
from bftfs.asking.peers import HEDGE_US, PATIENCE_US, Condition, Peers
from bftfs.asking.quorum import Nodes, ThresholdQuorums
from bftfs.asking.refusal import Refused
from bftfs.conversation import Delivery, Send
from bftfs.engine import Engine
from bftfs.errors import AdmissionRefused, QuorumUnavailable
from bftfs.identifiers import NodeId
from bftfs.thresholds import QueryUpdateThresholds

QUORUMS = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=1))
ORDER = QUORUMS.preference(0)


class Network:
    """Answers requests after a delay, if the node is one that answers."""

    def __init__(self, answers: Callable[[int, int], int | None]) -> None:
        self._answers = answers  # node and how often it was asked; gives a delay or None
        self.message: Callable[[int, int], Any] = lambda node, times: times
        self.now = 0
        self.ahead_us = 0  # of the clock
        self.asked: list[tuple[int, int]] = []
        self._agenda: list[tuple[int, int, int, int]] = []
        self.engine = Engine(
            send=self._send,
            now_us=lambda: self.now + self.ahead_us,
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
                self.engine.deliver(NodeId(node), number, self.message(node, times))
            elif deadline is not None:
                self.now = deadline
                self.engine.expire()
            else:
                return

    def nodes(self) -> list[int]:
        return [node for _, node in self.asked]


Judge = Callable[[Asking, Delivery], None]


async def conversation(
    judge: Judge,
    peers: Peers | None = None,
    order: tuple[NodeId, ...] = ORDER,
    now_us: int = 0,
    **options: Any,
) -> None:
    asking = Asking(
        peers or Peers(QUORUMS),
        order,
        lambda node: Send(node, "request"),
        first=5,
        now_us=now_us,
        subject="the test",
        **options,
    )
    await asking.collect(partial(judge, asking))


def counting(enough: int, heard: list[int]) -> Judge:
    def judge(asking: Asking, reply: Delivery) -> None:
        heard.append(reply.node)
        if len(heard) == enough:
            asking.enough()

    return judge


def test_one_round_if_all_answer() -> None:
    network, heard = Network(lambda node, times: 100), []
    network.run(conversation(counting(5, heard)))
    assert network.nodes() == [0, 1, 2, 3, 4]
    assert network.outcome == [(None, None)]
    assert network.now == 100


def test_silence_widens_and_is_remembered() -> None:
    network, heard = Network(lambda node, times: None if node == 2 else 100), []
    peers = Peers(QUORUMS)
    network.run(conversation(counting(5, heard), peers))
    assert network.nodes() == [0, 1, 2, 3, 4, 5]
    assert network.now == 100 + HEDGE_US + 100
    assert sorted(heard) == [0, 1, 3, 4, 5]
    # Once may have been an accident; time and again it is not waited for.
    for _ in range(3):
        network.outcome.clear()
        network.run(conversation(counting(5, []), peers, now_us=network.now))
    assert not peers.willing(NodeId(2))


def test_who_is_silent_for_long_is_not_waited_for_again() -> None:
    # Nobody is left who could be asked in its place.
    network, peers = Network(lambda node, times: None if node == 2 else 100), Peers(QUORUMS)
    network.run(conversation(counting(6, []), peers), until=PATIENCE_US + 1_000)
    assert not peers.willing(NodeId(2))


def test_who_is_silent_anyway_is_asked_after_long_silence_only() -> None:
    network, peers = Network(lambda node, times: None if node == 2 else 100), Peers(QUORUMS)
    peers.silent(NodeId(5), 0)
    needed, hopes = (lambda _: True), (lambda _: True)
    network.run(conversation(counting(5, []), peers, needed=needed, hopes=hopes))
    assert network.asked[-1] == (100 + PATIENCE_US, 5)


def test_what_was_heard_may_do_when_the_others_are_overdue() -> None:
    network, peers = Network(lambda node, times: None if node == 2 else 100), Peers(QUORUMS)
    peers.silent(NodeId(5), 0)
    network.run(conversation(counting(6, []), peers, needed=lambda _: True))
    assert network.outcome == [(None, None)]
    assert network.now == 100 + HEDGE_US
    assert not peers.willing(NodeId(2))


def test_who_is_not_willing_is_asked_where_it_is_needed() -> None:
    network, peers = Network(lambda node, times: None if node == 2 else 100), Peers(QUORUMS)
    peers.silent(NodeId(5), 0)
    network.run(conversation(counting(5, []), peers))
    assert network.asked[-1] == (100 + HEDGE_US, 5)


def test_who_is_late_time_and_again_is_asked_last() -> None:
    network, peers = Network(lambda node, times: 9_000 if node == 2 else 100), Peers(QUORUMS)
    took = []
    for _ in range(10):
        network.outcome.clear()
        began = network.now
        order, probes = peers.order(ORDER, network.now)
        assert not probes
        network.run(conversation(counting(5, []), peers, order=order, now_us=began))
        took.append(network.now - began)
    assert took == [9_000] * 4 + [100] * 6


def test_who_is_busy_is_asked_again_soon_and_then_less_often() -> None:
    def judge(asking: Asking, reply: Delivery) -> None:
        if reply.node == 1 and reply.message < 4:
            asking.again(reply.node)
        elif reply.node == 1:
            asking.enough()

    network = Network(lambda node, times: 100)
    network.run(conversation(judge))
    asked = [time for time, node in network.asked if node == 1]
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert gaps[0] <= BUSY_US + 300
    assert gaps == sorted(gaps)
    assert asked[-1] < PATIENCE_US


def test_nobody_is_blamed_if_nobody_answers() -> None:
    network, heard = Network(lambda node, times: 100 if times > 1 else None), []
    peers = Peers(QUORUMS)
    network.run(conversation(counting(5, heard), peers))
    assert network.outcome == [(None, None)]
    assert all(peers.willing(NodeId(node)) for node in range(6))


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
    peers = Peers(QUORUMS)
    peers.silent(NodeId(5), 0)
    network.run(
        conversation(
            counting(5, heard),
            peers,
            needed=lambda _: True,
            hopes=lambda _: True,
            suffices=lambda _: len(heard) == 4,
        )
    )
    assert network.outcome == [(None, None)]
    assert network.nodes() == [0, 1, 2, 3, 4], "it ends instead of widening"


def test_hope_ends_with_the_third_silence() -> None:
    network = Network(lambda node, times: 100 if node < 4 else None)
    needed, hopes = (lambda _: True), (lambda _: True)
    network.run(conversation(counting(5, []), needed=needed, hopes=hopes))
    assert network.outcome == [(None, None)]
    assert network.now == 100 + (1 + 2 + 4) * PATIENCE_US


def test_a_caller_may_ask_for_more() -> None:
    def judge(asking: Asking, reply: Delivery) -> None:
        if reply.node == 1:
            asking.more()
        elif reply.node == 5:
            asking.enough()

    network = Network(lambda node, times: 100)
    network.run(conversation(judge))
    assert network.nodes() == [0, 1, 2, 3, 4, 5]
    assert network.now == 200


def test_answers_of_no_use_are_made_up_for_by_a_node_that_is_asked_last() -> None:
    network, heard = Network(lambda node, times: 100 * (node + 1)), []
    peers = Peers(QUORUMS)
    peers.silent(NodeId(5), 0)

    def judge(asking: Asking, reply: Delivery) -> None:
        if reply.node == 0:
            asking.more()  # the others that were asked are waited for first
        else:
            counting(5, heard)(asking, reply)

    network.run(conversation(judge, peers, needed=lambda answered: len(heard) == 5))
    assert heard == [1, 2, 3, 4, 5]
    assert network.asked[5:] == [(500, 5)]
    assert network.outcome == [(None, None)]


def test_a_node_more_is_asked_if_nobody_is_silent_and_it_does_not_suffice() -> None:
    network, heard = Network(lambda node, times: 100), []
    peers = Peers(QUORUMS)
    peers.silent(NodeId(5), 0)
    options: dict[str, Any] = {"hopes": lambda _: True, "suffices": lambda _: False}
    peers.convict(Nodes.of([0]), 0)
    network.run(conversation(counting(6, heard), peers, **options))
    assert heard == [0, 1, 2, 3, 4, 5]
    assert network.outcome == [(None, None)]


def test_an_answer_that_counts_as_none_is_asked_for_again() -> None:
    heard: list[tuple[int, int]] = []

    def judge(asking: Asking, reply: Delivery) -> None:
        heard.append((reply.node, reply.message))
        if heard[-1] == (1, 1):
            asking.again(reply.node)
        elif (1, 2) in heard:
            asking.enough()

    network = Network(lambda node, times: 100)
    network.run(conversation(judge))
    assert network.nodes() == [0, 1, 2, 3, 4, 5, 1]
    assert (1, 2) in heard


def test_probes_do_not_delay_the_others() -> None:
    network, heard = Network(lambda node, times: 100 if node != 5 else 50), []
    network.run(conversation(counting(6, heard), probes=(NodeId(5), NodeId(0))))
    assert sorted(network.nodes()) == [0, 1, 2, 3, 4, 5]
    assert heard[0] == 5


# --- refusals -------------------------------------------------------------------------------


def refusing(codes: dict[int, int], *, until: int = 1_000) -> Network:
    """These nodes refuse with a code, so many times."""
    network = Network(lambda node, times: 100)
    network.message = lambda node, times: (
        Refused(codes[node], "why") if node in codes and times < until else "reply"
    )
    return network


def taking(enough: int, heard: list[int]) -> Judge:
    def judge(asking: Asking, reply: Delivery) -> None:
        if isinstance(reply.message, Refused):
            asking.refused(reply)
            return
        heard.append(reply.node)
        if len(heard) == enough:
            asking.enough()

    return judge


def test_another_node_is_asked_in_the_place_of_one_that_refuses() -> None:
    network, heard = refusing({1: errno.EPERM}), []
    network.run(conversation(taking(5, heard)))
    assert network.outcome == [(None, None)]
    assert sorted(heard) == [0, 2, 3, 4, 5]


def test_so_many_refusals_that_no_quorum_is_left_end_the_round() -> None:
    network = refusing({1: errno.EPERM, 2: errno.EPERM})
    network.run(conversation(taking(5, [])))
    ((_, error),) = network.outcome
    assert isinstance(error, AdmissionRefused)
    assert (error.code, error.nodes) == (errno.EPERM, 2)
    assert network.now <= 200


def test_a_liar_gives_no_reason_for_a_refusal_that_passes() -> None:
    network, heard = refusing({1: errno.EPERM, 2: errno.ETIME}, until=3), []
    network.run(conversation(taking(5, heard)))
    assert network.outcome == [(None, None)]
    assert network.nodes().count(1) == network.nodes().count(2) > 1, "both are asked again"


def test_a_node_that_is_busy_is_asked_again_soon() -> None:
    network, heard = refusing(dict.fromkeys(range(6), errno.EAGAIN), until=2), []
    network.run(conversation(taking(5, heard)))
    assert network.outcome == [(None, None)]
    assert network.now < 4 * BUSY_US


def test_a_full_server_is_asked_last() -> None:
    peers = Peers(QUORUMS)
    refusing({1: errno.ENOSPC}).run(conversation(taking(5, []), peers))
    assert peers.condition(NodeId(1)) is Condition.FULL
    peers = Peers(QUORUMS)
    refusing(dict.fromkeys(range(6), errno.ENOSPC)).run(conversation(taking(5, []), peers))
    assert peers.condition(NodeId(1)) is Condition.WELL, "then it is nothing of its own"


# --- inquiries ------------------------------------------------------------------------------


class Question(NamedTuple):
    node: NodeId
    text: str


def inquiring(peers: Peers, **options: Any) -> Inquiry[Question]:
    return Inquiry(
        peers, peers.reads, **{"subject": "the test", "required": 2, "now_us": 0} | options
    )


def question(text: str, node: NodeId = ORDER[3]) -> tuple[list[Send], list[Question]]:
    """One, as it is sent."""
    return [Send(node, text)], [Question(node, text)]


def test_a_reply_comes_with_its_question() -> None:
    replies: list[Any] = []

    async def conversation() -> None:
        inquiry = inquiring(Peers(QUORUMS))
        for text in ("a list", "a fragment"):
            await inquiry.send(*question(text))
        replies.extend([await inquiry.answer() for _ in range(3)])

    network = Network(lambda node, times: 100 if times == 2 else 70_000)
    network.run(conversation())
    assert [reply and (reply[0].node, reply[1].text) for reply in replies] == [
        (3, "a fragment"),
        None,
        (3, "a list"),
    ], "the late one still comes"


def test_each_silence_is_longer_and_the_last_is_an_error() -> None:
    peers, silences = Peers(QUORUMS), []

    async def conversation() -> None:
        inquiry = inquiring(peers, patience_total_us=1_000_000)
        await inquiry.send(*question("request"))
        while True:
            assert await inquiry.answer() is None
            silences.append(network.now)
            assert inquiry.lapses == len(silences)

    network = Network(lambda node, times: None)
    network.run(conversation())
    assert silences == [50_000, 150_000, 350_000, 750_000]
    ((_, error),) = network.outcome
    assert isinstance(error, QuorumUnavailable)
    assert (error.heard, error.required, error.subject) == (0, 2, "the test")
    assert peers.condition(NodeId(3)) is Condition.SILENT


def test_inquiries_teach_their_pace() -> None:
    """A client that only reads learns how slow the network is."""
    peers = Peers(QUORUMS)

    async def conversation() -> None:
        inquiry = inquiring(peers, required=3, now_us=network.now)
        for node in ORDER[:3]:
            await inquiry.send(*question("request", node))
        heard = 0
        while heard < 3:
            heard += await inquiry.answer() is not None
        lapses.append(inquiry.lapses)

    lapses: list[int] = []
    network = Network(lambda node, times: 130_000)
    for _ in range(12):
        network.outcome.clear()
        network.run(conversation())
    assert lapses[0] == 1
    assert lapses[-1] == 0


def test_rebuilding_is_no_verdict() -> None:
    """However many nodes rebuild their stores, the request is repeated until they have."""
    network, heard = Network(lambda node, times: 100), []
    network.message = lambda node, times: Refused(errno.ENODATA, "") if times < 3 else "answer"

    def judge(asking: Asking, reply: Delivery) -> None:
        if isinstance(reply.message, Refused):
            asking.refused(reply)
            return
        heard.append(reply.node)
        if len(heard) == 5:
            asking.enough()

    network.run(conversation(judge))
    assert network.outcome == [(None, None)]
    assert len(heard) == 5


def test_the_last_patience_ends_with_all_patience() -> None:
    network = Network(lambda node, times: None)
    network.run(conversation(counting(5, []), patience_total_us=250_000, required=4))
    ((_, error),) = network.outcome
    assert isinstance(error, QuorumUnavailable)
    assert (network.now, error.heard, error.required) == (250_000, 0, 4)


def test_requests_of_a_long_outage_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LATE_REQUESTS", 12)
    rounds: list[Asking] = []

    async def conversation() -> None:
        asking = Asking(
            Peers(QUORUMS), ORDER, lambda node: Send(node, ""), now_us=0, subject="the test"
        )
        rounds.append(asking)
        await asking.collect(lambda _: None)

    network = Network(lambda node, times: None)
    network.run(conversation(), until=60_000_000)
    assert len(network.asked) > 100
    assert len(rounds[0]._calls.unanswered) <= 12 + len(ORDER)


def test_nobody_is_waited_for_until_a_time_that_was_set_back() -> None:
    """The clock is a year ahead when a worker asks, and is set right before the replies come."""
    network = Network(lambda node, _: None if node == 5 else 1_000)
    network.ahead_us = 365 * 24 * 3_600 * limits.SECOND_US

    def set_right(_node: int, times: int) -> int:
        network.ahead_us = 0
        return times

    network.message = set_right
    requests = dict.fromkeys(map(NodeId, range(6)), "what time is it?")
    peers = Peers(QUORUMS)
    network.run(
        ask_all(peers, requests, lambda delivery, _now_us: delivery.message, patience_us=2_000_000)
    )
    ((answers, error),) = network.outcome
    assert error is None
    assert set(answers) == set(range(5))
    assert network.now <= 2_002_000
