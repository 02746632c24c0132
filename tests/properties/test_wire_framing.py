"""A stream of frames means the same however it is divided; any other stream is malformed."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from bftfs.errors import MalformedMessage, PeerFault
from bftfs.wire.channel import HEADER, MAC_BYTES, PREAMBLE_BYTES, FrameParser
from tests.unit.wire.sessions import client_end, established, server_end

FUZZ = settings(max_examples=300, deadline=None, derandomize=True)

frames = st.tuples(
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=100),
    st.binary(max_size=100),
    st.binary(min_size=16, max_size=16),
)


def serialised(
    kind: int, view: int, number: int, metadata: bytes, body: bytes, mac: bytes
) -> bytes:
    header = HEADER.pack(b"bft1", kind, 0, 0, view, number, len(metadata), len(body))
    return header + bytes(MAC_BYTES) + mac + metadata + body


def divided(stream: bytes, data: st.DataObject) -> list[bytes]:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    edges = [0, *cuts, len(stream)]
    return [stream[start:stop] for start, stop in pairwise(edges)]


@FUZZ
@given(st.lists(frames, max_size=8), st.data())
def test_any_division_of_a_stream(sent: list[tuple], data: st.DataObject) -> None:
    stream = b"".join(serialised(*frame) for frame in sent)
    parser = FrameParser()
    found = [frame for piece in divided(stream, data) for frame in parser.feed(piece)]
    assert [(f.kind, f.view, f.number, f.metadata, bytes(f.body), f.mac) for f in found] == sent
    assert [f.head + f.mac for f in found] == [
        serialised(*frame)[:PREAMBLE_BYTES] for frame in sent
    ]


@FUZZ
@given(st.binary(max_size=300), st.booleans(), st.data())
def test_any_bytes(noise: bytes, like_a_header: bool, data: st.DataObject) -> None:
    stream = b"bft1\x03\x00\x00\x00" + noise if like_a_header else noise
    parser = FrameParser(metadata_limit=64, body_limit=64)
    taken = 0
    try:
        for piece in divided(stream, data):
            for frame in parser.feed(piece):
                taken += PREAMBLE_BYTES + len(frame.metadata) + len(frame.body)
    except MalformedMessage:
        return
    assert len(stream) - taken < PREAMBLE_BYTES + 128


@FUZZ
@given(st.binary(max_size=300), st.integers(0, 4), st.data())
def test_strangers_learn_and_get_nothing(noise: bytes, kind: int, data: st.DataObject) -> None:
    """No bytes but a HELLO under a known key move either end of a channel."""
    prefix = HEADER.pack(b"bft1", kind, 0, 0, 1, 0, 114 if kind == 1 else 32, 0)
    stream = prefix + noise if kind else noise
    server, client = server_end(), client_end()
    for end in (server, client):
        try:
            for piece in divided(stream, data):
                assert end.receive(piece) == []
        except PeerFault:
            pass
    assert server.pending_output() == b""
    assert server.peer is None
    assert not client.established


@FUZZ
@given(
    st.lists(st.tuples(st.binary(max_size=50), st.binary(max_size=50)), min_size=1, max_size=4),
    st.data(),
)
def test_an_altered_session_delivers_a_prefix_of_what_was_sent(
    sent: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    client, server = established()
    stream = bytearray()
    covered = []  # positions that a MAC covers; bodies are covered by their digests instead
    for number, (metadata, body) in enumerate(sent):
        start = len(stream)
        stream += b"".join(client.seal_request(number, metadata, body))
        covered += range(start, len(stream) - len(body))
    at = data.draw(st.sampled_from(covered))
    stream[at] ^= data.draw(st.integers(1, 255))
    delivered: list[tuple[bytes, bytes]] = []
    try:
        for piece in divided(bytes(stream), data):
            delivered += [(frame.metadata, bytes(frame.body)) for frame in server.receive(piece)]
    except PeerFault:
        pass
    assert delivered == sent[: len(delivered)]
    assert len(delivered) < len(sent)
