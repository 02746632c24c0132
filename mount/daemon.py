"""Runs the mount process in the background.

The parent waits for the child: it exits with 0 once the file system is mounted, and prints the
reason if that fails.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

_READY = b"\0"


def run_in_background(work: Callable[[Callable[[], None]], int], *, output: Path) -> int:
    """Run `work` in a process with a session of its own. Gives the exit code for this process.

    `work` is given a function to call when it is ready. Its output goes to our standard error until
    then, and to the file `output` afterwards.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work_as_child(work, writing, output)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        ready = pipe.read(1) == _READY
    if ready:
        return 0
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) or 1


def _work_as_child(work: Callable[[Callable[[], None]], int], pipe: int, output: Path) -> None:
    """Does not return."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)

    def ready() -> None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        os.write(pipe, _READY)
        os.close(pipe)

    code = 1
    try:
        code = work(ready)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
