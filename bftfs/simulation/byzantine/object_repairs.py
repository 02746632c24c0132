"""Clients and nodes that start repairs of objects, whether anybody needs them or not.

A client that may read may repair: bar an object, copy the version before the barrier, and finish
what another client has begun. A client that is allied with a node can have that node's
authenticators for anything. A node may do all of this of its own accord: see `initiative`.

The barriers of these adversaries may carry a clock, or rest on a history that a node has forged.
"""

from __future__ import annotations

from bftfs import limits
from bftfs.conversation import Now, Receive, Send
from bftfs.errors import MalformedMessage
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    ConditionedKind,
    Known,
    client_of,
    history_of,
    is_barrier,
    logical_timestamp,
    parse_history,
)
from bftfs.query_update.messages import (
    FetchReply,
    FetchRequest,
    InlineBarrier,
    InlineUpdate,
)
from bftfs.simulation.byzantine.object_clients import Updater
from bftfs.simulation.byzantine.positions import NodePosition

_LISTEN_US = 10_000
_BARRIER = ConditionedKind.BARRIER
NOBODY = ClientId(b"?" * 16)  # the client in whose name a node forges barriers
_SECOND_US = limits.SECOND_US
# How far ahead of its clock an adversary dates what it makes.
_AHEAD_US = (1_000, _SECOND_US, limits.CLOCK_SKEW_US // 3, limits.CLOCK_SKEW_US - _SECOND_US)


class ClockedBarrier(Updater):
    """Bars an object at a time far ahead, on any histories that it has ever been shown.

    [Q/U §4.3.5] a barrier's time is one more than what it has seen; one that carries a clock of its
    own interrupts what servers have accepted since. Shown by progress and serializability.
    """

    async def act(self) -> None:
        """Send a burst of barriers at one object, each later than the one before."""
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
                kind=_BARRIER,
                clock=clock_us,
            )


class RacingBarrier(Updater):
    """Bars the latest version as soon as it hears of it, without forged histories or a clock.

    [Q/U §4.3.5] servers hold each client to an allowance. Shown by progress and serializability.
    """

    async def act(self) -> None:
        """Ask one server, and bar on top of its history; several times in a row."""
        random, name = self.random, self.an_object()
        for _ in range(random.randint(1, 8)):
            await self.observe((name,))
            latest = sorted(self.latest(name).items())
            if latest:
                few = dict(random.sample(latest, 1))
                await self.update(self.all_nodes(), self.sets({name: few}), kind=_BARRIER)


class ForgedBarrier(Updater):
    """Shows barriers that an ally has forged to some servers, or bars on top of them there.

    [Q/U §4.3.5] "every barrier that is not complete is repaired inline": that of a single server,
    which may be a liar, must not cost the others more than the liar could; and what one server lets
    pass counts at all. Shown by progress and bounds.
    """

    async def act(self) -> None:
        """Send some barriers at one object; without an ally, do nothing."""
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
            match random.randrange(3):
                case 0:
                    await self.send(self.some_nodes(), InlineBarrier(sets[0], authenticators[0]))
                    await self.listen((name,))
                case 1:
                    both = sets, authenticators
                    await self.update(self.some_nodes(), both, kind=_BARRIER)
                case _:
                    await self._spread(name, ally, known)

    async def _spread(self, name: ObjectId, ally: NodePosition, known: Known) -> None:
        """Bar at one server; with the ally's word, the others take that barrier inline."""
        server = NodeId(self.random.randrange(self.n))
        await self.update((server,), self.sets({name: {ally.node: known}}), kind=_BARRIER)
        barred = self.latest(name).get(server)
        if barred is None or not is_barrier(parse_history(barred.history).latest):
            return
        agreed = {server: barred, ally.node: ally.reported(name, barred.history)}
        sets, authenticators = self.sets({name: agreed})
        await self.send(self.all_nodes(), InlineBarrier(sets[0], authenticators[0]))
        await self.listen((name,))


class Meddler(Updater):
    """Repairs objects, needed or not: it finishes updates, bars, and copies, at few servers.

    [Q/U §4.3.5] a repair of what takes place anyway changes nothing. Shown by serializability and
    candidates.
    """

    async def act(self) -> None:
        """Take one step at one object, as its state suggests."""
        random, name = self.random, self.an_object()
        await self.observe((name,))
        old = random.random() < 0.3  # show what was said at any time
        known = {
            node: random.choice(said) if old else said[-1]
            for node, said in self.said.get(name, {}).items()
            if random.random() < 0.8
        }
        if not known:
            return
        sets, authenticators = self.sets({name: known})
        match random.randrange(3):
            case 0:
                await self.send(self.some_nodes(), InlineBarrier(sets[0], authenticators[0]))
                await self.listen((name,))
            case 1:
                kind = random.choice((_BARRIER, ConditionedKind.COPY))
                await self.update(self.some_nodes(), (sets, authenticators), kind=kind)
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


def forged_barrier(
    ally: NodePosition, name: ObjectId, known: Known | None, *, time_us: int
) -> Known:
    """A history of an ally, the latest candidate of which is a barrier that nobody has made."""
    try:
        honest = parse_history(known.history if known is not None else b"")
    except MalformedMessage:
        honest = parse_history(b"")
    timestamp = logical_timestamp(
        time_us=time_us, barrier=True, client=NOBODY, digest=ally.random.randbytes(32)
    )
    kept = [each for each in honest.candidates if each.timestamp < timestamp]
    head = next((each.timestamp for each in reversed(kept) if not each.barrier), ZERO)
    barrier = Candidate(timestamp, head)
    history = history_of((*kept, barrier), initial=honest.initial)
    return ally.reported(name, history)
