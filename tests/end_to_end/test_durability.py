"""The judge of `durability.py` is no soft touch: whatever is wrong, it says so."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.durability import Writer, verify


@pytest.fixture
def writer(outside: Path) -> Writer:
    """A writer that has done its work on the local disk, and was not interrupted."""
    writer = Writer(outside / "files", outside / "journal", seed=5)
    writer.wait_for(60)
    writer.stop()
    assert writer.failure() is None
    return writer


def _any(directory: Path) -> Path:
    return max(directory.iterdir(), key=lambda path: path.stat().st_size)


def _change(directory: Path) -> None:
    with _any(directory).open("r+b") as file:
        file.seek(5)
        byte = file.read(1)
        file.seek(5)
        file.write(bytes([byte[0] ^ 1]))


def test_what_is_right_is_accepted(writer: Writer) -> None:
    assert writer.verify(writer.directory) == len(os.listdir(writer.directory)) > 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: _any(directory).unlink(),
        lambda directory: os.truncate(_any(directory), 3),
        lambda directory: _any(directory).rename(directory / "elsewhere"),
        lambda directory: (directory / "extra").touch(),
        _change,
    ],
    ids=["lost", "cut-off", "renamed", "extra", "one-bit"],
)
def test_what_is_wrong_is_found(writer: Writer, damage: Callable[[Path], object]) -> None:
    damage(writer.directory)
    with pytest.raises(AssertionError, match=r"missing|unexpected|changed"):
        writer.verify(writer.directory)


def test_interrupted_operation_may_be_done_or_not(outside: Path) -> None:
    journal: list[dict[str, Any]] = [
        {"op": "create", "name": "old"},
        {"done": hashlib.sha256(b"").hexdigest()},
        {"op": "rename", "name": "old", "target": "new"},
    ]
    (outside / "old").touch()
    verify(outside, journal)
    (outside / "old").rename(outside / "new")
    verify(outside, journal)
    (outside / "old").touch()
    with pytest.raises(AssertionError, match="old"):
        verify(outside, journal)


def test_interrupted_append_keeps_what_was_there(outside: Path) -> None:
    digest = hashlib.sha256(b"acknowledged").hexdigest()
    journal: list[dict[str, Any]] = [
        {"op": "create", "name": "file"},
        {"done": digest},
        {"op": "append", "name": "file", "size": 12, "digest": digest},
    ]
    (outside / "file").write_bytes(b"acknowledged and mo")
    verify(outside, journal)
    (outside / "file").write_bytes(b"acknowl")
    with pytest.raises(AssertionError, match="file"):
        verify(outside, journal)
