"""Reads and writes of a few blocks; each must be a linearizable register with unbroken history."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from random import Random

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.coding.erasure import ErasureCode
from bftfs.crypto.digest import DIGEST_BYTES
from bftfs.errors import AdmissionRefused, VersionUnrecoverable
from bftfs.identifiers import BlockId, ObjectKind, block_id, object_id
from bftfs.limits import TIMES_PER_WRITE
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.reading import FoundVersion
from bftfs.read_write.timestamp import BlockTimestamp, successor_of
from bftfs.simulation.checkers.disks import check_bound, check_hosted
from bftfs.simulation.checkers.registers import RegisterOperation, check_register
from bftfs.simulation.deployment import CREDENTIALS, Sizes
from bftfs.simulation.principals import SimulatedClient
from bftfs.simulation.workloads import CorrectNodes, Task


@dataclass(frozen=True, slots=True)
class BlockMix:
    """Which blocks are used, and how."""

    blocks: int = 3
    writes: float = 0.5  # the share of operations that write
    past_reads: float = 0.1  # the share of reads that ask for an acknowledged older version
    many: float = 0.1  # the share of operations on several blocks at once
    most_bytes: int = 400


@dataclass(slots=True, kw_only=True)
class _BlockOperation(RegisterOperation):
    """One operation on one block, which is a register."""

    block: int


class BlockWorkload:
    """Clients that read and write blocks."""

    def __init__(
        self, random: Random, sizes: Sizes, mix: BlockMix, *, client_bytes: int | None = None
    ) -> None:
        """`client_bytes` are all that a node has for one client, if given."""
        self.client_bytes = client_bytes
        self.written: Counter[str] = Counter()  # bytes of each client at a node, at the most
        self.refused = 0  # writes, for want of quota
        self.random = random
        self.sizes = sizes
        self.mix = mix
        inode = object_id(ObjectKind.INODE, placement=0, unique=random.randbytes(14))
        self.blocks: tuple[BlockId, ...] = tuple(
            block_id(inode, incarnation=0, number=number) for number in range(mix.blocks)
        )
        self.volume = object_id(ObjectKind.VOLUME, placement=0, unique=bytes(14))  # there is none
        self.kept_since_us: Callable[[], int] | None = None
        self.cut_off: set[str] = set()
        self.history: list[_BlockOperation] = []
        # Every version whose write was acknowledged: what later reads of the past must find.
        self.acknowledged: list[tuple[int, BlockTimestamp, str]] = []
        self._labels: dict[bytes, str] = {}  # of every item that somebody set out to write
        self.past_reads = 0
        self._findings: list[str] = []

    @property
    def operations(self) -> int:
        """The number of operations begun, on one block each."""
        return len(self.history) + self.past_reads

    def session(self, host: SimulatedClient, name: str) -> BlockSession:
        """A client's session."""
        return BlockSession(self, host, name)

    def new_item(self, name: str) -> tuple[bytes, str]:
        """An item that nobody has written before, and its label."""
        label = f"{name}#{len(self._labels)}"
        filler = self.random.randbytes(self.random.randrange(self.mix.most_bytes))
        item = label.encode() + b"|" + filler
        self._labels[item] = label
        return item, label

    def label(self, item: bytes | None) -> str | None:
        """The label of `item`; an item that nobody wrote is called by its first bytes."""
        if item is None:
            return None
        return self._labels.get(item) or f"unknown {len(item)} bytes {item[:24]!r}"

    def attempted(self, name: str, block: BlockId, now: float) -> bytes:
        """An item that a Byzantine client may write to `block` from now on: it may take place."""
        item, label = self.new_item(name)
        if name not in self.cut_off:
            self.history.append(
                _BlockOperation(name, "write", label, now, block=self.blocks.index(block))
            )
        return item

    def forbidden(self) -> bytes:
        """An item that must never be read."""
        return b"forbidden" + self.random.randbytes(8)

    def wrong(self, finding: str) -> None:
        """Take down a finding that was made in passing."""
        self._findings.append(finding)

    def findings(self) -> list[str]:
        """Violations of linearizability, and what was found in passing."""
        found = list(self._findings)
        for number in range(len(self.blocks)):
            begun = (each for each in self.history if each.block == number and each.invoked < inf)
            found += check_register(begun, name=f"block {number}")
        return found

    def findings_on_disks(self, evidence: CorrectNodes) -> list[str]:
        """Acknowledged writes are hosted, and hosted versions are what was written."""
        thresholds = self.sizes.read_write
        return check_bound(evidence.disks, N=thresholds.N) + check_hosted(
            evidence.disks,
            ((self.blocks[number], timestamp) for number, timestamp, _ in self.acknowledged),
            needed=thresholds.responses - evidence.byzantine,
        )

    def digested(self) -> Iterable[str]:
        """The history, line by line."""
        return map(repr, self.history)


class BlockSession:
    """One client, from its start to its crash."""

    def __init__(self, workload: BlockWorkload, host: SimulatedClient, name: str) -> None:
        self._workload = workload
        self._name = name
        self._world = host.world
        peers = Peers(ThresholdQuorums(workload.sizes.query_update))
        self._client = ReadWriteClient(host.client, workload.sizes.read_write, peers)

    def prepare(self) -> Iterator[Task]:
        """Nothing: what was never written is there from the start."""
        yield from ()

    def next_task(self) -> Task:
        """A read, a write, or one of several blocks."""
        workload, random, mix = self._workload, self._workload.random, self._workload.mix
        chosen = [random.randrange(mix.blocks)]
        if random.random() < mix.many:
            chosen = random.sample(range(mix.blocks), random.randint(1, mix.blocks))
        if random.random() < mix.writes:
            return self._write(chosen)
        if workload.acknowledged and random.random() < mix.past_reads:
            return self._read_past(*random.choice(workload.acknowledged))
        return self._read(chosen)

    def audit(self) -> Iterator[Task]:
        """Reads of all blocks, and of every version whose write was acknowledged."""
        yield self._read(list(range(len(self._workload.blocks))))
        for acknowledged in self._workload.acknowledged:
            yield self._read_past(*acknowledged)
        # An isolated client makes progress, whatever faults and adversaries have left behind.
        for number in range(len(self._workload.blocks)):
            yield self._write([number])
            yield self._read([number])

    def _write(self, numbers: Sequence[int]) -> Task:
        workload = self._workload
        items = [workload.new_item(self._name) for _ in numbers]
        entries = [
            _BlockOperation(self._name, "write", label, block=number)
            for number, (_, label) in zip(numbers, items, strict=True)
        ]
        pairs = [
            (workload.blocks[number], item)
            for number, (item, _) in zip(numbers, items, strict=True)
        ]
        least = TIMES_PER_WRITE * sum(self._volume(len(item)) for item, _ in items)

        async def conversation() -> None:
            workload.written[self._name] += least
            self._begin(entries)
            try:
                if len(pairs) == 1:
                    timestamps: tuple[BlockTimestamp, ...] = (
                        await self._client.write(*pairs[0], CREDENTIALS),
                    )
                else:
                    timestamps = await self._client.write_many(pairs, CREDENTIALS)
            except AdmissionRefused as error:
                if error.code == errno.EDQUOT:
                    workload.refused += 1
                    limit = workload.client_bytes
                    if limit is not None and workload.written[self._name] > limit:
                        return  # it has written so much that it may be refused more
                raise
            for entry, timestamp in zip(entries, timestamps, strict=True):
                entry.responded = self._world.now_us
                workload.acknowledged.append((entry.block, timestamp, str(entry.value)))

        return Task(f"write {numbers}", conversation)

    def _volume(self, item_bytes: int) -> int:
        """The bytes that a version of an item uses at a node."""
        thresholds = self._workload.sizes.read_write
        code = ErasureCode(thresholds.m, thresholds.N)
        return code.fragment_bytes(item_bytes) + thresholds.N * DIGEST_BYTES

    def _read(self, numbers: Sequence[int]) -> Task:
        workload = self._workload
        entries = [_BlockOperation(self._name, "read", None, block=number) for number in numbers]
        blocks = [workload.blocks[number] for number in numbers]

        async def conversation() -> None:
            self._begin(entries)
            if len(blocks) == 1:
                versions: tuple[FoundVersion, ...] = (await self._client.read(blocks[0]),)
            else:
                versions = await self._client.read_many(blocks)
            for entry, version in zip(entries, versions, strict=True):
                entry.value = workload.label(version.item)
                entry.responded = self._world.now_us

        return Task(f"read {numbers}", conversation)

    def _read_past(self, number: int, timestamp: BlockTimestamp, label: str) -> Task:
        """A read of an acknowledged version, which must be there for ever."""
        workload = self._workload
        block, before = workload.blocks[number], successor_of(timestamp)

        async def conversation() -> None:
            workload.past_reads += 1
            try:
                version = await self._client.read(block, before=before)
            except VersionUnrecoverable as error:
                workload.wrong(f"block {number}: acknowledged, then lost: {label}: {error}")
                return
            if version.timestamp != timestamp or workload.label(version.item) != label:
                workload.wrong(
                    f"block {number}: the write of {label} at {timestamp.time} was acknowledged, "
                    f"but what is there is {workload.label(version.item)} of "
                    f"{version.timestamp.time}"
                )

        return Task(f"read of {label}", conversation)

    def _begin(self, entries: Sequence[_BlockOperation]) -> None:
        for entry in entries:
            entry.invoked = self._world.now_us
        self._workload.history.extend(entries)
