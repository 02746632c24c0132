"""The parameters and the outcome of a server's step.

A server has no `await` at all, hence no interleaving to reason about: `step` is a function of the
store, the sender, the message and the clock. Its host commits `writes` atomically before it sends
`reply`. A request that cannot be served yet *wants* something from peers; the host runs the wanted
conversation, applies the writes that it returns, and steps the request again from the beginning,
so that no suspended state survives between messages and a crash loses nothing but parked requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import msgspec

from bftfs.asking.refusal import Refused
from bftfs.conversation import Conversation
from bftfs.credentials import ALL_RIGHTS, Grant
from bftfs.crypto.digest import Body
from bftfs.errors import DamagedRow
from bftfs.identifiers import ClientId, NodeId
from bftfs.storage import StorageView, Write


class Role(Enum):
    """The kind of principal at the other end of an authenticated channel."""

    CLIENT = "client"
    NODE = "node"
    ADMINISTRATOR = "administrator"  # of the cluster: for upkeep only, not for files


@dataclass(frozen=True, slots=True)
class Sender:
    """The authenticated origin of a message."""

    role: Role
    client: ClientId  # of a node, and of the administrator: the digest of its public key
    node: NodeId | None = None
    grant: Grant = ALL_RIGHTS


@dataclass(frozen=True, slots=True)
class Want:
    """What a step lacks and must fetch from peers; requests that want the same `key` share it.

    `fetch(view)` is the conversation that fetches it; it may read the view before its first `await`
    only. It returns the writes that store what was fetched; or None if the peers could not supply
    it, and then the parked request is refused.
    """

    key: bytes
    fetch: Callable[[StorageView], Conversation[list[Write] | None]]


class Ready(msgspec.Struct):
    """The outcome of one step: commit `writes`, then send `reply` and `body`; or wait for `wants`.

    With `wants` there is no reply; what is written with them is committed at once.

    `uses_reserve`: the writes are repairs, which readers wait for, or removals, which free room.
    Both may use the reserve that a node keeps when its disk is full.
    """

    reply: Any = None
    body: Body = b""
    writes: list[Write] = msgspec.field(default_factory=list)
    wants: tuple[Want, ...] = ()
    uses_reserve: bool = False


class Refuse(Exception):
    """Control flow within a step: the request is refused, and nothing is written."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.reply = Refused(code, reason)


class WaitFor(Exception):
    """Control flow within a step: the request has to wait for `want`, and is stepped again."""

    def __init__(self, want: Want) -> None:
        super().__init__(want)
        self.want = want


Task = Callable[[StorageView, int], list[Write]]  # view and time to the writes of a step


class Host(Protocol):
    """The services of a node to its background work."""

    foreground_us: int  # when a client last asked for something
    lost: int  # batches that were not committed since the start

    @property
    def full(self) -> bool:
        """True while the disk is full: only the reserve is left, which is not for new rows."""

    def arrange(self, task: Task) -> None:
        """Run `task` as a step of the next batch, which applies its writes.

        The batch may be lost, and `task` with it: if the disk is full, or if the store has to make
        room for the batch first. Only progress may depend on it, unless `worker.is_stored` says
        that it was not lost.
        """

    def note_damage(self, damage: DamagedRow) -> None:
        """A row is damaged: report it to the healer."""


class Background(Protocol):
    """Work that a node does of its own accord."""

    def run(self, host: Host) -> Conversation[None]:
        """Do the work, as long as the node runs."""


class Server(Protocol):
    """One protocol's server."""

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: Body,
        now_us: int,
    ) -> Ready:
        """Serve one message."""
