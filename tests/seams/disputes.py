"""Nodes that refuse blocks, as they say or as they are full; and clients that ask no inode."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import pytest

from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.asking.refusal import Refused
from bftfs.query_update.client import QueryUpdateClient
from bftfs.read_write import permission
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.messages import ReadRequest, WriteRequest
from bftfs.server.step import Ready
from tests.seams.world import World


class Refusing:
    """A server that takes part in everything, and refuses all writes of blocks: no permission."""

    code = errno.EACCES
    request: type[WriteRequest | ReadRequest] = WriteRequest
    words = "the user may not write"

    def __init__(self, honest: Any) -> None:
        self._honest = honest

    def step(self, *arguments: Any) -> Any:
        if isinstance(arguments[2], self.request):
            return Ready(Refused(self.code, self.words))
        return self._honest.step(*arguments)


class Hiding(Refusing):
    """One that takes blocks, and shows none."""

    request = ReadRequest
    words = "the user may not read"


class Full(Refusing):
    """One whose disk is full."""

    code = errno.ENOSPC


class Reserved:
    """A correct server whose disk is full: it stores only what may use the reserve."""

    def __init__(self, honest: Any) -> None:
        self._honest = honest

    def step(self, *arguments: Any) -> Ready:
        ready: Ready = self._honest.step(*arguments)
        if ready.writes and not ready.uses_reserve:
            return Ready(Refused(errno.ENOSPC, "the disk is full"))
        return ready


def refusing(*nodes: int, kind: type[Refusing | Reserved] = Refusing) -> Callable[[World], None]:
    """Makes these nodes such servers."""

    def prepare(world: World) -> None:
        for number in nodes:
            node = world.nodes[number]

            def servers(node: Any = node) -> Any:
                honest = world.deployment.servers(node.node, begins_runs=False)
                for message, server in honest.items():
                    honest[message] = kind(server)  # type: ignore[index]
                return honest

            node.become(servers)

    return prepare


def without_asking(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Nobody who calls this method of `ReadWriteClient` asks the inode: the nodes' word counts."""
    original = getattr(ReadWriteClient, method)

    async def unasked(*arguments: Any, permit: Any = None, **options: Any) -> Any:
        del permit
        return await original(*arguments, **options)

    monkeypatch.setattr(ReadWriteClient, method, unasked)


def asking_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question goes to the usual quorum, and not to the nodes that refuse."""
    update = QueryUpdateClient.update

    async def anywhere(*arguments: Any, reaching: Nodes = NOBODY, **options: Any) -> Any:
        del reaching
        return await update(*arguments, **options)

    monkeypatch.setattr(QueryUpdateClient, "update", anywhere)


def far_away(world: World, nodes: Iterable[int], distance_us: int) -> None:
    """Messages from and to these nodes take so much longer than others."""
    for node in nodes:
        world.ways.distances_us[world.nodes[node].endpoint] = distance_us


def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attempt bears more silences than the first one."""
    monkeypatch.setattr(permission, "count", repeat)
