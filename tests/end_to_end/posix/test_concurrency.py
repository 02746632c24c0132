"""Several threads and processes at once, through one mount."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.expectations import BLOCK, assert_contents, evict, opened, payload

THREADS = 8


def _together(
    action: Callable[[int], object], numbers: Iterable[int] = range(THREADS)
) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(action, numbers))


def test_writers_of_their_own_files(directory: Path) -> None:
    def write(number: int) -> None:
        with opened(directory / str(number), os.O_CREAT | os.O_WRONLY) as descriptor:
            for start in range(0, 4 * BLOCK, 50_000):
                os.pwrite(descriptor, payload(4 * BLOCK, number)[start : start + 50_000], start)

    _together(write)
    for number in range(THREADS):
        evict(directory / str(number))
        assert_contents(directory / str(number), payload(4 * BLOCK, number))


def test_writers_of_neighbouring_parts_of_a_file(directory: Path) -> None:
    """No part is a multiple of a block or a page."""
    part = 30_011

    def write(number: int) -> None:
        with opened(directory / "file", os.O_CREAT | os.O_WRONLY) as descriptor:
            for turn in range(3):
                start = (turn * THREADS + number) * part
                os.pwrite(descriptor, payload(part, start), start)

    _together(write)
    evict(directory / "file")
    expected = b"".join(payload(part, start * part) for start in range(3 * THREADS))
    assert_contents(directory / "file", expected)


def test_writers_through_one_descriptor(directory: Path) -> None:
    with opened(directory / "file", os.O_CREAT | os.O_RDWR) as descriptor:
        _together(lambda number: os.pwrite(descriptor, payload(9999, number), number * 9999))
        os.fsync(descriptor)
    assert_contents(
        directory / "file", b"".join(payload(9999, number) for number in range(THREADS))
    )


def test_appending_threads(directory: Path) -> None:
    def append(number: int) -> None:
        with opened(directory / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND) as descriptor:
            for count in range(25):
                os.write(descriptor, b"%d-%02d\n" % (number, count))

    _together(append)
    lines = (directory / "log").read_bytes().splitlines()
    assert sorted(lines) == [b"%d-%02d" % (n, c) for n in range(THREADS) for c in range(25)]


def test_readers_and_a_writer_that_replaces(directory: Path) -> None:
    """Who reads a file that is saved by rename sees whole versions, and none after a newer one."""
    (directory / "file").write_bytes(b"%04d" % 0 * 5000)
    done: list[bool] = []

    def read(_: int) -> None:
        newest = 0
        while not done:
            data = (directory / "file").read_bytes()
            assert data == data[:4] * 5000, "two versions in one"
            assert int(data[:4]) >= newest, "an older version came back"
            newest = int(data[:4])

    def save(_: int) -> None:
        try:
            for version in range(1, 60):
                (directory / "temporary").write_bytes(b"%04d" % version * 5000)
                (directory / "temporary").rename(directory / "file")
        finally:
            done.append(True)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(read, n) for n in range(3)] + [pool.submit(save, 0)]:
            future.result()


def test_makers_and_deleters_in_one_directory(directory: Path) -> None:
    def live(number: int) -> None:
        for count in range(15):
            path = directory / f"{number}-{count}"
            path.write_bytes(b"data")
            path.rename(directory / f"{number}-{count}-renamed")
            if count % 2:
                (directory / f"{number}-{count}-renamed").unlink()

    _together(live)
    expected = {f"{n}-{c}-renamed" for n in range(THREADS) for c in range(0, 15, 2)}
    assert set(os.listdir(directory)) == expected


@pytest.mark.parametrize("what", ["exclusive-create", "mkdir", "link", "symlink"])
def test_one_winner(directory: Path, what: str) -> None:
    (directory / "source").touch()

    def attempt(path: Path) -> bool:
        try:
            match what:
                case "exclusive-create":
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                case "mkdir":
                    path.mkdir()
                case "link":
                    os.link(directory / "source", path)
                case _:
                    path.symlink_to("x")
        except FileExistsError:
            return False
        return True

    for turn in range(10):
        winners = _together(lambda _, turn=turn: attempt(directory / f"prize-{turn}"))
        assert winners.count(True) == 1


def test_deleters_of_the_same_names(directory: Path) -> None:
    for number in range(40):
        (directory / str(number)).touch()

    def delete(_: int) -> int:
        count = 0
        for number in range(40):
            try:
                (directory / str(number)).unlink()
            except FileNotFoundError:
                continue
            count += 1
        return count

    assert sum(_together(delete)) == 40
    assert os.listdir(directory) == []


def test_renames_back_and_forth(directory: Path) -> None:
    """A file that is moved about is always in exactly one place."""
    for name in ("a", "b"):
        (directory / name).mkdir()
    for number in range(THREADS):
        (directory / "a" / str(number)).write_bytes(b"%d" % number)

    def move(number: int) -> None:
        for _ in range(10):
            (directory / "a" / str(number)).rename(directory / "b" / str(number))
            (directory / "b" / str(number)).rename(directory / "a" / str(number))

    _together(move)
    assert sorted(os.listdir(directory / "a")) == [str(number) for number in range(THREADS)]
    assert os.listdir(directory / "b") == []
    for number in range(THREADS):
        assert_contents(directory / "a" / str(number), b"%d" % number)


def test_directory_moves_that_would_make_a_loop(directory: Path) -> None:
    """a into b, and b into a, at the same time: one of them at most."""
    for turn in range(10):
        top = directory / str(turn)
        (top / "a").mkdir(parents=True)
        (top / "b").mkdir()

        def move(number: int, top: Path = top) -> bool:
            source, target = ("a", "b") if number else ("b", "a")
            try:
                (top / source).rename(top / target / source)
            except OSError:
                return False
            return True

        assert _together(move, range(2)).count(True) == 1
        assert sum(1 for _ in top.rglob("*")) == 2
