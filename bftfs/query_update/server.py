"""The server of Query/Update: who may send what, and the answers that change nothing.

`accepting` has what changes objects, `between_nodes` what other servers ask for. [Q/U §4.3.4,
`s_request`]

A step is a function of the store, the message and the clock. What a server remembers between steps
(`admission`, `Recovery`) only makes requests wait, or refuses them.

A query is answered optimistically, on the latest versions here. The reply has the replica
histories, by which its client judges whether the answer counts. [Q/U §4.3.5]

The past: a version is found by its time, with bounded work per request, and its state is read
without walking the chain (`past_state`). What is forbidden now is not told of the past either.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from operator import ge
from typing import Any, Protocol

from msgspec.structs import replace

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.refusal import Refused
from bftfs.credentials import ROOT, UserClaimed
from bftfs.crypto.digest import AuthenticatorKeys, Body, deduction_digest, life_of
from bftfs.errors import MalformedMessage
from bftfs.identifiers import ClientId, NodeId, ObjectId, kind_of
from bftfs.query_update import between_nodes
from bftfs.query_update.accepting import Accepting, abridged
from bftfs.query_update.admission import IncompleteUpdates
from bftfs.query_update.history import (
    TIMESTAMP_BYTES,
    LogicalTimestamp,
    Operation,
    client_of,
    decode_conditioned,
    time_of,
)
from bftfs.query_update.messages import (
    NO_SERIAL,
    WITHHELD,
    AttestRequest,
    Bundle,
    BundleReply,
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
    LifeReply,
    LifeRequest,
    Looked,
    PastQuery,
    PastReply,
    Query,
    QueryReply,
    RunReply,
    RunRequest,
    SyncRequest,
    Update,
    Verdict,
    VersionsReply,
    VersionsRequest,
)
from bftfs.query_update.object_type import (
    Caller,
    ChangesAsked,
    Method,
    ObjectTypes,
    encode_record,
)
from bftfs.query_update.past_state import newest_at, state_at, versions_page, was_collected
from bftfs.query_update.replica import Replica
from bftfs.server import known_lives, known_runs
from bftfs.server.authority import overstepped
from bftfs.server.own_clock import OwnClock
from bftfs.server.recovery import Recovery
from bftfs.server.step import Ready, Refuse, Role, Sender, WaitFor, Want
from bftfs.storage import StorageView, Table, Write
from bftfs.wire.codec import UNREADABLE

GUARD = "history.permit"  # a query (`ChangesAsked`) that refuses users who may not list versions

Handler = Callable[[StorageView, Sender, Any, int], Ready]

_BETWEEN_NODES: dict[type, Callable[[StorageView, Any], Any]] = {
    SyncRequest: between_nodes.sync,
    ChainRequest: between_nodes.chain,
    CatalogueRequest: between_nodes.catalogue,
    LatestRequest: between_nodes.latest,
    AttestRequest: between_nodes.attest,
}


class Doubts(Protocol):
    """Keeps a server from saying something false of objects: the healer of its node."""

    def wanted(self, names: Sequence[ObjectId]) -> Want | None:
        """What a request for these objects has to wait for. Called while `Recovery.doubtful`."""

    def remembers(self, name: ObjectId) -> bool:
        """True if this server has forgotten nothing of what it has accepted for an object."""


class QueryUpdateServer:
    """One node's Query/Update server."""

    def __init__(
        self,
        node: NodeId,
        peers: Peers,
        keys: AuthenticatorKeys,
        types: ObjectTypes,
        *,
        recovery: Recovery | None = None,
        doubts: Doubts | None = None,
        clock: OwnClock | None = None,
        possible_objects: int | None = None,
    ) -> None:
        """`possible_objects` of one client may be incomplete, if not as many as usual."""
        self.types = types
        self.incomplete = IncompleteUpdates(possible_objects)
        self._recovery = recovery or Recovery()
        self._doubts = doubts
        self._node = node
        self._keys = keys
        own_clock = clock or OwnClock(peers.quorums.n)
        accepting = Accepting(node, peers, keys, types, self.incomplete, own_clock)
        self._accepting = accepting
        self._handlers: dict[type, Handler] = {  # nodes repair like clients, but for grants
            Update: self._update,
            InlineUpdate: accepting.inline_update,
            InlineBarrier: accepting.inline_barrier,
            Query: self._query,
            Bundle: self._bundle,
            PastQuery: self._past_query,
            VersionsRequest: self._versions,
            FetchRequest: self._fetch,
            DeduceRequest: self._deduce,
        }
        self._of_nodes: dict[type, Callable[[StorageView, NodeId, Any], Ready]] = {
            HistoryRequest: self._history,
            LifeRequest: self._life,
            RunRequest: self._run,
        }

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: Body,
        now_us: int,
    ) -> Ready:
        """Serve one message."""
        kind = type(message)
        awaits = self._recovery.awaits
        if awaits is not None and kind is not RunRequest:
            return Ready(wants=(awaits,))
        try:
            handler = self._handlers.get(kind)
            if handler is None:
                if sender.node is None:
                    return Ready(Refused(errno.EPERM, "only nodes may ask for this"))
                if kind in self._of_nodes:
                    return self._of_nodes[kind](view, sender.node, message)
                return Ready(_BETWEEN_NODES[kind](view, message))
            # What nodes deduce for each other is true whatever they have forgotten besides.
            is_deduction = kind is DeduceRequest and sender.role is Role.NODE
            if self._recovery.doubtful and self._doubts is not None and not is_deduction:
                want = self._doubts.wanted(_objects_of(message))
                if want is not None:
                    return Ready(wants=(want,))
            return handler(view, sender, message, now_us)
        except Refuse as refuse:
            return Ready(refuse.reply)
        except WaitFor as wait:
            return Ready(wants=(wait.want,))
        except (MalformedMessage, *UNREADABLE) as error:
            return Ready(Refused(errno.EINVAL, str(error)[:256]))

    def _update(self, view: StorageView, sender: Sender, message: Update, now_us: int) -> Ready:
        """A method takes a grant; anybody may repair, by a copy or a barrier."""
        conditioned = decode_conditioned(message.conditioned)
        operation = conditioned.operation
        if operation is not None:
            method = self.types.method(operation.method)
            writes = method is None or not method.for_readers
            _require_grant(sender, operation, writes=writes)
        return self._accepting.update(view, sender.client, message, conditioned, now_us)

    # --- queries --------------------------------------------------------------------------------

    def _query(self, view: StorageView, sender: Sender, message: Query, _now_us: int) -> Ready:
        """Answer on the latest versions here, or on those that are asked for. [Q/U §4.3.5]

        A method takes a grant; anybody may ask for replica histories alone.
        """
        if message.method:
            _require_grant(sender, message)
        names = message.objects
        distinct = sorted(set(names)) if len(names) > 1 else names
        replicas = [Replica(view, name) for name in distinct]
        told = (
            tuple([replica.row.history for replica in replicas]),
            tuple([replica.row.authenticator for replica in replicas]),
            self._keys.lives,
        )
        verdict, voucher = Verdict.UNKNOWN, b""
        if message.deduce:
            candidate = replicas[0].history.latest_object
            if candidate.objects:
                verdict, voucher = self._vouch(view, candidate.timestamp, candidate.objects)
        if not message.method:
            return Ready(QueryReply(*told, False, 0, b"", True, verdict, voucher))
        method = self._method(message.method, names)
        arguments = self.types.decode_arguments(method, message.arguments)
        states: Sequence[Any] | None
        if message.versions:
            versions = message.versions
            states = _states_at(replicas, versions)
            if states is None:
                return Ready(QueryReply(*told, False, 0, b"", True))
        else:
            versions = tuple([replica.head for replica in replicas])
            states = [replica.workspace for replica in replicas]
        if len(names) > 1:
            by_name = dict(zip(distinct, states, strict=True))
            states = [by_name[name] for name in names]
        caller = _caller(sender.client, message, time_of(max(versions)))
        error, answer = 0, b""
        if message.versions:
            workspaces = {each.object: each.workspace for each in replicas}
            now = tuple([workspaces[name] for name in names])
            error = self._forbidden_now(method, now, arguments, caller)
        if not error:
            error, answer = self.types.invoke(method.invoke, tuple(states), arguments, caller)
        whole, answer = abridged(answer, message.whole_answer_from == self._node)
        return Ready(QueryReply(*told, True, error, answer, whole, verdict, voucher))

    def _bundle(self, view: StorageView, sender: Sender, message: Bundle, _now_us: int) -> Ready:
        """Answer one query of each object, as if each had come alone.

        Those that would have to wait, or whose answers are large, are left out, and so are the last
        ones if all take too many bytes. With a method that is brief, the work is bounded by that.
        """
        _require_grant(sender, message)
        names = message.objects
        if any(map(ge, names, names[1:])):
            raise Refuse(errno.EINVAL, "the objects of a bundle ascend")
        method = self._method(message.method, names[:1])
        if not method.brief:
            raise Refuse(errno.EOPNOTSUPP, f"{method.name} is not asked of many objects at once")
        if not all(method.takes((name,)) for name in names):
            raise Refuse(errno.EINVAL, f"{method.name} does not take such objects")
        arguments = self.types.decode_arguments(method, message.arguments)
        doubts = self._doubts if self._recovery.doubtful else None
        positions = bytearray()
        told: list[tuple[bytes, bytes, int, bytes]] = []
        volume = 0
        for position, name in enumerate(names):
            if doubts is not None and doubts.wanted((name,)) is not None:
                continue
            replica = Replica(view, name)
            caller = _caller(sender.client, message, time_of(replica.head))
            states = (replica.workspace,)
            error, answer = self.types.invoke(method.invoke, states, arguments, caller)
            row = replica.row
            volume += len(row.history) + len(answer)
            if volume > limits.BUNDLE_BYTES:
                break
            if len(answer) <= limits.ANSWER_INLINE_BYTES:
                positions.append(position)
                told.append((row.history, row.authenticator, error, answer))
        histories, authenticators, errors, answers = zip(*told, strict=True) if told else ((),) * 4
        lives = self._keys.lives
        return Ready(
            BundleReply(bytes(positions), histories, authenticators, lives, errors, answers)
        )

    def _method(self, name: str, objects: tuple[ObjectId, ...]) -> Method:
        """The query of that name, which takes these objects."""
        method = self.types.method(name)
        if method is None or method.update:
            raise Refuse(errno.EOPNOTSUPP, f"no query is called {name}")
        if not method.takes(objects):
            raise Refuse(errno.EINVAL, f"{name} does not take such objects")
        return method

    def _forbidden_now(
        self, method: Method, states: tuple[Any, ...], arguments: Any, caller: Caller
    ) -> int:
        """The error if the states of now forbid what is asked of earlier ones; 0 if they do not."""
        if method.permit is None:
            return 0
        return self.types.invoke(method.permit, states, arguments, caller)[0]

    # --- the past -------------------------------------------------------------------------------

    def _past_query(
        self, view: StorageView, sender: Sender, message: PastQuery, _now_us: int
    ) -> Ready:
        """Answer on the newest version here that is old enough."""
        _require_grant(sender, message)
        method = self._method(message.method, (message.object,))
        replica = Replica(view, message.object)
        told = (replica.row.history,), (replica.row.authenticator,), self._keys.lives
        looked, version = newest_at(replica, message.at_us, message.below)
        state = state_at(replica, version) if looked is Looked.FOUND else None
        if state is None:
            return Ready(PastReply(*told, looked, version))
        invoke = self.types.invoke
        caller = _caller(sender.client, message, time_of(version))
        arguments = self.types.decode_arguments(method, message.arguments)
        answer = b""
        error = self._forbidden_now(method, (replica.workspace,), arguments, caller)
        if not error:
            error, answer = invoke(method.invoke, (state,), arguments, caller)
        whole, answer = abridged(answer, message.whole_answer_from == self._node)
        return Ready(PastReply(*told, looked, version, error, answer, whole))

    def _versions(
        self, view: StorageView, sender: Sender, message: VersionsRequest, _now_us: int
    ) -> Ready:
        """List versions of an object, if its guard permits it."""
        _require_grant(sender, message)
        replica = Replica(view, message.object)

        def as_told(operation: Operation) -> Operation:
            if self._may_know_arguments(view, sender, message, operation):
                return self._names_told(message, message.object, operation)
            return _untold(operation, WITHHELD)

        page = versions_page(view, replica, message, as_told)
        if page is None:  # nor does a server that is behind know who may read
            return Ready(VersionsReply(False))
        error = self._guarded(sender, message, replica, message.prefixes)
        if error:
            return Ready(VersionsReply(True, error))
        whole, page = abridged(page, message.whole_answer_from == self._node)
        return Ready(VersionsReply(True, 0, page, whole))

    def _names_told(self, claim: UserClaimed, name: ObjectId, operation: Operation) -> Operation:
        """`operation`, as the history of the object called `name` tells it the user.

        A client that may read that object may not be permitted to read the others in which names
        were made or removed. Only the operation's user and root are told all. What is withheld goes
        by nothing else: a server that lacks one of the objects tells the same as the others.
        """
        method = self.types.method(operation.method)
        assert method is not None, "servers have executed it"
        foreign = [field for field, role in method.names if operation.objects[role] != name]
        if not foreign or claim.uid in (ROOT, operation.uid):
            return operation
        arguments = self.types.decode_arguments(method, operation.arguments)
        told = replace(arguments, **dict.fromkeys(foreign, WITHHELD))
        return _untold(operation, encode_record(told))

    def _guarded(
        self,
        sender: Sender,
        claim: UserClaimed,
        replica: Replica,
        prefixes: tuple[bytes, ...] = (),
    ) -> int:
        """The error if the object, as it is now, closes its past to the user; 0 if it does not."""
        guard = self.types.method(GUARD)
        if guard is None or kind_of(replica.object) not in guard.kinds[0]:
            return 0
        caller = _caller(sender.client, claim, time_of(replica.head))
        return self.types.invoke(
            guard.invoke, (replica.workspace,), ChangesAsked(prefixes), caller
        )[0]

    # --- what recovery asks for -----------------------------------------------------------------

    def _history(self, view: StorageView, asking: NodeId, message: HistoryRequest) -> Ready:
        """The replica history of an object, and whether a server that recovers may rest on it.

        A server that has forgotten something does not know which life it has lived last: it would
        deny what others say of that, and they would not be believed any more. So it answers once it
        has begun a new one. [`bftfs.asking.lives`, Rule 3]
        """
        if self._recovery.is_lost and self._doubts is not None:
            want = self._doubts.wanted((message.object,))
            if want is not None:
                raise WaitFor(want)
        remembers = self._doubts is None or self._doubts.remembers(message.object)
        writes = known_lives.note(view, self._keys, asking, message.proof)
        life = life_of(message.proof if writes else known_lives.proof_of(view, asking))
        history = Replica(view, message.object).row.history
        reply = HistoryReply(history, remembers, life, self._keys.lives)
        return Ready(reply, writes=writes, uses_reserve=True)

    def _life(self, view: StorageView, asking: NodeId, message: LifeRequest) -> Ready:
        """What this server knows of lives; it stores that the one that asks has begun one."""
        writes = known_lives.note(view, self._keys, asking, message.proof)
        reply = LifeReply(self._proofs(view, known_lives.proof_of, asking, message.proof, writes))
        return Ready(reply, writes=writes, uses_reserve=True)

    def _run(self, view: StorageView, asking: NodeId, message: RunRequest) -> Ready:
        """Store the proof of the asking server's run; answer with those of all servers."""
        writes = known_runs.note(view, self._keys, asking, message.proof)
        reply = RunReply(self._proofs(view, known_runs.proof_of, asking, message.proof, writes))
        return Ready(reply, writes=writes, uses_reserve=True)

    def _proofs(
        self,
        view: StorageView,
        proof_of: Callable[[StorageView, NodeId], bytes],
        asking: NodeId,
        proof: bytes,
        writes: Sequence[Write],
    ) -> tuple[bytes, ...]:
        """The proofs of all servers; of the asking one what it has sent, if that is stored now."""
        proofs = [proof_of(view, NodeId(maker)) for maker in range(len(self._keys.lives))]
        if writes:
            proofs[asking] = proof
        return tuple(proofs)

    # --- what repair asks for -------------------------------------------------------------------

    def _fetch(
        self, view: StorageView, sender: Sender, message: FetchRequest, _now_us: int
    ) -> Ready:
        """The request that made a candidate, if it is kept, and the user may know of it."""
        kept = view.get(Table.REQUEST, message.timestamp) or b""
        if not kept or _is_author(sender, message.timestamp):
            return Ready(FetchReply(kept))
        _require_grant(sender, message)
        operation = decode_conditioned(kept).operation
        if operation is not None and not self._may_know(view, sender, message, operation):
            kept = b""
        return Ready(FetchReply(kept))

    def _may_know(
        self, view: StorageView, sender: Sender, claim: UserClaimed, operation: Operation
    ) -> bool:
        """True if the user may read all that the operation is about, and know its arguments.

        These are the objects that are of the kinds of the first one: of an operation on names, the
        directories. What it says of their entries is what attributes say.
        """
        method = self.types.method(operation.method)
        if method is None:
            return False
        replicas = [Replica(view, name) for name in operation.objects]
        if any(
            self._guarded(sender, claim, replica)
            for replica, kinds in zip(replicas, method.kinds, strict=False)
            if kinds == method.kinds[0]
        ):
            return False
        return self._may_know_arguments(view, sender, claim, operation)

    def _may_know_arguments(
        self, view: StorageView, sender: Sender, claim: UserClaimed, operation: Operation
    ) -> bool:
        """False if the operation's method closes its arguments to the user."""
        method = self.types.method(operation.method)
        if method is None or method.permit is None:
            return method is not None
        replicas = [Replica(view, name) for name in operation.objects]
        arguments = self.types.decode_arguments(method, operation.arguments)
        caller = _caller(sender.client, claim, time_of(replicas[0].head))
        states = tuple([replica.workspace for replica in replicas])
        return not self._forbidden_now(method, states, arguments, caller)

    def _deduce(
        self, view: StorageView, sender: Sender, message: DeduceRequest, _now_us: int
    ) -> Ready:
        """The fate of a candidate, by the chain of an established version. [Q/U §4.3.7]"""
        if not message.version:
            return Ready(DeduceReply(*self._vouch(view, message.timestamp, message.objects)))
        if len(message.version) != TIMESTAMP_BYTES:
            raise Refuse(errno.EINVAL, "a version is a timestamp")
        if not _is_author(sender, message.timestamp):
            raise Refuse(errno.EPERM, "only its author is told what an update was answered")
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
                whole, answer = abridged(first.answer, message.whole_answer_from == self._node)
        return Ready(DeduceReply(verdict, b"", answer, whole))

    def _vouch(
        self, view: StorageView, timestamp: LogicalTimestamp, objects: tuple[ObjectId, ...]
    ) -> tuple[Verdict, bytes]:
        """The fate of an operation, by any of its objects here, and an authenticator over it.

        Whether these are its objects, this server need not know. So it says of which it speaks.
        """
        verdicts = (Replica(view, identifier).verdict(timestamp) for identifier in objects)
        known = (each for each in verdicts if each is not Verdict.UNKNOWN)
        verdict = next(known, Verdict.UNKNOWN)
        if verdict is Verdict.UNKNOWN:
            if not was_collected(view, timestamp):
                return Verdict.UNKNOWN, b""
            verdict = Verdict.ESTABLISHED
        established = verdict is Verdict.ESTABLISHED
        digest = deduction_digest(timestamp=timestamp, objects=objects, established=established)
        return verdict, self._keys.make(digest)


def _require_grant(sender: Sender, claim: UserClaimed, *, writes: bool = False) -> None:
    refusal = overstepped(sender, claim, writes=writes)
    if refusal is not None:
        raise Refuse(refusal.code, refusal.reason)


def _untold(operation: Operation, arguments: bytes) -> Operation:
    """`operation` with these arguments, of which something is left out.

    Its serial is left out as well: nobody can guess that. With it, a client that guesses
    all the rest could check its guess by the digest in the timestamp.
    """
    return replace(operation, arguments=arguments, serial=NO_SERIAL)


def _is_author(sender: Sender, timestamp: LogicalTimestamp) -> bool:
    """True if the sender has made the candidate. (Nodes know what all have asked for.)"""
    return sender.role is Role.NODE or client_of(timestamp) == sender.client


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
        case Bundle():
            return ()  # each of its queries is left out by itself
        case Query() | DeduceRequest():
            return message.objects
        case _:
            named: ObjectId = message.object
            return (named,)


def _states_at(replicas: list[Replica], versions: tuple[LogicalTimestamp, ...]) -> list[Any] | None:
    """The states at these versions; None if one of them is not here."""
    if len(versions) != len(replicas):
        raise Refuse(errno.EINVAL, "as many versions as objects are needed")
    states = [
        state_at(replica, version) for replica, version in zip(replicas, versions, strict=True)
    ]
    return None if None in states else states


def _caller(client: ClientId, claim: UserClaimed, time_us: int) -> Caller:
    return Caller(client, claim.uid, claim.gid, claim.groups, time_us)
