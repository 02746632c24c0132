"""What pages need of a cluster: one user's view through one client, opened anew for each page."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from bftfs.conversation import Conversation
from bftfs.identifiers import ClientId
from bftfs.restoration.viewpoint import Viewpoint

Result = TypeVar("Result")


class Source(Protocol):
    """A connection to the nodes. A mistake of the user's is a `UsageError`, as in commands."""

    @property
    def view(self) -> Viewpoint:
        """The user's view of the file system; read-only."""

    @property
    def clients(self) -> list[str]:
        """The names of the cluster's clients."""

    def perform(self, conversation: Conversation[Result]) -> Result:
        """The result of a conversation with the nodes."""

    def time(self, text: str) -> int:
        """The time that `text` says, or the snapshot of that name, in microseconds."""

    def client_name(self, client: ClientId) -> str:
        """The name of a client, or the beginning of its id."""

    def client_called(self, text: str) -> ClientId:
        """The client that is called so, or whose id begins so."""

    def path(self, names: tuple[bytes, ...]) -> str:
        """The path in the mount of this user, harmless to print; from `/` if there is none."""

    def undo_command(self, names: tuple[bytes, ...], client: str, since_us: int) -> str:
        """The command that takes back what a client has changed below a path."""

    def inspected(self, names: tuple[bytes, ...], first: int, count: int) -> dict[str, Any]:
        """What `bftfs inspect --json` says of a path and `count` of its blocks from `first` on.

        With `sentences`: why something is degraded.
        """


OpenSource = Callable[[], AbstractContextManager[Source]]
