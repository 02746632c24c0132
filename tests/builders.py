"""What tests are made of. Each kind of test adds what is its own in a thin layer on top.

From the smallest to the largest:

- `USER`, `keys_of`, `Outcome`: a user, the nodes' secrets, and how a conversation ended;
- `InMemoryObjects`, `InMemoryBlocks`: the services that a file system needs, without nodes (layers:
  `tests/unit/filesystem/world.py`, `tests/unit/mount/in_memory.py`);
- `SimulatedCluster`: real nodes and clients in the simulator's virtual time (layers:
  `tests/unit/server/verifying.py`, `tests/unit/restoration/conftest.py`, `tests/fuzz/cluster.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from sortedcontainers import SortedDict

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.conversation import Now, Pause
from bftfs.credentials import NOBODY, Credentials, Grant
from bftfs.crypto.digest import DIGEST_BYTES, AuthenticatorKeys, Digest
from bftfs.envelope import REPLIES, REQUESTS
from bftfs.errors import FileSystemError
from bftfs.filesystem import object_types
from bftfs.filesystem.capacity import ClusterCapacity
from bftfs.identifiers import BlockId, ClientId, NodeId, ObjectId, kind_of
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.object_type import (
    Caller,
    ObjectTypes,
    Record,
    Refusal,
    encode_record,
)
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.timestamp import BlockTimestamp, beginning_of
from bftfs.simulation.deployment import Deployment, Sizes
from bftfs.simulation.network import Endpoint, Kind, NetworkFaults, SimulatedNetwork
from bftfs.simulation.principals import SimulatedClient, SimulatedNode
from bftfs.simulation.world import START_US, World
from bftfs.wire.codec import encode

USER = Credentials(uid=1000, gid=1000)
_MOST_EVENTS = 2_000_000


def keys_of(n: int) -> list[AuthenticatorKeys]:
    """The secrets of `n` nodes: one for each pair, which only the two hold."""
    return [
        AuthenticatorKeys(
            NodeId(node), tuple(b"%d/%d" % (min(node, peer), max(node, peer)) for peer in range(n))
        )
        for node in range(n)
    ]


class Outcome:
    """How a conversation ended: what an engine is given to report to."""

    def __init__(self) -> None:
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def __call__(self, result: Any, error: BaseException | None) -> None:
        self.done, self.result, self.error = True, result, error

    def value(self) -> Any:
        """The result; raises what ended the conversation."""
        assert self.done, "the conversation has not ended"
        if self.error is not None:
            raise self.error
        return self.result


# --- services without nodes -----------------------------------------------------------------


class Overlay:
    """A state while a method runs: what it changes is kept apart, and held to the limits."""

    def __init__(self, identifier: ObjectId, rows: SortedDict) -> None:
        self.object = identifier
        self._rows = rows
        self.delta: dict[bytes, bytes | None] = {}
        self.touched = 0  # keys read, changed or passed over

    def get(self, key: bytes) -> bytes | None:
        self.touched += 1
        return self.delta[key] if key in self.delta else self._rows.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        assert not self.delta, "no method scans what it changes"
        for key in self._rows.irange(start, stop, inclusive=(True, False), reverse=reverse):
            self.touched += 1
            yield key, self._rows[key]

    def put(self, key: bytes, value: bytes) -> None:
        assert 0 < len(key) <= limits.STATE_KEY_BYTES
        assert key.count(0) <= len(key) // 2
        assert len(value) <= limits.STATE_VALUE_BYTES
        self.touched += 1
        self.delta[key] = value

    def delete(self, key: bytes) -> None:
        self.touched += 1
        self.delta[key] = None


@dataclass(frozen=True)
class Answer:
    answer: Any


class InMemoryObjects:
    """Replicated objects without replicas, in place of a `QueryUpdateClient`.

    It runs the registered methods as Query/Update does: atomically, one after the other, with
    encoded arguments and answers; nothing is kept of a method that refuses.
    """

    def __init__(self, clock: Callable[[], int] = lambda: START_US) -> None:
        self.rows: dict[ObjectId, SortedDict] = {}
        self._clock = clock
        self._types = object_types()
        self._last_us = 0
        self.calls: Counter[str] = Counter()
        self.bundles: list[int] = []  # how many objects each has asked
        self.bundled = True  # False: bundles agree on nothing
        self.bundled_hook: Callable[[], Coroutine[Any, Any, None]] | None = None  # between answer…
        self.touched = 0  # keys that the last operation touched
        self.latency: Callable[[], int] = lambda: 0
        self.before: Callable[[str, tuple[ObjectId, ...]], None] = lambda method, objects: None

    def perform(
        self,
        method_name: str,
        objects: tuple[ObjectId, ...],
        arguments: Record,
        who: Any,
        not_before_us: int = 0,
    ) -> Any:
        """The answer of a method; `Refusal` if it refuses."""
        method = self._types.method(method_name)
        assert method is not None, method_name
        assert len(objects) == len(method.kinds) <= limits.OBJECTS_PER_OPERATION
        for identifier, kinds in zip(objects, method.kinds, strict=True):
            assert kind_of(identifier) in kinds, (method_name, identifier)
        encoded = encode_record(arguments)
        assert len(encoded) + 1024 <= limits.OPERATION_BYTES
        states = {
            identifier: Overlay(identifier, self.rows.get(identifier, SortedDict()))
            for identifier in objects
        }
        time_us = self._last_us
        if method.update:
            time_us = max(self._clock(), self._last_us + 1, not_before_us)
        caller = Caller(ClientId(bytes(16)), who.uid, who.gid, who.groups, time_us)
        answer = method.invoke(
            tuple(states[identifier] for identifier in objects),
            self._types.decode_arguments(method, encoded),
            caller,
        )
        self.touched = sum(state.touched for state in states.values())
        if method.update:
            self._last_us = time_us
            for identifier, state in states.items():
                assert len(state.delta) <= limits.DELTA_ENTRIES
                rows = self.rows.setdefault(identifier, SortedDict())
                for key, value in state.delta.items():
                    if value is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = value
        else:
            assert not any(state.delta for state in states.values())
        encoded_answer = encode_record(answer)
        assert len(encoded_answer) <= limits.ANSWER_BYTES
        return self._types.decode_answer(method, encoded_answer)

    async def query(
        self, objects: tuple[ObjectId, ...], method: str, arguments: Record, who: Credentials
    ) -> Answer:
        return await self._invoke(objects, method, arguments, who, 0)

    async def bundle(
        self, objects: Sequence[ObjectId], method: str, arguments: Record, who: Credentials
    ) -> dict[ObjectId, Answer]:
        self.bundles.append(len(objects))
        if latency := self.latency():
            await Pause(latency)
        found = {}
        for name in objects if self.bundled else ():
            with suppress(Refusal):
                found[name] = Answer(self.perform(method, (name,), arguments, who))
        if self.bundled_hook is not None:  # …and arrival
            await self.bundled_hook()
        if latency := self.latency():
            await Pause(latency)
        return found

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        who: Credentials,
        *,
        not_before_us: int = 0,
        vouch: Any = None,
        reaching: Any = None,
        earlier: Any = None,
    ) -> Answer:
        del vouch, reaching, earlier  # nobody lies here, and no answer is lost
        return await self._invoke(objects, method, arguments, who, not_before_us)

    async def _invoke(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        who: Credentials,
        not_before_us: int,
    ) -> Answer:
        self.calls[method] += 1
        if latency := self.latency():
            await Pause(latency)
        self.before(method, objects)
        try:
            answer = self.perform(method, objects, arguments, who, not_before_us)
        except Refusal as refusal:
            raise FileSystemError(refusal.code) from None
        if latency := self.latency():
            await Pause(latency)
        return Answer(answer)


@dataclass(frozen=True)
class Item:
    item: bytes | None
    timestamp: BlockTimestamp


def _timestamp(time_us: int, item: bytes | None) -> BlockTimestamp:
    """Of a version that a client of `InMemoryObjects` has written."""
    if item is None:
        return beginning_of(time_us)
    verifier = Digest(blake2b(item, digest_size=DIGEST_BYTES).digest())
    return BlockTimestamp(time_us, ClientId(bytes(16)), verifier)


class InMemoryBlocks:
    """Blocks in a dictionary, as a `ReadWriteClient` has them."""

    def __init__(self) -> None:
        self.versions: dict[BlockId, dict[int, bytes]] = {}  # by their times
        self.unasked: list[BlockId] = []  # written without asking what time it is
        self.reads: list[BlockId] = []
        self.writes: list[BlockId] = []
        self.latency: Callable[[], int] = lambda: 0
        self.refuse: Callable[[], Exception | None] = lambda: None
        self.skew_us = 0  # how far the writers' clocks were ahead
        self.in_flight = 0
        self.most_in_flight = 0

    async def write_many(
        self,
        items: Sequence[tuple[BlockId, bytes]],
        credentials: Credentials,
        *,
        after_us: int = 0,
        is_asking: bool = True,
        permit: Any = None,
    ) -> list[BlockTimestamp]:
        del credentials, permit
        assert len({block for block, _ in items}) == len(items)
        self.in_flight += sum(len(item) for _, item in items)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if latency := self.latency():
                await Pause(latency)
            if failure := self.refuse():
                raise failure
            times = []
            for block, item in items:
                assert len(item) <= limits.BLOCK_BYTES_MAX + 64
                versions = self.versions.setdefault(block, {})
                known = max(versions, default=0) if is_asking else 0
                time = max(known + 1, after_us + 1, await Now() + self.skew_us)
                while time in versions:  # another mount's: all are of one client here
                    time += 1
                versions[time] = bytes(item)
                self.writes.append(block)
                if not is_asking:
                    self.unasked.append(block)
                times.append(_timestamp(time, versions[time]))
            if latency := self.latency():
                await Pause(latency)
            return times
        finally:
            self.in_flight -= sum(len(item) for _, item in items)

    async def read(
        self,
        block: BlockId,
        who: Credentials = NOBODY,
        *,
        at_time_us: int | None = None,
        permit: Any = None,
        is_named: bool = False,
    ) -> Item:
        del who, permit, is_named
        self.reads.append(block)
        if latency := self.latency():
            await Pause(latency)
        versions = self.versions.get(block, {})
        times = (t for t in versions if at_time_us is None or t <= at_time_us)
        time = max(times, default=0)
        item = Item(versions.get(time), _timestamp(time, versions.get(time)))
        if latency := self.latency():
            await Pause(latency)
        return item

    async def vouched(
        self, versions: Sequence[Any], who: Credentials, again: bool
    ) -> tuple[Any, ...]:
        del versions, who, again
        return ()

    async def written(
        self, block: BlockId, timestamp: BlockTimestamp, who: Credentials, *, permit: Any = None
    ) -> Item:
        del who, permit
        return await self.read(block, at_time_us=timestamp.time)


# --- simulated clusters ---------------------------------------------------------------------


class ClusterClient:
    """A client of a simulated cluster, with everything that a mount has of the two protocols."""

    def __init__(self, cluster: SimulatedCluster, host: SimulatedClient) -> None:
        self.cluster = cluster
        self.host = host
        sizes = cluster.sizes
        self.peers = Peers(ThresholdQuorums(sizes.query_update))
        self.objects = QueryUpdateClient(host.client, self.peers, cluster.deployment.types)
        self.blocks = ReadWriteClient(host.client, sizes.read_write, self.peers)
        self.capacity = ClusterCapacity(sizes.read_write, self.peers)

    def start(self, conversation: Coroutine[Any, Any, Any]) -> Outcome:
        """Begin a conversation."""
        outcome = Outcome()
        self.host.start(conversation, outcome)
        return outcome

    def run(self, conversation: Coroutine[Any, Any, Any]) -> Any:
        """Run a conversation to its end."""
        outcome = self.start(conversation)
        self.cluster.run_until(lambda: outcome.done)
        return outcome.value()


class SimulatedCluster:
    """Nodes that are all correct and up, in a world of their own, with a good network."""

    def __init__(
        self,
        sizes: Sizes | None = None,
        *,
        types: ObjectTypes | None = None,
        seed: int = 1,
        network: Callable[[World], SimulatedNetwork] | None = None,
        deployment: type[Deployment] = Deployment,
        **options: Any,
    ) -> None:
        """`options` are those of the deployment: `verification`, `commit_us`, …"""
        self.world = World(seed)
        self.network = network(self.world) if network else good_network(self.world)
        self.sizes = sizes or Sizes.smallest(t=1, b=1)
        self.deployment = deployment(
            self.world, self.network, self.sizes, types=types or object_types(), **options
        )

    @property
    def nodes(self) -> tuple[SimulatedNode, ...]:
        return self.deployment.nodes

    @property
    def now_us(self) -> int:
        """What an exact clock shows."""
        return START_US + self.world.now_us

    def client(self, name: str = "alice", *, grant: Grant | None = None) -> ClusterClient:
        return ClusterClient(self, self.deployment.client(name, grant=grant))

    def run_until(self, condition: Callable[[], bool]) -> None:
        assert self.world.run(until=condition, most_events=_MOST_EVENTS), "it never ends"

    def run_for(self, duration_us: int) -> None:
        end_us = self.world.now_us + duration_us
        self.world.after(duration_us, lambda: None)
        self.run_until(lambda: self.world.now_us >= end_us)


def good_network(world: World) -> SimulatedNetwork:
    return SimulatedNetwork(world, NetworkFaults())


# Source, target and message; gives the delay in microseconds, or None to drop the message.
Route = Callable[[Any, Any, Any], int | None]


class RoutedNetwork(SimulatedNetwork):
    """A network on which `route` decides about each message; `sent` has them all."""

    def __init__(self, world: World) -> None:
        super().__init__(world, NetworkFaults())
        self.route: Route = self.any_delay
        self.sent: list[tuple[Any, Any, Any]] = []
        self.under_way = 0  # messages

    def any_delay(self, _source: Any, _target: Any, _message: Any) -> int:
        return self._world.random.randrange(50, 500)

    def send(
        self,
        source: Endpoint,
        target: Endpoint,
        kind: Kind,
        number: int,
        message: Any,
        body: bytes | memoryview = b"",
    ) -> None:
        encoded = encode(message)
        message = (REQUESTS if kind is Kind.REQUEST else REPLIES).decode(encoded)
        delay_us = self.route(source, target, message)
        self.sent.append((source, target, message))
        if delay_us is not None:
            self.under_way += 1
            self._world.after(
                delay_us, self._arrive, source, target, kind, number, encoded, bytes(body)
            )

    def _arrive(
        self,
        source: Endpoint,
        target: Endpoint,
        kind: Kind,
        number: int,
        metadata: bytes,
        body: bytes,
    ) -> None:
        self.under_way -= 1
        super()._arrive(source, target, kind, number, metadata, body)
