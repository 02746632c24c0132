"""Directory-entry cache, and the directory versions for which each entry is valid.

An entry is valid for the time that the mount options allow; a negative entry (there is no such
name) for a shorter one. After that time it stays valid while the directory's cached attributes are
valid and show that only this mount has changed the directory since the entry was read. Versions of
a directory name the version before, so that a mount can tell its own changes from others'. In the
same way, a mount that knows all names of a directory, because it made or listed it, knows that any
other name is free.

Invariants, for a directory whose `version` is known: an entry read at a version in [since, version]
is still true; `names`, if not None, are all names in the directory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.directory import Child, ListedEntry
from bftfs.identifiers import ObjectId

ENTRIES: Final = 65_536
DIRECTORIES: Final = 4_096
NAMES: Final = 65_536  # in all directories whose names are all known

Changed: TypeAlias = tuple[bytes, Child | None]  # a name, and the object it stands for from now on


class CachedName(NamedTuple):
    """A cache entry; `child` is None if there was no such name."""

    child: Child | None
    version: int  # of the directory
    heard_us: int


class _Directory:
    """The known version of a directory, and all its names, if they are known."""

    __slots__ = ("names", "since", "version")

    def __init__(self, version: int, names: set[bytes] | None) -> None:
        self.version = version
        self.since = version
        self.names = names


_FREE = CachedName(None, 0, 0)


class NameCache:
    """The cached directory entries of a mount."""

    def __init__(self, timeout_us: int, absence_timeout_us: int) -> None:
        self._timeout_us = timeout_us
        self._absence_timeout_us = absence_timeout_us
        self._entries: OrderedDict[tuple[ObjectId, bytes], CachedName] = OrderedDict()
        self._directories: OrderedDict[ObjectId, _Directory] = OrderedDict()
        self._names = 0  # in the sets of all directories

    # --- asking ------------------------------------------------------------------------------

    def guess(self, directory: ObjectId, name: bytes) -> CachedName | None:
        """The last known entry, valid or not."""
        entry = self._entries.get((directory, name))
        if entry is None:
            known = self._directories.get(directory)
            if known is not None and known.names is not None and name not in known.names:
                return _FREE
        return entry

    def cached_name(
        self,
        directory: ObjectId,
        name: bytes,
        now_us: int,
        *,
        version: int = 0,
        heard_us: int = 0,
    ) -> CachedName | None:
        """The entry, if it is valid.

        `version` is that of the directory's attributes, heard of at `heard_us`, if these are valid.
        """
        entry = self._entries.get((directory, name))
        if entry is not None:
            kept_us = self._absence_timeout_us if entry.child is None else self._timeout_us
            if now_us - entry.heard_us < kept_us:
                return entry
        known = self._directories.get(directory)
        if known is None or known.version != version:
            return None
        is_absent_still = now_us - heard_us < self._absence_timeout_us
        if entry is not None and entry.version >= known.since:
            return entry if entry.child is not None or is_absent_still else None
        if known.names is not None and name not in known.names and is_absent_still:
            return _FREE
        return None

    # --- learning ----------------------------------------------------------------------------

    def saw(self, directory: ObjectId, attributes: Attributes) -> None:
        """These are the directory's attributes now: a new version may be another mount's change."""
        known = self._directories.get(directory)
        if known is not None and known.version < attributes.version:
            self._know(directory, _Directory(attributes.version, None))

    def found(
        self, directory: ObjectId, at: Attributes, name: bytes, child: Child | None, now_us: int
    ) -> None:
        """The name was looked up in the directory, whose attributes were `at`."""
        if self._is_current(directory, at.version):
            self._remember(directory, name, child, at.version, now_us)

    def listed(
        self,
        directory: ObjectId,
        at: Attributes,
        entries: Iterable[ListedEntry],
        now_us: int,
        *,
        is_whole: bool,
    ) -> None:
        """The directory was listed; with `is_whole`, these are all its names."""
        if not self._is_current(directory, at.version):
            return
        names = set()
        for entry in entries:
            child = Child(entry.identifier, entry.file_type)
            self._remember(directory, entry.name, child, at.version, now_us)
            names.add(entry.name)
        if is_whole:
            known = self._directories[directory]
            self._know(directory, _Directory(at.version, names), since=known.since)

    def made(self, directory: ObjectId, at: Attributes) -> None:
        """This mount has made the directory: it is empty."""
        self._know(directory, _Directory(at.version, set()))

    def changed(
        self, directory: ObjectId, at: Attributes, changes: Iterable[Changed], now_us: int
    ) -> None:
        """This mount has changed the directory: its attributes, and these names in it."""
        known = self._directories.get(directory)
        if known is not None and known.version > at.version:
            for name, _ in changes:  # the directory was changed again since
                self.forget(directory, name)
            return
        if known is None or known.version not in (at.previous, at.version):
            known = _Directory(at.version, None)
            self._know(directory, known)
        known.version = at.version
        for name, child in changes:
            self._remember(directory, name, child, at.version, now_us)
            if known.names is not None:
                self._names -= len(known.names)
                (known.names.discard if child is None else known.names.add)(name)
                self._names += len(known.names)
        self._drop_surplus()

    def forget(self, directory: ObjectId, name: bytes) -> None:
        """Drop a name that turned out to stand for another object."""
        self._entries.pop((directory, name), None)
        self._forget_directory(directory)

    def distrust(self) -> None:
        """Let no entry be valid because of its age alone.

        The clock was set back, or nobody knows if an update has taken effect.
        """
        for place, entry in self._entries.items():
            self._entries[place] = entry._replace(heard_us=0)

    # -----------------------------------------------------------------------------------------

    def _is_current(self, directory: ObjectId, version: int) -> bool:
        """True if no later version of the directory is known than that of an answer."""
        known = self._directories.get(directory)
        if known is None or known.version < version:
            self._know(directory, _Directory(version, None))
            return True
        return known.version == version

    def _know(self, directory: ObjectId, known: _Directory, *, since: int | None = None) -> None:
        if since is not None:
            known.since = since
        self._forget_directory(directory)
        self._directories[directory] = known
        self._names += len(known.names or ())
        self._drop_surplus()

    def _forget_directory(self, directory: ObjectId) -> None:
        known = self._directories.pop(directory, None)
        if known is not None:
            self._names -= len(known.names or ())

    def _remember(
        self, directory: ObjectId, name: bytes, child: Child | None, version: int, now_us: int
    ) -> None:
        self._entries[directory, name] = CachedName(child, version, now_us)
        self._entries.move_to_end((directory, name))
        if len(self._entries) > ENTRIES:
            self._entries.popitem(last=False)

    def _drop_surplus(self) -> None:
        while len(self._directories) > DIRECTORIES or self._names > NAMES:
            self._forget_directory(next(iter(self._directories)))
