"""The parts shared by the methods of all object types.

A method loads its objects as `Subject`s, checks everything, makes its changes, and concludes. It
refuses by raising `Refusal` at any point: its changes are then discarded.

Map keys of an object's state: b"a" attributes, b"A" access ACL, b"D" default ACL, b"r" retention
policy (a `retention.Policy` in words), b"x" + name an extended attribute, and those that
`directory` and `inode` name.

Queries get mutable states, too; their changes are never kept.

The permission checks are pure functions over attributes and a principal: permission bits, access
control lists, ownership, the sticky bit. The methods on the nodes enforce them; the client uses
them where it can answer without asking.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from bftfs.credentials import Credentials
from bftfs.filesystem.acl import AccessControlList
from bftfs.filesystem.attributes import (
    ACCESS_ACL,
    DEFAULT_ACL,
    Attributes,
    decode_attributes,
    encode_attributes,
)
from bftfs.identifiers import ObjectId
from bftfs.query_update.object_type import Caller, MutableState, Record, Refusal

ROOT = 0
READ, WRITE, EXECUTE = 4, 2, 1


# A POSIX user with its groups: at a client, or in a method.
Principal: TypeAlias = Credentials | Caller


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


ATTRIBUTES_KEY = b"a"
ACL_KEYS = {ACCESS_ACL: b"A", DEFAULT_ACL: b"D"}  # by flag
RETENTION_KEY = b"r"

NANOSECONDS_PER_MICROSECOND = 1_000

States: TypeAlias = tuple[MutableState, ...]


class AttributesAfter(Record, frozen=True):
    """The attributes of a method's objects after it, in the order of its roles."""

    attributes: tuple[Attributes, ...]


class NoArguments(Record, frozen=True):
    """The arguments of a method that takes none."""


class Subject:
    """One object of a method in progress: its state, and its attributes as changed so far."""

    __slots__ = ("_loaded", "attributes", "identifier", "state")

    def __init__(self, state: MutableState, attributes: Attributes) -> None:
        self.identifier: ObjectId = state.object
        self.state = state
        self.attributes = attributes
        self._loaded: Attributes | None = attributes

    @classmethod
    def existing(cls, state: MutableState) -> Subject:
        """The object with this state; ESTALE if it was never created."""
        encoded = state.get(ATTRIBUTES_KEY)
        if encoded is None:
            raise Refusal(errno.ESTALE)
        return cls(state, decode_attributes(encoded))

    @classmethod
    def created(cls, state: MutableState, attributes: Attributes) -> Subject:
        """A new object; ESTALE if its identifier is in use."""
        if state.get(ATTRIBUTES_KEY) is not None:
            raise Refusal(errno.ESTALE)
        subject = cls(state, attributes)
        subject._loaded = None
        return subject

    def change(self, **changes: Any) -> None:
        """Replace fields of the attributes."""
        self.attributes = msgspec.structs.replace(self.attributes, **changes)

    def conclude(self, caller: Caller) -> Attributes:
        """Store the attributes if they have changed, and return them."""
        if self.attributes is not self._loaded:
            before = 0 if self._loaded is None else self._loaded.version
            self.change(version=caller.time_us, previous=before)
            self._loaded = self.attributes
            self.state.put(ATTRIBUTES_KEY, encode_attributes(self.attributes))
        return self.attributes

    def acl(self, flag: int) -> AccessControlList | None:
        """ACCESS_ACL: the list beyond its permission bits. DEFAULT_ACL: what new objects get."""
        if not self.attributes.flags & flag:
            return None
        encoded = self.state.get(ACL_KEYS[flag])
        assert encoded is not None, "the flags say that an ACL is stored"
        return AccessControlList.decode(encoded)

    def store_acl(self, flag: int, acl: AccessControlList | None) -> None:
        """Set or remove an ACL."""
        if acl is not None:
            self.state.put(ACL_KEYS[flag], acl.encode())
            self.change(flags=self.attributes.flags | flag)
        elif self.attributes.flags & flag:
            self.state.delete(ACL_KEYS[flag])
            self.change(flags=self.attributes.flags & ~flag)

    def permits(self, who: Principal, want: int) -> bool:
        """True if `who` has the permissions `want` on the object."""
        return permits(self.attributes, self.acl(ACCESS_ACL), who, want)

    def require(self, who: Principal, want: int) -> None:
        """Refuse unless `who` has the permissions `want`."""
        if not self.permits(who, want):
            raise Refusal(errno.EACCES)


class NoState:
    """The state of an object without ACLs of which only the attributes are known."""

    __slots__ = ("object",)

    def __init__(self, identifier: ObjectId) -> None:
        self.object = identifier

    def get(self, key: bytes) -> bytes | None:
        """Nothing is known."""
        del key
        return None

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Nothing is known."""
        del start, stop, reverse
        return iter(())

    def put(self, key: bytes, value: bytes) -> None:
        """Changed attributes are taken from the `Subject`."""

    def delete(self, key: bytes) -> None:
        """There is nothing to delete."""


def loaded(*states: MutableState) -> tuple[Subject, ...]:
    """The objects of `states`; an object in several roles is one `Subject`."""
    subjects: list[Subject] = []
    for state in states:
        subjects.append(
            next((known for known in subjects if known.state is state), None)
            or Subject.existing(state)
        )
    return tuple(subjects)


def concluded(caller: Caller, *subjects: Subject) -> AttributesAfter:
    """The end of a method that changed `subjects`."""
    return AttributesAfter(tuple(subject.conclude(caller) for subject in subjects))


def time_ns(caller: Caller) -> int:
    """The time of the operation."""
    return caller.time_us * NANOSECONDS_PER_MICROSECOND


def inherit_retention(directory: Subject, child: Subject) -> None:
    """Give a new object the policy of its directory."""
    policy = directory.state.get(RETENTION_KEY)
    if policy is not None:
        child.state.put(RETENTION_KEY, policy)
