"""What all reads and writes of one client share, and how it asks nodes: TIME, WRITE and vouching.

[PASIS §3.4.3.2] In an asynchronous system a client can wait for no more than N - t answers. A WRITE
is sent to all nodes, though nobody waits for the last t. Other requests are sent to as many nodes
as have to answer; a node that does not answer is replaced by another one. Every request here is
idempotent: it is repeated to silent nodes for as long as the round lasts.

**Concurrency.** Conversations of one engine share a session; nothing is left half-changed across an
await. A gathering belongs to one conversation.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from bftfs import limits
from bftfs.asking.ask import Asking
from bftfs.asking.lives import Lives, Told
from bftfs.asking.peers import MEMORY_US, Pace, Peers
from bftfs.asking.quorum import Nodes
from bftfs.asking.refusal import Refused
from bftfs.coding.erasure import ErasureCode
from bftfs.conversation import Delivery, Send
from bftfs.identifiers import ClientId, NodeId
from bftfs.read_write.placement import nodes_by_fragment
from bftfs.read_write.validation import ValidatedVersions
from bftfs.thresholds import ReadWriteThresholds

Answer = TypeVar("Answer")


class Session:
    """One client, its view of the nodes, and the versions that it knows to be valid."""

    def __init__(
        self,
        client: ClientId,
        thresholds: ReadWriteThresholds,
        peers: Peers,
        *,
        patience_total_us: int | None,
    ) -> None:
        self.client = client
        self.thresholds = thresholds
        self.peers = peers
        self.patience_total_us = patience_total_us  # of silence, until a round or a read fails
        self.code = ErasureCode(thresholds.m, thresholds.N)
        self.by_fragment = nodes_by_fragment(thresholds.N)
        self.validated = ValidatedVersions(limits.VALIDATED_VERSIONS)
        self.lives = Lives()
        # Silences that a read waits for at first: one more than refused reads needed lately.
        self.silences = 1
        self._silences_until_us = 0
        self._first_lives = (0,) * thresholds.N

    def bore(self, lapses: int, now_us: int) -> None:
        """Take note of a read that a node refused: the others were silent so often.

        The most is kept that was needed in a while: the next read may be as slow again.
        """
        if lapses >= self.silences or now_us >= self._silences_until_us:
            self.silences = lapses + 1
        if lapses + 1 == self.silences:
            self._silences_until_us = now_us + MEMORY_US

    def told(self, lives: Told) -> Told | None:
        """The lives that a reply tells; None if no correct node would tell that."""
        if not lives:
            return self._first_lives
        return lives if len(lives) == len(self._first_lives) else None


class Gathering(Asking, Generic[Answer]):
    """Sends `request(node)` to nodes; keeps what `judge` makes of the replies (None: unusable)."""

    __slots__ = ("_answers", "_awaited", "_judge")

    def __init__(
        self,
        session: Session,
        request: Callable[[NodeId], Send],
        judge: Callable[[Any], Answer | None],
        *,
        subject: str,
        pace: Pace,
        now_us: int,
        order: tuple[NodeId, ...] | None = None,
        required: int | None = None,
    ) -> None:
        """Ask all nodes, of which N - t have to answer.

        With `required`: ask that many, the first in `order`, and others in place of those that are
        silent or of no use.
        """
        peers, thresholds = session.peers, session.thresholds
        probes: tuple[NodeId, ...] = ()
        if order is None:
            order = session.by_fragment[0]
        else:
            order, probes = peers.order(order, now_us)
        super().__init__(
            peers,
            order,
            request,
            subject=subject,
            now_us=now_us,
            first=thresholds.N if required is None else required,
            probes=probes,
            pace=pace,
            needed=lambda _answered: len(self._answers) >= self._required,
            required=thresholds.responses if required is None else required,
            patience_total_us=session.patience_total_us,
        )
        self._judge = judge
        self._answers: dict[NodeId, Answer] = {}
        self._awaited: frozenset[NodeId] = frozenset()

    async def answers(self, awaited: frozenset[NodeId] = frozenset()) -> dict[NodeId, Answer]:
        """As many answers as required, and those of `awaited` unless they are silent.

        Raises AdmissionRefused if more than t nodes refuse, QuorumUnavailable if total patience
        runs out.
        """
        self._awaited = awaited
        await self.collect(self._take)
        return self._answers

    def _is_enough(self) -> bool:
        return len(self._answers) >= self._required and self._awaited <= self._answers.keys()

    def _outlived(self, _answers: dict[NodeId, Answer]) -> Iterable[NodeId]:
        """Nodes whose answers do not count any more, because they have lost their stores since."""
        return ()

    def _take(self, reply: Delivery) -> None:
        answer = self._judge(reply.message)
        if answer is not None:
            answers = self._answers
            answers[reply.node] = answer
            if len(answers) < self._required or not self._is_enough():
                return
            outlived = self._outlived(answers)
            for node in outlived:
                del answers[node]
            if self._is_enough():
                self.enough()
                return
            for node in outlived:
                self.again(node)
        elif not isinstance(reply.message, Refused):
            self._peers.convict(Nodes.of([reply.node]), self.began_us)
            self.useless(reply.node)
        elif reply.message.code == errno.EAGAIN:
            # Nodes slow greedy writers down by such refusals: so do not ask again at once.
            self.useless(reply.node)
        else:
            self.refused(reply)
