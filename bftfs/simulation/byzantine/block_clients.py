"""Clients that misuse blocks. [PASIS §3.4.2.3]

They may write whatever their grant allows. They must not be able to make two readers see different
things, to damage other clients' versions, or to keep other clients from making progress.
"""

from __future__ import annotations

from bftfs import limits
from bftfs.coding import cross_checksum
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.coding.erasure import Buffer, ErasureCode
from bftfs.conversation import Now, Receive, Send
from bftfs.crypto.digest import voucher_digest
from bftfs.identifiers import BlockId, ClientId, NodeId
from bftfs.read_write.messages import WriteRequest
from bftfs.read_write.placement import rotation_of
from bftfs.read_write.timestamp import BlockTimestamp, encoded
from bftfs.simulation.byzantine.positions import LEAPS_US, ClientAdversary, ClientPosition, mutated
from bftfs.wire.codec import Voucher, encode


class Writer(ClientAdversary):
    """The tools of these clients: put fragments of their own making on nodes of their choice."""

    def __init__(self, position: ClientPosition) -> None:
        super().__init__(position)
        self.code = ErasureCode(position.sizes.read_write.m, self.n)

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
        """Send a WRITE to `nodes`; ignore the replies."""
        checksum = checksum or cross_checksum.make(fragments)
        timestamp = BlockTimestamp(
            time, author or self.position.client, cross_checksum.verifier(checksum)
        )
        request = WriteRequest(block, timestamp, checksum, *self.user, vouchers)
        rotation = rotation_of(block, self.n)
        for node in nodes:
            await Send(NodeId(node), request, bytes(fragments[(node - rotation) % self.n]))
        await Receive(1_000)
        return timestamp

    def some_nodes(self, count: int) -> list[int]:
        """That many nodes."""
        return self.random.sample(range(self.n), min(count, self.n))


class PoisonousWriter(Writer):
    """Writes fragments that are no encoding of one item, under a cross-checksum that lists them.

    [PASIS §3.4.2.3] "To validate the cross checksum, all N data-fragments are required. […] If the
    generated cross checksum does not match the verified cross checksum, then a Byzantine client
    performed the write operation." Shown by linearizability: no mixture is ever read.
    """

    async def act(self) -> None:
        """Random fragments, fragments of two items, or stripes that hold no item."""
        random = self.random
        block, time = self.block(), await Now()
        match random.randrange(3):
            case 0:
                size = random.randint(5, 60)
                fragments: tuple[Buffer, ...] = tuple(random.randbytes(size) for _ in range(self.n))
            case 1:
                length = random.randint(10, 99)
                one = self.code.encode(b"one: " + random.randbytes(length))
                other = self.code.encode(b"two: " + random.randbytes(length))
                fragments = tuple(random.choice(pair) for pair in zip(one, other, strict=True))
                stripes = dict(enumerate(fragments[: self.code.m]))
                if tuple(map(bytes, self.code.regenerate(stripes))) == tuple(map(bytes, fragments)):
                    return  # by chance, the fragments do encode one item
            case _:
                stripes = {index: random.randbytes(20) for index in range(self.code.m)}
                fragments = self.code.regenerate(stripes)
        await self.write(block, fragments, nodes=self.all_nodes(), time=time)


class PartialWriter(Writer):
    """Writes a good item to some nodes only, and stops.

    [PASIS §3.4.3.3] what is repairable is repaired before it is returned, what is incomplete is
    passed over. Shown by linearizability: once read, it stays.
    """

    async def act(self) -> None:
        """One write to as many nodes as keep it undecided."""
        block, time = self.block(), await Now()
        fragments = self.code.encode(self.item(block))
        await self.write(
            block, fragments, nodes=self.some_nodes(self.random.randint(1, self.n)), time=time
        )


class Stutterer(Writer):
    """Writes fewer fragments than decode, over and over, so that readers go down a long way.

    [PASIS §3.4.3.3] "version histories" in replies; protocols.md §3. Shown by progress.
    """

    async def act(self) -> None:
        """A burst of partial writes to one block."""
        block, time = self.block(), await Now()
        most = max(1, self.position.sizes.read_write.repairable - 1)
        for step in range(self.random.randint(2, 8)):
            fragments = self.code.encode(self.item(block))
            nodes = self.some_nodes(self.random.randint(1, most))
            await self.write(block, fragments, nodes=nodes, time=time + step)


class FalseFragmentWriter(Writer):
    """Sends some nodes fragments that the cross-checksum does not list.

    [PASIS §3.4.2.3] storage-node verification: "a Byzantine client cannot make a correct
    storage-node appear Byzantine." Shown by linearizability, and by progress: what correct nodes
    host decodes.
    """

    async def act(self) -> None:
        """Write a good item, and send some nodes false fragments of it."""
        random = self.random
        block, time = self.block(), await Now()
        fragments = self.code.encode(self.item(block))
        checksum = cross_checksum.make(fragments)
        good = set(self.some_nodes(random.randint(0, self.n)))
        rotation = rotation_of(block, self.n)
        spoilt = tuple(
            fragment if (index + rotation) % self.n in good else random.randbytes(len(fragment))
            for index, fragment in enumerate(fragments)
        )
        await self.write(block, spoilt, nodes=self.all_nodes(), time=time, checksum=checksum)


class TwoFacedWriter(Writer):
    """Writes two items at one time, each to some of the nodes.

    [PASIS §3.4.2.3] "only a single set of data-fragments can be written at any logical time": equal
    times with different verifiers are two writes in a fixed order. Shown by linearizability.
    """

    async def act(self) -> None:
        """Write one item to some nodes, and another item to the others."""
        block, time = self.block(), await Now()
        nodes = self.all_nodes()
        half = self.random.randint(0, self.n)
        overlap = self.random.randint(0, 2)
        for part in (nodes[: half + overlap], nodes[half:]):
            await self.write(block, self.code.encode(self.item(block)), nodes=part, time=time)


class TimestampRacer(Writer):
    """Takes times that lie ahead or in the past, at the edge of what is sane and beyond it.

    [design §4] "no liar can push time away: every time a correct node holds is at most the bound
    ahead." Shown by progress and linearizability.
    """

    async def act(self) -> None:
        """One complete write with a time of the client's choice."""
        block, now = self.block(), await Now()
        leap = self.random.choice((*LEAPS_US, -1_000, -limits.CLOCK_SKEW_US))
        await self.write(
            block, self.code.encode(self.item(block)), nodes=self.all_nodes(), time=now + leap
        )


class Impersonator(Writer):
    """Writes in another client's name, with vouchers of its allies and forged ones.

    [PASIS §3.4.4] (3.4) "Byzantine storage-nodes can never fabricate write requests": a version's
    timestamp names its author, and nodes take it from the author or with vouchers. Shown by
    linearizability: no correct client has written its items, so reading one is a violation.
    """

    async def act(self) -> None:
        """Write a good item in a false name."""
        random = self.random
        block, time = self.block(), await Now()
        fragments = self.code.encode(b"in a false name: " + random.randbytes(20))
        checksum = cross_checksum.make(fragments)
        author = ClientId(random.randbytes(16))
        timestamp = BlockTimestamp(time, author, cross_checksum.verifier(checksum))
        digest = voucher_digest(block=block, timestamp=encoded(timestamp))
        vouchers = [Voucher(ally.node, ally.keys.make(digest)) for ally in self.position.allies]
        vouchers += vouchers[:1] * 2
        vouchers.append(Voucher(NodeId(random.randrange(self.n)), random.randbytes(16 * self.n)))
        await self.write(
            block,
            fragments,
            nodes=self.all_nodes(),
            time=time,
            author=author,
            vouchers=tuple(vouchers),
        )


class BlockTrespasser(Writer):
    """Writes as a user whom its grant does not cover, or without the right to write at all.

    [design §3] "A grant says which uids a client may act as (or all), whether it may write". Shown
    by linearizability: no correct client has written its items, so reading one is a violation.
    """

    async def act(self) -> None:
        """Make a good write that is not allowed."""
        fragments = self.code.encode(self.position.workload.forbidden())
        await self.write(self.block(), fragments, nodes=self.all_nodes(), time=await Now())


class GarbageClient(Writer):
    """Sends bytes that are nearly a request.

    [architecture §6] what does not decode to a declared message is dropped on arrival. Shown by
    progress, and by the absence of exceptions.
    """

    async def act(self) -> None:
        """Send every node a damaged write."""
        block, time = self.block(), await Now()
        fragments = self.code.encode(self.item(block))
        checksum = cross_checksum.make(fragments)
        timestamp = BlockTimestamp(time, self.position.client, cross_checksum.verifier(checksum))
        request = encode(WriteRequest(block, timestamp, checksum, 0, 0, ()))
        for node in self.all_nodes():
            await Send(NodeId(node), mutated(request, self.random), bytes(fragments[0]))
