"""Permission to write the blocks of a file: checked by a storage node before it accepts one.

A node checks against its own replica of the inode. If it missed the creation, it cannot tell and
accepts the block. That is safe: the correct nodes that know the inode are enough to keep a write
without permission from ever being complete. It is also needed: a node that refuses a permitted
write counts as faulty. So does a node that is behind and refuses what was permitted since then;
while it is, one more failing node may be one too many.
"""

from __future__ import annotations

import errno
from typing import Final

from bftfs.filesystem.acl import WRITE
from bftfs.filesystem.objects import ATTRIBUTES_KEY, Subject
from bftfs.filesystem.permission import Principal, owns
from bftfs.query_update.object_type import MutableState
from bftfs.server.step import Grant

UNKNOWN_INODE: Final = -1  # this node cannot tell


def may_write_blocks(inode: MutableState, who: Principal, grant: Grant) -> int:
    """0 if a client with `grant` may write the blocks for `who`, UNKNOWN_INODE, or an errno.

    The owner may write whatever the permission bits say, as in an update of the inode.
    """
    if not grant.allows(who.uid):
        return errno.EPERM
    if not grant.write:
        return errno.EROFS
    if inode.get(ATTRIBUTES_KEY) is None:
        return UNKNOWN_INODE
    subject = Subject.existing(inode)
    if owns(who, subject.attributes) or subject.permits(who, WRITE):
        return 0
    return errno.EACCES
