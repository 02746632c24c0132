"""`bftfs up`: nodes that do not start, and what it looks at before it starts any."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bftfs.cli import local_cluster, processes
from bftfs.cluster import ClusterDescription, Durability
from bftfs.data_directory import DataDirectory, NodeDirectory
from bftfs.durable_files import replace_file
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


def files_below(path: Path) -> dict[str, bytes]:
    found = {each for each in path.rglob("*") if each.is_file()}
    return {str(each.relative_to(path)): each.read_bytes() for each in found}


def make(path: Path) -> None:
    local_cluster.create_cluster(
        DataDirectory(path),
        [f"unix:/nowhere/{number}/socket" for number in range(6)],
        t=1,
        b=1,
        durability=Durability.INTERVAL,
    )


def test_a_directory_with_anything_in_it_is_not_taken_for_a_cluster(tmp_path: Path) -> None:
    """It would be closed to others, and deleted with the cluster."""
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    (home / "photos" / "cat").write_text("cat")
    home.chmod(0o755)
    with pytest.raises(UsageError, match="is not empty"):
        make(home)
    assert home.stat().st_mode & 0o777 == 0o755
    assert files_below(home) == {"photos/cat": b"cat"}


def test_a_disk_with_lost_and_found_is_taken(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    make(tmp_path)
    assert DataDirectory(tmp_path).has_cluster()


@pytest.mark.parametrize("left", [None, "admin.key", "clients/local.key"])
def test_keys_are_never_replaced_because_the_description_is_missing(
    tmp_path: Path, left: str | None
) -> None:
    """Without the old ones nobody reads the contents ever again."""
    make(tmp_path)
    (tmp_path / "cluster.toml").unlink()
    if left is not None:  # as on a client's machine, or with an older release
        for path in tmp_path.glob("cluster.*"):
            path.unlink()
    before = files_below(tmp_path)
    with pytest.raises(UsageError, match=r"its cluster\.toml is missing; bring that back"):
        make(tmp_path)
    assert files_below(tmp_path) == before


def test_an_interrupted_creation_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("bftfs.description_files.store", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path)
    assert not DataDirectory(tmp_path).has_cluster()
    make(tmp_path)
    assert DataDirectory(tmp_path).has_cluster()
    assert not DataDirectory(tmp_path).unfinished.exists()


def test_only_what_is_the_clusters_is_destroyed(tmp_path: Path) -> None:
    """Whatever is beside it, as where an older release has taken a directory with other things."""
    make(tmp_path / "home")
    (tmp_path / "home" / "photos").mkdir()
    (tmp_path / "home" / "photos" / "cat").write_text("cat")
    (tmp_path / "home" / ".cluster.toml.sig.4711.new").touch()
    assert DataDirectory(tmp_path / "home").destroy() == ["photos"]
    assert files_below(tmp_path) == {"home/photos/cat": b"cat"}
    make(tmp_path / "alone")
    assert DataDirectory(tmp_path / "alone").destroy() == []
    assert not (tmp_path / "alone").exists()


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "file", b"new")
    assert files_below(tmp_path) == {"file": b"old"}
