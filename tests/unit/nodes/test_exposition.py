"""The pages by which a supervisor decides: restart this node, or let another one be stopped."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

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
