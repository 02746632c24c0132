"""What a client has observed: object history sets, cached by object, and what it deduced.

[Q/U §4.3.5, Cached object history set; §4.3.7]

A time that is far ahead of the client's clock, and that nobody reports but servers who may all be
liars, is left out. Whoever repaired what a liar invents would carry it to the correct servers with
the fastest clocks, which bear it, and not to the slower ones: these have to catch up first, and by
then the liar is ahead again. No operation would ever end. [design §4: no liar can push time away]
A client that has been told that its own clock is wrong does not judge by it, nor one that finds no
quorum without those whom it has left out.

Bounded: the least recently used are forgotten, which costs a round trip when they are needed again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes
from bftfs.clock_skew import is_ahead, is_pushed_ahead
from bftfs.crypto.authenticator import MAC_BYTES
from bftfs.errors import MalformedMessage
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.classification import Classification, OperationType, classify
from bftfs.query_update.history import (
    Candidate,
    CulledObjectHistorySet,
    Fact,
    Known,
    LogicalTimestamp,
    ObjectHistorySet,
    assemble,
    parse_history,
    time_of,
)
from bftfs.query_update.messages import Verdict, Voucher

_DEDUCTIONS = 4096  # candidates of which a client remembers what became of them


class Observed(NamedTuple):
    """An object history set, with what it says."""

    history_set: ObjectHistorySet
    authenticators: bytes
    culled: CulledObjectHistorySet
    classification: Classification
    ahead_of_clock: Nodes = 0  # servers that are far ahead, and may all be liars
    ahead_us: tuple[int, ...] = ()  # their latest times

    def is_pushed_ahead(self, now_us: int) -> bool:
        """Whether the latest candidate of some server is of a time that others may not bear yet."""
        return any(is_pushed_ahead(time_us, now_us) for time_us in self.ahead_us) or any(
            is_pushed_ahead(time_of(history.latest), now_us) for history, _ in self.culled.hosted
        )


@dataclass(slots=True)
class _Entry:
    """What is known of one object."""

    known: dict[NodeId, Known] = field(default_factory=dict)
    observed: Observed | None = None
    conditioned_on: Observed | None = None
    epoch: int = 0
    ahead: bool = False  # whether some server has reported a time that was far ahead…
    observed_us: int = 0  # …and when that was looked at


@dataclass(slots=True)
class _Statements:
    """Who says what of one candidate."""

    nodes: dict[Verdict, Nodes] = field(default_factory=dict)
    vouchers: dict[Verdict, dict[NodeId, bytes]] = field(default_factory=dict)


def _volume_of(known: Known) -> int:
    return len(known.history) + len(known.authenticator)


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
        self.volume = 0  # bytes of all histories and authenticators
        self._entries: OrderedDict[ObjectId, _Entry] = OrderedDict()
        self._statements: OrderedDict[LogicalTimestamp, _Statements] = OrderedDict()
        self.facts: dict[LogicalTimestamp, bool] = {}
        self._epoch = 0
        self._disbelieved: Nodes = 0
        self._clock_us = 0  # when something was reported last, by the client's clock
        self._judges_from_us = 0  # from when on times are judged by that clock

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
        """Remember that `node` reports `history`; what is known of it then.

        None if no correct node would report that. What is older than what the node reported before
        was overtaken on its way, and does not count: the histories of servers only grow. A liar
        that takes back what it has accepted, and accepts it again from whoever repairs it, could
        keep a client busy for ever. Whether the authenticator is valid only servers can tell; but
        with one of another length than all have, they could not even tell where the next one
        begins, and would reject the whole request.
        """
        try:
            parsed = parse_history(history)
        except MalformedMessage:
            return None
        if history and len(authenticator) != MAC_BYTES * self._quorums.n:
            return None
        entry = self._entry(identifier)
        self._clock_us = now_us
        if self._is_ahead(time_of(parsed.latest)):
            entry.ahead = True
        known = entry.known.get(node)
        if known is not None:
            if known.history == history and known.authenticator == authenticator:
                return known
            if parsed.latest < parse_history(known.history).latest:
                return known
            self.volume -= _volume_of(known)
        learned = entry.known[node] = Known(parsed.encoded, authenticator)
        self.volume += _volume_of(learned)
        entry.observed = entry.conditioned_on = None
        while self.volume > self._bound_bytes and len(self._entries) > 1:
            self._forget_oldest()
        return learned

    def doubt_clock(self, until_us: int) -> None:
        """The client's clock seems to be wrong: nobody is ahead of it.

        A correct server that alone has what somebody has left there may be needed.
        """
        self._judges_from_us = max(self._judges_from_us, until_us)
        self._epoch += 1

    def _is_ahead(self, time_us: int) -> bool:
        return self._clock_us >= self._judges_from_us and is_ahead(time_us, self._clock_us)

    def forget(self, identifier: ObjectId) -> None:
        """Start afresh with an object."""
        entry = self._entries.pop(identifier, None)
        if entry is not None:
            self.volume -= sum(map(_volume_of, entry.known.values()))

    def keep(self, identifier: ObjectId, reported: Mapping[NodeId, Known]) -> None:
        """Know what was `reported` in one round, and nothing else: repair what can be seen now.

        The very same: if the repair saw order where the round has found disorder, neither of them
        would ever end.
        """
        entry = self._entry(identifier)
        before = entry.known
        entry.known = dict(reported)
        self.volume -= sum(map(_volume_of, before.values()))
        self.volume += sum(map(_volume_of, entry.known.values()))
        entry.observed = entry.conditioned_on = None

    def observe(self, identifier: ObjectId) -> Observed:
        """All that is known of an object, but from servers that are disbelieved or far ahead."""
        entry = self._current(identifier)
        observed = entry.observed
        if observed is None:
            known: Mapping[NodeId, Known] = entry.known
            if self._disbelieved:
                known = {
                    node: each for node, each in known.items() if not self._disbelieved >> node & 1
                }
            ahead_us: tuple[int, ...] = ()
            if entry.ahead:
                times_us = {node: _latest_us(each) for node, each in known.items()}
                entry.observed_us = self._clock_us
                entry.ahead = any(map(self._is_ahead, times_us.values()))
                known = self._credible(known)
                ahead_us = tuple(times_us[node] for node in times_us if node not in known)
            observed = self._assemble(identifier, known)
            if ahead_us:
                ahead_of_clock = sum(1 << node for node in times_us if node not in known)
                observed = observed._replace(ahead_of_clock=ahead_of_clock, ahead_us=ahead_us)
            entry.observed = observed
        return observed

    def ahead_of_clock(self, identifiers: Iterable[ObjectId]) -> Nodes:
        """Servers whose histories of some of these objects are left out: better asked last."""
        nodes: Nodes = 0
        for identifier in identifiers:
            entry = self._entries.get(identifier)
            if entry is not None and entry.ahead:
                nodes |= self.observe(identifier).ahead_of_clock
        return nodes

    def _credible(self, known: Mapping[NodeId, Known]) -> Mapping[NodeId, Known]:
        """`known` without servers that are far ahead, unless a benign one is as far as that."""
        latest_us = {node: _latest_us(each) for node, each in known.items()}
        apart: Nodes = 0
        for node in sorted(latest_us, key=lambda each: latest_us[each], reverse=True):
            if not self._is_ahead(latest_us[node]):
                break
            apart |= 1 << node
            if self._quorums.includes_benign(apart):
                most_us = latest_us[node]
                return {each: known[each] for each in known if latest_us[each] <= most_us}
        return {each: known[each] for each in known if not apart >> each & 1}

    def condition_on(self, identifier: ObjectId) -> Observed:
        """What to condition a method on: the histories that make its version complete, no more."""
        entry = self._current(identifier)
        if entry.conditioned_on is not None:
            return entry.conditioned_on
        observed = self.observe(identifier)
        classification = observed.classification
        if classification.type is OperationType.METHOD and len(observed.culled.hosted) > 1:
            hosts = 0
            for history, nodes in observed.culled.hosted:
                if history.find(classification.object_candidate.timestamp) is not None:
                    hosts |= nodes
            trimmed = self._assemble(
                identifier, {node: each for node, each in entry.known.items() if hosts >> node & 1}
            )
            if trimmed.classification.type is OperationType.METHOD:
                observed = trimmed
        entry.conditioned_on = observed
        return observed

    def survey(self, identifier: ObjectId, reported: Mapping[NodeId, Known]) -> Classification:
        """The classification of what was `reported`, disbelieved or not: a liar does no harm there.

        A query may rest only on a quorum of histories that were asked for after it was invoked.
        Older ones, from servers that did not answer it, could make an older candidate complete
        while the established one is pruned from the histories of servers that are ahead. And it
        must rest on all of them: of what is remembered here, another conversation of the client may
        have forgotten some, and a server whose history is missing would count for ⟨0, 0⟩.
        (Those that are far ahead are not needed where the others are a quorum.)
        """
        entry = self._entry(identifier)
        if entry.ahead:
            credible = self._credible(reported)
            if self._quorums.is_quorum(sum(1 << node for node in credible)):
                reported = credible
        elif not self._peers.disbelieved and reported == entry.known:
            return self.observe(identifier).classification
        return self._assemble(identifier, reported).classification

    # --- deduction ------------------------------------------------------------------------------

    def state(
        self, timestamp: LogicalTimestamp, node: NodeId, verdict: Verdict, voucher: bytes
    ) -> None:
        """`node` says what became of a candidate. Enough of the same make it a fact."""
        if verdict is Verdict.UNKNOWN:
            return
        statements = self._statements.get(timestamp)
        if statements is None:
            statements = self._statements[timestamp] = _Statements()
            if len(self._statements) > _DEDUCTIONS:
                old, _ = self._statements.popitem(last=False)
                self.facts.pop(old, None)
        nodes = statements.nodes[verdict] = statements.nodes.get(verdict, 0) | 1 << node
        statements.vouchers.setdefault(verdict, {})[node] = voucher
        if self._quorums.includes_benign(nodes) and timestamp not in self.facts:
            self.facts[timestamp] = verdict is Verdict.ESTABLISHED
            self._epoch += 1

    def fact(self, timestamp: LogicalTimestamp) -> tuple[Fact, tuple[Voucher, ...]] | None:
        """What is known of a candidate, and how to convince servers of it."""
        established = self.facts.get(timestamp)
        if established is None:
            return None
        verdict = Verdict.ESTABLISHED if established else Verdict.DEAD
        vouchers = self._statements[timestamp].vouchers[verdict]
        return Fact(timestamp, established), tuple(
            Voucher(node, vouchers[node]) for node in sorted(vouchers)
        )

    def relevant(
        self, candidates: Iterable[Candidate]
    ) -> tuple[tuple[Fact, ...], tuple[tuple[Voucher, ...], ...]]:
        """What is known of `candidates`, and how to convince servers of it."""
        found = []
        for timestamp in sorted({candidate.timestamp for candidate in candidates}):
            known = self.fact(timestamp)
            if known is not None:
                found.append(known)
        found = found[-limits.FACTS :]
        return tuple(fact for fact, _ in found), tuple(vouchers for _, vouchers in found)

    # --------------------------------------------------------------------------------------------

    def _entry(self, identifier: ObjectId) -> _Entry:
        entry = self._entries.get(identifier)
        if entry is None:
            entry = self._entries[identifier] = _Entry()
            if len(self._entries) > self._bound:
                self._forget_oldest()
        else:
            self._entries.move_to_end(identifier)
        return entry

    def _forget_oldest(self) -> None:
        self.forget(next(iter(self._entries)))

    def _current(self, identifier: ObjectId) -> _Entry:
        """The entry, with nothing cached that rests on outdated facts or suspicions."""
        if self._disbelieved != self._peers.disbelieved:
            self._disbelieved = self._peers.disbelieved
            self._epoch += 1
        entry = self._entry(identifier)
        if entry.epoch != self._epoch or (entry.ahead and entry.observed_us != self._clock_us):
            entry.epoch = self._epoch
            entry.observed = entry.conditioned_on = None
        return entry

    def _assemble(self, identifier: ObjectId, known: Mapping[NodeId, Known]) -> Observed:
        history_set, authenticators, culled = assemble(identifier, known)
        return Observed(
            history_set, authenticators, culled, classify(culled, self._quorums, self.facts)
        )
