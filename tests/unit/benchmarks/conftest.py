"""A source tree so small that it compiles in a moment, and how the command line is run."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from benchmarks.commands import main

MAKEFILE = """\
program: main.o greeting.o
\t$(CC) -o $@ $^
check: program
\t./program
"""
GREETING = '#include <stdio.h>\nint greet(void) { puts("it runs"); return 0; }\n'
MAIN = "int greet(void);\nint main(void) { return greet(); }\n"


@pytest.fixture
def tiny_tree(tmp_path: Path) -> Path:
    """Two C files, a Makefile that links and runs them, a script and a symbolic link."""
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("gcc and make are needed to compile: apt-get install build-essential")
    tree = tmp_path / "source"
    (tree / "empty" / "below").mkdir(parents=True)
    (tree / "Makefile").write_text(MAKEFILE)
    (tree / "greeting.c").write_text(GREETING)
    (tree / "main.c").write_text(MAIN)
    script = tree / "empty" / "script.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o750)
    os.symlink("../main.c", tree / "empty" / "link.c")
    return tree


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """The directory to measure and the one to compare it with."""
    measured, against = tmp_path / "measured", tmp_path / "against"
    measured.mkdir()
    against.mkdir()
    return measured, against


@pytest.fixture
def benchmark() -> Callable[..., Result]:
    """Runs `python -m benchmarks` with arguments, in this process."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run
