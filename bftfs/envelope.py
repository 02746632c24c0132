"""All requests and replies between principals, as two closed unions.

Each protocol declares its own messages; this module adds the few that belong to no protocol, and
joins them. Tags: Q/U requests 0x10 and 0x60, replies 0x20; PASIS requests 0x30, replies 0x40; these
0x50.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from msgspec import Meta

from bftfs.crypto.digest import DIGEST_BYTES
from bftfs.identifiers import BLOCK_ID_BYTES, EPOCH_ID_BYTES
from bftfs.limits import (
    AHEAD_NAMED,
    DECISIONS_TOLD,
    DESCRIPTION_BYTES,
    OTHER_DESCRIPTIONS,
    USAGE_BOUNDS,
    USAGE_ROWS,
)
from bftfs.query_update import messages as query_update
from bftfs.read_write import messages as read_write
from bftfs.read_write.timestamp import TIMESTAMP_BYTES
from bftfs.wire.codec import ClientField, Decoder, Message, ObjectField, TimeField, Value

_BYTES_MOST = (1 << 62) - 1
METRICS_CHARACTERS = 1 << 20
_MomentField: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 37)]
_BytesField: TypeAlias = Annotated[int, Meta(ge=0, le=_BYTES_MOST)]
_RowField: TypeAlias = Annotated[bytes, Meta(max_length=BLOCK_ID_BYTES + TIMESTAMP_BYTES)]
_SecondsField: TypeAlias = Annotated[float, Meta(ge=0, le=1e11)]  # all of them are dates
_FigureField: TypeAlias = Annotated[float, Meta(ge=-1e18, le=1e18)]  # a number, and finite


class HealthRequest(Message, frozen=True, tag=0x51):
    """Asks a node for a report on its state."""


class HealthFigure(Value, frozen=True):
    """One number that a node's background work reports."""

    name: Annotated[str, Meta(max_length=64)]
    value: _FigureField


class Decision(Value, frozen=True):
    """A decision of the administrator's to let history go: a `bftfs.retention.LetGo`."""

    before_s: _MomentField
    signed_s: _MomentField
    number: _BytesField
    client: ClientField | None
    since_s: _MomentField


_DigestField: TypeAlias = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
_OthersField: TypeAlias = Annotated[tuple[_DigestField, ...], Meta(max_length=OTHER_DESCRIPTIONS)]


class HealthReply(Message, frozen=True, tag=0x52):
    """The node's report on itself."""

    pid: int
    uptime_us: int
    healthy: bool
    reasons: tuple[Annotated[str, Meta(max_length=512)], ...]  # why it is degraded, if it is
    store_bytes: Annotated[int, Meta(ge=0, le=_BYTES_MOST)]  # what the store takes on its disk
    used_bytes: Annotated[int, Meta(ge=0, le=_BYTES_MOST)]  # of the history pool
    free_bytes: Annotated[int, Meta(ge=0, le=_BYTES_MOST)]  # that new versions can still take
    objects: Annotated[int, Meta(ge=0, le=_BYTES_MOST)]
    requests: int
    memory_bytes: int
    # Of lazy verification and healing, by the names of the metrics.
    background: Annotated[tuple[HealthFigure, ...], Meta(max_length=128)] = ()
    # The latest cluster description that the node has seen.
    description_serial: Annotated[int, Meta(ge=0, le=_BYTES_MOST)] = 0
    description_digest: Annotated[bytes, Meta(max_length=DIGEST_BYTES)] = b""
    # Those that it keeps beside it, as they take rights that the latest one does not take.
    other_descriptions: _OthersField = ()
    # The first of the objects whose latest versions are of the future.
    ahead: Annotated[tuple[ObjectField, ...], Meta(max_length=AHEAD_NAMED)] = ()
    # The latest decisions to let history go.
    let_go: Annotated[tuple[Decision, ...], Meta(max_length=DECISIONS_TOLD)] = ()


class ClockRequest(Message, frozen=True, tag=0x53):
    """Ask a node for the time on its clock."""


class ClockReply(Message, frozen=True, tag=0x54):
    """The node's clock, in microseconds since the epoch, and a time that it bore before.

    That is 0 unless the clock was set back within the last hour. (`bftfs.server.own_clock`)
    """

    now_us: TimeField
    borne_us: TimeField


Verb: TypeAlias = Literal[
    "start", "pause", "resume", "throttle", "status", "metrics", "clients", "usage"
]


class UpkeepRequest(Message, frozen=True, tag=0x55):
    """Controls a kind of background work, or asks for the metrics. Of the administrator only.

    The node's owner, too, sends it, over the control socket of the node. (`nodes.control`)
    """

    verb: Verb
    work: Annotated[str, Meta(max_length=32)] = ""  # none for metrics and clients
    rate_bytes: Annotated[int, Meta(ge=0, le=_BYTES_MOST)] | None = None  # to throttle to
    # Of usage: the row that the page follows, and the times by which the past is divided.
    after: _RowField = b""
    bounds: Annotated[tuple[TimeField, ...], Meta(max_length=USAGE_BOUNDS)] = ()


class WorkStatus(Value, frozen=True):
    """The state of one kind of work at one node."""

    work: Annotated[str, Meta(max_length=32)]
    state: Literal["running", "paused", "idle"]
    progress: Annotated[float, Meta(ge=0, le=1)]  # of the pass under way; 1 if there is none
    bytes_per_second: Annotated[float, Meta(ge=0, le=_BYTES_MOST)]
    limit_bytes_per_second: Annotated[int, Meta(ge=0, le=_BYTES_MOST)]
    remaining_s: _SecondsField | None  # None: unknown
    ended_s: _SecondsField | None  # when the last complete pass ended, since the epoch
    figures: Annotated[dict[Annotated[str, Meta(max_length=64)], int], Meta(max_length=64)]


class ClientUse(Value, frozen=True):
    """When a client was connected to the node last, in seconds since the epoch."""

    client: ClientField
    seen_s: _MomentField


class HeldVersions(Value, frozen=True):
    """The bytes that one client's versions of the blocks of one file take at a node."""

    file: ObjectField
    client: ClientField
    now: _BytesField  # files show them
    snapshots: _BytesField  # only snapshots do
    past: Annotated[tuple[_BytesField, ...], Meta(max_length=USAGE_BOUNDS + 1)]  # by its end


class UsagePage(Value, frozen=True):
    """A part of what a node stores of blocks. (`bftfs.server.usage`)"""

    held: Annotated[tuple[HeldVersions, ...], Meta(max_length=USAGE_ROWS)]
    after: _RowField  # where the next page begins; empty if there is none


class UpkeepReply(Message, frozen=True, tag=0x56):
    """The node's answer: an error, or the state of the work, the metrics, the clients."""

    error: Annotated[str, Meta(max_length=512)] = ""
    status: WorkStatus | None = None
    metrics: Annotated[str, Meta(max_length=METRICS_CHARACTERS)] = ""  # in Prometheus' text format
    clients: Annotated[tuple[ClientUse, ...], Meta(max_length=16_384)] = ()  # since it was started
    usage: UsagePage | None = None


_EncodedField: TypeAlias = Annotated[bytes, Meta(max_length=DESCRIPTION_BYTES)]
_SignatureField: TypeAlias = Annotated[bytes, Meta(max_length=128)]  # in hexadecimal digits


class Announcement(Message, frozen=True, tag=0x57):
    """Brings a node a signed description of the cluster; of the administrator only.

    The answer is an `UpkeepReply`.
    """

    encoded: _EncodedField
    signature: _SignatureField


class DescriptionRequest(Message, frozen=True, tag=0x58):
    """Asks a node for the latest description that it has seen; of any principal.

    Or for one that it keeps beside that, by its digest.
    """

    digest: Annotated[bytes, Meta(max_length=DIGEST_BYTES)] = b""


class DescriptionReply(Message, frozen=True, tag=0x59):
    """The description that was asked for, and the digests of those kept beside the latest one.

    Its signature and serial prove it, whichever node sends it.
    """

    encoded: _EncodedField
    signature: _SignatureField
    others: _OthersField = ()


class EpochRequest(Message, frozen=True, tag=0x5A):
    """Asks a node for the latest key epoch in that description; of any principal."""


class EpochReply(Message, frozen=True, tag=0x5B):
    """Its id; that of the first epoch if there was no other. A claim: ask many to be certain."""

    epoch: Annotated[bytes, Meta(min_length=EPOCH_ID_BYTES, max_length=EPOCH_ID_BYTES)]
    others: _OthersField = ()  # of descriptions that are kept beside it, which may have other keys


Request: TypeAlias = (
    query_update.Request
    | read_write.Request
    | HealthRequest
    | ClockRequest
    | UpkeepRequest
    | Announcement
    | DescriptionRequest
    | EpochRequest
)
Reply: TypeAlias = (
    query_update.Reply
    | read_write.Reply
    | HealthReply
    | ClockReply
    | UpkeepReply
    | DescriptionReply
    | EpochReply
)

REQUESTS: Decoder[Request] = Decoder(Request)
REPLIES: Decoder[Reply] = Decoder(Reply)


def _all_of_histories(reply: Any) -> bytes:
    return b"".join(reply.histories)


# The parts of replies that may be large. All others of a reply take less than 512 KiB together.
_LARGE: Final = ("answer", "conditioned", "encoded", "history", "metrics", "page")
_PARTS: Final[dict[type, tuple[Callable[[Any], bytes | str], ...]]] = {
    reply: (
        *(attrgetter(part) for part in _LARGE if part in reply.__struct_fields__),
        *([_all_of_histories] if "histories" in reply.__struct_fields__ else []),
    )
    for reply in get_args(Reply)
}


def bulk_of(reply: Any) -> int:
    """How many bytes the large parts of a reply have, before it is encoded."""
    return sum([len(part(reply)) for part in _PARTS.get(type(reply), ())])
