"""The server of Query/Update: `s_request`, line by line. [Q/U §4.3.4, lines 1000-1118; §4.3.5]

For a request that changes objects, in order: cull the history sets; set up the candidate; answer a
repeated request as the first time; refuse what is not dictated by the history sets, or is not
current; get the versions it builds on (object sync); invoke; accept for all objects, atomically;
prune; answer.

Unlike [Q/U §4.3.4, lines 1001-1004]: a request from which anything was culled is not carried out on
what remains, but fails with the report. With the rest of the set the server would set up another
timestamp than the other servers, which could not be established anyway; and a client knows the
timestamp of each of its attempts, hence whether a failed one was finished by somebody else.

A step is a function of the store, the message and the clock; what the server keeps in memory only
limits the barriers and copies that one client may make, and tells contending clients when to try.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from bftfs import limits
from bftfs.asking.quorum import Nodes, QuorumSystem
from bftfs.asking.refusal import Refused
from bftfs.crypto.authenticator import AuthenticatorKeys
from bftfs.crypto.digest import (
    answer_digest,
    deduction_digest,
    replica_history_digest,
)
from bftfs.errors import MalformedMessage
from bftfs.identifiers import ClientId, NodeId, ObjectId, kind_of
from bftfs.query_update import object_sync, past, unfinished
from bftfs.query_update.classification import (
    NO_FACTS,
    OperationType,
    classify,
    shared_candidates,
    sharing,
)
from bftfs.query_update.contention import Lines
from bftfs.query_update.deduction import Evidence, Undecided
from bftfs.query_update.healing import ObjectHealer, catalogue
from bftfs.query_update.history import (
    INITIAL,
    TIMESTAMP_BYTES,
    ZERO,
    Candidate,
    Conditioned,
    ConditionedKind,
    CulledObjectHistorySet,
    LogicalTimestamp,
    ObjectHistorySet,
    Operation,
    built_on,
    client_of,
    cull,
    decode_conditioned,
    history_of,
    is_barrier,
    parse_set,
    time_of,
    timestamp_of,
)
from bftfs.query_update.messages import (
    AttestReply,
    AttestRequest,
    CatalogueRequest,
    ChainRequest,
    DeduceReply,
    DeduceRequest,
    FetchReply,
    FetchRequest,
    HistoryReply,
    HistoryRequest,
    InlineBarrier,
    InlineUpdate,
    LatestRequest,
    Looked,
    PastQuery,
    PastReply,
    Query,
    QueryReply,
    Status,
    SyncRequest,
    Update,
    UpdateReply,
    Verdict,
    VersionsReply,
    VersionsRequest,
)
from bftfs.query_update.object_type import (
    Caller,
    Method,
    ObjectTypes,
    Record,
    Refusal,
    encode_record,
)
from bftfs.query_update.rebuilding import chain_page
from bftfs.query_update.replica import ObjectRow, Reach, Replica
from bftfs.query_update.scrubbing import attested
from bftfs.server.recovery import Recovery
from bftfs.server.step import Ready, Role, Sender, Want
from bftfs.server.throttle import Throttle
from bftfs.storage import StorageView, Table, Write
from bftfs.wire.codec import UNREADABLE

# All else is what clients ask for, and nodes that repair like clients.
_BETWEEN_NODES = frozenset(
    (HistoryRequest, CatalogueRequest, LatestRequest, SyncRequest, AttestRequest, ChainRequest)
)


class _Reject(Exception):
    """Control flow: no correct client with this grant sends such a request."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class _Fail(Exception):
    """Control flow: the request fails with a status and the replica histories."""

    def __init__(
        self, status: Status, *, forged: Nodes = 0, insane: Nodes = 0, contenders: int = 0
    ) -> None:
        super().__init__(status)
        self.status = status
        self.forged = forged
        self.insane = insane
        self.contenders = contenders


class _Wanting(Exception):
    """Control flow: the request waits for object sync."""

    def __init__(self, want: Want) -> None:
        super().__init__(want)
        self.want = want


class _Plan(NamedTuple):
    """What a classified request does to one object."""

    conditioned_on: (
        Candidate  # the version to build on; of a copy, its timestamp is all that counts
    )
    current: LogicalTimestamp  # LTcurrent: nothing later may have been accepted
    hosts: Nodes  # that have the version
    complete: Candidate  # the greatest object candidate that the history set shows complete


class QueryUpdateServer:
    """One node's Query/Update server."""

    def __init__(
        self,
        node: NodeId,
        quorums: QuorumSystem,
        keys: AuthenticatorKeys,
        types: ObjectTypes,
        *,
        recovery: Recovery | None = None,
        healing: Throttle | None = None,
        possible_objects: int | None = None,
    ) -> None:
        """`possible_objects` of one client may be unfinished, if not as many as usual."""
        self.node = node
        self.recovery = recovery or Recovery()
        self.healer = ObjectHealer(node, quorums, self, self.recovery, healing)
        self.quorums = quorums
        self.types = types
        self._keys = keys
        self._repairs = _Allowance()
        self.unfinished = unfinished.Unfinished(possible_objects)
        self._lines = Lines()
        self.method_failures = 0  # methods that raised what is not a refusal: bugs of object types
        self._handlers: dict[type, Callable[[StorageView, Sender, Any, int], Ready]] = {
            Update: self._update,
            Query: self._query,
            InlineUpdate: self._inline_update,
            InlineBarrier: self._inline_barrier,
            FetchRequest: self._fetch,
            DeduceRequest: self._deduce,
            SyncRequest: self._sync,
            PastQuery: self._query_past,
            VersionsRequest: self._versions,
            HistoryRequest: self._history,
            CatalogueRequest: self._catalogue,
            AttestRequest: self._attest,
            ChainRequest: self._chain,
            LatestRequest: self._latest,
        }

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: bytes | memoryview,
        now_us: int,
    ) -> Ready:
        """Serve one message."""
        try:
            if self.healer.doubtful and type(message) not in _BETWEEN_NODES:
                want = self.healer.wanted(_objects_of(message), message, now_us)
                if want is not None:
                    return Ready(wants=(want,))
            return self._handlers[type(message)](view, sender, message, now_us)
        except _Reject as rejected:
            return Ready(Refused(rejected.code, rejected.reason))
        except (MalformedMessage, *UNREADABLE) as error:
            return Ready(Refused(errno.EINVAL, str(error)[:256]))
        except _Wanting as wanting:
            return Ready(wants=(wanting.want,))

    # --- queries --------------------------------------------------------------------------------

    def _query(self, view: StorageView, sender: Sender, message: Query, now_us: int) -> Ready:
        """Answer optimistically, on the latest versions here. [Q/U §4.3.5]"""
        names = message.objects
        replicas = {
            name: Replica(view, name) for name in (sorted(set(names)) if len(names) > 1 else names)
        }
        histories = tuple(replica.row.history for replica in replicas.values())
        authenticators = tuple(replica.row.authenticator for replica in replicas.values())
        verdict, voucher = Verdict.UNKNOWN, b""
        if message.deduce:
            candidate = next(iter(replicas.values())).history.latest_object
            if candidate.objects:
                verdict, voucher = self._vouch(view, candidate.timestamp, candidate.objects)
        if not message.method:
            return Ready(
                QueryReply(histories, authenticators, False, 0, b"", True, verdict, voucher)
            )
        self._require_client(sender)
        method = self.types.method(message.method)
        if method is None or method.update:
            raise _Reject(errno.EOPNOTSUPP, f"no query is called {message.method}")
        self._require_fitting(method, names)
        if not sender.grant.allows(message.uid):
            raise _Reject(errno.EPERM, f"the grant does not cover uid {message.uid}")
        arguments = self.types.decode_arguments(method, message.arguments)
        versions: tuple[LogicalTimestamp, ...] = message.versions
        states: dict[ObjectId, Any]
        if not versions:
            versions = tuple(replica.head for replica in replicas.values())
            states = {name: replica.workspace for name, replica in replicas.items()}
        else:
            if len(versions) != len(replicas):
                raise _Reject(errno.EINVAL, "as many versions as objects are needed")
            states = {
                name: replica.state_at(version)
                for (name, replica), version in zip(replicas.items(), versions, strict=True)
            }
            if None in states.values():
                return Ready(QueryReply(histories, authenticators, False, 0, b"", True))
        caller = Caller(
            sender.client,
            message.uid,
            message.gid,
            message.groups,
            max(time_of(version) for version in versions),
        )
        error, answer = self._invoke(
            method.invoke, tuple(states[name] for name in names), arguments, caller
        )
        whole, answer = self._abridge(answer, message.whole_answer_from)
        return Ready(
            QueryReply(histories, authenticators, True, error, answer, whole, verdict, voucher)
        )

    # --- the past ---------------------------------------------------------------------------------

    def _query_past(
        self, view: StorageView, sender: Sender, message: PastQuery, now_us: int
    ) -> Ready:
        """Answer on the newest version here that is old enough."""
        self._require_client(sender)
        method = self.types.method(message.method)
        if method is None or method.update:
            raise _Reject(errno.EOPNOTSUPP, f"no query is called {message.method}")
        self._require_fitting(method, (message.object,))
        if not sender.grant.allows(message.uid):
            raise _Reject(errno.EPERM, f"the grant does not cover uid {message.uid}")
        replica = Replica(view, message.object)
        histories, authenticators = (replica.row.history,), (replica.row.authenticator,)
        looked, version = past.newest_at(replica, message.at_us, message.below)
        state = replica.state_at(version) if looked is Looked.FOUND else None
        if state is None:
            return Ready(PastReply(histories, authenticators, looked, version))
        caller = Caller(sender.client, message.uid, message.gid, message.groups, time_of(version))
        arguments = self.types.decode_arguments(method, message.arguments)
        error, answer = 0, b""
        if method.permit is not None:  # what is forbidden now is not told of the past either
            error, _ = self._invoke(method.permit, (replica.workspace,), arguments, caller)
        if not error:
            error, answer = self._invoke(method.invoke, (state,), arguments, caller)
        whole, answer = self._abridge(answer, message.whole_answer_from)
        return Ready(PastReply(histories, authenticators, looked, version, error, answer, whole))

    def _versions(
        self, view: StorageView, sender: Sender, message: VersionsRequest, now_us: int
    ) -> Ready:
        """List versions of an object, if its guard permits it."""
        self._require_client(sender)
        if not sender.grant.allows(message.uid):
            raise _Reject(errno.EPERM, f"the grant does not cover uid {message.uid}")
        replica = Replica(view, message.object)
        page = past.versions_page(view, replica, message)
        if page is None:  # nor does a server that is behind know who may read
            return Ready(VersionsReply(False))
        guard = self.types.method(past.GUARD)
        if guard is not None and kind_of(message.object) in guard.kinds[0]:
            caller = Caller(
                sender.client, message.uid, message.gid, message.groups, time_of(replica.head)
            )
            arguments = guard.arguments()
            error, _ = self._invoke(guard.invoke, (replica.workspace,), arguments, caller)
            if error:
                return Ready(VersionsReply(True, error))
        whole, page = self._abridge(page, message.whole_answer_from)
        return Ready(VersionsReply(True, 0, page, whole))

    # --- updates, copies and barriers -----------------------------------------------------------

    def _update(self, view: StorageView, sender: Sender, message: Update, now_us: int) -> Ready:
        """A direct request: everything in it is verified here."""
        conditioned = decode_conditioned(message.conditioned)
        method = self._require_well_formed(conditioned)
        operation = conditioned.operation
        if operation is not None:
            self._require_client(sender)
            if not sender.grant.write:
                raise _Reject(errno.EROFS, "the grant is for reading only")
            if not sender.grant.allows(operation.uid):
                raise _Reject(errno.EPERM, f"the grant does not cover uid {operation.uid}")
        replicas = [Replica(view, history_set.object) for history_set in conditioned.sets]
        try:
            sets, evidence = self._cull(conditioned, message.authenticators, now_us)
            timestamp = self._set_up(conditioned, message.conditioned, sets, sender.client, now_us)
            repeated = self._repeated(replicas, timestamp, message.whole_answer_from)
            if repeated is not None:
                return repeated
            if (
                conditioned.kind is ConditionedKind.METHOD
                and time_of(timestamp) < now_us - limits.CLOCK_SKEW_US
            ):
                # Or a client could make versions of yesterday: what was at a time of the past, and
                # has been read, would change. (A repair may finish what was begun at its time.)
                raise _Fail(Status.INSANE_TIME)
            if conditioned.facts:
                self._require_vouched(conditioned, message)
            plans = self._classify(conditioned, sets, evidence, timestamp)
            late = _late(replicas, plans)
            if late:
                ahead = 0
                if conditioned.kind is ConditionedKind.METHOD:
                    ahead = self._lines.join(late, sender.client, now_us)
                raise _Fail(Status.NOT_CURRENT, contenders=ahead)
            if conditioned.kind is ConditionedKind.METHOD:
                assert method is not None
                self._require_settled(replicas, plans, sender.client, now_us)
                ready = self._accept_method(
                    replicas,
                    plans,
                    timestamp,
                    method,
                    conditioned,
                    message.conditioned,
                    message.whole_answer_from,
                    self._lines.leave(
                        [replica.object for replica in replicas], sender.client, now_us
                    ),
                    may_accept=self._remembers(plans),
                )
                ready.uses_reserve = method.frees
                return ready
            if not self._remembers(plans):
                raise _Fail(Status.NOT_CURRENT)
            self._require_allowance(replicas, sender.client, now_us)
            if conditioned.kind is ConditionedKind.COPY:
                return self._accept_copy(replicas, plans, timestamp, message.conditioned)
            return self._accept_barrier(replicas, plans, timestamp)
        except _Fail as failure:
            return _failed(replicas, failure)

    def _inline_update(
        self, view: StorageView, sender: Sender, message: InlineUpdate, now_us: int
    ) -> Ready:
        """Another client's (or an earlier) operation, finished in place. [Q/U §4.3.5]

        That the author made it and was entitled to is vouched for by the servers that have accepted
        it: a repairable set of authenticated histories has its candidate, which is recomputed here
        from the original request, and so at least one benign server verified that request.
        """
        conditioned = decode_conditioned(message.conditioned)
        method = self._require_well_formed(conditioned)
        if conditioned.kind is ConditionedKind.BARRIER:
            raise _Reject(errno.EINVAL, "barriers are repaired by showing them")
        replicas = [Replica(view, history_set.object) for history_set in conditioned.sets]
        names = [replica.object for replica in replicas]
        if message.evidence.object not in names:
            raise _Reject(errno.EINVAL, "the evidence is about another object")
        try:
            evidence = self._cull_one(message.evidence, message.authenticators, now_us)
            n = self.quorums.n
            sets = [parse_set(each, n=n) for each in conditioned.sets]
            others = [parse_set(each, n=n) for each in conditioned.evidence]
            timestamp = self._set_up(conditioned, message.conditioned, sets, message.author, now_us)
            repeated = self._repeated(replicas, timestamp, message.whole_answer_from)
            if repeated is not None:
                return repeated
            # Nothing of the request is worth any work before servers vouch for it: its own history
            # sets are not authenticated, and may be as long as one likes.
            if evidence.latest != timestamp or not self.quorums.is_repairable(
                sharing(evidence, timestamp)
            ):
                raise _Fail(Status.DIFFERENT)
            plans = self._classify(conditioned, sets, others, timestamp)
            candidate = Candidate(
                timestamp,
                plans[names.index(evidence.object)].conditioned_on.timestamp,
                tuple(names) if len(names) > 1 else (),
                conditioned.kind is ConditionedKind.COPY,
            )
            vouching = 0
            for history, nodes in evidence.hosted:
                if history.find(timestamp) == candidate:
                    vouching |= nodes
            if not self.quorums.is_repairable(vouching):
                raise _Fail(Status.DIFFERENT)
            self._require_others(vouching)
            lacking = self._lacking(replicas, plans, timestamp)
            has_some = len(lacking) < len(replicas)
            if has_some or all(object_sync.is_staged(each, timestamp) for each in replicas):
                ready = self._adopt(
                    replicas,
                    lacking,
                    plans,
                    timestamp,
                    conditioned,
                    vouching,
                    message.whole_answer_from,
                )
                if not has_some:
                    ready.writes.append(Write(Table.REQUEST, timestamp, message.conditioned))
                return ready
            try:
                if conditioned.kind is ConditionedKind.COPY:
                    return self._accept_copy(replicas, plans, timestamp, message.conditioned)
                assert method is not None
                return self._accept_method(
                    replicas,
                    plans,
                    timestamp,
                    method,
                    conditioned,
                    message.conditioned,
                    message.whole_answer_from,
                )
            except _Wanting as wanting:
                raise _Wanting(
                    self._or_result(wanting.want, replicas, timestamp, vouching)
                ) from None
        except _Fail as failure:
            return _failed(replicas, failure)

    def _or_result(
        self, want: Want, replicas: list[Replica], timestamp: LogicalTimestamp, hosts: Nodes
    ) -> Want:
        """`want`, or else what the operation at `timestamp` has made of its objects.

        Unlike [Q/U §4.3.5]: what it was invoked on may have been collected everywhere, where a
        quorum had accepted it long ago of which a server is down by now. What b + 1 of those who
        host the result say alike is what a benign one has made of it.
        """
        known = {replica.object: object_sync.known_versions(replica) for replica in replicas}

        async def fetch(view: StorageView) -> list[Write] | None:
            writes = await want.fetch(view)
            if writes is not None:
                return writes
            staged: list[Write] = []
            for name, versions in known.items():
                result = await object_sync.fetch_version(
                    name,
                    timestamp,
                    known=versions,
                    hosts=hosts,
                    me=self.node,
                    quorums=self.quorums,
                )
                if result is None:
                    return None
                staged += result
            return staged

        return Want(want.key, fetch)

    def _inline_barrier(
        self, view: StorageView, sender: Sender, message: InlineBarrier, now_us: int
    ) -> Ready:
        """A barrier that some server reports as its latest candidate, accepted as it is.

        It needs no more evidence than that: barriers have no data associated with them, and are
        safe to accept whoever made them. [Q/U §4.3.2, §4.3.5 Malevolent components]
        """
        replica = Replica(view, message.evidence.object)
        try:
            evidence = self._cull_one(message.evidence, message.authenticators, now_us)
            timestamp = evidence.latest
            if not is_barrier(timestamp):
                raise _Fail(Status.DIFFERENT)
            if replica.history.find(timestamp) is not None:
                return self._accepted([replica])
            if replica.history.latest > timestamp:
                raise _Fail(Status.NOT_CURRENT)
            if time_of(timestamp) <= self.recovery.floor_us:
                self._require_others(sharing(evidence, timestamp))
            candidate = next(
                found
                for history, _ in evidence.hosted
                if (found := history.find(timestamp)) is not None
            )
            self._extend(replica, candidate, self._greatest_complete(evidence))
            return self._accepted([replica])
        except _Fail as failure:
            return _failed([replica], failure)

    # --- verification ---------------------------------------------------------------------------

    def _require_client(self, sender: Sender) -> None:
        if sender.role is not Role.CLIENT:
            raise _Reject(errno.EPERM, "nodes do not perform operations")

    def _require_fitting(self, method: Method, names: tuple[ObjectId, ...]) -> None:
        """The objects are of the kinds that the method takes."""
        if len(names) != len(method.kinds) or not all(
            kind_of(name) in kinds for name, kinds in zip(names, method.kinds, strict=True)
        ):
            raise _Reject(errno.EINVAL, f"{method.name} does not take such objects")

    def _require_well_formed(self, conditioned: Conditioned) -> Method | None:
        """The parts of a request belong together; its method, if it has one."""
        names = [history_set.object for history_set in conditioned.sets]
        if len(names) > 1 and any(low >= high for low, high in pairwise(names)):
            raise _Reject(errno.EINVAL, "the objects are out of order")
        operation = conditioned.operation
        if (operation is None) is (conditioned.kind is ConditionedKind.METHOD):
            raise _Reject(errno.EINVAL, "only a method invocation has an operation")
        if conditioned.kind is not ConditionedKind.COPY and conditioned.evidence:
            raise _Reject(errno.EINVAL, "only a copy rests on evidence")
        if conditioned.evidence and not {each.object for each in conditioned.evidence}.isdisjoint(
            names
        ):
            raise _Reject(errno.EINVAL, "an object is its own evidence")
        if operation is None:
            return None
        if sorted(set(operation.objects)) != names:
            raise _Reject(errno.EINVAL, "an object lacks its history set")
        method = self.types.method(operation.method)
        if method is None or not method.update:
            raise _Reject(errno.EOPNOTSUPP, f"no update is called {operation.method}")
        self._require_fitting(method, operation.objects)
        return method

    def _cull(
        self, conditioned: Conditioned, authenticators: tuple[bytes, ...], now_us: int
    ) -> tuple[list[CulledObjectHistorySet], list[CulledObjectHistorySet]]:
        """The history sets, none of which needed culling; else the request fails."""
        history_sets: tuple[ObjectHistorySet, ...] = (*conditioned.sets, *conditioned.evidence)
        if len(authenticators) != len(history_sets):
            raise _Reject(errno.EINVAL, "a history set lacks its authenticators")
        culled = []
        forged = insane = 0
        sane_us = now_us + limits.CLOCK_SKEW_US
        for history_set, macs in zip(history_sets, authenticators, strict=True):
            kept, bad, mad = cull(
                history_set, macs, self._keys, n=self.quorums.n, latest_sane_us=sane_us
            )
            culled.append(kept)
            forged |= bad
            insane |= mad
        if forged or insane:
            raise _Fail(Status.CULLED, forged=forged, insane=insane)
        split = len(conditioned.sets)
        return culled[:split], culled[split:]

    def _cull_one(
        self, history_set: ObjectHistorySet, authenticators: bytes, now_us: int
    ) -> CulledObjectHistorySet:
        culled, forged, insane = cull(
            history_set,
            authenticators,
            self._keys,
            n=self.quorums.n,
            latest_sane_us=now_us + limits.CLOCK_SKEW_US,
        )
        if forged or insane:
            raise _Fail(Status.CULLED, forged=forged, insane=insane)
        return culled

    def _set_up(
        self,
        conditioned: Conditioned,
        encoded: bytes,
        sets: list[CulledObjectHistorySet],
        author: ClientId,
        now_us: int,
    ) -> LogicalTimestamp:
        """`s_setup`: the timestamp, one for all objects of the operation. [Q/U lines 1100-1118]"""
        timestamp = timestamp_of(conditioned, encoded, sets, author)
        if time_of(timestamp) > now_us + limits.CLOCK_SKEW_US:
            raise _Fail(Status.INSANE_TIME)
        return timestamp

    def _require_vouched(self, conditioned: Conditioned, message: Update) -> None:
        """Each fact is stated by servers that cannot all be lying."""
        if len(message.vouchers) != len(conditioned.facts):
            raise _Reject(errno.EINVAL, "a fact lacks its vouchers")
        for fact, vouchers in zip(conditioned.facts, message.vouchers, strict=True):
            digest = deduction_digest(timestamp=fact.timestamp, established=fact.established)
            vouching = 0
            for voucher in vouchers:
                if self._keys.check(
                    claimed_by=voucher.node, digest=digest, authenticator=voucher.authenticator
                ):
                    vouching |= 1 << voucher.node
            if not self.quorums.includes_benign(vouching):
                raise _Fail(Status.DIFFERENT)

    def _classify(
        self,
        conditioned: Conditioned,
        sets: list[CulledObjectHistorySet],
        evidence: list[CulledObjectHistorySet],
        timestamp: LogicalTimestamp,
    ) -> list[_Plan]:
        """What to do to each object, if the history sets dictate what is asked for."""
        facts = (
            {fact.timestamp: fact.established for fact in conditioned.facts}
            if conditioned.facts
            else NO_FACTS
        )
        found = [classify(history_set, self.quorums, facts) for history_set in sets]
        if conditioned.kind is ConditionedKind.METHOD:
            if any(each.type is not OperationType.METHOD for each in found):
                raise _Fail(Status.DIFFERENT)
            return [
                _Plan(
                    each.object_candidate,
                    each.object_candidate.timestamp,
                    each.nodes,
                    each.object_candidate,
                )
                for each in found
            ]
        if conditioned.kind is ConditionedKind.BARRIER:
            if all(each.type is OperationType.METHOD for each in found):
                raise _Fail(Status.DIFFERENT)
            return [
                _Plan(
                    each.object_candidate,
                    timestamp,
                    each.nodes,
                    self._greatest_complete(history_set),
                )
                for each, history_set in zip(found, sets, strict=True)
            ]
        if any(each.type is not OperationType.COPY for each in found):
            raise _Fail(Status.DIFFERENT)
        settled = Evidence(
            {history_set.object: history_set for history_set in sets},
            {history_set.object: history_set for history_set in evidence},
            self.quorums,
            facts,
        ).settle()
        if isinstance(settled, Undecided):
            raise _Fail(Status.DIFFERENT)
        return [
            _Plan(
                Candidate(settled[history_set.object], ZERO),
                each.latest,
                sharing(history_set, settled[history_set.object]),
                self._greatest_complete(history_set),
            )
            for each, history_set in zip(found, sets, strict=True)
        ]

    def _greatest_complete(self, history_set: CulledObjectHistorySet) -> Candidate:
        for candidate, nodes in shared_candidates(history_set, self.quorums):
            if self.quorums.is_quorum(nodes):
                return candidate
        return INITIAL

    def _remembers(self, plans: list[_Plan]) -> bool:
        """Whether nothing that this server may have forgotten is later than what is built on.

        Once it has lost its store, a server accepts only what is conditioned on something later, or
        what a repairable set of others has accepted: see `healing`. An object that is only being
        created goes by those that are changed together with it.
        """
        floor_us = self.recovery.floor_us
        if not floor_us:
            return True
        times = [time_of(plan.current) for plan in plans]
        return any(times) and not any(0 < time_us <= floor_us for time_us in times)

    def _require_allowance(self, replicas: list[Replica], client: ClientId, now_us: int) -> None:
        """A client's unfinished work is bounded, per object and in time. [Q/U §4.3.5]"""
        for replica in replicas:
            candidates = replica.history.candidates
            if len(candidates) >= limits.HISTORY_CANDIDATES:
                own = sum(client_of(candidate.timestamp) == client for candidate in candidates)
                if own >= limits.HISTORY_SHARE:
                    raise _Fail(Status.TOO_MANY)
        if not self._repairs.take(client, now_us):
            raise _Fail(Status.TOO_MANY)

    def _require_settled(
        self, replicas: list[Replica], plans: list[_Plan], client: ClientId, now_us: int
    ) -> None:
        """A client's unfinished work is bounded over all objects as well: see `unfinished`.

        What is built on is at a quorum, as the history sets have shown: nobody has to be asked. Who
        is ahead with this very update would not confirm it: if that is one, who may be a liar, all
        others would refuse the update, and its client would have to bar and copy, for ever.
        """
        for replica, plan in zip(replicas, plans, strict=True):
            if self.quorums.is_quorum(plan.hosts):
                self.unfinished.settle(replica.object)
        wait = self.unfinished.before_update(client, now_us)
        if isinstance(wait, Want):
            raise _Wanting(wait)
        if not wait:
            raise _Fail(Status.TOO_MANY)

    # --- acceptance -----------------------------------------------------------------------------

    def _repeated(
        self, replicas: list[Replica], timestamp: LogicalTimestamp, whole_answer_from: NodeId
    ) -> Ready | None:
        """The first time's answer, if the request has been accepted before. [Q/U line 1005]"""
        for replica in replicas:
            # What is older than the replica history may have been pruned from it.
            if replica.history.latest < timestamp or (
                replica.history.find(timestamp) is None
                and replica.verdict(timestamp) is not Verdict.ESTABLISHED
            ):
                return None
        return self._accepted_before(replicas, timestamp, whole_answer_from)

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
        if object_sync.take_staged(replica, version):
            return
        fetch = partial(
            object_sync.fetch_version,
            replica.object,
            version,
            known=object_sync.known_versions(replica),
            hosts=hosts,
            me=self.node,
            quorums=self.quorums,
        )
        raise _Wanting(Want(object_sync.sync_key(replica.object, version), lambda _: fetch()))

    def _accept_method(
        self,
        replicas: list[Replica],
        plans: list[_Plan],
        timestamp: LogicalTimestamp,
        method: Method,
        conditioned: Conditioned,
        encoded: bytes,
        whole_answer_from: NodeId,
        contenders: int = 0,
        *,
        may_accept: bool = True,
    ) -> Ready:
        """Invoke the method; unless it refuses, accept. [Q/U lines 1017-1030]

        A refusal changes nothing, and what was established before it is seen by every quorum even
        if t servers have forgotten it: 2q - n > t. So a server may refuse that must not accept; or
        nobody could be told that a name is taken, once t others are silent.
        """
        operation = conditioned.operation
        assert operation is not None
        for replica, plan in zip(replicas, plans, strict=True):
            self._obtain(replica, plan.conditioned_on.timestamp, plan.hosts)
        caller = Caller(
            client_of(timestamp),
            operation.uid,
            operation.gid,
            operation.groups,
            time_of(timestamp),
        )
        arguments = self.types.decode_arguments(method, operation.arguments)
        if len(replicas) == 1:
            states = (replicas[0].workspace,) * len(operation.objects)
        else:
            workspaces = {replica.object: replica.workspace for replica in replicas}
            states = tuple(workspaces[name] for name in operation.objects)
        error, answer = self._invoke(method.invoke, states, arguments, caller)
        if error:
            return Ready(
                UpdateReply(
                    Status.REFUSED,
                    tuple(replica.stored.history for replica in replicas),
                    tuple(replica.stored.authenticator for replica in replicas),
                    error,
                )
            )
        if not may_accept:
            raise _Fail(Status.NOT_CURRENT)
        objects = operation.objects if len(replicas) > 1 else ()
        if objects:
            objects = tuple(replica.object for replica in replicas)
        writes = [Write(Table.REQUEST, timestamp, encoded)]
        first: Operation | None = operation
        for replica, plan in zip(replicas, plans, strict=True):
            base = plan.conditioned_on
            candidate = Candidate(timestamp, base.timestamp, objects)
            # What the request conditions on is established: what came before it is decided.
            writes += [
                Write(Table.REQUEST, old.timestamp, None)
                for old in replica.history.candidates
                if old.timestamp > replica.row.established and not old.barrier
            ]
            replica.append(candidate, operation=first, answer=answer if first is not None else b"")
            self._report(replica, built_on(base, candidate), base.timestamp)
            first = None
        whole, answer = self._abridge(answer, whole_answer_from)
        ready = self._accepted(replicas, answer=answer, whole=whole, contenders=contenders)
        ready.writes += writes
        return ready

    def _accept_copy(
        self,
        replicas: list[Replica],
        plans: list[_Plan],
        timestamp: LogicalTimestamp,
        encoded: bytes,
    ) -> Ready:
        """Copy the versions settled on forward in logical time. [Q/U lines 1113-1116]"""
        for replica, plan in zip(replicas, plans, strict=True):
            self._obtain(replica, plan.conditioned_on.timestamp, plan.hosts)
        objects = tuple(replica.object for replica in replicas) if len(replicas) > 1 else ()
        for replica, plan in zip(replicas, plans, strict=True):
            candidate = Candidate(timestamp, plan.conditioned_on.timestamp, objects, True)
            replica.append(candidate)
            self._extend(replica, candidate, plan.complete)
        ready = self._accepted(replicas)
        ready.writes.append(Write(Table.REQUEST, timestamp, encoded))
        return ready

    def _accept_barrier(
        self, replicas: list[Replica], plans: list[_Plan], timestamp: LogicalTimestamp
    ) -> Ready:
        """Accept a barrier at each object; it has no version. [Q/U §4.3.2, lines 1109-1112]"""
        for replica, plan in zip(replicas, plans, strict=True):
            candidate = Candidate(timestamp, plan.conditioned_on.timestamp)
            self._extend(replica, candidate, plan.complete)
        return self._accepted(replicas)

    def _adopt(
        self,
        replicas: list[Replica],
        lacking: list[Replica],
        plans: list[_Plan],
        timestamp: LogicalTimestamp,
        conditioned: Conditioned,
        hosts: Nodes,
        whole_answer_from: NodeId,
    ) -> Ready:
        """Take over an operation that is already in the chain of its other objects here.

        Its result is fetched: the versions it was invoked on may be long past at those objects.
        """
        objects = tuple(replica.object for replica in replicas) if len(replicas) > 1 else ()
        copy = conditioned.kind is ConditionedKind.COPY
        for replica, plan in zip(replicas, plans, strict=True):
            if replica in lacking:
                self._obtain(replica, timestamp, hosts)
                candidate = Candidate(timestamp, plan.conditioned_on.timestamp, objects, copy)
                self._extend(replica, candidate, plan.complete)
        return self._accepted_before(replicas, timestamp, whole_answer_from)

    def _lacking(
        self, replicas: list[Replica], plans: list[_Plan], timestamp: LogicalTimestamp
    ) -> list[Replica]:
        """The objects for which this server has not accepted the operation, and still may."""
        lacking = []
        for replica, plan in zip(replicas, plans, strict=True):
            if replica.history.find(timestamp) is not None:
                continue
            if replica.history.latest > plan.current:
                if replica.verdict(timestamp) is Verdict.ESTABLISHED:
                    continue
                raise _Fail(Status.NOT_CURRENT)
            lacking.append(replica)
        return lacking

    def _extend(self, replica: Replica, candidate: Candidate, complete: Candidate) -> None:
        """RH ∪ {candidate}, pruned below the greatest complete object candidate.

        A barrier supersedes earlier ones: no history that holds it has them as its latest, so that
        they play no part in any classification. The latest object version stays in any case.
        """
        head = replica.history.latest_object if candidate.barrier else None
        kept = [
            old
            for old in replica.history.candidates
            if (old.timestamp >= complete.timestamp or old is head)
            and not (candidate.barrier and old.barrier)
        ]
        if len(kept) >= limits.HISTORY_CANDIDATES_MOST:
            raise _Fail(Status.TOO_MANY)
        established = ZERO if candidate.barrier else complete.timestamp
        initial = replica.history.initial and complete.timestamp == ZERO
        self._report(replica, history_of((*kept, candidate), initial=initial), established)

    def _report(self, replica: Replica, history: bytes, established: LogicalTimestamp) -> None:
        digest = replica_history_digest(object=replica.object, encoded=history)
        replica.report(history, self._keys.make(digest), established=established)

    def _accepted(
        self,
        replicas: list[Replica],
        *,
        answer: bytes = b"",
        whole: bool = True,
        contenders: int = 0,
    ) -> Ready:
        writes = []
        for replica in replicas:
            if replica.writes:
                writes += replica.writes
                self.unfinished.accepted(replica.object, replica.history.latest)
        return Ready(
            UpdateReply(
                Status.SUCCESS,
                tuple(replica.row.history for replica in replicas),
                tuple(replica.row.authenticator for replica in replicas),
                0,
                answer,
                whole,
                contenders=contenders,
            ),
            writes=writes,
            # But for new operations: others have accepted it, or wait for what it puts in order.
            uses_reserve=True,
        )

    def _accepted_before(
        self, replicas: list[Replica], timestamp: LogicalTimestamp, whole_answer_from: NodeId
    ) -> Ready:
        """Success with the answer that is stored with the version of the first object.

        Object sync may have brought the state without the answer: then none is given.
        """
        version = replicas[0].version(timestamp)
        if version is None or version.operation is None:
            return self._accepted(replicas, whole=False)
        whole, answer = self._abridge(version.answer, whole_answer_from)
        return self._accepted(replicas, answer=answer, whole=whole)

    def _invoke(
        self,
        method: Callable[[tuple[Any, ...], Any, Caller], Record | bytes],
        states: tuple[Any, ...],
        arguments: Any,
        caller: Caller,
    ) -> tuple[int, bytes]:
        """The method's errno or 0, and its answer."""
        try:
            answer = encode_record(method(states, arguments, caller))
        except Refusal as refusal:
            return refusal.code or errno.EIO, b""
        except Exception:
            # A client must not be able to stop nodes by finding a bug in an object type: the same
            # method fails alike everywhere, and nothing is changed.
            self.method_failures += 1
            return errno.EIO, b""
        if len(answer) > limits.ANSWER_BYTES:
            return errno.EOVERFLOW, b""
        return 0, answer

    def _abridge(self, answer: bytes, whole_answer_from: NodeId) -> tuple[bool, bytes]:
        """Whether the answer is sent whole, and it or its digest."""
        if len(answer) <= limits.ANSWER_INLINE_BYTES or whole_answer_from == self.node:
            return True, answer
        return False, answer_digest(answer)

    # --- repair and object sync -----------------------------------------------------------------

    def _fetch(
        self, view: StorageView, sender: Sender, message: FetchRequest, now_us: int
    ) -> Ready:
        stored = view.get(Table.REQUEST, message.timestamp)
        return Ready(FetchReply(b"" if stored is None else stored))

    def _deduce(
        self, view: StorageView, sender: Sender, message: DeduceRequest, now_us: int
    ) -> Ready:
        if not message.version:
            return Ready(DeduceReply(*self._vouch(view, message.timestamp, message.objects)))
        if len(message.version) != TIMESTAMP_BYTES:
            raise _Reject(errno.EINVAL, "a version is a timestamp")
        replica = Replica(view, message.objects[0])
        verdict = replica.verdict_at(message.timestamp, LogicalTimestamp(message.version))
        whole, answer = True, b""
        if verdict is Verdict.ESTABLISHED:
            first = replica.version(message.timestamp)
            if first is not None and first.objects and first.objects[0] != replica.object:
                first = Replica(view, first.objects[0]).version(message.timestamp)
            if first is None or first.operation is None:
                verdict = Verdict.UNKNOWN  # what is asked for is the answer
            else:
                whole, answer = self._abridge(first.answer, message.whole_answer_from)
        return Ready(DeduceReply(verdict, b"", answer, whole))

    def _vouch(
        self, view: StorageView, timestamp: LogicalTimestamp, objects: tuple[ObjectId, ...]
    ) -> tuple[Verdict, bytes]:
        """What any of an operation's objects here tells of it, and an authenticator over that."""
        for identifier in objects:
            verdict = Replica(view, identifier).verdict(timestamp)
            if verdict is not Verdict.UNKNOWN:
                established = verdict is Verdict.ESTABLISHED
                digest = deduction_digest(timestamp=timestamp, established=established)
                return verdict, self._keys.make(digest)
        if past.was_collected(view, timestamp):
            digest = deduction_digest(timestamp=timestamp, established=True)
            return Verdict.ESTABLISHED, self._keys.make(digest)
        return Verdict.UNKNOWN, b""

    # --- healing ------------------------------------------------------------------------------

    def _require_others(self, vouching: Nodes) -> None:
        """What this server says it had accepted counts for nothing if it has forgotten it."""
        if self.recovery.floor_us and not self.quorums.is_repairable(vouching & ~(1 << self.node)):
            raise _Fail(Status.NOT_CURRENT)

    def take_over(
        self, view: StorageView, name: ObjectId, candidate: Candidate, *, established: bool
    ) -> list[Write] | None:
        """The writes that take `candidate` into the history; None if its version is missing.

        Requires: the rule of `healing` allows it.
        """
        replica = Replica(view, name)
        if replica.history.latest >= candidate.timestamp:
            return []
        reach = replica.reach(candidate.timestamp)
        if reach is Reach.KNOWN:
            replica.move_to(candidate.timestamp)
        elif reach is not Reach.HERE and not (
            reach is Reach.MISSING and object_sync.take_staged(replica, candidate.timestamp)
        ):
            return None
        try:
            self._extend(replica, candidate, candidate if established else INITIAL)
        except _Fail:  # the history is as long as it may be
            return None
        return replica.writes

    def has_made(self, name: ObjectId, row: ObjectRow) -> bool:
        """Whether the replica history in `row` is this server's: its authenticator tells."""
        digest = replica_history_digest(object=name, encoded=row.history)
        return row.authenticator == self._keys.make(digest)

    def is_request(self, timestamp: bytes, stored: bytes) -> bool:
        """Whether `stored` is what the candidate at `timestamp` was made from."""
        try:
            conditioned = decode_conditioned(stored)
            sets = [parse_set(each, n=self.quorums.n) for each in conditioned.sets]
        except MalformedMessage:
            return False
        author = client_of(LogicalTimestamp(timestamp))
        return timestamp_of(conditioned, stored, sets, author) == timestamp

    def _attest(
        self, view: StorageView, sender: Sender, message: AttestRequest, now_us: int
    ) -> Ready:
        if sender.role is not Role.NODE:
            raise _Reject(errno.EPERM, "scrubbing is between nodes")
        return Ready(AttestReply(tuple(attested(view, each) for each in message.versions)))

    def _chain(
        self, view: StorageView, sender: Sender, message: ChainRequest, now_us: int
    ) -> Ready:
        if sender.role is not Role.NODE:
            raise _Reject(errno.EPERM, "object sync is between nodes")
        return Ready(chain_page(view, message))

    def _history(
        self, view: StorageView, sender: Sender, message: HistoryRequest, now_us: int
    ) -> Ready:
        if sender.role is not Role.NODE:
            raise _Reject(errno.EPERM, "healing is between nodes")
        return Ready(HistoryReply(Replica(view, message.object).row.history))

    def _catalogue(
        self, view: StorageView, sender: Sender, message: CatalogueRequest, now_us: int
    ) -> Ready:
        if sender.role is not Role.NODE:
            raise _Reject(errno.EPERM, "healing is between nodes")
        return Ready(catalogue(view, message.after))

    def _latest(
        self, view: StorageView, sender: Sender, message: LatestRequest, now_us: int
    ) -> Ready:
        if sender.role is not Role.NODE:
            raise _Reject(errno.EPERM, "comparing is between nodes")
        return Ready(unfinished.latest(view, message))

    def _sync(self, view: StorageView, sender: Sender, message: SyncRequest, now_us: int) -> Ready:
        if sender.role is not Role.NODE:
            raise _Reject(errno.EPERM, "object sync is between nodes")
        return Ready(object_sync.serve(view, message))


def _objects_of(message: Any) -> tuple[ObjectId, ...]:
    """The objects that a client's request is about."""
    match message:
        case Update() | InlineUpdate():
            sets = decode_conditioned(message.conditioned).sets
            return tuple(history_set.object for history_set in sets)
        case InlineBarrier():
            return (message.evidence.object,)
        case FetchRequest():
            return ()
        case Query() | DeduceRequest():
            return message.objects
        case _:
            named: ObjectId = message.object
            return (named,)


def _late(replicas: list[Replica], plans: list[_Plan]) -> list[ObjectId]:
    """Where something later than the history sets' current has been accepted. [Q/U line 1007]"""
    return [
        replica.object
        for replica, plan in zip(replicas, plans, strict=True)
        if replica.history.latest > plan.current
    ]


def _failed(replicas: list[Replica], failure: _Fail) -> Ready:
    return Ready(
        UpdateReply(
            failure.status,
            tuple(replica.stored.history for replica in replicas),
            tuple(replica.stored.authenticator for replica in replicas),
            forged=failure.forged,
            insane=failure.insane,
            contenders=failure.contenders,
        )
    )


class _Allowance:
    """How many barriers and copies each client may still make: a bucket that fills with time."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: dict[ClientId, tuple[int, int]] = {}  # tokens in µs of filling, since when

    def take(self, client: ClientId, now_us: int) -> bool:
        """Take one, if there is one."""
        each_us = limits.SECOND_US // limits.REPAIRS_PER_SECOND
        full_us = limits.REPAIRS_BURST * each_us
        saved_us, since_us = self._buckets.get(client, (full_us, now_us))
        saved_us = min(full_us, saved_us + max(0, now_us - since_us))
        if saved_us < each_us:
            return False
        self._buckets[client] = (saved_us - each_us, now_us)
        return True
