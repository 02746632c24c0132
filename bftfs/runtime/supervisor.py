"""Tells the service manager that started this process that it is ready, and that it goes on.

The protocol is that of sd_notify(3): datagrams to a Unix socket that the environment names. systemd
and what imitates it speak it. Without a service manager that asks for it nothing is sent.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Final

READY: Final = b"READY=1"
STOPPING: Final = b"STOPPING=1"
ALIVE: Final = b"WATCHDOG=1"

_PATIENCE_S: Final = 1.0  # for a service manager whose queue is full


def tell(state: bytes) -> None:
    """Tell the service manager, if there is one. Never raises: it would learn nothing from that."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(_PATIENCE_S)
        # "@": an address in the abstract namespace [unix(7)]
        sender.sendto(state, f"\0{path[1:]}" if path.startswith("@") else path)


def alive_every_us() -> int | None:
    """How often to tell that this process is alive: twice as often as is asked of it.

    None if nobody asks it of this process. What is asked of the process that has started it has the
    same words in the environment.
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    asked = os.environ.get("WATCHDOG_USEC", "")
    return int(asked) // 2 if asked.isdecimal() and int(asked) > 1 else None
