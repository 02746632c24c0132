"""Clients that misuse replicated objects. [Q/U §4.3.5 Malevolent components]

They may invoke every method that their grant allows; so each of their operations may take place,
once. They must not be able to let a part of an operation take place, to undo an established
version, to make servers build on different versions, or to keep other clients from making progress
once they stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

from bftfs import limits
from bftfs.conversation import Delivery, Draw, Now, Receive
from bftfs.crypto.digest import authenticator_bytes, deduction_digest
from bftfs.errors import MalformedMessage
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.query_update.history import (
    INITIAL,
    ZERO,
    Candidate,
    Conditioned,
    ConditionedKind,
    Fact,
    Known,
    LogicalTimestamp,
    ObjectHistorySet,
    Operation,
    assemble,
    history_of,
    logical_timestamp,
    parse_history,
    parse_set,
    timestamp_of,
)
from bftfs.query_update.messages import (
    DeduceReply,
    DeduceRequest,
    InlineBarrier,
    InlineUpdate,
    Query,
    QueryReply,
    Update,
    UpdateReply,
    Verdict,
    VouchedBy,
)
from bftfs.query_update.object_type import Record, encode_record
from bftfs.simulation.byzantine.positions import (
    LEAPS_US,
    ClientAdversary,
    ClientPosition,
    as_sent,
    mutated,
)
from bftfs.wire.codec import Voucher, encode

_LISTEN_US = 10_000

Sets = tuple[tuple[ObjectHistorySet, ...], tuple[bytes, ...]]  # with their authenticators


class Updater(ClientAdversary):
    """The tools of these clients: collect histories, and send anything to any server."""

    def __init__(self, position: ClientPosition) -> None:
        super().__init__(position)
        # All that servers have ever said: the latest is what a correct client would use.
        self.said: dict[ObjectId, dict[NodeId, list[Known]]] = {}

    def operation(self, serial: int) -> Operation:
        """An update that may take place from now on."""
        attempted = self.position.workload.attempted(self.position.name, self.position.now())
        return self.wrapped(attempted, serial)

    def wrapped(
        self, invocation: tuple[str, tuple[ObjectId, ...], Record], serial: int
    ) -> Operation:
        """The invocation of a method, on behalf of the user that it acts for."""
        method, objects, arguments = invocation
        return Operation(method, objects, encode_record(arguments), *self.user, serial)

    async def observe(self, objects: Sequence[ObjectId]) -> None:
        """Ask all servers for their histories, and listen for a while."""
        names = tuple(sorted(set(objects)))
        await self.send(range(self.n), Query(names, "", b"", *self.user, NodeId(0)))
        await self.listen(names)

    async def listen(self, names: Sequence[ObjectId]) -> None:
        """Take down what servers say of their histories of `names`."""
        for _ in range(2 * self.n):
            delivery = await Receive(_LISTEN_US)
            if delivery is None:
                return
            self._take_down(names, delivery)

    def _take_down(self, names: Sequence[ObjectId], delivery: Delivery) -> None:
        reply = delivery.message
        if not isinstance(reply, QueryReply | UpdateReply) or len(reply.histories) != len(names):
            return
        for name, history, authenticator in zip(
            names, reply.histories, reply.authenticators, strict=False
        ):
            try:
                parse_history(history)
            except MalformedMessage:
                continue
            known = Known(history, authenticator)
            said = self.said.setdefault(name, {}).setdefault(delivery.node, [])
            if not said or said[-1] != known:
                said.append(known)

    def latest(self, name: ObjectId) -> dict[NodeId, Known]:
        """The latest histories: those that a correct client would use."""
        return {node: said[-1] for node, said in self.said.get(name, {}).items()}

    def sets(self, known: Mapping[ObjectId, Mapping[NodeId, Known]]) -> Sets:
        """History sets of these objects, ascending, and their authenticators."""
        assembled = [assemble(name, known[name]) for name in sorted(known)]
        return tuple(each[0] for each in assembled), tuple(each[1] for each in assembled)

    async def update(
        self,
        nodes: Iterable[int],
        sets: Sets,
        *,
        kind: ConditionedKind = ConditionedKind.METHOD,
        operation: Operation | None = None,
        clock: int | None = None,
        facts: tuple[Fact, ...] = (),
        vouchers: tuple[tuple[Voucher, ...], ...] = (),
        vouched_by: VouchedBy | None = None,
    ) -> Conditioned:
        """Send a request to `nodes`, and listen. Its clock: now, and none in a barrier or a copy.

        Servers refuse a barrier or a copy that carries a clock, whatever else is wrong with it.
        """
        history_sets, authenticators = sets
        if clock is None:
            clock = await Now() if kind is ConditionedKind.METHOD else 0
        conditioned = Conditioned(kind, operation, clock, history_sets, (), facts)
        request = Update(encode(conditioned), authenticators, vouchers, NodeId(0), vouched_by)
        await self.send(nodes, request)
        await self.listen([each.object for each in history_sets])
        return conditioned

    async def fresh(self) -> tuple[Operation, Sets]:
        """An operation, and the history sets that a correct client would condition it on."""
        operation = self.operation(await Draw(1 << 62))
        await self.observe(operation.objects)
        return operation, self.latest_sets(operation.objects)

    def latest_sets(self, objects: Iterable[ObjectId]) -> Sets:
        """The history sets of these objects that a correct client would use."""
        return self.sets({name: self.latest(name) for name in objects})

    def some_nodes(self) -> list[int]:
        """Some of them, in any order."""
        return self.random.sample(range(self.n), self.random.randint(1, self.n))

    def an_object(self) -> ObjectId:
        """One of the objects that everybody uses."""
        identifier: ObjectId = self.random.choice(self.position.workload.objects)
        return identifier


class PartialUpdater(Updater):
    """Sends a good update to some servers only, and stops.

    [Q/U §4.3.3] what is potential is repaired or superseded, and "established candidates are
    classified as repairable or complete". Shown by serializability: it takes place once or never,
    at all of its objects alike.
    """

    async def act(self) -> None:
        """One update."""
        operation, sets = await self.fresh()
        await self.update(self.some_nodes(), sets, operation=operation)


class TwoFacedUpdater(Updater):
    """Conditions two operations on the same version, and shows each to some of the servers.

    [Q/U §4.3.5] "Only one update of a specific object version can complete successfully", since the
    operation is tied to the timestamp. Shown by serializability and candidates.
    """

    async def act(self) -> None:
        """Send one operation to some servers, and another one to the others."""
        one, sets = await self.fresh()
        other = self.operation(await Draw(1 << 62))
        if set(other.objects) != set(one.objects):
            await self.observe(other.objects)
        others = self.latest_sets(other.objects)
        clock = await Now()
        nodes = self.all_nodes()
        half = self.random.randint(0, self.n)
        overlap = self.random.randint(0, 2)
        await self.update(nodes[: half + overlap], sets, operation=one, clock=clock)
        await self.update(nodes[half:], others, operation=other, clock=clock)


class StaleConditioner(Updater):
    """Conditions on histories that were true once.

    [Q/U §4.3.4] line 1007: a server accepts nothing that is not conditioned on the latest it has
    accepted. Shown by serializability.
    """

    async def act(self) -> None:
        """Send an update that is conditioned on old histories, or on none."""
        random = self.random
        operation, _ = await self.fresh()
        known = {
            name: {
                node: said[random.randrange(len(said))]
                for node, said in self.said.get(name, {}).items()
                if random.random() < 0.9
            }
            for name in operation.objects
        }
        if random.random() < 0.2:
            known = {name: {} for name in operation.objects}
        await self.update(self.all_nodes(), self.sets(known), operation=operation)


class CherryPicker(Updater):
    """Leaves out histories, so that an established version seems not to be, and "repairs" it.

    [Q/U §4.3.3] (4.3): "some repairable set of an established candidate is contained in every other
    quorum", whichever histories a client chooses to show. Shown by serializability and candidates.
    """

    async def act(self) -> None:
        """A barrier, a copy or a method on some of the histories, fresh ones and old ones."""
        random = self.random
        operation = self.operation(await Draw(1 << 62))
        await self.observe(operation.objects)
        for _ in range(random.randint(1, 4)):
            known = {
                name: {
                    node: said[-1] if random.random() < 0.8 else random.choice(said)
                    for node, said in self.said.get(name, {}).items()
                    if random.random() < random.choice((0.3, 0.7, 1.0))
                }
                for name in random.sample(
                    sorted(set(operation.objects)), random.randint(1, len(set(operation.objects)))
                )
            }
            kind = random.choice(tuple(ConditionedKind))
            if kind is ConditionedKind.METHOD:
                known = {name: known.get(name, self.latest(name)) for name in operation.objects}
            await self.update(
                self.some_nodes(),
                self.sets(known),
                kind=kind,
                operation=operation if kind is ConditionedKind.METHOD else None,
            )
            if kind is ConditionedKind.METHOD:
                return  # another one would be another update with the same label


class BarrierSpammer(Updater):
    """Makes barriers all the time, and never copies what is behind them.

    [Q/U §4.3.5] "back-off and unfinished work are limited at the server per client": beyond its
    allowance, a server refuses. Shown by progress and serializability.
    """

    async def act(self) -> None:
        """Send a burst of barriers at one object, with histories that hide that none is needed."""
        random, name = self.random, self.an_object()
        for _ in range(random.randint(1, 8)):
            await self.observe((name,))
            latest = sorted(self.latest(name).items())
            few = dict(random.sample(latest, min(len(latest), random.randint(1, 2))))
            await self.update(
                self.some_nodes(), self.sets({name: few}), kind=ConditionedKind.BARRIER
            )
            sets, authenticators = self.latest_sets((name,))
            if random.random() < 0.5:
                await self.send(self.some_nodes(), InlineBarrier(sets[0], authenticators[0]))


class ImpatientUpdater(Updater):
    """Never backs off: sends update after update, and a barrier and a copy if one fails.

    [Q/U §4.3.5] "clients […] use a back-off policy": a client that does not slows others down, no
    more than servers allow to one client, and no longer than it acts. Shown by progress when it
    stops, and serializability.
    """

    async def act(self) -> None:
        """A burst at one operation's objects."""
        operation, sets = await self.fresh()
        for _ in range(self.random.randint(2, 8)):
            await self.update(self.all_nodes(), sets, operation=operation)
            latest = self.latest_sets(operation.objects)
            for kind in (ConditionedKind.BARRIER, ConditionedKind.COPY):
                await self.update(self.all_nodes(), latest, kind=kind)
                latest = self.latest_sets(operation.objects)
            operation, sets = await self.fresh()


class HalfMultiObject(Updater):
    """Begins an operation on several objects, and then uses one of them as if it had not.

    [Q/U §4.3.7] "either all of the objects in the multi-OHS are classified as repairable, some are
    classified complete (implying that all are complete), or some are classified incomplete". Shown
    by serializability: its label is in all of its objects' journals, or in none.
    """

    async def act(self) -> None:
        """A transfer to some servers, then a barrier, a copy or a deposit at one account."""
        random = self.random
        operation, sets = await self.fresh()
        await self.update(self.some_nodes(), sets, operation=operation)
        name = random.choice(operation.objects)
        for _ in range(random.randint(1, 3)):
            await self.observe((name,))
            kind = random.choice((ConditionedKind.BARRIER, ConditionedKind.COPY))
            known = self.latest(name)
            if random.random() < 0.5:
                known = {node: each for node, each in known.items() if random.random() < 0.7}
            await self.update(self.some_nodes(), self.sets({name: known}), kind=kind)


class Fabricator(Updater):
    """Forges histories in which all servers have a barrier, and no earlier update.

    [Q/U §4.3.2] "Authenticators […] prevent malevolent clients and servers from fabricating replica
    histories for benign servers": they are culled. Shown by serializability; without culling, a
    copy of the initial version would undo everything.
    """

    async def act(self) -> None:
        """A copy, or an update, that rests on a forged barrier or an established version."""
        random, name = self.random, self.an_object()
        operation = self.operation(await Draw(1 << 62))
        now_us = await Now()
        barrier = Candidate(
            logical_timestamp(
                time_us=now_us + random.choice((0, 1_000_000)),
                barrier=True,
                client=self.position.client,
                digest=random.randbytes(32),
            ),
            ZERO,
        )
        await self.observe(operation.objects)
        forged = history_of((barrier,), initial=True)
        known = {NodeId(node): self._forge(NodeId(node), name, forged) for node in range(self.n)}
        await self.update(self.all_nodes(), self.sets({name: known}), kind=ConditionedKind.COPY)
        # A candidate that servers have accepted, shown as if all of them had.
        subject = operation.objects[0]
        histories = [each.history for each in self.latest(subject).values()]
        chosen = random.choice(histories) if histories else b""
        shown = self.latest(subject) | {
            NodeId(node): self._forge(NodeId(node), subject, chosen)
            for node in range(self.n)
            if chosen and random.random() < 0.8
        }
        others = {other: self.latest(other) for other in operation.objects if other != subject}
        await self.update(
            self.all_nodes(), self.sets({subject: shown, **others}), operation=operation
        )

    def _forge(self, node: NodeId, name: ObjectId, history: bytes) -> Known:
        """`history` as if `node` had reported it; for an ally, that is as good as true."""
        for ally in self.position.allies:
            if ally.node == node:
                return ally.reported(name, history)
        return Known(history, self.random.randbytes(authenticator_bytes(self.n)))


class FalseRepairer(Updater):
    """Repairs inline operations that nobody has begun, and makes copies that rest on false facts.

    [Q/U §4.3.5] an inline repair needs a repairable set of histories with the candidate; [§4.3.7] a
    statement of deduction needs b + 1 servers. Shown by serializability: it speaks in the names of
    clients that do not exist.
    """

    async def act(self) -> None:
        """Send an inline repair in a false name, or a copy that skips an established version."""
        random = self.random
        operation, (sets, _) = await self.fresh()
        nodes = self.all_nodes()
        if random.random() < 0.5:
            author = ClientId(random.randbytes(16))
            conditioned = Conditioned(ConditionedKind.METHOD, operation, await Now(), sets, (), ())
            encoded = encode(conditioned)
            culled = [parse_set(each, n=self.n) for each in sets]
            timestamp = timestamp_of(conditioned, encoded, culled, author)
            hosted = culled[0].hosted
            base = max((each.history.latest_object.timestamp for each in hosted), default=ZERO)
            forged = history_of((Candidate(timestamp, base),), initial=random.random() < 0.5)
            name = sets[0].object
            known = dict(self.latest(name))
            for ally in self.position.allies:
                known[ally.node] = ally.reported(name, forged)
            evidence, macs, _ = assemble(name, known)
            request = InlineUpdate(encoded, author, evidence, macs, NodeId(0))
            await self.send(nodes, request)
            await self.listen([each.object for each in sets])
            return
        name = random.choice(operation.objects)
        latest = [parse_history(each.history) for each in self.latest(name).values()]
        target = max(
            (each.latest_object for each in latest), key=attrgetter("timestamp"), default=INITIAL
        )
        fact = Fact(target.timestamp, target.objects or (name,), random.random() < 0.5)
        digest = deduction_digest(
            timestamp=fact.timestamp, objects=fact.objects, established=fact.established
        )
        vouchers = tuple(
            Voucher(ally.node, ally.keys.make(digest)) for ally in self.position.allies
        )
        kind = random.choice((ConditionedKind.BARRIER, ConditionedKind.COPY))
        await self.update(
            nodes,
            self.latest_sets((name,)),
            kind=kind,
            facts=(fact,),
            vouchers=(vouchers + vouchers[:1],),
        )


class Misquoter(Updater):
    """Quotes what correct servers say of one object as if they had said it of another.

    [Q/U §4.3.7] servers that are asked about an object which an operation has not touched, and
    which has gone on since, find nothing of the operation there: to them it is dead. Shown by
    serializability: at its own objects it may be established.
    """

    async def act(self) -> None:
        """Bar an object at the servers that may not have heard of its latest update; copy."""
        random = self.random
        name, other = self.an_object(), self.an_object()
        await self.observe((name,))
        latest = {
            node: parse_history(each.history).latest_object
            for node, each in self.latest(name).items()
        }
        target = max(latest.values(), key=attrgetter("timestamp"), default=INITIAL)
        vouchers = await self._quoted(target.timestamp, (other,))
        behind = [node for node in latest if latest[node] != target]
        nodes = [
            *behind,
            *random.sample(sorted(set(latest) - set(behind)), len(latest) - len(behind)),
        ]
        nodes = nodes[: self.n - random.randint(0, self.n // 3)]
        shown = {node: each for node, each in self.latest(name).items() if node in nodes}
        await self.update(nodes, self.sets({name: shown}), kind=ConditionedKind.BARRIER)
        barred = {node: each for node, each in self.latest(name).items() if node in nodes}
        of = random.choice(((other,), target.objects or (name,)))
        await self.update(
            self.all_nodes(),
            self.sets({name: barred}),
            kind=ConditionedKind.COPY,
            facts=(Fact(target.timestamp, of, established=False),),
            vouchers=(vouchers,),
        )

    async def _quoted(
        self, timestamp: LogicalTimestamp, objects: tuple[ObjectId, ...]
    ) -> tuple[Voucher, ...]:
        """The servers' vouchers that a candidate is dead, as they judge by these objects."""
        await self.send(range(self.n), DeduceRequest(timestamp, objects))
        vouchers: dict[NodeId, Voucher] = {}
        for _ in range(2 * self.n):
            delivery = await Receive(_LISTEN_US)
            if delivery is None:
                break
            reply = delivery.message
            if isinstance(reply, DeduceReply) and reply.verdict is Verdict.DEAD:
                vouchers[delivery.node] = Voucher(delivery.node, reply.voucher)
        return tuple(vouchers[node] for node in sorted(vouchers))


class FutureUpdater(Updater):
    """Makes its updates at times ahead of everybody's clock, within what is sane and beyond.

    [design §4] "LT.Time = max(latest_time(OHS) + 1, operation's clock)", and nobody accepts what is
    beyond its clock and the bound. Shown by progress and serializability.
    """

    async def act(self) -> None:
        """One complete update at a time of the client's choice."""
        operation, sets = await self.fresh()
        clock = await Now() + self.random.choice((*LEAPS_US, -limits.CLOCK_SKEW_US))
        await self.update(self.all_nodes(), sets, operation=operation, clock=clock)


class ObjectTrespasser(Updater):
    """Updates as a user whom its grant does not cover, or without the right to write at all.

    [design §3] "A grant says which uids a client may act as (or all), whether it may write". Shown
    by the journals and names that its updates must not appear in.
    """

    async def act(self) -> None:
        """A good update that is not allowed, and its inline repair."""
        forbidden = self.position.workload.forbidden()
        if forbidden is None:
            await Receive(_LISTEN_US)
            return
        operation = self.wrapped(forbidden, await Draw(1 << 62))
        await self.observe(operation.objects)
        sets, macs = self.latest_sets(operation.objects)
        conditioned = await self.update(self.all_nodes(), (sets, macs), operation=operation)
        request = InlineUpdate(
            encode(conditioned), self.position.client, sets[0], macs[0], NodeId(0)
        )
        await self.send(self.all_nodes(), request)
        await self.listen([each.object for each in sets])


class GarbledUpdater(Updater):
    """Sends bytes that are nearly a request, or a request that is nearly well-formed.

    [architecture §6] what does not decode to a declared message is dropped at the door; what
    decodes and makes no sense is rejected. Shown by the absence of exceptions.
    """

    async def act(self) -> None:
        """A spoilt update to every server."""
        random = self.random
        operation, (sets, authenticators) = await self.fresh()
        encoded = encode(Conditioned(ConditionedKind.METHOD, operation, await Now(), sets))
        for node in self.all_nodes():
            inner = encoded if random.random() < 0.5 else mutated(encoded, random)
            request: Update | bytes = Update(inner, authenticators, (), NodeId(0))
            if inner is encoded:
                request = mutated(encode(as_sent(request, node, self.n)), random)
            await self.send((node,), request)
