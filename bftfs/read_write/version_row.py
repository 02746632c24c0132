"""A version's row in `Table.BLOCK`: what a node keeps of it besides the fragment.

    flags (1 byte), cross-checksum (N digests), and with `DATED` the time of verification (8 bytes)

That time is written with the flag that it belongs to, in the row that is rewritten for it anyway.
Rows of stores that did not keep it are read like others; of these a node knows that it has verified
them, and not since when.

What is stored of a version changes by `added` and `stored` only, which move its author's account by
as much. Flags and times are not counted, and may be written without them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from bftfs.coding import cross_checksum
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.crypto.digest import DIGEST_BYTES, verifier_of
from bftfs.identifiers import ClientId
from bftfs.read_write.timestamp import BlockTimestamp, timestamp_of
from bftfs.server import room
from bftfs.storage import StorageView, Table, Write

VERIFIED = 0x01  # flag: this node has verified the version [LazyVer §3.8.1]
COLLECTED_BELOW = 0x02  # flag: versions that came right before it were collected here
DATED = 0x04  # flag: the row ends with the time at which it was verified

_TIME_BYTES = 8
_LATEST_US = (1 << 63) - 1  # that a message can tell


@dataclass(frozen=True, slots=True)
class Own:
    """A node's own part of a version."""

    cross_checksum: CrossChecksum
    fragment: bytes | memoryview


class RowChange(NamedTuple):
    """What a node keeps of a version from now on; no row: nothing."""

    key: bytes
    row: bytes | None = None
    fragment: bytes | memoryview | None = None


def unverified(checksum: CrossChecksum, *, before: bytes | None = None) -> bytes:
    """The row of a version that this node takes from a writer; `before` is the one it replaces."""
    return bytes((_lasting(before),)) + checksum


def verified(checksum: CrossChecksum, now_us: int, *, before: bytes | None = None) -> bytes:
    """The row of a version that this node has verified now; `before` is the one it replaces."""
    stamp = min(max(now_us, 0), _LATEST_US).to_bytes(_TIME_BYTES, "big")
    return bytes((_lasting(before) | VERIFIED | DATED,)) + checksum + stamp


def volume(row: bytes | None, fragment: bytes | memoryview | None) -> int:
    """The bytes for which a version's author pays; none for a fragment that lacks its row."""
    if row is None:
        return 0
    return len(checksum_of(row)) + (0 if fragment is None else len(fragment))


def added(
    view: StorageView,
    key: bytes,
    author: ClientId,
    checksum: CrossChecksum,
    fragment: bytes | memoryview,
) -> list[Write]:
    """The writes that store a version of which this node has no row. Its author pays for it."""
    return [
        Write(Table.BLOCK, key, unverified(checksum)),
        Write(Table.FRAGMENT, key, fragment),
        *room.charged(view, ((author, len(checksum) + len(fragment)),)),
    ]


def stored(view: StorageView, changes: Iterable[RowChange]) -> list[Write]:
    """The writes that make all `changes` of a step, each of another version.

    Their authors pay for what they add, and get back what they remove.
    """
    writes: list[Write] = []
    charges = []
    for key, row, fragment in changes:
        before = view.get(Table.BLOCK, key)
        freed = 0 if before is None else volume(before, view.get(Table.FRAGMENT, key))
        charges.append((timestamp_of(key).client, volume(row, fragment) - freed))
        if row != before:
            writes.append(Write(Table.BLOCK, key, row))
        writes.append(Write(Table.FRAGMENT, key, fragment))
    return writes + room.charged(view, charges)


def brought(view: StorageView, key: bytes, own: Own, index: int, now_us: int) -> list[RowChange]:
    """What stores this node's part of a verified version, if it lacks or damaged it.

    `index` is the one of the fragment that belongs to this node.
    """
    before = view.get(Table.BLOCK, key)
    if before is not None and is_sound(
        before, view.get(Table.FRAGMENT, key), timestamp_of(key), index
    ):
        return []
    return [RowChange(key, verified(own.cross_checksum, now_us, before=before), own.fragment)]


def with_versions_collected_below(row: bytes) -> bytes:
    """The row, saying that versions right before it are gone."""
    return bytes((row[0] | COLLECTED_BELOW,)) + row[1:]


def checksum_of(row: bytes) -> CrossChecksum:
    """The version's cross-checksum, as it was stored."""
    return CrossChecksum(row[1:-_TIME_BYTES] if row[0] & DATED else row[1:])


def verified_us(row: bytes) -> int:
    """When this node verified the version; 0 if it has not, or does not know."""
    if row[0] & VERIFIED and row[0] & DATED:
        return min(int.from_bytes(row[-_TIME_BYTES:], "big"), _LATEST_US)
    return 0


def is_sound(row: bytes, fragment: bytes | None, timestamp: BlockTimestamp, index: int) -> bool:
    """True if the row and the fragment are what the version's timestamp binds.

    `index` is the one of the fragment that belongs to this node.
    """
    checksum = checksum_of(row)
    return (
        fragment is not None
        and len(checksum) % DIGEST_BYTES == 0
        and verifier_of(checksum) == timestamp.verifier
        and cross_checksum.matches(checksum, index, fragment)
    )


def _lasting(before: bytes | None) -> int:
    """The flags that outlive what is stored of a version: they speak of others."""
    return before[0] & COLLECTED_BELOW if before else 0
