"""How a node gets back the versions of blocks that it should host and lacks. [design §7, G8]

**Theory of operation.** A node may lack versions because it was down or cut off when they were
written, because its disk has damaged them (scrubbing drops those fragments), or because it has lost
its store.

1. It walks over all versions in the order of their keys, a page at a time, and asks its peers which
   versions they host in that range. A peer with the same versions says no more than that.
2. It rebuilds each version that it lacks and QC - t peers list: it fetches m fragments, generates
   all N, checks them against the cross-checksum that the timestamp binds, and stores its own.
3. While it rebuilds a lost store, it refuses to list versions of blocks that the walk has not
   reached (`may_answer`): to say that it hosts none would deny what it has acknowledged before.
4. Then it rests on N - t peers that have stored its new life (`.lives`), and lack none of what they
   have accepted themselves. So what it acknowledged before, and its walk does not find, nobody
   counts any more. [docs/protocols-read-write.md, What a node has forgotten]

**Why it is safe.** QC - t nodes also suffice for a repair, and a rebuilt fragment is one more host,
as a repair would have made. So the version becomes no more complete than a client could make it.
Every complete version is rebuilt: QC benign nodes have it; one of them may be this node, and t - 1
others may be silent.

**Why it ends.** b liars cannot hold up the walk: silent peers are waited for only for a limited
time; a page ends where b + 1 listings reach, not at the shortest one; and a fragment is rebuilt
even if liars answer first. **Tests.** `tests/unit/server/test_healing.py`,
`tests/simulation/test_lost_disks.py`.

**Invariants.** A rebuilt fragment is validated. A walk goes on where it stopped after a restart.

**Concurrency.** One thread; one walk at a time. A page is looked at in a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from typing import NamedTuple, TypeAlias

from bftfs import limits
from bftfs.asking.ask import ask_all
from bftfs.asking.peers import Peers
from bftfs.asking.refusal import Refused
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.coding.erasure import Buffer
from bftfs.conversation import Compute, Delivery, Now, Pause
from bftfs.crypto.digest import LIFE_DIGEST, AuthenticatorKeys, Body, inventory_digest, life_of
from bftfs.identifiers import BLOCK_ID_BYTES, BlockId, NodeId
from bftfs.read_write import version_row
from bftfs.read_write.messages import (
    Below,
    FragmentsReply,
    FragmentsRequest,
    HostedPart,
    InventoryReply,
    InventoryRequest,
    Listed,
    ReadReply,
)
from bftfs.read_write.placement import fragment_index, rotation_of
from bftfs.read_write.responses import ReplyVerdict, Responses, note_verdict
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import (
    VERSION_KEY_BYTES,
    VERSIONS_END,
    timestamp_of,
)
from bftfs.read_write.validation import validate
from bftfs.read_write.version_row import Own, RowChange
from bftfs.server.recovery import BLOCKS, Recovery
from bftfs.server.step import Host
from bftfs.server.worker import (
    HealingTally,
    HealingWalk,
    OtherNodes,
    Throttle,
    clients_are_busy,
    fraction_below,
    healing_throttle,
    is_stored,
    look,
    passes,
    step,
)
from bftfs.storage import StorageView, Table, Write

_KEYS_PER_PAGE = 512
_PATIENCE_US = limits.SECOND_US  # how long the hosts of a chunk of versions are waited for
_LOST_US = 50_000  # how often a node that has lost its store looks if its new life has begun


# --- fragments of some versions -----------------------------------------------------------------


NEEDLESS = Own(CrossChecksum(b""), b"")  # no reader will ever need the version


class _Version:
    """A version that is being rebuilt, and what has come of it."""

    __slots__ = ("_block", "_code", "_lapses", "_m", "_responses", "_timestamp", "_unasked")

    def __init__(self, session: Session, key: bytes, hosts: Sequence[NodeId]) -> None:
        """`hosts` are asked in this order."""
        thresholds = session.thresholds
        self._block = BlockId(key[:BLOCK_ID_BYTES])
        self._timestamp = timestamp_of(key)
        self._code, self._m = session.code, thresholds.m
        self._unasked = list(hosts)
        self._responses = Responses(thresholds, rotation_of(self._block, thresholds.N))
        self._lapses = 0  # hosts that sent no fragment, and may send it later

    @property
    def _fragments(self) -> dict[int, Buffer]:
        return self._responses.fragments(self._timestamp)

    @property
    def is_settled(self) -> bool:
        """True if there are m fragments, or no host is left to be asked."""
        return len(self._fragments) >= self._m or not self._unasked

    def next_hosts(self) -> list[NodeId]:
        """As many hosts, not asked yet, as fragments are missing."""
        missing = self._m - len(self._fragments)
        chosen, self._unasked = self._unasked[:missing], self._unasked[missing:]
        return chosen

    def take(self, node: NodeId, part: HostedPart, fragment: Body) -> ReplyVerdict:
        """Take what `node` says it has; it counts if the timestamp binds it."""
        if not part.cross_checksum:
            return ReplyVerdict.IMPOSSIBLE if part.size else ReplyVerdict.VALID
        reply = ReadReply((Listed(self._timestamp, False),), Below.MORE, part.cross_checksum)
        return self._responses.add(node, reply, fragment, before=None, want_data=True, lists=False)

    def lapse(self) -> None:
        """A host did not answer: it may do so later."""
        self._lapses += 1

    async def own_part(self, me: NodeId, N: int, spare: int) -> Own | None:
        """The part of node `me`; None if it cannot be made now.

        NEEDLESS if the version is poisonous, or if all hosts but `spare` have answered and fewer
        than m of them have a fragment. Then it is incomplete: at least QC - t >= m hosts of a
        complete version neither lie nor rebuild their own store, and have answered. [PASIS (3.5)]
        (If nodes waited for each other's fragments of an incomplete version, or for those of a liar
        that lists it and sends none, they would wait for ever.)
        """
        fragments = self._fragments
        if len(fragments) < self._m:
            return None if self._lapses > spare else NEEDLESS
        checksum = self._responses.cross_checksum(self._timestamp)
        valid = await Compute(partial(validate, self._code, checksum, fragments))
        if valid is None:
            return NEEDLESS
        return Own(checksum, memoryview(valid.fragments[fragment_index(self._block, me, N)]))


async def gather(
    session: Session, hosts: Mapping[bytes, Sequence[NodeId]], me: NodeId
) -> dict[bytes, _Version]:
    """Fetch fragments of the versions with these keys, which `hosts` list, for node `me`.

    Each node is asked for those of many versions at once; others in place of nodes that do not
    send what the timestamps bind. Versions that do not fit in a reply are left out, if it is full
    of fragments that are what they should be; the first one never is. So a liar that sends little
    has nothing left out.
    """
    peers = session.peers
    peers.order(peers.others(me), await Now())  # a node that has answered since is willing again
    last = [node for node in peers.others(me) if not peers.willing(node)]
    versions: dict[bytes, _Version] = {}
    for key, listing in hosts.items():
        order = session.by_fragment[
            rotation_of(BlockId(key[:BLOCK_ID_BYTES]), session.thresholds.N)
        ]
        others = [node for node in order if node in listing and node != me]
        versions[key] = _Version(session, key, sorted(others, key=last.__contains__))
    settled: dict[bytes, _Version] = {}
    while versions:
        asked: dict[NodeId, list[bytes]] = {}
        for key, version in versions.items():
            for node in version.next_hosts():
                asked.setdefault(node, []).append(key)

        def judge(delivery: Delivery, now_us: int, asked: _Asked = asked) -> Sequence[bytes] | None:
            return _taken(peers, versions, asked[delivery.node], delivery, now_us)

        left_out = await ask_all(
            peers,
            {node: FragmentsRequest(tuple(keys)) for node, keys in asked.items()},
            judge,
            patience_us=_PATIENCE_US,
            silent_us=limits.HEAL_SILENT_US,
        )
        for node, keys in asked.items():
            if node not in left_out:
                for key in keys:
                    if key in versions:
                        versions[key].lapse()
                continue
            for key in left_out[node]:
                versions.pop(key, None)
        for key in [key for key, version in versions.items() if version.is_settled]:
            settled[key] = versions.pop(key)
    return settled


_Asked: TypeAlias = Mapping[NodeId, Sequence[bytes]]


def _taken(
    peers: Peers,
    versions: Mapping[bytes, _Version],
    keys: Sequence[bytes],
    delivery: Delivery,
    now_us: int,
) -> Sequence[bytes] | None:
    """Take a node's reply to a request for these fragments; the keys for which it had no room.

    None if the node may answer later, or has sent what no correct node sends instead of the rest.
    """
    node, message = delivery.node, delivery.message
    if isinstance(message, Refused):
        return None
    body = memoryview(delivery.body)
    parts = message.parts if isinstance(message, FragmentsReply) else ()
    if not 0 < len(parts) <= len(keys) or sum(part.size for part in parts) != len(body):
        note_verdict(peers, node, ReplyVerdict.IMPOSSIBLE, now_us)
        return None
    at = 0
    worst = ReplyVerdict.VALID
    for key, part in zip(keys, parts, strict=False):
        verdict = versions[key].take(node, part, body[at : at + part.size])
        at += part.size
        if verdict is not ReplyVerdict.VALID and worst is not ReplyVerdict.IMPOSSIBLE:
            worst = verdict
    left_out = keys[len(parts) :]
    if left_out and len(body) < limits.FRAGMENTS_BYTES:
        worst = ReplyVerdict.IMPOSSIBLE
    note_verdict(peers, node, worst, now_us)
    return None if left_out and worst is not ReplyVerdict.VALID else left_out


# --- all of them --------------------------------------------------------------------------------


class _Page(NamedTuple):
    """The versions in a range of keys that this node has whole, and the end of the range."""

    keys: tuple[bytes, ...]
    until: bytes


class BlockHealer:
    """Rebuilds what one node lacks, in the background."""

    def __init__(
        self,
        node: NodeId,
        session: Session,
        keys: AuthenticatorKeys,
        recovery: Recovery,
        *,
        wants: Callable[[StorageView, bytes], bool] = lambda _view, _key: True,
        throttle: Throttle | None = None,
    ) -> None:
        """`wants` is False for a version that was collected here: peers may still have it."""
        self.throttle = throttle or healing_throttle()
        self.tally = HealingTally()
        self._node = node
        self._thresholds = session.thresholds
        self._session = session
        self._keys = keys
        self.recovery = recovery
        self._wants = wants
        self._usual_bytes = limits.HEAL_BUSY_BYTES  # of a fragment, in the last chunk
        self._most = limits.FRAGMENTS_IN_REPLY  # versions in a chunk, as long as peers are prompt
        self._others = OtherNodes(node, session.peers)
        self._walk = HealingWalk(
            b"heal blocks",
            VERSIONS_END,
            throttle=self.throttle,
            tally=self.tally,
            fraction=lambda cursor: fraction_below(cursor[1:]),  # all keys have the same first byte
            rebuilding=recovery.rebuilding,
        )
        recovery.walks[BLOCKS] = self._walk.begin_anew

    def may_answer(self, block: BlockId) -> bool:
        """True if the node knows which versions of `block` it should host."""
        return block < self._walk.complete_until

    def remembers(self, until: bytes) -> bool:
        """True if the node lacks none of the versions that it has accepted, up to this key."""
        return not self.recovery.is_making_do and until <= self._walk.complete_until

    async def run(self, host: Host) -> None:
        """Heal at the start, and from time to time."""
        await passes(host, self.throttle, self._pass, self._node, self._thresholds.N)

    async def _pass(self, host: Host) -> bool:
        await self.recovery.run_begun()
        while self.recovery.is_lost:  # the healer of objects begins the new life
            await Pause(_LOST_US)
        # A complete pass misses at most versions that are being written; the next one finds them.
        complete = await self._walk.one_pass(host, self._heal_page)
        if complete:
            self.recovery.rebuilt(BLOCKS)
        return complete

    async def _heal_page(self, host: Host, after: bytes) -> tuple[bytes, bool] | None:
        """Rebuild missing versions after the key `after`, as far as the peers' listings reach."""
        page = await look(host, partial(self._page, after=after))
        horizon, hosts, spare = await self._compare(after, page)
        if horizon is None:
            return None
        lacking = sorted(hosts.keys() - set(page.keys))
        missed = []
        if lacking:
            missed = await look(
                host, lambda view: [key for key in lacking if self._wants(view, key)]
            )
        self.tally.compared += len(page.keys)
        seen = hosts.keys() | {key for key in page.keys if key <= horizon}
        self.tally.has_done(len(seen) - len(missed))
        self.tally.lacking += len(lacking)
        failed = self.tally.failed
        await self._rebuild(host, hosts, missed, spare)
        return horizon, self.tally.failed == failed

    # --- the store, in steps -----------------------------------------------------------------

    def _page(self, view: StorageView, *, after: bytes) -> _Page:
        """The whole versions (with fragment) in the page that follows `after`."""
        listed = tuple(islice(view.keys(Table.BLOCK, after + b"\0", VERSIONS_END), _KEYS_PER_PAGE))
        until = listed[-1] if len(listed) == _KEYS_PER_PAGE else VERSIONS_END
        whole = frozenset(view.keys(Table.FRAGMENT, after + b"\0", until + b"\0"))
        return _Page(tuple(key for key in listed if key in whole), until)

    def _store(
        self, parts: Sequence[tuple[bytes, Own]], now_us: int, view: StorageView
    ) -> tuple[None, list[Write]]:
        """Store rebuilt parts, except those that have been stored meanwhile."""
        changes: list[RowChange] = []
        for key, own in parts:
            index = fragment_index(BlockId(key[:BLOCK_ID_BYTES]), self._node, self._thresholds.N)
            brought = version_row.brought(view, key, own, index, now_us)
            if brought:
                changes += brought
                self.tally.rebuilt += 1
                self.tally.rebuilt_bytes += len(own.fragment) + len(own.cross_checksum)
        return None, version_row.stored(view, changes)

    # --- the peers ---------------------------------------------------------------------------

    async def _compare(
        self, after: bytes, page: _Page
    ) -> tuple[bytes | None, dict[bytes, list[NodeId]], int]:
        """Up to which key the peers' listings reach; and the hosts of versions that QC - t list.

        And how many of these hosts need not answer: so many peers fewer were silent than may be.

        The key is None if too few peers answer to know of all complete versions. Listings of b
        peers may end before it: those peers are asked about each version on which that depends.
        They may host the others as well, so they are asked for fragments of these, too: up to b of
        those that list a version may have none.
        """
        replies = await self._listings(after, page)
        if replies is None:
            return None, {}, 0
        spare = self._spare(len(replies))
        bounds: dict[NodeId, bytes] = {}
        hosts: dict[bytes, list[NodeId]] = {}
        for node, reply in replies.items():
            bounds[node] = reply.keys[-1] if reply.more else page.until
            for key in page.keys if reply.same else reply.keys:
                hosts.setdefault(key, []).append(node)
        horizon = sorted(bounds.values())[self._thresholds.b] if bounds else page.until
        least = self._thresholds.repairable
        for key in sorted(key for key in hosts.keys() - set(page.keys) if key <= horizon):
            silent = [node for node, bound in bounds.items() if bound < key]
            if len(hosts[key]) >= least:
                hosts[key] += silent
            elif len(hosts[key]) + len(silent) >= least:
                replies = await self._listings(_before(key), _Page((), key))
                if replies is None:
                    return None, {}, 0
                spare = min(spare, self._spare(len(replies)))
                hosts[key] = [node for node, reply in replies.items() if key in reply.keys]
        found = {
            key: nodes for key, nodes in hosts.items() if len(nodes) >= least and key <= horizon
        }
        return horizon, found, spare

    def _spare(self, heard: int) -> int:
        """How many more peers may be silent, if `heard` have answered."""
        return max(heard - self._needed(makes_do=self.recovery.is_making_do), 0)

    def _needed(self, *, makes_do: bool) -> int:
        """How many peers have to answer. While it recovers, the node itself is one of the t."""
        others, t = len(self._others.nodes), self._thresholds.t
        return others - (max(t - 1, 0) if self.recovery.rebuilding and not makes_do else t)

    async def _listings(self, after: bytes, page: _Page) -> dict[NodeId, InventoryReply] | None:
        """What peers list from `after` to the page's end; None if too few answer."""
        proof = self._keys.make(LIFE_DIGEST) if self.recovery.rebuilding else b""

        def counts(reply: InventoryReply) -> bool:
            knows_life = not proof or reply.life >= life_of(proof)
            return _is_listing(after, page.until, reply) and knows_life

        request = InventoryRequest(after, page.until, inventory_digest(page.keys), proof)
        replies = await self._others.ask(request, InventoryReply, counts)
        totals = {node: reply.total for node, reply in replies.items()}
        self.tally.expect(totals, self._session.peers.quorums)
        if not proof:
            return replies if len(replies) >= self._needed(makes_do=False) else None
        needed = self._needed(makes_do=False)
        remembering = {node: reply for node, reply in replies.items() if reply.remembers}
        forgetful, others = len(replies) - len(remembering), len(self._others.nodes)
        makes_do = self.recovery.is_making_do or forgetful > others - needed
        if not makes_do:
            return remembering if len(remembering) >= needed else None
        # More than t have forgotten something: see `.contradictions`.
        enough = len(replies) >= self._needed(makes_do=True)
        self.recovery.note_asked(enough=enough, makes_do=True)
        return replies if enough else None

    # --- chunks ------------------------------------------------------------------------------

    async def _rebuild(
        self,
        host: Host,
        hosts: Mapping[bytes, Sequence[NodeId]],
        missed: Sequence[bytes],
        spare: int,
    ) -> None:
        """Rebuild versions, a chunk of them at a time; `spare` of their hosts may be silent."""
        remaining = list(missed)
        while remaining:
            await self.throttle.permission()
            chunk = remaining[: self._at_once(busy=await clients_are_busy(host))]
            began_us, failed = await Now(), self.tally.failed
            found = await gather(self._session, {key: hosts[key] for key in chunk}, self._node)
            volume = await self._keep(host, found, spare)
            self._adapt(len(chunk), succeeded=self.tally.failed == failed)
            self._usual_bytes = volume // len(found) or self._usual_bytes
            remaining = [key for key in remaining if key not in found]
            self.tally.has_done(len(found))
            await self.throttle.spend(volume, began_us)

    def _at_once(self, *, busy: bool) -> int:
        """How many versions are in a chunk, if fragments are as large as the last ones were."""
        volume = limits.HEAL_BUSY_BYTES if busy else limits.FRAGMENTS_BYTES
        most = limits.HEAL_AT_ONCE if busy else self._most
        return min(max(volume // self._usual_bytes, 1), most)

    def _adapt(self, count: int, *, succeeded: bool) -> None:
        """A chunk of `count` versions came, or not all: it may be more than the links carry.

        Without this, a node behind a slow link would ask for the same again and again.
        """
        if succeeded:
            self._most = min(self._most + limits.HEAL_AT_ONCE, limits.FRAGMENTS_IN_REPLY)
        else:
            self._most = max(count // 2, limits.HEAL_AT_ONCE)

    async def _keep(self, host: Host, found: Mapping[bytes, _Version], spare: int) -> int:
        """Make this node's parts of versions and store them; returns how many bytes these have.

        Clients are served after each step. If a batch is lost meanwhile, nothing counts as stored.
        """
        lost = host.lost
        parts: list[tuple[bytes, Own]] = []
        volume = unstored = failed = 0
        for key, version in found.items():
            own = await version.own_part(self._node, self._thresholds.N, spare)
            if own is None:
                failed += 1
                continue
            if own is NEEDLESS:
                continue
            parts.append((key, own))
            unstored += len(own.fragment)
            if unstored >= limits.HEAL_STEP_BYTES:
                await step(host, partial(self._store, tuple(parts), await Now()))
                parts.clear()
                volume, unstored = volume + unstored, 0
        await step(host, partial(self._store, tuple(parts), await Now()))
        if not await is_stored(host, lost):
            failed = len(found)
        self.tally.failed += failed
        self.tally.lacking -= len(found) - failed
        return volume + unstored


def _before(key: bytes) -> bytes:
    """The greatest key of its length below `key`."""
    return max(int.from_bytes(key, "big") - 1, 0).to_bytes(len(key), "big")


def _is_listing(after: bytes, until: bytes, reply: InventoryReply) -> bool:
    """True if a correct node may have sent this reply."""
    keys = reply.keys
    if not keys:
        return not reply.more
    return (
        keys[-1] <= until
        and all(low < high for low, high in pairwise((after, *keys)))
        and all(len(key) == VERSION_KEY_BYTES for key in keys)
    )
