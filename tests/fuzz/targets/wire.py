"""Frames, the channel's two ends, and the messages that travel in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args
from zlib import crc32

from bftfs.crypto.keys import Identity
from bftfs.crypto.noise import CipherState
from bftfs.envelope import REPLIES, REQUESTS, Reply, Request
from bftfs.errors import MalformedMessage, PeerFault
from bftfs.identifiers import NodeId
from bftfs.query_update.history import decode_conditioned
from bftfs.wire.channel import HEAD, LENGTH, PREFIX, ClientChannel, FrameReader, ServerChannel
from bftfs.wire.codec import Decoder, encode
from tests.fuzz.choices import Choices
from tests.fuzz.target import Target
from tests.fuzz.values import Pool, generate

_CLIENT, _NODE, _STRANGER = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
_CLUSTER_ID = b"fuzzed cluster.."
_DRAWN = _KEY = bytes(range(32))


def _principal(public_key: bytes) -> str | None:
    return "client" if public_key == _CLIENT.public_key else None


def _client_end() -> ClientChannel:
    return ClientChannel(
        identity=_CLIENT,
        node=NodeId(0),
        node_public_key=_NODE.public_key,
        cluster_id=_CLUSTER_ID,
        view=1,
        entropy=_DRAWN,
    )


def _node_end() -> ServerChannel[str]:
    return ServerChannel(
        identity=_NODE,
        node=NodeId(0),
        cluster_id=_CLUSTER_ID,
        view=1,
        principal=_principal,
        entropy=_DRAWN,
    )


# --- frames ---------------------------------------------------------------------------------


def _stream(frames: Iterable[tuple[int, int, bytes, bytes]]) -> bytes:
    """Frames by the format alone; the first two numbers are added to the lengths that they tell."""
    cipher = CipherState(_KEY)
    stream = b""
    for metadata_more, body_more, metadata, body in frames:
        front = cipher.seal(HEAD.pack(1, len(body) + body_more) + metadata)
        length = len(front) + metadata_more
        stream += PREFIX.pack(length, crc32(LENGTH.pack(length))) + front
        stream += cipher.seal(body) if body else b""
    return stream


def _pieces(choices: Choices, data: bytes) -> Iterator[bytes]:
    """`data`, cut as the network may cut it."""
    while data:
        size = 1 + choices.number(len(data) if choices.flag() else min(len(data), 64))
        yield data[:size]
        data = data[size:]


def frames(data: bytes) -> None:
    """The reader gives the same frames however the stream is cut, and keeps no more than it got.

    The stream is sealed by a member, who may tell any lengths.
    """
    choices = Choices(data)
    sent = []
    while not choices.exhausted and len(sent) < 8:
        more = (choices.number(1 << 23), choices.number(1 << 24)) if choices.flag(3) else (0, 0)
        sent.append(
            (*more, choices.octets(choices.number(300)), choices.octets(choices.number(40)))
        )
    stream = _spoiled(choices, _stream(sent)) if choices.flag(4) else _stream(sent)
    whole, fault = _read([stream])
    divided, other = _read(_pieces(choices, stream))
    assert divided[: len(whole)] == whole[: len(divided)]
    assert (fault is None) == (other is None)
    if fault is None:
        assert divided == whole


def _read(pieces: Iterable[bytes]) -> tuple[list[Any], PeerFault | None]:
    reader = FrameReader(CipherState(_KEY), proven=True)
    found: list[Any] = []
    fed = 0
    try:
        for piece in pieces:
            found += [(frame.number, frame.metadata, frame.body) for frame in reader.feed(piece)]
            fed += len(piece)
            assert reader.buffered <= fed
    except PeerFault as fault:
        return found, fault
    return found, None


def _frame_seeds() -> Iterable[bytes]:
    yield bytes(64)
    yield bytes(range(1, 200, 3))
    yield b"\2" * 60
    yield bytes((number * 7) % 251 for number in range(900))


# --- the channel ----------------------------------------------------------------------------


def _spoiled(choices: Choices, frame: bytes) -> bytes:
    """`frame`, perhaps with something changed."""
    if choices.flag():
        return frame
    octets = bytearray(frame)
    how = choices.number(4)
    at = choices.number(len(octets)) if octets else 0
    if how == 0 and octets:
        octets[at] ^= 1 << choices.number(8)
    elif how == 1:
        del octets[at:]
    elif how == 2:
        octets[at:at] = choices.octets(1 + choices.number(64))
    else:
        octets = bytearray(octets[:at] + octets)
    return bytes(octets)


def channel_at_node(data: bytes) -> None:
    """A node's end: strangers get nothing, and members only what they have sealed, in order."""
    choices = Choices(data)
    client, node = _client_end(), _node_end()
    identity = choices.pick((_CLIENT, _CLIENT, _CLIENT, _STRANGER))
    if identity is _STRANGER:
        client = ClientChannel(
            identity=_STRANGER,
            node=NodeId(choices.number(3)),
            node_public_key=_NODE.public_key,
            cluster_id=_CLUSTER_ID,
            view=1 + choices.number(2),
            entropy=_DRAWN,
        )
    greeting = client.opening()
    received = node.receive(_spoiled(choices, greeting))
    assert not received, "nothing is delivered before a principal has proven who it is"
    answer = node.pending_output()
    if answer:
        assert identity is _CLIENT
        client.receive(answer)
    if client.established and not choices.flag(4):
        node.receive(b"".join(map(bytes, client.confirmation())))
    sealed: list[tuple[int, bytes, bytes]] = []
    while client.established and not choices.exhausted:
        number, body = choices.number(1 << 16), choices.octets(choices.number(40))
        metadata = choices.octets(1 + choices.number(40))
        sealed.append((number, metadata, body))
        stream = b"".join(map(bytes, client.seal_request(number, metadata, body)))
        for frame in node.receive(_spoiled(choices, stream)):
            expected = sealed.pop(0)
            assert (frame.number, frame.metadata, frame.body) == expected, "only what was sealed"
    if choices.flag():
        node.receive(choices.rest())


def channel_at_client(data: bytes) -> None:
    """A client's end, of which the node may be anybody."""
    choices = Choices(data)
    client, node = _client_end(), _node_end()
    node.receive(client.opening())
    client.receive(_spoiled(choices, node.pending_output()))
    if not client.established:
        return
    node.receive(b"".join(map(bytes, client.confirmation())))
    sealed: list[tuple[int, bytes]] = []
    while not choices.exhausted:
        number, metadata = choices.number(1 << 16), choices.octets(1 + choices.number(40))
        sealed.append((number, metadata))
        stream = b"".join(map(bytes, node.seal_reply(number, metadata, choices.octets(4))))
        for frame in client.receive(_spoiled(choices, stream)):
            assert (frame.number, frame.metadata) == sealed.pop(0), "only what was sealed"


def _channel_seeds() -> Iterable[bytes]:
    yield bytes(64)
    yield bytes(range(1, 120, 2))
    yield b"\3" + bytes(32)


# --- messages -------------------------------------------------------------------------------


def _decoding(decoder: Decoder[Any]) -> Any:
    def decode(data: bytes) -> None:
        """Any bytes are refused, or are the one encoding of a message."""
        message = decoder.decode(data)
        assert encode(message) == data

    return decode


def _message_seeds(union: Any) -> Any:
    def seeds() -> Iterable[bytes]:
        pool = Pool()
        for message in get_args(union):
            for number in range(2):
                yield encode(generate(Choices(bytes([number, 1, 7, 3] * 20)), message, pool))

    return seeds


def conditioned(data: bytes) -> None:
    """What a timestamp stands for, inside of requests and of replies."""
    assert encode(decode_conditioned(data)) == data


def _conditioned_seeds() -> Iterable[bytes]:
    from bftfs.query_update.history import Conditioned

    pool = Pool()
    for number in range(16):
        yield encode(generate(Choices(bytes([3, number, 1, 2] * 40)), Conditioned, pool))


TARGETS = (
    Target("frames", frames, seeds=_frame_seeds),
    Target("channel-at-node", channel_at_node, (PeerFault,), seeds=_channel_seeds),
    Target("channel-at-client", channel_at_client, (PeerFault,), seeds=_channel_seeds),
    Target(
        "requests",
        _decoding(REQUESTS),
        (MalformedMessage,),
        seeds=_message_seeds(Request),
        explains=True,
    ),
    Target(
        "replies",
        _decoding(REPLIES),
        (MalformedMessage,),
        seeds=_message_seeds(Reply),
        explains=True,
    ),
    Target(
        "conditioned",
        conditioned,
        (MalformedMessage,),
        seeds=_conditioned_seeds,
        explains=True,
    ),
)
