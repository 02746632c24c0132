"""`bftfs log`, `cat`, `diff`, `annotate`, `restore`, `undelete` and `snapshot`, on a real mount."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bftfs.cli.main import main
from bftfs.cli.restore import PathTarget
from bftfs.filesystem.attributes import Attributes
from bftfs.printable import as_word
from bftfs.restoration import restore
from bftfs.restoration.viewpoint import Reading
from tests.end_to_end.cluster import Cluster, bftfs
from tests.end_to_end.expectations import BLOCK, payload
from tests.end_to_end.test_history import HISTORY, change_something, now, snapshot_of


def fails(*words: str | Path) -> str:
    """Run `bftfs`, which must fail with one clear message; the message."""
    finished = subprocess.run(
        [sys.executable, "-m", "bftfs", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode in (1, 2), finished.stdout
    assert finished.stderr.startswith("bftfs: ")
    assert finished.stderr.count("\n") == 1, finished.stderr
    return finished.stderr


def operations(path: Path) -> list[str]:
    """What the log says was done, the first first."""
    return [row["operation"] for row in reversed(json.loads(bftfs("log", "--json", path)))]


def test_the_log_of_a_file_goes_across_renames(directory: Path, cluster: Cluster) -> None:
    (directory / "old").write_text("one")
    (directory / "sub").mkdir()
    (directory / "old").chmod(0o600)
    os.rename(directory / "old", directory / "sub" / "new")
    (directory / "sub" / "new").write_text("three")
    log = json.loads(bftfs("log", "--json", directory / "sub" / "new"))
    assert [row["operation"] for row in reversed(log)] == [
        "create old",
        "write",
        "change mode 600",
        "rename old to new",
        "truncate to 0",
        "write",
    ]
    assert [row["size"] for row in reversed(log)] == [0, 3, 3, 3, 0, 5]
    assert {row["client"] for row in log} == {"local"}
    assert {len(row["client_id"]) for row in log} == {32}, "as `bftfs audit` takes it"
    assert {row["uid"] for row in log} == {0}
    times = [row["time"] for row in log]
    assert times == sorted(set(times), reverse=True)
    assert operations(directory)[-3:] == ["create old", "mkdir sub", "rename old to new"]
    assert "rename old to new" in bftfs("log", directory / "sub" / "new")


def test_what_is_gone_has_a_log_and_can_be_brought_back(directory: Path, cluster: Cluster) -> None:
    tree = directory / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_bytes(payload(BLOCK + 9, 1))
    (tree / "a" / "b" / "deep").write_text("deep")
    os.symlink("file", tree / "a" / "link")
    os.setxattr(tree / "a" / "file", "user.k", b"v")
    (tree / "a" / "file").chmod(0o640)
    time.sleep(0.01)
    before = snapshot_of(directory)
    subprocess.run(["rm", "-r", tree], check=True)
    assert operations(tree / "a" / "file")[-1] == "unlink file"
    assert str(tree) in bftfs("undelete", "--list", directory)
    bftfs("undelete", tree)
    after = snapshot_of(directory)
    assert {path: seen[:4] + seen[5:] for path, seen in after.items()} == {
        path: seen[:4] + seen[5:] for path, seen in before.items()
    }
    log = operations(tree / "a" / "file")  # goes on before the removal
    assert [log.index("unlink file"), log.count("create file"), log[0]] == [
        log.index("create file", 1) - 1,
        2,
        "create file",
    ]
    assert "-- before that, the name stood for another object:" in bftfs("log", tree / "a" / "file")
    assert "exists" in fails("undelete", tree)
    assert "nothing ever had this name" in fails("undelete", directory / "never")


def test_an_interrupted_undelete_goes_on(
    directory: Path,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = directory / "tree"
    tree.mkdir()
    for name in "abcd":
        (tree / name).write_text(name)
    time.sleep(0.01)
    before = snapshot_of(tree)
    subprocess.run(["rm", "-r", tree], check=True)
    write = PathTarget.write

    async def interrupted(
        target: PathTarget, path: str, reading: Reading, attributes: Attributes
    ) -> None:
        if path == "c":
            raise KeyboardInterrupt
        await write(target, path, reading, attributes)

    monkeypatch.setattr(PathTarget, "write", interrupted)
    monkeypatch.setattr(restore, "AT_ONCE", 1)
    with pytest.raises(SystemExit) as ended:
        main(["undelete", str(tree)])
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert "restored 3 of 5: 3 made; go on with: the same command; go back with: rm -r /" in said
    assert not tree.exists()
    monkeypatch.undo()
    assert "2 made, 1 with other attributes; 3 were there already" in bftfs("undelete", tree)
    after = snapshot_of(tree)
    assert {path: seen[:4] + seen[5:] for path, seen in after.items()} == {
        path: seen[:4] + seen[5:] for path, seen in before.items()
    }
    assert os.listdir(directory) == ["tree"]


_KILLED = """
import os, signal, sys
from bftfs.cli import restore as commands
from bftfs.cli.main import main
from bftfs.restoration import restore

finish = commands._finish

def killed(file, *rest):
    if file.tell() == 3:  # it has its contents, and is neither closed nor has its attributes
        os.kill(os.getpid(), signal.SIGKILL)
    finish(file, *rest)

commands._finish = killed
restore.AT_ONCE = 1
main(["undelete", sys.argv[1]])
"""


def test_an_undelete_that_was_killed_goes_on(directory: Path, cluster: Cluster) -> None:
    tree = directory / "tree"
    (tree / "sub").mkdir(parents=True)
    for name, text in (("a", "one"[:1]), ("b", "tw"), ("sub/c", "abc"), ("z", "four")):
        (tree / name).write_text(text)
        os.utime(tree / name, (1, 2))
        (tree / name).chmod(0o640)
    before = snapshot_of(tree)
    subprocess.run(["rm", "-r", tree], check=True)
    killed = subprocess.run([sys.executable, "-c", _KILLED, tree], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    staged = directory / ".tree.undeleting"
    assert not tree.exists()
    inodes = {name: (staged / name).stat().st_ino for name in ("a", "b")}
    assert "1 made, 3 with other attributes; 5 were there already" in bftfs("undelete", tree)
    assert {name: (tree / name).stat().st_ino for name in inodes} == inodes
    after = snapshot_of(tree)
    assert {path: seen[:4] + seen[5:] for path, seen in after.items()} == {
        path: seen[:4] + seen[5:] for path, seen in before.items()
    }


def test_an_undelete_of_a_file_that_was_killed_goes_on(directory: Path, cluster: Cluster) -> None:
    file = directory / "file"
    file.write_text("abc")
    os.utime(file, (1, 2))
    file.unlink()
    killed = subprocess.run([sys.executable, "-c", _KILLED, file], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert os.listdir(directory) == [".file.undeleting"]
    assert "1 were there already" in bftfs("undelete", file)
    assert (file.read_text(), file.stat().st_mtime) == ("abc", 2)
    assert os.listdir(directory) == ["file"]


def test_cat_prints_what_was_byte_for_byte(directory: Path, cluster: Cluster) -> None:
    file = directory / "file@home"
    data = payload(2 * BLOCK + 3, 4)
    file.write_bytes(data)
    moment = now()
    file.write_bytes(b"new")
    command = [sys.executable, "-m", "bftfs", "cat"]
    for given, expected in ((f"{file}@{moment}", data), (str(file), b"new")):
        assert subprocess.run([*command, given], capture_output=True, check=True).stdout == expected
    assert "did not exist yet" in fails("cat", f"{file}@2021-01-01")
    assert "no such file" in fails("cat", f"{file}s@{moment}")
    assert "yet to come" in fails("cat", f"{file}@2999-01-01")
    assert "nor a snapshot" in fails("cat", f"{directory}/other@home")
    assert "not a regular file" in fails("cat", f"{directory}@{moment}")
    assert "not in a mount" in fails("cat", "/etc/passwd@now")


def test_diff_tells_what_was_added_removed_modified_and_renamed(
    directory: Path, cluster: Cluster
) -> None:
    for name in ("same", "edited", "removed", "moved", "mode"):
        (directory / name).write_text(f"{name}\nline\n")
    (directory / "binary").write_bytes(b"\0\1")
    moment = now()
    assert bftfs("diff", f"{directory}@{moment}") == ""
    (directory / "edited").write_text("edited\nother\n")
    assert "-line\n+other\n" in bftfs("diff", directory / "edited", allowed=(1,))
    assert (
        bftfs("diff", "--brief", directory, allowed=(1,)) == f"modified  {directory.name}/edited\n"
    )
    (directory / "added").touch()
    assert "no version before" in fails("diff", directory / "added")
    (directory / "removed").unlink()
    (directory / "added").write_text("new\n")
    (directory / "sub").mkdir()
    os.rename(directory / "moved", directory / "sub" / "moved")
    (directory / "mode").chmod(0o600)
    (directory / "binary").write_bytes(b"\0\2")
    found = json.loads(bftfs("diff", "--json", f"{directory}@{moment}", allowed=(1,)))
    assert {(each["status"], each["path"], each.get("from")) for each in found} == {
        ("added", "added", None),
        ("modified", "binary", None),
        ("modified", "edited", None),
        ("modified", "mode", None),
        ("removed", "removed", None),
        ("added", "sub", None),
        ("renamed", "sub/moved", "moved"),
    }
    shown = bftfs("diff", f"{directory}@{moment}", allowed=(1,))
    assert "-line\n+other\n" in shown
    assert "mode 0644 -> 0600" in shown
    assert "binary files" in shown
    one = bftfs("diff", f"{directory}/edited@{moment}", f"@{now()}", allowed=(1,))
    assert one.endswith("@@ -1,2 +1,2 @@\n edited\n-line\n+other\n")


def test_annotate_says_who_brought_each_line(directory: Path, cluster: Cluster) -> None:
    file = directory / "text"
    texts = ("a\nb\nc\n", "a\nB\nc\n", "a\nB\nc\nd\n")
    for text in texts:
        file.write_text(text)
    rows = json.loads(bftfs("annotate", "--json", file))
    log = json.loads(bftfs("log", "--json", file))
    writes = [row["time"] for row in reversed(log) if row["operation"] == "write"]
    assert [row["text"] for row in rows] == ["a\n", "B\n", "c\n", "d\n"]
    assert [row["time"] for row in rows] == [writes[0], writes[1], writes[0], writes[2]]
    (directory / "binary").write_bytes(b"\0")
    assert "not text" in fails("annotate", directory / "binary")


@pytest.mark.parametrize("seed", range(2))
def test_a_tree_is_restored_to_any_time_and_back(
    directory: Path, cluster: Cluster, seed: int
) -> None:
    draw = random.Random(100 + seed)
    tree = directory / "tree"
    tree.mkdir()
    states = []
    for number in range(24):
        change_something(tree, draw, number)
        if number % 8 == 7:
            states.append((now(), comparable(tree)))
    for moment, expected in (*states, *reversed(states)):
        undo = bftfs("restore", "--delete", f"{tree}@{moment}")
        assert comparable(tree) == expected
        assert "bftfs restore" in undo or "nothing had to be changed" in undo


def comparable(tree: Path) -> dict[str, tuple[object, ...]]:
    """A tree without the times and link counts of directories, which restoring them changes."""
    return {
        path: seen if path not in directories_of(tree) else (*seen[:4], *seen[7:])
        for path, seen in snapshot_of(tree).items()
    }


def directories_of(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_dir()}


def test_restore_writes_in_place_and_is_history_itself(directory: Path, cluster: Cluster) -> None:
    file = directory / "file"
    file.write_text("first")
    inode = file.stat().st_ino
    moment = now()
    file.write_text("second, and longer")
    later = now()
    (directory / "newer").write_text("stays")
    bftfs("restore", f"{file}@{moment}")
    assert file.read_text() == "first"
    assert file.stat().st_ino == inode
    bftfs("restore", f"{file}@{later}")
    assert file.read_text() == "second, and longer"
    bftfs("restore", f"{directory}@{moment}")
    assert (directory / "newer").read_text() == "stays"
    bftfs("restore", f"{directory}@{moment}", "--to", directory / "copy")
    assert (directory / "copy" / "file").read_text() == "first"
    assert not (directory / "copy" / "newer").exists()
    assert "give a time" in fails("restore", file)


def test_snapshots_are_names_for_times(directory: Path, cluster: Cluster) -> None:
    (directory / "file").write_text("one\n")
    name = f"before-{directory.name}"
    bftfs("snapshot", "create", directory, name)
    moment = now()
    (directory / "file").write_text("two\n")
    assert (directory / HISTORY / name / "file").read_text() == "one\n"
    assert name in os.listdir(directory / HISTORY)
    assert name in bftfs("snapshot", "list", directory)
    assert "-one\n+two\n" in bftfs("snapshot", "diff", directory, name, allowed=(1,))
    assert bftfs("cat", f"{directory}/file@{name}") == "one\n"
    bftfs("snapshot", "create", directory, f"{name}-again", "--at", moment)
    assert bftfs("cat", f"{directory}/file@{name}-again") == "one\n"
    assert "there is a snapshot of that name" in fails("snapshot", "create", directory, name)
    assert "looks like a time" in fails("snapshot", "create", directory, "2026-11-21")
    for each in (name, f"{name}-again"):
        bftfs("snapshot", "delete", directory, each)
    assert name not in bftfs("snapshot", "list", directory)
    assert "no such snapshot" in fails("snapshot", "delete", directory, name)


def test_retention_is_inherited_and_never_less_than_the_window(
    directory: Path, cluster: Cluster
) -> None:
    tree = directory / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("one")
    assert f"{tree}: all\n" in bftfs("retention", "show", tree)
    said = bftfs("retention", "set", tree, "0")
    assert f"{tree}: none (3 objects)" in said
    assert "the detection window is 2w: younger versions are kept" in said
    (tree / "sub" / "new").write_text("two")
    for path in (tree, tree / "sub" / "file", tree / "sub" / "new"):
        shown = json.loads(bftfs("retention", "show", "--json", path))
        assert shown == {"path": str(path), "policy": "none", "window": "2w"}
    assert f"{directory}: all\n" in bftfs("retention", "show", directory)
    said = bftfs("retention", "set", "--only", tree, "all 30d, daily 1y")
    assert said == f"{tree}: all 30d, daily 1y (1 objects)\n"
    assert operations(tree)[-1] == "set retention all 30d, daily 1y"
    assert "a policy is made of" in fails("retention", "set", tree, "sometimes")
    assert "the past cannot be changed" in fails("retention", "set", f"{tree}@{now()}", "none")


def test_mistakes_get_clear_answers(directory: Path, cluster: Cluster) -> None:
    file, sub = directory / "naïve ☃.txt", directory / "sub"
    file.write_text("ü\n")
    (directory / "empty").touch()
    sub.mkdir()
    moment = now()
    assert bftfs("cat", f"{file}@{moment}") == "ü\n"
    assert bftfs("cat", f"{directory}/empty@{moment}") == ""
    assert bftfs("annotate", directory / "empty") == ""
    said = fails("log", sub / "never" / "below")
    assert f"{sub}/never: nothing ever had this name" in said
    assert f"`bftfs log {sub}`" in said
    assert "all versions are listed" in fails("log", f"{file}@yesterday")
    assert "did not exist yet" in fails("cat", f"{file}@1999-01-01")
    assert "did not exist yet" in fails("restore", f"{directory}@1999-01-01")
    assert "did not exist yet" in fails("cat", f"{file}@1969-01-01")
    assert str(file) in bftfs("audit", sub.parent, "--client", "local", "--since", "1960-01-01")
    assert "that of a file, and not of a directory" in fails("log", file / "below")
    assert "that of a file, and not of a directory" in fails("cat", f"{file}/below@{moment}")
    assert "no such file" in fails("diff", f"{sub}/never@{moment}")
    assert "is a directory and" in fails("diff", sub, file)
    assert "nothing has to be mended" in fails("mend", file)
    assert "nothing has to be mended" in fails("mend", sub)
    assert "no such name" in fails("mend", sub / "never")
    assert file.exists()
    assert "did not exist yet" in fails("snapshot", "create", directory, "a", "--at", "1999-01-01")
    for name in ("", "a/b", ".hidden", "now", "yesterday", "1 hour ago", "2026"):
        assert "not a name for a snapshot" in fails("snapshot", "create", directory, name)


def test_times_do_not_depend_on_names_of_snapshots(directory: Path, cluster: Cluster) -> None:
    """Who has stolen a key could call a snapshot `yesterday`, to be audited from then on only."""
    file = directory / "file"
    file.write_text("one")
    moment = now()
    file.write_text("two")
    code = (
        "import sys\n"
        "from bftfs.cli.command_session import session_at\n"
        "with session_at(sys.argv[1]) as session:\n"
        "    time_us = session.time(sys.argv[2])\n"
        "    make = session.history.create_snapshot(b'now', session.who, time_us=time_us)\n"
        "    session.perform(make)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(directory), moment], check=True)
    try:
        assert bftfs("cat", f"{file}@now") == "two"
        assert (directory / HISTORY / "now" / "file").read_text() == "one"
    finally:
        bftfs("snapshot", "delete", directory, "now")


HOSTILE = (
    b"fake\n2026-11-22T08:00:00.000000+00:00  alice        uid 0   rmdir important",
    b"fake\\n2026-11-22T08:00:00.000000+00:00  alice        uid 0   rmdir important",
    b"esc\x1b[31mred\x1b[2K\rblank",
    b"not \xff text",
    "turned\u202egpj.exe".encode(),
    b"it's $(reboot) `here`; rm -r *",
)


def test_names_cannot_forge_what_is_printed(directory: Path, cluster: Cluster) -> None:
    """Each name is printed as one word on one line; JSON has it exactly."""
    place = directory / "place"
    place.mkdir()
    before = now()
    paths = [place / os.fsdecode(name) for name in HOSTILE]
    for path in paths:
        path.write_text("text\n")
        path.rename(path.with_name(path.name + "."))
        path.with_name(path.name + ".").rename(path)
    since = ("--client", "local", "--since", before)
    printed = {
        "log": bftfs("log", place),
        "audit": bftfs("audit", place, *since),
        "diff": bftfs("diff", f"{place}@{before}", place, allowed=(1,)),
        "undo": bftfs("undo", place, *since, "--dry-run"),
    }
    in_json = json.loads(bftfs("audit", place, *since, "--json"))["changes"]
    assert {row["path"] for row in in_json} >= set(map(str, paths))
    for path in paths:
        path.unlink()
    printed["list"] = bftfs("undelete", "--list", place)
    for command, text in printed.items():
        for path in paths:
            told = {"log": path.name, "diff": f"{place.name}/{path.name}"}.get(command, path)
            assert as_word(told) in text, (command, text)
        assert all(line.isprintable() for line in text.replace("\t", " ").splitlines()), command
        assert not any(line.startswith("2026-11-22T08:00:00.000000") for line in text.splitlines())
    back = bftfs("undelete", paths[0])
    assert back.startswith(f"{as_word(paths[0])}: as it was")
    assert len(back.splitlines()) == 1
    assert paths[0].read_text() == "text\n"
    assert fails("cat", paths[1]).startswith(f"bftfs: {as_word(paths[1])}: ")


def test_what_stands_at_another_place_is_not_replaced(
    directory: Path, outside: Path, cluster: Cluster
) -> None:
    """Outside of a mount there is no way back; `--to` a directory does not mean instead of it."""
    tree, home = directory / "tree", outside / "home"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("file")
    (tree / "sub" / "deep").write_text("deep")
    moment = now()
    (home / "photos").mkdir(parents=True)
    (home / "photos" / "cat").write_text("cat")
    (home / "note").write_text("note")
    os.mkfifo(home / "pipe")
    os.symlink("note", home / "link")
    before = sorted(home.rglob("*"))
    said = fails("restore", f"{tree}/file@{moment}", "--to", home)
    assert f"{home}: is a directory" in said
    assert f"--to, such as {home}/file\n" in said
    assert "is a file" in fails("restore", f"{tree}@{moment}", "--to", home / "note")
    assert "is a named pipe" in fails("restore", f"{tree}@{moment}", "--to", home / "pipe")
    assert "is a symlink" in fails("restore", f"{tree}/file@{moment}", "--to", home / "link")
    subprocess.run(["rm", "-r", tree], check=True)
    assert f"{home}: is a directory" in fails("undelete", tree / "file", "--to", home)
    assert sorted(home.rglob("*")) == before
    assert (home / "note").read_text() == "note"

    # Nor in a tree that is there already.
    copy = outside / "copy"
    (copy / "file").mkdir(parents=True)
    (copy / "file" / "precious").write_text("precious")
    said = fails("restore", f"{tree}@{moment}", "--to", copy)
    assert f"{copy}/file: is a directory, and was a file; move it away" in said
    assert (copy / "file" / "precious").read_text() == "precious"
    bftfs("restore", "--delete", f"{tree}@{moment}", "--to", copy)
    assert (copy / "file").read_text() == "file"
    assert sorted(os.listdir(copy)) == ["file", "sub"]


def test_a_full_disk_under_the_output_is_told_in_one_sentence(
    directory: Path, cluster: Cluster
) -> None:
    (directory / "file").write_text("file")
    for words in (["log", directory / "file"], ["cat", directory / "file"], ["--help"]):
        with Path("/dev/full").open("wb") as full:
            finished = subprocess.run(
                [sys.executable, "-m", "bftfs", *map(str, words)],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=60,
            )
        assert finished.returncode == 1
        assert finished.stderr == (
            "bftfs: its output: No space left on device; run the command again when that is "
            "mended\n"
        )


def test_what_came_meanwhile_is_not_replaced_by_what_is_brought_back(
    directory: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "file").write_text("mine")
    (directory / "tree" / "sub").mkdir(parents=True)
    (directory / "tree" / "sub" / "deep").write_text("deep")
    time.sleep(0.01)
    subprocess.run(["rm", "-r", directory / "file", directory / "tree"], check=True)
    said = fails("undelete", directory / "tree" / "sub" / "deep")
    assert f"{directory}/tree is gone as well" in said
    assert f"(`bftfs undelete {directory}/tree`)" in said
    assert os.listdir(directory) == []
    write = PathTarget.write

    async def overtaken(
        target: PathTarget, path: str, reading: Reading, attributes: Attributes
    ) -> None:
        await write(target, path, reading, attributes)
        (directory / "file").write_text("theirs")

    monkeypatch.setattr(PathTarget, "write", overtaken)
    with pytest.raises(SystemExit) as ended:
        main(["undelete", str(directory / "file")])
    assert ended.value.code == 1
    assert (directory / "file").read_text() == "theirs"
    assert (directory / ".file.undeleting").read_text() == "mine"
