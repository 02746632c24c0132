"""Scrubbing: everything that a node stores is read and checked from time to time. [design §7]

The `Scrubber` walks over the tables, part by part, a page at a time. It keeps to its rate, waits
for moments in which clients are idle, and continues after a restart where it was. A part checks its
rows and marks damaged ones as lost; healing brings them back from the peers.

Versions of blocks: each stored fragment must be the one that its version's timestamp binds. A
damaged fragment is dropped. The version stays listed, since the node has acknowledged it. So the
healer finds that the fragment is missing, and makes it anew from those of the peers.

Objects:

- A replica history is what the server's own authenticator covers. [Q/U §4.3.4]
- A request that is kept for repair gives the timestamp under which it is kept. [Q/U §4.3.5]
- The changes that a version has made are in the state, or in the past where a later one has
  overwritten them: each value is stored twice.
- For the rest of a version (operation, answer, parent) there is no proof in the store. But all
  benign servers that have a version have the same. So the server asks one peer for the digests of a
  page of versions, and where one differs from its own, all peers. If one peer gives the same digest
  as its own, nothing is damaged, because a peer cannot know the digest of damaged data. If b + 1
  peers give another one, alike, the version is damaged.

What is damaged is marked; `object_healing` makes it anew. A request that is damaged is dropped:
other servers have it.

**Concurrency.** One thread; one pass at a time. A page is checked in a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol

import msgspec

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.conversation import Now, Pause
from bftfs.crypto.digest import DIGEST_BYTES, AuthenticatorKeys
from bftfs.errors import MalformedMessage
from bftfs.identifiers import BLOCK_ID_BYTES, OBJECT_ID_BYTES, BlockId, NodeId, ObjectId
from bftfs.query_update.between_nodes import attested, digest_of_version
from bftfs.query_update.history import (
    TIMESTAMP_BYTES,
    ZERO,
    LogicalTimestamp,
    is_original,
    parse_history,
)
from bftfs.query_update.messages import AttestReply, AttestRequest
from bftfs.query_update.replica import (
    NUMBER_BYTES,
    Replica,
    Version,
    is_signed,
    past_prefix,
    stamp_of,
    stored_row,
    stored_version,
)
from bftfs.read_write import version_row
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.timestamp import VERSION_KEY_BYTES, VERSIONS_END, timestamp_of
from bftfs.read_write.version_row import RowChange
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.step import Host
from bftfs.server.tally import counter, figure
from bftfs.server.worker import OtherNodes, PassTally, Throttle, Walk, give_way, look, step
from bftfs.storage import StorageView, Table, Write, after_keys
from bftfs.wire.codec import UNREADABLE, Value, encode

_SCRUBBED = b"scrubbed"  # in Table.META: when everything was read and checked last
_PLACE = b"scrub"  # in Table.META: where the pass under way is
_ROW_BYTES = 512  # assumed size of a row before any was read
_AGAIN_US = limits.HEAL_AGAIN_US  # pause after a page for which too few peers answered
_BLOCKS_PER_PAGE = 16  # each of which is read and hashed, in one step
_END = after_keys(OBJECT_ID_BYTES + TIMESTAMP_BYTES)  # after all keys of each of the tables
_ROWS_PER_PAGE = limits.VERSIONS_ATTESTED // 2  # half, since parents are attested as well
_BYTES_PER_PAGE = limits.SYNC_PAGE_BYTES


class Page(NamedTuple):
    """The result of one page."""

    until: bytes  # the last key; empty at the end of the table
    rows: int
    volume: int  # bytes read
    damaged: int


class Part(Protocol):
    """One table's share of scrubbing."""

    table: Table

    async def scrub(self, host: Host, after: bytes) -> Page | None:
        """Check the rows that follow `after`; None if peers are needed and do not answer."""


class _Place(Value, frozen=True):
    """How far a pass is, and its results so far."""

    began_us: int
    part: int = 0
    after: bytes = b""
    rows: int = 0
    volume: int = 0
    damaged: int = 0
    part_rows: int = 0
    part_volume: int = 0


_START = _Place(0)


@dataclass(slots=True)
class ScrubTally(PassTally):
    """The results of scrubbing."""

    passes: int = counter("Completed passes of scrubbing.", name="scrub_passes")
    progress: float = counter(
        "How much of the current pass is done; 1 if there is none.",
        name="scrub_progress",
        default=1.0,
    )
    place: _Place = _START  # of the current or the last pass
    bytes_to_come: int = counter("Bytes left to check in this pass.", name="scrub_bytes_to_come")
    # Since the node was started:
    checked_rows: int = counter("Rows that were read and checked.", name="scrub_rows")
    checked_bytes: int = counter("Bytes that were read and checked.", name="scrub_bytes")
    found_damaged: int = counter("Rows that were found damaged.", name="scrub_damaged")

    @figure("When the last pass of scrubbing ended.", name="scrubbed_seconds")
    def ended_s(self) -> float:
        """When the last pass ended, before or after the last restart, in seconds since 1970."""
        return self.ended_us / limits.SECOND_US

    def remaining_us(self, rate_bytes: float) -> int | None:
        """How long the current pass will take at this rate; None if it stands still."""
        if not self.under_way:
            return 0
        return round(self.bytes_to_come * limits.SECOND_US / rate_bytes) if rate_bytes else None


_decode_place = msgspec.msgpack.Decoder(_Place).decode


class _ScrubWalk(Walk):
    """A walk over all parts. A cursor is the number of a part, and a key in it."""

    _tally: ScrubTally

    async def _resume(self, _host: Host) -> tuple[bytes, bool]:
        return _cursor(self._tally.place), True

    def _keep(self, host: Host, _cursor: bytes, *, complete: bool) -> None:
        row = encode(self._tally.place)
        host.arrange(lambda _view, _now_us: [Write(Table.META, _PLACE, row)])


def _cursor(place: _Place) -> bytes:
    return bytes((place.part,)) + place.after


class Scrubber:
    """Reads and checks everything that one node stores, in the background."""

    def __init__(
        self, parts: Sequence[Part], *, report: Callable[[str, int], None] = lambda *_: None
    ) -> None:
        """`report(table, rows)` is called with the number of rows that were found damaged."""
        self.throttle = Throttle("scrub", rate_bytes=limits.SCRUB_RATE_BYTES)
        self.tally = ScrubTally()
        self._parts = tuple(parts)
        self._report = report
        self._counts: list[int] = [0] * len(self._parts)
        self._walk = _ScrubWalk(
            bytes((len(self._parts),)),
            tally=self.tally,
            fraction=self._fraction,
            throttle=self.throttle,
        )

    async def run(self, host: Host) -> None:
        """Scrub when it is due, or on request."""
        throttle, tally = self.throttle, self.tally
        await throttle.begin(host)
        tally.ended_us = await look(host, _scrubbed)
        if not tally.ended_us:  # a new store needs no scrubbing
            tally.ended_us = await Now()
            host.arrange(_scrubbed_at(tally.ended_us))
        starts = 0  # requests for a pass that have been served
        while True:
            stored = await look(host, lambda view: view.get(Table.META, _PLACE))
            if stored:
                place = _decode_place(stored)
            else:
                due_us = tally.ended_us + limits.SCRUB_EVERY_US
                await throttle.rest(max(due_us - await Now(), 0), starts)
                if throttle.starts == starts and await Now() < due_us:
                    continue
                place = _Place(await Now())
            starts = throttle.starts
            await self._pass(host, place)

    async def _pass(self, host: Host, place: _Place) -> None:
        """Scrub everything from `place` on."""
        self.tally.place = place
        self._counts = await look(host, self._count)
        self.tally.bytes_to_come = self._to_come(place)
        await self._walk.one_pass(host, self._scrub_page)
        host.arrange(_scrubbed_at(self.tally.ended_us))

    async def _scrub_page(self, host: Host, cursor: bytes) -> tuple[bytes, bool]:
        await give_way(host, limits.SCRUB_YIELD_US)
        began_us = await Now()
        tally, place = self.tally, self.tally.place
        part = self._parts[place.part]
        page = await part.scrub(host, place.after)
        if page is None:
            await Pause(_AGAIN_US)
            return cursor, True
        place = tally.place = msgspec.structs.replace(
            place,
            part=place.part if page.until else place.part + 1,
            after=page.until,
            rows=place.rows + page.rows,
            volume=place.volume + page.volume,
            damaged=place.damaged + page.damaged,
            part_rows=place.part_rows + page.rows if page.until else 0,
            part_volume=place.part_volume + page.volume if page.until else 0,
        )
        tally.bytes_to_come = self._to_come(place)
        tally.checked_rows += page.rows
        tally.checked_bytes += page.volume
        tally.found_damaged += page.damaged
        if page.damaged:
            self._report(part.table.name.lower(), page.damaged)
        await self.throttle.spend(page.volume, began_us)
        return _cursor(place), True

    def _fraction(self, _cursor: bytes) -> float:
        read = self.tally.place.volume
        in_all = read + self.tally.bytes_to_come
        return read / in_all if in_all else 0.0

    def _to_come(self, place: _Place) -> int:
        """Estimates how many bytes are left to read, from the average size of rows so far."""
        if place.part >= len(self._parts):
            return 0
        rows = max(self._counts[place.part] - place.part_rows, 0)
        of_one = place.part_volume / place.part_rows if place.part_rows else _ROW_BYTES
        return round(rows * of_one) + sum(self._counts[place.part + 1 :]) * _ROW_BYTES

    def _count(self, view: StorageView) -> list[int]:
        return [view.count(part.table) for part in self._parts]


def _scrubbed(view: StorageView) -> int:
    return int.from_bytes(view.get(Table.META, _SCRUBBED) or b"", "big")


def _scrubbed_at(now_us: int) -> Callable[[StorageView, int], list[Write]]:
    writes = [
        Write(Table.META, _PLACE, None),
        Write(Table.META, _SCRUBBED, now_us.to_bytes(8, "big")),
    ]
    return lambda _view, _now_us: writes


# --- blocks ---------------------------------------------------------------------------------------


class BlockScrubber:
    """Checks versions of blocks."""

    table = Table.BLOCK

    def __init__(self, node: NodeId, n: int, found: Callable[[], None]) -> None:
        """`found` is called when a fragment was dropped and has to be healed."""
        self._node = node
        self._n = n
        self._found = found

    async def scrub(self, host: Host, after: bytes) -> Page | None:
        """Check the versions that follow `after`."""
        page = await step(host, partial(self._page, after=after))
        if page.damaged:
            self._found()
        return page

    def _page(self, view: StorageView, *, after: bytes) -> tuple[Page, list[Write]]:
        volume = 0
        writes: list[Write] = []
        dropped: list[RowChange] = []
        rows = list(islice(view.scan(Table.BLOCK, after + b"\0", VERSIONS_END), _BLOCKS_PER_PAGE))
        for key, row in rows:
            fragment = view.get(Table.FRAGMENT, key)
            volume += len(row) + len(fragment or b"")
            if len(key) != VERSION_KEY_BYTES:  # not the key of a version
                writes.append(Write(Table.BLOCK, key, None))
                continue
            index = fragment_index(BlockId(key[:BLOCK_ID_BYTES]), self._node, self._n)
            if not version_row.is_sound(row, fragment, timestamp_of(key), index):
                dropped.append(RowChange(key, row))
        until = rows[-1][0] if len(rows) == _BLOCKS_PER_PAGE else b""
        damaged = len(writes) + len(dropped)
        return Page(until, len(rows), volume, damaged), writes + version_row.stored(view, dropped)


# --- objects --------------------------------------------------------------------------------------


def _page_of(
    view: StorageView, table: Table, after: bytes
) -> tuple[list[tuple[bytes, bytes]], int, bytes]:
    """A page of the rows that follow `after`; its volume; and its last key.

    The last key is empty at the end of the table. Number and volume of the rows are bounded.
    """
    rows: list[tuple[bytes, bytes]] = []
    volume = 0
    for key, row in view.scan(table, after + b"\0", _END):
        rows.append((bytes(key), row))
        volume += len(key) + len(row)
        if volume > _BYTES_PER_PAGE or len(rows) == _ROWS_PER_PAGE:
            return rows, volume, rows[-1][0]
    return rows, volume, b""


# --- versions -----------------------------------------------------------------------------------


class _Checked(NamedTuple):
    """The result of checking a page of versions."""

    rows: int
    volume: int
    until: bytes
    damaged: set[ObjectId]
    digests: dict[bytes, bytes]  # by key; empty for a parent that is missing


class VersionScrubber:
    """Checks versions, and with them state and past."""

    table = Table.VERSION

    def __init__(self, node: NodeId, peers: Peers, marks: ObjectHealer) -> None:
        self._quorums = peers.quorums
        self._marks = marks
        self._others = OtherNodes(node, peers)
        # The peer that has answered last comes first, and is asked first.
        after, before = self._others.nodes[node:], self._others.nodes[:node]
        self._order = [*after, *before]

    async def scrub(self, host: Host, after: bytes) -> Page | None:
        """Check the versions that follow `after`."""
        checked = await look(host, partial(_check_versions, after=after))
        damaged = checked.damaged
        if checked.digests and self._order:
            refuted = await self._refuted(checked.digests)
            if refuted is None:
                return None
            # A version that a client's request has changed or removed meanwhile is not damaged.
            still = await look(host, partial(_digests_of, tuple(refuted)))
            damaged |= {
                ObjectId(key[:OBJECT_ID_BYTES])
                for key in refuted
                if still[key] == checked.digests[key]
            }
        if damaged:
            self._marks.mark_damaged(host, damaged)
        return Page(checked.until, checked.rows, checked.volume, len(damaged))

    async def _refuted(self, digests: dict[bytes, bytes]) -> list[bytes] | None:
        """The versions of which b + 1 peers have the same digest, different from this node's."""
        unconfirmed = await self._unconfirmed_by_one(digests)
        if not unconfirmed:
            return unconfirmed
        # There may be as many parents as versions.
        request = AttestRequest(tuple(unconfirmed[: limits.VERSIONS_ATTESTED]))
        replies = await self._others.ask(
            request, AttestReply, partial(_is_attestation, len(unconfirmed))
        )
        if not self._quorums.includes_benign(Nodes.of(replies)):
            return None
        refuted = []
        for at, key in enumerate(unconfirmed):
            votes: dict[bytes, Nodes] = {}
            for node, reply in replies.items():
                digest = reply.digests[at]
                votes[digest] = votes.get(digest, NOBODY).plus(node)
            own = digests[key]
            if (not own or own not in votes) and any(
                digest and digest != own and self._quorums.includes_benign(nodes)
                for digest, nodes in votes.items()
            ):
                refuted.append(key)
        return refuted

    async def _unconfirmed_by_one(self, digests: dict[bytes, bytes]) -> list[bytes] | None:
        """The versions of which the first peer that answers has another digest."""
        keys = list(digests)
        request = AttestRequest(tuple(keys))
        for _ in self._order:
            peer = self._order[0]
            replies = await self._others.ask(
                request, AttestReply, partial(_is_attestation, len(keys)), nodes=(peer,)
            )
            if peer in replies:
                given = replies[peer].digests
                return [
                    key
                    for key, digest in zip(keys, given, strict=True)
                    if digest != digests[key] or not digest
                ]
            self._order.append(self._order.pop(0))
        return None


def _check_versions(view: StorageView, *, after: bytes) -> _Checked:
    rows, volume, until = _page_of(view, Table.VERSION, after)
    damaged: set[ObjectId] = set()
    digests: dict[bytes, bytes] = {}
    versions: dict[bytes, Version] = {}
    lacking: set[ObjectId] = set()
    for key, row in rows:
        name = ObjectId(key[:OBJECT_ID_BYTES])
        try:
            version = versions[key] = stored_version(row)
        except UNREADABLE:
            damaged.add(name)
            continue
        if version.number and not is_as_written(view, name, version):
            damaged.add(name)
        if name not in lacking and view.get(Table.OBJECT, name) is None:
            lacking.add(name)
        if not version.gap:
            digests[key] = digest_of_version(key, version)
        _check_parent(view, name, version, versions, damaged, digests)
    return _Checked(len(rows), volume, until, damaged | lacking, digests)


def is_as_written(view: StorageView, identifier: ObjectId, version: Version) -> bool:
    """True if the rows of state and past contain each change of a version of the chain.

    A change is in the head's state, unless a later version has overwritten it; then the first
    version to do so has kept it in the past.
    """
    stamp = stamp_of(version.number)
    for key, value in version.delta:
        prefix = past_prefix(identifier, key)
        row = next(
            (
                row
                for _, row in view.scan(
                    Table.PAST,
                    prefix + stamp_of(version.number + 1),
                    prefix + after_keys(NUMBER_BYTES),
                )
            ),
            None,
        )
        if row is None:
            row = view.get(Table.STATE, identifier + key)
        if value is None:
            if row is not None and row[:NUMBER_BYTES] <= stamp:
                return False
        elif row is None or row[:NUMBER_BYTES] != stamp or row[NUMBER_BYTES:] != value:
            return False
    return True


def _check_parent(
    view: StorageView,
    name: ObjectId,
    version: Version,
    versions: dict[bytes, Version],
    damaged: set[ObjectId],
    digests: dict[bytes, bytes],
) -> None:
    """Check that the parent of a version of the chain is there; if not, the peers are asked.

    They are not asked if it may have been collected here: peers may keep it longer.
    """
    if not version.number or version.gap or version.parent == ZERO:
        return
    key = name + version.parent
    parent = versions.get(key)
    if parent is None:
        stored = view.get(Table.VERSION, key)
        if stored is None:
            if not Replica(view, name).has_collected(version.parent):
                digests[key] = b""
            return
        try:
            parent = stored_version(stored)
        except UNREADABLE:
            damaged.add(name)
            return
    if parent.number != version.number - 1:
        damaged.add(name)


def _digests_of(keys: tuple[bytes, ...], view: StorageView) -> dict[bytes, bytes]:
    return {key: attested(view, key) for key in keys}


def _is_attestation(length: int, reply: AttestReply) -> bool:
    """True if a correct server can give this reply."""
    return len(reply.digests) == length and all(
        len(digest) in {0, DIGEST_BYTES} for digest in reply.digests
    )


# --- replica histories --------------------------------------------------------------------------


class HistoryScrubber:
    """Checks replica histories, and that the latest version in each is there."""

    table = Table.OBJECT

    def __init__(self, keys: AuthenticatorKeys, marks: ObjectHealer) -> None:
        self._keys = keys
        self._marks = marks

    async def scrub(self, host: Host, after: bytes) -> Page | None:
        """Check the objects that follow `after`."""
        page, damaged = await look(host, partial(self._check, after=after))
        if damaged:
            self._marks.mark_damaged(host, damaged)
        return page

    def _check(self, view: StorageView, *, after: bytes) -> tuple[Page, set[ObjectId]]:
        rows, volume, until = _page_of(view, Table.OBJECT, after)
        damaged = {
            ObjectId(key) for key, row in rows if not self._is_sound(view, ObjectId(key), row)
        }
        return Page(until, len(rows), volume, len(damaged)), damaged

    def _is_sound(self, view: StorageView, name: ObjectId, stored: bytes) -> bool:
        try:
            row = stored_row(stored)
            head = parse_history(row.history).latest_object.timestamp
            if not is_signed(self._keys, name, row):
                return False
            if head == ZERO:
                return row.number == 0
            version = view.get(Table.VERSION, name + head)
            return version is not None and stored_version(version).number == row.number
        except (*UNREADABLE, MalformedMessage):
            return False


# --- requests that are kept for repair ----------------------------------------------------------


class RequestScrubber:
    """Checks requests. (Staged rows of object sync are checked when they are used.)"""

    table = Table.REQUEST

    def __init__(self, n: int) -> None:
        self._n = n

    async def scrub(self, host: Host, after: bytes) -> Page | None:
        """Check the requests that follow `after`, and drop those that are damaged."""
        return await step(host, partial(self._check, after=after))

    def _check(self, view: StorageView, *, after: bytes) -> tuple[Page, list[Write]]:
        rows, volume, until = _page_of(view, Table.REQUEST, after)
        dropped = [
            Write(Table.REQUEST, key, None)
            for key, stored in rows
            if len(key) == TIMESTAMP_BYTES
            and not is_original(stored, LogicalTimestamp(key), n=self._n)
        ]
        return Page(until, len(rows), volume, len(dropped)), dropped
