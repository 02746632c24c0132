"""Key epochs: the keys that blocks are sealed with one after the other, and how they travel.

The first epoch's key is the volume key, with which a cluster begins. Each later one follows from
the administrator's secret and the epoch's id, so that none is ever lost: the administrator can
make all of them again on another machine, or from an old backup. Nobody else can, and nobody else
can make an id that the administrator would take for its own.

Clients get the key of the latest epoch in a box that is sealed to their public key, and those of
the earlier ones in a keyring that is sealed with it. Both are in the signed description of the
cluster. (`bftfs.key_epochs`, docs/decisions/0031-key-epochs.md)

Entropy is an argument: nothing here draws randomness.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bftfs.crypto.keys import AGREEMENT_BYTES, VOLUME_KEY_BYTES, Identity, sealed_box
from bftfs.errors import InvalidAuthenticator
from bftfs.identifiers import EPOCH_ID_BYTES, FIRST_EPOCH, EpochId

EPOCH_ENTROPY_BYTES: Final = 8
BOX_ENTROPY_BYTES: Final = 32
KEYRING_NONCE_BYTES: Final = 12
BOX_BYTES: Final = 32 + 16 + VOLUME_KEY_BYTES  # of a key: sender's public key, tag, key
KEYRING_OVERHEAD_BYTES: Final = KEYRING_NONCE_BYTES + 16
KEYRING_ENTRY_BYTES: Final = EPOCH_ID_BYTES + VOLUME_KEY_BYTES


def new_epoch(administrator: Identity, cluster_id: bytes, *, entropy: bytes) -> EpochId:
    """The id of a new epoch; `entropy` is 8 bytes that were never used before."""
    return EpochId(entropy + _mark(administrator, cluster_id, entropy))


def is_epoch_of(administrator: Identity, cluster_id: bytes, epoch: EpochId) -> bool:
    """True if this administrator has made the epoch."""
    drawn = epoch[:EPOCH_ENTROPY_BYTES]
    return epoch == drawn + _mark(administrator, cluster_id, drawn)


def epoch_key(administrator: Identity, cluster_id: bytes, epoch: EpochId) -> bytes:
    """The key of an epoch, but for the first one's."""
    if epoch == FIRST_EPOCH:
        raise ValueError("the first epoch's key is the volume key")
    return hashlib.blake2b(
        cluster_id + epoch,
        key=administrator.secret,
        digest_size=VOLUME_KEY_BYTES,
        person=b"bftfs.epoch",
    ).digest()


def _mark(administrator: Identity, cluster_id: bytes, drawn: bytes) -> bytes:
    return hashlib.blake2b(
        cluster_id + drawn,
        key=administrator.secret,
        digest_size=EPOCH_ID_BYTES - EPOCH_ENTROPY_BYTES,
        person=b"bftfs.epoch.id",
    ).digest()


def boxed_key(key: bytes, public_key: bytes, *, entropy: bytes) -> bytes:
    """An epoch's key for the principal with this public key."""
    return sealed_box(key, public_key[:AGREEMENT_BYTES], entropy=entropy)


def unboxed_key(box: bytes, identity: Identity) -> bytes:
    """The key in a box for `identity`. Raises InvalidAuthenticator if there is none."""
    key = identity.agreement.unseal(box)
    if len(key) != VOLUME_KEY_BYTES:
        raise InvalidAuthenticator(f"a box has a key of {len(key)} bytes")
    return key


def sealed_keyring(
    keys: Mapping[EpochId, bytes], *, latest: EpochId, key: bytes, nonce: bytes
) -> bytes:
    """The keys of earlier epochs, for those who have that of the latest one."""
    entries = b"".join(epoch + each for epoch, each in keys.items())
    return nonce + _ring_cipher(key).encrypt(nonce, entries, latest)


def opened_keyring(sealed: bytes, *, latest: EpochId, key: bytes) -> dict[EpochId, bytes]:
    """The keys of the earlier epochs. Raises InvalidAuthenticator if it is no such keyring."""
    nonce = sealed[:KEYRING_NONCE_BYTES]
    try:
        entries = _ring_cipher(key).decrypt(nonce, sealed[KEYRING_NONCE_BYTES:], latest)
    except (InvalidTag, ValueError) as error:
        raise InvalidAuthenticator("the keys of earlier epochs do not open") from error
    if len(entries) % KEYRING_ENTRY_BYTES:
        raise InvalidAuthenticator("the keys of earlier epochs are cut off")
    return {
        EpochId(entries[at : at + EPOCH_ID_BYTES]): entries[
            at + EPOCH_ID_BYTES : at + KEYRING_ENTRY_BYTES
        ]
        for at in range(0, len(entries), KEYRING_ENTRY_BYTES)
    }


def _ring_cipher(key: bytes) -> AESGCM:
    return AESGCM(hashlib.blake2b(key=key, digest_size=32, person=b"bftfs.keyring").digest())
