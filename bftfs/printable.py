"""Text of others in messages and listings: names, and what nodes say.

Whoever may name a file may put line breaks and a terminal's commands into the name. Printed as they
are, these would forge lines of `bftfs log` and `audit`, by which people judge an intruder.
"""

from __future__ import annotations

import re
from typing import Final

# Controls, separators of lines, marks that turn the direction of writing, and what is no text
# (as `os.fsdecode` has them).
_HARMFUL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_BYTE: Final = 0xDC00  # what stands for byte N is U+DC00 + N


def printable(text: str) -> str:
    r"""`text` on one line, and harmless to a terminal: a line break is `\x0a`."""
    return _HARMFUL.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """The same for a text of several lines, whose breaks are ours."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(match: re.Match[str]) -> str:
    number = ord(match[0])
    if _BYTE + 0x80 <= number <= _BYTE + 0xFF:
        number -= _BYTE
    return f"\\x{number:02x}" if number <= 0xFF else f"\\u{number:04x}"
