"""Frames: the format, memory for what has arrived only, and any division of the stream."""

import tracemalloc

import pytest

from bftfs.crypto.noise import TAG_BYTES, CipherState
from bftfs.errors import InvalidAuthenticator
from bftfs.wire.channel import HEAD, HEAD_BYTES, Frame, FrameReader

KEY = bytes(range(32))


def reader() -> FrameReader:
    return FrameReader(CipherState(KEY))


class Writer:
    """Seals frames by the format alone."""

    def __init__(self) -> None:
        self._seal = CipherState(KEY).seal

    def frame(self, metadata: bytes = b"", body: bytes = b"", *, number: int = 9) -> bytes:
        parts = [self._seal(HEAD.pack(number, len(metadata), len(body)))]
        parts += [self._seal(part) for part in (metadata, body) if part]
        return b"".join(parts)


def contents(frames: list[Frame]) -> list[tuple[int, bytes, bytes]]:
    return [(frame.number, frame.metadata, frame.body) for frame in frames]


def test_the_format() -> None:
    encoded = Writer().frame(b"metadata", b"body", number=3)
    opened = CipherState(KEY)
    head, metadata = HEAD_BYTES, HEAD_BYTES + 8 + TAG_BYTES
    assert opened.open(encoded[:head]).hex() == "0000000000000003" + "00000008" + "00000004"
    assert opened.open(encoded[head:metadata]) == b"metadata"
    assert opened.open(encoded[metadata:]) == b"body"
    assert contents(reader().feed(encoded)) == [(3, b"metadata", b"body")]


def test_many_frames_in_one_piece() -> None:
    sent = [(number, b"m" * (number + 1), b"b" * (number % 3)) for number in range(50)]
    writer = Writer()
    stream = b"".join(
        writer.frame(metadata, body, number=number) for number, metadata, body in sent
    )
    assert contents(reader().feed(stream)) == sent


@pytest.mark.parametrize("piece", [1, 7, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1, 100, 1000])
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
    writer, parser = Writer(), reader()
    assert not parser.proven
    assert parser.feed(writer.frame()) == []
    assert parser.proven
    assert contents(parser.feed(writer.frame(b"m"))) == [(9, b"m", b"")]


def test_what_is_no_head_ends_the_stream() -> None:
    with pytest.raises(InvalidAuthenticator):
        reader().feed(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")


def test_memory_is_spent_on_what_has_arrived_only() -> None:
    heads = [CipherState(KEY).seal(HEAD.pack(1, 4 << 20, 8 << 20)) for _ in range(100)]
    parsers = [reader() for _ in heads]
    tracemalloc.start()
    for parser, head in zip(parsers, heads, strict=True):
        assert parser.feed(head) == []
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
