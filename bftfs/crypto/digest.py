"""Domain-separated digests: one named function per use, so that no two uses share an input space.

Small values are hashed with BLAKE2b under a `person` tag of their own; fragments with keyed BLAKE3,
which runs at the speed of memory.

**Invariant.** Each tag below is used by exactly one function. The functions take fixed-length
fields before the one field of variable length, so that concatenation is unambiguous.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NewType

from blake3 import blake3

from bftfs.identifiers import CLIENT_ID_BYTES, BlockId, ClientId, ObjectId

Digest = NewType("Digest", bytes)  # 32 bytes

DIGEST_BYTES = 32


def _tagged(tag: bytes, digest_size: int = DIGEST_BYTES) -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=digest_size, person=tag)


# Copying a prepared state is cheaper than preparing it again.
_VERIFIER = _tagged(b"bftfs.verifier")
_VOUCHER = _tagged(b"bftfs.voucher")
_REPLICA_HISTORY = _tagged(b"bftfs.history")
_OPERATION = _tagged(b"bftfs.operation")
_DEDUCTION = _tagged(b"bftfs.deduction")
_ANSWER = _tagged(b"bftfs.answer")
_SYNC_PAGE = _tagged(b"bftfs.syncpage")
_LINK = _tagged(b"bftfs.link")
_INVENTORY = _tagged(b"bftfs.inventory")
_CLUSTER = _tagged(b"bftfs.cluster")
_CLIENT = _tagged(b"bftfs.client", CLIENT_ID_BYTES)
_FRAGMENT_KEY = _tagged(b"bftfs.fragment").digest()


def fragment_digest(fragment: bytes | bytearray | memoryview) -> Digest:
    """The digest of one fragment: an entry of a cross-checksum. [PASIS §3.4.2]"""
    return Digest(blake3(fragment, key=_FRAGMENT_KEY).digest())


def verifier_of(cross_checksum: bytes) -> Digest:
    """The digest that binds a timestamp to the value it was made for. [PASIS §3.4.2]"""
    state = _VERIFIER.copy()
    state.update(cross_checksum)
    return Digest(state.digest())


def voucher_digest(*, block: BlockId, timestamp: bytes) -> Digest:
    """The input of a voucher's MACs: a node hosts this version of this block."""
    state = _VOUCHER.copy()
    state.update(block + timestamp)
    return Digest(state.digest())


def replica_history_digest(*, object: ObjectId, encoded: bytes) -> Digest:  # noqa: A002
    """The input of an authenticator's MACs: the object, and its replica history. [Q/U §4.3.4]"""
    state = _REPLICA_HISTORY.copy()
    state.update(object + encoded)
    return Digest(state.digest())


def operation_digest(encoded: bytes) -> Digest:
    """The part of a compact timestamp that stands for operation and history set. [Q/U §4.3.4]"""
    state = _OPERATION.copy()
    state.update(encoded)
    return Digest(state.digest())


def deduction_digest(*, timestamp: bytes, established: bool) -> Digest:
    """The input of the MACs over a server's deduction: a candidate's fate. [Q/U §4.3.7]"""
    state = _DEDUCTION.copy()
    state.update(timestamp + (b"\1" if established else b"\0"))
    return Digest(state.digest())


def answer_digest(answer: bytes) -> Digest:
    """The digest that a server sends instead of a large answer that another one sends whole."""
    state = _ANSWER.copy()
    state.update(answer)
    return Digest(state.digest())


def sync_page_digest(encoded: bytes) -> Digest:
    """The digest that a server sends instead of a page that another one sends whole."""
    state = _SYNC_PAGE.copy()
    state.update(encoded)
    return Digest(state.digest())


def link_digest(*, object: ObjectId, encoded: bytes) -> Digest:  # noqa: A002
    """The digest of a version of an object, by which two servers compare theirs."""
    state = _LINK.copy()
    state.update(object + encoded)
    return Digest(state.digest())


def inventory_digest(keys: Iterable[bytes]) -> Digest:
    """The digest of the keys of versions that a node hosts, all of one length."""
    state = _INVENTORY.copy()
    state.update(b"".join(keys))
    return Digest(state.digest())


def cluster_digest(encoded: bytes) -> Digest:
    """The identity of one version of a cluster description."""
    state = _CLUSTER.copy()
    state.update(encoded)
    return Digest(state.digest())


def client_id_of(public_key: bytes) -> ClientId:
    """The name under which a principal's requests are accounted and its timestamps ordered."""
    state = _CLIENT.copy()
    state.update(public_key)
    return ClientId(state.digest())
