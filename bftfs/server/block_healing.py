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

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, pairwise
from typing import NamedTuple

from bftfs import limits
from bftfs.asking.ask import Asking
from bftfs.asking.refusal import Refused
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.conversation import Compute, Delivery, Now, Pause, Send, Together
from bftfs.crypto.digest import LIFE_DIGEST, AuthenticatorKeys, inventory_digest, life_of
from bftfs.errors import QuorumUnavailable
from bftfs.identifiers import BLOCK_ID_BYTES, BlockId, NodeId
from bftfs.read_write import version_row
from bftfs.read_write.messages import (
    InventoryReply,
    InventoryRequest,
    ReadReply,
    ReadRequest,
)
from bftfs.read_write.placement import fragment_index, rotation_of
from bftfs.read_write.responses import Responses, note_verdict
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import (
    VERSION_KEY_BYTES,
    VERSIONS_END,
    BlockTimestamp,
    successor_of,
    timestamp_of,
)
from bftfs.read_write.validation import validate
from bftfs.read_write.version_row import Own
from bftfs.server.recovery import BLOCKS, Recovery
from bftfs.server.step import Host
from bftfs.server.worker import (
    HealingTally,
    HealingWalk,
    OtherNodes,
    Throttle,
    fraction_below,
    healing_throttle,
    in_chunks,
    look,
    passes,
)
from bftfs.storage import StorageView, Table, Write

_KEYS_PER_PAGE = 512
_PATIENCE_US = limits.SECOND_US  # how long the hosts of one version are waited for
_LOST_US = 50_000  # how often a node that has lost its store looks if its new life has begun


# --- one version --------------------------------------------------------------------------------


NEEDLESS = Own(CrossChecksum(b""), b"")  # no reader will ever need the version


async def rebuild(
    session: Session, block: BlockId, timestamp: BlockTimestamp, hosts: Sequence[NodeId], me: NodeId
) -> Own | None:
    """This node's own part of a version that `hosts` list; None if it cannot be made now.

    NEEDLESS if the version is poisonous, or if all hosts have answered and fewer than m of them
    have a fragment. Then it is incomplete: at least QC - t >= m hosts of a complete version neither
    lie nor rebuild their own store. [PASIS (3.5)] (If nodes waited for each other's fragments of
    an incomplete version, they would wait for ever.)
    """
    peers, thresholds = session.peers, session.thresholds
    rotation, m = rotation_of(block, thresholds.N), thresholds.m
    others = tuple(node for node in session.by_fragment[rotation] if node in hosts and node != me)
    responses = Responses(thresholds, rotation)
    request = ReadRequest(block, successor_of(timestamp), want_data=True, history=0)
    now_us = await Now()
    order, probes = peers.order(others, now_us)
    asking = Asking(
        peers,
        order,
        lambda node: Send(node, request),
        subject="fragments of a version",
        now_us=now_us,
        first=m,
        probes=probes,
        pace=peers.reads,
        needed=lambda _: len(responses.fragments(timestamp)) >= m,
        patience_total_us=_PATIENCE_US,
    )
    unclear = False  # True: a node that sent no fragment may send it later

    def take(reply: Delivery) -> None:
        nonlocal unclear
        node, message = reply.node, reply.message
        if isinstance(message, ReadReply):
            verdict = responses.add(
                node, message, reply.body, before=request.before, want_data=True, lists=False
            )
            note_verdict(peers, node, verdict, now_us)
        else:
            unclear |= not isinstance(message, Refused) or message.may_pass
        if len(responses.fragments(timestamp)) >= m:
            asking.enough()
        elif not asking.is_waiting or not responses.has_fragment_of(node, timestamp):
            asking.more()

    try:
        await asking.collect(take)
    except QuorumUnavailable:
        return None
    fragments = responses.fragments(timestamp)
    if len(fragments) < m:
        return None if unclear else NEEDLESS
    checksum = responses.cross_checksum(timestamp)
    valid = await Compute(partial(validate, session.code, checksum, fragments))
    if valid is None:
        return NEEDLESS
    return Own(checksum, memoryview(valid.fragments[fragment_index(block, me, thresholds.N)]))


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
        await passes(host, self.throttle, self._pass)

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
        horizon, hosts = await self._compare(after, page)
        if horizon is None:
            return None
        lacking = sorted(hosts.keys() - set(page.keys))
        missed = []
        if lacking:
            missed = await look(
                host, lambda view: [key for key in lacking if self._wants(view, key)]
            )
        self.tally.compared += len(page.keys)
        self.tally.lacking += len(lacking)
        failed = self.tally.failed
        await in_chunks(host, self.throttle, missed, partial(self._rebuild, host, hosts))
        return horizon, self.tally.failed == failed

    # --- the store, in steps -----------------------------------------------------------------

    def _page(self, view: StorageView, *, after: bytes) -> _Page:
        """The whole versions (with fragment) in the page that follows `after`."""
        listed = tuple(islice(view.keys(Table.BLOCK, after + b"\0", VERSIONS_END), _KEYS_PER_PAGE))
        until = listed[-1] if len(listed) == _KEYS_PER_PAGE else VERSIONS_END
        whole = frozenset(view.keys(Table.FRAGMENT, after + b"\0", until + b"\0"))
        return _Page(tuple(key for key in listed if key in whole), until)

    def _store(self, key: bytes, own: Own, view: StorageView, now_us: int) -> list[Write]:
        """Store a rebuilt part, unless it has been stored meanwhile."""
        index = fragment_index(BlockId(key[:BLOCK_ID_BYTES]), self._node, self._thresholds.N)
        changes = version_row.brought(view, key, own, index, now_us)
        if changes:
            self.tally.rebuilt += 1
            self.tally.rebuilt_bytes += len(own.fragment) + len(own.cross_checksum)
        return version_row.stored(view, changes)

    # --- the peers ---------------------------------------------------------------------------

    async def _compare(
        self, after: bytes, page: _Page
    ) -> tuple[bytes | None, dict[bytes, list[NodeId]]]:
        """Up to which key the peers' listings reach; and the hosts of versions that QC - t list.

        The key is None if too few peers answer to know of all complete versions. Listings of b
        peers may end before it: those peers are asked about each version on which that depends.
        """
        replies = await self._listings(after, page)
        if replies is None:
            return None, {}
        bounds: list[bytes] = []
        hosts: dict[bytes, list[NodeId]] = {}
        for node, reply in replies.items():
            bounds.append(reply.keys[-1] if reply.more else page.until)
            for key in page.keys if reply.same else reply.keys:
                hosts.setdefault(key, []).append(node)
        horizon = sorted(bounds)[self._thresholds.b] if bounds else page.until
        least = self._thresholds.repairable
        for key in sorted(key for key in hosts.keys() - set(page.keys) if key <= horizon):
            if len(hosts[key]) < least <= len(hosts[key]) + sum(bound < key for bound in bounds):
                replies = await self._listings(_before(key), _Page((), key))
                if replies is None:
                    return None, {}
                hosts[key] = [node for node, reply in replies.items() if key in reply.keys]
        return horizon, {
            key: nodes for key, nodes in hosts.items() if len(nodes) >= least and key <= horizon
        }

    async def _listings(self, after: bytes, page: _Page) -> dict[NodeId, InventoryReply] | None:
        """What peers list from `after` to the page's end; None if too few answer."""
        proof = self._keys.make(LIFE_DIGEST) if self.recovery.rebuilding else b""

        def counts(reply: InventoryReply) -> bool:
            knows_life = not proof or reply.life >= life_of(proof)
            return _is_listing(after, page.until, reply) and knows_life

        request = InventoryRequest(after, page.until, inventory_digest(page.keys), proof)
        replies = await self._others.ask(request, InventoryReply, counts)
        t, others = self._thresholds.t, len(self._others.nodes)
        if not proof:
            return replies if len(replies) >= others - t else None
        # While it recovers, the node itself is one of the t.
        needed = others - max(t - 1, 0)
        remembering = {node: reply for node, reply in replies.items() if reply.remembers}
        makes_do = self.recovery.is_making_do or len(replies) - len(remembering) > others - needed
        if not makes_do:
            return remembering if len(remembering) >= needed else None
        # More than t have forgotten something: see `.contradictions`.
        enough = len(replies) >= others - t
        self.recovery.note_asked(enough=enough, makes_do=True)
        return replies if enough else None

    async def _rebuild(
        self, host: Host, hosts: dict[bytes, list[NodeId]], keys: Sequence[bytes]
    ) -> int:
        """Rebuild versions and have them stored; returns how many bytes were fetched."""
        made = await Together(
            tuple(
                partial(
                    rebuild,
                    self._session,
                    BlockId(key[:BLOCK_ID_BYTES]),
                    timestamp_of(key),
                    hosts[key],
                    self._node,
                )
                for key in keys
            )
        )
        volume = 0
        for key, own in zip(keys, made, strict=True):
            if own is None:
                self.tally.failed += 1
                continue
            self.tally.lacking -= 1
            if own is not NEEDLESS:
                volume += self._thresholds.m * len(own.fragment)
                host.arrange(partial(self._store, key, own))
        return volume


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
