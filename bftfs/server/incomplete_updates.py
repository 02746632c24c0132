"""Finds updates that clients have left incomplete, and finishes them. [Q/U §4.3.5]

**Situation.** A client that stops in the middle leaves candidates at too few servers. The next
client that uses the object repairs it. Until then nobody knows whether the update took place: it
may hide in the history of one server, and it costs the next client the repair.

**Rules.**

1. Every server remembers each candidate that it has accepted and does not know to be complete
   (`admission.IncompleteUpdates`).
2. When clients are idle, it asks its peers for the latest timestamps of many objects at once. A
   candidate that a quorum shares is complete, and forgotten here.
3. If no quorum shares it, the server repairs the object as any client would, under its own id: it
   finishes the update inline, or bars and copies.
4. An update that was accepted within a second is left alone: its client is at work. Servers repair
   an object one after the other, in the order of its preferred quorum; the later ones find it done.
5. An object at which others have something later that healing cannot take over it repairs inline as
   well, at itself first: liars may hide it from this server, and show it to all others.
6. Beyond `limits.POSSIBLE_OBJECTS_OF_CLIENT` objects that one client may have left incomplete, its
   updates wait until the oldest of them are settled.

**Why it is safe.** A repair by a server is a repair by a client: it proves nothing by being a
server, and a node's grant covers no operation. b liars cause no repair: the others are a quorum.

**Tests.** `tests/unit/server/test_incomplete_updates.py`; must fail without this worker:
`test_must_fail_without_background_repair`; of rule 5 `tests/seams/test_liars_beside_healing.py`.

**Concurrency.** One thread. All of it is in memory: after a restart, healing finds the objects
that are not in order. If there are too many, those accepted first are left to healing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes
from bftfs.conversation import Now, Pause, Together, Wait
from bftfs.errors import OperationFailed
from bftfs.identifiers import ClientId, NodeId, ObjectId, placement_of
from bftfs.query_update.admission import Entry, IncompleteUpdates
from bftfs.query_update.between_nodes import latest_of_all
from bftfs.query_update.classification import OperationType, is_in_order
from bftfs.query_update.history import LogicalTimestamp
from bftfs.query_update.messages import LatestReply, LatestRequest
from bftfs.query_update.observation import Observations
from bftfs.query_update.repair import Repair
from bftfs.query_update.replica import Replica
from bftfs.query_update.rounds import Rounds
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.step import Host
from bftfs.server.worker import IdleTime, OtherNodes, look, retry_after_us
from bftfs.storage import Write

_REPAIRS_AT_ONCE = 4
_OBSERVED = 256  # objects whose histories a server caches for its own repairs


class Finisher:
    """Settles the incomplete updates of one server, in idle time or on demand."""

    def __init__(
        self,
        node: NodeId,
        peers: Peers,
        incomplete: IncompleteUpdates,
        healer: ObjectHealer,
    ) -> None:
        self._node = node
        self._peers = peers
        self._quorums = peers.quorums
        self._incomplete = incomplete
        self._healer = healer
        self._others = OtherNodes(node, peers)
        self._observations = Observations(peers, bound=_OBSERVED)
        self._rounds = Rounds(
            peers, self._observations, patience_total_us=limits.VERIFY_PATIENCE_US
        )
        self._repairs = Repair(self._rounds)
        # These repair objects that this server lacks: it asks itself first, so as to get them.
        self._repairs_here = Repair(
            Rounds(
                peers,
                self._observations,
                patience_total_us=limits.VERIFY_PATIENCE_US,
                first=Nodes.of([node]),
            )
        )
        self._under_way: set[ObjectId] = set()
        self._behind: dict[ObjectId, None] = {}  # objects of which peers have a later version
        self._host: Host | None = None

    async def run(self, host: Host) -> None:
        """Settle incomplete updates, as long as the node runs."""
        self._host = host
        incomplete = self._incomplete
        incomplete.demand = self._on_demand
        self._healer.on_disorder = incomplete.found
        self._healer.on_lacking = self._lack
        idle = IdleTime()
        tick_us = 0
        while True:
            if not incomplete.total and not self._behind:
                await Wait(incomplete.arrived)
                tick_us = await Now()
            now_us = await Now()
            if not 0 <= now_us - tick_us < limits.INCOMPLETE_REST_US:
                incomplete.tick += 1
                tick_us = now_us
            if await idle.clients_are_busy(host):
                continue
            entries = self._left_alone(incomplete.due(now_us, limits.OBJECTS_COMPARED))
            if entries:
                await self._settle(host, entries)
            if self._behind:
                name = next(iter(self._behind))
                del self._behind[name]
                if not await self._healer.catch_up(host, name):
                    await self._finish_here(host, name)
            elif not entries:
                await Pause(limits.INCOMPLETE_REST_US // 2)

    async def _on_demand(self, client: ClientId) -> list[Write] | None:
        """Settle the oldest objects that `client` may have left incomplete."""
        oldest = self._incomplete.oldest(client, await Now(), limits.OBJECTS_COMPARED)
        entries = self._left_alone(oldest)
        if self._host is not None and entries:
            await self._settle(self._host, entries)
        elif oldest:
            return None  # all of them are being settled already: the client sends its update again
        return []

    def _left_alone(self, names: Iterable[ObjectId]) -> dict[ObjectId, Entry]:
        """The entries of `names` that no other conversation is settling."""
        return {
            name: entry
            for name in names
            if name not in self._under_way and (entry := self._incomplete.entry(name)) is not None
        }

    async def _settle(self, host: Host, entries: dict[ObjectId, Entry]) -> None:
        """Ask the peers about `entries`, and repair what no quorum shares.

        Requires: no other conversation is settling them.
        """
        names = list(entries)
        self._under_way.update(names)
        try:
            accepted = [entry.timestamp for entry in entries.values()]
            replies = await self._others.ask(
                LatestRequest(tuple(names)),
                LatestReply,
                lambda reply: len(reply.latest) == len(names),
                enough=partial(self._is_enough, accepted),
            )
            own = await look(host, partial(latest_of_all, names))
            now_us = await Now()
            disorderly = []
            for at, (name, entry) in enumerate(entries.items()):
                if self._incomplete.entry(name) is not entry:
                    continue  # a later candidate was accepted meanwhile: the replies are outdated
                reported = {node: reply.latest[at] for node, reply in replies.items()}
                if self._is_disorderly(name, entry, own[name], reported, now_us):
                    disorderly.append((name, entry))
            for at in range(0, len(disorderly), _REPAIRS_AT_ONCE):
                await Together(
                    tuple(
                        partial(self._repair, host, name, entry)
                        for name, entry in disorderly[at : at + _REPAIRS_AT_ONCE]
                    )
                )
        finally:
            self._under_way.difference_update(names)

    def _is_disorderly(
        self,
        name: ObjectId,
        entry: Entry,
        latest: LogicalTimestamp,
        reported: dict[NodeId, LogicalTimestamp],
        now_us: int,
    ) -> bool:
        """True if the object must be repaired: no quorum shares its latest candidate, `latest`.

        Otherwise `entry` is settled or postponed.
        """
        incomplete, quorums = self._incomplete, self._quorums
        if latest != entry.timestamp:
            # A later candidate was accepted meanwhile; or this one was lost, because the batch
            # that should have stored it failed.
            incomplete.settle(name)
            if latest > entry.timestamp:
                incomplete.accepted(name, latest)
            return False
        me = Nodes.of([self._node])
        alike = me | Nodes.of(node for node, other in reported.items() if other == latest)
        later = Nodes.of(node for node, other in reported.items() if other > latest)
        if is_in_order(latest, alike, quorums):
            incomplete.settle(name)
            incomplete.tally.settled += 1
        elif quorums.includes_benign(later):
            self._superseded(name, entry)
        elif not quorums.is_quorum(me | Nodes.of(reported)):
            self._failed(entry, now_us)
        elif not incomplete.rested(entry):
            entry.retry_us = now_us + limits.INCOMPLETE_REST_US
        else:
            return True
        return False

    def _is_enough(
        self, accepted: list[LogicalTimestamp], replies: dict[NodeId, LatestReply]
    ) -> bool:
        """True if the replies so far are enough, so that a waiting update does not wait longer.

        They are if a quorum shares all candidates; or if they come from a quorum and only nodes
        that did not answer before are missing. Otherwise each such update would wait for a node
        that is down.
        """
        quorums = self._quorums
        heard = Nodes.of(replies).plus(self._node)
        if not quorums.is_quorum(heard):
            return False
        if heard | self._peers.mute == quorums.everyone:
            return True
        for at, latest in enumerate(accepted):
            alike = Nodes.of(node for node, reply in replies.items() if reply.latest[at] == latest)
            if not quorums.is_quorum(alike.plus(self._node)):
                return False
        return True

    async def _repair(self, host: Host, name: ObjectId, entry: Entry) -> None:
        """Repair one object; if another server is to try first, postpone it."""
        if self._incomplete.entry(name) is not entry:
            return
        now_us = await Now()
        distance = (self._node - placement_of(name)) % self._quorums.n
        if distance and not entry.retry_us:
            entry.retry_us = now_us + distance * limits.INCOMPLETE_STAGGER_US
            return
        # This server's own history counts, even if it is not in the quorum that is asked.
        observations = await self._observe_here(host, name)
        try:
            await self._repairs.refresh((name,))
            found = observations.observe(name).classification.type
            await self._repairs.repair((name,))
        except OperationFailed:
            self._failed(entry, await Now())
            return
        if observations.observe(name).classification.latest < entry.timestamp:
            # The others do not count the candidate here: for now, its time is too far ahead.
            self._failed(entry, await Now())
            return
        # Now a quorum shares the latest candidate: this server's, or a later one.
        self._incomplete.tally.repaired += found is not OperationType.METHOD
        self._superseded(name, entry)

    def _superseded(self, name: ObjectId, entry: Entry) -> None:
        """Settle `entry`: others share a later candidate, which supersedes it.

        The servers that accepted the later candidate finish it. This server fetches it in idle
        time, or when it heals: not now, since an update may be waiting, and peers that are down
        would delay it. If a newer candidate was accepted here meanwhile, it stays unsettled.
        """
        incomplete = self._incomplete
        if incomplete.entry(name) is entry:
            incomplete.settle(name)
            incomplete.tally.settled += 1
            self._lack(name)

    def _lack(self, name: ObjectId) -> None:
        """Others have a later version of `name`."""
        self._behind[name] = None
        if len(self._behind) > limits.POSSIBLE_OBJECTS:
            del self._behind[next(iter(self._behind))]
        self._incomplete.arrived.announce()

    async def _observe_here(self, host: Host, name: ObjectId) -> Observations:
        """Know of an object what this server has of it, and nothing else."""
        row = (await look(host, lambda view: Replica(view, name))).row
        observations = self._observations
        observations.forget(name)
        observations.learn(name, self._node, row.history, row.authenticator, await Now())
        return observations

    async def _finish_here(self, host: Host, name: ObjectId) -> None:
        """Finish inline, at this server, what a repairable set of others has.

        Liars of its quorum hide it from this server, and show it to others: then nobody else finds
        anything to repair. Anything else is left to those that have it: they decide.
        """
        observations = await self._observe_here(host, name)
        try:
            await self._repairs_here.refresh((name,))
            found = observations.observe(name).classification.type
            if found is OperationType.INLINE_METHOD:
                await self._repairs_here.repair((name,))
        except OperationFailed:
            pass  # healing finds it again

    def _failed(self, entry: Entry, now_us: int) -> None:
        self._incomplete.tally.failed += 1
        entry.retry_us = now_us + retry_after_us(entry.failures)
        entry.failures += 1
