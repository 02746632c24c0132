"""Frames: a fixed header, a MAC, the encoded message, and a raw body behind it.

    header  28 bytes  "bft1", kind, flags (0), reserved (0), view, request number,
                      length of the metadata, length of the body
    mac     16 bytes  made and checked by the channel
    metadata          an encoded message
    body              a fragment; the MAC covers its digest

A header is checked before any of its frame is kept. Memory is spent on what has arrived, never on
what was announced.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import TypeAlias

import msgspec

from bftfs import limits
from bftfs.errors import MalformedMessage

Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"bft1"
HEADER = Struct("!4sBBHIQII")
MAC_BYTES = 16
PREAMBLE_BYTES = HEADER.size + MAC_BYTES


class FrameKind(IntEnum):
    """The step of the channel's protocol that a frame takes (`bftfs.wire.channel`)."""

    HELLO = 1
    WELCOME = 2
    REQUEST = 3
    REPLY = 4
    FAREWELL = 5


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame, well-formed but not yet authentic. `body` is a view of what was received."""

    kind: int
    view: int
    number: int
    metadata: bytes
    body: bytes | memoryview
    header: bytes
    mac: bytes


class FrameParser:
    """Cuts a stream of bytes into frames, incrementally."""

    def __init__(
        self,
        *,
        metadata_limit: int = limits.FRAME_METADATA_BYTES,
        body_limit: int = limits.FRAME_BODY_BYTES,
    ) -> None:
        self._metadata_limit = metadata_limit
        self._body_limit = body_limit
        self._partial = bytearray()
        self._wanted = PREAMBLE_BYTES

    def raise_limits(self) -> None:
        """The peer is known: it may send frames of any size."""
        self._metadata_limit = limits.FRAME_METADATA_BYTES
        self._body_limit = limits.FRAME_BODY_BYTES

    @property
    def buffered(self) -> int:
        """Bytes kept of a frame that is not complete yet."""
        return len(self._partial)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises MalformedMessage; the stream is then lost.

        Requires: `data` never changes afterwards, for bodies are views of it.
        """
        received: Buffer = data
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return []
            # Hand the buffer over to the frames that are cut from it.
            received, self._partial = self._partial, bytearray()
        frames: list[Frame] = []
        view = memoryview(received)
        start, end = 0, len(received)
        self._wanted = PREAMBLE_BYTES
        while end - start >= PREAMBLE_BYTES:
            magic, kind, flags, reserved, epoch, number, metadata_length, body_length = (
                HEADER.unpack_from(received, start)
            )
            if (
                magic != MAGIC
                or flags
                or reserved
                or not FrameKind.HELLO <= kind <= FrameKind.FAREWELL
            ):
                raise MalformedMessage("what should be the header of a frame is none")
            if metadata_length > self._metadata_limit or body_length > self._body_limit:
                raise MalformedMessage(
                    f"a frame of {metadata_length} + {body_length} bytes where "
                    f"{self._metadata_limit} + {self._body_limit} are the limit"
                )
            metadata = start + PREAMBLE_BYTES
            body = metadata + metadata_length
            stop = body + body_length
            if stop > end:
                self._wanted = stop - start
                break
            mac = start + HEADER.size
            frames.append(
                Frame(
                    kind,
                    epoch,
                    number,
                    bytes(view[metadata:body]),
                    view[body:stop] if body_length else b"",
                    bytes(view[start:mac]),
                    bytes(view[mac:metadata]),
                )
            )
            start = stop
        if start < end:
            self._partial += view[start:]
        return frames
