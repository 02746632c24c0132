"""Where the programs that run for long write their logs: a line at a time, and never an exception.

The disk of the log may be full, and often is the one whose being full is to be logged. A program
that ended because it could not say something would be of no use to anybody: lines are lost instead.
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
    """A file for loggers. What is written goes to `descriptor` at once, as far as there is room."""
    return cast(TextIO, _LogFile(descriptor))
