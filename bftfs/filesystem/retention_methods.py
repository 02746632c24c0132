"""What is kept of an object's past behind the detection window: asked for by its owner. [design §8]

The policy stands with the object, so that nodes find it without looking for the directories above,
and so that it is itself history. A new object takes that of the directory that it is made in; to
give a subtree another one is to give it to everything that is in it.
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
    """The object's policy; like its attributes, known to whoever knows the object's id."""
    del arguments, caller
    stored = Subject.existing(states[0]).state.get(RETENTION_KEY)
    return PolicySetting(str(KEEP_ALL) if stored is None else stored.decode("ascii"))


def set_retention(states: States, arguments: PolicySetting, caller: Caller) -> AttributesAfter:
    """Give the object another policy, if it is the caller's own."""
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
    """What is made in a directory is kept like the directory."""
    policy = directory.state.get(RETENTION_KEY)
    if policy is not None:
        child.state.put(RETENTION_KEY, policy)
