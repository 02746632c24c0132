"""The server of Query/Update: who may send what, and which part of the server it is for.

`accepting` has what changes objects, `answering` what clients ask for, `between_nodes` what other
servers ask for. [Q/U §4.3.4, `s_request`]

A step is a function of the store, the message and the clock. What a server remembers between steps
(`admission`, `Recovery`) only makes requests wait, or refuses them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from bftfs.asking.quorum import QuorumSystem
from bftfs.asking.refusal import Refused
from bftfs.crypto.digest import AuthenticatorKeys
from bftfs.errors import MalformedMessage
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update import between_nodes
from bftfs.query_update.accepting import Accepting
from bftfs.query_update.admission import IncompleteUpdates
from bftfs.query_update.answering import Answering
from bftfs.query_update.history import decode_conditioned
from bftfs.query_update.messages import (
    AttestRequest,
    CatalogueRequest,
    ChainRequest,
    DeduceRequest,
    FetchRequest,
    HistoryRequest,
    InlineBarrier,
    InlineUpdate,
    LatestRequest,
    PastQuery,
    Query,
    SyncRequest,
    Update,
    VersionsRequest,
)
from bftfs.query_update.object_type import ObjectTypes
from bftfs.server.recovery import Recovery
from bftfs.server.step import Ready, Refuse, Role, Sender, WaitFor, Want
from bftfs.storage import StorageView
from bftfs.wire.codec import UNREADABLE

Handler = Callable[[StorageView, Sender, Any, int], Ready]

_BETWEEN_NODES: dict[type, Callable[[StorageView, Any], Any]] = {
    SyncRequest: between_nodes.sync,
    ChainRequest: between_nodes.chain,
    HistoryRequest: between_nodes.history,
    CatalogueRequest: between_nodes.catalogue,
    LatestRequest: between_nodes.latest,
    AttestRequest: between_nodes.attest,
}


class Doubts(Protocol):
    """Keeps a server from saying something false of objects: the healer of its node."""

    def wanted(self, names: Sequence[ObjectId], request: object, now_us: int) -> Want | None:
        """The want that a request about these objects has to wait for; None if it need not.

        Called while `Recovery.doubtful`.
        """


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
        doubts: Doubts | None = None,
        possible_objects: int | None = None,
    ) -> None:
        """`possible_objects` of one client may be incomplete, if not as many as usual."""
        self.types = types
        self.incomplete = IncompleteUpdates(possible_objects)
        self._recovery = recovery or Recovery()
        self._doubts = doubts
        accepting = Accepting(node, quorums, keys, types, self._recovery, self.incomplete)
        answering = Answering(node, keys, types)
        self._accepting = accepting
        self._answering = answering
        self._handlers: dict[type, Handler] = {  # nodes repair like clients, but for grants
            Update: self._update,
            InlineUpdate: accepting.inline_update,
            InlineBarrier: accepting.inline_barrier,
            Query: self._query,
            PastQuery: self._granted(answering.past_query),
            VersionsRequest: self._granted(answering.versions),
            FetchRequest: answering.fetch,
            DeduceRequest: answering.deduce,
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
        kind = type(message)
        try:
            handler = self._handlers.get(kind)
            if handler is None:
                if sender.role is not Role.NODE:
                    return Ready(Refused(errno.EPERM, "only nodes may ask for this"))
                return Ready(_BETWEEN_NODES[kind](view, message))
            if self._recovery.doubtful and self._doubts is not None:
                want = self._doubts.wanted(_objects_of(message), message, now_us)
                if want is not None:
                    return Ready(wants=(want,))
            return handler(view, sender, message, now_us)
        except Refuse as refuse:
            return Ready(refuse.reply)
        except WaitFor as wait:
            return Ready(wants=(wait.want,))
        except (MalformedMessage, *UNREADABLE) as error:
            return Ready(Refused(errno.EINVAL, str(error)[:256]))

    # --- what takes a grant ---------------------------------------------------------------------

    def _update(self, view: StorageView, sender: Sender, message: Update, now_us: int) -> Ready:
        """A method takes a grant; anybody may repair, by a copy or a barrier."""
        conditioned = decode_conditioned(message.conditioned)
        if conditioned.operation is not None:
            _require_grant(sender, conditioned.operation.uid, writes=True)
        return self._accepting.update(view, sender.client, message, conditioned, now_us)

    def _query(self, view: StorageView, sender: Sender, message: Query, now_us: int) -> Ready:
        """A method takes a grant; anybody may ask for replica histories alone."""
        if message.method:
            _require_grant(sender, message.uid)
        return self._answering.query(view, sender, message, now_us)

    def _granted(self, handler: Handler) -> Handler:
        """`handler`, for those who may act as the message's user."""

        def handle(view: StorageView, sender: Sender, message: Any, now_us: int) -> Ready:
            _require_grant(sender, message.uid)
            return handler(view, sender, message, now_us)

        return handle


def _require_grant(sender: Sender, uid: int, *, writes: bool = False) -> None:
    grant = sender.grant
    if sender.role is not Role.CLIENT:
        raise Refuse(errno.EPERM, "nodes do not perform operations")
    if writes and not grant.write:
        raise Refuse(errno.EROFS, "the grant is for reading only")
    if grant.uids is not None and uid not in grant.uids:
        raise Refuse(errno.EPERM, f"the grant does not cover uid {uid}")


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
