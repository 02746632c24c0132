"""From message to reply, in the one order that is safe: step, commit, send.

The dispatcher is sans-IO: a node hosts it on LMDB and sockets, the simulator on a simulated disk
and network. Its host collects what has arrived into a batch, and for each batch

1. opens the store, calls `resume` and then `handle` for every message,
2. commits what they wrote,
3. and only then sends what `outbox` holds.

A request that wants something from peers is parked, and stepped again from the beginning when it
has come: nothing of the first attempt is kept. Requests that want the same thing share it.
Principals have fair shares of the memory and the conversations that this takes. Of those whose
wants have come a batch steps a few, so that it does not get long by what somebody has collected.

Concurrency: one thread. `handle` and `resume` run inside a batch; the completion of a wanted
conversation may come at any time, and only queues its writes for the next batch.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.crypto.digest import Body
from bftfs.engine import Engine
from bftfs.errors import DamagedRow
from bftfs.identifiers import ClientId, ObjectId
from bftfs.server.shares import Shares
from bftfs.server.step import Background, Role, Sender, Server, Task, Want
from bftfs.server.worker import carry_on
from bftfs.storage import StorageView, Write

_CLIENT = Role.CLIENT  # a member of a class takes longer to find
MOST_STEPS = 8  # of one request: the first one, and one after each want
RESUMED_AT_ONCE = 32  # requests that waited for peers, in one batch


class BatchView(StorageView, Protocol):
    """A view of the store that takes writes; they become visible at once, durable at commit."""

    def apply(self, writes: list[Write]) -> None:
        """Apply `writes` in order."""


class Incoming(msgspec.Struct, gc=False):
    """A request; `steps` counts its attempts, and `size` is that of the encoded message."""

    origin: Any  # whatever the host needs to send the reply
    sender: Sender
    number: int
    message: Any
    body: Body
    steps: int = 0
    size: int = 0


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A reply that may be sent once the batch is committed."""

    origin: Any
    number: int
    message: Any
    body: Body


class Dispatcher:
    """Serves requests with the protocols' servers, on whatever store and network its host has.

    The host of `background` work, which begins at once and runs on the same engine.
    """

    def __init__(
        self,
        *,
        servers: Mapping[type, Server],
        engine: Engine,
        background: Iterable[Background] = (),
        on_damage: Callable[[ObjectId], None] = lambda _object: None,
        is_full: Callable[[], bool] = lambda: False,
        admits: Callable[[Sender], bool] = lambda _sender: True,
    ) -> None:
        """`on_damage` is told of objects whose rows cannot be read, `is_full` tells of the disk.

        `admits` tells of senders, whose right may have been taken while their requests waited.
        """
        self._servers = servers  # by message class
        self._engine = engine
        self._waiting: dict[bytes, list[Incoming]] = {}  # by the key of what they want
        self._supplied: deque[tuple[bytes, list[Write] | None]] = deque()
        self._ready: deque[Incoming] = deque()  # parked, and what they want has been supplied
        self._shares: Shares[ClientId] = Shares(limits.PARKED_BYTES, limits.PARKED_BYTES_SURE)
        self.parked = 0
        self.outbox: list[Outgoing] = []
        self.on_supply: Callable[[], None] = lambda: None  # tells the host that a batch is due
        self.foreground_us = 0  # when a client last asked for something
        self.lost = 0  # batches that were not committed; the host counts them
        self._is_full = is_full
        self._admits = admits
        self._tasks: deque[Task] = deque()
        self._on_damage = on_damage
        for each in background:
            engine.start(carry_on(self, each.run), _raise_failure)

    @property
    def has_supplies(self) -> bool:
        """True if the next batch has something to do besides new requests."""
        return bool(self._supplied or self._ready or self._tasks)

    @property
    def full(self) -> bool:
        """True while the disk is full: only the reserve is left."""
        return self._is_full()

    def arrange(self, task: Task) -> None:
        """Run `task` as a step of the next batch."""
        self._tasks.append(task)
        self.on_supply()

    def note_damage(self, damage: DamagedRow) -> None:
        """Report a damaged row to the healer."""
        self._on_damage(ObjectId(damage.object))

    def parked_bytes(self) -> Counter[ClientId]:
        """What the parked requests of each principal count as."""
        found: Counter[ClientId] = Counter()
        for waiting in (*self._waiting.values(), self._ready):
            for request in waiting:
                found[request.sender.client] += _parked_as(request)
        return found

    def handle(self, batch: BatchView, request: Incoming, now_us: int) -> bool:
        """Step one request. True if its reply is in `outbox`; it may be in that of a later batch.

        If the batch is lost, the request may be handled again in another one.
        """
        if request.sender.role is _CLIENT:
            self.foreground_us = now_us
        request.steps = 0
        return self._step(batch, request, now_us)

    def resume(self, batch: BatchView, now_us: int) -> None:
        """Apply what was supplied since the last batch, and step the requests that waited for it.

        Tasks come first: a supply may rest on one of them.
        """
        if not self.has_supplies:
            return
        for _ in range(len(self._tasks)):
            try:
                batch.apply(self._tasks.popleft()(batch, now_us))
            except DamagedRow as damage:
                self.note_damage(damage)
        for _ in range(len(self._supplied)):
            key, writes = self._supplied.popleft()
            waiting = self._waiting.pop(key, [])
            if writes is None:
                for request in waiting:
                    self._unpark(request)
                    self._refuse(request, errno.EAGAIN, "peers did not supply what the node lacks")
                continue
            self._ready += waiting
            batch.apply(writes)
        for _ in range(min(len(self._ready), RESUMED_AT_ONCE)):
            request = self._ready.popleft()
            self._unpark(request)
            if self._admits(request.sender):
                self._step(batch, request, now_us)
            else:
                self._refuse(request, errno.EACCES, "no longer admitted")
        if self._ready:
            self.on_supply()

    def _unpark(self, request: Incoming) -> None:
        self.parked -= 1
        self._shares.give_back(request.sender.client, _parked_as(request))

    def _step(self, batch: BatchView, request: Incoming, now_us: int) -> bool:
        """True if the reply is in `outbox`."""
        message = request.message
        server = self._servers.get(type(message))
        if server is None:
            return self._refuse(request, errno.EOPNOTSUPP, "no such request")
        request.steps += 1
        try:
            ready = server.step(batch, request.sender, message, request.body, now_us)
        except DamagedRow as damage:
            self.note_damage(damage)
            return self._refuse(request, errno.EAGAIN, str(damage)[:256])
        if ready.writes:
            batch.apply(ready.writes)
        if ready.wants:
            return self._park(batch, request, ready.wants[0])
        if ready.reply is None:  # a correct server always replies
            return False
        self.outbox.append(Outgoing(request.origin, request.number, ready.reply, ready.body))
        return True

    def _park(self, batch: BatchView, request: Incoming, want: Want) -> bool:
        if request.steps >= MOST_STEPS:
            return self._refuse(request, errno.EAGAIN, "what the node lacks keeps changing")
        if not self._shares.take(request.sender.client, _parked_as(request)):
            return self._refuse(request, errno.EAGAIN, "too many of your requests wait for peers")
        # The body may lie in a buffer that the host uses again for the next batch.
        request.body = bytes(request.body)
        self.parked += 1
        waiting = self._waiting.get(want.key)
        if waiting is not None:
            waiting.append(request)
            return False
        self._waiting[want.key] = [request]
        key = want.key
        self._engine.start(want.fetch(batch), lambda writes, _error: self._supply(key, writes))
        return False

    def _supply(self, key: bytes, writes: list[Write] | None) -> None:
        self._supplied.append((key, writes))
        self.on_supply()

    def _refuse(self, request: Incoming, code: int, reason: str) -> bool:
        self.outbox.append(Outgoing(request.origin, request.number, Refused(code, reason), b""))
        return True


def _parked_as(request: Incoming) -> int:
    """How many bytes of its principal's share a parked request takes."""
    return limits.PARKED_REQUEST_BYTES + request.size + len(request.body)


def _raise_failure(_: None, error: BaseException | None) -> None:
    """Workers handle the failures of peers: any exception that escapes is a programming error."""
    if error is not None:
        raise error
