"""Principals that start repairs which nobody needs, and pairs of them that share their keys.

Whoever may read may repair: bar an object, copy what is before the barrier, finish what another has
begun. A client in league with a node has that node's authenticators for whatever it likes, and the
node's word for what it does not host. A node may do all of this of its own accord: `Initiative`
gives a node what a client does.

All barriers here can be told to carry a clock, or to rest on a history that a node has forged.
"""

from __future__ import annotations

from typing import NamedTuple

from bftfs import limits
from bftfs.conversation import Now, Pause, Receive, Send
from bftfs.crypto.digest import voucher_digest
from bftfs.errors import MalformedMessage
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.inode import Writing
from bftfs.filesystem.registry import WRITE
from bftfs.identifiers import BlockId, ClientId, NodeId, ObjectId, inode_of
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    ConditionedKind,
    Known,
    client_of,
    history_of,
    logical_timestamp,
    parse_history,
)
from bftfs.query_update.messages import (
    FetchReply,
    FetchRequest,
    InlineBarrier,
    InlineUpdate,
)
from bftfs.read_write.messages import TimeReply, TimeRequest, VouchReply, VouchRequest
from bftfs.read_write.timestamp import BlockTimestamp, encoded
from bftfs.server.step import Host
from bftfs.simulation.byzantine.block_clients import Writer
from bftfs.simulation.byzantine.object_clients import Updater
from bftfs.simulation.byzantine.positions import ClientAdversary, ClientPosition, NodePosition
from bftfs.simulation.deployment import STRANGERS
from bftfs.simulation.principals import NodeServices, Servers
from bftfs.simulation.workloads.past import CONTENT_BYTES
from bftfs.wire.codec import Voucher

_LISTEN_US = 10_000
_NOBODY = ClientId(b"?" * 16)
_SECOND_US = limits.SECOND_US
# How far ahead of its clock an adversary dates what it makes.
_AHEAD_US = (1_000, _SECOND_US, limits.CLOCK_SKEW_US // 3, limits.CLOCK_SKEW_US - _SECOND_US)


class ClockedBarrier(Updater):
    """Bars an object at a time far ahead, on whatever it was ever told of it.

    [Q/U §4.3.5] a barrier's time is one more than what it has seen; one that carries a clock of its
    own interrupts what servers have accepted since. Shown by progress and serializability.
    """

    async def act(self) -> None:
        """A burst of barriers at one object, each later than the one before."""
        random, name = self.random, self.an_object()
        if not self.said.get(name):
            await self.observe((name,))
        said = self.said.get(name, {})
        if not said:
            return
        ahead_us = random.choice(_AHEAD_US)
        for _ in range(random.randint(1, 8)):
            node = random.choice(sorted(said))
            few = {node: random.choice(said[node])}
            clock_us = await Now() + ahead_us
            await self.update(
                self.some_nodes(),
                self.sets({name: few}),
                kind=ConditionedKind.BARRIER,
                clock=clock_us,
            )


class RacingBarrier(Updater):
    """Bars whatever is latest as soon as it hears of it, with nothing forged and no clock.

    [Q/U §4.3.5] servers hold each client to an allowance. Shown by progress and serializability.
    """

    async def act(self) -> None:
        """Ask one server, bar on top of what it says; some times in a row."""
        random, name = self.random, self.an_object()
        for _ in range(random.randint(1, 8)):
            await self.observe((name,))
            latest = sorted(self.latest(name).items())
            if latest:
                few = dict(random.sample(latest, 1))
                await self.update(
                    self.all_nodes(), self.sets({name: few}), kind=ConditionedKind.BARRIER, clock=0
                )


class ForgedBarrier(Updater):
    """Shows servers barriers that an ally has never accepted, or bars on top of them.

    [Q/U §4.3.5] "every barrier that is not complete is repaired inline": that of a single server,
    which may be a liar, must not cost the others more than the liar could. Shown by progress.
    """

    async def act(self) -> None:
        """Some barriers at one object; nothing without an ally."""
        random, name = self.random, self.an_object()
        if not self.position.allies:
            await Receive(_LISTEN_US)
            return
        ally = random.choice(self.position.allies)
        await self.observe((name,))
        ahead_us = random.choice(_AHEAD_US)
        for _ in range(random.randint(1, 8)):
            known = forged_barrier(
                ally, name, self.latest(name).get(ally.node), time_us=await Now() + ahead_us
            )
            sets, authenticators = self.sets({name: {ally.node: known}})
            if random.random() < 0.5:
                await self.send(self.some_nodes(), InlineBarrier(sets[0], authenticators[0]))
                await self.listen((name,))
            else:
                both = sets, authenticators
                await self.update(self.some_nodes(), both, kind=ConditionedKind.BARRIER, clock=0)


class Meddler(Updater):
    """Repairs whatever it meets, needed or not: finishes, bars and copies, and shows it to few.

    [Q/U §4.3.5] a repair of what takes place anyway changes nothing. Shown by serializability and
    candidates.
    """

    async def act(self) -> None:
        """One step at one object: whatever it finds there."""
        random, name = self.random, self.an_object()
        await self.observe((name,))
        known = {node: each for node, each in self.latest(name).items() if random.random() < 0.8}
        if not known:
            return
        sets, authenticators = self.sets({name: known})
        match random.randrange(3):
            case 0:
                await self.send(self.some_nodes(), InlineBarrier(sets[0], authenticators[0]))
                await self.listen((name,))
            case 1:
                kind = random.choice((ConditionedKind.BARRIER, ConditionedKind.COPY))
                await self.update(self.some_nodes(), (sets, authenticators), kind=kind, clock=0)
            case _:
                await self._finish(name, known)

    async def _finish(self, name: ObjectId, known: dict[NodeId, Known]) -> None:
        """Finish the latest candidate of one server at some others."""
        host = self.random.choice(sorted(known))
        candidate = parse_history(known[host].history).latest_object
        conditioned = await self._fetched(host, candidate)
        if not conditioned:
            return
        sets, authenticators = self.sets({name: known})
        request = InlineUpdate(
            conditioned,
            client_of(candidate.timestamp),
            sets[0],
            authenticators[0],
            NodeId(0),
        )
        await self.send(self.some_nodes(), request)
        await self.listen(candidate.objects or (name,))

    async def _fetched(self, host: NodeId, candidate: Candidate) -> bytes:
        await Send(host, FetchRequest(candidate.timestamp))
        for _ in range(4):
            delivery = await Receive(_LISTEN_US)
            if delivery is None:
                break
            if isinstance(delivery.message, FetchReply):
                return delivery.message.conditioned
        return b""


class _Planted(NamedTuple):
    """A version that a few nodes host, and who vouches for it."""

    block: BlockId
    item: bytes
    timestamp: BlockTimestamp
    vouchers: tuple[Voucher, ...]


class LateFinisher(Writer):
    """Writes to few nodes, collects their vouchers and its allies', and finishes it much later.

    [PASIS §3.4.3.3] a repair shows vouchers of nodes of which one is correct; what was permitted
    when it was begun may be forbidden by then. Shown by linearizability, and by `tests/seams`.
    """

    def __init__(self, position: ClientPosition) -> None:
        super().__init__(position)
        self._planted: list[_Planted] = []

    async def act(self) -> None:
        """Plant one, or finish one that was planted before."""
        if self._planted and self.random.random() < 0.5:
            await self._finish(self._planted.pop(self.random.randrange(len(self._planted))))
            return
        block = self.block()
        item = self.item(block)
        sizes = self.position.sizes.read_write
        nodes = self.some_nodes(self.random.randint(1, sizes.repairable))
        time = await self.time(block)
        timestamp = await self.write(block, self.code.encode(item), nodes=nodes, time=time)
        vouchers = await self._vouchers(block, timestamp)
        self._planted.append(_Planted(block, item, timestamp, vouchers))

    async def time(self, block: BlockId) -> int:
        """When it dates a version of `block`."""
        del block
        return await Now()

    async def _vouchers(self, block: BlockId, timestamp: BlockTimestamp) -> tuple[Voucher, ...]:
        given: dict[NodeId, bytes] = {}
        await self.send(range(self.n), VouchRequest(block, timestamp))
        for _ in range(self.n):
            delivery = await Receive(_LISTEN_US)
            if delivery is None:
                break
            if isinstance(delivery.message, VouchReply) and delivery.message.authenticator:
                given[delivery.node] = delivery.message.authenticator
        digest = voucher_digest(block=block, timestamp=encoded(timestamp))
        for ally in self.position.allies:
            given[ally.node] = ally.keys.make(digest)
        return tuple(Voucher(node, made) for node, made in sorted(given.items()))

    async def _finish(self, planted: _Planted) -> None:
        await self.write(
            planted.block,
            self.code.encode(planted.item),
            nodes=self.some_nodes(self.random.randint(1, self.n)),
            time=planted.timestamp.time,
            author=planted.timestamp.client,
            vouchers=planted.vouchers,
        )


class Overwriter(LateFinisher):
    """Writes to files as a user who may not, unless somebody lets him in; the same for repairs.

    [design §6] "Nodes check write permission before they accept a block", each against its own
    replica of the inode, which may be behind. Shown by permission: what it wrote is read only where
    it was permitted meanwhile.
    """

    def __init__(self, position: ClientPosition) -> None:
        super().__init__(position)
        self._updater = Updater(position)
        self.user = self._updater.user = STRANGERS

    def block(self) -> BlockId:
        """The block of one of the files."""
        block: BlockId = self.position.workload.block_of_a_file()
        return block

    def item(self, block: BlockId) -> bytes:
        """Contents by which the checker knows them."""
        item: bytes = self.position.workload.intruding(
            self.position.name, block, self.position.now()
        )
        return item

    async def time(self, block: BlockId) -> int:
        """Now, or as the newest version that some node has: what is shown of the file covers it."""
        await self.send(self.some_nodes(1), TimeRequest((block,)))
        delivery = await Receive(_LISTEN_US)
        if delivery is not None and isinstance(delivery.message, TimeReply):
            return delivery.message.times[0] + self.random.choice((0, 1))
        return await Now()

    async def act(self) -> None:
        """Plant or finish a version, write one to all nodes, or cover what is there."""
        match self.random.randrange(4):
            case 0:
                block = self.block()
                item, time = self.code.encode(self.item(block)), await self.time(block)
                await self.write(block, item, nodes=self.all_nodes(), time=time)
            case 1:
                await self._cover(inode_of(self.block()))
            case _:
                await super().act()

    async def _cover(self, inode: ObjectId) -> None:
        await self._updater.observe((inode,))
        writing = Writing(CONTENT_BYTES, 0, 0, Changes())
        operation = self._updater.wrapped((WRITE, (inode,), writing), self.random.getrandbits(62))
        sets = self._updater.latest_sets((inode,))
        await self._updater.update(self.all_nodes(), sets, operation=operation)


class Initiative:
    """What a Byzantine node does of its own accord, under its own name: a client's misdeeds."""

    def __init__(self, adversary: ClientAdversary, *, every_us: int, acts: int) -> None:
        """The number of acts, and the pause after each."""
        self._adversary = adversary
        self._every_us = every_us
        self._acts = acts

    async def run(self, _host: Host) -> None:
        """Go to work; a node that crashes begins anew."""
        for _ in range(self._acts):
            await self._adversary.act()
            await Pause(self._every_us)


def with_initiative(servers: Servers, *initiatives: Initiative) -> NodeServices:
    """The servers of a node that was taken over, and what it starts itself."""
    return NodeServices(servers, initiatives, lambda _object: None)


def forged_barrier(
    ally: NodePosition, name: ObjectId, known: Known | None, *, time_us: int
) -> Known:
    """A history of an ally's, of which the latest is a barrier that nobody has made."""
    try:
        honest = parse_history(known.history if known is not None else b"")
    except MalformedMessage:
        honest = parse_history(b"")
    timestamp = logical_timestamp(
        time_us=time_us, barrier=True, client=_NOBODY, digest=ally.random.randbytes(32)
    )
    kept = [each for each in honest.candidates if each.timestamp < timestamp]
    head = next((each.timestamp for each in reversed(kept) if not each.barrier), ZERO)
    barrier = Candidate(timestamp, head)
    history = history_of((*kept, barrier), initial=honest.initial)
    return ally.reported(name, history)
