"""Names and nodes' words cannot forge what commands print."""

from __future__ import annotations

import ast
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bftfs.exit_code import exit_code_of
from bftfs.printable import as_word, printable, printable_lines

PROJECT = Path(__file__).parents[2]


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
def test_text_is_on_one_line_and_harmless(name: bytes, expected: str) -> None:
    assert printable(os.fsdecode(name)) == expected


def test_lines_of_ours_stay_lines() -> None:
    assert printable_lines("a\nb\rc") == "a\nb\\x0dc"


def test_an_error_does_not_pass_a_terminals_commands_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/x\x1b[2J")

    assert exit_code_of(refuse) == 1
    assert capsys.readouterr().err.startswith(
        r"bftfs: $'/x\x1b[2J': Permission denied; run this as"
    )


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("plain-name_1.txt", "plain-name_1.txt"),
        ("/home/ann/a@2026-11-21T10:02", "/home/ann/a@2026-11-21T10:02"),
        ("Zoë日本👩‍💻", "Zoë日本👩‍💻"),
        ("", "''"),
        ("a b", "'a b'"),
        ("~", "'~'"),
        ("$(reboot)!", "'$(reboot)!'"),
        ("back\\slash", "'back\\slash'"),
        ("it's! ", r"$'it\'s\x21 '"),
        (b"fake\n2026-11-22T08:00  alice", r"$'fake\n2026-11-22T08:00  alice'"),
        (r"fake\n2026", r"'fake\n2026'"),
        ("esc\x1b[31mred", r"$'esc\x1b[31mred'"),
        (b"not \xff text\x7f", r"$'not \xff text\x7f'"),
        ("a\u202egpj.exe\u2028b\x9bc", r"$'a\xe2\x80\xaegpj.exe\xe2\x80\xa8b\xc2\x9bc'"),
        ("no\u00a0break", r"$'no\xc2\xa0break'"),
    ],
)
def test_words(name: str | bytes, word: str) -> None:
    assert as_word(name) == word
    assert as_word(Path(os.fsdecode(name))) == word or not name


def read_back(words: list[str], locale: str) -> list[bytes]:
    """What bash takes the words for, on one command line."""
    script = b"printf '%s\\0' " + b" ".join(map(os.fsencode, words))
    said = subprocess.run(
        ["bash", "--norc"],
        input=script,
        capture_output=True,
        check=True,
        env={"PATH": os.environ["PATH"], "LC_ALL": locale},
    )
    assert said.stderr == b""
    return said.stdout.split(b"\0")[:-1]


ODD = b"\n\r\t\x1b\\'\"`$!&|;<>()[]{}*?~#^ -=@\x80\xc2\xe2\xff"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_bash_reads_names_back(locale: str, data: st.DataObject) -> None:
    """Any name that a file may have; many at once, since starting a shell takes long."""
    spiteful = st.lists(st.sampled_from(ODD), min_size=1, max_size=12).map(bytes)
    anything = st.binary(min_size=1, max_size=40).map(lambda name: name.replace(b"\0", b"n"))
    characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    text = st.text(characters, min_size=1).map(str.encode)
    names = data.draw(st.lists(st.one_of(spiteful, anything, text), min_size=1, max_size=60))
    words = [as_word(name) for name in names]
    assert read_back(words, locale) == names
    assert words == [as_word(os.fsdecode(name)) for name in names]
    for word in words:
        assert printable(word) == word
        assert len(word.splitlines()) == 1


def test_two_names_are_never_printed_alike() -> None:
    names = [bytes(each) for each in itertools.product(b"\\nx0a'$ \n\x1b\x80", repeat=3)]
    assert len({as_word(name) for name in names}) == len(names)


def test_every_byte() -> None:
    names = [bytes((byte,)) for byte in range(1, 256)]
    names += [b"a" + name + b"0" for name in names]  # what follows an escape is no part of it
    assert read_back([as_word(name) for name in names], "C.UTF-8") == names


# What holds a name or a path, in expressions that messages are made of.
PATHS = frozenset(
    {"path", "_path", "mountpoint", "_mountpoint", "destination", "target", "kept"}
    | {"_kept", "directory", "description_file", "mount_log", "administrator_key", "filename"}
)
SOURCES = [
    path
    for folder in ("bftfs", "mount", "nodes")
    for path in sorted((PROJECT / folder).rglob("*.py"))
    if not path.is_relative_to(PROJECT / "bftfs/simulation")
]


def printed(tree: ast.AST) -> Iterator[ast.expr]:
    """What is put into the texts of messages: of what people are told, and of mistakes."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            called = call.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in ("echo", "print", "UsageError", "FileSystemError"):
                yield from formatted(call)


def formatted(node: ast.AST) -> Iterator[ast.expr]:
    """What is formatted below `node`, but for what becomes a word."""
    for below in ast.iter_child_nodes(node):
        if isinstance(below, ast.Call) and getattr(below.func, "id", "") == "as_word":
            continue
        if isinstance(below, ast.FormattedValue):
            yield below.value
        yield from formatted(below)


def holds_path(value: ast.expr) -> bool:
    name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    return name in PATHS


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_messages_have_no_bare_paths(source: Path) -> None:
    tree = ast.parse(source.read_text())
    bare = [
        f"line {value.lineno}: {ast.unparse(value)}" for value in filter(holds_path, printed(tree))
    ]
    assert bare == [], "say as_word(…)"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_tables_have_no_markup(source: Path) -> None:
    """What a name or a node says is printed as it is: it has no colours, and ends no command."""
    if source.name == "plain_console.py":
        return
    for call in ast.walk(ast.parse(source.read_text())):
        called = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        assert called != "Console", f"line {call.lineno}: say plain_console(…)"  # type: ignore[attr-defined]
        if called == "TextColumn":
            assert "markup=False" in ast.unparse(call), f"line {call.lineno}"  # type: ignore[attr-defined]
