"""mknod(2): FIFOs, sockets, devices."""

import errno
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from tests.end_to_end.expectations import (
    ALICE,
    act_as,
    fails_with,
    needs_root,
    opened,
)


def test_fifo_carries_data(directory: Path) -> None:
    os.mkfifo(directory / "fifo", 0o600)
    assert stat.S_ISFIFO((directory / "fifo").stat().st_mode)
    received = []

    def read() -> None:
        received.append((directory / "fifo").read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    (directory / "fifo").write_bytes(b"through the pipe")
    reader.join()
    assert received == [b"through the pipe"]
    assert (directory / "fifo").stat().st_size == 0


def test_socket_connects(directory: Path) -> None:
    with (
        opened(directory, os.O_RDONLY | os.O_DIRECTORY) as descriptor,
        socket.socket(socket.AF_UNIX) as server,
        socket.socket(socket.AF_UNIX) as client,
    ):
        # A socket's address is short, a test's directory is not.
        address = f"/proc/self/fd/{descriptor}/socket"
        server.bind(address)
        assert stat.S_ISSOCK((directory / "socket").stat().st_mode)
        server.listen()
        client.connect(address)
        client.sendall(b"hello")
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(10) == b"hello"
        with fails_with(errno.EADDRINUSE), socket.socket(socket.AF_UNIX) as second:
            second.bind(address)
    (directory / "socket").unlink()


@needs_root
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
@pytest.mark.parametrize(("major", "minor"), [(1, 3), (0, 0), (255, 255), (4095, 1_048_575)])
def test_device_keeps_its_numbers(directory: Path, kind: int, major: int, minor: int) -> None:
    os.mknod(directory / "device", kind | 0o640, os.makedev(major, minor))
    status = (directory / "device").stat()
    assert stat.S_IFMT(status.st_mode) == kind
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (major, minor)


@needs_root
def test_devices_are_root_s(directory: Path) -> None:
    directory.chmod(0o777)
    with fails_with(errno.EPERM):
        act_as(
            ALICE, lambda: os.mknod(directory / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        )
    act_as(ALICE, lambda: os.mkfifo(directory / "fifo"))


def test_regular_file(directory: Path) -> None:
    os.mknod(directory / "file", stat.S_IFREG | 0o640)
    status = (directory / "file").stat()
    assert stat.S_ISREG(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o640
    (directory / "file").write_bytes(b"data")
    assert (directory / "file").stat().st_size == 4


def test_mode_is_less_the_umask(directory: Path) -> None:
    os.umask(0o027)
    os.mkfifo(directory / "fifo", 0o666)
    assert stat.S_IMODE((directory / "fifo").stat().st_mode) == 0o640


def test_name_that_is_taken(directory: Path) -> None:
    (directory / "file").touch()
    with fails_with(errno.EEXIST):
        os.mkfifo(directory / "file")


def test_renamed_linked_deleted_like_any_other(directory: Path) -> None:
    os.mkfifo(directory / "fifo")
    os.link(directory / "fifo", directory / "second")
    (directory / "fifo").rename(directory / "third")
    assert (directory / "third").stat().st_nlink == 2
    (directory / "second").unlink()
    (directory / "third").chmod(0o600)
    assert stat.S_ISFIFO((directory / "third").stat().st_mode)
    (directory / "third").unlink()
    assert os.listdir(directory) == []
