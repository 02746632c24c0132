"""Patches: the bytes of small writes into a large block, and how a block is composed of them.

A program that writes 4 KiB into a block of 128 KiB would have its mount write all of it, to all
nodes. Instead the mount writes a patch: a data-item of its own with the bytes that programs wrote,
and where in the block they belong. The inode names it beside the version that it lies on
(`block_names`). A reader of the block reads that version and its patches, and puts these over it in
the order in which they were named. A name has few slots; when they are used up, or so many bytes
are written that a patch would not pay, the block is written whole again, and has no patches.

A patch holds only bytes that its writer wrote, so a writer makes one without reading the block.

A patch as plaintext: the number of its extents (2 bytes), the start and length of each (4 bytes
each, ascending, disjoint), and their bytes.

Nothing here performs an effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final, TypeAlias

from bftfs import limits
from bftfs.errors import MalformedMessage
from bftfs.filesystem.block_memory import Buffer, DirtyBlock

PatchExtent: TypeAlias = tuple[int, memoryview]  # where it begins in its block, and its bytes

_COUNT: Final = Struct("!H")
_EXTENT: Final = Struct("!II")


def pays(dirty: DirtyBlock, length: int, least_saved: int) -> bool:
    """True if a patch is to be written instead of a block of so many bytes.

    `least_saved`: how many bytes less it has to be.
    """
    extents = dirty.extents()
    written = sum(stop - start for start, stop in extents)
    return (
        len(extents) <= limits.PATCH_EXTENTS
        and 2 * written <= length
        and length - written >= least_saved
    )


def encode_patch(dirty: DirtyBlock) -> bytes:
    """The patch of what was written of a block."""
    extents = dirty.extents()
    head = [_COUNT.pack(len(extents))]
    head += [_EXTENT.pack(start, stop - start) for start, stop in extents]
    return b"".join((*head, *(dirty.read(b"", start, stop) for start, stop in extents)))


def decode_patch(plaintext: bytes) -> list[PatchExtent]:
    """The extents of a patch: where each begins in its block, and its bytes.

    Raises MalformedMessage: a client that may write the file may have named anything.
    """
    if len(plaintext) < _COUNT.size:
        raise MalformedMessage("a patch without extents")
    (count,) = _COUNT.unpack_from(plaintext)
    at = _COUNT.size + count * _EXTENT.size
    if count > limits.PATCH_EXTENTS or len(plaintext) < at:
        raise MalformedMessage(f"a patch of {len(plaintext)} bytes cannot have {count} extents")
    view, extents, reached = memoryview(plaintext), [], 0
    for start, length in _EXTENT.iter_unpack(view[_COUNT.size : at]):
        if start < reached or start + length > limits.BLOCK_BYTES_MAX:
            raise MalformedMessage("extents of a patch overlap, or lie behind every block")
        extents.append((start, view[at : at + length]))
        at, reached = at + length, start + length
    if at != len(plaintext):
        raise MalformedMessage(f"a patch has {len(plaintext)} bytes, its extents {at}")
    return extents


def composed(parts: Iterable[tuple[list[PatchExtent], int | None]]) -> Buffer:
    """A block: extents laid on each other in turn, of each the bytes before its limit."""
    block = bytearray()
    for extents, valid in parts:
        for start, data in extents:
            piece = data if valid is None else data[: max(0, valid - start)]
            if piece:
                block.extend(bytes(max(0, start - len(block))))
                block[start : start + len(piece)] = piece
    return block
