"""What a client has observed of objects: their history sets, and what it deduced.

[Q/U §4.3.5, Cached object history set; §4.3.7]

`Observations` keeps, for each object, the latest replica history of each server, and what follows
from them: the object history set and its classification. A query surveys the replies of its own
round instead.

**What does not count.** Histories of servers that are disbelieved (`bftfs.asking.peers`); and a
time that is far ahead of the client's clock and is reported only by servers that may all be liars.
A client that repaired what a liar invents would bring it to the correct servers with the fastest
clocks, which accept it, but not to the slower ones: these have to catch up first, and by then the
liar is ahead again. No operation would ever end. [design §4: no liar can push time away] A client
that has been told that its own clock is wrong does not judge by it, nor does one that finds no
quorum without the servers that are ahead (Rule 2, in `Peers.failed`).

Bounded: the least recently used are forgotten, which costs a round trip when they are needed again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bftfs import limits
from bftfs.asking.lives import Told
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import NOBODY, Nodes
from bftfs.clock_skew import is_pushed_ahead
from bftfs.crypto.digest import authenticator_bytes, life_of, lives_in
from bftfs.errors import MalformedMessage
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.classification import (
    Classification,
    Facts,
    OperationType,
    classify,
    sharing,
)
from bftfs.query_update.history import (
    Candidate,
    CulledObjectHistorySet,
    Fact,
    Known,
    LogicalTimestamp,
    ObjectHistorySet,
    assemble,
    parse_history,
    reached_us,
    time_of,
)
from bftfs.query_update.messages import Verdict
from bftfs.wire.codec import Voucher

_DEDUCTIONS = 4096  # candidates of which a client remembers what became of them


_METHOD = OperationType.METHOD  # a member of a class takes longer to find


class Observed(NamedTuple):
    """An object history set, with what it says."""

    history_set: ObjectHistorySet
    authenticators: bytes
    culled: CulledObjectHistorySet
    classification: Classification
    ahead_of_clock: Nodes = NOBODY  # servers that are far ahead, may all be liars, and do not count
    ahead_us: tuple[int, ...] = ()  # their latest times

    @property
    def is_orderly(self) -> bool:
        """True if a method can be conditioned on it."""
        return self.classification.type is _METHOD

    @property
    def version(self) -> LogicalTimestamp:
        """The object version that it shows."""
        return self.classification.object_candidate.timestamp

    def is_pushed_ahead(self, now_us: int, *, as_found: bool = False) -> bool:
        """True if the latest candidate of some server has a time that others may refuse.

        That others have refused it `as_found` counts more than this client's clock, unless it will
        not come there soon.
        """
        latest_us = (*self.ahead_us, *(time_of(each.latest) for each, _ in self.culled.hosted))
        if as_found:
            return max(latest_us, default=0) - now_us <= limits.CLOCKS_AGREE_US
        return any(is_pushed_ahead(time_us, now_us) for time_us in latest_us)


@dataclass(slots=True)
class _Entry:
    """What is known of one object."""

    known: dict[NodeId, Known] = field(default_factory=dict)
    observed: Observed | None = None
    conditioned_on: Observed | None = None
    epoch: int = 0
    has_ahead: bool = False  # some server has reported a time that was far ahead…
    observed_us: int = 0  # …as of this time


_Statements = dict[Verdict, dict[NodeId, bytes]]


class Deductions:
    """Servers' statements that a candidate is established or dead. [Q/U §4.3.7]

    If b + 1 servers state the same, it is a fact.

    A fact has to convince servers as well, by vouchers. So what disbelieved servers state does not
    count, nor what a server has stated in an earlier life than the client believes it to live.
    """

    def __init__(self, peers: Peers) -> None:
        self._quorums = peers.quorums
        self._peers = peers
        self._peers_epoch = peers.epoch
        # By candidate: each server's verdict on it, and its voucher.
        self._statements: OrderedDict[LogicalTimestamp, _Statements] = OrderedDict()
        self._facts: dict[LogicalTimestamp, bool] = {}
        self._lives = (0,) * peers.quorums.n  # the latest of each server that are believed
        self.epoch = 0  # grows with each change of the facts

    @property
    def facts(self) -> dict[LogicalTimestamp, bool]:
        """The facts: True for each candidate known to be established, False if dead."""
        if self._peers_epoch != self._peers.epoch:
            self._peers_epoch = self._peers.epoch
            self._forget()
        return self._facts

    def believe(self, lives: Told) -> None:
        """Servers live these lives: their vouchers of earlier ones convince nobody any more."""
        self._lives = lives
        self._forget()

    def _counts(self, node: NodeId, voucher: bytes) -> bool:
        return life_of(voucher) >= self._lives[node] and node not in self._peers.disbelieved

    def _forget(self) -> None:
        """Forget what does not count."""
        for timestamp, statements in self._statements.items():
            for verdict, vouchers in statements.items():
                for node in [node for node in vouchers if not self._counts(node, vouchers[node])]:
                    del vouchers[node]
                if self._facts.get(timestamp) is (verdict is Verdict.ESTABLISHED) and (
                    not self._quorums.includes_benign(Nodes.of(vouchers))
                ):
                    del self._facts[timestamp]
                    self.epoch += 1

    def state(
        self, timestamp: LogicalTimestamp, node: NodeId, verdict: Verdict, voucher: bytes
    ) -> None:
        """`node` says what became of a candidate."""
        if verdict is Verdict.UNKNOWN or not self._counts(node, voucher):
            return
        statements = self._statements.get(timestamp)
        if statements is None:
            statements = self._statements[timestamp] = {}
            if len(self._statements) > _DEDUCTIONS:
                old, _ = self._statements.popitem(last=False)
                self._facts.pop(old, None)
        vouchers = statements.setdefault(verdict, {})
        vouchers[node] = voucher
        nodes = Nodes.of(vouchers)
        if self._quorums.includes_benign(nodes) and timestamp not in self._facts:
            self._facts[timestamp] = verdict is Verdict.ESTABLISHED
            self.epoch += 1

    def relevant(
        self, candidates: Iterable[tuple[ObjectId, Candidate]]
    ) -> tuple[tuple[Fact, ...], tuple[tuple[Voucher, ...], ...]]:
        """The facts about these objects' candidates, and the vouchers that convince servers."""
        known = self.facts
        if not known:
            return (), ()
        objects = {
            candidate.timestamp: candidate.objects or (name,)
            for name, candidate in candidates
            if candidate.timestamp in known
        }
        latest = sorted(objects)[-limits.FACTS :]
        facts = [Fact(each, objects[each], known[each]) for each in latest]
        return tuple(facts), tuple(map(self._vouchers_for, facts))

    def _vouchers_for(self, fact: Fact) -> tuple[Voucher, ...]:
        verdict = Verdict.ESTABLISHED if fact.established else Verdict.DEAD
        vouchers = self._statements[fact.timestamp][verdict]
        return tuple(Voucher(node, vouchers[node]) for node in sorted(vouchers))


def _volume_of(known: Mapping[NodeId, Known]) -> int:
    return sum(len(each.history) + len(each.authenticator) for each in known.values())


def _latest_us(known: Known) -> int:
    return time_of(parse_history(known.history).latest)


class Observations:
    """A client's memory of the objects that it uses."""

    def __init__(
        self,
        peers: Peers,
        *,
        bound: int = limits.HISTORY_SETS_CACHED,
        bound_bytes: int = limits.HISTORY_SETS_CACHED_BYTES,
    ) -> None:
        self._quorums = peers.quorums
        self._peers = peers
        self._bound = bound
        self._bound_bytes = bound_bytes
        self._authenticator_sizes = (
            authenticator_bytes(peers.quorums.n),
            authenticator_bytes(peers.quorums.n, knowing=True),
        )
        self.volume = 0  # bytes of all histories and authenticators
        self._entries: OrderedDict[ObjectId, _Entry] = OrderedDict()
        self.deductions = Deductions(peers)
        self._lives = (0,) * peers.quorums.n  # that servers are believed to live
        self._anew = False  # True if some have begun another one than the first
        self._clock_us = 0  # when something was reported last, by the client's clock

    @property
    def facts(self) -> Facts:
        """The facts: True for each candidate known to be established, False if dead."""
        return self.deductions.facts

    def __len__(self) -> int:
        return len(self._entries)

    def learn(
        self,
        identifier: ObjectId,
        node: NodeId,
        history: bytes,
        authenticator: bytes,
        now_us: int,
    ) -> Known | None:
        """Remember that `node` reports `history`. Returns what is known of it then.

        None if no correct node would report that. A report that is older than an earlier one does
        not count: histories only grow, so it was overtaken on its way. (If it counted, a liar that
        takes back and accepts again could keep a client busy for ever.) Only servers can tell if
        the authenticator is valid. But one of a wrong length is refused here: servers could not
        tell where the next one begins, and would reject the whole request.
        """
        try:
            parsed = parse_history(history)
        except MalformedMessage:
            return None
        if history and len(authenticator) not in self._authenticator_sizes:
            return None
        if self._anew and self._is_outlived(node, authenticator):
            return Known(parsed.encoded, authenticator)
        entry = self._entry(identifier)
        self._clock_us = now_us
        latest_us = time_of(parsed.latest)
        if latest_us > now_us and self._peers.is_ahead(latest_us, now_us):
            entry.has_ahead = True
        known = entry.known.get(node)
        if known is not None:
            before, authenticator_before = known
            if before == history and authenticator_before == authenticator:
                return known
            if parsed.latest < parse_history(before).latest:
                return known
            self.volume -= len(before) + len(authenticator_before)
        self.volume += len(history) + len(authenticator)
        learned = entry.known[node] = Known(parsed.encoded, authenticator)
        entry.observed = entry.conditioned_on = None
        while self.volume > self._bound_bytes and len(self._entries) > 1:
            self.forget(next(iter(self._entries)))
        return learned

    def believe(self, lives: Told) -> None:
        """Servers live these lives: what they reported in earlier ones counts no more.

        Nor does it if it comes late. Claims that have turned out to be false are taken back.
        """
        if lives == self._lives:
            return
        self._lives, self._anew = lives, any(lives)
        self.deductions.believe(lives)
        for entry in self._entries.values():
            for node, known in tuple(entry.known.items()):
                if self._is_outlived(node, known.authenticator):
                    self.volume -= len(known.history) + len(known.authenticator)
                    del entry.known[node]
                    entry.observed = entry.conditioned_on = None

    def leave_out_doubted(self, identifier: ObjectId) -> None:
        """Forget what others claim to be of an earlier life, until its server reports it again.

        Servers that cannot ask that one do not count it together with the claim. [`.consistent`]
        """
        known = self._entry(identifier).known
        claimed = [lives_in(each.authenticator, self._quorums.n) for each in known.values()]
        doubted = [
            node
            for node, each in known.items()
            if any(lives and lives[node] > life_of(each.authenticator) for lives in claimed)
        ]
        self.keep(identifier, {node: known[node] for node in known if node not in doubted})

    def _is_outlived(self, node: NodeId, authenticator: bytes) -> bool:
        return life_of(authenticator) < self._lives[node]

    def forget(self, identifier: ObjectId) -> None:
        """Start afresh with an object."""
        entry = self._entries.pop(identifier, None)
        if entry is not None:
            self.volume -= _volume_of(entry.known)

    def keep(self, identifier: ObjectId, reported: Mapping[NodeId, Known]) -> None:
        """Replace what is known of an object by what was `reported` in one round.

        So the repair that follows sees the same disorder as the round. If it saw order, it would do
        nothing, the round would be repeated, and neither would ever end.
        """
        entry = self._entry(identifier)
        before = entry.known
        entry.known = dict(reported)
        self.volume += _volume_of(entry.known) - _volume_of(before)
        entry.observed = entry.conditioned_on = None

    def observe(self, identifier: ObjectId) -> Observed:
        """All that is known of an object and counts."""
        entry = self._current(identifier)
        observed = entry.observed
        if observed is None:
            known: Mapping[NodeId, Known] = entry.known
            disbelieved = self._peers.disbelieved
            if disbelieved:
                known = {node: each for node, each in known.items() if node not in disbelieved}
            ahead: dict[NodeId, int] = {}
            if entry.has_ahead:
                entry.observed_us = self._clock_us
                entry.has_ahead = any(self._is_ahead(_latest_us(each)) for each in known.values())
                ahead = self._far_ahead(known)
                known = {node: each for node, each in known.items() if node not in ahead}
            observed = self._assemble(identifier, known)
            if ahead:
                observed = observed._replace(
                    ahead_of_clock=Nodes.of(ahead), ahead_us=tuple(ahead.values())
                )
            entry.observed = observed
        return observed

    def ahead_of_clock(self, identifiers: Iterable[ObjectId]) -> Nodes:
        """Servers whose histories of some of these objects do not count: better asked last."""
        nodes = NOBODY
        for identifier in identifiers:
            entry = self._entries.get(identifier)
            if entry is not None and entry.has_ahead:
                nodes |= self.observe(identifier).ahead_of_clock
        return nodes

    def _is_ahead(self, time_us: int) -> bool:
        return self._peers.is_ahead(time_us, self._clock_us)

    def _far_ahead(self, known: Mapping[NodeId, Known]) -> dict[NodeId, int]:
        """Servers that are ahead of the clock, and of what the object has reached; their times."""
        latest_us = {node: _latest_us(each) for node, each in known.items()}
        reached = reached_us(
            ((time_us, Nodes.of([node])) for node, time_us in latest_us.items()), self._quorums
        )
        return {
            node: time_us
            for node, time_us in latest_us.items()
            if time_us > reached + limits.STEPS_AHEAD_US and self._is_ahead(time_us)
        }

    def condition_on(self, identifier: ObjectId) -> Observed:
        """What a method is conditioned on: the histories that show the version complete."""
        entry = self._current(identifier)
        if entry.conditioned_on is not None:
            return entry.conditioned_on
        observed = self.observe(identifier)
        classification = observed.classification
        if classification.type is OperationType.METHOD and len(observed.culled.hosted) > 1:
            hosts = sharing(observed.culled, observed.version)
            trimmed = self._assemble(
                identifier, {node: each for node, each in entry.known.items() if node in hosts}
            )
            if trimmed.classification.type is OperationType.METHOD:
                observed = trimmed
        entry.conditioned_on = observed
        return observed

    def short_of_a_quorum(self, identifier: ObjectId) -> Observed:
        """So few of the histories that show a version that it does not count as complete.

        On these a barrier can be made, although nothing is out of order. Where a single server is a
        quorum, all of them: there it can be made at any time.
        """
        observed = self.observe(identifier)
        shown: dict[NodeId, Known] = {}
        for node in sharing(observed.culled, observed.version):
            if not self._quorums.is_quorum(Nodes.of([*shown, node])):
                shown[node] = self._entry(identifier).known[node]
        return self._assemble(identifier, shown) if shown else observed

    def survey(self, identifier: ObjectId, reported: Mapping[NodeId, Known]) -> Classification:
        """The classification of what was `reported` to a query.

        Disbelieved servers count, too: a liar does no harm there.
        A query may rest only on a quorum of histories that were asked for after it was invoked.
        Older ones, from servers that did not answer it, could make an older candidate complete
        while the established one is pruned from the histories of servers that are ahead. And it
        must rest on all of them: of what is remembered here, another conversation of the client may
        have forgotten some, and a server whose history is missing would count for ⟨0, 0⟩.
        (Those that are far ahead are not needed where the others are a quorum.)
        """
        entry = self._entry(identifier)
        if entry.has_ahead:
            ahead = self._far_ahead(reported)
            credible = {node: each for node, each in reported.items() if node not in ahead}
            if self._quorums.is_quorum(Nodes.of(credible)):
                reported = credible
        elif not self._peers.disbelieved and reported == entry.known:
            return self.observe(identifier).classification
        return self._assemble(identifier, reported).classification

    def _entry(self, identifier: ObjectId) -> _Entry:
        entry = self._entries.get(identifier)
        if entry is None:
            entry = self._entries[identifier] = _Entry()
            if len(self._entries) > self._bound:
                self.forget(next(iter(self._entries)))
        else:
            self._entries.move_to_end(identifier)
        return entry

    def _current(self, identifier: ObjectId) -> _Entry:
        """The entry, with nothing cached that rests on outdated facts or suspicions."""
        entry = self._entry(identifier)
        epoch = self._peers.epoch + self.deductions.epoch
        if entry.epoch != epoch or (entry.has_ahead and entry.observed_us != self._clock_us):
            entry.epoch = epoch
            entry.observed = entry.conditioned_on = None
        return entry

    def _assemble(self, identifier: ObjectId, known: Mapping[NodeId, Known]) -> Observed:
        history_set, authenticators, culled = assemble(identifier, known)
        return Observed(
            history_set,
            authenticators,
            culled,
            classify(culled, self._quorums, self.deductions.facts),
        )
