"""A node's end of one connection."""

from __future__ import annotations

import select
import socket
from collections import deque

from bftfs.runtime.sockets import Output
from bftfs.server.step import Sender
from bftfs.wire.channel import ServerChannel
from bftfs.wire.framing import Frame
from nodes.admission import Account


class Connection:
    """The state of one accepted connection. Replies are addressed to this object."""

    __slots__ = (
        "account",
        "backlog",
        "backlog_bytes",
        "channel",
        "deadline_us",
        "held_bytes",
        "interest",
        "output",
        "queued",
        "sender",
        "socket",
        "waiting",
    )

    def __init__(
        self, accepted: socket.socket, channel: ServerChannel[Sender], deadline_us: int
    ) -> None:
        self.socket: socket.socket | None = accepted  # None once it is closed
        self.channel = channel
        self.deadline_us = deadline_us  # by which its greeting must be here
        self.sender: Sender | None = None  # as its greeting claims
        self.account: Account | None = None
        self.backlog: deque[Frame] = deque()  # requests that have not been stepped
        self.backlog_bytes = 0
        self.held_bytes = 0  # of its requests and replies, as last counted
        self.waiting = False  # True while it is in the list of connections with a backlog
        self.output = Output()
        self.queued = False  # True while it is in the list of connections to be flushed
        self.interest = select.EPOLLIN  # the events that epoll watches
