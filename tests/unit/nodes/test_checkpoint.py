"""A machine that crashes, whatever its kernel had written, leaves the last synced snapshot."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from bftfs.cluster import Durability
from bftfs.identifiers import NodeId
from bftfs.limits import KIB, MIB
from bftfs.storage import Table, Write
from nodes import checkpoint as checkpoints
from nodes import store as stores
from nodes.checkpoint import Checkpoint
from nodes.store import Store

CLUSTER = bytes(16)
PAGE = 4 * KIB
OTHER_BOOT = b"00000000-0000-0000-0000-000000000000"


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "HEADROOM_BYTES", 1 * MIB)


def opened(path: Path, durability: Durability = Durability.INTERVAL) -> Store:
    return Store.open(path, cluster=CLUSTER, node=NodeId(0), durability=durability)


def contents(store: Store) -> dict[Table, list[tuple[bytes, bytes]]]:
    with store.snapshot() as view:
        return {table: list(view.scan(table, b"", b"\xff" * 400)) for table in Table}


def change(store: Store, chance: random.Random, batches: int) -> None:
    """Batches that put, overwrite and delete rows, small and large."""
    for _ in range(batches):
        writes = []
        for _ in range(chance.randint(1, 8)):
            table = chance.choice((Table.STATE, Table.FRAGMENT, Table.OBJECT))
            value = chance.choice(
                (None, b"s" * 100, chance.randbytes(3000), chance.randbytes(9000))
            )
            writes.append(Write(table, b"%d" % chance.randint(0, 60), value))
        with store.batch() as batch:
            batch.apply(writes)
            batch.commit()


def power_failure(at_sync: Path, later: Path, image: Path, chance: random.Random) -> None:
    """The disk after a crash: of each page that was written since the sync, the old or the new."""
    shutil.copytree(at_sync, image)
    with (
        (at_sync / "data.mdb").open("rb") as old,
        (later / "data.mdb").open("rb") as new,
        (image / "data.mdb").open("r+b") as data,
    ):
        start = 0
        while written := new.read(PAGE):
            if written != old.read(PAGE) and chance.random() < 0.5:
                data.seek(start)
                data.write(written)
            start += PAGE


@pytest.fixture
def rebooted(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the machine has another boot id than before."""
    for module in (checkpoints, stores):
        monkeypatch.setattr(module, "boot_id", lambda: OTHER_BOOT)


def crashed(tmp_path: Path, seed: int) -> tuple[Path, dict[Table, list[tuple[bytes, bytes]]]]:
    """A store after a crash of its machine, and what was in it when it was synced last."""
    chance = random.Random(seed)
    path = tmp_path / "store"
    store = opened(path)
    change(store, chance, batches=chance.randint(0, 30))
    store.sync()
    change(store, chance, batches=chance.randint(0, 5))
    store.sync()
    synced = contents(store)
    shutil.copytree(path, tmp_path / "at-sync")
    change(store, chance, batches=chance.randint(1, 25))
    shutil.copytree(path, tmp_path / "later")
    store.close()
    power_failure(tmp_path / "at-sync", tmp_path / "later", tmp_path / "image", chance)
    return tmp_path / "image", synced


@pytest.mark.parametrize("seed", range(20))
def test_the_last_synced_snapshot_survives(tmp_path: Path, seed: int) -> None:
    image, synced = crashed(tmp_path, seed)
    with pytest.MonkeyPatch.context() as patch:
        for module in (checkpoints, stores):
            patch.setattr(module, "boot_id", lambda: OTHER_BOOT)
        store = opened(image)
        assert contents(store) == synced
        change(store, random.Random(seed), batches=5)  # and it goes on from there
        store.close()


def test_it_does_not_survive_without_the_checkpoint(tmp_path: Path) -> None:
    damaged = 0
    for seed in range(20):
        directory = tmp_path / str(seed)
        directory.mkdir()
        image, synced = crashed(directory, seed)
        (image / "checkpoint").unlink()
        try:
            store = opened(image)
            damaged += contents(store) != synced
            store.close()
        except Exception:  # whatever LMDB makes of it
            damaged += 1
    assert damaged > 4


def test_after_the_crash_of_the_process_alone_the_latest_commit_is_there(tmp_path: Path) -> None:
    store = opened(tmp_path / "store")
    change(store, random.Random(1), batches=20)
    latest = contents(store)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")  # not synced, not closed
    store.close()
    again = opened(tmp_path / "copy")
    assert contents(again) == latest
    again.close()


@pytest.mark.usefixtures("rebooted")
def test_a_clean_stop_before_the_machine_stops_loses_nothing(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (checkpoints, stores):
            patch.setattr(module, "boot_id", lambda: b"1" * 36)
        store = opened(tmp_path / "store")
        change(store, random.Random(1), batches=20)
        latest = contents(store)
        store.close()
    again = opened(tmp_path / "store")
    assert contents(again) == latest
    again.close()


def test_durability_can_be_changed_back_and_forth(tmp_path: Path) -> None:
    for boot, durability in enumerate((Durability.INTERVAL, Durability.SYNC) * 3):
        with pytest.MonkeyPatch.context() as patch:
            for module in (checkpoints, stores):
                patch.setattr(module, "boot_id", lambda boot=boot: b"%36d" % boot)
            store = opened(tmp_path / "store", durability)
            before = contents(store)[Table.STATE]
            assert len(before) == boot
            with store.batch() as batch:
                batch.apply([Write(Table.STATE, b"%d" % boot, b"v")])
                batch.commit()
            if durability is Durability.INTERVAL:
                store.close()
            else:
                store._release()  # without the sync of a clean stop
            assert (tmp_path / "store" / "checkpoint").exists() == (
                durability is Durability.INTERVAL
            )


def test_of_two_slots_one_is_always_whole(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    checkpoint = Checkpoint(path)
    assert checkpoint.newest() is None
    for number in range(5):
        checkpoint.save(b"%d" % number * 8192)
        newest = checkpoint.newest()
        assert newest is not None
        assert newest.content == b"%d" % number * 8192
    whole = path.read_bytes()
    for at in range(0, len(whole), 997):
        path.write_bytes(whole[:at] + b"\xff" * 997 + whole[at + 997 :])
        newest = checkpoint.newest()
        assert newest is not None
        assert newest.content in (b"3" * 8192, b"4" * 8192)
    checkpoint.close()
    assert Checkpoint(path).newest() == newest
