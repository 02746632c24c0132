"""The client of Query/Update: queries and updates of replicated objects. [Q/U §4.3.4, §4.3.5]

**Start here.** An object is a replicated map. Each update makes a new version of it, named by a
logical timestamp. Each server reports which versions it has accepted: its replica history.

One update (`update`, with n = 6, t = b = 1: five servers are a quorum, three a repairable set):

1. From earlier replies the client has the object's replica histories (`observation.py`). They say
   what is to be done next; as a rule, to build on the latest version (`classification.py`).
2. It sends the operation and these histories to the five servers of the object's preferred quorum
   (`rounds.py`). Each server checks the histories by its own entry of their authenticators, draws
   the same conclusion, invokes the method, and accepts the version (`accepting.py`).
3. When five servers have accepted it, the update is established.
4. If the histories were stale, the servers refuse, and report theirs: the client tries again. What
   it does after each other outcome is in one table (`effort.py`).
5. If classification dictates anything else than an update, the object is repaired first
   (`repair.py`).

One query (`query`): five servers answer on their latest versions, and report their histories. If
these show that the version is the latest established one, that is all. If not, the client asks
again, and repairs the object if that does not help. Many objects are asked at once by a `bundle`
(`bundle.py`).

Read in this order: `thresholds.QueryUpdateThresholds`, `history.py`, `classification.py`, this
file, `effort.py`, `rounds.py`, `observation.py`, `repair.py`; for a server, `server.py`,
`accepting.py`, `replica.py`. tests/transcripts shows these rounds message by message;
docs/protocols-query-update.md has a table of all rules with their tests.

**Invariants.** An operation takes effect once: before an update is tried again, it is known that no
earlier attempt is in the chain of the version that it is now conditioned on. What servers answer to
an attempt does not end it: copies of its requests may be on their way, and servers may accept these
later. It is over when something later than what it was conditioned on is established. Nothing that
servers say is believed unless servers that cannot all be malevolent say it.

**Concurrency.** One client serves any number of conversations on one engine. What it remembers is
consistent between awaits. Updates of one object take turns; queries only if they find it in
disorder while an update is under way.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from bftfs import limits
from bftfs.asking.ask import Asking
from bftfs.asking.peers import MEMORY_US, Peers
from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.clock_skew import is_pushed_ahead
from bftfs.conversation import Conversation, Draw, Now, Together
from bftfs.credentials import Credentials
from bftfs.crypto.digest import authenticator_bytes, padded
from bftfs.errors import (
    AdmissionRefused,
    FateUnknown,
    FileSystemError,
    QuorumUnavailable,
)
from bftfs.identifiers import ClientId, NodeId, ObjectId, placement_of
from bftfs.limits import CLOCK_SKEW_US
from bftfs.lock import Locks
from bftfs.query_update.bundle import ask_bundle
from bftfs.query_update.effort import Outcome, Streaks
from bftfs.query_update.history import (
    ZERO,
    Conditioned,
    ConditionedKind,
    LogicalTimestamp,
    Operation,
    time_of,
    timestamp_of,
)
from bftfs.query_update.messages import (
    Bundle,
    Query,
    QueryReply,
    Update,
    UpdateReply,
    Verdict,
    VouchedBy,
    addressed,
)
from bftfs.query_update.object_type import Method, ObjectTypes, Record, encode_record
from bftfs.query_update.observation import Observations, Observed
from bftfs.query_update.repair import Attempts, Repair
from bftfs.query_update.rounds import Answer, QueryTally, Rounds, UpdateTally, update_round
from bftfs.wire.codec import Message, Voucher, encode

# Gets vouchers for what a method rests on; the number says how often servers have refused some.
Vouch = Callable[[int], Conversation[tuple[Voucher, ...]]]

_SAME_US = CLOCK_SKEW_US // 4  # for how long an attempt is sent again unchanged


class _WrongClock(AdmissionRefused):
    """Servers that cannot all lie find this client's clock wrong, time and again."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A method's answer, and the version that an update made or a query read.

    A query of several objects names the latest of the versions, one of the past may name ZERO.
    """

    answer: Any
    timestamp: LogicalTimestamp


@dataclass(frozen=True, slots=True)
class EarlierAttempt:
    """An attempt at an update that servers may have accepted, or may yet accept."""

    timestamp: LogicalTimestamp
    conditioned_on: tuple[LogicalTimestamp, ...]  # the versions of the objects
    conditioned: bytes  # the request


@dataclass(slots=True)
class _Ongoing:
    """An update that is under way."""

    names: tuple[ObjectId, ...]
    method: Method
    operation: Operation
    not_before_us: int
    attempts: Attempts
    vouch: Vouch | None
    reaching: Nodes
    earlier: list[EarlierAttempt]
    vouched_by: VouchedBy | None = None
    unvouched: int = 0  # attempts whose vouchers servers have refused
    shown: tuple[Observed, ...] = ()  # what the last attempt was conditioned on…
    clock_us: int = 0  # …and its time

    @property
    def who(self) -> Credentials:
        """The user on whose behalf it is."""
        operation = self.operation
        return Credentials(operation.uid, operation.gid, operation.groups)


class QueryUpdateClient:
    """One client's access to replicated objects.

    `patience_total_us` bounds the silence that a round allows before QuorumUnavailable is raised;
    None waits for ever.
    """

    def __init__(
        self,
        client: ClientId,
        peers: Peers,
        types: ObjectTypes,
        *,
        patience_total_us: int | None = None,
    ) -> None:
        self.client = client
        self.quorums = peers.quorums
        self.types = types
        self.peers = peers
        self.observations = Observations(self.peers)
        self.rounds = Rounds(self.peers, self.observations, patience_total_us=patience_total_us)
        self.repairs = Repair(self.rounds)
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
        ask = partial(
            Query,
            objects,
            method,
            encode_record(arguments),
            *credentials,
        )
        attempts = Attempts(self.repairs, credentials, reads=True)
        is_locked = False
        versions: tuple[LogicalTimestamp, ...] = ()
        before: tuple[LogicalTimestamp, ...] = ()
        try:
            while True:
                tally = await self._query_round(ask, names, method, versions, attempts)
                if tally.answer is not None and (not tally.deduced or tally.versions == before):
                    return await self._answered(tally, found, ask)
                before = tally.versions
                versions = () if tally.disorderly or tally.unknown else tally.versions
                outcome = Outcome.DISORDER if tally.disorderly else Outcome.UNSETTLED
                if tally.disorderly and not is_locked:
                    if self._locks.is_held(names):
                        # Perhaps it is only an update of this very client that is under way.
                        outcome = Outcome.UNSETTLED
                    await self._locks.acquire(names)
                    is_locked = True
                if outcome is Outcome.DISORDER:
                    for name in tally.disorderly:
                        self.observations.keep(name, tally.reported[name])
                await attempts.go_on(outcome, tally.disorderly)
        finally:
            if is_locked:
                self._locks.release(names)

    async def bundle(
        self,
        objects: Sequence[ObjectId],
        method: str,
        arguments: Record,
        credentials: Credentials,
    ) -> dict[ObjectId, Answered]:
        """Invoke a query of each object, in few messages; the answers by object.

        An object is left out if it takes more than one look, or if the query refuses: `query` tells
        more of it then.
        """
        found = self._method(method, update=False)
        if not found.brief:
            raise ValueError(f"{method} is not asked of many objects at once")
        encoded = encode_record(arguments)
        by_preference: dict[tuple[NodeId, ...], list[ObjectId]] = {}
        for name in sorted(set(objects)):
            preference = self.quorums.preference(placement_of(name))
            by_preference.setdefault(preference, []).append(name)
        most = limits.QUERIES_BUNDLED
        bundles = [
            Bundle(tuple(names[first : first + most]), method, encoded, *credentials)
            for names in by_preference.values()
            for first in range(0, len(names), most)
        ]
        agreed = await Together(tuple([partial(ask_bundle, self.rounds, each) for each in bundles]))
        return {
            name: Answered(self.types.decode_answer(found, vote.answer), vote.version)
            for votes in agreed
            for name, vote in votes.items()
            if not vote.error
        }

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        credentials: Credentials,
        *,
        not_before_us: int = 0,
        vouch: Vouch | None = None,
        reaching: Nodes = NOBODY,
        earlier: list[EarlierAttempt] | None = None,
    ) -> Answered:
        """Invoke an update. Raises FileSystemError if it refuses: then nothing has changed.

        Nor has anything, or will, if nodes find the client's clock wrong (AdmissionRefused, ETIME),
        or refuse it for another reason (AdmissionRefused) and yet take what excludes its attempts.
        What comes of it is not known if another OperationFailed is raised; nothing that has not
        taken effect by then, if that is FateUnknown.

        The version's time is `not_before_us` or later: that of what it is to be consistent with.
        `vouch` gets a quorum's vouchers for what the method rests on; again if servers refuse them.
        The servers in `reaching` are asked first: one of them that is behind catches up.

        `earlier` keeps the attempts whose fate is unknown, also if the caller is cancelled. If
        the same update is invoked again with that list, it takes effect once: as one of these,
        whose answer is returned then, or anew.
        """
        found = self._method(method, update=True)
        names = _distinct(objects)
        operation = Operation(
            method,
            objects,
            encode_record(arguments),
            *credentials,
            await Draw(1 << 62),
        )
        await self._locks.acquire(names)
        try:
            if self._streaks:
                await self._streaks.step_back(names)
            attempts = Attempts(self.repairs, credentials)
            ongoing = _Ongoing(
                names,
                found,
                operation,
                not_before_us,
                attempts,
                vouch,
                reaching,
                [] if earlier is None else earlier,
            )
            self.repairs.own |= {each.timestamp: each.conditioned for each in ongoing.earlier}
            return await self._update(ongoing)
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
        ask: Callable[..., Query],
        names: tuple[ObjectId, ...],
        method: str,
        versions: tuple[LogicalTimestamp, ...],
        attempts: Attempts,
    ) -> QueryTally:
        """Ask a quorum for the answer on these versions, or on the latest ones."""
        plan = await self.rounds.plan(names, attempts.hosting)
        again = attempts.effort.failures > 0
        deduce = again or bool(plan.probes) or not self.peers.willing(plan.order[-1])
        message = ask(plan.order[0], deduce, versions)
        tally = QueryTally(self.rounds, plan, versions)
        asking = await self.rounds.run(
            plan, message, QueryReply, tally.take, subject=method, hopes=tally.hopes
        )
        tally.conclude(asking)
        return tally

    async def _answered(
        self, tally: QueryTally, method: Method, ask: Callable[..., Query]
    ) -> Answered:
        """The answer agreed on, whole."""
        answer, versions = tally.answer, tally.versions
        assert answer is not None
        if answer.error:
            raise FileSystemError(answer.error, method.name, versions=versions)
        content = tally.votes.wholes.get((versions, answer))
        if content is None:
            voters = tally.votes.by[(versions, answer)]
            content = await self._whole(
                answer, voters, tally, lambda node: ask(node, False, versions)
            )
        return Answered(self.types.decode_answer(method, content), max(versions))

    # --- updates --------------------------------------------------------------------------------

    async def _update(self, update: _Ongoing) -> Answered:
        """c_increment: repair and retry until a candidate is established. [Q/U lines 300-307]"""
        try:
            return await self._answer(update)
        except (FileSystemError, _WrongClock):
            answered = await self._settled(update)
            if answered is None:
                raise
            return answered
        except AdmissionRefused as refused:
            # Some nodes may have accepted it: those that have room, or know of a grant yet.
            try:
                answered = await self._settled(update, insists=False)
            except AdmissionRefused:  # nor do they take what would exclude it
                raise refused from None
            if answered is None:
                raise
            return answered
        finally:
            for each in update.earlier:
                self.repairs.own.pop(each.timestamp, None)

    async def _answer(self, update: _Ongoing) -> Answered:
        """Try until it is established, refused, or hopeless."""
        if update.vouch is not None:
            update.vouched_by = self._vouched_by(await update.vouch(0))
        while True:
            outcome = await self._attempt(update)
            if isinstance(outcome, Answered):
                return outcome
            if not await update.attempts.go_on(outcome, update.names):
                if outcome is Outcome.WRONG_CLOCK:
                    raise _WrongClock(
                        code=errno.ETIME,
                        reason="the nodes find this client's clock too far from theirs",
                    )
                raise await self._fate_unknown(update)

    async def _settled(self, update: _Ongoing, *, insists: bool = True) -> Answered | None:
        """The answer of an earlier attempt at an update that is given up; None if none ever counts.

        Without `insists` the client leaves it at that where servers let no barrier be made for now.

        Copies of their requests may be on their way. So something later than what they were
        conditioned on is established. (Not of an update whose objects are all new: no barrier can
        be made there. But nothing is refused there at one time that is accepted at another.)
        """
        names, who = update.names, update.who
        attempts = Attempts(self.repairs, who)
        while update.earlier:
            observed = [self.observations.condition_on(name) for name in names]
            outcome: Answered | Outcome | None = Outcome.DISORDER
            if all(each.is_orderly for each in observed):
                outcome = await self._effect(update, observed)
            if isinstance(outcome, Answered):
                return outcome
            if outcome is not None:
                if not await attempts.go_on(outcome, names):
                    raise await self._fate_unknown(update)
            elif update.earlier:
                name, version = _existing(update)
                if version == ZERO or not await self.repairs.supersede(
                    name, version, who, insists=insists
                ):
                    return None
        return None

    async def _fate_unknown(self, update: _Ongoing) -> FateUnknown:
        """Exclude all attempts for good; the error that says that nobody knows their fate."""
        await self.repairs.supersede(*_existing(update), update.who)
        return FateUnknown(update.method.name)

    def _remember(
        self,
        update: _Ongoing,
        timestamp: LogicalTimestamp,
        message: Update,
        observed: list[Observed],
    ) -> None:
        """An attempt may yet take effect, also if all servers have refused it.

        Copies of its requests may be on their way, and servers refuse for reasons that pass.
        """
        if timestamp not in self.repairs.own:
            self.repairs.own[timestamp] = message.conditioned
            versions = tuple([each.version for each in observed])
            update.earlier.append(EarlierAttempt(timestamp, versions, message.conditioned))

    def _forget(self, update: _Ongoing, timestamp: LogicalTimestamp) -> None:
        """An attempt can never take effect."""
        update.earlier[:] = [each for each in update.earlier if each.timestamp != timestamp]
        self.repairs.own.pop(timestamp, None)

    async def _attempt(self, update: _Ongoing) -> Answered | Outcome:
        """Try an update once, on the versions that are known."""
        names, method = update.names, update.method
        observed = [self.observations.condition_on(name) for name in names]
        if not all(each.is_orderly for each in observed):
            return Outcome.DISORDER
        if update.earlier:
            effect = await self._effect(update, observed)
            if effect is not None:
                return effect
        tally, timestamp, message = await self._send(update, observed)
        if tally.complete:
            if tally.contenders or self._streaks:
                await self._streaks.succeeded(names, tally.contenders or 0)
            # If this fails, it has taken effect: its answer is asked for in another way.
            content = await self._agreed(tally, message, timestamp)
            return Answered(self.types.decode_answer(method, content), timestamp)
        if tally.refusal:
            # The method, its arguments and the versions are the same everywhere, and for ever.
            self._forget(update, timestamp)
            self._streaks.interrupted(names)
            versions = tuple(each.version for each in observed)
            raise FileSystemError(tally.refusal, method.name, versions=versions)
        if tally.fails_for_vouchers:
            await self._renew(update, tally)
        self._streaks.interrupted(names)
        update.attempts.back_off.ahead = tally.contenders
        return await self._failure(tally, timestamp, observed)

    async def _renew(self, update: _Ongoing, tally: UpdateTally) -> None:
        """Get other vouchers: some were forged, or of nodes that have lost their stores since."""
        if update.vouch is not None:
            update.unvouched += 1
            update.vouched_by = self._vouched_by(await update.vouch(update.unvouched))
        elif self.quorums.includes_benign(tally.unvouched):
            raise AdmissionRefused(
                code=errno.EPERM,
                reason="too few nodes host what the update names",
                nodes=len(tally.unvouched),
            )

    def _vouched_by(self, vouchers: tuple[Voucher, ...]) -> VouchedBy:
        """As servers take them: all of one length."""
        n = self.quorums.n
        widths = authenticator_bytes(n), authenticator_bytes(n, knowing=True)
        fitting = [each for each in vouchers if len(each.authenticator) in widths]
        return VouchedBy(
            bytes([each.node for each in fitting]),
            padded([each.authenticator for each in fitting]),
        )

    async def _failure(
        self, tally: UpdateTally, timestamp: LogicalTimestamp, observed: list[Observed]
    ) -> Outcome:
        """Why too few servers have accepted an update."""
        includes_benign = self.quorums.includes_benign
        if includes_benign(tally.insane):
            now_us = await Now()
            if is_pushed_ahead(time_of(timestamp), now_us) or any(
                each.is_pushed_ahead(now_us) for each in observed
            ):
                return Outcome.PUSHED_AHEAD
            self.peers.doubt_clock(now_us + MEMORY_US)
            return Outcome.WRONG_CLOCK
        if includes_benign(tally.insane | tally.overdrawn):
            return Outcome.OVERDRAWN
        if all(map(self.repairs.is_orderly, tally.plan.names)):
            return Outcome.IN_LINE if tally.contenders else Outcome.STALE
        if self.quorums.is_repairable(tally.accepted):
            return Outcome.DISORDER
        return Outcome.OVERTAKEN

    async def _send(
        self, update: _Ongoing, observed: list[Observed]
    ) -> tuple[UpdateTally, LogicalTimestamp, Update]:
        """One round of the operation, conditioned on what was observed."""
        plan = await self.rounds.plan(update.names, update.reaching)
        candidates = [
            (each.history_set.object, each.classification.object_candidate) for each in observed
        ]
        if all(self.quorums.is_quorum(each.classification.nodes) for each in observed):
            candidates = []  # the histories show that they are established: no vouchers are needed
        facts, vouchers = self.observations.deductions.relevant(candidates)
        clock_us, shown = max(plan.now_us, update.not_before_us), tuple(observed)
        if shown != update.shown or not 0 <= clock_us - update.clock_us <= _SAME_US:
            update.shown, update.clock_us = shown, clock_us
        conditioned = Conditioned(
            ConditionedKind.METHOD,
            update.operation,
            update.clock_us,
            tuple([each.history_set for each in observed]),
            (),
            facts,
        )
        encoded = encode(conditioned)
        culled = [each.culled for each in observed]
        timestamp = timestamp_of(conditioned, encoded, culled, self.client)
        authenticators = tuple([each.authenticators for each in observed])
        message = Update(encoded, authenticators, vouchers, plan.order[0], update.vouched_by)
        self._remember(update, timestamp, message, observed)
        tally = await update_round(self.rounds, plan, message, update.method.name)
        return tally, timestamp, message

    async def _effect(
        self, update: _Ongoing, observed: list[Observed]
    ) -> Answered | Outcome | None:
        """The answer of an earlier attempt, if that took effect; UNCERTAIN if nobody knows.

        An attempt has taken effect if it is in the chain of a version that the next one is
        conditioned on. It never will if such a version is later than the one that it was itself
        conditioned on, and is not built on it: then it is forgotten. Until then the next attempt is
        conditioned on the same versions, or on older ones, and servers establish one of the two at
        most.
        """
        uncertain: Outcome | None = None
        for attempt in tuple(update.earlier):
            verdict, answer = await self._verdict(update, attempt, observed)
            if verdict is Verdict.ESTABLISHED:
                found = self.types.decode_answer(update.method, answer)
                return Answered(found, attempt.timestamp)
            if verdict is Verdict.DEAD:
                self._forget(update, attempt.timestamp)
            elif verdict is Verdict.UNKNOWN:
                uncertain = Outcome.UNCERTAIN
        return uncertain

    async def _verdict(
        self, update: _Ongoing, attempt: EarlierAttempt, observed: list[Observed]
    ) -> tuple[Verdict | None, bytes]:
        """What became of an attempt, and its answer; None: the next one excludes it, if need be."""
        names = update.names
        for position, (each, version) in enumerate(
            zip(observed, attempt.conditioned_on, strict=True)
        ):
            base = each.classification.object_candidate
            if base.timestamp <= version:
                continue  # nothing has happened there since, or what is believed now is older
            if base.timestamp < attempt.timestamp or (
                base.conditioned_on == version and base.timestamp != attempt.timestamp
            ):
                return Verdict.DEAD, b""  # chains ascend; or it is another update of that version
            here = names[position], *names[:position], *names[position + 1 :]
            found = await self.repairs.chained(attempt.timestamp, here, base.timestamp)
            if (
                found[0] is Verdict.UNKNOWN
                and base.conditioned_on < attempt.timestamp != base.timestamp
            ):
                return Verdict.DEAD, b""  # servers have collected what was there; it was not this
            return found
        return None, b""

    async def _agreed(
        self, tally: UpdateTally, message: Update, timestamp: LogicalTimestamp
    ) -> bytes:
        """The answer that the servers that accepted the update agree on, whole."""
        answer = tally.answers.agreed()
        if answer is None:  # too many have the version from object sync, without its answer
            verdict, content = await self.repairs.chained(timestamp, tally.plan.names, timestamp)
            if verdict is not Verdict.ESTABLISHED:
                raise QuorumUnavailable(heard=0, required=1, subject="the answer to an update")
            return content
        self.peers.convict(tally.answers.dissenters(answer), tally.plan.now_us)
        whole = tally.answers.wholes.get(answer)
        if whole is None:
            to_each = addressed(message, self.quorums.n)
            whole = await self._whole(
                answer,
                tally.answers.by[answer],
                tally,
                lambda node: msgspec.structs.replace(to_each(node), whole_answer_from=node),
            )
        return whole

    # --- answers --------------------------------------------------------------------------------

    async def _whole(
        self,
        answer: Answer,
        voters: Nodes,
        tally: UpdateTally | QueryTally,
        request: Callable[[NodeId], Message],
    ) -> bytes:
        """The content of an answer of which only digests came: each voter is asked for it."""
        plan = await self.rounds.plan(tally.plan.names)
        order = tuple(node for node in tally.plan.order if node in voters)
        content: bytes | None = None

        def take(asking: Asking, _node: NodeId, reply: QueryReply | UpdateReply) -> None:
            nonlocal content
            given = Answer.given(error=reply.error, answer=reply.answer, whole=reply.whole)
            if reply.whole and given == answer:
                content = reply.answer
            asking.until(content is not None)

        await self.rounds.run(
            plan._replace(order=order, probes=()),
            request,
            QueryReply | UpdateReply,
            take,
            subject="a large answer",
            first=1,
        )
        if content is None:
            raise QuorumUnavailable(heard=0, required=1, subject="a large answer")
        return content


def _existing(update: _Ongoing) -> tuple[ObjectId, LogicalTimestamp]:
    """An object that is not new, and the latest version that attempts were conditioned on there.

    ZERO if all objects are new.
    """
    name, version = update.names[0], ZERO
    for attempt in update.earlier:
        for other, found in zip(update.names, attempt.conditioned_on, strict=True):
            if version == ZERO or (other == name and found > version):
                name, version = other, found
    return name, version


def _distinct(objects: tuple[ObjectId, ...]) -> tuple[ObjectId, ...]:
    """The objects without repetition, ascending."""
    return objects if len(objects) == 1 else tuple(sorted(set(objects)))
