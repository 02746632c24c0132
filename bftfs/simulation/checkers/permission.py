"""What a stranger writes is shown only in files that the stranger was permitted to write.

The states of an inode are those on its chain. The calls of correct clients tell when each state may
have been the truth: not before the beginning of the call that made it or an earlier one, and not
after the end of a call that made a later one. If bytes of a stranger are read, there must have been
a state that permitted the stranger to write, between the beginning of the write and the end of the
read. And if somebody's write is refused, there must have been one that did not permit it, between
the beginning and the end of the write.

And the stranger puts together from fragments only what it was permitted to read at some time, from
the beginning of the write on: nodes show a file to users who may read, write or execute it, and to
its owner.

Who may do so is worked out here from mode, owner and list, not as nodes do it. [acl(5)]
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import accumulate
from math import inf
from typing import NamedTuple

from bftfs.credentials import Credentials
from bftfs.filesystem.acl import AccessControlList, Tag
from bftfs.filesystem.attributes import ACCESS_ACL, decode_attributes
from bftfs.filesystem.objects import ACL_KEYS, ATTRIBUTES_KEY
from bftfs.identifiers import ObjectId
from bftfs.simulation.checkers.namespace import Call, Established

_WRITE = 0o2
ANY_USE = 0o7  # to read, write, or execute


class Shown(NamedTuple):
    """Somebody's bytes that were read in a file."""

    identifier: ObjectId
    content: bytes
    began: float  # when its author began to write them
    read: float


class Denied(NamedTuple):
    """A write that was refused for lack of permission."""

    identifier: ObjectId
    content: bytes
    began: float
    ended: float


class Exposed(NamedTuple):
    """Contents that the stranger has put together from fragments."""

    identifier: ObjectId
    content: bytes
    began: float  # when their author began to write them
    ended: float


class Door(NamedTuple):
    """A state of an inode: when it may have been the truth; and if the user was let in then."""

    since: float
    until: float
    open: bool


class Doors:
    """The files of one run, and when they permitted one user to write, or what is asked for."""

    def __init__(
        self, taken: Established, calls: Iterable[Call], who: Credentials, use: int = _WRITE
    ) -> None:
        """`calls` are those of correct clients. Any bit of `use` lets the user in."""
        self._taken = taken
        self._who = who
        self._use = use
        self._calls = {
            call.named[0]: call for call in calls if call.update and not call.error and call.named
        }
        self._of = cache(self._states)

    def open_between(self, identifier: ObjectId, since: float, until: float) -> bool:
        """True if a state that may have been the truth then permitted the user to write."""
        return any(
            door.open and door.since <= until and since <= door.until
            for door in self._of(identifier)
        )

    def shut_between(self, identifier: ObjectId, since: float, until: float) -> bool:
        """True if a state that may have been the truth then did not permit it."""
        return any(
            not door.open and door.since <= until and since <= door.until
            for door in self._of(identifier)
        )

    def _states(self, identifier: ObjectId) -> tuple[Door, ...]:
        versions = self._taken.versions.get(identifier, [])
        calls = [self._calls.get(version) for version in versions]
        begun = accumulate((-inf if call is None else call.invoked for call in calls), max)
        ended = accumulate(
            (inf if call is None else call.responded for call in reversed(calls)), min
        )
        until = [*reversed(list(ended)), inf]
        state: dict[bytes, bytes | None] = {}
        doors = [Door(-inf, until[0], False)]  # before the file was made
        for version, since, superseded in zip(versions, begun, until[1:], strict=True):
            state |= dict(self._taken.record.contents[identifier, version].delta)
            doors.append(Door(since, superseded, _permits(state, self._who, self._use)))
        return tuple(doors)


def _permits(state: dict[bytes, bytes | None], who: Credentials, use: int) -> bool:
    encoded = state.get(ATTRIBUTES_KEY)
    if encoded is None:
        return False
    attributes = decode_attributes(encoded)
    if who.uid == attributes.uid:
        return True
    acl = state.get(ACL_KEYS[ACCESS_ACL])
    if acl is None:
        shift = 3 if attributes.gid in (who.gid, *who.groups) else 0
        return bool(attributes.mode >> shift & use)
    entries = AccessControlList.decode(acl).entries
    mask = next((each.permissions for each in entries if each.tag is Tag.MASK), 0o7)
    for each in entries:
        if each.tag is Tag.USER and each.identity == who.uid:
            return bool(each.permissions & mask & use)
    if attributes.gid in (who.gid, *who.groups):
        owning = next(each for each in entries if each.tag is Tag.OWNING_GROUP)
        return bool(owning.permissions & mask & use)
    return bool(entries[-1].permissions & use)


def check_permitted(shown: Iterable[Shown], doors: Doors) -> list[str]:
    """Findings against bytes that were shown."""
    return [
        f"permission: {each.content!r} was read at {each.read} in {each.identifier.hex()[-6:]}, "
        f"which its author was not permitted to write since {each.began}"
        for each in shown
        if not doors.open_between(each.identifier, each.began, each.read)
    ]


def check_exposed(exposed: Iterable[Exposed], doors: Doors) -> list[str]:
    """Findings against contents that were put together."""
    return [
        f"permission: {each.content!r} was put together at {each.ended} from fragments of "
        f"{each.identifier.hex()[-6:]}, which its reader was not permitted to see since "
        f"{each.began}"
        for each in exposed
        if not doors.open_between(each.identifier, each.began, each.ended)
    ]


def check_denied(denied: Iterable[Denied], doors: Doors) -> list[str]:
    """Findings against writes that were refused."""
    return [
        f"permission: {each.content!r} was refused at {each.ended} in "
        f"{each.identifier.hex()[-6:]}, though its author was permitted to write since {each.began}"
        for each in denied
        if not doors.shut_between(each.identifier, each.began, each.ended)
    ]
