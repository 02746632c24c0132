"""Who may do what to an object: permission bits, access control lists, ownership, the sticky bit.

Pure functions over attributes and a principal, used by the methods on the nodes, which enforce
them, and by the client where it can answer without asking.
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
    """Whether `who` is in group `gid`."""
    return who.gid == gid or gid in who.groups


def owns(who: Principal, attributes: Attributes) -> bool:
    """Whether `who` may do what is reserved to the owner."""
    return who.uid in (ROOT, attributes.uid)


def permits(
    attributes: Attributes, acl: AccessControlList | None, who: Principal, want: int
) -> bool:
    """Whether `who` has all permissions in `want` (READ | WRITE | EXECUTE) on the object."""
    mode = attributes.mode
    if who.uid == ROOT:
        # A superuser reads and writes everything, but executes only what somebody may execute.
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
    """`mode` after somebody without privileges wrote the file, or anybody changed its owner.

    Set-group-ID without group execute permission is no privilege, and stays.
    """
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode
