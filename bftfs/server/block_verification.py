"""Lazy verification at one node: when, of which blocks, and with which nodes. [LazyVer §3.8, §3.9]

**Theory of operation.** A faulty client may leave versions behind that do not decode to one item,
or that too few nodes host. A reader would have to validate every version, and to look at all of
these. So each node verifies its own versions in the background: it reads the block as a client does
(`Verification`), flags the latest complete version if it is valid, and discards later ones that
fail, which are poisonous. It writes this in a later step, and checks the store again in that step
(`LazyVerifier._settled`). Versions older than a flagged one need no verification. Readers that see
the flag at b + 1 nodes, one of them correct, validate nothing.

A version that this node hosts is *possible* if it is not flagged, and not older than a flagged one
of its block. The `Backlog` has all possible versions.

1. *When.* In idle time: when no client has asked this node or its peers for anything for a while
   (`IdleTime`). Blocks with the most possible versions come first; a block that was written just
   now waits. Beside clients that never pause, for a bounded share of the time, which grows with the
   backlog (`_beside_clients`); then each block by its responsible nodes.
2. *Bound.* From half of the limit of a client, or of the node, on, ever more of a client's writes
   wait until a few of its blocks are verified (`_slowing`): writers slow down to what is verified,
   before they reach the limit. When the possible versions of a client, of a client and block, or of
   the node reach a limit, the writes of that client wait for verification on demand. So what a
   faulty client can leave behind is bounded, and it delays nobody but itself.
3. *Cooperation.* Nodes k, k + 1, …, k + b (mod N) are responsible for a block; k is the rotation of
   its fragments. They verify it and send notices to the others. b + 1 equal notices convince a
   node, as one of them is a correct node's. If b + 1 notices differ, a correct
   node has verified a version that is not older than the (b + 1)-st of theirs, in descending order:
   versions older than that are not possible any more. If the responsible nodes are silent, lie or
   disagree, the others verify the block themselves, one after the other.

Safe: a flag is set only for what this node has validated, or b + 1 nodes say they have. Shown by
`tests/unit/server/test_block_verification.py` (b liars convince nobody; b + 1 do) and
`test_attacks_on_verification.py` (attackers at full speed).

**Invariants.** A node keeps notices only of blocks that are in its backlog, one from each node.

**Concurrency.** One thread. The findings of a conversation are written in a later step, which the
host runs in its next batch.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.conversation import Compute, Delivery, Event, Now, Pause, Send, Together, Wait
from bftfs.errors import OperationFailed
from bftfs.identifiers import BLOCK_ID_BYTES, BlockId, ClientId, NodeId
from bftfs.read_write import version_row
from bftfs.read_write.classification import CandidateClass
from bftfs.read_write.descent import Descent, Question, Usable
from bftfs.read_write.messages import Notice, ReadReply
from bftfs.read_write.placement import fragment_index, rotation_of
from bftfs.read_write.reading import NEVER_WRITTEN, BlockRead, FoundVersion
from bftfs.read_write.responses import Responses
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import (
    TIMESTAMP_BYTES,
    VERSIONS_END,
    ZERO,
    BlockTimestamp,
    timestamp_of,
    version_key,
)
from bftfs.read_write.validation import validate
from bftfs.read_write.version_row import VERIFIED, Own, RowChange
from bftfs.server.backlog import Backlog
from bftfs.server.step import Host, Ready, Role, Sender, Want
from bftfs.server.tally import counter
from bftfs.server.worker import IdleTime, claimed_ms
from bftfs.storage import StorageView, Table, Write, after_keys

_RIPE_PER_LOOK = 8 * limits.VERIFY_AT_ONCE  # ripe blocks that are looked at beside clients
_ROWS_PER_LOOK = 2_000  # rows per step, when possible versions are searched in the store


class VerificationPolicy(Enum):
    """When the versions of blocks are verified. [LazyVer §3.10.2]"""

    WRITE_TIME = "write-time"  # by every node, before it answers the write
    READ_TIME = "read-time"  # by readers only
    LAZY = "lazy"  # by every node, in idle time or when a limit is reached
    COOPERATIVE = "lazy+cooperative"  # by b + 1 nodes, which notify the others


@dataclass(frozen=True, slots=True)
class VerificationSettings:
    """The policy, and how many possible versions there may be."""

    policy: VerificationPolicy = VerificationPolicy.COOPERATIVE
    node: int = limits.POSSIBLE_VERSIONS
    client: int = limits.POSSIBLE_VERSIONS_OF_CLIENT
    block: int = limits.POSSIBLE_VERSIONS_OF_BLOCK


@dataclass(slots=True)
class VerificationTally:
    """Counters of verification."""

    verified: int = counter("Blocks that this node verified.", name="verified_blocks")
    convinced: int = counter("Blocks verified by notices.", name="convinced_blocks")
    settled: int = counter("Versions that need no verification any more.", name="settled_versions")
    poisonous: int = counter("Versions found to be poisonous.", name="poisonous_versions")
    failed: int = counter("Verifications that failed.", name="verifications_failed")
    notices: int = counter("Notices sent to other nodes.")
    demands: int = counter("Writes that waited for verification.", name="verification_demands")
    slowed: int = counter(
        "Writes that waited for some verification, beyond half of a limit.",
        name="verification_slowed",
    )
    demanded: dict[ClientId, int] = field(default_factory=dict)  # `demands` by client


# --- one block ------------------------------------------------------------------------------------


class Verification(BlockRead):
    """One verification of a block by a node: it validates every candidate, and repairs none."""

    def __init__(self, session: Session, block: BlockId, node: NodeId) -> None:
        super().__init__(session, block, None)
        self.verified = ZERO  # the latest complete valid version; ZERO if there is none
        self.poisonous: list[BlockTimestamp] = []
        self.own: Own | None = None  # this node's part of `verified`, in case it lacks it
        self.idle_ms: dict[NodeId, int] = {}  # how long each node has been idle, as it claims
        self._node = node

    def _order(self, nodes: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
        """First the nodes with stripes, then this node itself, then the others."""
        m = self._session.thresholds.m
        return tuple(dict.fromkeys((*nodes[:m], self._node, *nodes)))

    def _take(self, descent: Descent, delivery: Delivery, question: Question) -> None:
        super()._take(descent, delivery, question)
        node, message = question.node, delivery.message
        if isinstance(message, ReadReply) and node not in descent.responses.discarded:
            self.idle_ms[node] = message.idle_ms

    async def _use(self, responses: Responses, usable: Usable) -> FoundVersion | None:
        """Return the candidate if it is valid and complete, else None.

        [LazyVer §3.8.3] A node that verifies need not repair: it reads prior versions until it
        finds a complete one. A version that fails validation is poisonous whichever nodes host it.
        """
        timestamp, session = usable.timestamp, self._session
        if timestamp == ZERO:
            return NEVER_WRITTEN
        checksum, fragments = responses.cross_checksum(timestamp), responses.fragments(timestamp)
        valid = await Compute(partial(validate, session.code, checksum, fragments))
        if valid is None:
            self.poisonous.append(timestamp)
            return None
        if usable.classification is CandidateClass.REPAIRABLE:
            return None
        index = fragment_index(self._block, self._node, session.thresholds.N)
        self.verified = timestamp
        self.own = Own(checksum, memoryview(valid.fragments[index]))
        return FoundVersion(timestamp, None)


# --- all of them ----------------------------------------------------------------------------------


class LazyVerifier:
    """The lazy verification of one node; also the server of `Notice`."""

    def __init__(
        self,
        node: NodeId,
        session: Session,
        settings: VerificationSettings,
    ) -> None:
        """In `session`, the node reads from its peers like a client."""
        self.backlog = Backlog()
        self.tally = VerificationTally()
        self.settings = settings
        self._node = node
        self._thresholds = session.thresholds
        self._session = session
        self._lazy = settings.policy in {VerificationPolicy.LAZY, VerificationPolicy.COOPERATIVE}
        self._cooperative = settings.policy is VerificationPolicy.COOPERATIVE
        self._notices: dict[BlockId, dict[NodeId, Notice]] = {}
        self._host: Host | None = None
        self._event = Event()
        self._asleep = False
        self._under_way: set[BlockId] = set()
        self._idle = IdleTime(session.thresholds.b)
        self._looked_until = b""  # the store has been searched up to this key
        self._least = min(settings.node, settings.client, settings.block)
        self._owed: dict[ClientId, float] = {}  # blocks to verify for clients that are slowed

    # --- called by the server ----------------------------------------------------------------

    def before_write(self, block: BlockId, client: ClientId, now_us: int) -> Want | Refused | None:
        """None if a new version of `block` is accepted; otherwise a want or a refusal. [§3.8.3]"""
        if not self._lazy:
            return None
        backlog, settings = self.backlog, self.settings
        if backlog.total < self._least:
            return None
        if backlog.of_client_and_block(client, block) >= settings.block:
            want = Want(
                b"verify block" + client + block, lambda _view: self._demand(lambda: [block])
            )
            worthwhile = backlog.is_worthwhile(block, now_us)
        elif backlog.of_client(client) >= settings.client or (
            # Only clients with more than their share of the node's limit wait.
            backlog.total >= settings.node
            and backlog.of_client(client) * backlog.clients >= settings.node
        ):
            most = limits.VERIFY_ON_DEMAND
            want = Want(
                b"verify client" + client,
                lambda _view: self._demand(lambda: backlog.greatest(client, now_us, most)),
            )
            worthwhile = backlog.has_worthwhile(client, now_us)
        else:
            return self._slowing(client, now_us)
        self.tally.demands += 1
        self.tally.demanded[client] = self.tally.demanded.get(client, 0) + 1
        if not worthwhile:
            # Otherwise a client that has left partial writes behind, say because its machine
            # crashed, could not write before they are abandoned. Its next complete write makes
            # all of them obsolete.
            if backlog.excuse(client, now_us, limits.VERIFY_EXCUSED_US):
                return None
            return Refused(
                errno.EAGAIN, "too many of this client's versions are neither complete nor verified"
            )
        return want

    def fullness(self) -> float:
        """How near the possible versions of some client, or of all, are to their limit; 1 at it."""
        settings = self.settings
        return max(self.backlog.total / settings.node, self.backlog.fullest() / settings.client)

    def _slowing(self, client: ClientId, now_us: int) -> Want | None:
        """The verifications that a slowed write waits for; None if the write is accepted now.

        Each accepted write adds to what the client owes; several blocks are verified for it
        together. A write that has waited is accepted, unless others of its client have filled that
        again. Only blocks with versions of the client count: nobody waits for those of others.
        """
        owed = self._owed.pop(client, 0.0)
        if owed >= limits.VERIFY_AT_ONCE:
            count = self.backlog.of_client_and_block
            ripe = self._ripe(now_us, _RIPE_PER_LOOK)
            blocks = [block for block in ripe if count(client, block)][: limits.VERIFY_AT_ONCE]
            if blocks:
                self.tally.slowed += 1
                key = b"verify some" + client + blocks[0]
                return Want(key, lambda _view: self._demand(lambda: blocks))
        if slope := self._slope(client):
            self._owed[client] = min(owed + slope, limits.VERIFY_AT_ONCE)
        return None

    def _slope(self, client: ClientId) -> float:
        """Blocks to verify for a write of the client: none up to half of a limit, 1 at the limit.

        The limit of the node concerns clients that have no less than their share of what there is.
        """
        backlog, settings = self.backlog, self.settings
        own = backlog.of_client(client)
        fullness = own / settings.client
        if own * backlog.clients >= backlog.total:
            fullness = max(fullness, backlog.total / settings.node)
        begin = limits.VERIFY_SLOPE_FROM
        return max(fullness - begin, 0.0) / (1.0 - begin)

    def _ripe(self, now_us: int, most: int) -> list[BlockId]:
        ripe = self.backlog.ripe(now_us, most)
        return [block for block in ripe if block not in self._under_way]

    def _is_responsible(self, block: BlockId) -> bool:
        return not self._cooperative or self._distance(block) <= self._thresholds.b

    def _distance(self, block: BlockId) -> int:
        """How many nodes come before this one to verify `block`."""
        N = self._thresholds.N
        return (self._node - rotation_of(block, N)) % N

    def written(self, block: BlockId, timestamp: BlockTimestamp, now_us: int) -> Want | None:
        """A version is hosted from now on. Returns what the reply has to wait for. [§3.10.2]"""
        if self._lazy:
            self.backlog.add(block, timestamp, now_us + self._delay_us(block))
            if self._asleep:
                self._asleep = False
                self._event.announce()
        elif self.settings.policy is VerificationPolicy.WRITE_TIME:
            return Want(
                b"verify write" + block + timestamp.verifier,
                lambda _view: self._at_once(block, timestamp),
            )
        return None

    def idle_ms(self, now_us: int) -> int:
        """For how long no client has asked this node for anything; replies tell this to peers."""
        return 0 if self._host is None else claimed_ms(self._host.foreground_us, now_us)

    def _delay_us(self, block: BlockId) -> int:
        """How long after a write this node may verify the block."""
        if not self._cooperative:
            return limits.VERIFY_FRESH_US
        distance = self._distance(block)
        delay = limits.VERIFY_FRESH_US + distance * limits.VERIFY_STAGGER_US
        return delay if distance <= self._thresholds.b else delay + limits.VERIFY_ALONE_US

    # --- notices -----------------------------------------------------------------------------

    def step(
        self, view: StorageView, sender: Sender, message: Notice, body: Any, now_us: int
    ) -> Ready:
        """Take in a notice. [§3.8.2]"""
        if sender.role is not Role.NODE or sender.node is None:
            return Ready(Refused(errno.EPERM, "notices are between nodes"))
        block = message.block
        if not self._cooperative or sender.node == self._node or block not in self.backlog:
            return Ready()
        notices = self._notices.setdefault(block, {})
        notices[sender.node] = message
        if len(notices) <= self._thresholds.b:
            return Ready()
        return Ready(writes=self._weigh(view, block, tuple(notices.values()), now_us))

    def _weigh(
        self, view: StorageView, block: BlockId, notices: tuple[Notice, ...], now_us: int
    ) -> list[Write]:
        """Draw conclusions from b + 1 or more notices of `block`."""
        b = self._thresholds.b
        verdicts = sorted((notice.verified for notice in notices), reverse=True)
        verified = next((one for one in verdicts if one != ZERO and verdicts.count(one) > b), None)
        called = [timestamp for notice in notices for timestamp in set(notice.poisonous)]
        poisonous = {timestamp for timestamp in called if called.count(timestamp) > b}
        if verified is not None:
            self.tally.convinced += 1
            return self._note(view, block, verified, poisonous, own=None, now_us=now_us)
        # [§3.8.3] At least one of the b + 1 greatest comes from a correct node.
        behind = verdicts[b]
        obsolete = [one for one in self.backlog.versions(block) if one < behind]
        self.tally.settled += self.backlog.settle(block, [*obsolete, *poisonous])
        self.backlog.hasten(block, now_us)
        return self._settled(view, block, None, poisonous, None, now_us)

    async def _notify(self, block: BlockId, findings: Verification) -> None:
        poisonous = tuple(findings.poisonous[: limits.POISONOUS_IN_NOTICE])
        notice = Notice(block, findings.verified, poisonous)
        # [§3.8.2] A node that has itself sent a notice of this or a later version needs none.
        known = self._notices.get(block, {})
        for number in range(self._thresholds.N):
            node = NodeId(number)
            told = known.get(node)
            if node != self._node and (told is None or told.verified < findings.verified):
                self.tally.notices += 1
                await Send(node, notice)

    # --- writing the findings ----------------------------------------------------------------

    def _note(
        self,
        view: StorageView,
        block: BlockId,
        verified: BlockTimestamp,
        poisonous: set[BlockTimestamp],
        *,
        own: Own | None,
        now_us: int,
    ) -> list[Write]:
        """Record a verdict in the backlog; return the writes that record it in the store."""
        abandoned_us = now_us - limits.ABANDONED_US
        done = [
            one
            for one in self.backlog.versions(block)
            if one <= verified or one in poisonous or one.time < abandoned_us
        ]
        self._settle(block, done, now_us)
        # If the disk is full, healing brings this node's part later.
        accepts = self._host is None or not self._host.full
        found = None if verified == ZERO else verified
        writes = self._settled(view, block, found, poisonous, own if accepts else None, now_us)
        self.tally.poisonous += sum(
            write.table is Table.BLOCK and write.value is None for write in writes
        )
        hosted = verified == ZERO or view.get(Table.BLOCK, version_key(block, verified)) is not None
        if own is None and accepts and not hosted:
            # A verification by this node will bring its part of the version.
            self.backlog.add(block, verified, now_us)
        return writes

    def _settled(
        self,
        view: StorageView,
        block: BlockId,
        verified: BlockTimestamp | None,
        poisonous: Collection[BlockTimestamp],
        own: Own | None,
        now_us: int,
    ) -> list[Write]:
        """The writes that flag the verified version and discard the poisonous ones.

        A version that was flagged before keeps the time of its flag. `own`, this node's part of the
        verified version, is stored if the node lacks it or has a damaged one.
        """
        writes: list[Write] = []
        keys = [version_key(block, timestamp) for timestamp in poisonous]
        # No reader returns these. [LazyVer §3.8.1]
        changes = [RowChange(key) for key in keys if view.get(Table.BLOCK, key) is not None]
        if verified is not None:
            key = version_key(block, verified)
            row = view.get(Table.BLOCK, key)
            if row is not None and not row[0] & VERIFIED:
                dated = version_row.verified(version_row.checksum_of(row), now_us, before=row)
                writes.append(Write(Table.BLOCK, key, dated))
            if own is not None:
                index = fragment_index(block, self._node, self._thresholds.N)
                changes += version_row.brought(view, key, own, index, now_us)
        return writes + version_row.stored(view, changes)

    def _settle(self, block: BlockId, done: list[BlockTimestamp], now_us: int) -> None:
        """These versions are not possible any more; others of the block are verified later."""
        count = self.backlog.settle(block, done)
        self.tally.settled += count
        if block not in self.backlog:
            self._notices.pop(block, None)
            return
        if not count:
            self.tally.failed += 1
        self.backlog.failed(block, now_us)

    # --- verifying ---------------------------------------------------------------------------

    async def _verify(self, block: BlockId) -> Verification | None:
        """Verify one block, notify the others, and have the findings written."""
        if block in self._under_way:
            return None
        findings = Verification(self._session, block, self._node)
        self._under_way.add(block)
        try:
            await findings.run()
            has_answers = True
        except OperationFailed:
            has_answers = False
        finally:
            self._under_way.discard(block)
        assert self._host is not None
        if not has_answers:
            self._host.arrange(partial(self._note_silence, block))
            return None
        self.tally.verified += 1
        now_us = await Now()
        for node, idle_ms in findings.idle_ms.items():
            self._idle.heard(node, idle_ms, now_us)
        # The findings are written in the next batch; until then, the block is not verified again.
        self.backlog.postpone(block, now_us + limits.VERIFY_RETRY_US)
        if self._cooperative:
            await self._notify(block, findings)
        self._host.arrange(
            lambda view, now_us: self._note(
                view,
                block,
                findings.verified,
                set(findings.poisonous),
                own=findings.own,
                now_us=now_us,
            )
        )
        return findings

    def _note_silence(self, block: BlockId, _view: StorageView, now_us: int) -> list[Write]:
        self.tally.failed += 1
        self.backlog.failed(block, now_us)
        return []

    async def _demand(self, choose: Callable[[], list[BlockId]]) -> list[Write] | None:
        """Verify on demand; the findings are written before the waiting writes are stepped again.

        Many writes may wait for one demand, so its blocks are chosen only once, at its beginning.
        """
        blocks = choose()
        for at in range(0, len(blocks), limits.VERIFY_AT_ONCE):
            await self._verify_together(blocks[at : at + limits.VERIFY_AT_ONCE])
        return []

    async def _at_once(self, block: BlockId, timestamp: BlockTimestamp) -> list[Write] | None:
        """Verify a write before it is acknowledged, when other nodes may lack it yet. [§3.10.2]"""
        pause_us = 500
        for _ in range(12):
            findings = await self._verify(block)
            if findings is not None and (
                findings.verified >= timestamp or timestamp in findings.poisonous
            ):
                return []
            await Pause(pause_us)
            pause_us *= 2
        return None

    # --- idle time ---------------------------------------------------------------------------

    async def run(self, host: Host) -> None:
        """Verify in idle time, as long as the node runs."""
        self._host = host
        if not self._lazy:
            return
        idle = self._idle
        while True:
            if not self.backlog.total and self._looked_until == VERSIONS_END:
                self._asleep = True
                await Wait(self._event)
            if await idle.clients_are_busy(host):
                await self._beside_clients(host)
                continue
            now_us = await Now()
            blocks = self._ripe(now_us, idle.at_once)
            if blocks:
                idle.begin()
                await self._verify_together(blocks)
                idle.end(now_us, host.foreground_us)
                continue
            if self._has_to_look():
                host.arrange(self._look)
                await Pause(limits.VERIFY_IDLE_US)
                continue
            due_us = self.backlog.next_due_us
            wait_us = limits.VERIFY_IDLE_US if due_us is None else due_us - now_us
            await Pause(min(max(wait_us, limits.VERIFY_IDLE_US), limits.VERIFY_FRESH_US))
            idle.at_once = 1

    async def _beside_clients(self, host: Host) -> None:
        """Clients are busy: verify some blocks nevertheless, and rest for the rest of the time."""
        share = min(self.fullness() / limits.VERIFY_SLOPE_FROM, 1.0) * limits.VERIFY_BESIDE_SHARE
        began_us = await Now()
        ripe = self._ripe(began_us, _RIPE_PER_LOOK)
        if share >= limits.VERIFY_BESIDE_LEAST and ripe:
            # Where the responsible nodes are down, others verify what they have left.
            chosen = [block for block in ripe if self._is_responsible(block)] or ripe
            await self._verify_together(chosen[: limits.VERIFY_AT_ONCE])
            took_us = max(await Now() - began_us, 1_000)
            rest_us = round(took_us * (1.0 - share) / share)
            # Peers may have been silent for long: then the bound of the time is less strict.
            await Pause(min(rest_us, limits.VERIFY_PATIENCE_US))
        elif self._has_to_look():
            host.arrange(self._look)
            await Pause(limits.VERIFY_STAGGER_US)

    def _has_to_look(self) -> bool:
        """True if the store is to be searched for more possible versions, after a restart."""
        return self._looked_until != VERSIONS_END and self.backlog.total < self.settings.node // 2

    async def _verify_together(self, blocks: Sequence[BlockId]) -> None:
        await Together(tuple(partial(self._verify, block) for block in blocks))

    def _look(self, view: StorageView, now_us: int) -> list[Write]:
        """After a restart, search the store for possible versions, some rows at a time.

        A block's versions are in descending order, so versions after a verified one are older.
        """
        start = self._looked_until
        rows = 0
        at = b""
        while rows < _ROWS_PER_LOOK:
            skip = False
            for key, row in view.scan(Table.BLOCK, start, VERSIONS_END):
                at = key
                rows += 1
                block = BlockId(key[:BLOCK_ID_BYTES])
                if row[0] & VERIFIED:
                    start, skip = block + after_keys(TIMESTAMP_BYTES), True
                    break
                timestamp = timestamp_of(key)
                if timestamp.time >= now_us - limits.ABANDONED_US or block not in self.backlog:
                    self.backlog.add(block, timestamp, now_us + self._delay_us(block))
                if rows == _ROWS_PER_LOOK:
                    break
            if not skip:
                break
        self._looked_until = at + b"\0" if rows == _ROWS_PER_LOOK else VERSIONS_END
        return []
