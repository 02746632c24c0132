"""mount.main, by programs that use it: forking pytest itself would be rash."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from pathlib import Path
from mount.main import run_in_background

def work(ready):
    print("on the way", file=sys.stderr)
{body}

sys.exit(run_in_background(work, output=Path(sys.argv[1])))
"""


def run(tmp_path: Path, *body: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    output = tmp_path / "output"
    indented = "\n".join(f"    {line}" for line in body)
    outcome = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=indented), str(output)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return outcome, output


def test_the_parent_ends_well_once_the_child_is_ready(tmp_path: Path):
    going_on, wait = tmp_path / "going-on", tmp_path / "fifo"
    os.mkfifo(wait)
    outcome, output = run(
        tmp_path,
        "ready()",
        "print('in the background', flush=True)",
        f"open({str(wait)!r}).read()",
        f"Path({str(going_on)!r}).write_text(str(os.getsid(0) == os.getpid()))",
        f"os.rename({str(going_on)!r}, {str(going_on)!r} + '.done')",
        f"open({str(wait)!r}, 'w').close()",
        "return 0",
    )
    assert (outcome.returncode, outcome.stdout) == (0, "")
    assert outcome.stderr == "on the way\n"
    assert not going_on.exists()
    wait.write_text("")  # lets it go on
    wait.read_text()  # until it has
    assert Path(f"{going_on}.done").read_text() == "True"
    assert output.read_text() == "in the background\n"


def test_what_goes_wrong_before_is_the_outcome(tmp_path: Path):
    outcome, output = run(tmp_path, "print('no key', file=sys.stderr)", "return 2")
    assert outcome.returncode == 2
    assert outcome.stderr == "on the way\nno key\n"
    assert not output.exists()


def test_a_fault_of_ours_is_told_with_its_traceback(tmp_path: Path):
    outcome, _ = run(tmp_path, "raise KeyError('x')")
    assert outcome.returncode == 1
    assert "KeyError: 'x'" in outcome.stderr


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "return 0"])
def test_a_child_that_ends_without_being_ready_has_failed(tmp_path: Path, end: str):
    outcome, _ = run(tmp_path, end)
    assert outcome.returncode != 0


def test_ctrl_c_before_it_is_ready_leaves_no_process_behind(tmp_path: Path):
    body = "    print(os.getpid(), flush=True); import time; time.sleep(60)"
    parent = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body), str(tmp_path / "output")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) != parent.pid
        parent.send_signal(signal.SIGINT)
        assert parent.stdout.read() == ""  # at its end: no process has it open any more
