"""Who records a client's greeting and sends it again takes no place of that client's.

Nor do many principals together take all places of a node.

A node's connections and channels, on sockets of one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bftfs.runtime import clock
from bftfs.wire.channel import WELCOME_BYTES
from nodes import connections
from nodes.connections import (
    CONNECTIONS_PER_PRINCIPAL,
    GREETING_PATIENCE_US,
    UNPROVEN_PER_PRINCIPAL,
    Connection,
    Connections,
)
from tests.seams.node_connections import FLOCK, LAPTOP, NEW, PHONE, Node, Peer


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


def admitted(node: Node) -> bool:
    """Whether as many connections of the client are admitted as it may have."""
    peers = [node.greet() for _ in range(CONNECTIONS_PER_PRINCIPAL)]
    return all(peer.heard() == b"" for peer in peers)


def test_they_are_answered_and_take_no_place(node: Node) -> None:
    recorded = node.greet().channel.opening()
    node.connections.close(next(iter(node.connections.by_descriptor.values())), "it left")
    replays = [node.replay(recorded) for _ in range(UNPROVEN_PER_PRINCIPAL)]
    assert {len(each.heard() or b"") for each in replays} == {WELCOME_BYTES}
    assert admitted(node)


def test_the_oldest_gives_way_to_who_comes_and_to_nobody_else(node: Node) -> None:
    other = node.greet(PHONE)
    recorded = node.peer().channel.opening()
    replays = [node.replay(recorded) for _ in range(3 * UNPROVEN_PER_PRINCIPAL)]
    gone = [each for each in replays if each.heard() and each.heard() is None]
    assert len(gone) == 2 * UNPROVEN_PER_PRINCIPAL
    assert gone == replays[: len(gone)]
    assert other.heard() == b""
    assert admitted(node)


def test_they_have_to_go_after_a_while(node: Node) -> None:
    peer = node.greet()
    replay = node.replay(peer.channel.opening())
    assert replay.heard()
    due = node.connections.next_deadline_us()
    assert due is not None
    assert due <= clock.monotonic_us() + GREETING_PATIENCE_US
    node.connections.expire(due - 1)
    assert replay.heard() == b""
    node.connections.expire(due)
    assert replay.heard() is None
    assert peer.heard() == b""
    assert node.connections.next_deadline_us() is None
    assert node.tally.closed == {"said nothing": 1}


def test_who_is_one_too_many_is_closed_when_it_proves_itself(node: Node) -> None:
    """Its greeting was answered while there was a place."""
    late = node.peer()
    late.socket.sendall(late.channel.opening())
    node.turn()
    late.channel.receive(late.heard() or b"")
    assert admitted(node)
    late.socket.sendall(b"".join(late.channel.confirmation()))
    node.turn()
    assert late.heard() is None
    one_more = node.greet()
    assert not one_more.channel.established
    assert node.tally.closed == {"too many connections of one principal": 2}


def test_must_fail_where_a_greeting_is_believed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    greeted = Connections._greet

    def credulous(self: Connections, connection: Connection) -> None:
        connection.channel.peer = connection.channel.claimed
        greeted(self, connection)

    monkeypatch.setattr(Connections, "_greet", credulous)
    recorded = node.peer().channel.opening()
    for _ in range(CONNECTIONS_PER_PRINCIPAL):
        node.replay(recorded)
    assert not admitted(node)


# --- many principals ------------------------------------------------------------------------------


@pytest.fixture
def small(node: Node, monkeypatch: pytest.MonkeyPatch) -> Node:
    """The node has fewer places than eight clients may take."""
    for name in ("PROVEN_MAX", "UNPROVEN_MAX"):
        monkeypatch.setattr(connections, name, 6 * CONNECTIONS_PER_PRINCIPAL)
    return node


def crowd(node: Node) -> dict[int, list[Peer]]:
    """Eight clients, each with as many connections as it gets; those that stayed open."""
    peers = {
        at: [node.greet(key) for _ in range(CONNECTIONS_PER_PRINCIPAL)]
        for at, key in enumerate(FLOCK)
    }
    return {at: [each for each in greeted if is_in(each)] for at, greeted in peers.items()}


def is_in(peer: Peer) -> bool:
    """Whether the node has admitted the principal, and not closed the connection since."""
    return peer.channel.established and peer.heard() is not None


def test_many_clients_together_shut_nobody_out(small: Node) -> None:
    """Others connect; those whom they displace have no fewer than they; nothing goes round."""
    held = crowd(small)
    assert sum(map(len, held.values())) == 6 * CONNECTIONS_PER_PRINCIPAL
    newcomers = [NEW.administrator, *NEW.nodes[1:], LAPTOP, PHONE]
    peers = [small.greet(key) for key in newcomers]
    assert all(map(is_in, peers))
    before = small.tally.closed["gave way"]
    left = crowd(small)
    assert all(map(is_in, peers)), "who has one keeps it"
    assert small.tally.closed["gave way"] == before, "who has as many as the others gets no more"
    assert not any(left.values())
    assert len(small.connections.by_descriptor) == 6 * CONNECTIONS_PER_PRINCIPAL


def test_nodes_and_the_administrator_take_a_clients_only_place(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PROVEN_MAX", len(FLOCK))
    sheep = [node.greet(key) for key in FLOCK]
    assert all(map(is_in, sheep))
    assert not is_in(node.greet(LAPTOP)), "each has one: none has to go"
    needed = [node.greet(key) for key in (NEW.administrator, *NEW.nodes[1:])]
    assert all(map(is_in, needed))
    assert sum(map(is_in, sheep)) == len(FLOCK) - len(needed)
    assert not is_in(node.greet(NEW.administrator)), "it is connected already"


def test_greetings_in_many_names_shut_nobody_out(small: Node) -> None:
    """Recorded ones, of so many clients that their own limits do not help."""
    recorded = [small.peer(key).channel.opening() for key in FLOCK]
    phone = small.greet(PHONE)
    for greeting in recorded:
        for _ in range(UNPROVEN_PER_PRINCIPAL):
            small.replay(greeting)
    assert small.tally.closed["too many greetings"] == 2 * UNPROVEN_PER_PRINCIPAL
    assert is_in(small.greet(LAPTOP))
    assert is_in(phone)


def test_must_fail_where_nobody_gives_way(small: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Connections, "_make_place", lambda self, newcomer: self.close(newcomer, "too many")
    )
    crowd(small)
    assert not is_in(small.greet(NEW.administrator)), "who could revoke them"
