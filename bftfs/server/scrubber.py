"""Scrubbing: everything that a node stores is read and checked from time to time. [design §7]

A scrubber walks over the tables, part by part, a page at a time: no faster than it may, waiting for
moments in which clients are idle, and going on where a restart has stopped it. A part checks its
rows and marks what is damaged as lost; healing brings it back from the peers.

**Concurrency.** One thread; one pass at a time. A page is checked in a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from bftfs import limits
from bftfs.conversation import Now, Pause
from bftfs.server.background import give_way, look
from bftfs.server.step import Host
from bftfs.server.tally import counter, figure
from bftfs.server.throttle import Throttle
from bftfs.storage import StorageView, Table, Write
from bftfs.wire.codec import Value, encode

_SCRUBBED = b"scrubbed"  # in Table.META: when everything was read and checked last
_PLACE = b"scrub"  # in Table.META: where the pass under way is
_ROW_BYTES = 512  # of one, before any was read
_AGAIN_US = limits.HEAL_AGAIN_US  # after a page for which too few peers were there


class Page(NamedTuple):
    """The result of one page."""

    until: bytes  # where the next one begins; nothing at the end
    rows: int
    volume: int  # bytes read
    damaged: int


class Part(Protocol):
    """One table's share of scrubbing."""

    table: Table

    async def scrub(self, host: Host, after: bytes) -> Page | None:
        """Check the rows that follow `after`; None if its peers are needed and do not answer."""


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


@dataclass(slots=True)
class ScrubTally:
    """The results of scrubbing."""

    passes: int = counter("Passes over all that is stored.", name="scrub_passes")
    under_way: bool = False
    began_us: int = 0  # the pass under way, or the last one
    ended_us: int = 0  # the last one, also of an earlier life of the node; 0: never
    rows: int = 0  # in that pass…
    bytes: int = 0
    bytes_to_come: int = counter("In the pass under way.", name="scrub_bytes_to_come")
    damaged: int = 0
    # …and since the node was started
    checked_rows: int = counter("Rows that were read and checked.", name="scrub_rows")
    checked_bytes: int = counter("Bytes that were read and checked.", name="scrub_bytes")
    found_damaged: int = counter("Rows that were found damaged.", name="scrub_damaged")

    @figure("When all was checked last.", name="scrubbed_seconds")
    def ended_s(self) -> float:
        """When the last pass ended, in seconds since the epoch."""
        return self.ended_us / limits.SECOND_US

    @figure("Of the pass under way; 1: none is.", name="scrub_progress")
    def progress(self) -> float:
        """Of the pass under way; 1 if there is none."""
        if not self.under_way:
            return 1.0
        in_all = self.bytes + self.bytes_to_come
        return self.bytes / in_all if in_all else 0.0

    def remaining_us(self, rate_bytes: float) -> int | None:
        """Until the pass under way is over, at this rate; None if it does not go on."""
        if not self.under_way:
            return 0
        return round(self.bytes_to_come * limits.SECOND_US / rate_bytes) if rate_bytes else None


_decode_place = msgspec.msgpack.Decoder(_Place).decode


class Scrubber:
    """Reads and checks everything that one node stores, in the background."""

    def __init__(
        self, parts: Sequence[Part], *, report: Callable[[str, int], None] = lambda *_: None
    ) -> None:
        """`report` hears of the table and the number of rows that were found damaged."""
        self.throttle = Throttle("scrub", rate_bytes=limits.SCRUB_RATE_BYTES)
        self.tally = ScrubTally()
        self._parts = tuple(parts)
        self._report = report
        self._counts: list[int] = [0] * len(self._parts)

    async def run(self, host: Host) -> None:
        """Scrub when it is due, or when people say so."""
        throttle, tally = self.throttle, self.tally
        await throttle.begin(host)
        tally.ended_us = await look(host, _scrubbed)
        if not tally.ended_us:  # what is new needs no scrubbing
            tally.ended_us = await Now()
            host.arrange(_scrubbed_at(tally.ended_us))
        starts = 0  # that this conversation has heeded
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
        """Everything from `place` on."""
        self.tally.under_way = True
        self._counts = await look(host, self._count)
        while place.part < len(self._parts):
            self._tell(place)
            await self.throttle.permission()
            await give_way(host, limits.SCRUB_YIELD_US)
            began_us = await Now()
            part = self._parts[place.part]
            page = await part.scrub(host, place.after)
            if page is None:
                await Pause(_AGAIN_US)
                continue
            place = msgspec.structs.replace(
                place,
                part=place.part if page.until else place.part + 1,
                after=page.until,
                rows=place.rows + page.rows,
                volume=place.volume + page.volume,
                damaged=place.damaged + page.damaged,
                part_rows=place.part_rows + page.rows if page.until else 0,
                part_volume=place.part_volume + page.volume if page.until else 0,
            )
            self._count_page(part, page)
            host.arrange(_at(place))
            await self.throttle.spend(page.volume, began_us)
        self._tell(place)
        self.tally.under_way = False
        self.tally.passes += 1
        self.tally.ended_us = await Now()
        host.arrange(_scrubbed_at(self.tally.ended_us))

    def _count_page(self, part: Part, page: Page) -> None:
        tally = self.tally
        tally.checked_rows += page.rows
        tally.checked_bytes += page.volume
        tally.found_damaged += page.damaged
        if page.damaged:
            self._report(part.table.name.lower(), page.damaged)

    def _tell(self, place: _Place) -> None:
        tally = self.tally
        tally.began_us, tally.rows, tally.bytes = place.began_us, place.rows, place.volume
        tally.damaged = place.damaged
        tally.bytes_to_come = self._to_come(place)

    def _to_come(self, place: _Place) -> int:
        """About how many bytes are still to be read, going by the rows that were."""
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


def _at(place: _Place) -> Callable[[StorageView, int], list[Write]]:
    return lambda _view, _now_us: [Write(Table.META, _PLACE, encode(place))]
