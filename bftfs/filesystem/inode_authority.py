"""A node decides who may write and read a file's blocks: by the client's grant, and by the replica
of the inode that the node has.
"""

from __future__ import annotations

import errno
import os

from bftfs.asking.refusal import Refused
from bftfs.credentials import Credentials
from bftfs.errors import DamagedRow
from bftfs.filesystem.inode import UNKNOWN_INODE, contents_us, may_read_blocks, may_write_blocks
from bftfs.identifiers import BlockId, ObjectKind, inode_of, kind_of
from bftfs.query_update.replica import Workspace
from bftfs.query_update.server import Doubts
from bftfs.server.authority import overstepped
from bftfs.server.recovery import Recovery
from bftfs.server.step import Sender, Want
from bftfs.storage import StorageView
from bftfs.wire.codec import UNREADABLE


class InodeAuthority:
    """Asks the node's own replica of the inode. A node that has never had one allows it. One that
    may have lost it, or its latest version, brings it first: more than t nodes that do not know the
    inode as it is could be deceived.

    At most t nodes that do not lie lack an established version of the inode. So, with the b that
    lie, at most t + b give away what may not be read, or vouch for what may not be written. That is
    fewer than m = QC - t fragments, or vouchers for a repair.
    (`ReadWriteThresholds.require_knowing_vouchers`)

    A node that is behind may refuse what is permitted now. A client that is refused so asks the
    inode, by an update that reaches such nodes. (`bftfs.read_write.permission`)
    """

    def __init__(self, recovery: Recovery, doubts: Doubts) -> None:
        self._recovery = recovery
        self._doubts = doubts

    def may_write(
        self, view: StorageView, sender: Sender, block: BlockId, credentials: Credentials
    ) -> Refused | Want | None:
        """None if the user may write, otherwise why not, or what must be brought first."""
        name = inode_of(block)
        if kind_of(name) != ObjectKind.INODE:
            return Refused(errno.EINVAL, "only files have blocks")
        refusal = overstepped(sender, credentials, writes=True)
        if refusal is not None:
            return refusal
        if self._recovery.doubtful and (want := self._doubts.wanted((name,))) is not None:
            return want
        try:
            code = may_write_blocks(Workspace(view, name), credentials)
        except UNREADABLE as error:
            raise DamagedRow(name, str(error)) from error
        if code in (0, UNKNOWN_INODE):
            return None
        return Refused(code, f"user {credentials.uid} may not write: {os.strerror(code)}")

    def may_read(
        self, view: StorageView, sender: Sender, block: BlockId, who: Credentials
    ) -> Refused | Want | None:
        """None if the user may read, otherwise why not, or what must be brought first."""
        refusal = overstepped(sender, who, writes=False)
        if refusal is not None:
            return refusal
        name = inode_of(block)
        if self._recovery.doubtful and (want := self._doubts.wanted((name,))) is not None:
            return want
        try:
            code = may_read_blocks(Workspace(view, name), who)
        except UNREADABLE as error:
            raise DamagedRow(name, str(error)) from error
        if code in (0, UNKNOWN_INODE):
            return None
        return Refused(code, f"user {who.uid} may not read: {os.strerror(code)}")

    def reached_us(self, view: StorageView, block: BlockId) -> int:
        """The time of the file's last change of contents, as far as this node knows."""
        return contents_us(Workspace(view, inode_of(block)))
