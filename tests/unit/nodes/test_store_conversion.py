"""A store of the format before is taken over whole, or left as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import lmdb
import pytest

from bftfs.cluster import Durability
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId
from bftfs.limits import KIB
from bftfs.server import known_runs
from bftfs.storage import Table, Write
from nodes import store_conversion, store_directory
from nodes.journal import Journal
from nodes.segments import extent_in
from nodes.store import Store
from nodes.store_conversion import convert
from nodes.store_directory import StoreFull
from nodes.store_place import place_of

CLUSTER = bytes(range(16))
ROWS = {
    (Table.FRAGMENT, b"large"): os.urandom(40 * KIB),
    (Table.FRAGMENT, b"small"): b"\1" * 21,  # as long as a row that points to a segment
    (Table.FRAGMENT, b"empty"): b"",
    (Table.STATE, b"state"): os.urandom(30 * KIB),
    (Table.META, b"scrub"): b"what a worker notes",
}
IN_JOURNAL = [
    Write(Table.FRAGMENT, b"later", os.urandom(50 * KIB)),
    Write(Table.STATE, b"gone", None),
]


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A store of format 1, as its node left it when it was killed."""
    path = tmp_path / "node" / "store"
    path.mkdir(parents=True)
    key = b"k" * 32
    with lmdb.open(str(path), max_dbs=len(Table), map_size=1 << 24) as environment:
        databases = [environment.open_db(table.name.lower().encode()) for table in Table]
        notes = {
            b"format": b"1",
            b"owner": store_directory.owner_of(CLUSTER, NodeId(3)),
            store_directory.CHECKPOINT: (7).to_bytes(8, "big"),
            store_directory.JOURNAL_ROOM: bytes(8),
            store_directory.JOURNAL_KEY: key,
        }
        with environment.begin(write=True) as transaction:
            for name, value in notes.items():
                transaction.put(name, value, db=databases[Table.META])
            for (table, name), value in ROWS.items():
                transaction.put(name, value, db=databases[table])
            transaction.put(b"gone", b"!", db=databases[Table.STATE])
    journal = Journal(path / "journal", key=key, synced=False)
    list(journal.replay(7))
    journal.append(IN_JOURNAL)
    journal.close()
    store_directory.lock_file(path).touch()
    return path


def opened(path: Path) -> Store:
    return Store.open(path, cluster=CLUSTER, node=NodeId(3), durability=Durability.SYNC)


def check(path: Path) -> None:
    store = opened(path)
    with store.batch() as view:
        for (table, key), value in ROWS.items():
            assert view.get(table, key) == value
        assert view.get(Table.FRAGMENT, b"later") == IN_JOURNAL[0].value
        assert view.get(Table.STATE, b"gone") is None
    for key, is_large in ((b"large", True), (b"later", True), (b"small", False)):
        row = store._transaction.get(key, db=store.databases[Table.FRAGMENT])
        assert (extent_in(key, row) is not None) is is_large
    store.close()


def test_a_store_of_the_format_before_is_refused_with_the_command(before: Path) -> None:
    with pytest.raises(UsageError, match=rf"run `bftfs node convert --data {before.parent}`"):
        opened(before)


def test_it_is_taken_over(before: Path) -> None:
    assert convert(before)
    check(before)
    assert sorted(file.name for file in before.parent.iterdir()) == ["store", "store.lock"]
    assert not convert(before), "it has been already"
    check(before)


def test_what_interrupts_it_has_changed_nothing(
    before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("_put", "_exchange"):
        with monkeypatch.context() as patch:
            patch.setattr(store_conversion, name, stop)
            with pytest.raises(KeyboardInterrupt):
                convert(before)
        with pytest.raises(UsageError, match="bftfs node convert"):
            opened(before)
    assert convert(before)
    check(before)


def test_what_interrupts_it_at_the_end_is_no_loss(
    before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store_conversion.shutil, "rmtree", lambda *_, **__: None)
        convert(before)
    assert (before.parent / "store.converted").exists()
    check(before)
    assert not convert(before)
    assert not (before.parent / "store.converted").exists()


def test_a_disk_without_room_is_named(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 1, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    with pytest.raises(UsageError, match=r"has to fit beside it.*make room, or move this"):
        convert(before)


def test_what_was_copied_is_removed_if_it_does_not_fit(
    before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was changed: nor is the room less that the program before has."""

    def full(store: Store, *_: object) -> None:
        raise StoreFull(store.path, "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store_conversion, "_put", full)
        with pytest.raises(UsageError, match="nothing was changed: make room and try again"):
            convert(before)
    assert not (before.parent / "store.converted").exists()
    assert convert(before)
    check(before)


@pytest.mark.parametrize("copied", [False, True])
def test_the_store_of_a_node_that_was_killed_is_no_copy(before: Path, copied: bool) -> None:
    """Unless it was one before."""
    place = b"somewhere else" if copied else place_of(before)
    note(before, known_runs.lies_in(place))
    assert convert(before)
    store = opened(before)
    with store.batch() as view:
        assert known_runs.lies_elsewhere(view, place_of(before)) is copied
    store.close()


def note(path: Path, write: Write) -> None:
    assert write.value is not None
    with lmdb.open(str(path), max_dbs=len(Table), map_size=1 << 24) as environment:
        database = environment.open_db(write.table.name.lower().encode())
        with environment.begin(write=True) as transaction:
            transaction.put(write.key, write.value, db=database)


def test_two_directories_that_cannot_change_places(
    before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_conversion, "_renameat2", lambda *_: -1)
    with pytest.raises(UsageError, match=r"store\.converted: it is the converted store") as caught:
        convert(before)
    assert f"move {before} away" in str(caught.value)
    shutil.rmtree(before)
    (before.parent / "store.converted").rename(before)
    check(before)


def test_what_is_no_store_of_that_format_is_refused(tmp_path: Path, before: Path) -> None:
    with pytest.raises(UsageError, match="there is no store"):
        convert(tmp_path / "store")
    with lmdb.open(str(before), max_dbs=9) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as transaction:
            transaction.put(b"format", b"3", db=meta)
    with pytest.raises(UsageError, match="has format 3, and this program reads format 2; run the"):
        convert(before)
    os.truncate(before / "data.mdb", 8192)
    with pytest.raises(UsageError, match="cut short"):
        convert(before)


def test_a_node_that_runs_keeps_its_store(before: Path) -> None:
    lock = store_directory.lock(before)
    with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
        convert(before)
    os.close(lock)
