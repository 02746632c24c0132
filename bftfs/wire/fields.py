"""Types of message fields whose length or range is checked when they are decoded."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from bftfs import limits
from bftfs.crypto.digest import DIGEST_BYTES, MAC_BYTES, Digest
from bftfs.identifiers import (
    BLOCK_ID_BYTES,
    CLIENT_ID_BYTES,
    OBJECT_ID_BYTES,
    BlockId,
    ClientId,
    NodeId,
    ObjectId,
)
from bftfs.wire.codec import Value

NodeField: TypeAlias = Annotated[NodeId, Meta(ge=0, lt=limits.NODES)]
ClientField: TypeAlias = Annotated[
    ClientId, Meta(min_length=CLIENT_ID_BYTES, max_length=CLIENT_ID_BYTES)
]
ObjectField: TypeAlias = Annotated[
    ObjectId, Meta(min_length=OBJECT_ID_BYTES, max_length=OBJECT_ID_BYTES)
]
BlockField: TypeAlias = Annotated[
    BlockId, Meta(min_length=BLOCK_ID_BYTES, max_length=BLOCK_ID_BYTES)
]
DigestField: TypeAlias = Annotated[Digest, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
TimeField: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]  # microseconds since the epoch
UserField: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 32)]  # a uid or gid
AuthenticatorField: TypeAlias = Annotated[bytes, Meta(max_length=MAC_BYTES * limits.NODES)]


class Voucher(Value, frozen=True):
    """`node` vouches for a fact to the other nodes: its authenticator over it.

    The facts are versions of blocks that it hosts, and fates of candidates that it has deduced.
    """

    node: NodeField
    authenticator: AuthenticatorField
