"""Requests from server to server: object sync, and those of healing and scrubbing.

Every benign server that has what is asked for gives the same, so that what b + 1 servers say alike
is true. Whole pages come from one server, digests from the others.

**Object sync** is how a server gets an object version that it lacks. [Q/U §4.3.5, Object syncing]
It asks servers that host the version, one for the whole and others for digests, and widens on
silence or mismatch until so many agree that one of them is benign. Preferably it gets the chain of
versions from one that it has; if that is long or unknown, the whole state, page by page.

What was agreed on is true for ever, whatever has happened at the server meanwhile; so it is staged
in a row of its own, and the request that wanted it moves the head when it is stepped again.

A client that knows nothing newer may condition its update on a version that its hosts have
collected since. A server that lacks it cannot get it, and says so by failing the request
(`fetch_to_build_on`): if it had the client come again, and t servers were down, fewer than a quorum
would answer, and the client would never look for what is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from bftfs import limits
from bftfs.asking import ask
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.conversation import Delivery, Now, Send
from bftfs.crypto.digest import link_digest, sync_page_digest
from bftfs.errors import QuorumUnavailable
from bftfs.identifiers import OBJECT_ID_BYTES, NodeId, ObjectId
from bftfs.query_update.history import TIMESTAMP_BYTES, ZERO, Candidate, LogicalTimestamp
from bftfs.query_update.messages import (
    AttestReply,
    AttestRequest,
    Catalogued,
    CatalogueReply,
    CatalogueRequest,
    ChainRequest,
    Found,
    LatestReply,
    LatestRequest,
    SyncReply,
    SyncRequest,
)
from bftfs.query_update.past_state import state_at
from bftfs.query_update.replica import (
    Link,
    Reach,
    Replica,
    StatePage,
    Version,
    latest_of,
    link_of,
    stored_version,
)
from bftfs.query_update.rounds import Votes
from bftfs.storage import StorageView, Table, Write, after_keys
from bftfs.wire.codec import UNREADABLE, encode

_BEYOND_KEYS = after_keys(limits.STATE_KEY_BYTES)
_BEYOND_OBJECTS = after_keys(OBJECT_ID_BYTES)
_PATIENCE_TOTAL_US = 10 * limits.SECOND_US
_CHAIN = b"c"
_STATE = b"s"
_GONE = b"g"
_BEYOND_VERSIONS = b"\xff" * (len(ZERO) + 5)

_decode_links = msgspec.msgpack.Decoder(tuple[Link, ...]).decode
_decode_page = msgspec.msgpack.Decoder(StatePage).decode


# --- object sync: fetching ------------------------------------------------------------------------


def sync_key(identifier: ObjectId, version: LogicalTimestamp) -> bytes:
    """The key under which a fetched version is staged; also the key of the want."""
    return b"sync" + identifier + version


def known_versions(replica: Replica) -> tuple[LogicalTimestamp, ...]:
    """Versions that a chain may end at: the latest ones on this server's own."""
    own = [
        candidate.timestamp
        for candidate in reversed(replica.history.candidates)
        if not candidate.barrier
    ]
    return (*own[: limits.SYNC_KNOWN - 2], replica.row.established, ZERO)


def others_from(me: NodeId, quorums: QuorumSystem) -> tuple[NodeId, ...]:
    """The servers other than `me`, around the ring: so not all servers ask the same ones first."""
    return tuple(NodeId((me + step) % quorums.n) for step in range(1, quorums.n))


async def fetch_version(
    identifier: ObjectId,
    version: LogicalTimestamp,
    *,
    known: tuple[LogicalTimestamp, ...],
    hosts: Nodes,
    me: NodeId,
    peers: Peers,
) -> list[Write] | None:
    """The writes that stage `version`; None if too few servers give the same."""
    return await _fetched(_asking(hosts, me, peers), identifier, version, known)


async def fetch_to_build_on(
    identifier: ObjectId,
    version: LogicalTimestamp,
    *,
    known: tuple[LogicalTimestamp, ...],
    hosts: Nodes,
    me: NodeId,
    peers: Peers,
) -> list[Write] | None:
    """As `fetch_version`, for a request that is conditioned on the version.

    If a benign server has reported it, as the request shows, and does not have it any more, the
    writes say so, and the request fails: it is not repeated as if the version would come one day.
    That server has collected it, since something later is established, or has lost its store.
    Safe: a server may fail any request. b liars alone do not make it fail one.
    """
    asking = _asking(hosts, me, peers)
    fetched = await _fetched(asking, identifier, version, known)
    if fetched is None and peers.quorums.includes_benign(asking.lacking & hosts):
        return [Write(Table.REQUEST, sync_key(identifier, version), _GONE)]
    return fetched


async def is_made_by(
    identifier: ObjectId, candidate: Candidate, *, hosts: Nodes, me: NodeId, peers: Peers
) -> bool:
    """True if b + 1 servers give the version of `candidate` with its parent, objects and copy flag.

    Asks for the one link between it and what it is conditioned on.
    """
    known = (candidate.conditioned_on,)
    request = SyncRequest(identifier, candidate.timestamp, known, b"", True)
    try:
        chain = await _asking(hosts, me, peers).agree(request)
        links = None if chain is None else links_down_from(candidate.timestamp, chain)
    except (QuorumUnavailable, *UNREADABLE):
        return False
    if links is None:
        return False
    told = (links[0].parent, links[0].objects, links[0].copy)
    return told == (candidate.conditioned_on, candidate.objects, candidate.copy)


def say_gone(writes: list[Write]) -> bool:
    """True if these writes of `fetch_to_build_on` say that the version is gone."""
    return any(write.value == _GONE for write in writes)


def _asking(hosts: Nodes, me: NodeId, peers: Peers) -> PageAsking:
    """Asks the hosts first."""
    order = tuple(sorted(others_from(me, peers.quorums), key=lambda node: node not in hosts))
    return PageAsking(order, peers, hosts)


async def _fetched(
    asking: PageAsking,
    identifier: ObjectId,
    version: LogicalTimestamp,
    known: tuple[LogicalTimestamp, ...],
) -> list[Write] | None:
    key = sync_key(identifier, version)
    try:
        chain = await asking.agree(SyncRequest(identifier, version, known, b"", True))
        links = None if chain is None else links_down_from(version, chain)
        if chain is not None and links is not None and links[-1].parent in known:
            return [Write(Table.REQUEST, key, _CHAIN + chain)]
        pages = await state_pages(asking, identifier, version)
        if pages is None:
            return None
        return [
            *(
                Write(Table.REQUEST, key + number.to_bytes(4, "big"), page)
                for number, page in enumerate(pages)
            ),
            Write(Table.REQUEST, key, _STATE + len(pages).to_bytes(4, "big")),
        ]
    except (QuorumUnavailable, *UNREADABLE, IndexError):
        return None


async def state_pages(
    asking: PageAsking, identifier: ObjectId, version: LogicalTimestamp
) -> list[bytes] | None:
    """The whole state at `version`, in encoded pages; None if too few servers give the same."""
    pages: list[bytes] = []
    after = b""
    while True:
        page = await asking.agree(SyncRequest(identifier, version, (), after, True))
        if page is None:
            return None
        decoded = _decode_page(page)
        pages.append(page)
        if not decoded.more:
            return pages
        after = decoded.pairs[-1][0]


def pairs_in(pages: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The pairs in these pages of `state_pages`."""
    for page in pages:
        yield from _decode_page(page).pairs


def links_down_from(version: LogicalTimestamp, page: bytes) -> tuple[Link, ...] | None:
    """The links of a page, if they are a chain that leads down from `version`."""
    links = _decode_links(page)
    at = version
    for link in links:
        if link.timestamp != at or link.parent >= at:
            return None
        at = link.parent
    return links or None


class PageAsking:
    """Asks servers for pages until a set of them that includes a benign one agrees."""

    def __init__(self, order: tuple[NodeId, ...], peers: Peers, hosts: Nodes = NOBODY) -> None:
        """`hosts` have had what is asked for.

        If a benign one of them lacks it now, nobody waits for servers that are known to be silent.
        """
        self.lacking = NOBODY  # servers that have said that they do not have what was asked for
        self._order = order
        self._hosts = hosts
        self._peers = peers

    async def agree(self, request: SyncRequest | ChainRequest) -> bytes | None:
        """The page.

        None if no page can be agreed on any more, whatever those reply that have not, or if a
        benign server has the version, but no chain.
        """
        peers, quorums = self._peers, self._peers.quorums
        now_us = await Now()
        order, probes = peers.order(self._order, now_us)
        first = 0
        while first < len(order) and not quorums.includes_benign(Nodes.of(order[:first])):
            first += 1
        for_digest = msgspec.structs.replace(request, whole=False)
        votes: Votes[bytes] = Votes(quorums)
        wholes = {order[0], *order[first:]}
        everyone = Nodes.of(order)
        unchained = NOBODY

        def send(node: NodeId) -> Send:
            return Send(node, request if node in wholes else for_digest)

        def is_gone() -> bool:
            return quorums.includes_benign(self.lacking & self._hosts)

        asking = ask.Asking(
            peers,
            order,
            send,
            first=first,
            probes=probes,
            pace=peers.pages,
            needed=lambda _: is_gone(),
            now_us=now_us,
            subject="object sync",
            patience_total_us=_PATIENCE_TOTAL_US,
        )

        def take(delivery: Delivery) -> None:
            nonlocal unchained
            reply, node = delivery.message, delivery.node
            if not isinstance(reply, SyncReply):
                pass
            elif reply.found is Found.NOTHING:
                self.lacking = self.lacking.plus(node)
            elif reply.found is Found.UNCHAINED:
                unchained = unchained.plus(node)
            else:
                whole = node in wholes
                digest = sync_page_digest(reply.page) if whole else reply.page
                votes.add(node, digest, reply.page, whole=whole)
            agreed = votes.agreed() in votes.wholes
            unheard = everyone - asking.answered
            possible = any(
                quorums.includes_benign(nodes | unheard) for nodes in (NOBODY, *votes.by.values())
            )
            if agreed or quorums.includes_benign(unchained) or not possible:
                asking.enough()
            elif is_gone():
                asking.more()
            else:
                asking.until(False)

        await asking.collect(take)
        agreed = votes.agreed()
        return None if agreed is None else votes.wholes.get(agreed)


# --- object sync: using what was fetched ----------------------------------------------------------


def is_staged(replica: Replica, version: LogicalTimestamp) -> bool:
    """True if `version` has been fetched and staged, and not used yet."""
    return replica.view.get(Table.REQUEST, sync_key(replica.object, version)) is not None


def unstaged(replica: Replica) -> list[Write]:
    """The writes that remove all rows staged for the object, those never used as well."""
    first = sync_key(replica.object, ZERO)
    last = first[: -len(ZERO)] + _BEYOND_VERSIONS
    return [
        Write(Table.REQUEST, key, None) for key in replica.view.keys(Table.REQUEST, first, last)
    ]


def take_staged(replica: Replica, version: LogicalTimestamp) -> bool:
    """Move the head to `version` with the staged rows. False if they do not lead there.

    Nor do they if all that is known is that a benign host does not have it any more.
    """
    key = sync_key(replica.object, version)
    staged = replica.view.get(Table.REQUEST, key)
    if staged is None:
        return False
    if staged == _GONE:
        return False
    replica.writes += unstaged(replica)
    if staged.startswith(_CHAIN):
        replica.learn(_decode_links(staged[1:]))
        if replica.reach(version) in {Reach.HERE, Reach.KNOWN}:
            replica.move_to(version)
            return True
        return False
    page_keys = (
        key + number.to_bytes(4, "big") for number in range(int.from_bytes(staged[1:], "big"))
    )
    replica.install(version, pairs_in(_staged(replica.view, page_keys)))
    return True


def _staged(view: StorageView, page_keys: Iterable[bytes]) -> Iterator[bytes]:
    for page_key in page_keys:
        page = view.get(Table.REQUEST, page_key)
        assert page is not None, "pages are staged together with their number"
        yield page


# --- object sync: answers -------------------------------------------------------------------------


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


def _links_from(
    replica: Replica, at: LogicalTimestamp, known: tuple[LogicalTimestamp, ...]
) -> Iterator[tuple[Link, int]]:
    """The versions from `at` down to one of `known` or one that is missing; the size of each."""
    while at not in known:
        version = replica.version(at)
        if version is None or version.gap:
            return
        link = link_of(at, version)
        yield link, len(encode(link))
        at = version.parent


def _chain_down_to(
    replica: Replica, version: LogicalTimestamp, known: tuple[LogicalTimestamp, ...]
) -> bytes | None:
    """The versions from `version` down to one of `known`, or None if they are too many."""
    known = (*known, ZERO)
    links: list[Link] = []
    volume = 0
    for link, size in _links_from(replica, version, known):
        volume += size
        if volume > limits.SYNC_PAGE_BYTES or len(links) == limits.SYNC_LINKS:
            return None
        links.append(link)
    lowest = links[-1].parent if links else version
    return encode(tuple(links)) if lowest in known else None


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
    links: list[Link] = []
    volume = 0
    down = _links_from(Replica(view, request.object), request.version, (ZERO,))
    for link, size in islice(down, limits.LINKS_IN_CHAIN_PAGE):
        volume += size
        if links and volume > limits.CHAIN_PAGE_BYTES:
            break
        links.append(link)
    page = encode(tuple(links))
    if not links or len(page) > 2 * limits.SYNC_PAGE_BYTES:
        return SyncReply(Found.NOTHING, b"")
    return SyncReply(Found.PAGE, page if request.whole else sync_page_digest(page))


# --- healing, and updates that may be incomplete --------------------------------------------------


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
        total=view.count(Table.OBJECT),
    )


def latest(view: StorageView, request: LatestRequest) -> LatestReply:
    """The latest timestamps of objects."""
    own = latest_of_all(request.objects, view)
    return LatestReply(tuple(own[name] for name in request.objects))


def latest_of_all(names: Sequence[ObjectId], view: StorageView) -> dict[ObjectId, LogicalTimestamp]:
    """The latest timestamp of each object at this server; ZERO if it does not have the object."""
    rows = ((name, view.get(Table.OBJECT, name)) for name in names)
    return {name: ZERO if row is None else latest_of(name, row) for name, row in rows}


# --- scrubbing ----------------------------------------------------------------------------------


def attest(view: StorageView, request: AttestRequest) -> AttestReply:
    """The digests of versions."""
    return AttestReply(tuple(attested(view, each) for each in request.versions))


def attested(view: StorageView, key: bytes) -> bytes:
    """The digest by which servers compare a version; empty if this server does not know it."""
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
