"""The release number is in one place, and the changelog begins with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from click.testing import CliRunner

import bftfs
from bftfs.cli.main import program

PROJECT = Path(__file__).parents[3]


def test_the_command_tells_it() -> None:
    outcome = CliRunner().invoke(program, ["--version"], prog_name="bftfs")
    assert outcome.output == f"bftfs, version {bftfs.__version__}\n"


def test_the_package_takes_it_from_the_code() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "bftfs.__version__"}


def test_the_changelog_begins_with_it() -> None:
    releases = re.findall(
        r"^## (\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)$", (PROJECT / "CHANGELOG.md").read_text(), re.M
    )
    assert releases[0] == bftfs.__version__
    numbers = [tuple(map(int, release.split("."))) for release in releases]
    assert numbers == sorted(numbers, reverse=True)
