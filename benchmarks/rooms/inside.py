"""What runs in a process of its own, on the code of the tree that is counted."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.rooms import cluster, instructions, lies
from benchmarks.rooms.names import Product
from benchmarks.rooms.tracing import Figures

# This package comes from this repository; what it imports when it runs, from the tree.
_START = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.rooms import inside
sys.path[0] = sys.argv[2]
inside.main(sys.argv[2])
"""
_REPOSITORY = Path(__file__).parents[2]

Passed = dict[str, list[str]]  # functions by file


@dataclass(frozen=True, slots=True)
class Traced:
    """What the operations passed, as JSON has it."""

    bare: dict[str, dict[str, Any]]
    full: dict[str, dict[str, Any]]
    lies: dict[str, dict[str, Any]]
    instructions: dict[str, int]


def traced(tree: Path) -> Traced:
    """Perform the operations on the code of `tree`."""
    tree = tree.resolve()
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-P", "-c", _START, str(_REPOSITORY), str(tree)],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"{tree}: its operations could not be traced:\n{done.stderr}")
    return Traced(**json.loads(done.stdout))


def main(tree: str) -> None:
    """Trace everything, and print it as JSON."""
    root = Path(tree)
    product = Product(root)
    told = {}
    for lie in lies.LIES:
        followed = lies.follow(product, root, lie)
        told[lie.name] = _passed(followed.passed) | {
            "on_arrival": followed.on_arrival,
            "memories": followed.memories,
        }
    operations = {
        kind: {
            name: _figures(found)
            for name, found in cluster.operations(product, root, full=full).items()
        }
        for kind, full in (("bare", False), ("full", True))
    }
    executed = instructions.count(product, root)
    json.dump(operations | {"lies": told, "instructions": executed}, sys.stdout)


def _figures(found: Figures) -> dict[str, Any]:
    return _passed(found.passed) | {"moves": found.moves}


def _passed(passed: dict[str, set[str]]) -> dict[str, Any]:
    return {
        "files": len(passed),
        "functions": sum(map(len, passed.values())),
        "passed": {file: sorted(functions) for file, functions in sorted(passed.items())},
    }
