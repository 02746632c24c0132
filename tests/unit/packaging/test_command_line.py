"""Manual pages and shell completion are made of the commands themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bftfs.cli.main import main
from tests.unit.cli.test_help import ALL

PROJECT = Path(__file__).parents[3]
PATHS = f"{PROJECT}:{os.environ.get('PYTHONPATH', '')}"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All manual pages; made in a process of their own, for the commands are changed for that."""
    pytest.importorskip("click_man", reason="needs click-man")
    directory = tmp_path_factory.mktemp("man")
    subprocess.run(
        [sys.executable, "docs/packaging/man.py", str(directory)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": PATHS},
        check=True,
    )
    return directory


def test_each_command_has_a_page(pages: Path) -> None:
    written = {page.stem for page in pages.iterdir()}
    assert written >= {name.replace(" ", "-") for name in ALL}
    assert "bftfs" in written


def test_a_page_says_what_the_help_says(pages: Path) -> None:
    page = (pages / "bftfs-mount.1").read_text()
    assert r"bftfs\-mount \- Mount a cluster whose nodes are running." in page
    assert r"\fB\-f,\fP \-\-foreground" in page
    assert "Example: bftfs mount --data /srv/files -o client=alice,soft /mnt/files" in page
    node = (pages / "bftfs-node-run.1").read_text()
    assert r"\fB\-\-cluster\fP FILE" in node


def test_no_line_of_a_page_is_taken_for_an_order_to_the_formatter(pages: Path) -> None:
    known = (".TH", ".SH", ".PP", ".TP", ".B ")
    for page in pages.iterdir():
        for line in page.read_text().splitlines():
            assert line.startswith(known) or not line.startswith((".", "'")), (page.name, line)


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["bftfs", "und"], {"undelete", "undo"}),
        (["bftfs", "cluster", "rev"], {"revoke-client"}),
        (["bftfs", "scrub", "status", "--wa"], {"--watch"}),
    ],
)
def test_the_shell_completes(
    words: list[str],
    completions: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("_BFTFS_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit):
        main([])
    assert {line.partition(",")[2] for line in capsys.readouterr().out.split()} == completions


def test_one_line_switches_it_on(tmp_path: Path) -> None:
    """The line of docs/packaging/README.md, in a shell that has the command."""
    page = (PROJECT / "docs" / "packaging" / "README.md").read_text()
    line = 'eval "$(_BFTFS_COMPLETE=bash_source bftfs)"'
    assert line in page
    command = tmp_path / "bftfs"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m bftfs "$@"\n')
    command.chmod(0o755)
    outcome = subprocess.run(
        ["bash", "--norc", "-c", f"{line}; complete -p bftfs"],
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": PATHS,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_bftfs_completion bftfs" in outcome.stdout
