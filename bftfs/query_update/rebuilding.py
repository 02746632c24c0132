"""How a server makes an object anew from what its peers have of it: its past, and its state.

What b + 1 servers tell alike, a benign one tells. The chain of versions that leads to one that is
established is the same at all benign servers that know it, and so is the state at each of them. So
a server that has lost rows of an object, or never had its past, takes the chain page by page from
the version that it stands at, as far down as b + 1 peers tell it, and the state below that; and
from these it makes all of its rows again. What it has accepted stays as it is: the replica history
and its authenticator are not touched.

**Concurrency.** One thread. Rows are replaced in one step, so that no request sees a part of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from bftfs import limits
from bftfs.crypto.digest import sync_page_digest
from bftfs.errors import QuorumUnavailable
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update import object_sync
from bftfs.query_update.candidate import Candidate
from bftfs.query_update.history import history_of
from bftfs.query_update.messages import ChainRequest, Found, SyncReply
from bftfs.query_update.object_sync import Asking
from bftfs.query_update.replica import (
    Link,
    ObjectRow,
    Reach,
    Replica,
    link_of,
    rows_of,
)
from bftfs.query_update.timestamp import ZERO, LogicalTimestamp
from bftfs.quorum import QuorumSystem
from bftfs.storage import MemoryStorage, StorageView, Write
from bftfs.wire.codec import encode

_decode_links = msgspec.msgpack.Decoder(tuple[Link, ...]).decode


@dataclass(frozen=True, slots=True)
class Past:
    """The chain that leads to a version, newest first, and the state that it begins with."""

    links: tuple[Link, ...]
    base: LogicalTimestamp  # the parent of the last link; ZERO: the initial version
    state: tuple[bytes, ...]  # at `base`, in pages


# --- the server that is asked -------------------------------------------------------------------


def chain_page(view: StorageView, request: ChainRequest) -> SyncReply:
    """The versions from the one that is asked for down, a page of them.

    Every benign server that knows all of these versions gives the same page; one that lacks any of
    them gives a shorter one, or nothing.
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


# --- the server that asks -----------------------------------------------------------------------


async def fetch_past(
    name: ObjectId, version: LogicalTimestamp, *, me: NodeId, quorums: QuorumSystem
) -> Past | None:
    """As much of the past of `version` as so many peers tell alike that one of them is benign."""
    order = tuple(NodeId((me + step) % quorums.n) for step in range(1, quorums.n))
    asking = Asking(order, quorums)
    links: list[Link] = []
    volume = 0
    at = version
    try:
        while at != ZERO and volume < limits.CHAIN_REBUILT_BYTES:
            page = await asking.agree(ChainRequest(name, at, True))
            more = None if page is None else _leading_down_from(at, page)
            if page is None or more is None:
                break
            volume += len(page)
            links += more
            at = links[-1].parent
        state = [] if at == ZERO else await object_sync.state_pages(asking, name, at)
        if state is None and links:
            # Nobody has the version below: the oldest that there is begins it all.
            at = links.pop().timestamp
            state = await object_sync.state_pages(asking, name, at)
    except (QuorumUnavailable, msgspec.MsgspecError, IndexError):
        return None
    return None if state is None else Past(tuple(links), at, tuple(state))


def _leading_down_from(version: LogicalTimestamp, page: bytes) -> tuple[Link, ...] | None:
    """The links of a page, if they are a chain."""
    links = _decode_links(page)
    at = version
    for link in links:
        if link.timestamp != at or link.parent >= at:
            return None
        at = link.parent
    return links or None


def made_anew(view: StorageView, row: ObjectRow, name: ObjectId, past: Past) -> list[Write] | None:
    """The writes that replace all rows of an object; None if `past` does not lead to where it is.

    Requires: `row` is sound.
    """
    fresh = Replica(MemoryStorage(), name)
    if past.base != ZERO:
        fresh.install(past.base, object_sync.pairs_in(past.state))
        start = history_of((Candidate(past.base, ZERO),), initial=False)
        fresh.report(start, b"", established=ZERO)
    fresh.learn(past.links)
    target = past.links[0].timestamp if past.links else past.base
    if fresh.reach(target) not in {Reach.HERE, Reach.KNOWN}:
        return None
    fresh.move_to(target)
    # What is known to be established is none but what this server has known before.
    known = {past.base, *(link.timestamp for link in past.links)}
    established = row.established if row.established in known else ZERO
    fresh.report(row.history, row.authenticator, established=established)
    return [*(Write(table, key, None) for table, key in rows_of(view, name)), *fresh.writes]
