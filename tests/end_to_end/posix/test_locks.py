"""flock(2) and fcntl(2) locks between processes of one mount."""

import errno
import fcntl
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.expectations import opened

F_OFD_SETLK = 37
BUSY = (errno.EAGAIN, errno.EACCES)


@pytest.fixture
def file(directory: Path) -> Path:
    path = directory / "file"
    path.write_bytes(b"x" * 1000)
    return path


def _elsewhere(action: Callable[[], object]) -> bool:
    """Whether another process succeeds; False if a lock is in the way."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except OSError as error:
            os._exit(1 if error.errno in BUSY else 2)
        except BaseException:
            os._exit(2)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1), "neither locked nor refused"
    return code == 0


def _flock(path: Path, kind: int) -> None:
    with opened(path, os.O_RDWR) as descriptor:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)


def _fcntl(path: Path, kind: int, start: int = 0, length: int = 0) -> None:
    with opened(path, os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB, length, start)


@pytest.mark.parametrize(
    ("held", "wanted", "granted"),
    [
        (fcntl.LOCK_EX, fcntl.LOCK_EX, False),
        (fcntl.LOCK_EX, fcntl.LOCK_SH, False),
        (fcntl.LOCK_SH, fcntl.LOCK_EX, False),
        (fcntl.LOCK_SH, fcntl.LOCK_SH, True),
    ],
)
class TestKinds:
    """Shared and exclusive."""

    def test_flock(self, file: Path, held: int, wanted: int, granted: bool) -> None:
        with opened(file, os.O_RDWR) as descriptor:
            fcntl.flock(descriptor, held)
            assert _elsewhere(lambda: _flock(file, wanted)) is granted
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            assert _elsewhere(lambda: _flock(file, wanted))

    def test_fcntl(self, file: Path, held: int, wanted: int, granted: bool) -> None:
        with opened(file, os.O_RDWR) as descriptor:
            fcntl.lockf(descriptor, held)
            assert _elsewhere(lambda: _fcntl(file, wanted)) is granted
            fcntl.lockf(descriptor, fcntl.LOCK_UN)
            assert _elsewhere(lambda: _fcntl(file, wanted))


def test_closing_releases(file: Path) -> None:
    for lock in (fcntl.flock, fcntl.lockf):
        with opened(file, os.O_RDWR) as descriptor:
            lock(descriptor, fcntl.LOCK_EX)
        assert _elsewhere(lambda: _flock(file, fcntl.LOCK_EX))
        assert _elsewhere(lambda: _fcntl(file, fcntl.LOCK_EX))


def test_flock_belongs_to_the_open_file(file: Path) -> None:
    with opened(file, os.O_RDWR) as one, opened(file, os.O_RDWR) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_SH)
        fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_ranges(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 100, 200)
        assert _elsewhere(lambda: _fcntl(file, fcntl.LOCK_EX, 0, 200))
        assert _elsewhere(lambda: _fcntl(file, fcntl.LOCK_EX, 300, 0))
        assert not _elsewhere(lambda: _fcntl(file, fcntl.LOCK_EX, 299, 1))
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 10, 250)
        assert _elsewhere(lambda: _fcntl(file, fcntl.LOCK_EX, 250, 10))
        assert not _elsewhere(lambda: _fcntl(file, fcntl.LOCK_EX, 249, 1))


def test_holder_is_named(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 10, 5)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with opened(file, os.O_RDWR) as own:
                asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                os.write(writing, fcntl.fcntl(own, fcntl.F_GETLK, asked))
            os._exit(0)
        os.waitpid(child, 0)
        kind, _, start, length, pid = struct.unpack("hhqqi4x", os.read(reading, 100))
        os.close(reading)
        os.close(writing)
    assert (kind, start, length, pid) == (fcntl.F_WRLCK, 5, 10, os.getpid())


def test_locks_of_open_file_descriptions(file: Path) -> None:
    """F_OFD_SETLK: a range lock that belongs to the open file, as flock does."""
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
    with opened(file, os.O_RDWR) as one, opened(file, os.O_RDWR) as two:
        fcntl.fcntl(one, F_OFD_SETLK, lock)
        with pytest.raises(OSError, match="temporarily unavailable"):
            fcntl.fcntl(two, F_OFD_SETLK, lock)


@pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf])
def test_waiting_ends_when_the_holder_is_killed(file: Path, lock: Callable[..., None]) -> None:
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        descriptor = os.open(file, os.O_RDWR)
        lock(descriptor, fcntl.LOCK_EX)
        os.write(writing, b"locked")
        signal.pause()
    assert os.read(reading, 6) == b"locked"
    waiter = os.fork()
    if waiter == 0:
        with opened(file, os.O_RDWR) as descriptor:
            lock(descriptor, fcntl.LOCK_EX)
        os._exit(0)
    assert os.waitpid(waiter, os.WNOHANG) == (0, 0)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert os.waitstatus_to_exitcode(os.waitpid(waiter, 0)[1]) == 0
    os.close(reading)
    os.close(writing)


def test_counter_under_a_lock_loses_nothing(file: Path) -> None:
    """Read, add one, write, in four processes: what locks are for."""
    file.write_bytes(b"0")

    def count() -> None:
        for _ in range(15):
            with opened(file, os.O_RDWR) as descriptor:
                fcntl.lockf(descriptor, fcntl.LOCK_EX)
                value = int(os.pread(descriptor, 20, 0))
                os.pwrite(descriptor, b"%d" % (value + 1), 0)

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                count()
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert file.read_bytes() == b"60"


def test_deleted_file_is_still_locked(file: Path) -> None:
    with opened(file, os.O_RDWR) as one, opened(file, os.O_RDWR) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        file.unlink()
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
