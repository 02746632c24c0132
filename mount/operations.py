"""The handlers of the kernel's requests: they translate a request, and the file system answers it.

`default_permissions` is always on, so the kernel checks permissions before it asks; the nodes check
again. pyfuse3 does not pass on other requests (fallocate, ioctl, lseek for holes, locks between
mounts …); docs/mount.md says what programs see instead.

Concurrency: pyfuse3 runs each request in a task of its own; between two awaits nothing else runs.
The kernel counts a lookup for every entry that it is given, so counting and the reply must not be
separated by an await.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from threading import Thread
from typing import Any, Final, TypeVar

import pyfuse3
import trio
from msgspec import structs
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from bftfs import errors, limits
from bftfs.conversation import Conversation
from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError
from bftfs.filesystem.attributes import NOW, Attributes, Changes
from bftfs.filesystem.block_memory import Buffer
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.directory import RENAME_EXCHANGE
from bftfs.filesystem.file_history import History
from bftfs.filesystem.metadata import OpenDirectory
from bftfs.filesystem.operations import FileSystem, FoundObject, Statistics
from bftfs.identifiers import ObjectId
from bftfs.runtime.log import Log
from mount.callers import Callers
from mount.kernel_numbers import (
    HISTORY,
    LAST_NUMBER,
    Handle,
    Handles,
    InodeTable,
    KernelNames,
    Name,
    ObjectInView,
    Places,
)
from mount.options import MountOptions
from mount.requests import KernelRequest, Requests

SECTOR_BYTES: Final = 512  # the unit of st_blocks, whatever the file system
Result = TypeVar("Result")

# The kernel asks for it before every write(2). File capabilities are not stored: a compromised
# client must not be able to grant privileges on other machines.
FILE_CAPABILITIES: Final = b"security.capability"
FILES_KNOWN: Final = 65_536  # files that the kernel is let know, beside those that are open
DIRECTORY_PAGE: Final = 64  # entries asked for at a time; the kernel's buffers hold 20 to 700
NOW_WITHIN_NS: Final = 1_000_000_000

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


def _answers(handler: Handler) -> Handler:
    """`handler`, raising no error but an errno: any other would end the mount."""

    @wraps(handler)
    async def answer(self: Operations, *arguments: Any) -> Any:
        try:
            return await handler(self, *arguments)
        except FUSEError:
            raise
        except Exception as error:
            raise self.failure(handler.__name__, error) from None

    return answer  # type: ignore[return-value]


@contextmanager
def _looked_up_if_in_doubt(*names: tuple[int, bytes]) -> Iterator[None]:
    """Makes the kernel forget these names if an update of them fails and may still take effect.

    Otherwise a program that tries again would see what was there before, until the entries expire.
    """
    try:
        yield
    except FileSystemError:  # nothing has changed
        raise
    except Exception:
        for parent, name in names:
            # In a thread: the kernel forgets when it has the answer to this request.
            pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)
        raise


class Operations(pyfuse3.Operations):
    """The request handlers."""

    supports_dot_lookup = False  # numbers that the kernel has forgotten cannot be resolved
    enable_writeback_cache = False  # would hide what other mounts write; docs/decisions/0006
    enable_acl = True

    def __init__(
        self,
        files: FileSystem,
        history: History | None,
        requests: Requests,
        callers: Callers,
        options: MountOptions,
        log: Log,
    ) -> None:
        super().__init__()
        self._files = files
        self._places = None if history is None else Places(history)
        self._requests = requests
        self._options = options
        self._log = log
        self._inodes = InodeTable(files.root)
        self._names = KernelNames()
        self._open: Handles[OpenFile] = Handles()
        self._listed: Handles[OpenDirectory] = Handles()
        self._callers = callers
        self.greeted = trio.Event()

    def init(self) -> None:
        """The kernel and libfuse have agreed on the protocol version."""
        self.greeted.set()

    def failure(self, request: str, error: Exception) -> FUSEError:
        """The error for the program; details go to the log."""
        number = errno_of(error)
        if number is None:
            self._log.error("request failed because of a bug", request=request, error=error)
            number = errno.EIO
        elif not isinstance(error, FileSystemError):
            self._log.warning("request failed", request=request, reason=str(error))
        return FUSEError(number)

    # --- names -------------------------------------------------------------------------------

    @_answers
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        place = self._place(parent_inode)
        if name == HISTORY and self._places is not None and parent_inode <= LAST_NUMBER:
            looking = self._places.enter(place.identifier, self._who(ctx))
        else:
            looking = place.files.lookup(place.identifier, name, self._who(ctx))
        try:
            found = await self._perform("lookup", looking, parent_inode, ctx)
        except FileSystemError as error:
            if error.code != errno.ENOENT or not self._options.negative_timeout_s:
                raise
            nothing = EntryAttributes()
            nothing.st_ino = 0
            nothing.entry_timeout = self._options.cached_absence_s
            return nothing
        return self._remembered(found, (parent_inode, name), place.suffix)

    @_answers
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        directory = self._changeable(parent_inode, name)
        creating = self._files.create(
            directory, name, mode, self._who(ctx), umask=ctx.umask, flags=flags
        )
        found, opened = await self._perform("create", creating, parent_inode, ctx)
        entry = self._remembered(found, (parent_inode, name))
        handle = Handle(self._files, opened, entry.st_ino, ctx.pid)
        return self._file_info(handle, keep_cache=True), entry

    @_answers
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._changeable(parent_inode, name)
        making = self._files.make_node(
            directory, name, mode, self._who(ctx), umask=ctx.umask, device=rdev
        )
        found = await self._perform("mknod", making, parent_inode, ctx)
        return self._remembered(found, (parent_inode, name))

    @_answers
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._changeable(parent_inode, name)
        making = self._files.make_directory(
            directory, name, stat.S_IMODE(mode), self._who(ctx), umask=ctx.umask
        )
        found = await self._perform("mkdir", making, parent_inode, ctx)
        return self._remembered(found, (parent_inode, name))

    @_answers
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._changeable(parent_inode, name)
        making = self._files.make_symlink(directory, name, target, self._who(ctx))
        found = await self._perform("symlink", making, parent_inode, ctx)
        return self._remembered(found, (parent_inode, name))

    @_answers
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        identifier = self._changeable(inode)
        directory = self._changeable(new_parent_inode, new_name)
        linking = self._files.link(identifier, directory, new_name, self._who(ctx))
        found = await self._perform("link", linking, new_parent_inode, ctx)
        return self._remembered(found, (new_parent_inode, new_name))

    @_answers
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        directory = self._changeable(parent_inode, name)
        removing = self._files.unlink(directory, name, self._who(ctx))
        with _looked_up_if_in_doubt((parent_inode, name)):
            await self._perform("unlink", removing, parent_inode, ctx)
        self._names.gone((parent_inode, name))

    @_answers
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        directory = self._changeable(parent_inode, name)
        removing = self._files.remove_directory(directory, name, self._who(ctx))
        with _looked_up_if_in_doubt((parent_inode, name)):
            await self._perform("rmdir", removing, parent_inode, ctx)

    @_answers
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        source = self._changeable(parent_inode_old, name_old)
        target = self._changeable(parent_inode_new, name_new)
        renaming = self._files.rename(
            source, name_old, target, name_new, self._who(ctx), flags=flags
        )
        names = (parent_inode_old, name_old), (parent_inode_new, name_new)
        with _looked_up_if_in_doubt(*names):
            await self._perform("rename", renaming, parent_inode_old, ctx)
        self._names.moved(*names, exchanged=bool(flags & RENAME_EXCHANGE))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, lookups in inode_list:
            if self._inodes.forget(number, lookups) is not None:
                self._names.forgotten(number)

    def forget_files(self, most: int = FILES_KNOWN) -> None:
        """Make the kernel forget files that it has looked up long ago, if there are more of them.

        None that is open: /proc would show such a file as deleted.
        """
        for parent, name in self._names.take_surplus(most, but=self._open.inodes):
            # In a thread: the kernel may wait for our answer to a request in that directory.
            pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)

    # --- attributes --------------------------------------------------------------------------

    @_answers
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        place = self._place(inode)
        asking = place.files.attributes(place.identifier, self._who(ctx))
        return self._entry(inode, await self._perform("getattr", asking, inode, ctx))

    @_answers
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        del fh
        identifier = self._changeable(inode)
        who = self._who(ctx)
        changes = Changes(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        if fields.update_size:
            cutting = self._files.truncate(identifier, attr.st_size, who)
            attributes = await self._perform("setattr", cutting, inode, ctx)
            if not changes:
                return self._entry(inode, attributes)
        try:
            changing = self._files.change_attributes(identifier, changes, who)
            attributes = await self._perform("setattr", changing, inode, ctx)
        except FileSystemError as error:
            at_present = _at_present(changes)
            if error.code != errno.EPERM or at_present == changes:
                raise
            # utimensat(UTIME_NOW) comes as the time of day. The kernel lets only owners set other
            # times, so a time that the nodes refuse to another user must have been UTIME_NOW.
            changing = self._files.change_attributes(identifier, at_present, who)
            attributes = await self._perform("setattr", changing, inode, ctx)
        return self._entry(inode, attributes)

    @_answers
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        place = self._place(inode)
        reading = place.files.read_link(place.identifier, self._who(ctx))
        return await self._perform("readlink", reading, inode, ctx)

    @_answers
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name == FILE_CAPABILITIES:
            raise FUSEError(errno.ENODATA)
        place = self._place(inode)
        asking = place.files.get_extended(place.identifier, name, self._who(ctx))
        return await self._perform("getxattr", asking, inode, ctx)

    @_answers
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if name == FILE_CAPABILITIES:
            raise FUSEError(errno.EOPNOTSUPP)
        identifier = self._changeable(inode)
        setting = self._files.set_extended(identifier, name, value, self._who(ctx))
        await self._perform("setxattr", setting, inode, ctx)

    @_answers
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        place = self._place(inode)
        asking = place.files.list_extended(place.identifier, self._who(ctx))
        return await self._perform("listxattr", asking, inode, ctx)

    @_answers
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        identifier = self._changeable(inode)
        removing = self._files.remove_extended(identifier, name, self._who(ctx))
        await self._perform("removexattr", removing, inode, ctx)

    # --- files -------------------------------------------------------------------------------

    @_answers
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        place = self._place(inode)
        opening = place.files.open(place.identifier, flags, self._who(ctx))
        opened = await self._perform("open", opening, inode, ctx)
        if flags & os.O_TRUNC:
            self._inodes.known(inode).told(0)
        if not opened.keep_cache:
            # The reply drops the kernel's pages, but not its old size of the file.
            pyfuse3.invalidate_inode(inode, attr_only=True)
        handle = Handle(place.files, opened, inode, ctx.pid)
        return self._file_info(handle, keep_cache=opened.keep_cache)

    @_answers
    async def read(self, fh: int, off: int, size: int) -> Buffer:  # type: ignore[override]
        # Any buffer will do, whatever pyfuse3 declares.
        handle = self._open.get(fh)
        return await self._perform_on(handle, "read", handle.files.read(handle.opened, off, size))

    @_answers
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._open.get(fh)
        files, opened = handle.files, handle.opened
        known = self._inodes.known(handle.inode)
        # The kernel appends at the end that it believes in; another mount may have moved it.
        end = off + len(buf)
        is_append = opened.append and known.is_append(off, end, may_be_mapped=opened.reads)
        is_misplaced = is_append and off != opened.contents.size
        must_wait = files.write(opened, None if is_append else off, buf, now_ns=time.time_ns())
        known.told(end if is_append else max(known.size, end))
        if is_misplaced:
            self._drop_pages(handle.inode)
        if must_wait:
            await self._perform_on(handle, "write", files.write_behind(opened))
            self._drop_moved(handle)
        return len(buf)

    def _drop_pages(self, inode: int) -> None:
        """Let the kernel drop the pages that it has filled with bytes that are elsewhere.

        In a thread: the call waits for requests on those pages, which this thread answers.
        """
        Thread(target=pyfuse3.invalidate_inode, args=(inode,), daemon=True).start()

    def _drop_moved(self, handle: Handle[OpenFile]) -> None:
        """Appended bytes may have been put behind another mount's."""
        known, moves = self._inodes.find(handle.inode), handle.opened.contents.moves
        if known is not None and known.moves != moves:
            known.moves = moves
            self._drop_pages(handle.inode)

    @_answers
    async def flush(self, fh: int) -> None:
        handle = self._open.get(fh)
        await self._perform_on(handle, "flush", handle.files.flush(handle.opened))
        self._drop_moved(handle)

    @_answers
    async def fsync(self, fh: int, datasync: bool) -> None:
        del datasync
        handle = self._open.get(fh)
        await self._perform_on(handle, "fsync", handle.files.synchronize(handle.opened))
        self._drop_moved(handle)

    @_answers
    async def release(self, fh: int) -> None:
        handle = self._open.remove(fh)
        releasing = handle.files.release(handle.opened)
        await self._requests.perform(KernelRequest("release", handle.inode), releasing)

    # --- directories -------------------------------------------------------------------------

    @_answers
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        place = self._place(inode)
        opening = place.files.open_directory(place.identifier, self._who(ctx))
        opened = await self._perform("opendir", opening, inode, ctx)
        return self._listed.add(Handle(place.files, opened, inode, ctx.pid, place.suffix))

    @_answers
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self._listed.get(fh)
        after = start_id
        while True:
            reading = handle.files.read_directory(
                handle.opened, after, count=DIRECTORY_PAGE, with_attributes=False
            )
            page = await self._perform_on(handle, "readdir", reading)
            if not page:
                return
            for listed in page:
                number = self._inodes.remember(ObjectId(listed.identifier + handle.suffix))
                entry = self._listed_entry(number, listed.file_type, listed.attributes)
                if not pyfuse3.readdir_reply(token, listed.name, entry, listed.cookie):
                    self._inodes.forget(number, 1)
                    return
                self._name((handle.inode, listed.name), number, listed.file_type << 12)
            after = page[-1].cookie

    @_answers
    async def releasedir(self, fh: int) -> None:
        self._listed.remove(fh)

    # fsyncdir is left to pyfuse3's refusal, once: every change of a directory is durable when it is
    # answered, and with ENOSYS the kernel reports success without asking again.

    # --- the whole ---------------------------------------------------------------------------

    @_answers
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        asking = self._files.statistics(self._who(ctx))
        return statvfs(await self._perform("statfs", asking, pyfuse3.ROOT_INODE, ctx))

    # -----------------------------------------------------------------------------------------

    async def _perform(
        self, request: str, conversation: Conversation[Result], inode: int, ctx: RequestContext
    ) -> Result:
        return await self._requests.perform(KernelRequest(request, inode, ctx.pid), conversation)

    async def _perform_on(
        self, handle: Handle[Any], request: str, conversation: Conversation[Result]
    ) -> Result:
        asked = KernelRequest(request, handle.inode, opener=handle.opener)
        return await self._requests.perform(asked, conversation)

    def _who(self, ctx: RequestContext) -> Credentials:
        return self._callers.credentials(pid=ctx.pid, uid=ctx.uid, gid=ctx.gid)

    def _entry(self, number: int, attributes: Attributes) -> EntryAttributes:
        self._inodes.known(number).told(attributes.size)
        entry = EntryAttributes()
        fill(entry, number, attributes)
        entry.entry_timeout = self._options.cached_entries_s
        entry.attr_timeout = self._options.cached_attributes_s
        return entry

    def _remembered(self, found: FoundObject, name: Name, suffix: bytes = b"") -> EntryAttributes:
        """A reply that names an object to the kernel, which counts it as a lookup."""
        number = self._inodes.remember(ObjectId(found.identifier + suffix))
        self._name(name, number, found.attributes.mode)
        return self._entry(number, found.attributes)

    def _name(self, name: Name, number: int, mode: int) -> None:
        self._names.found(name, number, is_directory=stat.S_ISDIR(mode))

    def _place(self, number: int) -> ObjectInView:
        """The object behind the kernel's inode, in the present or a past."""
        identifier = self._inodes.identifier(number)
        if number <= LAST_NUMBER:
            return ObjectInView(self._files, identifier)
        assert self._places is not None, "only its inodes have such numbers"
        return self._places.find(identifier)

    def _changeable(self, number: int, name: bytes = b"") -> ObjectId:
        """The object, if it may be changed: `.history`, and everything below it, may not."""
        if number > LAST_NUMBER or (name == HISTORY and self._places is not None):
            raise FileSystemError(errno.EROFS)
        return self._inodes.identifier(number)

    def _listed_entry(
        self, number: int, file_type: int, attributes: Attributes | None
    ) -> EntryAttributes:
        """An entry of a listing; without attributes, only name, number and type.

        pyfuse3 has no listings without attributes. But if an entry has an impossible size, the
        kernel (5.5 or later) takes only its name, and forgets the inode again.
        """
        if attributes is not None:
            return self._entry(number, attributes)
        entry = EntryAttributes()
        entry.st_ino = number
        entry.st_mode = file_type << 12
        entry.st_size = -1
        return entry

    def _file_info(self, handle: Handle[OpenFile], *, keep_cache: bool) -> FileInfo:
        number = self._open.add(handle)
        return FileInfo(fh=number, direct_io=self._options.strict, keep_cache=keep_cache)


def _at_present(changes: Changes) -> Changes:
    """`changes`, in which times that are very near to the present are NOW."""
    now = time.time_ns()
    return structs.replace(
        changes,
        atime_ns=_now_if_near(changes.atime_ns, now),
        mtime_ns=_now_if_near(changes.mtime_ns, now),
    )


def _now_if_near(moment: int | None, now: int) -> int | None:
    return NOW if moment is not None and abs(moment - now) < NOW_WITHIN_NS else moment


# --- answers in the kernel's terms --------------------------------------------------------------


def fill(entry: EntryAttributes, number: int, attributes: Attributes) -> None:
    """Let `entry` describe the object that the kernel knows as `number`.

    C's stdio and Python's files take `st_blksize` as the size of their buffers: with the size of a
    block, programs that write little by little write whole blocks.
    """
    size = attributes.size
    layout = attributes.layout
    entry.st_ino = number
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.links
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.device
    entry.st_size = size
    entry.st_blksize = layout.block_bytes if layout is not None else limits.BLOCK_BYTES_DEFAULT
    entry.st_blocks = -(-size // SECTOR_BYTES)
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns


def statvfs(statistics: Statistics) -> StatvfsData:
    """The answer to statfs."""
    answer = StatvfsData()
    unit = statistics.block_bytes
    answer.f_bsize = answer.f_frsize = unit
    answer.f_blocks = statistics.capacity_bytes // unit
    answer.f_bfree = answer.f_bavail = statistics.free_bytes // unit
    answer.f_files = statistics.capacity_inodes
    answer.f_ffree = answer.f_favail = statistics.free_inodes
    answer.f_namemax = statistics.name_bytes
    return answer


# The first class that fits decides. None: the exception carries the errno.
TABLE: tuple[tuple[type[Exception], int | None], ...] = (
    (errors.VersionGone, None),
    (FileSystemError, None),
    (errors.AdmissionRefused, None),
    (errors.QuorumUnavailable, errno.ETIMEDOUT),  # only a `soft` mount gives up
    (errors.ContentionExhausted, errno.ETIMEDOUT),
    (errors.FateUnknown, errno.EIO),
    (errors.VersionUnrecoverable, errno.EIO),
    (errors.NoLongerKept, errno.ENODATA),
    (errors.PastUnknown, errno.EIO),
    (errors.UnreadableAnswer, errno.EIO),
    (errors.OperationFailed, errno.EIO),
)


def errno_of(error: Exception) -> int | None:
    """The errno for `error`; None if `error` is a bug of this program."""
    for kind, number in TABLE:
        if isinstance(error, kind):
            if number is not None:
                return number
            code: int = error.code  # type: ignore[attr-defined]
            return code
    return None
