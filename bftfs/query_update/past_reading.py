"""Reading the past of replicated objects: the state at a time, and the versions down from one.

**Situation.** A reader asks for an object as of a time. Servers may lie about the past as about
the present, and candidates from before that time may still be undecided.

**Rules.** An answer about the past needs the same evidence as one about the present:

1. A quorum's replica histories show the latest established version E, as for any query.
2. Servers that have E on their chain tell which version on it was the newest at that time, and the
   answer on that version. They are believed when they cannot all be malevolent.
3. A candidate later than E, with a time up to the one asked for, is repaired first if anybody could
   yet find it repairable: if enough servers show it, or may have it without showing it.

**Why it is safe.** One of the servers that are believed is benign; and established versions form
one chain, which is the same below E at all benign servers that know it. Nothing more can become
established at a time of the past: candidates that rule 3 passes over stay incomplete, and correct
servers accept no method whose time is behind their clock by more than `limits.CLOCK_SKEW_US`. So
a state from before that is the same for all readers, now and later. Several objects as of one time
are one state: an operation has one timestamp at all of its objects, and the order of timestamps is
a serial order of all operations. [Q/U §4.3.7]

**Tests.** `tests/unit/query_update/test_past.py`, `tests/simulation/test_past.py`.

**Concurrency.** As `client`: consistent between awaits.
"""

from __future__ import annotations

from typing import Final

import msgspec

from bftfs.asking.ask import Asking
from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError, NoLongerKept, PastUnknown
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.classification import OperationType
from bftfs.query_update.client import Answered, QueryUpdateClient
from bftfs.query_update.effort import Outcome
from bftfs.query_update.history import (
    ZERO,
    Known,
    LogicalTimestamp,
    ReplicaHistory,
    parse_history,
    time_of,
)
from bftfs.query_update.messages import (
    Looked,
    PastQuery,
    PastReply,
    PastVersion,
    VersionsReply,
    VersionsRequest,
)
from bftfs.query_update.object_type import Record, encode_record
from bftfs.query_update.repair import Attempts
from bftfs.query_update.rounds import Answer, Plan, Rounds, Votes

_ATTEMPTS: Final = 64  # at agreement, with repair and back-off in between

_decode_page = msgspec.msgpack.Decoder(tuple[PastVersion, ...]).decode


class PastReader:
    """A client's access to the past of replicated objects."""

    def __init__(self, client: QueryUpdateClient) -> None:
        self._client = client
        self._rounds = client.rounds
        self._repairs = client.repairs

    async def query(
        self,
        identifier: ObjectId,
        method: str,
        arguments: Record,
        credentials: Credentials,
        *,
        at_us: int,
    ) -> Answered:
        """Invoke a query on the newest established version whose time is `at_us` or earlier.

        Its timestamp is ZERO for the object's initial version.

        Raises FileSystemError if it refuses, PastUnknown if too few servers remember that time,
        NoLongerKept if a benign one says that it had to forget it.
        """
        encoded = encode_record(arguments)
        attempts = Attempts(self._repairs, credentials, reads=True)
        cursors: dict[NodeId, LogicalTimestamp] = {}
        whole_from: NodeId | None = None
        for _ in range(_ATTEMPTS):
            plan = await self._rounds.plan((identifier,), attempts.hosting)
            chosen = plan.order[0] if whole_from is None else whole_from

            def request(node: NodeId, chosen: NodeId = chosen) -> PastQuery:
                return PastQuery(
                    identifier,
                    at_us,
                    cursors.get(node, b""),
                    method,
                    encoded,
                    *credentials,
                    chosen,
                )

            tally = _PastTally(self._rounds, plan, at_us, cursors)
            tally.conclude(
                await self._rounds.run(plan, request, PastReply, tally.take, subject=method)
            )
            if tally.found is not None:
                version, answer = tally.found
                if answer.error:
                    raise FileSystemError(answer.error, method)
                content = tally.votes.wholes.get(tally.found)
                if content is not None:
                    found = self._client.types.method(method)
                    assert found is not None, "servers have invoked it"
                    return Answered(self._client.types.decode_answer(found, content), version)
                whole_from = _another(plan, tally.votes.by[tally.found], whole_from)
                continue
            if tally.is_collected:
                raise NoLongerKept(subject=identifier.hex(), at_us=at_us)
            if tally.is_forgotten:
                raise PastUnknown(subject=identifier.hex(), at_us=at_us)
            if tally.is_disorderly:
                self._client.observations.keep(identifier, tally.reported)
            await attempts.go_on(tally.outcome, (identifier,))
        raise PastUnknown(subject=identifier.hex(), at_us=at_us)

    async def latest(self, identifier: ObjectId, who: Credentials) -> LogicalTimestamp:
        """The latest established version of an object."""
        await self._repairs.refresh((identifier,))
        await self._repairs.repair((identifier,), who)
        return self._client.observations.condition_on(identifier).version

    async def versions(
        self,
        identifier: ObjectId,
        *,
        newest: LogicalTimestamp,
        most: int,
        prefixes: tuple[bytes, ...],
        credentials: Credentials,
    ) -> tuple[PastVersion, ...]:
        """One page of the established versions from `newest` down, the newest first.

        Requires: `newest` is established. Go on with the last one's parent, unless that is ZERO.
        The page is empty if what is asked for is no longer kept.
        Raises FileSystemError if the object does not permit it now.
        """
        whole_from: NodeId | None = None
        for _ in range(_ATTEMPTS):
            plan = await self._rounds.plan((identifier,))
            request = VersionsRequest(
                identifier,
                newest,
                *credentials,
                most,
                prefixes,
                plan.order[0] if whole_from is None else whole_from,
            )
            votes = await self._listed(plan, request)
            page = votes.agreed()
            if page is None:
                raise PastUnknown(subject=identifier.hex(), at_us=time_of(newest))
            if page.error:
                raise FileSystemError(page.error, "versions")
            content = votes.wholes.get(page)
            if content is not None:
                return _decode_page(content)
            whole_from = _another(plan, votes.by[page], whole_from)
        raise PastUnknown(subject=identifier.hex(), at_us=time_of(newest))

    async def _listed(self, plan: Plan, request: VersionsRequest) -> Votes[Answer]:
        """A page of versions, as servers give it."""
        quorums = self._rounds.quorums
        votes: Votes[Answer] = Votes(quorums)

        def take(asking: Asking, node: NodeId, reply: VersionsReply) -> None:
            if reply.found:
                answer = Answer.given(error=reply.error, answer=reply.page, whole=reply.whole)
                votes.add(node, answer, reply.page, whole=reply.whole)
            agreed = votes.agreed()
            if agreed in votes.wholes:
                asking.enough()
            elif quorums.is_quorum(asking.answered):
                asking.enough_or_more(agreed is not None)

        await self._rounds.run(plan, request, VersionsReply, take, subject="versions")
        return votes


def _another(plan: Plan, voters: Nodes, tried: NodeId | None) -> NodeId | None:
    """The next one to ask for the whole of what `voters` say."""
    return next((node for node in plan.order if node in voters and node != tried), None)


class _PastTally:
    """A round of queries of the past."""

    def __init__(
        self, rounds: Rounds, plan: Plan, at_us: int, cursors: dict[NodeId, LogicalTimestamp]
    ) -> None:
        self.rounds = rounds
        self.quorums = rounds.quorums
        self.plan = plan
        (self._identifier,) = plan.names
        self._at_us = at_us
        self._cursors = cursors
        self._seen: dict[NodeId, tuple[ReplicaHistory, PastReply]] = {}
        self.reported: dict[NodeId, Known] = {}  # the replica histories of those that answered
        self.votes: Votes[tuple[LogicalTimestamp, Answer]] = Votes(self.quorums)
        self.found: tuple[LogicalTimestamp, Answer] | None = None
        self.is_disorderly = False  # the object has to be repaired before its past can be read
        self.is_pending = False  # a candidate that would count is undecided
        self.is_forgotten = False  # all have answered, and too few remember
        self.is_collected = False  # too few remember, and some of them need not any longer

    @property
    def outcome(self) -> Outcome:
        """What has happened, if nothing was found."""
        if self.is_pending:
            return Outcome.PENDING
        return Outcome.DISORDER if self.is_disorderly else Outcome.UNSETTLED

    def take(self, asking: Asking, node: NodeId, reply: PastReply) -> None:
        """Count the reply of one server."""
        if reply.looked is Looked.FURTHER:
            before = self._cursors.get(node)
            if before is None or reply.version < before:
                self._cursors[node] = reply.version
                asking.again(node)
                return
            self.rounds.peers.convict(Nodes.of([node]), self.plan.now_us)
        else:
            learned = self.rounds.learn(self.plan, node, reply)
            if learned is not None:
                self._seen[node] = (parse_history(reply.histories[0]), reply)
                (self.reported[node],) = learned
        if self.quorums.is_quorum(asking.answered):
            asking.enough_or_more(self._evaluate(asking.answered))

    def conclude(self, asking: Asking) -> None:
        """The round is over; what was heard counts only if nobody has begun a new life since."""
        if self.rounds.is_outdated(self.plan):
            self.found = None
            self.is_collected = self.is_forgotten = self.is_disorderly = False

    def _evaluate(self, answered: Nodes) -> bool:
        """Whether the replies of a quorum contain the answer, or show that there is none yet."""
        quorums, observations = self.quorums, self.rounds.observations
        reported = self.reported
        survey = observations.survey(self._identifier, reported)
        established = survey.object_candidate.timestamp
        complete = quorums.is_quorum(survey.nodes & Nodes.of(reported))
        self.is_disorderly = not complete and (
            established == ZERO or survey.type is not OperationType.METHOD
        )
        self.is_pending = self._has_pending(established)
        if self.is_pending:
            self.is_disorderly = True
        if self.is_disorderly:
            return False
        self.votes = Votes(quorums)
        for node, (history, reply) in self._seen.items():
            has = history.initial if established == ZERO else history.find(established) is not None
            if has and reply.looked is Looked.FOUND and reply.version <= established:
                answer = Answer.given(error=reply.error, answer=reply.answer, whole=reply.whole)
                self.votes.add(node, (reply.version, answer), reply.answer, whole=reply.whole)
        self.found = self.votes.agreed()
        if self.found is None:
            self.is_forgotten = answered == quorums.everyone
            collected = Nodes.of(
                node for node, (_, reply) in self._seen.items() if reply.looked is Looked.COLLECTED
            )
            self.is_collected = quorums.includes_benign(collected)
        return self.found is not None or self.is_collected

    def _has_pending(self, established: LogicalTimestamp) -> bool:
        """Whether a later candidate that is old enough to count may be, or become, repairable."""
        showing: dict[LogicalTimestamp, Nodes] = {}
        for node, (history, _) in self._seen.items():
            if history.latest <= established:
                continue
            for candidate in history.candidates:
                timestamp = candidate.timestamp
                if (
                    established < timestamp
                    and time_of(timestamp) <= self._at_us
                    and not candidate.barrier
                    and self.rounds.observations.facts.get(timestamp) is not False
                ):
                    showing[timestamp] = showing.get(timestamp, NOBODY).plus(node)
        quorums = self.quorums
        unheard = quorums.everyone - Nodes.of(self._seen)
        for nodes in showing.values():
            hiding = NOBODY  # as many of those that do not show it as may all be malevolent
            for node in self._seen:
                more = hiding.plus(node)
                if node not in nodes and not quorums.includes_benign(more):
                    hiding = more
            if quorums.is_repairable(nodes | hiding | unheard):
                return True
        return False
