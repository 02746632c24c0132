"""Requests that want something from peers are parked, share it, and are stepped again."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.conversation import Conversation, Receive, Send
from bftfs.engine import Engine
from bftfs.errors import DamagedRow
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.server import dispatcher
from bftfs.server.dispatcher import MOST_STEPS, RESUMED_AT_ONCE, Dispatcher, Incoming
from bftfs.server.shares import Shares
from bftfs.server.step import Ready, Role, Sender, Want
from bftfs.server.worker import look
from bftfs.storage import MemoryStorage, StorageView, Table, Write

PEER = NodeId(3)
NAME = ObjectId(bytes(32))


class Lookup:
    """Serves names from the store, and wants those that are not there from a peer."""

    def __init__(self) -> None:
        self.steps = 0
        self.supplies = True

    def step(
        self, view: StorageView, sender: Sender, message: Any, body: Any, now_us: int
    ) -> Ready:
        self.steps += 1
        value = view.get(Table.STATE, message)
        if value is None:
            return Ready(wants=(Want(message, lambda _: self.fetch(message)),))
        return Ready(value, bytes(body), [Write(Table.PAST, message, value)])

    async def fetch(self, name: bytes) -> Conversation[list[Write] | None]:
        await Send(PEER, name)
        delivery = await Receive(patience_us=100)
        if delivery is None:
            return None
        return [Write(Table.STATE, name, delivery.message)] if self.supplies else []


class Host:
    """A dispatcher on a memory store, whose peers the test plays."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes]] = []
        self.clock = 0
        self.engine = Engine(
            send=lambda node, number, message, body: self.asked.append((number, message)),
            now_us=lambda: 0,
            monotonic_us=lambda: self.clock,
            draw=lambda bound: 0,
        )
        self.server = Lookup()
        self.dispatcher = Dispatcher(servers={bytes: self.server}, engine=self.engine)
        self.store = MemoryStorage()
        self.numbers = 0

    def request(self, name: bytes, *, client: int = 0, body: Any = b"") -> None:
        self.numbers += 1
        sender = Sender(Role.CLIENT, ClientId(bytes([client]) * 16))
        self.dispatcher.handle(self.store, Incoming(client, sender, self.numbers, name, body), 0)

    def replies(self) -> list[tuple[int, Any]]:
        replies = [(answer.number, answer.message) for answer in self.dispatcher.outbox]
        self.dispatcher.outbox.clear()
        return replies

    def resume(self) -> None:
        self.dispatcher.resume(self.store, 0)


@pytest.fixture
def host() -> Host:
    return Host()


def test_a_request_is_answered_and_its_writes_show(host: Host) -> None:
    host.store.apply([Write(Table.STATE, b"a", b"1")])
    host.request(b"a")
    assert host.replies() == [(1, b"1")]
    assert host.store.get(Table.PAST, b"a") == b"1"
    assert host.dispatcher.parked == 0


def test_requests_that_want_the_same_share_it(host: Host) -> None:
    for _ in range(3):
        host.request(b"a")
    assert host.replies() == []
    assert host.asked == [(1, b"a")]
    assert host.dispatcher.parked == 3
    assert not host.dispatcher.has_supplies
    host.engine.deliver(PEER, 1, b"supplied")
    assert host.dispatcher.has_supplies
    host.resume()
    assert host.replies() == [(1, b"supplied"), (2, b"supplied"), (3, b"supplied")]
    assert host.server.steps == 6
    assert host.dispatcher.parked == 0
    assert not host.dispatcher.has_supplies


def longest_batch(host: Host) -> int:
    """How many requests a batch steps when what 100 have waited for has come."""
    for _ in range(100):
        host.request(b"a")
    host.engine.deliver(PEER, 1, b"supplied")
    told: list[bool] = []
    host.dispatcher.on_supply = lambda: told.append(True)
    answered = []
    while host.dispatcher.has_supplies:
        assert told or not answered, "the host is told that there is more"
        told.clear()
        parked = host.dispatcher.parked
        host.resume()
        answered.append(len(host.replies()))
        assert host.dispatcher.parked == parked - answered[-1]
    assert sum(answered) == 100
    assert host.dispatcher.parked_bytes() == {}
    return max(answered)


def test_what_was_collected_is_stepped_in_several_batches(host: Host) -> None:
    assert longest_batch(host) == RESUMED_AT_ONCE


def test_must_fail_where_all_is_stepped_at_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "RESUMED_AT_ONCE", 1_000)
    assert longest_batch(host) == 100


@pytest.mark.parametrize("is_asked", [True, False])
def test_who_is_revoked_gets_nothing_that_has_waited(host: Host, is_asked: bool) -> None:
    """Must fail where the host does not ask again: what has waited was of a client of then."""
    revoked: list[ClientId] = []
    host.dispatcher = Dispatcher(
        servers={bytes: host.server},
        engine=host.engine,
        admits=lambda sender: not is_asked or sender.client not in revoked,
    )
    host.request(b"a", client=1)
    host.request(b"a", client=2)
    revoked.append(ClientId(bytes([1]) * 16))
    host.engine.deliver(PEER, 1, b"supplied")
    host.resume()
    (_, first), (_, second) = host.replies()
    assert second == b"supplied"
    assert (first == b"supplied") != is_asked
    assert not is_asked or first == Refused(errno.EACCES, "no longer admitted")
    assert host.dispatcher.parked == 0


def test_the_body_of_a_parked_request_is_its_own(host: Host) -> None:
    buffer = bytearray(b"body")
    host.request(b"a", body=memoryview(buffer))
    buffer[:] = b"gone"
    host.engine.deliver(PEER, 1, b"supplied")
    host.resume()
    assert host.dispatcher.outbox[0].body == b"body"


def test_what_no_peer_supplies_is_refused_for_now(host: Host) -> None:
    host.request(b"a")
    host.clock = 100
    host.engine.expire()
    host.resume()
    ((_, refusal),) = host.replies()
    assert isinstance(refusal, Refused)
    assert refusal.code == errno.EAGAIN
    host.request(b"a")
    assert len(host.asked) == 2


def test_a_request_whose_wants_never_end_is_refused(host: Host) -> None:
    host.server.supplies = False
    host.request(b"a")
    for number in range(1, MOST_STEPS + 2):
        host.engine.deliver(PEER, number, b"useless")
        host.resume()
    ((_, refusal),) = host.replies()
    assert isinstance(refusal, Refused)
    assert host.server.steps == MOST_STEPS
    assert host.dispatcher.parked == 0


MOST = limits.PARKED_BYTES // limits.PARKED_REQUEST_BYTES
SURE = limits.PARKED_BYTES_SURE // limits.PARKED_REQUEST_BYTES


def test_one_principal_leaves_as_much_to_others(host: Host) -> None:
    for number in range(MOST):
        host.request(b"%d" % number)
    assert host.dispatcher.parked == MOST // 2
    assert all(isinstance(message, Refused) for _, message in host.replies())
    host.request(b"mine", client=1)
    assert host.replies() == []
    # Those that are served make room.
    host.request(b"another")
    assert len(host.replies()) == 1
    for number in (1, 2):
        host.engine.deliver(PEER, number, b"supplied")
    host.resume()
    assert len(host.replies()) == 2
    host.request(b"another")
    assert host.replies() == []


def provoke(host: Host, clients: int) -> None:
    """These clients have as many requests wait as they can, again and again."""
    for number in range(MOST):
        for client in range(1, clients + 1):
            host.request(b"%d of %d" % (number, client), client=client)
    host.replies()


def correct_ones_that_wait(host: Host) -> int:
    """How many requests of a client that comes late may wait."""
    for number in range(MOST):
        host.request(b"mine %d" % number)
    return MOST - len(host.replies())


@pytest.mark.parametrize("clients", [4, 64, 200])
def test_many_keys_that_provoke_syncs_leave_a_client_its_share(host: Host, clients: int) -> None:
    provoke(host, clients)
    assert correct_ones_that_wait(host) >= max(SURE, MOST // (2 * clients + 2))
    held = host.dispatcher.parked_bytes()
    assert sum(held.values()) <= limits.PARKED_BYTES + len(held) * limits.PARKED_BYTES_SURE


def test_keys_that_come_one_after_the_other_leave_a_client_its_share(host: Host) -> None:
    """Each takes as much as it can before the next one comes."""
    for client in range(1, 30):
        for number in range(MOST):
            host.request(b"%d of %d" % (number, client), client=client)
    host.replies()
    assert correct_ones_that_wait(host) == SURE


def test_must_fail_where_a_client_may_have_a_quarter(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quarter(self: Shares[Any], holder: Any, amount: int) -> bool:
        mine = self._held[holder] + amount
        if mine > self._most // 4 or self._total + amount > self._most:
            return False
        self._held[holder], self._total = mine, self._total + amount
        return True

    monkeypatch.setattr(Shares, "take", quarter)
    provoke(host, 4)
    assert correct_ones_that_wait(host) == 0


FRAGMENT = bytes(4 * limits.MIB)


def test_large_requests_that_wait_are_fewer(host: Host) -> None:
    """What waits is in memory: 256 fragments of 4 MiB would be a gibibyte."""
    for client in range(1, 5):
        for number in range(MOST):
            host.request(b"%d of %d" % (number, client), client=client, body=FRAGMENT)
    host.replies()
    assert host.dispatcher.parked * 4 * limits.MIB <= limits.PARKED_BYTES
    assert correct_ones_that_wait(host) >= SURE


def test_what_nobody_serves_is_refused(host: Host) -> None:
    sender = Sender(Role.CLIENT, ClientId(bytes(16)))
    host.dispatcher.handle(host.store, Incoming(0, sender, 9, "a string", b""), 0)
    ((number, refusal),) = host.replies()
    assert (number, refusal.code) == (9, errno.EOPNOTSUPP)


# --- rows that the disk has damaged ----------------------------------------------------------


class Rotten:
    """Every row of it that is looked at is damaged."""

    def step(self, *_: Any) -> Ready:
        raise DamagedRow(NAME, "rotten")


class Worker:
    """Looks at one row again and again, which is damaged `rotten` times."""

    def __init__(self, rotten: int) -> None:
        self.rotten = rotten
        self.looked = 0

    def look(self, _view: StorageView) -> int:
        self.looked += 1
        if self.looked <= self.rotten:
            raise DamagedRow(NAME, "rotten")
        return self.looked

    async def run(self, host: Any) -> Conversation[None]:
        await look(host, self.look)


def test_a_damaged_row_refuses_the_request_and_is_mended() -> None:
    told: list[bytes] = []
    host = Host()
    host.dispatcher = Dispatcher(
        servers={bytes: Rotten()}, engine=host.engine, on_damage=told.append
    )
    host.request(b"a")
    ((_, refusal),) = host.replies()
    assert isinstance(refusal, Refused)
    assert refusal.code == errno.EAGAIN
    assert "rotten" in refusal.reason
    assert told == [NAME]


def test_work_that_met_a_damaged_row_begins_anew() -> None:
    told: list[bytes] = []
    host, worker = Host(), Worker(rotten=2)
    host.dispatcher = Dispatcher(
        servers={}, engine=host.engine, background=(worker,), on_damage=told.append
    )
    for looked in (1, 2, 3):
        host.resume()
        assert worker.looked == looked
        assert not host.dispatcher.has_supplies
        host.clock += limits.HEAL_AGAIN_US
        host.engine.expire()
    assert told == [NAME, NAME]
    assert not host.dispatcher.has_supplies  # it has come to its end


def test_a_task_of_nobodys_that_meets_a_damaged_row_is_dropped() -> None:
    told: list[bytes] = []
    host = Host()
    host.dispatcher = Dispatcher(servers={}, engine=host.engine, on_damage=told.append)
    host.dispatcher.arrange(lambda *_: Rotten().step() and [])
    host.dispatcher.arrange(lambda *_: [Write(Table.STATE, b"a", b"1")])
    host.resume()
    assert told == [NAME]
    assert host.store.get(Table.STATE, b"a") == b"1"
