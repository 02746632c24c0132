"""Going into the background once there is something to come back to.

The parent stays until the child says how it went: it exits 0 only when the file system is mounted,
and prints the reason otherwise.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

_READY = b"\0"


def run_in_background(work: Callable[[Callable[[], None]], int], *, output: Path) -> int:
    """Run `work` in a process of its own session; the exit code of this one.

    `work` is given a function to call when it is ready. What it prints before goes to our standard
    error, what it prints after to the file `output`.
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
