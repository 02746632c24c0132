"""Segments: fragments are where rows point, whatever crashes, full disks and rot have left."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from bftfs.cluster import Durability
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId
from bftfs.limits import KIB, MIB
from bftfs.storage import MemoryStorage, Table, Write
from nodes import data_file
from nodes import segments as segment_files
from nodes import store as stores
from nodes.segments import BLOCK_BYTES, Extent, extent_in, inline, inlined_in
from nodes.store import Store
from nodes.store_directory import StepAgain, StoreFailed, StoreFull

CLUSTER = bytes(16)
SMALL, LARGE = 100, 20 * KIB


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frequent checkpoints and new segments, in files that are quickly copied."""
    monkeypatch.setattr(stores, "HEADROOM_BYTES", 64 * KIB)
    monkeypatch.setattr(segment_files, "SEGMENT_BYTES", 128 * KIB)


def opened(
    path: Path, durability: Durability = Durability.SYNC, capacity_bytes: int = 8 * MIB
) -> Store:
    return Store.open(
        path / "store",
        cluster=CLUSTER,
        node=NodeId(0),
        durability=durability,
        capacity_bytes=capacity_bytes,
        map_bytes=512 * KIB,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = opened(tmp_path)
    yield store
    store.close()


def put(store: Store, *writes: Write, use_reserve: bool = False) -> None:
    for _ in range(10):
        with contextlib.suppress(StepAgain), store.batch() as batch:
            batch.apply(writes)
            batch.commit(use_reserve=use_reserve)
            store.maintain()
            return
    raise AssertionError("the batch is stepped again for ever")


def fragment(key: bytes, value: bytes | None) -> Write:
    return Write(Table.FRAGMENT, key, value)


def get(store: Store, key: bytes) -> bytes | None:
    with store.batch() as view:
        return view.get(Table.FRAGMENT, key)


def row_of(store: Store, key: bytes) -> bytes:
    return bytes(store._transaction.get(key, b"", store.databases[Table.FRAGMENT]))


def extent_of(store: Store, key: bytes) -> Extent:
    extent = extent_in(key, row_of(store, key))
    assert extent is not None
    return extent


def files(path: Path) -> list[Path]:
    return sorted((path / "store" / "segments").iterdir())


def disk_bytes(path: Path) -> int:
    return sum(512 * file.stat().st_blocks for file in files(path))


def killed(store: Store) -> None:
    """What a process does not live to say."""
    store._transaction.abort()
    store._release()


# --- what lies where -------------------------------------------------------------------------


def test_large_fragments_lie_in_segments_and_small_ones_in_lmdb(store: Store) -> None:
    least = segment_files.FRAGMENT_BYTES_LEAST
    values = {b"%d" % size: os.urandom(size) for size in (0, 1, least - 1, least, 3 * least + 1)}
    with store.batch() as batch:
        batch.apply([fragment(key, value) for key, value in values.items()])
        for key, value in values.items():  # before the commit, too
            assert batch.get(Table.FRAGMENT, key) == value
        batch.commit()
    for key, value in values.items():
        assert get(store, key) == value
        assert (extent_in(key, row_of(store, key)) is None) == (len(value) < least)
    with store.batch() as view:
        assert dict(view.scan(Table.FRAGMENT, b"", b"\xff")) == values


def test_other_tables_have_no_segments(store: Store, tmp_path: Path) -> None:
    put(store, Write(Table.STATE, b"k", bytes(LARGE)))
    assert disk_bytes(tmp_path) == 0


def test_every_block_belongs_to_one_fragment(store: Store) -> None:
    for batch in range(3):
        put(
            store,
            *(fragment(b"%d %d" % (batch, each), os.urandom(LARGE + each)) for each in range(4)),
        )
    taken: set[tuple[int, int]] = set()
    for batch in range(3):
        for each in range(4):
            extent = extent_of(store, b"%d %d" % (batch, each))
            begin, end = extent.blocks
            assert begin <= extent.offset < extent.offset + extent.length <= end
            blocks = {(extent.segment, block) for block in range(begin, end, BLOCK_BYTES)}
            assert not blocks & taken
            taken |= blocks


def test_a_row_says_whether_it_is_damaged() -> None:
    row = Extent(3, 4096, LARGE).row(b"key")
    assert extent_in(b"key", row) == Extent(3, 4096, LARGE)
    assert extent_in(b"other", row) is None
    for at in range(len(row)):
        changed = row[:at] + bytes((row[at] ^ 4,)) + row[at + 1 :]
        assert extent_in(b"key", changed) is None
        assert inlined_in(changed) == b""
    assert inlined_in(inline(b"fragment")) == b"fragment"
    assert inlined_in(b"") == b""


def test_one_write_and_one_flush_for_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    put(store, fragment(b"first", os.urandom(LARGE)))  # which makes the file
    calls = []
    for name in ("pwritev", "pwrite", "fdatasync", "fsync"):
        monkeypatch.setattr(os, name, counted(calls, name, getattr(os, name)))
    put(store, *(fragment(b"%d" % each, os.urandom(LARGE)) for each in range(3)))
    assert calls == ["pwritev", "fdatasync"]
    monkeypatch.undo()
    store.close()


def counted(calls: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        calls.append(name)
        return function(*arguments)

    return call


def test_a_batch_of_more_buffers_than_the_kernel_takes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_files, "FRAGMENT_BYTES_LEAST", 1)
    monkeypatch.setattr(stores, "FRAGMENT_BYTES_LEAST", 1)
    put(store, *(fragment(b"%d" % each, b"%d" % each) for each in range(700)))
    assert all(get(store, b"%d" % each) == b"%d" % each for each in range(700))


def test_more_segments_than_files_that_are_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_files, "FILES_OPEN", 3)
    monkeypatch.setattr(segment_files, "SEGMENT_BYTES", LARGE)
    store = opened(tmp_path)
    values = [os.urandom(LARGE) for _ in range(12)]
    for number, value in enumerate(values):
        put(store, fragment(b"%d" % number, value))
    assert len(files(tmp_path)) == 13
    for number in random.Random(1).choices(range(12), k=40):
        assert get(store, b"%d" % number) == values[number]
    assert len(store.segments._files) <= 3
    store.close()


def test_descriptors_that_connections_have_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the process may have: the store does with those that it has."""
    store = opened(tmp_path)
    values = {b"%d" % number: os.urandom(100 * KIB) for number in range(6)}
    for key, value in values.items():
        put(store, fragment(key, value))
    most = len(store.segments._files)
    assert most > 1
    open_file, copy = os.open, os.dup

    def full(take: Callable[..., int], *arguments: Any) -> int:
        if len(store.segments._files) >= most:
            raise OSError(errno.EMFILE, "Too many open files")
        return take(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(segment_files, "FILES_OPEN", most)
        patch.setattr(os, "open", lambda *arguments: full(open_file, *arguments))
        patch.setattr(os, "dup", lambda *arguments: full(copy, *arguments))
        put(store, fragment(b"0", b"new" * 10 * KIB))
        before = store.segments.number
        for _ in range(3):
            put(store, fragment(b"5", values[b"5"]))
        assert store.segments.number > before
        store.sync()
        store.segments.flush().run()
        for key in list(values)[1:]:
            assert get(store, key) == values[key]
    assert get(store, b"0") == b"new" * 10 * KIB
    store.close()


# --- giving room back ------------------------------------------------------------------------


def test_blocks_of_removed_fragments_are_given_back(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, *(fragment(b"%d" % each, os.urandom(LARGE)) for each in range(5)))
    store.settled_figures()
    before, live = disk_bytes(tmp_path), store.space.measure().live_bytes
    put(store, fragment(b"1", None), fragment(b"3", os.urandom(SMALL)))  # removed, and replaced
    freed = 2 * -(-LARGE // BLOCK_BYTES) * BLOCK_BYTES
    assert store.space.measure().live_bytes == live - freed
    assert disk_bytes(tmp_path) == before, "until there is a checkpoint a crash may need them"
    store.settled_figures()
    assert disk_bytes(tmp_path) == before - freed
    assert store.disk_bytes() >= disk_bytes(tmp_path)
    assert [get(store, b"%d" % each) is None for each in range(5)] == [
        False, True, False, False, False,
    ]  # fmt: skip
    store.close()


def test_a_segment_without_fragments_is_removed(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in range(20):
        put(store, fragment(b"%02d" % number, os.urandom(LARGE)))
    count = len(files(tmp_path))
    assert count > 2
    put(store, *(fragment(b"%02d" % each, None) for each in range(20)))
    store.settled_figures()
    assert len(files(tmp_path)) == 1, "the one that is appended to"
    store.close()
    assert disk_bytes(tmp_path) == 0
    store = opened(tmp_path)
    assert len(files(tmp_path)) == 1
    put(store, fragment(b"again", b"v" * LARGE))
    assert get(store, b"again") == b"v" * LARGE
    store.close()


@pytest.mark.parametrize("crashes", [False, True])
def test_rows_keep_no_room_after_a_checkpoint(tmp_path: Path, crashes: bool) -> None:
    """They lie behind the fragments of their batch, and are in LMDB's file by then."""
    store = opened(tmp_path)
    for number in range(6):
        rows = (Write(Table.STATE, b"%d %d" % (number, row), b"r" * KIB) for row in range(9))
        put(store, fragment(b"%d" % number, b"f" * LARGE), *rows)
    if crashes:
        killed(store)
        store = opened(tmp_path)
    store._checkpoint()
    live = sum(extent_of(store, b"%d" % number).block_bytes for number in range(6))
    assert store.segments.room().used_bytes == live
    store.close()
    assert disk_bytes(tmp_path) == live
    store = opened(tmp_path)
    assert all(get(store, b"%d" % number) == b"f" * LARGE for number in range(6))
    store.close()


def test_fragments_that_no_row_ever_pointed_to_keep_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends between the segment and LMDB's file, to which a large batch goes at once."""
    store = opened(tmp_path)
    put(store, fragment(b"before", b"b" * LARGE))
    writes = fragment(b"lost", b"l" * LARGE), Write(Table.STATE, b"row", b"r" * KIB)
    with monkeypatch.context() as patch:
        patch.setattr(stores, "STRAIGHT_BYTES", 0)
        patch.setattr(Store, "_commit_transaction", interrupted)
        with pytest.raises(KeyboardInterrupt):
            put(store, *writes)
    killed(store)
    store = opened(tmp_path)
    assert get(store, b"lost") is None
    assert get(store, b"before") == b"b" * LARGE
    store._checkpoint()
    live = extent_of(store, b"before").block_bytes
    assert store.segments.room().used_bytes == live
    store.close()
    assert disk_bytes(tmp_path) == live


def interrupted(_store: Store) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["99999999999", "9999999999", "7", "notes"])
def test_other_files_beside_segments_are_left_alone(tmp_path: Path, name: str) -> None:
    store = opened(tmp_path)
    put(store, fragment(b"1", b"f" * LARGE))
    store.close()
    stray = tmp_path / "store" / "segments" / name
    stray.write_bytes(b"somebody's")
    store = opened(tmp_path)
    assert get(store, b"1") == b"f" * LARGE
    store.close()
    assert stray.read_bytes() == b"somebody's"


def test_a_directory_that_is_called_like_a_segment_is_left_alone(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, fragment(b"1", b"f" * LARGE))
    store.close()
    (tmp_path / "store" / "segments" / "0000000077").mkdir()
    store = opened(tmp_path)
    assert get(store, b"1") == b"f" * LARGE
    store.close()


def test_a_process_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    values = [os.urandom(LARGE) for _ in range(4)]
    for number, value in enumerate(values):
        store = opened(tmp_path)
        put(store, fragment(b"%d" % number, value))
        if number % 2:
            killed(store)
        else:
            store.close()
    (file,) = files(tmp_path)
    assert file.stat().st_size < 4 * (LARGE + 2 * BLOCK_BYTES) + 2 * MIB
    store = opened(tmp_path)
    assert [get(store, b"%d" % number) for number in range(4)] == values
    store.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_next_segment_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = opened(tmp_path)

    def refuse(_: object) -> int:
        raise OSError(code, "no file")

    with monkeypatch.context() as patch:
        patch.setattr(segment_files.Segments, "_made", refuse)
        with pytest.raises(StoreFailed) if code == errno.EIO else contextlib.nullcontext():
            for number in range(12):
                put(store, fragment(b"%02d" % number, b"%02d" % number * LARGE))
    if code == errno.EIO:
        killed_after_failure(store)
        return
    assert len(files(tmp_path)) == 1, "the one that there was gets longer"
    for number in range(12, 20):
        put(store, fragment(b"%02d" % number, b"%02d" % number * LARGE))
    assert len(files(tmp_path)) > 1
    killed(store)
    store = opened(tmp_path)
    for number in range(20):
        assert get(store, b"%02d" % number) == b"%02d" % number * LARGE
    store.close()


def killed_after_failure(store: Store) -> None:
    store._release()


def test_where_holes_cannot_be_punched_segments_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_files, "give_back", lambda *_: errno.EOPNOTSUPP)
    store = opened(tmp_path)
    for number in range(20):
        put(store, fragment(b"%02d" % number, os.urandom(LARGE)))
    store.settled_figures()
    before = store.space.measure().live_bytes
    put(store, *(fragment(b"%02d" % each, None) for each in range(0, 20, 2)))
    store.settled_figures()
    assert store.space.measure().live_bytes >= before - 64 * KIB, "it is told as it is"
    put(store, *(fragment(b"%02d" % each, None) for each in range(1, 20, 2)))
    store.settled_figures()
    assert store.space.measure().live_bytes < before - 300 * KIB
    assert len(files(tmp_path)) == 1
    store.close()


def test_a_hole_that_could_not_be_punched_is_punched_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    put(store, *(fragment(b"%d" % each, os.urandom(LARGE)) for each in range(3)))
    store.settled_figures()
    before = disk_bytes(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(segment_files, "give_back", lambda *_: errno.ENOSPC)
        put(store, fragment(b"1", None))
        store.settled_figures()
        assert disk_bytes(tmp_path) == before
    killed(store)
    store = opened(tmp_path)
    assert disk_bytes(tmp_path) < before
    assert get(store, b"2") is not None
    store.close()


# --- full disks ------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(path)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def filled(store: Store) -> tuple[int, str]:
    """Put fragments until one is refused: how many there are, and why."""
    for number in range(1000):
        try:
            put(store, fragment(b"%04d" % number, b"%04d" % number * (LARGE // 4)))
        except StoreFull as full:
            return number, full.reason
    raise AssertionError("it is never full")


def test_a_full_disk_refuses_fragments_and_loses_none(small_disk: Path) -> None:
    store = opened(small_disk, capacity_bytes=1 << 40)
    written, reason = filled(store)
    assert reason == "the disk is full"
    assert 100 < written < 400
    assert not store.settled_figures().has_room_again
    # Repairs and removals go on: what no segment has room for, LMDB's reserve takes.
    put(store, fragment(b"repaired", b"r" * LARGE), use_reserve=True)
    assert extent_in(b"repaired", row_of(store, b"repaired")) is None
    for number in range(written):
        assert get(store, b"%04d" % number) == b"%04d" % number * (LARGE // 4)
    put(store, *(fragment(b"%04d" % each, None) for each in range(written)), use_reserve=True)
    assert store.settled_figures().has_room_again
    put(store, fragment(b"again", b"a" * LARGE))
    assert extent_of(store, b"again")
    assert get(store, b"repaired") == b"r" * LARGE
    killed(store)
    store = opened(small_disk, capacity_bytes=1 << 40)
    assert get(store, b"again") == b"a" * LARGE
    store.close()


def test_segments_count_for_what_the_store_may_occupy(tmp_path: Path) -> None:
    store = opened(tmp_path, capacity_bytes=2 * MIB)
    written, reason = filled(store)
    assert reason == "the store has reached its 2097152 bytes"
    assert 20 < written < 100
    assert store.disk_bytes() <= 2 * MIB + 2 * MIB  # and the journal
    assert disk_bytes(tmp_path) <= 2 * MIB
    put(store, *(fragment(b"%04d" % each, None) for each in range(written)), use_reserve=True)
    for each in range(written - 5):  # the file system's notes of where holes are take room as well
        put(store, fragment(b"%04d" % each, os.urandom(LARGE)))
    store.close()


# --- damage ----------------------------------------------------------------------------------


def test_a_flipped_bit_damages_its_fragment_only(tmp_path: Path) -> None:
    """As of any other row: whoever reads or scrubs it finds that it is not what was written."""
    store = opened(tmp_path)
    values = [os.urandom(LARGE) for _ in range(3)]
    put(store, *(fragment(b"%d" % each, value) for each, value in enumerate(values)))
    extent = extent_of(store, b"1")
    store.close()
    with files(tmp_path)[0].open("r+b") as file:
        file.seek(extent.offset + 7)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes((byte[0] ^ 1,)))
    store = opened(tmp_path)
    assert [get(store, b"%d" % each) == values[each] for each in range(3)] == [True, False, True]
    assert len(get(store, b"1") or b"") == LARGE, "for which its author has paid"
    put(store, fragment(b"1", values[1]))  # healed
    assert get(store, b"1") == values[1]
    store.close()


def test_a_damaged_row_takes_no_other_fragment_with_it(store: Store) -> None:
    values = [os.urandom(LARGE) for _ in range(3)]
    put(store, *(fragment(b"%d" % each, value) for each, value in enumerate(values)))
    row = bytearray(row_of(store, b"1"))
    row[6] ^= 0x50  # of the offset
    store._transaction.put(b"1", bytes(row), db=store.databases[Table.FRAGMENT])
    assert get(store, b"1") == b""
    put(store, fragment(b"1", None))
    store.settled_figures()
    assert get(store, b"0") == values[0]
    assert get(store, b"2") == values[2]


def test_bytes_that_the_disk_cannot_read_are_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, fragment(b"k", os.urandom(LARGE)))

    def unreadable(*_: object) -> bytes:
        raise OSError(errno.EIO, "a bad sector")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", unreadable)
        with store.batch() as view:
            assert view.get(Table.FRAGMENT, b"k") == bytes(LARGE)


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_store_that_has_lost_a_segment_is_refused(tmp_path: Path, how: str) -> None:
    store = opened(tmp_path)
    for number in range(10):
        put(store, fragment(b"%d" % number, os.urandom(LARGE)))
    store.close()
    first, *_ = files(tmp_path)
    if how == "missing":
        first.unlink()
    else:
        os.truncate(first, first.stat().st_size - 1)
    with pytest.raises(UsageError, match=r"its segment 1 is.*move this directory away"):
        opened(tmp_path)


def test_a_store_without_its_segments_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    shutil.rmtree(tmp_path / "store" / "segments")
    with pytest.raises(UsageError, match=r"segments is missing.*move this directory away"):
        opened(tmp_path)


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_segment_that_goes_while_the_store_is_open(tmp_path: Path, how: str) -> None:
    store = opened(tmp_path)
    put(store, fragment(b"k", os.urandom(LARGE)))
    if how == "removed":
        files(tmp_path)[0].unlink()
    else:
        os.truncate(files(tmp_path)[0], 0)
    with pytest.raises(StoreFailed, match=r"removed or cut short its segment 1.*move this"):
        put(store, fragment(b"l", os.urandom(LARGE)))
    store.close()
    with pytest.raises(UsageError, match="move this directory away"):
        opened(tmp_path)


def test_a_segment_that_is_found_cut_when_it_is_read(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, fragment(b"k", os.urandom(LARGE)))
    os.truncate(files(tmp_path)[0], LARGE // 2)
    with pytest.raises(StoreFailed, match=r"cut short its segment 1.*move this"):
        get(store, b"k")
    store.close()


def test_a_batch_lost_within_a_segment_is_missed(tmp_path: Path) -> None:
    """It was acknowledged, as those after it: the node must not forget it in silence."""
    store = opened(tmp_path)
    for number in range(4):
        put(store, fragment(b"%d" % number, os.urandom(LARGE)))
    offset = extent_of(store, b"1").offset
    shutil.copytree(tmp_path / "store", tmp_path / "image" / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "last" / "store")
    last = extent_of(store, b"3").offset
    put(store, Write(Table.STATE, b"k", b"which is in the journal"))
    shutil.copytree(tmp_path / "store", tmp_path / "mixed" / "store")
    store.close()
    for image, at in (("image", offset), ("last", last), ("mixed", last)):
        with files(tmp_path / image)[0].open("r+b") as file:
            file.seek(at)
            file.write(b"?" * 8)
    for image in ("image", "mixed", "image"):
        with pytest.raises((StoreFailed, UsageError), match=r"journal are lost.*move this"):
            opened(tmp_path / image)
    store = opened(tmp_path / "last")  # as if it had never been acknowledged
    assert get(store, b"2") is not None
    assert get(store, b"3") is None
    store.close()


def test_what_a_client_writes_passes_for_no_record(tmp_path: Path) -> None:
    """A client knows all of a record but its key."""
    store = opened(tmp_path, Durability.INTERVAL)
    store._journal.key, key = b"g" * 32, store._journal.key
    put(store, fragment(b"forged", os.urandom(LARGE)))
    store._journal.key = key
    killed(store)
    store = opened(tmp_path, Durability.INTERVAL)
    assert get(store, b"forged") is None
    store.close()


# --- crashes ---------------------------------------------------------------------------------


def contents(view: Store | MemoryStorage) -> dict[Table, list[tuple[bytes, bytes]]]:
    tables = (Table.OBJECT, Table.STATE, Table.FRAGMENT)
    if isinstance(view, Store):
        with view.batch() as batch:
            return {table: list(batch.scan(table, b"", b"\xff")) for table in tables}
    return {table: list(view.scan(table, b"", b"\xff")) for table in tables}


def copy(node: Path, image: Path) -> None:
    """With the holes."""
    image.mkdir()
    subprocess.run(["cp", "-r", "--sparse=always", node / "store", image], check=True)


class Machine:
    """A store; images of its directory from just before and after each thing done to its files.

    `killed` images are what a killed process leaves. `crashed` ones are what the machine may leave:
    of each page of the journal and of the segments either what was synced, or what was written
    since. (LMDB syncs its own file in the midst of a commit.)
    """

    def __init__(
        self, path: Path, durability: Durability, seed: int, patch: pytest.MonkeyPatch
    ) -> None:
        self.path = path
        self.durability = durability
        self.chance = random.Random(seed)
        # Blocks are given back after every checkpoint.
        for name, size in (("RESERVE_BYTES", 64 * KIB), ("AHEAD_BYTES", 0), ("SURPLUS_BYTES", 1)):
            patch.setattr(data_file, name, size)
        self.store = opened(path, durability)
        self.model = MemoryStorage()
        self.states = [contents(self.model)]
        self.synced = 0  # how many batches are on stable storage
        self.images: list[tuple[Path, int, int]] = []  # with the fewest and most batches in it
        self.stable: dict[str, bytes] = {}  # what was synced, by file
        self._watch(patch)

    def _watch(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("pwritev", "pwrite", "posix_fallocate", "ftruncate", "unlink", "fdatasync"):
            patch.setattr(os, name, self._watched(getattr(os, name), syncs=name == "fdatasync"))
        for module in (segment_files, data_file):
            patch.setattr(module, "give_back", self._watched(module.give_back))
        patch.setattr(Store, "_let_go", self._watched(Store._let_go))
        patch.setattr(Path, "unlink", self._watched(Path.unlink))

    def _watched(self, function: Callable[..., Any], *, syncs: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            self.look()
            done = function(*arguments, **more)
            if syncs:
                name = os.readlink(f"/proc/self/fd/{arguments[0]}")
                with contextlib.suppress(FileNotFoundError):
                    self.stable[name] = Path(name).read_bytes()
            return done

        return call

    def look(self) -> None:
        """Keep an image, now and then."""
        if self.chance.random() > 0.12:
            return
        acknowledged = len(self.states) - 1
        image = self.path.with_name(f"killed{len(self.images)}")
        copy(self.path, image)
        self.images.append((image, acknowledged, acknowledged + 1))
        crashed = self.path.with_name(f"crashed{len(self.images)}")
        copy(self.path, crashed)
        least = acknowledged if self.durability is Durability.SYNC else self.synced
        self.images.append((crashed, least, acknowledged + 1))
        for file in (crashed / "store").rglob("*"):
            if file.is_file() and file.name != "data.mdb":
                whole = str(self.path / "store" / file.relative_to(crashed / "store"))
                self._forget(file, self.stable.get(whole, b""))

    def _forget(self, file: Path, stable: bytes) -> None:
        """Turn some pages back into what was synced."""
        if file.name == "journal" and self.durability is Durability.SYNC:
            return  # it is written past the page cache
        written = file.read_bytes()
        with file.open("r+b") as changed:
            for start in range(0, len(written), BLOCK_BYTES):
                if self.chance.random() < 0.5:
                    page = written[start : start + BLOCK_BYTES]
                    changed.seek(start)
                    changed.write(stable[start : start + BLOCK_BYTES].ljust(len(page), b"\0"))

    def change(self) -> None:
        """A batch that puts, overwrites and removes; sometimes more is done."""
        chance = self.chance
        writes = [Write(Table.OBJECT, b"batch", b"%d" % len(self.states))]
        for _ in range(chance.randint(1, 5)):
            value = chance.choice((None, None, b"s" * SMALL, chance.randbytes(LARGE)))
            writes.append(fragment(b"%02d" % chance.randint(0, 12), value))
        if chance.random() < 0.3:
            writes = [Write(Table.STATE if each.table is Table.FRAGMENT else each.table, each.key,
                            each.value) for each in writes]  # fmt: skip
        before = len(self.states)
        self.model.apply(writes)
        # A batch that is to be stepped again has not happened, whatever image there is.
        put(self.store, *writes)
        self.states.append(contents(self.model))
        assert len(self.states) == before + 1
        if chance.random() < 0.1:
            with self.store.batch() as batch:
                batch.apply([fragment(b"dropped", bytes(LARGE))])
        if chance.random() < 0.15:
            self.store.sync()
            self.synced = len(self.states) - 1
        if chance.random() < 0.1:
            self.store.settled_figures()
        if self.store._checkpointed == self.store._journal.sequence:
            self.synced = len(self.states) - 1


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("seed", range(4))
def test_a_crash_at_any_point_leaves_every_batch_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, seed: int
) -> None:
    with monkeypatch.context() as patch:
        machine = Machine(tmp_path / "node", durability, seed, patch)
        for _ in range(60):
            machine.change()
    machine.store.close()
    assert len(machine.images) > 10
    for image, least, most in machine.images:
        store = opened(image, durability)
        left = contents(store)
        last = int(dict(left[Table.OBJECT]).get(b"batch", b"0"))
        assert least <= last <= most
        if last < len(machine.states):
            assert left == machine.states[last]
        # It goes on from there, and has given back what no row needs.
        put(store, fragment(b"more", b"m" * LARGE))
        store.settled_figures()
        if image.name.startswith("killed"):  # the others' pages are written where holes were
            check_that_nothing_leaks(store, image)
        killed(store)
        store = opened(image, durability)
        left[Table.FRAGMENT] = sorted([*left[Table.FRAGMENT], (b"more", b"m" * LARGE)])
        assert contents(store) == left
        store.close()
        shutil.rmtree(image)


def check_that_nothing_leaks(store: Store, path: Path) -> None:
    live: dict[int, int] = {}
    with store.batch() as view:
        for key in view.keys(Table.FRAGMENT, b"", b"\xff"):
            extent = extent_in(key, row_of(store, key))
            if extent is not None:
                live[extent.segment] = live.get(extent.segment, 0) + extent.block_bytes
    kept = store.segments._counts
    assert {number: each.live_bytes for number, each in kept.items() if each.live_bytes} == live
    held = sum(live.values())
    # Rows behind the last fragment of a record may take a block that belongs to none.
    assert held <= disk_bytes(path) - store.space.others().spare_bytes <= held * 1.4 + 64 * KIB


def test_a_segment_is_flushed_before_lmdb_points_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path, Durability.INTERVAL)
    put(store, fragment(b"k", os.urandom(LARGE)))
    flushed = []
    sync = os.fdatasync

    def note(file: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", note)
    committed: list[list[str]] = []
    let_go = Store._let_go

    def checkpoint(store: Store) -> None:
        committed.append(list(flushed))
        let_go(store)

    monkeypatch.setattr(Store, "_let_go", checkpoint)
    store.settled_figures()
    assert committed == [["0000000001"]]
    put(store, fragment(b"l", os.urandom(LARGE)))
    flushed.clear()
    store.sync()
    assert flushed == ["0000000001", "journal"][: len(flushed)]
    assert flushed
    monkeypatch.undo()
    store.close()


def test_an_error_of_the_disk_ends_the_use_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    put(store, fragment(b"k", b"v" * LARGE))

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "the disk is broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", broken)
        with pytest.raises(StoreFailed, match="the disk is broken"):
            put(store, fragment(b"l", b"w" * LARGE))
    killed(store)
    store = opened(tmp_path)
    assert get(store, b"k") == b"v" * LARGE
    assert get(store, b"l") is None
    store.close()


def test_a_disk_that_is_full_in_the_midst_of_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On file systems that copy on write, blocks that were given are not those that are written."""
    store = opened(tmp_path)
    put(store, fragment(b"k", b"v" * LARGE))
    write = os.pwritev

    def full(file: int, buffers: list[bytes], at: int) -> int:
        write(file, [b"".join(buffers)[: LARGE // 2]], at)
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        put(store, fragment(b"l", b"w" * LARGE))
    assert extent_in(b"l", row_of(store, b"l")) is None
    store.settled_figures()
    put(store, fragment(b"m", b"x" * LARGE))
    assert extent_of(store, b"m")
    killed(store)
    store = opened(tmp_path)
    assert [get(store, key) for key in (b"k", b"l", b"m")] == [
        b"v" * LARGE, b"w" * LARGE, b"x" * LARGE,
    ]  # fmt: skip
    store.close()


def test_notes_that_are_damaged_are_named(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, fragment(b"k", b"v" * LARGE))
    store.close()
    with lmdb.open(str(tmp_path / "store"), max_dbs=9) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as transaction:
            transaction.put(b"segments", b"short", db=meta)
    with pytest.raises(UsageError, match=r"its segments cannot be read.*move this directory"):
        opened(tmp_path)
