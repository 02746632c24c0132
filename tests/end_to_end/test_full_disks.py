"""Disks that are really full: writers are told, readers go on, and room that comes back is used.

Each node has a disk of its own, which is small. One cluster for all of it, and no process of it is
started again.
"""

import errno
import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
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
DISK_BYTES = 10 * MIB
LARGER_BYTES = 56 * MIB
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
    written = {f"directory/{number}": payload(FILE_BYTES, number) for number in range(8)}
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


def test_full_disks_refuse_writers_serve_readers_and_are_used_when_there_is_room(
    small: SmallDisks, guarded: None, playground: Path
) -> None:
    files = small.mountpoint
    pids = [node.pid for node in small.nodes()]
    # Where an update was refused by some nodes only, readers may be refused until there is room.
    kept = {f"kept/{number}": payload(FILE_BYTES, 500 + number) for number in range(4)}
    acknowledged: dict[str, bytes] = dict(kept)
    (files / "kept").mkdir()
    for name, contents in kept.items():
        store(files / name, contents)
    busy = files / "busy"
    (busy / "many").mkdir(parents=True)
    (busy / "here").mkdir()
    numbers = itertools.count()

    def fill(size: int) -> None:
        """Write files of this size until two of them are refused."""
        failed = 0
        while failed < 2:
            number = next(numbers)
            name, contents = f"busy/many/{number}", payload(size, number)
            if refused(partial(store, files / name, contents)):
                failed += 1
            else:
                acknowledged[name] = contents
            assert number < 400, "the disks do not become full"

    def rename() -> None:
        here, there = busy / "here", busy / "there"
        os.rename(*((here, there) if here.exists() else (there, here)))

    fill(FILE_BYTES)
    assert len(acknowledged) > 4 + len(kept)
    for number in range(NODES):
        small.stuff(number)
    for size in (256 * KIB, 16 * KIB):  # what is left in the files that the nodes have already
        fill(size)

    # Nothing is written any more, neither contents nor names; whoever tries is told at once.
    def make() -> None:
        (busy / f"made-{next(numbers)}").mkdir()

    attempts: list[Callable[[], Any]] = [
        partial(store, busy / "many" / "0", b"overwritten"),
        make,
        rename,
        lambda: os.chmod(busy / "many" / "2", 0o600 + next(numbers) % 64),
    ]
    for attempt in attempts:
        eventually(lambda: refused(attempt) == errno.ENOSPC, within_s=20, what="it is refused")  # noqa: B023
    assert sum(bool(reasons) for reasons in small.reasons()) > 1  # more than may fail

    # Something that nodes log, on these disks.
    bftfs("cluster", "add-client", "--data", small.data, "new", "--uid", "1000")

    # What was acknowledged is read: by a mount that has seen none of it.
    with small.mount(playground / "reader", "strict") as reader:
        # One attempt may find an update half done and be refused its repair; not all of them.
        for name, contents in kept.items():
            read = partial(assert_contents, reader / name, contents)
            eventually(partial(taken, read), within_s=20, what=f"{name} is read")

        # Room comes back: others remove what is theirs, and the disks grow.
        for number in range(NODES):
            small.ballast(number).unlink()
        small.resize(LARGER_BYTES)
        for attempt in attempts:
            eventually(partial(taken, attempt), within_s=20, what="it is taken again")
        acknowledged["busy/many/0"] = b"overwritten"
        for number in range(6):
            name, contents = f"busy/many/more-{number}", payload(FILE_BYTES, 900 + number)
            store(files / name, contents)
            acknowledged[name] = contents
        for name, contents in acknowledged.items():
            assert_contents(reader / name, contents)
    assert not any(small.reasons())
    assert [node.pid for node in small.nodes()] == pids
