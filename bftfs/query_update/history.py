"""Replica histories, object history sets, and their culling. [Q/U §4.3.4, lines 105-107; §4.3.5]

A replica history is the ordered set of candidates that a server has accepted for an object. It
travels, is stored and is authenticated as one encoded value: nothing for the initial history; else
one byte that tells whether ⟨0, 0⟩ is still in it or has been pruned, and the other candidates.
Servers that report the same history share it in an object history set: in the common case all of a
quorum does.

**Invariant.** `classify` and `settle` take a `CulledObjectHistorySet` only. A server gets one from
`cull`, which has checked its own entry of every authenticator; a client, which can check none, from
`observe`. [Q/U §4.3.4, lines 1001-1002]
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from bftfs import limits
from bftfs.asking.quorum import Nodes
from bftfs.crypto.authenticator import MAC_BYTES, AuthenticatorKeys
from bftfs.crypto.digest import replica_history_digest
from bftfs.errors import MalformedMessage
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.candidate import FIXED_BYTES, INITIAL, Candidate, parse_candidates
from bftfs.query_update.timestamp import ZERO, LogicalTimestamp, time_of
from bftfs.wire.codec import Value
from bftfs.wire.fields import ObjectField

_HISTORY_BYTES = limits.HISTORY_CANDIDATES_MOST * (FIXED_BYTES + 16 * limits.OBJECTS_PER_OPERATION)
_FLAGS = (b"\0", b"\1")
_FEW = 8  # candidates, among which nothing is faster than to look at each
_KEPT_BYTES = 512  # of a parsed history, besides its encoding
_timestamp_of = attrgetter("timestamp")
AUTHENTICATOR_BYTES = limits.NODES * MAC_BYTES

HistoryField: TypeAlias = Annotated[bytes, Meta(max_length=_HISTORY_BYTES)]
AuthenticatorField: TypeAlias = Annotated[bytes, Meta(max_length=AUTHENTICATOR_BYTES)]


@dataclass(frozen=True, slots=True, eq=False)
class ReplicaHistory:
    """One server's candidates for one object, ascending; parsed once per distinct encoding."""

    encoded: bytes
    initial: bool  # whether ⟨0, 0⟩ is in it
    candidates: tuple[Candidate, ...]
    latest: LogicalTimestamp  # of any candidate
    latest_object: Candidate  # the greatest that is no barrier: the server's latest object version

    def find(self, timestamp: LogicalTimestamp) -> Candidate | None:
        """The candidate at `timestamp`, if the server has accepted it (and not pruned it)."""
        candidates = self.candidates
        if len(candidates) > _FEW:
            at = bisect_left(candidates, timestamp, key=_timestamp_of)
            found = at < len(candidates) and candidates[at].timestamp == timestamp
            return candidates[at] if found else None
        for candidate in reversed(candidates):
            if candidate.timestamp == timestamp:
                return candidate
        return None


INITIAL_HISTORY = ReplicaHistory(b"", True, (), ZERO, INITIAL)


class _Parsed(dict[bytes, ReplicaHistory]):
    """Histories by their encodings: what one reply reports, the next request conditions on.

    Bounded by volume: anybody may send histories, and they may be as long as frames permit.
    """

    volume = 0

    def remember(self, history: ReplicaHistory) -> ReplicaHistory:
        """Keep a parsed history."""
        size = len(history.encoded) + _KEPT_BYTES
        if self.volume + size > limits.HISTORIES_PARSED_BYTES:
            self.clear()
            self.volume = 0
        self.volume += size
        self[history.encoded] = history
        return history


_parsed = _Parsed()


def parse_history(encoded: bytes) -> ReplicaHistory:
    """The replica history that `encoded` is. Raises MalformedMessage."""
    parsed = _parsed.get(encoded)
    if parsed is None:
        parsed = _parsed.remember(_parse(encoded))
    return parsed


def latest_in(encoded: bytes) -> LogicalTimestamp:
    """The latest timestamp of a stored history, which is not remembered: nobody has used it."""
    parsed = _parsed.get(encoded)
    return (_parse(encoded) if parsed is None else parsed).latest


def _parse(encoded: bytes) -> ReplicaHistory:
    if not encoded:
        return INITIAL_HISTORY
    flag = encoded[0]
    candidates = parse_candidates(encoded[1:], limit=limits.HISTORY_CANDIDATES_MOST)
    if flag > 1 or not candidates:
        raise MalformedMessage("what is no replica history")
    latest_object = next(
        (candidate for candidate in reversed(candidates) if not candidate.barrier), INITIAL
    )
    return ReplicaHistory(encoded, flag == 1, candidates, candidates[-1].timestamp, latest_object)


def history_of(candidates: Iterable[Candidate], *, initial: bool) -> bytes:
    """The encoding of the history with these candidates, ascending, and ⟨0, 0⟩ if `initial`."""
    return _FLAGS[initial] + b"".join([candidate.encoded for candidate in candidates])


def built_on(base: Candidate, candidate: Candidate) -> bytes:
    """The encoding of the history of a server that has accepted a method on top of `base`.

    [Q/U §4.3.5, Compact replica histories]: pruned below the conditioned-on timestamp; in the
    common case a history contains two candidates.
    """
    initial = base.timestamp == ZERO
    candidates = (candidate,) if initial else (base, candidate)
    encoded = history_of(candidates, initial=initial)
    _parsed.remember(ReplicaHistory(encoded, initial, candidates, candidate.timestamp, candidate))
    return encoded


class HistoryGroup(Value, frozen=True):
    """A replica history and the servers that report it, ascending, one byte each."""

    history: HistoryField
    nodes: Annotated[bytes, Meta(min_length=1, max_length=limits.NODES)]


class ObjectHistorySet(Value, frozen=True):
    """What a client has observed of an object: replica histories by server, nothing verified.

    Servers that are not listed count as reporting the initial history. The authenticators travel
    beside it (concatenated in the order of the servers in `groups`), because a timestamp stands for
    the histories alone.
    """

    object: ObjectField
    groups: Annotated[tuple[HistoryGroup, ...], Meta(max_length=limits.NODES)] = ()


class Hosted(NamedTuple):
    """A replica history and the set of servers that report it."""

    history: ReplicaHistory
    nodes: Nodes


class CulledObjectHistorySet(msgspec.Struct, frozen=True, gc=False):
    """Replica histories that may be believed to be what their servers reported."""

    object: ObjectId
    hosted: tuple[Hosted, ...]

    @property
    def latest(self) -> LogicalTimestamp:
        """`latest_time(OHS)`: the greatest timestamp of any candidate."""
        hosted = self.hosted
        if len(hosted) == 1:
            return hosted[0].history.latest
        return max((each.history.latest for each in hosted), default=ZERO)

    @property
    def nodes(self) -> Nodes:
        """The servers whose histories it holds."""
        nodes = 0
        for each in self.hosted:
            nodes |= each.nodes
        return nodes


class Known(NamedTuple):
    """What a client knows of one server's replica history of an object."""

    history: bytes
    authenticator: bytes


def assemble(
    identifier: ObjectId, known: Mapping[NodeId, Known]
) -> tuple[ObjectHistorySet, bytes, CulledObjectHistorySet]:
    """The object history set of `known`, its authenticators, and what a client sees in it.

    Requires: the histories of `known` can be parsed. Initial histories are left out.
    """
    by_history: dict[bytes, list[NodeId]] = {}
    for node in sorted(known):
        history = known[node].history
        if history:
            by_history.setdefault(history, []).append(node)
    groups = tuple(HistoryGroup(history, bytes(nodes)) for history, nodes in by_history.items())
    authenticators = b"".join(
        known[node].authenticator for nodes in by_history.values() for node in nodes
    )
    hosted = tuple(
        Hosted(parse_history(history), sum(1 << node for node in nodes))
        for history, nodes in by_history.items()
    )
    return (
        ObjectHistorySet(identifier, groups),
        authenticators,
        CulledObjectHistorySet(identifier, hosted),
    )


def parse_set(history_set: ObjectHistorySet, *, n: int) -> CulledObjectHistorySet:
    """What `history_set` says, if it is canonical. Raises MalformedMessage.

    Requires: the caller has a reason to believe it that is not the authenticators (a repairable
    set of servers vouches for the request that carries it).
    Ensures: no server is counted twice.
    """
    hosted: list[Hosted] = []
    seen = 0
    first_before = -1
    for group in history_set.groups:
        nodes = group.nodes
        mask = 0
        before = -1
        for node in nodes:
            if node <= before or node >= n:
                raise MalformedMessage("the servers of a history set are out of order")
            before = node
            mask |= 1 << node
        if mask & seen or nodes[0] <= first_before or not group.history:
            raise MalformedMessage("a history set is not canonical")
        seen |= mask
        first_before = nodes[0]
        hosted.append(Hosted(parse_history(group.history), mask))
    if len(hosted) > 1 and len({each.history.encoded for each in hosted}) != len(hosted):
        raise MalformedMessage("a history set lists one history twice")
    return CulledObjectHistorySet(history_set.object, tuple(hosted))


def cull(
    history_set: ObjectHistorySet,
    authenticators: bytes,
    keys: AuthenticatorKeys,
    *,
    n: int,
    latest_sane_us: int,
) -> tuple[CulledObjectHistorySet, Nodes, Nodes]:
    """`history_set` without what does not convince the server that holds `keys`.

    The other two results are the servers whose histories were culled: because the authenticator is
    invalid, and because the history shows an insane time. Raises MalformedMessage if the set is not
    canonical. [Q/U §4.3.4, lines 1001-1002; §4.3.5, Malevolent components]
    """
    parsed = parse_set(history_set, n=n)
    width = MAC_BYTES * n
    if len(authenticators) != width * parsed.nodes.bit_count():
        raise MalformedMessage("a history set lacks authenticators")
    position = 0
    forged = insane = 0
    for group, each in zip(history_set.groups, parsed.hosted, strict=True):
        if time_of(each.history.latest) > latest_sane_us:
            insane |= each.nodes
        end = position + width * len(group.nodes)
        forged |= keys.refuted(
            makers=group.nodes,
            digest=replica_history_digest(object=history_set.object, encoded=group.history),
            authenticators=authenticators[position:end],
        )
        position = end
    culled = forged | insane
    if culled:
        parsed = CulledObjectHistorySet(
            history_set.object,
            tuple(
                Hosted(each.history, each.nodes & ~culled)
                for each in parsed.hosted
                if each.nodes & ~culled
            ),
        )
    return parsed, forged, insane
