"""Every rule about room: which writes a node takes while it is short of it. [design §8, §9, G7]

**Situation.** A node runs short of two things. Its *history pool* is the room for all versions;
collection empties it only as fast as history ages. Its *disk* may be filled to the last byte, also
by other programs. Clients may be malicious and fill either. Some writes must succeed nevertheless:
readers repair what they read, and only removals make room again.

**Rules**, by the figures that the store has measured last:

| condition | a new version of a block | an update of objects | a repair or removal |
|---|---|---|---|
| `client_bytes` are used | EDQUOT | taken | taken |
| the client's share of the pool is used | EDQUOT | taken | taken |
| 85 % of the pool (`SHORT`) | taken | taken; bytes are counted | taken; bytes are counted |
| 90 % (`SLOW`), greedy client | one attempt in 2 to 8 | taken | taken |
| 95 % (`TIGHT`), greedy client | EDQUOT | EDQUOT | a share of the overdraft |
| 100 % of the pool | ENOSPC | greedy client: ENOSPC | greedy client: a share |
| the disk is full | ENOSPC | ENOSPC | a share of the reserve |

- The share is signed, in the cluster's description: a stolen key does not fill the pool by itself.
- A client is greedy if its versions use as much as the average client's, or more.
- A share: a client gets room as long as it has had at most half of what is left. So the first gets
  a third of the whole, the next a third of the rest, and together they never use it up.
- From 85 % on, collection removes all that retention does not need. While the disk is full, the
  node's own work waits: healing, and its own fragments of versions that it verifies.
- Repairs of blocks are never refused for want of quota or pool: the version exists elsewhere.

**Accounts.** A row per client, with the bytes that its versions of blocks use: the fragments and
cross-checksums of the versions whose timestamps name the client, also if another one has sent them.
Every write that adds or removes some of that is made by `bftfs.read_write.version_row`, with the
account in the same batch. Metadata have no account: they are counted while the pool is short, so
that updates need no accounts while there is room.

**Why it is safe.** A refused write has changed nothing, and no protocol relies on a certain node to
take a write: a full node is one of the t that may fail. Steps mark writes that use the reserve
(`Ready.uses_reserve`); a client that marks more than it should only uses up its own share.

**Tests.** `tests/unit/server/test_room.py`, `tests/unit/query_update/test_full_disks.py` (must fail
without a reserve), `tests/end_to_end/test_full_disks.py`. Decision 12 tells why there is a reserve.

Concurrency: the node's loop decides; any thread may read `full`, `why_full` and the figures.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from bftfs.asking.refusal import Refused
from bftfs.conversation import Event
from bftfs.identifiers import CLIENT_ID_BYTES, ClientId
from bftfs.limits import MIB
from bftfs.storage import StorageView, Table, Write, after_keys

SHORT = 0.85  # of the pool: from here on, collection removes all that retention does not need
SLOW = 0.90  # from here on, greedy clients are slowed…
TIGHT = 0.95  # …and from here on refused, so that the rest is for the others
ROOM_BYTES = 16 * MIB  # a full disk counts as full until this much is free

_UNBUDGETED = 0.9  # the pool's share of the disk, if no size is configured
_OVERDRAFT = 1 / 16  # of the pool: what repairs and removals may use beyond it
_ATTEMPTS_MOST = 8  # of up to so many attempts of a slowed client, one is taken
_CHARGES_PER_LOOK = 64
_SHARE_PARTS = 2  # a client gets more only if it has had at most 1/2 of the rest
_ROW_BYTES = 256  # what a row takes besides key and value, half-empty pages included

_ACCOUNT_BYTES = 8
_ACCOUNT_MOST = (1 << 8 * _ACCOUNT_BYTES) - 1
_ACCOUNTS_END = after_keys(CLIENT_ID_BYTES)

# The same words at all nodes, because a client believes only what b + 1 nodes say alike.
_GREEDY = "the nodes' history pools are full, and this client's versions use most of them"
_SHARE_USED = (
    "this client's versions use their share of the nodes' room (`share` in the cluster's "
    "description); `bftfs usage` shows the administrator what holds it"
)
_POOL_FULL = (
    "the node's history pool is full, and everything in it is younger than the detection window or "
    "kept by snapshots; `bftfs usage` shows the administrator who and what holds it"
)
# To the writer this is like silence: it sends the request again after a while.
_SLOWED = Refused(errno.EAGAIN, "slowed: the node's history pool is nearly full")


class Figures(NamedTuple):
    """The room of a store, in bytes, as the store measures it."""

    live_bytes: int  # used by tables; the file's other pages are reused before it grows
    free_bytes: int  # can still be stored, without the reserve
    reserve_bytes: int  # the size of the reserve
    drawable_bytes: int  # left of the reserve, if the disk has nothing else
    objects: int = 0  # how many objects the node hosts

    @property
    def has_room_again(self) -> bool:
        """True if a disk that was full has enough room to count as not full."""
        return self.free_bytes >= min(ROOM_BYTES, self.reserve_bytes)


def used_bytes(view: StorageView, client: ClientId) -> int:
    """The account of one client."""
    stored = view.get(Table.ADMISSION, client)
    return 0 if stored is None else int.from_bytes(stored, "big")


def accounts(view: StorageView) -> Counter[ClientId]:
    """The accounts of all clients."""
    return Counter(
        {
            ClientId(name): int.from_bytes(row, "big")
            for name, row in view.scan(Table.ADMISSION, b"", _ACCOUNTS_END)
        }
    )


def charged(view: StorageView, charges: Iterable[tuple[ClientId, int]]) -> list[Write]:
    """The writes that add to accounts what a step stores of clients' versions, and removes (< 0).

    They are computed from the accounts as they are in `view`: pass all that a step adds and removes
    in one call.
    """
    by_client: dict[ClientId, int] = {}
    for client, volume in charges:
        by_client[client] = by_client.get(client, 0) + volume
    writes = []
    for client, volume in by_client.items():
        if volume:
            # It may have rotted.
            left = min(max(used_bytes(view, client) + volume, 0), _ACCOUNT_MOST)
            writes.append(Write(Table.ADMISSION, client, left.to_bytes(_ACCOUNT_BYTES, "big")))
    return writes


class ReserveShares:
    """Divides a reserve among clients: each gets a share, and none can use it up."""

    __slots__ = ("_had", "left")

    def __init__(self) -> None:
        self._had: Counter[ClientId] = Counter()
        self.left = 0  # bytes; set by the owner whenever it measures

    @property
    def given(self) -> int:
        """Bytes that all clients have got so far."""
        return self._had.total()

    def gives(self, client: ClientId, writes: Iterable[Write]) -> bool:
        """True if `client` gets room for these writes; then it is charged for them."""
        volume = sum(
            _ROW_BYTES + len(write.key) + (0 if write.value is None else len(write.value))
            for write in writes
        )
        had = self._had[client] + volume
        if had * _SHARE_PARTS > self.left:
            return False
        self._had[client] = had
        self.left -= volume
        return True

    def end(self) -> None:
        """The shortage is over: forget the shares."""
        self._had.clear()
        self.left = 0


class Room:
    """Decides which writes one node takes."""

    def __init__(self, *, client_bytes: int | None = None, pool_bytes: int | None = None) -> None:
        """At most `client_bytes` for the block versions of one client, if given.

        Without `pool_bytes`, the pool is most of what the store may occupy.
        """
        self._client_bytes = client_bytes
        self.share_of: Callable[[ClientId], float] = lambda _: 1.0  # of the pool, of one client
        self._budget_bytes = pool_bytes
        self._measure: Callable[[], Figures] | None = None
        self._charges = 0
        self._attempts: Counter[ClientId] = Counter()  # of clients that are slowed
        self._metadata: Counter[ClientId] = Counter()  # bytes added while the pool is short
        self._overdraft = ReserveShares()
        self._reserve = ReserveShares()
        self.shortage = Event()  # announced when the pool gets short, perhaps more than once
        self.live_bytes = 0  # used of the pool
        self.limit_bytes = pool_bytes or 0  # size of the pool
        self.free_bytes = 0  # that new versions can still take
        self.objects = 0  # how many objects the node hosts
        self.why_full = ""  # why the disk is full; empty if it is not

    # --- the disk ----------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """True while the disk is full: only the reserve is left."""
        return bool(self.why_full)

    def disk_is_full(self, reason: str, figures: Figures) -> None:
        """A batch did not fit. If the disk was full already, the reserve is used up, too."""
        self._reserve.left = 0 if self.full else figures.drawable_bytes
        self.why_full = reason

    def look_again(self, figures: Figures) -> None:
        """Take all writes if there is room again; otherwise measure the rest of the reserve."""
        if figures.has_room_again:
            self.why_full = ""
            self._reserve.end()
        else:
            self._reserve.left = figures.drawable_bytes

    def admits(
        self, client: ClientId, writes: Iterable[Write], *, uses_reserve: bool
    ) -> Refused | None:
        """None if the disk has room for the writes of a step; otherwise why not."""
        if not self.why_full or (uses_reserve and self._reserve.gives(client, writes)):
            return None
        return Refused(errno.ENOSPC, self.why_full)

    # --- the history pool --------------------------------------------------------------------

    def attach(self, measure: Callable[[], Figures]) -> None:
        """Use `measure`, which measures the store."""
        self._measure = measure
        self.measure()

    def measure(self) -> None:
        """Measure how much of the pool is used, and how large it is."""
        if self._measure is not None:
            figures = self._measure()
            self.live_bytes = figures.live_bytes
            self.limit_bytes = self._budget_bytes or int(
                _UNBUDGETED * (figures.live_bytes + figures.free_bytes)
            )
            self.free_bytes = max(0, min(self.limit_bytes - self.live_bytes, figures.free_bytes))
            self.objects = figures.objects

    @property
    def share(self) -> float:
        """The used share of the pool; may exceed 1."""
        return self.live_bytes / self.limit_bytes if self.limit_bytes else 0.0

    def is_short(self) -> bool:
        """True if collection has to remove all that retention does not need."""
        self.measure()
        return self.share >= SHORT

    def admits_version(self, view: StorageView, client: ClientId, volume: int) -> Refused | None:
        """None if a new version of a block is taken; otherwise why not."""
        limit = self._client_bytes
        if limit is not None and used_bytes(view, client) + volume > limit:
            return Refused(errno.EDQUOT, f"this client's versions may use {limit} bytes of a node")
        share = self._charged()
        part = self.share_of(client)
        if part < 1 and used_bytes(view, client) + volume > part * self.limit_bytes > 0:
            return Refused(errno.EDQUOT, _SHARE_USED)
        if share >= 1:
            return Refused(errno.ENOSPC, _POOL_FULL)
        if share >= SLOW and self._is_greedy(view, client, volume):
            if share >= TIGHT:
                return Refused(errno.EDQUOT, _GREEDY)
            self._attempts[client] += 1
            of = 2 + int((_ATTEMPTS_MOST - 2) * (share - SLOW) / (TIGHT - SLOW))
            if self._attempts[client] % of:
                return _SLOWED
        self._took(volume)
        return None

    def admits_update(
        self, view: StorageView, client: ClientId, writes: Sequence[Write], *, uses_reserve: bool
    ) -> Refused | None:
        """None if an update of objects is taken; otherwise why not.

        What it stores is counted only while the pool is short.
        """
        share = self._charged()
        if share < SHORT:
            self._metadata.clear()
            self._overdraft.end()
            return None
        volume = sum(len(write.value) for write in writes if write.value is not None)
        self._took(volume)
        self._metadata[client] += volume
        if share < TIGHT:
            return None
        if not self._is_greedy(view, client, 0):
            return None
        # Measured from the limit: a pool without a configured size shrinks as other programs fill
        # the disk.
        self._overdraft.left = int(_OVERDRAFT * self.limit_bytes) - self._overdraft.given
        if uses_reserve and self._overdraft.gives(client, writes):
            return None
        return Refused(errno.ENOSPC if share >= 1 else errno.EDQUOT, _GREEDY)

    def _charged(self) -> float:
        """The used share, before something is added. Measures again after some additions."""
        self._charges += 1
        if self._charges >= _CHARGES_PER_LOOK:
            self._charges = 0
            self.measure()
            self._took(0)
        return self.share

    def _took(self, volume: int) -> None:
        """`volume` bytes were added since the pool was measured."""
        self.live_bytes += volume
        if self.live_bytes >= SHORT * self.limit_bytes > 0:
            self.shortage.announce()

    def _is_greedy(self, view: StorageView, client: ClientId, volume: int) -> bool:
        """True if a client with `volume` bytes more uses at least as much as the average client."""
        used = accounts(view)
        used.update(self._metadata)
        return (used[client] + volume) * max(len(used), 1) >= used.total()


class ClientQuota:
    """Refuses new versions as the node's `Room` says.

    A version that the cluster has accepted before is not refused: if its author exceeds the limit
    by it, the author's next version is refused.
    """

    def __init__(self, room: Room) -> None:
        self._room = room

    def refusal(self, view: StorageView, client: ClientId, volume: int) -> Refused | None:
        """None if the client may write a new version of `volume` bytes; otherwise why not."""
        return self._room.admits_version(view, client, volume)
