"""Why a batch was not stored, or a store cannot be used."""

from __future__ import annotations

from pathlib import Path

from bftfs.errors import BftfsError, UsageError


class StoreError(BftfsError):
    """A store and the reason why it did not do its work."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class StoreFull(StoreError):
    """No room for a batch, on the disk or in the node's share of it; nothing of it was applied."""


class StoreFailed(StoreError):
    """The disk fails, or what it holds is damaged; the node has to stop."""


class StepAgain(BftfsError):
    """The store has to prepare for this batch: leave it, and step its requests in a new one."""


class MapFull(StepAgain):
    """The batch needs more address space than is mapped; leaving it maps more."""


class NeedsCheckpoint(StepAgain):
    """Free space is unknown until a checkpoint; leaving the batch makes one.

    If that fails for want of room, leaving the batch raises StoreFull.
    """


def unusable(path: Path, reason: str) -> UsageError:
    """The mistake of starting a node on a store that cannot be used."""
    return UsageError(f"{path}: {advice(reason)}")


def advice(reason: str) -> str:
    """Why a store cannot be used, and what to do."""
    return (
        f"the store cannot be used: {reason}; move this directory away and start the node "
        "again: it rejoins the cluster with an empty store (until it has caught up it counts as "
        "one of the failed nodes that the cluster masks)"
    )
