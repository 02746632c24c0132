"""Bundles: one query of each of many objects, in one message to each server of a quorum.

**Situation.** A program looks at one file after the other, and each costs a round. Nearly always
nothing happens to these files meanwhile.

**Rule.** Each query of a bundle is judged by itself, and its answer counts in one case only: a
quorum of servers give it, and all of these report the same replica history of its object, the
latest candidate of which is no barrier. [Q/U §4.3.2] That is the first rule of `rounds.QueryTally`,
word for word. Whatever else there may be (a repair, a deduction, a digest, a server that does not
answer), is left to an ordinary query of that object.

**Why it is safe.** A server answers each query as if it had come alone; that other queries are in
the same message changes neither the answer nor what is counted. Nothing is said of two objects at
one moment. docs/protocols-query-update.md has the argument step by step.

**Tests.** `tests/unit/query_update/test_bundle.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from bftfs.asking.ask import Asking
from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.history import LogicalTimestamp, is_barrier, parse_history
from bftfs.query_update.messages import Bundle, BundleReply
from bftfs.query_update.rounds import Plan, Rounds


class Vote(NamedTuple):
    """A server's answer for one object, and the replica history that it was given on."""

    history: bytes
    error: int
    answer: bytes

    @property
    def version(self) -> LogicalTimestamp:
        """The version that the answer was given on."""
        return parse_history(self.history).latest_object.timestamp


class BundleTally:
    """A round of bundles: for each object, which servers say the same."""

    def __init__(self, rounds: Rounds, plan: Plan) -> None:
        self.agreed: dict[ObjectId, Vote] = {}  # what counts
        self._rounds = rounds
        self._quorums = rounds.quorums
        self._plan = plan
        self._votes: dict[ObjectId, dict[Vote, Nodes]] = {name: {} for name in plan.names}
        self._heard = NOBODY  # servers whose replies are well-formed

    def take(self, asking: Asking, node: NodeId, reply: BundleReply) -> None:
        """Count the reply of one server."""
        if self._learn(node, reply):
            self._heard = self._heard.plus(node)
        if len(self.agreed) == len(self._plan.names):
            asking.enough()
        elif self._quorums.is_quorum(asking.answered):
            asking.more()

    def _learn(self, node: NodeId, reply: BundleReply) -> bool:
        """Count its answers. False if no correct server replies like that."""
        positions, names = reply.positions, self._plan.names
        columns = reply.histories, reply.errors, reply.answers
        if (
            sorted(set(positions)) != list(positions)
            or (positions and positions[-1] >= len(names))
            or any(len(column) != len(positions) for column in columns)
        ):
            self._rounds.peers.convict(Nodes.of([node]), self._plan.now_us)
            return False
        if not positions:
            return True
        told = tuple([names[position] for position in positions])
        if self._rounds.learn(self._plan._replace(names=told), node, reply) is None:
            return False
        is_quorum = self._quorums.is_quorum
        for name, vote in zip(told, map(Vote, *columns), strict=True):
            votes = self._votes[name]
            alike = votes[vote] = votes.get(vote, NOBODY).plus(node)
            # A barrier that follows the version in the history is not complete: it needs repair.
            if is_quorum(alike) and not is_barrier(parse_history(vote.history).latest):
                self.agreed[name] = vote
        return True

    def conclude(self) -> None:
        """Remember servers that answer differently, or report what no other server has.

        Those that leave out what a quorum tells are asked last, like silent ones: otherwise each
        bundle would have to ask others in their place.
        """
        if self._rounds.is_outdated(self._plan):
            self.agreed = {}
            return
        lying = ahead = withholding = NOBODY
        for name, agreed in self.agreed.items():
            votes = self._votes[name]
            telling = NOBODY
            for nodes in votes.values():
                telling |= nodes
            withholding |= self._heard - telling
            if len(votes) == 1:
                continue
            latest = parse_history(agreed.history).latest
            for vote, nodes in votes.items():
                if vote.version == agreed.version and vote[1:] != agreed[1:]:
                    lying |= nodes
                if parse_history(vote.history).latest > latest:
                    ahead |= nodes
        peers, now_us = self._rounds.peers, self._plan.now_us
        peers.convict(lying, now_us)
        peers.diverged(ahead, now_us)
        for node in withholding:
            peers.silent(node, now_us)
        if self.agreed:
            peers.conformed(self._heard - lying - ahead - withholding)


async def ask_bundle(rounds: Rounds, message: Bundle) -> dict[ObjectId, Vote]:
    """The answers that count, by object; the objects have one preferred quorum."""
    plan = await rounds.plan(message.objects)
    tally = BundleTally(rounds, plan)
    await rounds.run(
        plan,
        message,
        BundleReply,
        tally.take,
        subject=message.method,
        pace=rounds.peers.bundles,
    )
    tally.conclude()
    return tally.agreed
