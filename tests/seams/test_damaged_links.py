"""Bits that flip on the way end the connection, whatever they say; and a link that is always
damaged is not made again and again as fast as possible.

A node process behind a proxy that damages what it carries.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bftfs.conversation import Conversation, Receive, Send
from bftfs.identifiers import NodeId
from bftfs.runtime.blocking import BlockingNetwork
from bftfs.runtime.links import Links, NodeLink
from bftfs.wire.channel import MAGIC
from tests.integration.counting import REPLIES, Counted, Increment
from tests.integration.deployment import Deployment

ZERO = NodeId(0)
BALLAST = bytes(20_000)
ANSWERED_S = 20
HAMMERED_S = 5
Damage = Callable[[bytearray, bool], None]


class Proxy:
    """Takes the place of a node's socket; `damage` changes what it carries, in one direction."""

    def __init__(self, path: Path, damage: Damage) -> None:
        self.accepted = 0
        self.damage = damage
        self._behind = path.with_suffix(".behind")
        path.rename(self._behind)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.accepted += 1
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._behind))
                for ends in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, requests: bool) -> None:
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(1 << 20)):
                self.damage(data, requests)
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "cluster", module="tests.integration.counting_node")
    deployment.start([0])
    yield deployment
    deployment.close()


def network(node: Deployment) -> BlockingNetwork:
    return BlockingNetwork(node.description, node.clients[0], decode=REPLIES.decode)


async def insist(ballast: bytes, patience_s: float = ANSWERED_S) -> Conversation[Any]:
    """Ask until there is an answer, more and more seldom."""
    ends, patience_us = time.monotonic() + patience_s, 100_000
    while time.monotonic() < ends:
        await Send(ZERO, Increment(b"c", 1, ballast))
        delivery = await Receive(patience_us)
        if delivery is not None:
            return delivery.message
        patience_us = min(2 * patience_us, 2_000_000)
    return None


class LongerThanItIs:
    """Flips one bit of one frame's head: its body is 4 MiB, or its metadata 2 MiB, longer."""

    def __init__(self, *, of_request: bool, position: int, bit: int) -> None:
        self.flipped = False
        self._of_request, self._position, self._bit = of_request, position, bit

    def __call__(self, data: bytearray, requests: bool) -> None:
        if self.flipped or requests is not self._of_request or data.startswith(MAGIC):
            return
        data[self._position] ^= self._bit
        self.flipped = True


@pytest.mark.parametrize("of_request", [True, False])
@pytest.mark.parametrize(("position", "bit"), [(13, 0x40), (9, 0x20)])
def test_a_damaged_length_ends_the_connection(
    node: Deployment, of_request: bool, position: int, bit: int
) -> None:
    damage = LongerThanItIs(of_request=of_request, position=position, bit=bit)
    proxy = Proxy(node.node(0).socket, damage)
    with network(node) as blocking:
        assert isinstance(blocking.perform(insist(b"")), Counted), "the link is dead"
    assert damage.flipped
    proxy.close()


def connections(node: Deployment, *, small_ones_pass: bool) -> int:
    """How often a client connects in 5 s whose every request of some size is damaged."""

    def damage(data: bytearray, requests: bool) -> None:
        if requests and len(data) > len(BALLAST) // 2:
            data[len(data) // 2] ^= 1

    proxy = Proxy(node.node(0).socket, damage)
    with network(node) as blocking:

        async def hammer() -> Conversation[None]:
            ends = time.monotonic() + HAMMERED_S
            while time.monotonic() < ends:
                if small_ones_pass:
                    await Send(ZERO, Increment(b"c", 1, b""))
                    await Receive(10_000)
                await Send(ZERO, Increment(b"c", 1, BALLAST))
                await Receive(10_000)

        blocking.perform(hammer())
        made = proxy.accepted
        proxy.damage = lambda *_: None
        assert isinstance(blocking.perform(insist(b"x")), Counted), "it is barred"
    proxy.close()
    return made


@pytest.mark.parametrize("small_ones_pass", [False, True])
def test_a_link_that_damages_much_is_made_seldom(node: Deployment, small_ones_pass: bool) -> None:
    assert connections(node, small_ones_pass=small_ones_pass) < 12


def test_must_fail_where_a_greeting_is_enough(
    node: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Links._open

    def forgiving(self: Links, link: NodeLink) -> None:
        opened(self, link)
        link.failures = 0

    monkeypatch.setattr(Links, "_open", forgiving)
    assert connections(node, small_ones_pass=False) > 50
