"""One round: a request to a quorum of servers, and what their replies amount to.

[Q/U §4.3.4, c_quorum_rpc] `Rounds.plan` says whom to ask; `Rounds.run` sends the request and feeds
the replies to a `Tally`, which says after each of them if the round goes on. `tallies` has one kind
for each kind of round. No server is believed alone: an answer counts when servers give it that
cannot all be malevolent.
"""

from __future__ import annotations

from collections.abc import Callable
from types import UnionType
from typing import Any, NamedTuple, TypeVar

from bftfs import limits
from bftfs.asking.ask import Asking
from bftfs.asking.peers import Peers
from bftfs.conversation import Delivery, Now, Send
from bftfs.identifiers import NodeId, ObjectId, placement_of
from bftfs.query_update.history import Known
from bftfs.query_update.messages import PastReply, QueryReply, UpdateReply
from bftfs.query_update.observation import Observations
from bftfs.wire.codec import Message


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
        expects = tally.expects

        def take(reply: Delivery) -> None:
            if isinstance(reply.message, expects):
                tally.take(reply.node, reply.message)
            else:
                asking.refused(reply)

        await asking.collect(take)
        if not 0 <= asking.ended_us - plan.now_us <= limits.COUNTED_US:
            tally.expire()
        return tally

    def learn(
        self, plan: Plan, node: NodeId, reply: QueryReply | UpdateReply | PastReply
    ) -> list[Known] | None:
        """Remember the reported histories; what is known of each object at `node` then.

        None if no correct node replies like that.
        """
        names, histories, authenticators = plan.names, reply.histories, reply.authenticators
        learned: list[Known] = []
        if len(histories) == len(authenticators) == len(names):
            learn, now_us = self.observations.learn, plan.now_us
            for at, name in enumerate(names):
                known = learn(name, node, histories[at], authenticators[at], now_us)
                if known is None:
                    break
                learned.append(known)
            else:
                return learned
        self.peers.convict(1 << node, plan.now_us)
        return None
