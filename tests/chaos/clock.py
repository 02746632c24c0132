"""Wall clocks that can be stepped, one for each process: a preloaded library adds an offset.

A time namespace cannot do it: it shifts the monotonic clocks, and leaves the wall clock alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bftfs.limits import SECOND_US

_SOURCE = Path(__file__).with_name("clock.c")


def build(directory: Path) -> Path:
    """The library, compiled into `directory`."""
    library = directory / "clock.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, _SOURCE, "-ldl"],
        check=True,
        timeout=60,
    )
    return library


class Clock:
    """The wall clock of the processes that are started with `environment`."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.environment = {"LD_PRELOAD": str(library), "BFTFS_TEST_CLOCK": str(file)}
        self.step(0)

    def step(self, offset_us: int) -> None:
        """Set it so far ahead of this machine's clock; negative: behind."""
        nanoseconds = offset_us * 1000
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            # One aligned word: whoever reads it meanwhile sees the old one or the new one.
            os.pwrite(descriptor, nanoseconds.to_bytes(8, sys.byteorder, signed=True), 0)
        finally:
            os.close(descriptor)


STEPS_WITHIN_BOUND_US = (-240 * SECOND_US, -30 * SECOND_US, 30 * SECOND_US, 240 * SECOND_US)
STEPS_BEYOND_BOUND_US = (-7200 * SECOND_US, -600 * SECOND_US, 600 * SECOND_US, 7200 * SECOND_US)
