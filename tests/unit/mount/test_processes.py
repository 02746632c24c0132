"""mount.processes"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mount import processes

STOPPED_CHILD = """
import os, signal, sys
{setup}
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def child(setup: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that waits; stopped, it keeps the signals that it is sent."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED_CHILD.format(setup=setup)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_process_that_got_no_signal_does_not_want_to_end():
    with child() as process:
        assert not processes.wants_to_end(process.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_process_with_a_signal_to_take_wants_to_end(number: signal.Signals):
    with child() as process:
        process.send_signal(number)
        assert processes.wants_to_end(process.pid)
        assert process.pid in processes.ending()


def test_a_process_with_a_handler_wants_to_run_it():
    with child("signal.signal(signal.SIGINT, lambda *_: None)") as process:
        process.send_signal(signal.SIGINT)
        assert processes.wants_to_end(process.pid)


@pytest.mark.parametrize(
    "setup",
    [
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])",
    ],
)
def test_a_process_that_keeps_a_signal_away_goes_on(setup: str):
    with child(setup) as process:
        process.send_signal(signal.SIGINT)
        assert not processes.wants_to_end(process.pid)


def test_a_signal_for_other_purposes_ends_nobody():
    with child("signal.signal(signal.SIGUSR1, lambda *_: None)") as process:
        process.send_signal(signal.SIGUSR1)
        assert not processes.wants_to_end(process.pid)


def test_a_process_that_is_gone_or_not_to_be_seen_wants_nothing():
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not processes.wants_to_end(gone.pid)
    assert not processes.wants_to_end(0)
    assert processes.groups_of(gone.pid) == ()
    assert processes.groups_of(0) == ()


def test_who_uses_a_file_is_seen_by_its_descriptors_and_mappings(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4096)
    status = path.stat()
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    opening = f"file = open({str(path)!r}, 'rb')"
    mapping = f"{opening}; import mmap; m = mmap.mmap(file.fileno(), 0, prot=1); file.close()"
    for setup in (opening, mapping):
        with child(setup) as process:
            assert processes.uses(process.pid, status.st_ino, device)
            assert not processes.uses(process.pid, status.st_ino + 1, device)
            assert not processes.uses(process.pid, status.st_ino, "0:0")


def test_groups_are_those_of_the_process():
    assert processes.groups_of(os.getpid()) == tuple(sorted(os.getgroups()))


def test_credentials_are_remembered_for_a_moment(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    def groups_of(pid: int) -> tuple[int, ...]:
        asked.append(pid)
        return (5, 6)

    now = 1_000_000_000_000
    monkeypatch.setattr(processes, "groups_of", groups_of)
    monkeypatch.setattr(processes.time, "monotonic_ns", lambda: now)
    callers = processes.Callers()
    for _ in range(3):
        assert callers.credentials(pid=7, uid=10, gid=20).groups == (5, 6)
    assert asked == [7]
    callers.credentials(pid=7, uid=11, gid=20)
    assert asked == [7, 7]
    now += processes.GROUPS_VALID_NS
    callers.credentials(pid=7, uid=10, gid=20)
    assert asked == [7, 7, 7]


def test_the_superuser_needs_no_groups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "groups_of", lambda _: pytest.fail("asked"))
    assert processes.Callers().credentials(pid=7, uid=0, gid=0).groups == ()


def test_only_so_many_processes_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "groups_of", lambda _: ())
    callers = processes.Callers()
    for pid in range(2 * processes.GROUPS_REMEMBERED):
        callers.credentials(pid=pid, uid=10, gid=20)
    assert len(callers._known) == processes.GROUPS_REMEMBERED
