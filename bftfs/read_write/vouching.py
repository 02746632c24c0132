"""Nodes vouch for versions that a client has written, for the update of an inode that names them.

**Rule.** A node vouches for a set of versions if it hosts all of them. N - t vouchers show that
each of them is complete: at most b of those that vouch lie. So what an inode names is complete when
it is named, and every later reader sees it. (docs/decisions/0015-named-blocks.md)

A single version's vouchers come with the acknowledgements of its WRITE. For a set the nodes are
asked, after its writes. A node may lack some that others have acknowledged: then these are read,
which repairs them, and the nodes are asked again.

**Concurrency.** As any client procedure.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial

from bftfs import limits
from bftfs.asking.ask import ask_all
from bftfs.conversation import Delivery, Pause, Together
from bftfs.crypto.digest import authenticator_bytes
from bftfs.errors import FileSystemError, QuorumUnavailable
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write.messages import VersionName, VouchReply, VouchSetRequest
from bftfs.read_write.reading import BlockRead
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import BlockTimestamp, successor_of
from bftfs.wire.codec import Voucher

Version = tuple[BlockId, BlockTimestamp]

_PAUSE_US = 10_000  # before nodes are asked again; doubles…
_PAUSE_MOST_US = limits.SECOND_US  # …up to this


async def gather(
    session: Session, versions: Sequence[Version], *, everybody: bool
) -> tuple[Voucher, ...]:
    """The vouchers of N - t nodes for these versions; of `everybody` that answers in time.

    b nodes may answer first, each time, with what nobody else takes for theirs: then all are heard.

    Raises QuorumUnavailable if total patience runs out, FileSystemError if a version is not there.
    """
    thresholds, peers = session.thresholds, session.peers
    request = VouchSetRequest(tuple(VersionName(*version) for version in versions))

    def judge(delivery: Delivery, _asked: int) -> bytes | None:
        reply = delivery.message
        is_made = isinstance(reply, VouchReply) and len(reply.authenticator) == width
        return reply.authenticator if is_made else None

    width = authenticator_bytes(thresholds.N)
    most = thresholds.N if everybody else thresholds.responses
    left_us, pause_us = session.patience_total_us, _PAUSE_US
    requests = dict.fromkeys(map(NodeId, range(thresholds.N)), request)
    while True:
        made = await ask_all(
            peers,
            requests,
            judge,
            patience_us=limits.WRITE_PATIENCE_US,
            enough=lambda answers: len(answers) >= most,
        )
        if len(made) >= thresholds.responses:
            return tuple(Voucher(node, made[node]) for node in sorted(made))
        await _repair(session, versions)
        await Pause(pause_us)
        if left_us is not None:
            left_us -= pause_us + limits.WRITE_PATIENCE_US
            if left_us <= 0:
                raise QuorumUnavailable(
                    heard=len(made), required=thresholds.responses, subject="vouchers for a write"
                )
        pause_us = min(2 * pause_us, _PAUSE_MOST_US)


async def _repair(session: Session, versions: Sequence[Version]) -> None:
    """Have these versions complete."""
    batch = limits.BLOCKS_PER_TIME_REQUEST
    for position in range(0, len(versions), batch):
        await Together(
            tuple(
                partial(_repair_one, session, *version)
                for version in versions[position : position + batch]
            )
        )


async def _repair_one(session: Session, block: BlockId, timestamp: BlockTimestamp) -> None:
    found = await BlockRead(session, block, successor_of(timestamp)).run()
    if found.timestamp != timestamp:
        raise FileSystemError(errno.EIO, f"what was written to block {block.hex()} is gone")
