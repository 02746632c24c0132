"""Names of hosts: a name server that does not answer keeps nobody waiting."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bftfs.runtime import host_names
from bftfs.runtime.host_names import Answer, HostNames
from bftfs.runtime.sockets import dial

HERE: Answer = (socket.AF_INET, ("127.0.0.1", 7))
THERE: Answer = (socket.AF_INET, ("127.0.0.2", 7))
SOON_S = 0.05


class NameServer:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.answer: Answer | None = HERE
        self.answers = threading.Event()
        self.answers.set()
        self.questions = 0

    def look_up(self, host: str, port: int) -> Answer:
        self.questions += 1
        answer = self.answer
        self.answers.wait(10)
        if answer is None:
            raise OSError(errno.EADDRNOTAVAIL, f"{host}: unknown")
        return answer


@pytest.fixture
def server() -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.answers.set()


@pytest.fixture
def names(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> HostNames:
    """No answer stays fresh."""
    monkeypatch.setattr(host_names, "FRESH_S", 0.0)
    return HostNames(server.look_up)


def asked(names: HostNames, patience_s: float = 5.0) -> Answer:
    return names.address_of("node-1", 7, patience_s=patience_s)


def test_a_host_that_moves_is_found(names: HostNames, server: NameServer) -> None:
    assert asked(names) == HERE
    server.answer = THERE
    assert asked(names) == THERE


def test_silence_is_waited_for_once_and_then_the_last_answer_must_do(
    names: HostNames, server: NameServer
) -> None:
    asked(names)
    server.answers.clear()
    server.answer = THERE
    begun = time.monotonic()
    assert asked(names, SOON_S) == HERE
    assert time.monotonic() - begun >= SOON_S
    begun = time.monotonic()
    assert asked(names, 5.0) == HERE  # no second lookup, and no second wait
    assert time.monotonic() - begun < 1.0
    assert server.questions == 2
    server.answers.set()
    deadline = time.monotonic() + 5
    while asked(names) != THERE:
        assert time.monotonic() < deadline


def test_without_any_answer_it_is_said_and_asked_again(
    names: HostNames, server: NameServer
) -> None:
    server.answers.clear()
    for _ in range(3):
        with pytest.raises(OSError, match="no name server"):
            asked(names, SOON_S)
    assert server.questions == 1
    server.answers.set()
    deadline = time.monotonic() + 5
    while True:
        try:
            assert asked(names) == HERE
            break
        except OSError:
            assert time.monotonic() < deadline


def test_a_host_that_is_forgotten_by_its_name_server_is_where_it_was(
    names: HostNames, server: NameServer
) -> None:
    server.answer = None
    with pytest.raises(OSError, match="unknown"):
        asked(names)
    server.answer = HERE
    assert asked(names) == HERE
    server.answer = None
    assert asked(names) == HERE


def test_a_fresh_answer_is_not_asked_for_again(server: NameServer) -> None:
    names = HostNames(server.look_up)
    assert [asked(names) for _ in range(5)] == [HERE] * 5
    assert server.questions == 1


def test_numbers_need_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(host_names, "_NAMES")
    assert host_names.address_of("127.0.0.1", 7) == HERE
    assert host_names.address_of("::1", 7)[0] == socket.AF_INET6


def test_whoever_dials_a_silent_name_goes_on(
    monkeypatch: pytest.MonkeyPatch, server: NameServer
) -> None:
    server.answers.clear()
    monkeypatch.setattr(host_names, "_NAMES", HostNames(server.look_up))
    begun = time.monotonic()
    for _ in range(5):
        with pytest.raises(OSError, match="no name server"):
            dial("tcp:node-1:7000")
    assert time.monotonic() - begun < 5 * host_names.PATIENCE_S
