"""Nodes that misbehave whatever the protocol: silent, slow, forgetful, two-faced, noisy."""

from __future__ import annotations

import errno
import hashlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from bftfs.asking.refusal import Refused
from bftfs.conversation import Conversation, Pause, Send
from bftfs.server.step import Ready, Want
from bftfs.simulation.byzantine.positions import Asked, NodeAdversary, NodePosition, mutated
from bftfs.storage import MemoryStorage, StorageView, Table, Write
from bftfs.wire.codec import encode

_SECOND_US = 1_000_000
_LAST_KEY = b"\xff" * 512  # above every key of a store


class Mute(NodeAdversary):
    """Keeps silent: now and then, or always towards some.

    [PASIS §3.4.3.2] "a client can wait for no more than N - t responses"; [Q/U §4.3.5] "If
    responses from the preferred quorum are not received in a timely fashion, the client sends
    requests to additional servers." Shown by progress.
    """

    chances = (0.2, 0.9, 1.0)

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        self._works = position.random.random() < 0.5  # it serves requests, and sends no reply

    def answer(self, asked: Asked) -> Ready:
        """Often, give no answer."""
        if not self.misbehaves():
            return self.honest(asked)
        return Ready(writes=self.honest(asked).writes) if self._works else Ready()


class Slow(NodeAdversary):
    """Answers correctly, long after everybody has stopped waiting.

    [Q/U §4.3.1] "no assumptions are made about the duration of message transmission delays". Shown
    by progress, and by linearizability and serializability: a late answer is an answer to a request
    that was made in another situation.
    """

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        self._most_us = position.random.choice((20_000, 500_000, 5_000_000))

    def answer(self, asked: Asked) -> Ready:
        """Want a pause first; the host steps the message again after it."""
        if not self.is_new(asked.message):
            return self.honest(asked)
        return self.after(Pause(self.random.randrange(self._most_us)))


class Amnesiac(NodeAdversary):
    """Acknowledges what it does not keep, so that it answers from an old state.

    [PASIS §3.4.4] a complete write is hosted by QC benign nodes, whatever b others do; [Q/U §4.3.3]
    (4.3) an established candidate is always seen. Shown by durability and serializability.
    """

    chances = (0.3, 1.0)

    def answer(self, asked: Asked) -> Ready:
        """The right answer, and nothing written."""
        ready = self.honest(asked)
        if ready.writes and self.misbehaves():
            ready.writes = []
        return ready


class Rewound(NodeAdversary):
    """Correct, but its machine loses power now and then: it comes back as it was within the second.

    Its disk ignores syncs: so the node does not know that it has forgotten something. [Q/U §4.3.3]
    (4.3) and [PASIS §3.4.4] (3.1) tolerate b nodes that have forgotten what they acknowledged.
    Shown by durability and serializability.
    """

    chances = (0.01, 0.1)

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        # When something was stored, and what was there before.
        self._stored: deque[tuple[int, list[Write]]] = deque(maxlen=4_096)

    def answer(self, asked: Asked) -> Ready:
        """The right answer; or none, since the machine starts again."""
        stored, since_us = self._stored, asked.now_us - _SECOND_US
        while stored and stored[0][0] < since_us:
            stored.popleft()
        if stored and self.misbehaves():
            synced_us = self.random.randint(since_us, asked.now_us)
            undone: list[Write] = []
            while stored and stored[-1][0] >= synced_us:
                undone += stored.pop()[1]
            return Ready(writes=undone)
        ready = self.honest(asked)
        if ready.writes:
            before = [
                Write(write.table, write.key, asked.view.get(write.table, write.key))
                for write in reversed(ready.writes)
            ]
            stored.append((asked.now_us, before))
        return ready


class Replayer(NodeAdversary):
    """Answers with what it said earlier, to somebody else, about something else.

    [Q/U §4.3.5] repeated requests and stale histories; [PASIS §3.4.2.3] "HASH(CC) against
    LT.Verifier". Answers of an earlier time are true, which makes this the liar that is hardest to
    convict. Shown by linearizability and serializability.
    """

    chances = (0.1, 0.7)

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        self._said: dict[type, deque[tuple[Any, bytes]]] = {}

    def answer(self, asked: Asked) -> Ready:
        """An old answer in place of the new one."""
        ready = self.honest(asked)
        if ready.reply is None:
            return ready
        said = self._said.setdefault(type(asked.message), deque(maxlen=64))
        if said and self.misbehaves():
            ready.reply, ready.body = self.random.choice(said)
        else:
            said.append((ready.reply, bytes(ready.body)))
        return ready


class Equivocator(NodeAdversary):
    """Keeps two stores, each consistent, and shows one to each half of the others.

    [Q/U §4.3.3] (4.4): established and potential candidates meet at a benign server, so that two
    histories of one object cannot both be established. [PASIS §3.4.4] (3.4) b liars fabricate
    nothing that is repairable. Shown by serializability, candidates and linearizability.
    """

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        self._salt = position.random.randbytes(8)
        self._lives: dict[int, MemoryStorage] = {}

    def answer(self, asked: Asked) -> Ready:
        """Do what a correct node would do that only this half of the others had used."""
        digest = hashlib.blake2b(asked.sender.client, key=self._salt, digest_size=1).digest()
        life = self._lives.get(digest[0] & 1)
        if life is None:
            life = self._lives[digest[0] & 1] = copy_of(asked.view)
        ready = self.honest(asked._replace(view=life))
        life.apply(ready.writes)
        ready.writes = []
        ready.wants = tuple(_supplying(want, life) for want in ready.wants)
        return ready


class Garbler(NodeAdversary):
    """Sends bytes that are nearly a message.

    [architecture §6] whatever does not decode to a declared message is dropped on arrival, and its
    sender counts as silent. Shown by progress.
    """

    chances = (0.2, 1.0)

    def answer(self, asked: Asked) -> Ready:
        """Damage the right answer."""
        ready = self.honest(asked)
        if ready.reply is not None and self.misbehaves():
            ready.reply = mutated(encode(ready.reply), self.random)
        return ready


class FloodingNode(NodeAdversary):
    """Answers, and besides sends every other node what it was sent, again and again.

    [design §3] "Requests are bound to cluster, sender, receiver and request id: a replay is
    harmless". What a node repeats of others' requests has no author's authority, and convinces the
    others of no histories: it was sent its own entries only. Shown by serializability,
    linearizability and progress.
    """

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        self._copies = position.random.choice((1, 5))

    def answer(self, asked: Asked) -> Ready:
        """First flood, then answer."""
        if asked.sender.node is not None or not self.is_new(asked.message):
            return self.honest(asked)
        payload = bytes(asked.body)
        flood = [Send(node, asked.message, payload) for node in self.others()]
        return self.after(*(each for each in flood for _ in range(self._copies)))


class InsaneClock(NodeAdversary):
    """Is honest, but its clock is an hour ahead or behind.

    [design §4] "a correct node refuses anything whose Time is beyond its own clock plus a bound":
    a node whose own clock is wrong accepts what others refuse, or refuses what others accept, and
    counts as faulty. Shown by progress and linearizability.
    """

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        self._skew_us = position.random.choice((-1, 1)) * 3_600_000_000

    def answer(self, asked: Asked) -> Ready:
        """Do what a correct node with that clock would."""
        return self.honest(asked._replace(now_us=asked.now_us + self._skew_us))


class FullDisk(NodeAdversary):
    """Has no room: reads are answered, and whatever would have to be written is refused.

    [design §9] a full disk is one of the t faults: "ENOSPC end to end", and never a write that
    vanishes. It need not be consistent: room comes and goes. Shown by progress and durability.
    """

    chances = (0.3, 1.0)

    def answer(self, asked: Asked) -> Ready:
        """Do what a correct node would do; refuse if that would store something."""
        ready = self.honest(asked)
        if ready.writes and self.misbehaves():
            return Ready(Refused(errno.ENOSPC, "the disk is full"))
        return ready


class BrokenDisk(NodeAdversary):
    """Serves from a disk that has lost rows, changed others, and takes only parts of batches.

    [design §9] "A store that was damaged is detected, quarantined and rebuilt"; until then, or if
    nobody notices, the node is one of the b: authenticators, cross-checksums and quorums do not
    depend on it. Shown by durability, linearizability and serializability.
    """

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        self._salt = position.random.randbytes(8)
        self._damage = position.random.choice((8, 60))  # of 256 rows, lost; and as many changed
        self._tears = position.random.choice((0.0, 0.3))

    def answer(self, asked: Asked) -> Ready:
        """Do what a correct node with such a disk would do; nothing if the step fails.

        Servers trust their own disk: a node whose step fails stops.
        """
        try:
            damaged = _Damaged(asked.view, self._salt, self._damage)
            ready = self.honest(asked._replace(view=damaged))
        except Exception:
            return Ready()
        random = self.random
        if ready.writes and random.random() < self._tears:
            ready.writes = ready.writes[: random.randrange(len(ready.writes))]
        return ready


class _Damaged:
    """A view in which some rows are missing or changed, always the same ones."""

    def __init__(self, view: StorageView, salt: bytes, damage: int) -> None:
        self._view = view
        self._salt = salt
        self._damage = damage

    def _read(self, table: Table, key: bytes, value: bytes) -> bytes | None:
        fate = hashlib.blake2b(key, key=self._salt, salt=bytes((table,)), digest_size=2).digest()
        if fate[0] < self._damage:
            return None
        if fate[0] < 2 * self._damage and value:
            position = fate[1] % len(value)
            return value[:position] + bytes((value[position] ^ 0x10,)) + value[position + 1 :]
        return value

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value, as the disk gives it back."""
        value = self._view.get(table, key)
        return None if value is None else self._read(table, key, value)

    def scan(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The rows that are left."""
        for key, value in self._view.scan(table, start, stop, reverse=reverse):
            found = self._read(table, key, value)
            if found is not None:
                yield key, found

    def keys(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """The keys of the rows that are left."""
        return (key for key, _ in self.scan(table, start, stop, reverse=reverse))

    def count(self, table: Table) -> int:
        """The number of rows there were."""
        return self._view.count(table)


def copy_of(view: StorageView) -> MemoryStorage:
    """A store of its own with what `view` shows."""
    store = MemoryStorage()
    for table in Table:
        store.apply(Write(table, key, value) for key, value in view.scan(table, b"", _LAST_KEY))
    return store


def _supplying(want: Want, store: MemoryStorage) -> Want:
    """`want`, with what it supplies going to `store` instead of the node's."""

    async def fetch(view: StorageView) -> list[Write] | None:
        conversation: Conversation[list[Write] | None] = want.fetch(store)
        writes = await conversation
        store.apply(writes or ())
        return [] if writes is not None else None

    return Want(want.key, fetch)
