"""Who may write the blocks of a file: what a storage node asks before it accepts one.

A node knows an inode by its replica of it. It may have missed the creation: then it cannot tell,
and accepts it. That is safe, because the correct nodes that do know are enough to keep a
write that is not permitted from ever being complete; and it is needed, because a node that refuses
what is permitted counts as faulty. So does a node that is behind and refuses what was permitted
since: at most t nodes are behind, but while one is, another one that fails is one too many.
"""

from __future__ import annotations

import errno
from typing import Final

from bftfs.filesystem.acl import WRITE
from bftfs.filesystem.objects import ATTRIBUTES_KEY, Subject
from bftfs.filesystem.permission import Principal, owns
from bftfs.query_update.object_type import MutableState
from bftfs.server.step import Grant

UNKNOWN_INODE: Final = -1  # this node has no say


def may_write_blocks(inode: MutableState, who: Principal, grant: Grant) -> int:
    """0 if a client with `grant` may write the blocks for `who`, UNKNOWN_INODE, or an errno.

    An owner may whatever the permission bits say, as when the inode is updated.
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
