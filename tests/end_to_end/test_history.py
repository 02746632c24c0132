"""The past in a mount: `.history`, in every directory, and mounts of a time.

What was there is known from copies on the local disk, made at the time.
"""

import errno
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.end_to_end.cluster import Cluster
from tests.end_to_end.expectations import BLOCK, BOB, act_as, fails_with, payload

HISTORY = ".history"
TICK_S = 0.002  # between a change and a time that comes after it


def now() -> str:
    """This moment, as a name in `.history`: after everything that has happened."""
    time.sleep(TICK_S)
    moment = datetime.now().astimezone().isoformat(timespec="microseconds")
    time.sleep(TICK_S)
    return moment


def snapshot_of(tree: Path) -> dict[str, tuple[object, ...]]:
    """Everything that a program can see of a tree, by path."""
    seen: dict[str, tuple[object, ...]] = {}
    for path, directories, files in os.walk(tree):
        for name in (*directories, *files):
            full = Path(path) / name
            status = full.lstat()
            contents: object = None
            if stat.S_ISREG(status.st_mode):
                contents = full.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                contents = os.readlink(full)
            extended = {
                name: os.getxattr(full, name, follow_symlinks=False)
                for name in os.listxattr(full, follow_symlinks=False)
            }
            seen[str(full.relative_to(tree))] = (
                stat.S_IFMT(status.st_mode),
                stat.S_IMODE(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_nlink,
                status.st_size,
                status.st_mtime_ns,
                contents,
                extended,
            )
    return seen


def test_a_file_has_the_contents_that_it_had(directory: Path, cluster: Cluster) -> None:
    file = directory / "file"
    versions = []
    for number, size in enumerate((5, 3 * BLOCK + 17, BLOCK, 0, 2 * BLOCK)):
        data = payload(size, number)
        file.write_bytes(data)
        versions.append((now(), data))
    for moment, data in versions:
        past = directory / HISTORY / moment / "file"
        assert past.stat().st_size == len(data)
        assert past.read_bytes() == data
    assert file.read_bytes() == versions[-1][1]


def test_bytes_written_in_place_and_cut_off_are_there(directory: Path, cluster: Cluster) -> None:
    file = directory / "file"
    file.write_bytes(payload(4 * BLOCK, 1))
    model = bytearray(payload(4 * BLOCK, 1))
    draw = random.Random(5)
    versions = [(now(), bytes(model))]
    for number in range(12):
        with file.open("r+b", buffering=0) as opened:
            if number % 3 == 2:
                size = draw.randrange(5 * BLOCK)
                opened.truncate(size)
                model = bytearray(bytes(model[:size]).ljust(size, b"\0"))
            else:
                offset = draw.randrange(4 * BLOCK)
                data = payload(draw.randrange(1, BLOCK), number)
                opened.seek(offset)
                opened.write(data)
                model = model.ljust(offset, b"\0")
                model[offset : offset + len(data)] = data
        versions.append((now(), bytes(model)))
    for moment, data in versions:
        assert (directory / HISTORY / moment / "file").read_bytes() == data


def test_any_precision_of_a_time_will_do(directory: Path, cluster: Cluster) -> None:
    (directory / "file").write_text("first")
    moment = now()
    (directory / "file").write_text("second")
    history = directory / HISTORY
    assert (history / moment / "file").read_text() == "first"
    assert (history / f"{moment[:-6]}{moment[-6:].replace(':', '')}" / "file").exists()
    local = moment[:26]  # without its offset
    assert (history / local / "file").read_text() == "first"
    for name in ("2021", "2021-06", "2021-06-07", "2021-06-07T10", "2021-06-07T10:11"):
        with fails_with(errno.ENOENT):
            (history / name).stat()  # possible times, when the directory was not there
    for name in ("2999", "noon", "2026-13", "2026-02-30", "now", "1"):
        with fails_with(errno.ENOENT):
            (history / name).stat()


def test_history_is_not_listed_and_offers_moments(directory: Path, cluster: Cluster) -> None:
    below = directory / "below"
    below.mkdir()
    (below / "file").write_text("one")
    first = now()
    (below / "file").write_text("two")
    (below / "file").unlink()
    assert os.listdir(directory) == ["below"]
    moments = sorted(os.listdir(directory / HISTORY))
    assert moments[0] < first < moments[-1], "it changed before and after, also below"
    trees = {str(snapshot_of(directory / HISTORY / moment)) for moment in moments}
    assert len(trees) >= len(moments) // 2, "each moment shows another tree"
    assert "below/file" in snapshot_of(directory / HISTORY / first)
    assert not (directory / HISTORY / moments[-1] / "below" / "file").exists()


def test_names_lead_to_what_they_led_to(directory: Path, cluster: Cluster) -> None:
    (directory / "a").mkdir()
    (directory / "a" / "file").write_text("here")
    os.symlink("file", directory / "a" / "link")
    os.link(directory / "a" / "file", directory / "a" / "other")
    before = now()
    os.rename(directory / "a", directory / "b")
    (directory / "b" / "other").unlink()
    (directory / "b" / "link").unlink()
    os.symlink("elsewhere", directory / "b" / "link")
    shutil.rmtree(directory / "b")
    past = directory / HISTORY / before
    assert os.listdir(past) == ["a"]
    assert sorted(os.listdir(past / "a")) == ["file", "link", "other"]
    assert os.readlink(past / "a" / "link") == "file"
    assert (past / "a" / "link").read_text() == "here"
    assert (past / "a" / "file").stat().st_nlink == 2
    assert (past / "a" / "file").samefile(past / "a" / "other")


def test_attributes_are_those_of_then(directory: Path, cluster: Cluster) -> None:
    file = directory / "file"
    file.write_text("x")
    file.chmod(0o640)
    os.chown(file, 12, 34)
    os.setxattr(file, "user.key", b"then")
    os.utime(file, ns=(1, 2_000_000_003))
    before = now()
    file.chmod(0o604)
    os.chown(file, 0, 0)
    os.setxattr(file, "user.key", b"now")
    os.setxattr(file, "user.new", b"new")
    past = directory / HISTORY / before / "file"
    status = past.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 12, 34)
    assert status.st_mtime_ns == 2_000_000_003
    assert os.listxattr(past) == ["user.key"]
    assert os.getxattr(past, "user.key") == b"then"


READ_ONLY: tuple[Callable[[Path], object], ...] = (
    lambda past: (past / "file").write_text("x"),
    lambda past: (past / "file").open("a"),
    lambda past: (past / "new").write_text("x"),
    lambda past: (past / "new").mkdir(),
    lambda past: (past / "file").unlink(),
    lambda past: (past / "sub").rmdir(),
    lambda past: (past / "file").chmod(0o777),
    lambda past: os.truncate(past / "file", 0),
    lambda past: os.utime(past / "file"),
    lambda past: os.symlink("x", past / "new"),
    lambda past: os.rename(past / "file", past / "new"),
    lambda past: os.rename(past / "file", past.parents[1] / "new"),
    lambda past: os.link(past / "file", past.parents[1] / "new"),
    lambda past: os.setxattr(past / "file", "user.x", b"x"),
    lambda past: os.removexattr(past / "file", "user.key"),
    lambda past: os.rmdir(past.parent),
    lambda past: os.rename(past.parent, past.parents[1] / "new"),
    lambda past: (past.parent / "new").mkdir(),
)


@pytest.mark.parametrize("change", READ_ONLY, ids=range(len(READ_ONLY)))
def test_the_past_cannot_be_changed(
    directory: Path, cluster: Cluster, change: Callable[[Path], object]
) -> None:
    (directory / "file").write_text("x")
    (directory / "sub").mkdir()
    os.setxattr(directory / "file", "user.key", b"x")
    moment = now()
    past = directory / HISTORY / moment
    before = snapshot_of(past)
    with fails_with(errno.EROFS):
        change(past)
    assert snapshot_of(past) == before == snapshot_of(directory)


def _overwrite_often(tree: Path) -> None:
    for number in range(40):
        (tree / "file").write_bytes(payload(100, number))


def _rename_over(tree: Path) -> None:
    (tree / "other").write_text("x")
    os.rename(tree / "other", tree / "file")


DESTRUCTION: dict[str, Callable[[Path], object]] = {
    "deleting": lambda tree: shutil.rmtree(tree / "sub"),
    "overwriting": lambda tree: (tree / "file").write_bytes(bytes(2 * BLOCK)),
    "overwriting often": _overwrite_often,
    "truncating": lambda tree: os.truncate(tree / "file", 0),
    "renaming over": _rename_over,
    "dating back": lambda tree: os.utime(tree / "file", ns=(0, 0)),
    "removing attributes": lambda tree: os.removexattr(tree / "file", "user.key"),
    "forbidding": lambda tree: (tree / "file").chmod(0),
}


@pytest.mark.parametrize("way", DESTRUCTION)
def test_no_client_destroys_history(directory: Path, cluster: Cluster, way: str) -> None:
    tree = directory / "tree"
    (tree / "sub" / "deep").mkdir(parents=True)
    (tree / "sub" / "deep" / "leaf").write_text("leaf")
    (tree / "file").write_bytes(payload(2 * BLOCK, 7))
    os.setxattr(tree / "file", "user.key", b"value")
    moment = now()
    before = snapshot_of(tree)
    DESTRUCTION[way](tree)
    assert snapshot_of(tree) != before
    shutil.rmtree(tree)
    assert snapshot_of(directory / HISTORY / moment / "tree") == before


def test_permissions_of_then_and_of_now_both_count(directory: Path, cluster: Cluster) -> None:
    directory.chmod(0o755)
    opened_later, closed_later, always = (directory / name for name in ("a", "b", "c"))
    for file, mode in ((opened_later, 0o600), (closed_later, 0o644), (always, 0o644)):
        file.write_text("secret")
        file.chmod(mode)
    for name, mode in (("d", 0o700), ("e", 0o755)):
        (directory / name).mkdir()
        (directory / name / "inside").write_text("secret")
        (directory / name).chmod(mode)
    moment = now()
    opened_later.chmod(0o644)
    closed_later.chmod(0o600)
    (directory / "d").chmod(0o755)
    (directory / "e").chmod(0o700)
    past = directory / HISTORY / moment

    def look() -> None:
        assert (past / "c").read_text() == "secret"
        for path in (past / "a", past / "b", past / "d" / "inside", past / "e" / "inside"):
            with fails_with(errno.EACCES):
                path.read_text()
        for path in (past / "d", past / "e"):
            with fails_with(errno.EACCES):
                os.listdir(path)
        with fails_with(errno.EACCES):
            os.stat(directory / "e" / HISTORY / moment)

    act_as(BOB, look)


def test_programs_work_below_a_time(directory: Path, cluster: Cluster, outside: Path) -> None:
    for number in range(3):
        (directory / f"d{number}").mkdir()
        for name in ("x", "y"):
            (directory / f"d{number}" / name).write_bytes(payload(1000 * number + 7, number))
    (directory / "d1" / "note").write_text("a needle\n")
    moment = now()
    shutil.copytree(directory, outside / "copy", symlinks=True)
    shutil.rmtree(directory / "d1")
    (directory / "d0" / "x").write_text("other")
    past = directory / HISTORY / moment

    def run(*words: str | Path) -> str:
        return subprocess.run(
            [*map(str, words)], check=True, capture_output=True, text=True, cwd=outside
        ).stdout

    assert not run("diff", "-r", past, "copy")
    run("tar", "cf", "past.tar", "-C", past, ".")
    (outside / "unpacked").mkdir()
    run("tar", "xf", "past.tar", "-C", "unpacked")
    assert not run("diff", "-r", "unpacked", "copy")
    run("cp", "-a", past, "again")
    assert not run("diff", "-r", "again", "copy")
    assert run("grep", "-rl", "needle", past).strip() == str(past / "d1" / "note")
    assert run("ls", past).split() == ["d0", "d1", "d2"]


def test_a_mount_of_a_time(cluster: Cluster, directory: Path, playground: Path) -> None:
    (directory / "file").write_text("then")
    moment = now()
    before = snapshot_of(directory)
    (directory / "file").write_text("now")
    with cluster.mount(playground / "past", f"at={moment}") as past:
        there = past / directory.relative_to(cluster.mountpoint)
        assert snapshot_of(there) == before
        with fails_with(errno.EROFS):
            (there / "new").mkdir()
        with fails_with(errno.ENOENT):
            (there / HISTORY).stat()
    words = ("--data", cluster.data)
    (playground / "no").mkdir()
    for at, why in (("2999-01-01", "yet to come"), ("2001-01-01", "at="), ("nothing", "at=")):
        said = subprocess.run(
            [sys.executable, "-m", "bftfs", "mount", *words, "--at", at, playground / "no"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.returncode != 0
        assert why in said.stderr
        assert "Traceback" not in said.stderr


@pytest.mark.parametrize("seed", range(2))
def test_the_tree_at_any_time_is_what_it_was(
    directory: Path, cluster: Cluster, playground: Path, seed: int
) -> None:
    """A random workload in two mounts; at random times, a model that kept every state."""
    draw = random.Random(seed)
    states: list[tuple[str, dict[str, tuple[object, ...]]]] = []
    options = "attr_timeout=0,entry_timeout=0,negative_timeout=0"
    with cluster.mount(playground / f"second-{seed}", options) as second:
        trees = (directory, second / directory.relative_to(cluster.mountpoint))
        for number in range(36):
            change_something(trees[draw.randrange(2)], draw, number)
            if draw.random() < 0.3:
                time.sleep(0.01)
                states.append((now(), snapshot_of(trees[1])))
        draw.shuffle(states)
        for moment, expected in states:
            assert snapshot_of(draw.choice(trees) / HISTORY / moment) == expected


REFUSALS = frozenset(
    (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EPERM)
)


def change_something(tree: Path, draw: random.Random, number: int) -> None:
    """One change of a tree with few names, or a failure that changes nothing."""
    names = [tree / first / second for first in ("", "p", "q") for second in ("a", "b", "c")]
    path, other = draw.choice(names), draw.choice(names)
    try:
        match draw.randrange(9):
            case 0 | 1 | 2:
                path.write_bytes(payload(draw.choice((1, 100, BLOCK, BLOCK + 5)), number))
            case 3:
                with path.open("r+b") as opened:
                    opened.truncate(draw.randrange(2 * BLOCK))
            case 4:
                (tree / draw.choice("pq")).mkdir()
            case 5:
                path.unlink()
            case 6:
                os.rename(path, other)
            case 7:
                os.setxattr(path, "user.n", str(number).encode())
            case 8:
                os.link(path, other)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
