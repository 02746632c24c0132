"""Frames, the channel's two ends, and the messages that travel in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args

from bftfs.crypto.keys import Identity
from bftfs.envelope import REPLIES, REQUESTS, Reply, Request
from bftfs.errors import MalformedMessage, PeerFault
from bftfs.identifiers import NodeId
from bftfs.query_update.history import decode_conditioned
from bftfs.wire.channel import HEADER, MAC_BYTES, MAGIC, ClientChannel, FrameParser, ServerChannel
from bftfs.wire.codec import Decoder, encode
from tests.fuzz.choices import Choices
from tests.fuzz.target import Target
from tests.fuzz.values import Pool, generate

_CLIENT, _NODE, _STRANGER = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
_CLUSTER_ID = b"fuzzed cluster.."
_NONCE = bytes(range(32))


def _principal(public_key: bytes) -> str | None:
    return "client" if public_key == _CLIENT.public_key else None


def _client_end() -> ClientChannel:
    return ClientChannel(
        identity=_CLIENT,
        node=NodeId(0),
        node_public_key=_NODE.public_key,
        cluster_id=_CLUSTER_ID,
        view=1,
        nonce=_NONCE,
    )


def _node_end() -> ServerChannel[str]:
    return ServerChannel(
        identity=_NODE,
        node=NodeId(0),
        cluster_id=_CLUSTER_ID,
        view=1,
        principal=_principal,
        nonce=_NONCE,
    )


# --- frames ---------------------------------------------------------------------------------


def _frame(kind: int, metadata: bytes, body: bytes = b"", number: int = 1) -> bytes:
    header = HEADER.pack(MAGIC, kind, 0, 0, 1, number, len(metadata), len(body))
    return header + bytes(2 * MAC_BYTES) + metadata + body


def _pieces(choices: Choices, data: bytes) -> Iterator[bytes]:
    """`data`, cut as the network may cut it."""
    while data:
        size = 1 + choices.number(len(data) if choices.flag() else min(len(data), 64))
        yield data[:size]
        data = data[size:]


def frames(data: bytes) -> None:
    """The parser gives the same frames however the stream is cut, and keeps no more than it got."""
    cuts, stream = Choices(data[:16]), data[16:]
    whole: Any
    try:
        whole = [_facts(frame) for frame in FrameParser().feed(stream)]
    except MalformedMessage:
        whole = None
    parser = FrameParser()
    frames: list[Any] = []
    fed = 0
    try:
        for piece in _pieces(cuts, stream):
            frames += map(_facts, parser.feed(piece))
            fed += len(piece)
            assert parser.buffered <= fed
    except MalformedMessage:
        assert whole is None
        return
    assert frames == whole


def _facts(frame: Any) -> tuple[Any, ...]:
    return frame.kind, frame.view, frame.number, frame.metadata, bytes(frame.body), frame.mac


def _frame_seeds() -> Iterable[bytes]:
    yield bytes(16) + _frame(3, b"metadata", b"body") + _frame(4, b"", b"")
    yield bytes(range(16)) + _frame(1, bytes(130))[:90]


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
            nonce=_NONCE,
        )
    greeting = client.opening()
    received = node.receive(_spoiled(choices, greeting))
    assert not received, "nothing is delivered before a principal has proven who it is"
    answer = node.pending_output()
    if answer:
        assert identity is _CLIENT
        client.receive(answer)
    sealed: list[tuple[int, bytes, bytes]] = []
    while client.established and not choices.exhausted:
        number, body = choices.number(1 << 16), choices.octets(choices.number(40))
        metadata = choices.octets(choices.number(40))
        sealed.append((number, metadata, body))
        stream = b"".join(map(bytes, client.seal_request(number, metadata, body)))
        for frame in node.receive(_spoiled(choices, stream)):
            expected = sealed.pop(0)
            assert (frame.number, frame.metadata) == expected[:2], "only what was sealed"
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
    node.receive(b"".join(map(bytes, client.seal_request(1, b"request"))))
    sealed: list[tuple[int, bytes]] = []
    while not choices.exhausted:
        number, metadata = choices.number(1 << 16), choices.octets(choices.number(40))
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
