"""Every scenario runs, at size one, in an ordinary directory; and fails when it should."""

import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import click.testing
import pytest

from benchmarks import descriptors, result
from benchmarks.scenarios import andrew, files, stream

Benchmark = Callable[..., click.testing.Result]


def phases_by_target(path: Path) -> dict[str, list[str]]:
    """The phases in a file of results, in order, for each target."""
    found: dict[str, list[str]] = {}
    for sample in result.read(path).samples:
        found.setdefault(sample.target, []).append(sample.phase)
    return found


def test_andrew(
    benchmark: Benchmark, tiny_tree: Path, directories: tuple[Path, Path], tmp_path: Path
) -> None:
    measured, against = directories
    written = tmp_path / "andrew.json"
    arguments = ("--source", tiny_tree, "--json", written, "--pid", f"self={os.getpid()}", "--cold")
    done = benchmark("andrew", measured, "--against", against, "--repeat", "2", *arguments)
    assert done.exit_code == 0, done.output
    assert "time ratio" in done.output
    expected = [*andrew.PHASES, "total"] * 2
    assert phases_by_target(written) == {str(measured): expected, str(against): expected}
    assert list(measured.iterdir()) == list(against.iterdir()) == []
    content = json.loads(written.read_text())
    assert content["parameters"]["files"] == 5
    assert content["parameters"]["directories"] == 2
    samples = content["samples"]
    assert [s["round"] for s in samples if s["phase"] == "copy"] == [0, 0, 1, 1]
    assert [s["target"] for s in samples if s["phase"] == "copy"] == [
        str(measured),
        str(against),
    ] * 2
    (use,) = samples[0]["processes"]
    assert use["alive"]
    assert use["resident_kib"] > 1000
    assert len(content["summary"]) == len(andrew.PHASES) + 1


def test_andrew_takes_an_archive(
    benchmark: Benchmark, tiny_tree: Path, directories: tuple[Path, Path], tmp_path: Path
) -> None:
    archive = tmp_path / "tree.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(tiny_tree, "tree-1.0")
    done = benchmark("andrew", directories[0], "--source", archive, "--repeat", "1")
    assert done.exit_code == 0, done.output


def test_andrew_reports_a_copy_that_changed(
    benchmark: Benchmark, tiny_tree: Path, directories: tuple[Path, Path], tmp_path: Path
) -> None:
    measured, _ = directories
    written = tmp_path / "andrew.json"
    damage = (
        f"read:cd {measured}/benchmark-*/tree && echo >> empty/script.sh && chmod 600 main.c"
        " && ln -sfn elsewhere empty/link.c && touch more.c && rmdir empty/below"
    )
    done = benchmark(
        *("andrew", measured, "--source", tiny_tree, "--repeat", "1", "--json", written),
        *("--during", damage),
    )
    assert done.exit_code == 1
    (failure,) = result.read(written).failures
    assert failure.phase == "verify"
    for difference in (
        "empty/script.sh: another content",
        "main.c: mode 0600, not 0644",
        "empty/link.c: another content",
        "more.c: not in the original",
        "empty/below: missing",
    ):
        assert difference in failure.message
    assert list(measured.iterdir()) == []


def test_andrew_reports_a_program_that_does_not_run(
    benchmark: Benchmark, tiny_tree: Path, directories: tuple[Path, Path], tmp_path: Path
) -> None:
    written = tmp_path / "andrew.json"
    (tiny_tree / "main.c").write_text("int main(void) { return 3; }\n")
    arguments = ("--source", tiny_tree, "--repeat", "1", "--json", written)
    done = benchmark("andrew", directories[0], *arguments)
    assert done.exit_code == 1
    (failure,) = result.read(written).failures
    assert failure.phase == "compile"
    assert "make" in failure.message


def test_files(benchmark: Benchmark, directories: tuple[Path, Path], tmp_path: Path) -> None:
    measured, against = directories
    written = tmp_path / "files.json"
    arguments = ("--count", "3", "--count", "2", "--size", "10", "--threads", "2")
    done = benchmark("files", measured, "--against", against, *arguments, "--json", written)
    assert done.exit_code == 0, done.output
    expected = list(files.PHASES) * 4  # two counts, with one thread and with two
    assert phases_by_target(written) == {str(measured): expected, str(against): expected}
    samples = result.read(written).samples
    assert {sample.variant for sample in samples} == {
        "3 files",
        "3 files, 2 threads",
        "2 files",
        "2 files, 2 threads",
    }
    assert all(sample.latencies is not None for sample in samples)
    assert list(measured.iterdir()) == list(against.iterdir()) == []


def test_files_reports_a_wrong_content(
    benchmark: Benchmark,
    directories: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forget_the_last_byte(path: str, data: bytes, *, synced: bool) -> None:
        descriptors.create(path, data[:-1] + b"!", synced=synced)

    monkeypatch.setattr(files, "create", forget_the_last_byte)
    written = tmp_path / "files.json"
    done = benchmark("files", directories[0], "--count", "1", "--json", written)
    assert done.exit_code == 1
    (failure,) = result.read(written).failures
    assert failure.phase == "read"
    assert "c0" in failure.message


def test_stream(benchmark: Benchmark, directories: tuple[Path, Path], tmp_path: Path) -> None:
    measured, against = directories
    written = tmp_path / "stream.json"
    arguments = ("--size", "3000KiB", "--random-writes", "5", "--repeat", "2", "--json", written)
    done = benchmark("stream", measured, "--against", against, *arguments)
    assert done.exit_code == 0, done.output
    expected = list(stream.PHASES) * 2
    assert phases_by_target(written) == {str(measured): expected, str(against): expected}
    assert result.read(written).samples[0].amount == 3000 * 1024
    assert list(measured.iterdir()) == list(against.iterdir()) == []


@pytest.mark.parametrize(
    ("phase", "damage", "complaint"),
    [
        ("read", "printf x | dd of=$F bs=1 seek=1048577 conv=notrunc", "bytes 1048576 and on"),
        ("read", "truncate -s 1500000 $F", "the file ends"),
        ("read", "truncate -s 2000001 $F", "longer than the 2000000 bytes written"),
        ("random-read", "truncate -s 0 $F", "does not hold what was written last"),
    ],
)
def test_stream_reports_a_wrong_content(
    benchmark: Benchmark,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    damage: str,
    complaint: str,
) -> None:
    measured = tmp_path / "measured"
    measured.mkdir()
    shell = f"F=$(echo {measured}/benchmark-*/stream) && {damage}"
    attribute = {"read": "_read", "random-read": "_random_read"}[phase]
    original = getattr(stream._Round, attribute)

    def damaged(self: object) -> None:
        subprocess.run(shell, shell=True, check=True, capture_output=True)
        original(self)

    monkeypatch.setattr(stream._Round, attribute, damaged)
    written = tmp_path / "stream.json"
    arguments = ("--size", "2000000", "--random-writes", "2", "--repeat", "1", "--json", written)
    done = benchmark("stream", measured, *arguments)
    assert done.exit_code == 1
    (failure,) = result.read(written).failures
    assert failure.phase == phase
    assert complaint in failure.message


def test_show_compares_two_runs(
    benchmark: Benchmark, directories: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for path in (first, second):
        done = benchmark("files", directories[0], "--count", "1", "--json", path)
        assert done.exit_code == 0, done.output
    shown = benchmark("show", first, "--against", second)
    assert shown.exit_code == 0, shown.output
    assert "time ratio" in shown.output
    assert "(against)" in shown.output


def test_show_refuses_to_compare_scenarios(
    benchmark: Benchmark, directories: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    benchmark("files", directories[0], "--count", "1", "--json", first)
    benchmark("stream", directories[0], "--size", "4096", "--repeat", "1", "--json", second)
    shown = benchmark("show", first, "--against", second)
    assert shown.exit_code == 1
    assert "only runs of one scenario can be compared" in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stream", ".", "--size", "12"), "must hold a page"),
        (("stream", ".", "--size", "12 parsecs"), "is not a size"),
        (("stream", ".", "--size", "1024TiB"), "MB are needed"),
        (("files", "/no/such/directory"), "does not exist"),
        (("files", ".", "--pid", "4711"), "expected NAME=PID"),
        (("files", ".", "--pid", "node=4194305"), "there is no process"),
        (("files", ".", "--during", "copy:true"), "there is no phase 'copy'"),
        (("files", ".", "--during", "create"), "expected PHASE"),
        (("files", ".", "--json", "no/such/file"), "cannot write no/such/file"),
        (("show", "pyproject.toml"), "is not a result of these benchmarks"),
    ],
)
def test_a_mistake_is_one_message(
    benchmark: Benchmark,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("{")
    done = benchmark(*arguments)
    assert done.exit_code in (1, 2)
    assert isinstance(done.exception, SystemExit)
    assert message in " ".join(done.output.split())


def test_a_full_file_system_is_a_failure_not_a_traceback(
    benchmark: Benchmark,
    directories: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: str, data: bytes, *, synced: bool) -> None:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(files, "create", full)
    written = tmp_path / "files.json"
    arguments = ("--count", "1", "--repeat", "2", "--json", written)
    done = benchmark("files", directories[0], *arguments)
    assert done.exit_code == 1
    failures = result.read(written).failures
    assert [(failure.round, failure.phase) for failure in failures] == [
        (0, "create"),
        (1, "create"),
    ]
    assert "No space left" in failures[0].message
