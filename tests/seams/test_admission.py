"""Strangers and greedy clients keep nobody from a node: fair shares of its connections.

A node's connections and channels, on sockets of one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from bftfs.crypto.keys import Identity
from bftfs.limits import CONNECTIONS, KIB
from bftfs.runtime import clock
from nodes import connections
from nodes.connections import (
    CONNECTIONS_PER_PRINCIPAL,
    PROVEN_MAX,
    STRANGERS_MAX,
    STRANGERS_TIME_US,
    UNPROVEN_MAX,
    UNPROVEN_PER_PRINCIPAL,
    Connection,
    Connections,
)
from tests.seams.node_connections import LAPTOP, NEW, PHONE, Node, Peer

HERE, THERE = b"here", b"there"
HELLO_PART = 20  # bytes of a greeting of 200


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    node = Node(tmp_path)
    come_from(monkeypatch, HERE)
    yield node
    node.close()


def come_from(monkeypatch: pytest.MonkeyPatch, network: bytes) -> None:
    """Connections come from this address from now on."""
    monkeypatch.setattr(connections, "network_of", lambda _address: network)


def strangers(node: Node, count: int) -> list[Peer]:
    """So many that say nothing, or half of a greeting, in turns."""
    found = []
    for number in range(count):
        stranger = node.peer()
        if number % 2:
            stranger.socket.sendall(stranger.channel.opening()[:HELLO_PART])
        found.append(stranger)
    return found


def is_admitted(peer: Peer) -> bool:
    return peer.channel.established and peer.heard() == b""


# --- strangers -------------------------------------------------------------------------------


def test_a_thousand_strangers_keep_nobody_out(node: Node) -> None:
    """They come from the address of a correct client, which comes again and again."""
    for _ in range(10):
        strangers(node, 100)
        assert is_admitted(node.greet())
    assert len(node.connections.by_descriptor) <= STRANGERS_MAX + 10
    assert node.tally.closed.keys() == {"too many strangers"}


def late_greeting(node: Node) -> Peer:
    """Who is accepted before its greeting comes, and before a hundred others of its address."""
    peer = node.peer()
    peer.socket.sendall(peer.channel.opening())
    strangers(node, 100)
    node.prove(peer)
    return peer


def prompt_greeting(node: Node) -> Peer:
    """Whose greeting has come when it is accepted, in one turn with others of its address."""
    node.connections.begin_turn()
    peer = node.dial()
    peer.socket.sendall(peer.channel.opening())
    strangers(node, STRANGERS_MAX + 1)
    node.prove(peer)
    return peer


@pytest.mark.parametrize("greeting", [late_greeting, prompt_greeting])
def test_whose_greeting_has_come_does_not_give_way(node: Node, greeting: Any) -> None:
    assert is_admitted(greeting(node))


@pytest.mark.parametrize("greeting", [late_greeting, prompt_greeting])
def test_must_fail_where_strangers_are_read_in_their_turn_only(
    node: Node, greeting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit, read = Connections._admit_stranger, Connections._receive

    def unread(self: Connections, *arguments: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Connections, "_receive", lambda *_: None)
            admit(self, *arguments)

    monkeypatch.setattr(Connections, "_admit_stranger", unread)
    assert not is_admitted(greeting(node))
    assert Connections._receive is read


def slow_greeting(node: Node, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a client gets in whose greeting is slow, while strangers of another address come."""
    come_from(monkeypatch, THERE)
    slow = node.peer()
    slow.socket.sendall(slow.channel.opening()[:HELLO_PART])
    come_from(monkeypatch, HERE)
    strangers(node, 3 * STRANGERS_MAX)
    if slow.heard() is None:
        return False
    slow.socket.sendall(slow.channel.opening()[HELLO_PART:])
    node.turn()
    node.prove(slow)
    return is_admitted(slow)


def test_strangers_give_way_by_address(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert slow_greeting(node, monkeypatch)


def test_must_fail_where_the_oldest_stranger_gives_way(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "gives_way", lambda crowd, *_: next(iter(crowd)))
    assert not slow_greeting(node, monkeypatch)


def test_from_many_addresses_the_oldest_gives_way(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = []
    for number in range(STRANGERS_MAX + 5):
        come_from(monkeypatch, b"%d" % number)
        silent.append(node.peer())
    gone = [peer for peer in silent if peer.heard() is None]
    assert gone == silent[:5]


def test_strangers_have_a_share_of_the_time(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come: each takes two fifths of that share."""
    time_us = 0

    def passing() -> int:
        nonlocal time_us
        time_us += STRANGERS_TIME_US * 2 // 5
        return time_us

    for _ in range(10):
        node.dial()
    monkeypatch.setattr(clock, "monotonic_us", passing)
    accepted = []
    for _ in range(4):
        node.connections.begin_turn()
        node.connections.accept()
        accepted.append(node.tally.accepted)
    assert accepted == [3, 6, 9, 10]
    greeters = list(node.connections.by_descriptor.values())
    node.connections.begin_turn()
    read: list[Connection] = []
    monkeypatch.setattr(Connections, "_receive", lambda _, connection: read.append(connection))
    for each in greeters:
        node.connections.receive(each)
    assert read == greeters[:3]


# --- greetings -------------------------------------------------------------------------------


def recorded_elsewhere(node: Node, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a client proves itself although its recorded greetings come from elsewhere."""
    greeting = node.dial().channel.opening()
    node.connections.accept()
    slow = node.peer()
    slow.socket.sendall(slow.channel.opening())
    node.turn()
    come_from(monkeypatch, THERE)
    for _ in range(3 * UNPROVEN_PER_PRINCIPAL):
        node.replay(greeting)
    node.prove(slow)
    return is_admitted(slow)


def test_greetings_in_one_name_give_way_by_address(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recorded_elsewhere(node, monkeypatch)


def test_must_fail_where_the_oldest_greeting_gives_way(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "gives_way", lambda crowd, *_: next(iter(crowd)))
    assert not recorded_elsewhere(node, monkeypatch)


def test_greetings_in_many_names_give_way_by_name(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNPROVEN_MAX", 8)
    slow, peer = node.peer(PHONE), node.peer(NEW.nodes[1])
    for each in (slow, peer):
        each.socket.sendall(each.channel.opening())
    node.turn()
    greeting = node.peer().channel.opening()
    for _ in range(12):
        node.replay(greeting)
    assert node.tally.closed == {"too many greetings": 6}
    for each in (slow, peer):
        node.prove(each)
        assert is_admitted(each)


# --- those who are known ---------------------------------------------------------------------


def test_there_are_as_many_places_as_connections() -> None:
    assert STRANGERS_MAX + UNPROVEN_MAX + PROVEN_MAX == CONNECTIONS
    assert PROVEN_MAX > 64 + 21 * CONNECTIONS_PER_PRINCIPAL  # correct nodes, and those that lie


def test_a_client_with_64_connections_has_16(node: Node) -> None:
    tried = [node.greet() for _ in range(64)]
    assert sum(map(is_admitted, tried)) == CONNECTIONS_PER_PRINCIPAL
    assert is_admitted(node.greet(PHONE))


def connected(node: Node, identity: Identity, count: int) -> list[Peer]:
    """So many connections, each of which was used later than the one before."""
    found = []
    for _ in range(count):
        node.tally.batches += 1
        found.append(node.greet(identity))
    return found


def test_who_has_most_connections_gives_way(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PROVEN_MAX", 8)
    peers = connected(node, NEW.nodes[1], 3)
    first, second, *others = connected(node, LAPTOP, 5)
    node.tally.batches += 1
    first.socket.sendall(b"".join(first.channel.seal_request(1, b"used")))
    node.turn()
    few = connected(node, PHONE, 1)
    assert second.heard() is None, "the one that was idle longest"
    assert all(map(is_admitted, [*peers, first, *others, *few]))
    # Where a node has as many as a client, the client gives way, up to its share.
    more = connected(node, NEW.nodes[2], 3)
    assert all(map(is_admitted, [*peers, *more[:2], *few]))
    assert not is_admitted(more[2])
    assert sum(map(is_admitted, [first, *others])) == 2
    assert node.tally.closed == {"gave way": 3, "too many connections": 1}


def send_part(peer: Peer, size: int) -> None:
    """The beginning of a request that never ends."""
    request = b"".join(peer.channel.seal_request(1, b"message", bytes(2 * size)))
    peer.socket.sendall(request[:size])


def unfinished_requests(node: Node, monkeypatch: pytest.MonkeyPatch) -> tuple[Peer, list[Peer]]:
    """A client with one large request, and one with many that are smaller, are too much."""
    monkeypatch.setattr(connections, "HELD_BYTES", 500 * KIB)
    modest = node.greet(PHONE)
    send_part(modest, 100 * KIB)
    node.turn()
    greedy = [node.greet() for _ in range(8)]
    for each in greedy:
        send_part(each, 80 * KIB)
        node.turn()
    return modest, greedy


def test_who_holds_most_bytes_gives_way(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    modest, greedy = unfinished_requests(node, monkeypatch)
    assert is_admitted(modest)
    assert sum(map(is_admitted, greedy)) == 5
    assert node.tally.closed == {"held too much": 3}


def test_must_fail_where_the_largest_request_gives_way(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        connections, "gives_way", lambda crowd, *_: max(crowd, key=lambda each: each.held_bytes)
    )
    modest, _ = unfinished_requests(node, monkeypatch)
    assert not is_admitted(modest)


def whole_requests(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[Peer]:
    """A client's large requests, each of which waits for its turn once all of it has come."""
    monkeypatch.setattr(connections, "HELD_BYTES", 500 * KIB)
    greedy = [node.greet() for _ in range(8)]
    for each in greedy:
        request = b"".join(map(bytes, each.channel.seal_request(1, b"m", bytes(100 * KIB))))
        for part in (request[: 90 * KIB], request[90 * KIB :]):
            each.socket.sendall(part)
            node.turn()
    return greedy


def test_a_request_that_waits_counts_as_a_whole(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(map(is_admitted, whole_requests(node, monkeypatch))) == 4
    assert node.tally.closed == {"held too much": 4}


def test_requests_that_come_in_small_pieces_count_too(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HELD_BYTES", 500 * KIB)
    greedy = [node.greet() for _ in range(8)]
    for each in greedy:
        pieces = (each.channel.seal_request(number, b"m", bytes(50 * KIB)) for number in (1, 2))
        each.socket.sendall(b"".join(map(bytes, chain.from_iterable(pieces))))
        node.turn()
    assert node.tally.closed == {"held too much": 4}


def test_must_fail_where_a_request_counts_as_its_last_bytes(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_bytes_of", lambda _frames: 11 * KIB)
    assert all(map(is_admitted, whole_requests(node, monkeypatch)))
