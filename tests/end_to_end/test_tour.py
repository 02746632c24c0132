"""README and the pages on backups and operations show what is so: their commands are run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.tour import commands_in_blocks, commands_in_table, shown_in
from tests.end_to_end.watchdog import PROJECT


@pytest.mark.timeout(240, func_only=True)
def test_root_follows_readme_and_operations(mounting: None, outside: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.tour"],
        cwd=PROJECT,
        env={**os.environ, "HOME": str(outside)},
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("12 commands of README, 15 of backup, 28 of operations")


def test_what_a_page_shows_is_found() -> None:
    page = "text\n\n    $ one\n    first\n\n    $ two\n\ntext\n    $ three\n    third\n    line\n"
    assert list(shown_in(page)) == [
        ("one", ["first"]),
        ("two", []),
        ("three", ["third", "line"]),
    ]
    table = "| what | `bftfs a` (`bftfs b DIR`, `--c`) |\n| other | `bftfs d … e` |\n"
    assert commands_in_table(table) == ["bftfs a", "bftfs b DIR"]
    block = (
        "    bftfs heal start|throttle RATE  --data DIR [--json]\n    bftfs inspect PATH   a path\n"
    )
    assert commands_in_blocks(block) == [
        "bftfs heal start --data DIR",
        "bftfs heal throttle RATE --data DIR",
        "bftfs inspect PATH",
    ]
