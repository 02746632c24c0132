"""The authors of the versions of a file's blocks, for `audit` and `undo`.

Every version names its author, which the nodes that host it have checked [PASIS §3.4.2.3]. An inode
shows a version only once an update covers it, and that update may be another client's. So to find
all that a client has written, the nodes are asked which versions they host.

**Completeness.** N - t nodes answer. Each lists versions in the order of their keys, up to some
key; a page ends at the (b + 1)-th smallest of these, so that no b slow liars hold the listing up. A
complete version is hosted by QC benign nodes, and QC > b + t [PASIS (3.4)]: one of them is among
the nodes that have listed so far. At most t correct nodes are behind with the inode, and may leave
it out because the user could not read it before; QC - t > b + t in clusters of 3t + 2b + 1 nodes.
Liars may add versions: the caller reads what is listed. Test:
`tests/unit/read_write/test_authorship.py::test_no_b_liars_hide_anything`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from bftfs import limits
from bftfs.conversation import Now, Send
from bftfs.credentials import Credentials
from bftfs.identifiers import BLOCK_ID_BYTES, OBJECT_ID_BYTES, BlockId, ClientId, ObjectId
from bftfs.read_write.messages import AuthoredReply, AuthoredRequest
from bftfs.read_write.session import Gathering, Session
from bftfs.read_write.timestamp import (
    TIMESTAMP_BYTES,
    VERSION_KEY_BYTES,
    VERSIONS_END,
    time_of,
    timestamp_of,
)
from bftfs.storage import StorageView, Table, after_keys

_AFTER_BLOCK = after_keys(TIMESTAMP_BYTES)


def last_block(inode: ObjectId) -> BlockId:
    """The greatest id that a block of a file can have."""
    return BlockId(inode + b"\xff" * (BLOCK_ID_BYTES - OBJECT_ID_BYTES))


class Authored(NamedTuple):
    """A version of a block: when, and by whom."""

    block: BlockId
    time_us: int
    author: ClientId


# --- the node that is asked ---------------------------------------------------------------------


def authored(
    view: StorageView, request: AuthoredRequest, inodes: Sequence[ObjectId]
) -> AuthoredReply:
    """The requested versions that this node hosts: as many as one step lists.

    Of these inodes, ascending, which the asking user may know of.
    """
    keys: list[bytes] = []
    looked = 0
    for inode in inodes:
        start, stop = max(inode, request.after + b"\0"), last_block(inode) + _AFTER_BLOCK
        while start < stop:
            for key in view.keys(Table.BLOCK, start, stop):
                looked += 1
                is_old = time_of(key) < request.since_us
                if not is_old and request.author in (None, timestamp_of(key).client):
                    keys.append(key)
                if looked == limits.AUTHORED_ROWS:
                    return AuthoredReply(tuple(keys), key)
                if is_old:
                    start = key[:BLOCK_ID_BYTES] + _AFTER_BLOCK  # what follows is older still
                    break
            else:
                break
    return AuthoredReply(tuple(keys), VERSIONS_END)


# --- the client that asks -----------------------------------------------------------------------


async def versions_by(
    session: Session,
    inodes: Sequence[ObjectId],
    author: ClientId | None,
    since_us: int,
    who: Credentials,
) -> list[Authored]:
    """What `author`, or anybody, has written to the blocks of these files since then."""
    found: list[Authored] = []
    for position in range(0, len(inodes), limits.AUTHORED_INODES):
        batch = tuple(inodes[position : position + limits.AUTHORED_INODES])
        after = b""
        while after < VERSIONS_END:
            request = AuthoredRequest(batch, author, since_us, after, *who)
            keys, after = await _page(session, request)
            found += (_authored(key) for key in keys)
    return found


def _authored(key: bytes) -> Authored:
    timestamp = timestamp_of(key)
    return Authored(BlockId(key[:BLOCK_ID_BYTES]), timestamp.time, timestamp.client)


async def _page(session: Session, request: AuthoredRequest) -> tuple[list[bytes], bytes]:
    """Keys that enough nodes list, and the key up to which no others exist."""
    inodes = frozenset(request.inodes)

    def judge(reply: Any) -> AuthoredReply | None:
        usable = isinstance(reply, AuthoredReply) and _is_possible(reply, request, inodes)
        return reply if usable else None

    thresholds = session.thresholds
    gathering = Gathering(
        session,
        lambda node: Send(node, request),
        judge,
        subject="the authors of blocks",
        pace=session.peers.reads,
        now_us=await Now(),
    )
    replies = (await gathering.answers()).values()
    until = sorted(reply.until for reply in replies)[thresholds.b]
    keys = {key for reply in replies for key in reply.keys if key <= until}
    return sorted(keys), until


def _is_possible(
    reply: AuthoredReply, request: AuthoredRequest, inodes: frozenset[ObjectId]
) -> bool:
    """True if a correct node may have sent this reply."""
    keys = reply.keys
    return (
        request.after < reply.until
        and all(one < other for one, other in pairwise((request.after, *keys)))
        and (not keys or keys[-1] <= reply.until)
        and all(
            len(key) == VERSION_KEY_BYTES
            and key[:OBJECT_ID_BYTES] in inodes
            and time_of(key) >= request.since_us
            and request.author in (None, timestamp_of(key).client)
            for key in keys
        )
    )
