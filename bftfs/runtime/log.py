"""The log of nodes and mounts: an event a line, as a JSON object.

A line is written at once, and writing never raises: the disk of the log may be full, often just
when that is to be logged. A line that cannot be written is lost; the program goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import traceback
from datetime import UTC, datetime
from typing import Any, Final

_STANDARD_ERROR: Final = 2


class Log:
    """Writes events to a file descriptor: a name, and facts. Safe from several threads.

    A line has `event`, its facts and those of the log, `level`, `timestamp` (UTC), and, where the
    event was an error in the program, `exception`: its traceback.
    """

    __slots__ = ("_descriptor", "_facts", "_least")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.configure("info")

    def configure(self, level: str, **facts: Any) -> None:
        """From now on write events of `level` ("debug", "info", …) and above, with `facts`."""
        self._least = logging.getLevelNamesMapping()[level.upper()]
        self._facts = facts

    def info(self, event: str, **facts: Any) -> None:
        """What happens as it should."""
        self.write(logging.INFO, event, **facts)

    def warning(self, event: str, **facts: Any) -> None:
        """What an administrator should look at."""
        self.write(logging.WARNING, event, **facts)

    def error(self, event: str, **facts: Any) -> None:
        """What has failed."""
        self.write(logging.ERROR, event, **facts)

    def write(
        self, level: int, event: str, *, error: BaseException | None = None, **facts: Any
    ) -> None:
        """Write an event of a level of `logging`; `error` with its traceback."""
        if level < self._least:
            return
        line: dict[str, Any] = {**self._facts, **facts, "event": event}
        line["level"] = logging.getLevelName(level).lower()
        line["timestamp"] = f"{datetime.now(UTC).replace(tzinfo=None).isoformat()}Z"
        if error is not None:
            line["exception"] = "".join(traceback.format_exception(error)).rstrip()
        encoded = f"{json.dumps(line, default=repr)}\n".encode()
        with contextlib.suppress(OSError):
            os.write(self._descriptor, encoded)


PROCESS_LOG: Final = Log(_STANDARD_ERROR)  # of a node, whose standard error is its log
