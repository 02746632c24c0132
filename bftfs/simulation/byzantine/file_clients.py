"""Clients that misuse the blocks of files: nodes ask their replicas of the inode who may write."""

from __future__ import annotations

from bftfs.conversation import Now, Receive
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.block_names import covered
from bftfs.filesystem.inode import Writing
from bftfs.filesystem.registry import WRITE
from bftfs.identifiers import BlockId, block_number_of, incarnation_of, inode_of
from bftfs.query_update.messages import VouchedBy
from bftfs.read_write.messages import (
    TimeReply,
    TimeRequest,
    VersionName,
    VouchSetRequest,
)
from bftfs.read_write.timestamp import BlockTimestamp, digest_of
from bftfs.simulation.byzantine.block_repairs import LISTEN_US, BlockMeddler, LateFinisher
from bftfs.simulation.byzantine.object_clients import Updater
from bftfs.simulation.byzantine.pacts import BlockConspirator
from bftfs.simulation.byzantine.positions import ClientPosition
from bftfs.simulation.deployment import CREDENTIALS, STRANGER, STRANGERS
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
