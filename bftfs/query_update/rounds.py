"""One round of requests to the servers, and what the replies amount to. [Q/U §4.3.4, c_quorum_rpc]

A round judges each reply as it comes. It never believes a single server: an answer counts when
servers give it that cannot all be malevolent, a rejection likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import UnionType
from typing import Any, Generic, NamedTuple, TypeVar

from bftfs import limits
from bftfs.asking.ask import Asking
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes, QuorumSystem
from bftfs.conversation import Now, Send
from bftfs.crypto.digest import answer_digest
from bftfs.identifiers import NodeId, ObjectId, placement_of
from bftfs.query_update.history import Known, LogicalTimestamp, parse_history
from bftfs.query_update.messages import PastReply, QueryReply, Status, UpdateReply
from bftfs.query_update.observation import Observations
from bftfs.wire.codec import Message

_FAILURES_ALONE = 3  # after so many, servers that are ahead of the clock are heard, if needed
_DOUBT_US = 2 * limits.SECOND_US  # of the own clock, where nobody has said that it is wrong


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
        """Count a vote; all who voted alike so far."""
        if whole:
            self.wholes[answer] = content
        return self.count(node, answer)

    def count(self, node: NodeId, choice: Choice) -> Nodes:
        """Count a vote for anything; all who voted alike so far."""
        nodes = self.by[choice] = self.by.get(choice, 0) | 1 << node
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


class Plan(NamedTuple):
    """Whom a round asks, in which order."""

    names: tuple[ObjectId, ...]
    order: tuple[NodeId, ...]
    probes: tuple[NodeId, ...]
    now_us: int


class Tally:
    """What the replies of one round amount to.

    After each reply it tells `asking` how to go on; it may be read when the round is over.
    """

    expects: type | UnionType  # the replies that are counted; any other is a refusal
    asking: Asking  # set when the round begins

    def take(self, node: NodeId, reply: Any) -> None:
        """Count the reply of one server."""
        raise NotImplementedError

    def hopes(self) -> bool:
        """True if those that have not answered could, together, bring what is sought."""
        return False

    def expire(self) -> None:
        """The round has lasted too long: of those heard first, some may have lost their store.

        What a server has accepted and forgotten counts only in rounds of before; when they are
        over, it asks its peers what has become of it. `healing` has the rule.
        """


T = TypeVar("T", bound=Tally)


class Rounds:
    """How a client asks: in which order, how long, and what it remembers of the replies."""

    __slots__ = ("observations", "patience_total_us", "peers", "quorums")

    def __init__(
        self, peers: Peers, observations: Observations, *, patience_total_us: int | None
    ) -> None:
        self.quorums = peers.quorums
        self.observations = observations
        self.peers = peers
        self.patience_total_us = patience_total_us

    async def plan(self, names: tuple[ObjectId, ...]) -> Plan:
        """Whom to ask about `names`, ascending. The highest object's preferred quorum comes first.

        [Q/U §4.3.5, Quorum access strategy and probing; §4.3.7]
        """
        now_us = await Now()
        order, probes = self.peers.order(self.quorums.preference(placement_of(names[-1])), now_us)
        ahead = self.observations.ahead_of_clock(names)
        if ahead:  # what they accept is not counted
            order = tuple(sorted(order, key=lambda node: ahead >> node & 1))
        return Plan(names, order, probes, now_us)

    async def run(
        self,
        plan: Plan,
        message: Message | Callable[[NodeId], Message],
        tally: T,
        *,
        subject: str,
        first: int | None = None,
        suffices: Callable[[], bool] | None = None,
    ) -> T:
        """Send `message` to a quorum, and to others as `tally` or silence require."""
        each = None if isinstance(message, Message) else message

        def request(node: NodeId) -> Send:
            return Send(node, message if each is None else each(node))

        asking = tally.asking = Asking(
            self.peers,
            plan.order,
            request,
            subject=subject,
            now_us=plan.now_us,
            first=first,
            probes=plan.probes,
            hopes=tally.hopes,
            suffices=suffices,
            patience_total_us=self.patience_total_us,
        )
        take, expects = tally.take, tally.expects
        async for reply in asking:
            if isinstance(reply.message, expects):
                take(reply.node, reply.message)
            else:
                asking.refused(reply)
        if not 0 <= await Now() - plan.now_us <= limits.COUNTED_US:
            tally.expire()
        return tally

    def learn(
        self,
        names: tuple[ObjectId, ...],
        node: NodeId,
        reply: QueryReply | UpdateReply | PastReply,
        now_us: int,
    ) -> list[Known] | None:
        """Remember the reported histories; what is known of each object at `node` then.

        None if the reply is not what was asked for.
        """
        histories, authenticators = reply.histories, reply.authenticators
        learned = []
        if len(histories) == len(authenticators) == len(names):
            learn = self.observations.learn
            for name, history, authenticator in zip(names, histories, authenticators, strict=True):
                known = learn(name, node, history, authenticator, now_us)
                if known is None:
                    break
                learned.append(known)
            else:
                return learned
        self.peers.convict(1 << node, now_us)
        return None

    def failed(self, failures: int, disbelieved: Nodes, ahead: Nodes = 0, now_us: int = 0) -> None:
        """So many attempts in a row have failed, the last one while these were disbelieved.

        Servers that are `ahead` of the clock may be needed, too, where the others are not enough.
        """
        self.peers.failed(failures, disbelieved)
        needed = ahead and not self.peers.quorum_willing(without=ahead)
        if needed and failures % _FAILURES_ALONE == 0:
            self.observations.doubt_clock(now_us + _DOUBT_US)


class UpdateTally(Tally):
    """A round of updates, barriers or copies: which servers have accepted it."""

    expects = UpdateReply

    def __init__(self, rounds: Rounds, plan: Plan) -> None:
        self.rounds = rounds
        self.quorums = rounds.quorums
        self.names = plan.names
        self.now_us = plan.now_us
        self.accepted: Nodes = 0
        self.failed: Nodes = 0
        self.refused: dict[int, Nodes] = {}
        self.insane: Nodes = 0  # that found a time too far ahead
        self.overdrawn: Nodes = 0
        self._contenders: dict[int, Nodes] = {}  # who says how many there are
        self.answers: Votes[Answer] = Votes(self.quorums)
        self.refusal = 0
        self._expired = False
        self._reported: dict[tuple[bytes, ...], Nodes] = {}  # who, having accepted it, has these

    @property
    def possible(self) -> Nodes:
        """The servers that may have accepted it."""
        ruled_out = self.failed
        for nodes in self.refused.values():
            ruled_out |= nodes
        return self.asking.asked & ~ruled_out

    @property
    def contenders(self) -> int | None:
        """How many others stand in the line, or are ahead in it, by those who say the fewest.

        Servers that cannot all be malevolent say that there are no more; None if too few say
        anything. (Who comes at the same moment is late in another order at each server: more than
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
        """Whether a quorum has accepted it: it is established."""
        return self.quorums.is_quorum(self.accepted) and not self._expired

    def expire(self) -> None:
        self._expired = True

    def take(self, node: NodeId, reply: UpdateReply) -> None:
        asking, bit = self.asking, 1 << node
        if self.rounds.learn(self.names, node, reply, self.now_us) is None:
            self.failed |= bit
            self._go_on()
            return
        status = reply.status
        if status is Status.SUCCESS or status is Status.NOT_CURRENT:
            number = reply.contenders
            self._contenders[number] = self._contenders.get(number, 0) | bit
        if status is Status.SUCCESS:
            self.accepted |= bit
            histories = reply.histories
            self._reported[histories] = self._reported.get(histories, 0) | bit
            if reply.whole or reply.answer:
                answer = Answer.given(error=0, answer=reply.answer, whole=reply.whole)
                self.answers.add(node, answer, reply.answer, whole=reply.whole)
            if self.complete:
                asking.enough()
                return
        elif status is Status.REFUSED:
            nodes = self.refused[reply.error] = self.refused.get(reply.error, 0) | bit
            if reply.error and self.quorums.is_quorum(nodes):
                self.refusal = reply.error
                asking.enough()
                return
        else:
            self.failed |= bit
            if status is Status.CULLED:
                self.rounds.peers.accuse(node, reply.forged | reply.insane, self.now_us)
            if status is Status.INSANE_TIME or (status is Status.CULLED and reply.insane):
                self.insane |= bit
            elif status is Status.TOO_MANY:
                self.overdrawn |= bit
        self._go_on()

    def hopes(self) -> bool:
        """If all that were not heard accepted it, it would be complete."""
        return self.quorums.is_quorum(self.accepted | self.asking.waiting)

    def _go_on(self) -> None:
        """Once all that were asked have answered: can a quorum still accept, or refuse, it?"""
        asking = self.asking
        unasked = (1 << self.quorums.n) - 1 & ~asking.asked
        if not asking.waiting and any(
            nodes and self.quorums.is_quorum(nodes | unasked)
            for nodes in (self.accepted, *self.refused.values())
        ):
            asking.more()
        else:
            asking.rest()

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
            peers.diverged(apart, self.now_us)
        for error, nodes in self.refused.items():
            # The method, its arguments and the version are the same everywhere: so is its answer.
            if error and self.quorums.includes_benign(alike):
                peers.convict(nodes, self.now_us)


async def update_round(
    rounds: Rounds, message: Message, names: tuple[ObjectId, ...], *, subject: str
) -> UpdateTally:
    """Send one update, barrier or copy to a quorum for `names`, ascending."""
    plan = await rounds.plan(names)
    tally = await rounds.run(plan, message, UpdateTally(rounds, plan), subject=subject)
    tally.conclude()
    return tally
