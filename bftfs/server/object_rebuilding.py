"""Makes an object's rows anew from its past and its state at the peers.

**Situation.** A server has lost rows of an object to a damaged disk, or has fetched only its latest
state and lacks its past.

**Rule.** It fetches the chain of versions page by page, from its head as far down as b + 1 peers
give the same page; then the state below that; and makes all of its rows from these.

**Why it is safe.** The chain that leads to an established version is the same at all benign servers
that have it, and so is the state at each version. One of b + 1 servers is benign. What this server
has accepted is not touched: it keeps its replica history and authenticator.

**Concurrency.** One thread. Rows are replaced in one step, so that no request sees a part of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.conversation import Pause
from bftfs.errors import QuorumUnavailable
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update import between_nodes
from bftfs.query_update.between_nodes import PageAsking
from bftfs.query_update.history import (
    TIMESTAMP_BYTES,
    ZERO,
    Candidate,
    LogicalTimestamp,
    history_of,
)
from bftfs.query_update.messages import ChainRequest
from bftfs.query_update.replica import (
    Link,
    ObjectRow,
    Reach,
    Replica,
    rows_of,
    stored_row,
    stored_version,
)
from bftfs.storage import MemoryStorage, StorageView, Table, Write, after_keys
from bftfs.wire.codec import UNREADABLE, encode

_LINKS_AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class Past:
    """The chain that leads to a version, newest first, and the state that it begins with."""

    links: tuple[Link, ...]
    base: LogicalTimestamp  # the parent of the last link; ZERO: the initial version
    state: tuple[bytes, ...]  # at `base`, in pages


async def fetch_past(
    name: ObjectId, version: LogicalTimestamp, *, me: NodeId, peers: Peers
) -> Past | None:
    """The past of `version`, as far down as b + 1 peers give the same."""
    asking = PageAsking(between_nodes.others_from(me, peers.quorums), peers)
    links: list[Link] = []
    volume = 0
    at = version
    try:
        while at != ZERO and volume < limits.CHAIN_REBUILT_BYTES:
            page = await asking.agree(ChainRequest(name, at, True))
            more = None if page is None else between_nodes.links_down_from(at, page)
            if page is None or more is None:
                break
            volume += len(page)
            links += more
            at = links[-1].parent
        state = [] if at == ZERO else await between_nodes.state_pages(asking, name, at)
        if state is None and links:
            # No peer has the version below: begin with the state at the oldest version.
            at = links.pop().timestamp
            state = await between_nodes.state_pages(asking, name, at)
    except (QuorumUnavailable, *UNREADABLE, IndexError):
        return None
    return None if state is None else Past(tuple(links), at, tuple(state))


async def remade(name: ObjectId, past: Past) -> MemoryStorage | None:
    """All rows of an object as `past` makes them, version by version; None if it does not fit."""
    store = MemoryStorage()
    if past.base != ZERO:
        replica = Replica(store, name)
        replica.install(past.base, between_nodes.pairs_in(past.state))
        _stand_at(store, replica, past.base)
    for count, link in enumerate(reversed(past.links), 1):
        replica = Replica(store, name)
        replica.learn((link,))
        if replica.reach(link.timestamp) is not Reach.KNOWN:
            return None
        replica.move_to(link.timestamp)
        _stand_at(store, replica, link.timestamp)
        if not count % _LINKS_AT_A_TIME:
            await Pause(1_000)  # so that others have their turn
    return store


def _stand_at(store: MemoryStorage, replica: Replica, version: LogicalTimestamp) -> None:
    history = history_of((Candidate(version, ZERO),), initial=False)
    replica.report(history, b"", established=ZERO)
    store.apply(replica.writes)


def has_beside(view: StorageView, name: ObjectId, past: Past) -> bool:
    """True if this server has versions of the object's chain that are not in `past`.

    Peers may have collected them while this server, which has more room, has not. [design §8]
    """
    known = {past.base, *(link.timestamp for link in past.links)}
    return any(
        key[len(name) :] not in known and stored_version(row).number
        for key, row in view.scan(Table.VERSION, name, name + after_keys(TIMESTAMP_BYTES))
    )


def replacement(
    view: StorageView, row: ObjectRow, name: ObjectId, past: Past, made: StorageView
) -> list[Write]:
    """The writes that replace the object's rows by those in `made`.

    Requires: `row` is sound, and `past` leads to the version that it stands at.
    """
    stored = made.get(Table.OBJECT, name)
    assert stored is not None, "every version has left one"
    # Only a version that this server has known to be established before counts as established.
    known = {past.base, *(link.timestamp for link in past.links)}
    kept = msgspec.structs.replace(
        stored_row(stored),
        established=row.established if row.established in known else ZERO,
        history=row.history,
        authenticator=row.authenticator,
        collected_us=row.collected_us,
    )
    return [
        *(Write(table, key, None) for table, key in rows_of(view, name)),
        *(Write(table, key, made.get(table, key)) for table, key in rows_of(made, name)),
        Write(Table.OBJECT, name, encode(kept)),
    ]
