"""Receiving a backup into a directory of this machine, of any file system.

The situation: the stream may be hostile, or be cut off, and this program may be ended at any time.
The rule: the received tree does not change before the whole stream is here and has been checked.

1. The stream is unpacked to DIRECTORY/.bftfs-backup/incoming: each new file by its number, and the
   other records in a file, the plan. If that is interrupted, it begins anew.
2. When the end has been read, and all is on disk, the plan is marked as complete.
3. The plan is carried out by renames, links and the making of directories: what was taken waits in
   `incoming`, too. Each step is done at most once: what is not where it comes from has arrived. So
   a plan that was interrupted is carried out again from its beginning, before anything else is
   received.
4. What the directory is a backup of, and the digest of its tree, is noted; `incoming` is removed.

No path leads out of DIRECTORY: each name in it is opened by itself, and no symlink is followed.

The receiver is no part of the protocols: it uses the disk.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bftfs.backup.stream import (
    RESERVED,
    BackupEnd,
    BackupHeader,
    BackupReader,
    BackupRecord,
    BackupWriter,
    FileData,
    FileHole,
    FileVersion,
    GivenAttributes,
    Names,
    NewDirectory,
    NewFile,
    NewLink,
    NewNode,
    NewSymlink,
    PlacedName,
    TakenName,
)
from bftfs.crypto.digest import Digest
from bftfs.durable_files import replace_file
from bftfs.errors import UsageError
from bftfs.filesystem import acl
from bftfs.filesystem.objects import without_set_id_bits
from bftfs.filesystem.time_names import format_time_name, format_utc
from bftfs.printable import as_word

VERSIONS: Final = "versions"  # beside `incoming`: earlier versions of files

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OBJECT = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_USABLE: Final = 0o700
_OURS: Final = (b"user.", acl.ACCESS, acl.DEFAULT)  # extended attributes that are all sent


@dataclass(frozen=True, slots=True)
class ReceivedState:
    """The directory and time that a received directory is a backup of."""

    cluster: str
    directory: str
    path: str
    at_us: int
    tree: str

    def is_of(self, header: BackupHeader) -> bool:
        """True if the stream is of the same directory."""
        return (self.cluster, self.directory) == (header.cluster.hex(), header.directory.hex())

    @property
    def shown(self) -> str:
        return f"{as_word(self.path)} as of {format_time_name(self.at_us)}"


@dataclass(slots=True)
class ReceivedCounts:
    """The counts of what a receiver has done."""

    records: int = 0
    files: int = 0
    file_bytes: int = 0
    versions: int = 0
    refused: int = 0  # attributes that may not be set here
    first_refused: str = ""


class Receiving:
    """The receiver of one directory. `told` hears how many bytes of contents have been received.

    All methods raise `UsageError`, which names the thing and what to do, and `OSError`.
    """

    def __init__(self, directory: Path, *, told: Callable[[int], None] = lambda _: None) -> None:
        self._path = directory
        self._own = directory / os.fsdecode(RESERVED)
        self._incoming = self._own / "incoming"
        self._told = told
        self._left_out: set[Names] = set()
        self.counts = ReceivedCounts()

    def receive(self, read: Callable[[int], bytes]) -> ReceivedState:
        """Receive a stream; `read(n)` gives up to n bytes of it. Gives what is there then."""
        reader = BackupReader(read)
        if self._path.is_dir() and not os.path.lexists(self._own):
            self._require_base(reader.header, None)  # before anything is made in it
        with self._alone():
            if self._is_complete():
                self._carry_out()
            state = self.state()
            header = reader.header
            self._require_base(header, state)
            end = self._unpack(reader, is_wanted=not _is_there(header, state))
            if state is not None and _is_there(header, state):
                if end.tree.hex() != state.tree:
                    raise UsageError(
                        f"{as_word(self._path)}: holds another state of {state.shown}: a "
                        "client whose clock "
                        "was behind has added to it since; receive the new one into an empty "
                        "directory",
                        exit_code=1,
                    )
                return state
            return self._carry_out()

    def state(self) -> ReceivedState | None:
        """The record of what this directory is a backup of; None if it is no backup."""
        try:
            return ReceivedState(**json.loads((self._own / "state").read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise UsageError(
                f"{self._own}/state: damaged; receive a whole backup into an empty directory",
                exit_code=1,
            ) from None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Make what is missing of the directory, and keep other receivers out."""
        is_new = not self._path.exists()
        try:
            self._path.mkdir(mode=_USABLE)
        except FileExistsError:
            if not self._path.is_dir():
                raise UsageError(f"{as_word(self._path)}: not a directory; name one") from None
        except FileNotFoundError:
            raise UsageError(
                f"{as_word(self._path)}: there is no {as_word(self._path.parent)}; make it"
            ) from None
        with _Tree(self._path) as tree:
            tree.make((RESERVED,), stat.S_IFDIR, partial(os.mkdir, mode=_USABLE))
        descriptor = os.open(self._own, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self._require_ours(descriptor)
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)
            with suppress(OSError):  # it stays, if there is anything in it
                self._own.rmdir()
                if is_new:
                    self._path.rmdir()

    def _require_ours(self, descriptor: int) -> None:
        """Refuse to carry out plans that another user of this machine could have put there."""
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise UsageError(
                f"{as_word(self._own)}: belongs to another user; receive as that user, or into "
                "another directory",
                exit_code=1,
            )

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{as_word(self._path)}: another `bftfs receive` is at work there; wait for it",
                exit_code=1,
            ) from None

    # --- what may be received here -------------------------------------------------------------

    def _require_base(self, header: BackupHeader, state: ReceivedState | None) -> None:
        """Refuse what cannot be added to what is there."""
        if _is_there(header, state):
            return
        at = format_time_name(header.from_us)
        if state is None:
            if header.is_increment:
                raise UsageError(
                    f"{as_word(self._path)}: holds no backup, and this is an increment to one "
                    f"as of {at}; "
                    "receive that first, or send a whole one (without --from)",
                    exit_code=1,
                )
            if set(os.listdir(self._path)) - {os.fsdecode(RESERVED)}:
                raise UsageError(
                    f"{as_word(self._path)}: not empty; receive a whole backup into an empty "
                    "or new "
                    "directory",
                    exit_code=1,
                )
            return
        if not state.is_of(header):
            raise UsageError(
                f"{as_word(self._path)}: holds a backup of another directory, {state.shown}; "
                "receive this "
                "one elsewhere",
                exit_code=1,
            )
        if not header.is_increment:
            raise UsageError(
                f"{as_word(self._path)}: holds {state.shown}; send an increment to it (`bftfs "
                "send --from "
                f"{format_time_name(state.at_us)}`), or receive this one into an empty directory",
                exit_code=1,
            )
        if header.from_us != state.at_us:
            raise UsageError(
                f"{as_word(self._path)}: holds {state.shown}, and this is an increment to "
                "what was there as "
                f"of {at}; send one with --from {format_time_name(state.at_us)}",
                exit_code=1,
            )
        if header.base.hex() != state.tree:
            raise UsageError(
                f"{as_word(self._path)}: the increment rests on another state of "
                f"{state.shown}: a client "
                "whose clock was behind has added to it since; receive a whole backup into an "
                "empty directory",
                exit_code=1,
            )

    # --- unpacking -----------------------------------------------------------------------------

    def _unpack(self, reader: BackupReader, *, is_wanted: bool) -> BackupEnd:
        """Read the stream to its end; if it is wanted, unpack it."""
        if not is_wanted:
            *_, last = reader.records()
            assert isinstance(last, BackupEnd)
            return last
        self._discard()
        try:
            end = self._unpack_all(reader)
            _sync(self._incoming)
        except BaseException:
            self._discard()
            raise
        replace_file(self._incoming / "complete", b"")
        return end

    def _unpack_all(self, reader: BackupReader) -> BackupEnd:
        for each in (self._incoming, self._incoming / "new", self._incoming / "taken"):
            each.mkdir(mode=_USABLE)
        with (self._incoming / "plan").open("wb") as plan, _Contents(self._incoming) as contents:
            writer = BackupWriter(plan.write)
            writer.add(reader.header)
            for record in reader.records():
                self.counts.records += 1
                if isinstance(record, (FileData, FileHole)):
                    contents.add(record)
                    self._told(contents.total)
                    continue
                contents.finish()
                if isinstance(record, BackupEnd):
                    writer.end(Digest(record.tree))
                    return record
                if isinstance(record, (NewFile, FileVersion)):
                    contents.begin(record.size)
                writer.add(record)
        raise AssertionError("the reader gives an end, or raises")

    def _is_complete(self) -> bool:
        return (self._incoming / "complete").exists()

    # --- carrying out --------------------------------------------------------------------------

    def _carry_out(self) -> ReceivedState:
        """Do what the plan says; it is complete, and some of it may have been done."""
        self.counts.refused, self.counts.first_refused = 0, ""
        with (self._incoming / "plan").open("rb") as plan, _Tree(self._path) as tree:
            reader = BackupReader(plan.read, with_contents=False)
            header, end = reader.header, None
            all_taken = self._incoming / "all-taken"
            is_taken = all_taken.exists()
            number = 0
            for record in reader.records():
                if isinstance(record, TakenName):
                    if not is_taken:
                        self._take(tree, record)
                    continue
                if not is_taken:
                    _sync(self._path)  # what is marked as taken has been taken, after any crash
                    replace_file(all_taken, b"")
                    is_taken = True
                if isinstance(record, BackupEnd):
                    end = record
                    break
                if isinstance(record, (NewFile, FileVersion)):
                    self._place_file(tree, record, self._incoming / "new" / str(number))
                    number += 1
                else:
                    self._do(tree, record)
        assert end is not None, "a plan has an end"
        _sync(self._path)
        state = ReceivedState(
            header.cluster.hex(),
            header.directory.hex(),
            os.fsdecode(header.path),
            header.at_us,
            end.tree.hex(),
        )
        replace_file(self._own / "state", json.dumps(asdict(state)).encode())
        self._discard()
        return state

    def _discard(self) -> None:
        """Remove what has been unpacked; first of all the mark that it is complete."""
        (self._incoming / "complete").unlink(missing_ok=True)
        if self._incoming.exists():
            _open_up(self._incoming)
            shutil.rmtree(self._incoming)

    def _slot(self, number: int) -> Path:
        return self._incoming / "taken" / str(number)

    def _take(self, tree: _Tree, record: TakenName) -> None:
        slot = self._slot(record.slot)
        if not os.path.lexists(slot):
            with tree.entry(record.path) as (directory, name):
                tree.make_movable(record.path, directory, name)
                os.rename(name, slot, src_dir_fd=directory)

    def _do(self, tree: _Tree, record: BackupRecord) -> None:
        """Carry out a record that is about names or attributes."""
        match record:
            case PlacedName(slot, path):
                source = self._slot(slot)
                if os.path.lexists(source):
                    tree.require_free(path)
                    with tree.entry(path) as (directory, name):
                        os.rename(source, name, dst_dir_fd=directory)
            case NewDirectory(path):
                tree.make(path, stat.S_IFDIR, partial(os.mkdir, mode=_USABLE))
            case NewSymlink(path, target):
                tree.make(path, stat.S_IFLNK, partial(_symlink, target))
            case NewNode():
                self._make_node(tree, record)
            case NewLink(first, path) if first in self._left_out:
                self._left_out.add(path)
            case NewLink(first, path):
                tree.link(first, path)
            case GivenAttributes(path) if path in self._left_out:
                pass
            case GivenAttributes():
                self._give(tree, record)
            case _:
                raise AssertionError("the reader has checked the order")

    def _make_node(self, tree: _Tree, record: NewNode) -> None:
        """Make a pipe, socket or device; leave it out if that is not permitted here."""
        kind = stat.S_IFMT(record.mode)
        make = partial(os.mknod, mode=kind | 0o600, device=record.device)
        self._try(record.path, "the device", lambda: tree.make(record.path, kind, make))
        with tree.entry(record.path) as (directory, name):
            if _status(directory, name) is None:
                self._left_out.add(record.path)

    def _place_file(self, tree: _Tree, record: NewFile | FileVersion, source: Path) -> None:
        if isinstance(record, NewFile):
            self.counts.files += 1
            self.counts.file_bytes += record.size
            if os.path.lexists(source):
                tree.require_free(record.path)
                with tree.entry(record.path) as (directory, name):
                    os.rename(source, name, dst_dir_fd=directory)
            return
        self.counts.versions += 1
        if not os.path.lexists(source):
            return
        at = f"{format_utc(record.time_us)[:-1]}.{record.time_us % 1_000_000:06}Z"
        with _Tree(self._own) as own:
            path = (VERSIONS.encode(), *record.path)
            for depth in range(1, len(path) + 1):
                own.make(path[:depth], stat.S_IFDIR, partial(os.mkdir, mode=_USABLE))
            source.chmod(stat.S_IMODE(record.mode) & 0o777)
            os.utime(source, ns=(record.time_us * 1000, record.time_us * 1000))
            with own.entry((*path, at.encode())) as (directory, name):
                os.rename(source, name, dst_dir_fd=directory)

    def _give(self, tree: _Tree, record: GivenAttributes) -> None:
        """Set attributes, as far as that is permitted here.

        A program runs as the stream's owner of it or as the user who starts it, and never as the
        receiver: an ordinary user gives no set-id bits to files, and nobody to those of other
        owners.
        """
        with tree.opened(record.path) as (there, status):
            if stat.S_IFMT(status.st_mode) != stat.S_IFMT(record.mode):
                raise tree.changed(record.path)
            tree.keep_mode(status)
            is_privileged, mode = os.geteuid() == 0, stat.S_IMODE(record.mode)
            if (status.st_uid, status.st_gid) != (record.uid, record.gid):
                owner = partial(os.chown, there, record.uid, record.gid)
                if stat.S_ISLNK(record.mode):
                    owner = partial(tree.change_link_owner, record.path, record.uid, record.gid)
                is_privileged &= self._try(record.path, "owner", owner)
            if not stat.S_ISLNK(record.mode):
                self._give_extended(record, there)
                if not is_privileged and not stat.S_ISDIR(record.mode):
                    if mode != without_set_id_bits(mode):
                        self._refuse(record.path, "set-id bits", "only root may receive them")
                    mode = without_set_id_bits(mode)
                os.chmod(there, mode)
        tree.change_times(record.path, record.atime_ns, record.mtime_ns)

    def _give_extended(self, record: GivenAttributes, there: str) -> None:
        wanted = dict(record.extended)
        try:
            found = {os.fsencode(name) for name in os.listxattr(there)}
        except OSError:
            found = set()
        for name, value in wanted.items():
            self._try(record.path, os.fsdecode(name), partial(os.setxattr, there, name, value))
        for name in found - wanted.keys():
            if name.startswith(_OURS):
                self._try(record.path, os.fsdecode(name), partial(os.removexattr, there, name))

    def _try(self, path: Names, what: str, action: Callable[[], None]) -> bool:
        """Perform the action; if it is not permitted or possible here, count it, and give False."""
        try:
            action()
        except OSError as error:
            if error.errno not in _MAY_NOT:
                raise
            self._refuse(path, what, error.strerror)
            return False
        return True

    def _refuse(self, path: Names, what: str, why: str | None) -> None:
        shown = as_word(b"/".join(path) or b".")
        self.counts.refused += 1
        self.counts.first_refused = self.counts.first_refused or f"{what} of {shown}: {why}"


_MAY_NOT: Final = frozenset(
    (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC, errno.E2BIG,
     errno.ERANGE, errno.ENODATA)
)  # fmt: skip


def _is_there(header: BackupHeader, state: ReceivedState | None) -> bool:
    """True if the directory holds what the stream leads to."""
    return state is not None and state.is_of(header) and state.at_us == header.at_us


class _Contents:
    """The contents of new files, one after the other, in files by their numbers."""

    def __init__(self, incoming: Path) -> None:
        self._place = incoming / "new"
        self._file: int | None = None
        self._size = 0
        self._number = 0
        self.total = 0

    def __enter__(self) -> _Contents:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def begin(self, size: int) -> None:
        """From now on `add` writes to the next file."""
        self._file = os.open(self._place / str(self._number), _NEW, 0o600)
        self._number += 1
        self._size = size

    def add(self, record: FileData | FileHole) -> None:
        """Write data, or leave a hole."""
        assert self._file is not None, "the reader has checked the order"
        if isinstance(record, FileHole):
            os.lseek(self._file, record.length, os.SEEK_CUR)
            self.total += record.length
            return
        left = memoryview(record.data)
        while left:
            left = left[os.write(self._file, left) :]
        self.total += len(record.data)

    def finish(self) -> None:
        """The file is whole."""
        if self._file is not None:
            os.ftruncate(self._file, self._size)
            os.close(self._file)
            self._file = None


class _Tree:
    """A directory, whose entries are reached name by name, and never through a symlink."""

    def __init__(self, top: Path) -> None:
        self._path = top
        self._top = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._is_root = os.geteuid() == 0
        # Directories in which their owner may not work: their modes, which are given back.
        self._opened: dict[tuple[int, int], tuple[Names, int]] = {}

    def __enter__(self) -> _Tree:
        return self

    def __exit__(self, *_: object) -> None:
        for identity, (path, mode) in list(self._opened.items()):
            with suppress(OSError, UsageError), self.opened(path) as (there, status):
                if (status.st_dev, status.st_ino) == identity:
                    os.chmod(there, mode)
        os.close(self._top)

    def keep_mode(self, status: os.stat_result) -> None:
        """The mode of a directory is set now: it is not given back at the end."""
        self._opened.pop((status.st_dev, status.st_ino), None)

    def _let_work(self, path: Names, descriptor: int) -> None:
        """Let its owner work in a directory, until the end."""
        if self._is_root:
            return
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if mode & _USABLE != _USABLE and status.st_uid == os.geteuid():
            self._opened.setdefault((status.st_dev, status.st_ino), (path, mode))
            os.chmod(f"/proc/self/fd/{descriptor}", mode | _USABLE)

    def make_movable(self, path: Names, directory: int, name: bytes) -> None:
        """Let a directory be moved to another one: for that its owner has to work in it."""
        status = _status(directory, name)
        if not self._is_root and status is not None and stat.S_ISDIR(status.st_mode):
            descriptor = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                self._let_work(path, descriptor)
            finally:
                os.close(descriptor)

    def changed(self, path: Names) -> UsageError:
        """What is at a path is not what the plan needs: somebody has changed the received tree."""
        shown = as_word(self._path.joinpath(*map(os.fsdecode, path)))
        return UsageError(
            f"{shown}: is not what was received, or in the way; put it right and receive again, or "
            "receive a whole backup into an empty directory",
            exit_code=1,
        )

    @contextmanager
    def entry(self, path: Names) -> Iterator[tuple[int, bytes]]:
        """The directory in which the path's last name is, opened; and that name."""
        current = os.dup(self._top)
        try:
            self._let_work((), current)
            for depth, name in enumerate(path[:-1], 1):
                inner = os.open(name, _DIRECTORY, dir_fd=current)
                os.close(current)
                current = inner
                self._let_work(path[:depth], current)
            yield current, path[-1] if path else b"."
        except (FileNotFoundError, NotADirectoryError):
            raise self.changed(path) from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
                raise self.changed(path) from None
            raise
        finally:
            os.close(current)

    @contextmanager
    def opened(self, path: Names) -> Iterator[tuple[str, os.stat_result]]:
        """A path by which the object, and nothing else, is reached; and its status.

        Of a symlink only the status can be used.
        """
        with self.entry(path) as (directory, name):
            descriptor = os.open(name, _OBJECT, dir_fd=directory)
            try:
                yield f"/proc/self/fd/{descriptor}", os.fstat(descriptor)
            finally:
                os.close(descriptor)

    def require_free(self, path: Names) -> None:
        """Refuse to replace what is at a path."""
        with self.entry(path) as (directory, name):
            if _status(directory, name) is not None:
                raise self.changed(path)

    def make(self, path: Names, kind: int, make: Callable[..., object]) -> None:
        """Make an object with `make(name, dir_fd=…)`, if it is not there already."""
        with self.entry(path) as (directory, name):
            status = _status(directory, name)
            if status is None:
                make(name, dir_fd=directory)
            elif stat.S_IFMT(status.st_mode) != kind:
                raise self.changed(path)

    def link(self, first: Names, path: Names) -> None:
        """Make another name for an object, if it has not got it already."""
        with (
            self.entry(first) as (source, source_name),
            self.entry(path) as (target, target_name),
        ):
            there, status = _status(source, source_name), _status(target, target_name)
            if there is None or stat.S_ISDIR(there.st_mode):
                raise self.changed(first)
            if status is None:
                os.link(
                    source_name,
                    target_name,
                    src_dir_fd=source,
                    dst_dir_fd=target,
                    follow_symlinks=False,
                )
            elif (status.st_dev, status.st_ino) != (there.st_dev, there.st_ino):
                raise self.changed(path)

    def change_link_owner(self, path: Names, uid: int, gid: int) -> None:
        """Set the owner of a symlink."""
        with self.entry(path) as (directory, name):
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)

    def change_times(self, path: Names, atime_ns: int, mtime_ns: int) -> None:
        """Set the times of an object."""
        with self.entry(path) as (directory, name):
            os.utime(name, ns=(atime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)


def _status(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _symlink(target: bytes, name: bytes, *, dir_fd: int) -> None:
    os.symlink(target, name, dir_fd=dir_fd)


def _open_up(place: Path) -> None:
    """Let everything in `place`, which is ours, be removed."""
    if os.geteuid():
        for above, names, _ in os.walk(place):
            for inner in (Path(above, name) for name in names):
                if not inner.is_symlink():
                    inner.chmod(_USABLE)


def _sync(path: Path) -> None:
    """Have all of the file system that `path` is in on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "syncfs", str(path))
    finally:
        os.close(descriptor)
