"""Ctrl-C between the steps of conversations, and not in the middle of one.

Python raises KeyboardInterrupt wherever the program happens to be: also between making a coroutine
and awaiting it, or where a failure has just been noted and not yet told. So the first Ctrl-C is
noted, and the host of conversations ends them when it has control. The second one is raised where
it comes, in case a step takes long.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final


class Interrupts:
    """`with interrupts.noted(): … interrupts.check()`."""

    def __init__(self, ring: Callable[[], None]) -> None:
        """`ring` wakes the host."""
        self._ring: Final = ring
        self._has_come = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._has_come:
            raise KeyboardInterrupt

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note Ctrl-C within, where a program has not decided itself what it does."""
        is_ours_to_note = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if not is_ours_to_note:
            yield
            return
        self._has_come = False
        signal.signal(signal.SIGINT, self._note)
        try:
            yield
            self.check()  # it may have come in the last step
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._has_come:
            signal.default_int_handler(number, frame)
        self._has_come = True
        self._ring()
