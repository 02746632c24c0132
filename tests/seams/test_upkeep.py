"""A node obeys its cluster's administrator, and nobody else, whatever was sent before."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from bftfs import cluster
from bftfs.asking.refusal import Refused
from bftfs.cluster import ClientEntry
from bftfs.crypto import noise
from bftfs.crypto.keys import Identity
from bftfs.envelope import REQUESTS, UpkeepReply, UpkeepRequest
from bftfs.errors import PeerFault
from bftfs.identifiers import NodeId
from bftfs.limits import MIB
from bftfs.server.step import Role, Sender
from bftfs.server.worker import Throttle
from bftfs.storage import MemoryStorage
from bftfs.wire.channel import ClientChannel, ServerChannel
from bftfs.wire.codec import encode
from nodes.control import PassState, Upkeep, Work

DRAWS = count(1)


def made() -> cluster.NewCluster:
    return cluster.create(
        [f"tcp:10.0.0.{node}:7000" for node in range(1, 7)],
        t=1,
        b=1,
        draw=lambda length: bytes([next(DRAWS)]) * length,
    )


NEW, OTHER = made(), made()
LAPTOP = Identity.generate(b"l" * 32)
DESCRIPTION = NEW.description.with_client(ClientEntry("laptop", LAPTOP.public_key))
RATE = 16 * MIB
IDLE = PassState(under_way=False, progress=1.0, remaining_us=None, ended_us=0, figures={})
SLOW = encode(UpkeepRequest("throttle", "scrub", 2048))


class Node:
    """A node's channel, and behind it its upkeep: one kind of work, with a rate."""

    def __init__(self, number: int = 2) -> None:
        self.member = DESCRIPTION.members[number]
        self.throttle = Throttle("scrub", rate_bytes=RATE)
        self._identity = NEW.nodes[number]
        self._upkeep = Upkeep((Work(self.throttle, lambda _: IDLE),), lambda: "")
        self._nonces = count(1)
        self.accept()

    def accept(self) -> None:
        """A new connection, instead of the last one."""
        self._channel = ServerChannel[Sender](
            identity=self._identity,
            node=self.member.node,
            cluster_id=DESCRIPTION.cluster_id,
            view=DESCRIPTION.view,
            principal=DESCRIPTION.principal,
            entropy=bytes([next(self._nonces)]) * 32,
        )

    def hears(self, data: bytes) -> list[Any]:
        """Its answers to what these bytes ask; none if it closes the connection for them."""
        try:
            frames = self._channel.receive(data)
        except PeerFault:
            return []
        return [self._serves(frame.metadata) for frame in frames]

    def greets(self) -> bytes:
        return self._channel.pending_output()

    def _serves(self, metadata: bytes) -> Any:
        sender = self._channel.peer
        assert sender is not None
        message = REQUESTS.decode(metadata)
        return self._upkeep.step(MemoryStorage(), sender, message, b"", 0).reply


def session(identity: Identity, node: Node) -> ClientChannel:
    """A session with the node, once it has answered the greeting, if it does."""
    channel = ClientChannel(
        identity=identity,
        node=node.member.node,
        node_public_key=node.member.public_key,
        cluster_id=DESCRIPTION.cluster_id,
        view=DESCRIPTION.view,
        entropy=b"n" * 32,
    )
    node.hears(channel.opening())
    channel.receive(node.greets())
    return channel


def commands(identity: Identity, node: Node) -> list[Any]:
    """The answers to a command with this key."""
    try:
        channel = session(identity, node)
    except PeerFault:
        return []
    return node.hears(b"".join([*channel.confirmation(), *channel.seal_request(1, SLOW)]))


def test_the_administrator_is_obeyed() -> None:
    node = Node()
    [reply] = commands(NEW.administrator, node)
    assert isinstance(reply, UpkeepReply)
    assert node.throttle.rate_bytes == 2048


@pytest.mark.parametrize("identity", [LAPTOP, NEW.nodes[1], NEW.nodes[2]])
def test_clients_and_nodes_are_refused(identity: Identity) -> None:
    node = Node()
    [reply] = commands(identity, node)
    assert isinstance(reply, Refused)
    assert node.throttle.rate_bytes == RATE


@pytest.mark.parametrize("identity", [OTHER.administrator, Identity.generate(b"s" * 32)])
def test_other_clusters_administrators_are_strangers(identity: Identity) -> None:
    node = Node()
    assert commands(identity, node) == []
    assert node.throttle.rate_bytes == RATE


def repeated(node: Node, other: Node) -> list[Any]:
    """What nodes answer to a recorded session, to each part of it that may be cut out."""
    channel = session(NEW.administrator, node)
    opening = channel.opening()
    request = b"".join([*channel.confirmation(), *channel.seal_request(1, SLOW)])
    assert node.hears(request)
    for each in (node, other):
        each.throttle.set_rate(RATE)
    answers = node.hears(request)  # once more on the same connection
    for each in (node, other):
        for bytes_sent in (opening + request, request):
            each.accept()
            answers += each.hears(bytes_sent)
    return answers


def test_what_was_recorded_is_obeyed_nowhere() -> None:
    node, other = Node(2), Node(3)
    assert repeated(node, other) == []
    assert node.throttle.rate_bytes == other.throttle.rate_bytes == RATE


def test_what_a_lying_node_was_told_it_tells_no_other_node() -> None:
    """It has all keys that it shares with the administrator, and seals requests of its own."""
    liar, other = Node(2), Node(3)
    channel = session(NEW.administrator, liar)
    other.accept()
    other.hears(channel.opening())
    recorded = b"".join([*channel.confirmation(), *channel.seal_request(1, SLOW)])
    assert other.hears(recorded) == []
    assert other.throttle.rate_bytes == RATE


# --- must fail ----------------------------------------------------------------------------------


def test_must_fail_where_the_role_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    as_administrator = Sender(Role.ADMINISTRATOR, DESCRIPTION.clients[0].client)
    step = Upkeep.step
    monkeypatch.setattr(
        Upkeep, "step", lambda self, view, _, *rest: step(self, view, as_administrator, *rest)
    )
    node = Node()
    commands(LAPTOP, node)
    assert node.throttle.rate_bytes == 2048


def test_must_fail_where_a_session_has_nothing_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        noise._SymmetricState,
        "split",
        lambda _: (noise.CipherState(bytes(32)), noise.CipherState(bytes(32))),
    )
    node = Node()
    assert repeated(node, Node(NodeId(3)))
    assert node.throttle.rate_bytes == 2048
