"""The client of Query/Update: queries and updates of replicated objects. [Q/U §4.3.4, §4.3.5]

A query goes to the preferred quorum and is answered on the latest versions there; if the replies
show that these are the latest established ones, it is over in one round. An update is conditioned
on the cached object history sets; if these are current, it is over in one round. Otherwise the
client repairs what classification finds, and tries again.

**Invariants.** An operation takes effect once: before an update is tried again, it is known that no
earlier attempt is in the chain of the version that it is now conditioned on. Nothing that servers
say is believed unless servers that cannot all be malevolent say it.

**Concurrency.** One client serves any number of conversations on one engine. What it remembers is
consistent between awaits. Updates of one object take turns; queries only if they find it in
disorder while an update is under way.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from bftfs import limits
from bftfs.asking.peers import MEMORY_US, Peers
from bftfs.asking.quorum import Nodes
from bftfs.clock_skew import is_pushed_ahead
from bftfs.conversation import Draw, Now
from bftfs.credentials import Credentials
from bftfs.errors import (
    AdmissionRefused,
    ContentionExhausted,
    FileSystemError,
    QuorumUnavailable,
)
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.lock import Locks
from bftfs.query_update.classification import OperationType
from bftfs.query_update.contention import BackOff, Streaks
from bftfs.query_update.history import (
    ZERO,
    Conditioned,
    ConditionedKind,
    Fact,
    Known,
    LogicalTimestamp,
    Operation,
    is_barrier,
    parse_history,
    time_of,
    timestamp_of,
)
from bftfs.query_update.messages import (
    Query,
    QueryReply,
    Update,
    UpdateReply,
    Verdict,
    Voucher,
)
from bftfs.query_update.object_type import Method, ObjectTypes, Record, encode_record
from bftfs.query_update.observation import Observations, Observed
from bftfs.query_update.repair import Repair
from bftfs.query_update.rounds import Answer, Plan, Rounds, Tally, UpdateTally, Votes
from bftfs.wire.codec import Message, encode

_UNCERTAIN = 64  # how often to ask what became of an attempt that servers know nothing of
_LENIENT = 4  # failures of a query, while others may just be at work, before it stops them
_CLOCK_TROUBLE = 8  # attempts whose time the servers find insane, before giving up


@dataclass(frozen=True, slots=True)
class Answered:
    """A method's answer, and the version that an update made or a query read.

    A query of several objects names the latest of the versions.
    """

    answer: Any
    timestamp: LogicalTimestamp

    @property
    def time_us(self) -> int:
        """The version's time."""
        return time_of(self.timestamp)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An update that some servers may have accepted, and too few are known to have."""

    timestamp: LogicalTimestamp
    conditioned_on: LogicalTimestamp  # of the first object


class QueryUpdateClient:
    """One client's access to replicated objects.

    `patience_total_us` bounds the silence that a round bears before QuorumUnavailable is raised;
    None waits for ever.
    """

    def __init__(
        self,
        client: ClientId,
        peers: Peers,
        types: ObjectTypes,
        *,
        patience_total_us: int | None = None,
        history_sets_cached: int = limits.HISTORY_SETS_CACHED,
    ) -> None:
        self.client = client
        self.quorums = peers.quorums
        self.types = types
        self.peers = peers
        self.observations = Observations(self.peers, bound=history_sets_cached)
        self.rounds = Rounds(self.peers, self.observations, patience_total_us=patience_total_us)
        self.repairs = Repair(client, self.rounds)
        self._locks: Locks[ObjectId] = Locks()
        self._streaks = Streaks(self.peers.metadata)

    async def query(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        credentials: Credentials,
    ) -> Answered:
        """Invoke a query. Raises FileSystemError if it refuses."""
        found = self._method(method, update=False)
        names = _distinct(objects)
        encoded = encode_record(arguments)
        back_off = BackOff(self.peers.metadata)
        locked = False
        failures = 0
        versions: tuple[LogicalTimestamp, ...] = ()
        before: tuple[LogicalTimestamp, ...] = ()
        try:
            while True:
                outcome = await self._query_round(
                    objects, names, found, encoded, credentials, versions, again=failures > 0
                )
                if outcome.answer is not None and (
                    not outcome.deduced or outcome.versions == before
                ):
                    return await self._answered(outcome, objects, found, encoded, credentials)
                before = outcome.versions
                failures += 1
                if outcome.disorderly:
                    versions = ()
                    if not locked:
                        # Perhaps it is only an update of our own that is under way.
                        wait = self._locks.is_held(names)
                        await self._locks.acquire(names)
                        locked = True
                        if wait:
                            continue
                    for name in outcome.disorderly:
                        self.observations.keep(name, outcome.reported[name])
                    await self.repairs.repair(
                        outcome.disorderly, back_off, reading=failures < _LENIENT
                    )
                else:
                    versions = () if outcome.unknown else outcome.versions
                if failures > 2:
                    await back_off.pause()
        finally:
            if locked:
                self._locks.release(names)

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        credentials: Credentials,
        *,
        not_before_us: int = 0,
    ) -> Answered:
        """Invoke an update. Raises FileSystemError if it refuses: then nothing has changed.

        The version's time is `not_before_us` or later: that of what it is to be consistent with.
        """
        found = self._method(method, update=True)
        names = _distinct(objects)
        operation = Operation(
            method,
            objects,
            encode_record(arguments),
            credentials.uid,
            credentials.gid,
            credentials.groups,
            await Draw(1 << 62),
        )
        await self._locks.acquire(names)
        try:
            await self._streaks.step_back(names)
            return await self._update(names, found, operation, not_before_us)
        finally:
            self._locks.release(names)

    def _method(self, name: str, *, update: bool) -> Method:
        method = self.types.method(name)
        if method is None or method.update is not update:
            raise ValueError(f"no {'update' if update else 'query'} is called {name}")
        return method

    # --- queries --------------------------------------------------------------------------------

    async def _query_round(
        self,
        objects: tuple[ObjectId, ...],
        names: tuple[ObjectId, ...],
        method: Method,
        arguments: bytes,
        credentials: Credentials,
        versions: tuple[LogicalTimestamp, ...],
        *,
        again: bool,
    ) -> _QueryTally:
        plan = await self.rounds.plan(names)
        message = Query(
            objects,
            method.name,
            arguments,
            credentials.uid,
            credentials.gid,
            credentials.groups,
            plan.order[0],
            again or bool(plan.probes) or not self.peers.willing(plan.order[-1]),
            versions,
        )
        tally = _QueryTally(self.rounds, plan, versions)
        await self.rounds.run(plan, message, tally, subject=method.name)
        tally.conclude()
        return tally

    async def _answered(
        self,
        outcome: _QueryTally,
        objects: tuple[ObjectId, ...],
        method: Method,
        arguments: bytes,
        credentials: Credentials,
    ) -> Answered:
        """The answer agreed on, whole."""
        answer, versions = outcome.answer, outcome.versions
        assert answer is not None
        if answer.error:
            raise FileSystemError(answer.error, method.name, versions=versions)
        content = outcome.votes.wholes.get((versions, answer))
        if content is None:
            voters = outcome.votes.by[(versions, answer)]
            content = await self._whole(
                answer,
                voters,
                outcome,
                lambda node: Query(
                    objects,
                    method.name,
                    arguments,
                    credentials.uid,
                    credentials.gid,
                    credentials.groups,
                    node,
                    False,
                    versions,
                ),
            )
        return Answered(self.types.decode_answer(method, content), max(versions))

    # --- updates --------------------------------------------------------------------------------

    async def _update(
        self,
        names: tuple[ObjectId, ...],
        method: Method,
        operation: Operation,
        not_before_us: int,
    ) -> Answered:
        """c_increment: repair and retry until a candidate is established. [Q/U lines 300-307]"""
        attempts: list[_Attempt] = []
        uncertain = troubled = late = 0
        fresh = False  # whether it is conditioned on what was seen after the last pause
        back_off = BackOff(self.peers.metadata)
        observations = self.observations
        try:
            while True:
                observed = [observations.condition_on(name) for name in names]
                if any(each.classification.type is not OperationType.METHOD for each in observed):
                    await self.repairs.repair(names, back_off)
                    continue
                if attempts:
                    effect = await self._effect(attempts, names, observed[0])
                    if isinstance(effect, _Effect):
                        return self._decoded(method, effect.answer, effect.timestamp)
                    if not effect:
                        uncertain += 1
                        if uncertain > _UNCERTAIN:
                            raise ContentionExhausted(attempts=uncertain, subject=method.name)
                        await back_off.pause()
                        await self.repairs.refresh(names)
                        continue
                shunned = self.peers.disbelieved
                outcome, timestamp, message = await self._attempt(
                    names, method, operation, observed, not_before_us
                )
                if outcome.complete:
                    await self._streaks.succeeded(names, outcome.contenders or 0)
                    content = await self._agreed(outcome, message, timestamp, names)
                    return self._decoded(method, content, timestamp)
                if outcome.refusal:
                    versions = tuple(
                        each.classification.object_candidate.timestamp for each in observed
                    )
                    raise FileSystemError(outcome.refusal, method.name, versions=versions)
                if outcome.possible:
                    base = observed[0].classification.object_candidate.timestamp
                    attempts.append(_Attempt(timestamp, base))
                    self.repairs.own[timestamp] = message.conditioned
                if self.quorums.includes_benign(outcome.insane):
                    now_us = await Now()
                    if is_pushed_ahead(time_of(timestamp), now_us) or any(
                        each.is_pushed_ahead(now_us) for each in observed
                    ):
                        await back_off.pause_for_clocks()
                        await self.repairs.refresh(names)
                        continue
                    observations.doubt_clock(now_us + MEMORY_US)
                    troubled += 1
                    if troubled == _CLOCK_TROUBLE:
                        raise AdmissionRefused(
                            code=errno.ETIME,
                            reason="the nodes find this client's clock too far from theirs",
                        )
                self._streaks.interrupted(names)
                back_off.ahead = outcome.contenders
                if self.quorums.includes_benign(outcome.insane | outcome.overdrawn):
                    await back_off.pause()
                elif all(map(self.repairs.is_orderly, names)):
                    # Who was only late tries again at once, if nobody is ahead; and who has waited
                    # was bound to be late. Who is late time and again may be so for a server that
                    # is shunned, and has something later that nobody else has: if it is needed, it
                    # has to be repaired.
                    if shunned:
                        late += 1
                        self.rounds.failed(late, shunned)
                    if fresh or outcome.contenders:
                        await back_off.pause()
                        fresh = False
                    else:
                        fresh = True
                elif not self.quorums.is_repairable(outcome.accepted):
                    # Of those that came at the same moment, who got further finishes.
                    await back_off.pause()
                    await self.repairs.refresh(names)
                    fresh = True
        finally:
            for attempt in attempts:
                self.repairs.own.pop(attempt.timestamp, None)

    async def _attempt(
        self,
        names: tuple[ObjectId, ...],
        method: Method,
        operation: Operation,
        observed: list[Observed],
        not_before_us: int,
    ) -> tuple[UpdateTally, LogicalTimestamp, Update]:
        """One round of the operation, conditioned on what was observed."""
        plan = await self.rounds.plan(names)
        facts: tuple[Fact, ...] = ()
        vouchers: tuple[tuple[Voucher, ...], ...] = ()
        if any(not self.quorums.is_quorum(each.classification.nodes) for each in observed):
            facts, vouchers = self.observations.relevant(
                each.classification.object_candidate for each in observed
            )
        conditioned = Conditioned(
            ConditionedKind.METHOD,
            operation,
            max(plan.now_us, not_before_us),
            tuple(each.history_set for each in observed),
            (),
            facts,
        )
        encoded = encode(conditioned)
        timestamp = timestamp_of(
            conditioned, encoded, (each.culled for each in observed), self.client
        )
        authenticators = tuple(each.authenticators for each in observed)
        message = Update(encoded, authenticators, vouchers, plan.order[0])
        tally = UpdateTally(self.rounds, plan)
        await self.rounds.run(plan, message, tally, subject=method.name)
        tally.conclude()
        return tally, timestamp, message

    async def _effect(
        self, attempts: list[_Attempt], names: tuple[ObjectId, ...], observed: Observed
    ) -> _Effect | bool:
        """Whether an earlier attempt is in the chain of what the next one is conditioned on.

        Drops the attempts that can never be. False: there are some of which nothing is known.
        """
        base = observed.classification.object_candidate
        certain = True
        for attempt in tuple(attempts):
            if base.timestamp == attempt.conditioned_on:
                continue  # nothing has happened since: if it completes, the next attempt cannot
            if (
                base.conditioned_on == attempt.conditioned_on
                and base.timestamp != attempt.timestamp
            ):
                attempts.remove(attempt)  # another update of the same version was established
                continue
            verdict, answer = await self.repairs.chained(attempt.timestamp, names, base.timestamp)
            if verdict is Verdict.ESTABLISHED:
                return _Effect(attempt.timestamp, answer)
            if verdict is Verdict.DEAD:
                attempts.remove(attempt)
            else:
                certain = False
        return certain

    async def _agreed(
        self,
        outcome: UpdateTally,
        message: Update,
        timestamp: LogicalTimestamp,
        names: tuple[ObjectId, ...],
    ) -> bytes:
        """The answer that those who accepted the update agree on, whole."""
        answer = outcome.answers.agreed()
        if answer is None:  # too many have the version from object sync, without its answer
            verdict, content = await self.repairs.chained(timestamp, names, timestamp)
            if verdict is not Verdict.ESTABLISHED:
                raise QuorumUnavailable(heard=0, required=1, subject="the answer to an update")
            return content
        self.peers.convict(outcome.answers.dissenters(answer), outcome.now_us)
        whole = outcome.answers.wholes.get(answer)
        if whole is None:
            whole = await self._whole(
                answer,
                outcome.answers.by[answer],
                outcome,
                lambda node: msgspec.structs.replace(message, whole_answer_from=node),
            )
        return whole

    # --- answers --------------------------------------------------------------------------------

    async def _whole(
        self,
        answer: Answer,
        voters: Nodes,
        outcome: UpdateTally | _QueryTally,
        request: Callable[[NodeId], Message],
    ) -> bytes:
        """The content of an answer of which only digests came: each voter is asked for it."""
        plan = await self.rounds.plan(outcome.names)
        order = tuple(node for node in outcome.asking.order if voters >> node & 1)
        asking = await self.rounds.run(
            plan._replace(order=order, probes=()),
            request,
            _WholeTally(answer),
            subject="a large answer",
            first=1,
        )
        if asking.content is None:
            raise QuorumUnavailable(heard=0, required=1, subject="a large answer")
        return asking.content

    def _decoded(self, method: Method, content: bytes, timestamp: LogicalTimestamp) -> Answered:
        return Answered(self.types.decode_answer(method, content), timestamp)


@dataclass(frozen=True, slots=True)
class _Effect:
    """An earlier attempt took effect."""

    timestamp: LogicalTimestamp
    answer: bytes


class _QueryTally(Tally):
    """A round of queries: answers by the versions they were made on."""

    expects = QueryReply

    def __init__(self, rounds: Rounds, plan: Plan, wanted: tuple[LogicalTimestamp, ...]) -> None:
        self.rounds = rounds
        self.quorums = rounds.quorums
        self.now_us = plan.now_us
        names = self.names = plan.names
        # What those report whose histories can be parsed, by object.
        self.reported: dict[ObjectId, dict[NodeId, Known]] = {name: {} for name in names}
        self._wanted = wanted  # the versions that were asked for, if not the latest
        self._first: tuple[bytes, ...] = ()  # histories of the first reply
        self._heads: tuple[LogicalTimestamp, ...] = ()
        self._plain = False  # whether these end with object versions
        self._alike: Nodes = 0  # those that report the same histories
        self.votes: Votes[tuple[tuple[LogicalTimestamp, ...], Answer]] = Votes(self.quorums)
        self._reported: dict[tuple[LogicalTimestamp, ...], Nodes] = {}  # who has these as latest
        self.answer: Answer | None = None
        self.versions: tuple[LogicalTimestamp, ...] = ()  # the latest established ones
        self.disorderly: tuple[ObjectId, ...] = ()  # objects that need repair first
        self.unknown = False  # whether the histories of some object tell nothing: ask again
        self.deduced = False  # whether they may not all have been the latest at one moment
        self._hosting: Nodes = 0  # those that have the latest candidate of every object

    def take(self, node: NodeId, reply: QueryReply) -> None:
        bit = 1 << node
        learned = self.rounds.learn(self.names, node, reply, self.now_us)
        if learned is not None:
            histories = reply.histories
            for name, known in zip(self.names, learned, strict=True):
                self.reported[name][node] = known
            if not self._first:
                self._first = histories
                parsed = [parse_history(history) for history in histories]
                self._heads = tuple(each.latest_object.timestamp for each in parsed)
                self._plain = not any(is_barrier(each.latest) for each in parsed)
            if histories == self._first:
                heads = self._heads
                self._alike |= bit
            else:
                heads = tuple(
                    parse_history(history).latest_object.timestamp for history in histories
                )
            if reply.verdict is not Verdict.UNKNOWN:
                self.rounds.observations.state(heads[0], node, reply.verdict, reply.voucher)
            if reply.answered:
                answer = Answer.given(error=reply.error, answer=reply.answer, whole=reply.whole)
                key = (self._wanted or heads, answer)
                alike = self.votes.add(node, key, reply.answer, whole=reply.whole)
                self._reported[heads] = self._reported.get(heads, 0) | bit
                if (
                    self._plain
                    and self.quorums.is_quorum(alike & self._alike)
                    and (len(self.names) == 1 or key[0] == heads)
                ):
                    # [Q/U §4.3.2]: all have the same latest candidate, so it is complete. (What
                    # was asked for of one object was the latest when it was asked for. Of several
                    # it must be the latest still, or they were not read together.)
                    self.answer, self.versions, self.disorderly = answer, key[0], ()
                    self.asking.enough()
                    return
        if self.quorums.is_quorum(self.asking.answered):
            if self._evaluate():
                self.asking.enough()
            else:
                self.asking.more()

    def expire(self) -> None:
        self.answer, self.disorderly, self.unknown = None, (), True

    def _evaluate(self) -> bool:
        """Whether the replies of a quorum contain the answer. [Q/U §4.3.5, Optimistic query]

        What is later than the latest candidate that is repairable or complete is incomplete: if
        that one is complete, it is the latest established, whatever is going on.
        """
        observations = self.rounds.observations
        heard = sum(1 << node for node in self.reported[self.names[0]])
        versions = []
        disorderly = []
        self.unknown = False
        self._hosting = heard
        for name in self.names:
            found = observations.survey(name, self.reported[name])
            timestamp = found.object_candidate.timestamp
            self._hosting &= found.nodes
            complete = self.quorums.is_quorum(found.nodes & heard)
            if timestamp == ZERO and not complete:
                # Histories that were reported at different moments, while others succeed, may have
                # nothing in common.
                self.unknown = True
            elif not complete and found.type is not OperationType.METHOD:
                # Complete by deduction alone is enough only if nothing later is seen: while others
                # succeed, a later established version may be pruned from all but a few histories.
                disorderly.append(name)
            versions.append(timestamp)
        self.versions = tuple(versions)
        self.disorderly = tuple(disorderly)
        # Several objects were read together only if a quorum has exactly these versions: two such
        # reads share a server, at which versions only grow. If not, a second round, whose replies
        # were all asked for after the first was over, has to find the same.
        exactly = self._reported.get(self.versions, 0)
        self.deduced = len(self.names) > 1 and not self.quorums.is_quorum(exactly)
        if disorderly or self.unknown:
            return False
        for (heads, answer), nodes in self.votes.by.items():
            if heads == self.versions and self.quorums.includes_benign(nodes):
                self.answer = answer
                return True
        return False

    def hopes(self) -> bool:
        """If all that were not heard had the latest candidate, it would be complete.

        A server that is late is no reason to repair what those who wrote it have finished.
        """
        return self.quorums.is_quorum(self._hosting | self.asking.waiting)

    def conclude(self) -> None:
        """Remember who answers differently, or reports what nobody else has."""
        if self.answer is None:
            return
        peers = self.rounds.peers
        for (versions, answer), nodes in self.votes.by.items():
            if versions == self.versions and answer != self.answer:
                peers.convict(nodes, self.now_us)
        if self.quorums.is_quorum(self._alike):
            peers.conformed(self._alike)
            apart = self.asking.answered & ~self._alike
            if not apart:
                return
        ahead = 0
        for name, version in zip(self.names, self.versions, strict=True):
            for node, known in self.reported[name].items():
                if parse_history(known.history).latest > version:
                    ahead |= 1 << node
        peers.diverged(ahead, self.now_us)
        if not self.quorums.is_quorum(self._alike):
            peers.conformed(self.asking.answered & ~ahead)


class _WholeTally(Tally):
    """An answer of which the digest is known, from whichever server gives it."""

    expects = QueryReply | UpdateReply

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.content: bytes | None = None

    def take(self, node: NodeId, reply: QueryReply | UpdateReply) -> None:
        given = Answer.given(error=reply.error, answer=reply.answer, whole=reply.whole)
        if reply.whole and given == self._answer:
            self.content = reply.answer
            self.asking.enough()
        elif not self.asking.waiting:
            self.asking.more()


def _distinct(objects: tuple[ObjectId, ...]) -> tuple[ObjectId, ...]:
    """The objects without repetition, ascending."""
    return objects if len(objects) == 1 else tuple(sorted(set(objects)))
