"""One read of one block, as a conversation. [PASIS §3.4.3.3, §3.5.1.2]

A descent begins with the latest candidate and goes down until one is complete or can be repaired.
The first request goes to as many nodes as can prove a candidate complete; m of them are asked for
fragments, those with the stripes if possible, and the others are witnesses. Further nodes are asked
on silence, and on anything but a complete candidate.

**Concurrency.** A `Reading` belongs to one conversation and is used once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.coding.erasure import Buffer
from bftfs.conversation import Compute, Delivery, Now, Receive, Send
from bftfs.errors import NoLongerKept, VersionUnrecoverable
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write.classification import Classification, classify
from bftfs.read_write.gathering import Refusals
from bftfs.read_write.messages import Below, ReadReply, ReadRequest
from bftfs.read_write.placement import rotation_of
from bftfs.read_write.repair import Repair
from bftfs.read_write.responses import Responses, Verdict
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import ZERO, BlockTimestamp, successor_of
from bftfs.read_write.validation import item_of, regenerate
from bftfs.read_write.writing import Encoded


@dataclass(frozen=True, slots=True)
class Version:
    """What a read returns. `item` is None for a block that was never written (timestamp ZERO)."""

    timestamp: BlockTimestamp
    item: bytes | None


NEVER_WRITTEN = Version(ZERO, None)


class _Asked(NamedTuple):
    """An unanswered request."""

    node: NodeId
    before: BlockTimestamp | None
    want_data: bool
    fetches: BlockTimestamp | None  # the version whose fragment is asked for; None: a listing


class _Step(Enum):
    """What a descent does after it has looked at the responses."""

    LISTEN = "listen"
    HEAR_MORE = "hear more"
    USE = "use the candidate"


class Examination:
    """What a verifying node takes down as it reads. [LazyVer §3.8.1]"""

    __slots__ = ("encoded", "idle_ms", "node", "poisonous", "unfinished")

    def __init__(self, node: NodeId) -> None:
        self.node = node  # it asks itself before it asks others
        self.idle_ms: dict[NodeId, int] = {}  # for how long clients have left each node alone
        self.poisonous: list[BlockTimestamp] = []
        self.unfinished: list[BlockTimestamp] = []  # valid, and neither complete nor incomplete
        self.encoded: Encoded | None = None  # the latest complete valid version


class Reading:
    """One read. `before` bounds the versions that count.

    With an `examination` it is a node's verification: every candidate is validated, whoever may
    have done so before, and none is repaired.
    """

    __slots__ = (
        "_asked",
        "_before",
        "_block",
        "_candidate",
        "_classification",
        "_cursor",
        "_examination",
        "_fetching",
        "_lapsed",
        "_listed",
        "_listing",
        "_nodes",
        "_refusals",
        "_responses",
        "_rotation",
        "_session",
        "_silence",
        "_silent",
        "_withheld",
    )

    def __init__(
        self,
        session: Session,
        block: BlockId,
        before: BlockTimestamp | None,
        examination: Examination | None = None,
    ) -> None:
        self._session = session
        self._examination = examination
        self._block = block
        self._before = before
        self._rotation = rotation_of(block, session.thresholds.N)
        self._silence = session.silence(session.read_patience)
        self._begin(frozenset())

    def _begin(self, silent: frozenset[NodeId]) -> None:
        """The state of one descent."""
        nodes = self._session.by_fragment[self._rotation]
        # Stripes first, but those that were silent or faulty lately last.
        self._nodes = tuple(sorted(nodes, key=silent.__contains__)) if silent else nodes
        if self._examination is not None:
            m = self._session.thresholds.m
            self._nodes = tuple(
                dict.fromkeys((*self._nodes[:m], self._examination.node, *self._nodes))
            )
        self._responses = Responses(self._session.thresholds, self._rotation)
        self._refusals = Refusals(self._session.thresholds)
        self._asked: dict[int, _Asked] = {}
        self._listed: dict[NodeId, int] = {}  # how many listings a node has been asked for
        self._cursor = self._before  # candidates at or above it are classified as incomplete
        self._candidate: BlockTimestamp | None = None
        self._classification = Classification.UNDECIDED
        self._listing: set[NodeId] = set()  # nodes whose listing is on its way
        self._fetching: set[NodeId] = set()  # nodes whose fragment of the candidate is on its way
        self._withheld: set[NodeId] = set()  # nodes that list the candidate and keep its fragment
        self._silent = set(silent)
        self._lapsed = False  # whether patience has run out in this descent

    async def run(self) -> Version:
        """The latest complete version.

        Raises QuorumUnavailable if total patience runs out, AdmissionRefused if more than t nodes
        refuse, VersionUnrecoverable if a version that must be returned cannot be.
        """
        session = self._session
        while True:
            avoided: frozenset[NodeId] = frozenset()
            if session.standings.marked:
                avoided = session.standings.avoided(await Now())
            self._begin(avoided)
            version = await self._descend()
            if version is not None:
                self._silence.ended()
                return version
            # [LazyVer §3.8.3] Garbage collection has overtaken this read: a complete version newer
            # than all it could have found makes them superfluous. Such a read must be retried.

    async def _descend(self) -> Version | None:
        """The latest complete version; None if garbage collection overtook the descent."""
        thresholds = self._session.thresholds
        for position, node in enumerate(self._nodes[: thresholds.first_asked]):
            await self._list(
                node, self._before, want_data=position < thresholds.m, most=limits.HISTORY_AT_FIRST
            )
        while True:
            heard = await self._listen()
            if not heard and self._before is None and self._responses.forgetful(self._candidate):
                return None
            if self._listing and len(self._responses.depth) < thresholds.first_asked:
                continue
            while True:
                candidate = self._responses.candidate(self._cursor)
                if candidate != self._candidate:
                    self._candidate = candidate
                    self._fetching.clear()
                    self._withheld.clear()
                step = self._judge(candidate)
                if step is not _Step.USE or candidate is None:
                    break
                if self._classification is not Classification.INCOMPLETE:
                    if candidate == ZERO:
                        return NEVER_WRITTEN
                    if len(self._responses.fragments(candidate)) < thresholds.m:
                        await self._fetch(candidate)
                        break
                    version = await self._use(candidate)
                    if version is not None:
                        return version
                # [PASIS Figure 3.2 line 18] Incomplete, or the cross-checksum did not validate.
                self._cursor = candidate
            if (
                step is _Step.HEAR_MORE
                and not await self._hear_more(again=False)
                and self._responses.forgetful(candidate) > thresholds.b
            ):
                if self._before is None:
                    return None
                raise NoLongerKept(subject=f"block {self._block.hex()}", at_us=self._before.time)

    # --- judging -----------------------------------------------------------------------------

    def _judge(self, candidate: BlockTimestamp | None) -> _Step:
        """Classify `candidate`, and say what follows."""
        # Who was silent and has been asked again is not waited for: others are asked meanwhile.
        wait = _Step.LISTEN if self._listing - self._silent else _Step.HEAR_MORE
        if candidate is None:
            return wait
        thresholds, responses = self._session.thresholds, self._responses
        heard = responses.heard(candidate)
        # A node that lists a version and keeps its fragment is as good as silent.
        hosting = len(responses.hosts(candidate)) - len(self._withheld)
        hearing = len(heard) - len(self._withheld)
        classification = classify(thresholds, hosting=hosting, heard=hearing)
        if classification is Classification.UNDECIDED and self._damaged_count():
            hosting += len(responses.damaged_hosts(candidate))
            hearing += len(responses.damaged_heard(candidate))
            classification = classify(thresholds, hosting=hosting, heard=hearing)
        if classification is Classification.UNDECIDED and self._before is not None:
            classification = self._without_memory(candidate, hosting, hearing)
        self._classification = classification
        if classification is Classification.COMPLETE:
            return _Step.USE
        if classification is Classification.UNDECIDED:
            return wait
        # N - t responses decide. But where the others could change the answer for the better, and
        # are not known to be silent, one more round trip to them is cheaper than a repair, and
        # finds what is left of a version when more was lost than the fault model allows.
        hopeful = hosting + self._may_still_answer(heard)
        better = (
            thresholds.repairable
            if classification is Classification.INCOMPLETE
            else thresholds.complete
        )
        if hosting and hopeful >= better:
            return wait
        return _Step.USE

    def _without_memory(
        self, candidate: BlockTimestamp, hosting: int, hearing: int
    ) -> Classification:
        """`candidate` as of the past, if the silent stay silent and others have collected it.

        Up to b nodes that say so, and are asked in vain once more, count as heard: N - t - b others
        meet every QC nodes by (3.4), so no newer complete version is overlooked. They may have
        hosted the candidate or not; what it is has to be the same in both cases.
        """
        thresholds = self._session.thresholds
        forgetful = self._responses.forgetful(candidate)
        if not 0 < forgetful <= thresholds.b or self._silence.lapses <= 1:
            return Classification.UNDECIDED
        without, with_them = (
            classify(thresholds, hosting=each, heard=hearing + forgetful)
            for each in (hosting, hosting + forgetful)
        )
        incomplete = Classification.INCOMPLETE
        same = (without is incomplete) is (with_them is incomplete)
        return without if same else Classification.UNDECIDED

    def _damaged_count(self) -> bool:
        """Whether what a node lists counts, although it sent a false fragment with it.

        Such a response is discarded, and one more is awaited [PASIS §3.4.3.3]. But if more than b
        nodes send such, or the others stay silent, then disks are damaged beyond the fault model,
        and discarding these responses would let good fragments go to waste, for want of N - t valid
        ones. To count them is safe, for what any N - t responses show may come from b liars anyway;
        and as soon as N - t valid responses decide, they no longer count.
        """
        return len(self._responses.damaged) > self._session.thresholds.b or self._lapsed

    def _may_still_answer(self, heard: list[NodeId]) -> int:
        responses = self._responses
        return sum(
            1
            for node in self._nodes
            if node not in heard
            and self._listed.get(node, 0) <= 1  # a liar's history can be as long as it likes
            and node not in self._silent
            and node not in responses.convicted
            and node not in responses.collected
        )

    # --- asking ------------------------------------------------------------------------------

    async def _list(
        self, node: NodeId, before: BlockTimestamp | None, *, want_data: bool, most: int
    ) -> None:
        """Ask `node` for its versions below `before`."""
        request = ReadRequest(self._block, before, want_data, most)
        self._listing.add(node)
        self._listed[node] = self._listed.get(node, 0) + 1
        self._asked[await Send(node, request)] = _Asked(node, before, want_data, None)

    async def _hear_more(self, *, again: bool) -> bool:
        """Ask every node that has not said whether it hosts the candidate; whether there is any.

        Nodes that have been asked and were silent are asked once more only if `again`.
        """
        responses = self._responses
        candidate = responses.candidate(self._cursor)
        wanted = self._session.thresholds.m
        if candidate is not None:
            wanted -= len(responses.fragments(candidate)) + len(self._fetching)
        wanted -= sum(1 for asked in self._asked.values() if self._expects_data(asked))
        sent = False
        for node in self._nodes:
            if node in responses.convicted or node in self._listing:
                continue
            depth = responses.depth.get(node)
            if depth is None:
                if node in self._listed and not again:
                    continue
                want_data = wanted > 0
                wanted -= want_data
                most = limits.HISTORY_IN_REPLY
                await self._list(node, self._cursor, want_data=want_data, most=most)
            elif (
                (candidate is None or depth > candidate)
                and node not in responses.collected
                and self._listed[node] < limits.LISTINGS_AT_ONCE * (1 + self._silence.lapses)
            ):
                # [PASIS §3.5.1.2] Further rounds fetch only version histories. A liar may go on
                # listing for ever: it must not keep the read from turning to silent nodes again.
                await self._list(node, depth, want_data=False, most=limits.HISTORY_IN_REPLY)
            else:
                continue
            sent = True
        return sent

    def _expects_data(self, asked: _Asked) -> bool:
        return asked.want_data and asked.fetches is None and asked.node in self._listing

    async def _fetch(self, candidate: BlockTimestamp) -> None:
        """Ask for fragments of `candidate` that are not in hand. [PASIS §3.5.1.2]"""
        responses = self._responses
        hosts = responses.hosts(candidate)
        wanted = self._session.thresholds.m - len(responses.fragments(candidate))
        wanted -= len(self._fetching - self._withheld)  # who was silent may stay so
        if wanted <= 0:
            return
        for node in self._nodes:
            if (
                node in hosts
                and node not in self._fetching
                and node not in self._withheld
                and not responses.has_fragment_of(node, candidate)
            ):
                await self._fetch_from(node, candidate)
                wanted -= 1
                if wanted == 0:
                    return
        if self._fetching or self._listing:
            return
        if await self._hear_more(again=False):
            return
        known = {*responses.heard(candidate), *responses.convicted} - self._withheld
        if known.issuperset(self._nodes):
            raise VersionUnrecoverable(
                f"block {self._block.hex()}: only {len(responses.fragments(candidate))} of the "
                f"{self._session.thresholds.m} fragments needed are left of its version of "
                f"time {candidate.time}"
            )

    async def _fetch_from(self, node: NodeId, candidate: BlockTimestamp) -> None:
        before = successor_of(candidate)
        request = ReadRequest(self._block, before, want_data=True, history=0)
        self._fetching.add(node)
        self._asked[await Send(node, request)] = _Asked(node, before, True, candidate)

    # --- listening ---------------------------------------------------------------------------

    async def _listen(self) -> bool:
        """Take the next reply, or draw the consequences of a silence; whether there was one."""
        delivery = await Receive(self._silence.patience_us)
        if delivery is None:
            await self._lapse()
            return False
        asked = self._asked.pop(delivery.request_number, None)
        if asked is None:
            return True  # the answer to the repair of a candidate that was given up
        node = asked.node
        self._silent.discard(node)
        self._silence.answered(delivery.request_number)
        if self._session.standings.marked:
            self._session.standings.heard(node, await Now())
        if asked.fetches is None:
            self._listing.discard(node)
        elif asked.fetches == self._candidate:
            self._fetching.discard(node)
            self._withheld.discard(node)
        message = delivery.message
        if isinstance(message, ReadReply):
            await self._take(asked, message, delivery)
        elif isinstance(message, Refused):
            self._silent.add(node)
            self._refusals.add(node, message)
        else:
            self._responses.convict(node)
            await self._blame(node)
        return True

    async def _take(self, asked: _Asked, reply: ReadReply, delivery: Delivery) -> None:
        node, wanted = asked.node, asked.fetches
        if self._examination is not None:
            self._examination.idle_ms[node] = reply.idle_ms
        verdict = self._responses.add(
            node,
            reply,
            delivery.body,
            before=asked.before,
            want_data=asked.want_data,
            lists=wanted is None,
        )
        if verdict is not Verdict.VALID:
            await self._blame(node)
        elif wanted is not None and not self._responses.has_fragment_of(node, wanted):
            collected = reply.below is Below.COLLECTED
            self._responses.withdraw(node, wanted, collected=collected)

    async def _blame(self, node: NodeId) -> None:
        self._withheld.discard(node)
        self._session.standings.faulty(node, await Now())

    async def _lapse(self) -> None:
        """Patience has run out: widen, and from the second silence on ask the silent again."""
        responses = self._responses
        self._silence.lapse(
            self._asked,
            heard=len(responses.depth),
            required=self._session.thresholds.responses,
            subject=f"read of block {self._block.hex()}",
        )
        self._lapsed = True
        now_us = await Now()
        for node in sorted(self._listing | self._fetching):
            self._session.standings.silent(node, now_us)
        self._silent.update(node for node in self._nodes if node not in responses.depth)
        self._silent.update(self._listing)
        mute, self._withheld = self._withheld, self._withheld | self._fetching
        self._listing.clear()
        self._fetching.clear()
        for number in list(self._asked)[: -limits.LATE_REQUESTS]:
            del self._asked[number]
        again = self._silence.lapses > 1
        if again and self._before is not None:
            # Who did not know its past any more may have been given it by its peers meanwhile; and
            # if the silent stay silent, it makes the number.
            responses.hear_anew(self._candidate)
        await self._hear_more(again=again)
        if again and self._candidate is not None:
            for node in sorted(mute):
                await self._fetch_from(node, self._candidate)

    # --- using a candidate -------------------------------------------------------------------

    async def _use(self, candidate: BlockTimestamp) -> Version | None:
        """Validate and, if necessary, repair `candidate`; None if it counts as incomplete."""
        session, responses = self._session, self._responses
        fragments = responses.fragments(candidate)
        verifier = candidate.verifier
        if self._examination is not None:
            return await self._examine(candidate, self._examination)
        trusted = verifier in session.validated or responses.verified(candidate)
        if trusted and self._classification is Classification.COMPLETE:
            item = item_of(session.code, fragments)
            return None if item is None else Version(candidate, item)
        checksum = responses.cross_checksum(candidate)
        generated: tuple[Buffer, ...] | None = await Compute(
            lambda: regenerate(session.code, checksum, fragments)
        )
        if generated is None:
            return None
        item = item_of(session.code, dict(enumerate(generated[: session.thresholds.m])))
        if item is None:
            return None
        session.validated.add(verifier)
        if self._classification is Classification.REPAIRABLE:
            repair = Repair(
                session,
                self._block,
                candidate,
                Encoded(generated, checksum, verifier),
                hosts=frozenset(responses.hosts(candidate) + responses.damaged_hosts(candidate)),
            )
            if not await repair.run():
                return None
        return Version(candidate, item)

    async def _examine(self, candidate: BlockTimestamp, examination: Examination) -> Version | None:
        """Validate `candidate`; None if it is not the latest complete valid version.

        [LazyVer §3.8.3] A node that verifies need not repair: it reads prior versions until it
        finds a complete one. What fails validation is poisonous whoever hosts it.
        """
        session, responses = self._session, self._responses
        fragments, checksum = responses.fragments(candidate), responses.cross_checksum(candidate)
        generated: tuple[Buffer, ...] | None = await Compute(
            lambda: regenerate(session.code, checksum, fragments)
        )
        if generated is None or (
            item_of(session.code, dict(enumerate(generated[: session.thresholds.m]))) is None
        ):
            examination.poisonous.append(candidate)
            return None
        if self._classification is Classification.REPAIRABLE:
            examination.unfinished.append(candidate)
            return None
        examination.encoded = Encoded(generated, checksum, candidate.verifier)
        return Version(candidate, None)
