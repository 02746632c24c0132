"""Who may write when, by the states of an inode, and what is found of bytes that show otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.credentials import Credentials
from bftfs.filesystem.acl import AccessControlList, AclEntry, Tag
from bftfs.filesystem.attributes import ACCESS_ACL, Attributes
from bftfs.filesystem.objects import ACL_KEYS, ATTRIBUTES_KEY
from bftfs.identifiers import ObjectId
from bftfs.query_update.object_type import encode_record
from bftfs.simulation.checkers.permission import (
    Denied,
    Doors,
    Shown,
    check_denied,
    check_permitted,
)

FILE = ObjectId(b"\x04" + bytes(15))
STRANGER = Credentials(uid=7, gid=7)


def state(mode: int, uid: int = 1, acl: bytes | None = None, gid: int = 1) -> Any:
    attributes = Attributes(
        0o100000 | mode, uid, gid, 1, 0, 0, 0, 0, 1, flags=0 if acl is None else ACCESS_ACL
    )
    delta = ((ATTRIBUTES_KEY, encode_record(attributes)), (ACL_KEYS[ACCESS_ACL], acl))
    return SimpleNamespace(delta=delta)


def listed(permissions: int, mask: int) -> bytes:
    entries = (
        AclEntry(Tag.OWNER, 6),
        AclEntry(Tag.USER, permissions, STRANGER.uid),
        AclEntry(Tag.OWNING_GROUP, 0),
        AclEntry(Tag.MASK, mask),
        AclEntry(Tag.OTHERS, 2),
    )
    return AccessControlList(entries).encode()


def listed_for_group() -> bytes:
    """A list whose owning group, which the stranger is in, may do less than others."""
    entries = (
        AclEntry(Tag.OWNER, 6),
        AclEntry(Tag.USER, 6, STRANGER.uid + 1),
        AclEntry(Tag.OWNING_GROUP, 4),
        AclEntry(Tag.MASK, 6),
        AclEntry(Tag.OTHERS, 2),
    )
    return AccessControlList(entries).encode()


def doors(*states: tuple[Any, int | None, int | None]) -> Doors:
    """The states of a file, each with the call that made it: from when to when."""
    contents: dict[Any, Any] = {(FILE, number): each for number, (each, *_) in enumerate(states)}
    calls: list[Any] = [
        SimpleNamespace(named=(number,), update=True, error=0, invoked=begun, responded=ended)
        for number, (_, begun, ended) in enumerate(states)
        if begun is not None
    ]
    taken: Any = SimpleNamespace(
        versions={FILE: list(range(len(states)))}, record=SimpleNamespace(contents=contents)
    )
    return Doors(taken, calls, STRANGER)


SHUT, OPEN = state(0o600), state(0o602)


@pytest.mark.parametrize(
    ("found", "permitted"),
    [
        (SHUT, False),
        (OPEN, True),
        (state(0o620), False),
        (state(0o400, uid=STRANGER.uid), True),
        (state(0o660, acl=listed(6, 6)), True),
        (state(0o640, acl=listed(6, 4)), False),
        (state(0o662, acl=listed(4, 6)), False),
        (state(0o662, acl=listed_for_group(), gid=STRANGER.gid), False),
    ],
)
def test_who_may_write(found: Any, permitted: bool) -> None:
    assert doors((found, 0, 1)).open_between(FILE, 2, 3) == permitted


def test_a_state_counts_as_long_as_it_may_have_been_the_truth() -> None:
    files = doors((SHUT, 0, 1), (OPEN, 10, 12), (SHUT, None, None), (SHUT, 20, 22))
    shown = [
        Shown(FILE, b"x", began, read) for began, read in ((2, 9), (2, 10), (22, 30), (23, 30))
    ]
    assert [shown.index(each) for each in shown if check_permitted([each], files)] == [0, 3]


def test_nobody_may_write_to_what_is_not_there() -> None:
    assert check_permitted([Shown(FILE, b"x", 0, 1)], doors())


def test_who_is_permitted_all_the_time_is_not_refused() -> None:
    files = doors((SHUT, 0, 1), (OPEN, 10, 12), (OPEN, 20, 22), (SHUT, 30, 32))
    denied = [
        Denied(FILE, b"x", began, ended) for began, ended in ((2, 9), (11, 14), (13, 29), (13, 30))
    ]
    assert [denied.index(each) for each in denied if check_denied([each], files)] == [2]
