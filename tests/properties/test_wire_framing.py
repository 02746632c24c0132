"""A stream of frames means the same however it is divided; any other stream ends the session."""

import contextlib
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from bftfs.crypto.noise import CipherState
from bftfs.errors import PeerFault
from bftfs.wire.channel import EMPTY_BYTES, MAGIC, PREFIX, FrameReader
from tests.unit.wire.sessions import client_end, established, server_end

FUZZ = settings(max_examples=300, deadline=None, derandomize=True)

frames = st.tuples(
    st.integers(0, 2**64 - 1), st.binary(min_size=1, max_size=100), st.binary(max_size=100)
)


def divided(stream: bytes, data: st.DataObject) -> list[bytes]:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    edges = [0, *cuts, len(stream)]
    return [stream[start:stop] for start, stop in pairwise(edges)]


@FUZZ
@given(st.lists(frames, max_size=8), st.data())
def test_any_division_of_a_stream(sent: list[tuple], data: st.DataObject) -> None:
    client, server = established()
    stream = b"".join(bytes(part) for frame in sent for part in client.seal_request(*frame))
    found = [frame for piece in divided(stream, data) for frame in server.receive(piece)]
    assert [(f.number, f.metadata, f.body) for f in found] == sent
    assert server.buffered == 0


@FUZZ
@given(st.binary(max_size=300), st.data())
def test_any_bytes(noise: bytes, data: st.DataObject) -> None:
    """Bytes that nobody has sealed are no frame; of them no more than a confirmation is kept."""
    reader = FrameReader(CipherState(bytes(32)), proven=False)
    with contextlib.suppress(PeerFault):
        for piece in divided(noise, data):
            assert reader.feed(piece) == []
            assert reader.buffered < PREFIX.size + EMPTY_BYTES
    assert not reader.proven


@FUZZ
@given(st.binary(max_size=300), st.booleans(), st.data())
def test_strangers_learn_and_get_nothing(noise: bytes, versed: bool, data: st.DataObject) -> None:
    """No bytes but a HELLO under a known key move either end of a channel."""
    stream = MAGIC + noise if versed else noise
    server, client = server_end(), client_end()
    for end in (server, client):
        with contextlib.suppress(PeerFault):
            for piece in divided(stream, data):
                assert end.receive(piece) == []
    assert server.pending_output() in (b"", MAGIC)
    assert server.peer is None
    assert server.claimed is None
    assert not client.established


@FUZZ
@given(
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=50), st.binary(max_size=50)),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
def test_an_altered_session_delivers_a_prefix_of_what_was_sent(
    sent: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    client, server = established()
    stream = bytearray()
    for number, (metadata, body) in enumerate(sent):
        stream += b"".join(client.seal_request(number, metadata, body))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= data.draw(st.integers(1, 255))
    delivered: list[tuple[bytes, bytes]] = []
    with contextlib.suppress(PeerFault):
        for piece in divided(bytes(stream), data):
            delivered += [(frame.metadata, frame.body) for frame in server.receive(piece)]
    assert delivered == sent[: len(delivered)]
    assert len(delivered) < len(sent)
