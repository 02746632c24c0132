"""The POSIX user and groups on whose behalf a client asks, and the grant that limits them.

A client claims credentials in each request. Its grant is in the cluster description, which the
administrator has signed. `bftfs.server.authority` holds each claim against the grant; the methods
of objects check what these users may do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from bftfs import limits


class UserClaimed(Protocol):
    """Anything that says on whose behalf it asks: credentials, a request, an operation."""

    @property
    def uid(self) -> int:
        """The user."""

    @property
    def gid(self) -> int:
        """The group of what the user makes."""

    @property
    def groups(self) -> tuple[int, ...]:
        """The supplementary groups."""


class Credentials(NamedTuple):
    """A user, its group, and its supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


NOBODY = Credentials(uid=65534, gid=65534)

ROOT: Final = 0  # the user that passes all checks
_ROOTS_GROUP = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """The rights of a client's key: which users it may act as, with which groups, and more.

    `uids`: None for any. `gids`: the groups that these users may claim. Root may claim any group,
    since it passes all checks; so may a client with any uid, which can act as root. Everybody may
    claim the group of `NOBODY`, which a mount claims for users of whose groups none is granted.

    `squash_root`: root on the client's machine acts as `NOBODY`; the client may act as that, and
    not as root, nor in root's group unless it is among `gids`.
    """

    uids: tuple[int, ...] | None = None
    write: bool = True
    subtree: str = "/"
    gids: tuple[int, ...] = ()
    squash_root: bool = False
    _uids: frozenset[int] = field(init=False, repr=False, compare=False)
    _gids: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        uids = frozenset(self.uids or ())
        if self.squash_root:
            uids = uids - {ROOT} | {NOBODY.uid}
        object.__setattr__(self, "_uids", uids)
        object.__setattr__(self, "_gids", frozenset((*self.gids, NOBODY.gid)))

    def allows(self, uid: int) -> bool:
        """True if the client may act as `uid`."""
        if self.uids is None:
            return uid != ROOT or not self.squash_root
        return uid in self._uids

    def uncovered(self, claim: UserClaimed) -> str:
        """What `claim` has that the grant does not cover, such as "gid 10"; empty if nothing."""
        if self.uids is None:
            return _of_root(claim) if self.squash_root else ""
        if claim.uid not in self._uids:
            return f"uid {claim.uid}"
        if claim.uid == ROOT:
            return ""
        gids = self._gids
        if claim.gid not in gids:
            return f"gid {claim.gid}"
        if claim.groups and not gids.issuperset(claim.groups):
            return f"gid {next(gid for gid in claim.groups if gid not in gids)}"
        return ""

    def narrowed_by(self, other: Grant) -> Grant:
        """The rights that both give. Requires: they are for the same subtree."""
        write, both = self.write and other.write, (self, other)
        if self.uids is None and other.uids is None:
            squash_root = self.squash_root or other.squash_root
            return Grant(None, write, self.subtree, squash_root=squash_root)
        uids = {uid for each in both for uid in (*(each.uids or ()), NOBODY.uid)}
        gids = {gid for each in both for gid in each.gids}
        return Grant(
            tuple(sorted(uid for uid in uids if all(each.allows(uid) for each in both))),
            write,
            self.subtree,
            tuple(sorted(gid for gid in gids if all(each._has_group(gid) for each in both))),
        )

    def _has_group(self, gid: int) -> bool:
        """True if each of its users may claim this group."""
        if self.uids is None:
            return gid != _ROOTS_GROUP or not self.squash_root
        return gid in self._gids

    def claimable(self, who: Credentials) -> Credentials:
        """What a mount claims for `who`, as the kernel knows it: without groups not granted.

        It is no more groups than a request may carry.
        What a user makes in a group that is not granted gets the first of its groups that is, or
        that of `NOBODY`. A user that is not granted stays, and nodes refuse it.
        """
        if self.squash_root and who.uid == ROOT:
            return NOBODY
        if who.uid == ROOT or (self.uids is None and not self.squash_root):
            return who._replace(groups=who.groups[: limits.GROUPS])
        groups = tuple(filter(self._covers, who.groups))[: limits.GROUPS]
        gid = who.gid if self._covers(who.gid) else next(iter(groups), NOBODY.gid)
        return Credentials(who.uid, gid, groups)

    def _covers(self, gid: int) -> bool:
        """True if a user other than root may claim this group."""
        return gid != _ROOTS_GROUP if self.uids is None else gid in self._gids


def _of_root(claim: UserClaimed) -> str:
    """What of root `claim` has."""
    if claim.uid == ROOT:
        return f"uid {ROOT}"
    in_roots_group = claim.gid == _ROOTS_GROUP or _ROOTS_GROUP in claim.groups
    return f"gid {_ROOTS_GROUP}" if in_roots_group else ""


ALL_RIGHTS = Grant()
