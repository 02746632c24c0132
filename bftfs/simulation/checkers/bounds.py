"""Correct nodes accept only a bounded amount from any client or node. [design §1 G7, §4]

The record is taken at the commits of correct nodes. Bounds are those of `bftfs.limits`:

- no time that a node accepts lies further ahead of its own clock than clocks may differ;
- of the barriers and copies that one client makes, a node accepts so many at once and per second;
- in a replica history that is long, no client has more than its share of unfinished work: it gets
  none in but what others finish, for which servers have to vouch that have accepted it;
- no more requests wait for object sync, in all and of one principal, than there are places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from bftfs import limits
from bftfs.identifiers import ClientId, NodeId
from bftfs.query_update.history import client_of, time_of
from bftfs.read_write.timestamp import time_of as block_time_of
from bftfs.read_write.version_row import VERIFIED
from bftfs.simulation.checkers.candidates import Acceptance
from bftfs.storage import Table, Write

_MOST_FINDINGS = 20  # of one run; one is enough, and a broken bound breaks all the time


@dataclass(slots=True)
class BoundsRecord:
    """Compares what correct nodes accept with the bounds."""

    repairable: int  # servers that vouch for what is finished
    byzantine: int = 0  # servers that vouch for anything
    findings: list[str] = field(default_factory=list)
    # Per node and client: tokens left, and when that was so. Kept apart from the servers' own.
    _allowances: dict[tuple[NodeId, ClientId], tuple[float, int]] = field(default_factory=dict)

    def accepted(
        self,
        node: NodeId,
        clock_us: int,
        acceptances: Iterable[Acceptance],
    ) -> None:
        """`node` has accepted candidates, each of an object and at the end of a history."""
        repairs: Counter[ClientId] = Counter()
        made = set()
        for identifier, candidate, history, elsewhere in acceptances:
            timestamp = candidate.timestamp
            self._require_sane(node, clock_us, time_of(timestamp), identifier)
            if not (candidate.barrier or candidate.copy):
                continue
            client = client_of(timestamp)
            if timestamp not in made:  # one operation may be on several objects
                made.add(timestamp)
                repairs[client] += 1
            own = sum(client_of(each.timestamp) == client for each in history)
            vouching = 1 if candidate.barrier else self.repairable  # any server shows a barrier
            if (
                len(history) > limits.HISTORY_CANDIDATES
                and own > limits.HISTORY_SHARE
                and elsewhere < vouching - self.byzantine
            ):
                self._find(
                    f"node {node} has {own} candidates of one client in a history of {len(history)}"
                )
        for client, number in repairs.items():
            self._spend(node, client, number, clock_us)

    def hosted(
        self, node: NodeId, clock_us: int, writes: Iterable[Write], *, fastest_us: int
    ) -> None:
        """`node` hosts more versions of blocks.

        What it has verified is complete, so that correct nodes took it when it was written; it may
        be ahead for this node, and must not be so for the one whose clock is the fastest.
        """
        for table, key, value in writes:
            if table is Table.BLOCK and value is not None:
                clock = fastest_us if value[0] & VERIFIED else clock_us
                self._require_sane(node, clock, block_time_of(key), key[:32])

    def parked(self, node: NodeId, total: int, most_of_one: int) -> None:
        """So many requests wait for object sync at `node`."""
        if total > limits.PARKED_REQUESTS or most_of_one > limits.PARKED_REQUESTS_OF_ONE:
            self._find(f"{total} requests wait at node {node}, {most_of_one} of one principal")

    def _require_sane(self, node: NodeId, clock_us: int, time_us: int, subject: bytes) -> None:
        ahead_us = time_us - clock_us
        if ahead_us > limits.CLOCK_SKEW_US:
            self._find(
                f"node {node} has accepted a time {ahead_us // 1_000} ms ahead of its clock, of "
                f"{subject.hex()[-6:]}"
            )

    def _spend(self, node: NodeId, client: ClientId, number: int, clock_us: int) -> None:
        most = float(limits.REPAIRS_BURST)
        left, since_us = self._allowances.get((node, client), (most, clock_us))
        earned = max(0, clock_us - since_us) * limits.REPAIRS_PER_SECOND / limits.SECOND_US
        left = min(most, left + earned) - number
        self._allowances[node, client] = (left, clock_us)
        if left < -1:  # the server counts in whole tokens
            self._find(f"node {node} has accepted {-left:.0f} repairs too many of one client")

    def _find(self, finding: str) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append("bounds: " + finding)
