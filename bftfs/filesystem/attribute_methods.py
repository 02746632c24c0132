"""Attributes as queries and updates: getattr, chmod, chown, utimens, and atime by relatime."""

from __future__ import annotations

import errno
import stat
from typing import Annotated, Final

from msgspec import Meta

from bftfs.filesystem.attributes import (
    ACCESS_ACL,
    NOW,
    PERMISSION_BITS,
    Attributes,
    Changes,
)
from bftfs.filesystem.objects import (
    ACCESS_ACL_KEY,
    AttributesAfter,
    NoArguments,
    States,
    Subject,
    concluded,
    time_ns,
)
from bftfs.filesystem.permission import (
    EXECUTE,
    READ,
    ROOT,
    WRITE,
    is_member,
    owns,
    without_set_id_bits,
)
from bftfs.query_update.object_type import Caller, Record, Refusal

DAY_NS: Final = 86_400 * 1_000_000_000


def get_attributes(states: States, arguments: NoArguments, caller: Caller) -> Attributes:
    """The attributes; as with a file handle, knowing the object's id is permission enough."""
    del arguments, caller
    return Subject.existing(states[0]).attributes


def permit_history(states: States, arguments: NoArguments, caller: Caller) -> bytes:
    """Refuse a caller who may not read the object now: its history is closed to that user, too."""
    del arguments
    Subject.existing(states[0]).require(caller, READ)
    return b""


def change_attributes(states: States, arguments: Changes, caller: Caller) -> AttributesAfter:
    """chmod, chown and utimens in one."""
    subject = Subject.existing(states[0])
    apply_changes(subject, arguments, caller)
    return concluded(caller, subject)


def apply_changes(subject: Subject, changes: Changes, caller: Caller) -> None:
    """Make `changes`, or refuse all of them. The rules are those of Linux' setattr_prepare."""
    _require_mode_right(subject, changes, caller)
    _require_owner_right(subject, changes, caller)
    _require_times_right(subject, changes, caller)
    before, now = subject.attributes, time_ns(caller)
    gid = before.gid if changes.gid is None else changes.gid
    mode = before.mode
    if (changes.uid is not None or changes.gid is not None) and not stat.S_ISDIR(mode):
        mode = without_set_id_bits(mode)
    if changes.mode is not None:
        mode = stat.S_IFMT(mode) | changes.mode & PERMISSION_BITS
        if caller.uid != ROOT and not is_member(caller, gid):
            mode &= ~stat.S_ISGID
        acl = subject.access_acl()
        if acl is not None:
            subject.store_acl(ACCESS_ACL, ACCESS_ACL_KEY, acl.with_mode(mode))
    subject.change(
        mode=mode,
        uid=before.uid if changes.uid is None else changes.uid,
        gid=gid,
        atime_ns=_new_time(changes.atime_ns, before=before.atime_ns, now=now),
        mtime_ns=_new_time(changes.mtime_ns, before=before.mtime_ns, now=now),
        ctime_ns=now,
    )


def _require_mode_right(subject: Subject, changes: Changes, caller: Caller) -> None:
    before = subject.attributes
    if changes.mode is not None and not owns(caller, before):
        # Before a write by another user than the owner, Linux removes the set-id bits in that
        # user's name.
        if changes.mode & PERMISSION_BITS != without_set_id_bits(before.mode & PERMISSION_BITS):
            raise Refusal(errno.EPERM)
        subject.require(caller, WRITE)


def _require_owner_right(subject: Subject, changes: Changes, caller: Caller) -> None:
    before = subject.attributes
    if caller.uid == ROOT:
        return
    if changes.uid is not None and not caller.uid == before.uid == changes.uid:
        raise Refusal(errno.EPERM)
    if changes.gid is not None and not (
        caller.uid == before.uid and (changes.gid == before.gid or is_member(caller, changes.gid))
    ):
        raise Refusal(errno.EPERM)


def _require_times_right(subject: Subject, changes: Changes, caller: Caller) -> None:
    times = [time for time in (changes.atime_ns, changes.mtime_ns) if time is not None]
    if times and not owns(caller, subject.attributes):
        if any(time != NOW for time in times):
            raise Refusal(errno.EPERM)
        subject.require(caller, WRITE)


def _new_time(asked: int | None, *, before: int, now: int) -> int:
    if asked is None:
        return before
    return now if asked == NOW else asked


class Access(Record, frozen=True):
    """A report that the object was read at this time."""

    atime_ns: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


def is_access_due(attributes: Attributes, atime_ns: int) -> bool:
    """relatime: True for the first access after each change, and once a day."""
    return (
        attributes.atime_ns <= max(attributes.mtime_ns, attributes.ctime_ns)
        or atime_ns - attributes.atime_ns >= DAY_NS
    )


def accessed(states: States, arguments: Access, caller: Caller) -> AttributesAfter:
    """Record an access, if one is due; anybody who may read the object may report it."""
    subject = Subject.existing(states[0])
    if not subject.permits(caller, READ) and not subject.permits(caller, EXECUTE):
        raise Refusal(errno.EACCES)
    atime_ns = min(arguments.atime_ns, time_ns(caller))
    if is_access_due(subject.attributes, atime_ns) and atime_ns > subject.attributes.atime_ns:
        subject.change(atime_ns=atime_ns)
    return concluded(caller, subject)
