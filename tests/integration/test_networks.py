"""Conversations with real node processes: blocking, and under trio."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from bftfs.conversation import Conversation, Pause, Receive, Together
from bftfs.errors import QuorumUnavailable
from bftfs.identifiers import NodeId
from bftfs.limits import MIB
from bftfs.runtime.blocking import BlockingNetwork
from bftfs.runtime.network import Network
from tests.integration.counting import (
    REPLIES,
    Counted,
    Fetch,
    Increment,
    ask,
    ask_all,
)
from tests.integration.deployment import Deployment

Connect = Callable[..., BlockingNetwork]
ZERO = NodeId(0)


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Six nodes that count, and run. Each test has counters of its own."""
    path = tmp_path_factory.mktemp("six") / "cluster"
    deployment = Deployment(path, module="tests.integration.counting_node")
    deployment.start()
    yield deployment
    deployment.close()


def under_trio(deployment: Deployment, main: Callable[[Network], Any], *, client: int = 0) -> None:
    """Run `main(network)` under trio, within a time that is more than enough."""

    async def guarded() -> None:
        with trio.fail_after(60):
            async with Network.connected(
                deployment.description, deployment.clients[client], decode=REPLIES.decode
            ) as network:
                await main(network)

    trio.run(guarded)


async def fail() -> Conversation[None]:
    await Pause(1)
    raise QuorumUnavailable(heard=1, required=5, subject="the test")


async def wait_for_ever() -> Conversation[None]:
    while True:
        await Receive(patience_us=1_000_000_000)


# --- both ------------------------------------------------------------------------------------


def test_two_clients_see_each_others_counts(six: Deployment, connect: Connect) -> None:
    first, second = connect(six, 0), connect(six, 1)
    assert first.perform(ask_all(6, Increment(b"of both", 1), 6)) == 6
    assert second.perform(ask_all(6, Increment(b"of both", 1), 6)) == 6
    for node in six.nodes:
        assert first.perform(ask(NodeId(node), Fetch(b"of both")))[0] == Counted(2)


def test_large_bodies_travel_whole_in_both_directions(six: Deployment, connect: Connect) -> None:
    network = connect(six)
    bodies = [os.urandom(size) for size in (1, 4095, 64 * 1024, 1 * MIB, 8 * MIB)]

    async def there_and_back(number: int) -> Conversation[bytes]:
        await ask(ZERO, Increment(b"body %d" % number, 1), bodies[number])
        _, body = await ask(ZERO, Fetch(b"body %d" % number, True))
        return bytes(body)

    assert network.perform_many(map(there_and_back, range(5)), in_flight=5) == bodies


def test_nodes_can_be_reached_over_tcp(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(6):
            free = stack.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    deployment = Deployment(
        tmp_path / "cluster",
        module="tests.integration.counting_node",
        addresses=[f"tcp:127.0.0.1:{port}" for port in ports],
    )
    body = os.urandom(3 * MIB)
    try:
        deployment.start()
        with BlockingNetwork(
            deployment.description, deployment.clients[0], decode=REPLIES.decode
        ) as network:
            assert network.perform(ask_all(6, Increment(b"c", 1), 6, body)) == 6
            reply, kept = network.perform(ask(NodeId(5), Fetch(b"c", True)))
            assert (reply, bytes(kept)) == (Counted(1), body)
            deployment.kill(5)
            deployment.start([5])
            assert network.perform(ask(NodeId(5), Fetch(b"c")))[0] == Counted(1)
    finally:
        deployment.close()


# --- blocking --------------------------------------------------------------------------------


def test_many_conversations_give_their_results_in_order(six: Deployment, connect: Connect) -> None:
    async def increment(by: int) -> Conversation[int]:
        await ask(ZERO, Increment(b"by %d" % by, by))
        return by

    results = connect(six).perform_many(map(increment, range(500)), in_flight=32)
    assert results == list(range(500))


def test_no_more_conversations_run_than_are_allowed(six: Deployment, connect: Connect) -> None:
    running, most = 0, 0

    async def observed() -> Conversation[None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await ask(ZERO, Fetch(b"c"))
        running -= 1

    connect(six).perform_many((observed() for _ in range(50)), in_flight=7)
    assert (most, running) == (7, 0)


def test_what_may_block_is_run_elsewhere_while_conversations_go_on(
    six: Deployment, connect: Connect
) -> None:
    network = connect(six)
    meeting = threading.Barrier(3)  # nobody gets through alone

    async def met(_: int) -> Conversation[int]:
        await network.elsewhere(partial(meeting.wait, 60))
        return await ask_all(6, Increment(b"met", 1), 6)

    assert network.perform_many(map(met, range(3)), in_flight=3) == [6] * 3

    async def fails() -> Conversation[None]:
        await network.elsewhere(partial(os.stat, "/nothing/there"))

    with pytest.raises(FileNotFoundError):
        network.perform(fails())


def test_what_an_abandoned_conversation_has_run_elsewhere_is_over(
    six: Deployment, connect: Connect
) -> None:
    network = connect(six)
    begun, ended = threading.Event(), []

    def function() -> None:
        begun.set()
        with contextlib.suppress(threading.BrokenBarrierError):
            threading.Barrier(2).wait(0.1)  # something that takes a while
        ended.append(True)

    async def fails() -> Conversation[None]:
        while not begun.is_set():
            await Pause(1000)
        await fail()

    with pytest.raises(QuorumUnavailable):
        network.perform_many([network.elsewhere(function), fails()], in_flight=2)
    assert ended == [True]


def test_a_failure_is_raised_and_abandons_the_others(
    counting: Deployment, connect: Connect
) -> None:
    closed = []

    async def bystander() -> Conversation[None]:
        try:
            await wait_for_ever()
        finally:
            closed.append(True)

    network = connect(counting)
    with pytest.raises(QuorumUnavailable):
        network.perform_many([bystander(), fail(), bystander()], in_flight=3)
    assert closed == [True, True]
    with pytest.raises(QuorumUnavailable):
        network.perform(fail())


def test_a_blocking_client_meets_a_restarted_node_again(
    counting: Deployment, connect: Connect
) -> None:
    counting.start([0])
    network = connect(counting)
    network.perform(ask(ZERO, Increment(b"c", 3)))
    counting.kill(0)
    counting.start([0])
    assert network.perform(ask(ZERO, Fetch(b"c")))[0] == Counted(3)


# --- under trio ------------------------------------------------------------------------------


def test_tasks_perform_conversations_side_by_side(six: Deployment) -> None:
    counted = [0] * 20

    async def main(network: Network) -> None:
        async def work(number: int) -> None:
            for _ in range(10):
                counted[number] += await network.perform(
                    ask_all(6, Increment(b"task %d" % number, 1), 5)
                )

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(work, number)
        reply, _ = await network.perform(ask(ZERO, Fetch(b"task 0")))
        assert reply == Counted(10)

    under_trio(six, main)
    assert counted == [50] * 20


def test_a_conversation_that_ends_at_once_or_fails(counting: Deployment) -> None:
    async def at_once() -> Conversation[str]:
        return "done"

    async def main(network: Network) -> None:
        assert await network.perform(at_once()) == "done"
        with pytest.raises(QuorumUnavailable):
            await network.perform(fail())

    under_trio(counting, main)


def test_time_passes_for_conversations(counting: Deployment) -> None:
    async def impatient(duration_us: int) -> Conversation[bool]:
        return await Receive(patience_us=duration_us) is None

    async def both() -> Conversation[Any]:
        # The longer one first: a nearer deadline must bring the alarm forward.
        return await Together((lambda: impatient(120_000), lambda: impatient(20_000)))

    async def main(network: Network) -> None:
        started = trio.current_time()
        assert await network.perform(both()) == (True, True)
        assert 0.12 <= trio.current_time() - started < 10
        assert network.links.engine.next_deadline_us() is None

    under_trio(counting, main)


def test_cancelling_the_task_abandons_the_conversation(counting: Deployment) -> None:
    closed = []

    async def main(network: Network) -> None:
        async def held() -> Conversation[None]:
            try:
                await wait_for_ever()
            finally:
                closed.append(True)

        with trio.move_on_after(0.05) as scope:
            await network.perform(held())
        assert scope.cancelled_caught
        assert closed == [True]
        with trio.CancelScope() as scope:
            scope.cancel()
            conversation = held()
            await network.perform(conversation)
        assert scope.cancelled_caught
        assert network.links.engine.next_deadline_us() is None

    under_trio(counting, main)


def test_a_mount_meets_a_restarted_node_again(counting: Deployment) -> None:
    counting.start([0])

    async def main(network: Network) -> None:
        await network.perform(ask(ZERO, Increment(b"c", 3)))
        counting.kill(0)
        while network.links.open:
            await trio.sleep(0.01)
        counting.start([0])
        reply, _ = await network.perform(ask(ZERO, Fetch(b"c")))
        assert reply == Counted(3)

    under_trio(counting, main)
