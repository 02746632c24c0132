"""`bftfs up`: nodes that do not start, and what it looks at before it starts any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bftfs.cli import local_cluster, processes
from bftfs.cluster import ClusterDescription, Durability
from bftfs.data_directory import DataDirectory, NodeDirectory
from bftfs.errors import UsageError


@pytest.fixture
def made(tmp_path: Path) -> tuple[DataDirectory, ClusterDescription]:
    directory = DataDirectory(tmp_path / "data")
    addresses = [f"unix:/nowhere/{number}/socket" for number in range(6)]
    description = local_cluster.create_cluster(
        directory, addresses, t=1, b=1, durability=Durability.INTERVAL
    )
    return directory, description


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The nodes that stop at once; the others count as listening."""
    numbers: set[int] = set()

    def start(node: NodeDirectory, _: Path) -> subprocess.Popen[bytes]:
        ends = int(node.path.name) in numbers
        node.log.write_text("node: the store is damaged\n" if ends else "")
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({2 * ends})"])

    def listens(address: str) -> bool:
        return int(Path(address).parent.name) not in numbers

    monkeypatch.setattr(processes, "start", start)
    monkeypatch.setattr(local_cluster, "_listens", listens)
    return numbers


def test_a_damaged_node_that_is_tolerated_is_told_of(
    made: tuple[DataDirectory, ClusterDescription], damaged: set[int]
) -> None:
    damaged.add(4)
    begun = local_cluster.start_nodes(*made)
    assert begun.started == 5
    assert list(begun.failed) == [4]
    assert "stopped at once (exit code 2)" in begun.failed[4]
    assert "node: the store is damaged" in begun.failed[4]


def test_more_damaged_nodes_than_tolerated_are_all_named(
    made: tuple[DataDirectory, ClusterDescription], damaged: set[int]
) -> None:
    damaged |= {2, 4}
    with pytest.raises(UsageError) as refused:
        local_cluster.start_nodes(*made)
    said = str(refused.value)
    assert said.startswith("node 2 stopped at once")
    assert "\nnode 4 stopped at once" in said
    assert said.endswith("2 nodes do not run, and only 1 may fail: nothing is mounted")


def test_where_one_cannot_mount_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "require_fuse", lambda *, allow_other: None)
    (tmp_path / "file").touch()
    data = DataDirectory(tmp_path / "data")
    with pytest.raises(UsageError, match="is not a directory"):
        processes.require_mountable(data, tmp_path / "file", options="")
    with pytest.raises(UsageError, match="did you mean strict"):
        processes.require_mountable(data, tmp_path / "new", options="strickt")
    assert not os.path.lexists(tmp_path / "new")
    assert processes.require_mountable(data, tmp_path / "new", options="") == tmp_path / "new"
    assert (tmp_path / "new").is_dir()
