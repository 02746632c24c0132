"""Files and symlinks as replicated objects: readlink, and changes of a file's size and layout.

Blocks are written before the update that covers them. `write` then extends the size and sets the
times; `truncate` cuts and `merge` rearranges the layout. A writer names the newest incarnation that
it wrote under: if the layout was cut since, it is refused and writes those blocks again. A client
that cuts inside a block first writes the shortened block under the fresh incarnation, and names the
version of the contents that it read the block from.

Map keys of an inode's state, beside those of `objects`: b"t" the target of a symlink.
"""

from __future__ import annotations

import errno
from typing import Annotated, TypeAlias

from msgspec import Meta

from bftfs import limits
from bftfs.filesystem.attribute_methods import apply_changes
from bftfs.filesystem.attributes import Attributes, Changes
from bftfs.filesystem.directory import SYMLINK_TARGET_KEY
from bftfs.filesystem.layout import Layout
from bftfs.filesystem.objects import NoArguments, States, Subject, time_ns
from bftfs.filesystem.permission import ROOT, WRITE, owns, without_set_id_bits
from bftfs.query_update.object_type import Caller, MutableState, Record, Refusal
from bftfs.wire.fields import TimeField

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


def may_write(subject: Subject, caller: Caller) -> bool:
    """True if the caller may change a file's bytes.

    The owner may whatever the permission bits say, as with NFS: the file may have been open since
    before they changed, or since it was created without them.
    """
    return owns(caller, subject.attributes) or subject.permits(caller, WRITE)


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


def _conclusion(subject: Subject, before: int, caller: Caller) -> ContentsChanged:
    return ContentsChanged(subject.conclude(caller), before)


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
    return _conclusion(subject, before, caller)


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
    return _conclusion(subject, before, caller)


def merge(states: States, arguments: Merging, caller: Caller) -> ContentsChanged:
    """Make one range of several, whose blocks were written again."""
    subject, layout = _writable(states[0], caller)
    before = subject.attributes.contents
    if arguments.contents != before or arguments.incarnation <= layout.newest:
        raise Refusal(errno.EAGAIN)
    starts = [first for first, _ in layout.ranges]
    if arguments.first not in starts or not (
        arguments.stop in starts or arguments.stop > starts[-1]
    ):
        raise Refusal(errno.EINVAL)
    if arguments.first >= arguments.stop:
        raise Refusal(errno.EINVAL)
    subject.change(
        layout=layout.merged(arguments.first, arguments.stop, arguments.incarnation),
        contents=caller.time_us,
    )
    return _conclusion(subject, before, caller)
