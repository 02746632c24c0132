"""Records the calls that Python makes, and counts what a part of them passes.

The rules of counting:

- A *file* is a source file of the product of which a function was executed.
- A *function* is a distinct code object. A comprehension belongs to the function around it.
- A *move* is a call from a function in one product file into another file. Returns do not count,
  nor does the resumption of a coroutine that waited. The caller is the nearest product function on
  the stack, so a callback through the standard library is a move too.
- Generated code (`__init__` of dataclasses, msgspec) and the import of modules do not count.
- A coroutine that was resumed only to resume the one that it awaits, and waits again, was not
  executed.
"""

import dis
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import CO_COROUTINE, CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PRODUCT = ("bftfs/", "nodes/", "mount/")
SIMULATOR = "bftfs/simulation/"  # stands for network, disks and time: not part of an operation

_COMPREHENSION = re.compile(r"(\.<locals>)?\.<(listcomp|setcomp|dictcomp|genexpr)>")
_RESUME, _YIELD = dis.opmap["RESUME"], dis.opmap["YIELD_VALUE"]


def is_product(file: str) -> bool:
    """True if `file`, relative to the tree, counts."""
    return file.startswith(PRODUCT) and not file.startswith(SIMULATOR)


@dataclass(slots=True)
class Call:
    """One entry into a function of the tree."""

    parent: int  # the call during which it happened; -1 if none was recorded
    file: str
    function: str
    is_resumption: bool
    is_coroutine: bool
    note: Any  # what the recorder's `note` said of it
    children: int = 0
    resumed: int = 0  # how many of these are resumptions
    waits: bool = False  # it ended because it waits, not because it returned

    @property
    def is_executed(self) -> bool:
        """False if it only resumed another coroutine."""
        passes_on = self.is_resumption and self.waits
        return not (passes_on and self.children == self.resumed == 1)


class Recorder:
    """Records every call of functions defined below `tree`.

    `note` is shown the frame of each call; what it returns is kept with the call.
    """

    def __init__(self, tree: Path, note: Callable[[FrameType], Any] = lambda _frame: None) -> None:
        self.calls: list[Call] = []
        self._prefix = f"{tree}/"
        self._note = note
        self._stack: list[int] = []
        self._names: dict[CodeType, tuple[str, str] | None] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what happens inside."""
        self._stack.clear()
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _name(self, code: CodeType) -> tuple[str, str] | None:
        """File and function; None for code that does not count: generated, modules, classes."""
        if code not in self._names:
            counts = code.co_filename.startswith(self._prefix) and code.co_flags & CO_OPTIMIZED
            self._names[code] = (
                (
                    code.co_filename.removeprefix(self._prefix),
                    _COMPREHENSION.sub("", code.co_qualname),
                )
                if counts
                else None
            )
        return self._names[code]

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        stack = self._stack
        if event == "call":
            parent = stack[-1] if stack else -1
            name = self._name(frame.f_code)
            if name is None:
                stack.append(parent)
                return
            is_resumption = _instruction(frame) != (_RESUME, 0)
            is_coroutine = bool(frame.f_code.co_flags & CO_COROUTINE)
            stack.append(len(self.calls))
            if parent >= 0:
                self.calls[parent].children += 1
                self.calls[parent].resumed += is_resumption
            self.calls.append(Call(parent, *name, is_resumption, is_coroutine, self._note(frame)))
        elif event == "return" and stack:
            index = stack.pop()
            # Generated code has the index of its caller.
            if index >= 0 and self._name(frame.f_code) is not None:
                self.calls[index].waits = _instruction(frame)[0] == _YIELD


def _instruction(frame: FrameType) -> tuple[int, int]:
    """The instruction at which a frame stands, and its argument: 0 of RESUME is the beginning."""
    code, at = frame.f_code.co_code, frame.f_lasti
    return (code[at], code[at + 1]) if at >= 0 else (_RESUME, 0)


@dataclass(slots=True)
class Figures:
    """What was passed: the functions of each file, and how many moves there were."""

    passed: dict[str, set[str]] = field(default_factory=dict)
    moves: int = 0

    @property
    def files(self) -> int:
        """How many files."""
        return len(self.passed)

    @property
    def functions(self) -> int:
        """How many functions."""
        return sum(map(len, self.passed.values()))


def figures(
    calls: Sequence[Call],
    begins: Callable[[Call], bool] = lambda call: call.parent < 0,
    *,
    with_coroutines: bool = True,
) -> Figures:
    """Counts the calls for which `begins` is true and all that happened during them.

    Without coroutines, conversations that are begun or resumed meanwhile are left out: what a
    server does for one request is plain calls, and anything else is work that it woke.
    """
    found = Figures()
    inside = [False] * len(calls)
    callers = [""] * len(calls)  # the file of the nearest product function, itself included
    for index, call in enumerate(calls):
        within = call.parent >= 0 and inside[call.parent]
        inside[index] = (within or begins(call)) and (with_coroutines or not call.is_coroutine)
        caller = callers[call.parent] if within else ""
        callers[index] = caller
        if not inside[index] or not is_product(call.file):
            continue
        callers[index] = call.file
        if call.is_executed:
            found.passed.setdefault(call.file, set()).add(call.function)
        if caller not in ("", call.file) and not call.is_resumption:
            found.moves += 1
    return found


def first(calls: Sequence[Call], note: Any) -> Callable[[Call], bool]:
    """Chooses the first call with this note, for `figures`."""
    chosen = next(call for call in calls if call.note == note)
    return lambda call: call is chosen
