"""Rounds: a request to a quorum of servers, and what their replies amount to.

[Q/U §4.3.4, c_quorum_rpc] `Rounds.plan` chooses the servers; `Rounds.run` sends the request and
gives each reply to a function, which tells the `Asking` how to go on. A tally counts the replies of
a round of updates or queries: what follows from it is up to `client` and `repair`. No server is
believed alone: an answer counts when servers give it that cannot all be malevolent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import UnionType
from typing import Any, Generic, NamedTuple, TypeVar

from bftfs import limits
from bftfs.asking.ask import Asking
from bftfs.asking.lives import Lives, Told
from bftfs.asking.peers import Pace, Peers
from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.conversation import Delivery, Now, Send
from bftfs.crypto.digest import answer_digest, authenticator_bytes, life_of, lives_in
from bftfs.identifiers import NodeId, ObjectId, placement_of
from bftfs.query_update.classification import OperationType
from bftfs.query_update.history import (
    ZERO,
    Known,
    LogicalTimestamp,
    is_barrier,
    parse_history,
)
from bftfs.query_update.messages import (
    BundleReply,
    InlineBarrier,
    InlineUpdate,
    PastReply,
    QueryReply,
    Status,
    Update,
    UpdateReply,
    Verdict,
    addressed,
)
from bftfs.query_update.observation import Observations
from bftfs.wire.codec import Message

_SUCCESS, _UNKNOWN = Status.SUCCESS, Verdict.UNKNOWN  # a member of a class takes longer to find

Take = Callable[[Asking, NodeId, Any], None]  # what the reply of one server amounts to


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
    """Answers, or anything else in which servers can differ, and the servers that gave each."""

    __slots__ = ("_quorums", "by", "wholes")

    def __init__(self, quorums: QuorumSystem) -> None:
        self._quorums = quorums
        self.by: dict[Choice, Nodes] = {}
        self.wholes: dict[Choice, bytes] = {}

    def add(self, node: NodeId, answer: Choice, content: bytes, *, whole: bool) -> Nodes:
        """Count a vote; all that voted alike so far."""
        if whole:
            self.wholes[answer] = content
        nodes = self.by[answer] = self.by.get(answer, NOBODY).plus(node)
        return nodes

    def agreed(self) -> Choice | None:
        """The answer that servers give that cannot all be malevolent."""
        for answer, nodes in self.by.items():
            if self._quorums.includes_benign(nodes):
                return answer
        return None

    def dissenters(self, answer: Choice) -> Nodes:
        """The servers that gave another answer."""
        nodes = NOBODY
        for other, voters in self.by.items():
            if other != answer:
                nodes |= voters
        return nodes


class Plan(NamedTuple):
    """The servers that a round asks, in their order."""

    names: tuple[ObjectId, ...]
    order: tuple[NodeId, ...]
    probes: tuple[NodeId, ...]
    now_us: int
    began: int  # its moment, for `lives`
    heard: dict[NodeId, Told]  # what those whose replies count tell of lives


class Rounds:
    """How a client asks: in which order, how long, and what it remembers of the replies."""

    __slots__ = (
        "_alike",
        "_changed",
        "_first",
        "_plain_bytes",
        "_told",
        "lives",
        "observations",
        "patience_total_us",
        "peers",
        "quorums",
    )

    def __init__(
        self,
        peers: Peers,
        observations: Observations,
        *,
        patience_total_us: int | None,
        first: Nodes = NOBODY,
    ) -> None:
        """Those in `first` are asked before the preferred quorum, whatever is asked."""
        self.quorums = peers.quorums
        self._first = first
        self.observations = observations
        self.peers = peers
        self.patience_total_us = patience_total_us
        self.lives = Lives()
        self._plain_bytes = authenticator_bytes(self.quorums.n)
        self._told: dict[NodeId, Told] = {}  # what each server has told of lives last…
        self._alike = True  # …True if all of them tell the same…
        self._changed = 0  # …and the moment when one of them told something new

    async def plan(self, names: tuple[ObjectId, ...], first: Nodes = NOBODY) -> Plan:
        """The servers to ask about `names`, ascending: the highest one's preferred quorum first.

        [Q/U §4.3.5, Quorum access strategy and probing; §4.3.7] Before it, those in `first`.
        """
        now_us = await Now()
        first |= self._first
        order, probes = self.peers.order(self.quorums.preference(placement_of(names[-1])), now_us)
        ahead = self.observations.ahead_of_clock(names)
        if ahead:  # what they accept is not counted
            order = tuple(sorted(order, key=lambda node: node in ahead))
        if first:
            order = tuple(sorted(order, key=lambda node: node not in first))
        return Plan(names, order, probes, now_us, self.lives.begin(), {})

    async def run(
        self,
        plan: Plan,
        message: Message | Callable[[NodeId], Message],
        expects: type | UnionType,
        take: Take,
        *,
        subject: str,
        first: int | None = None,
        hopes: Callable[[Nodes], bool] | None = None,
        suffices: Callable[[Nodes], bool] | None = None,
        pace: Pace | None = None,
    ) -> Asking:
        """Send `message` to a quorum, and to others as `take` or silence require.

        `take` is given the replies that are of the type `expects`; any other is a refusal.
        """
        each = None if isinstance(message, Message) else message

        def request(node: NodeId) -> Send:
            return Send(node, message if each is None else each(node))

        def heard(reply: Delivery) -> None:
            if isinstance(reply.message, expects):
                take(asking, reply.node, reply.message)
            else:
                asking.refused(reply)

        asking = Asking(
            self.peers,
            plan.order,
            request,
            subject=subject,
            now_us=plan.now_us,
            first=first,
            probes=plan.probes,
            hopes=hopes,
            suffices=suffices,
            pace=pace,
            patience_total_us=self.patience_total_us,
        )
        await asking.collect(heard)
        return asking

    def learn(
        self, plan: Plan, node: NodeId, reply: QueryReply | UpdateReply | PastReply | BundleReply
    ) -> list[Known] | None:
        """Remember the reported histories. Returns what is known of each object at `node` then.

        None if no correct node replies like that, or if it has begun a new life since then.
        """
        names, histories, authenticators = plan.names, reply.histories, reply.authenticators
        lives = reply.lives
        if len(histories) == len(authenticators) == len(names) and len(lives) == self.quorums.n:
            if max(map(len, authenticators)) > self._plain_bytes:
                lives = self._lives_told(node, lives, authenticators)
            if lives != self._told.get(node) and not self._hear(node, lives, plan.now_us):
                return None
            plan.heard[node] = lives
            learned: list[Known] = []
            learn, now_us = self.observations.learn, plan.now_us
            for name, history, authenticator in zip(names, histories, authenticators, strict=True):
                if history and life_of(authenticator) != lives[node]:
                    break
                known = learn(name, node, history, authenticator, now_us)
                if known is None:
                    break
                learned.append(known)
            else:
                return learned
        self.peers.convict(Nodes.of([node]), plan.now_us)
        return None

    def _lives_told(self, node: NodeId, lives: Told, authenticators: tuple[bytes, ...]) -> Told:
        """The lives that a server knows of, as its reply and its authenticators tell.

        After a restart a server may not remember a life that it has heard of without proof.
        """
        for authenticator in authenticators:
            known = lives_in(authenticator, len(lives))
            if len(known) == len(lives):
                lives = tuple(map(max, lives, (*known[:node], 0, *known[node + 1 :])))
        return lives

    def _hear(self, node: NodeId, lives: Told, now_us: int) -> bool:
        """Forget what servers reported in earlier lives; False if this is of an earlier one."""
        before = self._told.get(node, lives)
        if lives[node] < before[node]:
            return False
        if lives[node] > before[node]:  # a liar could take back what it has accepted, for ever
            self.peers.diverged(Nodes.of([node]), now_us)
        self._told[node] = lives
        self._alike = len(set(self._told.values())) == 1
        self._changed = self.lives.begin()
        self._believe()
        return True

    def _believe(self) -> None:
        """Each server lives the latest life that it tells, or others who are not known to lie."""
        told, believes = self._told, self.lives.believes
        self.observations.believe(
            tuple(
                max(
                    (
                        lives[maker]
                        for node, lives in told.items()
                        if node == maker or believes(node, NodeId(maker))
                    ),
                    default=0,
                )
                for maker in range(self.quorums.n)
            )
        )

    def denied(self, claimant: NodeId, lives: Told) -> Nodes:
        """The servers that have answered in an earlier life than `claimant` says they have begun.

        One of the two lies: a correct server that has shown somebody a life answers in it.
        """
        return Nodes.of(
            maker
            for maker, told in self._told.items()
            if told[maker] < lives[maker] and not self.lives.believes(claimant, maker)
        )

    def is_outdated(self, plan: Plan) -> bool:
        """True if servers know that some that were heard have begun new lives since then.

        Then the round does not count.
        """
        if self._alike and self._changed < plan.began:
            return False  # all that were heard tell the same as all others
        lives = self.lives
        refuted = lives.refuted
        agree = lives.agree(plan.heard, plan.began, self._told)
        if lives.refuted != refuted:
            self._believe()
        return not agree


class UpdateTally:
    """A round of updates, barriers or copies: which servers have accepted it."""

    # Class attributes, since most rounds never change them: so they cost no time in `__init__`.
    failed: Nodes = NOBODY
    insane: Nodes = NOBODY  # those that found a time too far ahead
    _doubting: Nodes = NOBODY  # those that culled something, and accuse nobody
    unvouched: Nodes = NOBODY  # those to which too few vouch for what the method rests on
    overdrawn: Nodes = NOBODY  # those that wait for older updates of this client
    _accusing: tuple[tuple[NodeId, Nodes], ...] = ()  # …and whose vouchers they say are forged
    refusal = 0
    is_outdated = False

    def __init__(self, rounds: Rounds, plan: Plan) -> None:
        self.rounds = rounds
        self.quorums = rounds.quorums
        self.plan = plan
        self.accepted = NOBODY
        self.refused: dict[int, Nodes] = {}
        self._contenders: dict[NodeId, int] = {}  # how many there are, as each server says
        self.answers: Votes[Answer] = Votes(self.quorums)
        self._reported: dict[NodeId, tuple[bytes, ...]] = {}  # histories where it was accepted

    @property
    def contenders(self) -> int | None:
        """How many others stand in the line, or are ahead in it; None if too few servers tell.

        It is the smallest number that is not exceeded at b + 1 servers, one of which is benign.
        (Clients that come at the same moment are late in another order at each server: more than
        one may believe that it is next.)
        """
        told = self._contenders
        if not any(told.values()) and self.quorums.includes_benign(self.accepted):
            return 0
        for number in sorted(set(told.values())):
            nodes = Nodes.of([node for node in told if told[node] <= number])
            if self.quorums.includes_benign(nodes):
                return number
        return None

    @property
    def complete(self) -> bool:
        """True if a quorum has accepted it: it is established."""
        return self.quorums.is_quorum(self.accepted) and not self.is_outdated

    @property
    def fails_for_vouchers(self) -> bool:
        """True if benign servers have failed it because too few vouchers are valid.

        Without those that may all be lying it is complete, or it can be repaired: that needs no
        vouchers.
        """
        return self.quorums.includes_benign(self.unvouched) and not self.complete

    def take(self, asking: Asking, node: NodeId, reply: UpdateReply) -> None:
        """Count the reply of one server."""
        if self.rounds.learn(self.plan, node, reply) is None:
            self.failed = self.failed.plus(node)
        elif reply.status is not _SUCCESS:
            self._take_failure(node, reply)
        else:
            self.accepted = self.accepted.plus(node)
            self._contenders[node] = reply.contenders
            self._reported[node] = reply.histories
            if reply.whole or reply.answer:
                answer = Answer.given(error=0, answer=reply.answer, whole=reply.whole)
                self.answers.add(node, answer, reply.answer, whole=reply.whole)
        if self.complete or self.refusal:
            asking.enough()
        elif not asking.is_waiting and self._can_agree(asking.asked):
            asking.more()
        else:
            asking.rest()

    def _take_failure(self, node: NodeId, reply: UpdateReply) -> None:
        status = reply.status
        if status is Status.REFUSED:
            nodes = self.refused.get(reply.error, NOBODY).plus(node)
            self.refused[reply.error] = nodes
            if reply.error and self.quorums.is_quorum(nodes):
                self.refusal = reply.error
            return
        self.failed = self.failed.plus(node)
        if status is Status.NOT_CURRENT:
            self._contenders[node] = reply.contenders
        elif status is Status.CULLED:
            forged = Nodes.known(reply.forged) | self.rounds.denied(node, reply.lives)
            insane = Nodes.known(reply.insane)
            self.rounds.peers.accuse(node, forged, self.plan.now_us, insane=insane)
            self._take_doubt(node, forged | insane)
            if reply.insane:
                self.insane = self.insane.plus(node)
        elif status is Status.UNVOUCHED:
            self.unvouched = self.unvouched.plus(node)
            forged = Nodes.known(reply.forged)
            if forged and not self.quorums.includes_benign(forged):
                self._accusing = (*self._accusing, (node, forged))
        elif status is Status.INSANE_TIME:
            self.insane = self.insane.plus(node)
        elif status is Status.TOO_MANY:
            self.overdrawn = self.overdrawn.plus(node)

    def _take_doubt(self, node: NodeId, accused: Nodes) -> None:
        """A server accuses nobody: it may be in doubt whether what it was shown counts together."""
        if accused:
            return
        before, self._doubting = self._doubting, self._doubting.plus(node)
        includes_benign = self.quorums.includes_benign
        if includes_benign(self._doubting) and not includes_benign(before):
            for name in self.plan.names:
                self.rounds.observations.leave_out_doubted(name)

    def hopes(self, waiting: Nodes) -> bool:
        """True if it would be complete once all `waiting` servers accept it."""
        return self.quorums.is_quorum(self.accepted | waiting)

    def _can_agree(self, asked: Nodes) -> bool:
        """True if a quorum may still agree, once servers are asked that were not yet."""
        unasked = self.quorums.everyone - asked
        return any(
            nodes and self.quorums.is_quorum(nodes | unasked)
            for nodes in (self.accepted, *self.refused.values())
        )

    def conclude(self) -> None:
        """Remember which servers failed it, or accepted it and report another latest candidate.

        What servers say of forged vouchers counts if the update has failed for that. Otherwise a
        liar could say it, and have the client leave out a server that is needed.

        At a server that accepts it, the operation is the latest candidate, whatever contention has
        left before it. A server that reports another one has accepted it in vain: repair follows.
        """
        peers = self.rounds.peers
        if self.fails_for_vouchers:
            for accuser, forged in self._accusing:
                peers.accuse(accuser, forged, self.plan.now_us)
        if not self.quorums.is_repairable(self.accepted):
            return
        if self.failed is NOBODY and len(set(self._reported.values())) == 1:
            peers.conformed(self.accepted)
            return
        latest: dict[tuple[LogicalTimestamp, ...], Nodes] = {}
        for node, histories in self._reported.items():
            key = tuple(parse_history(history).latest for history in histories)
            latest[key] = latest.get(key, NOBODY).plus(node)
        alike = max(latest.values(), key=len)
        peers.conformed(alike)
        for apart in (self.failed, self.accepted - alike):
            peers.diverged(apart, self.plan.now_us)
        for error, nodes in self.refused.items():
            # The method, its arguments and the version are the same everywhere: so is its answer.
            if error and self.quorums.includes_benign(alike):
                peers.convict(nodes, self.plan.now_us)


async def update_round(
    rounds: Rounds, plan: Plan, message: Update | InlineUpdate | InlineBarrier, subject: str
) -> UpdateTally:
    """Send one update, barrier or copy to a quorum: to each server with its own entries."""
    tally = UpdateTally(rounds, plan)
    to_each = addressed(message, rounds.quorums.n)
    await rounds.run(plan, to_each, UpdateReply, tally.take, subject=subject, hopes=tally.hopes)
    tally.is_outdated = rounds.is_outdated(plan)
    tally.conclude()
    return tally


class QueryTally:
    """A round of queries: answers by the versions they were made on."""

    # Class attributes, since most rounds change few of them.
    answer: Answer | None = None
    versions: tuple[LogicalTimestamp, ...] = ()  # the latest established ones
    disorderly: tuple[ObjectId, ...] = ()  # objects that need repair first
    unknown = False  # the histories of some object have nothing in common: ask again
    deduced = False  # the versions may not all have been the latest at one moment
    _hosting: Nodes = NOBODY  # those that have the latest candidate of every object
    _first: tuple[bytes, ...] = ()  # histories of the first reply
    _heads: tuple[LogicalTimestamp, ...] = ()
    _plain = False  # all of these end with object versions

    def __init__(self, rounds: Rounds, plan: Plan, wanted: tuple[LogicalTimestamp, ...]) -> None:
        self.rounds = rounds
        self.quorums = rounds.quorums
        self.plan = plan
        names = self.names = plan.names
        # By object: the reports of servers, if their histories can be parsed.
        self.reported: dict[ObjectId, dict[NodeId, Known]] = {name: {} for name in names}
        self._wanted = wanted  # the versions that were asked for, if not the latest
        self._alike = NOBODY  # those that report the same histories
        self.votes: Votes[tuple[tuple[LogicalTimestamp, ...], Answer]] = Votes(self.quorums)
        self._answered: dict[NodeId, tuple[LogicalTimestamp, ...]] = {}  # their latest versions

    def take(self, asking: Asking, node: NodeId, reply: QueryReply) -> None:
        """Count the reply of one server."""
        learned = self.rounds.learn(self.plan, node, reply)
        if learned is not None:
            for name, known in zip(self.names, learned, strict=True):
                self.reported[name][node] = known
            heads = self._heads_in(reply.histories, node)
            if reply.verdict is not _UNKNOWN:
                deductions = self.rounds.observations.deductions
                deductions.state(heads[0], node, reply.verdict, reply.voucher)
            if reply.answered and self._is_simple(node, reply, heads):
                asking.enough()
                return
        if self.quorums.is_quorum(asking.answered):
            asking.enough_or_more(self._evaluate())

    def _heads_in(self, histories: tuple[bytes, ...], node: NodeId) -> tuple[LogicalTimestamp, ...]:
        """The latest object version in each of these histories."""
        if not self._first:
            self._first = histories
            parsed = [parse_history(history) for history in histories]
            self._heads = tuple(each.latest_object.timestamp for each in parsed)
            self._plain = not any(is_barrier(each.latest) for each in parsed)
        if histories == self._first:
            self._alike = self._alike.plus(node)
            return self._heads
        return tuple(parse_history(history).latest_object.timestamp for history in histories)

    def _is_simple(
        self, node: NodeId, reply: QueryReply, heads: tuple[LogicalTimestamp, ...]
    ) -> bool:
        """Count an answer; True if a quorum gives it and has the same latest candidates.

        [Q/U §4.3.2] These are complete then. (A version of one object that was asked for was the
        latest at that time, which is enough. Versions of several objects must still be the latest:
        otherwise they were not read at one moment.)
        """
        answer = Answer.given(error=reply.error, answer=reply.answer, whole=reply.whole)
        key = (self._wanted or heads, answer)
        alike = self.votes.add(node, key, reply.answer, whole=reply.whole)
        self._answered[node] = heads
        if (
            self._plain
            and self.quorums.is_quorum(alike & self._alike)
            and (len(self.names) == 1 or key[0] == heads)
        ):
            self.answer, self.versions, self.disorderly = answer, key[0], ()
            return True
        return False

    def _evaluate(self) -> bool:
        """True if the replies of a quorum contain the answer. [Q/U §4.3.5, Optimistic query]

        If the latest candidate that is not incomplete is complete, it is the latest established
        one, whatever else is going on.
        """
        observations = self.rounds.observations
        heard = Nodes.of(self.reported[self.names[0]])
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
        if len(self.names) > 1:
            answered = self._answered
            exactly = Nodes.of([node for node in answered if answered[node] == self.versions])
            self.deduced = not self.quorums.is_quorum(exactly)
        if disorderly or self.unknown:
            return False
        for (heads, answer), nodes in self.votes.by.items():
            if heads == self.versions and self.quorums.includes_benign(nodes):
                self.answer = answer
                return True
        return False

    def hopes(self, waiting: Nodes) -> bool:
        """True if the latest candidate would be complete if all `waiting` servers have it.

        What its author has finished must not be repaired only because a server is late.
        """
        return self.quorums.is_quorum(self._hosting | waiting)

    def conclude(self, asking: Asking) -> None:
        """Remember servers that answer differently, or report what no other server has."""
        if self.rounds.is_outdated(self.plan):
            self.answer, self.disorderly, self.unknown = None, (), True
        if self.answer is None:
            return
        peers = self.rounds.peers
        for (versions, answer), nodes in self.votes.by.items():
            if versions == self.versions and answer != self.answer:
                peers.convict(nodes, self.plan.now_us)
        if self.quorums.is_quorum(self._alike):
            peers.conformed(self._alike)
            apart = asking.answered - self._alike
            if not apart:
                return
        ahead = NOBODY
        for name, version in zip(self.names, self.versions, strict=True):
            for node, known in self.reported[name].items():
                if parse_history(known.history).latest > version:
                    ahead = ahead.plus(node)
        peers.diverged(ahead, self.plan.now_us)
        if not self.quorums.is_quorum(self._alike):
            peers.conformed(asking.answered - ahead)
