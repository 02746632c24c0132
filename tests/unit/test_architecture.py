"""The import contracts of `pyproject.toml` are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from importlinter.cli import lint_imports_command

PROJECT = Path(__file__).parents[2]


def test_import_contracts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    outcome = CliRunner().invoke(lint_imports_command, ["--no-cache"])
    assert outcome.exit_code == 0, outcome.output
