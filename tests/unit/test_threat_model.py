"""The threat model names tests and checkers that exist; every guarantee is attacked."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "threat-model.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:tests|bftfs)/[^`\s]*)`", PAGE)))
GUARANTEES = re.split(r"^\*\*(?=G\d\.)", PAGE.split("## What is not promised")[0], flags=re.M)[1:]


@pytest.mark.parametrize("name", NAMED)
def test_what_the_page_names_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert (PROJECT / path).exists()
    if test:
        tree = ast.parse((PROJECT / path).read_text())
        functions = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert test in functions


def test_every_guarantee_is_attacked() -> None:
    assert [text[:2] for text in GUARANTEES] == [f"G{number}" for number in range(1, 9)]
    for text in GUARANTEES:
        assert re.search(r"`tests/[^`]*::test_", text), text[:60]


def test_the_guarantees_that_the_protocols_give_have_must_fail_tests() -> None:
    for text in GUARANTEES:
        if text[:2] in {"G1", "G2", "G3", "G4", "G7"}:
            assert "Must fail: `tests/" in text, text[:60]
