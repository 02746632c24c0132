"""Attributes as queries and updates: getattr, chmod, chown, utimens, and atime by relatime."""

from __future__ import annotations

import errno
import stat
from typing import Annotated, Any, Final

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
    """Refuse who may not read the object: he may not see either what it was before."""
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
    before = subject.attributes
    privileged = caller.uid == ROOT
    if changes.mode is not None and not owns(caller, before):
        # Linux takes the set-id bits off a file before somebody else writes it, in his name.
        if changes.mode & PERMISSION_BITS != without_set_id_bits(before.mode & PERMISSION_BITS):
            raise Refusal(errno.EPERM)
        subject.require(caller, WRITE)
    if not privileged:
        if changes.uid is not None and not caller.uid == before.uid == changes.uid:
            raise Refusal(errno.EPERM)
        if changes.gid is not None and not (
            caller.uid == before.uid
            and (changes.gid == before.gid or is_member(caller, changes.gid))
        ):
            raise Refusal(errno.EPERM)
    times = [time for time in (changes.atime_ns, changes.mtime_ns) if time is not None]
    if times and not owns(caller, before):
        if any(time != NOW for time in times):
            raise Refusal(errno.EPERM)
        subject.require(caller, WRITE)

    now = time_ns(caller)
    fields: dict[str, Any] = {"ctime_ns": now}
    mode = before.mode
    if changes.uid is not None:
        fields["uid"] = changes.uid
    if changes.gid is not None:
        fields["gid"] = changes.gid
    if (changes.uid is not None or changes.gid is not None) and not stat.S_ISDIR(mode):
        mode = without_set_id_bits(mode)
    if changes.mode is not None:
        mode = stat.S_IFMT(mode) | changes.mode & PERMISSION_BITS
        if not privileged and not is_member(caller, fields.get("gid", before.gid)):
            mode &= ~stat.S_ISGID
        acl = subject.access_acl()
        if acl is not None:
            subject.store_acl(ACCESS_ACL, ACCESS_ACL_KEY, acl.with_mode(mode))
    fields["mode"] = mode
    if changes.atime_ns is not None:
        fields["atime_ns"] = now if changes.atime_ns == NOW else changes.atime_ns
    if changes.mtime_ns is not None:
        fields["mtime_ns"] = now if changes.mtime_ns == NOW else changes.mtime_ns
    subject.change(**fields)


class Access(Record, frozen=True):
    """The object was read at this time."""

    atime_ns: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


def is_access_due(attributes: Attributes, atime_ns: int) -> bool:
    """relatime: whether an access is worth recording.

    It is once after each change, and once a day.
    """
    return (
        attributes.atime_ns <= max(attributes.mtime_ns, attributes.ctime_ns)
        or atime_ns - attributes.atime_ns >= DAY_NS
    )


def accessed(states: States, arguments: Access, caller: Caller) -> AttributesAfter:
    """Record an access, if one is due; whoever may read may say that he did."""
    subject = Subject.existing(states[0])
    if not subject.permits(caller, READ) and not subject.permits(caller, EXECUTE):
        raise Refusal(errno.EACCES)
    atime_ns = min(arguments.atime_ns, time_ns(caller))
    if is_access_due(subject.attributes, atime_ns) and atime_ns > subject.attributes.atime_ns:
        subject.change(atime_ns=atime_ns)
    return concluded(caller, subject)
