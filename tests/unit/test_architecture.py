"""The import contracts of `pyproject.toml` are kept, and every module is subject to them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from importlinter.cli import lint_imports_command

PROJECT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]


def test_import_contracts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    outcome = CliRunner().invoke(lint_imports_command, ["--no-cache"])
    assert outcome.exit_code == 0, outcome.output


def test_every_module_has_a_layer() -> None:
    layers = CONTRACTS["contracts"][0]["layers"]
    placed = {name for layer in layers for name in re.split(r" [|:] ", layer)}
    modules = [
        path.relative_to(PROJECT).with_suffix("").as_posix().replace("/", ".")
        for path in (PROJECT / "bftfs").rglob("*.py")
        if not path.stem.startswith("__")
    ]
    missing = [
        module
        for module in modules
        if not any(module == name or module.startswith(name + ".") for name in placed)
    ]
    assert not missing
