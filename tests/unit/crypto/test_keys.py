"""Identities, the secrets that two of them share, signatures, and key files."""

import stat
from pathlib import Path

import pytest

from bftfs.crypto.keys import (
    PUBLIC_KEY_BYTES,
    Identity,
    authenticator_key,
    is_public_key,
    read_identity,
    read_volume_key,
    verify_signature,
    write_identity,
    write_volume_key,
)
from bftfs.errors import InvalidAuthenticator, UsageError

ALICE = Identity.generate(bytes(range(32)))
BOB = Identity.generate(bytes(range(32, 64)))
CAROL = Identity.generate(bytes(range(64, 96)))
LOW_ORDER = bytes(32) + ALICE.public_key[32:]


def test_vectors() -> None:
    assert ALICE.public_key.hex() == (
        "0e97b7608a3f3bb51ff161838162367ae00bfa182a54199c0b0e4206e7742e58"
        "7324b813d8a2cb32687b4c9238e4384dac9175193047354063407c3e3fab96ce"
    )
    assert authenticator_key(ALICE, BOB.public_key).hex() == (
        "bb87b2df6ba9a1b504f6cfe5f1476d14aa560d8e8b4a6b892858e77bce78314c"
    )
    assert ALICE.sign(b"message").hex() == (
        "270bedbd6fb349a63e25f96249f0e24c4246861e885cc9fe751e21c0ceb83007"
        "b70f29944efd6150d645651012bac87960c6c87c803143899e463a353bdaba0c"
    )


def test_both_ends_derive_the_same_key_and_nobody_else_does() -> None:
    key = authenticator_key(ALICE, BOB.public_key)
    assert key == authenticator_key(BOB, ALICE.public_key)
    others = [
        authenticator_key(ALICE, CAROL.public_key),
        authenticator_key(CAROL, BOB.public_key),
        authenticator_key(ALICE, ALICE.public_key),
    ]
    assert key not in others


def test_a_public_key_of_low_order_shares_no_secret() -> None:
    with pytest.raises(InvalidAuthenticator):
        authenticator_key(ALICE, LOW_ORDER)


def test_what_a_public_key_is() -> None:
    assert is_public_key(ALICE.public_key)
    assert not is_public_key(LOW_ORDER)
    assert not is_public_key(ALICE.public_key[:32] + bytes(32))
    assert not is_public_key(ALICE.public_key[:-1])
    assert not is_public_key(b"")


def test_signatures() -> None:
    signature = ALICE.sign(b"message")
    assert verify_signature(ALICE.public_key, message=b"message", signature=signature)
    assert not verify_signature(ALICE.public_key, message=b"massage", signature=signature)
    assert not verify_signature(BOB.public_key, message=b"message", signature=signature)
    assert not verify_signature(ALICE.public_key, message=b"message", signature=signature[:-1])
    assert not verify_signature(ALICE.public_key, message=b"message", signature=b"")
    assert not verify_signature(b"", message=b"message", signature=signature)
    broken = bytes([signature[0] ^ 1]) + signature[1:]
    assert not verify_signature(ALICE.public_key, message=b"message", signature=broken)


def test_an_identity_needs_exactly_its_entropy() -> None:
    with pytest.raises(ValueError, match="32"):
        Identity.generate(b"short")


def test_an_identity_does_not_print_its_secret() -> None:
    assert ALICE.secret.hex() not in repr(ALICE)
    assert len(ALICE.public_key) == PUBLIC_KEY_BYTES


def test_a_key_file_gives_back_what_was_kept_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    write_identity(path, ALICE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_identity(path).public_key == ALICE.public_key
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.key"]
    write_volume_key(tmp_path / "volume.key", b"v" * 32)
    assert read_volume_key(tmp_path / "volume.key") == b"v" * 32


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    write_identity(path, ALICE)
    with pytest.raises(UsageError, match="exists already"):
        write_identity(path, BOB)
    assert read_identity(path).public_key == ALICE.public_key
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.key"]


def test_a_key_file_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    write_identity(path, ALICE)
    path.chmod(0o640)
    with pytest.raises(UsageError, match=f"chmod 600 {path}"):
        read_identity(path)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\xff\xfe\x00",
        b"bftfs-identity-1",
        b"bftfs-identity-1 zz",
        b"bftfs-identity-1 00",
        b"bftfs-volume-key-1 " + b"00" * 32,
        b"bftfs-identity-1 " + b"00" * 32 + b" more",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\n" * 100,
    ],
)
def test_what_is_no_key_file_is_named(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(contents)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="is not a key file") as raised:
        read_identity(path)
    assert str(path) in str(raised.value)


def test_a_missing_key_file_and_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no key file .*node\.key"):
        read_identity(tmp_path / "node.key")
    with pytest.raises(UsageError, match="cannot read the key file"):
        read_identity(tmp_path)
    with pytest.raises(UsageError, match="cannot write the key file"):
        write_identity(tmp_path / "nowhere" / "node.key", ALICE)
