"""How a server gets back every object that it should have. [design §7, G8]

The server walks over all objects in the order of their ids. It asks its peers which they have, and
how late their replica histories are; where b + 1 of them are later than its own, it asks all for
the history, brings the version by object sync, and takes its candidate into its own history.

**Rule.** [Q/U §4.3.3] A server takes over an object candidate that it was not asked to accept only
where it has accepted nothing later itself, and

- it is at a full quorum of other servers: then it is established for all of its objects, and
  nothing that conflicts with it can ever be repairable; or
- the server is recovering from the loss of its store, and the candidate is at a repairable set of
  other servers: then whatever this server has accepted and forgotten, nothing that conflicts with
  the candidate is established: q - 1 + r - (n - 1) > b (4.4), so that a benign server would have
  had to accept both. While it recovers it accepts nothing that does not meet the same condition.
  An operation on several objects it takes over at all of them, as the latest, or at none, unless
  b + 1 peers say that it is established.

A recovering server has begun a new life (`.lives`), and asks q others that remember the object and
have stored that: what it accepted in its earlier lives, and they did not when they answered, cannot
be counted together with them any more. It serves an object only after it has taken over what r of
them have, with what that is built on [`.beneath`], and waits where others have to decide about a
copy first. [`.undecided`; docs/protocols-query-update.md, A server that lost its store]

**Damaged objects.** Scrubbing marks them. One whose replica history is whole is made anew from what
the peers have of the version that it stands at. Of one whose replica history is damaged, or whose
version nobody else has, the server has forgotten what it accepted: the object is dropped, and the
server recovers as if it had lost its store. Objects of which it has the latest state only, because
object sync brought no more, are marked too, and made anew with their past once that can be had.

**Tests.** `tests/unit/server/test_healing.py`, `tests/simulation/test_lost_disks.py`,
`tests/seams/test_lost_disks.py`, which has the must-fail tests.

**Concurrency.** One thread. A walk and a request may heal one object: the later changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from bftfs import limits
from bftfs.asking.lives import Heard, Lives
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.conversation import Now, Pause, Together
from bftfs.crypto.digest import LIFE_DIGEST, AuthenticatorKeys, life_of
from bftfs.errors import MalformedMessage
from bftfs.identifiers import OBJECT_ID_BYTES, NodeId, ObjectId, ObjectKind
from bftfs.query_update import between_nodes
from bftfs.query_update.between_nodes import catalogue, latest_of_all
from bftfs.query_update.classification import Shared, is_in_order, shared_candidates, sharing
from bftfs.query_update.history import (
    INITIAL,
    ZERO,
    Candidate,
    CulledObjectHistorySet,
    Hosted,
    LogicalTimestamp,
    parse_history,
    time_of,
)
from bftfs.query_update.messages import (
    CatalogueReply,
    CatalogueRequest,
    DeduceReply,
    DeduceRequest,
    HistoryReply,
    HistoryRequest,
    Verdict,
)
from bftfs.query_update.replica import (
    ObjectRow,
    Reach,
    Replica,
    Version,
    is_signed,
    own_authenticator,
    rows_of,
    stored_row,
)
from bftfs.server import lives
from bftfs.server.beneath import NOTHING, Beneath, beneath_it, together
from bftfs.server.contradictions import (
    bases,
    in_common,
    is_known_at,
    is_known_established,
    is_left_behind,
    is_shared,
    known_established,
    latest_reported,
    too_many_forgot,
)
from bftfs.server.object_rebuilding import Past, fetch_past, has_beside, remade, replacement
from bftfs.server.recovery import OBJECTS, Recovery
from bftfs.server.step import Host, Want
from bftfs.server.tally import counter
from bftfs.server.undecided import is_undecided
from bftfs.server.worker import (
    HealingTally,
    HealingWalk,
    OtherNodes,
    Throttle,
    fraction_below,
    healing_throttle,
    in_chunks,
    is_stored,
    look,
    passes,
    step,
)
from bftfs.storage import StorageView, Table, Write, after_keys
from bftfs.wire.codec import UNREADABLE, encode

_END = after_keys(OBJECT_ID_BYTES)  # after all ids
_MARK = b"mend"  # in Table.META, before an object's id: the object has to be mended
_DAMAGED = b"d"
_SHALLOW = b"s"  # it lacks its past
_TRIES = 3  # at an object that is being updated meanwhile
_TRY_AGAIN_US = 50_000


def take_over(
    replica: Replica,
    candidate: Candidate,
    keys: AuthenticatorKeys,
    *,
    established: bool,
    is_reported: bool,
    beneath: Beneath = NOTHING,
) -> bool:
    """Take `candidate` into the replica history, after what is `beneath` it.

    `is_reported` if a benign server reports it as it is, or gives the link of its version as it is.
    False if none does and the version differs from it; if the version is missing here; or if the
    history is full.

    Requires: the rule above allows it.
    """
    timestamp = candidate.timestamp
    if replica.history.latest >= timestamp:
        return True
    reach = replica.reach(timestamp)
    if reach is Reach.KNOWN:
        replica.move_to(timestamp)
    elif reach is not Reach.HERE and not (
        reach is Reach.MISSING and between_nodes.take_staged(replica, timestamp)
    ):
        return False
    if not is_reported and not _is_made_by(replica.version(timestamp), candidate):
        return False
    base, copied = beneath
    complete = candidate if established else base or INITIAL
    own_latest = replica.history.latest
    below = copied if base is None else (base, *copied)
    later = [each for each in (*below, candidate) if each.timestamp > own_latest]
    return all(replica.extend(each, keys, complete=complete) for each in later)


def _is_made_by(version: Version | None, candidate: Candidate) -> bool:
    """True if the version tells the same as the candidate: b + 1 servers gave it alike."""
    return (
        version is not None
        and not version.gap
        and version.parent == candidate.conditioned_on
        and version.objects == candidate.objects
        and version.copy == candidate.copy
    )


@dataclass(slots=True)
class ObjectHealingTally(HealingTally):
    """And what the walk has seen of objects that no clock has come to yet."""

    ahead: int = counter("Objects whose latest version is of the future, at the last pass.")
    ahead_names: tuple[ObjectId, ...] = ()  # the first of them
    found_ahead: int = 0  # in the current one, so far
    found_names: tuple[ObjectId, ...] = ()

    def begin(self, now_us: int, progress: float) -> None:
        """A pass begins, or continues after a restart."""
        HealingTally.begin(self, now_us, progress)
        self.found_ahead, self.found_names = 0, ()

    def end(self, now_us: int, *, at_end: bool) -> None:
        """The current pass is over; `at_end`: it has come to the last key."""
        HealingTally.end(self, now_us, at_end=at_end)
        self.ahead, self.ahead_names = self.found_ahead, self.found_names

    def find_ahead(self, names: Sequence[ObjectId]) -> None:
        """The latest versions of these objects, which ascend, are of the future."""
        self.found_ahead += len(names)
        self.found_names = (*self.found_names, *names)[: limits.AHEAD_NAMED]


class _Heard(NamedTuple):
    """What the peers have of an object."""

    history_set: CulledObjectHistorySet
    makes_do: bool  # more than t have forgotten something: it is all that there is


class ObjectHealer:
    """Fetches versions that one server lacks: in the background, or at once for a request."""

    def __init__(
        self,
        node: NodeId,
        peers: Peers,
        keys: AuthenticatorKeys,
        recovery: Recovery,
        throttle: Throttle | None = None,
    ) -> None:
        self.throttle = throttle or healing_throttle()
        self.tally = ObjectHealingTally()
        self._node = node
        self._peers = peers
        self._quorums = peers.quorums
        self._keys = keys
        self._recovery = recovery
        self._others = OtherNodes(node, peers)
        self._lives = Lives()
        self._host: Host | None = None
        self._beginning = False
        self._asked_for: set[ObjectId] = set()  # objects beyond the walk that were healed
        self._walk = HealingWalk(
            b"heal objects",
            _END,
            throttle=self.throttle,
            tally=self.tally,
            fraction=_fraction,
            rebuilding=recovery.rebuilding,
        )
        recovery.walks[OBJECTS] = self._begin_anew
        self._marked: dict[ObjectId, bytes] = {}  # objects to be mended, and why
        # Told of objects that need repair, as far as the latest candidate here shows.
        self.on_disorder: Callable[[ObjectId, LogicalTimestamp], None] | None = None
        # Told of objects of which peers have something later that cannot be taken over.
        self.on_lacking: Callable[[ObjectId], None] | None = None

    # --- on demand ---------------------------------------------------------------------------

    def wanted(self, names: Sequence[ObjectId]) -> Want | None:
        """What a request for these objects has to wait for; None if it can be answered now."""
        if self._recovery.is_lost:
            return Want(b"life", lambda _view: self._begin_on_demand())
        for name in names:
            if self._marked.get(name) == _DAMAGED:
                return Want(b"mend" + name, lambda _view, name=name: self._mend_on_demand(name))  # type: ignore[misc]
            if not self._has_healed(name):
                return Want(b"heal" + name, lambda _view, name=name: self._on_demand(name))  # type: ignore[misc]
        return None

    def remembers(self, name: ObjectId) -> bool:
        """True if this server has forgotten nothing of what it has accepted for an object."""
        return not self._recovery.is_making_do and self._has_healed(name)

    def _has_healed(self, name: ObjectId) -> bool:
        return not self._recovery.is_lost and (
            name < self._walk.complete_until or name in self._asked_for
        )

    async def _begin_on_demand(self) -> list[Write] | None:
        return [] if self._host is not None and await self._begin_life(self._host) else None

    async def _begin_life(self, host: Host) -> bool:
        """Begin a new life, unless that is done. False if too few peers answer."""
        while self._beginning:  # two at a time would begin two, and the peers know the later one
            await Pause(_TRY_AGAIN_US)
        if self._recovery.is_lost:
            self._beginning = True
            try:
                writes, lost = self._recovery.begin_anew(), host.lost
                await step(host, lambda _view: (None, writes))
                if not await is_stored(host, lost):
                    return False  # the walks would go on where they were, past what is lost
                begun = await lives.begin(
                    host, self._keys, self._others, self._quorums, self._recovery
                )
                self._recovery.note_asked(enough=begun)
                if begun:
                    self._recovery.begun()
            finally:
                self._beginning = False
        return not self._recovery.is_lost

    def _begin_anew(self) -> Write:
        self._asked_for.clear()
        return self._walk.begin_anew()

    async def _on_demand(self, name: ObjectId) -> list[Write] | None:
        life = self._keys.lives[self._node]
        if self._host is None or not await self._heal(self._host, name):
            return None
        if self._recovery.is_lost or self._keys.lives[self._node] != life:
            return None  # what was compared in an earlier life does not count
        self._asked_for.add(name)
        return []

    async def _mend_on_demand(self, name: ObjectId) -> list[Write] | None:
        return [] if self._host is not None and await self._mend(self._host, name) else None

    async def catch_up(self, host: Host, name: ObjectId) -> bool:
        """Take over later established versions. True if nothing is lacking after that."""
        return await self._heal(host, name)

    # --- the walk ----------------------------------------------------------------------------

    async def run(self, host: Host) -> None:
        """Heal at the start, and from time to time."""
        self._host = host
        self._note(await look(host, _marks))
        await passes(host, self.throttle, self._pass, self._node, self._quorums.n)

    async def _pass(self, host: Host) -> bool:
        await self._recovery.run_begun()
        complete = await self._mend_all(host)
        if not await self._begin_life(host):
            return False
        walked = await self._walk.one_pass(host, self._heal_page)
        if walked:
            self._asked_for.clear()
        if walked and complete:
            self._recovery.rebuilt(OBJECTS)
        return await self._mend_all(host) and walked and complete

    async def _heal_page(self, host: Host, after: bytes) -> tuple[bytes, bool] | None:
        """Heal the objects that follow `after`, as far as the peers' pages reach."""
        replies = await self._others.ask(
            CatalogueRequest(after), CatalogueReply, partial(_is_catalogue, after)
        )
        self.tally.expect({node: reply.total for node, reply in replies.items()}, self._quorums)
        if not self._quorums.is_quorum(Nodes.of(replies)):
            return None
        here = await look(host, lambda view: catalogue(view, CatalogueRequest(after)))
        until = min(self._reach(replies), _end_of(here))
        reported: dict[ObjectId, list[tuple[NodeId, LogicalTimestamp]]] = {}
        for node, reply in replies.items():
            for entry in reply.objects:
                reported.setdefault(entry.object, []).append((node, entry.latest))
        listed = {*reported, *(entry.object for entry in here.objects)}
        names = sorted(name for name in listed if name <= until)
        own = await look(host, partial(latest_of_all, names))
        lacking = [
            name for name in names if self._is_behind(name, own[name], reported.get(name, ()))
        ]
        latest_us = await Now() + limits.CLOCK_SKEW_US
        self.tally.find_ahead([name for name in names if time_of(own[name]) > latest_us])
        self.tally.compared += len(names)
        self.tally.has_done(len(names) - len(lacking))
        self.tally.lacking += len(lacking)
        failed = self.tally.failed
        await in_chunks(host, self.throttle, lacking, partial(self._heal_chunk, host))
        return until, self.tally.failed == failed

    def _reach(self, replies: dict[NodeId, CatalogueReply]) -> bytes:
        """The id up to which so many peers have listed all that one of them is benign."""
        bounds = sorted(_end_of(reply) for reply in replies.values())
        for number, bound in enumerate(bounds, 1):
            if self._quorums.includes_benign(Nodes.of(range(number))):
                return bound
        return bounds[-1]

    def _is_behind(
        self,
        name: ObjectId,
        own: LogicalTimestamp,
        reported: Sequence[tuple[NodeId, LogicalTimestamp]],
    ) -> bool:
        """True if peers have something later than this server, as far as it can tell.

        While it recovers, it asks about all of them: it has to sign what it has in this life.
        """
        later = Nodes.of(node for node, latest in reported if latest > own)
        alike = Nodes.of(node for node, latest in reported if latest == own)
        if (
            self.on_disorder is not None
            and own != ZERO
            and not is_in_order(own, alike.plus(self._node), self._quorums)
        ):
            self.on_disorder(name, own)
        return self._recovery.rebuilding or self._quorums.includes_benign(later)

    async def _heal_chunk(self, host: Host, names: Sequence[ObjectId]) -> int:
        await Together(tuple(partial(self._heal_patiently, host, name) for name in names))
        self.tally.has_done(len(names))
        return 0

    async def _heal_patiently(self, host: Host, name: ObjectId) -> None:
        for _ in range(_TRIES):
            if await self._heal(host, name):
                self.tally.lacking -= 1
                return
            await Pause(_TRY_AGAIN_US)
        self.tally.failed += 1
        if self.on_lacking is not None and not self._recovery.rebuilding:
            self.on_lacking(name)

    # --- one object --------------------------------------------------------------------------

    async def _heal(self, host: Host, name: ObjectId) -> bool:
        """Heal one object. True if nothing is lacking now; False also if too few peers answer.

        While the server recovers, all that it says of the object rests on that: it has to be
        durable.
        """
        lost = host.lost
        if not await self._catch_up(host, name):
            return False
        if not self._recovery.rebuilding:
            return True
        await step(host, partial(self._sign, name))
        return await is_stored(host, lost)

    def _sign(self, name: ObjectId, view: StorageView) -> tuple[bool, list[Write]]:
        """Sign in this life what is left of an earlier one."""
        replica = Replica(view, name)
        row = replica.row
        if life_of(row.authenticator) != self._keys.lives[self._node] and row.history:
            signed = own_authenticator(self._keys, name, row.history)
            replica.report(row.history, signed, established=row.established)
        return True, replica.writes

    async def _catch_up(self, host: Host, name: ObjectId) -> bool:
        """Bring an object to where its peers are. True if they report nothing later then.

        While the server recovers, it is enough that no repairable set of those that have answered
        reports anything later: what is established, at a quorum, is at such a set, since
        2q - n - b >= r. [(4.4)] Otherwise a liar could keep the object from ever being rebuilt,
        with a candidate that nobody else has.
        """
        heard = await self._histories(name)
        if heard is None or await self._is_undecided(host, name, heard):
            return False
        complete = await self._take_what_is_shared(host, name, heard)
        if complete and not heard.makes_do:
            return True
        believed = await self._believe(host, name, heard)
        # To a server that recovers, that is no reason not to wait for something later that r have.
        complete |= believed and (heard.makes_do or not self._recovery.rebuilding)
        if not await self._gives_way(host, name, heard):
            return complete
        return await self._give_way(host, name, heard)

    async def _is_undecided(self, host: Host, name: ObjectId, heard: _Heard) -> bool:
        """True if this server recovers, and others have to decide about a copy first."""
        if heard.makes_do or not self._recovery.rebuilding:
            return False
        own_latest = await look(host, lambda view: Replica(view, name).history.latest)
        return is_undecided(heard.history_set, self._quorums, self._node, own_latest)

    async def _take_what_is_shared(self, host: Host, name: ObjectId, heard: _Heard) -> bool:
        """Take over the latest candidate that enough peers have. True if nothing is lacking."""
        history_set, makes_do = heard
        recovering = self._recovery.rebuilding
        own_latest = await look(host, lambda view: Replica(view, name).history.latest)
        for shared in shared_candidates(history_set, self._quorums):
            candidate = shared.candidate
            if own_latest >= candidate.timestamp:
                break
            established = self._quorums.is_quorum(shared.nodes)
            if recovering and not established and len(candidate.objects) > 1:
                fate = await self._fate(candidate)
                if fate is Verdict.DEAD:
                    continue
                if fate is Verdict.UNKNOWN:
                    # Where too many have forgotten it, repair decides: nobody waits for them.
                    return await self._take_over_jointly(host, candidate) or makes_do
                established = True
            if not established and not recovering:
                return False
            below = self._beneath({name: shared}, {name: heard}, established=established)
            if below is None:
                return False
            return await self._take_over(
                host, {name: shared}, established=established, beneath=below
            )
        return recovering or own_latest >= history_set.latest

    async def _histories(self, name: ObjectId) -> _Heard | None:
        """The peers' histories of an object; None if they are no quorum.

        Those of peers that have forgotten some of it themselves, or that have not heard yet of the
        life that this server has begun, do not tell enough to one that recovers; unless more have
        forgotten something than may fail. And those of peers that others of them know to have
        begun a new life since count no more.
        """
        quorums = self._quorums
        proof = self._keys.make(LIFE_DIGEST) if self._recovery.rebuilding else b""

        def counts(reply: HistoryReply) -> bool:
            knows_life = not proof or reply.life >= life_of(proof)
            return knows_life and len(reply.lives) == quorums.n and _is_history(reply)

        began = self._lives.begin()
        replies = await self._others.ask(
            HistoryRequest(name, proof), HistoryReply, counts, silent_us=limits.HEAL_SILENT_US
        )
        makes_do = False
        if proof:
            forgetful = Nodes.of(node for node, reply in replies.items() if not reply.remembers)
            makes_do = self._recovery.is_making_do or too_many_forgot(
                quorums, self._node, forgetful
            )
            if not makes_do:
                replies = {node: reply for node, reply in replies.items() if reply.remembers}
        told = {node: Heard(reply.lives, began) for node, reply in replies.items()}
        for node in self._lives.outlived(told):
            del replies[node]
        nodes = Nodes.of(replies)
        heard = nodes.plus(self._node) if makes_do else nodes
        enough = quorums.is_quorum(heard)
        self._recovery.note_asked(enough=enough, makes_do=makes_do)
        if not enough:
            return None
        by_history: dict[bytes, Nodes] = {}
        for node, reply in replies.items():
            by_history[reply.history] = by_history.get(reply.history, NOBODY).plus(node)
        hosted = tuple(Hosted(parse_history(each), having) for each, having in by_history.items())
        return _Heard(CulledObjectHistorySet(name, hosted), makes_do)

    async def _saying(
        self,
        timestamp: LogicalTimestamp,
        objects: tuple[ObjectId, ...],
        *,
        until: tuple[Verdict, ...] = (),
    ) -> dict[Verdict, Nodes]:
        """The peers that say that a candidate is established, and those that say it is dead.

        [Q/U §4.3.7] The question ends when b + 1 of the peers say one of `until`, or when so many
        can say none of these any more.
        """
        everyone, includes_benign = Nodes.of(self._others.nodes), self._quorums.includes_benign

        def said(replies: dict[NodeId, DeduceReply]) -> dict[Verdict, Nodes]:
            return {
                verdict: Nodes.of(
                    node for node, reply in replies.items() if reply.verdict is verdict
                )
                for verdict in (Verdict.ESTABLISHED, Verdict.DEAD)
            }

        def is_decided(replies: dict[NodeId, DeduceReply]) -> bool:
            saying, unheard = said(replies), everyone - Nodes.of(replies)
            return any(includes_benign(saying[each]) for each in until) or not any(
                includes_benign(saying[each] | unheard) for each in until
            )

        replies = await self._others.ask(
            DeduceRequest(timestamp, objects),
            DeduceReply,
            silent_us=limits.HEAL_SILENT_US,
            enough=is_decided if until else lambda _: False,
        )
        return said(replies)

    async def _fate(self, candidate: Candidate) -> Verdict:
        """The fate of an operation on several objects, as b + 1 peers know it."""
        both = (Verdict.ESTABLISHED, Verdict.DEAD)
        saying = await self._saying(candidate.timestamp, candidate.objects, until=both)
        for verdict, nodes in saying.items():
            if self._quorums.includes_benign(nodes):
                return verdict
        return Verdict.UNKNOWN

    # --- contradictions ----------------------------------------------------------------------

    async def _believe(self, host: Host, name: ObjectId, heard: _Heard) -> bool:
        """Take over the latest version of which b + 1 peers say that it is established.

        Or of which this server knows it itself, by another object of the operation. What a liar has
        made up with its timestamp is passed over. True if nothing later is reported then by b + 1
        peers; or by any, where more have forgotten something than may fail.
        """
        history_set, makes_do = heard
        own_latest = await look(host, lambda view: Replica(view, name).history.latest)
        reported, alone = bases(history_set, own_latest, self._quorums)
        taken = await self._take_believed(host, history_set, reported)
        if makes_do or taken is None:
            taken = await self._take_believed(host, history_set, alone) or taken
        if taken is None:
            return False
        return makes_do or taken >= latest_reported(history_set, self._quorums)

    async def _take_believed(
        self, host: Host, history_set: CulledObjectHistorySet, candidates: Sequence[Candidate]
    ) -> LogicalTimestamp | None:
        """Take over the first of these that is established, as b + 1 peers or this server know."""
        name = history_set.object
        for candidate in candidates:
            known = await look(host, partial(is_known_established, candidate))
            if known or await self._is_believed(candidate, candidate.objects or (name,)):
                alike = sharing(history_set, candidate.timestamp, alike=candidate.__eq__)
                found = {name: Shared(candidate, alike)}
                if await self._take_over(host, found, established=True):
                    return candidate.timestamp
        return None

    async def _is_believed(self, candidate: Candidate, objects: tuple[ObjectId, ...]) -> bool:
        """True if b + 1 peers say that a candidate is established."""
        established = Verdict.ESTABLISHED
        saying = await self._saying(candidate.timestamp, objects, until=(established,))
        return self._quorums.includes_benign(saying[established])

    async def _gives_way(self, host: Host, name: ObjectId, heard: _Heard) -> bool:
        """True if this server has to give up what it knows to be established."""
        history_set, makes_do = heard
        established, objects = await look(host, partial(known_established, name))
        if established == ZERO:
            return False
        if is_left_behind(history_set, established, self._quorums):
            return True
        if self._quorums.is_repairable(sharing(history_set, established).plus(self._node)):
            return False
        saying = await self._saying(established, objects)
        if self._quorums.includes_benign(saying[Verdict.DEAD]):
            return True
        knowing = saying[Verdict.ESTABLISHED].plus(self._node)
        return makes_do and not is_shared(history_set, established, self._quorums, knowing)

    async def _give_way(self, host: Host, name: ObjectId, heard: _Heard) -> bool:
        """Go back to before what this server alone knows. True if nothing is lacking then.

        It goes back at all objects of that operation by which it knows it: otherwise it would
        believe itself the next time, and give it up again, for ever.
        """
        version, objects = await look(host, partial(known_established, name))
        heard_of = {name: heard.history_set}
        for other in objects:
            if other != name and await look(host, partial(is_known_at, other, version)):
                heard_there = await self._histories(other)
                if heard_there is None:
                    return False
                heard_of[other] = heard_there.history_set
        life, keys = self._keys.lives[self._node], self._keys

        def has_said(view: StorageView) -> bool:
            rows = (_row(each, view) for each in heard_of)
            return any(row is None or life_of(row.authenticator) == life for row in rows)

        said = await look(host, has_said)
        if said:
            self._recovery.forget(OBJECTS)
        self._recovery.gave_way += len(heard_of)

        def retreat(view: StorageView) -> tuple[None, list[Write]]:
            writes: list[Write] = []
            for each, history_set in heard_of.items():
                replica = Replica(view, each)
                target = in_common(history_set, replica, version)
                if target != ZERO and replica.retreat(target, keys):
                    writes += replica.writes
                else:
                    writes += _dropped(view, each)
            return None, writes

        await step(host, retreat)
        return not said and await self._catch_up(host, name)

    async def _take_over_jointly(self, host: Host, candidate: Candidate) -> bool:
        """Take over an operation at all of its objects, if all show it as the latest.

        It may be at a repairable set at one of them, and dead by what stands at another. A server
        accepts it at all of them or at none: to be one more that has it at one of them could make
        it look complete.
        """
        found: dict[ObjectId, Shared] = {}
        told: dict[ObjectId, _Heard] = {}
        for name in candidate.objects:
            heard = await self._histories(name)
            if heard is None or await self._is_undecided(host, name, heard):
                return False
            latest = next(iter(shared_candidates(heard.history_set, self._quorums)), None)
            if latest is None or latest.candidate.timestamp != candidate.timestamp:
                return False
            found[name], told[name] = latest, heard
        below = self._beneath(found, told, established=False)
        if below is None:
            return False
        return await self._take_over(host, found, established=False, beneath=below)

    def _beneath(
        self, found: dict[ObjectId, Shared], heard: dict[ObjectId, _Heard], *, established: bool
    ) -> dict[ObjectId, Beneath] | None:
        """The candidates to take over before these. None if they are not known yet."""
        if established:
            return {}
        below: dict[ObjectId, Beneath] = {}
        for name, (candidate, _) in found.items():
            history_set, makes_do = heard[name]
            leads_to = beneath_it(history_set, self._quorums, candidate)
            if leads_to is None and not makes_do:
                return None
            below[name] = leads_to or NOTHING
        return together(below)

    async def _take_over(
        self,
        host: Host,
        found: dict[ObjectId, Shared],
        *,
        established: bool,
        beneath: Mapping[ObjectId, Beneath] = {},
    ) -> bool:
        """Take over candidates, which are of one operation, at all these objects or at none.

        With what is `beneath` them, which is taken over first. True if that is durable.
        """
        lost = host.lost
        reported = set()
        for name, (candidate, nodes) in found.items():
            if self._quorums.includes_benign(nodes):
                reported.add(name)
            own_latest, reach, known = await look(host, partial(_own, name, candidate))
            if reach is Reach.MISSING and own_latest < candidate.timestamp:
                staged = await between_nodes.fetch_version(
                    name,
                    candidate.timestamp,
                    known=known,
                    hosts=nodes,
                    me=self._node,
                    peers=self._peers,
                )
                if staged is None:
                    return False
                host.arrange(lambda _view, _now_us, staged=staged: staged)  # type: ignore[misc]
                # A whole state does not tell how the version was made.
                if name not in reported and await between_nodes.is_made_by(
                    name, candidate, hosts=nodes, me=self._node, peers=self._peers
                ):
                    reported.add(name)

        def take(view: StorageView) -> tuple[bool, list[Write]]:
            writes: list[Write] = []
            for name, (candidate, _) in found.items():
                replica = Replica(view, name)
                if len(found) > 1 and replica.history.latest > candidate.timestamp:
                    return False, []
                if not take_over(
                    replica,
                    candidate,
                    self._keys,
                    established=established,
                    is_reported=name in reported,
                    beneath=beneath.get(name, NOTHING),
                ):
                    return False, []
                writes += replica.writes
            return True, writes

        taken = await step(host, take)
        self.tally.rebuilt += taken * len(found)
        for name in found if taken else ():
            if await look(host, lambda view, name=name: Replica(view, name).is_shallow):  # type: ignore[misc]
                self.mark(host, {name: _SHALLOW})
        return taken and host.lost == lost  # a look comes after the batch with what was written

    # --- objects of which something is lost --------------------------------------------------

    def mark_damaged(self, host: Host, names: Iterable[ObjectId]) -> None:
        """These have rows that are damaged, or lost: they are mended, at once if asked for."""
        self.mark(host, dict.fromkeys(names, _DAMAGED))
        self.throttle.hurry()

    def note_damage(self, name: ObjectId) -> None:
        """Somebody has found a row of this object that cannot be read."""
        if self._host is not None and self._marked.get(name) != _DAMAGED:
            self.mark_damaged(self._host, (name,))

    def mark(self, host: Host, marks: dict[ObjectId, bytes]) -> None:
        """Remember, across restarts, to mend these."""
        self._note({**self._marked, **marks})
        writes = [Write(Table.META, _MARK + name, mark) for name, mark in marks.items()]
        host.arrange(lambda _view, _now_us: writes)

    def _note(self, marks: dict[ObjectId, bytes]) -> None:
        self._marked = marks
        self._recovery.count_damaged(sum(mark == _DAMAGED for mark in marks.values()))

    def _unmark(self, host: Host, name: ObjectId) -> None:
        self._note({other: mark for other, mark in self._marked.items() if other != name})
        host.arrange(lambda _view, _now_us: [Write(Table.META, _MARK + name, None)])

    async def _mend_all(self, host: Host) -> bool:
        complete = True
        for name in sorted(self._marked):
            await self.throttle.permission()
            if name in self._marked:  # nobody has asked for it meanwhile
                complete &= await self._mend(host, name)
        return complete

    async def _mend(self, host: Host, name: ObjectId) -> bool:
        """Make a marked object anew. True if nothing is left to be done about it."""
        row = await look(host, partial(_row, name))
        head = ZERO if row is None else _head(row)
        past = None
        if (
            row is not None
            and head is not None
            and head != ZERO
            and is_signed(self._keys, name, row)
        ):
            past = await fetch_past(name, head, me=self._node, peers=self._peers)
            if past is not None:
                return await self._replace(host, name, past)
        if self._marked.get(name) != _DAMAGED:
            self._unmark(host, name)
            return True
        if await self._histories(name) is None:
            return False  # some day there are enough
        # Nobody else can be asked for the version, or what was accepted is not known any more.
        self._recovery.forget(OBJECTS)
        lost = host.lost
        await step(host, lambda view: (None, _dropped(view, name)))
        if not await is_stored(host, lost):
            return False
        self._unmark(host, name)
        return True

    async def _replace(self, host: Host, name: ObjectId, past: Past) -> bool:
        """Replace an object's rows with those that `past` makes, unless it has moved on."""
        newest = past.links[0].timestamp if past.links else past.base
        made = await remade(name, past)
        if made is None:
            return False

        def replace(view: StorageView) -> tuple[bool, list[Write]]:
            row = _row(name, view)
            if row is None or _head(row) != newest:
                return False, []
            if self._marked.get(name) != _DAMAGED and (
                past.base >= row.floor or has_beside(view, name, past)
            ):
                return True, []  # the peers know no more of its past, or not all that is here
            return True, replacement(view, row, name, past, made)

        lost = host.lost
        replaced = await step(host, replace) and await is_stored(host, lost)
        if replaced:
            self._unmark(host, name)
            self.tally.rebuilt += 1
            self.tally.rebuilt_bytes += sum(len(encode(link)) for link in past.links)
        return replaced


def _marks(view: StorageView) -> dict[ObjectId, bytes]:
    end = _MARK + after_keys(OBJECT_ID_BYTES)
    return {
        ObjectId(key[len(_MARK) :]): mark
        for key, mark in view.scan(Table.META, _MARK, end)
        if len(key) == len(_MARK) + OBJECT_ID_BYTES
    }


def _row(name: ObjectId, view: StorageView) -> ObjectRow | None:
    """The object's row; None if there is none that can be read."""
    stored = view.get(Table.OBJECT, name)
    try:
        return None if stored is None else stored_row(stored)
    except UNREADABLE:
        return None


def _head(row: ObjectRow) -> LogicalTimestamp | None:
    """The version at which the server stands; None if its history cannot be read."""
    try:
        return parse_history(row.history).latest_object.timestamp
    except MalformedMessage:
        return None


def _dropped(view: StorageView, name: ObjectId) -> list[Write]:
    """The writes that remove all of an object."""
    rows = [Write(table, key, None) for table, key in rows_of(view, name)]
    return [*rows, Write(Table.OBJECT, name, None)]


def _end_of(page: CatalogueReply) -> bytes:
    return page.objects[-1].object if page.more else _END


def _fraction(cursor: bytes) -> float:
    """Roughly how much of all ids is below: the first byte is the kind, the second a placement."""
    if not cursor:
        return 0.0
    kinds = max(ObjectKind)
    within = fraction_below(cursor[1:])
    return min((min(cursor[0], kinds) - 1 + within) / kinds, 1.0) if cursor[0] else 0.0


def _own(
    name: ObjectId, candidate: Candidate, view: StorageView
) -> tuple[LogicalTimestamp, Reach, tuple[LogicalTimestamp, ...]]:
    """The latest version of an object here, how `candidate` can be reached, and what is known."""
    replica = Replica(view, name)
    reach = replica.reach(candidate.timestamp)
    return replica.history.latest, reach, between_nodes.known_versions(replica)


def _is_catalogue(after: bytes, reply: CatalogueReply) -> bool:
    """True if a correct server can give this reply."""
    names = [after, *(entry.object for entry in reply.objects)]
    return (not reply.more or bool(reply.objects)) and all(
        low < high for low, high in pairwise(names)
    )


def _is_history(reply: HistoryReply) -> bool:
    try:
        parse_history(reply.history)
    except MalformedMessage:
        return False
    return True
