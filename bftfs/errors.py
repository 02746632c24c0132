"""The exceptions that cross package boundaries, in families that never mix.

- `PeerFault`: a peer's message is wrong. Raised by decoding and verification, caught where the
  connection is read, which is closed; conversations only notice that the peer is silent.
- `OperationFailed`: the caller gets no result, and why.
- `FileSystemError`: a POSIX answer, not a failure; it carries the errno.
- `UsageError`: a user's mistake; printed without a traceback.
- `DamagedRow`: a node's own disk has damaged a row, which is mended.

Each carries fields; `__str__` makes the sentence.
"""

from __future__ import annotations

import errno
import os


class BftfsError(Exception):
    """Root of all of the project's exceptions."""

    exit_code = 1  # of a program that it ends


class ImpossibleThresholds(BftfsError):
    """A configuration that no protocol can make safe; names the inequality that it breaks."""

    def __init__(self, inequality: str, given: str) -> None:
        super().__init__(inequality, given)
        self.inequality = inequality
        self.given = given

    def __str__(self) -> str:
        return f"impossible configuration: {self.inequality} does not hold for {self.given}"


class DamagedRow(BftfsError):
    """A row of this node's own store cannot be read: its disk has damaged it.

    `object` is the identifier of the object or inode to which the row belongs.
    """

    def __init__(self, identifier: bytes, reason: str) -> None:
        super().__init__(identifier, reason)
        self.object = identifier
        self.reason = reason

    def __str__(self) -> str:
        return f"the node cannot read its row of it ({self.reason}); it will be repaired"


class PeerFault(BftfsError):
    """A peer sent something that a correct peer would not have sent."""

    def __init__(self, evidence: str) -> None:
        super().__init__(evidence)
        self.evidence = evidence

    def __str__(self) -> str:
        return f"{type(self).__name__}: {self.evidence}"


class MalformedMessage(PeerFault):
    """Bytes that are no canonical encoding of a declared message, or exceed a limit."""


class InvalidAuthenticator(PeerFault):
    """A MAC that does not match."""


class UnknownEpoch(PeerFault):
    """A block names a key epoch that is not known here: perhaps a later one, or none at all."""

    def __init__(self, epoch: bytes, subject: str) -> None:
        super().__init__(f"{subject} is sealed with the key of epoch {epoch.hex()}, unknown here")
        self.epoch = epoch


class ProtocolViolation(PeerFault):
    """Well-formed, authentic, and impossible for a correct peer."""


class OtherVersion(PeerFault):
    """The other end speaks another version of the channel."""


class NotAdmitted(PeerFault):
    """A node, which has proven its identity, does not know our key."""


class OperationFailed(BftfsError):
    """The caller gets no result."""


class QuorumUnavailable(OperationFailed):
    """Fewer nodes answered than the operation needs, within the time that it may take."""

    def __init__(self, *, heard: int, required: int, subject: str) -> None:
        super().__init__(heard, required, subject)
        self.heard = heard
        self.required = required
        self.subject = subject

    def __str__(self) -> str:
        return (
            f"{self.subject}: only {self.heard} of the {self.required} nodes needed answered; "
            "see `bftfs status` for which nodes are down"
        )


class ContentionExhausted(OperationFailed):
    """Other clients won in every attempt that the operation may make."""

    def __init__(self, *, attempts: int, subject: str) -> None:
        super().__init__(attempts, subject)
        self.attempts = attempts
        self.subject = subject

    def __str__(self) -> str:
        return f"{self.subject}: gave up after {self.attempts} attempts under contention"


class FateUnknown(OperationFailed):
    """The client can no longer find out, by its object, whether an update has taken effect.

    Servers have collected the versions among which it would be. None of its attempts takes effect
    from now on.
    """

    def __init__(self, subject: str) -> None:
        super().__init__(subject)
        self.subject = subject

    def __str__(self) -> str:
        return (
            f"{self.subject}: it is unknown whether it has taken effect; its answer was lost, and "
            "the versions of that time are no longer kept"
        )


class VersionUnrecoverable(OperationFailed):
    """Too few correct fragments of a version that must exist answered."""

    def __init__(self, subject: str) -> None:
        super().__init__(subject)
        self.subject = subject

    def __str__(self) -> str:
        return f"{self.subject}: too few correct fragments could be read"


class UnreadableAnswer(OperationFailed):
    """Nodes that cannot all be lying agree on an answer that this client cannot decode."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.method = method

    def __str__(self) -> str:
        return (
            f"{self.method}: the nodes agree on an answer that this client cannot read; "
            "theirs is probably another version of bftfs: install the same on both sides"
        )


class PastUnknown(OperationFailed):
    """Too few nodes remember an object as it was at a time of the past."""

    def __init__(self, *, subject: str, at_us: int) -> None:
        super().__init__(subject, at_us)
        self.subject = subject
        self.at_us = at_us

    def __str__(self) -> str:
        return f"{self.subject}: too few nodes remember what it was at that time"


class NoLongerKept(PastUnknown):
    """An object's state at a time of the past has been collected, as retention allows."""

    def __str__(self) -> str:
        return f"{self.subject}: what it was at that time is no longer kept"


class AdmissionRefused(OperationFailed):
    """The nodes refuse the request for now: a limit, a full disk, or a missing right."""

    def __init__(self, *, code: int, reason: str, nodes: int = 1) -> None:
        super().__init__(code, reason, nodes)
        self.code = code
        self.reason = reason
        self.nodes = nodes  # how many gave this code

    def __str__(self) -> str:
        return f"refused by the nodes: {self.reason} ({os.strerror(self.code)})"


class FileSystemError(BftfsError):
    """A POSIX answer: the errno that Linux users know, and its subject.

    `versions` are those of the objects on which a method refused, in the order of their ids.
    """

    def __init__(self, code: int, subject: str = "", *, versions: tuple[bytes, ...] = ()) -> None:
        super().__init__(code, subject)
        self.code = code
        self.subject = subject
        self.versions = versions

    def __str__(self) -> str:
        name = errno.errorcode.get(self.code, str(self.code))
        return f"{name}: {os.strerror(self.code)}" + (f": {self.subject}" if self.subject else "")


class VersionGone(FileSystemError):
    """No update can name a version of a block any more: nodes may have collected it."""

    def __init__(self, subject: str) -> None:
        super().__init__(errno.EIO, f"what was written to {subject} is gone")


class UsageError(BftfsError):
    """A user's mistake: a sentence that names the thing, the reason and the next step."""

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
