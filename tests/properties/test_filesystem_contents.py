"""Files against a bytearray: any writes, truncations, flushes, handles; any delays beneath them."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bftfs.filesystem.contents import OpenFile
from tests.unit.filesystem.world import ALICE, ROOT_ID, World

BLOCK = 4096
END = 6 * BLOCK
offsets = st.one_of(
    st.integers(0, END),
    st.integers(0, 6).map(lambda number: number * BLOCK),
    st.integers(1, 6).map(lambda number: number * BLOCK - 1),
)
lengths = st.one_of(st.integers(1, 50), st.integers(1, 3 * BLOCK), st.just(BLOCK))


class Contents(RuleBasedStateMachine):
    """One mount, one file. Writes are taken at once; everything else happens whenever it likes."""

    @initialize(
        seed=st.integers(0, 1 << 32),
        options=st.fixed_dictionaries(
            {
                "dirty_bytes": st.sampled_from([2 * BLOCK, 100 * BLOCK]),
                "write_behind_bytes": st.sampled_from([1, BLOCK, 2 * BLOCK]),
                "cache_bytes": st.sampled_from([0, 2 * BLOCK, 100 * BLOCK]),
                "batch_bytes": st.sampled_from([1, 2 * BLOCK, 100 * BLOCK]),
                "batches_in_flight": st.sampled_from([1, 3]),
                "read_ahead_bytes": st.sampled_from([0, 3 * BLOCK]),
                "strict": st.booleans(),
                "patch_saves_bytes": st.sampled_from([0, BLOCK]),
            }
        ),
    )
    def begin(self, seed: int, options: dict[str, Any]) -> None:
        self.world = World(seed=seed)
        self.options = options
        self.mount = self.world.mount(**options)
        self.model = bytearray()
        self.fill = 0
        self.pending: list[list[Any]] = []
        _, first = self.world.run(self.mount.create(ROOT_ID, b"file", 0o644, ALICE))
        self.files: list[OpenFile] = [first]
        random = self.world.host.random
        self.world.objects.latency = lambda: random.choice((0, 1, 5, 20))
        self.world.blocks.latency = lambda: random.choice((0, 1, 5, 20))

    def _file(self, which: int) -> OpenFile:
        return self.files[which % len(self.files)]

    def _begin(self, conversation: Any) -> None:
        self.pending.append(self.world.host.start(conversation))

    def _write(self, file: OpenFile, offset: int | None, data: bytes) -> None:
        if self.mount.write(file, offset, data, now_ns=self.world.host.clock_us * 1000):
            if self.mount._contents._unsaved.dirty_bytes >= self.options["dirty_bytes"]:
                self.world.run(self.mount.write_behind(file))
            else:
                self._begin(self.mount.write_behind(file))

    @rule(which=st.integers(0, 3), offset=offsets, length=lengths)
    def write(self, which: int, offset: int, length: int) -> None:
        self.fill = self.fill % 255 + 1
        data = bytes([self.fill]) * length
        file = self._file(which)
        self._write(file, offset, data)
        if len(self.model) < offset + length:
            self.model.extend(bytes(offset + length - len(self.model)))
        self.model[offset : offset + length] = data

    @rule(which=st.integers(0, 3), length=lengths)
    def append(self, which: int, length: int) -> None:
        data = b"\xff" * length
        file = self._file(which)
        self._write(file, None, data)
        self.model.extend(data)

    @rule(which=st.integers(0, 3), offset=offsets, length=st.integers(0, END))
    def read(self, which: int, offset: int, length: int) -> None:
        found = self.world.run(self.mount.read(self._file(which), offset, length))
        assert bytes(found) == bytes(self.model[offset : offset + length])

    @rule(size=offsets)
    def truncate(self, size: int) -> None:
        attributes = self.world.run(self.mount.truncate(self.files[0].identifier, size, ALICE))
        assert attributes.size == size
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    @rule(which=st.integers(0, 3))
    def begin_flush(self, which: int) -> None:
        self._begin(self.mount.flush(self._file(which)))

    @rule()
    def begin_write_back(self) -> None:
        self._begin(self.mount.write_back(older_than_us=0))

    @rule(times=st.integers(1, 10))
    def pass_time(self, times: int) -> None:
        for _ in range(times):
            self.world.host.step()

    @rule(which=st.integers(0, 3))
    def synchronize(self, which: int) -> None:
        self.world.run(self.mount.synchronize(self._file(which)))
        other = self.world.mount()
        file = self.world.run(other.open(self.files[0].identifier, os.O_RDONLY, ALICE))
        found = self.world.run(other.read(file, 0, 2 * END + len(self.model)))
        assert bytes(found) == bytes(self.model)

    @precondition(lambda self: len(self.files) < 3)
    @rule()
    def open(self) -> None:
        file = self.world.run(self.mount.open(self.files[0].identifier, os.O_RDWR, ALICE))
        self.files.append(file)

    @precondition(lambda self: len(self.files) > 1)
    @rule(which=st.integers(0, 3))
    def close(self, which: int) -> None:
        file = self.files.pop(which % len(self.files))
        self.world.run(self.mount.flush(file))
        self.world.run(self.mount.release(file))

    @rule()
    def reopen(self) -> None:
        """All handles are closed, and the file is opened again."""
        identifier = self.files[0].identifier
        while self.files:
            file = self.files.pop()
            self.world.run(self.mount.release(file))
        self.files.append(self.world.run(self.mount.open(identifier, os.O_RDWR, ALICE)))

    @invariant()
    def size_is_known(self) -> None:
        if hasattr(self, "files"):
            assert self.files[0].contents.size == len(self.model)

    @invariant()
    def nothing_fails(self) -> None:
        for outcome in getattr(self, "pending", []):
            assert not outcome or outcome == [None]

    def teardown(self) -> None:
        if not hasattr(self, "files"):
            return
        self.world.run(self.mount.synchronize_all())
        self.world.host.settle()
        assert all(outcome == [None] for outcome in self.pending)
        for file in self.files:
            self.world.run(self.mount.release(file))
        store = self.mount._contents
        assert store._unsaved.dirty_bytes == 0, "every byte that was counted has been uncounted"
        assert store._reader.prefetching_bytes == 0
        assert not store._unsaved.files
        other = self.world.mount()
        file = self.world.run(other.open(file.identifier, os.O_RDONLY, ALICE))
        assert bytes(self.world.run(other.read(file, 0, 1 << 30))) == bytes(self.model)


TestContents = Contents.TestCase
TestContents.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
