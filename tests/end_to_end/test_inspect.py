"""`bftfs inspect` on a real mount: evidence from all nodes, and what degrades a file."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.end_to_end.cluster import Cluster, bftfs
from tests.end_to_end.expectations import BLOCK, eventually, payload


def inspected(*words: str | Path, code: int = 0) -> dict:  # type: ignore[type-arg]
    report: dict = json.loads(bftfs("inspect", "--json", *words, allowed=(code,)))  # type: ignore[type-arg]
    return report


def test_a_file_with_and_without_one_node(directory: Path, cluster: Cluster) -> None:
    file = directory / "file"
    file.write_bytes(payload(3 * BLOCK))
    os.truncate(file, 9 * BLOCK)  # with a hole
    report = inspected(file)
    assert report["objects"][-1]["name"] == "file"
    assert all(each["survives"] == 1 for each in report["objects"])
    blocks = report["blocks"]
    assert len(blocks) == report["blocks_in_all"] == -(-9 * BLOCK // report["block_bytes"])
    assert blocks[-1]["hole"]
    assert not blocks[0]["hole"]
    assert {node["has"] for node in blocks[0]["nodes"]} == {"good"}
    assert blocks[0]["written_by"] == "local"
    assert blocks[0]["survives"] == 1
    eventually(
        lambda: all(
            node["claims_verified"]
            for block in inspected(file, "--blocks", "0-1")["blocks"]
            for node in block["nodes"]
        ),
        within_s=30,
        what="the nodes verify what was written",
    )
    victim = next(node for node in cluster.nodes() if node.number == 2)
    os.kill(victim.pid, signal.SIGKILL)
    try:
        inside = f"/{file.relative_to(cluster.mountpoint)}"
        report = inspected(inside, "--data", cluster.data, "--blocks", "0-1")
        assert [each["survives"] for each in report["blocks"]] == [0, 0]
        assert report["blocks"][0]["reasons"] == ["node 2 does not answer"]
        # By now the nodes have verified it, and say since when.
        for block in report["blocks"]:
            assert block["version"] < block["verified_since"] < report["inspected"]
            said = [node["claims_since"] for node in block["nodes"] if node["claims_since"]]
            assert sorted(said)[1] == block["verified_since"]
        shown = bftfs("inspect", file)
        assert "verified since" in shown
        assert "degraded: node 2 does not answer" in shown
        assert "5 silent" in shown or "2 silent" in shown
    finally:
        cluster.up()


def test_mistakes_are_named(directory: Path, cluster: Cluster) -> None:
    for words, sentence in (
        ((directory / "nothing",), "no such file"),
        (("/etc",), "not in a mount of bftfs"),
        (("etc", "--data", cluster.data), "a path begins with /"),
        ((directory, "--blocks", "all"), "write the numbers of blocks"),
    ):
        finished = subprocess.run(
            [sys.executable, "-m", "bftfs", "inspect", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert finished.returncode in (1, 2)
        assert finished.stderr.startswith("bftfs: ")
        assert sentence in finished.stderr
        assert finished.stderr.count("\n") == 1
