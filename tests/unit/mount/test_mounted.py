"""A real mount, of a file system in memory: what the kernel makes of our answers."""

import errno
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from mount.mountpoint import detach, mounted_at
from tests.unit.mount.in_memory import FEW, FOREIGN, FREEZE, KNOWN, SOURCE, STALL, STALLED

PROJECT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.mounted,
    pytest.mark.timeout(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse"),
]


@dataclass
class Mounted:
    path: Path
    process: subprocess.Popen[str]
    log: Path

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def mounted(tmp_path: Path, options: str = "") -> Iterator[Mounted]:
    """A mount, until the end of the block or earlier."""
    path, log = tmp_path / "files", tmp_path / "log"
    path.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.mount.in_memory", str(path), str(log), options],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Mounted(path, process, log)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(10)
    finally:
        process.kill()
        process.wait()
        while mounted_at(path) is not None:
            detach(path)


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A temporary directory that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def waits(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process waits for an answer to a FUSE request."""
    wchan = Path(f"/proc/{process.pid}/wchan")
    with suppress(OSError):
        return wchan.read_text() == "request_wait_answer"
    return False


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_table_of_mounts_tells_what_it_is(tmp_path: Path):
    with mounted(tmp_path) as mount:
        found = mounted_at(mount.path)
        assert found is not None
        assert (found.kind, found.source) == ("fuse.bftfs", SOURCE)


def test_unmounting_writes_everything_and_ends(tmp_path: Path):
    with mounted(tmp_path) as mount:
        (mount.path / "file").write_bytes(b"x" * 300_000)
        subprocess.run(["umount", mount.path], check=True)
        assert mount.process.wait(10) == 0
        assert mount.process.stdout is not None
        assert mount.process.stdout.read() == "3 blocks\n"
        assert [event["event"] for event in mount.events()] == ["mounted", "unmounted"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts(tmp_path: Path, number: signal.Signals):
    with mounted(tmp_path) as mount:
        (mount.path / "file").write_bytes(b"x" * 300_000)
        mount.process.send_signal(number)
        assert mount.process.wait(10) == 0
        assert mounted_at(mount.path) is None


def test_a_signal_writes_everything_and_detaches(tmp_path: Path):
    with mounted(tmp_path) as mount:
        descriptor = os.open(mount.path / "file", os.O_CREAT | os.O_RDWR)
        os.ftruncate(descriptor, 400_000)
        with mmap.mmap(descriptor, 400_000) as mapped:
            mapped[399_000] = 1  # the kernel holds this page
            os.write(descriptor, b"x" * 1000)  # the mount holds these bytes
            mount.process.send_signal(signal.SIGTERM)
            assert mount.process.wait(10) == 0
            assert mounted_at(mount.path) is None
        with suppress(OSError):
            os.close(descriptor)
        assert mount.process.stdout is not None
        assert mount.process.stdout.read() == "2 blocks\n"


def stalled(mount: Mounted, setup: str = "") -> subprocess.Popen[bytes]:
    """A process that waits for an answer that does not come."""
    program = f"""
import os, signal
{setup}
try:
    os.setxattr({str(mount.path)!r} + "/file", {STALL!r}, b"")
except OSError as error:
    print(error.errno, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    eventually(lambda: STALLED in mount.log.read_text())
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_waits_can_be_ended(tmp_path: Path, number: signal.Signals):
    with mounted(tmp_path) as mount:
        (mount.path / "file").touch()
        process = stalled(mount, "signal.signal(signal.SIGINT, signal.SIG_DFL)")
        process.send_signal(number)
        assert process.wait(10) == -number
        (event,) = [each for each in mount.events() if each["event"] == "request interrupted"]
        assert event["thread"] == process.pid
        (mount.path / "file").write_bytes(b"still usable")


def test_a_program_with_a_handler_gets_to_run_it(tmp_path: Path):
    with mounted(tmp_path) as mount:
        (mount.path / "file").touch()
        process = stalled(mount, "signal.signal(signal.SIGINT, lambda *_: None)")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=10)
        assert int(output) == errno.EINTR


WRITER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(descriptor, b"data")
print("closing", flush=True)
os.close(descriptor)
"""


def test_a_killed_process_ends_while_it_closes(tmp_path: Path):
    """It is beyond signals then. What it has written is saved later."""
    with mounted(tmp_path) as mount:
        (mount.path / "other").touch()
        os.setxattr(mount.path / "other", FREEZE, b"")
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, mount.path / "file"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"closing\n"
        eventually(lambda: waits(process))  # not for its earlier requests
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        os.removexattr(mount.path / "other", FREEZE)
        assert (mount.path / "file").read_bytes() == b"data"


def test_a_waiting_process_keeps_no_mount_from_ending(tmp_path: Path):
    with mounted(tmp_path) as mount:
        (mount.path / "file").touch()
        process = stalled(mount)
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(20) == 0
        output, _ = process.communicate(timeout=10)
        assert int(output) in (errno.EINTR, errno.ECONNABORTED, errno.ENOTCONN)


class TestOtherMounts:
    """With timeouts so long that nothing but `open` can be what brings news."""

    OPTIONS = "attr_timeout=1000,entry_timeout=1000"

    def rewrite(self, file: Path, contents: bytes) -> None:
        os.setxattr(file, FOREIGN, contents)

    @pytest.mark.parametrize("contents", [b"longer than it was", b"less", b"just as it is!"])
    def test_an_open_shows_the_new_contents(self, tmp_path: Path, contents: bytes):
        with mounted(tmp_path, self.OPTIONS) as mount:
            file = mount.path / "file"
            file.write_bytes(b"as it was first")
            assert file.read_bytes() == b"as it was first"
            self.rewrite(file, contents)
            assert file.read_bytes() == contents
            assert file.stat().st_size == len(contents)

    @pytest.mark.parametrize("contents", [b"longer than it was\n", b"less\n", b""])
    def test_appending_goes_to_the_new_end(self, tmp_path: Path, contents: bytes):
        with mounted(tmp_path, self.OPTIONS) as mount:
            file = mount.path / "file"
            file.write_bytes(b"as it was\n")
            self.rewrite(file, contents)
            with file.open("ab", buffering=0) as appending:
                appending.write(b"one\n")
                appending.write(b"two\n")
            assert file.read_bytes() == contents + b"one\ntwo\n"

    def test_the_cache_survives_our_own_writes_and_opens(self, tmp_path: Path):
        with mounted(tmp_path, self.OPTIONS) as mount:
            file = mount.path / "file"
            file.write_bytes(b"x" * 100_000)
            file.read_bytes()  # settles the times
            with file.open("rb") as reading, mmap.mmap(reading.fileno(), 0, prot=1) as mapped:
                assert mapped[50_000] == ord("x")
                for _ in range(3):
                    file.open("rb").close()
                assert _resident_pages(mapped) >= 100_000 // mmap.PAGESIZE


def _resident_pages(mapped: mmap.mmap) -> int:
    """How many pages of a mapping the kernel has in memory. [mincore(2)]"""
    import ctypes

    address = ctypes.c_void_p.from_buffer_copy(
        ctypes.string_at(id(mapped) + object.__basicsize__, 8)
    ).value
    pages = -(-len(mapped) // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * pages)()
    ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), vector)
    return sum(byte & 1 for byte in vector)


def test_a_listing_has_each_entry_once_with_its_type(tmp_path: Path):
    with mounted(tmp_path, "attr_timeout=0,entry_timeout=0") as mount:
        for number in range(300):
            (mount.path / f"file-{number:04}").touch()
        (mount.path / "directory").mkdir()
        (mount.path / "symlink").symlink_to("directory")
        found = {entry.name: entry for entry in os.scandir(mount.path)}
        assert len(found) == 302
        for name, entry in found.items():
            assert entry.inode() == (mount.path / name).lstat().st_ino
            assert entry.is_dir(follow_symlinks=False) == (name == "directory")
            assert entry.is_symlink() == (name == "symlink")


def test_an_open_file_outlives_its_listing(tmp_path: Path):
    """The kernel takes the size of an open file from nowhere but its attributes."""
    with mounted(tmp_path) as mount, (mount.path / "file").open("w+b", buffering=0) as file:
        file.write(b"contents")
        assert os.listdir(mount.path) == ["file"]
        assert os.fstat(file.fileno()).st_size == 8
        assert os.pread(file.fileno(), 100, 0) == b"contents"


def test_file_capabilities_are_not_stored(tmp_path: Path):
    with mounted(tmp_path) as mount:
        (mount.path / "file").touch()
        none = struct.pack("<5I", 0x02000000, 0, 0, 0, 0)  # [linux/capability.h] version 2
        with pytest.raises(OSError, match="not supported") as caught:
            os.setxattr(mount.path / "file", "security.capability", none)
        assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.raises(OSError) as caught:  # noqa: PT011
            os.getxattr(mount.path / "file", "security.capability")
        assert caught.value.errno == errno.ENODATA


def test_utime_now_is_for_all_who_may_write(public_path: Path):
    with mounted(public_path, "allow_other") as mount:
        file = mount.path / "file"
        file.touch()
        file.chmod(0o666)
        os.utime(file, (1, 1))
        program = "import os, sys; os.setuid(4711); os.utime(sys.argv[1])"
        subprocess.run([sys.executable, "-I", "-c", program, file], check=True)
        assert file.stat().st_mtime > 1_000_000_000


def test_strict_sees_everything_at_once(tmp_path: Path):
    with mounted(tmp_path, "strict") as mount:
        file = mount.path / "file"
        file.write_bytes(b"old")
        with file.open("rb", buffering=0) as reading:
            assert reading.read(10) == b"old"
            os.setxattr(file, FOREIGN, b"newer")
            assert os.pread(reading.fileno(), 10, 0) == b"newer"
            assert os.fstat(reading.fileno()).st_size == 5


def test_read_only(tmp_path: Path):
    with mounted(tmp_path, "ro") as mount:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            (mount.path / "file").touch()
        assert caught.value.errno == errno.EROFS
        assert os.listdir(mount.path) == []


def known(mount: Mounted, most: int) -> int:
    """How many inodes the kernel knows, after it was asked to forget files that are more."""
    os.setxattr(mount.path, FEW, b"%d" % most)
    said = [str(event["event"]) for event in mount.events() if KNOWN in str(event["event"])]
    return int(said[-1].removeprefix(KNOWN))


def wait_until_known(mount: Mounted, count: int, most: int) -> None:
    """Other threads of the mount ask the kernel; it answers when it has dropped the inode."""
    while known(mount, most) > count:
        time.sleep(0.01)


FILES = 300


def test_the_kernel_forgets_files_that_it_has_looked_up_long_ago(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        (mount.path / "d").mkdir()
        for number in range(FILES):
            (mount.path / "d" / f"{number}").write_text(f"{number}")
        assert known(mount, FILES) >= FILES
        with (mount.path / "d" / "7").open("r+") as opened:
            os.link(mount.path / "d" / "8", mount.path / "linked")
            os.rename(mount.path / "d" / "9", mount.path / "moved")
            wait_until_known(mount, 2 + 20 + 2, 20)  # root, d; 20 files; one is open, one linked
            assert os.readlink(f"/proc/self/fd/{opened.fileno()}") == f"{mount.path}/d/7"
            opened.write("!")
        contents = [(mount.path / "d" / f"{number}").read_text() for number in range(9)]
        assert contents == [*map(str, range(7)), "!", "8"]
        assert (mount.path / "moved").read_text() == "9"
        assert (mount.path / "linked").read_text() == "8"
        assert len(os.listdir(mount.path / "d")) == FILES - 1


def test_a_directory_in_which_a_process_works_is_not_forgotten(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        (mount.path / "file").touch()
        os.rename(mount.path / "file", mount.path / "other")
        (mount.path / "file").mkdir()
        where = subprocess.Popen(
            [sys.executable, "-c", "import os; input(); print(os.getcwd())"],
            cwd=mount.path / "file",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_until_known(mount, 2, 0)
        assert where.communicate("\n", timeout=20)[0] == f"{mount.path / 'file'}\n"
