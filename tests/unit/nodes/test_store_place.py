"""A store's place: what stays as it is while the store is there, and differs for every copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bftfs.errors import UsageError
from bftfs.identifiers import NodeId
from nodes.store import Store
from nodes.store_place import PLACE_FILE, place_of


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "node" / "store"
    use(path)
    return path


def use(path: Path) -> None:
    Store.open(path, cluster=b"c" * 16, node=NodeId(1)).close()


def test_it_stays_as_it_is(store: Path) -> None:
    place = place_of(store)
    use(store)
    assert place_of(store) == place
    moved = store.parent.with_name("moved")
    store.parent.rename(moved)
    assert place_of(moved / store.name) == place
    shutil.copytree(moved, moved.with_name("backup"))
    assert place_of(moved / store.name) == place, "it was read, and not changed"


def elsewhere(store: Path, backup: Path) -> Path:
    del store
    return backup


def anew(store: Path, backup: Path) -> Path:
    """The file system may give the new files the numbers of the old ones."""
    shutil.rmtree(store)
    shutil.copytree(backup, store)
    return store


def onto_itself(store: Path, backup: Path) -> Path:
    """As `cp -a` does: the files stay, and get other contents, and their former dates."""
    shutil.copytree(backup, store, dirs_exist_ok=True)
    return store


def what_differs(store: Path, backup: Path) -> Path:
    """As `rsync` does: another file takes the place of one that differs."""
    shutil.copy2(backup / "data.mdb", store / "new")
    (store / "new").rename(store / "data.mdb")
    return store


def without_the_mark(store: Path, backup: Path) -> Path:
    del backup
    (store / PLACE_FILE).unlink()
    return store


@pytest.mark.parametrize("how", [elsewhere, anew, onto_itself, what_differs, without_the_mark])
def test_a_copy_lies_elsewhere(store: Path, how: Callable[[Path, Path], Path]) -> None:
    place = place_of(store)
    backup = store.with_name("backup")
    shutil.copytree(store, backup)
    os.sync()
    assert place_of(how(store, backup)) != place


def test_where_it_cannot_be_told_the_node_does_not_start(store: Path) -> None:
    (store / PLACE_FILE).symlink_to("missing/elsewhere")
    with pytest.raises(UsageError, match="it cannot be read or made"):
        place_of(store)
