"""Files and symlinks as replicated objects: readlink, and changes of a file's size and layout.

Blocks are written before the update that covers them. `write` then extends the size and sets the
times; `truncate` cuts and `merge` rearranges the layout. A writer names the newest incarnation that
it wrote under: if the layout was cut since, it is refused and writes those blocks again. A client
that cuts inside a block first writes the shortened block under the fresh incarnation, and names the
version of the contents that it read the block from.

Map keys of an inode's state, beside those of `objects`: b"t" the target of a symlink.

A storage node asks `may_write_blocks` before it accepts a block of a file. It checks against its
own replica of the inode. If it missed the creation, it cannot tell and accepts the block. That is
safe: the correct nodes that know the inode are enough to keep a write without permission from ever
being complete. It is also needed: a node that refuses a permitted write counts as faulty. So does a
node that is behind and refuses what was permitted since then; while it is, one more failing node
may be one too many.
"""

from __future__ import annotations

import errno
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from bftfs import limits
from bftfs.filesystem.attribute_methods import apply_changes
from bftfs.filesystem.attributes import Attributes, Changes, Layout
from bftfs.filesystem.directory import SYMLINK_TARGET_KEY
from bftfs.filesystem.objects import (
    ATTRIBUTES_KEY,
    ROOT,
    WRITE,
    NoArguments,
    Principal,
    States,
    Subject,
    owns,
    time_ns,
    without_set_id_bits,
)
from bftfs.query_update.object_type import Caller, MutableState, Record, Refusal
from bftfs.server.step import Grant
from bftfs.wire.codec import TimeField

UNKNOWN_INODE: Final = -1  # this node cannot tell who may write its blocks

SizeField: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
IncarnationField: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


def read_link(states: States, arguments: NoArguments, caller: Caller) -> bytes:
    """The target of a symlink; it never changes."""
    del arguments, caller
    target = Subject.existing(states[0]).state.get(SYMLINK_TARGET_KEY)
    if target is None:
        raise Refusal(errno.EINVAL)
    return bytes(target)


class Writing(Record, frozen=True):
    """Blocks were written up to byte `end`, while the layout's newest incarnation was `newest`.

    An `end` of 0 covers no bytes. `mtime_ns` is the time of the last write; `changes` are changes
    of attributes that programs made meanwhile.
    """

    end: SizeField
    newest: IncarnationField
    mtime_ns: SizeField
    changes: Changes


class Truncation(Record, frozen=True):
    """A new size. If it cuts, blocks from the cut on get `incarnation`.

    `contents` is the version that the shortened block was read from; 0 if the cut lies between
    blocks, or the block was empty.
    """

    size: SizeField
    incarnation: IncarnationField
    contents: TimeField


class Merging(Record, frozen=True):
    """Blocks in [first, stop) were written again under `incarnation`, as of `contents`."""

    first: SizeField
    stop: SizeField
    incarnation: IncarnationField
    contents: TimeField


class ContentsChanged(Record, frozen=True):
    """The attributes after a change of a file's contents, and the version of those before it."""

    attributes: Attributes
    before: int


def may_write(subject: Subject, who: Principal) -> bool:
    """True if `who` may change a file's bytes.

    The owner may whatever the permission bits say, as with NFS: the file may have been open since
    before they changed, or since it was created without them.
    """
    return owns(who, subject.attributes) or subject.permits(who, WRITE)


def _writable(state: MutableState, caller: Caller) -> tuple[Subject, Layout]:
    subject = Subject.existing(state)
    layout = subject.attributes.layout
    if layout is None:
        raise Refusal(errno.EINVAL)
    if not may_write(subject, caller):
        raise Refusal(errno.EACCES)
    return subject, layout


def _contents_changed(subject: Subject, caller: Caller, mtime_ns: int) -> None:
    mode = subject.attributes.mode
    if caller.uid != ROOT:
        mode = without_set_id_bits(mode)
    subject.change(mode=mode, mtime_ns=mtime_ns, ctime_ns=time_ns(caller), contents=caller.time_us)


def write(states: States, arguments: Writing, caller: Caller) -> ContentsChanged:
    """Cover blocks that were written. The size never shrinks: others may have extended it."""
    subject, layout = _writable(states[0], caller)
    before = subject.attributes.contents
    if arguments.end > limits.FILE_BYTES:
        raise Refusal(errno.EFBIG)
    if arguments.newest != layout.newest:
        raise Refusal(errno.EAGAIN)
    _contents_changed(subject, caller, min(arguments.mtime_ns, time_ns(caller)))
    if arguments.end > subject.attributes.size:
        subject.change(size=arguments.end)
    if arguments.changes:
        apply_changes(subject, arguments.changes, caller)
    return ContentsChanged(subject.conclude(caller), before)


def truncate(states: States, arguments: Truncation, caller: Caller) -> ContentsChanged:
    """Set the size; bytes that are cut off never come back."""
    subject, layout = _writable(states[0], caller)
    before = subject.attributes.contents
    size = arguments.size
    if size > limits.FILE_BYTES:
        raise Refusal(errno.EFBIG)
    if arguments.contents not in (0, before):
        raise Refusal(errno.EAGAIN)
    if size < subject.attributes.size:
        if arguments.incarnation <= layout.newest:
            raise Refusal(errno.EAGAIN)
        layout = layout.cut(size // layout.block_bytes, arguments.incarnation)
        if len(layout.ranges) > limits.LAYOUT_RANGES:
            raise Refusal(errno.ENOSPC)
        subject.change(layout=layout)
    subject.change(size=size)
    _contents_changed(subject, caller, time_ns(caller))
    return ContentsChanged(subject.conclude(caller), before)


def merge(states: States, arguments: Merging, caller: Caller) -> ContentsChanged:
    """Make one range of several, whose blocks were written again."""
    subject, layout = _writable(states[0], caller)
    before = subject.attributes.contents
    if arguments.contents != before or arguments.incarnation <= layout.newest:
        raise Refusal(errno.EAGAIN)
    first, stop = arguments.first, arguments.stop
    starts = [start for start, _ in layout.ranges]
    if first not in starts or not first < stop or not (stop in starts or stop > starts[-1]):
        raise Refusal(errno.EINVAL)
    merged = layout.merged(first, stop, arguments.incarnation)
    subject.change(layout=merged, contents=caller.time_us)
    return ContentsChanged(subject.conclude(caller), before)


def may_write_blocks(inode: MutableState, who: Principal, grant: Grant) -> int:
    """0 if a client with `grant` may write the blocks for `who`, UNKNOWN_INODE, or an errno."""
    if not grant.allows(who.uid):
        return errno.EPERM
    if not grant.write:
        return errno.EROFS
    if inode.get(ATTRIBUTES_KEY) is None:
        return UNKNOWN_INODE
    return 0 if may_write(Subject.existing(inode), who) else errno.EACCES
