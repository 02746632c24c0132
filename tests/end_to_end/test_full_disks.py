"""Disks that are really full: writers are told, readers go on, and room that comes back is used.

Each node has a disk of its own, which is small. One cluster for all of it, and no process of it is
started again.
"""

import errno
import http.client
import itertools
import json
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bftfs.data_directory import DataDirectory
from bftfs.limits import KIB, MIB
from tests.end_to_end import linux
from tests.end_to_end.cluster import Cluster, bftfs
from tests.end_to_end.expectations import assert_contents, eventually, payload
from tests.end_to_end.watchdog import Watchdog, mounts_below

NODES = 6
DISK_BYTES = 24 * MIB
LARGER_BYTES = 64 * MIB
FILE_BYTES = MIB
PROMPTLY_S = 10.0  # far above what a refusal takes, and far below what hangs
FULL = frozenset((errno.ENOSPC, errno.EDQUOT))


class SmallDisks(Cluster):
    """A cluster whose nodes have small disks, with nothing but them to set a limit."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.directory = DataDirectory(self.data)

    def make(self) -> None:
        """Describe it, and give each node its disk."""
        addresses = [f"unix:{self.directory.node(each).socket}" for each in range(NODES)]
        words = [word for address in addresses for word in ("--node", address)]
        bftfs("cluster", "init", "--data", self.data, *words)
        for number in range(NODES):
            node = self.directory.node(number)
            key = node.key.read_bytes()
            options = f"size={DISK_BYTES},mode=0700"
            mount = ["mount", "-t", "tmpfs", "-o", options, "disk", str(node.path)]
            subprocess.run(mount, check=True, timeout=30)
            node.key.write_bytes(key)
            node.key.chmod(0o600)
            # More than the disk: then it is the disk that is full, and not the history pool.
            node.configuration.write_text(f"pool_bytes = {1 << 40}\n")

    def resize(self, size: int) -> None:
        """Make all disks larger."""
        for number in range(NODES):
            words = ["mount", "-o", f"remount,size={size}", str(self.directory.node(number).path)]
            subprocess.run(words, check=True, timeout=30)

    def remove(self) -> None:
        """End it, and take the disks away."""
        self.down()
        for number in range(NODES):
            path = self.directory.node(number).path
            if path in mounts_below(path):
                linux.unmount(path, linux.MNT_DETACH)

    def ballast(self, number: int) -> Path:
        """A file of somebody else on a node's disk."""
        return self.directory.node(number).path / "ballast"

    def stuff(self, number: int) -> None:
        """Leave nothing on a node's disk."""
        with self.ballast(number).open("ab", buffering=0) as file:
            for piece in (bytes(256 * 1024), bytes(512)):
                try:
                    while file.write(piece) == len(piece):
                        pass
                except OSError as full:
                    if full.errno != errno.ENOSPC:
                        raise
        disk = os.statvfs(self.directory.node(number).path)
        assert disk.f_bavail == 0

    def is_full(self, number: int) -> bool:
        """Whether a node says that its disk is full, at its metrics socket."""
        connection = http.client.HTTPConnection("node")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.directory.node(number).metrics))
        connection.request("GET", "/health")
        said = connection.getresponse().read().decode()
        connection.close()
        return "the disk is full" in said

    def reasons(self) -> list[list[str]]:
        """What keeps each node from being healthy, by its own word."""
        # 1: nodes that cannot write are not counted upon.
        status = json.loads(bftfs("status", "--data", self.data, "--json", allowed=(0, 1)))
        return [
            [] if node["healthy"] else [reason for reason in node["reasons"] if "full" in reason]
            for node in status["nodes"]
        ]


@pytest.fixture(scope="module")
def small(mounting: None, playground: Path, watchdog: Watchdog) -> Iterator[SmallDisks]:
    cluster = SmallDisks(playground / "small")
    try:
        cluster.make()
        cluster.up()
        yield cluster
    finally:
        cluster.remove()


def store(path: Path, contents: bytes) -> None:
    """Write a file, and have it acknowledged."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        view = memoryview(contents)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refused(action: Callable[[], Any]) -> int | None:
    """The error for want of room, which came promptly; None if there was none."""
    began = time.monotonic()
    try:
        action()
    except OSError as error:
        if error.errno not in FULL:
            raise
        code = error.errno
    else:
        return None
    assert time.monotonic() - began < PROMPTLY_S
    return code


def taken(action: Callable[[], Any]) -> bool:
    return refused(action) is None


def test_one_full_disk_is_nobodys_trouble(small: SmallDisks, guarded: None) -> None:
    files = small.mountpoint
    victim = 2
    small.stuff(victim)
    (files / "directory").mkdir()
    # More than fits into the files that the node has already.
    written = {f"directory/{number}": payload(FILE_BYTES, number) for number in range(24)}
    for name, contents in written.items():
        store(files / name, contents)
    os.rename(files / "directory" / "0", files / "directory" / "moved")
    written["directory/moved"] = written.pop("directory/0")
    full = [number for number, reasons in enumerate(small.reasons()) if reasons]
    assert full == [victim]
    for name, contents in written.items():
        assert_contents(files / name, contents)
    small.ballast(victim).unlink()

    def healthy() -> bool:
        store(files / "again", b"again")
        return not any(small.reasons())

    eventually(healthy, within_s=15, what="the node writes again")


def everything(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All names below `top` and what they are, listed as `ls -R` does."""
    with os.scandir(top) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            yield Path(entry.path), status
            if stat.S_ISDIR(status.st_mode):
                yield from everything(Path(entry.path))


def test_full_disks_refuse_writers_and_serve_readers(
    small: SmallDisks, guarded: None, playground: Path
) -> None:
    files = small.mountpoint
    pids = [node.pid for node in small.nodes()]
    busy = files / "busy"
    (busy / "many").mkdir(parents=True)
    numbers = itertools.count()
    acknowledged: dict[str, bytes] = {}

    def write() -> None:
        """Have all nodes that have room store something, whether enough of them do or not."""
        number = next(numbers)
        with (files / "filler").open("r+b", buffering=0) as file:
            file.write(payload(FILE_BYTES, number))
            os.fsync(file.fileno())
        assert number < 400, "the disks do not become full"

    class Attempts:
        """What changes contents, names and attributes, each of objects of its own."""

        def __init__(self, name: str) -> None:
            self.top = busy / name
            self.top.mkdir()
            for part in ("here", "made", "files"):
                (self.top / part).mkdir()
            for part in ("changed", "overwritten", "attributes"):
                store(self.top / "files" / part, payload(KIB, 1))
            acknowledged[f"busy/{name}/files/attributes"] = payload(KIB, 1)

        def overwrite(self) -> None:
            with (self.top / "files" / "overwritten").open("r+b", buffering=0) as file:
                file.write(payload(KIB, 2))
                os.fsync(file.fileno())

        def append(self) -> None:
            with (self.top / "files" / "changed").open("ab", buffering=0) as file:
                file.write(payload(KIB, 2))
                os.fsync(file.fileno())

        def make(self) -> None:
            (self.top / "made" / f"{next(numbers)}").mkdir()

        def create(self) -> None:
            store(self.top / "made" / f"{next(numbers)}", b"")

        def rename(self) -> None:
            here, there = self.top / "here", self.top / "there"
            os.rename(*((here, there) if here.exists() else (there, here)))

        def change(self) -> None:
            os.chmod(self.top / "files" / "attributes", 0o600 + next(numbers) % 64)

        @property
        def all(self) -> tuple[Callable[[], None], ...]:
            return self.overwrite, self.append, self.make, self.create, self.rename, self.change

    attempts = [Attempts(f"half-{number}") for number in range(NODES)]
    store(files / "filler", payload(FILE_BYTES, 0))
    (files / "kept").mkdir()
    for number in range(4):
        name, contents = f"kept/{number}", payload(FILE_BYTES, 500 + number)
        store(files / name, contents)
        acknowledged[name] = contents

    # The disks become full one after the other: of the updates that are refused then, five of six
    # nodes have taken some, and one of them others.
    for number in range(NODES):
        small.stuff(number)
        while not small.is_full(number):  # what is left in the node's own files
            refused(write)
        refusals = [refused(attempt) for attempt in attempts[number].all]
        assert number == 0 or errno.ENOSPC in refusals

    # Nothing is added any more, neither contents nor names; whoever tries is told at once.
    for each in attempts[0].all:
        eventually(lambda: refused(each) == errno.ENOSPC, within_s=20, what="it is refused")  # noqa: B023
    assert sum(bool(reasons) for reasons in small.reasons()) > 1  # more than may fail

    # Something that nodes log, on these disks. They use the description, and tell that it is not
    # stored.
    new_client = ("cluster", "add-client", "--data", small.data, "new", "--uid", "1000")
    bftfs(*new_client, "--gid", "1000", allowed=(0, 1))

    # Everything is listed and read: by a mount that has seen none of it, without a second attempt.
    with small.mount(playground / "reader", "strict") as reader:
        began = time.monotonic()
        seen = 0
        for path, status in everything(reader):
            seen += 1
            if stat.S_ISREG(status.st_mode):
                name = str(path.relative_to(reader))
                if name in acknowledged:
                    assert_contents(path, acknowledged.pop(name))
                else:
                    path.read_bytes()
        assert seen > 4 * NODES
        assert time.monotonic() - began < 6 * PROMPTLY_S
        assert not acknowledged

        # Whoever wants room removes something, wherever it is, and however it got there.
        for number in range(NODES):
            top = reader / "busy" / f"half-{number}"
            os.truncate(top / "files" / "overwritten", 0)
            assert (top / "files" / "overwritten").stat().st_size == 0
            shutil.rmtree(top)
        subprocess.run(["rm", str(reader / "kept" / "0")], check=True, timeout=60)
        left = {"many"}
        assert set(os.listdir(reader / "busy")) == left
        eventually(lambda: set(os.listdir(busy)) == left, within_s=10, what="both see the same")

        # Room comes back: others remove what is theirs, and the disks grow.
        for number in range(NODES):
            small.ballast(number).unlink()
        small.resize(LARGER_BYTES)
        eventually(
            lambda: taken(lambda: Attempts(f"again-{next(numbers)}")),
            within_s=20,
            what="updates are taken again",
        )
        written = {}
        for number in range(6):
            name, contents = f"busy/many/more-{number}", payload(FILE_BYTES, 900 + number)
            store(files / name, contents)
            written[name] = contents
        for name, contents in written.items():
            assert_contents(reader / name, contents)
    assert not any(small.reasons())
    assert [node.pid for node in small.nodes()] == pids
