"""Clients that misuse blocks. [PASIS §3.4.2.3]

They write what their grant allows them to write; nothing of it may make two readers see two things,
hurt the other clients' versions, or keep them from making progress.
"""

from __future__ import annotations

from bftfs import limits
from bftfs.coding import cross_checksum
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.coding.erasure import Buffer, ErasureCode
from bftfs.conversation import Now, Receive, Send
from bftfs.crypto.digest import voucher_digest
from bftfs.identifiers import BlockId, ClientId, NodeId
from bftfs.read_write.messages import Voucher, WriteRequest
from bftfs.read_write.placement import rotation_of
from bftfs.read_write.timestamp import BlockTimestamp, encoded
from bftfs.simulation.byzantine.positions import ClientPosition, mutated
from bftfs.simulation.deployment import CREDENTIALS
from bftfs.wire.codec import encode


class _Writer:
    """The tools of these clients: put fragments of their own making on nodes of their choice."""

    def __init__(self, position: ClientPosition) -> None:
        self.position = position
        self.random = position.random
        self.N = position.sizes.read_write.N
        self.code = ErasureCode(position.sizes.read_write.m, self.N)

    def block(self) -> BlockId:
        """One of the blocks that everybody uses."""
        block: BlockId = self.random.choice(self.position.workload.blocks)
        return block

    def item(self, block: BlockId) -> bytes:
        """An item that may take place from now on."""
        item: bytes = self.position.workload.attempted(
            self.position.name, block, self.position.now()
        )
        return item

    async def write(
        self,
        block: BlockId,
        fragments: tuple[Buffer, ...],
        *,
        nodes: list[int],
        time: int,
        author: ClientId | None = None,
        checksum: CrossChecksum | None = None,
        vouchers: tuple[Voucher, ...] = (),
    ) -> BlockTimestamp:
        """WRITE to `nodes`, without a look at what they say."""
        checksum = checksum or cross_checksum.make(fragments)
        timestamp = BlockTimestamp(
            time, author or self.position.client, cross_checksum.verifier(checksum)
        )
        request = WriteRequest(
            block,
            timestamp,
            checksum,
            CREDENTIALS.uid,
            CREDENTIALS.gid,
            CREDENTIALS.groups,
            vouchers,
        )
        rotation = rotation_of(block, self.N)
        for node in nodes:
            await Send(NodeId(node), request, bytes(fragments[(node - rotation) % self.N]))
        await Receive(1_000)
        return timestamp

    def some_nodes(self, count: int) -> list[int]:
        """That many nodes."""
        return self.random.sample(range(self.N), min(count, self.N))

    def all_nodes(self) -> list[int]:
        """All of them, in any order."""
        return self.some_nodes(self.N)


class PoisonousWriter:
    """Writes fragments that are no encoding of one item, under a cross-checksum that lists them.

    [PASIS §3.4.2.3] "To validate the cross checksum, all N data-fragments are required. […] If the
    generated cross checksum does not match the verified cross checksum, then a Byzantine client
    performed the write operation." Shown by linearizability: no mixture is ever read.
    """

    def __init__(self, position: ClientPosition) -> None:
        self._writer = _Writer(position)

    async def act(self) -> None:
        """Random fragments, fragments of two items, or stripes that hold no item."""
        writer = self._writer
        random = writer.random
        block, time = writer.block(), await Now()
        match random.randrange(3):
            case 0:
                size = random.randint(5, 60)
                fragments: tuple[Buffer, ...] = tuple(
                    random.randbytes(size) for _ in range(writer.N)
                )
            case 1:
                length = random.randint(10, 99)
                one = writer.code.encode(b"one: " + random.randbytes(length))
                other = writer.code.encode(b"two: " + random.randbytes(length))
                fragments = tuple(random.choice(pair) for pair in zip(one, other, strict=True))
                stripes = dict(enumerate(fragments[: writer.code.m]))
                if tuple(map(bytes, writer.code.regenerate(stripes))) == tuple(
                    map(bytes, fragments)
                ):
                    return  # by chance an encoding after all
            case _:
                stripes = {index: random.randbytes(20) for index in range(writer.code.m)}
                fragments = writer.code.regenerate(stripes)
        await writer.write(block, fragments, nodes=writer.all_nodes(), time=time)


class PartialWriter:
    """Writes a good item to some nodes only, and stops.

    [PASIS §3.4.3.3] what is repairable is repaired before it is returned, what is incomplete is
    passed over. Shown by linearizability: once read, it stays.
    """

    def __init__(self, position: ClientPosition) -> None:
        self._writer = _Writer(position)

    async def act(self) -> None:
        """One write to as many nodes as keep it undecided."""
        writer = self._writer
        block, time = writer.block(), await Now()
        fragments = writer.code.encode(writer.item(block))
        await writer.write(
            block, fragments, nodes=writer.some_nodes(writer.random.randint(1, writer.N)), time=time
        )


class Stutterer:
    """Writes fewer fragments than decode, over and over, so that readers go down a long way.

    [PASIS §3.4.3.3] "version histories" in replies; protocols.md §3. Shown by progress.
    """

    def __init__(self, position: ClientPosition) -> None:
        self._writer = _Writer(position)

    async def act(self) -> None:
        """A burst of partial writes to one block."""
        writer = self._writer
        block, time = writer.block(), await Now()
        most = max(1, writer.position.sizes.read_write.repairable - 1)
        for step in range(writer.random.randint(2, 8)):
            fragments = writer.code.encode(writer.item(block))
            nodes = writer.some_nodes(writer.random.randint(1, most))
            await writer.write(block, fragments, nodes=nodes, time=time + step)


class FalseFragmentWriter:
    """Sends some nodes fragments that the cross-checksum does not list.

    [PASIS §3.4.2.3] storage-node verification: "a Byzantine client cannot make a correct
    storage-node appear Byzantine." Shown by linearizability, and by progress: what correct nodes
    host decodes.
    """

    def __init__(self, position: ClientPosition) -> None:
        self._writer = _Writer(position)

    async def act(self) -> None:
        """A good item, whose fragments arrive spoilt at some nodes."""
        writer = self._writer
        random = writer.random
        block, time = writer.block(), await Now()
        fragments = writer.code.encode(writer.item(block))
        checksum = cross_checksum.make(fragments)
        good = set(writer.some_nodes(random.randint(0, writer.N)))
        rotation = rotation_of(block, writer.N)
        spoilt = tuple(
            fragment if (index + rotation) % writer.N in good else random.randbytes(len(fragment))
            for index, fragment in enumerate(fragments)
        )
        await writer.write(block, spoilt, nodes=writer.all_nodes(), time=time, checksum=checksum)


class TwoFacedWriter:
    """Writes two items at one time, each to some of the nodes.

    [PASIS §3.4.2.3] "only a single set of data-fragments can be written at any logical time": equal
    times with different verifiers are two writes in a fixed order. Shown by linearizability.
    """

    def __init__(self, position: ClientPosition) -> None:
        self._writer = _Writer(position)

    async def act(self) -> None:
        """One item here, another one there."""
        writer = self._writer
        block, time = writer.block(), await Now()
        nodes = writer.all_nodes()
        half = writer.random.randint(0, writer.N)
        overlap = writer.random.randint(0, 2)
        for part in (nodes[: half + overlap], nodes[half:]):
            await writer.write(block, writer.code.encode(writer.item(block)), nodes=part, time=time)


class TimestampRacer:
    """Takes times that lie ahead or in the past, at the edge of what is sane and beyond it.

    [design §4] "no liar can push time away: every time a correct node holds is at most the bound
    ahead." Shown by progress and linearizability.
    """

    def __init__(self, position: ClientPosition) -> None:
        self._writer = _Writer(position)

    async def act(self) -> None:
        """One complete write with a time of the client's choice."""
        writer = self._writer
        block, now = writer.block(), await Now()
        bound = limits.CLOCK_SKEW_US
        leap = writer.random.choice(
            (
                1_000,
                1_000_000,
                bound // 100,
                bound - 1_000_000,
                bound - 1_000,
                bound + 1_000,
                2 * bound,
                1 << 59,
                -1_000,
                -bound,
            )
        )
        await writer.write(
            block, writer.code.encode(writer.item(block)), nodes=writer.all_nodes(), time=now + leap
        )


class Impersonator:
    """Writes in another client's name, with vouchers from its allies and of its own making.

    [PASIS §3.4.4] (3.4) "Byzantine storage-nodes can never fabricate write requests": a version's
    timestamp names its author, and nodes take it from him or with b + 1 vouchers. Shown by
    linearizability: its items are nobody's, so that reading one is a violation.
    """

    def __init__(self, position: ClientPosition) -> None:
        self._writer = _Writer(position)

    async def act(self) -> None:
        """A good item in a false name."""
        writer = self._writer
        random = writer.random
        block, time = writer.block(), await Now()
        fragments = writer.code.encode(b"in a false name: " + random.randbytes(20))
        checksum = cross_checksum.make(fragments)
        author = ClientId(random.randbytes(16))
        timestamp = BlockTimestamp(time, author, cross_checksum.verifier(checksum))
        digest = voucher_digest(block=block, timestamp=encoded(timestamp))
        vouchers = [Voucher(ally.node, ally.keys.make(digest)) for ally in writer.position.allies]
        vouchers += vouchers[:1] * 2
        vouchers.append(
            Voucher(NodeId(random.randrange(writer.N)), random.randbytes(16 * writer.N))
        )
        await writer.write(
            block,
            fragments,
            nodes=writer.all_nodes(),
            time=time,
            author=author,
            vouchers=tuple(vouchers),
        )


class BlockTrespasser:
    """Writes as a user whom its grant does not cover, or without the right to write at all.

    [design §3] "A grant says which uids a client may act as (or all), whether it may write". Shown
    by linearizability: its items are nobody's, so that reading one is a violation.
    """

    def __init__(self, position: ClientPosition) -> None:
        self._writer = _Writer(position)

    async def act(self) -> None:
        """A good write that is not allowed."""
        writer = self._writer
        fragments = writer.code.encode(writer.position.workload.forbidden())
        await writer.write(writer.block(), fragments, nodes=writer.all_nodes(), time=await Now())


class GarbageClient:
    """Sends bytes that are nearly a request.

    [architecture §6] what does not decode to a declared message is dropped at the door. Shown by
    progress, and by the absence of exceptions.
    """

    def __init__(self, position: ClientPosition) -> None:
        self._writer = _Writer(position)

    async def act(self) -> None:
        """A spoilt write to every node."""
        writer = self._writer
        block, time = writer.block(), await Now()
        fragments = writer.code.encode(writer.item(block))
        checksum = cross_checksum.make(fragments)
        timestamp = BlockTimestamp(time, writer.position.client, cross_checksum.verifier(checksum))
        request = encode(WriteRequest(block, timestamp, checksum, 0, 0, ()))
        for node in writer.all_nodes():
            await Send(NodeId(node), mutated(request, writer.random), bytes(fragments[0]))
