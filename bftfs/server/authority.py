"""Whether a client may ask in somebody's name: the one place where a grant is judged.

Every request that names a user comes here before anything else is looked at: operations on objects
and writes of blocks alike. The grant is what the administrator has signed. The user and the groups
in the request are the client's word; a client that claims more is refused.
"""

from __future__ import annotations

import errno

from bftfs.asking.refusal import Refused
from bftfs.credentials import UserClaimed
from bftfs.server.step import Role, Sender


def overstepped(sender: Sender, claim: UserClaimed, *, writes: bool) -> Refused | None:
    """Why `sender` must not ask for this in the name of `claim`; None if it may."""
    grant = sender.grant
    if sender.role is not Role.CLIENT:
        return Refused(errno.EPERM, "nodes act for no user")
    if writes and not grant.write:
        return Refused(errno.EROFS, "the grant is for reading only")
    uncovered = grant.uncovered(claim)
    if uncovered:
        return Refused(errno.EPERM, f"the grant does not cover {uncovered}")
    return None
