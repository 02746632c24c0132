"""The mount's log: JSON lines, one per event, appended to a file that mounts may share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from structlog.typing import FilteringBoundLogger

from bftfs.errors import UsageError
from bftfs.runtime.log_file import log_file


@contextmanager
def open_log(path: Path, **facts: object) -> Iterator[FilteringBoundLogger]:
    """A logger that writes `facts` into every line of `path`; libraries' warnings go there, too."""
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot write the mount's log ({error.strerror}); make this file writable",
            exit_code=1,
        ) from None
    with file:
        log: FilteringBoundLogger = structlog.wrap_logger(
            structlog.WriteLogger(log_file(file.fileno())),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=repr),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        ).bind(**facts)
        libraries = _Libraries(log)
        root = logging.getLogger()
        root.addHandler(libraries)
        try:
            yield log
        finally:
            root.removeHandler(libraries)


class _Libraries(logging.Handler):
    """Passes on the warnings of pyfuse3 and trio."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(
            record.levelno,
            record.getMessage(),
            library=record.name,
            exc_info=record.exc_info or None,
        )
