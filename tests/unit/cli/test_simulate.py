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

from bftfs.cli.simulate import simulate
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId
from bftfs.simulation.configuration import Configuration, from_json, to_json
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
        storm_share=0.5,
        down_in_calm=(NodeId(0), NodeId(1)),
    )
    path = tmp_path / "failing.json"
    path.write_bytes(to_json(configuration))
    return path


def test_seeds_that_pass_are_summed_up() -> None:
    result = run("--seed", "1", "--count", "3", "--operations", "20", "--kind", "blocks")
    assert result.return_value == 0
    assert "3 seeds in" in result.output
    assert "No violation found." in result.output


def test_a_failure_is_told_with_its_findings_and_the_command_that_replays_it(
    failing: Path,
) -> None:
    result = run("--replay", str(failing))
    assert result.return_value == 1
    assert "Seed 7 failed at commit" in result.output
    assert "  - progress: client 0 still waits for" in result.output
    assert f"Replay: bftfs simulate --replay {failing}" in result.output
    assert "FAILED: 1 seeds: 7" in result.output


def test_a_failing_configuration_is_saved(failing: Path, tmp_path: Path) -> None:
    run("--replay", str(failing), "--save", str(tmp_path / "found"))
    saved = tmp_path / "found" / "blocks-7-20.json"
    assert from_json(saved.read_bytes()) == from_json(failing.read_bytes())


def test_each_seed_is_one_json_object(failing: Path) -> None:
    result = run("--replay", str(failing), "--json")
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
