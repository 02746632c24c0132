"""Principals take turns at a node, however many connections each has."""

from __future__ import annotations

from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.envelope import DescriptionReply
from bftfs.limits import MIB
from bftfs.runtime import clock
from bftfs.server.dispatcher import Incoming, Outgoing
from nodes import loop
from nodes.connections import (
    BYTES_PER_US,
    REQUESTS_PER_TURN,
    TIME_PER_TURN_US,
    Account,
    Turn,
    Turns,
)
from nodes.loop import BATCH_BYTES, Batches
from nodes.store_directory import MapFull


def test_a_principal_has_so_many_requests_in_a_turn() -> None:
    greedy, modest = Account(), Account()
    turn = Turn(1, 2, 0)
    for _ in range(REQUESTS_PER_TURN):
        assert turn.goes_on(greedy)
    assert not turn.goes_on(greedy)
    assert turn.goes_on(modest)
    assert Turn(2, 1, 0).goes_on(greedy)


def test_time_counts_while_others_wait() -> None:
    greedy, modest = Account(), Account()
    turn = Turn(1, 2, 0)
    assert turn.goes_on(greedy)
    turn.charge(greedy, TIME_PER_TURN_US, 0)
    assert not turn.goes_on(greedy)
    assert turn.goes_on(modest)
    alone = Turn(2, 1, 0)
    assert alone.goes_on(greedy)
    alone.charge(greedy, TIME_PER_TURN_US, 0)
    assert alone.goes_on(greedy)


class Metadata(bytes):
    """Encoded messages of no length, which take a time to be stepped."""

    def __new__(cls, each_us: int) -> Metadata:
        made = super().__new__(cls)
        made.each_us = each_us
        return made

    each_us: int


class _Served:
    """Batches of which nothing but the turns is real; requests take as long as they say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_us = 0
        monkeypatch.setattr(clock, "monotonic_us", lambda: self.now_us)
        self.log: list[Any] = []
        self.reply: Any = None
        outbox: list[Outgoing] = []
        self.connections: Any = SimpleNamespace(backlogged=[])
        self.dispatcher: Any = SimpleNamespace(outbox=outbox, handle=self._handle)
        self.tally: Any = SimpleNamespace(requests=Counter(), batches=0)
        unused: Any = None
        self.batches = Batches(
            connections=self.connections,
            decode=lambda metadata: metadata.each_us,
            dispatcher=self.dispatcher,
            store=unused,
            room=unused,
            tally=self.tally,
        )

    def _handle(self, _batch: Any, request: Incoming, _now_us: int) -> bool:
        self.now_us += request.message
        self.log.append(request.origin)
        self.dispatcher.outbox.append(Outgoing(request.origin, 0, self.reply, b""))
        return True

    def connection(
        self, account: Account, requests: int, *, each_us: int = 0, body: bytes = b""
    ) -> Any:
        frames = [SimpleNamespace(number=0, metadata=Metadata(each_us), body=body)] * requests
        connection: Any = SimpleNamespace(
            account=account,
            sender=object(),
            socket=object(),
            waiting=True,
            backlog=deque(frames),
            backlog_bytes=0,
            output=SimpleNamespace(size=0),
        )
        self.connections.backlogged.append(connection)
        return connection

    def turn(self) -> Counter[int]:
        """How many requests of each connection are stepped in one turn."""
        self.log.clear()
        self.dispatcher.outbox.clear()
        self.tally.batches += 1
        batch: Any = SimpleNamespace(writes=[])
        self.batches._step_backlogs(batch, [])
        return Counter(map(id, self.log))


def test_many_connections_are_no_larger_share(monkeypatch: pytest.MonkeyPatch) -> None:
    served = _Served(monkeypatch)
    mallory, alice = Account(), Account()
    flood = [served.connection(mallory, 1_000) for _ in range(16)]
    victim = served.connection(alice, 10)
    stepped = served.turn()
    assert stepped[id(victim)] == 10
    assert sum(stepped[id(each)] for each in flood) == REQUESTS_PER_TURN


def test_expensive_requests_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    served = _Served(monkeypatch)
    costly = served.connection(Account(), 100, each_us=TIME_PER_TURN_US // 4)
    victim = served.connection(Account(), 10, each_us=10)
    stepped = served.turn()
    assert stepped[id(costly)] == 2
    assert stepped[id(victim)] == 10


def test_all_that_wait_have_the_same_share_of_a_turns_time(monkeypatch: pytest.MonkeyPatch) -> None:
    served = _Served(monkeypatch)
    costly = [served.connection(Account(), 100, each_us=200) for _ in range(4)]
    victim = served.connection(Account(), 10, each_us=10)
    stepped = served.turn()
    assert [stepped[id(each)] for each in costly] == [4] * 4
    assert stepped[id(victim)] == 10
    assert served.now_us <= TIME_PER_TURN_US


def test_connections_of_one_principal_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    served = _Served(monkeypatch)
    account = Account()
    first, second = (served.connection(account, 1_000) for _ in range(2))
    assert served.turn() == {id(first): REQUESTS_PER_TURN}
    assert served.turn() == {id(second): REQUESTS_PER_TURN}
    assert served.turn() == {id(first): REQUESTS_PER_TURN}


def shares_of(
    monkeypatch: pytest.MonkeyPatch, turns: int, each_us: int = 0
) -> tuple[int, int, list[int]]:
    """What a principal with 16 connections gets, one with a connection, and when it was served."""
    served = _Served(monkeypatch)
    mallory, alice = Account(), Account()
    body = bytes(BATCH_BYTES // 2 + 1)
    flood = [served.connection(mallory, 100, each_us=each_us, body=body) for _ in range(16)]
    victim = served.connection(alice, 100, each_us=each_us, body=body)
    total: Counter[int] = Counter()
    served_in: list[int] = []
    for number in range(turns):
        stepped = served.turn()
        served_in += [number] * stepped[id(victim)]
        total += stepped
    return sum(total[id(each)] for each in flood), total[id(victim)], served_in


def test_large_requests_over_many_connections_are_no_larger_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of them fill a batch: who has been served least comes first in the next one."""
    flood, victim, _ = shares_of(monkeypatch, 40)
    assert abs(flood - victim) <= 4  # a turn has two, and the first one has no order
    flood, victim, _ = shares_of(monkeypatch, 40, each_us=TIME_PER_TURN_US)
    assert abs(flood - victim) <= 4  # a turn has two, and the first one has no order


def test_must_fail_where_connections_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Turns.begin

    def unordered(self: Turns, waiting: list[Any], now_us: int) -> Turn:
        return begin(self, list(waiting), now_us)

    monkeypatch.setattr(Turns, "begin", unordered)
    flood, victim, _ = shares_of(monkeypatch, 40)
    assert flood > 10 * victim


def replies_of_a_turn(monkeypatch: pytest.MonkeyPatch, connections: int) -> int:
    """How many answers of 3 MiB a turn has for connections of one principal, which is alone."""
    served = _Served(monkeypatch)
    served.reply = DescriptionReply(bytes(3 * MIB), b"")
    account = Account()
    for _ in range(connections):
        served.connection(account, REQUESTS_PER_TURN)
    return sum(served.turn().values())


def test_large_answers_fill_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert replies_of_a_turn(monkeypatch, 1) == 1, "the peer has to take one before the next"
    assert replies_of_a_turn(monkeypatch, 16) == 3


def test_must_fail_where_bodies_alone_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "bulk_of", lambda _: 0)
    assert replies_of_a_turn(monkeypatch, 16) == REQUESTS_PER_TURN


def test_who_was_away_has_saved_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    served = _Served(monkeypatch)
    busy, sleeper = Account(), Account()
    other = served.connection(Account(), 100_000)
    steady = served.connection(busy, 1_000, each_us=TIME_PER_TURN_US)
    for _ in range(20):
        served.turn()
    late = served.connection(sleeper, 1_000, each_us=TIME_PER_TURN_US)
    total: Counter[int] = Counter()
    for _ in range(20):
        total += served.turn()
    assert other.backlog
    assert abs(total[id(steady)] - total[id(late)]) <= 1


def test_bytes_count_as_time() -> None:
    account, other = Account(), Account()
    turn = Turn(1, 2, 0)
    turn.charge(other, 10, 0)
    assert other.served_us == 0, "all were served in the last turn"
    turn.is_ordered = True
    turn.charge(account, 20, 5 * BYTES_PER_US)
    turn.charge(other, 20, 0)
    assert (account.served_us, other.served_us) == (15, 0)


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    served = _Served(monkeypatch)
    connections = [served.connection(Account(), 300, each_us=100) for _ in range(5)]
    total: Counter[int] = Counter()
    for _ in range(100):
        total += served.turn()
    assert all(total[id(each)] == 300 for each in connections)
    assert not any(each.waiting for each in connections)


def test_steps_that_begin_anew_twice_lose_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    served = _Served(monkeypatch)
    batch: Any = SimpleNamespace(writes=1)
    sender: Any = None
    arrivals = [Incoming(served.connection(Account(), 0), sender, at, 0, b"") for at in range(3)]
    origins = [each.origin for each in arrivals]
    step = served.dispatcher.handle
    faults = iter((MapFull(), None, None, None))

    def handle(batch: Any, request: Incoming, now_us: int) -> bool:
        if request.origin is origins[1] and (fault := next(faults)) is not None:
            raise fault
        return bool(step(batch, request, now_us))

    served.dispatcher.handle = handle
    with pytest.raises(MapFull):
        served.batches._step_again(batch, arrivals)
    served.log.clear()
    assert served.batches._step_again(batch, arrivals) == 0
    assert served.log == origins
