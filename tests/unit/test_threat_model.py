"""The threat model names tests that are collected; each guarantee is attacked, and has a figure."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "threat-model.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:tests|bftfs)/[^`\s]*)`", PAGE)))
PROMISED, _, FIGURES = PAGE.split("## What is not promised")[0].partition("## Figures")
GUARANTEES = re.split(r"^\*\*(?=G\d\.)", PROMISED, flags=re.M)[1:]
NUMBERS = [f"G{number}" for number in range(1, 10)]


@cache
def collected_in(path: Path) -> frozenset[str]:
    """The tests that pytest collects there: functions of the module, and of its test classes."""
    module = ast.parse(path.read_text())
    bodies = [module.body]
    bodies += [
        node.body
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test")
    ]
    return frozenset(
        node.name
        for body in bodies
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


@pytest.mark.parametrize("name", NAMED)
def test_what_the_page_names_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert (PROJECT / path).exists()
    if test:
        assert test in collected_in(PROJECT / path)
    elif path.startswith("tests/") and path.endswith(".py"):
        assert collected_in(PROJECT / path)


def test_tests_are_named_with_their_files() -> None:
    assert not re.findall(r"`test_\w+`", PAGE)


def test_every_guarantee_is_attacked() -> None:
    assert [text[:2] for text in GUARANTEES] == NUMBERS
    for text in GUARANTEES:
        assert re.search(r"`tests/[^`]*::test_", text), text[:60]


def test_every_guarantee_has_tests_in_which_its_checkers_fail() -> None:
    for text in GUARANTEES:
        assert re.search(r"[Mm]ust fail:\s+`tests/[^`]*::test_", text), text[:60]


def test_every_guarantee_has_a_figure() -> None:
    rows = re.findall(r"^\| (G\d) \| .*\d", FIGURES, flags=re.M)
    assert rows == NUMBERS
