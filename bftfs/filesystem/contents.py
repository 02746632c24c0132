"""The contents of one file in one mount, and the states that they pass through.

One `Contents` is shared by all handles of a file. A byte of the file is in the first of these
places that has it:

    dirty       written by a program here, and not handed to the nodes yet
    pushing     on its way to the nodes
    uncovered   at the nodes, but no update of the inode names it yet: only this mount shows it
    covered     at the nodes, and part of the file for all mounts, since the inode names it

`BlockCache` keeps copies of the last two.

Blocks that this mount alone writes get their times from its clock, without asking the nodes
(docs/decisions/0011-unasked-times.md). Whether that is still good is the file's `Sharing`:

    created by this mount ──► EXCLUSIVE ─────┐
                                             │ another mount changed the contents
    opened by this mount ───► SHARED ────────┤
                                ▲            ▼
                                └─covered─ OVERTAKEN

A block that programs wrote in part is merged on the version that the inode names (its base). If it
names another one when the block is covered, the update is refused, and the extents that programs
here wrote are merged on that one. The same holds of patches (`patches`), which lie on that version.
Appended bytes are put behind the end of the file as it is known,
and if that has moved when they are covered, behind the new one; what programs write into them goes
with them. (docs/decisions/0033-shared-blocks.md; tests/unit/filesystem/test_shared_files.py)

In OVERTAKEN, blocks pushed before the other mount's change may have times before it, or belong to
an incarnation that it cut off. They are written again before they are covered: only the extents
that programs here wrote, so that nothing else comes back. After that the file is SHARED.
(tests/unit/filesystem/test_contents.py, from
`test_an_exclusive_file_is_written_without_asking` on.)
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import starmap
from typing import Final, NamedTuple

import msgspec

from bftfs import limits
from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError, OperationFailed
from bftfs.filesystem.attributes import NO_CHANGES, PERMISSION_BITS, Attributes, Changes, Layout
from bftfs.filesystem.block_memory import BlockCache, Buffer, DirtyBlock, Extent, united, without
from bftfs.filesystem.block_names import PAGE, BlockName, base_of, decode_name
from bftfs.filesystem.inode import Writing
from bftfs.filesystem.objects import NANOSECONDS_PER_MICROSECOND, ROOT, without_set_id_bits
from bftfs.identifiers import WHOLE, ObjectId
from bftfs.lock import Lock
from bftfs.query_update.client import EarlierAttempt
from bftfs.read_write.timestamp import BlockTimestamp

UNCOVERED_BLOCKS: Final = limits.BLOCKS_PER_COVER  # of one file, before they are covered…
APPENDED_BLOCKS: Final = 64  # …and with appended bytes: these may have to be written elsewhere
IMAGES_BYTES: Final = 2 * limits.MIB  # of a file's uncovered blocks, to be merged again if need be
PAGES_OF_NAMES: Final = 64  # of one file
PATCHES_KNOWN: Final = 1_024  # of one file: which bytes they have
NAMES_OF_CLOSED: Final = 32  # and patches, of a file that nobody has open; there may be thousands
UNPLACED: Final = -1  # no size: what was appended is to be put elsewhere, or may be

Failure = FileSystemError | OperationFailed


class Sharing(Enum):
    """Which mounts change a file's contents; see the head of this module."""

    EXCLUSIVE = 0
    SHARED = 1
    OVERTAKEN = 2


class Pushed(NamedTuple):
    """A version of a block that this mount has written, and what it was made of."""

    incarnation: int
    timestamp: BlockTimestamp
    is_unasked: bool  # its time is that of this mount's clock, which may be too early
    base: bytes | None  # of which version the other bytes are (`CoveredBlock.base`)
    slot: int = WHOLE
    under: BlockName | None = None  # what it lies on, if it is a patch


class Uncovered(NamedTuple):
    """A block that the nodes hold and no update of the inode covers yet."""

    pushed: Pushed
    extents: tuple[Extent, ...]  # that programs here wrote
    image: Buffer | DirtyBlock | None  # the block, or the patch, if it is at hand

    @property
    def name(self) -> BlockName:
        """The version, as the inode is to name it."""
        incarnation, timestamp, _, _, slot, under = self.pushed
        if under is not None:
            return under.patched(slot, timestamp)
        return BlockName(incarnation, timestamp)


class Cover(NamedTuple):
    """An update of the inode that covers blocks, and the attempts at it whose fate is unknown."""

    arguments: Writing
    names: dict[int, BlockName]
    who: Credentials
    writes: int  # to the file, that it covers; with `is_all`, nothing else was written by then
    is_all: bool
    is_last: bool  # all that nodes held was to be covered
    attempts: list[EarlierAttempt]


class KnownNames:
    """The names of a file's blocks that a mount has heard of, all of one version of its contents.

    Every name is known if this mount has made the file, and few have been written.
    """

    def __init__(self) -> None:
        self._pages: OrderedDict[int, dict[int, BlockName]] = OrderedDict()
        self._has_all = False

    def forget(self, *, has_all: bool = False) -> None:
        """Start anew; with `has_all`, no block has a name."""
        self._pages.clear()
        self._has_all = has_all

    def closed(self) -> None:
        """No program has the file open any more: forget its names if they take much room."""
        if sum(map(len, self._pages.values())) > NAMES_OF_CLOSED:
            self.forget()

    def has_page_of(self, number: int) -> bool:
        """True if it is known whether the block has a name."""
        return self._has_all or number // PAGE in self._pages

    def get(self, number: int) -> BlockName | None:
        """The block's name, if it has one. Requires: `has_page_of`."""
        return self._pages.get(number // PAGE, {}).get(number)

    def learn(self, number: int, stored: Iterable[tuple[int, bytes]]) -> None:
        """Take note of the stored names in the page of a block."""
        self._add_page(number // PAGE, {each: decode_name(name) for each, name in stored})

    def put(self, names: Mapping[int, BlockName]) -> None:
        """Take note of what this mount's own update has named."""
        for number, name in names.items():
            page = self._pages.get(number // PAGE)
            if page is not None:
                page[number] = name
            elif self._has_all:
                self._add_page(number // PAGE, {number: name})

    def limit(self, number: int, valid: int, *, but: int = WHOLE) -> None:
        """The file has grown past a block that had so many bytes of it, and was not named anew.

        Only the patch in the slot `but` was.
        """
        name = self.get(number)
        if name is not None:
            self.put({number: name.within(valid, (but,))})

    def _add_page(self, index: int, names: dict[int, BlockName]) -> None:
        self._pages[index] = names
        if len(self._pages) > PAGES_OF_NAMES:
            self._pages.popitem(last=False)
            self._has_all = False


class Contents:
    """One file's contents, for all its handles."""

    def __init__(
        self, identifier: ObjectId, attributes: Attributes, layout: Layout, cache: BlockCache
    ) -> None:
        self.identifier = identifier
        self.attributes = attributes  # the newest that the nodes told
        self.layout = layout
        self.sharing = Sharing.SHARED
        self.is_kernel_current = False  # the kernel's cached pages are of this version
        self.handles = 0
        self._cache = cache

        self.dirty: dict[int, DirtyBlock] = {}
        self.pushing: dict[int, Buffer] = {}
        self.patching: dict[int, DirtyBlock] = {}  # patches on their way to the nodes
        self.uncovered: dict[int, Uncovered] = {}
        self.names = KnownNames()  # as of `version`
        # Patches of this mount: by number of the block and slot, their timestamps and extents.
        self.laid: OrderedDict[tuple[int, int], tuple[BlockTimestamp, tuple[Extent, ...]]]
        self.laid = OrderedDict()
        self.appends: tuple[Extent, ...] = ()  # what was appended and is not covered, in the file…
        self.appended_to = 0  # …and the size that nodes told when it was put there
        self.moves = 0  # how often it was put elsewhere, since another mount was faster
        self.cover: Cover | None = None  # of which it is unknown if it took effect
        self.on_version: int | None = None  # on which alone anything is saved; see `bind`
        self.push_stop: int | None = None  # what is written from there on is pushed another time
        self.end = 0  # of the bytes written and not covered
        self.pushed_end = 0  # of those among them that the nodes hold
        self.pushed_us = 0  # the latest time of a block that was pushed
        self.mtime_ns = 0  # of the last write
        self.ctime_ns = 0  # of the last write or change of attributes
        self.dirty_since_us = 0
        self.writes = 0
        self.saved_writes = 0
        self.changes = NO_CHANGES  # of attributes, to be made with the next cover
        self.writer: Credentials | None = None

        self.failures = 0
        self.failure: Failure | None = None
        self.lock = Lock()

    @property
    def version(self) -> int:
        """The version of the contents that the nodes told of last: its time, in microseconds."""
        return self.attributes.contents

    @property
    def size(self) -> int:
        """The size as this mount's programs see it."""
        return max(self.attributes.size, self.end)

    @property
    def is_unsaved(self) -> bool:
        """True if there is anything that an update of the inode has to cover."""
        return self.writes != self.saved_writes

    @property
    def most_uncovered(self) -> int:
        """How many blocks the nodes may hold before they are covered."""
        return APPENDED_BLOCKS if self.appends else UNCOVERED_BLOCKS

    # --- what other mounts change --------------------------------------------------------------

    def bind(self, version: int) -> None:
        """Until the file is closed, save nothing on another version of it than this one.

        Nor than those that this mount makes of it. ESTALE, if it is another one already.
        """
        self.on_version = version
        self.require_version()

    def require_version(self) -> None:
        """Raise ESTALE if others have changed the file, and nothing may be saved on that."""
        if self.on_version not in (None, self.version):
            raise FileSystemError(errno.ESTALE, "others have changed it meanwhile")

    def adopt(self, attributes: Attributes, *, ours_after: int = -1) -> None:
        """Take note of `attributes`; cached blocks stay valid if only this mount changed the file.

        `ours_after`: `attributes` are the answer to an update of this mount, which found that
        version of the contents.
        """
        layout = attributes.layout
        if attributes.version <= self.attributes.version or layout is None:
            return
        before, self.attributes = self.version, attributes
        if attributes.contents == before:
            return
        self.layout = layout
        if ours_after != before:
            self.names.forget()
            self.drop_blocks(0)
            self.is_kernel_current = False
            self.sharing = Sharing.OVERTAKEN

    def closed(self) -> None:
        """No program has the file open any more: forget what takes much room."""
        self.on_version = None
        self.names.closed()
        if len(self.laid) > NAMES_OF_CLOSED:
            self.laid.clear()

    def drop_blocks(self, first: int) -> None:
        """Forget clean blocks from `first` on."""
        self._cache.drop_from(self.identifier, first)

    def must_ask(self, numbers: Iterable[int]) -> None:
        """Uncovered blocks are to be written again: others' later versions count, or may."""
        for number in numbers:
            self.names.forget()
            self.write_again(number)

    def write_again(self, number: int) -> None:
        """An uncovered block is to be written again, on what the inode names now."""
        block = self.uncovered[number]
        self.uncovered[number] = block._replace(pushed=block.pushed._replace(is_unasked=True))
        self.sharing = Sharing.OVERTAKEN

    def overtaken(self) -> list[int]:
        """Uncovered blocks that are to be written again, since others have changed the contents.

        A truncation has given them new incarnations; or another mount's write has a later time, or
        may have one, if this mount's clock alone gave them theirs.
        """
        if self.sharing is not Sharing.OVERTAKEN:
            return []
        return [
            number
            for number, block in self.uncovered.items()
            if block.pushed.is_unasked
            or block.pushed.incarnation != self.layout.incarnation(number)
        ]

    def slot_for(self, number: int, name: BlockName, written: DirtyBlock) -> int:
        """The slot for a patch on the named version; WHOLE if none is left.

        That of one of whose bytes none would show any more, if this mount knows of any.
        """
        used = set()
        for patch in name.patches:
            timestamp, extents = self.laid.get((number, patch.slot), (None, ()))
            if timestamp == patch.timestamp and all(starmap(written.covers, extents)):
                return patch.slot
            used.add(patch.slot)
        return next((each for each in range(1, limits.PATCHES + 1) if each not in used), WHOLE)

    def name(self, number: int) -> BlockName | None:
        """The version of a block that is shown to this mount's programs; None if there is none.

        That is the one that the inode names, or one that this mount has written since. Requires:
        `knows_name`.
        """
        uncovered = self.uncovered.get(number)
        if uncovered is not None:
            return uncovered.name
        return self.named(number)

    def named(self, number: int) -> BlockName | None:
        """The version of a block that the inode names, as far as it is known here."""
        name = self.names.get(number)
        is_cut = name is not None and name.incarnation != self.layout.incarnation(number)
        return None if is_cut else name

    def named_within_file(self, number: int) -> BlockName | None:
        """The same, of whose parts no more counts than belongs to the file now.

        A patch on it may let the file grow, before the inode knows of it.
        """
        name = self.named(number)
        valid = self.attributes.size - number * self.layout.block_bytes
        return name if name is None or valid >= self.layout.block_bytes else name.within(valid)

    def is_outdated(self, number: int) -> bool:
        """True if an uncovered block was merged on another version than the named one."""
        base = self.uncovered[number].pushed.base
        return base is not None and not (
            self.names.has_page_of(number) and base == base_of(self.named(number))
        )

    def knows_name(self, number: int) -> bool:
        """True if it is known which version of a block is shown."""
        return (
            number in self.uncovered
            or self.names.has_page_of(number)
            or number * self.layout.block_bytes >= self.attributes.size  # nothing there has one
        )

    def stop_in(self, number: int) -> int:
        """Up to where a block may be pushed now."""
        block_bytes = self.layout.block_bytes
        if self.push_stop is None:
            return block_bytes
        return max(0, min(block_bytes, self.push_stop - number * block_bytes))

    def valid_bytes(self, number: int) -> int:
        """The number of bytes of the block, as the nodes hold it, that belong to the file.

        A block may be longer, if its writer failed before it covered the block.
        """
        block_bytes = self.layout.block_bytes
        if number in self.uncovered:
            return block_bytes
        return max(0, min(block_bytes, self.attributes.size - number * block_bytes))

    def seen_by_programs(self, attributes: Attributes) -> Attributes:
        """`attributes` with the changes that are not covered yet."""
        if not self.is_unsaved:
            return attributes
        changes = self.changes
        mode = attributes.mode
        if changes.mode is not None:
            mode = mode & ~PERMISSION_BITS | changes.mode
        elif self.writer is not None and self.writer.uid != ROOT:
            mode = without_set_id_bits(mode)
        return msgspec.structs.replace(
            attributes,
            size=max(attributes.size, self.end),
            mode=mode,
            uid=attributes.uid if changes.uid is None else changes.uid,
            gid=attributes.gid if changes.gid is None else changes.gid,
            atime_ns=attributes.atime_ns if changes.atime_ns is None else changes.atime_ns,
            mtime_ns=self.mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
            ctime_ns=max(attributes.ctime_ns, self.ctime_ns),
        )

    def wrote(
        self, who: Credentials, start: int, stop: int, now_ns: int, *, is_append: bool = False
    ) -> None:
        """Take note of a write of bytes [start, stop)."""
        if is_append:
            if not self.appends:
                self.appended_to = self.attributes.size
            self.appends = united((*self.appends, (start, stop)))
        if not self.is_unsaved:
            self.dirty_since_us = now_ns // NANOSECONDS_PER_MICROSECOND
        self.end = max(self.end, stop)
        self.writer = who
        self.mtime_ns = self.ctime_ns = now_ns
        self.writes += 1
        if self.changes:
            # A write sets the time anew, and takes privileges.
            mode = self.changes.mode
            if mode is not None and who.uid != ROOT:
                mode = without_set_id_bits(mode)
            self.changes = msgspec.structs.replace(self.changes, mtime_ns=None, mode=mode)

    def pushed(
        self,
        number: int,
        extents: tuple[Extent, ...],
        layout: Layout,
        version: Pushed,
        image: Buffer | DirtyBlock,
    ) -> None:
        """Take note of a block that the nodes hold now, of which `extents` were written."""
        before = self.uncovered.get(number)
        if before is not None:
            extents = united((*before.extents, *extents))
        kept = sum(_bytes_of(block.image) for block in self.uncovered.values())
        is_kept = version.base is not None and kept + _bytes_of(image) <= IMAGES_BYTES
        self.uncovered[number] = Uncovered(version, extents, image if is_kept else None)
        if layout is not self.layout or (
            version.is_unasked and self.sharing is not Sharing.EXCLUSIVE
        ):
            self.sharing = Sharing.OVERTAKEN
        self.pushed_end = max(self.pushed_end, self._end_of(number, extents))

    def _end_of(self, number: int, extents: tuple[Extent, ...]) -> int:
        return number * self.layout.block_bytes + extents[-1][1]

    def _pushed_end(self) -> int:
        ends = (self._end_of(number, block.extents) for number, block in self.uncovered.items())
        return max(ends, default=0)

    def lose(self, number: int) -> tuple[tuple[Extent, ...], list[int]]:
        """Forget an uncovered block that nodes have collected, and this mount has no copy of.

        Bytes that programs have written over it since are kept. But of what was appended, nothing
        is kept of a stretch in which bytes are lost, lest a line is torn.

        Gives the lost stretches of the file, whose dirty bytes are to be forgotten, and the blocks
        at the nodes that hold other bytes beside them: these are to be written again. `find_ends`
        is to follow.
        """
        dirty = self.dirty[number].extents() if number in self.dirty else ()
        first = number * self.layout.block_bytes
        extents = without(self.uncovered.pop(number).extents, dirty)
        lost = [(first + start, first + stop) for start, stop in extents]
        torn = tuple(each for each in self.appends if without((each,), lost) != (each,))
        self.appends = without(self.appends, torn)
        self.is_kernel_current = False
        beside = []
        for other, block in tuple(self.uncovered.items()):
            first = other * self.layout.block_bytes
            gone = tuple((start - first, stop - first) for start, stop in torn)
            left = without(block.extents, gone)
            if not left:
                del self.uncovered[other]
                self._cache.drop(self.identifier, other)
            elif left != block.extents:
                self.uncovered[other] = block._replace(extents=left)
                self.write_again(other)
                beside.append(other)
        self._cache.drop(self.identifier, number)
        return torn, beside

    def find_ends(self) -> None:
        """Find `end` and `pushed_end` anew. Requires: nothing is on its way."""
        block_bytes = self.layout.block_bytes
        self.pushed_end = self._pushed_end()
        ends = (number * block_bytes + block.stop for number, block in self.dirty.items())
        self.end = max(self.pushed_end, max(ends, default=0))

    # --- appending ---------------------------------------------------------------------------

    def place_of_appends(self) -> int:
        """Where appended bytes begin, as far as is known: behind all others, of any mount."""
        block_bytes, place = self.layout.block_bytes, self.attributes.size
        written = {number: block.extents for number, block in self.uncovered.items()}
        for number, dirty in self.dirty.items():
            written[number] = united((*written.get(number, ()), *dirty.extents()))
        for number, extents in written.items():
            first = number * block_bytes
            for start, stop in extents:
                others = without(((first + start, first + stop),), self.appends)
                place = max(place, *(stop for _, stop in others), 0)
        return place

    def moved(self, place: int) -> None:
        """Appended bytes move so that they begin at `place`; nodes have none of them there."""
        length = sum(stop - start for start, stop in self.appends)
        self.appended_to = self.attributes.size
        self.appends = ((place, place + length),)
        self.end = place + length
        self.pushed_end = self._pushed_end()
        self.moves += 1
        self.is_kernel_current = False

    def cut_appends(self, end: int) -> None:
        """Forget the appended bytes behind `end`: the file was cut there."""
        self.appends = without(self.appends, ((end, self.end + (1 << 62)),))

    def covered(self, cover: Cover, size: int, kept: Iterable[int]) -> None:
        """A cover took effect, and left the size; `kept` are to be written and covered again."""
        for number in cover.names.keys() - set(kept):
            block = self.uncovered.pop(number)
            if block.pushed.slot != WHOLE:
                self.laid[number, block.pushed.slot] = block.pushed.timestamp, block.extents
                if len(self.laid) > PATCHES_KNOWN:
                    self.laid.popitem(last=False)
        if cover.arguments.appended_to is not None:
            self.appends = without(self.appends, ((0, cover.arguments.end),))
            self.appended_to = size
        self.find_ends()

    def covered_before_others(self, cover: Cover) -> None:
        """Others have changed the file since that cover: they may have cut off what it covered."""
        for number in cover.names:
            self._cache.drop(self.identifier, number)
        self.is_kernel_current = False
        self.appended_to = UNPLACED

    def fold(self, changes: Changes, after: Attributes) -> None:
        """Leave `changes`, which lead to the attributes `after`, to the next cover.

        It sets absolute values, so that it may be repeated.
        """
        folded = self.changes
        owner_changes = changes.uid is not None or changes.gid is not None
        mode_changes = changes.mode is not None or owner_changes
        self.changes = Changes(
            mode=after.mode & PERMISSION_BITS if mode_changes else folded.mode,
            uid=folded.uid if changes.uid is None else after.uid,
            gid=folded.gid if changes.gid is None else after.gid,
            atime_ns=folded.atime_ns if changes.atime_ns is None else after.atime_ns,
            mtime_ns=folded.mtime_ns if changes.mtime_ns is None else after.mtime_ns,
        )
        self.ctime_ns = after.ctime_ns
        self.writes += 1

    def fail(self, failure: Failure) -> None:
        """Let every handle report `failure` once."""
        self.failures += 1
        self.failure = failure


def _bytes_of(image: Buffer | DirtyBlock | None) -> int:
    if isinstance(image, DirtyBlock):
        return image.cost
    return 0 if image is None else len(image)


@dataclass(slots=True, eq=False)
class OpenFile:
    """An open file: one handle."""

    contents: Contents
    who: Credentials
    append: bool
    reads: bool  # the handle; only such a one can be mapped
    keep_cache: bool  # no other mount changed the file since this mount last opened it
    failures_seen: int
    expected: int = 0  # where a sequential reader reads next
    window: int = 0  # how far ahead of it is read
    ahead: int = 0  # up to where that has been done
    is_access_noted: bool = False

    @property
    def identifier(self) -> ObjectId:
        """The inode that is open."""
        return self.contents.identifier
