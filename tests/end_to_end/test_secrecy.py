"""What stands on the nodes' disks: names, and nothing of what is in files."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from tests.end_to_end.cluster import Cluster


def disks_with(cluster: Cluster, text: bytes) -> int:
    """On how many nodes' disks `text` stands in the open, in whatever file."""
    return sum(
        any(_holds(path, text) for path in node.rglob("*") if path.is_file())
        for node in (cluster.data / "nodes").iterdir()
    )


def _holds(path: Path, text: bytes) -> bool:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text) >= 0


def test_nodes_hold_names_in_the_open_and_no_contents(directory: Path, cluster: Cluster) -> None:
    name, contents = f"name-{os.urandom(12).hex()}", f"contents-{os.urandom(12).hex()} "
    with (directory / name).open("w") as file:
        file.write(contents * 1000)
        file.flush()
        os.fsync(file.fileno())
    # The same search finds what is not sealed: a quorum has the name.
    assert disks_with(cluster, name.encode()) >= 5
    assert disks_with(cluster, contents.encode()) == 0
