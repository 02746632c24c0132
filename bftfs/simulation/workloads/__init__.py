"""Workloads: the operations of correct clients, one module per kind, and their checkers.

A workload draws operations, records when each began and ended and what it returned, and checks this
history at the end. It knows nothing of faults and adversaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from bftfs.conversation import Conversation
from bftfs.identifiers import NodeId, ObjectId
from bftfs.simulation.checkers.candidates import CandidateRecord
from bftfs.simulation.checkers.retention import RetentionRecord
from bftfs.simulation.principals import SimulatedClient
from bftfs.storage import StorageView


@dataclass(frozen=True, slots=True)
class Task:
    """One operation, not yet begun: its conversation takes down what becomes of it."""

    name: str
    conversation: Callable[[], Conversation[Any]]
    saves: bool = False  # what the mount has written to files, perhaps long before


@dataclass(frozen=True, slots=True)
class CorrectNodes:
    """The disks of the correct nodes, and what was recorded of their commits."""

    disks: Mapping[NodeId, StorageView]
    candidates: CandidateRecord
    byzantine: int  # how many nodes are not correct
    retention: RetentionRecord | None = None  # where nodes collect


class ClientSession(Protocol):
    """A client's part in a workload, from its start to its crash: it holds protocol clients."""

    def prepare(self) -> Iterator[Task]:
        """Operations that come before everything else, without faults."""

    def next_task(self) -> Task:
        """An operation drawn at random."""

    def audit(self) -> Iterator[Task]:
        """Operations that together see everything that must be there."""


class Workload(Protocol):
    """One kind of operations, on a few subjects that all clients contend for."""

    random: Random
    volume: ObjectId  # whose snapshots nodes that collect go by
    # Where nodes collect: the first moment that they must keep, as it is now.
    kept_since_us: Callable[[], int] | None
    # Byzantine clients that no node serves any more: what they attempt must never take place.
    cut_off: set[str]

    def session(self, host: SimulatedClient, name: str) -> ClientSession:
        """A client's session; a client that comes back after a crash starts a new one."""

    def findings(self) -> list[str]:
        """Errors in the history."""

    def findings_on_disks(self, evidence: CorrectNodes) -> list[str]:
        """Errors in what correct nodes have accepted and stored, given the history."""

    def digested(self) -> Iterable[str]:
        """The history in a form that is the same in every process."""

    @property
    def operations(self) -> int:
        """The number of operations begun."""
