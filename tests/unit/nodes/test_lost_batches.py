"""A node's own work does not count as stored what was in a batch that the store has dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.engine import Engine
from bftfs.identifiers import NodeId
from bftfs.limits import MIB
from bftfs.server.dispatcher import Dispatcher
from bftfs.server.room import Room
from bftfs.server.step import Host
from bftfs.server.worker import is_stored, step
from bftfs.storage import Table, Write
from nodes.connections import Turns
from nodes.loop import Batches
from nodes.metrics import LoopTally
from nodes.store import Store

KEY = b"key"
VALUE = bytes(4 * MIB)  # more than is mapped


class Node:
    """The batches of a node that nobody asks for anything."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.kept: list[bool] = []
        engine = Engine(
            send=lambda *_: None, now_us=lambda: 0, monotonic_us=lambda: 0, draw=lambda _: 0
        )
        connections: Any = SimpleNamespace(
            dismiss=lambda: None, send=lambda _outbox: None, backlogged=[]
        )
        unused: Any = None
        self.dispatcher = Dispatcher(servers={}, engine=engine)
        self.batches = Batches(
            connections=connections,
            decode=unused,
            dispatcher=self.dispatcher,
            store=store,
            room=Room(),
            tally=LoopTally(),
            turns=Turns(),
        )
        engine.start(self._work(self.dispatcher), self._ended)

    async def _work(self, host: Host) -> None:
        """Write until it is stored."""
        while not self.kept or not self.kept[-1]:
            lost = host.lost
            await step(host, lambda _view: (None, [Write(Table.STATE, KEY, VALUE)]))
            self.kept.append(await is_stored(host, lost))

    def _ended(self, _result: Any, error: BaseException | None) -> None:
        assert error is None

    def serve(self) -> None:
        while self.dispatcher.has_supplies:
            self.batches.serve()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "store", cluster=bytes(16), node=NodeId(0), map_bytes=2 * MIB)
    yield store
    store.close()


def test_what_was_in_a_batch_that_the_store_has_dropped_is_not_stored(store: Store) -> None:
    node = Node(store)
    node.serve()
    assert node.kept[0] is False, "the first batch made the store map more"
    assert node.kept[-1]
    with store.batch() as view:
        assert view.get(Table.STATE, KEY) == VALUE
