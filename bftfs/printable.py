"""Text of others in messages and listings: names, and what nodes say.

A user who may name a file may put line breaks and a terminal's commands into the name. Printed as
they are, these would forge lines of `bftfs log` and `audit`, by which people judge an intruder. So
names and paths are printed as one word for the shell, from which a shell and people read back
exactly what the name is (`as_word`). What nodes say is made harmless (`printable`).
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Final

# Controls, separators of lines, marks that turn the direction of writing, and what is no text
# (as `os.fsdecode` has them).
_HARMFUL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_BYTE: Final = 0xDC00  # what stands for byte N is U+DC00 + N

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./@%+=:,-]+")  # means nothing to a shell
_JOINERS: Final = "\u200c\u200d"  # invisible, and part of words and emoji
_SHORT: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "'": "\\'", "!": "\\x21"}


def as_word(name: str | bytes | PurePath) -> str:
    r"""A name or path as one word, which bash reads back exactly: `a.txt`, 'a b', $'a\nb'.

    It is plain if nothing in it means anything to a shell, in quotation marks if it is visible
    text, and else with the escapes of bash, a byte each: so that it is one line, and harmless to a
    terminal. `name` may have bytes that are no text, as `os.fsdecode` has them.
    """
    text = name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)
    if _PLAIN.fullmatch(text) or (text and all(map(_is_plain, text))):
        return text
    if "'" not in text and all(map(_is_visible, text)):
        return f"'{text}'"
    return "$'" + "".join(map(_escaped_for_bash, text)) + "'"


def _is_visible(character: str) -> bool:
    return character.isprintable() or character in _JOINERS


def _is_plain(character: str) -> bool:
    if character.isascii():
        return _PLAIN.match(character) is not None
    return _is_visible(character)


def _escaped_for_bash(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if _is_visible(character):
        return character
    is_byte = _BYTE + 0x80 <= ord(character) <= _BYTE + 0xFF
    errors = "surrogateescape" if is_byte else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors=errors))


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
