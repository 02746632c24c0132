"""Keys of epochs: who can make them, who can open them, and what names them in blocks."""

from __future__ import annotations

import pytest
from nacl import bindings

from bftfs.crypto import epochs
from bftfs.crypto.cipher import EPOCH_MARK, NONCE_BYTES, BlockCipher, epoch_named
from bftfs.crypto.keys import Identity, sealed_box
from bftfs.errors import InvalidAuthenticator, UnknownEpoch
from bftfs.identifiers import FIRST_EPOCH, EpochId, ObjectKind, block_id, object_id

ADMINISTRATOR = Identity.generate(b"a" * 32)
OTHER = Identity.generate(b"o" * 32)
ALICE = Identity.generate(b"c" * 32)
CLUSTER = b"c" * 16
EPOCH = epochs.new_epoch(ADMINISTRATOR, CLUSTER, entropy=b"e" * 8)
KEY = epochs.epoch_key(ADMINISTRATOR, CLUSTER, EPOCH)
INODE = object_id(ObjectKind.INODE, placement=0, unique=b"u" * 14)
BLOCK = block_id(INODE, incarnation=1, number=2)
NONCE = b"n" * NONCE_BYTES


def cipher(*known: tuple[EpochId, bytes], first: bytes | None = b"v" * 32) -> BlockCipher:
    made = BlockCipher(first)
    for epoch, key in known:
        made.learn(epoch, key)
        made.present = epoch
    return made


def test_only_the_administrator_makes_epochs_of_its_cluster() -> None:
    assert epochs.is_epoch_of(ADMINISTRATOR, CLUSTER, EPOCH)
    assert not epochs.is_epoch_of(OTHER, CLUSTER, EPOCH)
    assert not epochs.is_epoch_of(ADMINISTRATOR, b"d" * 16, EPOCH)
    for position in range(len(EPOCH)):
        changed = bytearray(EPOCH)
        changed[position] ^= 1
        assert not epochs.is_epoch_of(ADMINISTRATOR, CLUSTER, EpochId(bytes(changed)))


def test_each_epoch_of_each_cluster_has_a_key_of_its_own() -> None:
    another = epochs.new_epoch(ADMINISTRATOR, CLUSTER, entropy=b"f" * 8)
    keys = {
        epochs.epoch_key(administrator, cluster, epoch)
        for administrator in (ADMINISTRATOR, OTHER)
        for cluster in (CLUSTER, b"d" * 16)
        for epoch in (EPOCH, another)
    }
    assert len(keys) == 8
    assert all(len(key) == 32 for key in keys)
    with pytest.raises(ValueError, match="volume key"):
        epochs.epoch_key(ADMINISTRATOR, CLUSTER, FIRST_EPOCH)


def test_a_box_is_one_of_libsodium() -> None:
    box = sealed_box(b"message", ALICE.agreement.public, entropy=b"x" * 32)
    assert ALICE.agreement.unseal(box) == b"message"
    theirs = bindings.crypto_box_seal(b"message", ALICE.agreement.public)
    assert len(theirs) == len(box)
    assert ALICE.agreement.unseal(theirs) == b"message"


def test_a_box_opens_for_its_receiver_and_unaltered() -> None:
    box = epochs.boxed_key(KEY, ALICE.public_key, entropy=b"x" * 32)
    assert len(box) == epochs.BOX_BYTES
    assert epochs.unboxed_key(box, ALICE) == KEY
    for bad in (box[:-1], b"", box[:47], box + b"x", bytes(80)):
        with pytest.raises(InvalidAuthenticator):
            epochs.unboxed_key(bad, ALICE)
    with pytest.raises(InvalidAuthenticator):
        epochs.unboxed_key(box, OTHER)
    short = sealed_box(KEY[:31], ALICE.agreement.public, entropy=b"x" * 32)
    with pytest.raises(InvalidAuthenticator):
        epochs.unboxed_key(short, ALICE)
    for position in range(len(box)):
        changed = bytearray(box)
        changed[position] ^= 1
        with pytest.raises(InvalidAuthenticator):
            epochs.unboxed_key(bytes(changed), ALICE)


def test_a_keyring_opens_with_the_key_of_its_epoch() -> None:
    ring = {FIRST_EPOCH: b"v" * 32, EpochId(b"1" * 16): b"w" * 32}
    sealed = epochs.sealed_keyring(ring, latest=EPOCH, key=KEY, nonce=b"n" * 12)
    expected = epochs.KEYRING_OVERHEAD_BYTES + 2 * epochs.KEYRING_ENTRY_BYTES
    assert len(sealed) == expected
    assert epochs.opened_keyring(sealed, latest=EPOCH, key=KEY) == ring
    for bad in (sealed[:-1], sealed[: -epochs.KEYRING_ENTRY_BYTES], b"", sealed[:12]):
        with pytest.raises(InvalidAuthenticator):
            epochs.opened_keyring(bad, latest=EPOCH, key=KEY)
    for latest, key in ((EpochId(b"2" * 16), KEY), (EPOCH, b"k" * 32)):
        with pytest.raises(InvalidAuthenticator):
            epochs.opened_keyring(sealed, latest=latest, key=key)
    cut = epochs._ring_cipher(KEY).encrypt(b"n" * 12, b"x" * 47, EPOCH)
    with pytest.raises(InvalidAuthenticator):
        epochs.opened_keyring(b"n" * 12 + cut, latest=EPOCH, key=KEY)


# --- blocks --------------------------------------------------------------------------------------


def test_a_block_names_its_epoch_and_opens_with_its_key() -> None:
    sealed = cipher((EPOCH, KEY)).seal(BLOCK, b"contents", nonce=NONCE)
    assert epoch_named(sealed) == epoch_named(memoryview(sealed)) == EPOCH
    assert cipher((EPOCH, KEY)).open(BLOCK, sealed) == b"contents"
    assert cipher((EPOCH, KEY), first=None).open(BLOCK, memoryview(sealed)) == b"contents"
    with pytest.raises(UnknownEpoch) as unknown:
        cipher().open(BLOCK, sealed)
    assert unknown.value.epoch == EPOCH
    with pytest.raises(InvalidAuthenticator):
        cipher((EPOCH, b"k" * 32)).open(BLOCK, sealed)


def test_no_byte_of_a_block_may_change_nor_its_epoch() -> None:
    """Also not to an epoch whose key is known."""
    other = EpochId(b"2" * 16)
    both = cipher((EPOCH, KEY), (other, b"k" * 32))
    sealed = cipher((EPOCH, KEY)).seal(BLOCK, b"contents", nonce=NONCE)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises((InvalidAuthenticator, UnknownEpoch)):
            both.open(BLOCK, bytes(altered))
    head = len(EPOCH_MARK) + len(EPOCH)
    for swapped in (sealed.replace(EPOCH, other), sealed[head:], EPOCH_MARK + other + sealed):
        with pytest.raises(InvalidAuthenticator):
            both.open(BLOCK, swapped)


def test_what_the_first_epoch_sealed_cannot_be_said_to_be_of_a_later_one() -> None:
    """Also if both had the same key."""
    same = cipher((EPOCH, b"v" * 32))
    sealed = cipher().seal(BLOCK, b"contents", nonce=NONCE)
    with pytest.raises(InvalidAuthenticator):
        same.open(BLOCK, EPOCH_MARK + EPOCH + sealed)


def test_old_blocks_open_though_they_look_like_later_ones() -> None:
    """A nonce of before may begin as a mark does."""
    nonce = EPOCH_MARK + b"1234"
    sealed = cipher().seal(BLOCK, b"contents of 12345678", nonce=nonce)
    named = epoch_named(sealed)
    assert named != FIRST_EPOCH
    assert cipher().open(BLOCK, sealed) == b"contents of 12345678"
    assert cipher((named, KEY)).open(BLOCK, sealed) == b"contents of 12345678"


def test_without_the_first_key_old_blocks_are_of_an_unknown_epoch() -> None:
    sealed = cipher().seal(BLOCK, b"contents", nonce=NONCE)
    with pytest.raises(UnknownEpoch) as unknown:
        cipher((EPOCH, KEY), first=None).open(BLOCK, sealed)
    assert unknown.value.epoch == FIRST_EPOCH


def test_the_key_that_is_known_for_an_epoch_stays() -> None:
    known = cipher((EPOCH, KEY))
    known.learn(EPOCH, b"k" * 32)
    sealed = known.seal(BLOCK, b"contents", nonce=NONCE)
    assert cipher((EPOCH, KEY)).open(BLOCK, sealed) == b"contents"
    assert known.knows(EPOCH)
    assert not known.knows(EpochId(b"2" * 16))
