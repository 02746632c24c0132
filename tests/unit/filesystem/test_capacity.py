"""What there is room for, as nodes tell it of which some lie."""

from __future__ import annotations

import errno
from collections import deque
from typing import Any

import pytest

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.asking.refusal import Refused
from bftfs.conversation import Delivery, Now, Receive, Send, SendAll
from bftfs.envelope import HealthReply
from bftfs.errors import AdmissionRefused, QuorumUnavailable
from bftfs.filesystem.capacity import Capacity, ClusterCapacity
from bftfs.identifiers import NodeId
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds

QUORUMS = ThresholdQuorums(QueryUpdateThresholds.for_nodes(6, t=1, b=1))
SIZES = ReadWriteThresholds.for_nodes(6, t=1, b=1)  # m = 3


def told(accounts: dict[int, tuple[int, int] | Refused]) -> Capacity:
    """What the client makes of (used, free) of the nodes that answer."""
    conversation = ClusterCapacity(SIZES, Peers(QUORUMS), patience_total_us=10_000_000).capacity()
    arriving: deque[Delivery] = deque()
    answer: Any = None
    number = 0

    def send(node: NodeId) -> int:
        nonlocal number
        number += 1
        account = accounts.get(node)
        if isinstance(account, tuple):
            reply = HealthReply(1, 1, True, (), 40, *account, 5, 0, 0)
            arriving.append(Delivery(node, number, reply, b""))
        elif account is not None and number < 20:
            arriving.append(Delivery(node, number, account, b""))
        return number

    try:
        while True:
            match conversation.send(answer):
                case Now():
                    answer = 0
                case Send(node=node):
                    answer = send(node)
                case SendAll(requests=requests):
                    answer = [send(request.node) for request in requests]
                case Receive():
                    answer = arriving.popleft() if arriving else None
                case other:
                    raise AssertionError(other)
    except StopIteration as ended:
        found: Capacity = ended.value
        return found


def test_a_node_holds_a_part_of_each_block() -> None:
    assert told(dict.fromkeys(range(6), (10, 20))) == Capacity(30, 60, 5)


@pytest.mark.parametrize("lie", [(0, 0), (1 << 62, 1 << 62), (0, 1 << 62), (1 << 62, 0)])
@pytest.mark.parametrize("liar", range(6))
def test_one_liar_stays_within_correct_nodes_claims(lie: tuple[int, int], liar: int) -> None:
    accounts: dict[int, Any] = {node: (10 + node, 20 + node) for node in range(6)}
    accounts[liar] = lie
    used, free, _ = told(accounts)
    assert 30 <= used <= 45
    assert 60 <= free <= 75


def test_one_silent_busy_or_full_node_does_not_matter() -> None:
    accounts: dict[int, Any] = dict.fromkeys(range(1, 6), (10, 20))
    assert told(accounts) == Capacity(30, 60, 5)
    assert told({0: Refused(11, "busy"), **accounts}) == Capacity(30, 60, 5)
    assert told({0: (10, 0), **accounts}) == Capacity(30, 60, 5)


def test_too_few_are_no_answer() -> None:
    with pytest.raises(QuorumUnavailable, match="room on the nodes"):
        told(dict.fromkeys(range(4), (10, 20)))


def test_who_is_not_admitted_is_told_so() -> None:
    refused = Refused(errno.EACCES, "the cluster does not know this client's key")
    accounts: dict[int, Any] = dict.fromkeys(range(6), (10, 20))
    assert told({**accounts, 0: refused}) == Capacity(30, 60, 5)  # one liar says so
    with pytest.raises(AdmissionRefused, match="does not know"):
        told({**accounts, 0: refused, 1: refused})
