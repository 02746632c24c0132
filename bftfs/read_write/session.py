"""What all reads and writes of one client share.

**Concurrency.** Conversations of one engine use it by turns; nothing is left half-changed across an
await.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from bftfs import limits
from bftfs.coding.erasure import ErasureCode
from bftfs.identifiers import ClientId, NodeId
from bftfs.read_write.gathering import Addressed, Gathering, Silence
from bftfs.read_write.placement import nodes_by_fragment
from bftfs.read_write.standing import Patience, Standings
from bftfs.read_write.validation import ValidatedVersions
from bftfs.thresholds import ReadWriteThresholds

Usable = TypeVar("Usable")


class Session:
    """One client's view of the nodes, and its memory of what it has validated."""

    __slots__ = (
        "_patience_total_us",
        "by_fragment",
        "client",
        "code",
        "read_patience",
        "standings",
        "thresholds",
        "validated",
        "write_patience",
    )

    def __init__(
        self, client: ClientId, thresholds: ReadWriteThresholds, *, patience_total_us: int | None
    ) -> None:
        self.client = client
        self.thresholds = thresholds
        self.code = ErasureCode(thresholds.m, thresholds.N)
        self.by_fragment = nodes_by_fragment(thresholds.N)
        self.standings = Standings(thresholds.N)
        self.validated = ValidatedVersions(limits.VALIDATED_VERSIONS)
        self.read_patience = Patience(limits.READ_PATIENCE_US)
        self.write_patience = Patience(limits.WRITE_PATIENCE_US)
        self._patience_total_us = patience_total_us

    def silence(self, policy: Patience) -> Silence:
        """The patience of one operation."""
        return Silence(policy, self._patience_total_us)

    def gathering(
        self,
        requests: Sequence[Addressed],
        judge: Callable[[Any], Usable | None],
        *,
        silence: Silence,
        subject: str,
        order: Sequence[NodeId] | None = None,
        required: int | None = None,
    ) -> Gathering[Usable]:
        """A round of requests to all nodes, of which N - t have to be answered.

        Or, if so many are `required`: to as many, the first in `order`, and to others in place of
        those that are silent.
        """
        thresholds = self.thresholds
        return Gathering(
            requests,
            judge,
            thresholds=thresholds,
            standings=self.standings,
            silence=silence,
            subject=subject,
            order=self.by_fragment[0] if order is None else order,
            first=thresholds.N if required is None else required,
            hedge_us=self.read_patience.us,
            required=thresholds.responses if required is None else required,
        )

    def preference(self, rotation: int, now_us: int) -> tuple[NodeId, ...]:
        """All nodes, by the fragment they have of blocks so rotated; who is avoided comes last."""
        nodes = self.by_fragment[rotation]
        if not self.standings.marked:
            return nodes
        return tuple(sorted(nodes, key=self.standings.avoided(now_us).__contains__))
