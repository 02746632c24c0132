"""The Linux system calls that the standard library has no function for."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

FS_IOC_GETFLAGS = 0x80086601
FICLONE = 0x40049409

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_SYMLINK_FOLLOW = 0x400

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _DirectoryEntry(ctypes.Structure):
    _fields_ = (
        ("inode", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("record_length", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_DirectoryEntry)
_libc.readdir.argtypes = (ctypes.c_void_p,)
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
_libc.seekdir.restype = None
_libc.rewinddir.argtypes = (ctypes.c_void_p,)
_libc.rewinddir.restype = None
_libc.closedir.argtypes = (ctypes.c_void_p,)
_libc.getxattr.restype = ctypes.c_ssize_t
_libc.listxattr.restype = ctypes.c_ssize_t


def _checked(result: int, path: object = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if path is None else str(path))
    return result


def rename(source: Path, target: Path, flags: int) -> None:
    """renameat2(2)."""
    names = os.fsencode(source), os.fsencode(target)
    _checked(_libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flags), source)


def link_descriptor(descriptor: int, target: Path) -> None:
    """linkat(2): a name for an open file, by way of /proc."""
    source = f"/proc/self/fd/{descriptor}".encode()
    _checked(
        _libc.linkat(_AT_FDCWD, source, _AT_FDCWD, os.fsencode(target), _AT_SYMLINK_FOLLOW), target
    )


def set_times(
    path: Path,
    *,
    accessed: tuple[int, int],
    modified: tuple[int, int],
    follow_symlinks: bool = True,
) -> None:
    """utimensat(2), with (seconds, nanoseconds), where nanoseconds may be UTIME_NOW or OMIT."""
    times = (_Timespec * 2)(_Timespec(*accessed), _Timespec(*modified))
    flags = 0 if follow_symlinks else _AT_SYMLINK_NOFOLLOW
    _checked(_libc.utimensat(_AT_FDCWD, os.fsencode(path), times, flags), path)


def allocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), without the emulation that posix_fallocate(3) falls back to."""
    _checked(_libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def extended_attribute_into(path: Path, name: str, size: int) -> bytes | int:
    """getxattr(2) into a buffer of `size` bytes; with size 0 the length of the value."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    length = _checked(
        _libc.getxattr(
            os.fsencode(path), name.encode(), buffer if size else None, ctypes.c_size_t(size)
        ),
        path,
    )
    return buffer.raw[:length] if size else length


def extended_attributes_into(path: Path, size: int) -> bytes | int:
    """listxattr(2) into a buffer of `size` bytes; with size 0 the length of the list."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    length = _checked(
        _libc.listxattr(os.fsencode(path), buffer if size else None, ctypes.c_size_t(size)), path
    )
    return buffer.raw[:length] if size else length


def sync_file_system(descriptor: int) -> None:
    """syncfs(2)."""
    _checked(_libc.syncfs(descriptor))


def unmount(path: Path, flags: int) -> None:
    """umount2(2); MNT_FORCE aborts a FUSE connection, which wakes everybody who waits for it."""
    _checked(_libc.umount2(os.fsencode(path), flags), path)


class DirectoryStream:
    """A directory stream of the C library: readdir(3), telldir(3), seekdir(3), rewinddir(3)."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        if not self._stream:
            _checked(-1, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _libc.closedir(self._stream)

    def __iter__(self) -> Iterator[bytes]:
        """The names from here on, without `.` and `..`."""
        while (name := self.next()) is not None:
            if name not in (b".", b".."):
                yield name

    def next(self) -> bytes | None:
        """The next name, also `.` and `..`; None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir(self._stream)
        if entry:
            return bytes(entry.contents.name)
        if ctypes.get_errno():
            _checked(-1)
        return None

    def position(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)
