"""The rounds of a write: which time, and WRITE at a timestamp. [PASIS §3.4.3.2]

And repair: finish a candidate that may be complete, at its own timestamp, before its value is
returned. [PASIS §3.4.3.3] A repairable candidate is repaired by writing its fragments back; nodes
that host it already ignore that. Once N - t nodes have acknowledged, the candidate is complete, and
no later reader can miss it.

A version's timestamp names its author, and nodes take versions from their authors only. The reader
therefore first asks the nodes to vouch that they host the candidate; QC - t vouchers prove that the
author wrote it, and was entitled to. If N - t nodes have answered and fewer vouch, then fewer than
QC benign nodes host it: it was not complete, and the reader may go on as if it were incomplete.

What a node has acknowledged or vouched for, it may have lost since. Acknowledgements count together
while none of those that give them knows that another one has begun a new life. Vouchers are judged
by the nodes: one that knows of a later life says so, and they are gathered anew.
[docs/protocols-read-write.md, What a node has forgotten]
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bftfs import limits
from bftfs.asking.lives import Heard, Told
from bftfs.asking.quorum import NOBODY as NO_NODES
from bftfs.asking.refusal import Refused
from bftfs.clock_skew import is_pushed_ahead
from bftfs.coding import cross_checksum
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.coding.erasure import Buffer, ErasureCode
from bftfs.conversation import Delivery, Now, Pause, Send
from bftfs.credentials import NOBODY, Credentials
from bftfs.crypto.digest import Digest, life_of
from bftfs.errors import AdmissionRefused, QuorumUnavailable
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write.messages import (
    TimeReply,
    TimeRequest,
    VouchReply,
    VouchRequest,
    WriteReply,
    WriteRequest,
)
from bftfs.read_write.permission import (
    FORBIDDEN,
    NodesDisagree,
    Permission,
    require_enough,
    while_nodes_disagree,
)
from bftfs.read_write.placement import rotation_of
from bftfs.read_write.session import Gathering, Session
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.wire.codec import Voucher

_GATHERINGS = 4  # how often one repair gathers vouchers


class Encoded(NamedTuple):
    """A data-item as it is written: N fragments, and the cross-checksum that binds them."""

    fragments: tuple[Buffer, ...]
    cross_checksum: CrossChecksum
    verifier: Digest


def encode(code: ErasureCode, item: Buffer) -> Encoded:
    """ENCODE, MAKE_CROSS_CHECKSUM and the verifier of MAKE_TIMESTAMP. [PASIS Figure 3.1]"""
    fragments = code.encode(item)
    checksum = cross_checksum.make(fragments)
    return Encoded(fragments, checksum, cross_checksum.verifier(checksum))


class TimeRound(Gathering[tuple[int, ...]]):
    """READ_TIMESTAMP for several blocks in one round. [PASIS Figure 3.1]

    Of the N - t reports that a client can wait for, N - QC + b + 1 are enough, and it asks for no
    more.
    """

    __slots__ = ("_after_us", "_b")

    def __init__(
        self, session: Session, blocks: Sequence[BlockId], now_us: int, *, after_us: int = 0
    ) -> None:
        """Ask as many nodes as have to answer."""
        thresholds = session.thresholds
        request = TimeRequest(tuple(blocks))

        def judge(reply: Any) -> tuple[int, ...] | None:
            usable = isinstance(reply, TimeReply) and len(reply.times) == len(blocks)
            return reply.times if usable else None

        super().__init__(
            session,
            lambda node: Send(node, request),
            judge,
            subject=_named(blocks),
            pace=session.peers.reads,
            now_us=now_us,
            order=session.by_fragment[rotation_of(blocks[0], thresholds.N)],
            required=thresholds.times,
        )
        self._b = thresholds.b
        self._after_us = after_us

    async def times(self) -> list[int]:
        """For each block the time of a new write, from enough reports.

        Unlike [PASIS Figure 3.1]: the (b + 1)-th largest report and not the largest, since b + 1
        correct nodes among those that report know at least the time of the latest complete write,
        and no liar can then push time away. And at least the client's clock, so that versions can
        be found by the time at which they were written. [design §4] And later than `after_us`.
        """
        reports = (await self.answers()).values()
        least = max(self.ended_us, self._after_us + 1)
        return [
            max(least_safe_time(reported, self._b) + 1, least)
            for reported in zip(*reports, strict=True)
        ]


class NodesTooLate(Exception):
    """Some nodes take the time no more, and others are silent: this ends a round, and no more."""

    def __init__(self, *, heard: int) -> None:
        """`heard`: how many nodes host the version, as far as is known."""
        super().__init__(heard)
        self.heard = heard


class WriteRound(Gathering[Told]):
    """Sends each node its fragment of one version. A node's answer is what it tells of lives.

    Ends with `NodesTooLate` after a silence in which some node refuses an author's time.
    """

    __slots__ = (
        *("_asked", "_forbidding", "_is_authors", "_is_late", "_lives", "_made", "_session"),
        "_silences_borne",
    )

    def __init__(
        self,
        session: Session,
        request: WriteRequest,
        fragments: Sequence[Buffer],
        now_us: int,
        *,
        silences: int = 0,
    ) -> None:
        """If the round tolerates `silences`, nodes' word that permission lacks is not final.

        The round then ends with `NodesDisagree`, when nothing is to be expected without those that
        are `forbidding`, or after so many silences.
        """
        rotation, N = rotation_of(request.block, session.thresholds.N), session.thresholds.N
        # The moment (`Lives.begin`) of each node's first request of which a reply still counts.
        asked: dict[NodeId, int] = {}

        def with_fragment(node: NodeId) -> Send:
            asked.setdefault(node, session.lives.begin())
            at = (node - rotation) % N
            return Send(node, request, memoryview(fragments[at]))

        def judge(reply: Any) -> Told | None:
            return session.told(reply.lives) if isinstance(reply, WriteReply) else None

        super().__init__(
            session,
            with_fragment,
            judge,
            subject=_named((request.block,)),
            pace=session.peers.writes,
            now_us=now_us,
        )
        self._asked = asked
        self._session = session
        self._lives = session.lives
        self._made: dict[NodeId, bytes] = {}
        self._silences_borne = silences
        self._forbidding = NO_NODES
        self._is_authors = not request.vouchers
        self._is_late = False

    @property
    def vouchers(self) -> tuple[Voucher, ...]:
        """Of the nodes that host the version, if they were to vouch for it."""
        made, answers = self._made, self._answers
        vouchers = tuple(Voucher(node, made[node]) for node in sorted(made) if node in answers)
        return preferred(self._session, vouchers, answers.values())[0]

    def _take(self, reply: Delivery) -> None:
        message = reply.message
        if isinstance(message, WriteReply) and message.voucher:
            self._made[reply.node] = message.voucher
        if isinstance(message, Refused) and message.code == errno.ETIME:
            self._is_late = self._is_authors
        if self._silences_borne and isinstance(message, Refused) and message.code in FORBIDDEN:
            self._forbidding = self._forbidding.plus(reply.node)
            self.useless(reply.node)
        else:
            if self._forbidding:
                self._forbidding = self._forbidding.minus(reply.node)  # it may know better now
            super()._take(reply)
        if self._forbidding:
            require_enough(
                self._peers.quorums,
                self._forbidding,
                self.finally_refusing,
                heard=len(self._answers),
            )

    async def _lapse(self) -> bool:
        is_over = await super()._lapse()
        if self._forbidding and not is_over and self._silences >= self._silences_borne:
            raise NodesDisagree(self._forbidding, heard=len(self._answers))
        if self._is_late and not is_over:
            raise NodesTooLate(heard=len(self._answers))
        return is_over

    def _outlived(self, answers: dict[NodeId, Told]) -> Iterable[NodeId]:
        if len(set(answers.values())) == 1:
            return ()
        asked = self._asked
        outlived = self._lives.outlived(
            {node: Heard(told, asked[node]) for node, told in answers.items()}
        )
        for node in outlived:  # they are asked again: replies to earlier requests do not count
            del asked[node]
        return outlived


def least_safe_time(reported: Sequence[int], b: int) -> int:
    """The (b + 1)-th largest of the times that enough nodes report."""
    return sorted(reported, reverse=True)[b]


async def write_at(
    session: Session,
    block: BlockId,
    timestamp: BlockTimestamp,
    encoded: Encoded,
    *,
    credentials: Credentials,
    vouchers: tuple[Voucher, ...] = (),
    wants_vouchers: bool = False,
    permission: Permission | None = None,
) -> tuple[Voucher, ...]:
    """DO_WRITE: send each node its fragment; return once N - t host it. [PASIS Figure 3.1]

    Returns these nodes' vouchers that they host it, if they are wanted.

    The other nodes answer later, or never; nobody waits for them. Raises AdmissionRefused if more
    than t nodes refuse, QuorumUnavailable if total patience runs out. That it is not permitted
    counts only if `permission` says so, and raises what that raises.

    If the time is ahead of this client's clock, another client has pushed the block's time as far
    ahead as the fastest clocks of nodes allow. Nodes whose clocks are behind refuse the write until
    they have caught up. So it takes longer, and must not fail. [design §4]

    If some nodes host it, and others refuse its time since all clocks were set back meanwhile,
    these take it as a repair: for what others vouch for, no time is wrong. Otherwise the write
    would wait for nodes that are down. (docs/decisions/0017-clock-jumps.md)
    """
    request = WriteRequest(
        block,
        timestamp,
        encoded.cross_checksum,
        credentials.uid,
        credentials.gid,
        credentials.groups,
        vouchers,
        wants_vouchers,
    )
    began_us, waited_us, pause_us = await Now(), 0, limits.CLOCKS_PATIENCE_US
    while True:
        try:
            return await _write_where_permitted(session, request, encoded.fragments, permission)
        except NodesTooLate as late:
            everybody = frozenset(session.by_fragment[0])
            if await repair(session, block, timestamp, encoded, hosts=everybody):
                return ()
            most_us = session.patience_total_us
            if most_us is not None and await Now() - began_us > most_us:
                raise QuorumUnavailable(
                    heard=late.heard,
                    required=session.thresholds.responses,
                    subject=_named((block,)),
                ) from late
        except AdmissionRefused as refused:
            if (
                refused.code != errno.ETIME
                or waited_us > limits.CLOCKS_AGREE_US
                or not is_pushed_ahead(timestamp.time, await Now())
            ):
                raise
        await Pause(pause_us)
        waited_us += pause_us
        pause_us = min(2 * pause_us, limits.CLOCKS_PATIENCE_MOST_US)


async def _write_where_permitted(
    session: Session,
    request: WriteRequest,
    fragments: Sequence[Buffer],
    permission: Permission | None,
) -> tuple[Voucher, ...]:
    """Send each node its fragment, again and again while nodes disagree if that is permitted."""

    async def attempt(silences: int) -> tuple[Voucher, ...]:
        writing = WriteRound(session, request, fragments, await Now(), silences=silences)
        await writing.answers()
        return writing.vouchers

    if permission is None:
        return await attempt(0)
    return await while_nodes_disagree(
        session, attempt, permission.confirm, subject=_named((request.block,))
    )


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
    begun = (0,) * session.thresholds.N
    for tries_left in reversed(range(_GATHERINGS)):
        answers = await _vouch(session, block, timestamp, hosts)
        # A node lies if it vouches in an earlier life than others had told before it was asked.
        vouchers = tuple(
            Voucher(node, reply.authenticator)
            for node, reply in answers.items()
            if reply.authenticator and life_of(reply.authenticator) >= begun[node]
        )
        begun = _begun(session, (reply.lives for reply in answers.values()))
        if len(vouchers) < session.thresholds.repairable:
            return False
        try:
            await write_at(
                session, block, timestamp, encoded, credentials=NOBODY, vouchers=vouchers
            )
        except AdmissionRefused as refused:
            # One of these nodes is correct. It has found fewer than QC - t of the vouchers valid,
            # even with those that are outlived.
            if refused.code == errno.EPERM and refused.nodes > session.thresholds.b:
                return False
            if refused.code != errno.EKEYEXPIRED or not tries_left:
                raise
        else:
            break
    return True


async def _vouch(
    session: Session, block: BlockId, timestamp: BlockTimestamp, hosts: frozenset[NodeId]
) -> dict[NodeId, VouchReply]:
    """The replies of N - t nodes and of `hosts`: do they vouch for the version?"""
    request = VouchRequest(block, timestamp)

    def judge(reply: Any) -> VouchReply | None:
        usable = isinstance(reply, VouchReply) and session.told(reply.lives) is not None
        return reply if usable else None

    gathering: Gathering[VouchReply] = Gathering(
        session,
        lambda node: Send(node, request),
        judge,
        subject=f"repair of block {block.hex()}",
        pace=session.peers.writes,
        now_us=await Now(),
    )
    return await gathering.answers(hosts)


class Preferred(NamedTuple):
    """Vouchers to show, and whether nobody doubts any of them."""

    vouchers: tuple[Voucher, ...]
    is_likely: bool


def preferred(
    session: Session, vouchers: tuple[Voucher, ...], told: Iterable[Told], least: int = 0
) -> Preferred:
    """Those of these vouchers that nodes will take, as far as a client can tell.

    Not of a life that has ended, as b + 1 nodes have told; nor of a node that is known to lie. Nor
    of one that is suspected, if those of others are enough, or `least`: the node that
    suspects it may lie.
    """
    peers, begun = session.peers, _begun(session, told) if vouchers else ()
    possible = tuple(
        each
        for each in vouchers
        if each.node not in peers.convicted and life_of(each.authenticator) >= begun[each.node]
    )
    likely = possible
    if peers.disbelieved:
        likely = tuple(each for each in possible if each.node not in peers.disbelieved)
    if len(likely) >= max(least, session.thresholds.responses):
        return Preferred(likely, True)
    return Preferred(possible, False)


def _begun(session: Session, told: Iterable[Told]) -> Told:
    """For each node, the latest life that it has begun as b + 1 nodes know."""
    known = [session.told(each) or () for each in told]
    b = session.thresholds.b
    if len(known) <= b or not any(map(any, known)):
        return (0,) * session.thresholds.N
    return tuple(sorted(lives, reverse=True)[b] for lives in zip(*known, strict=True))


def _named(blocks: Sequence[BlockId]) -> str:
    more = f" and {len(blocks) - 1} more" if len(blocks) > 1 else ""
    return f"write of block {blocks[0].hex()}{more}"
