"""`bftfs simulate` says what it found, how to see it again, and stops when it is told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bftfs.cli import simulate as simulate_module
from bftfs.cli.simulate import simulate
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId
from bftfs.simulation.configuration import Configuration, from_json, to_json
from bftfs.simulation.twins import Scene
from tests.simulation.mutants import attacked

PROJECT = Path(__file__).parents[3]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(simulate, arguments, standalone_mode=False)


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    """The file of a configuration that cannot pass: more than t nodes stay down."""
    configuration = attacked(
        7,
        kind="blocks",
        operations=20,
        faulty_share=0.5,
        down_when_quiet=(NodeId(0), NodeId(1)),
    )
    path = tmp_path / "failing.json"
    path.write_bytes(to_json(configuration))
    return path


def test_seeds_that_pass_are_summed_up() -> None:
    result = run("--seed", "1", "--count", "3", "--operations", "20", "--kind", "blocks")
    assert result.return_value == 0
    assert "3 seeds in" in result.output
    assert "No violation found." in result.output


def test_schedules_with_twins_are_enumerated() -> None:
    result = run("--twins", "1")
    assert result.return_value == 0
    assert "36 schedules with twins: no violations" in result.output


def test_a_violation_with_twins_is_told_with_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    too_many = Scene("blocks", twinned_nodes=tuple(map(NodeId, (1, 2, 3, 4))))
    monkeypatch.setattr(simulate_module, "SCENES", (too_many,))
    result = run("--twins", "2")
    assert result.return_value == 1
    assert "twinned_nodes=(1, 2, 3, 4)" in result.output
    assert "took place between" in result.output


def test_a_failure_is_told_with_its_replay_command(
    failing: Path,
) -> None:
    result = run("--replay", str(failing), "--save", str(failing.parent / "found"))
    assert result.return_value == 1
    assert "Seed 7 failed at commit" in result.output
    assert "  - progress: client 0 still waits for" in result.output
    assert f"Replay: bftfs simulate --replay {failing}" in result.output
    assert "FAILED: 1 seeds: 7" in result.output


def test_a_failing_configuration_is_saved(failing: Path, tmp_path: Path) -> None:
    run("--replay", str(failing), "--save", str(tmp_path / "found"))
    saved = tmp_path / "found" / "blocks-7-20.json"
    assert from_json(saved.read_bytes()) == from_json(failing.read_bytes())


def test_a_failing_configuration_is_made_smaller(failing: Path, tmp_path: Path) -> None:
    result = run("--replay", str(failing), "--save", str(tmp_path / "found"))
    smallest = tmp_path / "found" / "blocks-7-20-small.json"
    assert f"Replay: bftfs simulate --replay {smallest}" in result.output
    small = from_json(smallest.read_bytes())
    assert small.down_when_quiet == (NodeId(0), NodeId(1))  # what it takes
    assert small.kept is not None
    assert len(small.kept) == 1
    again = run("--replay", str(smallest), "--shrink", "0", "--save", str(tmp_path / "again"))
    assert again.return_value == 1


def test_a_record_is_taken_up_again_and_summed_up(tmp_path: Path) -> None:
    record, page = tmp_path / "record", tmp_path / "page.md"
    common = ("--seed", "5", "--operations", "20", "--record", str(record))
    assert run(*common, "--count", "3").return_value == 0
    whole = record.read_bytes()
    record.write_bytes(whole[:-7])  # the machine stopped while the last line was written
    result = run(*common, "--count", "4", "--summary", str(page))
    assert result.return_value == 0
    assert "4 seeds in" in result.output
    assert record.read_bytes().startswith(whole)
    assert sorted(
        json.loads(line).get("seed") for line in record.read_bytes().splitlines()[1:]
    ) == [
        5,
        6,
        7,
        8,
    ]
    text = page.read_text()
    assert "Violations found: 0." in text
    assert " in 4 runs" in text
    run(*common, "--count", "0", "--summary", str(tmp_path / "again.md"))
    assert (tmp_path / "again.md").read_text() == text


def test_the_record_of_another_campaign_is_refused(tmp_path: Path) -> None:
    record = tmp_path / "record"
    run("--seed", "5", "--operations", "20", "--count", "1", "--record", str(record))
    result = run("--seed", "5", "--operations", "30", "--count", "1", "--record", str(record))
    assert isinstance(result.exception, UsageError)
    assert "another campaign" in str(result.exception)


def test_it_goes_on_until_enough_operations_were_simulated(tmp_path: Path) -> None:
    record = tmp_path / "record"
    common = ("--seed", "5", "--operations", "20", "--record", str(record))
    run(*common, "--until-operations", "50")
    seeds = len(record.read_bytes().splitlines()) - 1
    run(*common, "--until-operations", "50")
    assert len(record.read_bytes().splitlines()) - 1 == seeds


def test_each_seed_is_one_json_object(failing: Path) -> None:
    result = run("--replay", str(failing), "--json", "--save", str(failing.parent / "found"))
    (line,) = result.stdout.splitlines()
    report = json.loads(line)
    assert report["passed"] is False
    assert report["commit"]
    assert report["configuration"]["seed"] == 7
    assert report["findings"]


def test_a_file_that_is_no_configuration_is_a_users_mistake(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"seed": 1}')
    result = run("--replay", str(path))
    assert isinstance(result.exception, UsageError)
    assert str(path) in str(result.exception)


def test_every_configuration_can_be_told_as_json() -> None:
    result = run("--seed", "0", "--count", "12", "--operations", "3", "--json")
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    policies = {each["configuration"]["verification"] is None for each in told}
    assert (len(told), policies) == (12, {True, False})


@pytest.mark.parametrize("parallel", ["1", "2"])
def test_an_interrupt_stops_it_with_a_summary(parallel: str) -> None:
    command = ["-m", "bftfs", "simulate", "--seed", "0", "--until-stopped", "--json"]
    process = subprocess.Popen(
        [sys.executable, *command, "--operations", "20", "--parallel", parallel],
        cwd=PROJECT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first: Configuration | dict[str, object] = json.loads(process.stdout.readline())
    assert isinstance(first, dict)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Stopped." in errors
    assert "No violation found." in errors
    assert "Traceback" not in errors
