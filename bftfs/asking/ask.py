"""Sending requests and waiting for replies: the one place in both protocols that does so.

`Calls` sends the requests of a conversation and receives the replies; nothing else in the product
does. There are three ways to ask on top of it:

- `Asking` is a round: one request to each of some nodes, and one reply from each. All rounds of
  both protocols are of this kind, except reads of blocks.
- `Inquiry` is a read of a block: it asks one node several questions, and chooses the next one by
  the replies.
- `ask_all` sends each of some nodes one request, once. Workers, inspections and commands use it.

A round never waits for a node that is not needed. A node that takes longer than usual is replaced
by the next one, if that is likely to answer. A busy node is asked again soon, and then at growing
intervals. Requests to silent nodes are repeated. [Q/U §4.3.4, c_quorum_rpc]

Nothing here affects safety: the caller decides which replies count, and how many are enough. What
replies and silences show of a node is kept in `Peers`.

**Concurrency.** `Calls`, an `Asking` or an `Inquiry` belongs to one conversation.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from bftfs import limits
from bftfs.asking.peers import Pace, Peers
from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.asking.refusal import Refused
from bftfs.conversation import Delivery, Now, Receive, Send, SendAll
from bftfs.errors import AdmissionRefused, QuorumUnavailable
from bftfs.identifiers import NodeId

Tag = TypeVar("Tag")
Answer = TypeVar("Answer")

PATIENCE_MAX_US = 2_000_000  # the longest interval between repetitions of a request
BUSY_US = 5_000  # first pause before a busy node is asked again; doubles each time
_SILENCES = 3  # silences in which a round waits for nodes that it hopes for
_NEVER = 1 << 62
_WAIT, _ENOUGH, _MORE, _AGAIN = range(4)  # what a caller says of a reply
INSPECTED_PATIENCE_US = 3 * limits.SECOND_US  # how long an inspection waits for a node…
INSPECTED_AGAIN_US = 200_000  # …and for one that has been silent before
SURPLUS_US = limits.SECOND_US  # how long it waits for the others once a quorum has answered


class Calls(Generic[Tag]):
    """Sends requests, and receives the replies to them.

    Each request has a tag, by which the caller knows its reply. Replies still count if they come
    after a silence, unless their requests are very old.
    """

    __slots__ = ("_peers", "unanswered")

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self.unanswered: dict[int, Tag] = {}  # the tags of the requests, by their numbers

    async def send(self, requests: list[Send], tags: Iterable[Tag]) -> None:
        """Send `requests`, which have these tags."""
        self.unanswered.update(zip(await SendAll(requests), tags, strict=True))

    async def reply(self, patience_us: int) -> tuple[Delivery, Tag] | None:
        """The next reply, and the tag of its request; None after a silence of `patience_us`.

        Replies to earlier rounds of this conversation, and to requests that were forgotten, are
        passed over.
        """
        while True:
            delivery = await Receive(patience_us)
            if delivery is None:
                return None
            tag = self.answered(delivery)
            if tag is not None:
                return delivery, tag

    def answered(self, reply: Delivery) -> Tag | None:
        """The tag of the request to which this is the reply; None if it is passed over."""
        tag = self.unanswered.pop(reply.request_number, None)
        if tag is not None:
            self._peers.answered(reply.node)
        return tag

    def forget(self, tag: Tag) -> None:
        """Forget the requests that have this tag: their replies do not count any more."""
        for number in [number for number, each in self.unanswered.items() if each == tag]:
            del self.unanswered[number]

    def forget_old(self) -> None:
        """Forget very old requests: during an outage they are repeated often."""
        for number in list(self.unanswered)[: -limits.LATE_REQUESTS]:
            del self.unanswered[number]


class Addressed(Protocol):
    """A question of an `Inquiry`."""

    @property
    def node(self) -> NodeId:
        """The node that is asked."""


Asked = TypeVar("Asked", bound=Addressed)


class Inquiry(Calls[Asked]):
    """Asks nodes for as long as its caller has questions; the tags are the questions."""

    __slots__ = (
        "_half",
        "_heard",
        "_left_us",
        "_now_us",
        "_pace",
        "_patience_us",
        "_required",
        "_subject",
        "lapses",
    )

    def __init__(
        self,
        peers: Peers,
        pace: Pace,
        *,
        subject: str,
        required: int,
        now_us: int,
        patience_total_us: int | None = None,
    ) -> None:
        """The time until half of the `required` nodes answer goes to `pace`.

        `subject` is for error messages.
        """
        super().__init__(peers)
        self.lapses = 0  # silences so far
        self._pace = pace
        self._now_us = now_us
        self._subject = subject
        self._required = required
        self._half = (required + 1) // 2
        self._left_us = _NEVER if patience_total_us is None else patience_total_us
        self._patience_us = min(pace.hedge_us, self._left_us)
        self._heard = NOBODY

    async def answer(self) -> tuple[Delivery, Asked] | None:
        """The next reply and its question; None after a silence, twice as long as the last one.

        Raises QuorumUnavailable when total patience has run out.
        """
        replied = await self.reply(self._patience_us)
        if replied is None:
            await self._lapse()
            return None
        delivery, question = replied
        node, heard = delivery.node, self._heard
        if not heard.bits >> node & 1:
            self._heard = heard = heard.plus(node)
            if heard.bits.bit_count() == self._half:
                elapsed_us = await Now() - self._now_us
                self._pace.took(elapsed_us)
                self._pace.took_half(elapsed_us)
        return delivery, question

    async def _lapse(self) -> None:
        self.lapses += 1
        self._left_us -= self._patience_us
        if self._left_us <= 0:
            raise QuorumUnavailable(
                heard=len(self._heard), required=self._required, subject=self._subject
            )
        now_us = await Now()
        for node in {question.node for question in self.unanswered.values()}:
            self._peers.silent(node, now_us)
        doubled_us = min(2 * self._patience_us, limits.PATIENCE_MOST_US)
        self._patience_us = min(doubled_us, self._left_us)
        self.forget_old()


class Refusals:
    """The refusals of one operation, and when they are final."""

    __slots__ = ("_by_code", "_quorums", "nodes")

    def __init__(self, quorums: QuorumSystem) -> None:
        self.nodes = NOBODY
        self._quorums = quorums
        self._by_code: dict[int, dict[NodeId, str]] = {}

    def add(self, node: NodeId, refused: Refused) -> None:
        """Note a refusal. Raises AdmissionRefused once the other nodes are no quorum.

        It is raised only if b + 1 nodes give the same reason. Otherwise a liar's reason could be
        reported where the other refusals will pass, say of a node whose clock is slow. ENODATA
        does not count: nodes that rebuild their stores will answer later, and may have the room,
        say, that others lack.
        """
        if refused.code == errno.ENODATA:
            return
        self.nodes = self.nodes.plus(node)
        self._by_code.setdefault(refused.code, {})[node] = refused.reason
        quorums = self._quorums
        if quorums.is_quorum(quorums.everyone - self.nodes):
            return
        code, alike = max(self._by_code.items(), key=lambda item: len(item[1]))
        if quorums.includes_benign(Nodes.of(alike)):
            reason = next(iter(alike.values()))
            raise AdmissionRefused(code=code, reason=reason, nodes=len(alike))

    def withdraw(self, node: NodeId) -> None:
        """`node`, which had refused, answers now."""
        self.nodes = self.nodes.minus(node)
        for nodes in self._by_code.values():
            nodes.pop(node, None)

    def with_code(self, code: int) -> tuple[NodeId, ...]:
        """The nodes that give this reason."""
        return tuple(self._by_code.get(code, ()))


class Asking:
    """One round: a request to each of some nodes, and one reply from each.

        def take(reply: Delivery) -> None:
            replies.append(reply.message)
            if len(replies) == 3:
                asking.enough()

        asking = Asking(peers, order, lambda node: Send(node, request), subject=…, now_us=…)
        await asking.collect(take)

    After each reply the caller calls at most one of `enough`, `more`, `enough_or_more`, `until`,
    `rest`, `again`, `useless` and `refused`. If it calls none, the round waits for the other nodes
    that were asked; if there are none, and the answers are not enough, one more node is asked.
    """

    # Class attributes, since most rounds never change them: so they cost no time in `__init__`.
    refusing: Nodes = NOBODY  # nodes that have refused, and not answered since
    _overdue: Nodes = NOBODY  # nodes that are slower than usual
    _refusals: Refusals | None = None
    _waited_us = 0
    _silences = 0
    _retries = 0
    _said = _WAIT
    _half_us: int | None = None
    _quiet_us = 0  # the silence since the last reply that counted
    _busy_us = _NEVER  # the silence after which busy nodes are asked again

    def __init__(
        self,
        peers: Peers,
        order: tuple[NodeId, ...],
        request: Callable[[NodeId], Send],
        *,
        subject: str,
        now_us: int,
        first: int | None = None,
        probes: tuple[NodeId, ...] = (),
        pace: Pace | None = None,
        needed: Callable[[Nodes], bool] | None = None,
        hopes: Callable[[Nodes], bool] | None = None,
        suffices: Callable[[Nodes], bool] | None = None,
        required: int | None = None,
        patience_total_us: int | None = None,
    ) -> None:
        """The `first` nodes of `order` (by default a quorum) are asked at once, and the `probes`.

        `required` (by default as many) is the number in the error message.

        `needed(answered)` is True if the round need not wait any longer; by default, if a quorum
        has answered. `hopes(waiting)` is True if it is worth waiting for the silent nodes
        nevertheless, for some time. After a silence of full patience, `suffices(asked)` replaces
        both, if given.
        """
        self.order = order
        self.first = peers.quorums.first_quorum(order) if first is None else first
        self.asked = NOBODY
        self.answered = NOBODY  # nodes that have answered, and did not refuse
        self.ended_us = now_us  # when the round was over
        self._peers = peers
        self._request = request
        self._subject = subject
        self.began_us = now_us
        self._probes = probes
        self._pace = peers.metadata if pace is None else pace
        self._needed = peers.quorums.is_quorum if needed is None else needed
        self._hopes = hopes
        self._suffices = suffices
        self._required = self.first if required is None else required
        self._patience_total_us = patience_total_us
        self._calls: Calls[NodeId] = Calls(peers)
        self._unasked: list[NodeId] = []
        self._heard = NOBODY  # nodes whose further replies do not count
        # After a silence this long others are asked as well; and after this, all count as silent.
        self._hedge_us = self._pace.hedge_us
        self._patience_us = self._within(self._pace.patience_us)
        self._until_us = min(self._hedge_us, self._patience_us)  # the next of these
        self._busy: list[NodeId] = []

    @property
    def waiting(self) -> Nodes:
        """Nodes that were asked, and have neither answered nor refused."""
        return Nodes.known(self.asked.bits & ~(self.answered.bits | self.refusing.bits))

    @property
    def is_waiting(self) -> bool:
        """True if a node that was asked has neither answered nor refused."""
        return self.asked.bits & ~(self.answered.bits | self.refusing.bits) != 0

    @property
    def finally_refusing(self) -> Nodes:
        """Nodes whose refusals, `refused`, will not pass by themselves."""
        return NOBODY if self._refusals is None else self._refusals.nodes

    # --- what the caller decides on a reply -----------------------------------------------------

    def enough(self) -> None:
        """The round is over."""
        self._said = _ENOUGH

    def more(self) -> None:
        """Ask one more node, if it is likely to answer or if it is needed."""
        if self._unasked and (self._peers.willing(self._unasked[0]) or self._is_stuck()):
            self._said = _MORE
        else:
            self.rest()

    def enough_or_more(self, is_enough: bool) -> None:
        """The round is over if `is_enough`; otherwise one more node is asked."""
        if is_enough:
            self.enough()
        else:
            self.more()

    def until(self, is_found: bool) -> None:
        """The round is over if `is_found`; otherwise one more node is asked if none is pending."""
        if is_found or not self.is_waiting:
            self.enough_or_more(is_found)

    def rest(self) -> None:
        """Wait for the nodes that are likely to answer; without any, the round is over."""
        if not self._needed(self.answered):
            if not self.is_waiting and self.refusing is NOBODY:
                self._said = _ENOUGH
            return
        waiting, hopeful = self.waiting, self._is_hopeful()
        for node in self.order:
            if node in waiting and (
                hopeful or (self._peers.willing(node) and node not in self._overdue)
            ):
                return
        self._said = _ENOUGH

    def again(self, node: NodeId) -> None:
        """Ignore the reply: ask its node again soon, and now another one in addition."""
        self.answered = self.answered.minus(node)
        self._heard = self._heard.minus(node)
        self._calls.forget(node)
        self._busy.append(node)
        if self._busy_us == _NEVER:
            self._busy_us = self._quiet_us + (BUSY_US << min(self._retries, 16))
            self._until_us = min(self._until_us, self._busy_us)
            self._retries += 1
        self._said = _AGAIN

    def useless(self, node: NodeId) -> None:
        """Ignore the reply: ask one more node, and this one again only after a silence.

        So a round never ends with fewer answers than it needs, whatever nodes reply.
        """
        self.answered = self.answered.minus(node)
        self.refusing = self.refusing.plus(node)
        self.more()

    def refused(self, reply: Delivery) -> None:
        """The reply is a refusal, or not a possible answer to the request.

        If that may pass (the node is busy), the node is asked again soon. Otherwise one more node
        is asked. Raises AdmissionRefused when the refusals are final.
        """
        node, refusal = reply.node, reply.message
        if not isinstance(refusal, Refused) or refusal.may_pass:
            self.again(node)
            return
        if self._refusals is None:
            self._refusals = Refusals(self._peers.quorums)
        self._refusals.add(node, refusal)
        self.useless(node)

    def _is_hopeful(self) -> bool:
        """True if it is worth waiting for silent nodes, because nothing can succeed without them.

        It is not if a quorum of believed nodes has answered: then a repair can succeed at once.
        """
        return (
            self._hopes is not None
            and self._silences < _SILENCES
            and self._hopes(self.waiting)
            and not self._peers.quorums.is_quorum(self.answered - self._peers.disbelieved)
        )

    def _is_stuck(self) -> bool:
        """True if no reply is pending, and the answers so far are not enough.

        So a reply was useless; as long as others were pending, the round could have succeeded.
        """
        return not (self.is_waiting or self._needed(self.answered))

    # --- the round ------------------------------------------------------------------------------

    async def send(self) -> None:
        """Send the first requests now, if `collect` is to be called later."""
        first, self._unasked = self.order[: self.first], list(self.order[self.first :])
        if self._probes:
            first += tuple(node for node in self._probes if node not in first)
            self._unasked = [node for node in self._unasked if node not in first]
        self.asked = Nodes.of(first)
        await self._calls.send(list(map(self._request, first)), first)

    async def collect(self, take: Callable[[Delivery], None]) -> None:
        """Pass each reply to `take`, until `take` or a silence ends the round."""
        if self.asked is NOBODY:
            await self.send()
        answered, half, pace = self._calls.answered, (self.first + 1) // 2, self._pace
        while True:
            until_us = self._until_us
            delivery = await Receive(until_us - self._quiet_us)
            if delivery is None:
                self._quiet_us = until_us
                if await self._bear_silence(until_us):
                    return
                self._until_us = min(self._patience_us, self._hedge_us, self._busy_us)
                continue
            node, heard = answered(delivery), self._heard
            if node is None or heard.bits >> node & 1:
                continue  # it is an old reply, or the node was asked twice
            self._heard = heard.plus(node)
            self.answered = self._heard if self.answered is heard else self.answered.plus(node)
            if self.refusing is not NOBODY and node in self.refusing:
                self.refusing = self.refusing.minus(node)
                if self._refusals is not None:
                    self._refusals.withdraw(node)
            take(delivery)
            said = self._said
            if said == _ENOUGH:
                await self._conclude(node)
                return
            if said != _AGAIN:
                self._quiet_us = 0
                if self._half_us is None and self._heard.bits.bit_count() == half:
                    self._half_us = await Now()
                    pace.took_half(self._half_us - self.began_us)
            unasked = self._unasked
            if said != _WAIT or (unasked and not self.is_waiting and self._is_stuck()):
                self._said = _WAIT
                if unasked:
                    await self._ask(unasked.pop(0))

    async def _conclude(self, last: NodeId) -> None:
        """The reply of `last` ended the round: note how long it took, and which nodes were late."""
        peers, pace = self._peers, self._pace
        finished_us = self.ended_us = await Now()
        pace.took(finished_us - self.began_us)
        self._note_full(finished_us)
        if not pace.judges_lateness:
            return
        if self._half_us is None or finished_us - self._half_us <= pace.late_us:
            peers.timely(last)
            return
        for node in self.order[: self.first]:
            if node == last:
                peers.late(node, finished_us)
            elif self._hedge_us == _NEVER and node not in self._heard:
                peers.silent(node, finished_us)

    async def _bear_silence(self, until_us: int) -> bool:
        """There was no reply for `until_us`. True if that ends the round."""
        if until_us == self._busy_us:
            for node in self._busy:
                await self._ask(node)
            self._busy.clear()
            self._busy_us = _NEVER
            return False
        if until_us == self._hedge_us:
            return await self._hedge()
        return await self._lapse()

    async def _hedge(self) -> bool:
        """Nodes take longer than usual: ask others in their place. True if the round ends."""
        self._hedge_us = _NEVER
        silent = self._silent()
        for node in silent:
            self._overdue = self._overdue.plus(node)
        further = [node for node in self._unasked if self._peers.willing(node)]
        if not further:
            if not self._needed(self.answered):
                further = self._unasked[:]  # unwilling nodes are better than none
            elif not self._is_hopeful():
                await self._give_up(silent)
                return True
        for node in further[: len(silent)]:
            self._unasked.remove(node)
            await self._ask(node)
        return False

    async def _lapse(self) -> bool:
        """Patience is over: ask other nodes, or repeat the requests. True if the round ends."""
        self._quiet_us = 0
        self._waited_us += self._patience_us
        self._silences += 1
        silent = self._silent()
        if self._heard:
            await self._give_up(silent)
        if self._suffices is None:
            suffices = self._needed(self.answered) and not self._is_hopeful()
        else:
            suffices = self._suffices(self.asked)
        if suffices:
            return True
        if self._patience_total_us is not None and self._waited_us >= self._patience_total_us:
            raise QuorumUnavailable(
                heard=len(self._heard), required=self._required, subject=self._subject
            )
        self._calls.forget_old()
        missing = max(1, len(silent))  # 1 if all that were asked have answered
        further = self._unasked[:missing]
        del self._unasked[:missing]
        if not further:
            self._heard -= self.refusing
            further = self._silent()
            self._patience_us = min(2 * self._patience_us, PATIENCE_MAX_US)
        self._patience_us = self._within(self._patience_us)
        for node in further:
            await self._ask(node)
        return False

    def _within(self, patience_us: int) -> int:
        """`patience_us`, or what is left of the total patience if that is less."""
        if self._patience_total_us is None:
            return patience_us
        return min(patience_us, self._patience_total_us - self._waited_us)

    async def _give_up(self, silent: list[NodeId]) -> None:
        """Note which nodes are silent, and which have full disks."""
        now_us = self.ended_us = await Now()
        for node in silent:
            self._peers.silent(node, now_us)
        self._note_full(now_us)

    def _note_full(self, now_us: int) -> None:
        if self._refusals is not None:
            for node in self._refusals.with_code(errno.ENOSPC):
                self._peers.full(node, now_us)

    def _silent(self) -> list[NodeId]:
        """Nodes that were asked, and have not replied."""
        silent = self.asked - self._heard
        return [node for node in self.order if node in silent]

    async def _ask(self, node: NodeId) -> None:
        self.asked = self.asked.plus(node)
        await self._calls.send([self._request(node)], (node,))


async def ask_all(
    peers: Peers,
    requests: Mapping[NodeId, object],
    judge: Callable[[Delivery, int], Answer | None],
    *,
    patience_us: int,
    silent_us: int | None = None,
    surplus_us: int | None = None,
    enough: Callable[[dict[NodeId, Answer]], bool] = lambda _: False,
) -> dict[NodeId, Answer]:
    """Send each node its request once; return what `judge` makes of each usable reply.

    Workers, inspections and commands call this. `judge` gets the reply and the time at which it
    came, and returns None if it is unusable. The call ends when `enough` is true of the answers, or
    after `patience_us`. If all nodes that have not answered were silent before, it ends after
    `silent_us`, if given; and `surplus_us` after a quorum has answered, if given.
    """
    calls: Calls[NodeId] = Calls(peers)
    await calls.send([Send(node, request) for node, request in requests.items()], requests)
    answers: dict[NodeId, Answer] = {}
    now_us = began_us = await Now()
    latest_us = began_us + patience_us
    while calls.unanswered:
        until_us = latest_us
        if silent_us is not None and all(node in peers.mute for node in calls.unanswered.values()):
            until_us = began_us + silent_us
        # Not longer than it ever waits: the clock may have been set back meanwhile.
        call = await calls.reply(min(max(until_us - now_us, 1), patience_us))
        now_us = await Now()
        if call is None:
            for node in calls.unanswered.values():
                peers.silent(node, now_us)
            break
        delivery, node = call
        answer = judge(delivery, now_us)
        if answer is not None:
            answers[node] = answer
            if enough(answers):
                break
            if surplus_us is not None and peers.quorums.is_quorum(Nodes.of(answers)):
                latest_us = min(latest_us, now_us + surplus_us)
    return answers


async def inspect_nodes(peers: Peers, requests: Mapping[NodeId, object]) -> dict[NodeId, Delivery]:
    """The replies to the requests of an inspection, which waits long for a node only once.

    It does not wait for one that is slower by far than a quorum of the others.
    """
    return await ask_all(
        peers,
        requests,
        lambda delivery, _now_us: delivery,
        patience_us=INSPECTED_PATIENCE_US,
        silent_us=INSPECTED_AGAIN_US,
        surplus_us=SURPLUS_US,
    )
