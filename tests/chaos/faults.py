"""What can be done to a machine, and how it is undone: one class per kind of fault.

A node's fault of the benign class leaves it a correct node that is late: it crashes, stops, cannot
be reached, is slow, has a wrong clock or a full disk. One of the Byzantine class takes from the
node what it had promised to keep, or makes it lie.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import ClassVar

from tests.chaos.clock import STEPS_BEYOND_BOUND_US, STEPS_WITHIN_BOUND_US
from tests.chaos.machines import Machines, MountMachine, NodeMachine
from tests.chaos.wire import CUT, FREE, Way

_PAGE_BYTES = 4096
_TO_BE_FORGOTTEN_S = 2.0
_LIES = ("wrong-answers", "sync-liar", "history-forger", "fragment-corrupter", "replayer", "slow")


class Fault(ABC):
    """One fault of one node. `inject`, wait, `heal`."""

    byzantine: ClassVar[bool] = False

    def __init__(self, machines: Machines, node: NodeMachine, choice: Random) -> None:
        self.machines = machines
        self.node = node
        self.choice = choice

    @abstractmethod
    def inject(self) -> str:
        """Do it; what exactly was done."""

    @abstractmethod
    def heal(self) -> None:
        """Undo it, or do what an administrator does about it."""


class Kill(Fault):
    """kill -9, and a restart later on."""

    def inject(self) -> str:
        self.node.kill()
        return "killed"

    def heal(self) -> None:
        self.node.start()


class KillOften(Fault):
    """kill -9 and an immediate restart: it dies as it recovers, and comes back with work to do."""

    def inject(self) -> str:
        self.node.kill()
        self.node.start()
        return "killed and restarted"

    def heal(self) -> None:
        self.node.kill()
        self.node.start()


class Stop(Fault):
    """SIGSTOP: the machine accepts connections and never answers; then it goes on where it was."""

    def inject(self) -> str:
        self.node.signal(signal.SIGSTOP)
        return "stopped"

    def heal(self) -> None:
        self.node.signal(signal.SIGCONT)


class _Network(Fault):
    def _set(self, *, inward: Way, outward: Way) -> None:
        for other in self.machines.network.others(self.node.number):
            self.machines.network.change(other, self.node.number, inward)
            self.machines.network.change(self.node.number, other, outward)

    def heal(self) -> None:
        self._set(inward=FREE, outward=FREE)


class Cut(_Network):
    """No packet comes or goes."""

    def inject(self) -> str:
        self._set(inward=CUT, outward=CUT)
        return "cut off"


class CutInward(_Network):
    """No packet comes in: it is asked, and does not know."""

    def inject(self) -> str:
        self._set(inward=CUT, outward=FREE)
        return "hears nothing"


class CutOutward(_Network):
    """No packet goes out: it does what it is asked, and nobody knows."""

    def inject(self) -> str:
        self._set(inward=FREE, outward=CUT)
        return "is not heard"


class CutFromSome(_Network):
    """Some machines reach it and others do not."""

    def inject(self) -> str:
        others = list(self.machines.network.others(self.node.number))
        lost = self.choice.sample(others, self.choice.randint(1, len(others) - 1))
        for other in lost:
            self.machines.network.change(other, self.node.number, CUT)
            self.machines.network.change(self.node.number, other, CUT)
        return f"cut off from machines {sorted(lost)}"


class Slow(_Network):
    """Delay, or little bandwidth, both ways."""

    def inject(self) -> str:
        way = self.choice.choice(
            (Way(delay_ms=20), Way(delay_ms=200, jitter_ms=100), Way(bytes_per_s=200_000.0))
        )
        self._set(inward=way, outward=way)
        return f"slowed: {way}"


class Lossy(_Network):
    """Packets are lost, doubled and overtaken."""

    def inject(self) -> str:
        way = Way(
            loss=self.choice.choice((0.01, 0.1, 0.3)), delay_ms=1, jitter_ms=20, duplicates=0.05
        )
        self._set(inward=way, outward=way)
        return f"on a bad network: {way}"


class Clock(Fault):
    """The wall clock is set, by no more than the bound that all correct clocks keep."""

    steps: ClassVar[tuple[int, ...]] = STEPS_WITHIN_BOUND_US

    def inject(self) -> str:
        step = self.choice.choice(self.steps)
        self.node.clock.step(step)
        return f"its clock set {step // 1_000_000} s"

    def heal(self) -> None:
        self.node.clock.step(0)


class WrongClock(Clock):
    """The wall clock is set beyond the bound."""

    steps = STEPS_BEYOND_BOUND_US


class FullDisk(Fault):
    """Somebody else's file takes what was left of the disk, to the last byte."""

    def inject(self) -> str:
        file = os.open(self._filler, os.O_WRONLY | os.O_CREAT)
        size = 0
        try:
            for piece in (1 << 26, 1 << 20, _PAGE_BYTES):
                try:
                    while True:
                        os.posix_fallocate(file, size, piece)
                        size += piece
                except OSError:
                    pass
        finally:
            os.close(file)
        if self.choice.random() < 0.5:
            self.node.kill()
            self.node.start()
            return f"disk filled with {size} bytes, killed, restarted"
        return f"disk filled with {size} bytes"

    def heal(self) -> None:
        self._filler.unlink(missing_ok=True)

    @property
    def _filler(self) -> Path:
        return self.node.directory.path / "somebody's file"


class _Damage(Fault):
    """What is on the disk changes under the node, while it runs or while it does not."""

    byzantine = True
    running: ClassVar[bool] = False

    def inject(self) -> str:
        if not self.running:
            self.node.kill()
        done = self.damage(self.node.directory.store)
        if not self.running:
            self.node.start()
        return done

    @abstractmethod
    def damage(self, store: Path) -> str:
        """Do it to the files; what was done."""

    def heal(self) -> None:
        """As docs/operations.md has it: a store that the node refuses is moved away.

        One that it does not refuse stays in use: the node then is the Byzantine one.
        """
        if self.running and self.choice.random() < 0.5:
            self.node.kill()
            self.node.start()
        if not self.node.settle():
            self.node.kill()
            shutil.rmtree(self.node.directory.store, ignore_errors=True)
            self.node.start()
            self.node.settle()

    def _how_many(self, pages: list[int]) -> int:
        """A single one, some, or so many that the node cannot but meet them."""
        return min(len(pages), self.choice.choice((1, 16, len(pages) // 4, len(pages))))

    def _file(self, store: Path) -> Path:
        segments = sorted((store / "segments").iterdir()) or [store / "data.mdb"]
        files = (store / "data.mdb", store / "journal", self.choice.choice(segments))
        return self.choice.choices(files, weights=(3, 1, 3))[0]


def _data_pages(file: Path) -> list[int]:
    """Offsets of the pages that hold data, holes left out."""
    pages: list[int] = []
    descriptor = os.open(file, os.O_RDONLY)
    try:
        end = os.fstat(descriptor).st_size
        at = 0
        while at < end:
            try:
                start = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
            pages += range(start, min(at, end), _PAGE_BYTES)
    finally:
        os.close(descriptor)
    return pages


def _overwrite(file: Path, pages: list[int], change: Callable[[bytes], bytes]) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        for page in pages:
            os.pwrite(descriptor, change(os.pread(descriptor, _PAGE_BYTES, page)), page)
    finally:
        os.close(descriptor)


class FlippedBytes(_Damage):
    """Single bytes change, here and there."""

    def damage(self, store: Path) -> str:
        file = self._file(store)
        pages = _data_pages(file)
        chosen = self.choice.sample(pages, self._how_many(pages))

        def flip(page: bytes) -> bytes:
            at = self.choice.randrange(max(1, len(page)))
            return page[:at] + bytes([page[at] ^ self.choice.randint(1, 255)]) + page[at + 1 :]

        _overwrite(file, chosen, flip)
        return f"{len(chosen)} bytes flipped in {file.name}"


class FlippedBytesRunning(FlippedBytes):
    running = True


class ZeroedPages(_Damage):
    """Whole pages are zero, as after a lost write."""

    def damage(self, store: Path) -> str:
        file = self._file(store)
        pages = _data_pages(file)
        chosen = self.choice.sample(pages, self._how_many(pages))
        _overwrite(file, chosen, lambda page: bytes(len(page)))
        return f"{len(chosen)} pages zeroed in {file.name}"


class ZeroedPagesRunning(ZeroedPages):
    running = True


class Truncated(_Damage):
    """A file ends too early."""

    def damage(self, store: Path) -> str:
        file = self._file(store)
        pages = _data_pages(file)
        size = self.choice.choice((0, self.choice.choice(pages or [0]), _PAGE_BYTES // 2))
        os.truncate(file, size)
        return f"{file.name} cut to {size} bytes"


class TruncatedRunning(Truncated):
    running = True


class Deleted(_Damage):
    """The whole store is gone."""

    def damage(self, store: Path) -> str:
        shutil.rmtree(store)
        return "store deleted"


class DeletedRunning(Deleted):
    running = True

    def heal(self) -> None:
        self.node.kill()
        self.node.start()
        self.node.settle()


class RolledBack(_Damage):
    """A backup of the store is put back: the node has forgotten what came after it."""

    def inject(self) -> str:
        self.node.kill()
        shutil.copytree(self.node.directory.store, self._backup)
        self.node.start()
        time.sleep(_TO_BE_FORGOTTEN_S)
        return super().inject()

    def damage(self, store: Path) -> str:
        shutil.rmtree(store)
        self._backup.rename(store)
        return f"set {_TO_BE_FORGOTTEN_S:g} s back"

    @property
    def _backup(self) -> Path:
        return self.node.directory.path / "backup"


class Lies(Fault):
    """The node's program is replaced by one that lies."""

    byzantine = True

    def inject(self) -> str:
        self.node.lies = (self.choice.choice(_LIES),)
        self.node.kill()
        self.node.start()
        return f"lies: {self.node.lies[0]}"

    def heal(self) -> None:
        self.node.lies = ()
        self.node.kill()
        self.node.start()


KINDS: dict[str, type[Fault]] = {
    "kill": Kill,
    "kill-often": KillOften,
    "stop": Stop,
    "cut": Cut,
    "cut-inward": CutInward,
    "cut-outward": CutOutward,
    "cut-from-some": CutFromSome,
    "slow": Slow,
    "lossy": Lossy,
    "clock": Clock,
    "wrong-clock": WrongClock,
    "full-disk": FullDisk,
    "flipped-bytes": FlippedBytes,
    "flipped-bytes-running": FlippedBytesRunning,
    "zeroed-pages": ZeroedPages,
    "zeroed-pages-running": ZeroedPagesRunning,
    "truncated": Truncated,
    "truncated-running": TruncatedRunning,
    "deleted": Deleted,
    "deleted-running": DeletedRunning,
    "rolled-back": RolledBack,
    "lies": Lies,
}


class MountFault(ABC):
    """One fault of one mount: nobody masks it, and nobody else notices it."""

    def __init__(self, machines: Machines, mount: MountMachine, choice: Random) -> None:
        self.machines = machines
        self.mount = mount
        self.choice = choice

    @abstractmethod
    def inject(self) -> str:
        """Do it; what exactly was done."""

    @abstractmethod
    def heal(self) -> None:
        """Undo it."""


class StoppedMount(MountFault):
    """SIGSTOP in the midst of whatever it is doing; then it goes on."""

    def inject(self) -> str:
        self.mount.signal(signal.SIGSTOP)
        return "stopped"

    def heal(self) -> None:
        self.mount.signal(signal.SIGCONT)


class CutMount(MountFault):
    """It reaches no node any more."""

    def inject(self) -> str:
        self._set(CUT)
        return "cut off"

    def heal(self) -> None:
        self._set(FREE)

    def _set(self, way: Way) -> None:
        for other in self.machines.network.others(self.mount.machine):
            self.machines.network.change(other, self.mount.machine, way)
            self.machines.network.change(self.mount.machine, other, way)


class MountClock(MountFault):
    """The client's wall clock is set, by no more than the bound that all correct clocks keep."""

    def inject(self) -> str:
        step = self.choice.choice(STEPS_WITHIN_BOUND_US)
        self.mount.clock.step(step)
        return f"its clock set {step // 1_000_000} s"

    def heal(self) -> None:
        self.mount.clock.step(0)


MOUNT_KINDS: dict[str, type[MountFault]] = {
    "stopped-mount": StoppedMount,
    "cut-mount": CutMount,
    "mount-clock": MountClock,
}
KILLED_MOUNT = "killed-mount"  # and its programs with it: the run replaces both
OF_MOUNTS = (*MOUNT_KINDS, KILLED_MOUNT)
EVERYTHING = (*KINDS, *OF_MOUNTS)
BYZANTINE = tuple(name for name, kind in KINDS.items() if kind.byzantine)
BENIGN = tuple(name for name in EVERYTHING if name not in BYZANTINE)
