"""Import contracts, names of classes, complexity, and the one module that receives replies."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from importlinter.cli import lint_imports_command

from benchmarks.rooms import text

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


def test_no_two_modules_have_a_class_of_the_same_name() -> None:
    modules: defaultdict[str, set[str]] = defaultdict(set)
    for package in ("bftfs", "nodes", "mount"):
        for path in (PROJECT / package).rglob("*.py"):
            for statement in ast.parse(path.read_text()).body:
                if isinstance(statement, ast.ClassDef):
                    modules[statement.name].add(path.relative_to(PROJECT).as_posix())
    assert {name: files for name, files in modules.items() if len(files) > 1} == {}


def test_one_module_receives_replies() -> None:
    """Adversaries of the simulator do it in their own ways."""
    receiving = [
        path.relative_to(PROJECT).as_posix()
        for package in ("bftfs", "nodes", "mount")
        for path in (PROJECT / package).rglob("*.py")
        if "await Receive(" in path.read_text() and "byzantine" not in path.parts
    ]
    assert receiving == ["bftfs/asking/ask.py"]


def test_no_function_has_more_than_twenty_ways() -> None:
    assert text.count(PROJECT).complex == {}
