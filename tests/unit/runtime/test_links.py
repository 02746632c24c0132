"""Connections to nodes: what is kept for one that is down, what a lying one can do."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bftfs import cluster
from bftfs.asking.refusal import Refused
from bftfs.cluster import ClientEntry, ClusterDescription
from bftfs.conversation import Conversation, Receive, Send
from bftfs.crypto.keys import Identity
from bftfs.envelope import REPLIES, HealthRequest
from bftfs.errors import InvalidAuthenticator
from bftfs.identifiers import NodeId
from bftfs.limits import MIB
from bftfs.runtime import blocking, clock, links
from bftfs.runtime.blocking import BlockingNetwork
from bftfs.runtime.links import Links
from bftfs.runtime.sockets import listen
from bftfs.server.step import Sender
from bftfs.wire.channel import Frame, ServerChannel
from bftfs.wire.codec import encode

ZERO = NodeId(0)
ME = Identity(os.urandom(32))
REFUSAL = Refused(1, "no")


class ScriptedNode:
    """One node's end, of which the test moves every part."""

    def __init__(self, description: ClusterDescription, identity: Identity) -> None:
        self.listener = listen(description.member(ZERO).address)
        self.description = description
        self.identity = identity
        self.accept()

    def accept(self) -> None:
        self.channel = ServerChannel[Sender](
            identity=self.identity,
            node=ZERO,
            cluster_id=self.description.cluster_id,
            view=self.description.view,
            principal=self.description.principal,
            entropy=os.urandom(32),
        )
        self.connection: socket.socket | None = None

    def turn(self) -> list[Frame]:
        """Take in what has come; the requests in it."""
        if self.connection is None:
            try:
                self.connection, _ = self.listener.accept()
            except BlockingIOError:
                return []
            self.connection.setblocking(False)
        try:
            frames = self.channel.receive(self.connection.recv(1 << 20))
        except BlockingIOError:
            return []
        self.connection.send(self.channel.pending_output())
        return frames

    def reply(self, number: int, message: object = REFUSAL) -> None:
        assert self.connection is not None
        for buffer in self.channel.seal_reply(number, encode(message)):
            self.connection.send(buffer)

    def hang_up(self) -> None:
        assert self.connection is not None
        self.connection.close()
        self.accept()

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.listener.close()


class World:
    """A cluster of six nodes of which at most node 0 exists, and links to it."""

    def __init__(self, path: Path, *, persistent: bool, **more: Any) -> None:
        made = cluster.create(
            [f"unix:{path}/{node}" for node in range(6)], t=1, b=1, draw=os.urandom
        )
        self.description = made.description.with_client(ClientEntry("me", ME.public_key))
        self.identity = made.nodes[0]
        self.links = Links(
            self.description, ME, decode=REPLIES.decode, persistent=persistent, **more
        )
        self.outcomes: list[object] = []

    def node(self) -> ScriptedNode:
        return ScriptedNode(self.description, self.identity)

    def ask(self, *, body: bytes = b"") -> None:
        async def conversation() -> Conversation[object]:
            await Send(ZERO, HealthRequest(), body)
            delivery = await Receive(patience_us=60_000_000)
            return delivery and delivery.message

        self.links.engine.start(
            conversation(), lambda result, error: self.outcomes.append(error or result)
        )
        self.links.flush()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The monotonic clock, for the test to set."""
    time = [1_000_000]
    monkeypatch.setattr(clock, "monotonic_us", lambda: time[0])
    return time


def meet(world: World, node: ScriptedNode) -> list[Frame]:
    """Let both ends talk until neither has anything to say; the requests that came."""
    requests: list[Frame] = []
    for _ in range(20):
        world.links.turn()
        requests += node.turn()
    return requests


@pytest.fixture
def world(tmp_path: Path, now: list[int]) -> Iterator[World]:
    world = World(tmp_path, persistent=False)
    yield world
    world.links.close()


def test_a_request_and_its_reply(world: World) -> None:
    node = world.node()
    world.ask()
    (request,) = meet(world, node)
    node.reply(request.number)
    meet(world, node)
    assert world.outcomes == [REFUSAL]
    assert world.links.open == 1
    assert world.links.unreachable() == ()
    node.close()


def test_requests_wait_for_a_down_node_within_bounds(
    world: World, now: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "EARLY_REQUESTS", 3)
    for _ in range(5):
        world.ask()
    assert world.links.dropped == 2
    assert world.links.unreachable() == ((ZERO, "No such file or directory"),)
    node = world.node()
    assert meet(world, node) == []  # backing off
    now[0] += links.BACKOFF_FIRST_US
    world.links.expire()
    assert [request.number for request in meet(world, node)] == [3, 4, 5]
    node.close()


def test_a_node_that_stays_down_is_not_dialled_for_ever(world: World, now: list[int]) -> None:
    world.ask()
    for _ in range(links.ATTEMPTS):
        assert world.links.dropped == 0
        now[0] += links.BACKOFF_LAST_US
        world.links.expire()
    assert world.links.dropped == 1
    assert world.links.lost.total() == links.ATTEMPTS + 1
    now[0] += 60_000_000
    world.links.expire()  # the conversation has lost its patience
    assert world.outcomes == [None]
    assert world.links.next_deadline_us() is None


def test_large_requests_to_a_down_node_cost_bounded_memory(world: World) -> None:
    for _ in range(10):
        world.ask(body=bytes(4 * MIB))
    assert world.links.dropped == 7


def test_requests_beyond_a_bound_are_dropped(world: World) -> None:
    node = world.node()
    world.ask()
    meet(world, node)
    for _ in range(20):
        world.ask(body=bytes(4 * MIB))
    assert 10 <= world.links.dropped < 20
    node.close()


def test_reconnecting_backs_off(tmp_path: Path, now: list[int]) -> None:
    world = World(tmp_path, persistent=True)
    pauses = []
    for _ in range(12):
        deadline = world.links.next_deadline_us()
        assert deadline is not None
        pauses.append(deadline - now[0])
        # All six nodes are down; let each of them be tried.
        now[0] += links.BACKOFF_LAST_US
        world.links.expire()
    assert pauses[0] <= links.BACKOFF_FIRST_US
    assert pauses[-1] >= links.BACKOFF_LAST_US // 2
    node = world.node()
    now[0] += links.BACKOFF_LAST_US
    world.links.expire()
    world.ask()
    (request,) = meet(world, node)
    node.reply(request.number)
    meet(world, node)
    assert world.outcomes == [REFUSAL]
    world.links.close()
    node.close()


def test_a_greeting_does_not_end_the_backing_off(world: World, now: list[int]) -> None:
    """What is lost soon after it is dialled less and less often; a connection that lived is not."""

    def pause(*, life_us: int) -> int:
        meet(world, node)
        assert world.links.open == 1
        now[0] += life_us
        node.hang_up()
        world.links.turn()
        world.ask()
        deadline = world.links.next_deadline_us()
        assert deadline is not None
        waited = deadline - now[0]
        now[0] = deadline
        world.links.expire()
        return waited

    node = world.node()
    world.ask()
    pauses = [pause(life_us=1_000) for _ in range(8)]
    assert pauses[0] <= links.BACKOFF_FIRST_US
    assert pauses[-1] >= links.BACKOFF_LAST_US // 2
    assert pause(life_us=links.BACKOFF_LAST_US) <= links.BACKOFF_FIRST_US
    node.close()


def test_nothing_is_due_once_all_is_quiet(world: World) -> None:
    node = world.node()
    world.ask()
    (request,) = meet(world, node)
    assert world.links.next_deadline_us() is not None  # the conversation's patience
    node.reply(request.number)
    meet(world, node)
    assert world.links.next_deadline_us() is None
    node.close()


def test_a_node_that_does_not_greet_is_given_up(world: World, now: list[int]) -> None:
    silent = listen(world.description.member(ZERO).address)
    world.ask()
    world.links.turn()
    assert world.links.next_deadline_us() == now[0] + links.GREETING_PATIENCE_US
    now[0] += links.GREETING_PATIENCE_US
    world.links.expire()
    assert world.links.unreachable() == ((ZERO, "no answer to the greeting"),)
    silent.close()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 64,
        b"bft1" + b"m" * 64,
        bytes(300),
        os.urandom(300),
    ],
)
def test_garbage_from_a_node_costs_only_its_connection(world: World, said: bytes) -> None:
    node = world.node()
    world.ask()
    world.links.turn()
    node.turn()
    assert node.connection is not None
    # A WELCOME has been sent; what follows it is checked as a reply.
    node.connection.send(said)
    for _ in range(3):
        world.links.turn()
    assert world.links.open == 0
    assert world.links.lost.total() == 1
    assert world.outcomes == []
    node.close()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            b"bft4",
            "'bft4' of the channel and this program version 'bft3'; install the same release",
        ),
        (b"", "it may run another release of bftfs"),
    ],
)
def test_a_node_of_another_release_is_named_as_such(world: World, said: bytes, why: str) -> None:
    """Whether it says which version it speaks, or hangs up, as those before the first do."""
    node = world.node()
    world.ask()
    world.links.turn()
    node.connection, _ = node.listener.accept()
    node.connection.recv(4096)
    node.connection.send(said)
    node.hang_up()
    for _ in range(3):
        world.links.turn()
    ((_, reason),) = world.links.unreachable()
    assert why in reason
    assert world.outcomes == []
    node.close()


def test_who_has_nothing_to_ask_confirms_its_greeting(world: World) -> None:
    """Otherwise the node would take it for a recorded one."""
    node = world.node()
    persistent = Links(world.description, ME, decode=REPLIES.decode, persistent=True)
    persistent.turn()
    for _ in range(4):
        node.turn()
        persistent.turn()
    assert node.channel.peer is not None
    persistent.close()
    node.close()


def test_an_impostor_gets_no_request(world: World) -> None:
    impostor = ScriptedNode(world.description, Identity(os.urandom(32)))
    world.ask()
    world.links.turn()
    world.links.turn()
    with pytest.raises(InvalidAuthenticator):
        impostor.turn()
    impostor.close()


def test_a_client_that_the_node_does_not_know_is_told_so(world: World, now: list[int]) -> None:
    node = ScriptedNode(world.description.without_client("me", at_s=7), world.identity)
    for _ in range(2):  # at every attempt
        world.ask()
        world.links.turn()
        with pytest.raises(InvalidAuthenticator):
            node.turn()
        assert node.connection is not None
        node.connection.send(node.channel.pending_output())
        world.links.turn()
        (answer,) = world.outcomes
        assert isinstance(answer, Refused)
        assert answer.code == errno.EACCES
        world.outcomes.clear()
        node.hang_up()
        now[0] += 1_000_000
    ((_, reason),) = world.links.unreachable()
    assert "does not know" in reason
    node.close()


def test_a_reply_that_cannot_be_decoded_ends_the_connection(world: World) -> None:
    node = world.node()
    world.ask()
    (request,) = meet(world, node)
    assert node.connection is not None
    for buffer in node.channel.seal_reply(request.number, b"\x91\x00"):
        node.connection.send(buffer)
    world.links.turn()
    assert world.links.lost == {"MalformedMessage": 1}
    node.close()


def test_a_repeated_and_an_unasked_reply_are_counted_and_dropped(world: World) -> None:
    node = world.node()
    world.ask()
    (request,) = meet(world, node)
    node.reply(request.number + 1)
    node.reply(request.number)
    node.reply(request.number)
    meet(world, node)
    assert world.outcomes == [REFUSAL]
    assert world.links.engine.unclaimed == 2
    node.close()


def test_a_node_that_hangs_up_is_noticed(world: World, now: list[int]) -> None:
    node = world.node()
    world.ask()
    meet(world, node)
    node.hang_up()
    world.links.turn()
    assert world.links.unreachable() == ((ZERO, "closed by the node"),)
    now[0] += links.BACKOFF_LAST_US
    world.ask()
    (request,) = meet(world, node)
    node.reply(request.number)
    meet(world, node)
    assert world.outcomes == [REFUSAL]
    node.close()


def test_a_node_that_is_lost_and_found_is_reported_once_each(
    tmp_path: Path, now: list[int]
) -> None:
    reported: list[tuple[NodeId, str]] = []
    world = World(tmp_path, persistent=False, report=lambda *words: reported.append(words))
    for _ in range(3):
        world.ask()
        now[0] += links.BACKOFF_LAST_US
        world.links.expire()
    assert reported == [(ZERO, "No such file or directory")]
    node = world.node()
    now[0] += links.BACKOFF_LAST_US
    world.ask()
    meet(world, node)
    assert reported[1:] == [(ZERO, "")]
    node.hang_up()
    world.links.turn()
    assert reported[2:] == [(ZERO, "closed by the node")]
    world.links.close()
    node.close()


# --- a quorum that is not there ----------------------------------------------------------------


def test_nodes_that_are_down_or_owe_an_answer_are_waited_for_by_name(
    tmp_path: Path, now: list[int]
) -> None:
    world = World(tmp_path, persistent=True)
    node = world.node()
    now[0] += links.BACKOFF_FIRST_US
    world.links.expire()
    meet(world, node)
    down = ", ".join(f"node {number} (No such file or directory)" for number in range(1, 6))
    assert str(world.links.waiting_for()) == f"waiting for 4 more nodes; silent are {down}"
    world.ask()
    (request,) = meet(world, node)
    now[0] += links.SILENT_US
    assert str(world.links.waiting_for()) == (
        f"waiting for 5 more nodes; silent are node 0 (does not answer), {down}"
    )
    node.reply(request.number)
    meet(world, node)
    assert world.links.waiting_for() == links.Waiting(
        tuple((NodeId(number), "No such file or directory") for number in range(1, 6)), 4
    )
    world.links.close()
    node.close()


def test_as_long_as_enough_answer_nobody_is_waited_for(tmp_path: Path, now: list[int]) -> None:
    world = World(tmp_path, persistent=False)
    world.ask()  # node 0 is down, and may be
    assert world.links.unreachable()
    assert world.links.waiting_for() is None
    world.links.close()


def test_a_tool_says_whom_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "WAIT_WORTH_SAYING_US", 0)
    made = cluster.create(
        [f"unix:{tmp_path}/{node}" for node in range(6)], t=1, b=1, draw=os.urandom
    )
    said: list[str] = []

    async def unanswered() -> Conversation[None]:
        await Send(ZERO, HealthRequest(), b"")
        await Receive(patience_us=20_000)

    with BlockingNetwork(made.description, ME, decode=REPLIES.decode, say=said.append) as network:
        network.perform(unanswered())
    (words,) = said
    assert words.startswith("waiting for 5 more nodes; silent are node 0 (")
