"""Clients that misuse blocks of files: nodes ask their replicas of the inode who may do what."""

from __future__ import annotations

from contextlib import suppress

from bftfs.conversation import Now, Receive
from bftfs.errors import PeerFault
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.block_names import covered
from bftfs.filesystem.inode import Writing
from bftfs.filesystem.registry import WRITE
from bftfs.identifiers import BlockId, block_number_of, incarnation_of, inode_of
from bftfs.query_update.messages import VouchedBy
from bftfs.read_write.messages import (
    ReadReply,
    ReadRequest,
    TimeReply,
    TimeRequest,
    VersionName,
    VouchSetRequest,
)
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.timestamp import BlockTimestamp, digest_of
from bftfs.simulation.byzantine.block_clients import Writer
from bftfs.simulation.byzantine.block_repairs import LISTEN_US, BlockMeddler, LateFinisher
from bftfs.simulation.byzantine.object_clients import Updater
from bftfs.simulation.byzantine.pacts import BlockConspirator
from bftfs.simulation.byzantine.positions import ClientPosition
from bftfs.simulation.deployment import CREDENTIALS, STRANGER, STRANGERS, USER
from bftfs.simulation.workloads.past import CONTENT_BYTES

# As itself, and as a member of the group of others' files, which it is not.
_CLAIMS = (STRANGERS, (STRANGER.uid, STRANGER.gid, (CREDENTIALS.gid,)))


class Overwriter(LateFinisher):
    """Writes and repairs blocks of files for a user who may not write, until somebody permits it.

    [design §6] "Nodes check write permission before they accept a block", each against its own
    replica of the inode, which may be behind. What the user's groups are is in the signed grant.
    Shown by permission: what it wrote is read only where it was permitted meanwhile.
    """

    def __init__(self, position: ClientPosition) -> None:
        super().__init__(position)
        self._updater = Updater(position)
        self.user = self._updater.user = self.random.choice(_CLAIMS)
        self._written: list[tuple[BlockId, BlockTimestamp]] = []  # to all nodes, if they took it

    def block(self) -> BlockId:
        """The block of one of the files."""
        block: BlockId = self.position.workload.block_of_a_file()
        return block

    def item(self, block: BlockId) -> bytes:
        """Contents that the checker recognizes."""
        item: bytes = self.position.workload.intruding(
            self.position.name, block, self.position.now()
        )
        return item

    def hosts(self) -> list[int]:
        """A few nodes; or all, of which those accept the write whose replica is behind."""
        return self.random.choice((super().hosts(), self.all_nodes()))

    async def time(self, block: BlockId) -> int:
        """Now, or the time of the newest version at some node, which the file's size covers."""
        await self.send(self.some_nodes(1), TimeRequest((block,)))
        delivery = await Receive(LISTEN_US)
        if delivery is not None and isinstance(delivery.message, TimeReply):
            return delivery.message.times[0] + self.random.choice((0, 1))
        return await Now()

    async def act(self) -> None:
        """Plant or finish a version, write one to all nodes, or cover one of these."""
        match self.random.randrange(4):
            case 0:
                block = self.block()
                item, time = self.code.encode(self.item(block)), await self.time(block)
                timestamp = await self.write(block, item, nodes=self.all_nodes(), time=time)
                self._written.append((block, timestamp))
            case 1 if self._written:
                await self._cover(*self.random.choice(self._written))
            case _:
                await super().act()

    async def _cover(self, block: BlockId, timestamp: BlockTimestamp) -> None:
        inode = inode_of(block)
        await self._updater.observe((inode,))
        blocks = (covered(block_number_of(block), timestamp),)
        writing = Writing(CONTENT_BYTES, incarnation_of(block), 0, Changes(), blocks)
        operation = self._updater.wrapped((WRITE, (inode,), writing), self.random.getrandbits(62))
        sets = self._updater.latest_sets((inode,))
        vouched_by = await self._hosting(block, timestamp)
        await self._updater.update(
            self.all_nodes(), sets, operation=operation, vouched_by=vouched_by
        )

    async def _hosting(self, block: BlockId, timestamp: BlockTimestamp) -> VouchedBy:
        """The nodes that vouch for a version; allies do, whether or not they host it."""
        request = VouchSetRequest((VersionName(block, timestamp),))
        made = await self.vouched(request, digest_of(((block, timestamp),)))
        return VouchedBy(bytes(made), b"".join(made.values()))


class Snooper(Writer):
    """Gathers fragments of files' blocks that its user may not read, for as long as it takes.

    [design §6] Nodes check read permission as they check write permission, whatever it asks for and
    whomever it claims to be; b nodes that show theirs are not enough. (docs/threat-model.md, G9)
    Shown by permission: what it puts together it was permitted to read once.
    """

    def __init__(self, position: ClientPosition) -> None:
        super().__init__(position)
        self._fragments: dict[tuple[BlockId, BlockTimestamp], dict[int, bytes]] = {}

    async def act(self) -> None:
        """Ask all nodes for a version of a block; put together what there are enough fragments of.

        The latest one, or one before another that it has heard of.
        """
        self.user = self.random.choice((*_CLAIMS, USER))
        block: BlockId = self.position.workload.block_of_a_file()
        block = self.random.choice((block, *(heard for heard, _ in self._fragments)))
        later = [timestamp for heard, timestamp in self._fragments if heard == block]
        before = self.random.choice((None, None, *later))
        await self.send(self.all_nodes(), ReadRequest(block, before, True, 0, *self.user))
        for _ in range(self.n):
            delivery = await Receive(LISTEN_US)
            if delivery is None:
                break
            match delivery.message:
                case ReadReply(versions) if versions and delivery.body:
                    index = fragment_index(block, delivery.node, self.n)
                    self._gather(block, versions[0].timestamp, index, bytes(delivery.body))
                case _:
                    pass

    def _gather(
        self, block: BlockId, timestamp: BlockTimestamp, index: int, fragment: bytes
    ) -> None:
        fragments = self._fragments.setdefault((block, timestamp), {})
        fragments[index] = fragment
        if len(fragments) != self.code.m:
            return
        with suppress(PeerFault):  # a liar's fragment may be of no item
            item = bytes(self.code.decode(fragments))
            self.position.workload.expose(self.position.name, block, item, self.position.now())


class FileConspirator(BlockConspirator, Overwriter):
    """An overwriter with an ally, which shows its versions to some nodes, and finishes them.

    [design §6] a node that lies may vouch for writes that were not permitted. Shown by permission.
    """


class FileMeddler(BlockMeddler):
    """Repairs versions of files' blocks, of any age and author, also of deleted files.

    [PASIS §3.4.3.3] as for other blocks; and [design §8] what was collected stays collected. Shown
    by the contents of files, the past and retention.
    """

    def block(self) -> BlockId:
        """The block of one of the files."""
        block: BlockId = self.position.workload.block_of_a_file()
        return block
