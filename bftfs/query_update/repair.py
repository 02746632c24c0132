"""Repair: from whatever a client finds to an object version that can be conditioned on.

[Q/U §4.3.4, c_repair, lines 500-507; §4.3.5, Inline repair; §4.3.7]

Each step does what classification dictates and learns from the replies, which report the replica
histories. A candidate of several objects is first classified by deduction; if that does not decide
it, and it cannot be finished inline, barriers and a copy over all of its objects do.

Barriers and copies carry no clock time of their own: their time is one more than the latest that
was seen. One that was overtaken is then refused, instead of interrupting what others have finished.
"""

from __future__ import annotations

from bftfs.asking.quorum import Nodes, QuorumSystem
from bftfs.conversation import Now
from bftfs.errors import ContentionExhausted, MalformedMessage
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.query_update.classification import OperationType, shared_candidates, sharing
from bftfs.query_update.contention import BackOff
from bftfs.query_update.deduction import Evidence, Undecided
from bftfs.query_update.history import (
    INITIAL,
    Candidate,
    Conditioned,
    ConditionedKind,
    CulledObjectHistorySet,
    LogicalTimestamp,
    client_of,
    decode_conditioned,
    parse_set,
    timestamp_of,
)
from bftfs.query_update.messages import (
    DeduceReply,
    DeduceRequest,
    FetchReply,
    FetchRequest,
    InlineBarrier,
    InlineUpdate,
    Query,
    QueryReply,
    Update,
    Verdict,
)
from bftfs.query_update.observation import Observed
from bftfs.query_update.rounds import Answer, Plan, Rounds, Tally, Votes, update_round
from bftfs.wire.codec import encode

_INLINE_ATTEMPTS = 2  # at one candidate, before a barrier ends it
_MOST_STEPS = 1_000  # of one repair; far beyond what contention can cause with back-off


class Repair:
    """One client's way of repairing objects."""

    def __init__(self, client: ClientId, rounds: Rounds) -> None:
        self._client = client
        self._rounds = rounds
        self._observations = rounds.observations
        # What this client has under way, so that it need not fetch it from servers.
        self.own: dict[LogicalTimestamp, bytes] = {}

    async def repair(
        self, names: tuple[ObjectId, ...], back_off: BackOff, *, reading: bool = False
    ) -> None:
        """Let every object of `names` have a version that a method can be conditioned on.

        Who is `reading` may ask again as soon as a fresh look shows a complete version, whatever
        incomplete ones are later: a single updater is then never stopped by readers.
        [Q/U §4.3.5, Retry and backoff policies]
        """
        inline_attempts: dict[LogicalTimestamp, int] = {}
        failures = 0
        looked = fresh = False
        for _ in range(_MOST_STEPS):
            enough = self._readable if reading and fresh else self.is_orderly
            disorderly = next((name for name in names if not enough(name)), None)
            if disorderly is None:
                return
            if (
                self._observe(disorderly).classification.type is OperationType.BARRIER
                and not looked
            ):
                # What was observed may be histories of different moments while others succeed:
                # before stopping them, look again.
                looked = fresh = True
                await self.refresh(names)
                continue
            shunned = self._rounds.peers.disbelieved
            before = self._observe(disorderly).classification
            if (
                await self._step(disorderly, inline_attempts)
                # What one who is shunned accepts is not counted: if he is needed, a step that a
                # quorum has accepted changes nothing, however often it is taken.
                and self._observe(disorderly).classification != before
            ):
                continue
            failures += 1
            ahead_of_clock = self._observe(disorderly).ahead_of_clock
            if self._observe(disorderly).is_pushed_ahead(await Now()):
                await back_off.pause_for_clocks()
            else:
                await back_off.pause()
            self._rounds.failed(failures, shunned, ahead_of_clock, await Now())
            await self.refresh(names)
            fresh = True
        raise ContentionExhausted(attempts=_MOST_STEPS, subject=f"repair of {names[0].hex()}")

    async def refresh(self, names: tuple[ObjectId, ...]) -> None:
        """Ask a quorum for the replica histories of `names`, ascending."""
        rounds = self._rounds
        plan = await rounds.plan(names)
        message = Query(names, "", b"", 0, 0, (), plan.order[0], True)
        await rounds.run(plan, message, _HistoriesTally(rounds, plan), subject="replica histories")
        alone: Nodes = 0
        for name in names:
            culled = self._observe(name).culled
            latest = sharing(culled, culled.latest)
            if not rounds.quorums.includes_benign(latest):
                alone |= latest  # one operation may be the latest of several objects
        for node in range(rounds.quorums.n):
            rounds.peers.diverged(alone & 1 << node, plan.now_us)

    # --- one step -------------------------------------------------------------------------------

    def _observe(self, name: ObjectId) -> Observed:
        return self._observations.observe(name)

    def is_orderly(self, name: ObjectId) -> bool:
        """Whether a method can be conditioned on what is known of an object."""
        return self._observe(name).classification.type is OperationType.METHOD

    def _readable(self, name: ObjectId) -> bool:
        found = self._observe(name).classification
        return self.is_orderly(name) or self._rounds.quorums.is_quorum(found.nodes)

    async def _step(self, name: ObjectId, inline_attempts: dict[LogicalTimestamp, int]) -> bool:
        """Do what classification dictates; whether that had the effect it was to have."""
        observed = self._observe(name)
        kind = observed.classification.type
        if kind is OperationType.COPY:
            return await self._copy(name)
        if kind is not OperationType.INLINE_METHOD:
            return await self._bar(name)
        candidate = observed.classification.object_candidate
        if candidate.objects and await self._deduce(candidate) is not None:
            return True
        attempts = inline_attempts.get(candidate.timestamp, 0)
        inline_attempts[candidate.timestamp] = attempts + 1
        if attempts < _INLINE_ATTEMPTS:
            return await self._inline(name, candidate)
        return await self._barrier(name)

    async def _bar(self, name: ObjectId) -> bool:
        """A step towards a complete barrier at an object."""
        observed = self._observe(name)
        if observed.classification.type is not OperationType.INLINE_BARRIER:
            return await self._barrier(name)
        message = InlineBarrier(observed.history_set, observed.authenticators)
        outcome = await update_round(self._rounds, message, (name,), subject="inline barrier")
        return outcome.complete

    async def _barrier(self, name: ObjectId) -> bool:
        """Keep everything earlier from completing. [Q/U §4.3.2]"""
        observed = self._observe(name)
        conditioned = Conditioned(ConditionedKind.BARRIER, None, 0, (observed.history_set,))
        message = Update(encode(conditioned), (observed.authenticators,), (), NodeId(0))
        outcome = await update_round(self._rounds, message, (name,), subject="barrier")
        return outcome.complete

    async def _inline(self, name: ObjectId, candidate: Candidate) -> bool:
        """Finish a repairable operation in place.

        If nobody gives the original request, it is probably established, and something has been
        built on it: that calls for another look, and not yet for a barrier.
        """
        timestamp = candidate.timestamp
        conditioned = self.own.get(timestamp) or await self._fetch(name, timestamp)
        if conditioned is None:
            return False
        observed = self._observe(name)
        message = InlineUpdate(
            conditioned,
            client_of(timestamp),
            observed.history_set,
            observed.authenticators,
            NodeId(0),
        )
        names = candidate.objects or (name,)
        outcome = await update_round(self._rounds, message, names, subject="inline repair")
        return outcome.complete

    async def _copy(self, name: ObjectId, *, for_another: bool = False) -> bool:
        """Copy what is to be copied; or a step towards knowing it. [Q/U §4.3.2, §4.3.7]

        `for_another` object's sake that is done if there is nothing to be found out first.
        """
        barred = {name: self._observe(name)}
        others: dict[ObjectId, Observed] = {}
        asked: set[LogicalTimestamp] = set()
        while True:
            settled = self._evidence(barred, others).settle()
            if not isinstance(settled, Undecided):
                break
            candidate = settled.candidate
            if candidate is INITIAL:
                return False  # the histories of different moments have nothing in common
            if candidate.timestamp not in asked:
                asked.add(candidate.timestamp)
                if await self._deduce(candidate) is not None:
                    continue
                await self.refresh(candidate.objects)
                if self._observe(name).classification.type is not OperationType.COPY:
                    return False
                for other in candidate.objects:
                    observed = self._observe(other)
                    standing = observed.classification.type is OperationType.COPY
                    (barred if standing else others)[other] = observed
                    (others if standing else barred).pop(other, None)
                continue
            lacking = [other for other in settled.objects if other not in barred]
            effects = [await self._bar(other) for other in lacking]
            if not lacking and not for_another:
                # At another object something later stands, of which servers do not know that it is
                # established, let alone what is in its chain. A copy there shows it to them.
                for other in candidate.objects:
                    if other not in barred:
                        effects.append(await self._bar(other))
                    elif other != name:
                        effects.append(await self._copy(other, for_another=True))
            return bool(effects) and all(effects)
        names = tuple(sorted(barred))
        evidence = tuple(sorted(others))
        everything = {**barred, **others}
        facts, vouchers = self._observations.relevant(
            shared.candidate
            for observed in everything.values()
            for shared in shared_candidates(observed.culled, self._rounds.quorums)
        )
        conditioned = Conditioned(
            ConditionedKind.COPY,
            None,
            0,
            tuple(barred[each].history_set for each in names),
            tuple(others[each].history_set for each in evidence),
            facts,
        )
        authenticators = tuple(everything[each].authenticators for each in (*names, *evidence))
        message = Update(encode(conditioned), authenticators, vouchers, NodeId(0))
        return (await update_round(self._rounds, message, names, subject="copy")).complete

    def _evidence(
        self, barred: dict[ObjectId, Observed], others: dict[ObjectId, Observed]
    ) -> Evidence:
        culled: list[dict[ObjectId, CulledObjectHistorySet]] = [
            {name: observed.culled for name, observed in each.items()} for each in (barred, others)
        ]
        return Evidence(culled[0], culled[1], self._rounds.quorums, self._observations.facts)

    # --- asking about candidates ----------------------------------------------------------------

    async def _deduce(self, candidate: Candidate) -> bool | None:
        """Whether servers know the candidate of several objects established or dead."""
        facts = self._observations.facts
        if candidate.timestamp not in facts:
            request = DeduceRequest(candidate.timestamp, candidate.objects)
            tally = _DeduceTally(self._rounds, candidate.timestamp)
            plan = await self._rounds.plan(candidate.objects)
            await self._rounds.run(plan, request, tally, subject="deduction")
        return facts.get(candidate.timestamp)

    async def chained(
        self, timestamp: LogicalTimestamp, names: tuple[ObjectId, ...], version: LogicalTimestamp
    ) -> tuple[Verdict, bytes]:
        """Whether an operation is in the chain of a version of its first object; its answer."""

        def request(node: NodeId) -> DeduceRequest:
            return DeduceRequest(timestamp, names, version, node)

        tally = _ChainTally(self._rounds.quorums)
        plan = await self._rounds.plan(names)
        await self._rounds.run(plan, request, tally, subject="chain of versions")
        return tally.verdict, tally.answer

    async def _fetch(self, name: ObjectId, timestamp: LogicalTimestamp) -> bytes | None:
        """The original request of a candidate; it proves itself."""
        rounds = self._rounds
        plan = await rounds.plan((name,))
        hosts = sharing(self._observe(name).culled, timestamp)
        order = tuple(node for node in plan.order if hosts >> node & 1)
        if not order:
            return None
        tally = _FetchTally(timestamp, n=rounds.quorums.n)
        await rounds.run(
            plan._replace(order=order, probes=()),
            FetchRequest(timestamp),
            tally,
            subject="original request",
            first=min(2, len(order)),
            suffices=lambda: tally.asking.asked == hosts,
        )
        return tally.conditioned


class _HistoriesTally(Tally):
    """Replica histories from a quorum."""

    expects = QueryReply

    def __init__(self, rounds: Rounds, plan: Plan) -> None:
        self._rounds = rounds
        self._plan = plan

    def take(self, node: NodeId, reply: QueryReply) -> None:
        self._rounds.learn(self._plan.names, node, reply, self._plan.now_us)
        if self._rounds.quorums.is_quorum(self.asking.answered):
            self.asking.enough()


class _DeduceTally(Tally):
    """What servers know of a candidate: as many statements as a quorum makes, to have enough."""

    expects = DeduceReply

    def __init__(self, rounds: Rounds, timestamp: LogicalTimestamp) -> None:
        self._rounds = rounds
        self._timestamp = timestamp

    def take(self, node: NodeId, reply: DeduceReply) -> None:
        observations = self._rounds.observations
        observations.state(self._timestamp, node, reply.verdict, reply.voucher)
        if self._rounds.quorums.is_quorum(self.asking.answered):
            if self._timestamp in observations.facts:
                self.asking.enough()
            else:
                self.asking.more()


class _ChainTally(Tally):
    """Whether an operation is in a chain, and with what answer."""

    expects = DeduceReply

    def __init__(self, quorums: QuorumSystem) -> None:
        self._quorums = quorums
        self._dead: Nodes = 0
        self._answers: Votes[Answer] = Votes(quorums)
        self.verdict = Verdict.UNKNOWN
        self.answer = b""

    def take(self, node: NodeId, reply: DeduceReply) -> None:
        if reply.verdict is Verdict.DEAD:
            self._dead |= 1 << node
            if self._quorums.includes_benign(self._dead):
                self.verdict = Verdict.DEAD
        elif reply.verdict is Verdict.ESTABLISHED:
            answer = Answer.given(error=0, answer=reply.answer, whole=reply.whole)
            self._answers.add(node, answer, reply.answer, whole=reply.whole)
            agreed = self._answers.agreed()
            if agreed is not None and agreed in self._answers.wholes:
                self.verdict = Verdict.ESTABLISHED
                self.answer = self._answers.wholes[agreed]
        if self.verdict is not Verdict.UNKNOWN:
            self.asking.enough()
        elif not self.asking.waiting:
            self.asking.more()


class _FetchTally(Tally):
    """The original request, from whichever server has it."""

    expects = FetchReply

    def __init__(self, timestamp: LogicalTimestamp, *, n: int) -> None:
        self._timestamp = timestamp
        self._n = n
        self.conditioned: bytes | None = None

    def take(self, node: NodeId, reply: FetchReply) -> None:
        if self._is_original(reply.conditioned):
            self.conditioned = reply.conditioned
            self.asking.enough()
        elif not self.asking.waiting:
            self.asking.more()

    def _is_original(self, encoded: bytes) -> bool:
        """True if the timestamp stands for this very request."""
        try:
            conditioned = decode_conditioned(encoded)
            sets = [parse_set(each, n=self._n) for each in conditioned.sets]
        except MalformedMessage:
            return False
        author = client_of(self._timestamp)
        return timestamp_of(conditioned, encoded, sets, author) == self._timestamp
