"""Addresses of hosts that a cluster description gives by name, as in a cluster of containers.

The C library answers when it knows the answer: if no name server answers, after many seconds. A
node and a mount have one thread that serves everybody. So names are looked up in threads of their
own, and a dialling program waits a moment for the answer, once for each time that it is looked for;
after that the last one that there was must do. A wrong address does no harm: the channel
proves which node is there.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

FRESH_S: Final = 2.0  # an answer is not looked for again for so long
PATIENCE_S: Final = 0.3

SocketAddress = tuple[Any, ...]  # as the calls of a socket take it
Answer = tuple[int, SocketAddress]  # with its family


class HostNames:
    """The answers of a name service, asked again when they are not fresh."""

    def __init__(self, look_up: Callable[[str, int], Answer]) -> None:
        """`look_up` may take as long as it likes; it raises OSError if there is no answer."""
        self._look_up = look_up
        self._found: dict[tuple[str, int], tuple[float, Answer]] = {}
        self._failed: dict[tuple[str, int], OSError] = {}  # the last time
        self._asked: dict[tuple[str, int], threading.Event] = {}  # lookups under way

    def address_of(self, host: str, port: int, *, patience_s: float) -> Answer:
        """Where `host` is. Waits at most so long. Raises OSError if that is unknown."""
        name = (host, port)
        found = self._found.get(name)
        if found is not None and time.monotonic() - found[0] < FRESH_S:
            return found[1]
        if name not in self._asked:
            self._asked[name] = asked = threading.Event()
            threading.Thread(target=self._ask, args=(name, asked), daemon=True).start()
            asked.wait(patience_s)
        found = self._found.get(name)
        if found is not None:
            return found[1]
        failure = self._failed.get(name)
        if failure is not None:
            raise failure
        raise OSError(errno.EAGAIN, f"{host}: no name server has answered yet")

    def _ask(self, name: tuple[str, int], asked: threading.Event) -> None:
        try:
            self._found[name] = (time.monotonic(), self._look_up(*name))
            self._failed.pop(name, None)
        except OSError as error:
            self._failed[name] = error
        finally:
            del self._asked[name]
            asked.set()


def looked_up(host: str, port: int, *, flags: int = 0) -> Answer:
    """The address that the C library finds for a host name. Raises OSError."""
    try:
        family, _, _, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=flags
        )[0]
    except socket.gaierror as error:
        raise OSError(errno.EADDRNOTAVAIL, f"{host}: {error.strerror}") from None
    return family, target


_NAMES: Final = HostNames(looked_up)


def address_of(host: str, port: int, *, patience_s: float = PATIENCE_S) -> Answer:
    """Where `host` is, which may be a number: that needs no answer. Raises OSError."""
    try:
        return looked_up(host, port, flags=socket.AI_NUMERICHOST)
    except OSError:
        return _NAMES.address_of(host, port, patience_s=patience_s)
