"""Commands in mid-phase: when they run, where, and what is said if they did not."""

import os
import signal
from pathlib import Path

import pytest

from benchmarks.disturbance import Disturbance
from benchmarks.errors import BenchmarkError
from benchmarks.measurement import Measure
from benchmarks.session import Place, Session

PHASES = ("copy", "read-cold")


@pytest.mark.parametrize(
    ("text", "disturbance"),
    [
        ("copy:kill -9 7", Disturbance("copy", "kill -9 7")),
        ("copy:a:b", Disturbance("copy", "a:b")),
        ("read-cold@0.5:true", Disturbance("read-cold", "true", fraction=0.5)),
        ("copy#2@1.5s:true", Disturbance("copy", "true", round=2, delay_s=1.5)),
    ],
)
def test_the_syntax(text: str, disturbance: Disturbance) -> None:
    assert Disturbance.parse(text, PHASES) == disturbance


@pytest.mark.parametrize("text", ["copy", "copy:", "copy@x:true", "copy@1.5:true", "compile:true"])
def test_what_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(BenchmarkError, match="--during"):
        Disturbance.parse(text, PHASES)


def test_a_command_runs_at_its_fraction(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    session = Session(disturbances=[Disturbance("copy", f"touch {mark}", fraction=0.5)])
    with session.phase(Place("A", 0, disturbed=True), "copy", Measure.SECONDS, work=4) as phase:
        phase.advance()
        assert session.disturbance_runs == []
        phase.advance()
        phase.advance()
    (run,) = session.disturbance_runs
    assert run.exit_status == 0
    assert mark.exists()
    assert session.failures == []


def test_a_fraction_that_is_not_reached_is_a_failure(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    session = Session(disturbances=[Disturbance("copy", f"touch {mark}", fraction=0.5)])
    with session.phase(Place("A", 0, disturbed=True), "copy", Measure.SECONDS, work=4) as phase:
        phase.advance()
    assert not mark.exists()
    (failure,) = session.failures
    assert "before the command was due" in failure.message


def test_a_delay_that_is_longer_than_the_phase_is_a_failure(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    session = Session(disturbances=[Disturbance("copy", f"touch {mark}", delay_s=3600)])
    with session.phase(Place("A", 0, disturbed=True), "copy", Measure.SECONDS):
        pass
    assert not mark.exists()
    assert len(session.failures) == 1


def test_a_command_that_fails_is_a_failure_with_its_output() -> None:
    session = Session(disturbances=[Disturbance("copy", "echo no such node; exit 3")])
    with session.phase(Place("A", 0, disturbed=True), "copy", Measure.SECONDS):
        pass
    (run,) = session.disturbance_runs
    assert run.exit_status == 3
    assert "no such node" in session.failures[0].message


def test_a_command_may_leave_a_daemon_behind() -> None:
    # The phase does not wait for it: it inherits no pipe that this program reads to its end.
    session = Session(disturbances=[Disturbance("copy", "cat /dev/zero > /dev/null & echo $!")])
    with session.phase(Place("A", 0, disturbed=True), "copy", Measure.SECONDS):
        pass
    (run,) = session.disturbance_runs
    os.kill(int(run.output), signal.SIGKILL)
    assert run.exit_status == 0


@pytest.mark.parametrize(
    ("place", "phase"),
    [
        (Place("B", 0, disturbed=False), "copy"),
        (Place("A", 0, disturbed=True), "read-cold"),
        (Place("A", 1, disturbed=True), "copy"),
    ],
)
def test_other_places_are_left_alone(tmp_path: Path, place: Place, phase: str) -> None:
    mark = tmp_path / "mark"
    session = Session(disturbances=[Disturbance("copy", f"touch {mark}", round=0)])
    with session.phase(place, phase, Measure.SECONDS):
        pass
    assert not mark.exists()
    assert session.disturbance_runs == []
