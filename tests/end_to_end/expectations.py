"""What the end-to-end tests say about files: expected errors, payloads, contents, users."""

import errno
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

# The default block size of a file: what happens at its multiples deserves the closest look.
BLOCK = 128 * 1024

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to act as other users and to make device nodes"
)


def _names(numbers: tuple[int, ...]) -> str:
    return " or ".join(errno.errorcode[number] for number in numbers)


@contextmanager
def fails_with(*expected: int) -> Iterator[None]:
    """The body must fail with one of these error numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in expected:
            got = errno.errorcode.get(error.errno or 0, str(error))
            pytest.fail(f"expected {_names(expected)}, got {got} ({error})")
    else:
        pytest.fail(f"expected {_names(expected)}, but it succeeded")


@contextmanager
def works_or_fails_with(*allowed: int) -> Iterator[None]:
    """The body may fail, but only with one of these error numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in allowed:
            got = errno.errorcode.get(error.errno or 0, str(error))
            pytest.fail(f"expected success or {_names(allowed)}, got {got} ({error})")


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o666) -> Iterator[int]:
    """A file descriptor for the length of a `with` block."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def payload(size: int, seed: int = 0) -> bytes:
    """`size` bytes, none of them zero, so that they differ from every hole."""
    noise = random.Random(seed).randbytes(size)
    return noise.replace(b"\0", b"\x5a")


def evict(path: Path) -> None:
    """Push the file's data out, and drop it from the kernel's cache: the next read is a real one."""
    with opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def assert_contents(path: Path, expected: bytes) -> None:
    """The file holds exactly `expected`; the message says where it first differs."""
    actual = path.read_bytes()
    if actual != expected:
        pytest.fail(f"{path.name}: {first_difference(actual, expected)}")


def first_difference(actual: bytes, expected: bytes) -> str:
    """Where two byte strings first differ, in words."""
    if len(actual) != len(expected):
        start = f"{len(actual)} bytes instead of {len(expected)}; "
    else:
        start = ""
    for offset, (got, wanted) in enumerate(zip(actual, expected, strict=False)):
        if got != wanted:
            count = sum(a != b for a, b in zip(actual, expected, strict=False))
            return f"{start}{count} bytes differ, the first at {offset}: {got:#x} for {wanted:#x}"
    return f"{start}equal as far as both go"


def eventually(condition: Callable[[], bool], *, within_s: float, what: str) -> None:
    """`condition` comes true within a promised time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s:g} s: {what}")
        time.sleep(0.05)


def program(name: str) -> str:
    """The path of a program that a test runs; without it the test is skipped, but fails in CI."""
    found = shutil.which(name)
    if found is not None:
        return found
    unavailable(f"the program {name!r} is not installed")
    return name


def unavailable(reason: str) -> None:
    """Skip, loudly; but where CI runs, nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (a failure, because CI=true)")
    pytest.skip(reason)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody without privileges."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ALICE = Person(uid=41001, gid=41001)
BOB = Person(uid=41002, gid=41002)


def act_as(person: Person, action: Callable[[], T]) -> T:
    """The result of `action`, or its exception, when this person does it (in a process)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.setgroups(person.groups)
            os.setgid(person.gid)
            os.setuid(person.uid)
            outcome: tuple[bool, object] = (True, action())
        except BaseException as error:  # noqa: BLE001 - it is re-raised in the parent
            outcome = (False, error)
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        succeeded, result = pickle.load(pipe)  # noqa: S301 - our own child wrote it
    os.waitpid(child, 0)
    if succeeded:
        return result
    raise result
