"""Frames: the header's format, limits before memory, and any division of the stream."""

import tracemalloc

import pytest

from bftfs.errors import MalformedMessage
from bftfs.wire.channel import (
    HEAD_BYTES,
    HEADER,
    MAC_BYTES,
    PREAMBLE_BYTES,
    Frame,
    FrameParser,
)

HEAD_MAC, MAC = bytes(range(100, 100 + MAC_BYTES)), bytes(range(MAC_BYTES))


def frame(
    metadata: bytes = b"",
    body: bytes = b"",
    *,
    magic: bytes = b"bft1",
    kind: int = 3,
    flags: int = 0,
    reserved: int = 0,
    view: int = 1,
    number: int = 9,
) -> bytes:
    header = HEADER.pack(magic, kind, flags, reserved, view, number, len(metadata), len(body))
    return header + HEAD_MAC + MAC + metadata + body


def contents(frames: list[Frame]) -> list[tuple[int, bytes, bytes]]:
    return [(frame.number, frame.metadata, bytes(frame.body)) for frame in frames]


def test_vector() -> None:
    encoded = frame(b"metadata", b"body", view=2, number=3)
    assert encoded.hex() == (
        "62667431"
        "03"
        "00"
        "0000"
        "00000002"
        "0000000000000003"
        "00000008"
        "00000004"
        "6465666768696a6b6c6d6e6f70717273"
        "000102030405060708090a0b0c0d0e0f" + b"metadatabody".hex()
    )
    [found] = FrameParser().feed(encoded)
    assert (found.kind, found.view, found.number) == (3, 2, 3)
    assert (found.metadata, bytes(found.body)) == (b"metadata", b"body")
    assert (found.head, found.mac) == (encoded[:HEAD_BYTES], MAC)


def test_many_frames_in_one_piece() -> None:
    sent = [(number, b"m" * number, b"b" * (number % 3)) for number in range(50)]
    stream = b"".join(frame(metadata, body, number=number) for number, metadata, body in sent)
    assert contents(FrameParser().feed(stream)) == sent


@pytest.mark.parametrize("piece", [1, 7, PREAMBLE_BYTES - 1, PREAMBLE_BYTES, 100, 1000])
def test_frames_in_pieces(piece: int) -> None:
    sent = [(number, b"m" * (number * 13), b"b" * (number * 7)) for number in range(20)]
    stream = b"".join(frame(metadata, body, number=number) for number, metadata, body in sent)
    parser = FrameParser()
    found = []
    for start in range(0, len(stream), piece):
        found += contents(parser.feed(stream[start : start + piece]))
    assert found == sent


def test_earlier_bodies_stay_what_they_were() -> None:
    """Bodies are views; later input must not show through them."""
    parser = FrameParser()
    stream = frame(b"m", b"first") + frame(b"m", b"second")
    assert parser.feed(stream[:60]) == []
    frames = [*parser.feed(stream[60:110]), *parser.feed(stream[110:])]
    parser.feed(b"\x00" * 10)
    assert [bytes(frame.body) for frame in frames] == [b"first", b"second"]


def test_nothing_is_a_frame_of_nothing() -> None:
    assert FrameParser().feed(b"") == []
    [found] = FrameParser().feed(frame())
    assert (found.metadata, found.body) == (b"", b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": b"bft2"},
        {"magic": b"GET "},
        {"kind": 0},
        {"kind": 6},
        {"flags": 1},
        {"reserved": 1},
    ],
    ids=repr,
)
def test_a_header_that_is_not_one(changes: dict) -> None:
    with pytest.raises(MalformedMessage):
        FrameParser().feed(frame(**changes))


def test_limits_hold_for_what_is_announced() -> None:
    parser = FrameParser(metadata_limit=10, body_limit=20)
    assert len(parser.feed(frame(bytes(10), bytes(20)))) == 1
    for metadata, body in ((11, 0), (0, 21)):
        header = frame(bytes(metadata), bytes(body))[:PREAMBLE_BYTES]
        with pytest.raises(MalformedMessage, match="are the limit"):
            FrameParser(metadata_limit=10, body_limit=20).feed(header)


def test_memory_is_spent_on_what_has_arrived_only() -> None:
    header = HEADER.pack(b"bft1", 3, 0, 0, 1, 1, 4 << 20, 8 << 20) + HEAD_MAC + MAC
    parsers = [FrameParser() for _ in range(100)]
    tracemalloc.start()
    for parser in parsers:
        assert parser.feed(header) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_body_in_small_pieces_is_copied_rarely() -> None:
    """64 times the pieces must not cost 64 times the bytes copied for each one."""
    body = bytes(1 << 20)
    stream = frame(b"m", body)
    parser = FrameParser()
    tracemalloc.start()
    for start in range(0, len(stream), 1024):
        found = parser.feed(stream[start : start + 1024])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    [complete] = found
    assert complete.body == body
    assert peak < 3 * len(stream)
