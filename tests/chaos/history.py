"""What the workers saw: one journal each, a line before and a line after every operation.

A journal lies on the local disk and survives its worker. An operation without a second line never
ended, as far as anybody knows: its mount was killed, and it may have taken place or not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Event:
    """One operation of one worker."""

    worker: str
    strict: bool  # whether its mount is
    subject: str  # the register or the directory
    name: str
    arguments: tuple[Any, ...]
    answer: Any  # {"error": "ENOENT"} if it failed
    invoked: float
    responded: float  # infinite if it never ended

    @property
    def failed(self) -> str | None:
        """The name of the error that it ended with, if it did."""
        return self.answer.get("error") if isinstance(self.answer, dict) else None


class Recorder:
    """A worker's journal, while it works."""

    def __init__(self, file: Path, worker: str, *, strict: bool) -> None:
        self._file = file.open("ab", buffering=0)
        self._worker = worker
        self._strict = strict

    def record(
        self, subject: str, name: str, arguments: tuple[Any, ...], act: Callable[[], T]
    ) -> T:
        """Do it; what it gives, or how it fails, is in the journal."""
        self._note(
            worker=self._worker,
            strict=self._strict,
            subject=subject,
            name=name,
            arguments=arguments,
            at=time.monotonic(),
        )
        try:
            answer = act()
        except OSError as error:
            self._note(answer={"error": error_name(error)}, at=time.monotonic())
            raise
        self._note(answer=answer, at=time.monotonic())
        return answer

    def _note(self, **line: object) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")


def error_name(error: OSError) -> str:
    """Like "ENOENT"."""
    import errno

    return errno.errorcode.get(error.errno or 0, str(error))


def read_history(file: Path) -> Iterator[Event]:
    """The operations in a journal."""
    begun: dict[str, Any] | None = None
    for text in file.read_text().splitlines():
        line = json.loads(text)
        if "worker" in line:
            if begun is not None:
                yield _event(begun, None)
            begun = line
        else:
            assert begun is not None
            yield _event(begun, line)
            begun = None
    if begun is not None:
        yield _event(begun, None)


def _event(begun: dict[str, Any], ended: dict[str, Any] | None) -> Event:
    return Event(
        worker=begun["worker"],
        strict=begun["strict"],
        subject=begun["subject"],
        name=begun["name"],
        arguments=tuple(begun["arguments"]),
        answer=None if ended is None else ended["answer"],
        invoked=begun["at"],
        responded=inf if ended is None else ended["at"],
    )
