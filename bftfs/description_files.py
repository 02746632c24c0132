"""The files of the cluster description: signed, verified, read and replaced.

The administrator signs the description. The file next to it, `cluster.toml.sig`, holds detached
Ed25519 signatures, one per line. It keeps the signature of the previous description beside the
current one, so that the description is signed at every moment while it is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bftfs import limits
from bftfs.cluster import ClusterDescription, decode, encode
from bftfs.crypto.keys import Identity, verify_signature
from bftfs.durable_files import replace_file
from bftfs.errors import UsageError
from bftfs.printable import as_word

_SIGNATURES = 2  # in a signature file: of the description, and of the one that it replaced
_SIGNED = b"bftfs cluster description 1\x00"


def signature_path(path: Path) -> Path:
    """Where the signatures of the description in `path` are."""
    return path.with_name(path.name + ".sig")


@dataclass(frozen=True, slots=True)
class SignedDescription:
    """A description as its file has it, and its signature in hexadecimal digits."""

    description: ClusterDescription
    encoded: bytes
    signature: bytes


def load(path: Path, *, administrator: bytes | None = None) -> ClusterDescription:
    """The description in `path`, verified as by `read`."""
    return read(path, administrator=administrator).description


def read(path: Path, *, administrator: bytes | None = None) -> SignedDescription:
    """The description in `path`, verified.

    With `administrator`, it must be signed by that key, wherever the file comes from; without, by
    the key that it names itself, which protects against accidents and not against forgery.
    """
    encoded = _read(path, "cluster description", "create a cluster with `bftfs cluster init`")
    signatures = _read(
        signature_path(path), "signature", "sign the description with `bftfs cluster sign`"
    )
    description = decode(encoded, source=str(path))
    if administrator is not None and administrator != description.administrator:
        raise UsageError(
            f"{as_word(path)} names another administrator than the one this machine trusts; "
            "get the description from your administrator again"
        )
    for line in signatures.split()[:_SIGNATURES]:
        if _is_signed(encoded, line, description.administrator):
            return SignedDescription(description, encoded, line)
    raise UsageError(
        f"{as_word(path)} is not signed by its administrator: {as_word(signature_path(path))} "
        "does not match; "
        "if you have changed the file, run `bftfs cluster sign`, else get both files again"
    )


def verified(
    encoded: bytes, signature: bytes, *, administrator: bytes, source: str
) -> SignedDescription:
    """The description that somebody has sent, if `administrator` has signed it.

    Nothing of it is read before. `source` names it in messages. Raises UsageError.
    """
    if len(encoded) > limits.DESCRIPTION_BYTES or not _is_signed(encoded, signature, administrator):
        raise UsageError(f"{source} is not signed by this cluster's administrator")
    description = decode(encoded, source=source)
    if description.administrator != administrator:
        raise UsageError(f"{source} names another administrator")
    return SignedDescription(description, encoded, signature)


def load_unsigned(path: Path) -> ClusterDescription:
    """The description in `path` as it stands, for its administrator to sign."""
    encoded = _read(path, "cluster description", "create a cluster with `bftfs cluster init`")
    return decode(encoded, source=str(path))


def store(
    path: Path, description: ClusterDescription, administrator: Identity
) -> SignedDescription:
    """Sign the description, and replace the one in `path` by it."""
    if administrator.public_key != description.administrator:
        raise UsageError(
            f"the key given is not that of the administrator whom {as_word(path)} names; "
            "give the `admin.key` that was made with the cluster"
        )
    encoded = encode(description)
    if len(encoded) > limits.DESCRIPTION_BYTES:
        raise UsageError(
            f"the description would have {len(encoded)} bytes, and {limits.DESCRIPTION_BYTES} are "
            "the limit: revoke clients that are not used, or give them fewer uids"
        )
    found = _signed(description, encoded, administrator)
    adopt(path, found)
    return found


def signed(description: ClusterDescription, administrator: Identity) -> SignedDescription:
    """The description, signed, and in no file."""
    return _signed(description, encode(description), administrator)


def _signed(
    description: ClusterDescription, encoded: bytes, administrator: Identity
) -> SignedDescription:
    signature = administrator.sign(_SIGNED + encoded).hex().encode()
    return SignedDescription(description, encoded, signature)


def as_signed(path: Path) -> Path:
    """Where the administrator's machine has the description as it was signed last.

    Of the one in `path`, which people edit.
    """
    return path.with_suffix(".signed.toml")


def adopt(path: Path, signed: SignedDescription) -> None:
    """Replace the description of the administrator's machine in `path`, and note how it was."""
    keep(path, signed)
    keep(as_signed(path), signed)


def keep(path: Path, signed: SignedDescription) -> None:
    """Replace the description in `path`; at no moment is there an unsigned one."""
    signatures = signature_path(path)
    lines = [signed.signature]
    try:
        if path.exists() and signatures.exists():
            replaced = path.read_bytes()
            lines += (
                line
                for line in signatures.read_bytes().split()
                if _is_signed(replaced, line, signed.description.administrator)
            )
        replace_file(signatures, b"\n".join(lines[:_SIGNATURES]) + b"\n")
        replace_file(path, signed.encoded)
    except OSError as error:
        raise UsageError(
            f"cannot write {as_word(path)}: {error.strerror}; check that its directory exists "
            "and is yours"
        ) from error


def _is_signed(encoded: bytes, line: bytes, administrator: bytes) -> bool:
    try:
        signature = bytes.fromhex(line.decode("ascii"))
    except ValueError:  # not hexadecimal digits
        return False
    return verify_signature(administrator, message=_SIGNED + encoded, signature=signature)


def _read(path: Path, what: str, next_step: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"there is no {what} {as_word(path)}; {next_step}") from error
    except OSError as error:
        raise UsageError(
            f"cannot read the {what} {as_word(path)}: {error.strerror}; check the path and "
            "its permissions"
        ) from error
