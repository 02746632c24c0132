"""Answering without changing anything: queries of the present and of the past.

A query is answered optimistically, on the latest versions here. The reply has the replica
histories, by which its client judges whether the answer counts. [Q/U §4.3.5]

The past: a version is found by its time, with bounded work per request, and its state is read
without walking the chain (`past_state`). What is forbidden now is not told of the past either.
"""

from __future__ import annotations

import errno
from typing import Any

from bftfs.crypto.digest import AuthenticatorKeys, deduction_digest
from bftfs.identifiers import ClientId, NodeId, ObjectId, kind_of
from bftfs.query_update.accepting import abridged
from bftfs.query_update.history import TIMESTAMP_BYTES, LogicalTimestamp, time_of
from bftfs.query_update.messages import (
    DeduceReply,
    DeduceRequest,
    FetchReply,
    FetchRequest,
    Looked,
    PastQuery,
    PastReply,
    Query,
    QueryReply,
    Verdict,
    VersionsReply,
    VersionsRequest,
)
from bftfs.query_update.object_type import Caller, Method, ObjectTypes
from bftfs.query_update.past_state import newest_at, state_at, versions_page, was_collected
from bftfs.query_update.replica import Replica
from bftfs.server.step import Ready, Refuse, Sender
from bftfs.storage import StorageView, Table

GUARD = "history.permit"  # a query without arguments; it refuses users who may not list versions


class Answering:
    """Answers one node's clients, and nodes that repair like clients."""

    def __init__(self, node: NodeId, keys: AuthenticatorKeys, types: ObjectTypes) -> None:
        self._node = node
        self._keys = keys
        self._types = types

    # --- queries --------------------------------------------------------------------------------

    def query(self, view: StorageView, sender: Sender, message: Query, _now_us: int) -> Ready:
        """Answer on the latest versions here, or on those that are asked for. [Q/U §4.3.5]"""
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
        method = self._method(message.method, names)
        arguments = self._types.decode_arguments(method, message.arguments)
        states: dict[ObjectId, Any] | None
        if message.versions:
            versions = message.versions
            states = _states_at(replicas, versions)
            if states is None:
                return Ready(QueryReply(histories, authenticators, False, 0, b"", True))
        else:
            versions = tuple([replica.head for replica in replicas.values()])
            states = {name: replica.workspace for name, replica in replicas.items()}
        caller = _caller(sender.client, message, max(map(time_of, versions)))
        error, answer = self._types.invoke(
            method.invoke, tuple(states[name] for name in names), arguments, caller
        )
        whole, answer = abridged(answer, message.whole_answer_from == self._node)
        return Ready(
            QueryReply(histories, authenticators, True, error, answer, whole, verdict, voucher)
        )

    def _method(self, name: str, objects: tuple[ObjectId, ...]) -> Method:
        """The query of that name, which takes these objects."""
        method = self._types.method(name)
        if method is None or method.update:
            raise Refuse(errno.EOPNOTSUPP, f"no query is called {name}")
        if not method.takes(objects):
            raise Refuse(errno.EINVAL, f"{name} does not take such objects")
        return method

    # --- the past -------------------------------------------------------------------------------

    def past_query(
        self, view: StorageView, sender: Sender, message: PastQuery, _now_us: int
    ) -> Ready:
        """Answer on the newest version here that is old enough."""
        method = self._method(message.method, (message.object,))
        replica = Replica(view, message.object)
        histories, authenticators = (replica.row.history,), (replica.row.authenticator,)
        looked, version = newest_at(replica, message.at_us, message.below)
        state = state_at(replica, version) if looked is Looked.FOUND else None
        if state is None:
            return Ready(PastReply(histories, authenticators, looked, version))
        invoke = self._types.invoke
        caller = _caller(sender.client, message, time_of(version))
        arguments = self._types.decode_arguments(method, message.arguments)
        error, answer = 0, b""
        if method.permit is not None:  # what is forbidden now is not told of the past either
            error, _ = invoke(method.permit, (replica.workspace,), arguments, caller)
        if not error:
            error, answer = invoke(method.invoke, (state,), arguments, caller)
        whole, answer = abridged(answer, message.whole_answer_from == self._node)
        return Ready(PastReply(histories, authenticators, looked, version, error, answer, whole))

    def versions(
        self, view: StorageView, sender: Sender, message: VersionsRequest, _now_us: int
    ) -> Ready:
        """List versions of an object, if its guard permits it."""
        replica = Replica(view, message.object)
        page = versions_page(view, replica, message)
        if page is None:  # nor does a server that is behind know who may read
            return Ready(VersionsReply(False))
        guard = self._types.method(GUARD)
        if guard is not None and kind_of(message.object) in guard.kinds[0]:
            caller = _caller(sender.client, message, time_of(replica.head))
            error, _ = self._types.invoke(
                guard.invoke, (replica.workspace,), guard.arguments(), caller
            )
            if error:
                return Ready(VersionsReply(True, error))
        whole, page = abridged(page, message.whole_answer_from == self._node)
        return Ready(VersionsReply(True, 0, page, whole))

    # --- what repair asks for -------------------------------------------------------------------

    def fetch(
        self, view: StorageView, _sender: Sender, message: FetchRequest, _now_us: int
    ) -> Ready:
        """The request that made a candidate, if it is kept."""
        return Ready(FetchReply(view.get(Table.REQUEST, message.timestamp) or b""))

    def deduce(
        self, view: StorageView, _sender: Sender, message: DeduceRequest, _now_us: int
    ) -> Ready:
        """The fate of a candidate, by the chain of an established version. [Q/U §4.3.7]"""
        if not message.version:
            return Ready(DeduceReply(*self._vouch(view, message.timestamp, message.objects)))
        if len(message.version) != TIMESTAMP_BYTES:
            raise Refuse(errno.EINVAL, "a version is a timestamp")
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
        """The fate of an operation, by any of its objects here, and an authenticator over it."""
        verdict = Verdict.UNKNOWN
        for identifier in objects:
            verdict = Replica(view, identifier).verdict(timestamp)
            if verdict is not Verdict.UNKNOWN:
                break
        else:
            if not was_collected(view, timestamp):
                return Verdict.UNKNOWN, b""
            verdict = Verdict.ESTABLISHED
        established = verdict is Verdict.ESTABLISHED
        digest = deduction_digest(timestamp=timestamp, established=established)
        return verdict, self._keys.make(digest)


def _states_at(
    replicas: dict[ObjectId, Replica], versions: tuple[LogicalTimestamp, ...]
) -> dict[ObjectId, Any] | None:
    """The states at these versions; None if one of them is not here."""
    if len(versions) != len(replicas):
        raise Refuse(errno.EINVAL, "as many versions as objects are needed")
    states = {
        name: state_at(replica, version)
        for (name, replica), version in zip(replicas.items(), versions, strict=True)
    }
    return None if None in states.values() else states


def _caller(client: ClientId, message: Query | PastQuery | VersionsRequest, time_us: int) -> Caller:
    return Caller(client, message.uid, message.gid, message.groups, time_us)
