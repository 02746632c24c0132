"""A node knows that it has lost its store, whatever happens in between."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bftfs.cluster import Durability
from bftfs.data_directory import NodeDirectory
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId
from bftfs.server.recovery import BLOCKS, OBJECTS, Stage
from nodes import store_directory
from nodes.store import Store
from nodes.store_directory import note_synced, note_unsynced, resumed


@pytest.fixture
def directory(tmp_path: Path) -> NodeDirectory:
    return NodeDirectory(tmp_path)


def use(directory: NodeDirectory) -> None:
    Store.open(directory.store, cluster=b"c" * 16, node=NodeId(1)).close()


def test_a_first_store_replaces_none(directory: NodeDirectory) -> None:
    assert not resumed(directory).rebuilding
    use(directory)
    assert not resumed(directory).rebuilding


def test_a_lost_store_is_remembered_until_all_is_rebuilt(directory: NodeDirectory) -> None:
    use(directory)
    shutil.rmtree(directory.store)
    assert resumed(directory).is_lost
    # A crash now, or after the new store has been made, makes it forget nothing.
    assert resumed(directory).is_lost
    use(directory)
    recovery = resumed(directory)
    assert recovery.is_lost
    recovery.begun()
    recovery = resumed(directory)
    assert (recovery.is_lost, recovery.rebuilding) == (False, True)
    recovery.rebuilt(OBJECTS)
    assert resumed(directory).rebuilding
    recovery.rebuilt(BLOCKS)
    assert not recovery.rebuilding
    assert not resumed(directory).rebuilding


def test_a_store_that_is_lost_again_is_rebuilt_again(directory: NodeDirectory) -> None:
    use(directory)
    shutil.rmtree(directory.store)
    first = resumed(directory)
    first.begun()
    first.rebuilt(OBJECTS)
    first.rebuilt(BLOCKS)
    use(directory)
    shutil.rmtree(directory.store)
    assert resumed(directory).is_lost


def test_a_life_that_was_chosen_is_not_forgotten_with_the_store(directory: NodeDirectory) -> None:
    """Nor by a node whose folder was made before it noted that."""
    directory.recovery.write_text(f"{Stage.REBUILDING.value}\n")
    first = resumed(directory)
    assert (first.rebuilding, first.life) == (True, 0)
    first.choose(3)
    first.begun()
    first.rebuilt(OBJECTS)
    first.rebuilt(BLOCKS)
    use(directory)
    shutil.rmtree(directory.store)
    again = resumed(directory)
    assert (again.is_lost, again.life) == (True, 3)


def test_a_note_that_cannot_be_read_stops_the_node(directory: NodeDirectory) -> None:
    directory.recovery.write_text("what?")
    with pytest.raises(UsageError, match="move the store away and start the node again"):
        resumed(directory)


def test_a_node_that_is_alone_has_nobody_to_ask(directory: NodeDirectory) -> None:
    use(directory)
    shutil.rmtree(directory.store)
    assert not resumed(directory, alone=True).rebuilding


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("machine_ends", [False, True])
@pytest.mark.parametrize("closes", [False, True])
def test_what_was_not_synced_when_the_machine_ended_is_forgotten(
    directory: NodeDirectory,
    monkeypatch: pytest.MonkeyPatch,
    durability: Durability,
    machine_ends: bool,
    closes: bool,
) -> None:
    """A process that is killed loses nothing, nor does a store that was closed or always synced."""
    use(directory)
    note_unsynced(directory, durability)
    if closes:
        note_synced(directory)
    if machine_ends:
        next_boot = directory.path / "boot_id"
        next_boot.write_text("another run of the machine")
        monkeypatch.setattr(store_directory, "_BOOT_ID", next_boot)
    interval = durability is Durability.INTERVAL
    assert resumed(directory).is_lost == (interval and machine_ends and not closes)


def test_a_machine_that_does_not_tell_its_runs_apart_may_have_ended(
    directory: NodeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(directory)
    monkeypatch.setattr(store_directory, "_BOOT_ID", directory.path / "missing")
    note_unsynced(directory, Durability.INTERVAL)
    assert resumed(directory).is_lost


def test_who_goes_on_with_sync_has_synced_all_there_is(directory: NodeDirectory) -> None:
    """To open a store is to bring what a killed process has left to stable storage."""
    note_unsynced(directory, Durability.INTERVAL)
    note_unsynced(directory, Durability.SYNC)
    assert not directory.unsynced.exists()
