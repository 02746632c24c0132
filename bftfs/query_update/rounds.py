"""One round of requests to the servers, and what the replies amount to. [Q/U §4.3.4, c_quorum_rpc]

A round judges each reply as it comes. It never believes a single server: an answer counts when
servers give it that cannot all be malevolent, a rejection likewise.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from bftfs import limits
from bftfs.asking.quorum import Judgement, Nodes, Probing, QuorumSystem, ask
from bftfs.asking.refusal import Refused
from bftfs.conversation import Now, Send
from bftfs.crypto.digest import answer_digest
from bftfs.errors import AdmissionRefused
from bftfs.identifiers import NodeId, ObjectId, placement_of
from bftfs.query_update.history import Known, LogicalTimestamp, parse_history
from bftfs.query_update.messages import PastReply, QueryReply, Status, UpdateReply
from bftfs.query_update.observation import Observations
from bftfs.query_update.suspicion import Suspicion
from bftfs.wire.codec import Message

_FAILURES_BORNE = 8  # after so many, suspicion is given up: it may be what stands in the way
_FAILURES_ALONE = 3  # …if those that are not suspect are not enough
_DOUBT_US = 2 * limits.SECOND_US  # of the own clock, where nobody has said that it is wrong
_SILENCES = 3  # that a round bears for the sake of the last servers it needs


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


class Rounds:
    """How a client asks: in which order, how long, and what it remembers of the replies."""

    __slots__ = ("observations", "patience_total_us", "probing", "quorums", "suspicion")

    def __init__(
        self,
        quorums: QuorumSystem,
        observations: Observations,
        suspicion: Suspicion,
        *,
        patience_total_us: int | None,
    ) -> None:
        self.quorums = quorums
        self.observations = observations
        self.suspicion = suspicion
        self.probing = Probing()
        self.patience_total_us = patience_total_us

    def order(
        self, names: tuple[ObjectId, ...], now_us: int
    ) -> tuple[tuple[NodeId, ...], tuple[NodeId, ...]]:
        """Whom to ask, in order; and whom to ask along. The highest object's quorum comes first.

        [Q/U §4.3.5, Quorum access strategy and probing; §4.3.7]
        """
        order, probes = self.probing.order(self.quorums.preference(placement_of(names[-1])), now_us)
        suspicion = self.suspicion
        if suspicion.shunned:
            suspicion.forget(now_us)
            order = tuple(sorted(order, key=suspicion.shuns))
        ahead_of_clock = self.observations.ahead_of_clock(names)
        if ahead_of_clock:  # what they accept is not counted
            order = tuple(sorted(order, key=lambda node: ahead_of_clock >> node & 1))
        return order, probes

    def willing(self, node: NodeId) -> bool:
        """Whether one may hope for a prompt and useful answer from `node`."""
        return not (self.probing.avoids(node) or self.suspicion.shuns(node))

    def quorum_willing(self, *, without: Nodes = 0) -> bool:
        """Whether those that are neither silent nor shunned make a quorum, also `without` these."""
        willing = sum(1 << node for node in range(self.quorums.n) if self.willing(NodeId(node)))
        return self.quorums.is_quorum(willing & ~without)

    def diverged(self, nodes: Nodes, now_us: int) -> None:
        """Each of `nodes` reports something that hardly anybody else has.

        Without those who are needed, nothing succeeds: they are not shunned for that.
        """
        if nodes and not self.quorums.includes_benign(nodes) and self.quorum_willing(without=nodes):
            self.suspicion.diverged(nodes, now_us)

    def relent(
        self, failures: int, shunned: Nodes, ahead_of_clock: Nodes = 0, now_us: int = 0
    ) -> None:
        """So many attempts in a row have failed, the last one while `shunned` were shunned.

        One of those may be needed: then all that has to be done is to take note of what he reports.
        A suspicion that this very attempt has raised is given its chance first: those that are left
        may be slow, and have been silent for no worse reason. So it is with those that were
        `ahead_of_clock` for being far ahead, where the others are not enough.
        """
        borne = _FAILURES_BORNE if self.quorum_willing() else _FAILURES_ALONE
        if failures % borne == 0 and self.suspicion.shunned == shunned:
            self.suspicion.relent()
        needed = ahead_of_clock and not self.quorum_willing(without=ahead_of_clock)
        if needed and failures % _FAILURES_ALONE == 0:
            self.observations.doubt_clock(now_us + _DOUBT_US)

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
        if len(histories) != len(names) or len(authenticators) != len(names):
            self.suspicion.convict(1 << node, now_us)
            return None
        learn = self.observations.learn
        learned = []
        for name, history, authenticator in zip(names, histories, authenticators, strict=True):
            known = learn(name, node, history, authenticator, now_us)
            if known is None:
                self.suspicion.convict(1 << node, now_us)
                return None
            learned.append(known)
        return learned

    async def run(
        self,
        message: Message | Callable[[NodeId], Message],
        order: tuple[NodeId, ...],
        judge: Round,
        *,
        now_us: int,
        subject: str,
        probes: tuple[NodeId, ...] = (),
        first: int | None = None,
    ) -> None:
        """Send `message` to a quorum, and to others as `judge` or silence require."""
        asked = 0

        def request(node: NodeId) -> Send:
            nonlocal asked
            asked |= 1 << node
            judge.asked = asked
            return Send(node, message if isinstance(message, Message) else message(node))

        await ask(
            request=request,
            order=order,
            first=self.quorums.first_quorum(order) if first is None else first,
            judge=judge.judge,
            suffices=judge.suffices,
            probing=self.probing,
            now_us=now_us,
            subject=subject,
            probes=probes,
            hedge=judge.hedge,
            patience_total_us=self.patience_total_us,
        )
        if judge.rejection is not None:
            raise judge.rejection
        if not 0 <= await Now() - now_us <= limits.COUNTED_US:
            judge.expire()


class Round:
    """What all rounds share: who answered, who refuses to serve, and when to ask one more."""

    def __init__(self, rounds: Rounds, order: tuple[NodeId, ...], now_us: int) -> None:
        self.rounds = rounds
        self.quorums = rounds.quorums
        self.order = order
        self.now_us = now_us
        self.asked: Nodes = 0
        self.answered: Nodes = 0
        self.overdue: Nodes = 0  # those that answer more slowly than usual, or not at all
        self._silences = 0
        self._rejections: dict[tuple[int, str], Nodes] = {}
        self.rejection: AdmissionRefused | None = None
        self._full: Nodes = 0  # those that have no room to store anything

    def judge(self, node: NodeId, reply: Any, _: bytes | memoryview) -> Judgement:
        """What a reply means for the round."""
        self.answered |= 1 << node
        return self.weigh(node, reply)

    def weigh(self, node: NodeId, reply: Any) -> Judgement:
        """Like `judge`, in each kind of round."""
        raise NotImplementedError

    def expire(self) -> None:
        """It has lasted too long: of those heard first, some may have lost their store since.

        What a server has accepted and forgotten counts only in rounds of before; when they are
        over, it asks its peers what has become of it. `healing` has the rule.
        """

    def suffices(self) -> bool:
        """Whether, when nothing more is heard, a round may end."""
        self._silences += 1
        return self.quorums.is_quorum(self.answered) and not self._hopeful

    def unserved(self, node: NodeId, reply: Any) -> Judgement:
        """The server does not serve the request: if it is not alone, nobody will."""
        if isinstance(reply, Refused) and reply.code == errno.ENOSPC:
            # Its disk is full, and stays so for now. Others may do, and are waited for; where they
            # are too few, to wait would be to wait for somebody to make room.
            self._full |= 1 << node
            self.answered &= ~self._full
            self.rounds.probing.avoid(node, self.now_us)
            everyone = (1 << self.quorums.n) - 1
            if not self.quorums.is_quorum(everyone & ~self._full):
                self.rejection = AdmissionRefused(code=errno.ENOSPC, reason=reply.reason)
                return Judgement.ENOUGH
            return self.more()
        if isinstance(reply, Refused) and not reply.may_pass:
            key = (reply.code, reply.reason)
            nodes = self._rejections[key] = self._rejections.get(key, 0) | 1 << node
            if self.quorums.includes_benign(nodes):
                self.rejection = AdmissionRefused(code=reply.code, reason=reply.reason)
                return Judgement.ENOUGH
            return self.more()
        self.answered &= ~(1 << node)  # its host is busy, or lacks what peers must supply
        return Judgement.AGAIN

    def more(self) -> Judgement:
        """Ask one server more, if there is one from which an answer may be expected."""
        for node in self.order:
            if not self.asked >> node & 1:
                return Judgement.MORE if self.rounds.willing(node) else self.rest()
        return self.rest()

    def rest(self) -> Judgement:
        """Wait for those from which an answer may be expected; if there are none, it is enough."""
        if not self.quorums.is_quorum(self.answered):
            heard = self.answered | self._full
            return Judgement.ENOUGH if heard == self.asked else Judgement.PENDING
        waiting = self.asked & ~self.answered & ~self._full
        for node in self.order:
            if waiting >> node & 1 and (
                self._hopeful or (self.rounds.willing(node) and not self.overdue >> node & 1)
            ):
                return Judgement.PENDING
        return Judgement.ENOUGH

    def hedge(self, silent: Sequence[NodeId]) -> Sequence[NodeId] | None:
        """Whom to ask besides the silent; None if what was heard has to do."""
        for node in silent:
            self.overdue |= 1 << node
        rest = [node for node in self.order if not self.asked >> node & 1]
        further = [node for node in rest if self.rounds.willing(node)]
        if not further:
            if not self.quorums.is_quorum(self.answered):
                further = rest  # better those than nobody
            elif not self._hopeful:
                return None
        return further[: len(silent)]

    @property
    def _hopeful(self) -> bool:
        """Whether it is worth while to wait for the silent: without them, nothing can succeed.

        If a quorum of those that are not shunned has answered, repair can succeed at once.
        """
        return (
            self._silences < _SILENCES
            and self.hopes
            and not self.quorums.is_quorum(self.answered & ~self.rounds.suspicion.shunned)
        )

    @property
    def hopes(self) -> bool:
        """Whether those that were silent so far could, together, bring what is sought."""
        return False


class UpdateRound(Round):
    """A round of updates, barriers or copies: which servers have accepted it."""

    def __init__(
        self, rounds: Rounds, names: tuple[ObjectId, ...], order: tuple[NodeId, ...], now_us: int
    ) -> None:
        super().__init__(rounds, order, now_us)
        self.names = names
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
        return self.asked & ~ruled_out

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

    def weigh(self, node: NodeId, reply: Any) -> Judgement:
        if not isinstance(reply, UpdateReply):
            return self.unserved(node, reply)
        rounds = self.rounds
        bit = 1 << node
        if rounds.learn(self.names, node, reply, self.now_us) is None:
            self.failed |= bit
            return self._undecided()
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
            return Judgement.ENOUGH if self.complete else self._undecided()
        if status is Status.REFUSED:
            nodes = self.refused[reply.error] = self.refused.get(reply.error, 0) | bit
            if reply.error and self.quorums.is_quorum(nodes):
                self.refusal = reply.error
                return Judgement.ENOUGH
            return self._undecided()
        self.failed |= bit
        if status is Status.CULLED:
            rounds.suspicion.accuse(node, reply.forged | reply.insane, self.now_us)
            if reply.insane:
                self.insane |= bit
        elif status is Status.INSANE_TIME:
            self.insane |= bit
        elif status is Status.TOO_MANY:
            self.overdrawn |= bit
        return self._undecided()

    @property
    def hopes(self) -> bool:
        """If all that were not heard accepted it, it would be complete."""
        waiting = self.asked & ~self.answered
        return self.quorums.is_quorum(self.accepted | waiting)

    def _undecided(self) -> Judgement:
        """Once all that were asked have answered: can a quorum still accept, or refuse, it?"""
        if self.answered != self.asked:
            return self.rest()
        unasked = (1 << self.quorums.n) - 1 & ~self.asked
        if any(
            nodes and self.quorums.is_quorum(nodes | unasked)
            for nodes in (self.accepted, *self.refused.values())
        ):
            return self.more()
        return self.rest()

    def conclude(self) -> None:
        """Remember who stood aside while others agreed, and who agreed for the sake of appearances.

        To servers that accept it, an operation is the latest, whatever contention has left behind
        it. One that reports something else as its latest has accepted it in vain: repair follows.
        """
        suspicion = self.rounds.suspicion
        if not self.quorums.is_repairable(self.accepted):
            return
        if len(self._reported) == 1 and not self.failed:
            suspicion.conformed(self.accepted)
            return
        latest: dict[tuple[LogicalTimestamp, ...], Nodes] = {}
        for histories, nodes in self._reported.items():
            key = tuple(parse_history(history).latest for history in histories)
            latest[key] = latest.get(key, 0) | nodes
        alike = max(latest.values(), key=int.bit_count)
        suspicion.conformed(alike)
        for apart in (self.failed, self.accepted & ~alike):
            self.rounds.diverged(apart, self.now_us)
        for error, nodes in self.refused.items():
            # The method, its arguments and the version are the same everywhere: so is its answer.
            if error and self.quorums.includes_benign(alike):
                suspicion.convict(nodes, self.now_us)


async def update_round(
    rounds: Rounds,
    message: Message,
    names: tuple[ObjectId, ...],
    *,
    subject: str,
    now_us: int | None = None,
) -> UpdateRound:
    """Send one update, barrier or copy to a quorum for `names`, ascending."""
    if now_us is None:
        now_us = await Now()
    order, probes = rounds.order(names, now_us)
    outcome = UpdateRound(rounds, names, order, now_us)
    await rounds.run(message, order, outcome, now_us=now_us, subject=subject, probes=probes)
    outcome.conclude()
    return outcome
