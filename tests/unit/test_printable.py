"""Names and nodes' words cannot forge what commands print."""

from __future__ import annotations

import os
import subprocess

import click
import pytest

from bftfs.cli.restore import quoted
from bftfs.exit_code import exit_code_of
from bftfs.filesystem.directory import shown
from bftfs.printable import printable, printable_lines


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"plain name.txt", "plain name.txt"),
        ("Zoë 日本 👩‍💻".encode(), "Zoë 日本 👩‍💻"),
        (b"fake\n2026-11-22T08:00  alice  rmdir", r"fake\x0a2026-11-22T08:00  alice  rmdir"),
        (b"esc\x1b[31mred", r"esc\x1b[31mred"),
        (b"not \xff text\x7f", r"not \xff text\x7f"),
        ("a\u202egpj.exe\u2028b\x9bc".encode(), r"a\u202egpj.exe\u2028b\x9bc"),
    ],
)
def test_names_are_shown_on_one_line_and_harmless(name: bytes, expected: str) -> None:
    assert shown(name) == expected
    assert printable(os.fsdecode(name)) == expected


def test_lines_of_ours_stay_lines() -> None:
    assert printable_lines("a\nb\rc") == "a\nb\\x0dc"


def test_an_error_does_not_pass_a_terminals_commands_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/x\x1b[2J")

    assert exit_code_of(refuse) == 1
    assert capsys.readouterr().err.startswith("bftfs: /x\\x1b[2J: Permission denied; run this as")


@pytest.mark.parametrize("word", ["/a b@now", "it's", "line\nbreak's \\ end", "\x1b[0m"])
def test_a_command_to_be_copied_names_what_it_means(word: str) -> None:
    said = subprocess.run(
        ["bash", "-c", f"printf %s {quoted(word)}"], capture_output=True, text=True, check=True
    )
    assert said.stdout == word
    assert click.unstyle(quoted(word)) == quoted(word)
    assert "\n" not in quoted(word)
