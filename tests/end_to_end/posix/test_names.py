"""Names: up to 255 bytes of any content but `/` and NUL."""

import errno
import os
import unicodedata
from pathlib import Path

import pytest

from tests.end_to_end.expectations import fails_with

UNUSUAL = {
    "one": b"x",
    "longest": b"n" * 255,
    "longest-accents": "é".encode() * 127,
    "longest-emoji": "🐙".encode() * 63,
    "not-utf-8": b"\xff\xfe\x80",
    "latin-1": "Käse".encode("latin-1"),
    "overlong": b"\xc0\xaf",
    "surrogate": b"\xed\xa0\x80",
    "newline": b"two\nlines",
    "tab-and-bell": b"\t\a\b\x1b[31m",
    "space": b" ",
    "spaces-around": b"  x  ",
    "dots": b"...",
    "hidden": b".hidden",
    "dot-at-the-end": b"name.",
    "option": b"-rf",
    "backslash": b"back\\slash",
    "quotes": b'"it\'s"',
    "wildcards": b"*?[a-z]{x,y}",
    "shell": b"$(reboot);`true`|&",
    "colon": b"c:",
    "at": b"file@2026-11-21",
    "percent": b"%00%2f",
    "reserved-elsewhere": b"CON.txt",
    "right-to-left": "שלום".encode(),
    "every-byte": bytes(set(range(1, 256)) - {ord("/")}),
}


def _raw(directory: Path, name: bytes) -> bytes:
    return os.path.join(os.fsencode(directory), name)


@pytest.mark.parametrize("name", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_names(directory: Path, name: bytes) -> None:
    path = _raw(directory, name)
    with open(path, "wb") as file:
        file.write(b"data")
    assert os.listdir(os.fsencode(directory)) == [name]
    with open(path, "rb") as file:
        assert file.read() == b"data"
    os.rename(path, _raw(directory, b"plain"))
    os.mkdir(path)
    os.link(_raw(directory, b"plain"), os.path.join(path, name))
    os.symlink(name, os.path.join(path, b"symlink"))
    assert sorted(os.listdir(path)) == sorted([name, b"symlink"])
    assert os.stat(os.path.join(path, b"symlink")).st_size == 4
    os.unlink(os.path.join(path, name))
    os.unlink(os.path.join(path, b"symlink"))
    os.rmdir(path)


@pytest.mark.parametrize("name", [b"n" * 256, "é".encode() * 128, b"n" * 1000])
def test_too_long(directory: Path, name: bytes) -> None:
    path = _raw(directory, name)
    (directory / "file").touch()
    for attempt in (
        lambda: os.open(path, os.O_CREAT | os.O_WRONLY),
        lambda: os.open(path, os.O_RDONLY),
        lambda: os.stat(path),
        lambda: os.mkdir(path),
        lambda: os.rmdir(path),
        lambda: os.unlink(path),
        lambda: os.mkfifo(path),
        lambda: os.symlink(b"target", path),
        lambda: os.link(_raw(directory, b"file"), path),
        lambda: os.rename(_raw(directory, b"file"), path),
    ):
        with fails_with(errno.ENAMETOOLONG):
            attempt()
    assert os.listdir(directory) == ["file"]


def test_path_that_is_too_long(directory: Path) -> None:
    with fails_with(errno.ENAMETOOLONG):
        os.stat(str(directory) + "/." * 2100)


def test_case_matters(directory: Path) -> None:
    for name in ("name", "Name", "NAME"):
        (directory / name).write_text(name)
    for name in ("name", "Name", "NAME"):
        assert (directory / name).read_text() == name


def test_unicode_is_not_normalised(directory: Path) -> None:
    forms = [unicodedata.normalize(form, "Kä") for form in ("NFC", "NFD")]
    for name in forms:
        (directory / name).write_text(name)
    assert sorted(os.listdir(directory)) == sorted(forms)


def test_prefixes_of_one_another(directory: Path) -> None:
    names = ["n" * length for length in range(1, 40)]
    for name in names:
        (directory / name).write_text(str(len(name)))
    for name in names:
        assert (directory / name).read_text() == str(len(name))
    (directory / names[20]).unlink()
    assert len(os.listdir(directory)) == len(names) - 1
