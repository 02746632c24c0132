"""The requests and replies of PASIS read/write. [PASIS §3.4.3.1]

A fragment never stands inside a message: it travels raw behind it, and is covered by its digest in
the message's cross-checksum, or in the one that the message's timestamp binds.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, TypeAlias

from msgspec import Meta

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.credentials import NOBODY
from bftfs.crypto.digest import DIGEST_BYTES
from bftfs.identifiers import BLOCK_ID_BYTES
from bftfs.read_write.timestamp import TIMESTAMP_BYTES, VERSION_KEY_BYTES, BlockTimestamp
from bftfs.wire.codec import (
    AuthenticatorField,
    BlockField,
    ClientField,
    DigestField,
    LifeField,
    LivesField,
    Message,
    ObjectField,
    TimeField,
    UserField,
    Value,
    Voucher,
)

CrossChecksumField: TypeAlias = Annotated[
    CrossChecksum, Meta(max_length=DIGEST_BYTES * limits.NODES)
]
GroupsField: TypeAlias = Annotated[tuple[UserField, ...], Meta(max_length=limits.GROUPS)]
VersionKeyField: TypeAlias = Annotated[bytes, Meta(max_length=BLOCK_ID_BYTES + TIMESTAMP_BYTES + 1)]
ExactKeyField: TypeAlias = Annotated[
    bytes, Meta(min_length=VERSION_KEY_BYTES, max_length=VERSION_KEY_BYTES)
]
CountField: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 62)]
HistoryLengthField: TypeAlias = Annotated[int, Meta(ge=0, le=limits.HISTORY_IN_REPLY)]


class TimeRequest(Message, frozen=True, tag=0x30):
    """TIME_REQUEST: the greatest time that you host of each block. [PASIS §3.4.3.1]"""

    blocks: Annotated[
        tuple[BlockField, ...], Meta(min_length=1, max_length=limits.BLOCKS_PER_TIME_REQUEST)
    ]


class TimeReply(Message, frozen=True, tag=0x40):
    """TIME_RESPONSE, in the order of the blocks; 0 for a block that was never written."""

    times: Annotated[tuple[TimeField, ...], Meta(max_length=limits.BLOCKS_PER_TIME_REQUEST)]


class WriteRequest(Message, frozen=True, tag=0x31):
    """WRITE: host this version; the node's fragment is the body. Repeating it changes nothing.

    A client that repairs another's write proves with vouchers that the other has written it. To an
    author who `wants_voucher` the node vouches that it hosts the version.
    """

    block: BlockField
    timestamp: BlockTimestamp
    cross_checksum: CrossChecksumField
    uid: UserField
    gid: UserField
    groups: GroupsField
    vouchers: Annotated[tuple[Voucher, ...], Meta(max_length=limits.NODES)] = ()
    wants_voucher: bool = False


class WriteReply(Message, frozen=True, tag=0x41):
    """WRITE_RESPONSE: this node hosts the version, on stable storage.

    `lives`, here and below: the latest life of each node that this one knows of. Empty: the first.
    """

    lives: LivesField = ()
    voucher: AuthenticatorField = b""  # over the set of this version alone, if it is wanted


class ReadRequest(Message, frozen=True, tag=0x32):
    """READ_LATEST, or with `before` READ_PREV: the greatest version strictly below it.

    Without `want_data` the node is a read witness: it answers without fragment and cross-checksum.
    `history` is how many further versions the reply may list. [PASIS §3.5.1.2] The user has to be
    permitted to read the block, unless a node asks.
    """

    block: BlockField
    before: BlockTimestamp | None
    want_data: bool
    history: HistoryLengthField
    uid: UserField = NOBODY.uid
    gid: UserField = NOBODY.gid
    groups: GroupsField = ()


class Listed(Value, frozen=True):
    """One version in a reply's history; `verified` by the node itself. [LazyVer §3.8.1]"""

    timestamp: BlockTimestamp
    verified: bool


class Below(IntEnum):
    """What the node knows below the versions that a reply lists."""

    ORIGIN = 0  # nothing but the initial ⊥, which it hosts
    MORE = 1  # further versions: ask again
    COLLECTED = 2  # garbage collection has taken what was there [LazyVer §3.8.3]


class ReadReply(Message, frozen=True, tag=0x42):
    """READ_RESPONSE: the versions that the node hosts, newest first; the first one's fragment is
    the body and `cross_checksum` is its own, if data was wanted.

    A node is told as well for how long no client has asked this one for anything. With data, the
    reply tells when this node has verified the first version; 0 if it has not, or does not know.
    """

    versions: Annotated[tuple[Listed, ...], Meta(max_length=limits.HISTORY_IN_REPLY + 1)]
    below: Below
    cross_checksum: CrossChecksumField
    idle_ms: Annotated[int, Meta(ge=0, le=limits.VERIFY_IDLE_MOST_US // 1_000)] = 0
    verified_us: TimeField = 0
    lives: LivesField = ()


class VouchRequest(Message, frozen=True, tag=0x33):
    """Do you host this version? A reader asks before it repairs another client's write."""

    block: BlockField
    timestamp: BlockTimestamp


class VouchReply(Message, frozen=True, tag=0x43):
    """The node's authenticator over block and timestamp; empty if it does not host the version.

    Or over a set; empty if it does not host all of it. `is_late`: as this node knows the inode, an
    update can name some version of the set no more. So nodes may have collected that.
    """

    authenticator: AuthenticatorField
    lives: LivesField = ()
    is_late: bool = False


class VersionName(Value, frozen=True):
    """A version of a block."""

    block: BlockField
    timestamp: BlockTimestamp


class VouchSetRequest(Message, frozen=True, tag=0x37):
    """Do you host all of these? Their author asks, before an update of their inode names them."""

    versions: Annotated[
        tuple[VersionName, ...], Meta(min_length=1, max_length=limits.BLOCKS_PER_COVER)
    ]


class Notice(Message, frozen=True, tag=0x34):
    """From node to node, and not answered: what its verification of a block has found.

    `verified` is the latest complete valid version, the initial one if there is none; `poisonous`
    are later versions that failed validation. [LazyVer §3.8.2]
    """

    block: BlockField
    verified: BlockTimestamp
    poisonous: Annotated[
        tuple[BlockTimestamp, ...], Meta(max_length=limits.POISONOUS_IN_NOTICE)
    ] = ()


class InventoryRequest(Message, frozen=True, tag=0x35):
    """From node to node: which versions do you host, from `after` (excluded) to `until`?

    The versions are named by their keys in the store. `digest` is that of the versions which the
    sender hosts. If it has lost some, `proof` is that of the life that it has begun since.
    """

    after: VersionKeyField
    until: VersionKeyField
    digest: DigestField
    proof: AuthenticatorField = b""


class InventoryReply(Message, frozen=True, tag=0x45):
    """The keys, ascending; `more`: there are further ones; `same`: they are those that you have.

    A node that has lost versions rests on those that have lost none there, and know its new life.
    """

    keys: Annotated[tuple[VersionKeyField, ...], Meta(max_length=limits.KEYS_IN_INVENTORY)]
    more: bool
    same: bool = False
    remembers: bool = True  # all that it has accepted up to the end of the listing
    life: LifeField = 0  # the latest of the asking node that this one has stored
    total: CountField = 0  # versions that the node hosts in all: for telling progress


class FragmentsRequest(Message, frozen=True, tag=0x38):
    """From node to node: your fragments of these versions, which are named by their keys."""

    keys: Annotated[
        tuple[ExactKeyField, ...], Meta(min_length=1, max_length=limits.FRAGMENTS_IN_REPLY)
    ]


class HostedPart(Value, frozen=True):
    """What the node has of one version; without cross-checksum: nothing.

    `size` is that of its fragment.
    """

    cross_checksum: CrossChecksumField
    size: Annotated[int, Meta(ge=0, le=limits.FRAME_BODY_BYTES)]


class FragmentsReply(Message, frozen=True, tag=0x48):
    """Of these versions; the body is their fragments, in order.

    Of the first ones only, if their fragments have `FRAGMENTS_BYTES` together.
    """

    parts: Annotated[
        tuple[HostedPart, ...], Meta(min_length=1, max_length=limits.FRAGMENTS_IN_REPLY)
    ]


class AuthoredRequest(Message, frozen=True, tag=0x36):
    """Which versions of blocks of these inodes has `author`, or anybody, written since then?

    The versions are named by their keys in the store, and begin after `after`, where an earlier
    reply ended; empty at first. Of inodes whose blocks the user may not be shown there are none.
    """

    inodes: Annotated[
        tuple[ObjectField, ...], Meta(min_length=1, max_length=limits.AUTHORED_INODES)
    ]
    author: ClientField | None
    since_us: TimeField
    after: VersionKeyField
    uid: UserField = NOBODY.uid
    gid: UserField = NOBODY.gid
    groups: GroupsField = ()


class AuthoredReply(Message, frozen=True, tag=0x46):
    """All such keys up to `until`, ascending; where that is END, there are no more."""

    keys: Annotated[tuple[VersionKeyField, ...], Meta(max_length=limits.AUTHORED_ROWS)]
    until: VersionKeyField


Request: TypeAlias = (
    TimeRequest
    | WriteRequest
    | ReadRequest
    | VouchRequest
    | VouchSetRequest
    | Notice
    | InventoryRequest
    | FragmentsRequest
    | AuthoredRequest
)
Reply: TypeAlias = (
    TimeReply
    | WriteReply
    | ReadReply
    | VouchReply
    | InventoryReply
    | FragmentsReply
    | AuthoredReply
    | Refused
)
