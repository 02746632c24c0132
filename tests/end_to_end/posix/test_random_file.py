"""Random operations on a file, against a model in memory; after Apple's fsx.

A failure names its seed and every operation up to it; the seed alone repeats it.
"""

import mmap
import os
import random
from pathlib import Path

import pytest

from tests.end_to_end.expectations import BLOCK, first_difference

pytestmark = pytest.mark.isolated

OPERATIONS = 250
LARGEST = 4 * BLOCK


class Exerciser:
    """A file, what it must contain, and what was done to it."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        self._choice = random.Random(seed)
        self._model = bytearray()
        self._log: list[str] = []
        self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)

    def run(self, operations: int) -> None:
        acts = {
            self._write: 30,
            self._append: 8,
            self._read: 30,
            self._truncate: 14,
            self._map_write: 12,
            self._map_read: 8,
            self._reopen: 6,
            self._sync: 6,
            self._evict: 6,
            self._status: 6,
        }
        try:
            for act in self._choice.choices(list(acts), weights=list(acts.values()), k=operations):
                act()
            self._reopen()
            self._compare(0, LARGEST)
        finally:
            os.close(self._descriptor)

    def _offset(self) -> int:
        """Somewhere; often near a boundary of pages or blocks."""
        if self._choice.random() < 0.4:
            boundary = self._choice.choice([4096, BLOCK])
            near = self._choice.randrange(0, LARGEST, boundary) + self._choice.randint(-3, 3)
            return min(max(near, 0), LARGEST - 1)
        return self._choice.randrange(LARGEST)

    def _length(self, offset: int) -> int:
        longest = self._choice.choice([16, 5000, BLOCK + 10])
        return min(self._choice.randint(1, longest), LARGEST - offset)

    def _note(self, what: str) -> None:
        self._log.append(f"{len(self._log)}: {what}")

    def _put(self, offset: int, data: bytes) -> None:
        self._model.extend(bytes(max(0, offset + len(data) - len(self._model))))
        self._model[offset : offset + len(data)] = data

    def _write(self) -> None:
        offset = self._offset()
        data = self._choice.randbytes(self._length(offset))
        self._note(f"write {len(data)} at {offset}")
        assert os.pwrite(self._descriptor, data, offset) == len(data)
        self._put(offset, data)

    def _append(self) -> None:
        offset = len(self._model)
        if offset < LARGEST:
            data = self._choice.randbytes(self._length(offset))
            self._note(f"append {len(data)} at {offset}")
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            assert os.write(descriptor, data) == len(data)
            os.close(descriptor)
            self._put(offset, data)

    def _read(self) -> None:
        offset = self._offset()
        length = self._length(offset)
        self._note(f"read {length} at {offset}")
        self._compare(offset, length)

    def _truncate(self) -> None:
        size = self._offset()
        self._note(f"truncate from {len(self._model)} to {size}")
        os.ftruncate(self._descriptor, size)
        del self._model[size:]
        self._model.extend(bytes(size - len(self._model)))

    def _map_write(self) -> None:
        if self._model:
            offset = min(self._offset(), len(self._model) - 1)
            length = min(self._length(offset), len(self._model) - offset)
            data = self._choice.randbytes(length)
            synced = self._choice.random() < 0.5
            self._note(f"map and write {length} at {offset}{', msync' if synced else ''}")
            with mmap.mmap(self._descriptor, len(self._model)) as mapped:
                mapped[offset : offset + length] = data
                if synced:
                    mapped.flush()
            self._put(offset, data)

    def _map_read(self) -> None:
        if self._model:
            offset = min(self._offset(), len(self._model) - 1)
            length = min(self._length(offset), len(self._model) - offset)
            self._note(f"map and read {length} at {offset}")
            with mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ) as mapped:
                self._judge(mapped[offset : offset + length], offset, length)

    def _reopen(self) -> None:
        self._note("close and open")
        os.close(self._descriptor)
        self._descriptor = os.open(self._path, os.O_RDWR)

    def _sync(self) -> None:
        self._note("fsync")
        os.fsync(self._descriptor)

    def _evict(self) -> None:
        self._note("fsync, and drop the cache")
        os.fsync(self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def _status(self) -> None:
        self._note("stat")
        assert os.fstat(self._descriptor).st_size == len(self._model), "\n".join(self._log)
        assert self._path.stat().st_size == len(self._model), "\n".join(self._log)

    def _compare(self, offset: int, length: int) -> None:
        self._judge(os.pread(self._descriptor, length, offset), offset, length)

    def _judge(self, actual: bytes, offset: int, length: int) -> None:
        expected = bytes(self._model[offset : offset + length])
        if actual != expected:
            history = "\n".join(self._log)
            pytest.fail(f"{history}\nfrom {offset}: {first_difference(actual, expected)}")


@pytest.mark.parametrize("seed", range(5))
def test_random_operations(directory: Path, seed: int) -> None:
    Exerciser(directory / f"seed-{seed}", seed).run(OPERATIONS)
