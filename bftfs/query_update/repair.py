"""Repair: from whatever a client finds to an object version that can be conditioned on.

[Q/U §4.3.4, c_repair, lines 500-507; §4.3.5, Inline repair; §4.3.7]

A client that stops in the middle of an update, or clients that update an object at the same time,
leave candidates behind that too few servers have accepted. No method can be conditioned on those.
Each step of a repair does what classification dictates, and learns from the replies, which report
the replica histories: an operation that is repairable is finished inline; a barrier keeps what is
earlier from completing; a copy above a complete barrier brings the latest version forward. A
candidate of several objects is first classified by deduction; if that does not decide it, and it
cannot be finished inline, barriers and a copy over all of its objects do.

It is safe to repair at any time, and for several clients at once: servers accept each step only if
it is conditioned on what they have. Repairs at the same moment only keep each other from finishing,
so there is back-off (`effort`), and a reader first looks again.

Barriers and copies carry no clock time of their own: their time is one more than the latest that
was seen. One that was overtaken is then refused, instead of interrupting what others have finished.

Tests: tests/papers/test_query_update.py, from "c_repair" on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from bftfs.asking.ask import Asking
from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.clock_skew import NEAR_US
from bftfs.conversation import Now
from bftfs.credentials import NOBODY as NOT_ANYBODY
from bftfs.credentials import Credentials
from bftfs.errors import ContentionExhausted
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.classification import (
    Evidence,
    OperationType,
    Undecided,
    shared_candidates,
    sharing,
)
from bftfs.query_update.effort import NO_FAILURE, BackOff, Effort, Outcome, Step, next_move
from bftfs.query_update.history import (
    INITIAL,
    Candidate,
    Conditioned,
    ConditionedKind,
    LogicalTimestamp,
    client_of,
    is_original,
    time_of,
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
    UpdateReply,
    Verdict,
    addressed,
)
from bftfs.query_update.observation import Observed
from bftfs.query_update.rounds import Answer, Plan, Rounds, Votes, update_round
from bftfs.wire.codec import encode

_INLINE_ATTEMPTS = 2  # at one candidate, before a barrier ends it
_MOST_STEPS = 1_000  # of one repair; far beyond what contention can cause with back-off
_READING, _WRITING = Effort(reads=True), Effort()


class StepEffect(Enum):
    """What a step of a repair has come to."""

    NONE = "none"
    DONE = "done"  # what it was to have
    TOO_EARLY = "too early"  # its time is too far ahead of the clocks of some benign server
    OVERDRAWN = "overdrawn"  # benign servers let this client make none for now


_NONE, _DONE, _TOO_EARLY = StepEffect.NONE, StepEffect.DONE, StepEffect.TOO_EARLY
_OVERDRAWN = StepEffect.OVERDRAWN


def _all_of(effects: list[StepEffect]) -> StepEffect:
    """What several steps have come to: no more than each of them."""
    if _TOO_EARLY in effects:
        return _TOO_EARLY
    return _DONE if effects and all(each is _DONE for each in effects) else _NONE


def _apart(name: ObjectId, shown: Evidence) -> list[ObjectId]:
    """Barred objects whose times are far from that of `name`, and need not be copied with it.

    A copy would carry the later time over, and servers refuse that.
    """
    joined = shown.joined((name,))
    latest_us = {other: time_of(each.latest) for other, each in shown.barred.items()}
    return [
        other
        for other in shown.barred
        if other not in joined and abs(latest_us[other] - latest_us[name]) > NEAR_US
    ]


class _Inline(NamedTuple):
    """Inline repairs: in whose name, and how often each candidate was tried."""

    who: Credentials
    attempts: dict[LogicalTimestamp, int]


class Attempts:
    """The attempts of one operation, and what is done between them.

    `hosting` are the servers that have what the last repair found or made complete. A query asks
    them first. One of them may count as silent, another server may be behind, and the repair may
    have asked others than the query, because it was of several objects: then those that the query
    would ask are a quorum that shows the same disorder again and again.
    """

    __slots__ = ("_disbelieved", "_repairs", "_who", "back_off", "effort", "hosting")

    def __init__(
        self,
        repairs: Repair,
        who: Credentials,
        *,
        reads: bool = False,
        back_off: BackOff | None = None,
    ) -> None:
        """`who` is the user that fetches others' requests to finish them: servers check this."""
        self._who = who
        self._repairs = repairs
        self._disbelieved = repairs.peers.disbelieved  # when the attempt began
        self.back_off = back_off or BackOff(repairs.peers.metadata)
        self.effort = _READING if reads else _WRITING
        self.hosting = NOBODY

    async def go_on(self, outcome: Outcome, names: tuple[ObjectId, ...]) -> bool:
        """Do what is to be done after an attempt at `names`; False to give up."""
        repairs = self._repairs
        move, self.effort = next_move(outcome, self.effort)
        if outcome not in NO_FAILURE:
            repairs.peers.failed(
                self.effort.failures,
                disbelieved=self._disbelieved,
                ahead_of_clock=repairs.observations.ahead_of_clock(names),
                now_us=await Now(),
            )
        for step in move:
            match step:
                case Step.REPAIR | Step.MAKE_READABLE:
                    reading = step is Step.MAKE_READABLE
                    await repairs.repair(names, self._who, self.back_off, reading=reading)
                    self.hosting = repairs.hosting(names)
                case Step.PAUSE:
                    await self.back_off.pause()
                case Step.WAIT_FOR_CLOCKS:
                    await self.back_off.pause_for_clocks()
                case Step.LOOK:
                    await repairs.refresh(names)
                case Step.GIVE_UP:
                    return False
        self._disbelieved = repairs.peers.disbelieved
        return True


class Repair:
    """One client's way of repairing objects."""

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds
        self.peers = rounds.peers
        self.observations = rounds.observations
        # Requests that this client has under way, so that it need not fetch them from servers.
        self.own: dict[LogicalTimestamp, bytes] = {}

    async def repair(
        self,
        names: tuple[ObjectId, ...],
        who: Credentials = NOT_ANYBODY,
        back_off: BackOff | None = None,
        *,
        reading: bool = False,
    ) -> None:
        """Let every object of `names` have a version that a method can be conditioned on.

        When `reading`, a complete version that a fresh look shows is enough, whatever incomplete
        ones are later: a single updater is then never stopped by readers.
        [Q/U §4.3.5, Retry and backoff policies]
        """
        attempts = Attempts(self, who, back_off=back_off)
        inline = _Inline(who, {})
        for _ in range(_MOST_STEPS):
            is_enough = self.is_orderly
            if reading and attempts.effort.is_fresh:
                is_enough = self._is_readable
            disorderly = next((name for name in names if not is_enough(name)), None)
            if disorderly is None:
                return
            outcome = await self._advance(disorderly, attempts.effort, inline)
            await attempts.go_on(outcome, names)
        raise ContentionExhausted(attempts=_MOST_STEPS, subject=f"repair of {names[0].hex()}")

    async def supersede(
        self, name: ObjectId, version: LogicalTimestamp, who: Credentials, *, insists: bool = True
    ) -> bool:
        """Have something later than `version` established at an object: a copy, if nothing else.

        Then no update that was conditioned on `version`, or on an older one, is established any
        more, however many copies of its requests are under way. False if servers let this client
        make no barrier for now, unless it `insists`.
        """
        attempts = Attempts(self, who)
        for _ in range(_MOST_STEPS):
            await self.repair((name,), who, attempts.back_off)
            if self._observe(name).version > version:
                return True
            effect = await self._barrier(name, self.observations.short_of_a_quorum(name))
            if effect is _OVERDRAWN and not insists:
                return False
            outcome = Outcome.PROGRESS if effect is _DONE else await self._failure(name, effect)
            await attempts.go_on(outcome, (name,))
        raise ContentionExhausted(attempts=_MOST_STEPS, subject=f"a copy of {name.hex()}")

    async def refresh(self, names: tuple[ObjectId, ...]) -> None:
        """Ask a quorum for the replica histories of `names`, ascending."""
        rounds = self._rounds
        plan = await rounds.plan(names)
        message = Query(names, "", b"", 0, 0, (), plan.order[0], True)

        def take(asking: Asking, node: NodeId, reply: QueryReply) -> None:
            rounds.learn(plan, node, reply)
            if rounds.quorums.is_quorum(asking.answered):
                asking.enough()

        await rounds.run(plan, message, QueryReply, take, subject="replica histories")
        # A liar that claims lives of others here alone is refuted here: nothing else would be left.
        rounds.is_outdated(plan)
        # The latest candidate, if hardly anybody has it, takes a repair to get rid of. It counts
        # once for each server: one operation may be the latest of several objects.
        alone = NOBODY
        for name in names:
            culled = self._observe(name).culled
            latest = sharing(culled, culled.latest)
            if not rounds.quorums.includes_benign(latest):
                alone |= latest
        for node in alone:
            rounds.peers.diverged(Nodes.of([node]), plan.now_us)

    # --- one step -------------------------------------------------------------------------------

    def _observe(self, name: ObjectId) -> Observed:
        return self.observations.observe(name)

    def hosting(self, names: tuple[ObjectId, ...]) -> Nodes:
        """The servers that have the latest candidate of every object, as far as is known."""
        hosting = self._rounds.quorums.everyone
        for name in names:
            hosting &= self._observe(name).classification.nodes
        return hosting

    def is_orderly(self, name: ObjectId) -> bool:
        """True if a method can be conditioned on what is known of an object."""
        return self._observe(name).is_orderly

    def _is_readable(self, name: ObjectId) -> bool:
        found = self._observe(name).classification
        return self.is_orderly(name) or self._rounds.quorums.is_quorum(found.nodes)

    async def _advance(self, name: ObjectId, effort: Effort, inline: _Inline) -> Outcome:
        """Take one step towards an orderly object."""
        before = self._observe(name).classification
        if before.type is OperationType.BARRIER and not effort.has_looked:
            # What was observed may be histories of different moments while others succeed.
            return Outcome.INTRUSIVE
        effect = await self._step(name, inline)
        after = self._observe(name)
        # What a server accepts that is disbelieved does not count: if it is needed, a step that a
        # quorum has accepted changes nothing, however often it is taken.
        if effect is _DONE and after.classification != before:
            return Outcome.PROGRESS
        return await self._failure(name, effect)

    async def _failure(self, name: ObjectId, effect: StepEffect) -> Outcome:
        """Why a step has not had its effect."""
        # This client's clock may be as far ahead as the object, and see nothing of it.
        is_too_early = effect is _TOO_EARLY
        if self._observe(name).is_pushed_ahead(await Now(), as_found=is_too_early):
            return Outcome.PUSHED_AHEAD
        return Outcome.NO_PROGRESS

    async def _step(self, name: ObjectId, inline: _Inline) -> StepEffect:
        """Do what classification dictates."""
        observed = self._observe(name)
        kind = observed.classification.type
        if kind is OperationType.COPY:
            return await self._copy(name)
        if kind is not OperationType.INLINE_METHOD:
            return await self._bar(name)
        candidate = observed.classification.object_candidate
        if candidate.objects and await self._deduce(candidate) is not None:
            return _DONE
        attempts = inline.attempts.get(candidate.timestamp, 0)
        inline.attempts[candidate.timestamp] = attempts + 1
        if attempts < _INLINE_ATTEMPTS:
            return await self._inline(name, candidate, inline.who)
        return await self._barrier(name)

    async def _bar(self, name: ObjectId) -> StepEffect:
        """A step towards a complete barrier at an object."""
        observed = self._observe(name)
        reporting = sharing(observed.culled, observed.culled.latest)
        # A barrier that fewer servers report is not taken from anybody: one on top of it is.
        if observed.classification.type is not OperationType.INLINE_BARRIER or not (
            self._rounds.quorums.includes_benign(reporting)
        ):
            return await self._barrier(name)
        message = InlineBarrier(observed.history_set, observed.authenticators)
        return await self._send(message, (name,), "inline barrier")

    async def _barrier(self, name: ObjectId, shown: Observed | None = None) -> StepEffect:
        """Keep everything earlier from completing. [Q/U §4.3.2]

        On what is `shown`, by default on all that is known.
        """
        observed = shown or self._observe(name)
        conditioned = Conditioned(ConditionedKind.BARRIER, None, 0, (observed.history_set,))
        message = Update(encode(conditioned), (observed.authenticators,), (), NodeId(0))
        return await self._send(message, (name,), "barrier")

    async def _inline(self, name: ObjectId, candidate: Candidate, who: Credentials) -> StepEffect:
        """Finish a repairable operation in place.

        If no server has the original request, the operation is probably established and has been
        built upon: the client looks again before it sets a barrier. Servers tell it to no user who
        may not read the objects: then a barrier and a copy do.
        """
        timestamp = candidate.timestamp
        conditioned = self.own.get(timestamp) or await self._fetch(name, timestamp, who)
        if conditioned is None:
            return _NONE
        observed = self._observe(name)
        message = InlineUpdate(
            conditioned,
            client_of(timestamp),
            observed.history_set,
            observed.authenticators,
            NodeId(0),
        )
        names = candidate.objects or (name,)
        return await self._send(message, names, "inline repair")

    async def _copy(self, name: ObjectId, *, for_another: bool = False) -> StepEffect:
        """Copy what is to be copied; or take a step towards knowing it. [Q/U §4.3.2, §4.3.7]

        If it is done `for_another` object's sake, it goes no further than to the next candidate.
        """
        # Object history sets of objects on which a complete barrier stands, and of others.
        barred = {name: self._observe(name)}
        others: dict[ObjectId, Observed] = {}
        asked: set[LogicalTimestamp] = set()
        while True:
            shown = Evidence(
                {other: observed.culled for other, observed in barred.items()},
                {other: observed.culled for other, observed in others.items()},
                self._rounds.quorums,
                self.observations.facts,
            )
            settled = shown.settle()
            if not isinstance(settled, Undecided):
                for other in _apart(name, shown):
                    others[other] = barred.pop(other)
                return await self._send_copy(barred, others)
            candidate = settled.candidate
            if candidate is INITIAL:
                return _NONE  # the histories of different moments have nothing in common
            if candidate.timestamp in asked:
                shared = [other for other in candidate.objects if other in barred]
                if not barred.keys() >= set(settled.objects) or not await self._spread(shared):
                    return await self._bar_all(name, settled, barred, for_another=for_another)
                barred.update({other: self._observe(other) for other in shared})
                continue
            asked.add(candidate.timestamp)
            if await self._deduce(candidate) is not None:
                continue
            await self.refresh(candidate.objects)
            if self._observe(name).classification.type is not OperationType.COPY:
                return _NONE
            for other in candidate.objects:
                observed = self._observe(other)
                stands = observed.classification.type is OperationType.COPY
                (barred if stands else others)[other] = observed
                (others if stands else barred).pop(other, None)

    async def _spread(self, names: Iterable[ObjectId]) -> bool:
        """Let the barriers that stand at these objects stand at all servers. True if more have one.

        How many servers have what is below it, or may accept it yet, can decide about that, and a
        quorum is too few to tell.
        """
        rounds = self._rounds
        more = False
        for name in names:
            observed = self._observe(name)
            latest = observed.culled.latest
            standing = sharing(observed.culled, latest)
            plan = await rounds.plan((name,))
            order = tuple(node for node in plan.order if node not in standing)
            if not order:
                continue
            message = InlineBarrier(observed.history_set, observed.authenticators)

            def take(asking: Asking, node: NodeId, reply: UpdateReply, plan: Plan = plan) -> None:
                rounds.learn(plan, node, reply)
                if not asking.is_waiting:
                    asking.enough()

            await rounds.run(
                plan._replace(order=order, probes=()),
                addressed(message, rounds.quorums.n),
                UpdateReply,
                take,
                subject="barrier",
                first=len(order),
                suffices=lambda _: True,
            )
            after = self._observe(name).culled
            more |= after.latest == latest and sharing(after, latest) != standing
        return more

    async def _bar_all(
        self,
        name: ObjectId,
        undecided: Undecided,
        barred: Mapping[ObjectId, Observed],
        *,
        for_another: bool,
    ) -> StepEffect:
        """Let barriers stand at the other objects of a candidate of which nothing is known."""
        lacking = [other for other in undecided.objects if other not in barred]
        effects = [await self._bar(other) for other in lacking]
        if not lacking and not for_another:
            # At another object something later stands, of which servers do not know that it is
            # established, let alone what is in its chain. A copy there shows it to them.
            for other in undecided.candidate.objects:
                if other not in barred:
                    effects.append(await self._bar(other))
                elif other != name:
                    effects.append(await self._copy(other, for_another=True))
        return _all_of(effects)

    async def _send_copy(
        self, barred: Mapping[ObjectId, Observed], others: Mapping[ObjectId, Observed]
    ) -> StepEffect:
        """Copy at all of the barred objects, on the evidence of the others."""
        names, evidence = tuple(sorted(barred)), tuple(sorted(others))
        everything = {**barred, **others}
        facts, vouchers = self.observations.deductions.relevant(
            (each, shared.candidate)
            for each, observed in everything.items()
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
        return await self._send(message, names, "copy")

    async def _send(
        self,
        message: Update | InlineUpdate | InlineBarrier,
        names: tuple[ObjectId, ...],
        subject: str,
    ) -> StepEffect:
        """Send one step to a quorum for `names`, ascending: it is to be established."""
        plan = await self._rounds.plan(names)
        tally = await update_round(self._rounds, plan, message, subject)
        if tally.complete:
            return _DONE
        includes_benign = self._rounds.quorums.includes_benign
        if includes_benign(tally.insane):
            return _TOO_EARLY
        return _OVERDRAWN if includes_benign(tally.overdrawn) else _NONE

    # --- asking about candidates ----------------------------------------------------------------

    async def _deduce(self, candidate: Candidate) -> bool | None:
        """Ask servers about a candidate: True if it is established, False if it is dead."""
        deductions, timestamp = self.observations.deductions, candidate.timestamp
        is_quorum = self._rounds.quorums.is_quorum

        def take(asking: Asking, node: NodeId, reply: DeduceReply) -> None:
            deductions.state(timestamp, node, reply.verdict, reply.voucher)
            if is_quorum(asking.answered):
                asking.enough_or_more(timestamp in deductions.facts)

        if timestamp not in deductions.facts:
            request = DeduceRequest(timestamp, candidate.objects)
            plan = await self._rounds.plan(candidate.objects)
            await self._rounds.run(plan, request, DeduceReply, take, subject="deduction")
        return deductions.facts.get(timestamp)

    async def chained(
        self, timestamp: LogicalTimestamp, names: tuple[ObjectId, ...], version: LogicalTimestamp
    ) -> tuple[Verdict, bytes]:
        """Whether an operation is in the chain of a version of `names[0]`; and its answer."""
        quorums = self._rounds.quorums
        answers: Votes[Answer] = Votes(quorums)
        dead = NOBODY
        found = Verdict.UNKNOWN, b""

        def take(asking: Asking, node: NodeId, reply: DeduceReply) -> None:
            nonlocal dead, found
            if reply.verdict is Verdict.DEAD:
                dead = dead.plus(node)
                if quorums.includes_benign(dead):
                    found = Verdict.DEAD, b""
            elif reply.verdict is Verdict.ESTABLISHED:
                answer = Answer.given(error=0, answer=reply.answer, whole=reply.whole)
                answers.add(node, answer, reply.answer, whole=reply.whole)
                agreed = answers.agreed()
                if agreed is not None and agreed in answers.wholes:
                    found = Verdict.ESTABLISHED, answers.wholes[agreed]
            asking.until(found[0] is not Verdict.UNKNOWN)

        def request(node: NodeId) -> DeduceRequest:
            return DeduceRequest(timestamp, names, version, node)

        plan = await self._rounds.plan(names)
        await self._rounds.run(plan, request, DeduceReply, take, subject="chain of versions")
        return found

    async def _fetch(
        self, name: ObjectId, timestamp: LogicalTimestamp, who: Credentials
    ) -> bytes | None:
        """The original request of a candidate; it proves itself."""
        rounds = self._rounds
        plan = await rounds.plan((name,))
        hosts = sharing(self._observe(name).culled, timestamp)
        order = tuple(node for node in plan.order if node in hosts)
        if not order:
            return None
        original: bytes | None = None

        def take(asking: Asking, _node: NodeId, reply: FetchReply) -> None:
            nonlocal original
            if is_original(reply.conditioned, timestamp, n=rounds.quorums.n):
                original = reply.conditioned
            asking.until(original is not None)

        await rounds.run(
            plan._replace(order=order, probes=()),
            FetchRequest(timestamp, *who),
            FetchReply,
            take,
            subject="original request",
            first=min(2, len(order)),
            suffices=lambda asked: asked == hosts,
        )
        return original
