"""One node's part in PASIS read/write: `ReadWriteServer.step`. [PASIS §3.4.3.1]"""

from __future__ import annotations

from typing import Protocol

from bftfs.conversation import Conversation  # noqa: F401
from bftfs.credentials import Credentials
from bftfs.identifiers import BlockId, ClientId, NodeId
from bftfs.read_write import messages
from bftfs.read_write.messages import BlockRefused
from bftfs.step import Ready, Sender
from bftfs.storage import StorageView, Write
from bftfs.thresholds import ReadWriteThresholds


class Authority(Protocol):
    """Who may read and write which block: injected by the host, which knows inodes."""

    def may_read(
        self, view: StorageView, sender: Sender, block: BlockId, credentials: Credentials
    ) -> BlockRefused | None:
        """None, or why not. Not asked for nodes, which hold the fragments anyway."""

    def may_write(
        self, view: StorageView, sender: Sender, block: BlockId, credentials: Credentials
    ) -> BlockRefused | None:
        """None, or why not."""


class Quota(Protocol):
    """What each client's versions may use: injected by the host."""

    def charge(
        self, view: StorageView, client: ClientId, block: BlockId, volume: int
    ) -> BlockRefused | list[Write]:
        """The writes that account for a new version of `volume` bytes, or why it is refused."""


class ReadWriteServer:
    """Serves TimeRequest, WriteRequest and ReadRequest for node `node`."""

    def __init__(
        self,
        node: NodeId,
        thresholds: ReadWriteThresholds,
        *,
        authority: Authority | None = None,  # None: what the sender's grant says, for any block
        quota: Quota | None = None,
    ) -> None: ...

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: messages.Request,
        body: bytes | memoryview,
        now_us: int,
    ) -> Ready:
        """Serve one request."""
        raise NotImplementedError
