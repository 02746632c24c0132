"""Commands that disturb a run: kill a node in mid-copy, and see what becomes of the copy.

A disturbance is written `PHASE[#ROUND][@WHEN]:COMMAND`.  WHEN is a fraction of the phase's work
(`0.5`) or seconds after its start (`3s`); without it the command runs when the phase starts.
Without a round it runs in every round.  Disturbances apply to the measured directory alone, never
to the one it is compared with.

Concurrency: the workload's threads call `advance`; each command runs in a thread of its own.
"""

import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.errors import BenchmarkError

_COMMAND_PATIENCE_S = 60.0
_OUTPUT_TAIL = 2000  # characters of a command's output that are kept

_SYNTAX = re.compile(
    r"(?P<phase>[a-z-]+)(#(?P<round>\d+))?(@((?P<delay>\d+(\.\d+)?)s|(?P<fraction>[01](\.\d+)?)))?"
    r":(?P<command>.+)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A shell command, and when it runs."""

    phase: str
    command: str
    round: int | None = None  # None: every round
    delay_s: float = 0.0
    fraction: float = 0.0

    @classmethod
    def parse(cls, text: str, phases: Sequence[str]) -> "Disturbance":
        """From `PHASE[#ROUND][@WHEN]:COMMAND`, for a scenario that has `phases`."""
        match = _SYNTAX.fullmatch(text)
        if match is None:
            raise BenchmarkError(
                f"--during {text}: expected PHASE[#ROUND][@WHEN]:COMMAND,"
                " for example 'copy@0.5:kill -9 4711' or 'compile#0@3s:kill -9 4711'"
            )
        if match["phase"] not in phases:
            raise BenchmarkError(
                f"--during {text}: there is no phase '{match['phase']}'; it has {', '.join(phases)}"
            )
        fraction = float(match["fraction"] or 0)
        if fraction > 1:
            raise BenchmarkError(f"--during {text}: a fraction lies between 0 and 1")
        return cls(
            match["phase"],
            match["command"],
            None if match["round"] is None else int(match["round"]),
            float(match["delay"] or 0),
            fraction,
        )


@dataclass(frozen=True, slots=True)
class DisturbanceRun:
    """One command that ran, or that should have."""

    phase: str
    command: str
    round: int
    after_s: float  # since the start of the phase
    exit_status: int | None  # None: it did not end in time, or never ran
    output: str

    @property
    def complaint(self) -> str | None:
        """Why the run was not disturbed as asked; None if it was."""
        if self.exit_status == 0:
            return None
        return f"the disturbance '{self.command}' failed: {self.output.strip() or self.exit_status}"


class PhaseDisturber:
    """Runs the disturbances of one phase; made when the phase starts."""

    def __init__(
        self, disturbances: Sequence[Disturbance], *, phase: str, round_number: int, work: float
    ) -> None:
        self._started = time.perf_counter()
        self._round = round_number
        self._work = work
        self._done = 0.0
        self._lock = threading.Lock()
        self._due = [
            d for d in disturbances if d.phase == phase and d.round in (None, round_number)
        ]
        self._by_fraction = [d for d in self._due if d.fraction]
        self._timers: list[threading.Timer] = []
        self._threads: list[threading.Thread] = []
        self._begun: list[Disturbance] = []
        self._runs: list[DisturbanceRun] = []
        for disturbance in self._due:
            if disturbance.delay_s:
                timer = threading.Timer(disturbance.delay_s, self._run, [disturbance])
                timer.start()
                self._timers.append(timer)
            elif not disturbance.fraction:
                self._start(disturbance)

    def advance(self, amount: float = 1) -> None:
        """`amount` more of the phase's work has been done."""
        if not self._by_fraction:
            return
        with self._lock:
            self._done += amount
            due = [d for d in self._by_fraction if self._done >= d.fraction * self._work]
            for disturbance in due:
                self._by_fraction.remove(disturbance)
                self._start(disturbance)

    def finish(self) -> tuple[DisturbanceRun, ...]:
        """The commands that ran, in the order of their ends, and those whose time never came."""
        elapsed = time.perf_counter() - self._started
        for timer in self._timers:
            timer.cancel()  # without effect on one that has begun
        for thread in (*self._timers, *self._threads):
            thread.join()
        for disturbance in self._due:
            if disturbance not in self._begun:
                complaint = f"the phase ended after {elapsed:.2f} s, before the command was due"
                self._note(disturbance, elapsed, None, complaint)
        return tuple(self._runs)

    def _start(self, disturbance: Disturbance) -> None:
        thread = threading.Thread(target=self._run, args=[disturbance])
        thread.start()
        self._threads.append(thread)

    def _run(self, disturbance: Disturbance) -> None:
        self._begun.append(disturbance)
        after_s = time.perf_counter() - self._started
        # A file takes the output, not a pipe: a daemon that the command starts may keep it open.
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                disturbance.command,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                exit_status = process.wait(_COMMAND_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                exit_status = None
            output.seek(0)
            text = output.read(_OUTPUT_TAIL).decode(errors="replace")
        self._note(disturbance, after_s, exit_status, text)

    def _note(
        self, disturbance: Disturbance, after_s: float, exit_status: int | None, output: str
    ) -> None:
        self._runs.append(
            DisturbanceRun(
                disturbance.phase,
                disturbance.command,
                self._round,
                round(after_s, 3),
                exit_status,
                output,
            )
        )
