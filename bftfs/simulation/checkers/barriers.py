"""How often correct nodes let each object be barred. [Q/U §4.3.5; protocols-query-update.md, 4]

A barrier that a correct node accepts before all other correct ones comes from its maker: nobody
else could show it b + 1 servers that report it. It must lie within that node's budget for the
object: so many barriers of each client at first, as many for each update of its own, and besides
few of all clients together. Barriers that come to the node from other nodes use this budget up as
well, but for those of healing. So these are left out where nodes heal.

Nor may one server's word move an object's time far ahead, but seldom: such a barrier follows what
a correct node has accepted; or all clocks were set back, and had been there; or it lies within the
steps that its maker has for this at the node.

The checker counts what nodes have committed. A node keeps its budgets in memory: after a restart
they are whole again. When all clocks jump ahead, a node takes that for time in which barriers for
all clients come; and when they jump back, the checker does not know when the node noticed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bftfs import limits
from bftfs.clock_skew import NEAR_US
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.query_update.history import Candidate, client_of, time_of
from bftfs.simulation.checkers.candidates import Acceptance, CommitRecord


@dataclass(slots=True)
class _Budget:
    """The budget of one object at one node: the barriers that are left."""

    since_us: int
    own: dict[ClientId, int] = field(default_factory=dict)
    shared: float = limits.BARRIERS_OF_OTHERS
    steps: dict[ClientId, tuple[float, int]] = field(default_factory=dict)  # and since when

    def update(self, client: ClientId) -> None:
        """The node has accepted an update of the client's."""
        left = self.own.get(client, limits.BARRIERS_EARNED) + limits.BARRIERS_EARNED
        self.own[client] = min(left, limits.BARRIERS_MOST)
        self.steps.pop(client, None)
        self.shared += 1 / limits.BARRIER_UPDATES

    def bar(self, client: ClientId, clock_us: int) -> float:
        """The node has accepted a barrier of the client's; what is left for it after that."""
        left = self.own.get(client, limits.BARRIERS_EARNED)
        self.own[client] = max(left - 1, 0)
        if left:
            return left - 1
        gone_s = max(0, clock_us - self.since_us) / limits.SECOND_US
        self.since_us = clock_us
        most = limits.BARRIERS_OF_OTHERS
        self.shared = max(min(self.shared + gone_s, most) - 1, -most)
        return self.shared

    def move(self, client: ClientId, ahead_us: int, clock_us: int) -> bool:
        """Its barrier puts the object's time so far ahead; False if its steps are used up."""
        left, since_us = self.steps.get(client, (limits.BARRIER_STEPS, clock_us))
        left += max(0, clock_us - since_us) / limits.BARRIER_STEP_EVERY_US
        left = min(left, limits.BARRIER_STEPS) - -(-ahead_us // limits.BARRIER_STEP_US)
        self.steps[client] = left, clock_us
        return left > -0.01

    def knows(self, client: ClientId) -> bool:
        """True if the client has barred the object, or updated it."""
        return client in self.own


def _time(barrier: tuple[Candidate, ObjectId, int]) -> bytes:
    return barrier[0].timestamp


@dataclass(slots=True)
class BarriersRecord(CommitRecord):
    """The budgets of all objects at all correct nodes."""

    healing: bool = False  # nodes take barriers over from their peers without a client
    borne_us: int = 0  # if all clocks were set back: how far ahead barriers may go
    total: int = 0  # barriers that correct nodes were the first to accept
    _budgets: dict[NodeId, dict[ObjectId, _Budget]] = field(default_factory=dict)
    _lives: dict[NodeId, int] = field(default_factory=dict)
    _jumps: dict[NodeId, int] = field(default_factory=dict)
    # The latest times of objects that correct nodes have accepted.
    _reached_us: dict[ObjectId, int] = field(default_factory=dict)

    def accepted(
        self,
        node: NodeId,
        clock_us: int,
        acceptances: Iterable[Acceptance],
        *,
        lives: int,
        jumps: int = 0,
    ) -> None:
        """`node` has accepted candidates, after so many restarts, and jumps of all clocks."""
        if self._lives.get(node) != lives:
            self._lives[node] = lives
            self._budgets[node] = {}
        budgets = self._budgets[node]
        # What is committed now may have been accepted before the jump, or after it.
        has_jumped = self._jumps.get(node, 0) != jumps
        self._jumps[node] = jumps
        barriers = []
        for identifier, candidate, _, elsewhere in acceptances:
            if candidate.barrier:
                barriers.append((candidate, identifier, elsewhere))
                continue
            self._reach(identifier, candidate)
            if not candidate.copy:
                budget = budgets.setdefault(identifier, _Budget(clock_us))
                budget.update(client_of(candidate.timestamp))
        # What came first in a batch is not known: updates, that is, and barriers in their order.
        for candidate, identifier, elsewhere in sorted(barriers, key=_time):
            if elsewhere and self.healing:
                continue
            budget = budgets.setdefault(identifier, _Budget(clock_us))
            client = client_of(candidate.timestamp)
            renewed = has_jumped or self._is_forgotten(budgets, client)
            if not elsewhere:
                self.total += 1
                beyond_us, ahead_us = self._moved_us(clock_us, identifier, candidate)
                if beyond_us > 0 and not budget.move(client, ahead_us, clock_us) and not renewed:
                    self.find(
                        f"node {node} has accepted a barrier {beyond_us // 1_000} ms beyond the "
                        f"time that {identifier.hex()[-6:]} has reached"
                    )
            left = budget.bar(client, clock_us)
            if left < -0.01 and not (elsewhere or renewed):
                self.find(
                    f"node {node} has accepted a barrier at {identifier.hex()[-6:]} from its "
                    f"maker, beyond the budget by {-left:.1f}"
                )
            self._reach(identifier, candidate)
        if has_jumped:
            for budget in budgets.values():
                budget.shared = limits.BARRIERS_OF_OTHERS
                budget.steps = {}

    def _is_forgotten(self, budgets: dict[ObjectId, _Budget], client: ClientId) -> bool:
        """The node may have forgotten some of what it minds, which comes back in time."""
        if len(budgets) > limits.CONTENDED_OBJECTS:
            return True
        known = sum(budget.knows(client) for budget in budgets.values())
        return known > limits.OBJECTS_BARRED_OF_CLIENT

    def _reach(self, identifier: ObjectId, candidate: Candidate) -> None:
        reached_us = self._reached_us.get(identifier, 0)
        self._reached_us[identifier] = max(reached_us, time_of(candidate.timestamp))

    def _moved_us(
        self, clock_us: int, identifier: ObjectId, candidate: Candidate
    ) -> tuple[int, int]:
        """By how much a barrier moves the object's time ahead, on one server's word.

        0 or less if it does not. And how far it is ahead of what is taken from anybody then.
        """
        freely_us = max(clock_us + NEAR_US, self.borne_us + limits.CLOCK_SKEW_US)
        reached_us = self._reached_us.get(identifier, 0) + limits.STEPS_AHEAD_US + 1
        time_us = time_of(candidate.timestamp)
        return time_us - max(freely_us, reached_us), time_us - freely_us
