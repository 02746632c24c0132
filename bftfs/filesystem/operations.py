"""The file system as its users see it: names, attributes and contents, as conversations.

Every operation on the namespace is one update, whose method checks everything. The client has to
name the objects of an update beforehand, and its knowledge of a name may be outdated: then the
method refuses with ESTALE, and the client looks the name up again.

Concurrency: conversations share the caches of `Metadata` and the contents of `ContentStore`; see
there. The answer of a query is cached only if this mount did not change the directory meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from bftfs import limits
from bftfs.conversation import Draw, Now, Together
from bftfs.credentials import Credentials
from bftfs.crypto.cipher import BlockCipher
from bftfs.errors import FileSystemError
from bftfs.filesystem import acl as acls
from bftfs.filesystem import registry
from bftfs.filesystem.acl import AccessControlList
from bftfs.filesystem.attributes import (
    ACCESS_ACL,
    DEFAULT_ACL,
    PERMISSION_BITS,
    Attributes,
    Changes,
)
from bftfs.filesystem.block_memory import Buffer
from bftfs.filesystem.block_names import BlockName, Part, decode_name
from bftfs.filesystem.capacity import Capacity, ClusterCapacity
from bftfs.filesystem.content_store import ContentStore
from bftfs.filesystem.contents import Contents, OpenFile
from bftfs.filesystem.directory import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Child,
    Creation,
    DirectoryCreation,
    Name,
    Relocation,
    Renaming,
    fault_of,
)
from bftfs.filesystem.epochs import EpochFollower, Sealing
from bftfs.filesystem.inode import (
    BlockPage,
    ExtendedName,
    ExtendedSetting,
    apply_changes,
    fault_of_name,
)
from bftfs.filesystem.metadata import (
    AccessTimes,
    Changed,
    DirectoryEntry,
    Metadata,
    OpenDirectory,
    PastMetadata,
)
from bftfs.filesystem.objects import AttributesAfter, NoArguments, NoState, Subject, owns, permits
from bftfs.filesystem.options import Options
from bftfs.filesystem.volume import Format, Volume
from bftfs.identifiers import ClientId, ObjectId, ObjectKind, kind_of, object_id, placement_of
from bftfs.printable import as_word
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.object_type import Caller, Record, Refusal
from bftfs.read_write.client import ReadWriteClient

ATTEMPTS: Final = 16  # at an operation whose objects other mounts keep changing
DEPTH: Final = 4_096  # of nested directories
ENTRIES_TOGETHER: Final = 64  # of a directory, whose attributes are asked for at the same time
ACCESS_DELAY_US: Final = 30 * limits.SECOND_US  # before an access time is sent to the nodes
ACCESSES_AT_ONCE: Final = 32  # access times that are sent in one round of writing back
VOLUME_KEPT_US: Final = 10 * limits.SECOND_US
ROOM_KEPT_US: Final = limits.SECOND_US

_WANTED = {os.O_RDONLY: os.R_OK, os.O_WRONLY: os.W_OK, os.O_RDWR: os.R_OK | os.W_OK}
_UNIQUE_BITS = 8 * 14
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object and its attributes."""

    identifier: ObjectId
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Statistics:
    """The figures of statfs."""

    block_bytes: int
    capacity_bytes: int
    free_bytes: int
    capacity_inodes: int
    free_inodes: int
    name_bytes: int = limits.NAME_BYTES


class FileSystem:
    """One mount's view of a file system."""

    def __init__(
        self,
        metadata: QueryUpdateClient | PastMetadata,
        blocks: ReadWriteClient,
        capacity: ClusterCapacity,
        cipher: BlockCipher | None,
        *,
        root: ObjectId,
        volume: ObjectId,
        options: Options | None = None,
        present: FileSystem | None = None,
        epochs: EpochFollower | None = None,
    ) -> None:
        """With `present`, this is a past of it; the permissions of the present count, too.

        With `epochs`, the keys of `cipher` follow those of the cluster.
        """
        self.root = root
        self.volume = volume
        self.capacity = capacity
        self.sealing = Sealing(cipher, epochs)
        self._present = present
        self._options = options or Options()
        self._metadata = Metadata(metadata, self._options)
        self._contents = ContentStore(
            self._metadata,
            blocks,
            self.sealing,
            self._options,
            None if present is None else present._metadata,
        )
        self._targets: OrderedDict[ObjectId, bytes] = OrderedDict()  # of symlinks
        self._accesses = AccessTimes(self._metadata)
        self._described: tuple[Volume, int] | None = None
        self._room: tuple[Capacity, int] | None = None

    # --- the volume --------------------------------------------------------------------------

    async def format(
        self,
        who: Credentials,
        *,
        block_bytes: int = limits.BLOCK_BYTES_DEFAULT,
        mode: int = 0o755,
    ) -> None:
        """Make the file system, with a root directory owned by `who`, if there is none."""
        await self._metadata.update(
            (self.volume, self.root), registry.FORMAT, Format(block_bytes, mode), who
        )

    async def statistics(self, who: Credentials) -> Statistics:
        """The used and free room of the nodes; how many inodes there may be is nominal."""
        volume = await self._volume_record(who)
        now_us = await Now()
        if self._room is None or self._room[1] <= now_us:
            self._room = (await self.capacity.capacity(), now_us + ROOM_KEPT_US)
        room, _ = self._room
        return Statistics(
            block_bytes=volume.block_bytes,
            capacity_bytes=room.used_bytes + room.free_bytes,
            free_bytes=room.free_bytes,
            capacity_inodes=volume.capacity_inodes,
            free_inodes=max(0, volume.capacity_inodes - room.objects),
        )

    async def _volume_record(self, who: Credentials) -> Volume:
        now_us = await Now()
        if self._described is None or self._described[1] <= now_us:
            volume = await self._metadata.query(self.volume, registry.DESCRIBE, NoArguments(), who)
            self._described = (volume, now_us + VOLUME_KEPT_US)
        return self._described[0]

    # --- names -------------------------------------------------------------------------------

    async def lookup(self, directory: ObjectId, name: bytes, who: Credentials) -> FoundObject:
        """The object that `name` stands for in the directory."""
        if fault := fault_of(name):
            raise FileSystemError(fault, as_word(name))
        if self._present is not None:
            await self._present.access(directory, os.X_OK, who)
        known = self._metadata.cached_name(directory, name, await Now())
        guess = known or self._metadata.names.guess(directory, name)
        if known is not None and known.child is None:
            raise FileSystemError(errno.ENOENT, as_word(name))
        if guess is None or guess.child is None:
            child = await self._lookup(directory, name, who)
            return await self._found_at(child.identifier, who, directory)
        if known is not None:
            return await self._found_at(guess.child.identifier, who, directory)
        found: FoundObject
        # Probably the name still stands for that object: ask for both at once.
        child, found = await Together(
            (
                partial(self._lookup, directory, name, who),
                partial(self._found_at, guess.child.identifier, who, directory),
            )
        )
        if child.identifier == found.identifier:
            return found
        return await self._found_at(child.identifier, who)

    async def _lookup(self, directory: ObjectId, name: bytes, who: Credentials) -> Child:
        """The object that `name` stands for, as a quorum says."""
        child = await self._metadata.look_up(directory, name, who)
        if child is None:
            raise FileSystemError(errno.ENOENT, as_word(name))
        return child

    async def _resolve(self, directory: ObjectId, name: bytes, who: Credentials) -> Child:
        """The last known object of this name: to be checked by the update that uses it."""
        guess = self._metadata.names.guess(directory, name)
        if guess is not None and guess.child is not None:
            return guess.child
        return await self._lookup(directory, name, who)

    async def parent(self, directory: ObjectId, who: Credentials) -> FoundObject:
        """The parent of a directory; the root is its own."""
        identifier = (await self._metadata.attributes(directory, who)).parent
        if not identifier:
            raise FileSystemError(errno.ENOTDIR)
        return await self._found_at(identifier, who)

    async def _found_at(
        self, identifier: ObjectId, who: Credentials, directory: ObjectId | None = None
    ) -> FoundObject:
        """The object; it may have been looked up in a directory."""
        attributes = await self._metadata.attributes(identifier, who, directory)
        return FoundObject(identifier, self._seen_by_programs(identifier, attributes))

    # --- attributes --------------------------------------------------------------------------

    def _seen_by_programs(self, identifier: ObjectId, attributes: Attributes) -> Attributes:
        """`attributes` with the changes that this mount has not sent to the nodes yet."""
        contents = self._contents.known(identifier)
        if contents is not None:
            attributes = contents.seen_by_programs(attributes)
        return self._accesses.seen_by_programs(identifier, attributes)

    async def attributes(self, identifier: ObjectId, who: Credentials) -> Attributes:
        """The attributes, as old as the mount options allow."""
        return self._seen_by_programs(identifier, await self._metadata.attributes(identifier, who))

    async def latest_attributes(self, identifier: ObjectId, who: Credentials) -> Attributes:
        """The attributes as the nodes have them now."""
        return await self._metadata.latest(identifier, who)

    async def change_attributes(
        self, identifier: ObjectId, changes: Changes, who: Credentials
    ) -> Attributes:
        """chmod, chown and utimens."""
        contents = self._contents.known(identifier)
        if contents is not None and await self._fold(contents, changes, who):
            return await self.attributes(identifier, who)
        if changes.atime_ns is not None:
            self._accesses.forget(identifier)
        return await self._change_object(identifier, registry.CHANGE_ATTRIBUTES, changes, who)

    async def _fold(self, contents: Contents, changes: Changes, who: Credentials) -> bool:
        """Leave `changes` to the update that will cover unsaved writes; False if there are none.

        The method that will make the changes runs here on the known attributes, so that the program
        gets its refusal now.
        """
        attributes = self._metadata.known(contents.identifier)
        if (
            self._options.strict
            or not contents.is_unsaved
            or not contents.attributes.links
            or contents.writer != who
            or attributes is None
            or attributes.flags & ACCESS_ACL
        ):
            return False
        now_us = await Now()
        seen = contents.seen_by_programs(attributes)
        subject = Subject(NoState(contents.identifier), seen)
        caller = Caller(ClientId(b""), who.uid, who.gid, who.groups, now_us)
        try:
            apply_changes(subject, changes, caller)
        except Refusal as refusal:
            raise FileSystemError(refusal.code) from None
        contents.fold(changes, subject.attributes)
        return True

    async def _change_object(
        self, identifier: ObjectId, method: str, arguments: Record, who: Credentials
    ) -> Attributes:
        """An update of one object; its attributes after it."""
        outcome = await self._metadata.update((identifier,), method, arguments, who)
        (attributes,) = outcome.attributes
        self._metadata.changed_itself(identifier, attributes, await Now())
        return self._seen_by_programs(identifier, attributes)

    async def truncate(self, identifier: ObjectId, size: int, who: Credentials) -> Attributes:
        """Set a file's size."""
        if kind_of(identifier) == ObjectKind.DIRECTORY:
            raise FileSystemError(errno.EISDIR)
        contents = self._contents.known(identifier)
        if contents is None:
            attributes = await self._metadata.latest(identifier, who)
            contents = self._contents.contents_of(identifier, attributes)
        await self._contents.truncate(contents, size, who)
        return await self.attributes(identifier, who)

    async def _require_openable(self, file: OpenFile, flags: int, who: Credentials) -> None:
        """EACCES unless `who` may open the file so, as nodes judge it: its owner may.

        The kernel has asked itself, but with groups that the grant may not cover. A program learns
        it here, and not when its bytes are refused.
        """
        attributes = file.contents.attributes
        if owns(who, attributes):
            return
        acl = await self._acl(file.identifier, attributes, who)
        mode = flags & os.O_ACCMODE
        if mode != os.O_RDONLY and not permits(attributes, acl, who, os.W_OK):
            raise FileSystemError(errno.EACCES)
        # A program that may be executed is read by the kernel, for the user who executes it.
        if mode != os.O_WRONLY and not any(
            permits(attributes, acl, who, want) for want in (os.R_OK, os.X_OK)
        ):
            raise FileSystemError(errno.EACCES)

    async def _acl(
        self, identifier: ObjectId, attributes: Attributes, who: Credentials
    ) -> AccessControlList | None:
        if not attributes.flags & ACCESS_ACL:
            return None
        value = await self.get_extended(identifier, acls.ACCESS, who)
        return AccessControlList.decode(value)

    async def access(self, identifier: ObjectId, wanted: int, who: Credentials) -> None:
        """EACCES unless `who` may do what is `wanted` (R_OK | W_OK | X_OK)."""
        attributes = await self.attributes(identifier, who)
        acl = await self._acl(identifier, attributes, who)
        if not permits(attributes, acl, who, wanted):
            raise FileSystemError(errno.EACCES)

    async def read_link(self, identifier: ObjectId, who: Credentials) -> bytes:
        """The target of a symlink; asked for once, since it never changes."""
        target = self._targets.get(identifier)
        if target is None:
            target = await self._metadata.query(identifier, registry.READ_LINK, NoArguments(), who)
            self._keep_target(identifier, target)
        return target

    def _keep_target(self, identifier: ObjectId, target: bytes) -> None:
        self._targets[identifier] = target
        if len(self._targets) > limits.SYMLINK_BYTES:
            self._targets.popitem(last=False)

    # --- additions ---------------------------------------------------------------------------

    async def _new_identifier(self, kind: ObjectKind, placement: int) -> ObjectId:
        unique = (await Draw(1 << _UNIQUE_BITS)).to_bytes(_UNIQUE_BITS // 8, "big")
        return object_id(kind, placement=placement, unique=unique)

    async def _add(
        self,
        directory: ObjectId,
        name: bytes,
        child: ObjectId,
        method: str,
        arguments: Record,
        who: Credentials,
    ) -> FoundObject:
        """An update that gives `child` a name in the directory."""
        try:
            outcome = await self._metadata.update((directory, child), method, arguments, who)
        except FileSystemError as refusal:
            if refusal.code == errno.EEXIST:  # the name was believed to be free
                self._metadata.names.forget(directory, name)
            raise
        now_us = await Now()
        parent, attributes = outcome.attributes
        change = (name, Child(child, attributes.file_type))
        self._metadata.changed(directory, parent, (change,), now_us)
        if method == registry.MAKE_DIRECTORY:
            self._metadata.made(child, attributes, now_us)
        else:
            self._metadata.learn(child, attributes, now_us)
        return FoundObject(child, self._seen_by_programs(child, attributes))

    async def make_node(
        self,
        directory: ObjectId,
        name: bytes,
        mode: int,
        who: Credentials,
        *,
        umask: int = 0,
        device: int = 0,
        target: bytes = b"",
    ) -> FoundObject:
        """A new regular file, fifo, socket, device or symlink.

        Its identifier shares the directory's placement, so that both have one preferred quorum.
        """
        block_bytes = (await self._volume_record(who)).block_bytes
        identifier = await self._new_identifier(ObjectKind.INODE, placement_of(directory))
        arguments = Creation(name, mode, umask, device, target, block_bytes)
        return await self._add(directory, name, identifier, registry.CREATE, arguments, who)

    async def make_symlink(
        self, directory: ObjectId, name: bytes, target: bytes, who: Credentials
    ) -> FoundObject:
        """A new symlink."""
        if len(target) > limits.SYMLINK_BYTES:
            raise FileSystemError(errno.ENAMETOOLONG)
        found = await self.make_node(directory, name, stat.S_IFLNK | 0o777, who, target=target)
        self._keep_target(found.identifier, target)
        return found

    async def make_directory(
        self, directory: ObjectId, name: bytes, mode: int, who: Credentials, *, umask: int = 0
    ) -> FoundObject:
        """A new directory.

        Children of the root are spread over the quorums; deeper directories have the quorum of
        their parent, since an update of two directories with different quorums costs object syncs.
        """
        placement = await Draw(256) if directory == self.root else placement_of(directory)
        identifier = await self._new_identifier(ObjectKind.DIRECTORY, placement)
        arguments = DirectoryCreation(name, mode & PERMISSION_BITS, umask)
        return await self._add(directory, name, identifier, registry.MAKE_DIRECTORY, arguments, who)

    async def create(
        self,
        directory: ObjectId,
        name: bytes,
        mode: int,
        who: Credentials,
        *,
        umask: int = 0,
        flags: int = os.O_RDWR,
    ) -> tuple[FoundObject, OpenFile]:
        """open(2) with O_CREAT: makes the file; without O_EXCL, opens it if it exists."""
        for _ in range(ATTEMPTS):
            try:
                found = await self.make_node(
                    directory, name, stat.S_IFREG | mode & PERMISSION_BITS, who, umask=umask
                )
            except FileSystemError as refusal:
                if refusal.code != errno.EEXIST or flags & os.O_EXCL:
                    raise
            else:
                attributes = found.attributes
                file = self._contents.open(found.identifier, attributes, flags, who, is_new=True)
                return found, file
            try:
                child = await self._lookup(directory, name, who)
            except FileSystemError as refusal:
                if refusal.code != errno.ENOENT:
                    raise
                continue  # removed meanwhile
            # The kernel's check of permissions saw no such file.
            await self.access(child.identifier, _WANTED[flags & os.O_ACCMODE], who)
            file = await self.open(child.identifier, flags, who)
            return await self._found_at(child.identifier, who), file
        raise FileSystemError(errno.EAGAIN, as_word(name))

    async def link(
        self, identifier: ObjectId, directory: ObjectId, name: bytes, who: Credentials
    ) -> FoundObject:
        """One more name for an inode."""
        if kind_of(identifier) != ObjectKind.INODE:
            raise FileSystemError(errno.EPERM, "directories have one name")
        return await self._add(directory, name, identifier, registry.LINK, Name(name), who)

    # --- removals ----------------------------------------------------------------------------

    async def unlink(self, directory: ObjectId, name: bytes, who: Credentials) -> FoundObject:
        """Remove a name of an inode."""
        return await self._remove(directory, name, registry.UNLINK, who)

    async def remove_directory(
        self, directory: ObjectId, name: bytes, who: Credentials
    ) -> FoundObject:
        """Remove an empty directory."""
        return await self._remove(directory, name, registry.REMOVE_DIRECTORY, who)

    async def _remove(
        self, directory: ObjectId, name: bytes, method: str, who: Credentials
    ) -> FoundObject:
        async def attempt() -> FoundObject:
            child = (await self._resolve(directory, name, who)).identifier
            is_directory = kind_of(child) == ObjectKind.DIRECTORY
            if is_directory != (method == registry.REMOVE_DIRECTORY):
                await self._require_current(directory, name, child, who)
                fault = errno.EISDIR if is_directory else errno.ENOTDIR
                raise FileSystemError(fault, as_word(name))
            outcome = await self._metadata.update((directory, child), method, Name(name), who)
            now_us = await Now()
            parent, attributes = outcome.attributes
            self._metadata.changed(directory, parent, ((name, None),), now_us)
            self._metadata.learn(child, attributes, now_us)
            self._accesses.forget(child)
            return FoundObject(child, self._seen_by_programs(child, attributes))

        return await self._with_current_names(attempt, (directory, name))

    async def mend(self, directory: ObjectId, name: bytes, who: Credentials) -> None:
        """Remove a name of something that nobody has any more."""
        missing = (await self._lookup(directory, name, who)).identifier
        outcome = await self._metadata.update((directory, missing), registry.MEND, Name(name), who)
        self._metadata.changed(directory, outcome.attributes[0], ((name, None),), await Now())

    async def _require_current(
        self, directory: ObjectId, name: bytes, known: ObjectId, who: Credentials
    ) -> None:
        """ESTALE if `name` stands for another object than `known`; ENOENT if for none."""
        if (await self._lookup(directory, name, who)).identifier != known:
            raise FileSystemError(errno.ESTALE)

    async def _with_current_names(
        self,
        attempt: Callable[[], Awaitable[_Result]],
        *names: tuple[ObjectId, bytes],
    ) -> _Result:
        """The result of `attempt`, which is repeated when cached `names` were outdated."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await attempt()
            except FileSystemError as refusal:
                if refusal.code in (errno.ESTALE, errno.EAGAIN, errno.ENOENT, errno.EEXIST):
                    for name in names:
                        self._metadata.names.forget(*name)
                if refusal.code not in (errno.ESTALE, errno.EAGAIN):
                    raise
        return await attempt()

    # --- rename ------------------------------------------------------------------------------

    async def rename(
        self,
        source: ObjectId,
        name: bytes,
        target: ObjectId,
        target_name: bytes,
        who: Credentials,
        *,
        flags: int = 0,
    ) -> None:
        """Rename, with RENAME_NOREPLACE or RENAME_EXCHANGE."""
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise FileSystemError(errno.EINVAL, "rename flags")

        async def attempt() -> None:
            child = await self._resolve(source, name, who)
            guess = self._metadata.names.guess(target, target_name)
            if guess is not None:
                replaced = guess.child
            else:
                replaced = await self._metadata.look_up(target, target_name, who)
            roles = (
                source,
                target,
                child.identifier,
                (replaced or child).identifier,
            )
            moves = [child.identifier]
            if replaced is not None and flags & RENAME_EXCHANGE:
                moves.append(replaced.identifier)
            if source != target and any(
                kind_of(identifier) == ObjectKind.DIRECTORY for identifier in moves
            ):
                outcome = await self._relocate(roles, name, target_name, flags, who)
            else:
                arguments = Renaming(name, target_name, flags)
                outcome = await self._metadata.update(roles, registry.RENAME, arguments, who)
            now_us = await Now()
            changes: tuple[tuple[ObjectId, Changed], ...] = ()
            if replaced is None or replaced.identifier != child.identifier:
                exchanged = replaced if flags & RENAME_EXCHANGE else None
                changes = ((source, (name, exchanged)), (target, (target_name, child)))
            for role, attributes in zip(roles[:2], outcome.attributes, strict=False):
                its = [change for directory, change in changes if directory == role]
                self._metadata.changed(role, attributes, its, now_us)
            for role, attributes in zip(roles[2:], outcome.attributes[2:], strict=True):
                self._metadata.learn(role, attributes, now_us)

        await self._with_current_names(attempt, (source, name), (target, target_name))

    async def _relocate(
        self,
        roles: tuple[ObjectId, ObjectId, ObjectId, ObjectId],
        name: bytes,
        target_name: bytes,
        flags: int,
        who: Credentials,
    ) -> AttributesAfter:
        """Rename a directory into another one, unless it would then be below itself."""
        source, target, child, replaced = roles
        volume: Volume = await self._metadata.query(
            self.volume, registry.DESCRIBE, NoArguments(), who
        )
        if await self._is_above(child, target, who) or (
            flags & RENAME_EXCHANGE and await self._is_above(replaced, source, who)
        ):
            await self._require_current(source, name, child, who)
            there = await self._metadata.look_up(target, target_name, who)
            if there is None and flags & RENAME_EXCHANGE:
                raise FileSystemError(errno.ENOENT, as_word(target_name))
            if there is not None and flags & RENAME_NOREPLACE:
                raise FileSystemError(errno.EEXIST, as_word(target_name))
            raise FileSystemError(errno.EINVAL, "a directory cannot be below itself")
        arguments = Relocation(name, target_name, flags, volume.relocations)
        outcome: AttributesAfter = await self._metadata.update(
            (*roles, self.volume), registry.RELOCATE, arguments, who
        )
        return outcome

    async def _is_above(self, directory: ObjectId, other: ObjectId, who: Credentials) -> bool:
        """True if `other` is `directory` or anywhere below it."""
        if kind_of(directory) != ObjectKind.DIRECTORY:
            return False
        for _ in range(DEPTH):
            if other in (directory, self.root):
                return other == directory
            attributes = await self._metadata.latest(other, who)
            if not attributes.links:
                return False  # it was removed: the update will be refused
            other = attributes.parent
        raise FileSystemError(errno.ELOOP, f"more than {DEPTH} nested directories")

    # --- directories -------------------------------------------------------------------------

    async def open_directory(self, identifier: ObjectId, who: Credentials) -> OpenDirectory:
        """Begin to list a directory."""
        if kind_of(identifier) != ObjectKind.DIRECTORY:
            raise FileSystemError(errno.ENOTDIR)
        if self._present is not None:
            await self._present.access(identifier, os.R_OK, who)
        return OpenDirectory(identifier, who)

    async def read_directory(
        self,
        opened: OpenDirectory,
        after: int,
        *,
        count: int = ENTRIES_TOGETHER,
        with_attributes: bool = True,
    ) -> tuple[DirectoryEntry, ...]:
        """The next entries after the cookie `after` (0: from the beginning); none at the end.

        Without `with_attributes`, only cached attributes are given; those are cached beforehand
        that programs are likely to ask for.
        """
        listed = await opened.entries(self._metadata, after, count)
        attributes: tuple[Attributes | None, ...]
        if with_attributes:
            await self._metadata.fetch([entry.identifier for entry in listed], opened.who)
            attributes = await Together(
                tuple(
                    partial(self._attributes_if_there, entry.identifier, opened.who)
                    for entry in listed
                )
            )
        else:
            await self._metadata.fetch_listed(opened.identifier, listed, opened.who)
            now_us = await Now()
            attributes = tuple(
                self._attributes_at_hand(entry.identifier, now_us) for entry in listed
            )
        if not opened.is_access_noted:
            opened.is_access_noted = True
            await self._note_access(opened.identifier, opened.who)
        return tuple(
            DirectoryEntry(entry.name, entry.serial, entry.identifier, entry.file_type, of_entry)
            for entry, of_entry in zip(listed, attributes, strict=True)
        )

    def _attributes_at_hand(self, identifier: ObjectId, now_us: int) -> Attributes | None:
        attributes = self._metadata.fresh(identifier, now_us)
        return None if attributes is None else self._seen_by_programs(identifier, attributes)

    async def _attributes_if_there(
        self, identifier: ObjectId, who: Credentials
    ) -> Attributes | None:
        try:
            return await self.attributes(identifier, who)
        except FileSystemError:
            return None

    # --- files -------------------------------------------------------------------------------

    async def open(self, identifier: ObjectId, flags: int, who: Credentials) -> OpenFile:
        """Open a file, with the contents that the last mount to close it left."""
        if kind_of(identifier) == ObjectKind.DIRECTORY:
            raise FileSystemError(errno.EISDIR)
        if self._options.read_only and flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise FileSystemError(errno.EROFS)
        if self._present is not None:
            await self.access(identifier, os.R_OK, who)
            await self._present.access(identifier, os.R_OK, who)
        file = await self._contents.open_named(identifier, flags, who)
        try:
            await self._require_openable(file, flags, who)
            if flags & os.O_TRUNC:
                await self._contents.truncate(file.contents, 0, who)
        except BaseException:
            self._contents.abandon(file)
            raise
        return file

    async def read(self, file: OpenFile, offset: int, size: int) -> Buffer:
        """Up to `size` bytes from `offset` on; fewer at the end of the file."""
        if not file.is_access_noted:
            file.is_access_noted = True
            await self._note_access(file.identifier, file.who)
        return await self._contents.read(file, offset, size)

    async def block_names(
        self, identifier: ObjectId, first: int, who: Credentials
    ) -> dict[int, BlockName]:
        """The names of a page of a file's blocks, as a quorum has them now, by their numbers."""
        found = await self._metadata.blocks(identifier, BlockPage(first, 0), who)
        return {number: decode_name(stored) for number, stored in found.blocks or ()}

    async def require_part(
        self,
        identifier: ObjectId,
        incarnation: int,
        number: int,
        part: Part,
        who: Credentials,
    ) -> None:
        """Read a part of a block that the file's inode has named. EIO if that cannot be done."""
        await self._contents.require_part(identifier, incarnation, number, part, who)

    async def seal_again(self, file: OpenFile, first: int, stop: int) -> int:
        """Write those of the blocks in [first, stop) again, as they are, that are sealed with keys
        of earlier epochs; how many these were.

        They are no more than one update names (`limits.BLOCKS_PER_COVER`). Nothing was written to
        the file through this mount since it was saved.
        """
        return await self._contents.seal_again(file, first, stop)

    def write(self, file: OpenFile, offset: int | None, data: bytes, *, now_ns: int) -> bool:
        """Take `data` at `offset` (None: at the end); True if `write_behind` must be performed.

        `data` must not change afterwards: it is not copied. Failures of earlier writes are raised
        here, or at `flush`, once for each handle.
        """
        if self._options.read_only:
            raise FileSystemError(errno.EROFS)
        return self._contents.write(file, offset, data, now_ns=now_ns)

    def bind(self, file: OpenFile, version: int) -> None:
        """Save nothing of the file, and do not cut it, on another version of its contents.

        That is `Attributes.contents`. Others' changes then end what is written with ESTALE, instead
        of being merged or overwritten. Until it is closed; no other program here has it open.
        """
        file.contents.bind(version)

    async def write_behind(self, file: OpenFile) -> None:
        """Start to write unwritten blocks; waits as long as there are too many of them."""
        await self._contents.write_behind(file)

    async def flush(self, file: OpenFile) -> None:
        """Make all writes durable, and visible to later opens of the file."""
        await self._contents.flush(file)

    async def synchronize(self, file: OpenFile) -> None:
        """fsync and fdatasync."""
        await self._contents.synchronize(file)

    async def release(self, file: OpenFile) -> None:
        """Close a handle."""
        await self._contents.release(file)

    async def write_back(self, *, older_than_us: int) -> None:
        """Save what has been unsaved for so long; to be called every few seconds.

        Failures are kept, and reported to the handles.
        """
        await self._contents.write_back(older_than_us=older_than_us)
        await self._accesses.record(
            older_than_us=max(older_than_us, ACCESS_DELAY_US), most=ACCESSES_AT_ONCE
        )

    async def synchronize_all(self) -> None:
        """Save everything that programs have written."""
        await self._contents.write_back(older_than_us=0)

    async def record_accesses(self) -> None:
        """Save all access times."""
        await self._accesses.record(older_than_us=0)

    # --- access times ------------------------------------------------------------------------

    async def _note_access(self, identifier: ObjectId, who: Credentials) -> None:
        """Note the first read of the object through a handle."""
        if self._options.read_only or not self._options.access_times:
            return
        attributes = self._metadata.known(identifier)
        if attributes is None:
            return
        seen = self._seen_by_programs(identifier, attributes)
        await self._accesses.note(identifier, seen, who)
        if self._options.strict:
            await self._accesses.record(older_than_us=0)

    # --- extended attributes -----------------------------------------------------------------

    async def get_extended(self, identifier: ObjectId, name: bytes, who: Credentials) -> bytes:
        """The value of an extended attribute."""
        if self._present is not None and name.startswith(b"user."):
            await self._present.access(identifier, os.R_OK, who)
        attributes = await self._metadata.attributes(identifier, who)
        fault = fault_of_name(attributes, name, uid=who.uid, writing=False)
        if fault:
            raise FileSystemError(fault, as_word(name))
        # The kernel often asks for attributes that the object lacks. How many extended attributes
        # and ACLs it has is known from its attributes: so nodes need not be asked.
        flag = {acls.ACCESS: ACCESS_ACL, acls.DEFAULT: DEFAULT_ACL}.get(name)
        there = attributes.flags & flag if flag is not None else attributes.extended
        if not there and not self._options.strict:
            raise FileSystemError(errno.ENODATA, as_word(name))
        arguments = ExtendedName(name)
        answer = await self._metadata.query(identifier, registry.GET_EXTENDED, arguments, who)
        return bytes(answer.value)

    async def list_extended(self, identifier: ObjectId, who: Credentials) -> tuple[bytes, ...]:
        """The names of the extended attributes."""
        attributes = await self._metadata.attributes(identifier, who)
        if not attributes.extended and not attributes.flags and not self._options.strict:
            return ()
        answer = await self._metadata.query(identifier, registry.LIST_EXTENDED, NoArguments(), who)
        return tuple(answer.names)

    async def set_extended(
        self,
        identifier: ObjectId,
        name: bytes,
        value: bytes,
        who: Credentials,
        *,
        flags: int = 0,
    ) -> Attributes:
        """Create or replace an extended attribute."""
        if flags & ~3:
            raise FileSystemError(errno.EINVAL, "xattr flags")
        if len(value) > limits.XATTR_VALUE_BYTES:
            raise FileSystemError(errno.E2BIG, as_word(name))
        arguments = ExtendedSetting(name, value, flags)
        return await self._change_object(identifier, registry.SET_EXTENDED, arguments, who)

    async def remove_extended(
        self, identifier: ObjectId, name: bytes, who: Credentials
    ) -> Attributes:
        """Remove an extended attribute."""
        arguments = ExtendedName(name)
        return await self._change_object(identifier, registry.REMOVE_EXTENDED, arguments, who)
