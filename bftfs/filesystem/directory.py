"""Directories as replicated objects: lookup, readdir, create, mkdir, link, unlink, rmdir, rename.

Every operation on the namespace is one multi-object update. Its method makes all checks itself, in
Linux' order: a lying client can do to a directory only what its user may do. [Q/U §4.5]

Map keys of a directory's state, beside those of `objects`:

    b"e" + name     child's id (16), file type (1), serial
    b"s" + serial   child's id (16), file type (1), name

Each entry gets a serial when its name appears in the directory. Serials only grow, and readdir
lists entries by serial. So a listing that continues after the last serial it saw meets every entry
that exists throughout exactly once. A name keeps its serial when another object is renamed onto
it, and an entry keeps its serial when it gets a new name in the same directory: a program that
renames each entry it lists comes to an end.

Invariants: both keys of an entry exist or neither; `entries` counts them; `links` is two plus the
number of entries that are directories, and 0 once the directory was removed; an entry's child is an
object that this entry, or a rename to it, linked in the same update. A directory stands in exactly
one directory, its `parent`.

Nothing here grows with the number of entries: an operation touches a constant number of keys.
"""

from __future__ import annotations

import errno
import stat
from typing import Annotated, Any, Final, NamedTuple

from msgspec import Meta

from bftfs import limits
from bftfs.filesystem.acl import AccessControlList
from bftfs.filesystem.attributes import (
    ACCESS_ACL,
    DEFAULT_ACL,
    PERMISSION_BITS,
    Attributes,
    Layout,
    ModeField,
)
from bftfs.filesystem.objects import (
    ATTRIBUTES_KEY,
    EXECUTE,
    READ,
    ROOT,
    WRITE,
    AttributesAfter,
    States,
    Subject,
    concluded,
    inherit_retention,
    is_member,
    loaded,
    may_remove_from,
    time_ns,
)
from bftfs.identifiers import ObjectId
from bftfs.query_update.object_type import (
    FIRST_SERIAL,
    Caller,
    Record,
    Refusal,
    key_of,
    serial_at,
    serial_from,
    serial_key,
)
from bftfs.wire.codec import ObjectField

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

SYMLINK_TARGET_KEY = b"t"

_ENTRY = b"e"
_CHILD_BYTES = 17  # id and file type
_ENTRY_OVERHEAD_BYTES = 48  # of one entry in an answer, beside its name

NameField = Annotated[bytes, Meta(max_length=4096)]  # a name that is too long gets its errno
_DIRECTORY_TYPE = stat.S_IFDIR >> 12
_INODE_FORMATS = (
    stat.S_IFREG,
    stat.S_IFLNK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFCHR,
    stat.S_IFBLK,
)


def fault_of(name: bytes) -> int:
    """0 if `name` is a possible name of an entry, else an errno."""
    if len(name) > limits.NAME_BYTES:
        return errno.ENAMETOOLONG
    if not name:
        return errno.ENOENT
    if b"/" in name or b"\0" in name:
        return errno.EINVAL
    return 0


class StoredEntry(NamedTuple):
    """An entry of a directory, as stored with its name."""

    child: ObjectId
    file_type: int
    serial: int


def find(directory: Subject, name: bytes) -> StoredEntry | None:
    """The entry called `name`."""
    value = directory.state.get(_ENTRY + name)
    return None if value is None else entry_in(value)


def entry_in(value: bytes) -> StoredEntry:
    """The entry that is stored as `value`."""
    return StoredEntry(ObjectId(value[:16]), value[16], serial_from(value[_CHILD_BYTES:]))


def name_in(key: bytes) -> bytes:
    """The name of the entry that is stored at `key`."""
    return key[len(_ENTRY) :]


def _put(directory: Subject, name: bytes, entry: StoredEntry) -> None:
    child = entry.child + bytes((entry.file_type,))
    directory.state.put(_ENTRY + name, child + serial_key(entry.serial))
    directory.state.put(key_of(entry.serial), child + name)


def _insert(directory: Subject, name: bytes, child: ObjectId, file_type: int) -> None:
    """A new entry at the end of the listing."""
    serial = directory.attributes.next_serial
    _put(directory, name, StoredEntry(child, file_type, serial))
    directory.change(entries=directory.attributes.entries + 1, next_serial=serial + 1)


def _erase(directory: Subject, name: bytes, entry: StoredEntry) -> None:
    directory.state.delete(_ENTRY + name)
    directory.state.delete(key_of(entry.serial))
    directory.change(entries=directory.attributes.entries - 1)


def _modified(directory: Subject, caller: Caller) -> None:
    now = time_ns(caller)
    directory.change(mtime_ns=now, ctime_ns=now)


def _require_name(name: bytes, *, dots: int) -> None:
    """`dots` is the refusal of "." and "..", which every directory has and none stores."""
    if fault := dots if name in (b".", b"..") else fault_of(name):
        raise Refusal(fault)


# --- queries ---------------------------------------------------------------------------------


class Name(Record, frozen=True):
    """The name of an entry."""

    name: NameField


class Child(Record, frozen=True):
    """The object that a name stands for."""

    identifier: ObjectField
    file_type: int


class LookupAnswer(Record, frozen=True):
    """The object that a name stands for (None: there is no such name), and the directory."""

    directory: Attributes
    child: Child | None


def lookup(states: States, arguments: Name, caller: Caller) -> LookupAnswer:
    """The object that `name` stands for. That there is none is an answer, too, not a refusal."""
    (directory,) = loaded(*states)
    directory.require(caller, EXECUTE)
    _require_name(arguments.name, dots=errno.EINVAL)
    entry = find(directory, arguments.name)
    child = None if entry is None else Child(entry.child, entry.file_type)
    return LookupAnswer(directory.attributes, child)


class Listing(Record, frozen=True):
    """A request for the entries with serials above `after`, in at most `volume` bytes."""

    after: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    volume: Annotated[int, Meta(ge=4096, le=limits.LISTING_BYTES)]


class ListedEntry(Record, frozen=True):
    """One entry of a listing; its serial is the cookie to continue after it."""

    serial: int
    name: bytes
    identifier: ObjectField
    file_type: int


class DirectoryPage(Record, frozen=True):
    """Part of a listing, and the directory's attributes."""

    entries: tuple[ListedEntry, ...]
    complete: bool
    directory: Attributes


def permit_lookup(states: States, arguments: Name, caller: Caller) -> bytes:
    """Refuse a caller who may not search the directory."""
    del arguments
    Subject.existing(states[0]).require(caller, EXECUTE)
    return b""


def read_directory(states: States, arguments: Listing, caller: Caller) -> DirectoryPage:
    """The entries after a cookie, in the order in which they appeared."""
    (directory,) = loaded(*states)
    directory.require(caller, READ)
    # A directory of the past had no serials from `next_serial` on: they need not be looked through.
    start, stop = key_of(arguments.after + 1), key_of(directory.attributes.next_serial)
    entries: list[ListedEntry] = []
    room = arguments.volume
    complete = True
    for key, value in directory.state.scan(start, stop):
        name = bytes(value[_CHILD_BYTES:])
        room -= len(name) + _ENTRY_OVERHEAD_BYTES
        if room < 0:
            complete = False
            break
        child = ObjectId(bytes(value[:16]))
        entries.append(ListedEntry(serial_at(key), name, child, value[16]))
    return DirectoryPage(tuple(entries), complete, directory.attributes)


# --- additions -------------------------------------------------------------------------------


class DirectoryCreation(Record, frozen=True):
    """A new directory."""

    name: NameField
    mode: ModeField
    umask: ModeField


class Creation(DirectoryCreation, frozen=True):
    """A new inode: `target` of a symlink, `device` of a device node, `block_bytes` of a file."""

    device: Annotated[int, Meta(ge=0, lt=1 << 32)]
    target: Annotated[bytes, Meta(max_length=limits.SYMLINK_BYTES + 1)]
    block_bytes: Annotated[int, Meta(ge=limits.BLOCK_BYTES_MIN, le=limits.BLOCK_BYTES_MAX)]


def _require_room_for(directory: Subject, name: bytes, caller: Caller) -> None:
    """Linux' checks before a name is added: EEXIST comes before EACCES."""
    directory.require(caller, EXECUTE)
    _require_name(name, dots=errno.EEXIST)
    if find(directory, name) is not None:
        raise Refusal(errno.EEXIST)
    if directory.attributes.links == 0:
        raise Refusal(errno.ENOENT)
    directory.require(caller, WRITE | EXECUTE)


def _owning_group(directory: Subject, caller: Caller) -> int:
    """The group of a new object: a set-group-ID directory passes its own on."""
    attributes = directory.attributes
    return attributes.gid if attributes.mode & stat.S_ISGID else caller.gid


def _inherited(
    directory: Subject, mode: int, umask: int
) -> tuple[int, AccessControlList | None, AccessControlList | None]:
    """Permission bits, access ACL and the default ACL that they come from. [acl(5)]

    A default ACL takes the umask's place.
    """
    default = directory.acl(DEFAULT_ACL)
    if default is None:
        return mode & ~(umask & 0o777), None, None
    access = default.inherited(mode)
    mode = mode & ~0o777 | access.mode
    return mode, None if access.is_minimal else access, default


def create(states: States, arguments: Creation, caller: Caller) -> AttributesAfter:
    """A new name for a new file, symlink, fifo, socket or device. Roles: directory, inode."""
    directory = Subject.existing(states[0])
    _require_room_for(directory, arguments.name, caller)
    form = stat.S_IFMT(arguments.mode)
    if form not in _INODE_FORMATS:
        raise Refusal(errno.EINVAL)
    if arguments.block_bytes & (arguments.block_bytes - 1):
        raise Refusal(errno.EINVAL)
    if form in (stat.S_IFCHR, stat.S_IFBLK) and caller.uid != ROOT:
        raise Refusal(errno.EPERM)
    target = b""
    mode = arguments.mode & PERMISSION_BITS
    if form == stat.S_IFLNK:
        target = arguments.target
        if not target:
            raise Refusal(errno.ENOENT)
        if len(target) > limits.SYMLINK_BYTES:
            raise Refusal(errno.ENAMETOOLONG)
        mode, acl = 0o777, None
    else:
        mode, acl, _ = _inherited(directory, mode, arguments.umask)
    gid = _owning_group(directory, caller)
    if (
        mode & stat.S_ISGID
        and mode & stat.S_IXGRP
        and caller.uid != ROOT
        and not is_member(caller, gid)
    ):
        mode &= ~stat.S_ISGID  # only members of a group may pass its privileges on
    inode = Subject.created(
        states[1],
        _new_attributes(
            caller,
            mode=form | mode,
            gid=gid,
            links=1,
            size=len(target),
            device=arguments.device if form in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            layout=Layout(arguments.block_bytes) if form == stat.S_IFREG else None,
        ),
    )
    if target:
        inode.state.put(SYMLINK_TARGET_KEY, target)
    inode.store_acl(ACCESS_ACL, acl)
    inherit_retention(directory, inode)
    _insert(directory, arguments.name, inode.identifier, form >> 12)
    _modified(directory, caller)
    return concluded(caller, directory, inode)


def _new_attributes(caller: Caller, **fields: Any) -> Attributes:
    """The attributes of an object that the caller makes now."""
    now, version = time_ns(caller), caller.time_us
    return Attributes(
        uid=caller.uid,
        atime_ns=now,
        mtime_ns=now,
        ctime_ns=now,
        version=version,
        contents=version,
        unnamed=0,
        **fields,
    )


def new_directory(caller: Caller, *, mode: int, gid: int, parent: ObjectId) -> Attributes:
    """The attributes of an empty directory."""
    mode |= stat.S_IFDIR
    return _new_attributes(
        caller, mode=mode, gid=gid, links=2, size=0, parent=parent, next_serial=FIRST_SERIAL
    )


def make_directory(states: States, arguments: DirectoryCreation, caller: Caller) -> AttributesAfter:
    """A new name for a new directory. Roles: directory, child."""
    directory = Subject.existing(states[0])
    _require_room_for(directory, arguments.name, caller)
    mode, acl, default = _inherited(
        directory, arguments.mode & (0o777 | stat.S_ISVTX), arguments.umask
    )
    if directory.attributes.mode & stat.S_ISGID:
        mode |= stat.S_ISGID
    gid = _owning_group(directory, caller)
    attributes = new_directory(caller, mode=mode, gid=gid, parent=directory.identifier)
    child = Subject.created(states[1], attributes)
    child.store_acl(ACCESS_ACL, acl)
    child.store_acl(DEFAULT_ACL, default)
    inherit_retention(directory, child)
    _insert(directory, arguments.name, child.identifier, _DIRECTORY_TYPE)
    directory.change(links=directory.attributes.links + 1)
    _modified(directory, caller)
    return concluded(caller, directory, child)


def link(states: States, arguments: Name, caller: Caller) -> AttributesAfter:
    """One more name for an inode. Roles: directory, inode."""
    directory, inode = loaded(*states)
    _require_room_for(directory, arguments.name, caller)
    if inode.attributes.links == 0:
        raise Refusal(errno.ENOENT)
    if inode.attributes.links >= limits.LINKS:
        raise Refusal(errno.EMLINK)
    _insert(directory, arguments.name, inode.identifier, inode.attributes.file_type)
    _modified(directory, caller)
    inode.change(links=inode.attributes.links + 1, ctime_ns=time_ns(caller))
    return concluded(caller, directory, inode)


# --- removals --------------------------------------------------------------------------------


def _remove(states: States, name: bytes, caller: Caller, *, dots: int) -> tuple[Subject, Subject]:
    """Remove the entry `name` of the first object, which stands for the second one.

    ESTALE tells the client that the name stands for another object than the one it named.
    """
    directory, child = loaded(*states)
    directory.require(caller, EXECUTE)
    _require_name(name, dots=dots)
    entry = find(directory, name)
    if entry is None:
        raise Refusal(errno.ENOENT)
    if entry.child != child.identifier:
        raise Refusal(errno.ESTALE)
    _require_right_to_remove(directory, child, caller)
    if child.attributes.entries:
        raise Refusal(errno.ENOTEMPTY)
    _erase(directory, name, entry)
    _modified(directory, caller)
    return directory, child


def unlink(states: States, arguments: Name, caller: Caller) -> AttributesAfter:
    """Remove a name of an inode. Roles: directory, inode.

    An inode without names keeps its state, for its history and for programs that have it open.
    """
    directory, inode = _remove(states, arguments.name, caller, dots=errno.EISDIR)
    inode.change(links=inode.attributes.links - 1, ctime_ns=time_ns(caller))
    return concluded(caller, directory, inode)


def remove_directory(states: States, arguments: Name, caller: Caller) -> AttributesAfter:
    """Remove an empty directory. Roles: directory, child."""
    directory, child = _remove(states, arguments.name, caller, dots=errno.EINVAL)
    directory.change(links=directory.attributes.links - 1)
    child.change(links=0, ctime_ns=time_ns(caller))
    return concluded(caller, directory, child)


def mend(states: States, arguments: Name, caller: Caller) -> AttributesAfter:
    """Remove a name whose object does not exist. Roles: directory, the object that is not there.

    More nodes than may fail have forgotten it, and not the name: no other method could remove that,
    since all of them need both. That it is not there is agreed upon like everything else: a quorum
    has nothing of it.
    """
    directory = Subject.existing(states[0])
    missing = states[1]
    directory.require(caller, EXECUTE)
    entry = find(directory, arguments.name)
    if entry is None:
        raise Refusal(errno.ENOENT)
    if entry.child != missing.object:
        raise Refusal(errno.ESTALE)
    if missing.get(ATTRIBUTES_KEY) is not None:
        raise Refusal(errno.EEXIST)
    directory.require(caller, WRITE | EXECUTE)
    if not may_remove_from(directory.attributes, directory.attributes, caller):
        raise Refusal(errno.EPERM)
    _erase(directory, arguments.name, entry)
    if entry.file_type == _DIRECTORY_TYPE:
        directory.change(links=directory.attributes.links - 1)
    _modified(directory, caller)
    return concluded(caller, directory)


# --- rename ----------------------------------------------------------------------------------


class Renaming(Record, frozen=True):
    """From `name` in the source directory to `target_name` in the target directory."""

    name: NameField
    target_name: NameField
    flags: Annotated[int, Meta(ge=0, le=RENAME_NOREPLACE | RENAME_EXCHANGE)]


class Relocation(Record, frozen=True):
    """A rename that moves a directory between directories.

    `epoch` is the volume's relocation epoch, read before the client checked that no directory
    moves below itself. If another directory was moved since, the client must check again.
    """

    name: NameField
    target_name: NameField
    flags: Annotated[int, Meta(ge=0, le=RENAME_NOREPLACE | RENAME_EXCHANGE)]
    epoch: Annotated[int, Meta(ge=0)]


def rename(states: States, arguments: Renaming, caller: Caller) -> AttributesAfter:
    """Rename within a directory, or rename something that is no directory.

    Roles: source directory, target directory, the renamed object, and the object that it replaces
    or is exchanged with (if there is none, the renamed object again).
    """
    subjects = loaded(*states)
    source, target, child, replaced = subjects
    if source is not target and (
        child.attributes.is_directory
        or (arguments.flags & RENAME_EXCHANGE and replaced.attributes.is_directory)
    ):
        # Only `relocate`, which prevents loops, gives a directory another parent.
        raise Refusal(errno.EXDEV)
    return rename_objects(subjects, arguments, caller)


def rename_objects(
    subjects: tuple[Subject, ...], arguments: Renaming | Relocation, caller: Caller
) -> AttributesAfter:
    """A rename of any objects. Roles: those of `rename`."""
    _Rename(subjects, arguments, caller).perform()
    return concluded(caller, *subjects)


class _Rename:
    """A rename in progress: its objects by role, and the entries under the two names."""

    def __init__(
        self, subjects: tuple[Subject, ...], arguments: Renaming | Relocation, caller: Caller
    ) -> None:
        """Find the entries. The order of refusals, here and in `perform`, is that of Linux."""
        self.source, self.target, self.child, self.replaced = subjects
        self.crosses = self.source is not self.target
        self.arguments = arguments
        self.caller = caller
        self.exchange = bool(arguments.flags & RENAME_EXCHANGE)
        if self.exchange and arguments.flags & RENAME_NOREPLACE:
            raise Refusal(errno.EINVAL)
        self.source.require(caller, EXECUTE)
        self.target.require(caller, EXECUTE)
        _require_name(arguments.name, dots=errno.EBUSY)
        _require_name(arguments.target_name, dots=errno.EBUSY)
        moved = find(self.source, arguments.name)
        if moved is None:
            raise Refusal(errno.ENOENT)
        self.moved = moved
        self.found = find(self.target, arguments.target_name)  # None: the target name is free
        if self.found is None and self.exchange:
            raise Refusal(errno.ENOENT)
        if self.found is not None and arguments.flags & RENAME_NOREPLACE:
            raise Refusal(errno.EEXIST)
        self.child_is_directory = self.child.attributes.is_directory
        self.replaced_is_directory = (
            self.found is not None and self.replaced.attributes.is_directory
        )

    def perform(self) -> None:
        """Make the remaining checks, then the changes."""
        self._require_named_objects()
        if self.found is not None and self.found.child == self.moved.child:
            return  # two names of one inode: POSIX has rename do nothing
        self._require_permission()
        if self.target.attributes.links == 0:
            raise Refusal(errno.ENOENT)
        if self.found is not None and not self.exchange:
            self._require_replaceable()
        self._require_parents_writable()
        self._change_entries()
        self._change_parents()
        self._change_objects()

    def _require_named_objects(self) -> None:
        """ESTALE if a name stands for another object than the client believes."""
        source, target, child, replaced = self.source, self.target, self.child, self.replaced
        if self.moved.child != child.identifier:
            raise Refusal(errno.ESTALE)
        expected = child.identifier if self.found is None else self.found.child
        if replaced.identifier != expected:
            raise Refusal(errno.ESTALE)
        if child is target:
            raise Refusal(errno.EINVAL)
        if replaced is source:
            raise Refusal(errno.EINVAL if self.exchange else errno.ENOTEMPTY)

    def _require_permission(self) -> None:
        _require_right_to_remove(self.source, self.child, self.caller)
        if self.found is None:
            self.target.require(self.caller, WRITE | EXECUTE)
        else:
            _require_right_to_remove(self.target, self.replaced, self.caller)

    def _require_replaceable(self) -> None:
        if self.child_is_directory and not self.replaced_is_directory:
            raise Refusal(errno.ENOTDIR)
        if self.replaced_is_directory and not self.child_is_directory:
            raise Refusal(errno.EISDIR)
        if self.replaced.attributes.entries:
            raise Refusal(errno.ENOTEMPTY)

    def _require_parents_writable(self) -> None:
        """A directory that gets another parent must be writable: its ".." changes."""
        if self.crosses and self.child_is_directory:
            self.child.require(self.caller, WRITE)
        if self.crosses and self.exchange and self.replaced_is_directory:
            self.replaced.require(self.caller, WRITE)

    def _change_entries(self) -> None:
        source, target, moved, found = self.source, self.target, self.moved, self.found
        name, target_name = self.arguments.name, self.arguments.target_name
        if found is not None:
            if self.exchange:
                _put(source, name, found._replace(serial=moved.serial))
            else:
                _erase(source, name, moved)
            _put(target, target_name, moved._replace(serial=found.serial))
        elif self.crosses:
            _erase(source, name, moved)
            _insert(target, target_name, moved.child, moved.file_type)
        else:
            source.state.delete(_ENTRY + name)
            _put(source, target_name, moved)

    def _change_parents(self) -> None:
        """Count the directories in each parent anew, and name the new parents."""
        source, target = self.source, self.target
        if self.crosses and self.child_is_directory:
            source.change(links=source.attributes.links - 1)
            target.change(links=target.attributes.links + 1)
            self.child.change(parent=target.identifier)
        if self.replaced_is_directory and (self.crosses or not self.exchange):
            target.change(links=target.attributes.links - 1)
            if self.exchange:
                source.change(links=source.attributes.links + 1)
                self.replaced.change(parent=source.identifier)

    def _change_objects(self) -> None:
        now = time_ns(self.caller)
        self.child.change(ctime_ns=now)
        if self.found is not None:
            links = self.replaced.attributes.links
            if not self.exchange:
                links = 0 if self.replaced_is_directory else links - 1
            self.replaced.change(links=links, ctime_ns=now)
        _modified(self.source, self.caller)
        _modified(self.target, self.caller)


def _require_right_to_remove(directory: Subject, entry: Subject, caller: Caller) -> None:
    directory.require(caller, WRITE | EXECUTE)
    if not may_remove_from(directory.attributes, entry.attributes, caller):
        raise Refusal(errno.EPERM)
