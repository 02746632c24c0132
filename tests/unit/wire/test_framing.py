"""Frames: the format, memory for what has arrived only, and any division of the stream."""

import tracemalloc
from zlib import crc32

import pytest

from bftfs.crypto.noise import TAG_BYTES, CipherState
from bftfs.errors import InvalidAuthenticator
from bftfs.wire.channel import EMPTY_BYTES, HEAD, LENGTH, PREFIX, Frame, FrameReader

KEY = bytes(range(32))


def reader() -> FrameReader:
    return FrameReader(CipherState(KEY), proven=True)


class Writer:
    """Seals frames by the format alone."""

    def __init__(self) -> None:
        self._seal = CipherState(KEY).seal

    def frame(self, metadata: bytes = b"", body: bytes = b"", *, number: int = 9) -> bytes:
        front = self._seal(HEAD.pack(number, len(body)) + metadata)
        return prefixed(front) + (self._seal(body) if body else b"")


def prefixed(front: bytes) -> bytes:
    return PREFIX.pack(len(front), crc32(LENGTH.pack(len(front)))) + front


def contents(frames: list[Frame]) -> list[tuple[int, bytes, bytes]]:
    return [(frame.number, frame.metadata, frame.body) for frame in frames]


def test_the_format() -> None:
    encoded = Writer().frame(b"metadata", b"body", number=3)
    opened = CipherState(KEY)
    front = 8 + 12 + 8 + TAG_BYTES
    assert encoded[:8].hex() == "00000024" + "1d473bcd"
    head = "0000000000000003" + "00000004"
    assert opened.open(encoded[8:front]).hex() == head + b"metadata".hex()
    assert opened.open(encoded[front:]) == b"body"
    assert contents(reader().feed(encoded)) == [(3, b"metadata", b"body")]


def test_many_frames_in_one_piece() -> None:
    sent = [(number, b"m" * (number + 1), b"b" * (number % 3)) for number in range(50)]
    writer = Writer()
    stream = b"".join(
        writer.frame(metadata, body, number=number) for number, metadata, body in sent
    )
    assert contents(reader().feed(stream)) == sent


@pytest.mark.parametrize("piece", [1, 7, 8, 9, 8 + EMPTY_BYTES, 9 + EMPTY_BYTES, 100, 1000])
def test_frames_in_pieces(piece: int) -> None:
    sent = [(number, b"m" * (number * 13), b"b" * (number * 7)) for number in range(1, 20)]
    writer = Writer()
    stream = b"".join(
        writer.frame(metadata, body, number=number) for number, metadata, body in sent
    )
    parser = reader()
    found = []
    for start in range(0, len(stream), piece):
        found += contents(parser.feed(stream[start : start + piece]))
    assert found == sent
    assert parser.buffered == 0


def test_a_body_alone_is_a_frame() -> None:
    assert contents(reader().feed(Writer().frame(b"", b"body"))) == [(9, b"", b"body")]


def test_what_says_nothing_is_not_delivered() -> None:
    writer, parser = Writer(), FrameReader(CipherState(KEY), proven=False)
    assert not parser.proven
    assert parser.feed(writer.frame()) == []
    assert parser.proven
    assert contents(parser.feed(writer.frame(b"m"))) == [(9, b"m", b"")]


def test_what_is_no_length_ends_the_stream() -> None:
    with pytest.raises(InvalidAuthenticator):
        reader().feed(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")


def test_memory_is_spent_on_what_has_arrived_only() -> None:
    large = 4 << 20
    starts = [PREFIX.pack(large, crc32(LENGTH.pack(large)))] * 50
    starts += [prefixed(CipherState(KEY).seal(HEAD.pack(1, 8 << 20))) for _ in range(50)]
    parsers = [reader() for _ in starts]
    tracemalloc.start()
    for parser, start in zip(parsers, starts, strict=True):
        assert parser.feed(start) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_body_in_small_pieces_is_copied_rarely() -> None:
    """64 times the pieces must not cost 64 times the bytes copied for each one."""
    body = bytes(1 << 20)
    stream = Writer().frame(b"m", body)
    parser = reader()
    tracemalloc.start()
    for start in range(0, len(stream), 1024):
        found = parser.feed(stream[start : start + 1024])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    [complete] = found
    assert complete.body == body
    assert peak < 3 * len(stream)
