"""What the replies of a round amount to: one tally for each kind of round of the client.

A tally takes one reply after the other, and says after each if it is enough, or if another server
should be asked. That is all it does: what follows from it is up to `client` and `repair`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from bftfs import limits
from bftfs.asking.quorum import Nodes, QuorumSystem
from bftfs.crypto.digest import answer_digest
from bftfs.errors import MalformedMessage
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.classification import OperationType
from bftfs.query_update.history import (
    ZERO,
    Known,
    LogicalTimestamp,
    client_of,
    decode_conditioned,
    is_barrier,
    parse_history,
    parse_set,
    timestamp_of,
)
from bftfs.query_update.messages import (
    DeduceReply,
    FetchReply,
    QueryReply,
    Status,
    UpdateReply,
    Verdict,
)
from bftfs.query_update.rounds import Plan, Rounds, Tally
from bftfs.wire.codec import Message

_SUCCESS, _UNKNOWN = Status.SUCCESS, Verdict.UNKNOWN  # a member of a class takes longer to find


class Answer(NamedTuple):
    """An answer as servers give it: comparable, whether it came whole or as its digest."""

    error: int
    large: bool
    content: bytes  # of a large answer, the digest

    @classmethod
    def given(cls, *, error: int, answer: bytes, whole: bool) -> Answer:
        """The answer in a reply."""
        if not whole:
            return cls(error, True, answer)
        if len(answer) > limits.ANSWER_INLINE_BYTES:
            return cls(error, True, answer_digest(answer))
        return cls(error, False, answer)


Choice = TypeVar("Choice", bound=Hashable)


class Votes(Generic[Choice]):
    """Answers, or whatever servers can differ in, and who gave them."""

    __slots__ = ("_quorums", "by", "wholes")

    def __init__(self, quorums: QuorumSystem) -> None:
        self._quorums = quorums
        self.by: dict[Choice, Nodes] = {}
        self.wholes: dict[Choice, bytes] = {}

    def add(self, node: NodeId, answer: Choice, content: bytes, *, whole: bool) -> Nodes:
        """Count a vote; all that voted alike so far."""
        if whole:
            self.wholes[answer] = content
        nodes = self.by[answer] = self.by.get(answer, 0) | 1 << node
        return nodes

    def agreed(self) -> Choice | None:
        """The answer that servers give that cannot all be malevolent."""
        for answer, nodes in self.by.items():
            if self._quorums.includes_benign(nodes):
                return answer
        return None

    def dissenters(self, answer: Choice) -> Nodes:
        """Those who gave another one."""
        nodes = 0
        for other, voters in self.by.items():
            if other != answer:
                nodes |= voters
        return nodes


class UpdateTally(Tally):
    """A round of updates, barriers or copies: which servers have accepted it."""

    expects = UpdateReply

    def __init__(self, rounds: Rounds, plan: Plan) -> None:
        self.rounds = rounds
        self.quorums = rounds.quorums
        self.plan = plan
        self.accepted: Nodes = 0
        self.failed: Nodes = 0
        self.refused: dict[int, Nodes] = {}
        self.insane: Nodes = 0  # those that found a time too far ahead
        self.overdrawn: Nodes = 0  # those that wait for older updates of this client
        self._contenders: dict[int, Nodes] = {}  # by how many there are, as these servers say
        self.answers: Votes[Answer] = Votes(self.quorums)
        self.refusal = 0
        self._expired = False
        self._reported: dict[tuple[bytes, ...], Nodes] = {}  # histories of those that accepted it

    @property
    def possible(self) -> Nodes:
        """The servers that may have accepted it: it may take effect yet."""
        ruled_out = self.failed
        for nodes in self.refused.values():
            ruled_out |= nodes
        return self.asking.asked & ~ruled_out

    @property
    def contenders(self) -> int | None:
        """How many others stand in the line, or are ahead in it; None if too few servers tell.

        The least number than which servers that cannot all be malevolent say there are no more.
        (Clients that come at the same moment are late in another order at each server: more than
        one may believe that it is next.)
        """
        nodes = 0
        for number in sorted(self._contenders):
            nodes |= self._contenders[number]
            if self.quorums.includes_benign(nodes):
                return number
        return None

    @property
    def complete(self) -> bool:
        """True if a quorum has accepted it: it is established."""
        return self.quorums.is_quorum(self.accepted) and not self._expired

    def expire(self) -> None:
        self._expired = True

    def take(self, node: NodeId, reply: UpdateReply) -> None:
        bit = 1 << node
        if self.rounds.learn(self.plan, node, reply) is None:
            self.failed |= bit
        elif reply.status is not _SUCCESS:
            self._take_failure(node, reply)
        else:
            self.accepted |= bit
            number, histories = reply.contenders, reply.histories
            self._contenders[number] = self._contenders.get(number, 0) | bit
            self._reported[histories] = self._reported.get(histories, 0) | bit
            if reply.whole or reply.answer:
                answer = Answer.given(error=0, answer=reply.answer, whole=reply.whole)
                self.answers.add(node, answer, reply.answer, whole=reply.whole)
        if self.complete or self.refusal:
            self.asking.enough()
        elif self.asking.waiting:
            self.asking.rest()
        else:
            self._go_on()

    def _take_failure(self, node: NodeId, reply: UpdateReply) -> None:
        status, bit = reply.status, 1 << node
        if status is Status.REFUSED:
            nodes = self.refused[reply.error] = self.refused.get(reply.error, 0) | bit
            if reply.error and self.quorums.is_quorum(nodes):
                self.refusal = reply.error
            return
        self.failed |= bit
        if status is Status.NOT_CURRENT:
            number = reply.contenders
            self._contenders[number] = self._contenders.get(number, 0) | bit
        elif status is Status.CULLED:
            self.rounds.peers.accuse(node, reply.forged | reply.insane, self.plan.now_us)
            if reply.insane:
                self.insane |= bit
        elif status is Status.INSANE_TIME:
            self.insane |= bit
        elif status is Status.TOO_MANY:
            self.overdrawn |= bit

    def hopes(self) -> bool:
        """If all that were not heard accepted it, it would be complete."""
        return self.quorums.is_quorum(self.accepted | self.asking.waiting)

    def _go_on(self) -> None:
        """All that were asked have answered: ask another one if a quorum can still agree."""
        unasked = (1 << self.quorums.n) - 1 & ~self.asking.asked
        for nodes in (self.accepted, *self.refused.values()):
            if nodes and self.quorums.is_quorum(nodes | unasked):
                self.asking.more()
                return
        self.asking.rest()

    def conclude(self) -> None:
        """Remember which servers failed it, or accepted it and report another latest candidate.

        To servers that accept it, an operation is the latest, whatever contention has left behind
        it. One that reports something else as its latest has accepted it in vain: repair follows.
        """
        peers = self.rounds.peers
        if not self.quorums.is_repairable(self.accepted):
            return
        if len(self._reported) == 1 and not self.failed:
            peers.conformed(self.accepted)
            return
        latest: dict[tuple[LogicalTimestamp, ...], Nodes] = {}
        for histories, nodes in self._reported.items():
            key = tuple(parse_history(history).latest for history in histories)
            latest[key] = latest.get(key, 0) | nodes
        alike = max(latest.values(), key=int.bit_count)
        peers.conformed(alike)
        for apart in (self.failed, self.accepted & ~alike):
            peers.diverged(apart, self.plan.now_us)
        for error, nodes in self.refused.items():
            # The method, its arguments and the version are the same everywhere: so is its answer.
            if error and self.quorums.includes_benign(alike):
                peers.convict(nodes, self.plan.now_us)


async def update_round(
    rounds: Rounds, message: Message, names: tuple[ObjectId, ...], *, subject: str
) -> UpdateTally:
    """Send one update, barrier or copy to a quorum for `names`, ascending."""
    plan = await rounds.plan(names)
    tally = await rounds.run(plan, message, UpdateTally(rounds, plan), subject=subject)
    tally.conclude()
    return tally


class QueryTally(Tally):
    """A round of queries: answers by the versions they were made on."""

    expects = QueryReply

    def __init__(self, rounds: Rounds, plan: Plan, wanted: tuple[LogicalTimestamp, ...]) -> None:
        self.rounds = rounds
        self.quorums = rounds.quorums
        self.plan = plan
        names = self.names = plan.names
        # By object, what servers report whose histories can be parsed.
        self.reported: dict[ObjectId, dict[NodeId, Known]] = {name: {} for name in names}
        self._wanted = wanted  # the versions that were asked for, if not the latest
        self._first: tuple[bytes, ...] = ()  # histories of the first reply
        self._heads: tuple[LogicalTimestamp, ...] = ()
        self._plain = False  # all of these end with object versions
        self._alike: Nodes = 0  # those that report the same histories
        self.votes: Votes[tuple[tuple[LogicalTimestamp, ...], Answer]] = Votes(self.quorums)
        self._reported: dict[tuple[LogicalTimestamp, ...], Nodes] = {}  # by their latest versions
        self.answer: Answer | None = None
        self.versions: tuple[LogicalTimestamp, ...] = ()  # the latest established ones
        self.disorderly: tuple[ObjectId, ...] = ()  # objects that need repair first
        self.unknown = False  # the histories of some object tell nothing: ask again
        self.deduced = False  # they may not all have been the latest at one moment
        self._hosting: Nodes = 0  # those that have the latest candidate of every object

    def take(self, node: NodeId, reply: QueryReply) -> None:
        learned = self.rounds.learn(self.plan, node, reply)
        if learned is not None:
            for name, known in zip(self.names, learned, strict=True):
                self.reported[name][node] = known
            heads = self._heads_in(reply.histories, node)
            if reply.verdict is not _UNKNOWN:
                deductions = self.rounds.observations.deductions
                deductions.state(heads[0], node, reply.verdict, reply.voucher)
            if reply.answered and self._is_simple(node, reply, heads):
                self.asking.enough()
                return
        if self.quorums.is_quorum(self.asking.answered):
            if self._evaluate():
                self.asking.enough()
            else:
                self.asking.more()

    def _heads_in(self, histories: tuple[bytes, ...], node: NodeId) -> tuple[LogicalTimestamp, ...]:
        """The latest object version in each of these histories."""
        if not self._first:
            self._first = histories
            parsed = [parse_history(history) for history in histories]
            self._heads = tuple(each.latest_object.timestamp for each in parsed)
            self._plain = not any(is_barrier(each.latest) for each in parsed)
        if histories == self._first:
            self._alike |= 1 << node
            return self._heads
        return tuple(parse_history(history).latest_object.timestamp for history in histories)

    def _is_simple(
        self, node: NodeId, reply: QueryReply, heads: tuple[LogicalTimestamp, ...]
    ) -> bool:
        """Count an answer; True if a quorum gives it and has the same latest candidates.

        [Q/U §4.3.2] These are complete then. (What was asked for of one object was the latest when
        it was asked for. Of several it must be the latest still, or they were not read together.)
        """
        answer = Answer.given(error=reply.error, answer=reply.answer, whole=reply.whole)
        key = (self._wanted or heads, answer)
        alike = self.votes.add(node, key, reply.answer, whole=reply.whole)
        self._reported[heads] = self._reported.get(heads, 0) | 1 << node
        if (
            self._plain
            and self.quorums.is_quorum(alike & self._alike)
            and (len(self.names) == 1 or key[0] == heads)
        ):
            self.answer, self.versions, self.disorderly = answer, key[0], ()
            return True
        return False

    def expire(self) -> None:
        self.answer, self.disorderly, self.unknown = None, (), True

    def _evaluate(self) -> bool:
        """True if the replies of a quorum contain the answer. [Q/U §4.3.5, Optimistic query]

        What is later than the latest candidate that is repairable or complete is incomplete: if
        that one is complete, it is the latest established, whatever is going on.
        """
        observations = self.rounds.observations
        heard = sum(1 << node for node in self.reported[self.names[0]])
        versions = []
        disorderly = []
        self.unknown = False
        self._hosting = heard
        for name in self.names:
            found = observations.survey(name, self.reported[name])
            timestamp = found.object_candidate.timestamp
            self._hosting &= found.nodes
            complete = self.quorums.is_quorum(found.nodes & heard)
            if timestamp == ZERO and not complete:
                # Histories that were reported at different moments, while others succeed, may have
                # nothing in common.
                self.unknown = True
            elif not complete and found.type is not OperationType.METHOD:
                # Complete by deduction alone is enough only if nothing later is seen: while others
                # succeed, a later established version may be pruned from all but a few histories.
                disorderly.append(name)
            versions.append(timestamp)
        self.versions = tuple(versions)
        self.disorderly = tuple(disorderly)
        # Several objects were read together only if a quorum has exactly these versions: two such
        # reads share a server, at which versions only grow. If not, a second round, whose replies
        # were all asked for after the first was over, has to find the same.
        exactly = self._reported.get(self.versions, 0)
        self.deduced = len(self.names) > 1 and not self.quorums.is_quorum(exactly)
        if disorderly or self.unknown:
            return False
        for (heads, answer), nodes in self.votes.by.items():
            if heads == self.versions and self.quorums.includes_benign(nodes):
                self.answer = answer
                return True
        return False

    def hopes(self) -> bool:
        """If all that were not heard had the latest candidate, it would be complete.

        A server that is late is no reason to repair what those who wrote it have finished.
        """
        return self.quorums.is_quorum(self._hosting | self.asking.waiting)

    def conclude(self) -> None:
        """Remember servers that answer differently, or report what no other server has."""
        if self.answer is None:
            return
        peers = self.rounds.peers
        for (versions, answer), nodes in self.votes.by.items():
            if versions == self.versions and answer != self.answer:
                peers.convict(nodes, self.plan.now_us)
        if self.quorums.is_quorum(self._alike):
            peers.conformed(self._alike)
            apart = self.asking.answered & ~self._alike
            if not apart:
                return
        ahead = 0
        for name, version in zip(self.names, self.versions, strict=True):
            for node, known in self.reported[name].items():
                if parse_history(known.history).latest > version:
                    ahead |= 1 << node
        peers.diverged(ahead, self.plan.now_us)
        if not self.quorums.is_quorum(self._alike):
            peers.conformed(self.asking.answered & ~ahead)


class WholeTally(Tally):
    """An answer of which the digest is known, from whichever server gives it."""

    expects = QueryReply | UpdateReply

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.content: bytes | None = None

    def take(self, node: NodeId, reply: QueryReply | UpdateReply) -> None:
        given = Answer.given(error=reply.error, answer=reply.answer, whole=reply.whole)
        if reply.whole and given == self._answer:
            self.content = reply.answer
            self.asking.enough()
        elif not self.asking.waiting:
            self.asking.more()


class HistoriesTally(Tally):
    """Replica histories from a quorum."""

    expects = QueryReply

    def __init__(self, rounds: Rounds, plan: Plan) -> None:
        self._rounds = rounds
        self._plan = plan

    def take(self, node: NodeId, reply: QueryReply) -> None:
        self._rounds.learn(self._plan, node, reply)
        if self._rounds.quorums.is_quorum(self.asking.answered):
            self.asking.enough()


class DeduceTally(Tally):
    """What servers know of a candidate: enough of them to believe it, or all of a quorum."""

    expects = DeduceReply

    def __init__(self, rounds: Rounds, timestamp: LogicalTimestamp) -> None:
        self._rounds = rounds
        self._timestamp = timestamp

    def take(self, node: NodeId, reply: DeduceReply) -> None:
        deductions = self._rounds.observations.deductions
        deductions.state(self._timestamp, node, reply.verdict, reply.voucher)
        if self._rounds.quorums.is_quorum(self.asking.answered):
            if self._timestamp in deductions.facts:
                self.asking.enough()
            else:
                self.asking.more()


class ChainTally(Tally):
    """If an operation is in the chain of a version, and with what answer."""

    expects = DeduceReply

    def __init__(self, quorums: QuorumSystem) -> None:
        self._quorums = quorums
        self._dead: Nodes = 0
        self._answers: Votes[Answer] = Votes(quorums)
        self.verdict = Verdict.UNKNOWN
        self.answer = b""

    def take(self, node: NodeId, reply: DeduceReply) -> None:
        if reply.verdict is Verdict.DEAD:
            self._dead |= 1 << node
            if self._quorums.includes_benign(self._dead):
                self.verdict = Verdict.DEAD
        elif reply.verdict is Verdict.ESTABLISHED:
            answer = Answer.given(error=0, answer=reply.answer, whole=reply.whole)
            self._answers.add(node, answer, reply.answer, whole=reply.whole)
            agreed = self._answers.agreed()
            if agreed is not None and agreed in self._answers.wholes:
                self.verdict = Verdict.ESTABLISHED
                self.answer = self._answers.wholes[agreed]
        if self.verdict is not Verdict.UNKNOWN:
            self.asking.enough()
        elif not self.asking.waiting:
            self.asking.more()


class FetchTally(Tally):
    """The original request, from whichever server has it."""

    expects = FetchReply

    def __init__(self, timestamp: LogicalTimestamp, *, n: int) -> None:
        self._timestamp = timestamp
        self._n = n
        self.conditioned: bytes | None = None

    def take(self, node: NodeId, reply: FetchReply) -> None:
        if self._is_original(reply.conditioned):
            self.conditioned = reply.conditioned
            self.asking.enough()
        elif not self.asking.waiting:
            self.asking.more()

    def _is_original(self, encoded: bytes) -> bool:
        """True if the timestamp stands for this very request."""
        try:
            conditioned = decode_conditioned(encoded)
            sets = [parse_set(each, n=self._n) for each in conditioned.sets]
        except MalformedMessage:
            return False
        author = client_of(self._timestamp)
        return timestamp_of(conditioned, encoded, sets, author) == self._timestamp
