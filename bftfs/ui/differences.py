"""How the text at a path differs between two times, line by line."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final, NamedTuple

from bftfs.errors import FileSystemError
from bftfs.filesystem.operations import FoundObject
from bftfs.limits import MIB
from bftfs.restoration.telling import file_kind
from bftfs.restoration.viewpoint import Viewpoint
from bftfs.ui.paths import Names, find
from bftfs.ui.tree import beginning, text_in

TEXT_BYTES: Final = MIB  # of a file that is compared
LINES_COMPARED: Final = 2000  # on each side, or as many pairs of lines; not those at both ends
LINES_SHOWN: Final = 1000
_AROUND: Final = 3  # lines that are shown around a change
_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")  # with its line break, if it has one


@dataclass(frozen=True, slots=True)
class Side:
    """What was at the path at one of the times: text, or why there is none to compare."""

    found: FoundObject | None
    text: str | None = ""
    why: str = ""


class LineShown(NamedTuple):
    """A line of a comparison: its number before and after, and what has become of it."""

    old: int | None
    new: int | None
    what: str  # same, removed, added; or gap: lines that are alike have been left out
    text: str


@dataclass(frozen=True, slots=True)
class Comparing:
    """The lines that differ, with some around them; and what is left out, in words."""

    lines: list[LineShown]
    added: int = 0
    removed: int = 0
    left_out: str = ""


async def side(view: Viewpoint, names: Names, time_us: int | None) -> Side:
    """What was at a path at a time."""
    try:
        found = await find(view, names, time_us)
    except FileSystemError as refusal:
        if refusal.code not in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
            raise
        return Side(None, why="nothing was at this path")
    attributes = found.attributes
    kind = file_kind(attributes)
    if kind not in ("file", "symlink"):
        return Side(found, None, f"it was a {kind}, which has no text")
    if attributes.size > TEXT_BYTES:
        return Side(found, None, f"it had {attributes.size:,} bytes, too many to be compared here")
    text = text_in(await beginning(view, found, time_us, TEXT_BYTES), is_whole=True)
    return Side(found, text, "" if text is not None else "it was not text")


def compared(old: str, new: str) -> Comparing:
    """The lines in which two texts differ."""
    before, after = _LINE.findall(old), _LINE.findall(new)
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    most = min(len(before), len(after)) - head
    while tail < most and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    differing = (len(before) - head - tail, len(after) - head - tail)
    if differing[0] * differing[1] > LINES_COMPARED**2:
        return Comparing([], left_out=f"More than {LINES_COMPARED:,} lines differ.")
    lines: list[LineShown] = []
    added = removed = 0
    for tag, first, stop, start, end in _changes(before, after, head, tail):
        if tag == "equal":
            lines += _context(before, (first, stop), (start, end), after)
            continue
        removed += stop - first
        added += end - start
        lines += [LineShown(n + 1, None, "removed", before[n]) for n in range(first, stop)]
        lines += [LineShown(None, n + 1, "added", after[n]) for n in range(start, end)]
    more = len(lines) - LINES_SHOWN
    left_out = f"{more:,} further lines are not shown." if more > 0 else ""
    return Comparing(lines[:LINES_SHOWN] if added or removed else [], added, removed, left_out)


def _changes(
    before: list[str], after: list[str], head: int, tail: int
) -> list[tuple[str, int, int, int, int]]:
    """As `SequenceMatcher.get_opcodes`; the first `head` and the last `tail` lines are alike."""
    stop, end = len(before) - tail, len(after) - tail
    found: list[tuple[str, int, int, int, int]] = [("equal", 0, head, 0, head)] if head else []
    if min(stop, end) == head:  # nothing to look for: it was added, or removed, as a whole
        found += [("replace", head, stop, head, end)] if max(stop, end) > head else []
    else:
        matcher = SequenceMatcher(a=before[head:stop], b=after[head:end])
        found += [
            (tag, first + head, last + head, start + head, until + head)
            for tag, first, last, start, until in matcher.get_opcodes()
        ]
    return [*found, ("equal", stop, len(before), end, len(after))] if tail else found


def _context(
    before: list[str], old: tuple[int, int], new: tuple[int, int], after: list[str]
) -> list[LineShown]:
    """The lines of a part that is alike which are next to a change."""
    (first, stop), (start, end) = old, new
    numbers = list(range(stop - first))
    kept = set(numbers)
    if len(numbers) > 2 * _AROUND:
        kept = set(numbers[:_AROUND] if first else ())
        kept |= set(numbers[-_AROUND:] if (stop, end) != (len(before), len(after)) else ())
    lines: list[LineShown] = []
    for number in numbers:
        if number in kept:
            at, to = first + number, start + number
            lines.append(LineShown(at + 1, to + 1, "same", before[at]))
        elif not lines or lines[-1].what != "gap":
            lines.append(LineShown(None, None, "gap", ""))
    return lines
