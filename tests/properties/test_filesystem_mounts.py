"""Two mounts write and truncate one file at once: nothing saved is lost, nothing cut returns.

Each mount writes blocks of its own, so that each byte has one last write. A truncation may come
before or after the writes that are not saved while it runs; it comes after those that were saved
before it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.filesystem.world import ALICE, ROOT_ID, World

BLOCK = 4096
BLOCKS = 6
END = BLOCK * BLOCKS
PROBES = [
    offset
    for number in range(BLOCKS)
    for offset in (
        number * BLOCK,
        number * BLOCK + 1,
        number * BLOCK + 2000,
        (number + 1) * BLOCK - 1,
    )
]

mounts = st.integers(0, 1)
operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"),
            mounts,
            st.integers(0, BLOCKS // 2 - 1),
            st.integers(0, BLOCK - 1),
            st.sampled_from([1, 100, 2500, BLOCK]),
        ),
        st.tuples(st.just("flush"), mounts),
        st.tuples(st.just("truncate"), mounts, st.sampled_from([0, 1, 2000, BLOCK, 9000, END])),
        st.tuples(st.just("pass time"), st.integers(1, 30)),
    ),
    max_size=30,
)


@dataclass
class Written:
    offset: int
    data: bytes
    mount: int
    at: int
    saved: int | None = None


@dataclass
class Cut:
    size: int
    begin: int
    end: int | None = None


@dataclass
class History:
    now: int = 0
    writes: list[Written] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)

    def tick(self) -> int:
        self.now += 1
        return self.now

    def possible(self, offset: int) -> set[int]:
        """What the byte may be in the end."""
        last = next(
            (
                write
                for write in reversed(self.writes)
                if write.offset <= offset < write.offset + len(write.data)
            ),
            None,
        )
        if last is None:
            return {0}
        value = last.data[0]
        assert last.saved is not None
        cuts = [cut for cut in self.cuts if cut.size <= offset]
        if any(cut.begin > last.saved for cut in cuts):
            return {0}
        if any(cut.end is None or cut.end > last.at for cut in cuts):
            return {0, value}
        return {value}


@settings(max_examples=300, deadline=None)
@given(operations, st.integers(0, 1 << 32), st.booleans(), st.sampled_from([0, BLOCK]))
def test_two_mounts(
    done: list[tuple[object, ...]], seed: int, is_strict: bool, patch_saves_bytes: int
) -> None:
    world = World(seed=seed)
    both = [
        world.mount(strict=is_strict, patch_saves_bytes=patch_saves_bytes),
        world.mount(write_behind_bytes=BLOCK, patch_saves_bytes=patch_saves_bytes),
    ]
    _, first = world.run(both[0].create(ROOT_ID, b"file", 0o666, ALICE))
    files = [first, world.run(both[1].open(first.identifier, os.O_RDWR, ALICE))]
    random = world.host.random
    world.objects.latency = lambda: random.choice((0, 1, 10, 40))
    world.blocks.latency = lambda: random.choice((0, 1, 10, 40))
    history = History()
    outcomes = []

    async def flush(which: int) -> None:
        covered = [write for write in history.writes if write.mount == which]
        await both[which].synchronize(files[which])
        now = history.tick()
        for write in covered:
            write.saved = write.saved or now

    async def truncate(which: int, size: int) -> None:
        cut = Cut(size, history.tick())
        history.cuts.append(cut)
        await both[which].truncate(first.identifier, size, ALICE)
        cut.end = history.tick()

    fill = 0
    for operation in done:
        match operation:
            case ("write", int(which), int(pair), int(start), int(length)):
                fill = fill % 255 + 1
                offset = (2 * pair + which) * BLOCK + start
                data = bytes([fill]) * min(length, BLOCK - start)
                history.writes.append(Written(offset, data, which, history.tick()))
                if both[which].write(files[which], offset, data, now_ns=history.now):
                    outcomes.append(world.host.start(both[which].write_behind(files[which])))
            case ("flush", int(which)):
                outcomes.append(world.host.start(flush(which)))
            case ("truncate", int(which), int(size)):
                outcomes.append(world.host.start(truncate(which, size)))
            case ("pass time", int(times)):
                for _ in range(times):
                    world.host.step()
    outcomes += [world.host.start(flush(0)), world.host.start(flush(1))]
    world.host.settle()
    assert all(outcome == [None] for outcome in outcomes)

    reader = world.mount()
    opened = world.run(reader.open(first.identifier, os.O_RDONLY, ALICE))
    found = bytes(world.run(reader.read(opened, 0, END))).ljust(END, b"\0")
    for offset in PROBES:
        assert found[offset] in history.possible(offset), offset
    for mount in both:
        again = world.run(mount.open(first.identifier, os.O_RDONLY, ALICE))
        assert bytes(world.run(mount.read(again, 0, END))).ljust(END, b"\0") == found
