"""Nodes vouch for versions that a client has written, for the update of an inode that names them.

**Rule.** A node vouches for a set of versions if it hosts all of them. N - t vouchers show that
each of them is complete: at most b of those that vouch lie. So what an inode names is complete when
it is named, and every later reader sees it. (docs/decisions/0015-named-blocks.md)

A single version's vouchers come with the acknowledgements of its WRITE. For a set the nodes are
asked, after its writes. A node may lack some that others have acknowledged: then these are read,
which repairs them, and the nodes are asked again. b nodes may say that they host what a correct one
lacks, so that it need not be repaired, and not vouch for it, or not validly. If reading has not
helped, the fragments are therefore sent to all nodes.

**What can be named no more.** Others may have named a later version of the block meanwhile, or cut
it off. Then some nodes have collected the version, and others have not: N - t will not vouch for
it, however often it is repaired. So a node tells besides whether an update can still name all of
the set (`is_late`), by the inode as it is there, and whether or not it hosts them. If b + 1 say
that it is too late, that ends the round: the version counts as gone.

It ends if it has to: a correct node collects what can be named no more as something established
says, which N - t nodes have, of which N - 2t > b are correct and answer. And b liars do not make it
too late. If a correct node says so besides, and is wrong (what it goes by need not be established),
nothing is lost: the attempts at the update are settled before its client is told, and what none of
them has named is written again. (tests/seams/test_shared_files.py, from
`test_nobody_waits_for_vouchers_for_what_can_be_named_no_more` on)

**Concurrency.** As any client procedure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from bftfs import limits
from bftfs.asking.ask import ask_all
from bftfs.conversation import Compute, Delivery, Pause, Together
from bftfs.credentials import Credentials
from bftfs.crypto.digest import authenticator_bytes
from bftfs.errors import NoLongerKept, QuorumUnavailable, VersionGone, VersionUnrecoverable
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write.messages import VersionName, VouchReply, VouchSetRequest
from bftfs.read_write.reading import BlockRead
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import BlockTimestamp, successor_of
from bftfs.read_write.writing import Preferred, encode, preferred, repair
from bftfs.wire.codec import Voucher

Version = tuple[BlockId, BlockTimestamp]

_PAUSE_US = 10_000  # before nodes are asked again; doubles…
_PAUSE_MOST_US = limits.SECOND_US  # …up to this


async def gather(
    session: Session, versions: Sequence[Version], who: Credentials, *, refused: int
) -> tuple[Voucher, ...]:
    """The vouchers of N - t nodes for these versions. Servers have `refused` some so often.

    b nodes may answer first, each time, with what nobody else takes for theirs. So vouchers that
    seem valid are preferred; and after a refusal that has convicted nobody all nodes are heard that
    answer in time. If N - t correct nodes were among them, there would be no further one: then some
    lack versions. One of the b may also accuse a correct node, and withhold its own voucher. So
    before a refusal nobody is waited for if there are enough vouchers with those of suspects.
    Replies count for one attempt only: where too few come, the next one waits longer.

    Raises QuorumUnavailable if total patience runs out, VersionGone if a version is not there, or
    can be named no more.
    """
    thresholds, peers = session.thresholds, session.peers
    request = VouchSetRequest(tuple(VersionName(*version) for version in versions))
    requests = dict.fromkeys(map(NodeId, range(thresholds.N)), request)
    plain, knowing = (authenticator_bytes(thresholds.N, knowing=each) for each in (False, True))

    def judge(delivery: Delivery, _asked: int) -> VouchReply | None:
        reply = delivery.message
        is_usable = isinstance(reply, VouchReply) and session.told(reply.lives) is not None
        return reply if is_usable and len(reply.authenticator) in (0, plain, knowing) else None

    def made(replies: dict[NodeId, VouchReply], least: int = 0) -> Preferred:
        told = (each.lives for each in replies.values())
        return preferred(session, _vouchers(replies), told, least)

    def enough(replies: dict[NodeId, VouchReply]) -> bool:
        vouchers, is_likely = made(replies, most)
        return is_likely or (not refused and len(vouchers) >= thresholds.responses)

    is_found_out = bool(peers.disbelieved) and refused == 1
    most = thresholds.responses if not refused or is_found_out else thresholds.N
    left_us, pause_us = session.patience_total_us, _PAUSE_US
    patience_us = limits.WRITE_PATIENCE_US
    everywhere = refused > 1
    if everywhere:
        await _repair(session, versions, who, everywhere=True)
    while True:
        replies = await ask_all(peers, requests, judge, patience_us=patience_us, enough=enough)
        for vouchers in (made(replies).vouchers, _vouchers(replies)):
            if len(vouchers) >= thresholds.responses:
                return vouchers
        if sum(reply.is_late for reply in replies.values()) > thresholds.b:
            raise VersionGone(f"block {versions[0][0].hex()}")
        await _repair(session, versions, who, everywhere=everywhere)
        everywhere = True
        await Pause(pause_us)
        if left_us is not None:
            left_us -= pause_us + patience_us
            if left_us <= 0:
                raise QuorumUnavailable(
                    heard=len(vouchers),
                    required=thresholds.responses,
                    subject="vouchers for a write",
                )
        pause_us = min(2 * pause_us, _PAUSE_MOST_US)
        if len(replies) < thresholds.responses:  # the others may be far away
            patience_us = min(2 * patience_us, limits.PATIENCE_MOST_US)


def _vouchers(replies: Mapping[NodeId, VouchReply]) -> tuple[Voucher, ...]:
    return tuple(
        Voucher(node, replies[node].authenticator)
        for node in sorted(replies)
        if replies[node].authenticator
    )


async def _repair(
    session: Session, versions: Sequence[Version], who: Credentials, *, everywhere: bool
) -> None:
    """Have these versions complete; `everywhere`: send all nodes their fragments."""
    batch = limits.BLOCKS_PER_TIME_REQUEST
    for position in range(0, len(versions), batch):
        await Together(
            tuple(
                partial(_repair_one, session, *version, who, everywhere=everywhere)
                for version in versions[position : position + batch]
            )
        )


async def _repair_one(
    session: Session,
    block: BlockId,
    timestamp: BlockTimestamp,
    who: Credentials,
    *,
    everywhere: bool,
) -> None:
    subject = f"block {block.hex()}"
    try:
        found = await BlockRead(session, block, successor_of(timestamp), who).run()
    except (NoLongerKept, VersionUnrecoverable) as gone:
        raise VersionGone(subject) from gone
    if found.timestamp != timestamp:
        raise VersionGone(subject)
    if everywhere and found.item is not None:
        encoded = await Compute(partial(encode, session.code, found.item))
        await repair(session, block, timestamp, encoded)
