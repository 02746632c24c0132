"""The journal: what was committed since the last checkpoint, whatever moment a crash chooses."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from bftfs.cluster import Durability
from bftfs.identifiers import NodeId
from bftfs.limits import KIB, MIB
from bftfs.storage import MemoryStorage, Table, Write
from nodes import journal as journals
from nodes import store as stores
from nodes.journal import Journal
from nodes.store import Store

CLUSTER = bytes(16)
KEY = b"k" * 32

rows = st.tuples(
    st.sampled_from(Table).map(int),
    st.binary(min_size=1, max_size=40),
    st.one_of(st.none(), st.binary(max_size=2000)),
)
batches = st.lists(st.lists(rows, max_size=5), max_size=12)


def replayed(path: Path, after: int = 0) -> list[list[Write]]:
    journal = Journal(path, key=KEY, synced=False)
    found = list(journal.replay(after))
    journal.close()
    return found


def as_writes(batch: list[tuple[int, bytes, bytes | None]]) -> list[Write]:
    return [Write(Table(table), key, value) for table, key, value in batch]


# --- the file --------------------------------------------------------------------------------


@given(batches, st.booleans())
def test_what_is_appended_is_replayed(
    appended: list[list[tuple[int, bytes, bytes | None]]], synced: bool
) -> None:
    path = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp") / f"journal-{os.getpid()}"
    path.unlink(missing_ok=True)
    try:
        journal = Journal(path, key=KEY, synced=synced)
        assert list(journal.replay(7)) == []
        for batch in appended:
            journal.append(batch)
        assert journal.sequence == 7 + len(appended)
        journal.close()
        assert replayed(path, after=7) == [as_writes(batch) for batch in appended]
        assert replayed(path, after=8) == []
    finally:
        path.unlink()


def written(path: Path, values: list[bytes], *, after: int = 0) -> Journal:
    """A journal with a batch for each value."""
    journal = Journal(path, key=KEY, synced=True)
    list(journal.replay(after))
    for value in values:
        journal.append([(int(Table.STATE), b"k", value)])
    return journal


def values_in(path: Path, after: int = 0) -> list[bytes | memoryview | None]:
    return [batch[0].value for batch in replayed(path, after)]


def test_a_record_that_is_cut_short_or_changed_ends_the_replay(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    values = [b"a" * 100, b"b" * 700, b"c" * 10]
    written(path, values).close()
    whole = path.read_bytes().rstrip(b"\0")
    for cut in range(0, len(whole), 13):
        path.write_bytes(whole[:cut])
        found = values_in(path)
        assert found == values[: len(found)]
        assert len(found) < 3
    for at in range(40):
        path.write_bytes(whole[: 512 + at] + bytes([whole[512 + at] ^ 1]) + whole[513 + at :])
        assert values_in(path) == values[:1]


def test_a_whole_record_that_holds_no_batch_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for batch in (b"\xc1", b"\x91\x93\x63\xc4\x01k\xc0"):  # no MessagePack; no such table
        record = journals._HEADER.pack(b"", 1, len(batch))[16:] + batch
        path.write_bytes(blake3(record, key=KEY).digest(16) + record)
        with pytest.raises(OSError, match="holds no batch"):
            replayed(path)


@pytest.mark.parametrize("forged", [False, True])
def test_records_after_a_gap_are_noticed_unless_they_are_forged(
    tmp_path: Path, forged: bool
) -> None:
    """A client knows all of a record but its key, and could else keep nodes from starting."""
    secret, guess = b"s" * 32, b"g" * 32
    path, image = tmp_path / "journal", tmp_path / "image"
    for file, key in ((path, secret), (image, guess if forged else secret)):
        journal = Journal(file, key=key, synced=True)
        for value in (b"1", b"2", b"3"):
            journal.append([(int(Table.STATE), b"k", value)])
        journal.close()
    records = path.read_bytes()
    path.write_bytes(records[:512] + bytes(512) + image.read_bytes()[1024:])
    journal = Journal(path, key=secret, synced=True)
    assert len(list(journal.replay(0))) == 1
    assert journal.breaks_off() is not forged
    path.write_bytes(records)
    assert len(list(journal.replay(0))) == 3
    assert not journal.breaks_off()
    journal.close()


def test_what_an_earlier_pass_has_left_is_not_replayed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = written(path, [b"%d" % number for number in range(10)])
    journal.clear()
    for value in (b"x", b"y"):
        journal.append([(int(Table.STATE), b"k", value)])
    journal.close()
    assert values_in(path, after=10) == [b"x", b"y"]


def test_appending_goes_on_after_a_replay(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, [b"a", b"b"]).close()
    journal = Journal(path, key=KEY, synced=True)
    assert len(list(journal.replay(0))) == 2
    journal.append([(int(Table.STATE), b"k", memoryview(b"c"))])
    journal.close()
    assert values_in(path) == [b"a", b"b", b"c"]


def test_most_appends_leave_the_file_as_long_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = written(path, [b"a"])
    lengths = set()
    for _ in range(1000):
        journal.append([(int(Table.STATE), b"k", b"b" * 1000)])
        lengths.add(path.stat().st_size)
    assert 1 < len(lengths) < 5
    journal.close()
    assert len(values_in(path)) == 1001


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    journal = written(path, [b"a"])

    def stingy(file: int, buffers: list[bytes], offset: int) -> int:
        return os.pwrite(file, b"".join(buffers)[:10], offset)

    monkeypatch.setattr(os, "pwritev", stingy)
    journal.append([(int(Table.STATE), b"k", b"b" * 5000)])
    journal.close()
    assert values_in(path) == [b"a", b"b" * 5000]


# --- the store over it -----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frequent checkpoints, in files that are quickly copied."""
    monkeypatch.setattr(stores, "HEADROOM_BYTES", 1 * MIB)
    monkeypatch.setattr(stores, "JOURNAL_BYTES", 64 * KIB)


def opened(path: Path, durability: Durability) -> Store:
    return Store.open(path, cluster=CLUSTER, node=NodeId(0), durability=durability)


def contents(view: Store | MemoryStorage) -> dict[Table, list[tuple[bytes, bytes]]]:
    if isinstance(view, Store):
        with view.batch() as batch:
            return {
                table: list(batch.scan(table, b"", b"\xff"))
                for table in Table
                if table is not Table.META
            }
    return {
        table: list(view.scan(table, b"", b"\xff")) for table in Table if table is not Table.META
    }


class History:
    """A store, and what was in it after each batch."""

    def __init__(self, path: Path, durability: Durability, seed: int) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.store = opened(path, durability)
        self.model = MemoryStorage()
        self.states = [contents(self.model)]

    def change(self, batches: int) -> None:
        """Batches that put, overwrite and delete rows, small and large."""
        for _ in range(batches):
            writes = []
            for _ in range(self.chance.randint(1, 6)):
                table = self.chance.choice((Table.STATE, Table.FRAGMENT, Table.OBJECT))
                value = self.chance.choice((None, b"s" * 100, self.chance.randbytes(3000)))
                writes.append(Write(table, b"%d" % self.chance.randint(0, 40), value))
            writes.append(Write(Table.REQUEST, b"batch", b"%d" % len(self.states)))
            with self.store.batch() as batch:
                batch.apply(writes)
                batch.commit()
            self.model.apply(writes)
            self.states.append(contents(self.model))

    def copy(self, name: str) -> Path:
        """What a process that is killed now leaves."""
        copied = self.path.with_name(name)
        shutil.copytree(self.path, copied)
        return copied


@pytest.mark.parametrize("durability", list(Durability))
def test_a_killed_process_leaves_every_batch(tmp_path: Path, durability: Durability) -> None:
    history = History(tmp_path / "store", durability, seed=1)
    for moment in range(25):
        history.change(history.chance.randint(1, 6))
        copied = history.copy(f"copy{moment}")
        store = opened(copied, durability)
        assert contents(store) == history.states[-1]
        store.close()
        again = opened(copied, durability)
        assert contents(again) == history.states[-1]
        again.close()
    history.store.close()


def power_failure(at_sync: Path, later: Path, chance: random.Random) -> None:
    """In `later`, keep of each page of the journal what was synced, or what was written since."""
    old = (at_sync / "journal").read_bytes()
    with (later / "journal").open("r+b") as journal:
        new = journal.read()
        for start in range(0, len(new), 4096):
            if chance.random() < 0.5:
                journal.seek(start)
                journal.write(
                    old[start : start + 4096].ljust(len(new[start : start + 4096]), b"\0")
                )


@pytest.mark.parametrize("seed", range(20))
def test_a_power_cut_leaves_a_prefix_of_the_batches(tmp_path: Path, seed: int) -> None:
    history = History(tmp_path / "store", Durability.INTERVAL, seed)
    path = history.path
    for life in range(4):
        history.change(history.chance.randint(0, 12))
        history.store.sync()
        synced = len(history.states) - 1
        at_sync = history.copy(f"synced{life}")
        history.change(history.chance.randint(1, 12))
        image = history.copy(f"image{life}")
        power_failure(at_sync, image, history.chance)
        history.store.close()
        shutil.rmtree(path)
        image.rename(path)
        # The machine starts again, and the node goes on from whatever is left.
        history.store = opened(path, Durability.INTERVAL)
        left = contents(history.store)
        last = int(dict(left[Table.REQUEST]).get(b"batch", b"0"))
        assert last >= synced
        assert left == history.states[last]
        del history.states[last + 1 :]
        history.model = MemoryStorage()
        history.model.apply(
            Write(table, key, value) for table, found in left.items() for key, value in found
        )
    history.store.close()


def test_remains_of_a_lost_batch_do_not_come_back(tmp_path: Path) -> None:
    path = tmp_path / "store"
    first = opened(path, Durability.INTERVAL)
    for value in (b"1", b"2", b"3", b"4"):
        put(first, value)
    copied = tmp_path / "image"
    shutil.copytree(path, copied)
    first.close()
    # The machine crashes; the third batch has not reached the disk, the fourth has.
    with (copied / "journal").open("r+b") as journal:
        journal.seek(2 * 512)
        journal.write(bytes(512))
    second = opened(copied, Durability.INTERVAL)
    with second.batch() as view:
        assert view.get(Table.STATE, b"k") == b"2"
    # A record as long as three, behind which the fourth of the first life would be the next one.
    put(second, b"a" * 1200)
    shutil.copytree(copied, tmp_path / "image2")
    second.close()
    third = opened(tmp_path / "image2", Durability.INTERVAL)
    with third.batch() as view:
        assert view.get(Table.STATE, b"k") == b"a" * 1200
    third.close()


def put(store: Store, value: bytes) -> None:
    with store.batch() as batch:
        batch.apply([Write(Table.STATE, b"k", value)])
        batch.commit()


def test_a_dropped_batch_takes_nothing_else_with_it(tmp_path: Path) -> None:
    history = History(tmp_path / "store", Durability.SYNC, seed=2)
    for _ in range(20):
        history.change(3)
        with history.store.batch() as batch:
            batch.apply([Write(Table.STATE, b"%d" % number, b"dropped") for number in range(40)])
        assert contents(history.store) == history.states[-1]
    history.store.close()


def test_large_batches_go_straight_to_the_file(tmp_path: Path) -> None:
    store = opened(tmp_path / "store", Durability.SYNC)
    put(store, b"small")
    size = (tmp_path / "store" / "journal").stat().st_size
    put(store, b"v" * 2 * stores.STRAIGHT_BYTES)
    assert (tmp_path / "store" / "journal").stat().st_size == size
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    put(store, b"small again")
    store.close()
    again = opened(tmp_path / "copy", Durability.SYNC)
    with again.batch() as view:
        assert view.get(Table.STATE, b"k") == b"v" * 2 * stores.STRAIGHT_BYTES
    again.close()


def test_durability_can_be_changed_back_and_forth(tmp_path: Path) -> None:
    for turn, durability in enumerate((Durability.INTERVAL, Durability.SYNC) * 3):
        store = opened(tmp_path / "store", durability)
        with store.batch() as view:
            assert len(list(view.keys(Table.OBJECT, b"", b"\xff"))) == turn
        with store.batch() as batch:
            batch.apply([Write(Table.OBJECT, b"%d" % turn, b"v")])
            batch.commit()
        store._transaction.abort()  # what a process does not live to say
        store._release()


# --- past the page cache ---------------------------------------------------------------------


def straight(path: Path) -> Journal:
    """A journal that writes past the page cache."""
    journal = Journal(path, key=KEY, synced=True)
    if journal._direct is None:
        pytest.skip(f"the file system of {path} has no O_DIRECT")
    return journal


def test_what_went_past_the_page_cache_needs_no_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = straight(tmp_path / "journal")
    journal.append([(int(Table.STATE), b"k", b"the file grows")])
    synced = []
    monkeypatch.setattr(journals.os, "fdatasync", synced.append)
    for value in (b"a", b"b" * 511, b"c" * 5000):
        journal.append([(int(Table.STATE), b"k", value)])
        journal.sync()
    assert not synced
    assert len(values_in(tmp_path / "journal")) == 4


def test_what_is_too_long_for_that_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = straight(tmp_path / "journal")
    values = [b"a", bytes(2 * MIB), b"c"]
    syncs = []
    for value in values:
        journal.append([(int(Table.STATE), b"k", value)])
        with monkeypatch.context() as patch:
            patch.setattr(journals.os, "fdatasync", syncs.append)
            journal.sync()
    assert len(syncs) == 1
    assert values_in(tmp_path / "journal") == values


def test_larger_sectors_than_ours_are_not_written_to_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = straight(tmp_path / "journal")

    def refused(*_: object) -> int:
        raise OSError(errno.EINVAL, "not a multiple of the sector")

    values = [b"a", b"b"]
    for value in values:
        with monkeypatch.context() as patch:
            patch.setattr(journals.DirectFile, "write", refused)
            journal.append([(int(Table.STATE), b"k", value)])
        journal.sync()
    assert journal._direct is None
    assert values_in(tmp_path / "journal") == values


def test_an_error_of_the_disk_is_no_reason_to_try_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = straight(tmp_path / "journal")

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(journals.DirectFile, "write", broken)
    with pytest.raises(OSError, match="broken"):
        journal.append([(int(Table.STATE), b"k", b"v")])
