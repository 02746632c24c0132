"""Who may write the blocks of files: a node asks its own replica of the inode."""

from __future__ import annotations

import errno
import os

from bftfs.asking.refusal import Refused
from bftfs.credentials import Credentials
from bftfs.errors import DamagedRow
from bftfs.filesystem.inode import UNKNOWN_INODE, may_write_blocks
from bftfs.identifiers import BlockId, inode_of
from bftfs.query_update.replica import Replica
from bftfs.server.recovery import Recovery
from bftfs.server.step import Sender
from bftfs.storage import StorageView
from bftfs.wire.codec import UNREADABLE


class InodeAuthority:
    """Asks the node's own replica of the inode. A node that has never had one allows it, one that
    may have lost it does not: more than t nodes that know of no inode could be deceived.
    """

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery

    def may_write(
        self, view: StorageView, sender: Sender, block: BlockId, credentials: Credentials
    ) -> Refused | None:
        """None if the user may write, otherwise why not."""
        name = inode_of(block)
        try:
            code = may_write_blocks(Replica(view, name).workspace, credentials, sender.grant)
        except UNREADABLE as error:
            raise DamagedRow(name, str(error)) from error
        if code == UNKNOWN_INODE and self._recovery.doubtful:
            return Refused(errno.EAGAIN, "this node is rebuilding its store")
        if code in (0, UNKNOWN_INODE):
            return None
        return Refused(code, f"user {credentials.uid} may not write: {os.strerror(code)}")
