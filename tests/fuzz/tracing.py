"""What an input makes the product do: the edges of its lines that are taken, and how many lines.

A pure-Python tracer. It is what the tests use, without any fuzzing engine; and the number of lines
is the measure of work, which is the same in every run, unlike time.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("bftfs", "nodes", "mount")
NOT_TRACED = ("bftfs.simulation",)  # hosts some of the targets, and takes no bytes itself
_ROOTS = tuple(f"{PROJECT / package}/" for package in PACKAGES)
_NOT_ROOTS = tuple(f"{PROJECT / package.replace('.', '/')}/" for package in NOT_TRACED)

_numbers: dict[CodeType, int] = {}  # code objects of the product, and 0 for all others


class WorkExceeded(BaseException):
    """An input makes the product do more than its target allows.

    Not an `Exception`: the product handles those, as the bugs of a method.
    """


class Tracer:
    """Traces what runs inside `with`; stops it once it has taken more than `most_work` lines.

    No garbage is collected meanwhile: to close what earlier runs have left would count as work.
    """

    def __init__(self, *, most_work: int) -> None:
        self.edges: set[int] = set()
        self.work = 0
        self._most = most_work
        self._before: Any = None
        self._collected = False

    def __enter__(self) -> Tracer:
        self._collected = gc.isenabled()
        gc.disable()
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        if self._collected:
            gc.enable()

    def _enter(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        number = _numbers.get(code)
        if number is None:
            file = code.co_filename
            traced = file.startswith(_ROOTS) and not file.startswith(_NOT_ROOTS)
            number = len(_numbers) + 1 if traced else 0
            _numbers[code] = number
        if not number:
            return None
        self._count()
        add, most = self.edges.add, self._most
        base = number << 40
        last = 0

        def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
            nonlocal last
            if event == "line":
                line = frame.f_lineno
                add(base | last << 20 | line)
                last = line
                self.work += 1
                if self.work > most:
                    self._stop()
            return trace

        return trace

    def _count(self) -> None:
        self.work += 1
        if self.work > self._most:
            self._stop()

    def _stop(self) -> None:
        sys.settrace(self._before)
        raise WorkExceeded(f"more than {self._most} lines of the product")
