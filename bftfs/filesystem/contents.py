"""What one mount knows of a file's contents: unwritten, on their way, not covered yet, failed.

One `Contents` is shared by all handles of an inode. At any moment a byte of the file is, in this
order, what the dirty block says, what is on its way, what the block cache says, what the nodes say.

What was written and is not covered yet by an update of the inode is remembered with its extents,
so that after a truncation by another mount it can be written again without bringing back anything
else.
"""

from __future__ import annotations

import msgspec

from bftfs.conversation import Event
from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError, OperationFailed
from bftfs.filesystem.attributes import NO_CHANGES, PERMISSION_BITS, Attributes, Changes
from bftfs.filesystem.dirty import Buffer, DirtyBlock, Extent, united
from bftfs.filesystem.layout import Layout
from bftfs.filesystem.objects import NANOSECONDS_PER_MICROSECOND
from bftfs.filesystem.permission import ROOT, without_set_id_bits
from bftfs.filesystem.turnstile import Turnstile
from bftfs.identifiers import ObjectId
from bftfs.read_write.timestamp import BlockTimestamp

Failure = FileSystemError | OperationFailed


class Loading:
    """A block that is being read. `stale`: it was written or cut meanwhile.

    `revision` is that of the contents when the block had been read: who hears of it later must not
    believe it if anything was written or cut since.
    """

    __slots__ = ("data", "done", "revision", "stale")

    def __init__(self) -> None:
        self.done = Event()
        self.data: Buffer | None = None
        self.revision = -1
        self.stale = False


class Uncovered:
    """A block that the nodes hold and no inode update covers yet.

    `is_unasked`: its time is what this mount's clock alone gave it, and the nodes were not asked.
    """

    __slots__ = ("extents", "incarnation", "is_unasked", "timestamp")

    def __init__(
        self,
        incarnation: int,
        extents: tuple[Extent, ...],
        timestamp: BlockTimestamp,
        *,
        is_unasked: bool,
    ) -> None:
        self.incarnation = incarnation
        self.extents = extents
        self.timestamp = timestamp
        self.is_unasked = is_unasked


class Contents:
    """One file's contents, for all its handles."""

    def __init__(self, identifier: ObjectId, attributes: Attributes, layout: Layout) -> None:
        self.identifier = identifier
        self.is_ours = False  # this mount made the file, and no other has changed its contents
        self.is_overtaken = False  # others have changed them since something was pushed
        self.layout = layout
        self.covered = attributes.size  # the size that the nodes know
        self.version = attributes.contents
        self.seen = attributes.version  # the newest attributes taken note of
        self.links = attributes.links
        self.opened_version = 0  # `version` when last opened: what the kernel may have cached
        self.handles = 0

        self.dirty: dict[int, DirtyBlock] = {}
        self.pushing: dict[int, Buffer] = {}
        self.uncovered: dict[int, Uncovered] = {}
        self.hidden: set[int] = set()  # blocks of which others have pushed what nothing covers yet
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
        self.loading: dict[int, Loading] = {}
        self.revision = 0  # grows when blocks are pushed or cut
        self.turnstile = Turnstile()

    @property
    def size(self) -> int:
        """The size as this mount's programs see it."""
        return max(self.covered, self.end)

    @property
    def is_unsaved(self) -> bool:
        """Whether there is anything that an inode update has to cover."""
        return self.writes != self.saved_writes

    def overtaken(self) -> list[int]:
        """Uncovered blocks that are to be written again, since others have changed the contents.

        A truncation has given them new incarnations; or another mount's write may have a later time
        than the one that this mount's clock alone gave them.
        """
        if not self.is_overtaken:
            return []
        return [
            number
            for number, block in self.uncovered.items()
            if block.incarnation != self.layout.incarnation(number)
            or (block.is_unasked and not self.is_ours)
        ]

    def shown_us(self, number: int) -> int:
        """Up to which time versions of a block are shown to this mount's programs.

        What no update of the inode covers belongs to no version of the file, unless it is ours.
        """
        uncovered = self.uncovered.get(number)
        return self.version if uncovered is None else max(self.version, uncovered.timestamp.time)

    def valid_bytes(self, number: int) -> int:
        """How many bytes of the block, as the nodes hold it, belong to the file.

        A block may be longer: whoever wrote it failed before he covered it.
        """
        block_bytes = self.layout.block_bytes
        if number in self.uncovered:
            return block_bytes
        return max(0, min(block_bytes, self.covered - number * block_bytes))

    def seen_by_programs(self, attributes: Attributes) -> Attributes:
        """`attributes` with what is not covered yet."""
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

    def wrote(self, who: Credentials, stop: int, now_ns: int) -> None:
        """Take note of a write that ended at byte `stop`."""
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
        timestamp: BlockTimestamp,
        *,
        is_unasked: bool,
    ) -> None:
        """Take note of a block that the nodes hold now, of which `extents` were written."""
        before = self.uncovered.get(number)
        if before is not None:
            extents = united(before.extents, extents)
        self.uncovered[number] = Uncovered(
            layout.incarnation(number), extents, timestamp, is_unasked=is_unasked
        )
        if layout is not self.layout or (is_unasked and not self.is_ours):
            self.is_overtaken = True
        self.pushed_end = max(self.pushed_end, number * self.layout.block_bytes + extents[-1][1])

    def fold(self, changes: Changes, after: Attributes) -> None:
        """Leave `changes`, which lead to the attributes `after`, to the next cover.

        What it will be asked to set are absolute values, so that it may be asked more than once.
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
        """Every handle is to hear of `failure` once."""
        self.failures += 1
        self.failure = failure


class OpenFile:
    """A handle."""

    __slots__ = (
        "ahead",
        "append",
        "contents",
        "expected",
        "failures_seen",
        "is_access_noted",
        "keep_cache",
        "who",
        "window",
    )

    def __init__(
        self, contents: Contents, who: Credentials, *, append: bool, keep_cache: bool
    ) -> None:
        self.contents = contents
        self.who = who
        self.append = append
        self.keep_cache = keep_cache  # nobody changed the file since this mount last opened it
        self.failures_seen = contents.failures
        self.expected = 0  # where a sequential reader reads next
        self.window = 0  # how far ahead of him is read
        self.ahead = 0  # up to where that has been done
        self.is_access_noted = False

    @property
    def identifier(self) -> ObjectId:
        """The inode that is open."""
        return self.contents.identifier
