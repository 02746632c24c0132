"""Encryption of blocks at the client, so that file contents are unreadable to nodes.

AES-256-GCM under a key per inode, derived from the volume key; the block's id is authenticated
with it, so that a block cannot be passed off as another. A sealed block is nonce, ciphertext, tag.

A random nonce of 96 bits is safe for 2**32 writes of one inode's blocks.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bftfs.crypto.keys import VOLUME_KEY_BYTES
from bftfs.errors import InvalidAuthenticator
from bftfs.identifiers import BlockId, ObjectId, inode_of

NONCE_BYTES = 12

_PREPARED_KEYS = 1024  # inodes whose cipher is kept ready


class BlockCipher:
    """Seals and opens the blocks of one volume."""

    __slots__ = ("_of_inode",)

    def __init__(self, volume_key: bytes) -> None:
        if len(volume_key) != VOLUME_KEY_BYTES:
            raise ValueError(f"a volume key has {VOLUME_KEY_BYTES} bytes, not {len(volume_key)}")

        def of_inode(inode: ObjectId) -> AESGCM:
            return AESGCM(
                hashlib.blake2b(
                    inode, key=volume_key, digest_size=32, person=b"bftfs.inode"
                ).digest()
            )

        self._of_inode = lru_cache(maxsize=_PREPARED_KEYS)(of_inode)

    def seal(self, block: BlockId, plaintext: bytes | memoryview, *, nonce: bytes) -> bytes:
        """`plaintext` encrypted as the contents of `block`; no `nonce` is used twice."""
        return nonce + self._of_inode(inode_of(block)).encrypt(nonce, plaintext, block)

    def open(self, block: BlockId, sealed: bytes | memoryview) -> bytes:
        """The plaintext of `sealed`.

        Raises InvalidAuthenticator if it is not what a holder of the volume key sealed as `block`.
        """
        view = memoryview(sealed)
        try:
            return self._of_inode(inode_of(block)).decrypt(
                view[:NONCE_BYTES], view[NONCE_BYTES:], block
            )
        except (InvalidTag, ValueError) as error:
            raise InvalidAuthenticator(f"block {block.hex()} does not open") from error
