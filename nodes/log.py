"""Structured logs: one JSON object per line, on standard error."""

from __future__ import annotations

import faulthandler
import logging

import structlog

from bftfs.identifiers import NodeId
from bftfs.runtime.log_file import log_file

_STANDARD_ERROR = 2


def configure(level: str, *, node: NodeId) -> None:
    """Log from now on, at `level` and above, as node `node`.

    Also how the process ends if a signal ends it: a file that somebody cuts short while it is
    mapped into memory ends it by SIGBUS.
    """
    faulthandler.enable(_STANDARD_ERROR)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(log_file(_STANDARD_ERROR)),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(node=node)
