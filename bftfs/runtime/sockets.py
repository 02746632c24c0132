"""Non-blocking stream sockets at the addresses of a cluster description."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from bftfs.addresses import TcpAddress, UnixAddress, parse_address
from bftfs.errors import UsageError
from bftfs.limits import MIB
from bftfs.runtime import host_names

SOCKET_BUFFER_BYTES = 4 * MIB  # asked of the kernel
RECEIVE_BYTES = 120 * 1024  # below the size at which malloc turns to mmap for every buffer
BUFFERS_PER_SEND = 1024  # IOV_MAX of Linux
BACKLOG = 128
LOST_PEER_TIMEOUT_MS = 15_000  # TCP: how long sent data may stay unacknowledged
OWN_NAME_PATIENCE_S = 30.0  # where to listen, once
KEEPALIVE_S = 30  # TCP: silence after which the kernel asks whether the peer is still there

_MAPPED = bytes(10) + b"\xff\xff"  # IPv6 addresses that stand for those of IPv4
_IN_PROGRESS = frozenset((errno.EINPROGRESS, errno.EALREADY))

Buffer = bytes | bytearray | memoryview


def listen(address: str) -> socket.socket:
    """A socket that accepts connections at `address`; a stale Unix socket file is replaced.

    Requires: the caller owns the address, as the lock on its store shows.
    """
    listener: socket.socket | None = None
    try:
        listener, target = unconnected(address, patience_s=OWN_NAME_PATIENCE_S)
        if isinstance(target, str):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.lstat(target).st_mode):
                    os.unlink(target)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.setblocking(False)
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise UsageError(
            f"cannot listen at {address}: {error.strerror}; "
            "is another process using it, or does the address belong to another machine?"
        ) from None
    return listener


def network_of(address: object) -> bytes:
    """The peers that count as one stranger with the one at `address`, as a socket tells it.

    One address of IPv4; 64 bits of IPv6, as a single subscriber has all of the others; everybody
    who connects through a Unix socket.
    """
    if not isinstance(address, tuple):
        return b""
    host = address[0].partition("%")[0]
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    number = socket.inet_pton(socket.AF_INET6, host)
    return number[12:] if number.startswith(_MAPPED) else number[:8]


def forget(address: str) -> None:
    """Remove the file of a Unix socket that is no longer listened at."""
    where = parse_address(address)
    if isinstance(where, UnixAddress):
        with contextlib.suppress(OSError):
            os.unlink(where.path)


def dial(address: str) -> socket.socket:
    """A socket that is connected to `address`, or about to be. Raises OSError."""
    connection, target = unconnected(address)
    try:
        adjust(connection)
        failure = connection.connect_ex(target)
        if failure and failure not in _IN_PROGRESS:
            raise OSError(failure, os.strerror(failure))
    except BaseException:
        connection.close()
        raise
    return connection


def unconnected(
    address: str, *, patience_s: float = host_names.PATIENCE_S
) -> tuple[socket.socket, str | host_names.SocketAddress]:
    """A new socket, and `address` in the form that its calls take. Raises OSError.

    `patience_s`: how long to wait for a name server.
    """
    match parse_address(address):
        case UnixAddress(path):
            return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path
        case TcpAddress(host, port):
            family, target = host_names.address_of(host, port, patience_s=patience_s)
            return socket.socket(family, socket.SOCK_STREAM), target


def adjust(connection: socket.socket) -> None:
    """Make a connection non-blocking and prompt, and let it end if its peer is lost."""
    connection.setblocking(False)
    if connection.family == socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    else:
        # A buffer that was asked for does not grow any more: if the kernel grants less than this,
        # what it comes to by itself on a long way is more.
        for option, limit in ((socket.SO_SNDBUF, "wmem_max"), (socket.SO_RCVBUF, "rmem_max")):
            if granted_bytes(limit) >= SOCKET_BUFFER_BYTES:
                connection.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_PEER_TIMEOUT_MS)


@cache
def granted_bytes(limit: str) -> int:
    """The largest buffer that this machine grants on request; 0 if it does not say."""
    try:
        return int(Path("/proc/sys/net/core", limit).read_text())
    except (OSError, ValueError):
        return 0


class Output:
    """The bytes still to be sent on one connection, in order."""

    __slots__ = ("_buffers", "size")

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self.size = 0  # bytes

    def add(self, buffers: Sequence[Buffer]) -> None:
        """Append `buffers`, which are not copied and must not change."""
        self._buffers += buffers
        for buffer in buffers:
            self.size += len(buffer)

    def write(self, connection: socket.socket) -> None:
        """Send as much as the kernel takes. Raises OSError if the connection is lost."""
        buffers = self._buffers
        while buffers:
            try:
                if len(buffers) == 1:
                    sent = connection.send(buffers[0])
                else:
                    sent = connection.sendmsg(buffers[:BUFFERS_PER_SEND])
            except BlockingIOError:
                return
            self.size -= sent
            if not self.size:
                buffers.clear()
                return
            whole = 0
            while sent >= len(buffers[whole]):
                sent -= len(buffers[whole])
                whole += 1
            if sent:
                buffers[whole] = memoryview(buffers[whole])[sent:]
            del buffers[:whole]
