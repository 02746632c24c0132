"""What the network has damaged ends the connection; it is nobody's lie.

TCP's checksum lets flipped bits through now and then. A body is a fragment: if one is delivered
that is not what was sent, a node takes the client for a liar, and a client the node.
"""

from __future__ import annotations

import pytest

from bftfs.crypto.noise import TAG_BYTES
from bftfs.errors import PeerFault
from bftfs.wire.channel import EMPTY_BYTES, PREFIX
from tests.unit.wire.sessions import established

BODY = bytes(range(256)) * 172  # as long as a fragment of a usual block
METADATA = b"metadata"
SEALED = 64 + TAG_BYTES

positions = pytest.mark.parametrize("position", [0, 1, len(BODY) // 2, len(BODY) - 1])


def flipped(sealed: bytes, position: int) -> bytes:
    """A sealed frame, one bit of whose body has changed."""
    damaged = bytearray(sealed)
    damaged[PREFIX.size + EMPTY_BYTES + len(METADATA) + position] ^= 1
    return bytes(damaged)


@positions
def test_a_damaged_request_is_not_delivered(position: int) -> None:
    client, server = established()
    sealed = b"".join(map(bytes, client.seal_request(1, METADATA, BODY)))
    delivered = []
    try:
        delivered = server.receive(flipped(sealed, position))
    except PeerFault:
        return
    assert not delivered, "the connection must end"


@positions
def test_a_damaged_reply_is_not_delivered(position: int) -> None:
    client, server = established()
    server.receive(b"".join(map(bytes, client.seal_request(1, METADATA))))
    sealed = b"".join(map(bytes, server.seal_reply(1, METADATA, BODY)))
    delivered = []
    try:
        delivered = client.receive(flipped(sealed, position))
    except PeerFault:
        return
    assert not delivered, "the connection must end"


def test_bodies_do_not_change_places() -> None:
    """Two requests whose bodies are as long as each other; the network swaps these."""
    client, server = established()
    one = b"".join(map(bytes, client.seal_request(1, METADATA, b"a" * 64)))
    other = b"".join(map(bytes, client.seal_request(2, METADATA, b"b" * 64)))
    delivered = []
    try:
        delivered = server.receive(one[:-SEALED] + other[-SEALED:])
        delivered += server.receive(other[:-SEALED] + one[-SEALED:])
    except PeerFault:
        pass
    assert not delivered, "the connection must end"


def test_what_is_whole_is_delivered_in_any_pieces() -> None:
    client, server = established()
    sealed = b"".join(map(bytes, client.seal_request(1, METADATA, BODY)))
    delivered = []
    for start in range(0, len(sealed), 1_000):
        delivered += server.receive(sealed[start : start + 1_000])
    assert [bytes(frame.body) for frame in delivered] == [BODY]
