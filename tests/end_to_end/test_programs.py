"""Programs that people use, on the file system under test."""

import base64
import hashlib
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.end_to_end.expectations import (
    assert_contents,
    needs_root,
    payload,
    program,
)


def _run(*words: str | Path, where: Path, succeeds: bool = True) -> str:
    """What a program prints; a failure shows all of it."""
    finished = subprocess.run(
        [str(word) for word in words],
        cwd=where,
        env=_environment(where),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if succeeds and finished.returncode != 0:
        shown = " ".join(str(word) for word in words)
        pytest.fail(f"{shown}: exit code {finished.returncode}\n{finished.stdout}")
    return finished.stdout


def _environment(home: Path) -> dict[str, str]:
    """The same for everybody: no settings of whoever runs the tests."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Author",
        "GIT_AUTHOR_EMAIL": "author@example.org",
        "GIT_COMMITTER_NAME": "Committer",
        "GIT_COMMITTER_EMAIL": "committer@example.org",
    }


def _make_tree(top: Path) -> None:
    """Some of everything that a copying program must carry over."""
    for number in range(120):
        folder = top / f"folder-{number % 8}" / f"sub-{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_bytes(payload(number * 97, number))
    (top / "large").write_bytes(payload(700_001))
    (top / "empty").touch()
    (top / "empty-directory").mkdir(mode=0o700)
    (top / "symlink").symlink_to("folder-1/sub-1")
    (top / "dangling").symlink_to("nowhere/at all")
    (top / "hard-link").hardlink_to(top / "large")
    (top / "executable").write_text("#!/bin/sh\n")
    (top / "executable").chmod(0o755)
    (top / "read-only").write_bytes(b"data")
    (top / "read-only").chmod(0o444)
    (top / "name with\nnewline é").write_bytes(b"data")
    os.mkfifo(top / "fifo")
    os.setxattr(top / "large", "user.origin", b"here")
    with (top / "sparse").open("wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    for number, path in enumerate(sorted(top.rglob("*"))):
        os.utime(path, ns=(10**18, 10**18 + number * 1_000_000_007), follow_symlinks=False)


def _describe(top: Path) -> dict[str, object]:
    """Everything that must be the same after copying, by path."""
    described: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        contents: object = None
        if path.is_symlink():
            contents = os.readlink(path)
        elif path.is_file():
            contents = hashlib.sha256(path.read_bytes()).hexdigest()
        described[str(path.relative_to(top))] = (
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            1 if path.is_dir() and not path.is_symlink() else status.st_nlink,
            contents,
        )
    return described


@pytest.fixture(scope="module")
def origin(playground: Path) -> Path:
    """On the local disk: 300 files, 60 commits of 20 changed files each."""
    path = playground / "origin"
    path.mkdir()
    stream = []
    files = [f"part-{n % 15}/area-{n % 4}/file-{n}.txt" for n in range(300)]
    for commit in range(60):
        stream.append(
            f"commit refs/heads/main\ncommitter A <a@example.org> {10**9 + commit} +0000\n"
            f"data <<END\ncommit {commit}\nEND\n"
        )
        changed = (
            files
            if commit == 0
            else [files[(commit * 37 + n * 11) % len(files)] for n in range(20)]
        )
        for name in changed:
            text = f"{name} as of {commit}\n" * 12
            stream.append(f"M 100644 inline {name}\ndata {len(text)}\n{text}\n")
    _run(program("git"), "init", "-q", "-b", "main", ".", where=path)
    subprocess.run(
        [program("git"), "fast-import", "--quiet"],
        cwd=path,
        input="".join(stream).encode(),
        env=_environment(path),
        check=True,
    )
    _run("git", "reset", "-q", "--hard", where=path)
    return path


class TestGit:
    """A repository of a few thousand objects."""

    @pytest.mark.timeout(180, func_only=True)
    def test_a_repository_s_life(self, directory: Path, origin: Path, outside: Path) -> None:
        _run("git", "clone", "-q", f"file://{origin}", "clone", where=directory)
        clone = directory / "clone"

        def git(*words: str, where: Path = clone) -> str:
            return _run("git", *words, where=where)

        assert len(git("rev-list", "--objects", "--all").splitlines()) > 2000
        git("fsck", "--full", "--strict")
        assert git("status", "--porcelain") == ""
        assert _run("diff", "-r", "-x", ".git", origin, clone, where=outside) == ""

        (clone / "part-1" / "new.txt").write_text("new\n")
        (clone / "part-0" / "area-0" / "file-0.txt").unlink()
        git("mv", "part-2/area-1/file-17.txt", "moved.txt")
        git("add", "-A")
        git("commit", "-q", "-m", "change")
        git("checkout", "-q", "-b", "side", "HEAD~30")
        git("checkout", "-q", "main")
        assert git("status", "--porcelain") == ""

        git("gc", "-q", "--prune=now")
        git("fsck", "--full", "--strict")
        git("push", "-q", "origin", "main:refs/heads/returned")
        assert git("rev-parse", "returned", where=origin) == git("rev-parse", "main")
        git("clone", "-q", f"file://{clone}", "second", where=outside)
        git("fsck", "--full", "--strict", where=outside / "second")
        assert git("log", "--oneline", where=outside / "second").count("\n") == 61

    def test_many_loose_objects(self, directory: Path) -> None:
        """git writes an object under a temporary name, read-only, and links or renames it."""
        program("git")
        _run("git", "init", "-q", "-b", "main", ".", where=directory)
        for number in range(150):
            (directory / f"file-{number}").write_bytes(b"%d" % number)
        _run("git", "add", ".", where=directory)
        _run("git", "commit", "-q", "-m", "all", where=directory)
        counted = _run("git", "count-objects", where=directory)
        assert counted.startswith("152 objects")
        _run("git", "fsck", "--full", "--strict", where=directory)


def _connect(path: Path, journal: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=50, isolation_level=None)
    mode = connection.execute(f"PRAGMA journal_mode={journal}").fetchone()[0]
    assert mode == journal, f"asked for {journal}, got {mode}"
    return connection


def _is_intact(path: Path) -> bool:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()


def _count_up(path: Path, journal: str, times: int) -> None:
    connection = _connect(path, journal)
    for _ in range(times):
        connection.execute("BEGIN IMMEDIATE")
        value = connection.execute("SELECT value FROM counter").fetchone()[0]
        connection.execute("UPDATE counter SET value = ?", (value + 1,))
        connection.execute("COMMIT")
    connection.close()


def _commit_until_killed(path: Path, journal: str, report: int) -> None:
    connection = _connect(path, journal)
    number = 0
    while True:
        connection.execute("BEGIN IMMEDIATE")
        for part in range(5):
            connection.execute(
                "INSERT INTO item VALUES (?, ?, ?)", (number, part, payload(500, number))
            )
        connection.execute("COMMIT")
        os.write(report, b"%d\n" % number)
        number += 1


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate", "persist"])
class TestSqlite:
    """A database, with each journal that needs files."""

    def test_transactions(self, directory: Path, journal: str) -> None:
        path = directory / "database"
        connection = _connect(path, journal)
        connection.execute("CREATE TABLE item (key INTEGER PRIMARY KEY, value BLOB)")
        for turn in range(10):
            connection.execute("BEGIN")
            for number in range(40):
                key = turn * 40 + number
                connection.execute("INSERT INTO item VALUES (?, ?)", (key, payload(300, key)))
            connection.execute("COMMIT")
        connection.execute("BEGIN")
        connection.execute("DELETE FROM item")
        connection.execute("ROLLBACK")
        connection.execute("DELETE FROM item WHERE key % 3 = 0")
        connection.close()
        assert _is_intact(path)
        connection = _connect(path, journal)
        rows = dict(connection.execute("SELECT * FROM item"))
        connection.execute("VACUUM")
        connection.close()
        assert rows == {key: payload(300, key) for key in range(400) if key % 3}
        assert _is_intact(path)

    def test_processes_take_turns(self, directory: Path, journal: str) -> None:
        path = directory / "database"
        connection = _connect(path, journal)
        connection.execute("CREATE TABLE counter (value INTEGER)")
        connection.execute("INSERT INTO counter VALUES (0)")
        connection.close()
        processes = [
            multiprocessing.get_context("fork").Process(target=_count_up, args=(path, journal, 8))
            for _ in range(3)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        connection = sqlite3.connect(path)
        assert connection.execute("SELECT value FROM counter").fetchone() == (24,)
        connection.close()
        assert _is_intact(path)

    def test_committed_is_there_after_a_kill(self, directory: Path, journal: str) -> None:
        path = directory / "database"
        connection = _connect(path, journal)
        connection.execute("CREATE TABLE item (number INTEGER, part INTEGER, value BLOB)")
        connection.close()
        reading, writing = os.pipe()
        process = multiprocessing.get_context("fork").Process(
            target=_commit_until_killed, args=(path, journal, writing)
        )
        process.start()
        os.close(writing)
        with os.fdopen(reading) as reports:
            for _ in range(12):
                assert reports.readline(), "the writer has failed"
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            committed = 12 + len(reports.readlines())
        assert _is_intact(path)
        connection = sqlite3.connect(path)
        counts = dict(connection.execute("SELECT number, count(*) FROM item GROUP BY number"))
        connection.close()
        # One more may have been committed than was reported; none in part.
        assert set(counts.values()) == {5}
        assert len(counts) in (committed, committed + 1)


def test_sqlite_program(directory: Path) -> None:
    """The command line's own build, with its own way of locking."""
    script = "CREATE TABLE t(x); INSERT INTO t VALUES(1),(2); PRAGMA integrity_check;"
    assert _run(program("sqlite3"), "database", script, where=directory) == "ok\n"
    assert _run("sqlite3", "database", "SELECT sum(x) FROM t", where=directory) == "3\n"


@pytest.fixture(scope="module")
def tree(playground: Path) -> Path:
    path = playground / "tree"
    path.mkdir()
    _make_tree(path)
    return path


@needs_root
class TestArchives:
    """tar and rsync carry everything in, and out again."""

    def test_tar(self, directory: Path, outside: Path, tree: Path) -> None:
        options = ["--xattrs", "--acls", "--sparse"]
        _run(program("tar"), *options, "-cf", outside / "in.tar", "-C", tree, ".", where=outside)
        (directory / "tree").mkdir()
        _run("tar", *options, "-xpf", outside / "in.tar", "-C", directory / "tree", where=outside)
        assert _describe(directory / "tree") == _describe(tree)
        assert os.getxattr(directory / "tree" / "hard-link", "user.origin") == b"here"
        different = _run("tar", "-df", outside / "in.tar", "-C", directory / "tree", where=outside)
        assert different == ""

        _run("tar", *options, "-cf", directory / "out.tar", "-C", directory / "tree", ".",
             where=outside)  # fmt: skip
        (outside / "back").mkdir()
        _run("tar", *options, "-xpf", directory / "out.tar", "-C", outside / "back", where=outside)
        assert _describe(outside / "back") == _describe(tree)

    def test_rsync(self, directory: Path, outside: Path, tree: Path) -> None:
        def rsync(source: Path, target: Path) -> list[str]:
            shown = _run(
                program("rsync"), "-aHAX", "--checksum", "--delete", "--itemize-changes",
                f"{source}/", f"{target}/", where=outside,
            )  # fmt: skip
            return shown.splitlines()

        target = directory / "tree"
        assert len(rsync(tree, target)) > 120
        assert _describe(target) == _describe(tree)
        assert rsync(tree, target) == [], "the second run found differences"

        (target / "large").write_bytes(b"changed")
        (target / "extra").write_bytes(b"extra")
        (target / "empty").unlink()
        changed = {line.split(maxsplit=1)[1].split(" => ")[0] for line in rsync(tree, target)}
        assert changed - {"./"} == {"large", "hard-link", "extra", "empty"}
        assert rsync(tree, target) == []

        rsync(target, outside / "back")
        assert _describe(outside / "back") == _describe(tree)

    def test_cp_find_and_rm(self, directory: Path, outside: Path, tree: Path) -> None:
        _run("cp", "-a", tree, directory / "tree", where=outside)
        assert _describe(directory / "tree") == _describe(tree)
        find = [program("find"), ".", "-type", "f", "-size", "+1k", "-newermt", "2001-01-01"]
        found = sorted(_run(*find, where=directory / "tree").splitlines())
        assert found == sorted(_run(*find, where=tree).splitlines())
        assert len(found) > 50
        _run("cp", "-a", directory / "tree", directory / "second", where=outside)
        assert _describe(directory / "second") == _describe(tree)
        _run("rm", "-r", directory / "tree", directory / "second", where=outside)
        assert os.listdir(directory) == []


MAKEFILE = """
objects = $(patsubst %.c,%.o,$(wildcard *.c))
CFLAGS = -Wall -Werror -O0
program: $(objects) libextra.a
\t$(CC) -o $@ $(objects) -L. -lextra
libextra.a: extra/extra.o
\t$(AR) rcs $@ $^
%.o: %.c common.h
\t$(CC) $(CFLAGS) -c -o $@ $<
clean:
\trm -f $(objects) extra/extra.o libextra.a program
"""


def test_building_a_c_program(directory: Path) -> None:
    program("cc")
    parts = 12
    (directory / "Makefile").write_text(MAKEFILE)
    (directory / "common.h").write_text(
        "#include <stdio.h>\nint extra(void);\n"
        + "".join(f"int part_{number}(void);\n" for number in range(parts))
    )
    for number in range(parts):
        (directory / f"part_{number}.c").write_text(
            f'#include "common.h"\nint part_{number}(void) {{ return {number}; }}\n'
        )
    calls = " + ".join(f"part_{number}()" for number in range(parts))
    (directory / "main.c").write_text(
        f'#include "common.h"\nint main(void) {{ printf("%d\\n", {calls} + extra()); }}\n'
    )
    (directory / "extra").mkdir()
    (directory / "extra" / "extra.c").write_text("int extra(void) { return 1000; }\n")

    _run(program("make"), "-j2", where=directory)
    assert _run("./program", where=directory) == "1066\n"
    assert "up to date" in _run("make", where=directory)

    (directory / "part_3.c").write_text('#include "common.h"\nint part_3(void) { return 3000; }\n')
    rebuilt = _run("make", where=directory)
    assert rebuilt.count(" -c ") == 1, rebuilt
    assert _run("./program", where=directory) == "4063\n"
    _run("make", "clean", where=directory)
    assert not (directory / "program").exists()


def _make_wheel(path: Path) -> Path:
    """A package of a few modules and one command, made by hand: nothing is fetched."""
    files = {
        "greeting/__init__.py": "from greeting.words import WORDS\n",
        "greeting/words.py": "WORDS = ['hello', 'from', 'the', 'mount']\n",
        "greeting/main.py": "import greeting\ndef run():\n    print(*greeting.WORDS)\n",
        **{f"greeting/data/{n}.txt": f"{n}\n" * 50 for n in range(30)},
        "greeting-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
        "greeting-1.0.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        "greeting-1.0.dist-info/entry_points.txt": (
            "[console_scripts]\ngreet = greeting.main:run\n"
        ),
    }
    record = "greeting-1.0.dist-info/RECORD"
    lines = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        lines.append(f"{name},sha256={digest.decode()},{len(text.encode())}\n")
    files[record] = "".join(lines) + f"{record},,\n"
    wheel = path / "greeting-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


@pytest.mark.timeout(150, func_only=True)
def test_installing_into_a_virtual_environment(directory: Path, outside: Path) -> None:
    wheel = _make_wheel(outside)
    home = directory / "environment"
    venv.create(home, symlinks=True)
    # pip itself stays outside: its thousand files take a minute.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(home)]
    _run(*pip, "install", "-q", "--no-index", wheel, where=outside)
    assert _run(home / "bin" / "greet", where=outside) == "hello from the mount\n"
    assert "greeting" in _run(*pip, "list", "--no-index", where=outside)
    assert _run(*pip, "check", where=outside).startswith("No broken requirements")
    _run(*pip, "uninstall", "-q", "-y", "greeting", where=outside)
    assert not (home / "bin" / "greet").exists()


class TestEditors:
    """Saving a file as editors do."""

    def test_by_rename(self, directory: Path) -> None:
        """A backup by link, a new file, fsync, and a rename over the old one."""
        path = directory / "text"
        path.write_bytes(b"version 0")
        for version in range(1, 15):
            backup = directory / "text~"
            backup.unlink(missing_ok=True)
            os.link(path, backup)
            temporary = directory / ".text.swp"
            with temporary.open("xb") as file:
                file.write(b"version %d" % version)
                os.fchmod(file.fileno(), path.stat().st_mode)
                os.fsync(file.fileno())
            temporary.rename(path)
            assert_contents(path, b"version %d" % version)
            assert_contents(backup, b"version %d" % (version - 1))
        assert sorted(os.listdir(directory)) == ["text", "text~"]

    @pytest.mark.parametrize("backup", ["yes", "no", "auto"])
    def test_vim(self, directory: Path, backup: str) -> None:
        """vim copies or renames the old file, by `backupcopy`, and keeps a swap file meanwhile."""
        vim = program("vim", "vim.tiny")
        (directory / "text").write_text("one two\n" * 500)
        (directory / "text").chmod(0o640)
        for before, after in (("one", "three"), ("two", "four")):
            _run(
                vim, "-es", "-N", "-u", "NONE", "-i", "NONE",
                "-c", f"set backup backupskip= backupdir=. backupcopy={backup}",
                "-c", "set swapfile directory=. fsync",
                "-c", f"%s/{before}/{after}/", "-c", "wq", "text", where=directory,
            )  # fmt: skip
        assert_contents(directory / "text", b"three four\n" * 500)
        assert_contents(directory / "text~", b"three two\n" * 500)
        assert oct((directory / "text").stat().st_mode & 0o777) == oct(0o640)
        assert sorted(os.listdir(directory)) == ["text", "text~"]


def test_python_runs_from_here(directory: Path) -> None:
    """Imports, and the compiled modules that Python writes beside them."""
    (directory / "package").mkdir()
    (directory / "package" / "__init__.py").write_text("from package import one\n")
    (directory / "package" / "one.py").write_text("value = 1\n")
    script = "import package; print(package.one.value)"
    for _ in range(2):
        assert _run(sys.executable, "-c", script, where=directory) == "1\n"
    assert (directory / "package" / "__pycache__").is_dir()
    # Two versions of equal length within a second: the time stamp must tell them apart.
    (directory / "package" / "one.py").write_text("value = 22\n")
    assert _run(sys.executable, "-c", script, where=directory) == "22\n"
