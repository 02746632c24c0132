"""Byzantine storage nodes: decorators of the honest step, with the keys and state of one node."""

from __future__ import annotations

from typing import Any

import msgspec

from bftfs.asking.refusal import Refused
from bftfs.crypto.digest import Digest
from bftfs.read_write.messages import (
    Below,
    Listed,
    ReadReply,
    ReadRequest,
    TimeReply,
    TimeRequest,
    VouchReply,
    VouchRequest,
    WriteReply,
    WriteRequest,
)
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.server.step import Sender
from bftfs.simulation.deployment import client_named
from bftfs.storage import MemoryStorage
from tests.unit.read_write.harness import Answer, Behaviour, Honest, Node


def corrupt_fragments(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
    """Flips a bit in every fragment it hands out."""
    reply, body = honest()
    if isinstance(message, ReadRequest) and len(body):
        body = bytes([body[0] ^ 1]) + bytes(body[1:])
    return reply, body


def lie_about_cross_checksums(
    _node: Node, _sender: Sender, _message: Any, honest: Honest
) -> Answer:
    """Sends another cross-checksum, one that lists what it sends."""
    reply, body = honest()
    if isinstance(reply, ReadReply) and reply.cross_checksum:
        lie = reply.cross_checksum[32:] + reply.cross_checksum[:32]
        reply = msgspec.structs.replace(reply, cross_checksum=lie)
    return reply, body


def acknowledge_without_storing(
    _node: Node, _sender: Sender, message: Any, honest: Honest
) -> Answer:
    """Says yes to every write and forgets it."""
    if isinstance(message, WriteRequest):
        return WriteReply(), b""
    return honest()


def stale() -> Behaviour:
    """Answers reads from the state it had at the first of them."""
    frozen: list[MemoryStorage] = []

    def behave(node: Node, sender: Sender, message: Any, honest: Honest) -> Answer:
        if isinstance(message, WriteRequest):
            return honest()
        if not frozen:
            frozen.append(node.storage.snapshot())
        ready = node.server.step(frozen[0], sender, message, b"", 0)
        return ready.reply, ready.body

    return behave


def fabricate_newer_versions(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
    """Claims a version just below every bound it is given, which nobody wrote."""
    if isinstance(message, TimeRequest):
        return TimeReply((2**62,) * len(message.blocks)), b""
    if isinstance(message, ReadRequest) and not message.want_data:
        top = 2**62 if message.before is None else message.before.time
        invented = tuple(
            Listed(BlockTimestamp(top - 1 - down, client_named("nobody"), Digest(b"v" * 32)), True)
            for down in range(min(message.history + 1, top - 1))
        )
        return ReadReply(invented, Below.MORE, b""), b""
    return honest()


def withhold_data(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer | None:
    """Lists its versions and never hands out a fragment."""
    if isinstance(message, ReadRequest) and message.want_data:
        return None
    return honest()


def deny_everything(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
    """Claims that nothing was ever written."""
    if isinstance(message, ReadRequest):
        return ReadReply((), Below.ORIGIN, b""), b""
    if isinstance(message, TimeRequest):
        return TimeReply((0,) * len(message.blocks)), b""
    if isinstance(message, VouchRequest):
        return VouchReply(b""), b""
    return honest()


def claim_collection(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
    """Claims that garbage collection has taken whatever is asked for."""
    if isinstance(message, ReadRequest) and message.before is not None:
        return ReadReply((), Below.COLLECTED, b""), b""
    return honest()


def refuse_everything(_node: Node, _sender: Sender, _message: Any, _honest: Honest) -> Answer:
    return Refused(28, "no space, it says"), b""


def answer_nonsense(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
    """Well-formed replies to other questions."""
    honest()
    if isinstance(message, WriteRequest):
        return TimeReply((1,)), b""
    return WriteReply(), b""


def vouch_falsely(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
    """Vouches for everything, with MACs that do not match."""
    if isinstance(message, VouchRequest):
        return VouchReply(b"f" * 96), b""
    return honest()


def claim_verified(_node: Node, _sender: Sender, _message: Any, honest: Honest) -> Answer:
    """Says of every version that it has verified it."""
    reply, body = honest()
    if isinstance(reply, ReadReply):
        versions = tuple(Listed(version.timestamp, True) for version in reply.versions)
        reply = msgspec.structs.replace(reply, versions=versions)
    return reply, body


def stateless() -> list[Behaviour]:
    """Those that need no state of their own."""
    return [
        corrupt_fragments,
        lie_about_cross_checksums,
        acknowledge_without_storing,
        fabricate_newer_versions,
        withhold_data,
        deny_everything,
        claim_collection,
        refuse_everything,
        answer_nonsense,
        vouch_falsely,
        claim_verified,
    ]
