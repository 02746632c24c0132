"""The errno that a program sees for each way in which an operation can fail."""

from __future__ import annotations

import errno

from bftfs.errors import (
    AdmissionRefused,
    ContentionExhausted,
    FileSystemError,
    NoLongerKept,
    OperationFailed,
    PastUnknown,
    QuorumUnavailable,
    UnreadableAnswer,
    VersionUnrecoverable,
)

# The first class that fits decides. None: the exception carries the errno.
TABLE: tuple[tuple[type[Exception], int | None], ...] = (
    (FileSystemError, None),
    (AdmissionRefused, None),
    (QuorumUnavailable, errno.ETIMEDOUT),  # only a `soft` mount gives up
    (ContentionExhausted, errno.ETIMEDOUT),
    (VersionUnrecoverable, errno.EIO),
    (NoLongerKept, errno.ENODATA),
    (PastUnknown, errno.EIO),
    (UnreadableAnswer, errno.EIO),
    (OperationFailed, errno.EIO),
)


def errno_of(error: Exception) -> int | None:
    """The errno for `error`; None if `error` is a bug of this program."""
    for kind, number in TABLE:
        if isinstance(error, kind):
            if number is not None:
                return number
            code: int = error.code  # type: ignore[attr-defined]
            return code
    return None
