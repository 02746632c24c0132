"""One read of one block, as a conversation. [PASIS §3.4.3.3, §3.5.1.2]

**Theory of operation.** A read is a loop: ask what the `Descent` says, take the next reply, and let
the descent decide again, until a candidate is usable. The rules are elsewhere, as pure functions:
`classification.py` says what a candidate is, `descent.py` which candidate is next and which node is
asked for what, `responses.py` which replies count. This module sends, waits and uses.

Using a candidate: its m fragments are decoded. Unless this client or b + 1 nodes have validated the
version before, all N fragments are generated from them and compared with its cross-checksum, since
a faulty writer may have written fragments that are no encoding of one item. A repairable candidate
is repaired before it is returned, so that no later read returns an older version. A candidate that
fails either counts as incomplete.

Safe, whichever nodes answer in whatever order: the classes of candidates are (3.2) and (3.3) of the
source. Shown by `tests/properties/test_read_write_byzantine.py` (every adversary at every node) and
`tests/properties/test_read_write_must_fail.py` (without a rule, reads go wrong).

A node that verifies a block reads it in the same way, and uses it in another (`Verification`).

**Concurrency.** A `BlockRead` belongs to one conversation and is used once.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import partial

from bftfs import limits
from bftfs.asking.ask import Inquiry, Refusals
from bftfs.asking.quorum import NOBODY as NO_NODES
from bftfs.asking.refusal import Refused
from bftfs.conversation import Compute, Delivery, Now, Pause, Send
from bftfs.credentials import NOBODY, Credentials
from bftfs.errors import AdmissionRefused, QuorumUnavailable
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write.classification import CandidateClass
from bftfs.read_write.descent import Descent, Question, Usable
from bftfs.read_write.messages import ReadReply, ReadRequest
from bftfs.read_write.permission import FORBIDDEN, NodesDisagree, require_enough
from bftfs.read_write.placement import rotation_of
from bftfs.read_write.responses import ReplyVerdict, Responses, note_verdict
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import ZERO, BlockTimestamp
from bftfs.read_write.validation import item_of, validate
from bftfs.read_write.writing import Encoded, repair


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """What a read returns. `item` is None for a block that was never written (timestamp ZERO)."""

    timestamp: BlockTimestamp
    item: bytes | None


_VALID = ReplyVerdict.VALID  # faster than to look it up in the enum
NEVER_WRITTEN = FoundVersion(ZERO, None)


class BlockRead:
    """One read of the latest complete version; with `before`, of the latest strictly below it."""

    __slots__ = (
        "_before",
        "_began_us",
        "_block",
        "_denying",
        "_forbidding",
        "_inquiry",
        "_is_named",
        "_refusals",
        "_session",
        "_silences",
        "_who",
    )

    def __init__(
        self,
        session: Session,
        block: BlockId,
        before: BlockTimestamp | None,
        who: Credentials = NOBODY,
        *,
        silences: int = 0,
        is_named: bool = False,
    ) -> None:
        """A block that `is_named` its caller can ask for by name, if nodes say that it is gone.

        So nobody is waited for any more then.

        If it tolerates `silences`, nodes' word that permission lacks is not final.

        It then ends with `NodesDisagree`, when more than t nodes say so, or when it does not come
        to an end without those that do: after so many silences, since the others were asked.
        """
        self._silences = silences
        # Of a named block: what the first node said that calls its file gone.
        self._denying: Refused | None = None
        self._is_named = is_named
        self._forbidding = NO_NODES
        self._who = who
        self._session = session
        self._block = block
        self._before = before
        self._began_us = 0
        self._inquiry: Inquiry[Question]
        self._refusals: Refusals

    async def run(self) -> FoundVersion:
        """The latest complete version.

        Raises QuorumUnavailable if total patience runs out, AdmissionRefused if more than t nodes
        refuse, NoLongerKept, or VersionUnrecoverable if a version that must be returned cannot be.
        """
        left_us, pause_us = self._session.patience_total_us, limits.READ_PATIENCE_US
        while (version := await self._descend()) is None:
            # [LazyVer §3.8.3] Garbage collection has overtaken this read: a newer complete version
            # exists, so nodes have removed those that it looked for. It begins again. Not at once:
            # of a patch there may be none, as nodes collect it when the block is replaced.
            await Pause(pause_us)
            if left_us is not None:
                left_us -= pause_us
                if left_us <= 0:
                    raise QuorumUnavailable(
                        heard=0,
                        required=self._session.thresholds.responses,
                        subject=f"read of block {self._block.hex()}",
                    )
            pause_us = min(2 * pause_us, limits.PATIENCE_MOST_US)
        return version

    async def _descend(self) -> FoundVersion | None:
        """The latest complete version; None if garbage collection overtook the descent."""
        descent = await self._begin()
        await self._ask(descent.begin())
        lapses = 0
        while True:
            call = await self._inquiry.answer()
            if call is not None:
                self._take(descent, *call)
            else:
                # The first silence has the others asked as well.
                if self._forbidding and lapses >= self._silences:
                    raise NodesDisagree(self._forbidding, heard=self._permitting)
                if self._denying is not None:
                    raise AdmissionRefused(code=self._denying.code, reason=self._denying.reason)
                lapses += 1
                await self._ask(descent.lapse())
                if descent.is_overtaken:
                    return None
            while isinstance(decision := descent.decide(), Usable):
                version = await self._use(descent.responses, decision)
                if version is not None:
                    if self._forbidding:  # the next one need not find out again how far others are
                        self._session.bore(lapses, self._began_us)
                    return version
                descent.pass_over(decision.timestamp)
            if decision is None:
                return None
            if decision:
                await self._ask(decision)

    async def _begin(self) -> Descent:
        session = self._session
        peers, thresholds = session.peers, session.thresholds
        self._began_us = now_us = await Now()
        # Nodes that hold stripes come first; those that were silent or faulty lately come last.
        by_fragment = session.by_fragment[rotation_of(self._block, thresholds.N)]
        nodes, probes = peers.order(by_fragment, now_us)
        silent: frozenset[NodeId] = frozenset()
        if nodes is not by_fragment:
            silent = frozenset(node for node in nodes if not peers.willing(node))
        nodes = self._order(nodes)
        self._refusals = Refusals(peers.quorums)
        self._inquiry = Inquiry(
            peers,
            peers.reads,
            subject=f"read of block {self._block.hex()}",
            required=thresholds.responses,
            now_us=now_us,
            patience_total_us=session.patience_total_us,
        )
        return Descent(
            thresholds,
            self._block,
            self._before,
            nodes,
            session.lives,
            silent=silent,
            probes=probes,
        )

    def _order(self, nodes: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
        """The order in which to ask `nodes`."""
        return nodes

    # --- asking and listening ----------------------------------------------------------------

    async def _ask(self, questions: list[Question]) -> None:
        block, who = self._block, self._who
        requests = [
            Send(each.node, ReadRequest(block, each.before, each.want_data, each.history, *who))
            for each in questions
        ]
        await self._inquiry.send(requests, questions)

    def _take(self, descent: Descent, delivery: Delivery, question: Question) -> None:
        node, message = question.node, delivery.message
        verdict = descent.take(question, message, delivery.body)
        if verdict is not _VALID:
            note_verdict(self._session.peers, node, verdict, self._began_us)
        elif isinstance(message, ReadReply):
            if self._forbidding:
                self._forbidding = self._forbidding.minus(node)  # it knows better now
        elif not message.may_pass:
            if self._silences and message.code in FORBIDDEN:
                self._forbid(node)
            else:
                if message.code == errno.ESTALE and self._is_named:
                    self._denying = message
                self._refusals.add(node, message)

    def _forbid(self, node: NodeId) -> None:
        """This node does not permit it."""
        self._forbidding = self._forbidding.plus(node)
        require_enough(
            self._session.peers.quorums,
            self._forbidding,
            self._refusals.nodes,
            heard=self._permitting,
        )

    @property
    def _permitting(self) -> int:
        """How many nodes have not said that it is not permitted."""
        return self._session.thresholds.N - len(self._forbidding)

    # --- using a candidate -------------------------------------------------------------------

    async def _use(self, responses: Responses, usable: Usable) -> FoundVersion | None:
        """Decode a candidate, and validate and repair it if need be; None if it is incomplete."""
        session, timestamp = self._session, usable.timestamp
        if timestamp == ZERO:
            return NEVER_WRITTEN
        fragments, verifier = responses.fragments(timestamp), timestamp.verifier
        trusted = verifier in session.validated or responses.verified(timestamp)
        if trusted and usable.classification is CandidateClass.COMPLETE:
            item = item_of(session.code, fragments)
            return None if item is None else FoundVersion(timestamp, item)
        checksum = responses.cross_checksum(timestamp)
        valid = await Compute(partial(validate, session.code, checksum, fragments))
        if valid is None:
            return None
        session.validated.add(verifier)
        if usable.classification is CandidateClass.REPAIRABLE:
            hosts = responses.hosts(timestamp) + responses.damaged_hosts(timestamp)
            encoded = Encoded(valid.fragments, checksum, verifier)
            if not await repair(session, self._block, timestamp, encoded, hosts=frozenset(hosts)):
                return None
        return FoundVersion(timestamp, valid.item)
