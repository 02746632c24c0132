"""Counts the source of the product: files, lines, complexity, and names used twice."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from radon.complexity import cc_visit
from radon.raw import analyze

from benchmarks.rooms.tracing import PRODUCT, SIMULATOR

COMPLEXITY = 20
_COMMANDS = "bftfs/cli/"  # whose classes, like the simulator's, may be called what they like


@dataclass(slots=True)
class Amount:
    """How much source there is."""

    files: int = 0
    lines: int = 0
    code: int = 0  # without docstrings, comments and blank lines

    def add(self, source: str) -> None:
        """Count one file."""
        self.files += 1
        self.lines += len(source.splitlines())
        self.code += analyze(source).sloc


@dataclass(slots=True)
class Text:
    """What was counted."""

    product: Amount = field(default_factory=Amount)
    without_simulator: Amount = field(default_factory=Amount)
    functions: int = 0
    complex: dict[str, int] = field(default_factory=dict)  # functions above the bound
    classes: dict[str, list[str]] = field(default_factory=dict)  # defined in several modules
    modules: dict[str, list[str]] = field(default_factory=dict)  # names of several modules


def count(tree: Path, *, complexity: int = COMPLEXITY) -> Text:
    """Count the product in `tree`.

    The complexity of a function is radon's; that of the functions inside it is included.
    """
    text = Text()
    above: dict[str, int] = {}
    classes: defaultdict[str, list[str]] = defaultdict(list)
    modules: defaultdict[str, list[str]] = defaultdict(list)
    for file, source in _sources(tree):
        text.product.add(source)
        for block in cc_visit(source):
            if block.letter in "FM":
                text.functions += 1
                if block.complexity > complexity:
                    above[f"{file}: {block.fullname}"] = block.complexity
        if file.startswith(SIMULATOR):
            continue
        text.without_simulator.add(source)
        if not file.endswith("__.py"):
            modules[Path(file).name].append(file)
        if not file.startswith(_COMMANDS):
            for name in sorted(set(_class_names(source))):
                classes[name].append(file)
    text.complex = dict(sorted(above.items(), key=lambda item: -item[1]))
    text.classes = _several(classes)
    text.modules = _several(modules)
    return text


def _sources(tree: Path) -> Iterable[tuple[str, str]]:
    for package in PRODUCT:
        for path in sorted((tree / package).rglob("*.py")):
            yield path.relative_to(tree).as_posix(), path.read_text()


def _class_names(source: str) -> Iterable[str]:
    return (node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef))


def _several(files: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: places for name, places in sorted(files.items()) if len(places) > 1}
