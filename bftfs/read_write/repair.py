"""Finish a candidate that may be complete, at its own timestamp, before its value is returned.

[PASIS §3.4.3.3] A repairable candidate is repaired by writing its fragments back; nodes that host
it already ignore that. Once N - t nodes have acknowledged, the candidate is complete, and no later
reader can miss it.

A version's timestamp names its author, and nodes take versions from their authors only. The reader
therefore first asks the nodes to vouch that they host the candidate; b + 1 vouchers prove that the
author did write it. If N - t nodes have answered and fewer vouch, then fewer than QC benign nodes
host it: it was not complete, and the reader may go on as if it were incomplete.
"""

from __future__ import annotations

import errno
from typing import Any

from bftfs.conversation import Now, Send
from bftfs.credentials import NOBODY
from bftfs.errors import AdmissionRefused
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write.gathering import Gathering
from bftfs.read_write.messages import Voucher, VouchReply, VouchRequest
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.read_write.writing import Encoded, write_at


async def repair(
    session: Session,
    block: BlockId,
    timestamp: BlockTimestamp,
    encoded: Encoded,
    *,
    hosts: frozenset[NodeId] = frozenset(),
) -> bool:
    """True if the candidate is complete now; False if it was not before, and cannot be made so.

    `hosts` are the nodes that say they host the candidate: their answers are waited for. Raises
    AdmissionRefused if nodes refuse for another reason, QuorumUnavailable if total patience runs
    out.
    """
    request = VouchRequest(block, timestamp)

    def judge(reply: Any) -> bytes | None:
        return reply.authenticator if isinstance(reply, VouchReply) else None

    gathering: Gathering[bytes] = Gathering(
        session,
        lambda node: Send(node, request),
        judge,
        subject=f"repair of block {block.hex()}",
        pace=session.peers.writes,
        now_us=await Now(),
    )
    answers = await gathering.answers(hosts)
    vouchers = tuple(
        Voucher(node, authenticator) for node, authenticator in answers.items() if authenticator
    )
    if len(vouchers) <= session.thresholds.b:
        return False
    try:
        await write_at(session, block, timestamp, encoded, credentials=NOBODY, vouchers=vouchers)
    except AdmissionRefused as refused:
        # A correct node is among these, and found fewer than b + 1 of the vouchers valid.
        if refused.code == errno.EPERM and refused.nodes > session.thresholds.b:
            return False
        raise
    return True
