"""Listing a directory, page by page, entry by entry.

Entries that exist from the beginning of a listing to its end appear exactly once, whatever happens
to others. Entries that appeared since its beginning are left out, so that the listing ends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final, NamedTuple

from bftfs import limits
from bftfs.credentials import Credentials
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.directory import ListedEntry
from bftfs.filesystem.metadata import Metadata
from bftfs.identifiers import ObjectId

PAGE_BYTES: Final = 128 * limits.KIB  # of a directory, in one answer

_END_OF_DIRECTORY = 1 << 63


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One entry of a listing. `attributes` is None if the object is gone, or was not asked."""

    name: bytes
    cookie: int
    identifier: ObjectId
    file_type: int
    attributes: Attributes | None


class _CachedPage(NamedTuple):
    """The entries after cookies in [begins, ends)."""

    begins: int
    ends: int
    entries: tuple[ListedEntry, ...]


class OpenDirectory:
    """A listing in progress."""

    __slots__ = ("_part", "_stop", "identifier", "is_access_noted", "who")

    def __init__(self, identifier: ObjectId, who: Credentials) -> None:
        self.identifier = identifier
        self.who = who
        self.is_access_noted = False
        self._part: _CachedPage | None = None
        self._stop = 0  # the serial of the first entry that appeared since the listing began

    async def entries(self, metadata: Metadata, after: int, count: int) -> tuple[ListedEntry, ...]:
        """Up to `count` entries after a cookie; a cookie of 0 begins anew."""
        part = self._part
        if not after or part is None or not part.begins <= after < part.ends:
            page = await metadata.listed(self.identifier, after, PAGE_BYTES, self.who)
            ends = _END_OF_DIRECTORY if page.complete else page.entries[-1].serial
            part = self._part = _CachedPage(after, ends, page.entries)
            if not after or not self._stop:
                self._stop = page.directory.next_serial
        entries = part.entries
        first = bisect_right(entries, after, key=lambda entry: entry.serial)
        last = bisect_left(entries, self._stop, key=lambda entry: entry.serial)
        return entries[first : min(last, first + count)]
