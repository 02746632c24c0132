"""Random operations of clients that overlap as the seed wills, judged by linearizability."""

from __future__ import annotations

from random import Random

from bftfs.identifiers import block_id
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.simulation.checkers.registers import RegisterOperation, check_register
from bftfs.simulation.world import START_US
from tests.builders import USER, Outcome
from tests.unit.read_write.harness import INODE, Principal, World, poisoned

BLOCKS = [block_id(INODE, incarnation=0, number=number) for number in range(2)]


class Campaign:
    """Random operations of several clients on two blocks, one in flight for each client."""

    def __init__(self, world: World, *, clients: int = 4, mallory: bool = False) -> None:
        self.world = world
        self.random = Random(world.random.random())
        self.clients = [world.client(f"client {number}") for number in range(clients)]
        self.mallory = world.client("mallory") if mallory else None
        self.histories: list[list[RegisterOperation]] = [[] for _ in BLOCKS]
        self._values = 0

    def run(self, operations: int) -> None:
        """Perform `operations`, and judge what they saw."""
        running: dict[Principal, tuple[Outcome, int, str, bytes, int]] = {}
        started = events = 0
        while started < operations or running:
            for client in self.clients:
                if client not in running and started < operations:
                    running[client] = self._start(client)
                    started += 1
                    if self.mallory is not None and self.random.random() < 0.3:
                        self._misbehave(self.mallory)
            if not any(outcome.done for outcome, *_ in running.values()):
                self.world.next_event()
                events += 1
                assert events < 3_000 * operations, "an operation does not come to its end"
            for client in list(running):
                if running[client][0].done:
                    self._end(client, *running.pop(client))
        for number, history in enumerate(self.histories):
            assert check_register(history, name=f"block {number}") == []

    def _value(self) -> bytes:
        self._values += 1
        return b"value %d " % self._values * self.random.randint(1, 9)

    def _start(self, client: Principal) -> tuple[Outcome, int, str, bytes, int]:
        number = self.random.randrange(len(BLOCKS))
        invoked = self.world.now_us
        if self.random.random() < 0.5:
            value = self._value()
            outcome = client.start(client.client.write(BLOCKS[number], value, USER))
            return outcome, number, "write", value, invoked
        return client.start(client.client.read(BLOCKS[number])), number, "read", b"", invoked

    def _end(
        self, client: Principal, outcome: Outcome, number: int, kind: str, value: bytes, at: int
    ) -> None:
        assert outcome.error is None, outcome.error
        seen = value if kind == "write" else outcome.result.item
        self.histories[number].append(
            RegisterOperation(client.id.hex()[:4], kind, seen, at, self.world.now_us)
        )

    def _misbehave(self, mallory: Principal) -> None:
        """A partial write: some nodes get it, the client forgets about it."""
        number = self.random.randrange(len(BLOCKS))
        N = self.world.thresholds.N
        nodes = self.random.sample(range(N), self.random.randint(1, N))
        value = self._value()
        time_us = START_US + self.world.now_us + self.random.randint(-5_000, 5_000)
        encoded = self.world.encoded(value)
        if self.random.random() < 0.3:  # and poisonous
            encoded = poisoned(encoded, self.random.randrange(N))
        else:
            self.histories[number].append(
                RegisterOperation("mallory", "write", value, self.world.now_us)
            )
        stamp, _ = self.world.place(mallory, encoded, nodes, time_us=time_us, block=BLOCKS[number])
        assert isinstance(stamp, BlockTimestamp)
