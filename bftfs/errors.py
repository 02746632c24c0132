"""The exceptions that cross package boundaries, in families that never mix.

- `PeerFault`: a peer's message is wrong. Raised by decoding and verification, caught where the
  connection is read, which is closed; conversations only notice that the peer is silent.
- `OperationFailed`: the caller gets no result, and why.
- `FileSystemError`: a POSIX answer, not a failure; it carries the errno.
- `UsageError`: the human's mistake; printed without a traceback.
- `DamagedRow`: a node's own disk has damaged a row, which is mended.

Each carries fields; `__str__` makes the sentence.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field


class BftfsError(Exception):
    """Root of all of the project's exceptions."""


@dataclass(eq=False)
class ImpossibleThresholds(BftfsError):
    """A configuration that no protocol can make safe; names the inequality that it breaks."""

    inequality: str
    given: str

    def __str__(self) -> str:
        return f"impossible configuration: {self.inequality} does not hold for {self.given}"


@dataclass(eq=False)
class DamagedRow(BftfsError):
    """A row of this node's own store cannot be read: its disk has damaged it.

    `object` is the identifier of the object or inode to which the row belongs.
    """

    object: bytes
    reason: str

    def __str__(self) -> str:
        return f"the node's row of it cannot be read ({self.reason}) and will be mended"


@dataclass(eq=False)
class PeerFault(BftfsError):
    """A peer sent something that a correct peer would not have sent."""

    evidence: str

    def __str__(self) -> str:
        return f"{type(self).__name__}: {self.evidence}"


class MalformedMessage(PeerFault):
    """Bytes that are no canonical encoding of a declared message, or exceed a limit."""


class InvalidAuthenticator(PeerFault):
    """A MAC that does not match."""


class ProtocolViolation(PeerFault):
    """Well-formed, authentic, and impossible for a correct peer."""


class NotAdmitted(PeerFault):
    """A node, which has proven its identity, does not know our key."""


class OperationFailed(BftfsError):
    """The caller gets no result."""


@dataclass(eq=False, kw_only=True)
class QuorumUnavailable(OperationFailed):
    """Fewer nodes answered than the operation needs, within the time that it may take."""

    heard: int
    required: int
    subject: str

    def __str__(self) -> str:
        return (
            f"{self.subject}: only {self.heard} of the {self.required} nodes needed answered; "
            "see `bftfs status` for which nodes are down"
        )


@dataclass(eq=False, kw_only=True)
class ContentionExhausted(OperationFailed):
    """Other clients won in every attempt that the operation may make."""

    attempts: int
    subject: str

    def __str__(self) -> str:
        return f"{self.subject}: gave up after {self.attempts} attempts under contention"


@dataclass(eq=False)
class VersionUnrecoverable(OperationFailed):
    """Too few correct fragments of a version that must exist answered."""

    subject: str

    def __str__(self) -> str:
        return f"{self.subject}: too few correct fragments could be read"


@dataclass(eq=False)
class UnreadableAnswer(OperationFailed):
    """Nodes that cannot all be lying agree on an answer that this client cannot decode."""

    method: str

    def __str__(self) -> str:
        return (
            f"{self.method}: the nodes agree on an answer that this client cannot read; "
            "theirs is probably another version of bftfs: install the same on both sides"
        )


@dataclass(eq=False, kw_only=True)
class PastUnknown(OperationFailed):
    """Too few nodes remember an object as it was at a time of the past."""

    subject: str
    at_us: int

    def __str__(self) -> str:
        return f"{self.subject}: too few nodes remember what it was at that time"


class NoLongerKept(PastUnknown):
    """An object's state at a time of the past has been collected, as retention allows."""

    def __str__(self) -> str:
        return f"{self.subject}: what it was at that time is no longer kept"


@dataclass(eq=False, kw_only=True)
class AdmissionRefused(OperationFailed):
    """The nodes refuse the request for now: a limit, a full disk, or a missing right."""

    code: int
    reason: str
    nodes: int = 1  # how many gave this code

    def __str__(self) -> str:
        return f"refused by the nodes: {self.reason} ({os.strerror(self.code)})"


@dataclass(eq=False)
class FileSystemError(BftfsError):
    """A POSIX answer: the errno that Linux users know, and its subject.

    `versions` are those of the objects on which a method refused, in the order of their ids.
    """

    code: int
    subject: str = ""
    versions: tuple[bytes, ...] = field(default=(), kw_only=True)

    def __str__(self) -> str:
        name = errno.errorcode.get(self.code, str(self.code))
        return f"{name}: {os.strerror(self.code)}" + (f": {self.subject}" if self.subject else "")


@dataclass(eq=False)
class UsageError(BftfsError):
    """The human's mistake, as a sentence that names the thing, the reason and the next step."""

    message: str
    exit_code: int = field(default=2, kw_only=True)

    def __str__(self) -> str:
        return self.message
