"""Non-blocking sockets: partial writes, addresses in use, stale socket files."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bftfs.errors import UsageError
from bftfs.runtime import sockets
from bftfs.runtime.sockets import (
    BUFFERS_PER_SEND,
    SOCKET_BUFFER_BYTES,
    Output,
    adjust,
    dial,
    listen,
    network_of,
)


def drained(receiver: socket.socket) -> bytes:
    received = b""
    while True:
        try:
            data = receiver.recv(1 << 20)
        except BlockingIOError:
            return received
        received += data


@given(
    st.lists(
        st.lists(st.one_of(st.integers(1, 300), st.integers(1, 200_000)), max_size=5), max_size=6
    )
)
def test_everything_arrives_in_order_in_small_writes(
    sizes: list[list[int]],
) -> None:
    sender, receiver = socket.socketpair()
    with sender, receiver:
        sender.setblocking(False)
        receiver.setblocking(False)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        output, expected, received = Output(), b"", b""
        number = 0
        for group in sizes:
            buffers: list[bytes | memoryview] = []
            for size in group:
                number += 1
                buffers.append(bytes([number % 251]) * size)
                expected += buffers[-1]
            output.add([*buffers[:1], *map(memoryview, buffers[1:])])
            output.write(sender)
            assert output.size + len(received) + len(expected) >= len(expected)
            received += drained(receiver)
        while output.size:
            output.write(sender)
            received += drained(receiver)
        received += drained(receiver)
        assert received == expected


def test_more_buffers_than_one_call_takes_are_sent() -> None:
    sender, receiver = socket.socketpair()
    with sender, receiver:
        sender.setblocking(False)
        receiver.setblocking(False)
        output = Output()
        output.add([b"%5d" % number for number in range(2 * BUFFERS_PER_SEND + 1)])
        received = b""
        while output.size:
            output.write(sender)
            received += drained(receiver)
        assert received == b"".join(b"%5d" % n for n in range(2 * BUFFERS_PER_SEND + 1))


def test_writing_to_a_lost_peer_is_an_error() -> None:
    sender, receiver = socket.socketpair()
    with sender:
        sender.setblocking(False)
        receiver.close()
        output = Output()
        output.add([b"x"])
        with pytest.raises(OSError, match="Broken pipe"):
            output.write(sender)


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    listen(address).close()  # leaves its file behind, as a killed process does
    with pytest.raises(ConnectionRefusedError):
        dial(address)
    with listen(address) as listener, dial(address) as connection:
        accepted, _ = listener.accept()
        accepted.close()
        assert connection.getpeername() == f"{tmp_path}/socket"


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(UsageError, match="cannot listen at unix:"):
        listen(f"unix:{tmp_path}/precious")
    assert (tmp_path / "precious").read_text() == "data"


def test_a_bad_tcp_address_is_explained() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match="is another process using it"):
            listen(f"tcp:127.0.0.1:{port}")
    with pytest.raises(UsageError, match="does the address belong to another machine"):
        listen("tcp:192.0.2.1:1")  # an address that nobody has [RFC 5737]


def test_tcp_connections_are_prompt_on_both_families() -> None:
    for host in ("127.0.0.1", "::1"):
        if host == "::1" and not os.path.exists("/proc/net/if_inet6"):
            continue
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
        address = f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
        with listen(address), dial(address) as connection:
            assert not connection.getblocking()
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("192.0.2.1", 7), ("192.0.2.1", 8), True),
        (("192.0.2.1", 7), ("192.0.2.2", 7), False),
        (("2001:db8:0:1::1", 7, 0, 0), ("2001:db8:0:1:ffff::2", 8, 0, 0), True),
        (("2001:db8:0:1::1", 7, 0, 0), ("2001:db8:0:2::1", 7, 0, 0), False),
        (("fe80::1%eth0", 7, 0, 2), ("fe80::2%eth0", 7, 0, 2), True),
        (("::ffff:192.0.2.1", 7, 0, 0), ("192.0.2.1", 7), True),
        (("::ffff:192.0.2.1", 7, 0, 0), ("::ffff:192.0.2.2", 7, 0, 0), False),
        ("", "", True),
        ("", ("192.0.2.1", 7), False),
    ],
)
def test_who_counts_as_one_stranger(one: object, other: object, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same


@pytest.mark.parametrize("granted", [0, 212_992, SOCKET_BUFFER_BYTES])
def test_a_buffer_is_asked_for_only_where_it_is_granted_in_full(
    monkeypatch: pytest.MonkeyPatch, granted: int
) -> None:
    """A smaller one would keep the kernel from making it as large as a long way needs."""
    asked: dict[int, int] = {}

    class Connection(socket.socket):
        def setsockopt(self, level: int, option: int, value: Any) -> None:  # type: ignore[override]
            super().setsockopt(level, option, value)
            if level == socket.SOL_SOCKET and option in {socket.SO_SNDBUF, socket.SO_RCVBUF}:
                asked[option] = value

    monkeypatch.setattr(sockets, "granted_bytes", lambda _limit: granted)
    with Connection(socket.AF_INET) as connection:
        adjust(connection)
    in_full = dict.fromkeys((socket.SO_SNDBUF, socket.SO_RCVBUF), SOCKET_BUFFER_BYTES)
    assert asked == (in_full if granted == SOCKET_BUFFER_BYTES else {})
