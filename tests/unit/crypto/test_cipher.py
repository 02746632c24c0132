"""Sealed blocks open only as the block that they were sealed as, and only unaltered."""

import pytest

from bftfs.crypto.cipher import NONCE_BYTES, BlockCipher
from bftfs.errors import InvalidAuthenticator
from bftfs.identifiers import ObjectId, ObjectKind, block_id, object_id

INODE = object_id(ObjectKind.INODE, placement=0, unique=b"u" * 14)
OTHER = object_id(ObjectKind.INODE, placement=0, unique=b"v" * 14)
BLOCK = block_id(INODE, incarnation=1, number=2)
NONCE = b"n" * 12
CIPHER = BlockCipher(b"k" * 32)


def test_vector() -> None:
    block = block_id(
        ObjectId(bytes(range(16))),
        incarnation=int.from_bytes(bytes(range(16, 24)), "big"),
        number=int.from_bytes(bytes(range(24, 32)), "big"),
    )
    sealed = BlockCipher(bytes(range(32))).seal(block, b"plaintext", nonce=bytes(range(12)))
    assert sealed.hex() == (
        "000102030405060708090a0b1e1ccf9d94189a21a6857f557d72e64a3f51f9f31cfcc619f5"
    )


@pytest.mark.parametrize("length", [0, 1, 4096, 131072])
def test_it_opens(length: int) -> None:
    plaintext = bytes(index & 0xFF for index in range(length))
    sealed = CIPHER.seal(BLOCK, memoryview(plaintext), nonce=NONCE)
    assert len(sealed) == length + NONCE_BYTES + 16  # the tag
    assert CIPHER.open(BLOCK, sealed) == plaintext
    assert CIPHER.open(BLOCK, memoryview(sealed)) == plaintext


@pytest.mark.parametrize(
    "block",
    [
        block_id(INODE, incarnation=1, number=3),
        block_id(INODE, incarnation=2, number=2),
        block_id(OTHER, incarnation=1, number=2),
    ],
)
def test_it_does_not_open_as_another_block(block) -> None:
    sealed = CIPHER.seal(BLOCK, b"contents", nonce=NONCE)
    with pytest.raises(InvalidAuthenticator):
        CIPHER.open(block, sealed)


def test_it_does_not_open_with_another_volume_key() -> None:
    sealed = CIPHER.seal(BLOCK, b"contents", nonce=NONCE)
    with pytest.raises(InvalidAuthenticator):
        BlockCipher(b"l" * 32).open(BLOCK, sealed)


def test_no_byte_may_change() -> None:
    sealed = CIPHER.seal(BLOCK, b"contents", nonce=NONCE)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(InvalidAuthenticator):
            CIPHER.open(BLOCK, bytes(altered))


@pytest.mark.parametrize("length", [0, 1, 11, 12, 13, 27])
def test_what_is_too_short_does_not_open(length: int) -> None:
    with pytest.raises(InvalidAuthenticator):
        CIPHER.open(BLOCK, bytes(length))


def test_equal_blocks_of_two_inodes_look_different() -> None:
    mine = CIPHER.seal(BLOCK, bytes(64), nonce=NONCE)
    theirs = CIPHER.seal(block_id(OTHER, incarnation=1, number=2), bytes(64), nonce=NONCE)
    assert mine[12:] != theirs[12:]


def test_a_volume_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32"):
        BlockCipher(b"short")
