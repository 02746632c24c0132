"""The structures of the pseudo-code: timestamps, candidates, histories, and what is conditioned.

[Q/U §4.3.4, lines 100-107; §4.3.5, §4.3.7] In the order in which they are built from each other:

- A *logical timestamp* orders the versions of an object. `LT = <Time, BarrierFlag, ClientID,
  Operation, OHS>`, compared in that order. A compact timestamp has one digest in place of operation
  and object history set. It is kept as 57 bytes, each field big-endian at its place, so that
  comparing, hashing, storing and sending it cost nothing. Time is in microseconds and follows
  wall-clock time: the larger of the client's clock and one more than the latest time in the object
  history set.
- A *candidate* is what a server says it has accepted: ⟨LT, LT_conditioned-on⟩ and, beyond the
  single-object pseudo-code, the objects of the operation that made it (none if it touched one
  object only), and whether it is a copy. All of it is the candidate's identity: servers share a
  candidate only if they agree on all of it.
- A *replica history* is the ordered set of candidates that one server has accepted for an object.
  It travels, is stored and is authenticated as one encoded value: nothing for the initial history;
  else one byte that tells whether ⟨0, 0⟩ is still in it or has been pruned, and the candidates.
- An *object history set* is what a client has heard of an object: replica histories by server.
  Servers that report the same history share it: in the common case all of a quorum does.
- *Conditioned* is all that a timestamp stands for: an operation, and the history sets on which it
  is conditioned.

**Invariant.** `classify` and `settle` take a `CulledObjectHistorySet` only. A server gets one from
`cull`, which has checked its own entry of every authenticator; a client, which can check none, from
`observe`. [Q/U §4.3.4, lines 1001-1002]
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter, itemgetter
from typing import Annotated, NamedTuple, NewType, TypeAlias

import msgspec
from msgspec import Meta

from bftfs import limits
from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.crypto.digest import (
    DIGEST_BYTES,
    AuthenticatorKeys,
    entry_bytes,
    operation_digest,
    padded,
    replica_history_digest,
)
from bftfs.errors import MalformedMessage
from bftfs.identifiers import CLIENT_ID_BYTES, OBJECT_ID_BYTES, ClientId, NodeId, ObjectId
from bftfs.wire.codec import Decoder, ObjectField, TimeField, UserField, Value

# --- timestamps -----------------------------------------------------------------------------------

LogicalTimestamp = NewType("LogicalTimestamp", bytes)

_TIME_BYTES = 8
_CLIENT_AT = _TIME_BYTES + 1
_DIGEST_AT = _CLIENT_AT + CLIENT_ID_BYTES
TIMESTAMP_BYTES = _DIGEST_AT + DIGEST_BYTES

ZERO = LogicalTimestamp(bytes(TIMESTAMP_BYTES))  # the initial version, which everyone hosts

TimestampField: TypeAlias = Annotated[
    LogicalTimestamp, Meta(min_length=TIMESTAMP_BYTES, max_length=TIMESTAMP_BYTES)
]

_FLAG = {False: b"\0", True: b"\1"}


def logical_timestamp(
    *, time_us: int, barrier: bool, client: ClientId, digest: bytes
) -> LogicalTimestamp:
    """The timestamp with these fields."""
    return LogicalTimestamp(time_us.to_bytes(_TIME_BYTES, "big") + _FLAG[barrier] + client + digest)


def time_of(timestamp: LogicalTimestamp) -> int:
    """`LT.Time`, in microseconds since the epoch."""
    return int.from_bytes(timestamp[:_TIME_BYTES], "big")


def is_barrier(timestamp: LogicalTimestamp) -> bool:
    """`LT.BarrierFlag`."""
    return timestamp[_TIME_BYTES] != 0


def client_of(timestamp: LogicalTimestamp) -> ClientId:
    """`LT.ClientID`: the author of the operation."""
    return ClientId(timestamp[_CLIENT_AT:_DIGEST_AT])


# --- candidates -----------------------------------------------------------------------------------

_COPY = 0x80
_FLAG_AT = 2 * TIMESTAMP_BYTES
FIXED_BYTES = _FLAG_AT + 1
_BEYOND_TIME = 0x80  # times have 63 bits: one more than any of them is a time of 64


class Candidate(msgspec.Struct, frozen=True, eq=False, gc=False):
    """An operation that a server accepted for an object. Equal if encoded equally."""

    timestamp: LogicalTimestamp
    conditioned_on: LogicalTimestamp
    objects: tuple[ObjectId, ...] = ()  # of a multi-object operation: all of them, ascending
    copy: bool = False
    encoded: bytes = b""

    def __post_init__(self) -> None:
        if not self.encoded:
            flag = len(self.objects) | (_COPY if self.copy else 0)
            msgspec.structs.force_setattr(
                self,
                "encoded",
                self.timestamp + self.conditioned_on + bytes((flag,)) + b"".join(self.objects),
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and self.encoded == other.encoded

    def __hash__(self) -> int:
        return hash(self.encoded)

    @property
    def barrier(self) -> bool:
        """True if it is a barrier, which has no object version."""
        return is_barrier(self.timestamp)


INITIAL = Candidate(ZERO, ZERO)  # ⟨0, 0⟩: complete at everyone from the start


def parse_candidates(encoded: bytes, *, limit: int) -> tuple[Candidate, ...]:
    """The candidates whose encodings `encoded` is the concatenation of. Raises MalformedMessage.

    Ensures: they ascend strictly, condition on the past, and none is ⟨0, 0⟩; there is a time after
    each; barriers list no objects and are no copies.
    """
    candidates: list[Candidate] = []
    position = 0
    before = ZERO
    size = len(encoded)
    while position < size:
        flag_at = position + _FLAG_AT
        if flag_at >= size or len(candidates) == limit:
            raise MalformedMessage("a replica history is cut short or too long")
        flag = encoded[flag_at]
        count = flag & ~_COPY
        end = position + FIXED_BYTES + count * OBJECT_ID_BYTES
        if end > size or count == 1 or count > limits.OBJECTS_PER_OPERATION:
            raise MalformedMessage("a candidate lists an impossible number of objects")
        timestamp = LogicalTimestamp(encoded[position : position + TIMESTAMP_BYTES])
        conditioned_on = LogicalTimestamp(encoded[position + TIMESTAMP_BYTES : flag_at])
        if timestamp <= before or conditioned_on >= timestamp:
            raise MalformedMessage("candidates are out of order")
        if timestamp[0] & _BEYOND_TIME:
            raise MalformedMessage("a candidate is beyond all times")
        objects = _objects_in(encoded[position + FIXED_BYTES : end]) if count else ()
        if is_barrier(conditioned_on) or (flag and is_barrier(timestamp)):
            raise MalformedMessage("a barrier is conditioned on, copied, or lists objects")
        candidates.append(
            Candidate(timestamp, conditioned_on, objects, flag >= _COPY, encoded[position:end])
        )
        before = timestamp
        position = end
    return tuple(candidates)


@lru_cache(maxsize=1024)
def _objects_in(encoded: bytes) -> tuple[ObjectId, ...]:
    """The ids of an operation's objects, which ascend.

    Remembered, as the candidate of an operation comes in the history of each of its objects, with
    those that follow it there, and from each server.
    """
    starts = range(0, len(encoded), OBJECT_ID_BYTES)
    objects = [ObjectId(encoded[start : start + OBJECT_ID_BYTES]) for start in starts]
    for low, high in pairwise(objects):
        if low >= high:
            raise MalformedMessage("a candidate's objects are out of order")
    return tuple(objects)


# --- replica histories ----------------------------------------------------------------------------

_HISTORY_BYTES = limits.HISTORY_CANDIDATES_MOST * (FIXED_BYTES + 16 * limits.OBJECTS_PER_OPERATION)
_FLAGS = (b"\0", b"\1")
_FEW = 8  # candidates, among which nothing is faster than to look at each
_KEPT_BYTES = 512  # of a parsed history, besides its encoding
_timestamp_of = attrgetter("timestamp")

HistoryField: TypeAlias = Annotated[bytes, Meta(max_length=_HISTORY_BYTES)]


@dataclass(frozen=True, slots=True, eq=False)
class ReplicaHistory:
    """One server's candidates for one object, ascending; parsed once per distinct encoding."""

    encoded: bytes
    initial: bool  # True if ⟨0, 0⟩ is in it
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
    """Parsed histories by their encodings: the next request conditions on this reply's histories.

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
    encoded = candidate.encoded if initial else base.encoded + candidate.encoded
    encoded = _FLAGS[initial] + encoded
    _parsed.remember(ReplicaHistory(encoded, initial, candidates, candidate.timestamp, candidate))
    return encoded


# --- object history sets --------------------------------------------------------------------------


class HistoryGroup(Value, frozen=True):
    """A replica history and the servers that report it, ascending, one byte each."""

    history: HistoryField
    nodes: Annotated[bytes, Meta(min_length=1, max_length=limits.NODES)]


class ObjectHistorySet(Value, frozen=True):
    """The replica histories of an object that a client has heard, by server. Nothing is verified.

    Servers that are not listed count as reporting the initial history. The authenticators travel
    beside it (concatenated in the order of the servers in `groups`; to each server go its entries
    of them), because a timestamp stands for the histories alone.
    """

    object: ObjectField
    groups: Annotated[tuple[HistoryGroup, ...], Meta(max_length=limits.NODES)] = ()


class Hosted(NamedTuple):
    """A replica history and the set of servers that report it."""

    history: ReplicaHistory
    nodes: Nodes


class CulledObjectHistorySet(msgspec.Struct, frozen=True, gc=False):
    """Replica histories of which it is verified that their servers reported them."""

    object: ObjectId
    hosted: tuple[Hosted, ...]

    @property
    def latest(self) -> LogicalTimestamp:
        """`latest_time(OHS)`: the greatest timestamp of any candidate."""
        hosted = self.hosted
        if len(hosted) == 1:
            return hosted[0].history.latest
        return max([each.history.latest for each in hosted]) if hosted else ZERO

    @property
    def nodes(self) -> Nodes:
        """The servers whose histories it holds."""
        nodes = NOBODY
        for each in self.hosted:
            nodes |= each.nodes
        return nodes

    def reached_us(self, quorums: QuorumSystem) -> int:
        """The time that the object has reached: see `reached_us`."""
        return reached_us(
            ((time_of(history.latest), nodes) for history, nodes in self.hosted), quorums
        )


def reached_us(latest_us: Iterable[tuple[int, Nodes]], quorums: QuorumSystem) -> int:
    """The latest time such that servers have accepted it, or a later one, that cannot all lie.

    `latest_us` has the latest times of servers. 0 if there are too few of them.
    """
    nodes = NOBODY
    for time_us, hosts in sorted(latest_us, key=itemgetter(0), reverse=True):
        nodes |= hosts
        if quorums.includes_benign(nodes):
            return time_us
    return 0


class Known(NamedTuple):
    """One server's replica history of an object, as its client has heard it last."""

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
    authenticators = padded(
        [known[node].authenticator for nodes in by_history.values() for node in nodes]
    )
    hosted = tuple(
        Hosted(parse_history(history), Nodes.of(nodes)) for history, nodes in by_history.items()
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
    seen, first_before = 0, -1
    for group in history_set.groups:
        nodes, history = group.nodes, group.history
        hosts = Nodes.listed(nodes)
        if hosts is None or nodes[-1] >= n:
            raise MalformedMessage("the servers of a history set are out of order")
        if hosts.bits & seen or nodes[0] <= first_before or not history:
            raise MalformedMessage("a history set is not canonical")
        seen |= hosts.bits
        first_before = nodes[0]
        hosted.append(Hosted(parse_history(history), hosts))
    if len(hosted) > 1 and len({each.history.encoded for each in hosted}) != len(hosted):
        raise MalformedMessage("a history set lists one history twice")
    return CulledObjectHistorySet(history_set.object, tuple(hosted))


def entry_width(entries: bytes, count: int, n: int) -> int:
    """The size of each of `count` entries of authenticators of a set. Raises MalformedMessage."""
    width = entry_bytes(n)
    if len(entries) != width * count:
        width = entry_bytes(n, knowing=True)
        if len(entries) != width * count:
            raise MalformedMessage("a history set lacks authenticators")
    return width


def cull(
    history_set: ObjectHistorySet,
    entries: bytes,
    keys: AuthenticatorKeys,
    *,
    quorums: QuorumSystem,
    latest_sane_us: int,
) -> tuple[CulledObjectHistorySet, Nodes, Nodes, Nodes]:
    """`history_set` without what does not convince the server that holds `keys`.

    `entries` are this server's of the authenticators, in the order of the set.
    The other results are the servers whose histories were culled: because the authenticator is
    invalid, because the history shows an insane time, and because the server has begun a new life
    since then, which is nobody's fault. Raises MalformedMessage if the set is not
    canonical. [Q/U §4.3.4, lines 1001-1002; §4.3.5, Malevolent components]

    A time is insane if it is later than `latest_sane_us`, and than what the object has reached by
    more than a few steps. (docs/decisions/0017-clock-jumps.md)
    """
    parsed = parse_set(history_set, n=quorums.n)
    groups, name = history_set.groups, history_set.object
    makers = len(groups[0].nodes) if len(groups) == 1 else parsed.nodes.bits.bit_count()
    width = entry_width(entries, makers, quorums.n)
    position = 0
    forged = insane = outlived = NOBODY
    if time_of(parsed.latest) > latest_sane_us:
        latest_sane_us = max(latest_sane_us, parsed.reached_us(quorums) + limits.STEPS_AHEAD_US)
        for each in parsed.hosted:
            if time_of(each.history.latest) > latest_sane_us:
                insane |= each.nodes
    for group in groups:
        nodes, history = group.nodes, group.history
        end = position + width * len(nodes)
        bad, old = keys.refuted(
            makers=nodes,
            digest=replica_history_digest(object=name, encoded=history),
            entries=entries[position:end],
        )
        if bad or old:
            forged |= Nodes.of(bad)
            outlived |= Nodes.of(old)
        position = end
    if forged is not NOBODY or insane is not NOBODY or outlived is not NOBODY:
        culled = forged | insane | outlived
        parsed = CulledObjectHistorySet(
            history_set.object,
            tuple(
                Hosted(each.history, each.nodes - culled)
                for each in parsed.hosted
                if each.nodes - culled
            ),
        )
    return parsed, forged, insane, outlived


# --- what a timestamp stands for ------------------------------------------------------------------

_OBJECTS = Meta(min_length=1, max_length=limits.OBJECTS_PER_OPERATION)
_SOME_OBJECTS = Meta(max_length=limits.OBJECTS_PER_OPERATION)

MethodField: TypeAlias = Annotated[str, Meta(max_length=limits.METHOD_NAME_BYTES)]
ArgumentsField: TypeAlias = Annotated[bytes, Meta(max_length=limits.OPERATION_BYTES)]
GroupsField: TypeAlias = Annotated[tuple[UserField, ...], Meta(max_length=limits.GROUPS)]
AnswerField: TypeAlias = Annotated[bytes, Meta(max_length=limits.ANSWER_BYTES)]


class Operation(Value, frozen=True):
    """One invocation of an update method. [Q/U §4.3.4, line 102]

    `objects` are in the order of the method's roles. `serial` is drawn by the client: two
    invocations alike are two operations.
    """

    method: MethodField
    objects: Annotated[tuple[ObjectField, ...], _OBJECTS]
    arguments: ArgumentsField
    uid: UserField
    gid: UserField
    groups: GroupsField
    serial: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class ConditionedKind(IntEnum):
    """The kinds of operations; each requires a classification of its own."""

    METHOD = 1
    COPY = 2
    BARRIER = 3


_METHOD = ConditionedKind.METHOD  # a member of a class takes longer to find
_LACKING = "an object lacks its history set"


class Fact(Value, frozen=True):
    """A candidate of these objects is established, or dead, by deduction. [Q/U §4.3.7]

    `objects` are those of its operation, ascending, also if it is one only. A server that is asked
    about another object finds nothing of the candidate there, and says that it is dead.
    """

    timestamp: TimestampField
    objects: Annotated[tuple[ObjectField, ...], _OBJECTS]
    established: bool


class Conditioned(Value, frozen=True):
    """All that a timestamp stands for: what is to be done, and on what it is conditioned.

    `sets` are the history sets of the objects that it changes, ascending. `evidence` are those of
    other objects, and `facts` is what is known of candidates, that decide what a copy copies.
    `LT.Time` is the larger of `clock` and one more than the latest time in `sets`.
    """

    kind: ConditionedKind
    operation: Operation | None  # None unless kind is METHOD
    clock: TimeField
    sets: Annotated[tuple[ObjectHistorySet, ...], _OBJECTS]
    evidence: Annotated[tuple[ObjectHistorySet, ...], _SOME_OBJECTS] = ()
    facts: Annotated[tuple[Fact, ...], Meta(max_length=limits.FACTS)] = ()

    @property
    def known(self) -> dict[LogicalTimestamp, bool]:
        """The facts by their candidates: established (True) or dead (False)."""
        return {fact.timestamp: fact.established for fact in self.facts}

    @property
    def fault(self) -> str:
        """Why no correct client makes such a request; nothing if its parts belong together."""
        sets, operation = self.sets, self.operation
        if (operation is None) is (self.kind is _METHOD):
            return "only a method invocation has an operation"
        if operation is not None and len(sets) == 1 and not self.evidence:  # as most are
            return "" if {*operation.objects} == {sets[0].object} else _LACKING
        names = [history_set.object for history_set in sets]
        if any(low >= high for low, high in pairwise(names)):
            return "the objects are out of order"
        if operation is None and self.clock:
            return "only a method invocation carries a clock"
        if self.kind is ConditionedKind.BARRIER and len(names) != 1:
            return "objects are barred one by one"
        if self.evidence and self.kind is not ConditionedKind.COPY:
            return "only a copy rests on evidence"
        if self.evidence and not {each.object for each in self.evidence}.isdisjoint(names):
            return "an object is its own evidence"
        if operation is not None and sorted(set(operation.objects)) != names:
            return _LACKING
        return ""


_DECODER: Decoder[Conditioned] = Decoder(Conditioned, limit=limits.CONDITIONED_BYTES)
decode_conditioned = _DECODER.decode


def timestamp_of(
    conditioned: Conditioned,
    encoded: bytes,
    sets: Iterable[CulledObjectHistorySet],
    author: ClientId,
) -> LogicalTimestamp:
    """The timestamp of what `conditioned`, encoded as `encoded`, describes; one for all objects.

    `sets` is what its `sets` say. A deterministic function of operation and object history sets, so
    that all servers that receive the same set up the same candidate. [Q/U line 1102]
    """
    time_us = conditioned.clock
    for history_set in sets:
        time_us = max(time_us, time_of(history_set.latest) + 1)
    return logical_timestamp(
        time_us=time_us,
        barrier=conditioned.kind is ConditionedKind.BARRIER,
        client=author,
        digest=operation_digest(encoded),
    )


def is_original(encoded: bytes, timestamp: LogicalTimestamp, *, n: int) -> bool:
    """True if `encoded` is the `Conditioned` from which the candidate at `timestamp` was made."""
    try:
        conditioned = decode_conditioned(encoded)
        sets = [parse_set(each, n=n) for each in conditioned.sets]
    except MalformedMessage:
        return False
    return timestamp_of(conditioned, encoded, sets, client_of(timestamp)) == timestamp
