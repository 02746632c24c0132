"""Clients and nodes that start repairs of blocks, whether anybody needs them or not.

A client that may read may repair: send the other nodes their fragments of a version, with the
vouchers of nodes that host it. A client in league with a node has that node's vouchers for whatever
it likes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from bftfs import limits
from bftfs.coding import cross_checksum
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.coding.erasure import Buffer
from bftfs.conversation import Now, Receive
from bftfs.crypto.digest import Digest, verifier_of, voucher_digest
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write.messages import (
    ReadReply,
    ReadRequest,
    VouchReply,
    VouchRequest,
    VouchSetRequest,
)
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.timestamp import BlockTimestamp, encoded, successor_of
from bftfs.read_write.validation import regenerate
from bftfs.simulation.byzantine.block_clients import Writer
from bftfs.simulation.byzantine.positions import ClientPosition
from bftfs.wire.codec import Voucher

LISTEN_US = 10_000
_KEPT = 32  # versions that one of them remembers


class Planted(NamedTuple):
    """A version that some nodes host, and the vouchers of nodes for it."""

    block: BlockId
    timestamp: BlockTimestamp
    fragments: tuple[Buffer, ...]
    vouchers: tuple[Voucher, ...]


class LateFinisher(Writer):
    """Writes to few nodes, collects their vouchers and its allies', and finishes it much later.

    [PASIS §3.4.3.3] a repair shows vouchers of nodes of which one is correct; what was permitted
    when it was begun may be forbidden by then. Shown by linearizability, and by `tests/seams`.
    """

    def __init__(self, position: ClientPosition) -> None:
        super().__init__(position)
        self._planted: list[Planted] = []

    async def act(self) -> None:
        """Plant one, or finish one that was planted before."""
        if self._planted and self.random.random() < 0.5:
            await self.finish(self._planted.pop(self.random.randrange(len(self._planted))))
            return
        block = self.block()
        fragments = self.code.encode(self.item(block))
        nodes, time = self.hosts(), await self.time(block)
        timestamp = await self.write(block, fragments, nodes=nodes, time=time)
        await self.keep(block, timestamp, fragments)

    def hosts(self) -> list[int]:
        """Where it plants a version: at so few nodes that others may have to finish it."""
        return self.some_nodes(self.random.randint(1, self.position.sizes.read_write.repairable))

    async def time(self, block: BlockId) -> int:
        """The time that it gives a version of `block`."""
        del block
        return await Now()

    async def keep(
        self, block: BlockId, timestamp: BlockTimestamp, fragments: tuple[Buffer, ...]
    ) -> Planted:
        """Remember a version, with the vouchers that nodes give for it now."""
        vouchers = await self._vouchers(block, timestamp)
        kept = Planted(block, timestamp, fragments, vouchers)
        self._planted.append(kept)
        del self._planted[:-_KEPT]
        return kept

    async def vouched(
        self, request: VouchRequest | VouchSetRequest, digest: Digest
    ) -> dict[NodeId, bytes]:
        """Ask all nodes to vouch for `digest`; allies do, whatever they host."""
        given: dict[NodeId, bytes] = {}
        await self.send(range(self.n), request)
        for _ in range(self.n):
            delivery = await Receive(LISTEN_US)
            if delivery is None:
                break
            if isinstance(delivery.message, VouchReply) and delivery.message.authenticator:
                given[delivery.node] = delivery.message.authenticator
        for ally in self.position.allies:
            given[ally.node] = ally.keys.make(digest)
        return given

    async def _vouchers(self, block: BlockId, timestamp: BlockTimestamp) -> tuple[Voucher, ...]:
        digest = voucher_digest(block=block, timestamp=encoded(timestamp))
        given = await self.vouched(VouchRequest(block, timestamp), digest)
        return tuple(Voucher(node, made) for node, made in sorted(given.items()))

    async def finish(self, planted: Planted) -> None:
        """Send a version to some nodes, as its repair."""
        await self.write(
            planted.block,
            planted.fragments,
            nodes=self.some_nodes(self.random.randint(1, self.n)),
            time=planted.timestamp.time,
            author=planted.timestamp.client,
            vouchers=planted.vouchers,
        )


class BlockMeddler(LateFinisher):
    """Repairs versions of any age and author, needed or not, with old and new vouchers.

    [PASIS §3.4.3.3] a complete version stays complete, and an incomplete one is completed once or
    never, whichever client repairs it. Shown by linearizability, durability and retention.
    """

    async def act(self) -> None:
        """Repair a version that some node lists, or again one that it has repaired before."""
        random = self.random
        if self._planted and random.random() < 0.3:
            await self.finish(random.choice(self._planted))
            return
        block = self.block()
        timestamp = await self._any_version(block)
        fragments = None if timestamp is None else await self._fragments(block, timestamp)
        if timestamp is not None and fragments is not None:
            planted = await self.keep(block, timestamp, fragments)
            await self.finish(planted._replace(vouchers=self._shown(planted.vouchers)))

    async def _any_version(self, block: BlockId) -> BlockTimestamp | None:
        await self.send(
            self.some_nodes(1), ReadRequest(block, None, False, limits.HISTORY_IN_REPLY)
        )
        delivery = await Receive(LISTEN_US)
        reply = None if delivery is None else delivery.message
        if not isinstance(reply, ReadReply) or not reply.versions:
            return None
        return self.random.choice(reply.versions[: self.random.choice((1, 3, None))]).timestamp

    async def _fragments(
        self, block: BlockId, timestamp: BlockTimestamp
    ) -> tuple[Buffer, ...] | None:
        """All fragments of a version, if its nodes give enough of them."""
        found: dict[int, Buffer] = {}
        checksum = CrossChecksum(b"")
        await self.send(range(self.n), ReadRequest(block, successor_of(timestamp), True, 0))
        for _ in range(self.n):
            delivery = await Receive(LISTEN_US)
            if delivery is None:
                break
            reply, index = delivery.message, fragment_index(block, delivery.node, self.n)
            if (
                isinstance(reply, ReadReply)
                and reply.versions
                and reply.versions[0].timestamp == timestamp
                and verifier_of(reply.cross_checksum) == timestamp.verifier
                and cross_checksum.matches(reply.cross_checksum, index, delivery.body)
            ):
                checksum = reply.cross_checksum
                found[index] = bytes(delivery.body)
        return regenerate(self.code, checksum, found) if len(found) >= self.code.m else None

    def _shown(self, vouchers: Iterable[Voucher]) -> tuple[Voucher, ...]:
        """All vouchers, or some of them."""
        if self.random.random() < 0.7:
            return tuple(vouchers)
        return tuple(each for each in vouchers if self.random.random() < 0.6)
