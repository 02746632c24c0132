"""What the page of a directory or file shows: entries, times of change, versions, contents."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from bftfs.errors import FileSystemError
from bftfs.filesystem import registry
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.file_history import UNSEEN, Change, Moments, several_at_once
from bftfs.filesystem.operations import FoundObject
from bftfs.identifiers import ObjectId
from bftfs.limits import KIB
from bftfs.restoration.telling import file_kind
from bftfs.restoration.viewpoint import Viewpoint

ENTRIES_SHOWN: Final = 100  # on a page
ENTRIES_READ: Final = 10_000  # of a directory; what is behind them is not shown
MOMENTS_SHOWN: Final = 200  # around the time that is shown
VERSIONS_SHOWN: Final = 100
TEXT_SHOWN: Final = 64 * KIB

_NAMES_TOGETHER: Final = 512  # asked for at once
_LOOKED_AT: Final = 8  # versions, for the last one that people would call a change
_OBJECTS_SEARCHED: Final = 256  # below a directory, for its times of change
_VERSIONS_SEARCHED: Final = 256


# --- a directory ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EntryShown:
    """A name in a directory, and what it stands for, as far as the user may see that."""

    name: bytes
    attributes: Attributes | None
    change: Change | None  # the last one

    @property
    def kind(self) -> str:
        """What it is, in a word."""
        return "not readable" if self.attributes is None else file_kind(self.attributes)


@dataclass(frozen=True, slots=True)
class DirectoryShown:
    """One page of a directory's entries, by name."""

    entries: list[EntryShown]
    number: int  # of this page, from 1 on
    pages: int
    count: int  # of all names
    is_whole: bool  # False if there are more names than are read


async def directory_shown(
    view: Viewpoint, found: FoundObject, time_us: int | None, *, number: int
) -> DirectoryShown:
    """One page of a directory as it was at a time."""
    children, is_whole = await _children(view, found.identifier, time_us)
    names = sorted(children)
    pages = max(1, -(-len(names) // ENTRIES_SHOWN))
    number = min(number, pages)
    here = names[(number - 1) * ENTRIES_SHOWN : number * ENTRIES_SHOWN]
    entries = await several_at_once(
        [partial(_entry, view, each, children[each], time_us) for each in here]
    )
    return DirectoryShown(entries, number, pages, len(names), is_whole)


async def _children(
    view: Viewpoint, directory: ObjectId, time_us: int | None
) -> tuple[dict[bytes, ObjectId], bool]:
    files = view.at(time_us)
    opened = await files.open_directory(directory, view.who)
    children: dict[bytes, ObjectId] = {}
    after = 0
    while page := await files.read_directory(
        opened, after, count=_NAMES_TOGETHER, with_attributes=False
    ):
        children |= {entry.name: entry.identifier for entry in page}
        after = page[-1].cookie
        if len(children) >= ENTRIES_READ:
            return children, False
    return children, True


async def _entry(
    view: Viewpoint, name: bytes, identifier: ObjectId, time_us: int | None
) -> EntryShown:
    try:
        attributes = await view.at(time_us).attributes(identifier, view.who)
    except FileSystemError:
        return EntryShown(name, None, None)
    return EntryShown(name, attributes, await last_change(view, identifier, time_us))


async def last_change(view: Viewpoint, identifier: ObjectId, time_us: int | None) -> Change | None:
    """The last change of an object up to a time; None if the user may not read its history."""
    try:
        changes = await view.history.changes(
            identifier, view.who, until_us=time_us, most=_LOOKED_AT
        )
    except FileSystemError:
        return None
    seen = (each for each in changes if each.operation.method not in UNSEEN)
    return next(seen, None)


# --- times of change --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TimesShown:
    """Some times at which something changed, the earliest first, and those beside the shown one."""

    times: list[int]
    shown: int  # the index of the one that is shown; -1: it is before all of them, or now
    count: int  # of all that are known
    since_us: int  # before this time not all are known
    earlier_us: int | None
    later_us: int | None


def times_shown(moments: Moments, time_us: int | None) -> TimesShown:
    """The times of change around the one that is shown (None: now)."""
    times = sorted(moments.times)
    at = len(times) if time_us is None else sum(each <= time_us for each in times)
    # What is shown began at times[at - 1]: the state before that is the one of times[at - 2].
    first = max(0, min(at - MOMENTS_SHOWN // 2, len(times) - MOMENTS_SHOWN))
    return TimesShown(
        times[first : first + MOMENTS_SHOWN],
        -1 if time_us is None else at - 1 - first,
        len(times),
        moments.since_us,
        times[at - 2] if at >= 2 else None,
        times[at] if at < len(times) else None,
    )


async def moments_below(view: Viewpoint, directory: ObjectId) -> Moments:
    """Times at which something in or below a directory changed."""
    return await view.history.change_times(
        directory, view.who, objects=_OBJECTS_SEARCHED, versions=_VERSIONS_SEARCHED
    )


# --- a file -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NameShown:
    """What a directory's changes say of one name in it, the latest first."""

    changes: list[Change]
    is_whole: bool  # False if older changes of the directory have not been looked at


async def name_shown(view: Viewpoint, directory: ObjectId, name: bytes) -> NameShown:
    """When a name began to stand for something, and when that ended: by others' names, too.

    Programs that save a file by renaming a new one to its name begin a new object each time.
    """
    try:
        changes = await view.history.changes(directory, view.who, most=_VERSIONS_SEARCHED)
    except FileSystemError:
        return NameShown([], is_whole=False)
    of_name = [each for each in changes if name in dict(each.entries)]
    return NameShown(of_name, len(changes) < _VERSIONS_SEARCHED)


class VersionShown(NamedTuple):
    """A version, and the time of the state that it is to be compared with."""

    change: Change
    before_us: int


@dataclass(frozen=True, slots=True)
class VersionsShown:
    """Versions of an object, the latest first."""

    versions: list[VersionShown]
    older_us: int | None  # there may be older ones, up to this time

    def moments(self, name: NameShown) -> Moments:
        """Their times, and those at which the file's name came to stand for something else."""
        times = {each.change.time_us for each in self.versions}
        times |= {each.time_us for each in name.changes}
        return Moments(sorted(times, reverse=True), (self.older_us or -1) + 1)


async def versions_shown(
    view: Viewpoint, identifier: ObjectId, until_us: int | None
) -> VersionsShown:
    """The versions up to a time (None: now)."""
    changes = await view.history.changes(
        identifier, view.who, until_us=until_us, most=VERSIONS_SHOWN
    )
    is_whole = len(changes) < VERSIONS_SHOWN or not changes
    seen = [each for each in changes if each.operation.method not in UNSEEN]
    named = await several_at_once(
        [partial(view.history.with_names, each, view.who) for each in seen]
    )
    versions = [VersionShown(each, _before(seen, at)) for at, each in enumerate(named)]
    return VersionsShown(versions, None if is_whole else changes[-1].time_us - 1)


def _before(changes: list[Change], at: int) -> int:
    """The time of what a version is to be compared with.

    A program that rewrites a file makes it empty first: that is not what was before.
    """
    for older in changes[at + 1 :]:
        size = None if older.attributes is None else older.attributes.size
        if older.operation.method != registry.TRUNCATE or size:
            return older.time_us
    return changes[at].time_us - 1


async def beginning(view: Viewpoint, found: FoundObject, time_us: int | None, most: int) -> bytes:
    """The first bytes of a file, at most so many; of a symlink, its target."""
    if stat.S_ISLNK(found.attributes.mode):
        return await view.link_target(found.identifier, time_us)
    files = view.at(time_us)
    opened = await files.open(found.identifier, os.O_RDONLY, view.who)
    try:
        return bytes(await files.read(opened, 0, most))
    finally:
        await files.release(opened)


def text_in(contents: bytes, *, is_whole: bool) -> str | None:
    """Contents as text; None if they are none. The last character may be cut if not `is_whole`."""
    if b"\0" in contents:
        return None
    for cut in range(1 if is_whole else 4):
        try:
            return contents[: len(contents) - cut].decode()
        except UnicodeDecodeError:
            continue
    return None
