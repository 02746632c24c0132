"""The changes that a client made below a directory since a time, and others' changes there.

Every version carries the client whose key made it, which the servers that accepted it have checked.
`read_changes` visits every directory below the root and every object there that has changed since,
whether it still exists or not. Of an object elsewhere that took part in an operation that changed
one of these it takes that change into account, and nothing else. A block is part of a file since an
update of its author has named it (`filesystem.block_names`): so the versions of the inode show
which client has written what.

For each file it also asks which versions of blocks the client has written and not named. These are
part of no version of the file, and nobody else can make them part of one: they are left of a write
that was interrupted, or that was prepared and never done.

Conversely, an update may have named versions that its client has not written, or that cannot be
read: `unreadable` reads all that the client has named.
"""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, takewhile
from math import inf
from typing import Final, NamedTuple

from msgspec.msgpack import decode

from bftfs import limits
from bftfs.errors import FileSystemError, NoLongerKept, VersionUnrecoverable
from bftfs.filesystem.block_names import CoveredBlock, CoveredPatch
from bftfs.filesystem.file_history import UNSEEN, Change, several_at_once
from bftfs.filesystem.inode import Merging, Rewriting, Truncation, Writing, named_by
from bftfs.filesystem.operations import FoundObject
from bftfs.filesystem.registry import (
    CREATE,
    LINK,
    MAKE_DIRECTORY,
    MEND,
    MERGE,
    RELOCATE,
    REMOVE_DIRECTORY,
    RENAME,
    REWRITE,
    TRUNCATE,
    UNCHANGING,
    UNLINK,
    WRITE,
)
from bftfs.identifiers import (
    ClientId,
    ObjectId,
    ObjectKind,
    block_number_of,
    inode_of,
    kind_of,
    slot_of,
)
from bftfs.query_update.history import LogicalTimestamp
from bftfs.read_write.authorship import Authored
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.restoration.viewpoint import Viewpoint

_BATCH: Final = 256  # objects that are looked at until the caller hears of it

# Methods by the roles of their objects: the directories come first.
_RENAMES: Final = (RENAME, RELOCATE)
_NAMES_TWO: Final = (CREATE, MAKE_DIRECTORY, LINK, UNLINK, REMOVE_DIRECTORY)

_NAMING: Final = {WRITE: Writing, TRUNCATE: Truncation, MERGE: Merging, REWRITE: Rewriting}

# --- trees of names: as they are, as they are to be, and in between --------------------------


class Slot(NamedTuple):
    """A name in a directory, taken or free."""

    directory: ObjectId
    name: bytes


class Tree:
    """Names and objects; an object may stand in several places, or in none."""

    def __init__(self) -> None:
        self._entries: dict[ObjectId, dict[bytes, ObjectId]] = {}
        self._places: dict[ObjectId, dict[Slot, None]] = {}

    def copy(self) -> Tree:
        """A tree of its own."""
        copied = Tree()
        copied._entries = {each: dict(entries) for each, entries in self._entries.items()}
        copied._places = {each: dict(places) for each, places in self._places.items()}
        return copied

    def get(self, name: Slot) -> ObjectId | None:
        """The object that the name stands for."""
        return self._entries.get(name.directory, {}).get(name.name)

    def put(self, name: Slot, identifier: ObjectId | None) -> None:
        """Let the name stand for an object, or for nothing."""
        entries = self._entries.setdefault(name.directory, {})
        before = entries.pop(name.name, None)
        if before is not None:
            del self._places[before][name]
        if identifier is not None:
            entries[name.name] = identifier
            self._places.setdefault(identifier, {})[name] = None

    def places(self, identifier: ObjectId) -> list[Slot]:
        """The names that stand for the object."""
        return list(self._places.get(identifier, ()))

    def objects(self) -> list[ObjectId]:
        """All objects that have, or had, a place."""
        return list(self._places)

    def directories(self) -> list[ObjectId]:
        """All directories that have, or had, entries."""
        return sorted(self._entries)

    def names(self, directory: ObjectId) -> list[tuple[Slot, ObjectId]]:
        """The entries of a directory, sorted."""
        entries = sorted(self._entries.get(directory, {}).items())
        return [(Slot(directory, name), identifier) for name, identifier in entries]

    def below(self, tops: Iterable[ObjectId]) -> Iterator[ObjectId]:
        """The objects at `tops` and below, each once, and each after one that it stands in."""
        waiting = deque(dict.fromkeys(tops))
        seen = set(waiting)
        while waiting:
            directory = waiting.popleft()
            yield directory
            for identifier in self._entries.get(directory, {}).values():
                if identifier not in seen:
                    seen.add(identifier)
                    waiting.append(identifier)

    def is_in(self, directory: ObjectId, top: ObjectId) -> bool:
        """True if the directory is `top`, or stands somewhere below it."""
        passed: set[ObjectId] = set()
        while directory != top and directory not in passed:
            passed.add(directory)
            for name in self.places(directory):
                directory = name.directory
        return directory == top


class SpareNames:
    """Free names beside others: NAME.before-LABEL, NAME.before-LABEL-2 and so on."""

    def __init__(self, label: str, tree: Tree) -> None:
        self._label = label
        self._tree = tree
        self._used: set[Slot] = set()

    def used_beside(self, name: Slot) -> Iterator[Slot]:
        """The names beside `name` that are in use now."""
        names = self._like(name, f".before-{self._label}")
        return takewhile(lambda each: self._tree.get(each) is not None, names)

    def use(self, name: Slot) -> None:
        """The name is no longer free."""
        self._used.add(name)

    def take_beside(self, name: Slot) -> Slot:
        """A free name beside `name`; it is no longer free."""
        return self._take(name, f".before-{self._label}")

    def take_aside(self, name: Slot) -> Slot:
        """The same for an object that does not stay there: NAME.aside-LABEL and so on."""
        return self._take(name, f".aside-{self._label}")

    def _take(self, name: Slot, suffix: str) -> Slot:
        free = next(
            each
            for each in self._like(name, suffix)
            if each not in self._used and self._tree.get(each) is None
        )
        self.use(free)
        return free

    @staticmethod
    def _like(name: Slot, suffix: str) -> Iterator[Slot]:
        for number in count(1):
            end = (suffix + (f"-{number}" if number > 1 else "")).encode()
            yield name._replace(name=name.name[: limits.NAME_BYTES - len(end)] + end)


# --- changes ---------------------------------------------------------------------------------


@dataclass
class ChangeLog:
    """All changes since a time, by anybody; of each object, the earliest first."""

    client: ClientId  # whose changes are to be taken back
    since_us: int
    root: ObjectId
    root_path: str
    now_us: int  # not before the latest of the changes
    changes: dict[ObjectId, list[Change]] = field(default_factory=dict)
    tree: Tree = field(default_factory=Tree)  # as it is now
    last_names: dict[ObjectId, Slot] = field(default_factory=dict)  # of what is gone
    uncovered: dict[ObjectId, list[Authored]] = field(default_factory=dict)  # blocks of the client

    def by_client(self, change: Change) -> bool:
        """True if the client made the change."""
        return change.client == self.client

    def takes_name(self, change: Change) -> bool:
        """True if the client made the change, and what names stood for can be given back.

        Of what a name stood for that was mended there is nothing: it stays removed.
        """
        return self.by_client(change) and change.operation.method != MEND

    def touched(self) -> list[ObjectId]:
        """The objects that the client changed."""
        return [
            identifier
            for identifier, changes in self.changes.items()
            if any(map(self.by_client, changes))
        ]

    def is_there(self, identifier: ObjectId) -> bool:
        """True if a name stands for the object now."""
        return bool(self.tree.places(identifier)) or identifier == self.root

    def contents_of(self, identifier: ObjectId) -> int:
        """The version of a changed file's contents that is known here (`Attributes.contents`)."""
        changes = self.changes[identifier]
        return max(each.attributes.contents for each in changes if each.attributes is not None)

    def is_made_by_client(self, identifier: ObjectId) -> bool:
        """True if the client created the object, since then."""
        # The version's parent does not tell: a repair may precede the version that created it.
        return any(
            self.by_client(change)
            and change.operation.method in (CREATE, MAKE_DIRECTORY)
            and change.operation.objects[1] == identifier
            for change in self.changes.get(identifier, ())[:1]
        )

    def is_others(self, identifier: ObjectId) -> bool:
        """True if the client did not create the object, or others have changed it since."""
        return not self.is_made_by_client(identifier) or any(
            not self.by_client(change) and change.operation.method not in UNCHANGING
            for change in self.changes[identifier]
        )

    def last_untouched_us(self, identifier: ObjectId) -> int:
        """The last time at which the object was as it was before the client changed it."""
        for change in self.changes.get(identifier, ()):
            if self.by_client(change) and not creates(change):
                return change.time_us - 1
        return self.now_us

    def path(self, name: Slot) -> str:
        """A name, as a path; not printable yet."""
        names: list[str] = []
        passed: set[ObjectId] = set()
        known: Slot | None = name
        while known is not None and known.directory not in passed:
            names.append(os.fsdecode(known.name))
            if known.directory == self.root:
                return "/".join((self.root_path, *reversed(names)))
            passed.add(known.directory)
            known = self._name_of(known.directory)
        return "/".join(("?", *reversed(names)))

    def path_of(self, identifier: ObjectId) -> str:
        """Where an object is, or was last; not printable yet."""
        name = self._name_of(identifier)
        if identifier == self.root:
            return self.root_path
        return identifier.hex() if name is None else self.path(name)

    def _name_of(self, identifier: ObjectId) -> Slot | None:
        places = self.tree.places(identifier)
        return places[0] if places else self.last_names.get(identifier)


def creates(change: Change) -> bool:
    """True if the object did not exist before this change."""
    return change.attributes is not None and not change.attributes.previous


async def read_changes(
    view: Viewpoint,
    root: ObjectId,
    *,
    path: str,
    client: ClientId,
    since_us: int,
    told: Callable[[int], None] = lambda _: None,
) -> ChangeLog:
    """All changes since then below `root`, which stands at `path`.

    `told` hears now and then how many objects have been looked at.

    Raises FileSystemError if the user may not read everything.
    """
    log = ChangeLog(client, since_us, root, path, view.now_us)
    level = [root]
    below = set(level)
    seen = set(level)
    elsewhere: list[ObjectId] = []
    while level:
        visits = []
        for position in range(0, len(level), _BATCH):
            batch = level[position : position + _BATCH]
            visits += await several_at_once(
                [partial(_visit, view, each, since_us) for each in batch]
            )
            told(len(seen) - len(level) + len(visits))
        found: list[ObjectId] = []
        for identifier, (changes, nodes) in zip(level, visits, strict=True):
            _note(log, identifier, changes, nodes)
            below.update(node.identifier for _, node in nodes)
            # A file that has not changed need not be visited.
            found += (
                node.identifier
                for _, node in nodes
                if node.attributes.is_directory or node.attributes.version >= since_us
            )
            for change in changes:
                found += _named_in(identifier, change)
                elsewhere += change.objects
        level = [each for each in dict.fromkeys(found) if each not in seen]
        seen.update(level)
        below.update(level)
    await _visit_elsewhere(log, view, [each for each in elsewhere if each not in below], below)
    _name_what_is_gone(log)
    await _add_uncovered(log, view, below)
    return log


async def _visit_elsewhere(
    log: ChangeLog, view: Viewpoint, found: list[ObjectId], below: set[ObjectId]
) -> None:
    """Note objects that stand elsewhere and took part in changes of what is `below`.

    Such as the directory in which the root was made, or one to which something was moved. Of all
    that has changed there, only those changes count; what else is in it is not looked at.
    """
    outside = [each for each in dict.fromkeys(found) if kind_of(each) != ObjectKind.VOLUME]
    visits = await several_at_once([partial(_visit, view, each, log.since_us) for each in outside])
    for identifier, (changes, nodes) in zip(outside, visits, strict=True):
        shared = [change for change in changes if not below.isdisjoint(change.objects)]
        _note(log, identifier, shared, nodes)


def _note(
    log: ChangeLog,
    identifier: ObjectId,
    changes: list[Change],
    nodes: list[tuple[bytes, FoundObject]],
) -> None:
    """Add an object's changes, the latest first, and a directory's entries."""
    if changes:
        log.changes[identifier] = changes[::-1]
        log.now_us = max(log.now_us, changes[0].time_us)
    for name, node in nodes:
        log.tree.put(Slot(identifier, name), node.identifier)
    for change in changes:
        for name, entry in change.entries:
            if entry is not None:
                log.last_names.setdefault(entry.child, Slot(identifier, name))


def _named_in(directory: ObjectId, change: Change) -> list[ObjectId]:
    """The objects to which a change gave a name in the directory, or from which it took one."""
    found = [entry.child for _, entry in change.entries if entry is not None]
    objects, method = change.operation.objects, change.operation.method
    if method in (*_NAMES_TWO, MEND) and objects[0] == directory:
        found.append(objects[1])
    if method in _RENAMES and directory in objects[:2]:
        found.append(objects[2])
    if method in _RENAMES and directory == objects[1]:
        found.append(objects[3])
    return found


async def _visit(
    view: Viewpoint, identifier: ObjectId, since_us: int
) -> tuple[list[Change], list[tuple[bytes, FoundObject]]]:
    """The object's changes since then, the latest first; and the entries of a directory.

    Nothing of an object that is not there: nodes have lost it, and somebody has mended its name.
    """
    try:
        changes = await view.changes(identifier, since_us=since_us)
    except FileSystemError as failure:
        if failure.code != errno.ESTALE:
            raise
        return [], []
    is_directory = kind_of(identifier) == ObjectKind.DIRECTORY
    return changes, await view.listing(identifier, None) if is_directory else []


def _name_what_is_gone(log: ChangeLog) -> None:
    """Note the last names of objects that were removed and have no other known name."""
    for identifier, changes in log.changes.items():
        for change in changes:
            for name, entry in change.entries:
                if entry is None:
                    for each in change.objects:
                        log.last_names.setdefault(each, Slot(identifier, name))


async def _add_uncovered(log: ChangeLog, view: Viewpoint, below: set[ObjectId]) -> None:
    """Note which blocks of files `below` the client has written, as nodes say, and has not named.

    Even b lying nodes hide none of these that was complete; they may invent some.
    """
    files = sorted(each for each in below if kind_of(each) == ObjectKind.INODE)
    written = await view.history.blocks.versions_by(
        files, view.who, author=log.client, since_us=log.since_us
    )
    covers = {
        identifier: [each for each in changes if log.by_client(each)]
        for identifier, changes in log.changes.items()
    }
    named = {
        identifier: set(chain.from_iterable(map(_named_by, changes)))
        for identifier, changes in covers.items()
    }
    for version in written:
        identifier = inode_of(version.block)
        part = block_number_of(version.block), slot_of(version.block), version.time_us
        is_named = part in named.get(identifier, ())
        if not is_named and not _is_covered_unnamed(version, covers.get(identifier, ())):
            log.uncovered.setdefault(identifier, []).append(version)


def _is_covered_unnamed(version: Authored, covers: Iterable[Change]) -> bool:
    """True if an update by a program that named no blocks has covered it, by its time."""
    return any(
        change.attributes is not None
        and change.operation.method in _NAMING
        and version.time_us <= change.time_us
        and version.time_us <= change.attributes.unnamed_until_us
        for change in covers
    )


def _named_by(change: Change) -> list[tuple[int, int, int]]:
    """The versions of blocks that a change has named: their numbers, slots and times."""
    return [(block.number, slot, block.time_us) for slot, block in _blocks_of(change)]


def _blocks_of(change: Change) -> list[tuple[int, CoveredBlock | CoveredPatch]]:
    """The versions of blocks that a change has named, and their slots."""
    kind = _NAMING.get(change.operation.method)
    return [] if kind is None else named_by(decode(change.operation.arguments, type=kind))


async def unreadable(
    log: ChangeLog, view: Viewpoint, *, told: Callable[[int, int], None] = lambda *_: None
) -> dict[LogicalTimestamp, int]:
    """How many of the blocks that each change of the client has named cannot be read.

    `told` hears after each block how many have been read, of how many.
    """
    named = [
        (identifier, change, slot, block)
        for identifier in log.touched()
        for change in log.changes[identifier]
        if log.by_client(change) and kind_of(identifier) == ObjectKind.INODE
        for slot, block in _blocks_of(change)
    ]
    done = 0

    async def read(position: int) -> bool:
        nonlocal done
        is_readable = await _is_readable(view, *named[position])
        done += 1
        told(done, len(named))
        return is_readable

    readable = await several_at_once([partial(read, each) for each in range(len(named))])
    return Counter(
        change.timestamp for (_, change, *_), can in zip(named, readable, strict=True) if not can
    )


async def _is_readable(
    view: Viewpoint,
    identifier: ObjectId,
    change: Change,
    slot: int,
    block: CoveredBlock | CoveredPatch,
) -> bool:
    """True if nodes have the version that a change has named, or have collected it."""
    layout = None if change.attributes is None else change.attributes.layout
    if layout is None:
        return True
    timestamp = BlockTimestamp(block.time_us, change.client, block.verifier)
    incarnation = layout.incarnation(block.number)
    try:
        part = slot, timestamp
        await view.files.require_part(identifier, incarnation, block.number, part, view.who)
    except NoLongerKept:
        return True
    except VersionUnrecoverable:
        return False
    except FileSystemError as failure:
        if failure.code != errno.EIO:
            raise
        return False
    return True


Changed = tuple[ObjectId, Change]


def _subject(change: Change) -> ObjectId:
    """The object that was made, removed or renamed; otherwise the one that was changed."""
    objects, method = change.operation.objects, change.operation.method
    role = 2 if method in _RENAMES else 1 if method in _NAMES_TWO else 0
    return objects[role]


def audited(log: ChangeLog) -> tuple[list[Changed], list[Changed]]:
    """The client's changes, each once; and what others did later to the same names and files."""
    own: dict[bytes, Changed] = {}
    built: dict[bytes, Changed] = {}
    for identifier in log.touched():
        is_directory = kind_of(identifier) == ObjectKind.DIRECTORY
        names: set[bytes] = set()  # that the client changed so far
        begun_us = inf
        for change in log.changes[identifier]:
            changed = {name for name, _ in change.entries}
            if log.by_client(change):
                begun_us = min(begun_us, change.time_us)
                names |= changed
                # An operation on several objects is listed with the one that it is about.
                if change.timestamp not in own or identifier == _subject(change):
                    own[change.timestamp] = identifier, change
            elif change.operation.method in UNSEEN:
                continue  # a reader has built nothing on it
            elif begun_us < change.time_us and (not is_directory or changed & names):
                built[change.timestamp] = identifier, change
    return ([own[each] for each in sorted(own)], [built[each] for each in sorted(built)])
