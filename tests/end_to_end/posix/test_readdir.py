"""readdir(3): complete, and stable while the directory changes."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end import linux

MANY = 2000


@pytest.fixture(scope="module")
def prepared() -> dict[Path, Path]:
    """The large directory, once for all tests that only read it."""
    return {}


@pytest.fixture
def large(mountpoint: Path, directory: Path, prepared: dict[Path, Path]) -> Path:
    """A directory of 2,000 entries: files, and some of every other kind."""
    if mountpoint not in prepared or not prepared[mountpoint].exists():
        path = mountpoint / f"large-{os.getpid()}"
        path.mkdir()
        for number in range(MANY):
            entry = path / f"entry-{number:05}"
            match number % 500:
                case 1:
                    entry.mkdir()
                case 2:
                    entry.symlink_to("target")
                case 3:
                    os.mkfifo(entry)
                case _:
                    os.mknod(entry, stat.S_IFREG | 0o644)
        prepared[mountpoint] = path
    return prepared[mountpoint]


@pytest.fixture(scope="module", autouse=True)
def _cleaned(prepared: dict[Path, Path], other_directory: Path | None) -> Iterator[None]:
    yield
    if other_directory is not None:
        for path in prepared.values():
            for entry in path.iterdir():
                entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            path.rmdir()


def _expected() -> list[str]:
    return [f"entry-{number:05}" for number in range(MANY)]


def _make(directory: Path, names: list[str]) -> None:
    for name in names:
        os.mknod(directory / name, stat.S_IFREG | 0o644)


def test_every_entry_exactly_once(large: Path) -> None:
    assert sorted(os.listdir(large)) == _expected()


def test_entries_say_what_stat_says(large: Path) -> None:
    with os.scandir(large) as entries:
        for entry in entries:
            number = int(entry.name.removeprefix("entry-")) % 500
            assert entry.is_dir(follow_symlinks=False) == (number == 1), entry.name
            assert entry.is_symlink() == (number == 2), entry.name
            if number < 10:
                assert entry.inode() == entry.stat(follow_symlinks=False).st_ino, entry.name


def test_positions_lead_back(large: Path) -> None:
    with linux.DirectoryStream(large) as stream:
        names = []
        positions = []
        while (name := stream.next()) is not None:
            names.append(name)
            positions.append(stream.position())
        for index in (0, 1, 2, 57, 500, MANY - 3, len(names) - 2):
            stream.seek(positions[index])
            assert stream.next() == names[index + 1], f"after entry {index}"
        stream.seek(positions[-1])
        assert stream.next() is None


def test_streams_are_independent(large: Path) -> None:
    with linux.DirectoryStream(large) as one, linux.DirectoryStream(large) as two:
        first = [one.next() for _ in range(1000)]
        assert [two.next() for _ in range(1000)] == first
        rest = list(one)
        assert list(two) == rest
        listed = {name for name in first if name} | set(rest)
        assert len(listed - {b".", b".."}) == MANY


def test_rewound_stream_shows_what_is_new(directory: Path) -> None:
    _make(directory, ["old", "deleted"])
    with linux.DirectoryStream(directory) as stream:
        assert set(stream) == {b"old", b"deleted"}
        (directory / "deleted").unlink()
        _make(directory, ["new"])
        stream.rewind()
        assert set(stream) == {b"old", b"new"}


def test_stable_while_others_come_and_go(directory: Path) -> None:
    """Every entry that was there throughout appears exactly once, whatever happens around it."""
    stable = [f"stable-{number:04}" for number in range(600)]
    doomed = [f"doomed-{number:04}" for number in range(600)]
    for pair in zip(stable, doomed, strict=True):
        _make(directory, list(pair))
    seen = []
    created = 0
    with linux.DirectoryStream(directory) as stream:
        for count, name in enumerate(stream):
            seen.append(name.decode())
            if count % 3 == 0 and doomed:
                (directory / doomed.pop(len(doomed) // 2)).unlink()
            if count % 4 == 0 and created < 200:
                _make(directory, [f"born-{created:04}"])
                created += 1
    assert sorted(name for name in seen if name.startswith("stable")) == stable
    assert len(set(seen)) == len(seen), "some entry appeared twice"


def test_positions_hold_while_others_come_and_go(directory: Path) -> None:
    stable = [f"stable-{number:04}" for number in range(150)]
    doomed = [f"doomed-{number:04}" for number in range(150)]
    _make(directory, stable + doomed)
    with linux.DirectoryStream(directory) as stream:
        before: list[bytes] = []
        while len(before) < 120:
            name = stream.next()
            assert name is not None
            before.append(name)
        position = stream.position()
        after = [name for name in stream if name.startswith(b"stable")]
        for old in doomed:
            (directory / old).unlink()
        _make(directory, [f"born-{number:04}" for number in range(100)])
        stream.seek(position)
        again = [name for name in stream if name.startswith(b"stable")]
    assert again == after
    assert len([n for n in before if n.startswith(b"stable")]) + len(after) == len(stable)


def test_deleting_while_reading_empties_the_directory(directory: Path) -> None:
    """How `rm -r` works: one pass must be enough."""
    _make(directory, [f"entry-{number}" for number in range(500)])
    with linux.DirectoryStream(directory) as stream:
        for name in stream:
            os.unlink(os.path.join(os.fsencode(directory), name))
    assert os.listdir(directory) == []


def test_renaming_while_reading_loses_nothing(directory: Path) -> None:
    names = [f"entry-{number:03}" for number in range(200)]
    _make(directory, names)
    seen = set()
    with linux.DirectoryStream(directory) as stream:
        for name in stream:
            seen.add(name.decode().removesuffix("-renamed"))
            if not name.endswith(b"-renamed"):
                path = directory / name.decode()
                path.rename(path.with_name(f"{path.name}-renamed"))
    assert seen == set(names)
    assert sorted(os.listdir(directory)) == [f"{name}-renamed" for name in names]


def test_list_is_fresh_after_every_change(directory: Path) -> None:
    for number in range(30):
        (directory / f"{number}").touch()
        assert len(os.listdir(directory)) == number + 1
    for number in range(30):
        (directory / f"{number}").unlink()
        assert len(os.listdir(directory)) == 29 - number


def test_long_names(directory: Path) -> None:
    names = sorted(f"{number:03}" + "n" * 252 for number in range(120))
    _make(directory, names)
    assert sorted(os.listdir(directory)) == names
