"""The engine interprets every effect, routes replies, and abandons what is cancelled."""

from __future__ import annotations

from typing import Any

import pytest

from bftfs.conversation import (
    Compute,
    Draw,
    Event,
    Now,
    Pause,
    Receive,
    Send,
    SendAll,
    Spawn,
    Together,
    Wait,
)
from bftfs.engine import Engine
from bftfs.identifiers import NodeId


class Host:
    """A host with virtual time, which records what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[NodeId, int, Any]] = []
        self.clock = 0
        self.outcomes: list[tuple[Any, BaseException | None]] = []
        self.engine = Engine(
            send=lambda node, number, message, body: self.sent.append((node, number, message)),
            now_us=lambda: 1_000 + self.clock,
            monotonic_us=lambda: self.clock,
            draw=lambda bound: bound - 1,
        )

    def start(self, conversation: Any) -> Any:
        return self.engine.start(conversation, lambda *outcome: self.outcomes.append(outcome))

    def answer(self, position: int, message: Any) -> None:
        node, number, _ = self.sent[position]
        self.engine.deliver(node, number, message)


@pytest.fixture
def host() -> Host:
    return Host()


async def ask(node: int, message: Any = "?", patience_us: int = 100) -> Any:
    await Send(NodeId(node), message)
    delivery = await Receive(patience_us)
    return None if delivery is None else delivery.message


def test_a_reply_resumes_the_conversation_that_asked(host: Host) -> None:
    host.start(ask(3))
    assert host.sent == [(3, 1, "?")]
    host.answer(0, "answer")
    assert host.outcomes == [("answer", None)]


def test_several_requests_are_sent_at_once_and_numbered_in_order(host: Host) -> None:
    async def ask_three() -> tuple[list[int], list[Any]]:
        numbers = await SendAll([Send(NodeId(node), node) for node in (5, 2, 4)])
        replies = [await Receive(100) for _ in numbers]
        return numbers, [(reply.request_number, reply.message) for reply in replies if reply]

    host.start(ask_three())
    assert host.sent == [(5, 1, 5), (2, 2, 2), (4, 3, 4)]
    for position in (2, 0, 1):
        host.answer(position, "reply")
    assert host.outcomes == [(([1, 2, 3], [(3, "reply"), (1, "reply"), (2, "reply")]), None)]


def test_silence_is_reported_when_patience_has_run_out(host: Host) -> None:
    host.start(ask(0, patience_us=100))
    assert host.engine.next_deadline_us() == 100
    host.clock = 99
    host.engine.expire()
    assert host.outcomes == []
    host.clock = 100
    host.engine.expire()
    assert host.outcomes == [(None, None)]
    assert host.engine.next_deadline_us() is None


def test_late_and_repeated_replies_are_dropped_and_counted(host: Host) -> None:
    host.start(ask(0))
    host.answer(0, "first")
    host.answer(0, "again")
    host.engine.deliver(NodeId(5), 99, "never asked for")
    assert host.outcomes == [("first", None)]
    assert host.engine.unclaimed == 2


def test_a_conversation_remembers_a_bounded_number_of_requests(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bftfs.limits.UNANSWERED_REQUESTS", 10)

    async def insist() -> int:
        for _ in range(100):
            await Send(NodeId(0), "?")
        return (await Receive(100)).request_number  # type: ignore[union-attr]

    running = host.start(insist())
    assert len(running.requests) <= 11
    assert len(host.engine._owner) == len(running.requests)
    host.answer(0, "too late")
    assert host.engine.unclaimed == 1
    host.answer(99, "in time")
    assert host.outcomes == [(100, None)]


def test_a_node_cannot_answer_in_the_name_of_another(host: Host) -> None:
    host.start(ask(3))
    host.engine.deliver(NodeId(4), 1, "a lie")
    assert host.outcomes == []
    assert host.engine.unclaimed == 1
    host.answer(0, "answer")
    assert host.outcomes == [("answer", None)]


def test_early_replies_are_kept_in_order(host: Host) -> None:
    async def both() -> list[Any]:
        await Send(NodeId(0), "a")
        await Send(NodeId(1), "b")
        await Pause(50)
        return [(await Receive(1)).message, (await Receive(1)).message]

    host.start(both())
    host.answer(1, "B")
    host.answer(0, "A")
    host.clock = 50
    host.engine.expire()
    assert host.outcomes == [(["B", "A"], None)]


def test_together_gives_results_in_order(host: Host) -> None:
    async def fan_out() -> Any:
        return await Together(tuple((lambda n=n: ask(n)) for n in range(3)))

    host.start(fan_out())
    for position in (2, 0, 1):
        host.answer(position, f"r{position}")
    assert host.outcomes == [(("r0", "r1", "r2"), None)]


def test_together_of_conversations_that_never_wait(host: Host) -> None:
    async def at_once(value: int) -> int:
        return value

    async def main() -> Any:
        return await Together(()), await Together((lambda: at_once(1), lambda: at_once(2)))

    host.start(main())
    assert host.outcomes == [(((), (1, 2)), None)]


def test_a_long_series_that_never_waits_needs_no_deep_stack(host: Host) -> None:
    async def at_once(value: int) -> int:
        if value % 3 == 2:
            raise ValueError(value)
        return value

    async def main() -> int:
        total = 0
        for number in range(9_000):
            try:
                (found,) = await Together((lambda number=number: at_once(number),))
                total += found >= 0
            except ValueError:
                pass
        return total

    host.start(main())
    assert host.outcomes == [(6_000, None)]


def test_the_first_failure_cancels_the_others_and_can_be_handled(host: Host) -> None:
    closed: list[int] = []

    async def failing() -> None:
        await ask(0)
        raise ValueError("bad")

    async def waiting(node: int) -> None:
        try:
            await ask(node)
        finally:
            closed.append(node)

    async def main() -> Any:
        try:
            await Together((lambda: waiting(1), failing, lambda: waiting(2)))
        except ValueError:
            return await ask(9)

    host.start(main())
    host.answer(1, "go")
    assert closed == [1, 2]
    host.answer(0, "late")  # belongs to a cancelled conversation
    assert host.engine.unclaimed == 1
    host.answer(3, "recovered")
    assert host.outcomes == [("recovered", None)]


def test_cancelling_closes_the_conversation_and_what_it_holds(host: Host) -> None:
    closed: list[int] = []

    async def waiting(node: int) -> None:
        try:
            await ask(node)
        finally:
            closed.append(node)

    async def main() -> None:
        await Together((lambda: waiting(1), lambda: waiting(2)))

    running = host.start(main())
    running.cancel()
    assert closed == [1, 2]
    assert host.outcomes == []
    assert host.engine.next_deadline_us() is None


def test_clock_randomness_and_computation_come_from_the_host(host: Host) -> None:
    async def main() -> Any:
        return await Now(), await Draw(10), await Compute(lambda: 6 * 7)

    host.start(main())
    assert host.outcomes == [((1_000, 9, 42), None)]


def test_a_failing_computation_raises_where_it_was_awaited(host: Host) -> None:
    async def main() -> str:
        try:
            await Compute(lambda: 1 // 0)
        except ZeroDivisionError:
            return "caught"
        return "missed"

    host.start(main())
    assert host.outcomes == [("caught", None)]


def test_awaiting_anything_but_an_effect_is_an_error(host: Host) -> None:
    class Foreign:
        def __await__(self) -> Any:
            yield "trap"

    async def main() -> None:
        await Foreign()

    host.start(main())
    ((result, error),) = host.outcomes
    assert result is None
    assert isinstance(error, TypeError)


def test_an_announcement_wakes_all_that_wait_in_order(host: Host) -> None:
    event = Event()
    woken: list[str] = []

    async def waiting(name: str) -> None:
        await Wait(event)
        woken.append(name)

    host.start(waiting("a"))
    host.start(waiting("b"))
    assert woken == []
    event.announce()
    assert woken == ["a", "b"]
    host.start(waiting("late"))
    assert woken == ["a", "b"]


def test_woken_conversations_run_after_the_announcing_one(host: Host) -> None:
    event = Event()
    order: list[str] = []

    async def waiting() -> None:
        await Wait(event)
        order.append("woken")

    async def announcing() -> None:
        event.announce()
        order.append("announcer goes on")

    host.start(waiting())
    host.start(announcing())
    assert order == ["announcer goes on", "woken"]


def test_a_child_may_wake_a_sibling_whose_failure_cancels_it(host: Host) -> None:
    event = Event()

    async def failing() -> None:
        await Wait(event)
        raise ValueError("woken")

    async def announcing() -> None:
        event.announce()
        await ask(0)

    async def main() -> None:
        await Together((failing, announcing))

    host.start(main())
    ((_, error),) = host.outcomes
    assert isinstance(error, ValueError)


def test_a_cancelled_waiter_is_not_woken(host: Host) -> None:
    event = Event()

    async def waiting() -> None:
        await Wait(event)

    host.start(waiting()).cancel()
    event.announce()
    assert host.outcomes == []


def test_a_spawned_conversation_outlives_the_one_that_started_it(host: Host) -> None:
    answers: list[Any] = []

    async def background() -> None:
        answers.append(await ask(4))

    async def main() -> str:
        await Spawn(background)
        assert host.sent == []
        return "done"

    host.start(main())
    assert host.outcomes == [("done", None)]
    host.answer(0, "later")
    assert answers == ["later"]


def test_a_spawned_conversations_failure_reaches_the_host(host: Host) -> None:
    async def background() -> None:
        raise ValueError("unhandled")

    async def main() -> None:
        await Spawn(background)

    with pytest.raises(ValueError, match="unhandled"):
        host.start(main())
    host.start(ask(0))  # the engine goes on
    host.answer(0, "yes")
    assert host.outcomes[-1] == ("yes", None)
