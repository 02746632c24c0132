"""Encryption of blocks at the client, so that file contents are unreadable to nodes.

AES-256-GCM under a key per inode, derived from the key of an epoch. The block's id is authenticated
with it, so that a block cannot be passed off as another, and so is the epoch's: it stands before
what is sealed, and what is sealed does not open with another.

A sealed block of the first epoch is nonce, ciphertext, tag; of later ones, the mark, the epoch's
id, and then the same. A nonce that begins like a mark would be tried as both: a block opens under
one key only.

A random nonce of 96 bits is safe for 2**32 writes of one inode's blocks in one epoch.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bftfs.crypto.keys import VOLUME_KEY_BYTES
from bftfs.errors import InvalidAuthenticator, UnknownEpoch
from bftfs.identifiers import (
    EPOCH_ID_BYTES,
    FIRST_EPOCH,
    BlockId,
    EpochId,
    ObjectId,
    inode_of,
)

NONCE_BYTES = 12
EPOCH_MARK: Final = b"\xe9bftfs-1"

_HEAD_BYTES: Final = len(EPOCH_MARK) + EPOCH_ID_BYTES
_PREPARED_KEYS = 1024  # inodes whose cipher is kept ready


def epoch_named(sealed: bytes | memoryview) -> EpochId:
    """The epoch that a sealed block names; the first one if it names none.

    A claim of its writer, until it opens. (`BlockCipher.open`)
    """
    head = bytes(sealed[:_HEAD_BYTES])
    if len(head) == _HEAD_BYTES and head.startswith(EPOCH_MARK):
        return EpochId(head[len(EPOCH_MARK) :])
    return FIRST_EPOCH


class BlockCipher:
    """Seals and opens the blocks of one volume, with the keys of its epochs."""

    __slots__ = ("_keys", "_of_inode", "present")

    def __init__(self, volume_key: bytes | None) -> None:
        """`volume_key`: that of the first epoch; None if it is to be learnt."""
        self._keys: dict[EpochId, bytes] = {}
        self.present = FIRST_EPOCH  # under whose key blocks are sealed
        self._of_inode = lru_cache(maxsize=_PREPARED_KEYS)(self._prepared)
        if volume_key is not None:
            self.learn(FIRST_EPOCH, volume_key)

    def _prepared(self, epoch: EpochId, inode: ObjectId) -> AESGCM:
        return AESGCM(
            hashlib.blake2b(
                inode, key=self._keys[epoch], digest_size=32, person=b"bftfs.inode"
            ).digest()
        )

    def learn(self, epoch: EpochId, key: bytes) -> None:
        """From now on blocks of this epoch open; the first key that is learnt for it stays."""
        if len(key) != VOLUME_KEY_BYTES:
            raise ValueError(f"a volume key has {VOLUME_KEY_BYTES} bytes, not {len(key)}")
        self._keys.setdefault(epoch, key)

    def knows(self, epoch: EpochId) -> bool:
        """True if blocks of this epoch open."""
        return epoch in self._keys

    def seal(self, block: BlockId, plaintext: bytes | memoryview, *, nonce: bytes) -> bytes:
        """`plaintext` as the contents of `block`, under the key of the present epoch.

        No `nonce` is used twice.
        """
        epoch = self.present
        cipher = self._of_inode(epoch, inode_of(block))
        if epoch == FIRST_EPOCH:
            return nonce + cipher.encrypt(nonce, plaintext, block)
        head = EPOCH_MARK + epoch
        return head + nonce + cipher.encrypt(nonce, plaintext, head + block)

    def open(self, block: BlockId, sealed: bytes | memoryview) -> bytes:
        """The plaintext of `sealed`.

        Raises UnknownEpoch if it may be of an epoch whose key is not known, and
        InvalidAuthenticator if it is not what a holder of its epoch's key sealed as `block`.
        """
        view = memoryview(sealed)
        epoch = epoch_named(view)
        if epoch != FIRST_EPOCH and epoch in self._keys:
            plaintext = self._opened(epoch, block, view[_HEAD_BYTES:], bytes(view[:_HEAD_BYTES]))
            if plaintext is not None:
                return plaintext
        if FIRST_EPOCH in self._keys:
            plaintext = self._opened(FIRST_EPOCH, block, view, b"")
            if plaintext is not None:
                return plaintext
        if epoch not in self._keys:
            raise UnknownEpoch(epoch, f"block {block.hex()}")
        raise InvalidAuthenticator(f"block {block.hex()} does not open")

    def _opened(
        self, epoch: EpochId, block: BlockId, sealed: memoryview, head: bytes
    ) -> bytes | None:
        try:
            return self._of_inode(epoch, inode_of(block)).decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], head + block
            )
        except (InvalidTag, ValueError):
            return None
