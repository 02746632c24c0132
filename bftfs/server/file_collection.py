"""Garbage collection at a node: removes old versions of objects and of files' blocks. [design §7]

**Situation.** Versions that were superseded before the detection window may be removed, unless
retention (`bftfs.retention`) keeps them. Clients and up to b nodes may lie, in order to make a node
remove a version that somebody needs.

**Rules, and why they are safe.**

1. A node decides alone, by its own replicas. An object's version is superseded, a file cut or
   deleted, a snapshot taken only if the object's history at this node says so, in its established
   part. A block's version is superseded only by one that this node has verified. [LazyVer §3.8]
   Peers are asked one question, whether the head of an object is established, and it takes a quorum
   of them. So b liars make no node remove anything. A node that does not know enough removes
   nothing.
2. Retention keeps states of the file system at certain times. An object's version is kept if it was
   the state at a time to keep. A block's version is kept if a kept version of its inode names it
   (`filesystem.block_names`), or is dated so that it might; of a patch, if one names it. So size
   and blocks still belong together after other versions are removed.
3. What is named is there. So a version that may still be named is kept as well, though others have
   written to the block since, and though the window is shorter: its author may have the nodes'
   vouchers that they host it, and an update that names it may lie at a few nodes for any time
   before somebody finishes it. No clock tells when that is over, but the file's history does: an
   established version of the inode that is later than all updates which could name it.
4. The administrator's signed decision (`LetGo`) counts as if the window began later, at the moment
   that it names, and as if there were no policies. Rules 1 to 3 hold as ever. If it is about one
   client, only versions of files by that client are removed; other objects stay as they are. So the
   present stays, and what others' versions and snapshots show of the client's work; and it can
   still be seen which client made and removed each name.
5. Policies and snapshots count both as they were when the detection window began and as they are
   now. So deleting a snapshot, or asking for less, removes nothing before the window has passed,
   and people can notice and revert it.
6. Snapshots stand in another object than what they keep: in the volume. A node may have missed one,
   and know that the file has gone on. So before a pass it takes over what it lacks of the volume,
   and does nothing unless a quorum then has the same latest version of that. And a walk ends where
   a snapshot is made meanwhile, which may be of any time.

**Tests.** tests/simulation/test_collection.py and test_retention.py: the checkers find the damage
that collectors without these rules do.

**Invariants.** `collected_us` of an object is committed before or with the removal of its first
version: a node never claims that a version that it removed did not exist.

**Concurrency.** One thread; one pass at a time. A step looks at some rows only, and clients have
their turn between steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from typing import NamedTuple, Protocol

import msgspec

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes
from bftfs.conversation import Event, Now, Pause, Spawn, Wait
from bftfs.errors import DamagedRow, UsageError
from bftfs.filesystem.objects import ATTRIBUTES_KEY, RETENTION_KEY
from bftfs.filesystem.volume import record_of, times_of_snapshots
from bftfs.identifiers import (
    BLOCK_ID_BYTES,
    OBJECT_ID_BYTES,
    BlockId,
    NodeId,
    ObjectId,
    ObjectKind,
    kind_of,
)
from bftfs.query_update.history import ZERO, LogicalTimestamp, client_of, time_of
from bftfs.query_update.messages import (
    CatalogueReply,
    CatalogueRequest,
    HistoryReply,
    HistoryRequest,
    Looked,
)
from bftfs.query_update.object_type import Refusal
from bftfs.query_update.past_state import PastState, newest_at, state_at
from bftfs.query_update.replica import Replica, Version, Workspace
from bftfs.read_write.timestamp import TIMESTAMP_BYTES, BlockTimestamp
from bftfs.read_write.timestamp import time_of as block_time_of
from bftfs.read_write.timestamp import timestamp_of as block_timestamp_of
from bftfs.read_write.version_row import (
    COLLECTED_BELOW,
    VERIFIED,
    RowChange,
    stored,
    volume,
    with_versions_collected_below,
)
from bftfs.retention import (
    KEEP_ALL,
    LetGo,
    Policy,
    Retention,
    parse_policy,
    widest,
)
from bftfs.server.kept_blocks import (
    KeptVersions,
    ShownBlocks,
    attributes_in,
    established_at,
    shown_by,
)
from bftfs.server.object_collection import ObjectWalk, establish, settled_everywhere
from bftfs.server.own_clock import OwnClock
from bftfs.server.step import Host
from bftfs.server.stray_blocks import StrayBlocks, shows
from bftfs.server.tally import counter
from bftfs.server.worker import (
    OtherNodes,
    PassTally,
    Walk,
    carry_on,
    fraction_below,
    give_way,
    look,
    step,
)
from bftfs.storage import StorageView, Table, Write, after_keys
from bftfs.wire.codec import UNREADABLE, encode

_AFTER_OBJECTS = after_keys(OBJECT_ID_BYTES)
_AFTER_BLOCKS = b"\xff" * (BLOCK_ID_BYTES + TIMESTAMP_BYTES)
_HALVINGS = 6  # passes while the pool is full; each collects the older half of what is left


@dataclass(slots=True)
class CollectionTally(PassTally):
    """Counters of collection."""

    passes: int = counter("Completed passes of garbage collection.", name="collect_passes")
    progress: float = counter(
        "How much of the current pass of garbage collection is done; 1 if there is none.",
        name="collect_progress",
        default=1.0,
    )
    object_versions: int = counter(
        "Versions of objects that were removed.", name="collected_objects"
    )
    block_versions: int = counter("Versions of blocks that were removed.", name="collected_blocks")
    block_bytes: int = counter(
        "Bytes of the block versions that were removed.", name="collected_bytes"
    )
    pressed: int = counter("Passes because the pool was full.", name="collect_pressed")
    pressure_us: int = 0  # up to here, versions are removed because the pool is full; 0: none


class Knowledge(Protocol):
    """The node's healer of objects."""

    def remembers(self, name: ObjectId) -> bool:
        """False for an object of which this node may have forgotten something."""

    async def catch_up(self, host: Host, name: ObjectId) -> bool:
        """Take over later established versions. True if nothing is lacking after that."""


class Facts(NamedTuple):
    """What this node knows of the volume."""

    head: LogicalTimestamp
    snapshots_us: tuple[int, ...]  # now, and when the window began
    created_us: int


class Pool(Protocol):
    """The history pool of a node."""

    @property
    def shortage(self) -> Event:
        """Announced when the pool gets short, perhaps more than once."""

    def is_short(self) -> bool:
        """True if the pool is so full that all versions which no rule keeps are removed."""


# --- the walk over one file's blocks ------------------------------------------------------------


class BlockWalk:
    """One pass over the versions of the blocks of one inode, some of them in each step."""

    def __init__(
        self,
        inode: ObjectId,
        *,
        horizon_us: int,
        may_go: Callable[[BlockTimestamp], bool] = lambda _: True,
    ) -> None:
        self._may_go = may_go
        self.done = False
        self.removed = 0
        self.removed_bytes = 0
        self._inode = inode
        self._head = ZERO
        self._shown: ShownBlocks | None = None  # by the inode as it is at this head
        self._horizon_us = horizon_us
        self._cursor = bytes(inode)
        self._end = inode + _AFTER_BLOCKS
        self._block = b""
        self._until_us: int | None = None
        self._above = b""  # key of the next newer version of the block, if that is kept

    def step(self, view: StorageView) -> list[Write]:
        """Look at some versions, newest first; return the writes that remove those that may go."""
        writes: list[Write] = []
        replica = Replica(view, self._inode)
        if replica.row.collected_us < self._horizon_us:
            self.done = True  # the batch that recorded this walk was lost
            return writes
        if replica.head != self._head:  # a file that was deleted may have been written since
            self._head, self._shown = replica.head, shown_by(replica, self._horizon_us)
        if self._shown is None:
            self.done = True
            return writes
        removed: list[RowChange] = []
        marked: set[bytes] = set()
        kept: KeptVersions | None = None  # of this block
        rows = tuple(islice(view.scan(Table.BLOCK, self._cursor, self._end), limits.COLLECT_ROWS))
        for key, row in rows:
            if key[:BLOCK_ID_BYTES] != self._block:
                self._block = key[:BLOCK_ID_BYTES]
                self._until_us, self._above, kept = None, b"", None
            if kept is None:
                kept = KeptVersions(replica, BlockId(self._block), self._shown)
            if not self._may_go(block_timestamp_of(key)) or kept.keeps(key, self._until_us):
                self._above = key
            else:
                self.removed += 1
                self.removed_bytes += volume(row, view.get(Table.FRAGMENT, key))
                removed.append(RowChange(key))
                if self._above:
                    marked.add(self._above)
            if row[0] & VERIFIED:
                self._until_us = block_time_of(key)
        for key in marked:
            row_above = view.get(Table.BLOCK, key)
            if row_above is not None and not row_above[0] & COLLECTED_BELOW:
                writes.append(Write(Table.BLOCK, key, with_versions_collected_below(row_above)))
        if len(rows) < limits.COLLECT_ROWS:
            self.done = True
        else:
            self._cursor = rows[-1][0] + b"\0"
        return writes + stored(view, removed)


# --- the collector ------------------------------------------------------------------------------


class Scope(NamedTuple):
    """What one pass collects: what retention does not keep; of one client, if that was decided."""

    retention: Retention
    decision: LetGo | None

    def lets_version_go(self, timestamp: LogicalTimestamp, version: Version) -> bool:
        """True if the pass is about this version of an object.

        A copy is its author's repair of an update that may be another's.
        """
        decision = self.decision
        if decision is None or decision.client is None:
            return True
        return not version.copy and decision.concerns(client_of(timestamp), time_of(timestamp))

    def lets_block_go(self, timestamp: BlockTimestamp) -> bool:
        """True if the pass is about this version of a block."""
        decision = self.decision
        return decision is None or decision.concerns(timestamp.client, timestamp.time)

    def is_about(self, replica: Replica) -> bool:
        """False if certainly no version of an object or of its blocks is meant: a quick check."""
        decision = self.decision
        if decision is None or decision.client is None:
            return True
        view, name = replica.view, replica.object
        if kind_of(name) != ObjectKind.INODE:
            return False  # the record of names made and removed is worth more than its room
        versions = view.keys(Table.VERSION, name, name + after_keys(len(ZERO)))
        seen = tuple(islice(versions, limits.COLLECT_ROWS))
        authors = (LogicalTimestamp(key[len(name) :]) for key in seen)
        if len(seen) == limits.COLLECT_ROWS or any(
            decision.concerns(client_of(each), time_of(each)) for each in authors
        ):
            return True
        blocks = view.keys(Table.BLOCK, name, name + _AFTER_BLOCKS)
        rows = tuple(islice(blocks, limits.COLLECT_ROWS))
        return len(rows) == limits.COLLECT_ROWS or any(
            self.lets_block_go(block_timestamp_of(key)) for key in rows
        )


class Collector:
    """The garbage collection of one node."""

    def __init__(
        self,
        node: NodeId,
        peers: Peers,
        volume: ObjectId,
        *,
        window_us: int,
        pool: Pool,
        knowledge: Knowledge,
        clock: OwnClock | None = None,
    ) -> None:
        """Requires: `window_us` is as long as the detection window by any correct node's clock,
        whatever time a client may have given its versions. Without a `clock`, this node's is right.
        """
        self.tally = CollectionTally()
        self._node = node
        self._quorums = peers.quorums
        self._volume = volume
        self._window_us = window_us
        self._pool = pool
        self._clock = clock
        self._others = OtherNodes(node, peers)
        self._knowledge = knowledge
        self._strays = StrayBlocks(node, self._others, peers.quorums, knowledge.remembers)
        self._walk = Walk(_AFTER_OBJECTS, tally=self.tally, fraction=fraction_below)
        self._halvings = 0  # passes since the pool got short
        self._is_passing = False
        self._decisions: tuple[LetGo, ...] = ()
        self._decided = Event()

    def let_go(self, decisions: tuple[LetGo, ...]) -> None:
        """Go by these decisions of the administrator's from now on."""
        self._decisions = widest(decisions)
        self._decided.announce()

    async def run(self, host: Host) -> None:
        """Collect from time to time, and whenever the history pool is short."""
        await Spawn(partial(carry_on, host, self._relieve))
        await Spawn(partial(carry_on, host, self._carry_out))
        while True:
            while not self._knows_time(await Now()):
                await Pause(limits.COLLECT_PRESSED_US)
            if not self._pool.is_short():
                await self._pass(host, short=False)
            await Pause(limits.COLLECT_EVERY_US)

    async def _relieve(self, host: Host) -> None:
        """Collect while the history pool is short; at growing intervals if nothing is found."""
        while True:
            self._halvings = 0
            pause_us = limits.COLLECT_PRESSED_US
            while self._pool.is_short():
                before = self.tally.object_versions + self.tally.block_versions
                await self._pass(host, short=True)
                found = self.tally.object_versions + self.tally.block_versions > before
                if found or self._halvings <= _HALVINGS:
                    pause_us = limits.COLLECT_PRESSED_US
                else:
                    pause_us = min(2 * pause_us, limits.COLLECT_EVERY_US)
                await Pause(pause_us)
            await Wait(self._pool.shortage)

    async def _carry_out(self, host: Host) -> None:
        """Let go what the administrator has decided, until a pass finds nothing of it any more."""
        done: set[LetGo] = set()
        while True:
            pause_us = limits.COLLECT_PRESSED_US
            while not done.issuperset(self._decisions):
                for decision in self._decisions:
                    if decision not in done and await self._is_carried_out(host, decision):
                        done.add(decision)
                await Pause(pause_us)
                pause_us = min(2 * pause_us, limits.COLLECT_LET_GO_US)
            await Wait(self._decided)

    async def _is_carried_out(self, host: Host, decision: LetGo) -> bool:
        """Make a pass for one decision. True if there was nothing left of what it lets go."""
        before = self.tally.object_versions + self.tally.block_versions
        is_complete = await self._pass(host, decision=decision)
        return is_complete and self.tally.object_versions + self.tally.block_versions == before

    # --- one pass ----------------------------------------------------------------------------

    async def _pass(
        self, host: Host, *, short: bool = False, decision: LetGo | None = None
    ) -> bool:
        """False if it did not look at everything that it is about."""
        if self._is_passing:
            return False
        self._is_passing = True
        try:
            return await self._pass_over_all(host, short=short, decision=decision)
        finally:
            self._is_passing = False

    def _knows_time(self, now_us: int) -> bool:
        """True if peers confirm this node's clock: one that is ahead makes young versions old."""
        return self._clock is None or self._clock.is_confirmed(now_us)

    async def _pass_over_all(self, host: Host, *, short: bool, decision: LetGo | None) -> bool:
        now_us = await Now()
        knows_time = self._knows_time(now_us)
        if self._clock is not None:
            now_us -= self._clock.jumped_ahead_us(now_us, self._window_us)
        horizon_us = now_us - self._window_us
        if (horizon_us <= 0 and decision is None) or not knows_time:
            return False  # the time is unknown: any version may be needed
        if not await self._knows_snapshots(host):
            return False
        look_up = partial(self._facts, since_us=horizon_us)
        facts = await look(host, look_up)
        if facts is None:
            return False
        pressure_us, window_us = 0, self._window_us
        if decision is not None:
            pressure_us = decision.before_s * limits.SECOND_US
            if pressure_us > now_us - limits.LET_GO_SETTLED_US:
                return False  # clients may still give versions earlier times
            horizon_us, window_us = pressure_us, now_us - pressure_us
        elif short:
            # The oldest first: this pass removes the older half of the past, the next one the older
            # half of the rest.
            left_us = max(horizon_us - facts.created_us, 0)
            left_us >>= self._halvings + 1
            pressure_us = horizon_us - (left_us if self._halvings < _HALVINGS else 0)
            self._halvings += 1
            self.tally.pressed += 1
        if decision is None:
            self.tally.pressure_us = pressure_us
        scope = Scope(Retention(now_us, window_us, (), (), pressure_us), decision)
        complete = await self._walk.one_pass(host, partial(self._collect_page, scope, look_up))
        if short or decision is not None:
            young_us = limits.COVERED_WITHIN_US + limits.CLOCKS_AGREE_US
            before_us = min(horizon_us, now_us - young_us)
            removed = await self._strays.remove(host, before_us, partial(self._give_way, host))
            self.tally.block_versions += removed.versions
            self.tally.block_bytes += removed.volume
        return complete

    async def _knows_snapshots(self, host: Host) -> bool:
        """True if a quorum, this node included, has forgotten nothing of the volume, and has the
        latest version of it that is here; perhaps after this node has taken over what it lacked.

        Then that is established, and so is nothing later: this node knows each snapshot that was
        made before. One that is made from now on is of a time within the window, or else the walks
        end that do not know it.
        """
        if await self._is_agreed(host):
            return True
        caught_up = await self._knowledge.catch_up(host, self._volume)
        return caught_up and await self._is_agreed(host)

    async def _is_agreed(self, host: Host) -> bool:
        """True if a quorum has the latest version of the volume that this node has."""
        volume = self._volume
        if not self._knowledge.remembers(volume):
            return False
        head = await look(host, lambda view: Replica(view, volume).head)

        def enough(replies: dict[NodeId, HistoryReply]) -> bool:
            alike = [node for node, reply in replies.items() if shows(reply, head)]
            return self._quorums.is_quorum(Nodes.of([self._node, *alike]))

        request = HistoryRequest(volume, b"")
        return enough(await self._others.ask(request, HistoryReply, enough=enough))

    async def _collect_page(
        self,
        scope: Scope,
        look_up: Callable[[StorageView], Facts | None],
        host: Host,
        after: bytes,
    ) -> tuple[bytes, bool] | None:
        """Collect from a page of the objects that follow `after`; None if the volume is unknown."""
        facts = await look(host, look_up)
        if facts is None:
            return None
        retention = replace(scope.retention, snapshots_us=facts.snapshots_us)
        scope = scope._replace(retention=retention)
        listed, heads, until = await look(host, partial(self._page, after=after, scope=scope))
        await self._settle(host, after, heads)
        complete = True
        for name in listed:
            complete &= await self._collect(host, name, scope, facts)
        await self._give_way(host)
        return until, complete

    def _facts(self, view: StorageView, *, since_us: int) -> Facts | None:
        """What counts of the volume, if the window began then; None if there is none here."""
        replica = Replica(view, self._volume)
        state = _past_at(replica, since_us)
        try:
            created_us = record_of(replica.workspace).created_us
            times = set(times_of_snapshots(replica.workspace))
            if state is not None:
                times.update(times_of_snapshots(state))
        except Refusal:
            return None
        except UNREADABLE as error:
            raise DamagedRow(self._volume, str(error)) from error
        return Facts(replica.head, tuple(sorted(times)), created_us)

    def _go_on(
        self, walk: ObjectWalk | BlockWalk, facts: Facts, view: StorageView
    ) -> tuple[bool, list[Write]]:
        """A step of a walk. False if snapshots have been made that it does not know."""
        volume = Replica(view, self._volume)
        if volume.head != facts.head:
            made = set(times_of_snapshots(volume.workspace)).difference(facts.snapshots_us)
            if made:
                return False, []
        return True, walk.step(view)

    def _page(
        self, view: StorageView, *, after: bytes, scope: Scope
    ) -> tuple[list[ObjectId], dict[ObjectId, LogicalTimestamp], bytes]:
        """A page of objects: those with versions that may go, their heads, and the last key.

        Only those heads are given of which it is not known yet whether they are established.
        """
        horizon_us, short = scope.retention.horizon_us, bool(scope.retention.pressure_us)
        keys = tuple(
            islice(view.keys(Table.OBJECT, after + b"\0", _AFTER_OBJECTS), limits.COLLECT_OBJECTS)
        )
        until = bytes(keys[-1]) if len(keys) == limits.COLLECT_OBJECTS else _AFTER_OBJECTS
        listed: list[ObjectId] = []
        heads: dict[ObjectId, LogicalTimestamp] = {}
        for key in keys:
            name = ObjectId(bytes(key))
            replica = Replica(view, name)
            is_sweep_due = 0 < replica.row.unswept_us <= horizon_us
            if (
                is_sweep_due
                or (
                    (
                        short
                        or any(
                            not policy.is_keep_all for policy in self._policies(replica, horizon_us)
                        )
                    )
                    and _has_superseded(replica, horizon_us)
                )
            ) and scope.is_about(replica):
                listed.append(name)
                latest = replica.history.latest
                if replica.row.established < latest and time_of(latest) <= horizon_us:
                    heads[name] = latest
        return listed, heads, until

    def _policies(self, replica: Replica, horizon_us: int) -> tuple[Policy, ...]:
        """The object's policies: the present one, and the one when the window began."""
        found = [replica.workspace.get(RETENTION_KEY)]
        if found[0] is not None:
            state = _past_at(replica, horizon_us)
            found.append(None if state is None else state.get(RETENTION_KEY))
        return tuple(map(_policy, found))

    async def _settle(
        self, host: Host, after: bytes, heads: dict[ObjectId, LogicalTimestamp]
    ) -> None:
        """Ask the peers which of these heads are established, and record those."""
        if not heads:
            return
        replies = await self._others.ask(CatalogueRequest(after), CatalogueReply)
        for name, latest in heads.items():
            if settled_everywhere(name, latest, replies, self._node, self._quorums):
                host.arrange(partial(establish, name, latest))

    async def _collect(self, host: Host, name: ObjectId, scope: Scope, facts: Facts) -> bool:
        """Remove the versions of one object, and of its blocks, that may go.

        False if it has ended early, because a snapshot has been made.
        """
        retention = scope.retention
        policies: tuple[Policy, ...] = ()
        if scope.decision is None:
            policies = await look(
                host, lambda view: self._policies(Replica(view, name), retention.horizon_us)
            )
        retention = replace(retention, policies=policies)
        if not await step(host, partial(_begin, name, retention.horizon_us)):
            return True
        walk = ObjectWalk(
            name,
            retention.keeps,
            horizon_us=retention.horizon_us,
            may_go=scope.lets_version_go,
        )
        while not walk.done:
            if not await step(host, partial(self._go_on, walk, facts)):
                return False
            await self._give_way(host)
        self.tally.object_versions += walk.removed
        if kind_of(name) != ObjectKind.INODE:
            return True
        blocks = BlockWalk(name, horizon_us=retention.horizon_us, may_go=scope.lets_block_go)
        while not blocks.done:
            if not await step(host, partial(self._go_on, blocks, facts)):
                return False
            await self._give_way(host)
        self.tally.block_versions += blocks.removed
        self.tally.block_bytes += blocks.removed_bytes
        return True

    async def _give_way(self, host: Host) -> None:
        """Pause; longer, but for a limited time, while clients are active."""
        await give_way(host, limits.COLLECT_YIELD_US)
        await Pause(limits.COLLECT_PAUSE_US)


def _begin(name: ObjectId, horizon_us: int, view: StorageView) -> tuple[bool, list[Write]]:
    """Record that versions may be missing, before one is removed. False if none may be."""
    replica = Replica(view, name)
    if established_at(replica, horizon_us) is None:
        return False, []
    if replica.row.collected_us >= horizon_us:
        return True, []
    row = msgspec.structs.replace(replica.row, collected_us=horizon_us)
    return True, [Write(Table.OBJECT, name, encode(row))]


def _has_superseded(replica: Replica, horizon_us: int) -> bool:
    """False if certainly no version was superseded, as for most objects: a quick check."""
    view, name = replica.view, replica.object
    versions = view.keys(Table.VERSION, name, name + after_keys(len(ZERO)))
    second = next(islice(versions, 1, None), None)
    if second is not None and time_of(LogicalTimestamp(second[len(name) :])) <= horizon_us:
        return True
    if kind_of(name) != ObjectKind.INODE:
        return False
    keys = tuple(
        islice(view.keys(Table.BLOCK, name, name + _AFTER_BLOCKS), limits.COLLECT_BLOCKS + 1)
    )
    if len(keys) > limits.COLLECT_BLOCKS:
        return True
    if any(one[:BLOCK_ID_BYTES] == other[:BLOCK_ID_BYTES] for one, other in pairwise(keys)):
        return True
    encoded = replica.workspace.get(ATTRIBUTES_KEY)
    if not keys or encoded is None:
        return False
    attributes = attributes_in(replica, encoded)
    return not attributes.links or attributes.layout is None or len(attributes.layout.ranges) > 1


def _past_at(replica: Replica, at_us: int) -> Workspace | PastState | None:
    looked, version = newest_at(replica, at_us, b"")
    return state_at(replica, version) if looked is Looked.FOUND else None


def _policy(stored: bytes | None) -> Policy:
    """The policy that is stored with an object; an unreadable one keeps everything."""
    if stored is None:
        return KEEP_ALL
    try:
        return parse_policy(stored.decode("ascii"))
    except (UsageError, UnicodeDecodeError):
        return KEEP_ALL
