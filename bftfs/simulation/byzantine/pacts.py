"""Pairs of a client and a node that know each other's keys, and follow one plan.

The client begins an operation of which only the two know. The node tells some of the others that it
has accepted it, and the rest that it has not, and signs both. It passes the client's messages on in
its own name, as a repair. Neither can do that alone: a node does not know which candidates of which
client to deny, and histories that a client forges are culled unless a node signs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from bftfs.coding import cross_checksum
from bftfs.coding.erasure import Buffer
from bftfs.conversation import Send
from bftfs.crypto.digest import voucher_digest
from bftfs.identifiers import BlockId, NodeId, ObjectId
from bftfs.query_update.history import (
    Candidate,
    Conditioned,
    ConditionedKind,
    Known,
    client_of,
    history_of,
    parse_history,
)
from bftfs.query_update.messages import InlineBarrier, InlineUpdate, QueryReply, UpdateReply
from bftfs.read_write.messages import (
    Listed,
    Notice,
    ReadReply,
    ReadRequest,
    VouchReply,
    VouchRequest,
    WriteRequest,
)
from bftfs.read_write.placement import rotation_of
from bftfs.read_write.timestamp import BlockTimestamp, encoded
from bftfs.server.step import Ready
from bftfs.simulation.byzantine.block_repairs import LateFinisher, Planted
from bftfs.simulation.byzantine.object_clients import Updater
from bftfs.simulation.byzantine.object_nodes import objects_of
from bftfs.simulation.byzantine.positions import Asked, NodeAdversary, NodePosition, as_sent
from bftfs.wire.codec import encode

_BARRIER, _COPY = ConditionedKind.BARRIER, ConditionedKind.COPY


class Confederate(NodeAdversary):
    """Says, signs and sends what the client with which it has a pact wants; else it is correct.

    [Q/U §4.3.3] (4.4): an established candidate and a potential one on the same base meet at a
    benign server, whatever b others say; [PASIS §3.4.4] (3.4) the same for blocks.
    Shown by serializability, candidates and linearizability.
    """

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        self._sides: dict[bytes, int] = {}  # which of two stories each client and node is told

    def answer(self, asked: Asked) -> Ready:
        """Send what the client has left; then answer the asker as agreed."""
        pact = self.position.pact
        if pact.outbox and self.is_new(asked.message):
            sent = [Send(*pact.outbox.popleft()) for _ in range(len(pact.outbox))]
            return self.after(*sent)
        ready = self.honest(asked)
        side = self._sides.setdefault(bytes(asked.sender.client), self.random.randrange(2))
        match asked.message, ready.reply:
            case _, QueryReply() | UpdateReply():
                self._tell(asked, ready, side)
            case ReadRequest(), ReadReply(versions) if versions:
                return self._show(asked, ready, side)
            case VouchRequest(block=block, timestamp=timestamp), VouchReply():
                if (block, timestamp) in pact.planted:
                    digest = voucher_digest(block=block, timestamp=encoded(timestamp))
                    ready.reply = VouchReply(self.position.keys.make(digest))
            case _:
                pass
        return ready

    def _tell(self, asked: Asked, ready: Ready, side: int) -> None:
        reply, told = ready.reply, self.position.pact.told
        names = objects_of(asked.message)
        if not any(name in told for name in names) or len(names) != len(reply.histories):
            return
        reported = [
            self.position.reported(name, told[name][side])
            if name in told
            else Known(history, authenticator)
            for name, history, authenticator in zip(
                names, reply.histories, reply.authenticators, strict=True
            )
        ]
        ready.reply = replace(
            reply,
            histories=tuple(known.history for known in reported),
            authenticators=tuple(known.authenticator for known in reported),
        )

    def _show(self, asked: Asked, ready: Ready, side: int) -> Ready:
        planted, message = self.position.pact.planted, asked.message
        while side and isinstance(ready.reply, ReadReply) and ready.reply.versions:
            newest = ready.reply.versions[0].timestamp
            if (message.block, newest) not in planted:
                break
            older = replace(message, before=newest)
            ready = self.honest(asked._replace(message=older, body=b""))
        if isinstance(ready.reply, ReadReply):
            versions = tuple(
                Listed(each.timestamp, verified=True)
                if (message.block, each.timestamp) in planted
                else each
                for each in ready.reply.versions
            )
            ready.reply = replace(ready.reply, versions=versions)
        return ready


class ObjectConspirator(Updater):
    """Begins an update that its ally affirms to some and denies to others; then finishes it, or
    bars the object and copies what was before, or does both, each at some servers.

    [Q/U §4.3.3] (4.4): of two candidates on one base, only one is ever established or finished.
    Shown by serializability and candidates.
    """

    async def act(self) -> None:
        """Begin an update, agree with the ally on what to say, and finish or undo it."""
        random = self.random
        operation, sets = await self.fresh()
        names = tuple(sorted(set(operation.objects)))
        before = {name: self.latest(name) for name in names}
        conditioned = await self.update(self.some_nodes(), sets, operation=operation)
        begun = {name: self._begun(name) for name in names}
        if not all(begun.values()):
            return  # no server has accepted it
        for ally in self.position.allies:
            for name, history in begun.items():
                ally.pact.told[name] = history, _history(before[name].get(ally.node))
        name = random.choice(names)
        for _ in range(random.randint(1, 3)):
            if random.random() < 0.5:
                await self._finish(name, begun[name], conditioned)
            else:
                await self._undo(name, before[name])
        if random.random() < 0.5:
            for ally in self.position.allies:
                ally.pact.told.clear()

    def _begun(self, name: ObjectId) -> bytes:
        """The history of a server that has accepted the update as its latest, or nothing."""
        for known in self.latest(name).values():
            if client_of(parse_history(known.history).latest) == self.position.client:
                return known.history
        return b""

    async def _finish(self, name: ObjectId, history: bytes, conditioned: Conditioned) -> None:
        """Finish the update at some servers, with the allies' histories."""
        await self.observe((name,))
        known = self.latest(name)
        for ally in self.position.allies:
            known[ally.node] = ally.reported(name, history)
        (evidence,), (authenticators,) = self.sets({name: known})
        request = InlineUpdate(
            encode(conditioned), self.position.client, evidence, authenticators, NodeId(0)
        )
        await self.pass_on(self.some_nodes(), request)
        await self.listen([each.object for each in conditioned.sets])

    async def _undo(self, name: ObjectId, before: Mapping[NodeId, Known]) -> None:
        """Bar the object as if nothing had been begun, and copy the version before."""
        shown = {
            node: known for node, known in self.latest(name).items() if self.random.random() < 0.8
        }
        denial = [(ally, _history(before.get(ally.node))) for ally in self.position.allies]
        for ally, history in denial:
            shown[ally.node] = ally.reported(name, history)
        if not shown:
            return
        await self.update(self.all_nodes(), self.sets({name: shown}), kind=_BARRIER)
        barred = self.latest(name)
        barriers = (
            each
            for known in barred.values()
            for each in parse_history(known.history).candidates
            if each.barrier
        )
        barrier = max(barriers, key=_time, default=None)
        if barrier is None:
            return
        for ally, history in denial:
            barred[ally.node] = ally.reported(name, _followed(history, barrier))
        sets, authenticators = self.sets({name: barred})
        await self.pass_on(self.some_nodes(), InlineBarrier(sets[0], authenticators[0]))
        await self.listen((name,))
        await self.update(self.some_nodes(), (sets, authenticators), kind=_COPY)

    async def pass_on(self, nodes: list[int], message: Any) -> None:
        """Send a repair to `nodes`, or leave that to an ally."""
        if self.position.allies and self.random.random() < 0.5:
            ally = self.random.choice(self.position.allies)
            ally.pact.outbox.extend(
                (NodeId(node), as_sent(message, node, self.n), b"") for node in nodes
            )
        else:
            await self.send(nodes, message)


class BlockConspirator(LateFinisher):
    """Writes versions to its ally and few others; the ally shows them to some, and finishes them.

    [PASIS §3.4.4] (3.3), (3.4): a version that a reader has returned stays, and one that it has
    passed over is never complete, whatever b nodes say. Shown by linearizability.
    """

    def hosts(self) -> list[int]:
        """Few nodes, and the ally."""
        return sorted({*super().hosts(), *(ally.node for ally in self.position.allies)})

    async def keep(
        self, block: BlockId, timestamp: BlockTimestamp, fragments: tuple[Buffer, ...]
    ) -> Planted:
        """As above; the ally hides it from some, and tells others that it has verified it."""
        planted = await super().keep(block, timestamp, fragments)
        for ally in self.position.allies:
            ally.pact.planted.add((block, timestamp))
            ally.pact.outbox.extend(
                (NodeId(node), Notice(block, timestamp), b"") for node in self.some_nodes(self.n)
            )
        return planted

    async def finish(self, planted: Planted) -> None:
        """Leave the repair to the ally, or do it."""
        if not self.position.allies or self.random.random() < 0.5:
            await super().finish(planted)
            return
        ally = self.random.choice(self.position.allies)
        request = WriteRequest(
            planted.block,
            planted.timestamp,
            cross_checksum.make(planted.fragments),
            *self.user,
            planted.vouchers,
        )
        rotation = rotation_of(planted.block, self.n)
        ally.pact.outbox.extend(
            (NodeId(node), request, bytes(planted.fragments[(node - rotation) % self.n]))
            for node in self.some_nodes(self.random.randint(1, self.n))
        )


def _history(known: Known | None) -> bytes:
    return b"" if known is None else known.history


def _followed(history: bytes, barrier: Candidate) -> bytes:
    """`history`, and a barrier after it."""
    honest = parse_history(history)
    kept = [each for each in honest.candidates if each.timestamp < barrier.timestamp]
    return history_of((*kept, barrier), initial=honest.initial)


def _time(candidate: Candidate) -> bytes:
    return candidate.timestamp
