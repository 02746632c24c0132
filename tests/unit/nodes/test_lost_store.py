"""A node knows that it has lost its store, whatever happens in between."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bftfs.data_directory import NodeDirectory
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId
from bftfs.server.recovery import BLOCKS, OBJECTS
from nodes.store import Store
from nodes.store_directory import resumed


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


def test_a_note_that_cannot_be_read_stops_the_node(directory: NodeDirectory) -> None:
    directory.recovery.write_text("what?")
    with pytest.raises(UsageError, match="move the store away and start the node again"):
        resumed(directory)
