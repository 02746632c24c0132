"""Workers: processes that use a mount, each recording what it sees.

- `Registers`: blocks of shared files, overwritten and read whole, with values that are never
  written twice.
- `Names`: directories of few names that all mounts contend for. A name stands for a symbolic link
  whose target nobody else uses, so that one system call creates a name with an identity, and one
  tells which it is; or for a directory.
- `tests.end_to_end.durability.Writer` works beside them, in a directory of its own: creates,
  appends, synced or not, replaces, renames, unlinks; it knows what was acknowledged.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.history import Recorder
from tests.end_to_end import linux

REGISTER_FILES = 3
BLOCKS_PER_FILE = 2
BLOCK_BYTES = 128 * 1024
STAMP_BYTES = 64  # a value is written all over its block

NAMES = ("a", "b", "c")
OPERATIONS_PER_CELL = 15  # of each worker; then it goes on to the next directory
CELLS_IN_USE_S = 4.0


class Worker:
    """A process that does steps until it is told to stop, or until its mount is dead."""

    def __init__(
        self,
        steps: type[Registers] | type[Names],
        root: Path,
        journal: Path,
        *,
        name: str,
        strict: bool,
        seed: int,
    ) -> None:
        self.journal = journal
        self.name = name
        self._stop = journal.with_suffix(".stop")
        self._process = multiprocessing.get_context("fork").Process(
            target=_work, args=(steps, root, journal, self._stop, name, strict, seed), daemon=True
        )
        self._process.start()

    def stop(self) -> None:
        """End it after its present operation."""
        self._stop.touch()

    def join(self, patience_s: float) -> bool:
        """Wait for its end; whether it has come."""
        self._process.join(patience_s)
        return not self._process.is_alive()


def _work(
    steps: type[Registers] | type[Names],
    root: Path,
    journal: Path,
    stop: Path,
    name: str,
    strict: bool,
    seed: int,
) -> None:
    os.umask(0o022)
    recorder = Recorder(journal, name, strict=strict)
    doing = steps(root, recorder, name, strict, random.Random(seed))
    while not stop.exists():
        try:
            doing.step()
        except OSError:
            if not _answers(root):
                return  # its mount was killed
            # Whatever else it is, it is in the journal, and will be judged.


def _answers(path: Path) -> bool:
    try:
        os.statvfs(path)
    except OSError:
        return False
    return True


class Registers:
    """Overwrites and reads of single blocks in files that everybody shares."""

    def __init__(
        self, root: Path, recorder: Recorder, name: str, strict: bool, choice: random.Random
    ) -> None:
        self._root = root / "registers"
        self._record = recorder.record
        self._name = name
        self._choice = choice
        self._written = 0

    @staticmethod
    def prepare(root: Path) -> None:
        """The files, of full length; every block is one zero value."""
        (root / "registers").mkdir()
        for number in range(REGISTER_FILES):
            file = root / "registers" / f"file-{number}"
            file.write_bytes(bytes(BLOCK_BYTES * BLOCKS_PER_FILE))

    def step(self) -> None:
        file, block = (
            self._choice.randrange(REGISTER_FILES),
            self._choice.randrange(BLOCKS_PER_FILE),
        )
        path, offset = self._root / f"file-{file}", block * BLOCK_BYTES
        subject = f"file-{file}/{block}"
        act = self._choice.random()
        if act < 0.4:
            self._written += 1
            value = f"{self._name}:{self._written}"
            synced = self._choice.random() < 0.5
            self._record(subject, "write", (value,), lambda: write(path, offset, value, synced))
        elif act < 0.95:
            self._record(subject, "read", (), lambda: read(path, offset))
        else:
            self._record(subject, "stat", (), lambda: path.stat().st_size)


def write(path: Path, offset: int, value: str, synced: bool) -> None:
    """Overwrite a whole block with `value`; it is durable afterwards."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        stamp = value.encode().ljust(STAMP_BYTES, b" ")
        os.pwrite(descriptor, stamp * (BLOCK_BYTES // STAMP_BYTES), offset)
        if synced:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, offset: int) -> str | None:
    """The value of a whole block; None if nothing was ever written. Torn ones name themselves."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(descriptor, BLOCK_BYTES, offset)
    finally:
        os.close(descriptor)
    stamps = {data[at : at + STAMP_BYTES] for at in range(0, len(data), STAMP_BYTES)}
    if len(data) != BLOCK_BYTES or len(stamps) != 1:
        return f"torn: {len(data)} bytes of {sorted(stamps)[:3]}"
    return None if stamps == {bytes(STAMP_BYTES)} else stamps.pop().decode().strip()


class Names:
    """Operations on names that everybody contends for, a few dozen in each directory."""

    def __init__(
        self, root: Path, recorder: Recorder, name: str, strict: bool, choice: random.Random
    ) -> None:
        self._root = root / "names"
        self._record = recorder.record
        self._name = name
        self._strict = strict
        self._choice = choice
        self._made = 0
        self._cell = ""
        self._done = OPERATIONS_PER_CELL

    @staticmethod
    def prepare(root: Path) -> None:
        """The directory of cells."""
        (root / "names").mkdir()

    def step(self) -> None:
        # By the clock, so that the workers meet; and never more than can be judged.
        cell = f"cell-{int(time.monotonic() / CELLS_IN_USE_S)}"
        if cell != self._cell:
            self._cell, self._done = cell, 0
            with contextlib.suppress(FileExistsError):
                (self._root / cell).mkdir()
        if self._done >= OPERATIONS_PER_CELL:
            time.sleep(0.05)
            return
        self._done += 1
        acts: list[tuple[Callable[[], None], int]] = [
            (self._create, 4), (self._link, 2), (self._unlink, 3), (self._mkdir, 2),
            (self._rmdir, 2), (self._identify, 6), (self._list, 3),
        ]  # fmt: skip
        if self._strict:
            # A kernel renames by what it has cached of both names, and two mounts with caches may
            # both be told that there was nothing to do: that can be judged where nothing is cached.
            acts += [(self._rename, 4), (self._rename_new, 2), (self._exchange, 2)]
        (act,) = self._choice.choices([act for act, _ in acts], weights=[w for _, w in acts])
        act()

    def _some(self) -> str:
        return self._choice.choice(NAMES)

    def _two(self) -> tuple[str, str]:
        first, second = self._choice.sample(NAMES, 2)
        return first, second

    def _path(self, name: str) -> Path:
        return self._root / self._cell / name

    def _on(self, operation: str, arguments: tuple[str, ...], act: Callable[[], Any]) -> None:
        self._record(self._cell, operation, arguments, act)

    def _identity(self) -> str:
        self._made += 1
        return f"{self._name}:{self._made}"

    def _create(self) -> None:
        name, identity = self._some(), self._identity()
        self._on("create", (name, identity), lambda: os.symlink(identity, self._path(name)))

    def _link(self) -> None:
        """A second name for a link that nobody else knows: creates the name with its identity."""
        name, identity = self._some(), self._identity()
        private = self._root / f"private-{identity}"
        self._record("", "symlink", (), lambda: os.symlink(identity, private))
        self._on(
            "create",
            (name, identity),
            lambda: os.link(private, self._path(name), follow_symlinks=False),
        )

    def _unlink(self) -> None:
        name = self._some()
        self._on("unlink", (name,), lambda: os.unlink(self._path(name)))

    def _mkdir(self) -> None:
        name = self._some()
        self._on("mkdir", (name,), lambda: os.mkdir(self._path(name)))

    def _rmdir(self) -> None:
        name = self._some()
        self._on("rmdir", (name,), lambda: os.rmdir(self._path(name)))

    def _identify(self) -> None:
        name = self._some()
        self._on("identify", (name,), lambda: os.readlink(self._path(name)))

    def _list(self) -> None:
        self._on("list", (), lambda: sorted(os.listdir(self._root / self._cell)))

    def _rename(self) -> None:
        first, second = self._two()
        self._on(
            "rename", (first, second), lambda: os.rename(self._path(first), self._path(second))
        )

    def _rename_new(self) -> None:
        self._flagged("rename-new", linux.RENAME_NOREPLACE)

    def _exchange(self) -> None:
        self._flagged("exchange", linux.RENAME_EXCHANGE)

    def _flagged(self, operation: str, flags: int) -> None:
        first, second = self._two()
        self._on(
            operation,
            (first, second),
            lambda: linux.rename(self._path(first), self._path(second), flags),
        )
