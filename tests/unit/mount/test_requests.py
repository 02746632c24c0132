"""mount.requests, on an engine without a network and trio's clock for tests."""

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from bftfs.conversation import Event, Wait
from bftfs.engine import Engine
from bftfs.errors import FileSystemError
from bftfs.identifiers import NodeId
from bftfs.runtime.links import Waiting
from bftfs.runtime.network import Network
from mount import callers, requests
from mount.requests import KernelRequest, Requests


class Log:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **facts: Any) -> None:
        self.events.append((event, facts))

    info = warning


class NobodysLinks:
    """An engine for a network that nobody is on."""

    def __init__(self) -> None:
        self.engine = Engine(
            send=lambda *_: None, now_us=lambda: 0, monotonic_us=lambda: 0, draw=lambda _: 0
        )
        self.waiting: Waiting | None = None

    def waiting_for(self) -> Waiting | None:
        return self.waiting


def nobodys_network() -> Network:
    links: Any = NobodysLinks()
    return Network(links)


async def answer(value: Any) -> Any:
    return value


async def refuse(code: int) -> None:
    raise FileSystemError(code)


async def wait(event: Event, cleaned: list[str] | None = None) -> str:
    try:
        await Wait(event)
    finally:
        if cleaned is not None:
            cleaned.append("cleaned")
    return "waited"


def run(
    test: Callable[[Requests, Log], Awaitable[None]], *, watch: bool = True
) -> list[tuple[str, dict[str, Any]]]:
    """What the log was told while `test` ran, in virtual time."""
    log = Log()

    async def session() -> None:
        subject = Requests(nobodys_network(), log)
        subject.device = "0:99"
        async with trio.open_nursery() as nursery:
            if watch:
                nursery.start_soon(subject.watch)
            await test(subject, log)
            assert len(subject) == 0
            nursery.cancel_scope.cancel()

    trio.run(session, clock=trio.testing.MockClock(autojump_threshold=0))
    return log.events


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The processes that want to end."""
    wanting: set[int] = set()
    monkeypatch.setattr(callers, "wants_to_end", lambda pid: pid in wanting)
    monkeypatch.setattr(callers, "ending", lambda: tuple(wanting))
    monkeypatch.setattr(callers, "process_of", {9: 900, 10: 1000}.get)
    monkeypatch.setattr(
        callers,
        "uses",
        lambda pid, inode, device, *, opener: (pid, inode, device) == (7, 42, "0:99"),
    )
    return wanting


async def after(seconds: float, action: Callable[[], object]) -> None:
    await trio.sleep(seconds)
    action()


def test_a_ready_answer_costs_no_turn_of_the_scheduler():
    async def test(subject: Requests, _: Log) -> None:
        with trio.testing.assert_no_checkpoints():
            assert await subject.perform(KernelRequest("read", 1), answer(5)) == 5
            with pytest.raises(FileSystemError) as caught:
                await subject.perform(KernelRequest("read", 1), refuse(errno.EIO))
            assert caught.value.code == errno.EIO

    run(test)


def test_a_request_waits_for_its_answer():
    async def test(subject: Requests, _: Log) -> None:
        event = Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after, 5, event.announce)
            assert await subject.perform(KernelRequest("read", 1, 7), wait(event)) == "waited"
        assert trio.current_time() == pytest.approx(5, abs=0.1)

    assert run(test, watch=False) == []


def test_a_process_that_shall_end_gets_eintr(ending: set[int]):
    async def test(subject: Requests, _: Log) -> None:
        cleaned: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after, 3, lambda: ending.add(7))
            with pytest.raises(FileSystemError) as caught:
                await subject.perform(KernelRequest("create", 1, 7), wait(Event(), cleaned))
        assert caught.value.code == errno.EINTR
        assert trio.current_time() < 3 + 2 * requests.LOOK_EVERY_S
        assert cleaned == ["cleaned"]

    (event,) = run(test)
    assert event[0] == "request interrupted"
    assert event[1]["request"] == "create"


def test_others_go_on_waiting(ending: set[int]):
    async def test(subject: Requests, _: Log) -> None:
        ending.add(8)
        event = Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after, 5, event.announce)
            assert await subject.perform(KernelRequest("create", 1, 7), wait(event)) == "waited"

    assert run(test) == []


def test_a_young_request_is_left_alone(ending: set[int]):
    async def test(subject: Requests, _: Log) -> None:
        ending.add(7)
        event = Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after, requests.PATIENT_S / 2, event.announce)
            assert await subject.perform(KernelRequest("create", 1, 7), wait(event)) == "waited"

    assert run(test) == []


def test_of_a_handle_whoever_uses_the_file_may_interrupt(ending: set[int]):
    async def test(subject: Requests, _: Log) -> None:
        ending.add(7)
        event = Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after, 10, event.announce)

            async def other_file() -> None:
                waiting = subject.perform(KernelRequest("read", 43, opener=9), wait(event))
                assert await waiting == "waited"

            nursery.start_soon(other_file)
            with pytest.raises(FileSystemError) as caught:
                await subject.perform(KernelRequest("read", 42, opener=9), wait(Event()))
            assert caught.value.code == errno.EINTR
            assert trio.current_time() < 5

    run(test)


def test_the_opener_of_a_handle_may_interrupt_its_release(ending: set[int]):
    async def test(subject: Requests, _: Log) -> None:
        ending.add(1000)
        event = Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after, 10, event.announce)

            async def opened_by_another() -> None:
                assert (
                    await subject.perform(KernelRequest("flush", 1, opener=9), wait(event))
                    == "waited"
                )

            nursery.start_soon(opened_by_another)
            for opener in (10, 11):  # thread 11 is gone
                with pytest.raises(FileSystemError) as caught:
                    await subject.perform(KernelRequest("flush", 1, opener=opener), wait(Event()))
                assert caught.value.code == errno.EINTR

    run(test)


def test_the_kernel_itself_is_not_interrupted(ending: set[int]):
    async def test(subject: Requests, _: Log) -> None:
        ending.add(7)
        event = Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after, 5, event.announce)
            assert await subject.perform(KernelRequest("release", 42), wait(event)) == "waited"

    assert run(test) == []


def test_slow_requests_and_their_ends_are_logged():
    async def test(subject: Requests, _: Log) -> None:
        event = Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after, 100, event.announce)
            await subject.perform(KernelRequest("fsync", 42), wait(event))

    events = run(test)
    assert [event for event, _ in events] == ["slow request", "slow request", "slow request ended"]
    assert [facts["seconds"] for _, facts in events] == pytest.approx([10.5, 71, 100], abs=1)
    assert all(facts["inode"] == 42 for _, facts in events)


def test_at_the_end_all_that_wait_are_let_go():
    async def test(subject: Requests, _: Log) -> None:
        codes: list[int] = []

        async def one() -> None:
            with pytest.raises(FileSystemError) as caught:
                await subject.perform(KernelRequest("read", 1), wait(Event()))
            codes.append(caught.value.code)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            assert len(subject) == 3
            subject.abandon()
        assert codes == [errno.EINTR] * 3

    run(test)


def test_answer_and_interrupt_together_end_a_request_once():
    async def test(subject: Requests, _: Log) -> None:
        event = Event()
        async with trio.open_nursery() as nursery:

            def both() -> None:
                event.announce()
                subject.abandon()

            nursery.start_soon(after, 1, both)
            assert await subject.perform(KernelRequest("read", 1), wait(event)) == "waited"

    run(test)


def test_a_cancelled_task_abandons_its_conversation():
    async def test(subject: Requests, _: Log) -> None:
        cleaned: list[str] = []
        with trio.move_on_after(1):
            await subject.perform(KernelRequest("read", 1), wait(Event(), cleaned))
        assert cleaned == ["cleaned"]

    run(test)


def test_nodes_that_requests_wait_for_are_logged_once_and_when_they_are_back() -> None:
    async def test(subject: Requests, log: Log) -> None:
        links: Any = subject._network.links
        event = Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after, 8, event.announce)
            nursery.start_soon(subject.perform, KernelRequest("read", 1, 7), wait(event))
            links.waiting = Waiting(((NodeId(3), "Connection refused"), (NodeId(4), "")), 1)
            await trio.sleep(2)
            assert log.events == []
            await trio.sleep(4)
            links.waiting = None
            await trio.sleep(1)

    first, last = run(test)
    assert first[0] == "waiting for 1 more node; silent are node 3 (Connection refused), node 4 ()"
    assert first[1] == {"needed": 1, "requests": 1}
    assert last[0] == "enough nodes answer again"
