"""Two mounts of one cluster: when one sees what the other changes.

`here` is where something is changed, `there` where somebody else looks. With close-to-open, what
was closed or synced here is what an open there reads, at once; names and attributes that are cached
there may be old for as long as the mount's timeouts say. With strict, nothing is ever old.
"""

import errno
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from tests.end_to_end import linux
from tests.end_to_end.cluster import Cluster
from tests.end_to_end.expectations import (
    BLOCK,
    BOB,
    act_as,
    assert_contents,
    eventually,
    fails_with,
    opened,
    payload,
    program,
    works_or_fails_with,
)

CACHED_FOR_S = 1
CONSISTENCIES = {
    "close-to-open": (
        f"entry_timeout={CACHED_FOR_S},attr_timeout={CACHED_FOR_S},negative_timeout={CACHED_FOR_S}"
    ),
    "strict": "strict",
}
# The timeout begins when the kernel gets the answer, and the two processors have other work.
SLACK_S = 4


@dataclass(frozen=True, slots=True)
class View:
    """One directory as two mounts have it."""

    here: Path
    there: Path
    strict: bool

    def soon(self, condition: Callable[[], bool], what: str) -> None:
        """True at once when strict, and otherwise when the caches have run out."""
        if self.strict:
            assert condition(), f"not at once: {what}"
        else:
            eventually(condition, within_s=CACHED_FOR_S + SLACK_S, what=what)


@pytest.fixture(scope="module")
def mounts(cluster: Cluster, playground: Path) -> Iterator[dict[str, tuple[Path, Path]]]:
    """Two mounts of each kind, beside the one that the cluster has anyway."""
    with ExitStack() as stack:
        yield {
            name: (
                stack.enter_context(cluster.mount(playground / f"{name}-here", options)),
                stack.enter_context(cluster.mount(playground / f"{name}-there", options)),
            )
            for name, options in CONSISTENCIES.items()
        }


@pytest.fixture(params=CONSISTENCIES)
def view(
    request: pytest.FixtureRequest,
    mounting: None,
    directory: Path,
    cluster: Cluster,
    mounts: dict[str, tuple[Path, Path]],
) -> View:
    inside = directory.relative_to(cluster.mountpoint)
    here, there = (mount / inside for mount in mounts[request.param])
    strict = request.param == "strict"
    view = View(here, there, strict)
    eventually(
        lambda: here.is_dir() and there.is_dir(),
        within_s=0 if strict else CACHED_FOR_S + SLACK_S,
        what="both mounts have the directory that a third has made",
    )
    return view


class TestContents:
    """Closed or synced here, opened there."""

    @pytest.mark.parametrize("size", [0, 1, 5000, 3 * BLOCK + 17])
    def test_new_file(self, view: View, size: int) -> None:
        (view.here / "file").write_bytes(payload(size))
        assert_contents(view.there / "file", payload(size))

    def test_rewritten_at_the_same_size(self, view: View) -> None:
        for version in range(8):
            (view.here / "file").write_bytes(payload(BLOCK + 100, version))
            assert_contents(view.there / "file", payload(BLOCK + 100, version))

    def test_changed_in_place(self, view: View) -> None:
        (view.here / "file").write_bytes(b"." * (2 * BLOCK))
        assert_contents(view.there / "file", b"." * (2 * BLOCK))
        with opened(view.here / "file", os.O_WRONLY) as descriptor:
            os.pwrite(descriptor, b"changed", BLOCK - 3)
        expected = b"." * (BLOCK - 3) + b"changed" + b"." * (BLOCK - 4)
        assert_contents(view.there / "file", expected)

    def test_grown_and_shrunk(self, view: View) -> None:
        expected = b""
        for size in (10, 5000, BLOCK + 1, 4 * BLOCK, 300, 0, 77):
            with opened(view.here / "file", os.O_CREAT | os.O_WRONLY) as descriptor:
                os.ftruncate(descriptor, size)
            expected = bytes(size)
            assert_contents(view.there / "file", expected)

    def test_cut_off_does_not_come_back(self, view: View) -> None:
        (view.here / "file").write_bytes(payload(2 * BLOCK))
        assert_contents(view.there / "file", payload(2 * BLOCK))
        os.truncate(view.here / "file", 100)
        with opened(view.there / "file", os.O_RDWR) as descriptor:
            os.ftruncate(descriptor, 2 * BLOCK)
        assert_contents(view.here / "file", payload(2 * BLOCK)[:100] + bytes(2 * BLOCK - 100))

    def test_appended_in_turns(self, view: View) -> None:
        for number in range(12):
            where = view.here if number % 2 else view.there
            with (where / "log").open("ab") as file:
                file.write(b"%d\n" % number)
        expected = b"".join(b"%d\n" % number for number in range(12))
        assert_contents(view.here / "log", expected)
        assert_contents(view.there / "log", expected)

    def test_parts_written_in_turns(self, view: View) -> None:
        """Neighbouring parts of the same blocks; nobody writes back what she has read before."""
        part = 7001
        (view.here / "file").touch()
        for number in range(40):
            where = view.here if number % 2 else view.there
            with opened(where / "file", os.O_WRONLY) as descriptor:
                os.pwrite(descriptor, payload(part, number), number * part)
        expected = b"".join(payload(part, number) for number in range(40))
        assert_contents(view.here / "file", expected)
        assert_contents(view.there / "file", expected)

    def test_synced_but_not_closed(self, view: View) -> None:
        with opened(view.here / "file", os.O_CREAT | os.O_WRONLY) as descriptor:
            os.write(descriptor, b"synced")
            os.fsync(descriptor)
            assert_contents(view.there / "file", b"synced")

    def test_seen_through_an_open_descriptor(self, view: View) -> None:
        """Strict promises it; with close-to-open one has to open again."""
        (view.here / "file").write_bytes(b"old")
        with opened(view.there / "file", os.O_RDONLY) as descriptor:
            assert os.pread(descriptor, 10, 0) == b"old"
            (view.here / "file").write_bytes(b"new, longer")
            if view.strict:
                assert os.pread(descriptor, 20, 0) == b"new, longer"
        assert_contents(view.there / "file", b"new, longer")

    def test_size_by_name(self, view: View) -> None:
        (view.here / "file").write_bytes(b"12345")
        assert (view.there / "file").stat().st_size == 5
        (view.here / "file").write_bytes(b"1234567890")
        view.soon(lambda: (view.there / "file").stat().st_size == 10, "the new size")

    def test_saved_by_rename(self, view: View) -> None:
        """There one reads a whole version, never an older one than before, and soon the newest."""
        newest = -1
        for version in range(20):
            (view.here / "temporary").write_bytes(b"%04d" % version * 3000)
            (view.here / "temporary").rename(view.here / "file")
            try:
                seen = (view.there / "file").read_bytes()
            except FileNotFoundError:
                assert not view.strict
                continue
            assert seen == seen[:4] * 3000, "two versions in one"
            assert int(seen[:4]) >= newest, "an older version came back"
            newest = int(seen[:4])
            if view.strict:
                assert newest == version
        view.soon(
            lambda: (view.there / "file").read_bytes() == b"%04d" % 19 * 3000, "the last version"
        )


def told(*command: str, cwd: Path) -> str:
    """What a program says that must succeed."""
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


class TestTogether:
    """Both write one file at the same time, different bytes of it: all that was closed is there."""

    RECORD = 40
    WRITERS = 4  # two in each mount
    COUNT = 25

    def _at_once(self, view: View, work: Callable[[Path, int], None]) -> None:
        with ThreadPoolExecutor(self.WRITERS) as pool:
            places = [view.here, view.there] * (self.WRITERS // 2)
            for done in [pool.submit(work, *each) for each in zip(places, count(), strict=False)]:
                done.result()

    def _record(self, writer: int, number: int) -> bytes:
        return b"%d %d ".ljust(self.RECORD - 2, b".") % (writer, number) + b"\n"

    def test_records_of_one_block(self, view: View) -> None:
        def work(place: Path, writer: int) -> None:
            with opened(place / "file", os.O_WRONLY) as kept:
                for number in range(self.COUNT):
                    at = (number * self.WRITERS + writer) * self.RECORD
                    record = self._record(writer, number).ljust(self.RECORD, b"|")
                    if number % 2:
                        os.pwrite(kept, record, at)
                        os.fsync(kept)
                    else:
                        with opened(place / "file", os.O_WRONLY) as descriptor:
                            os.pwrite(descriptor, record, at)

        (view.here / "file").write_bytes(b"")
        assert (view.there / "file").read_bytes() == b""
        self._at_once(view, work)
        expected = b"".join(
            self._record(writer, number).ljust(self.RECORD, b"|")
            for number in range(self.COUNT)
            for writer in range(self.WRITERS)
        )
        assert_contents(view.here / "file", expected)
        assert_contents(view.there / "file", expected)

    def test_lines_of_one_log(self, view: View) -> None:
        """Each line is there once, and whole."""

        def work(place: Path, writer: int) -> None:
            with opened(place / "log", os.O_WRONLY | os.O_APPEND) as kept:
                for number in range(self.COUNT):
                    line = self._record(writer, number)
                    if number % 2:
                        os.write(kept, line)
                        os.fsync(kept)
                    else:
                        with (place / "log").open("ab") as file:
                            file.write(line)

        (view.here / "log").write_bytes(b"")
        assert (view.there / "log").read_bytes() == b""
        self._at_once(view, work)
        lines = sorted(
            self._record(writer, number)
            for number in range(self.COUNT)
            for writer in range(self.WRITERS)
        )
        found = (view.here / "log").read_bytes()
        assert sorted(found.splitlines(keepends=True)) == lines
        assert_contents(view.there / "log", found)

    def test_following_a_log(self, view: View) -> None:
        """`tail -f` of what another mount appends to."""
        (view.here / "log").write_bytes(b"first\n")
        command = ["tail", "-n", "+1", "-s", "0.1", "-f", str(view.there / "log")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tail:
            assert tail.stdout is not None
            try:
                assert tail.stdout.readline() == b"first\n"
                for number in range(10):
                    with (view.here / "log").open("ab") as file:
                        file.write(b"line %d\n" % number)
                    assert tail.stdout.readline() == b"line %d\n" % number
            finally:
                tail.kill()

    def test_make_here_and_edit_there(self, view: View) -> None:
        """One mount builds, time and again, what is edited in the other one."""
        (view.here / "sources").mkdir()
        for number in range(6):
            (view.here / "sources" / str(number)).write_text(f"{number} at first\n")
        makefile = "all: 0 1 2 3 4 5\n%: sources/%\n\tcp $< $@\n\techo built $@ >> built\n"
        (view.here / "Makefile").write_text(makefile)
        eventually(
            lambda: len(list((view.there / "sources").glob("*"))) == 6,
            within_s=CACHED_FOR_S + SLACK_S,
            what="the sources",
        )
        edit = "for i in 0 1 2 3 4 5; do echo edited >> sources/$i; echo edited $i >> edits; done"
        editor = subprocess.Popen(["sh", "-ec", edit], cwd=view.there)
        while editor.poll() is None:
            told(program("make"), "-j2", "all", cwd=view.here)
        assert editor.returncode == 0
        # What was edited while it was copied has the older time, on any file system.
        told("touch", *map(str, range(6)), cwd=view.there / "sources")
        expected = [f"{number} at first\nedited\n" for number in range(6)]
        eventually(
            lambda: (
                told(program("make"), "-s", "all", cwd=view.here) is not None
                and [(view.there / str(number)).read_text() for number in range(6)] == expected
            ),
            within_s=60,
            what="everything is built of what was edited",
        )
        assert (view.here / "edits").read_text() == "".join(f"edited {n}\n" for n in range(6))
        assert set((view.there / "built").read_text().splitlines()) == {
            f"built {number}" for number in range(6)
        }

    def test_git_in_both(self, view: View) -> None:
        """Commits of two mounts to branches of one repository, and lines of both in its logs."""
        git = (program("git"), "-c", "user.name=n", "-c", "user.email=e", "-c", "gc.auto=0")
        if view.strict:
            pytest.skip("git asks for each attribute many times: that takes minutes")
        told(*git, "init", "-q", "--template=", "-b", "main", "repository", cwd=view.here)
        told(*git, "commit", "-q", "--allow-empty", "-m", "first", cwd=view.here / "repository")
        eventually(
            (view.there / "repository" / ".git" / "refs" / "heads" / "main").exists,
            within_s=CACHED_FOR_S + SLACK_S,
            what="the repository",
        )

        def work(place: Path, writer: int) -> None:
            if writer >= 2:
                return
            tree = place / "repository"
            work_tree = place / f"work-{writer}"
            told(*git, "worktree", "add", "-q", "-b", f"b{writer}", str(work_tree), cwd=tree)
            for number in range(3):
                (work_tree / f"{writer}-{number}").write_text(f"{writer} {number}\n")
                told(*git, "add", ".", cwd=work_tree)
                told(*git, "commit", "-q", "-m", f"{writer} {number}", cwd=work_tree)

        self._at_once(view, work)
        for place in (view.here, view.there):
            repository = place / "repository"
            told(*git, "fsck", "--strict", cwd=repository)
            for writer in range(2):
                subjects_there = told(*git, "log", "--format=%s", f"b{writer}", cwd=repository)
                subjects = [f"{writer} {number}" for number in reversed(range(3))]
                assert subjects_there.split("\n")[:4] == [*subjects, "first"]


class TestNames:
    """Names come, go and move."""

    def test_new_name(self, view: View) -> None:
        assert not (view.there / "new").exists()
        (view.here / "new").touch()
        view.soon((view.there / "new").exists, "the new name")

    def test_deleted_name(self, view: View) -> None:
        (view.here / "file").touch()
        assert (view.there / "file").exists()
        (view.here / "file").unlink()
        view.soon(lambda: not (view.there / "file").exists(), "that the name is gone")

    def test_renamed(self, view: View) -> None:
        (view.here / "old").write_bytes(b"data")
        assert_contents(view.there / "old", b"data")
        (view.here / "old").rename(view.here / "new")
        assert_contents(view.there / "new", b"data")
        view.soon(lambda: not (view.there / "old").exists(), "that the old name is gone")

    def test_exchanged(self, view: View) -> None:
        (view.here / "one").write_bytes(b"1")
        (view.here / "two").write_bytes(b"2")
        assert_contents(view.there / "one", b"1")
        linux.rename(view.here / "one", view.here / "two", linux.RENAME_EXCHANGE)
        view.soon(lambda: (view.there / "one").read_bytes() == b"2", "the exchange")
        view.soon(lambda: (view.there / "two").read_bytes() == b"1", "the exchange")

    def test_list(self, view: View) -> None:
        assert os.listdir(view.there) == []
        names = {f"name-{number}" for number in range(30)}
        for name in names:
            (view.here / name).touch()
        view.soon(lambda: set(os.listdir(view.there)) == names, "all names")
        for name in sorted(names)[::2]:
            (view.here / name).unlink()
        view.soon(lambda: set(os.listdir(view.there)) == set(sorted(names)[1::2]), "half of them")

    def test_tree(self, view: View) -> None:
        (view.here / "a" / "b" / "c").mkdir(parents=True)
        (view.here / "a" / "b" / "c" / "file").write_bytes(b"deep")
        (view.here / "a" / "symlink").symlink_to("b/c/file")
        assert_contents(view.there / "a" / "symlink", b"deep")
        (view.here / "a" / "b").rename(view.here / "moved")
        assert_contents(view.there / "moved" / "c" / "file", b"deep")

    def test_removed_directory_takes_no_new_names(self, view: View) -> None:
        (view.here / "gone").mkdir()
        assert (view.there / "gone").is_dir()
        (view.here / "gone").rmdir()
        with fails_with(errno.ENOENT, errno.ESTALE):
            (view.there / "gone" / "file").touch()

    def test_name_that_is_taken_here_is_taken_there(self, view: View) -> None:
        """Whatever is cached: the decision is the nodes'."""
        assert os.listdir(view.there) == []
        assert not (view.there / "taken").exists()
        (view.here / "taken").touch()
        with fails_with(errno.EEXIST):
            (view.there / "taken").mkdir()

    def test_full_directory_is_not_removed(self, view: View) -> None:
        (view.there / "directory").mkdir()
        assert os.listdir(view.there / "directory") == []
        (view.here / "directory" / "file").touch()
        with fails_with(errno.ENOTEMPTY, errno.EEXIST):
            (view.there / "directory").rmdir()

    def test_deleted_here_while_open_there(self, view: View) -> None:
        """It goes on, or it is stale; it is never somebody else's data."""
        (view.here / "file").write_bytes(payload(BLOCK))
        with opened(view.there / "file", os.O_RDONLY) as descriptor:
            (view.here / "file").unlink()
            (view.here / "file").write_bytes(b"another file")
            with works_or_fails_with(errno.ESTALE):
                assert os.pread(descriptor, 100, 4096) == payload(BLOCK)[4096:4196]


class TestAttributes:
    """Modes, owners, times, extended attributes, link counts."""

    def test_mode(self, view: View) -> None:
        (view.here / "file").write_bytes(b"data")
        (view.here / "file").chmod(0o644)
        act_as(BOB, (view.there / "file").read_bytes)
        (view.here / "file").chmod(0o600)
        view.soon(lambda: (view.there / "file").stat().st_mode & 0o777 == 0o600, "the new mode")
        with fails_with(errno.EACCES):
            act_as(BOB, (view.there / "file").read_bytes)

    def test_owner_and_times(self, view: View) -> None:
        (view.here / "file").touch()
        assert (view.there / "file").stat().st_uid == os.geteuid()
        os.chown(view.here / "file", 7, 8)
        os.utime(view.here / "file", ns=(10**18, 10**18 + 1))

        def arrived() -> bool:
            status = (view.there / "file").stat()
            found = (status.st_uid, status.st_gid, status.st_mtime_ns)
            return found == (7, 8, 10**18 + 1)

        view.soon(arrived, "owner, group and time")

    def test_extended_attribute(self, view: View) -> None:
        (view.here / "file").touch()
        os.setxattr(view.here / "file", "user.name", b"one")
        assert os.getxattr(view.there / "file", "user.name") == b"one"
        os.setxattr(view.here / "file", "user.name", b"two")
        view.soon(lambda: os.getxattr(view.there / "file", "user.name") == b"two", "the value")

    def test_link_count(self, view: View) -> None:
        (view.here / "file").touch()
        assert (view.there / "file").stat().st_nlink == 1
        (view.here / "second").hardlink_to(view.here / "file")
        assert (view.there / "second").stat().st_ino == (view.there / "file").stat().st_ino
        view.soon(lambda: (view.there / "file").stat().st_nlink == 2, "the link count")


def _race(*actions: Callable[[], object]) -> list[bool]:
    """Which of the actions succeed, when all begin at the same moment."""
    barrier = threading.Barrier(len(actions))
    won = [False] * len(actions)
    odd: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            actions[number]()
            won[number] = True
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENOTEMPTY):
                odd.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not odd, odd
    return won


class TestRaces:
    """At the same moment on both: there is one order, and both see it."""

    def test_exclusive_create(self, view: View) -> None:
        for turn in range(25):
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY

            def create(where: Path, turn: int = turn, flags: int = flags) -> None:
                os.close(os.open(where / f"prize-{turn}", flags))

            won = _race(lambda: create(view.here), lambda: create(view.there))
            assert sorted(won) == [False, True], f"turn {turn}: {won}"

    @pytest.mark.parametrize("kind", ["mkdir", "link", "symlink", "rename"])
    def test_one_winner(self, view: View, kind: str) -> None:
        (view.here / "source").touch()
        for turn in range(12):
            for who in ("here", "there"):
                (view.here / f"{who}-{turn}").touch()

            def attempt(where: Path, who: str, turn: int = turn) -> None:
                prize = where / f"prize-{turn}"
                match kind:
                    case "mkdir":
                        prize.mkdir()
                    case "link":
                        os.link(where / "source", prize)
                    case "symlink":
                        prize.symlink_to("x")
                    case _:
                        linux.rename(where / f"{who}-{turn}", prize, linux.RENAME_NOREPLACE)

            won = _race(lambda: attempt(view.here, "here"), lambda: attempt(view.there, "there"))
            assert sorted(won) == [False, True], f"turn {turn}: {won}"

    def test_file_is_moved_once(self, view: View) -> None:
        for turn in range(12):
            source = f"source-{turn}"
            (view.here / source).write_bytes(b"%d" % turn)
            (view.there / source).stat()
            won = _race(
                lambda s=source: (view.here / s).rename(view.here / f"{s}-here"),
                lambda s=source: (view.there / s).rename(view.there / f"{s}-there"),
            )
            assert sorted(won) == [False, True], f"turn {turn}: {won}"
        view.soon(lambda: len(os.listdir(view.there)) == 12, "twelve files")
        assert len(os.listdir(view.here)) == 12

    def test_directories_do_not_move_into_each_other(self, view: View) -> None:
        for turn in range(8):
            a, b = f"a-{turn}", f"b-{turn}"
            for name in (a, b):
                (view.here / name).mkdir()
                (view.there / name).stat()
            won = _race(
                lambda a=a, b=b: (view.here / a).rename(view.here / b / a),
                lambda a=a, b=b: (view.there / b).rename(view.there / a / b),
            )
            assert won.count(True) == 1, f"turn {turn}: {won}"
        everything = subprocess.run(
            [program("find"), view.here, "-type", "d"], capture_output=True, text=True, check=True
        )
        assert len(everything.stdout.splitlines()) == 1 + 16, "directories got lost"

    def test_makers_in_one_directory(self, view: View) -> None:
        def make(where: Path, who: str) -> None:
            for number in range(25):
                (where / f"{who}-{number}").write_bytes(b"%s %d" % (who.encode(), number))

        assert _race(lambda: make(view.here, "here"), lambda: make(view.there, "there")) == [
            True,
            True,
        ]
        names = {f"{who}-{number}" for who in ("here", "there") for number in range(25)}
        for where in (view.here, view.there):
            view.soon(lambda where=where: set(os.listdir(where)) == names, "all files")
            for name in names:
                assert (where / name).read_bytes() == name.replace("-", " ").encode()

    def test_makers_and_deleters(self, view: View) -> None:
        """One fills a directory, the other removes it when it is empty: no file is ever lost."""
        for turn in range(10):
            name = f"directory-{turn}"
            (view.here / name).mkdir()
            (view.there / name).stat()
            created, removed = _race(
                lambda n=name: os.close(
                    os.open(view.here / n / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                ),
                lambda n=name: (view.there / n).rmdir(),
            )
            assert created != removed, f"turn {turn}: created {created}, removed {removed}"


class TestPrograms:
    """Taking turns on one piece of work."""

    def test_git(self, view: View) -> None:
        """git replaces files by rename: with cached names one waits for the other's work."""

        def git(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
            identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
            return subprocess.run(
                [
                    program("git"),
                    "--no-optional-locks",
                    *identity,
                    "-c",
                    "safe.directory=*",
                    *words,
                ],
                cwd=where,
                capture_output=True,
                text=True,
                check=False,
            )

        def commits(where: Path) -> int:
            """How many there are; -1 where the history or the index is not the newest."""
            history = git(where, "log", "--oneline")
            changes = git(where, "status", "--porcelain")
            clean = history.returncode == changes.returncode == 0 and not changes.stdout
            return history.stdout.count("\n") if clean else -1

        assert git(view.here, "init", "-q", "-b", "main", ".").returncode == 0
        for turn in range(4):
            where = view.here if turn % 2 else view.there
            if turn:
                view.soon(lambda w=where, t=turn: commits(w) == t, f"commit {turn}")
            else:
                view.soon((where / ".git").is_dir, "the repository")
            (where / f"file-{turn}").write_bytes(b"%d" % turn)
            for words in (["add", "-A"], ["commit", "-q", "-m", f"turn {turn}"]):
                finished = git(where, *words)
                assert finished.returncode == 0, finished.stderr
        for where in (view.here, view.there):
            view.soon(lambda w=where: commits(w) == 4, "the last commit")
            checked = git(where, "fsck", "--full", "--strict")
            assert checked.returncode == 0, checked.stderr

    def test_sqlite(self, view: View) -> None:
        """In turns, not at once: locks are a mount's own."""
        for turn in range(6):
            where = view.here if turn % 2 else view.there
            connection = sqlite3.connect(where / "database")
            connection.execute("CREATE TABLE IF NOT EXISTS item (number INTEGER)")
            assert connection.execute("SELECT count(*) FROM item").fetchone() == (turn,)
            with connection:
                connection.execute("INSERT INTO item VALUES (?)", (turn,))
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            connection.close()


def test_default_timeouts_are_kept(directory: Path, cluster: Cluster, playground: Path) -> None:
    """Without options, too, a change of a cached name or attribute is seen within seconds."""
    with cluster.mount(playground / "default") as second:
        there = second / directory.relative_to(cluster.mountpoint)
        (directory / "file").write_bytes(b"data")
        (directory / "deleted").touch()
        assert_contents(there / "file", b"data")
        assert (there / "deleted").exists()
        (directory / "file").chmod(0o600)
        (directory / "deleted").unlink()
        eventually(
            lambda: (
                (there / "file").stat().st_mode & 0o777 == 0o600
                and not (there / "deleted").exists()
            ),
            within_s=5 + SLACK_S,
            what="a new mode and a deleted name",
        )
