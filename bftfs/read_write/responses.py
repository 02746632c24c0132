"""The replies to one read: which versions each node hosts, and the fragments in hand.

Pure bookkeeping over checked replies; nothing here sends or waits.

**Invariants.** For each node there is one list of versions, newest first, without gaps down to its
`depth`; the initial version ⊥ ends the list if the node has never hosted anything older. A fragment
in hand matches the cross-checksum that its version's timestamp binds. If a node sends what no
correct node sends, all that it has said is discarded, and nothing from it counts in this read.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from enum import Enum
from itertools import pairwise

from bftfs.asking.lives import Told
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes
from bftfs.coding import cross_checksum
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.coding.erasure import Buffer
from bftfs.crypto.digest import DIGEST_BYTES, Body, verifier_of
from bftfs.identifiers import NodeId
from bftfs.read_write.messages import Below, Listed, ReadReply
from bftfs.read_write.timestamp import ZERO, BlockTimestamp
from bftfs.thresholds import ReadWriteThresholds


class ReplyVerdict(Enum):
    """The kinds of replies, by what they show about their sender."""

    VALID = "valid"
    DAMAGED = "damaged"  # only the fragment is wrong: the node's disk may be damaged
    IMPOSSIBLE = "impossible"  # no correct node sends it


# Faster than to look them up:
_VALID, _IMPOSSIBLE = ReplyVerdict.VALID, ReplyVerdict.IMPOSSIBLE
_ORIGIN = Below.ORIGIN


def note_verdict(peers: Peers, node: NodeId, verdict: ReplyVerdict, now_us: int) -> None:
    """Note in `peers` what the reply says about `node`."""
    if verdict is ReplyVerdict.DAMAGED:
        peers.damaged(node, now_us)
    elif verdict is ReplyVerdict.IMPOSSIBLE:
        peers.convict(Nodes.of([node]), now_us)


class Responses:
    """The valid responses to one read of one block."""

    def __init__(self, thresholds: ReadWriteThresholds, rotation: int) -> None:
        self._N = thresholds.N
        self._b = thresholds.b
        self._rotation = rotation
        # Per node: its versions (True: verified by it), and the depth down to which these are all.
        self.hosted: dict[NodeId, dict[BlockTimestamp, bool]] = {}
        self.depth: dict[NodeId, BlockTimestamp] = {}
        self.collected: set[NodeId] = set()  # nodes that have collected what was below their depth
        self.discarded: set[NodeId] = set()
        self.damaged: dict[NodeId, ReadReply] = {}  # replies with a false fragment
        self.lives: dict[NodeId, Told] = {}  # what nodes that list versions tell of lives
        self.verified_us: dict[tuple[NodeId, BlockTimestamp], int] = {}  # since when they claim so
        # Every version that was ever shown, ascending: a stuttering client may have left thousands.
        self._shown: list[BlockTimestamp] = []
        self._seen: set[BlockTimestamp] = set()  # the same
        self._bound: dict[BlockTimestamp, CrossChecksum] = {}
        self._fragments: dict[BlockTimestamp, dict[int, Buffer]] = {}

    # --- taking replies ----------------------------------------------------------------------

    def add(
        self,
        node: NodeId,
        reply: ReadReply,
        fragment: Body,
        *,
        before: BlockTimestamp | None,
        want_data: bool,
        lists: bool,
    ) -> ReplyVerdict:
        """Take `node`'s reply to a request with `before` and `want_data`.

        A reply to a request for one fragment (not `lists`) says nothing about other versions.
        """
        if node in self.discarded:
            return _IMPOSSIBLE
        verdict = self._check(node, reply, fragment, before, want_data=want_data)
        if verdict is not _VALID:
            self.discard(node)
            if verdict is ReplyVerdict.DAMAGED:
                self.damaged[node] = reply
        elif lists:
            told = reply.lives or (0,) * self._N
            if self.lives.setdefault(node, told)[node] == told[node]:
                self._extend(node, reply, before)
            else:  # it has lost its store since it began to list
                self.drop(node)
        return verdict

    def withdraw(self, node: NodeId, candidate: BlockTimestamp, *, collected: bool) -> None:
        """`node` listed `candidate`, and no longer has it.

        From now on it counts as not hosting it; after garbage collection, as not heard.
        """
        if collected:
            self.drop(node)
            self.collected.add(node)
        elif node in self.hosted:
            self.hosted[node].pop(candidate, None)

    def _check(
        self,
        node: NodeId,
        reply: ReadReply,
        fragment: Body,
        before: BlockTimestamp | None,
        *,
        want_data: bool,
    ) -> ReplyVerdict:
        """VALIDATE, and what else must hold of a correct node's reply. [PASIS Figure 3.2]"""
        versions, checksum = reply.versions, reply.cross_checksum
        if reply.lives and len(reply.lives) != self._N:
            return _IMPOSSIBLE
        if not versions:
            possible = reply.below is Below.ORIGIN or (
                reply.below is Below.COLLECTED and before is not None
            )
            return _VALID if possible and not checksum else _IMPOSSIBLE
        newest = versions[0].timestamp
        # [PASIS §3.4.3.3] only timestamps strictly less than that given in the request count.
        if before is not None and newest >= before:
            return _IMPOSSIBLE
        if versions[-1].timestamp <= ZERO or (len(versions) > 1 and not _descends(versions)):
            return _IMPOSSIBLE
        if not want_data:
            empty = not checksum and not len(fragment)
            return _VALID if empty else _IMPOSSIBLE
        return self._check_data(node, reply, fragment)

    def _check_data(self, node: NodeId, reply: ReadReply, fragment: Body) -> ReplyVerdict:
        """The cross-checksum against the timestamp, and the fragment against the cross-checksum."""
        newest, checksum = reply.versions[0].timestamp, reply.cross_checksum
        bound = self._bound.get(newest)
        if bound is None:
            # [PASIS Figure 3.2] HASH(CC) against LT.Verifier; the verifier binds one CC.
            if len(checksum) != DIGEST_BYTES * self._N:
                return _IMPOSSIBLE
            if verifier_of(checksum) != newest.verifier:
                return _IMPOSSIBLE
            self._bound[newest] = checksum
        elif checksum != bound:
            return _IMPOSSIBLE
        # [PASIS Figure 3.2] HASH(D) against CC[S].
        index = (node - self._rotation) % self._N
        if not cross_checksum.matches(checksum, index, fragment):
            return ReplyVerdict.DAMAGED
        self._fragments.setdefault(newest, {})[index] = fragment
        if reply.versions[0].verified and reply.verified_us:
            self.verified_us[node, newest] = reply.verified_us
        return _VALID

    def _extend(self, node: NodeId, reply: ReadReply, before: BlockTimestamp | None) -> None:
        hosted, seen = self.hosted.setdefault(node, {}), self._seen
        for version in reply.versions:
            hosted[version.timestamp] = version.verified
            if version.timestamp not in seen:
                self._show(version.timestamp)
        if reply.below is _ORIGIN:
            hosted[ZERO] = False
            if ZERO not in seen:
                self._show(ZERO)
            self.depth[node] = ZERO
            return
        if reply.versions:
            self.depth[node] = reply.versions[-1].timestamp
        elif before is not None:
            self.depth.setdefault(node, before)
        if reply.below is Below.COLLECTED:
            self.collected.add(node)

    def _show(self, timestamp: BlockTimestamp) -> None:
        self._seen.add(timestamp)
        insort(self._shown, timestamp)

    def discard(self, node: NodeId) -> None:
        """`node` has sent what no correct node sends: ignore all that it says in this read."""
        self.discarded.add(node)
        self.drop(node)

    def drop(self, node: NodeId) -> None:
        """Drop all lists of `node`: the reader asks it anew."""
        self.lives.pop(node, None)
        self.hosted.pop(node, None)
        self.depth.pop(node, None)
        self.collected.discard(node)

    # --- judging -----------------------------------------------------------------------------

    def candidate(self, below: BlockTimestamp | None) -> BlockTimestamp | None:
        """The greatest version strictly below `below` that a valid response shows."""
        shown = self._shown
        position = len(shown) if below is None else bisect_left(shown, below)
        while position:
            position -= 1
            candidate = shown[position]
            for hosted in self.hosted.values():
                if candidate in hosted:
                    return candidate
        return None

    def hosts(self, candidate: BlockTimestamp) -> list[NodeId]:
        """The nodes that host `candidate`: the candidate set."""
        return [node for node, hosted in self.hosted.items() if candidate in hosted]

    def heard(self, candidate: BlockTimestamp) -> list[NodeId]:
        """The nodes that have listed down to `candidate`, hence said if they host it."""
        return [node for node, depth in self.depth.items() if depth <= candidate]

    def forgetful(self, candidate: BlockTimestamp | None) -> list[NodeId]:
        """The nodes that have collected what they may have hosted down to `candidate`."""
        depth = self.depth
        return [
            node
            for node in self.collected
            if candidate is None or node not in depth or depth[node] > candidate
        ]

    def hear_anew(self, candidate: BlockTimestamp | None) -> None:
        """Drop the lists of the `forgetful`: they are asked once more."""
        for node in self.forgetful(candidate):
            self.drop(node)

    def damaged_hosts(self, candidate: BlockTimestamp) -> list[NodeId]:
        """Nodes that list `candidate`, and have sent a false fragment."""
        return [
            node
            for node, reply in self.damaged.items()
            if any(version.timestamp == candidate for version in reply.versions)
        ]

    def told(self, candidate: BlockTimestamp) -> dict[NodeId, Told]:
        """The lives that each host of a candidate knows of, as it told with its list."""
        told = {node: self.lives[node] for node in self.hosts(candidate)}
        if self.damaged:
            for node in self.damaged_hosts(candidate):
                told.setdefault(node, self.damaged[node].lives or (0,) * self._N)
        return told

    def damaged_heard(self, candidate: BlockTimestamp) -> list[NodeId]:
        """Nodes that listed down to `candidate`, and have sent a false fragment."""
        return [
            node
            for node, reply in self.damaged.items()
            if reply.below is Below.ORIGIN or reply.versions[-1].timestamp <= candidate
        ]

    def verified(self, candidate: BlockTimestamp) -> bool:
        """True if b + 1 nodes, hence a correct one, have verified it. [LazyVer §3.8.1]"""
        return sum(hosted.get(candidate, False) for hosted in self.hosted.values()) > self._b

    def fragments(self, candidate: BlockTimestamp) -> dict[int, Buffer]:
        """The fragments in hand, by index."""
        return self._fragments.get(candidate, {})

    def has_fragment_of(self, node: NodeId, candidate: BlockTimestamp) -> bool:
        """True if `node`'s own fragment is in hand."""
        return (node - self._rotation) % self._N in self.fragments(candidate)

    def cross_checksum(self, candidate: BlockTimestamp) -> CrossChecksum:
        """The cross-checksum that `candidate` binds; some fragment of it is in hand."""
        return self._bound[candidate]


def _descends(versions: tuple[Listed, ...]) -> bool:
    return all(newer.timestamp > older.timestamp for newer, older in pairwise(versions))
