"""`bftfs inspect` on a real mount: evidence from all nodes, and what degrades a file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bftfs import limits
from tests.end_to_end.cluster import Cluster, bftfs
from tests.end_to_end.expectations import BLOCK, assert_contents, eventually, evict, payload


def inspected(*words: str | Path, code: int = 0) -> dict:  # type: ignore[type-arg]
    report: dict = json.loads(bftfs("inspect", "--json", *words, allowed=(code,)))  # type: ignore[type-arg]
    return report


def test_a_file_with_and_without_one_node(directory: Path, cluster: Cluster) -> None:
    file = directory / "file"
    file.write_bytes(payload(3 * BLOCK))
    os.truncate(file, 9 * BLOCK)  # with a hole

    def whole() -> bool:
        """A write is acknowledged by all nodes but one: that one may be behind for a moment."""
        report = inspected(file, "--blocks", "0-1")
        nodes = [node for block in report["blocks"] for node in block["nodes"]]
        return {node["has"] for node in nodes} == {"good"} and all(
            each["survives"] == 1 for each in (*report["objects"], *report["blocks"])
        )

    eventually(whole, within_s=30, what="all nodes have all of the file")
    report = inspected(file)
    assert report["objects"][-1]["name"] == "file"
    blocks = report["blocks"]
    assert len(blocks) == report["blocks_in_all"] == -(-9 * BLOCK // report["block_bytes"])
    assert blocks[-1]["hole"]
    assert not blocks[0]["hole"]
    assert blocks[0]["written_by"] == "local"

    def verified() -> bool:
        # Nodes verify when they are idle, for up to a second: who asks all the time prevents it.
        time.sleep(2 * limits.VERIFY_IDLE_MOST_US / limits.SECOND_US)
        report = inspected(file, "--blocks", "0-1")
        return all(node["claims_since"] for block in report["blocks"] for node in block["nodes"])

    eventually(verified, within_s=60, what="the nodes verify what was written, and say since when")
    victim = next(node for node in cluster.nodes() if node.number == 2)
    os.kill(victim.pid, signal.SIGKILL)
    try:
        inside = f"/{file.relative_to(cluster.mountpoint)}"

        def missing() -> bool:
            """On a busy machine others may be slow to answer, too."""
            nonlocal report
            report = inspected(inside, "--data", cluster.data, "--blocks", "0-1")
            return all(each["reasons"] == ["node 2 does not answer"] for each in report["blocks"])

        eventually(missing, within_s=30, what="one node is missing")
        assert [each["survives"] for each in report["blocks"]] == [0, 0]
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


def test_a_small_write_into_a_large_block_is_a_patch(
    directory: Path, cluster: Cluster, playground: Path
) -> None:
    file = directory / "database"
    expected = bytearray(payload(3 * BLOCK))
    file.write_bytes(expected)
    with file.open("r+b", buffering=0) as opened:
        for number in range(3):
            page = payload(4096, number)
            opened.seek(BLOCK + 8192 * number)
            opened.write(page)
            expected[BLOCK + 8192 * number : BLOCK + 8192 * number + 4096] = page
            os.fsync(opened.fileno())
    rows = inspected(file)["blocks"]
    assert [(row["number"], row["patch"]) for row in rows] == [
        (0, None),
        (1, None),
        *((1, patch) for patch in (1, 2, 3)),
        (2, None),
    ]
    assert "1 patch 3" in bftfs("inspect", file)
    evict(file)
    assert_contents(file, bytes(expected))
    with cluster.mount(playground / "other") as other:
        assert_contents(other / file.relative_to(cluster.mountpoint), bytes(expected))


def test_mistakes_are_named(directory: Path, cluster: Cluster) -> None:
    for words, sentence in (
        ((directory / "nothing",), "no such file"),
        (("/etc",), "not in a mount of bftfs"),
        (("etc", "--data", cluster.data), "a path begins with /"),
        ((directory, "--blocks", "all"), "give numbers of blocks"),
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
