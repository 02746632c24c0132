"""Lists in an object's state whose past is read at the cost of what was in them then.

A state's keys `key_of(serial)` are such a list. A serial that appears is greater than all that were
there before; it may be overwritten, and when its key is gone it never comes back.

Whoever reads the list as it was at a version would pass over all that had gone by then. So servers
note with each version that takes a serial away how far the hole reaches that this leaves: from
behind the serial that was alive below it to the next one that was, or may still come. A hole never
closes again, so what is noted holds at all later versions; and while the serial below is alive,
the latest note that begins behind it tells the whole hole. A removal costs one small row more, and
what is added nothing. The notes are each server's own index: no part of the state, and of no
answer. `replica` writes and reads them.
"""

from __future__ import annotations

from typing import Final

SEQUENCE: Final = b"s"
BEYOND_SEQUENCE: Final = b"t"
FIRST_SERIAL: Final = 3  # 0 begins a listing; 1 and 2 are left to "." and ".."


def serial_key(serial: int) -> bytes:
    """`serial` as a key that sorts as it does: its length, then seven bits to a byte, none zero."""
    length = max(1, -(-serial.bit_length() // 7))
    digits = (serial >> 7 * place & 0x7F | 0x80 for place in reversed(range(length)))
    return bytes((length, *digits))


def serial_from(encoded: bytes) -> int:
    """The serial that is encoded as `encoded`."""
    serial = 0
    for digit in encoded[1:]:
        serial = serial << 7 | digit & 0x7F
    return serial


def key_of(serial: int) -> bytes:
    """The key of a serial in the state."""
    return SEQUENCE + serial_key(serial)


def serial_at(key: bytes) -> int:
    """The serial whose key this is."""
    return serial_from(key[len(SEQUENCE) :])


def is_in_sequence(key: bytes) -> bool:
    """Whether this is the key of a serial."""
    return key.startswith(SEQUENCE)
