"""mount.callers"""

import os
import signal
from pathlib import Path

import pytest

from bftfs.credentials import ALL_RIGHTS, Credentials, Grant
from mount import callers

EXITING = 0x0040010C  # flags of a process in exit(2)
RUNNING = 0x00400100
PID = 42


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of our own."""
    monkeypatch.setattr(callers, "PROC", tmp_path)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(
        "40 22 0:40 / /mnt/files rw - fuse.bftfs /srv rw\n22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    )
    return tmp_path


def mask(*numbers: signal.Signals) -> str:
    return f"{sum(1 << (number - 1) for number in numbers):016x}"


def a_thread(
    proc: Path,
    *,
    pid: int = PID,
    process: int = PID,
    state: str = "D",
    flags: int = RUNNING,
    thread_pending: str = "0",
    pending: str = "0",
    blocked: str = "0",
    ignored: str = "0",
) -> None:
    """A thread as the kernel describes it; its name is chosen to confuse."""
    directory = proc / str(pid)
    directory.mkdir()
    (directory / "stat").write_text(f"{pid} (a) D (b) {state} 1 42 42 0 -1 {flags} 0 0\n")
    (directory / "status").write_text(
        f"Name:\ta) D (b\nTgid:\t{process}\nState:\t{state} (whatever)\nGroups:\t30 4 1000 \n"
        f"SigPnd:\t{thread_pending}\nShdPnd:\t{pending}\nSigBlk:\t{blocked}\n"
        f"SigIgn:\t{ignored}\nSigCgt:\t{mask(signal.SIGINT)}\n"
    )
    (proc / str(process) / "task" / str(pid)).mkdir(parents=True)


ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL]


@pytest.mark.parametrize("number", ENDING)
def test_a_thread_with_a_pending_signal_wants_to_end(proc: Path, number: signal.Signals):
    a_thread(proc, pending=mask(number))
    a_thread(proc, pid=43, thread_pending=mask(number))
    a_thread(proc, pid=44)
    assert [callers.wants_to_end(pid) for pid in (42, 43, 44)] == [True, True, False]


def test_signals_for_other_purposes_end_nobody(proc: Path):
    a_thread(proc, pending=mask(signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM))
    assert not callers.wants_to_end(PID)


def test_a_signal_that_is_kept_away_ends_nobody(proc: Path):
    a_thread(proc, pending=mask(signal.SIGINT), ignored=mask(signal.SIGINT))
    a_thread(proc, pid=43, pending=mask(signal.SIGTERM), blocked=mask(signal.SIGTERM))
    assert not callers.wants_to_end(42)
    assert not callers.wants_to_end(43)


@pytest.mark.parametrize("state", ["R", "S", "T", "Z", "X"])
def test_only_uninterruptible_waits_keep_signals_away(proc: Path, state: str):
    """A zombie, for one, has the signal pending by which it ended."""
    a_thread(proc, state=state, pending=mask(signal.SIGKILL))
    assert not callers.wants_to_end(PID)


@pytest.mark.parametrize(("state", "wants"), [("S", True), ("D", True), ("R", False), ("Z", False)])
def test_who_exits_and_waits_wants_to_end(proc: Path, state: str, wants: bool):
    """The files of a killed process are closed after it has taken the signal."""
    a_thread(proc, state=state, flags=EXITING)
    assert callers.wants_to_end(PID) == wants


def test_a_vanished_or_invisible_process_wants_nothing(proc: Path):
    assert not callers.wants_to_end(PID)
    assert not callers.wants_to_end(0)
    assert callers.groups_of(PID) == ()
    assert callers.groups_of(0) == ()


def test_a_thread_belongs_to_a_process(proc: Path):
    a_thread(proc, pid=43, process=42)
    assert callers.process_of(43) == 42
    assert callers.process_of(44) is None


def test_a_process_ends_when_one_of_its_threads_does(proc: Path):
    a_thread(proc, pid=42)
    a_thread(proc, pid=43, process=42, pending=mask(signal.SIGKILL))
    a_thread(proc, pid=50)
    assert callers.ending() == (42,)


class TestUses:
    @pytest.fixture
    def process(self, proc: Path) -> Path:
        a_thread(proc)
        (proc / "42" / "fdinfo").mkdir()
        (proc / "42" / "maps").write_text(
            "7f00-7f01 r--s 00000000 00:28 4711        /mnt/files/b\n"
        )
        (proc / "42" / "fdinfo" / "3").write_text("pos:\t0\nmnt_id:\t40\nino:\t815\n")
        (proc / "42" / "fdinfo" / "4").write_text("pos:\t0\nmnt_id:\t22\nino:\t816\n")
        return proc / "42"

    @pytest.mark.parametrize(
        ("inode", "device", "used"),
        [
            (815, "0:40", True),
            (816, "0:40", False),  # that number, but on another file system
            (816, "8:1", True),
            (4711, "0:40", True),  # mapped
            (4711, "8:1", False),
            (471, "0:40", False),
        ],
    )
    def test_open_or_mapped(self, process: Path, inode: int, device: str, used: bool):
        assert callers.uses(PID, inode, device, opener=PID) == used

    def test_who_exits_may_be_closing_anything_of_his_session(self, proc: Path, process: Path):
        for descriptor in (process / "fdinfo").iterdir():
            descriptor.unlink()
        (process / "stat").write_text("42 (a) D (b) D 1 42 40 0 -1 4 0 0\n")
        a_thread(proc, pid=43, process=43)
        for session, used in ((40, True), (41, False)):
            (proc / "43" / "stat").write_text(f"43 (a) D (b) S 1 43 {session} 0 -1 0 0 0\n")
            assert callers.uses(PID, 1, "0:40", opener=43) == used


def test_groups_are_read_in_order(proc: Path):
    a_thread(proc)
    assert callers.groups_of(PID) == (4, 30, 1000)


def test_the_real_proc_is_understood():
    assert callers.groups_of(os.getpid()) == tuple(sorted(os.getgroups()))
    assert not callers.wants_to_end(os.getpid())
    assert os.getpid() not in callers.ending()
    with Path(__file__).open("rb") as file:
        status = os.fstat(file.fileno())
        device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        assert callers.uses(os.getpid(), status.st_ino, device, opener=1)


def test_credentials_are_remembered_for_a_moment(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    def groups_of(pid: int) -> tuple[int, ...]:
        asked.append(pid)
        return (5, 6)

    now = 1_000_000_000_000
    monkeypatch.setattr(callers, "groups_of", groups_of)
    monkeypatch.setattr(callers.time, "monotonic_ns", lambda: now)
    known = callers.Callers(ALL_RIGHTS)
    for _ in range(3):
        assert known.credentials(pid=7, uid=10, gid=20).groups == (5, 6)
    assert asked == [7]
    known.credentials(pid=7, uid=11, gid=20)
    assert asked == [7, 7]
    now += callers.GROUPS_VALID_NS
    known.credentials(pid=7, uid=10, gid=20)
    assert asked == [7, 7, 7]


def test_the_superuser_needs_no_groups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(callers, "groups_of", lambda _: pytest.fail("asked"))
    assert callers.Callers(ALL_RIGHTS).credentials(pid=7, uid=0, gid=0).groups == ()


def test_groups_that_the_grant_does_not_cover_are_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(callers, "groups_of", lambda _: tuple(range(5, 200)))
    known = callers.Callers(Grant(uids=(10, 11), gids=(20, 199, 6)))
    assert known.credentials(pid=7, uid=10, gid=20) == Credentials(10, 20, (6, 20, 199))
    assert known.credentials(pid=7, uid=10, gid=5) == Credentials(10, 6, (6, 20, 199))
    everybody = callers.Callers(ALL_RIGHTS).credentials(pid=7, uid=10, gid=5)
    assert everybody == Credentials(10, 5, tuple(range(5, 69)))


def test_only_so_many_processes_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(callers, "groups_of", lambda _: ())
    known = callers.Callers(ALL_RIGHTS)
    for pid in range(2 * callers.GROUPS_REMEMBERED):
        known.credentials(pid=pid, uid=10, gid=20)
    assert len(known._known) == callers.GROUPS_REMEMBERED
