"""The channel: who is at the other end, and that nothing was altered, repeated or moved."""

from typing import Any

import pytest
from blake3 import blake3

from bftfs import limits
from bftfs.crypto.digest import HashedFragment, fragment_digest
from bftfs.errors import (
    InvalidAuthenticator,
    MalformedMessage,
    NotAdmitted,
    PeerFault,
    ProtocolViolation,
)
from bftfs.wire.channel import HEAD_BYTES, HEADER, PREAMBLE_BYTES, FrameKind, _Stream
from tests.unit.wire.sessions import (
    CLIENT,
    NODES,
    STRANGER,
    client_end,
    established,
    server_end,
)

HELLO_MACS = "7a3d34dcc0b9cfa9a99a7215ab9fee2e789c6067c9e3db226f5305d8f70c641b"
WELCOME_MACS = "ebccc711a4611e574f85f0124b0dcb75b58fa5f591e6be0376280bb98991efca"
REQUEST_MACS = "f4e7f05dfebbae3f6b3059874a8959d9db4bf3e5376a34717b4887f781fb8115"
REPLY_MACS = "66136d4d8ff43852a3ce8bf5dc719f6da5a2001f9b9022dd36b8150b9a0bc5fc"


def sealed(buffers: list) -> bytes:
    return b"".join(buffers)


def header(kind: str, number: int, metadata_length: int, body_length: int) -> str:
    return f"62667431{kind}00000000000001{number:016x}{metadata_length:08x}{body_length:08x}"


def test_vectors() -> None:
    client, server = client_end(), server_end()
    opening = client.opening()
    assert opening.hex() == (
        header("01", 0, 114, 0)
        + HELLO_MACS
        + b"0123456789abcdef".hex()
        + "0001"
        + CLIENT.public_key.hex()
        + "6e" * 32
    )
    server.receive(opening)
    welcome = server.pending_output()
    assert welcome.hex() == header("02", 0, 32, 0) + WELCOME_MACS + "6d" * 32
    client.receive(welcome)
    request = sealed(client.seal_request(5, b"metadata", b"body"))
    assert request.hex() == header("03", 5, 8, 4) + REQUEST_MACS + b"metadatabody".hex()
    server.receive(request)
    reply = sealed(server.seal_reply(5, b"metadata", b"body"))
    assert reply.hex() == header("04", 5, 8, 4) + REPLY_MACS + b"metadatabody".hex()


def test_requests_and_replies_travel() -> None:
    client, server = established()
    body = bytes(range(256))
    stream = b"".join(sealed(client.seal_request(n, b"ask %d" % n, body[:n])) for n in range(1, 9))
    requests = server.receive(stream)
    assert [(f.kind, f.view, f.number, f.metadata, bytes(f.body)) for f in requests] == [
        (FrameKind.REQUEST, 1, n, b"ask %d" % n, body[:n]) for n in range(1, 9)
    ]
    replies = client.receive(sealed(server.seal_reply(3, b"tell", b"")))
    assert [(f.kind, f.number, f.metadata, f.body) for f in replies] == [
        (FrameKind.REPLY, 3, b"tell", b"")
    ]


def test_a_body_that_was_hashed_is_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = established()
    body = HashedFragment(b"body", fragment_digest(b"body"))
    hashed: list[bytes] = []

    def counting(data: Any, *, key: bytes) -> Any:
        hashed.append(bytes(data))
        return blake3(data, key=key)

    monkeypatch.setattr("bftfs.crypto.digest.blake3", counting)
    buffers = client.seal_request(1, b"m", body)
    assert not hashed
    (frame,) = server.receive(sealed(buffers))
    assert isinstance(frame.body, HashedFragment)
    assert (frame.body.data, fragment_digest(frame.body)) == (b"body", body.digest)
    assert hashed == [b"body"]  # by the other end, which believes nobody


def test_a_false_digest_of_a_body_is_found_by_the_other_end() -> None:
    client, server = established()
    body = HashedFragment(b"body", fragment_digest(b"another"))
    with pytest.raises(InvalidAuthenticator):
        server.receive(sealed(client.seal_request(1, b"m", body)))


def test_a_body_is_not_copied_and_nothing_is_sent_for_none() -> None:
    client, _ = established()
    body = memoryview(bytes(10))
    assert client.seal_request(1, b"m", body)[1] is body
    assert len(client.seal_request(1, b"m")) == 1
    assert len(client.seal_request(1, b"m", memoryview(b""))) == 1


def test_the_handshake_is_one_round_trip_in_any_pieces() -> None:
    client, server = client_end(), server_end()
    for byte in client.opening():
        assert server.pending_output() == b""
        assert server.receive(bytes([byte])) == []
    for byte in server.pending_output():
        assert not client.established
        assert client.receive(bytes([byte])) == []
    assert client.established
    assert server.pending_output() == b""


def test_the_peer_is_known_once_it_has_proven_itself() -> None:
    client, server = established()
    assert server.peer is None  # HELLO could be a repetition of an old one
    server.receive(sealed(client.seal_request(1, b"m")))
    assert server.peer == "client"


def test_a_node_is_a_principal_too() -> None:
    client, server = established(client_end(NODES[0]))
    server.receive(sealed(client.seal_request(1, b"m")))
    assert server.peer == "node 0"


def test_a_node_may_ask_itself() -> None:
    client, server = established(client_end(NODES[1]))
    server.receive(sealed(client.seal_request(1, b"m")))
    assert server.peer == "node 1"


# --- the handshake refused --------------------------------------------------------------------


def test_an_unknown_key_is_refused_and_told_so() -> None:
    client, server = client_end(STRANGER), server_end()
    with pytest.raises(InvalidAuthenticator, match="unknown key"):
        server.receive(client.opening())
    assert server.peer is None
    with pytest.raises(NotAdmitted):
        client.receive(server.pending_output())


@pytest.mark.parametrize("changes", [{"nonce": b"N" * 32}, {"identity": CLIENT}])
def test_nobody_else_can_say_farewell(changes: dict[str, Any]) -> None:
    """It answers one HELLO: one that was recorded shuts nobody out."""
    recorded, server = client_end(STRANGER), server_end()
    with pytest.raises(InvalidAuthenticator):
        server.receive(recorded.opening())
    farewell = server.pending_output()
    with pytest.raises(InvalidAuthenticator):
        client_end(**{"identity": STRANGER, **changes}).receive(farewell)


def test_who_does_not_hold_the_key_he_claims_is_told_nothing() -> None:
    forged = bytearray(client_end(STRANGER).opening())
    forged[-1] ^= 1  # of the nonce
    server = server_end()
    with pytest.raises(InvalidAuthenticator):
        server.receive(bytes(forged))
    assert server.pending_output() == b""


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster_id": b"another cluster!"},
        {"node": 2},
        {"node_public_key": NODES[2].public_key},
        {"view": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_hello_is_bound_to_cluster_node_and_view(changes: dict) -> None:
    server = server_end()
    with pytest.raises(PeerFault):
        server.receive(client_end(**changes).opening())
    assert server.pending_output() == b""


def test_every_bit_of_hello_is_covered() -> None:
    opening = client_end().opening()
    for bit in range(8 * len(opening)):
        altered = bytearray(opening)
        altered[bit // 8] ^= 1 << bit % 8
        server = server_end()
        with pytest.raises(PeerFault):
            server.receive(bytes(altered) + bytes(PREAMBLE_BYTES))
        assert server.pending_output() == b""


def test_a_stranger_can_claim_no_known_key() -> None:
    """The claimed key is the client's, the secret behind it is the stranger's."""
    opening = client_end(STRANGER).opening()
    forged = opening.replace(STRANGER.public_key, CLIENT.public_key)
    assert forged != opening
    with pytest.raises(InvalidAuthenticator, match="does not match"):
        server_end().receive(forged)


def test_a_repeated_hello_gets_a_welcome_and_nothing_more() -> None:
    """An old session, replayed to a node that has drawn another nonce."""
    client, server = established()
    recorded = client_end().opening()
    request = sealed(client.seal_request(1, b"m"))
    assert len(server.receive(request)) == 1
    again = server_end(nonce=b"x" * 32)
    again.receive(recorded)
    with pytest.raises(InvalidAuthenticator):
        again.receive(request)
    assert again.peer is None


def test_a_repeated_welcome_is_refused() -> None:
    _, server = client_end(), server_end()
    server.receive(client_end().opening())
    recorded = server.pending_output()
    client = client_end(nonce=b"y" * 32)
    with pytest.raises(InvalidAuthenticator):
        client.receive(recorded)
    assert not client.established


def test_another_node_cannot_welcome() -> None:
    server = server_end()
    server.receive(client_end().opening())
    nonce = server.pending_output()[PREAMBLE_BYTES:]
    impostor = client_end(NODES[2]).opening()  # any MAC that node 2 can make
    header = HEADER.pack(b"bft1", FrameKind.WELCOME, 0, 0, 1, 0, 32, 0)
    client = client_end()
    with pytest.raises(InvalidAuthenticator):
        client.receive(header + impostor[HEADER.size : PREAMBLE_BYTES] + nonce)


@pytest.mark.parametrize("kind", [FrameKind.REQUEST, FrameKind.WELCOME, FrameKind.REPLY])
def test_the_first_frame_must_be_hello(kind: int) -> None:
    opening = bytearray(client_end().opening())
    opening[4] = kind
    with pytest.raises(ProtocolViolation):
        server_end().receive(bytes(opening))


@pytest.mark.parametrize("kind", [FrameKind.REQUEST, FrameKind.HELLO, FrameKind.REPLY])
def test_the_first_answer_must_be_welcome(kind: int) -> None:
    server = server_end()
    server.receive(client_end().opening())
    welcome = bytearray(server.pending_output())
    welcome[4] = kind
    with pytest.raises(ProtocolViolation):
        client_end().receive(bytes(welcome))


def test_a_stranger_gets_no_memory() -> None:
    announced = HEADER.pack(b"bft1", FrameKind.HELLO, 0, 0, 1, 0, 115, 0) + bytes(32)
    with pytest.raises(MalformedMessage, match="are the limit"):
        server_end().receive(announced)
    announced = HEADER.pack(b"bft1", FrameKind.HELLO, 0, 0, 1, 0, 114, 1) + bytes(32)
    with pytest.raises(MalformedMessage, match="are the limit"):
        server_end().receive(announced)
    announced = HEADER.pack(b"bft1", FrameKind.WELCOME, 0, 0, 1, 0, 33, 0) + bytes(32)
    with pytest.raises(MalformedMessage, match="are the limit"):
        client_end().receive(announced)


def test_a_request_before_welcome_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        client_end().seal_request(1, b"m")


def test_a_request_piled_onto_hello_is_refused() -> None:
    """Requests follow WELCOME; nobody can have sealed one before."""
    client, _ = established()
    with pytest.raises(PeerFault):
        server_end(nonce=b"x" * 32).receive(
            client_end().opening() + sealed(client.seal_request(1, b"m"))
        )


# --- the session ------------------------------------------------------------------------------


def test_every_bit_of_a_frame_is_covered() -> None:
    """A length, too: the node does not wait for what never comes."""
    covered = PREAMBLE_BYTES + len(b"metadata") + len(b"body")
    for bit in range(8 * covered):
        client, server = established()
        altered = bytearray(sealed(client.seal_request(5, b"metadata", b"body")))
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerFault):
            server.receive(bytes(altered))
        assert server.peer is None


def test_a_head_is_checked_before_the_rest_is_here() -> None:
    """In either direction, and behind frames that are whole."""
    for bit in range(8 * HEAD_BYTES):
        client, server = established()
        first = sealed(client.seal_request(5, b"metadata", b"body"))
        altered = bytearray(sealed(client.seal_request(6, b"metadata", b"body")))
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerFault):
            server.receive(first + altered[:PREAMBLE_BYTES])
        client, server = established()
        server.receive(sealed(client.seal_request(5, b"m")))
        altered = bytearray(sealed(server.seal_reply(5, b"metadata", b"body")))
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerFault):
            client.receive(bytes(altered[:PREAMBLE_BYTES]))


def test_must_fail_without_a_check_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Stream, "check_head", lambda *_: None)
    client, server = established()
    altered = bytearray(sealed(client.seal_request(5, b"metadata", b"body")))
    altered[HEADER.size - 3] ^= 1
    assert server.receive(bytes(altered)) == []
    for number in range(100):
        assert server.receive(sealed(client.seal_request(number, b"metadata"))) == []


def test_a_request_is_accepted_once() -> None:
    client, server = established()
    request = sealed(client.seal_request(1, b"m"))
    server.receive(request)
    with pytest.raises(InvalidAuthenticator):
        server.receive(request)


def test_requests_are_accepted_in_order_only() -> None:
    client, server = established()
    first, second = (sealed(client.seal_request(n, b"m")) for n in (1, 2))
    with pytest.raises(InvalidAuthenticator):
        server.receive(second + first)


def test_a_request_cannot_be_left_out() -> None:
    client, server = established()
    client.seal_request(1, b"m")
    with pytest.raises(InvalidAuthenticator):
        server.receive(sealed(client.seal_request(2, b"m")))


def test_a_request_cannot_move_to_another_session_or_node() -> None:
    client, _ = established()
    request = sealed(client.seal_request(1, b"m"))
    _, elsewhere = established(
        client_end(node=2, node_public_key=NODES[2].public_key), server_end(NODES[2], node=2)
    )
    with pytest.raises(InvalidAuthenticator):
        elsewhere.receive(request)
    _, later = established(client_end(nonce=b"y" * 32), server_end())
    with pytest.raises(InvalidAuthenticator):
        later.receive(request)


def test_directions_do_not_mix() -> None:
    client, server = established()
    server.receive(sealed(client.seal_request(1, b"m")))
    with pytest.raises(ProtocolViolation):
        client.receive(sealed(client.seal_request(2, b"m")))
    client, server = established()
    reflected = bytearray(sealed(client.seal_request(1, b"m")))
    reflected[4] = FrameKind.REPLY
    with pytest.raises(InvalidAuthenticator):
        client.receive(bytes(reflected))


def test_two_nodes_sessions_with_each_other_do_not_mix() -> None:
    """They share one pairwise key; who began tells the two sessions apart."""
    nonces = {"nonce": b"n" * 32}
    there, _ = established(
        client_end(NODES[0], **nonces), server_end(NODES[1], node=1, nonce=b"n" * 32)
    )
    _, back = established(
        client_end(NODES[1], node=0, node_public_key=NODES[0].public_key, **nonces),
        server_end(NODES[0], node=0, nonce=b"n" * 32),
    )
    with pytest.raises(InvalidAuthenticator):
        back.receive(sealed(there.seal_request(1, b"m")))


def test_after_welcome_frames_may_be_as_large_as_the_limits() -> None:
    client, server = established()
    metadata = bytes(limits.FRAME_METADATA_BYTES)
    [request] = server.receive(sealed(client.seal_request(1, metadata)))
    assert request.metadata == metadata
    announced = HEADER.pack(
        b"bft1", FrameKind.REQUEST, 0, 0, 1, 0, limits.FRAME_METADATA_BYTES + 1, 0
    )
    with pytest.raises(MalformedMessage):
        server.receive(announced + bytes(32))


def test_nonces_have_their_size() -> None:
    with pytest.raises(ValueError, match="nonce"):
        client_end(nonce=b"short")
    with pytest.raises(ValueError, match="nonce"):
        server_end(nonce=b"short")
