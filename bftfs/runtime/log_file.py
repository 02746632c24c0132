"""The log of nodes and mounts: written a line at a time, and never raises.

The disk of the log may be full, often just when that is to be logged. A line that cannot be written
is lost; the program goes on.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import TextIO, cast


class _LogFile(io.TextIOBase):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode(errors="backslashreplace"))
        return len(text)


def log_file(descriptor: int) -> TextIO:
    """A file for loggers, whose lines go to `descriptor` at once, as far as there is room."""
    return cast(TextIO, _LogFile(descriptor))
