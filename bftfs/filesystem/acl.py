"""POSIX access control lists: their encoding, and the access check. [acl(5)]

Invariants: entries stand in the order owner, named users, owning group, named groups, mask, others;
a list with named entries has a mask; `owner`, `others` and the mask (without one: the owning group)
agree with the permission bits of the object that carries the list.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from bftfs import limits

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"


class Tag(IntEnum):
    """The kind of an entry; the numbers are those of the extended attribute."""

    OWNER = 0x01
    USER = 0x02
    OWNING_GROUP = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHERS = 0x20


_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_FORM_VERSION = 2
_NOBODY_IN_PARTICULAR = 0xFFFFFFFF
_NAMED = (Tag.USER, Tag.GROUP)


@dataclass(frozen=True, slots=True)
class AclEntry:
    """One line of a list: a user, group or class, and the rwx bits that it grants."""

    tag: Tag
    permissions: int
    identity: int = _NOBODY_IN_PARTICULAR


@dataclass(frozen=True, slots=True)
class AccessControlList:
    """A valid list."""

    entries: tuple[AclEntry, ...]

    def __post_init__(self) -> None:
        tags = [entry.tag for entry in self.entries]
        if len(tags) > limits.ACL_ENTRIES:
            raise ValueError(f"an access control list has at most {limits.ACL_ENTRIES} entries")
        if tags != sorted(tags):
            raise ValueError("the entries of an access control list are out of order")
        for tag in (Tag.OWNER, Tag.OWNING_GROUP, Tag.OTHERS):
            if tags.count(tag) != 1:
                raise ValueError(f"an access control list needs one {tag.name} entry")
        if tags.count(Tag.MASK) > 1 or (len(tags) > 3 and Tag.MASK not in tags):
            raise ValueError("an access control list with named entries needs one MASK entry")
        for entry in self.entries:
            if entry.permissions & ~0o7:
                raise ValueError("permissions of an access control list are rwx bits")
            if entry.tag in _NAMED and entry.identity == _NOBODY_IN_PARTICULAR:
                raise ValueError("a named entry of an access control list names nobody")

    @classmethod
    def decode(cls, value: bytes) -> AccessControlList:
        """The list that an extended attribute holds. Raises ValueError."""
        count, rest = divmod(len(value) - _VERSION.size, _ENTRY.size)
        if rest or count < 0 or _VERSION.unpack_from(value)[0] != _FORM_VERSION:
            raise ValueError("no access control list of a known form")
        if count > limits.ACL_ENTRIES:
            raise ValueError(f"an access control list has at most {limits.ACL_ENTRIES} entries")
        return cls(
            tuple(
                AclEntry(
                    Tag(tag),
                    permissions,
                    identity if tag in _NAMED else _NOBODY_IN_PARTICULAR,
                )
                for tag, permissions, identity in _ENTRY.iter_unpack(value[_VERSION.size :])
            )
        )

    def encode(self) -> bytes:
        """The extended attribute that holds this list."""
        return _VERSION.pack(_FORM_VERSION) + b"".join(
            _ENTRY.pack(entry.tag, entry.permissions, entry.identity) for entry in self.entries
        )

    @property
    def is_minimal(self) -> bool:
        """True if the permission bits alone express this list."""
        return len(self.entries) == 3

    @property
    def mode(self) -> int:
        """The nine permission bits that agree with this list."""
        group = self._permissions(Tag.MASK)
        if group is None:
            group = self._permissions(Tag.OWNING_GROUP) or 0
        owner, others = self._permissions(Tag.OWNER) or 0, self._permissions(Tag.OTHERS) or 0
        return owner << 6 | group << 3 | others

    def _permissions(self, tag: Tag) -> int | None:
        return next((entry.permissions for entry in self.entries if entry.tag == tag), None)

    def permits(
        self, want: int, *, uid: int, groups: tuple[int, ...], owner: int, owning_group: int
    ) -> bool:
        """The access check algorithm of acl(5), for a process without privileges.

        `groups` are all groups of the process: effective and supplementary.
        """
        mask = self._permissions(Tag.MASK)
        if mask is None:
            mask = 0o7
        in_some_group = False
        for entry in self.entries:
            tag, granted = entry.tag, entry.permissions
            if tag == Tag.OWNER:
                if uid == owner:
                    return granted & want == want
            elif tag == Tag.USER:
                if uid == entry.identity:
                    return granted & mask & want == want
            elif tag in (Tag.OWNING_GROUP, Tag.GROUP):
                group = owning_group if tag == Tag.OWNING_GROUP else entry.identity
                if group in groups:
                    if granted & mask & want == want:
                        return True
                    in_some_group = True
            elif tag == Tag.OTHERS:
                return not in_some_group and granted & want == want
        raise AssertionError("a valid list ends with OTHERS")

    def with_mode(self, mode: int) -> AccessControlList:
        """This list after chmod: group bits set the mask, or without one the owning group."""
        bits = self._class_bits(mode)
        return AccessControlList(
            tuple(
                AclEntry(entry.tag, bits.get(entry.tag, entry.permissions), entry.identity)
                for entry in self.entries
            )
        )

    def inherited(self, mode: int) -> AccessControlList:
        """The access list of an object created with `mode` where this is the default list.

        [acl(5)] OBJECT CREATION AND DEFAULT ACLs: no permissions beyond those asked for by `mode`.
        """
        bits = self._class_bits(mode)
        return AccessControlList(
            tuple(
                AclEntry(entry.tag, entry.permissions & bits.get(entry.tag, 0o7), entry.identity)
                for entry in self.entries
            )
        )

    def _class_bits(self, mode: int) -> dict[Tag, int]:
        """The permission bits of `mode` by the entry that stands for their class."""
        group = Tag.OWNING_GROUP if self._permissions(Tag.MASK) is None else Tag.MASK
        return {Tag.OWNER: mode >> 6 & 7, group: mode >> 3 & 7, Tag.OTHERS: mode & 7}
