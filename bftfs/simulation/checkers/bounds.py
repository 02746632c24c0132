"""Correct nodes accept only a bounded amount from any client or node. [design §1 G7, §4]

The records are taken at the commits of correct nodes. Bounds are those of `bftfs.limits`:

- no time that a node accepts lies further ahead of its own clock than clocks may differ, or than
  a few steps beyond what a correct node has accepted of the object, or of the block's file, before
  (and no version of a block that no correct node has accepted from its author); but if all clocks
  were set back, objects go as far ahead as the clocks were, and half as far again;
- of the barriers and copies that one client makes, a node accepts so many at once and per second;
- in a replica history that is long, no client has more than its share of incomplete updates. Beyond
  that the history takes only what others finish, and only if servers vouch that they accepted it;
- the requests that wait for peers, in all and of one principal, are no more than its fair share;
- [LazyVer §3.8.3] of one client, and of one client and block, a node takes only so many possible
  versions, and beyond that, while they cannot be verified, one in `VERIFY_EXCUSED_US`;
- [Q/U §4.3.5] of one client, a server takes updates of only so many objects that may be incomplete;
- [design §9] the versions of one client take only so many bytes of a node.

For the last three, the checker counts only what the client itself must have sent: a version of a
block for which too few nodes vouched when this node took it, or an update that too few servers had
accepted, for anybody else to bring it here. What a correct node has verified, as its disk or its
notices tell, or a quorum has accepted, is settled, whether or not this node knows. So the checker
needs none of the nodes' own counters.

Servers keep two of these counters in memory, and the time of the last exception: after a restart
of the node, a client has as much again. And one update may leave several objects incomplete.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bftfs import limits
from bftfs.identifiers import BLOCK_ID_BYTES, BlockId, ClientId, NodeId, ObjectId, inode_of
from bftfs.query_update.history import Candidate, LogicalTimestamp, client_of, time_of
from bftfs.read_write.messages import Notice
from bftfs.read_write.timestamp import BlockTimestamp, timestamp_of
from bftfs.read_write.timestamp import time_of as block_time_of
from bftfs.read_write.version_row import VERIFIED, checksum_of
from bftfs.server.block_verification import VerificationPolicy, VerificationSettings
from bftfs.simulation.checkers.candidates import Acceptance, CandidateRecord, CommitRecord
from bftfs.storage import StorageView, Table, Write


@dataclass(slots=True)
class BoundsRecord(CommitRecord):
    """Compares what correct nodes accept with the bounds."""

    repairable: int  # servers that vouch for what is finished
    believed: int = 1  # servers that report a barrier which others take
    byzantine: int = 0  # servers that vouch for anything
    borne_us: int = 0  # if all clocks were set back: how far ahead objects may go
    # The latest times of objects that correct nodes have accepted.
    _reached_us: dict[ObjectId, int] = field(default_factory=dict)
    _hosted: set[bytes] = field(default_factory=set)  # versions, by any correct node
    # Per node and client: tokens left, and when that was so. Kept apart from the servers' own.
    _allowances: dict[tuple[NodeId, ClientId], tuple[float, int]] = field(default_factory=dict)

    def accepted(
        self,
        node: NodeId,
        clock_us: int,
        acceptances: Iterable[Acceptance],
    ) -> None:
        """`node` has accepted candidates, each of an object and at the end of a history."""
        repairs: Counter[ClientId] = Counter()
        made = set()
        reached_us = self._reached_us
        times_us: dict[ObjectId, int] = {}
        for identifier, candidate, history, elsewhere in acceptances:
            timestamp = candidate.timestamp
            time_us = times_us[identifier] = time_of(timestamp)
            names = candidate.objects or (identifier,)
            reached = max(reached_us.get(name, 0) for name in names) + limits.STEPS_AHEAD_US
            if time_us > max(reached + 1, self.borne_us + limits.CLOCK_SKEW_US):
                self._require_sane(node, clock_us, time_us, identifier)
            if not (candidate.barrier or candidate.copy):
                continue
            client = client_of(timestamp)
            if timestamp not in made:  # one operation may be on several objects
                made.add(timestamp)
                repairs[client] += 1
            own = sum(client_of(each.timestamp) == client for each in history)
            vouching = self.believed if candidate.barrier else self.repairable
            if (
                len(history) > limits.HISTORY_CANDIDATES
                and own > limits.HISTORY_SHARE
                and elsewhere < vouching - self.byzantine
            ):
                self.find(
                    f"node {node} has {own} candidates of one client in a history of {len(history)}"
                )
        for identifier, time_us in times_us.items():
            reached_us[identifier] = max(reached_us.get(identifier, 0), time_us)
        for client, number in repairs.items():
            self._spend(node, client, number, clock_us)

    def hosted(self, node: NodeId, clock_us: int, writes: Iterable[Write]) -> None:
        """`node` hosts more versions of blocks."""
        for write in writes:
            table, key, value = write.table, write.key, write.value
            if table is Table.BLOCK and value is not None and bytes(key) not in self._hosted:
                self._hosted.add(bytes(key))
                block, time_us = BlockId(bytes(key[:BLOCK_ID_BYTES])), block_time_of(key)
                reached_us = self._reached_us.get(inode_of(block), 0)
                if time_us > reached_us + limits.STEPS_AHEAD_US:
                    self._require_sane(node, clock_us, time_us, block)

    def parked(self, node: NodeId, held: Mapping[ClientId, int]) -> None:
        """So many bytes of each principal's requests wait for peers at `node`."""
        total, most = sum(held.values()), max(held.values())
        allowed = limits.PARKED_BYTES + len(held) * limits.PARKED_BYTES_SURE
        if total > allowed or most > limits.PARKED_BYTES // 2:
            self.find(f"requests of {total} bytes wait at node {node}, {most} of one principal")

    def _require_sane(self, node: NodeId, clock_us: int, time_us: int, subject: bytes) -> None:
        ahead_us = time_us - clock_us
        if ahead_us > limits.CLOCK_SKEW_US:
            self.find(
                f"node {node} has accepted a time {ahead_us // 1_000} ms ahead of its clock, of "
                f"{subject.hex()[-6:]}"
            )

    def _spend(self, node: NodeId, client: ClientId, number: int, clock_us: int) -> None:
        most = float(limits.REPAIRS_BURST)
        left, since_us = self._allowances.get((node, client), (most, clock_us))
        earned = max(0, clock_us - since_us) * limits.REPAIRS_PER_SECOND / limits.SECOND_US
        left = min(most, left + earned) - number
        self._allowances[node, client] = (left, clock_us)
        if left < -1:  # the server counts in whole tokens
            self.find(f"node {node} has accepted {-left:.0f} repairs too many of one client")


Possible = dict[BlockId, set[BlockTimestamp]]


@dataclass(slots=True)
class PossibleVersionsRecord(CommitRecord):
    """The possible versions that each client has left at each correct node."""

    settings: VerificationSettings
    believed: int  # correct nodes that, with the Byzantine ones, vouch for a version
    most: int = 0  # possible versions of one client, at any node
    _possible: dict[NodeId, dict[ClientId, Possible]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    _hosts: dict[bytes, set[NodeId]] = field(default_factory=lambda: defaultdict(set))
    _verified: dict[BlockId, BlockTimestamp] = field(default_factory=dict)  # the latest
    _excused_us: dict[tuple[NodeId, ClientId], int] = field(default_factory=dict)
    _life: dict[NodeId, int] = field(default_factory=dict)
    # The latest that each node's clock has shown since the node was started: all clocks may jump
    # ahead and back, and versions that were too old meanwhile are not possible any more.
    _latest_us: dict[NodeId, int] = field(default_factory=dict)

    def committed(
        self, node: NodeId, clock_us: int, writes: Iterable[Write], *, lives: int
    ) -> None:
        """Record what `node` commits, if only that it has looked; it was started `lives` times."""
        if self.settings.policy not in {VerificationPolicy.LAZY, VerificationPolicy.COOPERATIVE}:
            return
        if self._life.get(node) != lives:  # it was restarted, and has forgotten its counts
            self._life[node] = lives
            self._possible.pop(node, None)
            self._latest_us.pop(node, None)
            self._excused_us = {key: at for key, at in self._excused_us.items() if key[0] != node}
        self._latest_us[node] = max(clock_us, self._latest_us.get(node, clock_us))
        for write in writes:
            table, key, value = write.table, write.key, write.value
            if table is not Table.BLOCK:
                continue
            block, timestamp = BlockId(bytes(key[:BLOCK_ID_BYTES])), timestamp_of(key)
            if value is None:
                self._possible[node][timestamp.client].get(block, set()).discard(timestamp)
            elif value[0] & VERIFIED:
                self._note_verified(block, timestamp)
            elif len(self._hosts[bytes(key)] - {node}) < self.believed:
                versions = self._possible[node][timestamp.client].setdefault(block, set())
                if timestamp not in versions:
                    versions.add(timestamp)
                    self._judge(node, clock_us, timestamp, block)
            self._hosts[bytes(key)].add(node)

    def noticed(self, notice: Notice) -> None:
        """A correct node tells another one what it has verified.

        It may not have committed the flag yet, or lose it in a crash; and those that it convinces
        have no version to flag if they do not host that one.
        """
        self._note_verified(notice.block, notice.verified)

    def _note_verified(self, block: BlockId, timestamp: BlockTimestamp) -> None:
        known = self._verified.get(block)
        if known is None or known < timestamp:
            self._verified[block] = timestamp

    def _judge(
        self, node: NodeId, clock_us: int, timestamp: BlockTimestamp, block: BlockId
    ) -> None:
        """Judge one more version of `block` that is not known to be complete."""
        client = timestamp.client
        total = self._settle(node, client)
        self.most = max(self.most, total)
        versions = self._possible[node][client].get(block, set())
        if timestamp not in versions:
            return  # a later one is verified: this one is superseded
        of_block = len(versions)
        if total <= 1:
            self._excused_us.pop((node, client), None)
        if total <= self.settings.client and of_block <= self.settings.block:
            return
        excused_us = self._excused_us.get((node, client))
        self._excused_us[node, client] = clock_us
        if excused_us is not None and 0 <= clock_us - excused_us < limits.VERIFY_EXCUSED_US:
            self.find(
                f"node {node} has taken {total} possible versions of one client, {of_block} of one "
                f"block, the last two of them {(clock_us - excused_us) // 1_000} ms apart"
            )

    def _settle(self, node: NodeId, client: ClientId) -> int:
        """Forget versions that are not possible any more; return how many `client` has left."""
        total = 0
        abandoned_us = self._latest_us[node] - limits.ABANDONED_US
        possible = self._possible[node][client]
        for block in list(possible):
            verified = self._verified.get(block)
            possible[block] = {
                each
                for each in possible[block]
                if (verified is None or verified < each) and each.time >= abandoned_us
            }
            total += len(possible[block])
            if not possible[block]:
                del possible[block]
        return total


@dataclass(slots=True)
class IncompleteRecord(CommitRecord):
    """The objects that may be incomplete at each correct node, by client."""

    candidates: CandidateRecord
    most_of_client: int
    believed: int  # correct nodes that, with the Byzantine ones, make others take what they have
    most: int = 0  # objects that may be incomplete because of one client, at any node
    _widest: int = 1  # objects of one update, so far
    _latest: dict[NodeId, dict[ObjectId, LogicalTimestamp]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    # The objects in `_latest`, by the client whose update is the latest there.
    _of_client: dict[tuple[NodeId, ClientId], dict[ObjectId, LogicalTimestamp]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    _greatest: dict[ObjectId, LogicalTimestamp] = field(default_factory=dict)
    _at: dict[tuple[ObjectId, LogicalTimestamp], set[Candidate]] = field(
        default_factory=lambda: defaultdict(set)
    )

    def accepted(self, node: NodeId, acceptances: Iterable[Acceptance], *, lives: int) -> None:
        """`node` has accepted candidates in the last of so many lives."""
        latest = self._latest[node]
        updates: dict[LogicalTimestamp, set[ObjectId]] = {}
        for identifier, candidate, history, _ in acceptances:
            self._at[identifier, candidate.timestamp].add(candidate)
            if candidate.timestamp == history[-1].timestamp:
                updates.setdefault(candidate.timestamp, set()).add(identifier)
        for timestamp, objects in updates.items():
            of_client = self._of_client[node, client_of(timestamp)]
            for identifier in objects:
                before = latest.get(identifier)
                if before is not None:
                    del self._of_client[node, client_of(before)][identifier]
                latest[identifier] = of_client[identifier] = timestamp
                if self._greatest.get(identifier, b"") < timestamp:
                    self._greatest[identifier] = timestamp
            self._judge(node, timestamp, objects, lives)

    def _judge(
        self, node: NodeId, timestamp: LogicalTimestamp, objects: set[ObjectId], lives: int
    ) -> None:
        """`node` has accepted an update of `objects`."""
        if not all(self._is_in_question(identifier, timestamp) for identifier in objects):
            return
        self._widest = max(self._widest, len(objects))
        # The last update was accepted below the limit, however many objects it is on.
        allowed = self.most_of_client * lives + (self._widest - 1) * (lives - 1)
        others = sum(
            identifier not in objects and self._is_in_question(identifier, each)
            for identifier, each in self._of_client[node, client_of(timestamp)].items()
        )
        self.most = max(self.most, others + len(objects))
        if others >= allowed:
            self.find(
                f"node {node} has accepted an update of a client because of whom {others} "
                "other objects were in question"
            )

    def _is_in_question(self, identifier: ObjectId, timestamp: LogicalTimestamp) -> bool:
        if self._greatest[identifier] != timestamp:
            return False
        accepted = self.candidates.accepted[identifier]
        return all(
            not (candidate.barrier or candidate.copy) and len(accepted[candidate]) <= self.believed
            for candidate in self._at[identifier, timestamp]
        )


@dataclass(slots=True)
class VolumesRecord(CommitRecord):
    """The bytes that each client's versions use at each correct node."""

    client_bytes: int
    believed: int  # correct nodes that, with the Byzantine ones, vouch for a version
    most: int = 0  # bytes of one client, at any node
    _hosts: dict[bytes, set[NodeId]] = field(default_factory=lambda: defaultdict(set))
    _taken: dict[tuple[NodeId, ClientId], dict[bytes, int]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def committed(self, node: NodeId, view: StorageView, writes: Iterable[Write]) -> None:
        """Record what `node` commits; `view` shows the store with it."""
        for write in writes:
            table, key, value = write.table, write.key, write.value
            if table is not Table.BLOCK:
                continue
            client = timestamp_of(key).client
            taken = self._taken[node, client]
            if value is None:
                taken.pop(bytes(key), None)
            elif len(self._hosts[bytes(key)] - {node}) < self.believed:
                fragment = view.get(Table.FRAGMENT, key) or b""
                taken[bytes(key)] = len(fragment) + len(checksum_of(bytes(value)))
                volume = sum(taken.values())
                self.most = max(self.most, volume)
                if volume > self.client_bytes:
                    self.find(f"the versions of one client take {volume} bytes of node {node}")
            self._hosts[bytes(key)].add(node)
