"""Inodes as replicated objects: attributes, which directories have as well, and files' contents.

The attributes are those of stat(2), extended ones, ACLs, and the retention policy.

Names of extended attributes fall into the namespaces of xattr(7), with Linux' rules: `user.` on
files and directories, by their permissions; `trusted.` for the superuser alone; `security.`
readable by all; and the two ACLs. A change of the access ACL changes the permission bits, and vice
versa.

The retention policy, set by the owner, says which versions are kept once they are older than the
detection window. [design §8] It is part of the object's state, so that nodes find it without
looking at directories, and its changes are history, too. A new object inherits the policy of its
directory; to change that of a subtree is to change it for every object in it.

Blocks are written before the update that covers them. `write` then names them, extends the size and
sets the times; `truncate` cuts and `merge` rearranges the layout; `rewrite` names blocks that were
sealed again. A writer names the newest
incarnation that it wrote under: if the layout was cut since, it is refused and writes those blocks
again. It also names the version that each partial block was merged on, and the size that bytes were
appended to: if others have changed these since, it is refused, and does that again. A client that
cuts inside a block first writes the shortened block under the fresh incarnation, and names the
version of the contents that it read the block from.

Map keys of an inode's state, beside those of `objects`: b"t" the target of a symlink, and the names
of blocks (`block_names`).

A storage node asks `may_write_blocks` before it accepts a block of a file. It checks against its
own replica of the inode. If it missed the creation, it cannot tell and accepts the block. That is
safe: the correct nodes that know the inode are enough to keep a write without permission from ever
being complete. It is also needed: a node that refuses a permitted write counts as faulty. A node
that is behind refuses what was permitted since then. Where that holds a writer up he calls
`permit_writing`, which brings the node up to date, or tells him that he may not write any more.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from bftfs import limits
from bftfs.crypto.digest import Digest
from bftfs.errors import UsageError
from bftfs.filesystem import acl as acls
from bftfs.filesystem.acl import AccessControlList
from bftfs.filesystem.attributes import (
    ACCESS_ACL,
    DEFAULT_ACL,
    INCARNATION_GAP,
    NOW,
    PERMISSION_BITS,
    Attributes,
    Changes,
    Layout,
    decode_attributes,
)
from bftfs.filesystem.block_names import (
    OVERTAKEN,
    PAGE,
    CoveredBlock,
    CoveredField,
    CoveredPatch,
    CoveredPatches,
    grow,
    lay_patches,
    name_blocks,
    names_in,
)
from bftfs.filesystem.directory import SYMLINK_TARGET_KEY
from bftfs.filesystem.objects import (
    ACL_KEYS,
    ATTRIBUTES_KEY,
    EXECUTE,
    READ,
    RETENTION_KEY,
    ROOT,
    WRITE,
    AttributesAfter,
    NoArguments,
    Principal,
    States,
    Subject,
    concluded,
    is_member,
    owns,
    permits,
    time_ns,
    without_set_id_bits,
)
from bftfs.identifiers import WHOLE
from bftfs.query_update.object_type import Caller, ChangesAsked, MutableState, Record, Refusal
from bftfs.read_write.timestamp import BlockTimestamp, digest_of
from bftfs.retention import KEEP_ALL, POLICY_BYTES, parse_policy
from bftfs.wire.codec import TimeField

DAY_NS: Final = 86_400 * 1_000_000_000
XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2

_VALUE = b"x"
_PREFIXES = _USER, _TRUSTED, _SECURITY, _SYSTEM = b"user.", b"trusted.", b"security.", b"system."
_ACLS: Final = {acls.ACCESS: ACCESS_ACL, acls.DEFAULT: DEFAULT_ACL}

ExtendedNameField: TypeAlias = Annotated[bytes, Meta(max_length=4096)]
ExtendedValueField: TypeAlias = Annotated[bytes, Meta(max_length=limits.XATTR_VALUE_BYTES + 1)]


def get_attributes(states: States, arguments: NoArguments, caller: Caller) -> Attributes:
    """The attributes; as with a file handle, knowing the object's id is permission enough."""
    del arguments, caller
    return Subject.existing(states[0]).attributes


def permit_reading(states: States, arguments: Record, caller: Caller) -> bytes:
    """Refuse a caller who may not read the object now: its history is closed to that user, too."""
    del arguments
    Subject.existing(states[0]).require(caller, READ)
    return b""


def permit_history(states: States, arguments: ChangesAsked, caller: Caller) -> bytes:
    """Refuse a caller who may not be shown these changes of the object, as it is now."""
    subject = Subject.existing(states[0])
    subject.require(caller, READ)
    if caller.uid != ROOT and any(map(_may_show_trusted, arguments.prefixes)):
        raise Refusal(errno.EACCES)
    return b""


def _may_show_trusted(prefix: bytes) -> bool:
    """True if a key that begins with this may be that of an attribute for the superuser alone."""
    keys = _VALUE + _TRUSTED
    return prefix.startswith(keys) or keys.startswith(prefix)


def change_attributes(states: States, arguments: Changes, caller: Caller) -> AttributesAfter:
    """chmod, chown and utimens in one."""
    subject = Subject.existing(states[0])
    apply_changes(subject, arguments, caller)
    return concluded(caller, subject)


def apply_changes(subject: Subject, changes: Changes, caller: Caller) -> None:
    """Make `changes`, or refuse all of them. The rules are those of Linux' setattr_prepare."""
    _require_mode_right(subject, changes, caller)
    _require_owner_right(subject, changes, caller)
    _require_times_right(subject, changes, caller)
    before, now = subject.attributes, time_ns(caller)
    gid = before.gid if changes.gid is None else changes.gid
    mode = before.mode
    if (changes.uid is not None or changes.gid is not None) and not stat.S_ISDIR(mode):
        mode = without_set_id_bits(mode)
    if changes.mode is not None:
        mode = stat.S_IFMT(mode) | changes.mode & PERMISSION_BITS
        if caller.uid != ROOT and not is_member(caller, gid):
            mode &= ~stat.S_ISGID
        acl = subject.acl(ACCESS_ACL)
        if acl is not None:
            subject.store_acl(ACCESS_ACL, acl.with_mode(mode))
    subject.change(
        mode=mode,
        uid=before.uid if changes.uid is None else changes.uid,
        gid=gid,
        atime_ns=_new_time(changes.atime_ns, before=before.atime_ns, now=now),
        mtime_ns=_new_time(changes.mtime_ns, before=before.mtime_ns, now=now),
        ctime_ns=now,
    )


def _require_mode_right(subject: Subject, changes: Changes, caller: Caller) -> None:
    before = subject.attributes
    if changes.mode is not None and not owns(caller, before):
        # Before a write by another user than the owner, Linux removes the set-id bits in that
        # user's name.
        if changes.mode & PERMISSION_BITS != without_set_id_bits(before.mode & PERMISSION_BITS):
            raise Refusal(errno.EPERM)
        subject.require(caller, WRITE)


def _require_owner_right(subject: Subject, changes: Changes, caller: Caller) -> None:
    before = subject.attributes
    if caller.uid == ROOT:
        return
    if changes.uid is not None and not caller.uid == before.uid == changes.uid:
        raise Refusal(errno.EPERM)
    if changes.gid is not None and not (
        caller.uid == before.uid and (changes.gid == before.gid or is_member(caller, changes.gid))
    ):
        raise Refusal(errno.EPERM)


def _require_times_right(subject: Subject, changes: Changes, caller: Caller) -> None:
    times = [time for time in (changes.atime_ns, changes.mtime_ns) if time is not None]
    if times and not owns(caller, subject.attributes):
        if any(time != NOW for time in times):
            raise Refusal(errno.EPERM)
        subject.require(caller, WRITE)


def _new_time(asked: int | None, *, before: int, now: int) -> int:
    if asked is None:
        return before
    return now if asked == NOW else asked


class Access(Record, frozen=True):
    """A report that the object was read at this time."""

    atime_ns: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


def is_access_due(attributes: Attributes, atime_ns: int) -> bool:
    """relatime: True for the first access after each change, and once a day."""
    return (
        attributes.atime_ns <= max(attributes.mtime_ns, attributes.ctime_ns)
        or atime_ns - attributes.atime_ns >= DAY_NS
    )


def accessed(states: States, arguments: Access, caller: Caller) -> AttributesAfter:
    """Record an access, if one is due; anybody who may read the object may report it."""
    subject = Subject.existing(states[0])
    if not subject.permits(caller, READ) and not subject.permits(caller, EXECUTE):
        raise Refusal(errno.EACCES)
    atime_ns = min(arguments.atime_ns, time_ns(caller))
    if is_access_due(subject.attributes, atime_ns) and atime_ns > subject.attributes.atime_ns:
        subject.change(atime_ns=atime_ns)
    return concluded(caller, subject)


# --- the retention policy --------------------------------------------------------------------


class PolicySetting(Record, frozen=True):
    """A policy in words."""

    policy: Annotated[str, Meta(max_length=POLICY_BYTES)]


def get_retention(states: States, arguments: NoArguments, caller: Caller) -> PolicySetting:
    """The object's policy; as for its attributes, knowing the object's id is permission enough."""
    del arguments, caller
    stored = Subject.existing(states[0]).state.get(RETENTION_KEY)
    return PolicySetting(str(KEEP_ALL) if stored is None else stored.decode("ascii"))


def set_retention(states: States, arguments: PolicySetting, caller: Caller) -> AttributesAfter:
    """Set the policy; only the owner may."""
    subject = Subject.existing(states[0])
    if not owns(caller, subject.attributes):
        raise Refusal(errno.EPERM)
    try:
        policy = parse_policy(arguments.policy)
    except UsageError:
        raise Refusal(errno.EINVAL) from None
    if policy == KEEP_ALL:
        subject.state.delete(RETENTION_KEY)
    else:
        subject.state.put(RETENTION_KEY, str(policy).encode("ascii"))
    subject.change(ctime_ns=time_ns(caller))
    return concluded(caller, subject)


# --- extended attributes ---------------------------------------------------------------------


class ExtendedName(Record, frozen=True):
    """The name of an extended attribute."""

    name: ExtendedNameField


class ExtendedValue(Record, frozen=True):
    """The value of an extended attribute."""

    value: bytes


class ExtendedNames(Record, frozen=True):
    """The names of an object's extended attributes."""

    names: tuple[bytes, ...]


class ExtendedSetting(Record, frozen=True):
    """A new value of an extended attribute; XATTR_CREATE, XATTR_REPLACE, or either."""

    name: ExtendedNameField
    value: ExtendedValueField
    flags: Annotated[int, Meta(ge=0, le=XATTR_CREATE | XATTR_REPLACE)]


def fault_of_name(attributes: Attributes, name: bytes, *, uid: int, writing: bool) -> int:
    """The errno with which any access to an attribute of this name fails, else 0. [xattr(7)]"""
    if not name or len(name) > limits.XATTR_NAME_BYTES:
        return errno.ERANGE
    if b"\0" in name:
        return errno.EINVAL
    if name in _ACLS:
        return 0
    namespace = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), b"")
    if not namespace or namespace == _SYSTEM:
        return errno.EOPNOTSUPP
    if name == namespace:
        return errno.EINVAL
    if _is_usable(namespace, attributes, uid=uid, writing=writing):
        return 0
    return errno.EPERM if writing else errno.ENODATA


def _is_usable(namespace: bytes, attributes: Attributes, *, uid: int, writing: bool) -> bool:
    if namespace == _TRUSTED:
        return uid == ROOT
    if namespace == _SECURITY:
        return uid == ROOT or not writing
    return attributes.is_regular or attributes.is_directory


def _subject_for(state: MutableState, name: bytes, caller: Caller, *, writing: bool) -> Subject:
    """The object, if the caller may get or set the attribute of this name."""
    subject = Subject.existing(state)
    attributes = subject.attributes
    fault = fault_of_name(attributes, name, uid=caller.uid, writing=writing)
    if fault:
        raise Refusal(fault)
    if name.startswith(_USER):
        sticky = attributes.is_directory and attributes.mode & stat.S_ISVTX
        if writing and sticky and not owns(caller, attributes):
            raise Refusal(errno.EPERM)
        subject.require(caller, WRITE if writing else READ)
    return subject


def get_extended(states: States, arguments: ExtendedName, caller: Caller) -> ExtendedValue:
    """The value of one extended attribute."""
    name = arguments.name
    subject = _subject_for(states[0], name, caller, writing=False)
    key = ACL_KEYS[_ACLS[name]] if name in _ACLS else _VALUE + name
    value = subject.state.get(key)
    if value is None:
        raise Refusal(errno.ENODATA)
    return ExtendedValue(bytes(value))


def permit_extended(
    states: States, arguments: ExtendedName | ExtendedSetting, caller: Caller
) -> bytes:
    """Refuse a caller who may not read the attribute of this name."""
    if arguments.name.startswith(_TRUSTED) and caller.uid != ROOT:
        raise Refusal(errno.ENODATA)
    if arguments.name.startswith(_USER):
        Subject.existing(states[0]).require(caller, READ)
    return b""


def list_extended(states: States, arguments: NoArguments, caller: Caller) -> ExtendedNames:
    """The names of all extended attributes that the caller may see."""
    del arguments
    subject = Subject.existing(states[0])
    names = [name for name, flag in _ACLS.items() if subject.attributes.flags & flag]
    for key, _ in subject.state.scan(_VALUE, bytes((_VALUE[0] + 1,))):
        name = bytes(key[1:])
        if caller.uid == ROOT or not name.startswith(_TRUSTED):
            names.append(name)
    return ExtendedNames(tuple(names))


def set_extended(states: States, arguments: ExtendedSetting, caller: Caller) -> AttributesAfter:
    """Create or replace an extended attribute."""
    name, value = arguments.name, arguments.value
    subject = _subject_for(states[0], name, caller, writing=True)
    if len(value) > limits.XATTR_VALUE_BYTES:
        raise Refusal(errno.E2BIG)
    if name in _ACLS:
        _set_acl(subject, name, value, caller)
    else:
        attributes = subject.attributes
        before = subject.state.get(_VALUE + name)
        if before is None and arguments.flags & XATTR_REPLACE:
            raise Refusal(errno.ENODATA)
        if before is not None and arguments.flags & XATTR_CREATE:
            raise Refusal(errno.EEXIST)
        count = attributes.extended + (before is None)
        volume = attributes.extended_bytes + len(value)
        volume += len(name) if before is None else -len(before)
        if count > limits.XATTRS or volume > limits.XATTRS_BYTES:
            raise Refusal(errno.ENOSPC)
        subject.state.put(_VALUE + name, value)
        subject.change(extended=count, extended_bytes=volume)
    subject.change(ctime_ns=time_ns(caller))
    return concluded(caller, subject)


def remove_extended(states: States, arguments: ExtendedName, caller: Caller) -> AttributesAfter:
    """Remove an extended attribute."""
    name = arguments.name
    subject = _subject_for(states[0], name, caller, writing=True)
    if name in _ACLS:
        flag = _ACLS[name]
        if not owns(caller, subject.attributes):
            raise Refusal(errno.EPERM)
        if not subject.attributes.flags & flag:
            raise Refusal(errno.ENODATA)
        subject.store_acl(flag, None)
    else:
        attributes = subject.attributes
        before = subject.state.get(_VALUE + name)
        if before is None:
            raise Refusal(errno.ENODATA)
        subject.state.delete(_VALUE + name)
        subject.change(
            extended=attributes.extended - 1,
            extended_bytes=attributes.extended_bytes - len(name) - len(before),
        )
    subject.change(ctime_ns=time_ns(caller))
    return concluded(caller, subject)


def _set_acl(subject: Subject, name: bytes, value: bytes, caller: Caller) -> None:
    """Set an ACL. An empty value removes it, and so does one that permission bits can express."""
    attributes = subject.attributes
    if not owns(caller, attributes):
        raise Refusal(errno.EPERM)
    if stat.S_ISLNK(attributes.mode):
        raise Refusal(errno.EOPNOTSUPP)
    flag = _ACLS[name]
    if name == acls.DEFAULT and not attributes.is_directory:
        raise Refusal(errno.EACCES)
    if not value:
        subject.store_acl(flag, None)
        return
    try:
        acl = AccessControlList.decode(value)
    except ValueError:
        raise Refusal(errno.EINVAL) from None
    if name == acls.DEFAULT:
        subject.store_acl(flag, acl)
        return
    mode = attributes.mode & ~0o777 | acl.mode
    if caller.uid != ROOT and not is_member(caller, attributes.gid):
        mode &= ~stat.S_ISGID
    subject.change(mode=mode)
    subject.store_acl(flag, None if acl.is_minimal else acl)


# --- contents --------------------------------------------------------------------------------

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


class BlockPage(Record, frozen=True):
    """A page of blocks whose names are asked for, unless the contents are of version `known`."""

    first: SizeField
    known: TimeField


class NamedBlocks(Record, frozen=True):
    """The attributes, and the blocks of a page that have names: their numbers and stored names.

    Instead of these, None if the contents are of the version that the caller knows.
    """

    attributes: Attributes
    blocks: tuple[tuple[int, bytes], ...] | None


def get_blocks(states: States, arguments: BlockPage, caller: Caller) -> NamedBlocks:
    """The names of a page of blocks. As for attributes, knowing the id is permission enough."""
    del caller
    subject = Subject.existing(states[0])
    if arguments.known == subject.attributes.contents:
        return NamedBlocks(subject.attributes, None)
    first = arguments.first
    return NamedBlocks(subject.attributes, names_in(subject.state, first, first + PAGE))


class Writing(Record, frozen=True):
    """Blocks were written up to byte `end`, while the layout's newest incarnation was `newest`.

    `blocks` are the versions that were written, `patches` what was written of others. An `end` of 0
    leaves the size as it is. `mtime_ns` is the time of the last write; `changes` are changes of
    attributes that programs made meanwhile. With bytes that programs have appended, `appended_to`
    is the size at which they were put.
    """

    end: SizeField
    newest: IncarnationField
    mtime_ns: SizeField
    changes: Changes
    blocks: CoveredField = ()
    appended_to: SizeField | None = None
    patches: CoveredPatches = ()


class Truncation(Record, frozen=True):
    """A new size. If it cuts, blocks from the cut on get `incarnation`.

    `contents` is the version that the shortened block was read from; 0 if the cut lies between
    blocks, or the block was empty. `shortened` is that block as it is now, under `incarnation`.
    """

    size: SizeField
    incarnation: IncarnationField
    contents: TimeField
    shortened: Annotated[tuple[CoveredBlock, ...], Meta(max_length=1)] = ()


class Merging(Record, frozen=True):
    """`blocks` in [first, stop) were written again under `incarnation`, as of `contents`."""

    first: SizeField
    stop: SizeField
    incarnation: IncarnationField
    contents: TimeField
    blocks: CoveredField = ()


class Rewriting(Record, frozen=True):
    """`blocks` were written again with the bytes that they had as of `contents`."""

    contents: TimeField
    blocks: CoveredField = ()


class ContentsChanged(Record, frozen=True):
    """The attributes after a change of a file's contents, and the version of those before it.

    `behind` are the blocks of which a later version than the caller's is named: it has to write
    them again.
    """

    attributes: Attributes
    before: int
    behind: tuple[int, ...] = ()


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


def permit_writing(states: States, arguments: NoArguments, caller: Caller) -> bytes:
    """Refuse a caller who may not write the file's blocks.

    An update, though it changes nothing: the nodes that accept it know the inode as it is, and
    those that were behind let its blocks pass after it. (`bftfs.read_write.permission`)
    """
    del arguments
    _writable(states[0], caller)
    return b""


def _contents_changed(subject: Subject, caller: Caller, mtime_ns: int) -> None:
    mode = subject.attributes.mode
    if caller.uid != ROOT:
        mode = without_set_id_bits(mode)
    subject.change(mode=mode, mtime_ns=mtime_ns, ctime_ns=time_ns(caller))
    subject.change(unnamed=subject.attributes.unnamed_until_us)
    subject.change(contents=caller.time_us)


def _require_fresh(incarnation: int, layout: Layout) -> None:
    """Refuse an incarnation that the file may have had, and one that leaves no later ones."""
    if incarnation <= layout.newest:
        raise Refusal(errno.EAGAIN)
    if incarnation > layout.newest + INCARNATION_GAP:
        raise Refusal(errno.EINVAL)


def is_appended_at_end(arguments: Writing, size: int) -> bool:
    """False if what was appended would lie on others' bytes, or behind a gap."""
    return arguments.appended_to in (None, size)


def is_appended_whole(arguments: Writing, layout: Layout, behind: Sequence[int]) -> bool:
    """False if what was appended begins in a block that is `behind`: the rest alone would show."""
    place = arguments.appended_to
    return place is None or place // layout.block_bytes not in behind


def write(states: States, arguments: Writing, caller: Caller) -> ContentsChanged:
    """Cover blocks that were written. The size never shrinks: others may have extended it.

    OVERTAKEN if others have changed a block that a partial one was merged on, or the size at which
    bytes were appended; or if they have later replaced the block in which these begin.
    """
    subject, layout = _writable(states[0], caller)
    before = subject.attributes.contents
    if arguments.end > limits.FILE_BYTES:
        raise Refusal(errno.EFBIG)
    if arguments.newest != layout.newest:
        raise Refusal(errno.EAGAIN)
    size = subject.attributes.size
    if not is_appended_at_end(arguments, size):
        raise Refusal(OVERTAKEN)
    blocks, patches, state = arguments.blocks, arguments.patches, subject.state
    if len(blocks) + len(patches) > limits.BLOCKS_PER_COVER:
        raise Refusal(errno.EINVAL)
    in_file = max(size, arguments.end)
    behind = name_blocks(state, layout, blocks, caller, size=in_file)
    behind += lay_patches(state, layout, patches, caller, size=in_file)
    if not is_appended_whole(arguments, layout, behind):
        raise Refusal(OVERTAKEN)
    _contents_changed(subject, caller, min(arguments.mtime_ns, time_ns(caller)))
    if arguments.end > size:
        grow(state, layout, size, blocks, behind, patches)
        subject.change(size=arguments.end)
    if arguments.changes:
        apply_changes(subject, arguments.changes, caller)
    return ContentsChanged(subject.conclude(caller), before, behind)


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
        _require_fresh(arguments.incarnation, layout)
        layout = layout.cut(size // layout.block_bytes, arguments.incarnation)
        if len(layout.ranges) > limits.LAYOUT_RANGES:
            raise Refusal(errno.ENOSPC)
        subject.change(layout=layout)
        if any(block.number != size // layout.block_bytes for block in arguments.shortened):
            raise Refusal(errno.EINVAL)
        name_blocks(subject.state, layout, arguments.shortened, caller, size=size)
    elif size > subject.attributes.size:
        grow(subject.state, layout, subject.attributes.size, ())
    subject.change(size=size)
    _contents_changed(subject, caller, time_ns(caller))
    return ContentsChanged(subject.conclude(caller), before)


def merge(states: States, arguments: Merging, caller: Caller) -> ContentsChanged:
    """Make one range of several, whose blocks were written again."""
    subject, layout = _writable(states[0], caller)
    before = subject.attributes.contents
    if arguments.contents != before:
        raise Refusal(errno.EAGAIN)
    _require_fresh(arguments.incarnation, layout)
    first, stop = arguments.first, arguments.stop
    starts = [start for start, _ in layout.ranges]
    if first not in starts or not first < stop or not (stop in starts or stop > starts[-1]):
        raise Refusal(errno.EINVAL)
    if not all(first <= block.number < stop for block in arguments.blocks):
        raise Refusal(errno.EINVAL)
    merged = layout.merged(first, stop, arguments.incarnation)
    name_blocks(subject.state, merged, arguments.blocks, caller, size=subject.attributes.size)
    subject.change(layout=merged)
    # A liar may have written something else: that takes privileges, too.
    _contents_changed(subject, caller, subject.attributes.mtime_ns)
    return ContentsChanged(subject.conclude(caller), before)


def rewrite(states: States, arguments: Rewriting, caller: Caller) -> ContentsChanged:
    """Name blocks that were written again as they were, sealed with another key."""
    subject, layout = _writable(states[0], caller)
    before = subject.attributes.contents
    if arguments.contents != before:
        raise Refusal(errno.EAGAIN)
    size = subject.attributes.size
    behind = name_blocks(subject.state, layout, arguments.blocks, caller, size=size)
    # A liar may have written something else: that takes privileges, too.
    _contents_changed(subject, caller, subject.attributes.mtime_ns)
    return ContentsChanged(subject.conclude(caller), before, behind)


def blocks_written(
    states: States, arguments: Writing | Truncation | Merging | Rewriting, caller: Caller
) -> Digest | None:
    """The digest that nodes have to vouch for: of all blocks that the caller's update has named."""
    inode = states[0]
    layout = Subject.existing(inode).attributes.layout
    blocks = named_by(arguments)
    if not blocks or layout is None:
        return None
    return digest_of(
        (
            layout.block(inode.object, block.number, slot),
            BlockTimestamp(block.time_us, caller.client, block.verifier),
        )
        for slot, block in blocks
    )


def named_by(
    arguments: Writing | Truncation | Merging | Rewriting,
) -> list[tuple[int, CoveredBlock | CoveredPatch]]:
    """What an update names, each with its slot: versions of blocks, and patches."""
    blocks = arguments.shortened if isinstance(arguments, Truncation) else arguments.blocks
    named: list[tuple[int, CoveredBlock | CoveredPatch]] = [(WHOLE, block) for block in blocks]
    if isinstance(arguments, Writing):
        named += [(patch.slot, patch) for patch in arguments.patches]
    return named


def may_write_blocks(inode: MutableState, who: Principal) -> int:
    """0 if `who` may write the blocks, UNKNOWN_INODE, or an errno."""
    if inode.get(ATTRIBUTES_KEY) is None:
        return UNKNOWN_INODE
    subject = Subject.existing(inode)
    if subject.attributes.layout is None:
        return errno.EINVAL
    return 0 if may_write(subject, who) else errno.EACCES


def may_read(subject: Subject, who: Principal) -> bool:
    """True if `who` may be shown a file's bytes, as far as nodes can tell.

    Besides those who may read it, these are its owner, who may open it to himself; users who may
    execute it, since the kernel reads it for them; and users who may write it, since a client
    writes whole blocks: it needs the bytes beside those that a program writes.
    """
    attributes = subject.attributes
    if owns(who, attributes):
        return True
    acl = subject.acl(ACCESS_ACL)
    return (
        permits(attributes, acl, who, READ)
        or permits(attributes, acl, who, EXECUTE)
        or permits(attributes, acl, who, WRITE)
    )


def permit_reading_blocks(states: States, arguments: NoArguments, caller: Caller) -> bytes:
    """Refuse a caller who may not be shown the file's blocks.

    An update for the same reason as `permit_writing`.
    """
    del arguments
    if not may_read(Subject.existing(states[0]), caller):
        raise Refusal(errno.EACCES)
    return b""


def may_read_blocks(inode: MutableState, who: Principal) -> int:
    """0 if `who` may be shown the blocks, UNKNOWN_INODE, or an errno."""
    encoded = inode.get(ATTRIBUTES_KEY)
    if encoded is None:
        return UNKNOWN_INODE
    return 0 if may_read(Subject(inode, decode_attributes(encoded)), who) else errno.EACCES


def contents_us(inode: MutableState) -> int:
    """The time of the last change of the contents; 0 if there is no such inode."""
    if inode.get(ATTRIBUTES_KEY) is None:
        return 0
    return Subject.existing(inode).attributes.contents
