"""Memory and CPU time of watched processes."""

import os
import subprocess
from pathlib import Path

from benchmarks.machine import FileSystem
from benchmarks.processes import ProcessWatch, WatchedProcess


def test_the_cpu_time_of_a_phase_is_counted() -> None:
    watch = ProcessWatch([WatchedProcess.parse(f"self={os.getpid()}")])
    before = os.times()
    while os.times().user - before.user < 0.05:
        sum(range(10_000))
    (use,) = watch.finish()
    assert use.alive
    assert use.user_s >= 0.03  # in ticks of 10 ms
    assert use.peak_resident_kib >= use.resident_kib > 0
    assert use.anonymous_kib + use.file_backed_kib <= use.resident_kib


def test_a_process_that_was_killed_is_gone() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        watch = ProcessWatch([WatchedProcess.parse(f"node=1={process.pid}")])
        process.kill()
        process.wait()
        (use,) = watch.finish()
    assert use.name == "node=1"
    assert not use.alive


def test_the_file_system_of_a_directory() -> None:
    assert FileSystem.of(Path("/proc/self")).kind == "proc"
    assert FileSystem.of(Path("/proc/self")).mount_point == "/proc"
