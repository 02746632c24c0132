"""The logs of nodes and mounts whose disk takes nothing more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mount.serve import open_log
from tests.integration.deployment import PROJECT

_SPEAKER = """
from bftfs.identifiers import NodeId
from bftfs.runtime.log import PROCESS_LOG
from nodes.node import configure_log
configure_log("info", node=NodeId(3))
PROCESS_LOG.error("something", reason="\\udcff")
print("alive")
"""


def speak(file: Path) -> str:
    with file.open("ab") as log:
        finished = subprocess.run(
            [sys.executable, "-c", _SPEAKER],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=log,
            check=True,
            timeout=60,
        )
    return finished.stdout.decode()


def test_what_cannot_be_logged_is_lost_and_nothing_else(tmp_path: Path) -> None:
    assert speak(Path("/dev/full")) == "alive\n"
    assert speak(tmp_path / "log") == "alive\n"
    (line,) = (tmp_path / "log").read_text().splitlines()
    said = json.loads(line)
    assert (said["event"], said["node"], said["level"]) == ("something", 3, "error")


def test_the_same_holds_for_mounts(tmp_path: Path) -> None:
    for path in (Path("/dev/full"), tmp_path / "log"):
        with open_log(path, mountpoint="/mnt") as log:
            log.warning("something")
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line)["mountpoint"] == "/mnt"
