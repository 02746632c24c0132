"""Answers to other servers: for object sync, healing, scrubbing, and to finish updates.

Every benign server that has what is asked for gives the same, so that what b + 1 servers say alike
is true. Whole pages come from one server, digests from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from bftfs import limits
from bftfs.crypto.digest import link_digest, sync_page_digest
from bftfs.identifiers import OBJECT_ID_BYTES, ObjectId
from bftfs.query_update.history import TIMESTAMP_BYTES, ZERO, LogicalTimestamp
from bftfs.query_update.messages import (
    AttestReply,
    AttestRequest,
    Catalogued,
    CatalogueReply,
    CatalogueRequest,
    ChainRequest,
    Found,
    HistoryReply,
    HistoryRequest,
    LatestReply,
    LatestRequest,
    SyncReply,
    SyncRequest,
)
from bftfs.query_update.past_state import state_at
from bftfs.query_update.replica import (
    Link,
    Replica,
    StatePage,
    Version,
    latest_of,
    link_of,
    stored_version,
)
from bftfs.storage import StorageView, Table, after_keys
from bftfs.wire.codec import UNREADABLE, encode

_BEYOND_KEYS = after_keys(limits.STATE_KEY_BYTES)
_BEYOND_OBJECTS = after_keys(OBJECT_ID_BYTES)


# --- object sync: versions, and the state at a version ------------------------------------------


def sync(view: StorageView, request: SyncRequest) -> SyncReply:
    """A page of a version that another server lacks. [Q/U §4.3.5, Object syncing]"""
    replica = Replica(view, request.object)
    if request.known:
        page = _chain_down_to(replica, request.version, request.known)
    else:
        page = _state_page(replica, request.version, request.after)
    if page is None:
        unchained = bool(request.known) and state_at(replica, request.version) is not None
        return SyncReply(Found.UNCHAINED if unchained else Found.NOTHING, b"")
    return SyncReply(Found.PAGE, page if request.whole else sync_page_digest(page))


def _chain_down_to(
    replica: Replica, version: LogicalTimestamp, known: tuple[LogicalTimestamp, ...]
) -> bytes | None:
    """The versions from `version` down to one of `known`, or None if they are too many."""
    links: list[Link] = []
    size = 0
    at = version
    while at != ZERO and at not in known:
        found = replica.version(at)
        if found is None or found.gap or len(links) == limits.SYNC_LINKS:
            return None
        link = link_of(at, found)
        size += len(encode(link))
        if size > limits.SYNC_PAGE_BYTES:
            return None
        links.append(link)
        at = found.parent
    return encode(tuple(links))


def _state_page(replica: Replica, version: LogicalTimestamp, after: bytes) -> bytes | None:
    """The pairs of the state at `version` whose keys follow `after`."""
    state = state_at(replica, version)
    if state is None:
        return None
    pairs: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in state.scan(after + b"\0" if after else b"", _BEYOND_KEYS):
        if size > limits.SYNC_PAGE_BYTES:
            return encode(StatePage(tuple(pairs), True))
        pairs.append((key, value))
        size += len(key) + len(value) + 8
    return encode(StatePage(tuple(pairs), False))


def chain(view: StorageView, request: ChainRequest) -> SyncReply:
    """A page of the versions from the one that is asked for down.

    A server that lacks some of these versions gives a shorter page, or nothing.
    """
    replica = Replica(view, request.object)
    links: list[Link] = []
    size = 0
    at = request.version
    while at != ZERO and len(links) < limits.LINKS_IN_CHAIN_PAGE:
        version = replica.version(at)
        if version is None or version.gap:
            break
        link = link_of(at, version)
        size += len(encode(link))
        if links and size > limits.CHAIN_PAGE_BYTES:
            break
        links.append(link)
        at = version.parent
    page = encode(tuple(links))
    if not links or len(page) > 2 * limits.SYNC_PAGE_BYTES:
        return SyncReply(Found.NOTHING, b"")
    return SyncReply(Found.PAGE, page if request.whole else sync_page_digest(page))


# --- healing, and updates that may be incomplete --------------------------------------------------


def history(view: StorageView, request: HistoryRequest) -> HistoryReply:
    """The replica history of an object."""
    return HistoryReply(Replica(view, request.object).row.history)


def catalogue(view: StorageView, request: CatalogueRequest) -> CatalogueReply:
    """A page of the objects that this server has, and their latest timestamps."""
    following = view.scan(Table.OBJECT, request.after + b"\0", _BEYOND_OBJECTS)
    rows = list(islice(following, limits.OBJECTS_IN_CATALOGUE + 1))
    return CatalogueReply(
        tuple(
            Catalogued(ObjectId(name), latest_of(ObjectId(name), row))
            for name, row in rows[: limits.OBJECTS_IN_CATALOGUE]
        ),
        more=len(rows) > limits.OBJECTS_IN_CATALOGUE,
    )


def latest(view: StorageView, request: LatestRequest) -> LatestReply:
    """The latest timestamps of objects."""
    own = latest_of_all(request.objects, view)
    return LatestReply(tuple(own[name] for name in request.objects))


def latest_of_all(names: Sequence[ObjectId], view: StorageView) -> dict[ObjectId, LogicalTimestamp]:
    """The latest timestamp of each object here; the initial one if the object is not here."""
    rows = ((name, view.get(Table.OBJECT, name)) for name in names)
    return {name: ZERO if row is None else latest_of(name, row) for name, row in rows}


# --- scrubbing ----------------------------------------------------------------------------------


def attest(view: StorageView, request: AttestRequest) -> AttestReply:
    """The digests of versions."""
    return AttestReply(tuple(attested(view, each) for each in request.versions))


def attested(view: StorageView, key: bytes) -> bytes:
    """The digest of a version, as servers tell it each other; nothing if it is not known here."""
    if len(key) != OBJECT_ID_BYTES + TIMESTAMP_BYTES:
        return b""
    stored = view.get(Table.VERSION, key)
    try:
        version = None if stored is None else stored_version(stored)
    except UNREADABLE:
        return b""
    return b"" if version is None or version.gap else digest_of_version(key, version)


def digest_of_version(key: bytes, version: Version) -> bytes:
    """The digest of the version that stands at `key`."""
    timestamp = LogicalTimestamp(key[OBJECT_ID_BYTES:])
    return link_digest(
        object=ObjectId(key[:OBJECT_ID_BYTES]), encoded=encode(link_of(timestamp, version))
    )
