"""What a client has observed: object history sets, cached by object, and what it deduced.

[Q/U §4.3.5, Cached object history set; §4.3.7]

Bounded: the least recently used are forgotten, which costs a round trip when they are needed again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bftfs import limits
from bftfs.clocks import is_pushed_ahead
from bftfs.crypto.authenticator import MAC_BYTES
from bftfs.errors import MalformedMessage
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.candidate import Candidate
from bftfs.query_update.classification import Classification, OperationType, classify
from bftfs.query_update.conditioned import Fact
from bftfs.query_update.history import (
    CulledObjectHistorySet,
    Known,
    ObjectHistorySet,
    assemble,
    parse_history,
)
from bftfs.query_update.messages import Verdict, Voucher
from bftfs.query_update.suspicion import Suspicion
from bftfs.query_update.timestamp import LogicalTimestamp, time_of
from bftfs.quorum import Nodes, QuorumSystem

_DEDUCTIONS = 4096  # candidates of which a client remembers what became of them


class Observed(NamedTuple):
    """An object history set, with what it says."""

    history_set: ObjectHistorySet
    authenticators: bytes
    culled: CulledObjectHistorySet
    classification: Classification

    def is_pushed_ahead(self, now_us: int) -> bool:
        """Whether the latest candidate of some server is of a time that others may not bear yet."""
        return any(
            is_pushed_ahead(time_of(history.latest), now_us) for history, _ in self.culled.hosted
        )


@dataclass(slots=True)
class _Entry:
    """What is known of one object."""

    known: dict[NodeId, Known] = field(default_factory=dict)
    observed: Observed | None = None
    conditioned_on: Observed | None = None
    epoch: int = 0


@dataclass(slots=True)
class _Statements:
    """Who says what of one candidate."""

    nodes: dict[Verdict, Nodes] = field(default_factory=dict)
    vouchers: dict[Verdict, dict[NodeId, bytes]] = field(default_factory=dict)


def _volume_of(known: Known) -> int:
    return len(known.history) + len(known.authenticator)


class Observations:
    """A client's memory of the objects that it uses."""

    def __init__(
        self,
        quorums: QuorumSystem,
        suspicion: Suspicion,
        *,
        bound: int = limits.HISTORY_SETS_CACHED,
        bound_bytes: int = limits.HISTORY_SETS_CACHED_BYTES,
    ) -> None:
        self._quorums = quorums
        self._suspicion = suspicion
        self._bound = bound
        self._bound_bytes = bound_bytes
        self.volume = 0  # bytes of all histories and authenticators
        self._entries: OrderedDict[ObjectId, _Entry] = OrderedDict()
        self._statements: OrderedDict[LogicalTimestamp, _Statements] = OrderedDict()
        self.facts: dict[LogicalTimestamp, bool] = {}
        self._epoch = 0
        self._shunned: Nodes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def learn(
        self, identifier: ObjectId, node: NodeId, history: bytes, authenticator: bytes
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
        """All that is known of an object, except from servers that are shunned."""
        entry = self._current(identifier)
        observed = entry.observed
        if observed is None:
            known = entry.known
            if self._shunned:
                known = {
                    node: each for node, each in known.items() if not self._shunned >> node & 1
                }
            observed = entry.observed = self._assemble(identifier, known)
        return observed

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
        """The classification of what was `reported`, shunned or not: a liar does no harm there.

        A query may rest only on a quorum of histories that were asked for after it was invoked.
        Older ones, from servers that did not answer it, could make an older candidate complete
        while the established one is pruned from the histories of servers that are ahead. And it
        must rest on all of them: of what is remembered here, another conversation of the client may
        have forgotten some, and a server whose history is missing would count for ⟨0, 0⟩.
        """
        if not self._suspicion.shunned and reported == self._entry(identifier).known:
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
        if self._shunned != self._suspicion.shunned:
            self._shunned = self._suspicion.shunned
            self._epoch += 1
        entry = self._entry(identifier)
        if entry.epoch != self._epoch:
            entry.epoch = self._epoch
            entry.observed = entry.conditioned_on = None
        return entry

    def _assemble(self, identifier: ObjectId, known: Mapping[NodeId, Known]) -> Observed:
        history_set, authenticators, culled = assemble(identifier, known)
        return Observed(
            history_set, authenticators, culled, classify(culled, self._quorums, self.facts)
        )
