"""The logical timestamp of a block's version: time, writer, and the verifier of its value.

[PASIS §3.4.2.3] validating timestamps: the hash of the cross-checksum stands in the low order bits,
so that at most one set of fragments can be written at any logical time. The writer's id stands
between time and verifier, as protocols.md 1.1 allows; nodes accept a client's writes only under its
own id, so that a version says who wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from bftfs.crypto.digest import DIGEST_BYTES, Digest, vouched_digest
from bftfs.identifiers import BLOCK_ID_BYTES, CLIENT_ID_BYTES, BlockId, ClientId
from bftfs.storage import after_keys
from bftfs.wire.codec import ClientField, DigestField, TimeField, Value

TIMESTAMP_BYTES = 8 + CLIENT_ID_BYTES + DIGEST_BYTES
VERSION_KEY_BYTES = BLOCK_ID_BYTES + TIMESTAMP_BYTES
VERSIONS_END = after_keys(VERSION_KEY_BYTES)  # greater than every `version_key`
_PARTS = Struct(f"!Q{CLIENT_ID_BYTES}s{DIGEST_BYTES}s")
_INVERTED = bytes(range(255, -1, -1))  # what each byte is when all its bits are inverted


class BlockTimestamp(Value, frozen=True, order=True):
    """Ordered by time, then writer, then verifier. [PASIS §3.4.2.3]"""

    time: TimeField
    client: ClientField
    verifier: DigestField


# The version that every node hosts of every block from the start; its value is ⊥.
ZERO = BlockTimestamp(0, ClientId(bytes(CLIENT_ID_BYTES)), Digest(bytes(DIGEST_BYTES)))


def beginning_of(time_us: int) -> BlockTimestamp:
    """The least timestamp with this time: a version is strictly below it iff its time is."""
    return BlockTimestamp(time_us, ZERO.client, ZERO.verifier)


def successor_of(timestamp: BlockTimestamp) -> BlockTimestamp:
    """The least timestamp above `timestamp`, so that strictly below it means at or below that."""
    number = int.from_bytes(encoded(timestamp), "big") + 1
    return _decoded(number.to_bytes(TIMESTAMP_BYTES, "big"))


def encoded(timestamp: BlockTimestamp) -> bytes:
    """The timestamp as bytes of fixed length that order as timestamps do."""
    return _PARTS.pack(timestamp.time, timestamp.client, timestamp.verifier)


def from_encoded(number: bytes) -> BlockTimestamp:
    """Undoes `encoded`."""
    return _decoded(number)


def version_key(block: BlockId, timestamp: BlockTimestamp) -> bytes:
    """The key of a version in a node's store: the newest version of a block has the least key."""
    return block + encoded(timestamp).translate(_INVERTED)


def digest_of(versions: Iterable[tuple[BlockId, BlockTimestamp]]) -> Digest:
    """The digest of a set of versions: a node that hosts all of them signs it as its voucher."""
    return vouched_digest(block + encoded(timestamp) for block, timestamp in versions)


def timestamp_of(key: bytes) -> BlockTimestamp:
    """The timestamp in a `version_key`."""
    return _decoded(key[BLOCK_ID_BYTES:].translate(_INVERTED))


def time_of(key: bytes) -> int:
    """The time in a `version_key`."""
    return int.from_bytes(key[BLOCK_ID_BYTES : BLOCK_ID_BYTES + 8].translate(_INVERTED), "big")


def _decoded(number: bytes) -> BlockTimestamp:
    return BlockTimestamp(*_PARTS.unpack(number))
