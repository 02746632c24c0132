"""The parts shared by the methods of all object types.

A method loads its objects as `Subject`s, checks everything, makes its changes, and concludes. It
refuses by raising `Refusal` at any point: its changes are then discarded.

Map keys of an object's state: b"a" attributes, b"A" access ACL, b"D" default ACL, b"r" retention
policy (a `retention.Policy` in words), b"x" + name an extended attribute, and those that
`directory` and `inode` name.

Queries get mutable states, too; their changes are never kept.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from bftfs.filesystem.acl import AccessControlList
from bftfs.filesystem.attributes import (
    ACCESS_ACL,
    DEFAULT_ACL,
    Attributes,
    decode_attributes,
    encode_attributes,
)
from bftfs.filesystem.permission import Principal, permits
from bftfs.identifiers import ObjectId
from bftfs.query_update.object_type import Caller, MutableState, Record, Refusal

ATTRIBUTES_KEY = b"a"
ACCESS_ACL_KEY = b"A"
DEFAULT_ACL_KEY = b"D"
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

    def access_acl(self) -> AccessControlList | None:
        """The access ACL, if the object has one beyond its permission bits."""
        return self._acl(ACCESS_ACL, ACCESS_ACL_KEY)

    def default_acl(self) -> AccessControlList | None:
        """The ACL that a directory passes on to new objects in it."""
        return self._acl(DEFAULT_ACL, DEFAULT_ACL_KEY)

    def _acl(self, flag: int, key: bytes) -> AccessControlList | None:
        if not self.attributes.flags & flag:
            return None
        encoded = self.state.get(key)
        assert encoded is not None, "the flags say that an ACL is stored"
        return AccessControlList.decode(encoded)

    def store_acl(self, flag: int, key: bytes, acl: AccessControlList | None) -> None:
        """Set or remove an ACL."""
        if acl is not None:
            self.state.put(key, acl.encode())
            self.change(flags=self.attributes.flags | flag)
        elif self.attributes.flags & flag:
            self.state.delete(key)
            self.change(flags=self.attributes.flags & ~flag)

    def permits(self, who: Principal, want: int) -> bool:
        """True if `who` has the permissions `want` on the object."""
        return permits(self.attributes, self.access_acl(), who, want)

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
