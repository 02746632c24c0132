"""m-of-N erasure coding of an item into fragments, and back. The only module that imports zfec.

The first m fragments are the item itself, cut into stripes; the others are parity. The stripes end
with zeros and the item's length, so that fragments decode without outside knowledge:

    item ‖ zeros (fewer than m) ‖ length (4 bytes, big-endian)  =  stripe 0 ‖ … ‖ stripe m-1

The length stands at the end and not at the beginning, so that whole stripes of the item are passed
on without being copied, and decoding from the stripes is one concatenation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import zfec

from bftfs.errors import MalformedMessage

Buffer: TypeAlias = bytes | bytearray | memoryview

LENGTH_BYTES = 4


class ErasureCode:
    """The code for one (m, N): any m of the N fragments determine the item."""

    __slots__ = ("N", "_decoder", "_encoder", "_parity", "m")

    def __init__(self, m: int, N: int) -> None:
        self.m = m
        self.N = N
        self._encoder = zfec.Encoder(m, N)
        self._decoder = zfec.Decoder(m, N)
        self._parity = tuple(range(m, N))

    def fragment_bytes(self, length: int) -> int:
        """The size of each fragment of an item of `length` bytes."""
        return -(-(length + LENGTH_BYTES) // self.m)

    def encode(self, item: Buffer) -> tuple[Buffer, ...]:
        """The N fragments of `item`. Whole stripes are views of `item`, which must not change."""
        length = len(item)
        size = self.fragment_bytes(length)
        view = memoryview(item)
        whole = length // size
        stripes: list[Buffer] = [view[at : at + size] for at in range(0, whole * size, size)]
        rest = view[whole * size :]
        padding = self.m * size - length - LENGTH_BYTES
        tail = b"".join((rest, bytes(padding), length.to_bytes(LENGTH_BYTES, "big")))
        if len(tail) == size:
            stripes.append(tail)
        else:
            stripes.extend(tail[at : at + size] for at in range(0, len(tail), size))
        return self._with_parity(tuple(stripes))

    def decode(self, fragments: Mapping[int, Buffer]) -> bytes:
        """The item that `fragments` (by index) determine; any m of them are used, stripes first.

        Raises MalformedMessage if they are no fragments of an item.
        """
        stripes = self._stripes_of(fragments)
        size = len(stripes[0])
        last = b"".join(stripes[-LENGTH_BYTES:]) if size < LENGTH_BYTES else stripes[-1]
        length = int.from_bytes(last[-LENGTH_BYTES:], "big")
        if self.fragment_bytes(length) != size:
            raise MalformedMessage(f"{self.m} stripes of {size} bytes hold no {length} bytes")
        whole = length // size
        if whole == self.m - 1:
            tail = memoryview(stripes[whole])
            item = b"".join((*stripes[:whole], tail[: length - whole * size]))
            zeros = bytes(tail[length - whole * size : size - LENGTH_BYTES])
        else:
            joined = b"".join(stripes)
            item = joined[:length]
            zeros = joined[length : self.m * size - LENGTH_BYTES]
        if any(zeros):
            raise MalformedMessage("the padding of an item is not zero")
        return item

    def regenerate(self, fragments: Mapping[int, Buffer]) -> tuple[Buffer, ...]:
        """All N fragments, from any m of them. [PASIS §3.4.3.2]

        Ensures: the first m are the stripes, from which `decode` is a concatenation.
        Raises MalformedMessage if the fragments given differ in size or are too few.
        """
        return self._with_parity(self._stripes_of(fragments))

    def _with_parity(self, stripes: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
        if not self._parity:
            return stripes
        return stripes + tuple(self._encoder.encode(stripes, self._parity))

    def _stripes_of(self, fragments: Mapping[int, Buffer]) -> tuple[Buffer, ...]:
        chosen = sorted(fragments)[: self.m]
        if len(chosen) < self.m:
            raise MalformedMessage(f"{len(chosen)} fragments of the {self.m} that decode")
        if chosen[0] < 0 or chosen[-1] >= self.N:
            raise MalformedMessage(f"fragment numbers {chosen} outside 0 … {self.N - 1}")
        blocks = tuple(fragments[index] for index in chosen)
        size = len(blocks[0])
        if size == 0 or any(len(block) != size for block in blocks):
            raise MalformedMessage("fragments of one item that differ in size or are empty")
        if chosen[-1] == self.m - 1:
            return blocks
        return tuple(self._decoder.decode(blocks, tuple(chosen)))
