"""Accepting updates, copies and barriers at a server: `s_request`, line by line.

[Q/U §4.3.4, lines 1000-1118; §4.3.5; §4.3.7]

For a request that changes objects, in order: cull the history sets (and wait until it is known that
what is left counts together: `.consistent`); set up the candidate; answer a
repeated request as the first time; refuse what is not dictated by the history sets, or is not
current; get the versions it builds on (object sync); invoke; accept for all objects, atomically;
prune; answer. There are four ways in:

- A *direct* request of a client (method) or of anybody who repairs (copy, barrier). Everything in
  it is verified here: each history by this server's own entry of its authenticator.
- An *inline* method or copy: somebody finishes another one's operation. A repairable set of
  authenticated histories has its candidate. So a benign server has verified the original request,
  from which the candidate is recomputed here.
- An *inline barrier*, which b + 1 servers report. It needs no evidence: barriers have no data.
- What *healing* has found at the peers, in `bftfs.server.object_healing`.

**Rules.** Safety rests on these, and on nothing that is only remembered between requests:

1. A server accepts a candidate on top of another only if nothing later than what the request is
   conditioned on stands in its history. [line 1007]
2. It accepts for all objects of an operation or for none: all writes are of one step.
3. A server that has lost its store accepts nothing before it has what the others know. What it
   stated before the loss counts no more, neither with itself nor with anybody else. See
   `bftfs.server.object_healing`.

Unlike [Q/U §4.3.4, lines 1001-1004]: a request from which anything was culled is not carried out on
what remains, but fails with the report. With the rest of the set the server would set up another
timestamp than the other servers, which could not be established anyway; and a client knows the
timestamp of each of its attempts, hence whether a failed one was finished by somebody else.

`tests/papers/test_query_update.py` has a test for each sentence of the paper.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.clock_skew import NEAR_US
from bftfs.conversation import Conversation
from bftfs.crypto.digest import (
    AuthenticatorKeys,
    Digest,
    answer_digest,
    deduction_digest,
    entry_bytes,
    life_of,
    tell_lives,
)
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.query_update import between_nodes
from bftfs.query_update.admission import Allowance, BarrierBudget, IncompleteUpdates, Lines
from bftfs.query_update.classification import (
    NO_FACTS,
    Evidence,
    OperationType,
    Settled,
    Undecided,
    classify,
    greatest_complete,
    shared_candidates,
    sharing,
)
from bftfs.query_update.consistent import Claims, claims_in, claims_of, each_makers
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    Conditioned,
    ConditionedKind,
    CulledObjectHistorySet,
    Fact,
    LogicalTimestamp,
    ObjectHistorySet,
    Operation,
    built_on,
    client_of,
    cull,
    decode_conditioned,
    is_barrier,
    parse_set,
    time_of,
    timestamp_of,
)
from bftfs.query_update.messages import (
    InlineBarrier,
    InlineUpdate,
    Status,
    Update,
    UpdateReply,
    Verdict,
    VouchedBy,
)
from bftfs.query_update.object_type import Caller, Method, ObjectTypes
from bftfs.query_update.replica import Reach, Replica, own_authenticator
from bftfs.server.own_clock import OwnClock
from bftfs.server.step import Ready, Refuse, Sender, WaitFor, Want
from bftfs.storage import StorageView, Table, Write

_BY_NOBODY = VouchedBy()
# Members of a class take longer to find.
_METHOD = OperationType.METHOD
_INVOCATION = ConditionedKind.METHOD
_COPY = ConditionedKind.COPY
_BARRIER = ConditionedKind.BARRIER

_Fetch = Callable[[StorageView], Conversation[list[Write] | None]]


class _Fail(Exception):
    """Control flow: the request fails with a status and the replica histories."""

    def __init__(self, status: Status, *, writes: Sequence[Write] = (), **more: Any) -> None:
        super().__init__(status)
        self.status = status
        self.writes = writes
        self.more = more  # fields of the reply


class _Plan(msgspec.Struct, frozen=True, gc=False):
    """What a classified request does to one object."""

    replica: Replica
    conditioned_on: Candidate  # to build on; of a copy, its timestamp is all that counts
    current: LogicalTimestamp  # LTcurrent: nothing later may have been accepted
    hosts: Nodes  # that have that version
    complete: Candidate  # the greatest object candidate that the history set shows complete


class _Request:
    """An operation, copy or barrier; when it is verified, its timestamp and what it does."""

    def __init__(
        self,
        view: StorageView,
        author: ClientId,
        message: Update | InlineUpdate,
        conditioned: Conditioned,
        method: Method | None,
    ) -> None:
        self.author = author
        self.encoded = message.conditioned
        self.whole_answer_from = message.whole_answer_from
        self.conditioned = conditioned
        self.method = method
        self.replicas = [Replica(view, history_set.object) for history_set in conditioned.sets]
        self.timestamp = ZERO
        self.plans: list[_Plan] = []  # one for each of `replicas`

    def set_up(self, sets: list[CulledObjectHistorySet]) -> None:
        """`s_setup`: the timestamp, one for all objects of the operation. [Q/U lines 1100-1118]"""
        self.timestamp = timestamp_of(self.conditioned, self.encoded, sets, self.author)

    def require_sane(
        self, sets: Sequence[CulledObjectHistorySet], quorums: QuorumSystem, now_us: int
    ) -> None:
        """Refuse a request whose author's clock is far from this server's.

        It may be ahead by a few steps of what the request builds on, which may itself be ahead of
        all clocks: a file's blocks come after its last version, and the update that covers them
        after the blocks. A time in the past would change what readers have already seen of that
        time. Repairs are not checked: they finish an operation at the time at which it was begun.
        """
        clock_us, latest_us = self.conditioned.clock, now_us + limits.CLOCK_SKEW_US
        if clock_us > latest_us:
            latest_us = limits.STEPS_AHEAD_US + max(each.reached_us(quorums) for each in sets)
        if clock_us > latest_us or time_of(self.timestamp) < now_us - limits.CLOCK_SKEW_US:
            raise _Fail(Status.INSANE_TIME)

    def candidate(self, plan: _Plan) -> Candidate:
        """The candidate that is accepted for one of its objects."""
        kind, replicas = self.conditioned.kind, self.replicas
        names: tuple[ObjectId, ...] = ()  # none if it is only one, or a barrier
        if len(replicas) > 1 and kind is not _BARRIER:
            names = tuple([each.object for each in replicas])
        return Candidate(self.timestamp, plan.conditioned_on.timestamp, names, kind is _COPY)

    @property
    def late(self) -> list[ObjectId]:
        """The objects at which something later than LTcurrent was accepted. [Q/U line 1007]"""
        return [
            plan.replica.object for plan in self.plans if plan.replica.history.latest > plan.current
        ]


class Accepting:
    """Decides at one server about updates, copies and barriers, and accepts them."""

    def __init__(
        self,
        node: NodeId,
        peers: Peers,
        keys: AuthenticatorKeys,
        types: ObjectTypes,
        incomplete: IncompleteUpdates,
        clock: OwnClock,
    ) -> None:
        self._node = node
        self._clock = clock
        self._peers = peers
        self._quorums = peers.quorums
        self._keys = keys
        self._types = types
        self._incomplete = incomplete
        self._allowance = Allowance()
        self._lines = Lines()
        self._budget = BarrierBudget()
        self._claims = Claims(peers, keys)

    # --- the ways in ----------------------------------------------------------------------------

    def update(
        self,
        view: StorageView,
        client: ClientId,
        message: Update,
        conditioned: Conditioned,
        now_us: int,
    ) -> Ready:
        """A direct request of `client`, who is entitled to it; `conditioned` is decoded from it."""
        request = _Request(view, client, message, conditioned, self._method_of(conditioned))
        if request.method is not None:  # an author's; what others have begun needs no clock
            stopped = self._clock.stops(now_us)
            if stopped is not None:
                return stopped
        try:
            shown = conditioned.sets + conditioned.evidence
            sets = self._cull(shown, message.authenticators, now_us)
            evidence = sets[len(conditioned.sets) :]
            if evidence:
                del sets[len(conditioned.sets) :]
            request.set_up(sets)
            if self._is_repeated(request):
                return self._accepted_before(request)
            method = request.method
            if method is not None:
                request.require_sane(sets, self._quorums, now_us)
            if conditioned.facts:
                self._require_vouched(conditioned, message)
                self._require_pertinent(conditioned.facts, (*sets, *evidence))
            request.plans = self._plan(request, sets, evidence)
            if method is not None:
                return self._update(request, method, message.vouched_by, now_us)
            if request.late:
                raise _Fail(Status.NOT_CURRENT)
            self._require_allowance(request, now_us)
            if conditioned.kind is _COPY:
                carried = self._require_together(request, sets, evidence, now_us)
                ready = self._accept_copy(request)
            else:
                carried = self._require_barrier(request, sets, now_us)
                ready = self._accept_barrier(request)
            self._move(request, carried, now_us)
            return ready
        except _Fail as failure:
            return self._failed(request.replicas, failure)

    def _update(
        self, request: _Request, method: Method, vouched_by: VouchedBy | None, now_us: int
    ) -> Ready:
        """A direct method: contending clients take turns, and each leaves few incomplete."""
        client, late = request.author, request.late
        if late:
            raise _Fail(Status.NOT_CURRENT, contenders=self._lines.join(late, client, now_us))
        if method.for_readers:
            self._require_question(request, now_us)
        self._require_settled(request, now_us)
        names = [replica.object for replica in request.replicas]
        contenders = self._lines.leave(names, client, now_us)
        try:
            return self._accept_method(
                request,
                vouched_by=vouched_by or _BY_NOBODY,
                now_us=now_us,
                contenders=contenders,
                # Readers need an answer also while disks are full: see `_require_question`.
                uses_reserve=method.frees or method.for_readers,
            )
        except _Fail as failure:
            if failure.more.get("error") == method.overtaken != 0:
                # It was prepared too slowly, and will come again: the faster client steps back.
                self._lines.join(names, client, now_us)
            raise

    def inline_update(
        self, view: StorageView, _sender: Sender, message: InlineUpdate, now_us: int
    ) -> Ready:
        """Another client's (or an earlier) operation, finished in place. [Q/U §4.3.5]"""
        conditioned = decode_conditioned(message.conditioned)
        method = self._method_of(conditioned)
        if conditioned.kind is _BARRIER:
            raise Refuse(errno.EINVAL, "barriers are repaired by showing them")
        if all(message.evidence.object != each.object for each in conditioned.sets):
            raise Refuse(errno.EINVAL, "the evidence is about another object")
        request = _Request(view, message.author, message, conditioned, method)
        n = self._quorums.n
        try:
            (shown,) = self._cull((message.evidence,), (message.authenticators,), now_us)
            sets = [parse_set(each, n=n) for each in conditioned.sets]
            evidence = [parse_set(each, n=n) for each in conditioned.evidence]
            request.set_up(sets)
            if self._is_repeated(request):
                return self._accepted_before(request)
            # Do no work for the request before servers vouch for it: its own history sets are not
            # authenticated, and may be of any length.
            if shown.latest != request.timestamp or not self._quorums.is_repairable(
                sharing(shown, request.timestamp)
            ):
                raise _Fail(Status.DIFFERENT)
            request.plans = self._plan(request, sets, evidence)
            vouching = self._vouching(request, shown)
            return self._finish(request, vouching)
        except _Fail as failure:
            return self._failed(request.replicas, failure)

    def _vouching(self, request: _Request, shown: CulledObjectHistorySet) -> Nodes:
        """The servers that have accepted the operation, as the history set of one object shows."""
        plan = next(each for each in request.plans if each.replica.object == shown.object)
        candidate = request.candidate(plan)
        vouching = sharing(shown, request.timestamp, alike=lambda found: found == candidate)
        if not self._quorums.is_repairable(vouching):
            raise _Fail(Status.DIFFERENT)
        return vouching

    def _finish(self, request: _Request, hosts: Nodes) -> Ready:
        """Accept inline an operation that `hosts` have accepted: for the objects that lack it."""
        lacking = self._lacking(request)
        if len(lacking) < len(request.replicas):
            return self._adopt(request, lacking, hosts)
        if all(between_nodes.is_staged(each, request.timestamp) for each in lacking):
            ready = self._adopt(request, lacking, hosts)
            ready.writes.append(Write(Table.REQUEST, request.timestamp, request.encoded))
            return ready
        try:
            if request.method is None:
                return self._accept_copy(request)
            return self._accept_method(request)
        except WaitFor as wait:
            raise WaitFor(self._or_result(wait.want, request, hosts)) from None

    def _lacking(self, request: _Request) -> list[Replica]:
        """The objects for which this server has not accepted the operation, and still may."""
        lacking = []
        timestamp = request.timestamp
        for plan in request.plans:
            replica = plan.replica
            if replica.history.find(timestamp) is not None:
                continue
            if replica.history.latest > plan.current:
                if replica.verdict(timestamp) is Verdict.ESTABLISHED:
                    continue
                raise _Fail(Status.NOT_CURRENT)
            lacking.append(replica)
        return lacking

    def _or_result(self, want: Want, request: _Request, hosts: Nodes) -> Want:
        """`want`; if the peers cannot supply that, the versions that the operation has made.

        Unlike [Q/U §4.3.5]: a quorum may have accepted the operation so long ago that the version
        on which it was invoked has been collected everywhere. If b + 1 servers that host its result
        give the same, one of them is benign.
        """
        fetches = [self._fetching(each, request.timestamp, hosts) for each in request.replicas]

        async def fetch(view: StorageView) -> list[Write] | None:
            writes = await want.fetch(view)
            if writes is not None and not between_nodes.say_gone(writes):
                return writes
            staged: list[Write] = []
            for each in fetches:
                writes = await each(view)
                if writes is None:
                    return None
                staged += writes
            return staged

        return Want(want.key, fetch)

    def inline_barrier(
        self, view: StorageView, _sender: Sender, message: InlineBarrier, now_us: int
    ) -> Ready:
        """Accept a barrier that b + 1 servers report as their latest candidate.

        Unlike [Q/U §4.3.5, Malevolent components], where one server's word is enough. Barriers have
        no data, and are safe to accept from any maker; but they stop all updates of the object.
        One of b + 1 servers is benign: it took this one from its maker, within the budget.
        """
        replica = Replica(view, message.evidence.object)
        try:
            (evidence,) = self._cull((message.evidence,), (message.authenticators,), now_us)
            timestamp = evidence.latest
            if not is_barrier(timestamp):
                raise _Fail(Status.DIFFERENT)
            if replica.history.find(timestamp) is not None:
                return self._accepted([replica])
            if replica.history.latest > timestamp:
                raise _Fail(Status.NOT_CURRENT)
            if not self._quorums.includes_benign(sharing(evidence, timestamp)):
                raise _Fail(Status.DIFFERENT)
            candidate = next(
                found
                for history, _ in evidence.hosted
                if (found := history.find(timestamp)) is not None
            )
            self._extend(replica, candidate, greatest_complete(evidence, self._quorums))
            self._budget.charge(replica.object, client_of(timestamp), now_us)
            return self._accepted([replica])
        except _Fail as failure:
            return self._failed([replica], failure)

    # --- verification ---------------------------------------------------------------------------

    def _method_of(self, conditioned: Conditioned) -> Method | None:
        """The method that is invoked, if any."""
        fault = conditioned.fault
        if fault:
            raise Refuse(errno.EINVAL, fault)
        operation = conditioned.operation
        if operation is None:
            return None
        method = self._types.method(operation.method)
        if method is None or not method.update:
            raise Refuse(errno.EOPNOTSUPP, f"no update is called {operation.method}")
        if not method.takes(operation.objects):
            raise Refuse(errno.EINVAL, f"{method.name} does not take such objects")
        return method

    def _cull(
        self, history_sets: Sequence[ObjectHistorySet], entries: Sequence[bytes], now_us: int
    ) -> list[CulledObjectHistorySet]:
        """The history sets, if nothing has to be culled; else the request fails.

        `entries` are what this server checks of their authenticators. Another client, or this one
        of another server, may be sent others: each server believes by its own alone. [Q/U §4.3.4]
        """
        if len(entries) != len(history_sets):
            raise Refuse(errno.EINVAL, "a history set lacks its authenticators")
        culled = []
        forged = insane = outlived = NOBODY
        latest_us, tells_lives = now_us, False
        for history_set, of_set in zip(history_sets, entries, strict=True):
            kept, bad, mad, old = self._culled(history_set, of_set, latest_us)
            if mad is not NOBODY and latest_us == now_us:
                latest_us = max(now_us, self._clock.before_us(now_us))
                kept, bad, mad, old = self._culled(history_set, of_set, latest_us)
            if bad.bits | mad.bits | old.bits:
                forged, insane, outlived = forged | bad, insane | mad, outlived | old
            culled.append(kept)
            tells_lives |= tell_lives(of_set, len(kept.nodes))
        if forged.bits | insane.bits | outlived.bits:
            raise _Fail(Status.CULLED, forged=forged.bits, insane=insane.bits)
        if tells_lives:
            self._require_undisputed(history_sets, entries, now_us)
        return culled

    def _require_undisputed(
        self, history_sets: Sequence[ObjectHistorySet], entries: Sequence[bytes], now_us: int
    ) -> None:
        """The request waits while some of the makers claim lives of others that are not known."""
        claims = self._claims.open(claims_in(history_sets, entries, self._keys))
        if claims:
            want = self._claims.want(claims, history_sets[0].object, now_us)
            if want is None:
                raise _Fail(Status.CULLED)
            raise WaitFor(want)

    def _culled(
        self, history_set: ObjectHistorySet, entries: bytes, latest_us: int
    ) -> tuple[CulledObjectHistorySet, Nodes, Nodes, Nodes]:
        sane_us = latest_us + limits.CLOCK_SKEW_US - 1  # so that what comes next is sane as well
        return cull(history_set, entries, self._keys, quorums=self._quorums, latest_sane_us=sane_us)

    def _require_vouched(self, conditioned: Conditioned, message: Update) -> None:
        """Refuse facts that are not stated by servers that cannot all be lying."""
        if len(message.vouchers) != len(conditioned.facts):
            raise Refuse(errno.EINVAL, "a fact lacks its vouchers")
        for fact, vouchers in zip(conditioned.facts, message.vouchers, strict=True):
            digest = deduction_digest(
                timestamp=fact.timestamp, objects=fact.objects, established=fact.established
            )
            vouching = forged = NOBODY
            for voucher in vouchers:
                node, authenticator = voucher.node, voucher.authenticator
                if self._keys.check(claimed_by=node, digest=digest, authenticator=authenticator):
                    vouching = vouching.plus(node)
                elif node < self._quorums.n and (
                    life_of(authenticator) >= self._keys.lives[node]
                ):  # else it is outlived, which is nobody's fault
                    forged = forged.plus(node)
            if not self._quorums.includes_benign(vouching):
                raise _Fail(Status.CULLED, forged=forged.bits)

    def _require_pertinent(
        self, facts: Sequence[Fact], sets: Sequence[CulledObjectHistorySet]
    ) -> None:
        """Refuse facts that are of other objects than the candidates that they would decide.

        Any object that an operation has not touched shows it dead, to those who ask about that.
        """
        told = {fact.timestamp: fact.objects for fact in facts}
        for each in sets:
            for candidate, _ in shared_candidates(each, self._quorums):
                own = candidate.objects or (each.object,)
                if told.get(candidate.timestamp, own) != own:
                    raise _Fail(Status.DIFFERENT)

    def _require_hosts(
        self, digest: Digest | None, vouched_by: VouchedBy, name: ObjectId, now_us: int
    ) -> None:
        """Refuse an update unless a quorum of nodes vouches for what it rests on.

        Of those that have begun a new life since, as others that vouch with them claim, it waits to
        hear that it is not so.
        """
        if digest is None:
            return
        makers, entries = vouched_by.nodes, vouched_by.authenticators
        n = self._quorums.n
        if not makers or len(entries) not in (
            len(makers) * entry_bytes(n),
            len(makers) * entry_bytes(n, knowing=True),
        ):
            raise _Fail(Status.UNVOUCHED)
        if max(makers) >= n or len(set(makers)) < len(makers):
            raise Refuse(errno.EINVAL, "no such nodes vouch")
        forged, outlived = self._keys.refuted(makers=makers, digest=digest, entries=entries)
        vouching = Nodes.of(makers)
        if forged or outlived:
            vouching -= Nodes.of((*forged, *outlived))
        if self._quorums.is_quorum(vouching):
            told = [each for each in each_makers(makers, entries) if each[0] in vouching]
            claims = self._claims.open(claims_of(told, vouching, self._keys))
            if self._quorums.is_quorum(vouching - Nodes.of(claim.maker for claim in claims)):
                return
            want = self._claims.want(claims, name, now_us)
            if want is not None:
                raise WaitFor(want)
        raise _Fail(Status.UNVOUCHED, forged=Nodes.of(forged).bits)

    def _plan(
        self,
        request: _Request,
        sets: list[CulledObjectHistorySet],
        evidence: list[CulledObjectHistorySet],
    ) -> list[_Plan]:
        """The plan for each object. Fails unless the history sets dictate the operation.

        A copy also fails unless it is decided which versions to copy. [Q/U §4.3.7]
        """
        quorums, conditioned = self._quorums, request.conditioned
        facts = conditioned.known if conditioned.facts else NO_FACTS
        found = [classify(history_set, quorums, facts) for history_set in sets]
        plans = []
        if conditioned.kind is _INVOCATION:
            for replica, (kind, base, nodes, _, _) in zip(request.replicas, found, strict=True):
                if kind is not _METHOD:
                    raise _Fail(Status.DIFFERENT)
                plans.append(_Plan(replica, base, base.timestamp, nodes, base))
            return plans
        types = {each.type for each in found}
        copied: Settled | None = None
        if conditioned.kind is _COPY:
            barred = {each.object: each for each in sets}
            others = {each.object: each for each in evidence}
            shown = Evidence(barred, others, quorums, facts)
            settled = shown.settle() if types == {OperationType.COPY} else None
            if settled is None or isinstance(settled, Undecided):
                raise _Fail(Status.DIFFERENT)
            copied = settled
        elif types == {_METHOD} and not quorums.is_quorum(Nodes.of([self._node])):
            # Where one server is a quorum, no fewer can show that a client gives an update up.
            raise _Fail(Status.DIFFERENT)
        for replica, each, history_set in zip(request.replicas, found, sets, strict=True):
            base, current, hosts = each.object_candidate, request.timestamp, each.nodes
            if copied is not None:
                base, current = Candidate(copied[replica.object], ZERO), each.latest
                hosts = sharing(history_set, base.timestamp)
            complete = greatest_complete(history_set, quorums)
            plans.append(_Plan(replica, base, current, hosts, complete))
        return plans

    # --- the bounds of one client ---------------------------------------------------------------

    def _require_allowance(self, request: _Request, now_us: int) -> None:
        """A client's barriers and copies are bounded, per object and in time. [Q/U §4.3.5]"""
        client = request.author
        for replica in request.replicas:
            candidates = replica.history.candidates
            if len(candidates) >= limits.HISTORY_CANDIDATES:
                own = sum(client_of(candidate.timestamp) == client for candidate in candidates)
                if own >= limits.HISTORY_SHARE:
                    raise _Fail(Status.TOO_MANY)
        if not self._allowance.take(client, now_us):
            raise _Fail(Status.TOO_MANY)

    def _require_barrier(
        self, request: _Request, sets: Sequence[CulledObjectHistorySet], now_us: int
    ) -> set[ObjectId]:
        """Refuse a barrier beyond the budget, or one that moves an object's time ahead too often.

        A barrier costs everybody three rounds. The latest candidate of the history set may be
        forged if only b servers report it; or a client whose clock is fast has left it there, and
        the server is needed. So one server's word moves an object's time ahead of the clock, but
        seldom. (A client that updates the object may build on it at any time; so may everybody for
        a while after the clock was set back, up to the times of before: no clock comes to these,
        and b servers may have what was begun then.)
        """
        author = request.author
        carried = self._carried(request, sets, now_us)
        self._require_steps(request, carried, now_us)
        for replica in request.replicas:
            if not self._budget.take(replica.object, author, now_us):
                raise _Fail(Status.TOO_MANY)
        return carried

    def _require_question(self, request: _Request, now_us: int) -> None:
        """Refuse an update that readers may make, too, beyond the budget that barriers have.

        It changes nothing, and yet it is a version: others who update the object contend with it,
        and it may use the reserve. So its author's allowance for barriers and copies pays for it.
        """
        self._require_allowance(request, now_us)
        for replica in request.replicas:
            if not self._budget.take(replica.object, request.author, now_us):
                raise _Fail(Status.TOO_MANY)

    def _require_together(
        self,
        request: _Request,
        sets: Sequence[CulledObjectHistorySet],
        evidence: Sequence[CulledObjectHistorySet],
        now_us: int,
    ) -> set[ObjectId]:
        """Refuse a copy that carries one object's time over to another one.

        All objects of a copy get one time, which is later than all of them. It may be far ahead, of
        an object that was used while all clocks were. So others are copied with it only if they
        have to be: an operation on both, which is not established, had to be settled.
        """
        if len(sets) == 1:
            return set()
        carried = self._carried(request, sets, now_us)
        if carried:
            shown = Evidence(
                {each.object: each for each in sets},
                {each.object: each for each in evidence},
                self._quorums,
                request.conditioned.known,
            )
            joined = shown.joined(each.object for each in sets if each.object not in carried)
            carried -= joined
            self._require_steps(request, carried, now_us)
        return carried

    def _carried(
        self, request: _Request, sets: Sequence[CulledObjectHistorySet], now_us: int
    ) -> set[ObjectId]:
        """The objects whose time the request moves ahead of the clock, for all that is known."""
        time_us = time_of(request.timestamp)
        if time_us <= self._freely_us(now_us):
            return set()
        return {
            replica.object
            for replica, shown in zip(request.replicas, sets, strict=True)
            if time_us > time_of(replica.history.latest) + 1
            and time_us > shown.reached_us(self._quorums) + limits.STEPS_AHEAD_US
        }

    def _freely_us(self, now_us: int) -> int:
        return max(now_us + NEAR_US, self._clock.before_us(now_us) + limits.CLOCK_SKEW_US)

    def _require_steps(self, request: _Request, names: set[ObjectId], now_us: int) -> None:
        """Refuse to put these objects' times ahead of the clock, unless the author still may.

        That takes no steps yet: a request may be refused for another reason, or have to wait, and
        come again.
        """
        ahead_us = time_of(request.timestamp) - self._freely_us(now_us)
        if not all(self._budget.may_move(name, request.author, ahead_us, now_us) for name in names):
            raise _Fail(Status.INSANE_TIME)

    def _move(self, request: _Request, names: set[ObjectId], now_us: int) -> None:
        """Put these objects' times ahead of the clock: take the author's steps."""
        ahead_us = time_of(request.timestamp) - self._freely_us(now_us)
        for name in names:
            self._budget.move(name, request.author, ahead_us, now_us)

    def _require_settled(self, request: _Request, now_us: int) -> None:
        """A client's incomplete updates are bounded over all objects.

        The versions that this update builds on do not count, if its history sets show them at a
        quorum. Peers are not asked about these: one that has already accepted this very update
        would not confirm them, nor would a liar, and the update would be refused again and again.
        """
        for plan in request.plans:
            if self._quorums.is_quorum(plan.hosts):
                self._incomplete.settle(plan.replica.object)
        wait = self._incomplete.before_update(request.author, now_us)
        if isinstance(wait, Want):
            raise WaitFor(wait)
        if not wait:
            raise _Fail(Status.TOO_MANY)

    # --- acceptance -----------------------------------------------------------------------------

    def _is_repeated(self, request: _Request) -> bool:
        """True if the request has been accepted before. [Q/U line 1005]"""
        timestamp = request.timestamp
        for replica in request.replicas:
            history = replica.history
            if history.latest < timestamp:
                return False
            # One older than the oldest in the replica history may have been pruned from it.
            if (
                history.find(timestamp) is None
                and replica.verdict(timestamp) is not Verdict.ESTABLISHED
            ):
                return False
        return True

    def _obtain(self, replica: Replica, version: LogicalTimestamp, hosts: Nodes) -> None:
        """Move the head to `version`, which object sync may have to bring. [Q/U lines 1011-1014]"""
        reach = replica.reach(version)
        if reach is Reach.HERE:
            return
        if reach is Reach.KNOWN:
            replica.move_to(version)
            return
        if reach is Reach.BLOCKED or version < replica.row.established:
            raise _Fail(Status.NOT_CURRENT)
        if between_nodes.take_staged(replica, version):
            return
        if between_nodes.is_staged(replica, version):  # but that does not lead there, or it is gone
            raise _Fail(Status.NOT_CURRENT, writes=between_nodes.unstaged(replica))
        fetch = self._fetching(replica, version, hosts)
        raise WaitFor(Want(between_nodes.sync_key(replica.object, version), fetch))

    def _fetching(self, replica: Replica, version: LogicalTimestamp, hosts: Nodes) -> _Fetch:
        """How to get a version of an object that `hosts` have."""
        known = between_nodes.known_versions(replica)
        me, peers = self._node, self._peers
        return lambda _view: between_nodes.fetch_to_build_on(
            replica.object, version, known=known, hosts=hosts, me=me, peers=peers
        )

    def _accept_method(
        self,
        request: _Request,
        *,
        vouched_by: VouchedBy | None = None,
        now_us: int = 0,
        contenders: int = 0,
        uses_reserve: bool = True,
    ) -> Ready:
        """Invoke the method; unless it refuses, accept. [Q/U lines 1017-1030]

        With `vouched_by` the request comes from its author.
        """
        method, operation = request.method, request.conditioned.operation
        assert method is not None
        assert operation is not None
        replicas, timestamp = request.replicas, request.timestamp
        for plan in request.plans:
            self._obtain(plan.replica, plan.conditioned_on.timestamp, plan.hosts)
        caller = Caller(
            client_of(timestamp),
            operation.uid,
            operation.gid,
            operation.groups,
            time_of(timestamp),
        )
        if len(replicas) == 1:
            states = (replicas[0].workspace,) * len(operation.objects)
        else:
            workspaces = {replica.object: replica.workspace for replica in replicas}
            states = tuple(workspaces[name] for name in operation.objects)
        arguments = self._types.decode_arguments(method, operation.arguments)
        error, answer = self._types.invoke(method.invoke, states, arguments, caller)
        if error:
            raise _Fail(Status.REFUSED, error=error)
        if vouched_by is not None and method.rests_on is not None:
            rests_on = method.rests_on(states, arguments, caller)
            self._require_hosts(rests_on, vouched_by, replicas[0].object, now_us)
        writes = [Write(Table.REQUEST, timestamp, request.encoded)]
        first: Operation | None = operation
        for plan in request.plans:
            replica, base = plan.replica, plan.conditioned_on
            candidate = request.candidate(plan)
            # What the request conditions on is established: what came before it is decided.
            established = replica.row.established
            writes += [
                Write(Table.REQUEST, old.timestamp, None)
                for old in replica.history.candidates
                if old.timestamp > established and not old.barrier
            ]
            if not method.for_readers:
                self._budget.earn(replica.object, request.author)
            replica.append(candidate, operation=first, answer=answer if first is not None else b"")
            history = built_on(base, candidate)
            authenticator = own_authenticator(self._keys, replica.object, history)
            replica.report(history, authenticator, established=base.timestamp)
            first = None
        whole, answer = abridged(answer, request.whole_answer_from == self._node)
        return self._accepted(
            replicas,
            answer=answer,
            whole=whole,
            contenders=contenders,
            uses_reserve=uses_reserve,
            besides=writes,
        )

    def _accept_copy(self, request: _Request) -> Ready:
        """Copy the versions settled on forward in logical time. [Q/U lines 1113-1116]"""
        for plan in request.plans:
            self._obtain(plan.replica, plan.conditioned_on.timestamp, plan.hosts)
        for plan in request.plans:
            candidate = request.candidate(plan)
            plan.replica.append(candidate)
            self._extend(plan.replica, candidate, plan.complete)
        kept = Write(Table.REQUEST, request.timestamp, request.encoded)
        return self._accepted(request.replicas, besides=(kept,))

    def _accept_barrier(self, request: _Request) -> Ready:
        """Accept a barrier at each object; it has no version. [Q/U §4.3.2, lines 1109-1112]"""
        for plan in request.plans:
            self._extend(plan.replica, request.candidate(plan), plan.complete)
        return self._accepted(request.replicas)

    def _adopt(self, request: _Request, lacking: list[Replica], hosts: Nodes) -> Ready:
        """Take the operation over for the objects that lack it, with its result from `hosts`.

        Its result is fetched: the versions it was invoked on may be long past at the other objects.
        """
        for plan in request.plans:
            if plan.replica in lacking:
                self._obtain(plan.replica, request.timestamp, hosts)
                self._extend(plan.replica, request.candidate(plan), plan.complete)
        return self._accepted_before(request)

    def _extend(self, replica: Replica, candidate: Candidate, complete: Candidate) -> None:
        if not replica.extend(candidate, self._keys, complete=complete):
            raise _Fail(Status.TOO_MANY)

    def _accepted(
        self,
        replicas: list[Replica],
        *,
        answer: bytes = b"",
        whole: bool = True,
        contenders: int = 0,
        uses_reserve: bool = True,
        besides: Sequence[Write] = (),
    ) -> Ready:
        """Success. All but new operations may use the reserve: others wait for them."""
        writes = []
        for replica in replicas:
            if replica.writes:
                writes += replica.writes
                self._incomplete.accepted(replica.object, replica.history.latest)
        writes += besides
        return Ready(
            UpdateReply(
                Status.SUCCESS,
                tuple([replica.row.history for replica in replicas]),
                tuple([replica.row.authenticator for replica in replicas]),
                self._keys.lives,
                0,
                answer,
                whole,
                contenders=contenders,
            ),
            writes=writes,
            uses_reserve=uses_reserve,
        )

    def _accepted_before(self, request: _Request) -> Ready:
        """Success with the answer that is stored with the version of the first object.

        Object sync may have brought the state without the answer: then none is given.
        """
        replicas = request.replicas
        version = replicas[0].version(request.timestamp)
        if version is None or version.operation is None:
            return self._accepted(replicas, whole=False)
        whole, answer = abridged(version.answer, request.whole_answer_from == self._node)
        return self._accepted(replicas, answer=answer, whole=whole)

    def _failed(self, replicas: list[Replica], failure: _Fail) -> Ready:
        """Nothing was accepted: the reply has the histories as they were before the step."""
        return Ready(
            UpdateReply(
                failure.status,
                tuple([replica.stored.history for replica in replicas]),
                tuple([replica.stored.authenticator for replica in replicas]),
                self._keys.lives,
                **failure.more,
            ),
            writes=list(failure.writes),
        )


def abridged(answer: bytes, wanted_whole: bool) -> tuple[bool, bytes]:
    """True and the answer if it is sent whole; else False and its digest."""
    if wanted_whole or len(answer) <= limits.ANSWER_INLINE_BYTES:
        return True, answer
    return False, answer_digest(answer)
