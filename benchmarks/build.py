"""How a source tree is compiled, linked, and shown to work by running what was linked.

The build runs in a directory beside the tree, so that the tree stays what was copied.
"""

import os
import re
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError, WorkloadError

_PATIENCE_S = 3600.0
_TAIL_LINES = 15
_CHECKS = ("auth", "box", "generichash", "secretbox", "sign", "stream")


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a build, and what its output must say beside its exit status 0."""

    command: tuple[str, ...]
    proof: str | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """The steps that build a tree; `lines` is about how many lines of output they print."""

    steps: tuple[Step, ...]
    lines: int


def recipe_for(tree: Path, jobs: int) -> Recipe:
    """How to build the tree, from any directory."""
    make = ("make", f"-j{jobs}")
    if (tree / "src" / "libsodium").is_dir():
        # A shared library alone, lightly optimised: half the work of the default, and all of its
        # kinds.  The programs of the library's own tests are linked against it and run.
        checks = " ".join(_CHECKS)
        configure = Step((str(tree / "configure"), "--disable-static", "CFLAGS=-O1"))
        check = Step(
            (*make, "check", f"TESTS={checks}", f"check_PROGRAMS={checks}"),
            proof=rf"^# PASS: +{len(_CHECKS)}$",
        )
        return Recipe((configure, Step(make), check), lines=480)
    sources = sum(1 for _ in tree.rglob("*.c"))
    if (tree / "configure").is_file():
        steps = (Step((str(tree / "configure"),)), Step(make), Step((*make, "check")))
        return Recipe(steps, lines=200 + sources)
    beside = (*make, "-f", str(tree / "Makefile"), f"VPATH={tree}")
    return Recipe((Step(beside), Step((*beside, "check"))), lines=1 + sources)


def require_tools() -> None:
    """Refuse to start without a compiler."""
    for tool in ("gcc", "make"):
        if shutil.which(tool) is None:
            raise BenchmarkError(
                f"{tool} is not installed; the benchmark compiles: apt-get install build-essential"
            )


def build(recipe: Recipe, directory: Path, advance: Callable[[], None]) -> None:
    """Run the recipe in `directory`; `advance` is called for every line of output."""
    for step in recipe.steps:
        output = _run(step, directory, advance)
        if step.proof is not None and not re.search(step.proof, output, re.MULTILINE):
            raise WorkloadError(f"{' '.join(step.command)}: no '{step.proof}' in its output")


def _run(step: Step, directory: Path, advance: Callable[[], None]) -> str:
    # Nothing from the caller's environment changes what is built (CFLAGS, MAKEFLAGS, CONFIG_SITE).
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    tail: deque[str] = deque(maxlen=200)
    process = subprocess.Popen(
        step.command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    watchdog = threading.Timer(_PATIENCE_S, os.killpg, [process.pid, signal.SIGKILL])
    watchdog.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line)
            advance()
        status = process.wait()
    finally:
        watchdog.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status:
        last = "".join(list(tail)[-_TAIL_LINES:])
        raise WorkloadError(f"{' '.join(step.command)} ended with status {status}:\n{last}")
    return "".join(tail)
