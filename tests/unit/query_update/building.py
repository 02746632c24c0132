"""Readable literals for histories: timestamps by name, histories by candidates."""

from __future__ import annotations

from bftfs.crypto.digest import AuthenticatorKeys, replica_history_digest
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.query_update.history import (
    ZERO,
    Candidate,
    CulledObjectHistorySet,
    Known,
    LogicalTimestamp,
    assemble,
    history_of,
    logical_timestamp,
    parse_history,
)

A = ObjectId(b"\x01" * 16)
B = ObjectId(b"\x02" * 16)
C = ObjectId(b"\x03" * 16)
CLIENT = ClientId(b"c" * 16)


def at(time: int, *, barrier: bool = False, who: bytes = b"") -> LogicalTimestamp:
    """The timestamp at `time`; `who` tells apart those of one time."""
    return logical_timestamp(
        time_us=time, barrier=barrier, client=CLIENT, digest=who.ljust(32, b"\0")
    )


def method(time: int, on: int = 0, *objects: ObjectId) -> Candidate:
    """⟨time, on⟩ made by a method."""
    return Candidate(at(time), at(on) if on else ZERO, objects)


def copy(time: int, on: int = 0, *objects: ObjectId) -> Candidate:
    """⟨time, on⟩ made by a copy."""
    return Candidate(at(time), at(on) if on else ZERO, objects, True)


def barrier(time: int, on: int = 0) -> Candidate:
    """⟨time b, on⟩."""
    return Candidate(at(time, barrier=True), at(on) if on else ZERO)


def history(*candidates: Candidate, initial: bool = False) -> bytes:
    """A replica history, as a server encodes it."""
    return history_of(candidates, initial=initial) if candidates else b""


def seen(name: ObjectId, *histories: bytes) -> CulledObjectHistorySet:
    """What a client sees if server i reports the i-th history."""
    return assemble(
        name, {NodeId(node): Known(encoded, b"") for node, encoded in enumerate(histories)}
    )[2]


def keys(node: int, n: int = 6) -> AuthenticatorKeys:
    """Server `node`'s keys."""
    return AuthenticatorKeys(
        NodeId(node), tuple(bytes((min(node, i), max(node, i))) * 16 for i in range(n))
    )


def known(name: ObjectId, node: int, encoded: bytes, n: int = 6) -> Known:
    """A history with the authenticator that `node` makes for it."""
    digest = replica_history_digest(object=name, encoded=encoded)
    return Known(encoded, keys(node, n).make(digest))


__all__ = ["parse_history"]
