"""What the end-to-end tests say about files: expected errors, payloads, contents, users."""

import errno
import os
import pickle
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

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
    """Push the file's data out of the kernel's cache, and drop it: the next read is a real one."""
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


def program(*names: str) -> str:
    """The path of a program, by one of its names; without it, skip (but where CI runs, fail)."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        unavailable(f"none of these programs is installed: {', '.join(names)}")
    return found


def unavailable(reason: str) -> NoReturn:
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
    """The result of `action`, or its exception, when this person does it."""

    def act() -> T:
        os.setgroups(person.groups)
        os.setgid(person.gid)
        os.setuid(person.uid)
        return action()

    return in_another_process(act)


def in_another_process(action: Callable[[], T]) -> T:
    """The result of `action`, or its exception, from a child of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            outcome: tuple[Any, BaseException | None] = (action(), None)
        except OSError as refusal:
            outcome = (None, refusal)
        except BaseException as failure:
            outcome = (None, AssertionError("".join(traceback.format_exception(failure))))
        try:
            os.write(writing, pickle.dumps(outcome))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        pytest.fail(f"ended by {signal.Signals(-code).name}")
    result: T
    error: BaseException | None
    result, error = pickle.loads(answer)
    if error is not None:
        raise error
    return result
