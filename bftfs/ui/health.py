"""The cluster's health over time: samples of what `bftfs status` knows, kept in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import Any, Final, NamedTuple

from bftfs.errors import BftfsError
from bftfs.limits import SECOND_US
from bftfs.printable import printable

EVERY_S: Final = 10.0
SAMPLES_KEPT: Final = 2160  # six hours
PERIODS_SHOWN: Final = 50

_WIDTH: Final = 720  # of the picture, in its own units
_ROW: Final = 22
_LEFT: Final = 64  # for the names of nodes
_HEIGHTS: Final = {"ok": 16, "degraded": 8, "down": 2}  # so that colours are not needed


@dataclass(frozen=True, slots=True)
class Sample:
    """What was known at a time. `failure`: why nothing was."""

    time_us: int
    states: tuple[str, ...] = ()  # of each node: ok, degraded or down
    more_may_fail: int = 0
    lacking: int = 0  # objects and blocks that nodes know they lack, or have damaged
    unverified: int = 0  # versions of blocks, at the node with most
    fullest: float = 0.0  # the share of its room that the fullest node has taken
    failure: str = ""

    @property
    def counts(self) -> str:
        """Which nodes are in which state, in words."""
        said = [f"{self.states.count('ok')} ok"] if self.states else ["not known"]
        for state in ("degraded", "down"):
            nodes = [str(node) for node, each in enumerate(self.states) if each == state]
            if nodes:
                said.append(f"node{'s' * (len(nodes) > 1)} {', '.join(nodes)} {state}")
        return ", ".join(said)


@dataclass(frozen=True, slots=True)
class Period:
    """A time in which nodes' states did not change; the other figures are those of its end."""

    since_us: int
    until_us: int
    last: Sample


TakeReport = Callable[[], dict[str, Any]]


class HealthRecord:
    """The samples of the last hours, and the latest report."""

    def __init__(self, report: TakeReport, clock: Callable[[], int]) -> None:
        """`report` gives what `bftfs status --json` prints, with `sentences`; `clock` the time."""
        self._report = report
        self._clock = clock
        self._lock = Lock()
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_KEPT)
        self._latest: dict[str, Any] | None = None

    def take(self) -> None:
        """Take a sample."""
        try:
            report = self._report()
        except (BftfsError, OSError) as failure:
            sample = Sample(self._clock(), failure=printable(str(failure)))
            with self._lock:
                self._samples.append(sample)
            return
        sample = _sample(self._clock(), report)
        with self._lock:
            self._samples.append(sample)
            self._latest = report

    def run(self, stop: Event) -> None:
        """Take samples until told to stop."""
        while not stop.is_set():
            self.take()
            stop.wait(EVERY_S)

    @property
    def samples(self) -> list[Sample]:
        """All samples, the earliest first."""
        with self._lock:
            return list(self._samples)

    @property
    def latest(self) -> dict[str, Any] | None:
        """The latest report, if there was any."""
        return self._latest


def _sample(time_us: int, report: dict[str, Any]) -> Sample:
    lack, quorums = report["degraded"], report["quorums"]
    return Sample(
        time_us,
        tuple(state_of_node(node) for node in report["nodes"]),
        min(quorums[each]["more_may_fail"] for each in ("objects", "blocks")),
        lack["objects"] + lack["blocks"] + lack["damaged_objects"],
        report["unverified"]["block_versions"],
        report["pool"]["fullest"],
    )


def state_of_node(node: dict[str, Any]) -> str:
    """A node's state in a word, as `bftfs status` has it."""
    return "down" if not node["up"] else "ok" if node["healthy"] else "degraded"


def periods(samples: list[Sample]) -> list[Period]:
    """The samples, joined while nodes' states are the same; the earliest first."""
    found: list[Period] = []
    for sample in samples:
        last = found[-1] if found else None
        if last and (last.last.states, last.last.failure) == (sample.states, sample.failure):
            found[-1] = replace(last, until_us=sample.time_us, last=sample)
        else:
            found.append(Period(sample.time_us, sample.time_us, sample))
    return found


# --- the picture --------------------------------------------------------------------------------


class Bar(NamedTuple):
    """A node's state over some time: where it is drawn, and how high."""

    x: float
    y: float
    width: float
    height: int
    state: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A row of bars per node, from the first sample on the left to the last one."""

    width: int
    height: int
    left: int
    row: int
    nodes: int
    bars: list[Bar]
    since_us: int
    until_us: int


def picture(samples: list[Sample]) -> Picture | None:
    """The picture of the samples; None as long as there are none of use."""
    nodes = max((len(sample.states) for sample in samples), default=0)
    if not nodes:
        return None
    since_us, until_us = samples[0].time_us, samples[-1].time_us + round(EVERY_S * SECOND_US)
    scale = (_WIDTH - _LEFT) / (until_us - since_us)
    bars = [
        Bar(
            round(_LEFT + (begun_us - since_us) * scale, 1),
            node * _ROW + (_ROW - _HEIGHTS[state]) / 2,
            round((ended_us - begun_us) * scale, 1),
            _HEIGHTS[state],
            state,
        )
        for node in range(nodes)
        for begun_us, ended_us, state in _spans_of(node, samples, until_us)
    ]
    return Picture(_WIDTH, nodes * _ROW, _LEFT, _ROW, nodes, bars, since_us, until_us)


def _spans_of(node: int, samples: list[Sample], end_us: int) -> Iterator[tuple[int, int, str]]:
    """The times in which a node's state stayed the same; nothing for those that are not known."""
    begun_us, state = end_us, ""
    for sample in samples:
        is_now = sample.states[node] if node < len(sample.states) else ""
        if is_now != state:
            if state:
                yield begun_us, sample.time_us, state
            begun_us, state = sample.time_us, is_now
    if state:
        yield begun_us, end_us, state
