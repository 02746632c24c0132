"""What clients and servers of Query/Update say: requests 0x10-0x1f and 0x60, replies 0x20-0x2f.

A server checks its own entry of each authenticator that it is shown, and nothing else. So a request
goes to each server with that server's entries only. A client makes one for several servers with
whole authenticators, and sends what `addressed` makes of it. That takes nothing from any server
that it could rely on: a Byzantine client could always send each server others. [Q/U §4.3.4]

Every reply to a client that concerns objects reports the server's replica history of each, with its
authenticator: the objects of the request without repetition, in ascending order.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, TypeAlias

from msgspec import Meta
from msgspec.structs import replace

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.credentials import NOBODY
from bftfs.crypto.digest import DIGEST_BYTES, authenticator_bytes, entries_of, entry_bytes
from bftfs.identifiers import OBJECT_ID_BYTES, NodeId
from bftfs.query_update.history import (
    TIMESTAMP_BYTES,
    AnswerField,
    ArgumentsField,
    GroupsField,
    HistoryField,
    MethodField,
    ObjectHistorySet,
    Operation,
    TimestampField,
)
from bftfs.wire.codec import (
    AuthenticatorField,
    ClientField,
    LifeField,
    LivesField,
    Message,
    NodeField,
    ObjectField,
    TimeField,
    UserField,
    Value,
    Voucher,
)

_OBJECTS = Meta(min_length=1, max_length=limits.OBJECTS_PER_OPERATION)
_SOME_OBJECTS = Meta(max_length=limits.OBJECTS_PER_OPERATION)

ErrnoField: TypeAlias = Annotated[int, Meta(ge=0, le=4095)]
NodesField: TypeAlias = Annotated[
    int, Meta(ge=0, le=(1 << 63) - 1)
]  # a set of servers, as a bit mask
AuthenticatorsOfAllField: TypeAlias = Annotated[
    tuple[AuthenticatorField, ...], Meta(max_length=limits.NODES)
]
RunField: TypeAlias = Annotated[bytes, Meta(max_length=8 + authenticator_bytes(limits.NODES))]
HistoriesField: TypeAlias = Annotated[tuple[HistoryField, ...], _SOME_OBJECTS]
AuthenticatorsField: TypeAlias = Annotated[tuple[AuthenticatorField, ...], _SOME_OBJECTS]
_BUNDLED = Meta(max_length=limits.QUERIES_BUNDLED)
PrefixField: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=limits.STATE_KEY_BYTES)]
ConditionedField: TypeAlias = Annotated[bytes, Meta(max_length=limits.CONDITIONED_BYTES)]
EntriesField: TypeAlias = Annotated[  # of one server, of authenticators of as many as there are
    bytes, Meta(max_length=limits.NODES * entry_bytes(limits.NODES, knowing=True))
]
SetEntriesField: TypeAlias = Annotated[
    tuple[EntriesField, ...], Meta(max_length=2 * limits.OBJECTS_PER_OPERATION)
]

# --- requests -------------------------------------------------------------------------------


class Query(Message, frozen=True, tag=0x10):
    """Invoke a query on the latest version of each object that the server has. [Q/U §4.3.5]

    The empty method asks for the replica histories alone. `versions`, if not empty, names the
    version of each object (without repetition, ascending) to answer on instead. `deduce` asks what
    the server can tell of the latest candidate of the first of several objects of an operation.
    """

    objects: Annotated[tuple[ObjectField, ...], _OBJECTS]
    method: MethodField
    arguments: ArgumentsField
    uid: UserField
    gid: UserField
    groups: GroupsField
    whole_answer_from: NodeField
    deduce: bool = False
    versions: Annotated[tuple[TimestampField, ...], _SOME_OBJECTS] = ()


class Bundle(Message, frozen=True, tag=0x60):
    """One query of each of these objects, which ascend, on the server's latest version of it.

    Each is answered as if it had come alone. [docs/protocols-query-update.md, Bundles]
    """

    objects: Annotated[
        tuple[ObjectField, ...], Meta(min_length=1, max_length=limits.QUERIES_BUNDLED)
    ]
    method: MethodField
    arguments: ArgumentsField
    uid: UserField
    gid: UserField
    groups: GroupsField


class VouchedBy(Value, frozen=True):
    """The receiver's entries of authenticators over what a method rests on, and the nodes that
    have made these, ascending.
    """

    nodes: Annotated[bytes, Meta(max_length=limits.NODES)] = b""
    authenticators: EntriesField = b""


class Update(Message, frozen=True, tag=0x11):
    """Do what `conditioned`, an encoded `Conditioned`, says, on the sender's behalf.

    `authenticators` are the receiver's entries of those of its sets and then its evidence;
    `vouchers` belong to its facts. `vouched_by` is for what the method rests on besides
    (`Method.rests_on`).
    """

    conditioned: ConditionedField
    authenticators: SetEntriesField
    vouchers: Annotated[
        tuple[Annotated[tuple[Voucher, ...], Meta(max_length=limits.NODES)], ...],
        Meta(max_length=limits.FACTS),
    ]
    whole_answer_from: NodeField
    vouched_by: VouchedBy | None = None


class InlineUpdate(Message, frozen=True, tag=0x12):
    """Finish the operation that `author` began, at its timestamp. [Q/U §4.3.5, Inline repair]

    `conditioned` is the original; `evidence` is a history set in which its candidate is the latest
    and repairable, so that a benign server that accepted it from its author vouches for it.
    """

    conditioned: ConditionedField
    author: ClientField
    evidence: ObjectHistorySet
    authenticators: EntriesField
    whole_answer_from: NodeField


class InlineBarrier(Message, frozen=True, tag=0x13):
    """Accept the barrier that is the latest candidate of `evidence`. [Q/U §4.3.5]"""

    evidence: ObjectHistorySet
    authenticators: EntriesField


def addressed(
    message: Update | InlineUpdate | InlineBarrier, n: int
) -> Callable[[NodeId], Update | InlineUpdate | InlineBarrier]:
    """Turns `message`, which has whole authenticators, into the one that each of n servers is sent.

    Raises ValueError if these are none.
    """
    if not isinstance(message, Update):
        own = entries_of(message.authenticators, n)
        return lambda node: replace(message, authenticators=own[node])
    conditioned, vouchers, whole_from = (
        message.conditioned,
        message.vouchers,
        message.whole_answer_from,
    )
    of_sets = list(zip(*[entries_of(each, n) for each in message.authenticators], strict=True))
    vouched_by = message.vouched_by
    if vouched_by is None:
        return lambda node: Update(conditioned, of_sets[node], vouchers, whole_from)
    nodes, vouched = vouched_by.nodes, entries_of(vouched_by.authenticators, n)
    return lambda node: Update(
        conditioned, of_sets[node], vouchers, whole_from, VouchedBy(nodes, vouched[node])
    )


class FetchRequest(Message, frozen=True, tag=0x14):
    """The `Conditioned` that made the candidate at `timestamp`, for its repair.

    It has the names in a directory, say, that the operation changes. So servers tell it to its
    author, and to users who may read that directory.
    """

    timestamp: TimestampField
    uid: UserField = NOBODY.uid
    gid: UserField = NOBODY.gid
    groups: GroupsField = ()


class DeduceRequest(Message, frozen=True, tag=0x15):
    """Is the candidate at `timestamp` established or dead? [Q/U §4.3.7]

    As of `version` of the first object, if that is given: then the question is whether the
    candidate is in that version's chain, and the reply carries the answer that it was given. Only
    the candidate's author may ask that.
    """

    timestamp: TimestampField
    objects: Annotated[tuple[ObjectField, ...], _OBJECTS]
    version: Annotated[bytes, Meta(max_length=57)] = b""
    whole_answer_from: NodeField = 0  # type: ignore[assignment]


class SyncRequest(Message, frozen=True, tag=0x16):
    """Object sync: what a server lacks of `version`. [Q/U §4.3.5, Object syncing]

    With `known`, the chain of versions down to one of these; else one page of the state, of the
    keys after `after`. Whole from one server, digests from the others.
    """

    object: ObjectField
    version: TimestampField
    known: Annotated[tuple[TimestampField, ...], Meta(max_length=limits.SYNC_KNOWN)]
    after: Annotated[bytes, Meta(max_length=limits.STATE_KEY_BYTES)]
    whole: bool


class PastQuery(Message, frozen=True, tag=0x17):
    """Invoke a query on the newest version of one object whose time is `at_us` or earlier.

    Of the chain that leads to the server's latest version. `below` is where an earlier search
    stopped; everything if it is empty.
    """

    object: ObjectField
    at_us: TimeField
    below: Annotated[bytes, Meta(max_length=57)]
    method: MethodField
    arguments: ArgumentsField
    uid: UserField
    gid: UserField
    groups: GroupsField
    whole_answer_from: NodeField


class VersionsRequest(Message, frozen=True, tag=0x18):
    """The versions of an object from `newest` down, the newest first: one page of at most `most`.

    Each with its changes of the keys that begin with one of `prefixes`. The object, as it is now,
    must permit that to the user.
    """

    object: ObjectField
    newest: TimestampField
    uid: UserField
    gid: UserField
    groups: GroupsField
    most: Annotated[int, Meta(ge=1, le=limits.VERSIONS_IN_REPLY)]
    prefixes: Annotated[tuple[PrefixField, ...], Meta(max_length=4)]
    whole_answer_from: NodeField


class HistoryRequest(Message, frozen=True, tag=0x1A):
    """From node to node: your replica history of an object, for healing."""

    object: ObjectField
    proof: AuthenticatorField = b""  # of the life that the asking server has begun, if it recovers


class LifeRequest(Message, frozen=True, tag=0x19):
    """From node to node: which lives do you know of? With the proof that the sender has begun one,
    if it has.
    """

    proof: AuthenticatorField


class RunRequest(Message, frozen=True, tag=0x1D):
    """From node to node: which runs do you know of? With the proof that the sender has begun one,
    if it has.
    """

    proof: RunField


class CatalogueRequest(Message, frozen=True, tag=0x1B):
    """From node to node: which objects do you have, with ids after `after`?"""

    after: Annotated[bytes, Meta(max_length=OBJECT_ID_BYTES)]


class AttestRequest(Message, frozen=True, tag=0x1E):
    """From node to node: what do you have of these versions (object and timestamp)?"""

    versions: Annotated[
        tuple[Annotated[bytes, Meta(max_length=OBJECT_ID_BYTES + TIMESTAMP_BYTES)], ...],
        Meta(min_length=1, max_length=limits.VERSIONS_ATTESTED),
    ]


class ChainRequest(Message, frozen=True, tag=0x1F):
    """From node to node: a page of the chain of versions from `version` down, or its digest."""

    object: ObjectField
    version: TimestampField
    whole: bool


# --- replies --------------------------------------------------------------------------------


class Verdict(IntEnum):
    """The fate of a candidate, by the chain of an established version."""

    UNKNOWN = 0
    ESTABLISHED = 1
    DEAD = 2


class LatestRequest(Message, frozen=True, tag=0x1C):
    """From node to node: what is the latest timestamp in your replica history of each object?"""

    objects: Annotated[
        tuple[ObjectField, ...], Meta(min_length=1, max_length=limits.OBJECTS_COMPARED)
    ]


class QueryReply(Message, frozen=True, tag=0x20):
    """The answer on the server's latest versions (or those asked for); `error` is an errno or 0.

    `answered` is false where the server cannot answer: it lacks the versions asked for.
    """

    histories: HistoriesField
    authenticators: AuthenticatorsField
    lives: LivesField
    answered: bool
    error: ErrnoField
    answer: AnswerField  # or its digest
    whole: bool
    verdict: Verdict = Verdict.UNKNOWN
    voucher: AuthenticatorField = b""


class BundleReply(Message, frozen=True, tag=0x2F):
    """The answers to some of a bundle's queries, each with the replica history of its object.

    `positions` are those of the objects in the request, ascending, one byte each; the other columns
    go with them. What is left out the server cannot answer now, or not in a few bytes.
    """

    positions: Annotated[bytes, _BUNDLED]
    histories: Annotated[tuple[HistoryField, ...], _BUNDLED]
    authenticators: Annotated[tuple[AuthenticatorField, ...], _BUNDLED]
    lives: LivesField
    errors: Annotated[tuple[ErrnoField, ...], _BUNDLED]
    answers: Annotated[
        tuple[Annotated[bytes, Meta(max_length=limits.ANSWER_INLINE_BYTES)], ...], _BUNDLED
    ]


class Status(IntEnum):
    """The outcome of an update, barrier or copy at one server."""

    SUCCESS = 0  # accepted, now or before
    REFUSED = 1  # invoked on the conditioned-on versions, and refused by the method: see error
    NOT_CURRENT = 2  # FAIL: the server has accepted something later
    CULLED = 3  # FAIL: see the culled servers; nothing was classified
    DIFFERENT = 4  # FAIL: the history sets do not dictate this operation
    TOO_MANY = 5  # FAIL: the client has too many incomplete updates at the object or server
    INSANE_TIME = 6  # FAIL: the timestamp is too far in the future
    UNVOUCHED = 7  # FAIL: too few nodes vouch for what the method rests on; see the forged ones


ContendersField = Annotated[int, Meta(ge=0, le=limits.CONTENDERS)]


class UpdateReply(Message, frozen=True, tag=0x21):
    """The outcome of the request, and the replica histories of its objects now."""

    status: Status
    histories: HistoriesField
    authenticators: AuthenticatorsField
    lives: LivesField
    error: ErrnoField = 0
    answer: AnswerField = b""  # or its digest; nothing, and not whole, if it is not known
    whole: bool = True
    forged: NodesField = 0  # servers whose authenticator is invalid
    insane: NodesField = 0  # servers whose history shows an insane time
    contenders: ContendersField = 0  # that stand in the line; if the request was too late, ahead


class FetchReply(Message, frozen=True, tag=0x24):
    """The stored `Conditioned`; empty if the server does not have it, or does not tell."""

    conditioned: ConditionedField


class DeduceReply(Message, frozen=True, tag=0x25):
    """The verdict, an authenticator over it, and the answer if the candidate is on the chain."""

    verdict: Verdict
    voucher: AuthenticatorField
    answer: AnswerField = b""
    whole: bool = True


class Found(IntEnum):
    """How much a server has of a version that is asked for in object sync."""

    NOTHING = 0
    PAGE = 1
    UNCHAINED = 2  # the version, but no chain from what is known: the state has to do


class SyncReply(Message, frozen=True, tag=0x26):
    """A page of object sync, or its digest."""

    found: Found
    page: Annotated[bytes, Meta(max_length=2 * limits.SYNC_PAGE_BYTES)]


class Looked(IntEnum):
    """The outcome of a search of a server's past."""

    UNKNOWN = 0  # the server lacks that part of the object's past
    FOUND = 1
    FURTHER = 2  # there is more to search: ask again, with `version` as the bound
    COLLECTED = 3  # the server has had it, and does not keep it any longer


class PastReply(Message, frozen=True, tag=0x27):
    """The answer on the newest version that is old enough, and the server's replica history."""

    histories: HistoriesField
    authenticators: AuthenticatorsField
    lives: LivesField
    looked: Looked
    version: TimestampField
    error: ErrnoField = 0
    answer: AnswerField = b""  # or its digest
    whole: bool = True


WITHHELD = b""  # in place of arguments, whose encoding is not empty, and of names, which are not
NO_SERIAL = 0  # in place of the serial of an operation of which something is withheld


class PastVersion(Value, frozen=True):
    """One version of an object, as servers tell it clients.

    `operation` is None for a copy, which changes nothing. Its arguments are WITHHELD from users to
    whom its method closes them, and names in other objects from users other than its own and root;
    with either goes its serial.
    """

    timestamp: TimestampField
    parent: TimestampField
    objects: Annotated[tuple[ObjectField, ...], _SOME_OBJECTS]
    operation: Operation | None
    changes: tuple[tuple[bytes, bytes | None], ...]


class VersionsReply(Message, frozen=True, tag=0x28):
    """A page of versions: an encoded tuple of `PastVersion`, or its digest."""

    found: bool
    error: ErrnoField = 0
    page: Annotated[bytes, Meta(max_length=limits.ANSWER_BYTES)] = b""
    whole: bool = True


class HistoryReply(Message, frozen=True, tag=0x2A):
    """The replica history; nothing for the initial one."""

    history: HistoryField
    remembers: bool  # False if the server may have forgotten some of it
    life: LifeField  # the latest of the asking server that is stored here
    lives: LivesField  # the latest of each server that it knows of


class LifeReply(Message, frozen=True, tag=0x29):
    """For each server the proof of its latest life that is stored here; empty for the first."""

    proofs: AuthenticatorsOfAllField


class RunReply(Message, frozen=True, tag=0x2D):
    """For each server the proof of its latest run that is stored here; empty if there is none."""

    proofs: Annotated[tuple[RunField, ...], Meta(max_length=limits.NODES)]


class Catalogued(Value, frozen=True):
    """An object, and the latest timestamp in its replica history."""

    object: ObjectField
    latest: TimestampField


class CatalogueReply(Message, frozen=True, tag=0x2B):
    """Objects in the order of their ids, and whether there are more."""

    objects: Annotated[tuple[Catalogued, ...], Meta(max_length=limits.OBJECTS_IN_CATALOGUE)]
    more: bool
    total: Annotated[int, Meta(ge=0, lt=1 << 62)] = 0  # that it has in all: for telling progress


class AttestReply(Message, frozen=True, tag=0x2E):
    """The digest of each version, in order; nothing for one that the server does not know."""

    digests: Annotated[
        tuple[Annotated[bytes, Meta(max_length=DIGEST_BYTES)], ...],
        Meta(max_length=limits.VERSIONS_ATTESTED),
    ]


class LatestReply(Message, frozen=True, tag=0x2C):
    """The timestamps, in the order of the objects; the initial one of those not known."""

    latest: Annotated[tuple[TimestampField, ...], Meta(max_length=limits.OBJECTS_COMPARED)]


Request: TypeAlias = (
    Query
    | Bundle
    | Update
    | InlineUpdate
    | InlineBarrier
    | FetchRequest
    | DeduceRequest
    | SyncRequest
    | PastQuery
    | VersionsRequest
    | HistoryRequest
    | LifeRequest
    | RunRequest
    | CatalogueRequest
    | AttestRequest
    | ChainRequest
    | LatestRequest
)
Reply: TypeAlias = (
    QueryReply
    | BundleReply
    | UpdateReply
    | FetchReply
    | DeduceReply
    | SyncReply
    | PastReply
    | VersionsReply
    | HistoryReply
    | LifeReply
    | RunReply
    | CatalogueReply
    | AttestReply
    | LatestReply
    | Refused
)
