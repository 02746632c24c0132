"""The store of a node: what it refuses to open, what a full disk does, what it keeps in memory."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from bftfs.cluster import Durability
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId
from bftfs.limits import KIB, MIB
from bftfs.storage import Table, Write
from nodes import data_file
from nodes.journal import Journal
from nodes.store import Store
from nodes.store_directory import (
    MapFull,
    NeedsCheckpoint,
    SegmentsFull,
    StoreFailed,
    StoreFull,
    disk_bytes,
)

CLUSTER = bytes(range(16))


def opened(path: Path, *, node: int = 0, **options: object) -> Store:
    return Store.open(path / "store", cluster=CLUSTER, node=NodeId(node), **options)  # type: ignore[arg-type]


def put(
    store: Store,
    key: bytes,
    value: bytes,
    *,
    table: Table = Table.STATE,
    use_reserve: bool = False,
) -> None:
    while True:
        with contextlib.suppress(NeedsCheckpoint, SegmentsFull), store.batch() as batch:
            batch.apply([Write(table, key, value)])
            batch.commit(use_reserve=use_reserve)
            return


def has_room_again(store: Store) -> bool:
    return store.settled_figures().has_room_again


def get(store: Store, key: bytes) -> bytes | None:
    with store.batch() as view:
        return view.get(Table.STATE, key)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = opened(tmp_path)
    yield store
    store.close()


# --- opening ---------------------------------------------------------------------------------


def test_what_was_committed_is_there_after_reopening(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, b"k", b"v")
    store.close()
    again = opened(tmp_path)
    assert get(again, b"k") == b"v"
    again.close()


def test_a_batch_that_is_left_without_commit_has_not_happened(store: Store) -> None:
    with store.batch() as batch:
        batch.apply([Write(Table.STATE, b"k", b"v")])
        assert batch.get(Table.STATE, b"k") == b"v"
    assert get(store, b"k") is None


def test_two_processes_cannot_open_one_store(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
        opened(tmp_path)


def test_the_store_of_another_node_or_cluster_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(UsageError, match="belongs to node 0 of cluster 0001"):
        opened(tmp_path, node=1)
    with pytest.raises(UsageError, match="not to node 0 of cluster ffff"):
        Store.open(tmp_path / "store", cluster=b"\xff" * 16, node=NodeId(0))
    opened(tmp_path).close()


def test_a_store_of_another_format_is_refused_untouched(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with store.batch() as batch:
        batch.apply([Write(Table.META, b"format", b"3")])
        batch.commit()
    store.close()
    with pytest.raises(UsageError, match="has format 3, and this program reads format 2"):
        opened(tmp_path)
    with lmdb.open(str(tmp_path / "store"), max_dbs=9) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin() as transaction:
            assert transaction.get(b"format", db=meta) == b"3"


def damage(tmp_path: Path) -> Path:
    """The data file of a store with something in it."""
    store = opened(tmp_path)
    with store.batch() as batch:
        batch.apply([Write(Table.STATE, b"%d" % number, b"v" * 3000) for number in range(200)])
        batch.commit()
    store.close()
    return tmp_path / "store" / "data.mdb"


def test_a_store_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    os.truncate(damage(tmp_path), 100 * KIB)
    with pytest.raises(UsageError, match=r"cut short.*move this directory away"):
        opened(tmp_path)


def test_a_store_that_lost_its_head_is_refused(tmp_path: Path) -> None:
    with damage(tmp_path).open("r+b") as data:
        data.write(b"\0" * 8192)
    with pytest.raises(UsageError, match=r"is damaged.*move this directory away"):
        opened(tmp_path)


def test_an_emptied_and_a_missing_data_file_are_no_new_stores(tmp_path: Path) -> None:
    data = damage(tmp_path)
    os.truncate(data, 0)
    with pytest.raises(UsageError, match=r"data\.mdb is empty"):
        opened(tmp_path)
    data.unlink()
    with pytest.raises(UsageError, match=r"data\.mdb is missing"):
        opened(tmp_path)


def test_a_store_without_its_journal_has_lost_something(tmp_path: Path) -> None:
    damage(tmp_path)
    (tmp_path / "store" / "journal").unlink()
    with pytest.raises(UsageError, match="journal is missing"):
        opened(tmp_path)


def test_damage_met_in_reading_ends_the_use_of_the_store(tmp_path: Path) -> None:
    """Or the node would start again and serve until it meets it again, and again."""
    data = damage(tmp_path)
    pages = data.read_bytes()
    with data.open("r+b") as file:
        for start in range(0, len(pages), 4096):
            page = pages[start : start + 4096]
            if page[10:12] == b"\x02\0" and b"151" in page:  # a leaf, with this key
                file.seek(start)
                file.write(bytes(4096))
    store = opened(tmp_path)
    with pytest.raises(StoreFailed, match=r"is damaged.*move this directory away"):
        list(store.batch().scan(Table.STATE, b"", b"\xff"))
    store.close()
    with pytest.raises(UsageError, match=r"is damaged.*move this directory away"):
        opened(tmp_path)
    shutil.rmtree(tmp_path / "store")
    opened(tmp_path).close()


def test_a_batch_lost_within_the_journal_is_missed(tmp_path: Path) -> None:
    """It was acknowledged, as those after it: the node must not forget it in silence."""
    store = opened(tmp_path)
    for number in range(4):
        put(store, b"%d" % number, b"v" * 300)
    shutil.copytree(tmp_path / "store", tmp_path / "image" / "store")
    store.close()
    with (tmp_path / "image" / "store" / "journal").open("r+b") as journal:
        journal.seek(512 + 100)
        journal.write(b"!")
    for _ in range(2):
        with pytest.raises((StoreFailed, UsageError), match=r"journal are lost.*move this"):
            opened(tmp_path / "image")


def test_a_journal_that_was_cut_short_is_missed(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, b"k", b"v")
    store.close()
    os.truncate(tmp_path / "store" / "journal", 512)
    with pytest.raises(UsageError, match=r"cut short.*move this directory away"):
        opened(tmp_path)


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_store_that_goes_while_it_is_open_is_used_no_more(tmp_path: Path, how: str) -> None:
    """What a node acknowledges from then on would be lost at its next start."""
    store = opened(tmp_path)
    put(store, b"k", b"v")
    if how == "removed":
        shutil.rmtree(tmp_path / "store")
        # A question about its health must not be what ends the node.
        assert store.space.free_bytes > 0
        assert disk_bytes(tmp_path / "store") == 0
    else:
        os.truncate(tmp_path / "store" / "data.mdb", 4096)
    with pytest.raises(StoreFailed, match="removed or cut short its file while it was in use"):
        store.batch()
    store.close()
    if how == "removed":
        opened(tmp_path).close()  # a new one: `nodes.store_directory` has to notice
    else:
        with pytest.raises(UsageError, match="move this directory away"):
            opened(tmp_path)


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_journal_that_goes_while_it_is_open_is_used_no_more(tmp_path: Path, how: str) -> None:
    store = opened(tmp_path)
    put(store, b"k", b"v")
    if how == "removed":
        (tmp_path / "store" / "journal").unlink()
    else:
        os.truncate(tmp_path / "store" / "journal", 0)
    with pytest.raises(StoreFailed, match="removed it, or cut it short"):
        put(store, b"l", b"v")


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "store"), max_dbs=1) as environment:
        environment.open_db(b"something")
    (tmp_path / "store" / "journal").touch()
    with pytest.raises(UsageError, match="not the store of a bftfs node"):
        opened(tmp_path)


def test_a_store_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be opened"):
        Store.open(tmp_path / "file" / "store", cluster=CLUSTER, node=NodeId(0))


def test_a_store_whose_making_was_interrupted_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "store.new").mkdir()
    (tmp_path / "store.new" / "data.mdb").write_bytes(b"half")
    store = opened(tmp_path)
    put(store, b"k", b"v")
    store.close()


# --- room ------------------------------------------------------------------------------------


def test_a_full_map_grows_and_the_batch_is_stepped_again(tmp_path: Path) -> None:
    store = opened(tmp_path, map_bytes=128 * KIB)
    writes = [Write(Table.STATE, b"%d" % number, b"v" * 64 * KIB) for number in range(4)]
    attempts = 0
    while True:
        attempts += 1
        try:
            with store.batch() as batch:
                batch.apply(writes)
                batch.commit()
            break
        except MapFull:
            with store.batch() as view:
                assert list(view.keys(Table.STATE, b"", b"\xff")) == []
    assert attempts > 1
    with store.batch() as view:
        assert len(list(view.keys(Table.STATE, b"", b"\xff"))) == 4
    store.close()


def test_a_map_that_the_checkpoint_itself_outgrows_grows(tmp_path: Path) -> None:
    """What the store notes with a checkpoint may be what there is no room for."""
    store = opened(tmp_path, durability=Durability.INTERVAL, map_bytes=128 * KIB)
    long = bytes(30 * KIB)
    nothing = [Write(Table.STATE, b"\0", None)] * 4
    first, second = Write(Table.STATE, b"\0", long), Write(Table.STATE, b"\1", long)
    past, empty = Write(Table.PAST, b"\0", long), Write(Table.FRAGMENT, b"\0", b"")
    last = Write(Table.FRAGMENT, b"\0", long)
    for writes in ([*nothing, first, second, past, empty], [first, past, last]):
        while True:
            try:
                with store.batch() as batch:
                    batch.apply(writes)
                    batch.commit()
                break
            except MapFull:
                continue
    with store.batch() as view:
        for write in (first, second, past, last):
            assert view.get(write.table, write.key) == long
    store.close()


def test_a_start_that_outgrows_the_map_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is read again then, with the secret with which it was written."""
    store = opened(tmp_path)
    put(store, b"k", b"v")
    store._transaction.abort()  # what a process does not live to say
    store._release()
    commit = Store._commit_transaction
    outgrown: list[Store] = []

    def outgrows(store: Store) -> None:
        if not outgrown:
            outgrown.append(store)
            store._transaction.abort()
            raise MapFull
        commit(store)

    monkeypatch.setattr(Store, "_commit_transaction", outgrows)
    again = opened(tmp_path)
    assert outgrown
    assert get(again, b"k") == b"v"
    again.close()


def test_many_small_batches_never_outgrow_the_map(tmp_path: Path) -> None:
    store = opened(tmp_path, map_bytes=256 * KIB, durability=Durability.INTERVAL)
    for number in range(300):
        put(store, b"%d" % number, b"v" * 16 * KIB)
    assert store.space.used_bytes > 4 * MIB
    store.close()


def test_a_store_at_its_capacity_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    store = opened(tmp_path, capacity_bytes=1 * MIB)
    put(store, b"k", b"v")
    with pytest.raises(StoreFull, match="has reached its 1048576 bytes"):
        put(store, b"big", b"v" * 2 * MIB)
    assert get(store, b"k") == b"v"
    assert get(store, b"big") is None
    put(store, b"k", b"w")
    assert get(store, b"k") == b"w"
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(path)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_refuses_the_batch_and_loses_nothing(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"b" * MIB)
    store = opened(small_disk)
    written = 0
    try:
        while written < 100:
            put(store, b"%04d" % written, b"v" * 100 * KIB)
            written += 1
    except StoreFull as full:
        assert full.reason == "the disk is full"  # noqa: PT017 - the last write is to fail
    assert 0 < written < 100
    assert not has_room_again(store)
    for number in range(written):
        assert get(store, b"%04d" % number) == b"v" * 100 * KIB
    assert get(store, b"%04d" % written) is None
    (small_disk / "ballast").unlink()
    assert has_room_again(store)
    put(store, b"again", b"v" * 100 * KIB)
    assert get(store, b"again") == b"v" * 100 * KIB
    store.close()


def test_the_reserve_stores_on_a_disk_without_a_free_byte(
    small_disk: Path,
) -> None:
    store = opened(small_disk)
    put(store, b"k", b"v")
    stuff(small_disk / "ballast")
    for number in range(40):  # what was taken from the disk ahead
        with contextlib.suppress(StoreFull):
            put(store, b"%04d" % number, b"v" * 16 * KIB)
    with pytest.raises(StoreFull, match="the disk is full"):
        put(store, b"refused", b"v" * 16 * KIB)
    assert store.space.free_bytes < 64 * KIB
    drawable = store.space.figures().drawable_bytes
    assert store.space.reserve_bytes // 2 < drawable <= 2 * store.space.reserve_bytes
    drawn = 0
    while store.space.figures().drawable_bytes > drawable // 2:
        put(store, b"drawn %04d" % drawn, b"v" * KIB, use_reserve=True)
        drawn += 1
    assert drawn >= drawable // (2 * 9 * KIB)
    store.close()
    store = opened(small_disk)  # on the full disk
    for number in range(drawn):
        assert get(store, b"drawn %04d" % number) == b"v" * KIB
    (small_disk / "ballast").unlink()
    assert has_room_again(store)
    put(store, b"again", b"v" * 100 * KIB)
    store.close()


def test_the_reserve_is_there_after_a_restart_on_a_full_disk(small_disk: Path) -> None:
    opened(small_disk).close()
    stuff(small_disk / "ballast")
    store = opened(small_disk)
    for number in range(10):
        put(store, b"%d" % number, b"v" * KIB, use_reserve=True)
    assert get(store, b"9") == b"v" * KIB
    assert store.space.figures().drawable_bytes > 0
    store.close()


def stuff(path: Path) -> None:
    """Leave nothing on a disk."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4 * KIB)) == 4 * KIB:
            pass
    assert not os.statvfs(path).f_bavail


def held_after_many_rows(tmp_path: Path) -> tuple[int, int]:
    """What the data file holds of the disk after a rebuild, and what it has to hold."""
    store = opened(tmp_path)
    rows = 20_000  # each may let the file grow by 8 KiB, and does by far less
    with store.batch() as batch:
        batch.apply(Write(Table.STATE, b"%06d" % number, b"v") for number in range(rows))
        batch.commit()
    for number in range(4):
        put(store, b"later", b"%d" % number)
        store._checkpoint()
    file = next((tmp_path / "store").rglob("data.mdb"))
    held = file.stat().st_blocks * 512
    needed = store.space.used_bytes + store.space.reserve_bytes
    store.close()
    store = opened(tmp_path)
    assert get(store, b"000000") == get(store, b"%06d" % (rows - 1)) == b"v"
    store.close()
    return held, needed


def test_what_was_taken_ahead_and_not_needed_is_given_back(tmp_path: Path) -> None:
    held, needed = held_after_many_rows(tmp_path)
    most = needed + data_file.AHEAD_BYTES + data_file.SURPLUS_BYTES
    assert needed <= held <= most


def test_must_fail_where_nothing_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_file, "give_back", lambda *_: errno.EOPNOTSUPP)
    with pytest.raises(AssertionError):
        test_what_was_taken_ahead_and_not_needed_is_given_back(tmp_path)


def test_an_error_of_the_disk_is_not_taken_for_a_full_one(store: Store) -> None:
    error = lmdb.Error("mdb_txn_commit: Input/output error")
    error.code = errno.EIO
    assert isinstance(store.failure(error, 0), StoreFailed)


# --- crashes ---------------------------------------------------------------------------------

_WRITER = """
import sys
from pathlib import Path
from bftfs.cluster import Durability
from bftfs.identifiers import NodeId
from bftfs.storage import Table, Write
from nodes.store import Store
store = Store.open(Path(sys.argv[1]), cluster=bytes(range(16)), node=NodeId(0),
                   durability=Durability(sys.argv[2]))
number = 0
while True:
    with store.batch() as batch:
        batch.apply([Write(Table.STATE, b"%08d" % number, b"v" * (number * 37 % 5000)),
                     Write(Table.FRAGMENT, b"%08d" % number, b"f" * (number * 337 % 30000)),
                     Write(Table.OBJECT, b"last", b"%d" % number)])
        batch.commit()
    print(number, flush=True)
    number += 1
"""


@pytest.mark.parametrize("durability", list(Durability))
def test_kill_minus_nine_loses_nothing_that_was_committed(
    tmp_path: Path, durability: Durability
) -> None:
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "store"), durability.value],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        for _ in range(150):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        acknowledged = 149 + len(writer.stdout.readlines())
        writer.wait()
        store = opened(tmp_path, durability=durability)
        with store.batch() as view:
            last = int(view.get(Table.OBJECT, b"last") or b"-1")
            rows = dict(view.scan(Table.STATE, b"", b"\xff"))
            fragments = dict(view.scan(Table.FRAGMENT, b"", b"\xff"))
        assert last >= acknowledged
        for number in range(acknowledged + 1):
            assert rows[b"%08d" % number] == b"v" * (number * 37 % 5000)
            assert fragments[b"%08d" % number] == b"f" * (number * 337 % 30000)
        store.close()


def test_under_interval_durability_a_sync_is_due_after_a_commit(tmp_path: Path) -> None:
    store = opened(tmp_path, durability=Durability.INTERVAL)
    assert not store.unsynced
    put(store, b"k", b"v")
    assert store.unsynced
    store.sync()
    assert not store.unsynced
    store.close()


def test_what_is_committed_while_a_sync_runs_wants_the_next_one(tmp_path: Path) -> None:
    store = opened(tmp_path, durability=Durability.INTERVAL)
    put(store, b"k", b"v")
    done = threading.Event()
    store.start_sync(done.set)
    assert store.syncing
    put(store, b"k", b"w")
    assert done.wait(10)
    store.finish_sync()
    assert not store.syncing
    assert store.unsynced
    store.close()


def test_a_sync_that_fails_stops_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path, durability=Durability.INTERVAL)
    put(store, b"k", b"v")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "sync", fail)
        store.start_sync(lambda: None)
        with pytest.raises(StoreFailed, match=r"cannot be synced.*the disk is gone"):
            store.finish_sync()
    store.close()


# --- memory ----------------------------------------------------------------------------------


def mapped_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile"))


def test_reading_much_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mapped_bytes()
    limit = before + 8 * MIB
    monkeypatch.setattr(data_file, "RESIDENT_BYTES_MAX", limit)
    store = opened(tmp_path, durability=Durability.INTERVAL)
    for number in range(64):
        put(store, b"%d" % number, os.urandom(MIB))
    most = 0
    for number in range(64):
        assert len(get(store, b"%d" % number) or b"") == MIB
        most = max(most, mapped_bytes())
    assert most < limit + data_file.BYTES_PER_LOOK + 4 * MIB
    store.close()


# --- freed space -----------------------------------------------------------------------------


def test_space_that_was_freed_is_used_again(tmp_path: Path) -> None:
    store = opened(tmp_path, capacity_bytes=64 * MIB)
    for life in range(6):  # in all, three times what the store can hold
        for number in range(256):
            put(store, b"%d %d" % (life, number), os.urandom(128 * KIB), table=Table.FRAGMENT)
        full, free = store.space.measure().live_bytes, store.space.free_bytes
        assert 32 * MIB <= full < 40 * MIB
        with store.batch() as batch:
            batch.apply(
                [Write(Table.FRAGMENT, b"%d %d" % (life, each), None) for each in range(256)]
            )
            batch.commit()
        assert store.space.measure().live_bytes < MIB
        assert store.space.free_bytes >= free + 24 * MIB
    assert store.space.used_bytes < 64 * MIB
    store.close()
