"""Blocks between programs and nodes: plaintext here, sealed there.

Without a cipher (in tests) nodes hold plaintext.
"""

from __future__ import annotations

import errno
from functools import partial

from bftfs.conversation import Compute, Draw
from bftfs.crypto.cipher import NONCE_BYTES, BlockCipher
from bftfs.errors import FileSystemError, PeerFault
from bftfs.filesystem.dirty import Buffer
from bftfs.identifiers import BlockId


async def plaintext_of(cipher: BlockCipher | None, block: BlockId, item: bytes | None) -> bytes:
    """The contents of a data-item; empty if it was never written."""
    if item is None:
        return b""
    if cipher is None:
        return item
    try:
        plaintext: bytes = await Compute(partial(cipher.open, block, item))
    except PeerFault as fault:
        raise FileSystemError(errno.EIO, str(fault)) from fault
    return plaintext


async def sealed(
    cipher: BlockCipher | None, block: BlockId, plaintext: Buffer
) -> tuple[BlockId, bytes]:
    """The block with the data-item to write for it."""
    if cipher is None:
        return block, bytes(plaintext)
    nonce = (await Draw(1 << 8 * NONCE_BYTES)).to_bytes(NONCE_BYTES, "big")
    view = plaintext if isinstance(plaintext, bytes) else memoryview(plaintext)
    return block, await Compute(partial(cipher.seal, block, view, nonce=nonce))
