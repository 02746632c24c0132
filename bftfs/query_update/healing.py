"""How a server gets back every object that it should have. [design §7, G8]

The server walks over all objects in the order of their ids. It asks its peers which they have, and
how late their replica histories are; where b + 1 of them are later than its own, it asks all for
the history, brings the version by object sync, and takes its candidate into its own history.

**Rule.** [Q/U §4.3.3] A server takes over an object candidate that it was not asked to accept only
where nothing later is reported, and

- it is at a full quorum of other servers: then it is established for all of its objects, and
  nothing that conflicts with it can ever be repairable; or
- the server is recovering from the loss of its store, and the candidate is at a repairable set of
  other servers: then whatever this server has accepted and forgotten, nothing that conflicts with
  the candidate is established: q - 1 + r - (n - 1) > b (4.4), so that a benign server would have
  had to accept both. While it recovers it accepts nothing that does not meet the same condition.

`bftfs.query_update.server` holds a recovering server to the second half of that.

**Concurrency.** One thread. A walk and a request may heal one object: the later changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice, pairwise
from typing import NamedTuple, Protocol

from bftfs import limits
from bftfs.conversation import Now, Pause, Together
from bftfs.errors import MalformedMessage
from bftfs.healing import HealingTally, ask_all, look, step
from bftfs.identifiers import OBJECT_ID_BYTES, NodeId, ObjectId
from bftfs.query_update import object_sync
from bftfs.query_update.candidate import Candidate
from bftfs.query_update.classification import shared_candidates
from bftfs.query_update.history import CulledObjectHistorySet, Hosted, parse_history
from bftfs.query_update.messages import (
    Catalogued,
    CatalogueReply,
    CatalogueRequest,
    HistoryReply,
    HistoryRequest,
)
from bftfs.query_update.replica import Reach, Replica, latest_of
from bftfs.query_update.timestamp import ZERO, LogicalTimestamp, time_of
from bftfs.quorum import Nodes, QuorumSystem
from bftfs.recovery import OBJECTS, Recovery
from bftfs.step import Host, Want
from bftfs.storage import StorageView, Table, Write

_END = b"\xff" * (OBJECT_ID_BYTES + 1)  # after all ids
_CURSOR = b"heal objects"  # in Table.META: where the walk is
_TRIES = 3  # at an object that is being updated meanwhile
_TRY_AGAIN_US = 50_000


class TakesOver(Protocol):
    """The server, which alone writes replica histories."""

    def take_over(
        self, view: StorageView, name: ObjectId, candidate: Candidate, *, established: bool
    ) -> list[Write] | None:
        """The writes that take `candidate` into the history; None if its version is missing."""


# --- the server that is asked -------------------------------------------------------------------


def catalogue(view: StorageView, after: bytes) -> CatalogueReply:
    """The objects that this server has, a page of them."""
    rows = list(
        islice(view.scan(Table.OBJECT, after + b"\0", _END), limits.OBJECTS_IN_CATALOGUE + 1)
    )
    return CatalogueReply(
        tuple(
            Catalogued(ObjectId(name), latest_of(row))
            for name, row in rows[: limits.OBJECTS_IN_CATALOGUE]
        ),
        more=len(rows) > limits.OBJECTS_IN_CATALOGUE,
    )


# --- the server that heals ----------------------------------------------------------------------


class _Own(NamedTuple):
    """What this server has of an object."""

    latest: LogicalTimestamp
    reach: Reach
    known: tuple[LogicalTimestamp, ...]


class ObjectHealer:
    """Brings what one server lacks, in the background; of an object that is asked for, at once."""

    def __init__(
        self, node: NodeId, quorums: QuorumSystem, server: TakesOver, recovery: Recovery
    ) -> None:
        self.tally = HealingTally()
        self._node = node
        self._quorums = quorums
        self._server = server
        self._recovery = recovery
        self._peers = tuple(NodeId(peer) for peer in range(quorums.n) if peer != node)
        self._host: Host | None = None
        self._asked_for: set[ObjectId] = set()  # objects beyond the walk that were healed
        self._walked = b"" if recovery.rebuilding else _END

    # --- on demand ---------------------------------------------------------------------------

    def wanted(self, names: Sequence[ObjectId]) -> Want | None:
        """What a request for these objects has to wait for, if this server may have forgotten."""
        for name in names:
            if name >= self._walked and name not in self._asked_for:
                return Want(b"heal" + name, lambda _view, name=name: self._on_demand(name))  # type: ignore[misc]
        return None

    async def _on_demand(self, name: ObjectId) -> list[Write] | None:
        if self._host is None or await self._heal(self._host, name) is None:
            return None
        self._asked_for.add(name)
        return []

    # --- the walk ----------------------------------------------------------------------------

    async def run(self, host: Host) -> None:
        """Heal at the start, and from time to time."""
        self._host = host
        while True:
            complete = await self._walk(host)
            self.tally.passes += 1
            if complete:
                self._recovery.rebuilt(OBJECTS)
            await Pause(limits.HEAL_EVERY_US if complete else limits.HEAL_AGAIN_US)

    async def _walk(self, host: Host) -> bool:
        """One pass over all objects; whether all that others have is here."""
        cursor = await look(host, lambda view: view.get(Table.META, _CURSOR) or b"")
        complete = True
        while cursor != _END:
            self.tally.progress = int.from_bytes(cursor[:8].ljust(8, b"\0"), "big") / (1 << 64)
            replies = await ask_all(
                self._peers, CatalogueRequest(cursor), partial(_is_catalogue, cursor)
            )
            heard = sum(1 << node for node in replies)
            if not self._quorums.is_quorum(heard):
                return False
            horizon, lacking, listed = await self._compare(host, cursor, replies)
            self.tally.compared += listed
            complete &= await self._heal_all(host, lacking)
            cursor = horizon
            self._walked = max(self._walked, cursor)
            place = None if cursor == _END else cursor
            host.arrange(lambda _v, _n, place=place: [Write(Table.META, _CURSOR, place)])  # type: ignore[misc]
        self._asked_for.clear()
        self.tally.progress = 1.0
        return complete

    async def _compare(
        self, host: Host, after: bytes, replies: dict[NodeId, CatalogueReply]
    ) -> tuple[bytes, list[ObjectId], int]:
        """How far the peers' pages reach, which objects are later there, and how many are listed.

        While it recovers, the server believes every single peer that there is something: what it
        has forgotten may be at one of them only.
        """
        bounds: list[bytes] = []
        latest: dict[ObjectId, list[tuple[LogicalTimestamp, NodeId]]] = {}
        for node, reply in replies.items():
            bounds.append(reply.objects[-1].object if reply.more else _END)
            for entry in reply.objects:
                latest.setdefault(entry.object, []).append((entry.latest, node))
        bounds.sort()
        at = next(
            at
            for at in range(len(bounds))
            if self._quorums.includes_benign((1 << at + 1) - 1) or at == len(bounds) - 1
        )
        horizon = bounds[at]
        names = sorted(name for name in latest if name <= horizon)
        own = await look(host, partial(_latest_of_all, names))
        lacking = []
        for name in names:
            reported: Nodes = 0
            for timestamp, node in latest[name]:
                if timestamp > own[name]:
                    reported |= 1 << node
            if self._quorums.includes_benign(reported) or (reported and self._recovery.rebuilding):
                lacking.append(name)
        return horizon, lacking, len(names)

    async def _heal_all(self, host: Host, names: Sequence[ObjectId]) -> bool:
        complete = True
        at = 0
        while at < len(names):
            busy = 0 <= await Now() - host.foreground_us < limits.VERIFY_IDLE_US
            chunk = names[at : at + (1 if busy else limits.HEAL_AT_ONCE)]
            at += len(chunk)
            complete &= all(
                await Together(tuple(partial(self._heal_patiently, host, name) for name in chunk))
            )
            await Pause(1_000)
        return complete

    async def _heal_patiently(self, host: Host, name: ObjectId) -> bool:
        for _ in range(_TRIES):
            if await self._heal(host, name):
                return True
            await Pause(_TRY_AGAIN_US)
        self.tally.failed += 1
        return False

    # --- one object --------------------------------------------------------------------------

    async def _heal(self, host: Host, name: ObjectId) -> bool | None:
        """Whether this server's history is as late as any other's now; None: too few answer."""
        quorums = self._quorums
        replies = await ask_all(self._peers, HistoryRequest(name), _is_history)
        if not quorums.is_quorum(sum(1 << node for node in replies)):
            return None
        by_history: dict[bytes, Nodes] = {}
        for node, encoded in replies.items():
            by_history[encoded] = by_history.get(encoded, 0) | 1 << node
        history_set = CulledObjectHistorySet(
            name, tuple(Hosted(parse_history(each), nodes) for each, nodes in by_history.items())
        )
        shared = next(iter(shared_candidates(history_set, quorums)), None)
        own = await look(host, partial(_own, name, shared.candidate if shared else None))
        settled = own.latest >= history_set.latest
        if settled or shared is None or own.latest >= shared.candidate.timestamp:
            return settled
        if time_of(shared.candidate.timestamp) > await Now() + limits.CLOCK_SKEW_US:
            return (
                False  # what is ahead of this server's clock it takes from nobody yet [design §4]
            )
        established = quorums.is_quorum(shared.nodes)
        latest = shared.candidate.timestamp == history_set.latest
        if not (established and latest) and not self._recovery.rebuilding:
            return False
        taken = await self._take_over(
            host, name, shared.candidate, shared.nodes, own, established=established
        )
        return taken and latest

    async def _take_over(
        self,
        host: Host,
        name: ObjectId,
        candidate: Candidate,
        nodes: Nodes,
        own: _Own,
        *,
        established: bool,
    ) -> bool:
        if own.reach is Reach.MISSING:
            staged = await object_sync.fetch_version(
                name,
                candidate.timestamp,
                known=own.known,
                hosts=nodes,
                me=self._node,
                quorums=self._quorums,
            )
            if staged is None:
                return False
            host.arrange(lambda _view, _now_us: staged)

        def take(view: StorageView) -> tuple[bool, list[Write]]:
            writes = self._server.take_over(view, name, candidate, established=established)
            return writes is not None, writes or []

        taken = await step(host, take)
        self.tally.rebuilt += taken
        return taken


def _own(name: ObjectId, candidate: Candidate | None, view: StorageView) -> _Own:
    replica = Replica(view, name)
    reach = Reach.HERE if candidate is None else replica.reach(candidate.timestamp)
    return _Own(replica.history.latest, reach, object_sync.known_versions(replica))


def _latest_of_all(
    names: Sequence[ObjectId], view: StorageView
) -> dict[ObjectId, LogicalTimestamp]:
    rows = ((name, view.get(Table.OBJECT, name)) for name in names)
    return {name: ZERO if row is None else latest_of(row) for name, row in rows}


def _is_catalogue(after: bytes, reply: object) -> CatalogueReply | None:
    """A reply that a correct server can give."""
    if not isinstance(reply, CatalogueReply) or (reply.more and not reply.objects):
        return None
    names = [after, *(entry.object for entry in reply.objects)]
    return reply if all(low < high for low, high in pairwise(names)) else None


def _is_history(reply: object) -> bytes | None:
    if not isinstance(reply, HistoryReply):
        return None
    try:
        parse_history(reply.history)
    except MalformedMessage:
        return None
    return reply.history
