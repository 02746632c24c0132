"""Identities of principals, the secrets that two of them share, and the files that keep keys.

A principal (node, client, administrator) has one 32-byte secret, from which an X25519 key (for
pairwise secrets) and an Ed25519 key (for signatures) are derived. Its public key is the two public
halves side by side: every listed principal can both authenticate and sign.

Entropy is an argument: nothing here draws randomness.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from nacl import bindings
from nacl import exceptions as nacl_exceptions

from bftfs.errors import InvalidAuthenticator, UsageError
from bftfs.printable import as_word

SECRET_BYTES = 32
AGREEMENT_BYTES = 32  # a public key of X25519
PUBLIC_KEY_BYTES = 64  # X25519, then Ed25519
SIGNATURE_BYTES = 64
VOLUME_KEY_BYTES = 32

_IDENTITY_LABEL = "bftfs-identity-1"
_VOLUME_LABEL = "bftfs-volume-key-1"


class AgreementKey:
    """A key pair of X25519."""

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        if len(private) != SECRET_BYTES:
            raise ValueError(f"a private key has {SECRET_BYTES} bytes, not {len(private)}")
        self._private = private
        self.public: bytes = bindings.crypto_scalarmult_base(private)

    def agree(self, theirs: bytes) -> bytes:
        """The secret that the holders of two key pairs share; `theirs` is a public key.

        Raises InvalidAuthenticator if anybody could know it.
        """
        try:
            shared: bytes = bindings.crypto_scalarmult(self._private, theirs)
        except nacl_exceptions.RuntimeError as error:
            raise InvalidAuthenticator("a public key of low order") from error
        return shared

    def unseal(self, box: bytes) -> bytes:
        """What `sealed_box` has put in. Raises InvalidAuthenticator if it is not for this key."""
        try:
            message: bytes = bindings.crypto_box_seal_open(box, self.public, self._private)
        except (nacl_exceptions.CryptoError, nacl_exceptions.TypeError) as error:
            raise InvalidAuthenticator("a sealed box does not open") from error
        return message


def sealed_box(message: bytes, public: bytes, *, entropy: bytes) -> bytes:
    """`message` for the holder of the X25519 key `public`: a sealed box of libsodium.

    `entropy` is 32 bytes that nobody can guess, and that are used once. (libsodium's own function
    draws them itself.)
    """
    sender = AgreementKey(entropy)
    nonce = hashlib.blake2b(sender.public + public, digest_size=24).digest()
    box: bytes = bindings.crypto_box(message, nonce, public, entropy)
    return sender.public + box


class Identity:
    """A principal's key pairs, all derived from `secret`."""

    __slots__ = ("_signing", "agreement", "public_key", "secret")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"an identity needs {SECRET_BYTES} secret bytes, not {len(secret)}")
        self.secret = secret
        self.agreement = AgreementKey(_derive(secret, b"bftfs.agreement"))
        verification, self._signing = bindings.crypto_sign_seed_keypair(
            _derive(secret, b"bftfs.signing")
        )
        self.public_key: bytes = self.agreement.public + verification

    @classmethod
    def generate(cls, entropy: bytes) -> Identity:
        """A new identity; `entropy` is 32 bytes that nobody else can guess."""
        return cls(entropy)

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature of `message`, without the message."""
        signed: bytes = bindings.crypto_sign(message, self._signing)
        return signed[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"Identity({self.public_key[:4].hex()}…)"


def _derive(secret: bytes, tag: bytes) -> bytes:
    return hashlib.blake2b(key=secret, digest_size=32, person=tag).digest()


def authenticator_key(mine: Identity, their_public_key: bytes) -> bytes:
    """The 32-byte key of the MACs that two servers make for each other; the same for both."""
    shared = mine.agreement.agree(their_public_key[:AGREEMENT_BYTES])
    ours, theirs = sorted((mine.public_key, their_public_key))
    return hashlib.blake2b(
        ours + theirs, key=shared, digest_size=32, person=b"bftfs.authentic"
    ).digest()


def verify_signature(public_key: bytes, *, message: bytes, signature: bytes) -> bool:
    """True if the holder of `public_key` signed `message`."""
    if len(signature) != SIGNATURE_BYTES or len(public_key) != PUBLIC_KEY_BYTES:
        return False
    try:
        bindings.crypto_sign_open(signature + message, public_key[32:])
    except nacl_exceptions.BadSignatureError:
        return False
    return True


def is_public_key(public_key: bytes) -> bool:
    """True if these bytes can be a principal's public key: two points of large order."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        return False
    try:
        bindings.crypto_scalarmult(b"\x01" * 32, public_key[:32])
    except nacl_exceptions.RuntimeError:
        return False
    return bool(bindings.crypto_core_ed25519_is_valid_point(public_key[32:]))


# --- key files -------------------------------------------------------------------------------


def write_identity(path: Path, identity: Identity) -> None:
    """Keep `identity` in a new file that only its owner can read."""
    _write_secret(path, _IDENTITY_LABEL, identity.secret)


def read_identity(path: Path) -> Identity:
    """The identity kept in `path`."""
    return Identity(_read_secret(path, _IDENTITY_LABEL, SECRET_BYTES))


def write_volume_key(path: Path, volume_key: bytes) -> None:
    """Keep the key that file contents are encrypted with in a new file."""
    if len(volume_key) != VOLUME_KEY_BYTES:
        raise ValueError(f"a volume key has {VOLUME_KEY_BYTES} bytes, not {len(volume_key)}")
    _write_secret(path, _VOLUME_LABEL, volume_key)


def read_volume_key(path: Path) -> bytes:
    """The volume key kept in `path`."""
    return _read_secret(path, _VOLUME_LABEL, VOLUME_KEY_BYTES)


def _write_secret(path: Path, label: str, secret: bytes) -> None:
    """Create `path` whole or not at all; never replace a key that is there."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(f"{label} {secret.hex()}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            os.link(unfinished, path)
        finally:
            unfinished.unlink()
    except FileExistsError as error:
        raise UsageError(
            f"{as_word(path)} exists already, and a key is never overwritten; "
            "move the file away or choose another name"
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot write the key file {as_word(path)}: {error.strerror}; "
            "check that its directory exists and is yours"
        ) from error


def _read_secret(path: Path, label: str, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(256)
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no key file {as_word(path)}; copy it here from the machine where it was made"
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot read the key file {as_word(path)}: {error.strerror}; run this as the "
            "key's owner"
        ) from error
    if mode & 0o077:
        raise UsageError(
            f"the key file {as_word(path)} is open to other users (mode {mode:04o}); "
            f"run `chmod 600 {as_word(path)}`, and replace the key if others may have read it"
        )
    words = text.decode("ascii", "replace").split()
    if len(words) == 2 and words[0] == label:
        with contextlib.suppress(ValueError):
            secret = bytes.fromhex(words[1])
            if len(secret) == length:
                return secret
    raise UsageError(
        f"{as_word(path)} is not a key file of the kind `{label}`; give the file that bftfs "
        "has written"
    )
