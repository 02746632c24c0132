"""The pages by which a supervisor decides: restart this node, or let another one be stopped."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from bftfs.crypto.digest import DIGEST_BYTES
from bftfs.envelope import Decision, HealthFigure, HealthReply
from bftfs.identifiers import CLIENT_ID_BYTES, OBJECT_ID_BYTES, ClientId, ObjectId
from nodes.metrics import Exposition, LoopTally, NodeCollector


@dataclass
class Node:
    """What the pages look at."""

    healthy: bool = True
    whole: bool = True
    turns: bool = True

    def call(self, function: Callable[[], None], patience_s: float) -> None:
        if not self.turns:
            raise TimeoutError


@pytest.fixture
def node() -> Node:
    return Node()


@contextmanager
def exposition_of(node: Node) -> Iterator[Exposition]:
    """The pages of this node; no thread serves them."""
    health: Any = lambda: node  # noqa: E731
    collector = NodeCollector(LoopTally(), health, tuple)
    with Exposition(socket.socket(), collector, is_whole=lambda: node.whole) as exposition:
        exposition._call = node.call
        yield exposition


@pytest.fixture
def exposition(node: Node) -> Iterator[Exposition]:
    with exposition_of(node) as exposition:
        yield exposition


def test_a_node_lives_while_its_loop_turns(node: Node, exposition: Exposition) -> None:
    node.healthy = node.whole = False  # no reason to start it again
    assert exposition.page("/live")[0] == 200
    node.turns = False
    assert exposition.page("/live")[0] == 503


def test_a_node_is_ready_if_others_may_be_stopped(node: Node, exposition: Exposition) -> None:
    assert exposition.page("/ready")[0] == 200
    node.whole = False
    assert exposition.page("/ready")[0] == 503
    node.whole, node.healthy = True, False
    assert exposition.page("/ready")[0] == 503


def test_another_page_is_not_there(exposition: Exposition) -> None:
    status, _, content = exposition.page("/")
    assert status == 404
    assert b"/live" in content


def test_a_report_in_which_nothing_is_missing_is_shown() -> None:
    """Also one that tells of decisions to let history go, and of other descriptions."""
    client = ClientId(bytes(range(CLIENT_ID_BYTES)))
    report = HealthReply(
        pid=1,
        uptime_us=1,
        healthy=False,
        reasons=("its disk is full",),
        store_bytes=1,
        used_bytes=1,
        free_bytes=1,
        objects=1,
        requests=1,
        memory_bytes=1,
        background=(HealthFigure("bftfs_members", 6.0),),
        description_serial=1,
        description_digest=b"d" * DIGEST_BYTES,
        other_descriptions=(b"e" * DIGEST_BYTES,),
        ahead=(ObjectId(b"o" * OBJECT_ID_BYTES),),
        let_go=(Decision(1, 2, 3, client, 0), Decision(1, 700, 4, None, 0)),
    )
    assert all(getattr(report, name) not in (0, (), b"") for name in report.__struct_fields__[3:])
    collector = NodeCollector(LoopTally(), lambda: report, tuple)
    with Exposition(socket.socket(), collector, is_whole=lambda: True) as exposition:
        status, _, content = exposition.page("/health")
    shown = json.loads(content)
    assert status == 503
    assert shown.keys() == set(report.__struct_fields__)
    assert shown["let_go"][0] == {
        "before_s": 1,
        "signed_s": 2,
        "number": 3,
        "client": client.hex(),
        "since_s": 0,
    }
    assert shown["other_descriptions"] == [(b"e" * DIGEST_BYTES).hex()]
