"""Snapshots by schedule, `bftfs send` and `bftfs receive`, on a real mount."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

from bftfs.backup.stream import RESERVED
from bftfs.filesystem import acl
from bftfs.filesystem.time_names import parse_time_name
from tests.end_to_end.cluster import Cluster, bftfs
from tests.end_to_end.expectations import BLOCK, payload
from tests.end_to_end.test_history import HISTORY, now
from tests.end_to_end.test_history_commands import fails
from tests.end_to_end.test_undo import NAMED_USER
from tests.unit.backup.trees import held


def snapshots_of(directory: Path) -> list[str]:
    """The names of the snapshots that the schedule of a directory has made."""
    rows = json.loads(bftfs("snapshot", "list", directory, "--json"))
    return [row["name"] for row in rows if row["schedule"] == str(directory)]


def test_snapshots_are_made_by_schedule(directory: Path, cluster: Cluster) -> None:
    (directory / "file").write_text("one")
    (directory / "below").mkdir()
    assert bftfs("snapshot", "schedule", directory) == ""
    said = bftfs("snapshot", "schedule", directory, "every 1h keep 24, every 1d keep 30")
    assert "every 1h keep 24, every 1d keep 30" in said
    bftfs("snapshot", "schedule", directory / "below", "every 1w keep 2", "--name", "low")
    shown = json.loads(bftfs("snapshot", "schedule", "--json", directory))
    assert sorted((row["path"], row["rules"], row["snapshots"]) for row in shown) == [
        (str(directory), "every 1h keep 24, every 1d keep 30", []),
        (str(directory / "below"), "every 1w keep 2", []),
    ]
    said = bftfs("snapshot", "run", directory)
    [name] = snapshots_of(directory)
    assert f"{directory}: made {name}" in said
    assert name.startswith(f"{directory.name}-20")
    assert "below: made low-20" in said
    assert bftfs("snapshot", "run", directory) == "", "nothing is due"
    (directory / "file").write_text("two")
    assert (directory / HISTORY / name / "file").read_text() == "one"
    assert bftfs("cat", f"{directory}/file@{name}") == "one"
    assert f"{name}  (schedule of {directory})" in bftfs("snapshot", "list", directory)

    os.rmdir(directory / "below")
    assert bftfs("snapshot", "run", directory) == ""
    for path, left in ((directory, 1), (directory / "below", 1)):
        said = bftfs("snapshot", "schedule", path, "--remove")
        assert f"its {left} snapshots stay" in said
    assert "you have no schedule for it" in fails("snapshot", "schedule", directory, "--remove")
    assert name in bftfs("snapshot", "list", directory)
    for row in json.loads(bftfs("snapshot", "list", directory, "--json")):
        if row["name"].startswith((directory.name, "low-")):
            bftfs("snapshot", "delete", directory, row["name"])


def test_mistakes_about_schedules_get_clear_answers(directory: Path, cluster: Cluster) -> None:
    (directory / "file").touch()
    set_ = ("snapshot", "schedule", directory)
    assert "a rule is `every TIME keep NUMBER`" in fails(*set_, "hourly")
    assert "not a length of time" in fails(*set_, "every 1x keep 2")
    assert "from 1 to 128" in fails(*set_, "every 1h keep 0")
    assert "not a directory" in fails("snapshot", "schedule", directory / "file", "every 1h keep 2")
    assert "cannot begin so" in fails(*set_, "every 1h keep 2", "--name", "")
    assert "cannot begin so" in fails(*set_, "every 1h keep 2", "--name", "a/b")
    assert "either rules or --remove" in fails(*set_, "every 1h keep 2", "--remove")
    assert "not in a mount" in fails("snapshot", "run", "/etc")


# --- send and receive ---------------------------------------------------------------------------


def send(*words: str | Path) -> bytes:
    """What `bftfs send` writes."""
    command = [sys.executable, "-m", "bftfs", "send", *map(str, words)]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


def receive(directory: Path, stream: bytes) -> str:
    """What `bftfs receive` prints."""
    command = [sys.executable, "-m", "bftfs", "receive", str(directory)]
    finished = subprocess.run(command, input=stream, capture_output=True, check=False, timeout=60)
    assert finished.returncode == 0, finished.stderr.decode()
    return finished.stdout.decode() + finished.stderr.decode()


def refused(directory: Path, stream: bytes) -> str:
    """What `bftfs receive` says when it does not take a stream: one sentence."""
    command = [sys.executable, "-m", "bftfs", "receive", str(directory)]
    finished = subprocess.run(command, input=stream, capture_output=True, check=False, timeout=60)
    assert (finished.returncode, finished.stdout) == (1, b"")
    assert finished.stderr.startswith(b"bftfs: ")
    assert finished.stderr.count(b"\n") == 1
    return finished.stderr.decode()


def extended(tree: Path) -> dict[str, dict[str, bytes]]:
    """The extended attributes and ACLs of everything in a tree."""
    return {
        str(path.relative_to(tree)): {name: os.getxattr(path, name) for name in os.listxattr(path)}
        for path in (tree, *tree.rglob("*"))
        if not path.is_symlink() and RESERVED not in os.fsencode(path)
    }


def plant(tree: Path) -> None:
    """Everything that a tree may have."""
    tree.mkdir()
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_bytes(payload(2 * BLOCK + 7, 1))
    (tree / "a" / "b" / "deep").write_text("deep")
    (tree / "moves").mkdir()
    for number in range(12):
        (tree / "moves" / f"{number}").write_text(f"{number}")
    (tree / "goes").write_text("goes")
    (tree / "naïve ☃\n").write_text("ü")
    with (tree / "sparse").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    os.link(tree / "goes", tree / "a" / "same")
    os.symlink("../goes", tree / "a" / "link")
    os.mkfifo(tree / "pipe", 0o620)
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(tree / "a" / "file", "user.k", b"v")
    os.setxattr(tree / "a", os.fsdecode(acl.DEFAULT), NAMED_USER)
    os.setxattr(tree / "goes", os.fsdecode(acl.ACCESS), NAMED_USER)
    os.chown(tree / "a" / "file", 1234, 2345)
    (tree / "a" / "file").chmod(0o4750)
    os.utime(tree / "a" / "b", ns=(10**18, 10**18 + 123))


def change(tree: Path) -> None:
    """Changes of all kinds."""
    (tree / "goes").unlink()
    os.rename(tree / "moves", tree / "a" / "moved")
    os.rename(tree / "a" / "b" / "deep", tree / "a" / "moved" / "7")
    (tree / "a" / "file").write_text("new contents")
    os.removexattr(tree / "a" / "file", "user.k")
    (tree / "a" / "b").chmod(0o711)
    (tree / "new").mkdir()
    (tree / "new" / "file").write_text("new")
    os.link(tree / "new" / "file", tree / "new" / "other")


def test_a_tree_and_its_increment_arrive_on_another_machine(
    directory: Path, cluster: Cluster, outside: Path
) -> None:
    tree, backup = directory / "tree", outside / "backup"
    plant(tree)
    first = f"first-{directory.name}"
    bftfs("snapshot", "create", directory, first)
    before = held(tree), extended(tree)
    time.sleep(0.01)
    change(tree)
    whole = send(f"{tree}@{first}")
    assert len(whole) < 1 << 20, "holes are not sent"
    said = receive(backup, whole)
    assert f"{backup}: {tree} as of " in said
    assert "could not be set" not in said
    assert (held(backup), extended(backup)) == before
    assert (backup / "sparse").stat().st_blocks < 1024
    second = send("--from", first, tree)
    assert len(second) < len(whole) / 4
    assert "holds no backup, and this is an increment" in refused(outside / "other", second)
    receive(backup, second)
    assert (held(backup), extended(backup)) == (held(tree), extended(tree))
    assert "this is an increment to what was there" in refused(
        backup, send("--from", first, f"{tree}@{now()}")
    )
    assert "the stream ends too early" in refused(outside / "cut", whole[:-1])
    assert not (outside / "cut").exists()
    bftfs("snapshot", "delete", directory, first)


def test_a_backup_is_received_into_a_mount(directory: Path, cluster: Cluster) -> None:
    tree, copy = directory / "tree", directory / "copy"
    plant(tree)
    moment = now()
    receive(copy, send(f"{tree}@{moment}"))
    assert (held(copy), extended(copy)) == (held(tree), extended(tree))
    change(tree)
    receive(copy, send("--from", moment, tree))
    assert (held(copy), extended(copy)) == (held(tree), extended(tree))
    inner = directory / "inner"
    receive(inner, send(copy))
    assert held(inner) == held(copy), "a backup of a backup, without what its receiver keeps"


def test_a_backup_goes_through_a_pipe_and_has_history(
    directory: Path, cluster: Cluster, outside: Path
) -> None:
    tree, backup = directory / "tree", outside / "backup"
    tree.mkdir()
    for text in ("one", "two", "three"):
        (tree / "file").write_text(text)
    moment = now()
    command = f'"{sys.executable}" -m bftfs'
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{command} send --history {tree}@{moment} "
         f"| {command} receive {backup}"],
        check=True,
        capture_output=True,
        timeout=60,
    )  # fmt: skip
    versions = backup / ".bftfs-backup" / "versions" / "file"
    read = lambda: [path.read_text() for path in sorted(versions.iterdir())]  # noqa: E731
    assert read() == ["one", "two"]
    log = json.loads(bftfs("log", "--json", tree / "file"))
    writes = [row["time"] for row in reversed(log) if row["operation"] == "write"]
    assert [path.stat().st_mtime_ns for path in sorted(versions.iterdir())] == [
        nanoseconds(each) for each in writes[:2]
    ]
    (tree / "file").write_text("four")
    assert "1 earlier versions" in receive(backup, send("--history", "--from", moment, tree))
    assert read() == ["one", "two", "three"]
    assert (backup / "file").read_text() == "four"


def nanoseconds(text: str) -> int:
    found = parse_time_name(text)
    assert found is not None
    return found * 1000


def test_mistakes_about_backups_get_clear_answers(
    directory: Path, cluster: Cluster, outside: Path
) -> None:
    (directory / "file").touch()
    moment = now()
    assert "send the directory in which" in fails("send", directory / "file")
    assert "is not before what is to be sent" in fails(
        "send", "--from", moment, f"{directory}@{moment}"
    )
    assert "was not there at that time" in fails("send", "--from", "2 days ago", directory)
    assert "nor a snapshot" in fails("send", "--from", "no-snapshot", directory)
    (outside / "full").mkdir()
    (outside / "full" / "file").touch()
    assert "not empty" in refused(outside / "full", send(directory))
    assert "this is no backup" in refused(outside / "new", b"something else entirely")
    broken = f'"{sys.executable}" -m bftfs send {directory} | true'
    finished = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {broken}"], capture_output=True, check=False, text=True
    )
    assert "Traceback" not in finished.stderr
