"""The channel: who is at the other end, and that nothing was read, altered, repeated or moved."""

import contextlib
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest

from bftfs import limits
from bftfs.crypto import noise
from bftfs.crypto.keys import Identity
from bftfs.crypto.noise import CipherState, Initiator, Responder
from bftfs.errors import (
    InvalidAuthenticator,
    MalformedMessage,
    NotAdmitted,
    OtherVersion,
    PeerFault,
    ProtocolViolation,
)
from bftfs.wire.channel import (
    EMPTY_BYTES,
    FRONT_BYTES,
    HEAD,
    HELLO_BYTES,
    LENGTH,
    MAGIC,
    PREFIX,
    WELCOME_BYTES,
    FrameReader,
)
from tests.unit.wire.sessions import (
    CLIENT,
    NODES,
    STRANGER,
    client_end,
    established,
    greeted,
    server_end,
)

HELLO = (
    "62667433cba64a831d955b8bf03c2e3b5eae32661770cbe3ec56f45c0cbb84db2072b6546783551f9e550f8e65"
    "e46ec9593ee27dd4e7f5ada83864301974ba1d8cca31277843e26aa5ea1299542c8c87e4b49973e96205b6de8d"
    "8e66dc502c64dd89f3331599bd9fa8ee1acaace2f1e3ff976637ba895a8135e81578abc3a15d947395e2"
)
WELCOME = (
    "62667433635de5eb039fc126a017b9e789e1db721cdd51f7ed3f5515d18e2f4e2dd7851a3a579e647ec5d2b493"
    "8888fcb48396a4ef"
)
CONFIRMATION = "0000001c35458353787a9f0e8570af79edf6a61a9b421ed64eb695c5aaaad38fa7146f25"
REQUEST = (
    "000000241d473bcde98ac2429bff436d94133bd69b7858ec8a3eb4130b9358361ef037408adbf4b9f1cd7bcaeb"
    "6ca0eaa9d9f33f3877368d69acfd4647a001f8"
)
REPLY = (
    "000000241d473bcd460577188b5600b73b7f25c9b44fc5af4d839f6962ae44e3ba39ff01b7274f6d98b7facd0c"
    "cdc925ec0e00a55f3a7f31aeb814b676ee7e08"
)


def sealed(buffers: list) -> bytes:
    return b"".join(buffers)


def test_vectors() -> None:
    client, server = client_end(), server_end()
    opening = client.opening()
    assert opening.hex() == HELLO
    server.receive(opening)
    welcome = server.pending_output()
    assert welcome.hex() == WELCOME
    client.receive(welcome)
    assert (len(opening), len(welcome)) == (HELLO_BYTES, WELCOME_BYTES)
    confirmation = sealed(client.confirmation())
    assert confirmation.hex() == CONFIRMATION
    server.receive(confirmation)
    request = sealed(client.seal_request(5, b"metadata", b"body"))
    assert request.hex() == REQUEST
    server.receive(request)
    reply = sealed(server.seal_reply(5, b"metadata", b"body"))
    assert reply.hex() == REPLY


def test_requests_and_replies_travel() -> None:
    client, server = established()
    body = bytes(range(256))
    stream = b"".join(sealed(client.seal_request(n, b"ask %d" % n, body[:n])) for n in range(1, 9))
    requests = server.receive(stream)
    assert [(f.number, f.metadata, f.body) for f in requests] == [
        (n, b"ask %d" % n, body[:n]) for n in range(1, 9)
    ]
    replies = client.receive(sealed(server.seal_reply(3, b"tell", b"")))
    assert [(f.number, f.metadata, f.body) for f in replies] == [(3, b"tell", b"")]


def test_what_was_received_may_be_overwritten() -> None:
    """Hosts receive into one buffer; frames are no views of it."""
    client, server = established()
    scratch = bytearray(sealed(client.seal_request(1, b"m", b"body")))
    (frame,) = server.receive(memoryview(scratch))
    scratch[:] = bytes(len(scratch))
    assert (frame.metadata, frame.body) == (b"m", b"body")


def test_nothing_is_sent_for_no_body() -> None:
    client, _ = established()
    assert len(client.seal_request(1, b"m", memoryview(b"body"))) == 2
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
    client, server = greeted()
    assert server.peer is None  # HELLO could be a repetition of an old one
    assert server.claimed == "client"
    confirmation = sealed(client.confirmation())
    assert server.receive(confirmation[:-1]) == []
    assert server.peer is None
    assert server.receive(confirmation[-1:]) == []
    assert server.peer == "client"
    (frame,) = server.receive(sealed(client.seal_request(1, b"m")))
    assert frame.metadata == b"m"


def test_nobody_says_nothing_twice() -> None:
    """It would cost the node work that no limit counts."""
    client, server = established()
    with pytest.raises(ProtocolViolation):
        server.receive(sealed(client.confirmation()))


def test_a_node_has_nothing_to_confirm() -> None:
    """WELCOME has proven it."""
    client, server = established()
    with pytest.raises(ProtocolViolation):
        client.receive(sealed(server.seal_reply(0, b"")))


@pytest.mark.parametrize("request_", [(1, b"m"), (1, b"", b"body"), (1, b"m" * 5_000, b"body")])
def test_a_request_in_the_place_of_a_confirmation_is_refused(request_: Any) -> None:
    """As soon as it begins: who may be a stranger gets no memory for it."""
    client, server = greeted()
    stream = sealed(client.seal_request(*request_))
    with pytest.raises(PeerFault):
        server.receive(stream[: PREFIX.size + EMPTY_BYTES])
    assert server.peer is None


def test_until_it_has_confirmed_a_peer_gets_the_memory_of_that() -> None:
    client, server = greeted()
    confirmation = sealed(client.confirmation())
    for number, byte in enumerate(confirmation[:-1], 1):
        assert server.receive(bytes([byte])) == []
        assert server.buffered == number
    assert len(confirmation) == PREFIX.size + EMPTY_BYTES


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


@pytest.mark.parametrize("changes", [{"entropy": b"N" * 32}, {"identity": CLIENT}])
def test_nobody_else_can_say_that_a_key_is_unknown(changes: dict[str, Any]) -> None:
    """It answers one HELLO: one that was recorded shuts nobody out."""
    recorded, server = client_end(STRANGER), server_end()
    with pytest.raises(InvalidAuthenticator):
        server.receive(recorded.opening())
    answer = server.pending_output()
    with pytest.raises(InvalidAuthenticator):
        client_end(**{"identity": STRANGER, **changes}).receive(answer)


def test_a_network_sees_no_difference_between_welcome_and_refusal() -> None:
    sizes = set()
    for identity in (CLIENT, STRANGER):
        server = server_end()
        with contextlib.suppress(InvalidAuthenticator):
            server.receive(client_end(identity).opening())
        sizes.add(len(server.pending_output()))
    assert sizes == {WELCOME_BYTES}


def test_who_does_not_hold_the_key_he_claims_is_told_nothing() -> None:
    forged = bytearray(client_end(STRANGER).opening())
    forged[-1] ^= 1
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
            server.receive(bytes(altered))
        assert server.pending_output() in (b"", MAGIC)


def test_a_stranger_can_claim_no_known_key() -> None:
    """The claimed key is the client's, the secret behind it is the stranger's."""
    impostor = Identity.generate(b"s" * 32)
    stolen: Any = impostor.agreement
    stolen.public = CLIENT.agreement.public
    impostor.public_key = CLIENT.public_key
    with pytest.raises(InvalidAuthenticator):
        server_end().receive(client_end(impostor).opening())


def test_half_of_a_known_key_is_unknown() -> None:
    half = Identity.generate(b"s" * 32)
    half.public_key = half.public_key[:32] + CLIENT.public_key[32:]
    with pytest.raises(InvalidAuthenticator, match="unknown key"):
        server_end().receive(client_end(half).opening())


def test_a_repeated_hello_gets_a_welcome_and_nothing_more() -> None:
    """An old session, replayed to a node that has drawn another nonce."""
    client, server = greeted()
    recorded = client_end().opening()
    session = sealed([*client.confirmation(), *client.seal_request(1, b"m")])
    assert len(server.receive(session)) == 1
    again = server_end(entropy=b"x" * 32)
    again.receive(recorded)
    with pytest.raises(InvalidAuthenticator):
        again.receive(session)
    assert again.peer is None


def test_a_repeated_welcome_is_refused() -> None:
    _, server = client_end(), server_end()
    server.receive(client_end().opening())
    recorded = server.pending_output()
    client = client_end(entropy=b"y" * 32)
    with pytest.raises(InvalidAuthenticator):
        client.receive(recorded)
    assert not client.established


def test_another_node_cannot_welcome() -> None:
    """Though it knows the greeting, and what the node meant would say."""
    client = client_end()
    for impostor in (NODES[2], STRANGER, CLIENT):
        server = server_end()
        server.receive(client.opening())
        forged = server_end(impostor)
        with pytest.raises(InvalidAuthenticator):
            forged.receive(client.opening())
    own = client_end(node_public_key=NODES[2].public_key)
    answer = server_end(NODES[2])
    answer.receive(own.opening())
    with pytest.raises(InvalidAuthenticator):
        client.receive(answer.pending_output())
    assert not client.established


def test_every_bit_of_welcome_is_covered() -> None:
    for bit in range(8 * WELCOME_BYTES):
        server, client = server_end(), client_end()
        server.receive(client.opening())
        altered = bytearray(server.pending_output())
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerFault):
            client.receive(bytes(altered))
        assert not client.established


def test_ends_do_not_greet_themselves() -> None:
    """A reflected HELLO, or WELCOME, is for nobody."""
    client = client_end(NODES[1])  # a node that asks itself has the best chance
    with pytest.raises(PeerFault):
        client.receive(client.opening())
    server = server_end()
    server.receive(client_end(NODES[1]).opening())
    welcome = server.pending_output()
    with pytest.raises(PeerFault):
        server_end().receive(welcome + bytes(HELLO_BYTES))


# --- versions -----------------------------------------------------------------------------------

OLD_HELLO = b"bft1" + bytes((1, 0, 0, 0)) + bytes(166)


@pytest.mark.parametrize(
    "greeting", [OLD_HELLO, b"bft2" + bytes(200), b"bft4" + bytes(200), b"bft1"]
)
def test_another_version_is_told_which_one_is_spoken(greeting: bytes) -> None:
    server = server_end()
    with pytest.raises(OtherVersion, match="install the same release"):
        server.receive(greeting)
    assert server.pending_output() == MAGIC
    client = client_end()
    with pytest.raises(OtherVersion, match=r"'bft[124]'.*'bft3'"):
        client.receive(greeting)
    assert not client.established


def test_versions_do_not_mix() -> None:
    """Where the network changes the version at both ends, they agree on nothing."""
    opening = client_end().opening()
    with pytest.raises(OtherVersion):
        server_end().receive(b"bft1" + opening[len(MAGIC) :])


def test_an_older_node_that_hears_of_a_newer_version_stays_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The version is part of what keys are derived from."""
    client = client_end()
    monkeypatch.setattr("bftfs.wire.channel.MAGIC", b"bft4")
    server = server_end()
    with pytest.raises(InvalidAuthenticator):
        server.receive(b"bft4" + client.opening()[4:])


@pytest.mark.parametrize("end", [server_end, client_end])
def test_what_is_no_greeting_is_refused_at_once(end: Callable[[], Any]) -> None:
    for noise_ in (b"GET / HTTP/1.1\r\n", b"\0", b"bfx"):
        with pytest.raises(MalformedMessage):
            end().receive(noise_)


def test_a_stranger_gets_no_memory() -> None:
    server = server_end()
    for byte in client_end().opening()[:-1]:
        assert server.receive(bytes([byte])) == []
        assert server.buffered == 0
    with pytest.raises(InvalidAuthenticator):
        server.receive(bytes(1 << 20))


def test_a_request_before_welcome_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        client_end().seal_request(1, b"m")


def test_a_request_piled_onto_hello_is_refused() -> None:
    """Requests follow WELCOME; nobody can have sealed one before."""
    client, _ = greeted()
    session = sealed([*client.confirmation(), *client.seal_request(1, b"m")])
    with pytest.raises(PeerFault):
        server_end(entropy=b"x" * 32).receive(client_end().opening() + session)


# --- the session ------------------------------------------------------------------------------


FRAME = PREFIX.size + EMPTY_BYTES + len(b"metadata") + len(b"body") + 16


def test_every_bit_of_a_frame_is_covered() -> None:
    """A length, too: the node does not wait for what never comes."""
    for bit in range(8 * FRAME):
        client, server = established()
        altered = bytearray(sealed(client.seal_request(5, b"metadata", b"body")))
        assert len(altered) == FRAME
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidAuthenticator):
            server.receive(bytes(altered))


def test_every_byte_of_a_reply_is_covered() -> None:
    for at in range(FRAME):
        client, server = established()
        server.receive(sealed(client.seal_request(5, b"m")))
        altered = bytearray(sealed(server.seal_reply(5, b"metadata", b"body")))
        altered[at] ^= 0xFF
        with pytest.raises(InvalidAuthenticator):
            client.receive(bytes(altered))


def test_a_frame_may_break_at_any_byte() -> None:
    """What has come is kept; the rest completes it, and the frame behind it."""
    for at in range(2 * FRAME):
        client, server = established()
        stream = b"".join(
            sealed(client.seal_request(number, b"metadata", b"body")) for number in (5, 6)
        )
        frames = server.receive(stream[:at])
        assert len(frames) == at // FRAME
        frames += server.receive(stream[at:])
        assert [(f.number, f.metadata, f.body) for f in frames] == [
            (5, b"metadata", b"body"),
            (6, b"metadata", b"body"),
        ]


def test_what_is_cut_out_of_a_stream_ends_it() -> None:
    for at in range(FRAME):
        client, server = established()
        stream = b"".join(
            sealed(client.seal_request(number, b"metadata", b"body")) for number in (5, 6)
        )
        with pytest.raises(InvalidAuthenticator):
            server.receive(stream[:at] + stream[at + 1 :] + bytes(1))


def test_a_length_is_checked_before_the_rest_is_here() -> None:
    """In either direction, and behind frames that are whole."""
    for bit in range(8 * PREFIX.size):
        client, server = established()
        first = sealed(client.seal_request(5, b"metadata", b"body"))
        altered = bytearray(sealed(client.seal_request(6, b"metadata", b"body")))
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerFault):
            server.receive(first + altered[: PREFIX.size])
        client, server = established()
        server.receive(sealed(client.seal_request(5, b"m")))
        altered = bytearray(sealed(server.seal_reply(5, b"metadata", b"body")))
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerFault):
            client.receive(bytes(altered[: PREFIX.size]))


def test_a_length_of_a_body_is_checked_before_the_body_is_here() -> None:
    front = PREFIX.size + EMPTY_BYTES + len(b"metadata")
    for bit in range(8 * PREFIX.size, 8 * front):
        client, server = established()
        altered = bytearray(sealed(client.seal_request(5, b"metadata", b"body")))
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidAuthenticator):
            server.receive(bytes(altered[:front]))


def test_a_forged_length_delivers_nothing() -> None:
    """Somebody on the way writes another one, with its CRC."""
    for length in (EMPTY_BYTES, EMPTY_BYTES + 7, EMPTY_BYTES + 9, FRONT_BYTES):
        client, server = established()
        stream = sealed(client.seal_request(5, b"metadata", b"body"))[PREFIX.size :]
        forged = PREFIX.pack(length, crc32(LENGTH.pack(length)))
        if length <= len(stream):
            with pytest.raises(InvalidAuthenticator):
                server.receive(forged + stream)
        else:
            assert server.receive(forged + stream) == []
            assert server.buffered == PREFIX.size + len(stream)
            with pytest.raises(InvalidAuthenticator):
                server.receive(bytes(length))


def test_must_fail_where_a_length_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session waits for what never comes."""
    monkeypatch.setattr("bftfs.wire.channel.crc32", lambda _: 0)
    client, server = established()
    altered = bytearray(sealed(client.seal_request(5, b"metadata", b"body")))
    altered[LENGTH.size - 3] ^= 1
    assert server.receive(bytes(altered)) == []
    for number in range(100):
        assert server.receive(sealed(client.seal_request(number, b"metadata"))) == []


def test_no_byte_of_what_is_said_is_seen() -> None:
    client, server = established()
    secret = b"a name that nobody else may know"
    request = sealed(client.seal_request(1, secret, secret))
    server.receive(request)
    reply = sealed(server.seal_reply(1, secret, secret))
    again = sealed(server.seal_reply(1, secret, secret))
    for stream in (request, reply, again):
        for start in range(len(secret) - 4):
            assert secret[start : start + 4] not in stream
    assert reply != again


def test_must_fail_where_nothing_is_encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CipherState, "seal", lambda _, plaintext: bytes(plaintext) + bytes(16))
    client, _ = greeted()
    assert b"a name" in sealed(client.seal_request(1, b"a name"))


def test_who_connects_is_not_seen() -> None:
    opening = client_end().opening()
    for start in range(0, 64, 8):
        assert CLIENT.public_key[start : start + 8] not in opening


def test_static_keys_do_not_open_an_earlier_session() -> None:
    """Forward secrecy: they and all that was sent are not enough, without what was forgotten."""
    client, server = client_end(), server_end()
    opening = client.opening()
    server.receive(opening)
    client.receive(server.pending_output())
    session = sealed([*client.confirmation(), *client.seal_request(1, b"secret")])
    for entropy in (b"x" * 32, b"y" * 32):  # anything but what this session drew
        later = server_end(entropy=entropy)
        later.receive(opening)
        with pytest.raises(InvalidAuthenticator):
            later.receive(session)


@pytest.mark.parametrize("end", ["client", "server"])
def test_what_a_session_drew_is_forgotten(end: str) -> None:
    client, server = established()
    kept: Any = client if end == "client" else server
    assert not any(isinstance(value, Initiator | Responder) for value in vars(kept).values())
    assert {b"n" * 32, b"m" * 32}.isdisjoint(
        value for value in vars(kept).values() if isinstance(value, bytes)
    )


def test_sessions_go_on_under_new_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "MESSAGES_PER_KEY", 4)
    client, server = established()
    for number in range(20):
        (frame,) = server.receive(sealed(client.seal_request(number, b"m", b"b")))
        assert frame.number == number
        (frame,) = client.receive(sealed(server.seal_reply(number, b"m")))
        assert frame.number == number


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
    _, later = established(client_end(entropy=b"y" * 32), server_end())
    with pytest.raises(InvalidAuthenticator):
        later.receive(request)


def test_directions_do_not_mix() -> None:
    client, server = established()
    server.receive(sealed(client.seal_request(1, b"m")))
    with pytest.raises(InvalidAuthenticator):
        client.receive(sealed(client.seal_request(2, b"m")))
    client, server = established()
    server.receive(sealed(client.seal_request(1, b"m")))
    with pytest.raises(InvalidAuthenticator):
        server.receive(sealed(server.seal_reply(1, b"m")))


def test_must_fail_where_directions_share_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client has sent comes back to it as the node's word."""
    monkeypatch.setattr(
        "bftfs.crypto.noise._SymmetricState.split",
        lambda _: (CipherState(b"k" * 32), CipherState(b"k" * 32)),
    )
    client, _ = greeted()
    (frame,) = client.receive(sealed(client.seal_request(1, b"mine")))
    assert frame.metadata == b"mine"


def test_must_fail_where_a_session_draws_nothing() -> None:
    """The same entropy at both ends: what was recorded is valid once more."""
    client, server = greeted()
    recorded = sealed([*client.confirmation(), *client.seal_request(1, b"m")])
    assert server.receive(recorded)
    again = server_end()  # as the first one
    again.receive(client.opening())
    assert again.receive(recorded)


def test_two_nodes_sessions_with_each_other_do_not_mix() -> None:
    """Both hold the same two keys; who began tells the two sessions apart."""
    drawn = {"entropy": b"n" * 32}
    there, _ = established(
        client_end(NODES[0], **drawn), server_end(NODES[1], node=1, entropy=b"n" * 32)
    )
    _, back = established(
        client_end(NODES[1], node=0, node_public_key=NODES[0].public_key, **drawn),
        server_end(NODES[0], node=0, entropy=b"n" * 32),
    )
    with pytest.raises(InvalidAuthenticator):
        back.receive(sealed(there.seal_request(1, b"m")))


def test_after_welcome_frames_may_be_as_large_as_the_limits() -> None:
    client, server = established()
    metadata = bytes(limits.FRAME_METADATA_BYTES)
    [request] = server.receive(sealed(client.seal_request(1, metadata)))
    assert request.metadata == metadata


def test_a_larger_front_is_refused_by_its_length() -> None:
    """Even that of a member of the cluster. Nobody has authenticated it, so it is nobody's lie."""
    client, server = established()
    stream = sealed(client.seal_request(1, bytes(limits.FRAME_METADATA_BYTES + 1)))
    with pytest.raises(InvalidAuthenticator, match="are the limit"):
        server.receive(stream[: PREFIX.size])


def test_a_front_that_has_no_room_for_a_number_is_refused() -> None:
    _, server = established()
    with pytest.raises(InvalidAuthenticator, match="are the least"):
        server.receive(PREFIX.pack(EMPTY_BYTES - 1, crc32(LENGTH.pack(EMPTY_BYTES - 1))))


def test_a_larger_body_is_refused_by_its_front() -> None:
    """Even that of a member of the cluster."""
    writer, reader = CipherState(b"k" * 32), FrameReader(CipherState(b"k" * 32), proven=True)
    front = writer.seal(HEAD.pack(1, limits.FRAME_BODY_BYTES + 1) + b"m")
    with pytest.raises(MalformedMessage, match="are the limit"):
        reader.feed(PREFIX.pack(len(front), crc32(LENGTH.pack(len(front)))) + front)


def test_entropy_has_its_size() -> None:
    with pytest.raises(ValueError, match="random bytes"):
        client_end(entropy=b"short")
    with pytest.raises(ValueError, match="random bytes"):
        server_end(entropy=b"short")
