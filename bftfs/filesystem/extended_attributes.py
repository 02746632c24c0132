"""Extended attributes as queries and updates, and the access control lists among them.

Names fall into the namespaces of xattr(7), with Linux' rules: `user.` on files and directories, by
their permissions; `trusted.` for the superuser alone; `security.` readable by all; and the two
ACLs. A change of the access ACL changes the permission bits, and vice versa.
"""

from __future__ import annotations

import errno
import stat
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from bftfs import limits
from bftfs.filesystem import acl as acls
from bftfs.filesystem.acl import AccessControlList
from bftfs.filesystem.attributes import ACCESS_ACL, DEFAULT_ACL, Attributes
from bftfs.filesystem.objects import (
    ACCESS_ACL_KEY,
    DEFAULT_ACL_KEY,
    AttributesAfter,
    NoArguments,
    States,
    Subject,
    concluded,
    time_ns,
)
from bftfs.filesystem.permission import READ, ROOT, WRITE, is_member, owns
from bftfs.query_update.object_type import Caller, MutableState, Record, Refusal

XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2

_VALUE = b"x"
_PREFIXES = _USER, _TRUSTED, _SECURITY, _SYSTEM = b"user.", b"trusted.", b"security.", b"system."
_ACLS: Final = {
    acls.ACCESS: (ACCESS_ACL, ACCESS_ACL_KEY),
    acls.DEFAULT: (DEFAULT_ACL, DEFAULT_ACL_KEY),
}

ExtendedNameField: TypeAlias = Annotated[bytes, Meta(max_length=4096)]
ExtendedValueField: TypeAlias = Annotated[bytes, Meta(max_length=limits.XATTR_VALUE_BYTES + 1)]


class ExtendedName(Record, frozen=True):
    """The name of an extended attribute."""

    name: ExtendedNameField


class ExtendedValue(Record, frozen=True):
    """The value of an extended attribute."""

    value: bytes


class ExtendedNames(Record, frozen=True):
    """The names of an object's extended attributes."""

    names: tuple[bytes, ...]


class ExtendedSetting(Record, frozen=True):
    """A new value of an extended attribute; XATTR_CREATE, XATTR_REPLACE, or either."""

    name: ExtendedNameField
    value: ExtendedValueField
    flags: Annotated[int, Meta(ge=0, le=XATTR_CREATE | XATTR_REPLACE)]


def fault_of_name(attributes: Attributes, name: bytes, *, uid: int, writing: bool) -> int:
    """The errno with which any access to an attribute of this name fails, else 0. [xattr(7)]"""
    if not name or len(name) > limits.XATTR_NAME_BYTES:
        return errno.ERANGE
    if b"\0" in name:
        return errno.EINVAL
    if name in _ACLS:
        return 0
    namespace = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), b"")
    if not namespace or namespace == _SYSTEM:
        return errno.EOPNOTSUPP
    if name == namespace:
        return errno.EINVAL
    if _is_usable(namespace, attributes, uid=uid, writing=writing):
        return 0
    return errno.EPERM if writing else errno.ENODATA


def _is_usable(namespace: bytes, attributes: Attributes, *, uid: int, writing: bool) -> bool:
    if namespace == _TRUSTED:
        return uid == ROOT
    if namespace == _SECURITY:
        return uid == ROOT or not writing
    return attributes.is_regular or attributes.is_directory


def _subject_for(state: MutableState, name: bytes, caller: Caller, *, writing: bool) -> Subject:
    """The object, if the caller may get or set the attribute of this name."""
    subject = Subject.existing(state)
    attributes = subject.attributes
    fault = fault_of_name(attributes, name, uid=caller.uid, writing=writing)
    if fault:
        raise Refusal(fault)
    if name.startswith(_USER):
        sticky = attributes.is_directory and attributes.mode & stat.S_ISVTX
        if writing and sticky and not owns(caller, attributes):
            raise Refusal(errno.EPERM)
        subject.require(caller, WRITE if writing else READ)
    return subject


def get_extended(states: States, arguments: ExtendedName, caller: Caller) -> ExtendedValue:
    """The value of one extended attribute."""
    name = arguments.name
    subject = _subject_for(states[0], name, caller, writing=False)
    key = _ACLS[name][1] if name in _ACLS else _VALUE + name
    value = subject.state.get(key)
    if value is None:
        raise Refusal(errno.ENODATA)
    return ExtendedValue(bytes(value))


def permit_extended(states: States, arguments: ExtendedName, caller: Caller) -> bytes:
    """Refuse a caller who may not read the attribute of this name."""
    if arguments.name.startswith(_USER):
        Subject.existing(states[0]).require(caller, READ)
    return b""


def list_extended(states: States, arguments: NoArguments, caller: Caller) -> ExtendedNames:
    """The names of all extended attributes that the caller may see."""
    del arguments
    subject = Subject.existing(states[0])
    names = [name for name, (flag, _) in _ACLS.items() if subject.attributes.flags & flag]
    for key, _ in subject.state.scan(_VALUE, bytes((_VALUE[0] + 1,))):
        name = bytes(key[1:])
        if caller.uid == ROOT or not name.startswith(_TRUSTED):
            names.append(name)
    return ExtendedNames(tuple(names))


def set_extended(states: States, arguments: ExtendedSetting, caller: Caller) -> AttributesAfter:
    """Create or replace an extended attribute."""
    name, value = arguments.name, arguments.value
    subject = _subject_for(states[0], name, caller, writing=True)
    if len(value) > limits.XATTR_VALUE_BYTES:
        raise Refusal(errno.E2BIG)
    if name in _ACLS:
        _set_acl(subject, name, value, caller)
    else:
        attributes = subject.attributes
        before = subject.state.get(_VALUE + name)
        if before is None and arguments.flags & XATTR_REPLACE:
            raise Refusal(errno.ENODATA)
        if before is not None and arguments.flags & XATTR_CREATE:
            raise Refusal(errno.EEXIST)
        count = attributes.extended + (before is None)
        volume = attributes.extended_bytes + len(value)
        volume += len(name) if before is None else -len(before)
        if count > limits.XATTRS or volume > limits.XATTRS_BYTES:
            raise Refusal(errno.ENOSPC)
        subject.state.put(_VALUE + name, value)
        subject.change(extended=count, extended_bytes=volume)
    subject.change(ctime_ns=time_ns(caller))
    return concluded(caller, subject)


def remove_extended(states: States, arguments: ExtendedName, caller: Caller) -> AttributesAfter:
    """Remove an extended attribute."""
    name = arguments.name
    subject = _subject_for(states[0], name, caller, writing=True)
    if name in _ACLS:
        flag, key = _ACLS[name]
        if not owns(caller, subject.attributes):
            raise Refusal(errno.EPERM)
        if not subject.attributes.flags & flag:
            raise Refusal(errno.ENODATA)
        subject.store_acl(flag, key, None)
    else:
        attributes = subject.attributes
        before = subject.state.get(_VALUE + name)
        if before is None:
            raise Refusal(errno.ENODATA)
        subject.state.delete(_VALUE + name)
        subject.change(
            extended=attributes.extended - 1,
            extended_bytes=attributes.extended_bytes - len(name) - len(before),
        )
    subject.change(ctime_ns=time_ns(caller))
    return concluded(caller, subject)


def _set_acl(subject: Subject, name: bytes, value: bytes, caller: Caller) -> None:
    """Set an ACL. An empty value removes it, and so does one that permission bits can express."""
    attributes = subject.attributes
    if not owns(caller, attributes):
        raise Refusal(errno.EPERM)
    if stat.S_ISLNK(attributes.mode):
        raise Refusal(errno.EOPNOTSUPP)
    flag, key = _ACLS[name]
    if name == acls.DEFAULT and not attributes.is_directory:
        raise Refusal(errno.EACCES)
    if not value:
        subject.store_acl(flag, key, None)
        return
    try:
        acl = AccessControlList.decode(value)
    except ValueError:
        raise Refusal(errno.EINVAL) from None
    if name == acls.DEFAULT:
        subject.store_acl(flag, key, acl)
        return
    mode = attributes.mode & ~0o777 | acl.mode
    if caller.uid != ROOT and not is_member(caller, attributes.gid):
        mode &= ~stat.S_ISGID
    subject.change(mode=mode)
    subject.store_acl(flag, key, None if acl.is_minimal else acl)
