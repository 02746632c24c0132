"""The retention policy of an object, set by its owner. [design §8]

It says which versions are kept once they are older than the detection window.

The policy is part of the object's state, so that nodes find it without looking at directories, and
its changes are history, too. A new object inherits the policy of its directory; to change that of
a subtree is to change it for every object in it.
"""

from __future__ import annotations

import errno
from typing import Annotated

from msgspec import Meta

from bftfs.errors import UsageError
from bftfs.filesystem.objects import (
    RETENTION_KEY,
    AttributesAfter,
    NoArguments,
    States,
    Subject,
    concluded,
    time_ns,
)
from bftfs.filesystem.permission import owns
from bftfs.query_update.object_type import Caller, Record, Refusal
from bftfs.retention import KEEP_ALL, POLICY_BYTES, parse_policy


class PolicySetting(Record, frozen=True):
    """A policy in words."""

    policy: Annotated[str, Meta(max_length=POLICY_BYTES)]


def get_retention(states: States, arguments: NoArguments, caller: Caller) -> PolicySetting:
    """The object's policy; as for its attributes, knowing the object's id is permission enough."""
    del arguments, caller
    stored = Subject.existing(states[0]).state.get(RETENTION_KEY)
    return PolicySetting(str(KEEP_ALL) if stored is None else stored.decode("ascii"))


def set_retention(states: States, arguments: PolicySetting, caller: Caller) -> AttributesAfter:
    """Set the policy; only the owner may."""
    subject = Subject.existing(states[0])
    if not owns(caller, subject.attributes):
        raise Refusal(errno.EPERM)
    try:
        policy = parse_policy(arguments.policy)
    except UsageError:
        raise Refusal(errno.EINVAL) from None
    if policy == KEEP_ALL:
        subject.state.delete(RETENTION_KEY)
    else:
        subject.state.put(RETENTION_KEY, str(policy).encode("ascii"))
    subject.change(ctime_ns=time_ns(caller))
    return concluded(caller, subject)


def inherit_retention(directory: Subject, child: Subject) -> None:
    """Give a new object the policy of its directory."""
    policy = directory.state.get(RETENTION_KEY)
    if policy is not None:
        child.state.put(RETENTION_KEY, policy)
