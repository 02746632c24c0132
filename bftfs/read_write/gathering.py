"""One request to all nodes, or to those needed, and usable answers: TIME, WRITE and vouching.

[PASIS §3.4.3.2] In an asynchronous system a client can wait for no more than N - t answers. A WRITE
is sent to the other nodes all the same, and nobody waits for them; other requests go to no more
nodes than have to answer, and to further ones in place of those that do not. Every request here is
idempotent: to nodes that stay silent it is sent again, for as long as the round lasts.

Concurrency: a gathering belongs to one conversation.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from bftfs.asking.refusal import Refused
from bftfs.conversation import Now, Receive, Send
from bftfs.errors import AdmissionRefused, QuorumUnavailable
from bftfs.identifiers import NodeId
from bftfs.limits import LATE_REQUESTS, PATIENCE_MOST_US
from bftfs.read_write.standing import Patience, Standings
from bftfs.thresholds import ReadWriteThresholds

Usable = TypeVar("Usable")


class Addressed(NamedTuple):
    """What goes to one node."""

    message: Any
    body: bytes | memoryview = b""


class Refusals:
    """Who refused, and when that is final."""

    __slots__ = ("_by_node", "_thresholds")

    def __init__(self, thresholds: ReadWriteThresholds) -> None:
        self._by_node: dict[NodeId, Refused] = {}
        self._thresholds = thresholds

    def add(self, node: NodeId, refusal: Refused) -> None:
        """Raises AdmissionRefused if more than t nodes refuse: the others are fewer than N - t.

        More than b of them must say why alike, so that a correct node does: a liar's reason must
        not be given for a refusal that will pass, as that of a clock that is behind. Until then,
        the request is sent again like one that met with silence. EAGAIN and
        ENODATA are no verdicts either: the node asks for patience.
        """
        if refusal.code in {errno.EAGAIN, errno.ENODATA}:
            return
        self._by_node[node] = refusal
        if len(self._by_node) <= self._thresholds.t:
            return
        by_code: dict[int, list[Refused]] = {}
        for one in self._by_node.values():
            by_code.setdefault(one.code, []).append(one)
        most = max(by_code.values(), key=len)
        if len(most) <= self._thresholds.b:
            return
        raise AdmissionRefused(code=most[0].code, reason=most[0].reason, nodes=len(most))

    def withdraw(self, node: NodeId) -> None:
        """`node` serves the request after all."""
        self._by_node.pop(node, None)


class Silence:
    """The silence of one operation: how long the next one lasts, and when there were too many."""

    __slots__ = ("_late", "_left_us", "_policy", "_step_us", "lapses")

    def __init__(self, policy: Patience, total_us: int | None) -> None:
        self._policy = policy
        self._step_us = policy.us
        self._left_us = total_us
        self._late: set[int] = set()
        self.lapses = 0

    @property
    def patience_us(self) -> int:
        """How long to wait for the next reply."""
        if self._left_us is None:
            return self._step_us
        return min(self._step_us, self._left_us)

    def lapse(self, unanswered: Iterable[int], *, heard: int, required: int, subject: str) -> None:
        """Patience has run out once more, with these requests unanswered.

        Raises QuorumUnavailable if that was the last time.
        """
        if self._left_us is not None:
            self._left_us -= self.patience_us
            if self._left_us <= 0:
                raise QuorumUnavailable(heard=heard, required=required, subject=subject)
        self.lapses += 1
        self._late = set(unanswered)
        self._step_us = min(2 * self._step_us, PATIENCE_MOST_US)

    def answered(self, number: int) -> None:
        """This request was answered, perhaps after it had been taken for lost."""
        if number in self._late:
            self._late.clear()
            self._policy.was_too_short()

    def ended(self) -> None:
        """The operation is over."""
        if not self.lapses:
            self._policy.sufficed()


class Gathering(Generic[Usable]):
    """`requests[i]` to node i, and what `judge` makes of the replies (None: not usable).

    The first `first` nodes of `order` are asked at once, the others after a silence of `hedge_us`;
    `required` answers are enough.
    """

    __slots__ = (
        "_asked",
        "_first",
        "_hedge_us",
        "_judge",
        "_numbers",
        "_order",
        "_refusals",
        "_requests",
        "_required",
        "_silence",
        "_standings",
        "_subject",
    )

    def __init__(
        self,
        requests: Sequence[Addressed],
        judge: Callable[[Any], Usable | None],
        *,
        thresholds: ReadWriteThresholds,
        standings: Standings,
        silence: Silence,
        subject: str,
        order: Sequence[NodeId],
        first: int,
        hedge_us: int,
        required: int,
    ) -> None:
        self._requests = requests
        self._judge = judge
        self._order = order
        self._first = first
        self._hedge_us = hedge_us
        self._required = required
        self._asked = 0  # so many of `order`
        self._standings = standings
        self._silence = silence
        self._subject = subject
        self._numbers: dict[int, NodeId] = {}
        self._refusals = Refusals(thresholds)

    async def send(self) -> None:
        """Send the request to the first nodes."""
        for _ in range(self._first):
            await self._send_further()

    async def answers(self, awaited: frozenset[NodeId] = frozenset()) -> dict[NodeId, Usable]:
        """As many usable answers as required, and those of `awaited` unless they are silent.

        Raises AdmissionRefused if more than t nodes refuse, QuorumUnavailable if total patience
        runs out.
        """
        required = self._required
        numbers, silence = self._numbers, self._silence
        answers: dict[NodeId, Usable] = {}
        while True:
            all_asked = self._asked == len(self._order)
            delivery = await Receive(silence.patience_us if all_asked else self._hedge_us)
            if delivery is None:
                if len(answers) >= required:
                    return answers
                if all_asked:
                    await self._lapse(answers)
                else:
                    await self._hedge(answers)
                continue
            node = numbers.pop(delivery.request_number, None)
            if node is None:
                continue  # of an earlier round of this conversation
            silence.answered(delivery.request_number)
            if node in answers:
                continue  # to a repeated request
            answer = self._judge(delivery.message)
            if answer is not None:
                self._refusals.withdraw(node)
                if self._standings.marked:
                    self._standings.heard(node, await Now())
                answers[node] = answer
                if len(answers) >= required and awaited <= answers.keys():
                    silence.ended()
                    return answers
                continue
            if isinstance(delivery.message, Refused):
                self._refusals.add(node, delivery.message)
            else:
                self._standings.faulty(node, await Now())
            await self._send_further()

    async def _lapse(self, answers: dict[NodeId, Usable]) -> None:
        """Send the request again to the nodes that have not given a usable answer."""
        self._silence.lapse(
            self._numbers,
            heard=len(answers),
            required=self._required,
            subject=self._subject,
        )
        for number in list(self._numbers)[:-LATE_REQUESTS]:
            del self._numbers[number]
        for node in await self._find_silent(answers):
            await self._send(node)

    async def _hedge(self, answers: dict[NodeId, Usable]) -> None:
        """Ask all others besides those that are silent."""
        await self._find_silent(answers)
        while self._asked < len(self._order):
            await self._send_further()

    async def _find_silent(self, answers: dict[NodeId, Usable]) -> list[NodeId]:
        """The nodes that were asked and have not given a usable answer."""
        silent = [node for node in self._order[: self._asked] if node not in answers]
        now_us = await Now()
        for node in silent:
            self._standings.silent(node, now_us)
        return silent

    async def _send_further(self) -> None:
        """Send the request to one node more, if there is one."""
        if self._asked < len(self._order):
            self._asked += 1
            await self._send(self._order[self._asked - 1])

    async def _send(self, node: NodeId) -> None:
        request = self._requests[node]
        self._numbers[await Send(node, request.message, request.body)] = node
