"""Permission checks: permission bits, access control lists, ownership, the sticky bit.

Pure functions over attributes and a principal. The methods on the nodes enforce them; the client
uses them where it can answer without asking.
"""

from __future__ import annotations

import stat
from typing import Protocol

from bftfs.filesystem.acl import EXECUTE, READ, WRITE, AccessControlList
from bftfs.filesystem.attributes import Attributes

__all__ = ["EXECUTE", "READ", "WRITE"]

ROOT = 0


class Principal(Protocol):
    """A POSIX user with its groups: `Credentials` at a client, `Caller` in a method."""

    @property
    def uid(self) -> int: ...

    @property
    def gid(self) -> int: ...

    @property
    def groups(self) -> tuple[int, ...]: ...


def is_member(who: Principal, gid: int) -> bool:
    """True if `who` is in group `gid`."""
    return who.gid == gid or gid in who.groups


def owns(who: Principal, attributes: Attributes) -> bool:
    """True if `who` has the owner's rights."""
    return who.uid in (ROOT, attributes.uid)


def permits(
    attributes: Attributes, acl: AccessControlList | None, who: Principal, want: int
) -> bool:
    """True if `who` has all permissions in `want` (READ | WRITE | EXECUTE) on the object."""
    mode = attributes.mode
    if who.uid == ROOT:
        # Root may execute a file only if some execute bit is set.
        return not want & EXECUTE or stat.S_ISDIR(mode) or bool(mode & 0o111)
    if acl is not None:
        return acl.permits(
            want,
            uid=who.uid,
            groups=(who.gid, *who.groups),
            owner=attributes.uid,
            owning_group=attributes.gid,
        )
    if who.uid == attributes.uid:
        mode >>= 6
    elif is_member(who, attributes.gid):
        mode >>= 3
    return mode & want == want


def may_remove_from(directory: Attributes, entry: Attributes, who: Principal) -> bool:
    """The sticky bit's rule: only owners remove or rename entries of such a directory."""
    return not directory.mode & stat.S_ISVTX or owns(who, directory) or who.uid == entry.uid


def without_set_id_bits(mode: int) -> int:
    """`mode` after a write by an unprivileged user, or after a change of owner.

    Set-group-ID without group execute permission is no privilege, and stays.
    """
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode
