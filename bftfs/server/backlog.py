"""The possible versions of a node: those that it hosts and has not verified. [LazyVer §3.8.3, §3.9]

A version leaves the backlog when it, or a later one of its block, is verified; when it is found
poisonous; or when it is abandoned: still not complete, and so old that no node accepts it from its
author any more.

The table of high yield [LazyVer §3.9] is kept by number of versions: of the blocks that are ripe,
the one with most versions is verified first, since one verification settles all of them. Among
equals the one that was written last goes first: it is likely to be in cache still.

**Concurrency.** One thread. It lives in memory: after a restart it is filled from the store.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from bftfs import limits
from bftfs.clock_skew import is_due
from bftfs.identifiers import BlockId, ClientId
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.server.worker import retry_after_us


def _is_due(due_us: int, now_us: int) -> bool:
    return is_due(due_us, now_us, limits.VERIFY_RETRY_MOST_US)


class _Pending:
    """A block with possible versions."""

    __slots__ = ("due_us", "failures", "queued", "rank", "retry_us", "versions")

    def __init__(self) -> None:
        self.versions: dict[BlockTimestamp, None] = {}
        self.due_us = 0  # when it may be verified in idle time
        self.retry_us = 0  # before that, it is not verified on demand
        self.failures = 0  # verifications in a row that settled nothing
        self.queued = False  # True: it is in the heap
        self.rank = 0  # the number of versions under which it is listed as ripe; 0: not ripe


class Backlog:
    """Possible versions by block, by client, and by client and block."""

    def __init__(self) -> None:
        self.total = 0
        self._blocks: dict[BlockId, _Pending] = {}
        self._clients: dict[ClientId, dict[BlockId, int]] = {}
        self._totals: dict[ClientId, int] = {}
        self._excused_us: dict[ClientId, int] = {}
        self._hopeless_until_us: dict[
            ClientId, int
        ] = {}  # none of the client's blocks is worth a try before this
        self._heap: list[tuple[int, BlockId]] = []  # when blocks that are not ripe become ripe
        self._ripe: dict[int, dict[BlockId, None]] = {}  # by number of versions

    def __contains__(self, block: BlockId) -> bool:
        return block in self._blocks

    def add(self, block: BlockId, timestamp: BlockTimestamp, due_us: int) -> None:
        """A version is hosted from now on. Adding it twice changes nothing."""
        pending = self._blocks.get(block)
        if pending is None:
            pending = self._blocks[block] = _Pending()
        elif timestamp in pending.versions:
            return
        pending.versions[timestamp] = None
        client = timestamp.client
        blocks = self._clients.setdefault(client, {})
        blocks[block] = blocks.get(block, 0) + 1
        self._totals[client] = self._totals.get(client, 0) + 1
        self.total += 1
        pending.failures = 0
        pending.retry_us = 0
        self._hopeless_until_us.pop(client, None)
        self._postpone(block, pending, due_us)

    def of_client(self, client: ClientId) -> int:
        """How many possible versions are of `client`."""
        return self._totals.get(client, 0)

    def of_client_and_block(self, client: ClientId, block: BlockId) -> int:
        """How many possible versions of `block` are of `client`."""
        blocks = self._clients.get(client)
        return 0 if blocks is None else blocks.get(block, 0)

    def excuse(self, client: ClientId, now_us: int, every_us: int) -> bool:
        """True if `client` may add a version although it has too many; once in `every_us`."""
        excused_us = self._excused_us.get(client, now_us - every_us)
        if not is_due(excused_us + every_us, now_us, every_us):
            return False
        self._excused_us[client] = now_us
        return True

    @property
    def clients(self) -> int:
        """How many clients have possible versions here."""
        return len(self._clients)

    @property
    def blocks(self) -> int:
        """How many blocks have possible versions here."""
        return len(self._blocks)

    def versions(self, block: BlockId) -> tuple[BlockTimestamp, ...]:
        """The possible versions of `block`."""
        pending = self._blocks.get(block)
        return () if pending is None else tuple(pending.versions)

    # --- settling ----------------------------------------------------------------------------

    def settle(self, block: BlockId, versions: Iterable[BlockTimestamp]) -> int:
        """`versions` are not possible any more. Returns how many of them were."""
        pending = self._blocks.get(block)
        if pending is None:
            return 0
        settled = 0
        for timestamp in versions:
            if timestamp not in pending.versions:
                continue
            del pending.versions[timestamp]
            settled += 1
            client = timestamp.client
            blocks = self._clients[client]
            blocks[block] -= 1
            self._totals[client] -= 1
            if not blocks[block]:
                del blocks[block]
                if not blocks:
                    del self._clients[client], self._totals[client]
                    self._excused_us.pop(client, None)
                    self._hopeless_until_us.pop(client, None)
        self.total -= settled
        if settled:
            self._unlist(block, pending)
            if not pending.versions:
                del self._blocks[block]
            elif not pending.queued:
                self._postpone(block, pending, pending.due_us)
        return settled

    def failed(self, block: BlockId, now_us: int) -> None:
        """A verification has settled nothing: the next one is due after a growing interval."""
        pending = self._blocks.get(block)
        if pending is not None:
            pending.retry_us = now_us + retry_after_us(pending.failures)
            pending.failures += 1
            self._postpone(block, pending, pending.retry_us)

    def postpone(self, block: BlockId, due_us: int) -> None:
        """`block` is being verified: it is not ripe again before `due_us`."""
        pending = self._blocks.get(block)
        if pending is not None:
            self._postpone(block, pending, due_us)

    def hasten(self, block: BlockId, due_us: int) -> None:
        """Verification of `block` is due at `due_us` if it was due later."""
        pending = self._blocks.get(block)
        if pending is not None and not pending.rank and due_us < pending.due_us:
            self._postpone(block, pending, due_us)

    # --- choosing ----------------------------------------------------------------------------

    def fullest(self) -> int:
        """The most possible versions that one client has."""
        return max(self._totals.values(), default=0)

    def ripe(self, now_us: int, most: int) -> list[BlockId]:
        """At most `most` blocks to verify now: those that settle most versions come first."""
        self._ripen(now_us)
        chosen: list[BlockId] = []
        for rank in sorted(self._ripe, reverse=True):
            for block in reversed(self._ripe[rank]):
                if len(chosen) == most:
                    return chosen
                chosen.append(block)
        return chosen

    @property
    def next_due_us(self) -> int | None:
        """When another block becomes ripe; None if none does before the next `add`."""
        return self._heap[0][0] if self._heap else None

    def is_worthwhile(self, block: BlockId, now_us: int) -> bool:
        """True if a verification of `block` may settle something."""
        pending = self._blocks.get(block)
        return pending is not None and _is_due(pending.retry_us, now_us)

    def has_worthwhile(self, client: ClientId, now_us: int) -> bool:
        """True if `is_worthwhile` holds for a block with versions of `client`."""
        if not _is_due(self._hopeless_until_us.get(client, 0), now_us):
            return False
        earliest_us = now_us + limits.VERIFY_RETRY_US
        for block in self._clients.get(client, ()):
            retry_us = self._blocks[block].retry_us
            if _is_due(retry_us, now_us):
                return True
            earliest_us = min(earliest_us, retry_us)
        self._hopeless_until_us[client] = earliest_us
        return False

    def greatest(self, client: ClientId, now_us: int, most: int) -> list[BlockId]:
        """The blocks with most versions of `client` that are worth a try."""
        blocks = self._blocks
        worthwhile = (
            (count, block)
            for block, count in self._clients.get(client, {}).items()
            if _is_due(blocks[block].retry_us, now_us)
        )
        return [block for _, block in heapq.nlargest(most, worthwhile)]

    # -----------------------------------------------------------------------------------------

    def _postpone(self, block: BlockId, pending: _Pending, due_us: int) -> None:
        if pending.rank:
            self._unlist(block, pending)
        # A block that is due later than its entry says is put back when the entry comes up. One
        # that is due earlier needs a new entry.
        queue = not pending.queued or due_us < pending.due_us
        pending.due_us = due_us
        if queue:
            pending.queued = True
            heapq.heappush(self._heap, (due_us, block))

    def _ripen(self, now_us: int) -> None:
        heap = self._heap
        while heap and _is_due(heap[0][0], now_us):
            _, block = heapq.heappop(heap)
            pending = self._blocks.get(block)
            if pending is None or pending.rank:
                continue
            if not _is_due(pending.due_us, now_us):
                heapq.heappush(heap, (pending.due_us, block))
                continue
            pending.queued = False
            pending.rank = len(pending.versions)
            self._ripe.setdefault(pending.rank, {})[block] = None

    def _unlist(self, block: BlockId, pending: _Pending) -> None:
        if pending.rank:
            listed = self._ripe[pending.rank]
            del listed[block]
            if not listed:
                del self._ripe[pending.rank]
            pending.rank = 0
