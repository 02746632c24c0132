"""Names of the things that the protocols talk about, and nothing else.

All identifiers are small immutable `bytes` or `int` values, so that they order, hash and encode
for free. The layout of an `ObjectId` is fixed: its first byte is the object's type, its second
byte its placement (which servers form its preferred quorum [Q/U §4.3.5]), the rest is drawn by the
creating client.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from operator import itemgetter
from typing import NewType

NodeId = NewType("NodeId", int)  # position of a storage node in the cluster description, 0 … n-1
ClientId = NewType("ClientId", bytes)  # 16 bytes: digest of the client's public key
ObjectId = NewType("ObjectId", bytes)  # 16 bytes: type, placement, 14 bytes drawn at creation
BlockId = NewType("BlockId", bytes)  # 32 bytes: ObjectId, incarnation (8), slot (1), number (7)
EpochId = NewType("EpochId", bytes)  # 16 bytes: 8 drawn, 8 that only the administrator can add
FragmentIndex = NewType("FragmentIndex", int)  # 0 … N-1; read_write/placement.py says whose

CLIENT_ID_BYTES = 16
OBJECT_ID_BYTES = 16
BLOCK_ID_BYTES = 32
EPOCH_ID_BYTES = 16
_NUMBER_BITS = 56

FIRST_EPOCH = EpochId(bytes(EPOCH_ID_BYTES))  # that of the volume key with which a cluster begins


class ObjectKind(IntEnum):
    """What an object is; the first byte of its id, so that no state is needed to know it."""

    COUNTER = 1
    VOLUME = 2
    DIRECTORY = 3
    INODE = 4


def object_id(kind: ObjectKind, *, placement: int, unique: bytes) -> ObjectId:
    """The id of an object of `kind`; `unique` is 14 bytes that no other object uses."""
    if len(unique) != OBJECT_ID_BYTES - 2:
        raise ValueError(f"an object id needs 14 unique bytes, not {len(unique)}")
    return ObjectId(bytes((kind, placement & 0xFF)) + unique)


# The kind byte of an object id (perhaps not a valid `ObjectKind`: ids come from outside).
kind_of: Callable[[ObjectId], int] = itemgetter(0)


def placement_of(identifier: ObjectId) -> int:
    """The placement byte: the preferred quorum starts at server `placement mod n`."""
    return identifier[1]


WHOLE = 0  # the slot of a whole block; the others are those of patches


def block_id(inode: ObjectId, *, incarnation: int, number: int, slot: int = WHOLE) -> BlockId:
    """The data-item that holds block `number` of `inode`, in one incarnation of its contents.

    With a `slot`, the one that holds a patch of that block.
    """
    place = slot << _NUMBER_BITS | number
    return BlockId(inode + incarnation.to_bytes(8, "big") + place.to_bytes(8, "big"))


def inode_of(block: BlockId) -> ObjectId:
    """The inode that a block belongs to."""
    return ObjectId(block[:OBJECT_ID_BYTES])


def incarnation_of(block: BlockId) -> int:
    """The incarnation of the file's contents that the block belongs to."""
    return int.from_bytes(block[16:24], "big")


def block_number_of(block: BlockId) -> int:
    """The block's position in its file, in blocks; of a patch, that of the block it lies on."""
    return int.from_bytes(block[25:32], "big")


def slot_of(block: BlockId) -> int:
    """Which patch of a block it is; WHOLE for the block itself."""
    return block[24]
