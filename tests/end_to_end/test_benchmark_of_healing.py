"""The benchmark of healing runs on a mount, at size one."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from benchmarks import result
from benchmarks.commands import main
from benchmarks.scenarios import andrew, healing
from tests.end_to_end.cluster import Cluster
from tests.end_to_end.watchdog import Watchdog

MAKEFILE = "program: main.c\n\t$(CC) -o $@ $^\ncheck: program\n\t./program\n"
MAIN = "int main(void) { return 0; }\n"


def benchmark(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.timeout(120)
def test_a_node_heals_beside_andrew(mounting: None, playground: Path, watchdog: Watchdog) -> None:
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("gcc and make are needed to compile: apt-get install build-essential")
    tree = playground / "source"
    tree.mkdir()
    (tree / "Makefile").write_text(MAKEFILE)
    (tree / "main.c").write_text(MAIN)
    written, picture = playground / "healing.json", playground / "healing.svg"
    cluster = Cluster(playground / "healing")
    try:
        cluster.up()
        with watchdog.guard(100, "healing"):
            done = benchmark(
                *("healing", cluster.mountpoint, "--cluster", cluster.data, "--files", "20"),
                *("--size", "400KiB", "--source", tree, "--json", written),
            )
        assert done.exit_code == 0, done.output
        assert list(cluster.mountpoint.iterdir()) == []
    finally:
        cluster.down()
    found = result.read(written).samples
    phases = [*andrew.PHASES, "total"]
    assert [s.phase for s in found if s.target == healing.WELL] == ["fill", *phases]
    assert [s.phase for s in found if s.target == healing.HEALING] == ["restart", *phases, "heal"]
    assert "time ratio" in done.output
    healed = found[-1].details
    assert int(healed["fragments"]) >= 20
    assert int(healed["objects"]) >= 20
    assert benchmark("plot", written, picture).exit_code == 0
    ElementTree.parse(picture)
    refused = benchmark("healing", playground, "--cluster", cluster.data, "--source", tree)
    assert refused.exit_code == 1
    assert "node 0 does not run; start the cluster with `bftfs up" in refused.output
