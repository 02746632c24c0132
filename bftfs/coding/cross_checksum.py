"""The cross-checksum: the digests of all N fragments of an item, side by side. [PASIS §3.4.2]

Its own digest, the verifier, is part of the timestamp; so a timestamp binds every fragment, and a
node can check the fragment that it is given against the timestamp alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from hmac import compare_digest
from typing import NewType

from bftfs.coding.erasure import Buffer
from bftfs.crypto.digest import (
    DIGEST_BYTES,
    Body,
    Digest,
    fragment_digest,
    verifier_of,
)

CrossChecksum = NewType("CrossChecksum", bytes)  # 32·N bytes


def make(fragments: Iterable[Buffer]) -> CrossChecksum:
    """The cross-checksum of all N fragments, in order."""
    return CrossChecksum(b"".join(map(fragment_digest, fragments)))


def matches(cross_checksum: CrossChecksum, index: int, fragment: Body | bytearray) -> bool:
    """True if `fragment` is the one that `cross_checksum` lists at `index`."""
    if index < 0:
        return False
    listed = cross_checksum[DIGEST_BYTES * index : DIGEST_BYTES * (index + 1)]
    return compare_digest(listed, fragment_digest(fragment))


def verifier(cross_checksum: CrossChecksum) -> Digest:
    """The digest that stands for the whole item in its timestamp."""
    return verifier_of(cross_checksum)
