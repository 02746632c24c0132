"""Checks whether a user may write the blocks of a file. [design G4]"""

from __future__ import annotations

import os

from bftfs.asking.refusal import Refused
from bftfs.credentials import Credentials
from bftfs.errors import DamagedRow
from bftfs.filesystem.authorization import UNKNOWN_INODE, may_write_blocks
from bftfs.identifiers import BlockId, inode_of
from bftfs.query_update.replica import Replica
from bftfs.server.step import Sender
from bftfs.storage import StorageView
from bftfs.wire.codec import UNREADABLE


class InodeAuthority:
    """Asks the node's own replica of the inode; a node that has none allows it."""

    def may_write(
        self, view: StorageView, sender: Sender, block: BlockId, credentials: Credentials
    ) -> Refused | None:
        """None if the user may write, otherwise why not."""
        name = inode_of(block)
        try:
            code = may_write_blocks(Replica(view, name).workspace, credentials, sender.grant)
        except UNREADABLE as error:
            raise DamagedRow(name, str(error)) from error
        if code in (0, UNKNOWN_INODE):
            return None
        return Refused(code, f"user {credentials.uid} may not write: {os.strerror(code)}")
