"""Canonical encoding and strict decoding of message classes.

Messages are frozen msgspec structs on MessagePack, as arrays with an integer tag. MessagePack has
several encodings of one integer, and msgspec fills in defaults for missing fields; a message is
therefore only accepted if encoding it again gives the bytes received. So everything that is hashed
or authenticated has exactly one encoding.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from bftfs import limits
from bftfs.crypto.digest import DIGEST_BYTES, LIFE_MOST, Digest, authenticator_bytes
from bftfs.errors import MalformedMessage
from bftfs.identifiers import (
    BLOCK_ID_BYTES,
    CLIENT_ID_BYTES,
    OBJECT_ID_BYTES,
    BlockId,
    ClientId,
    NodeId,
    ObjectId,
)

Decoded = TypeVar("Decoded")

# The errors of msgspec's decoders; those of strings and of depth are not its own.
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_ENCODER = msgspec.msgpack.Encoder()


class Value(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of everything that travels, whose strictness is inherited."""


class Message(Value, frozen=True):
    """Base of the messages; each has a number: `class Query(Message, frozen=True, tag=0x10)`."""


encode = _ENCODER.encode


class Decoder(Generic[Decoded]):
    """Decodes one message class or closed union; reusable."""

    __slots__ = ("_decode", "_limit")

    def __init__(self, kind: Any, *, limit: int = limits.FRAME_METADATA_BYTES) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._limit = limit

    def decode(self, encoded: bytes) -> Decoded:
        """The message whose canonical encoding is `encoded`. Raises MalformedMessage."""
        if len(encoded) > self._limit:
            raise MalformedMessage(f"{len(encoded)} bytes where {self._limit} are the limit")
        try:
            message: Decoded = self._decode(encoded)
        except UNREADABLE as error:
            raise MalformedMessage(str(error)) from None
        if encode(message) != encoded:
            raise MalformedMessage(f"a {type(message).__name__} that is not encoded canonically")
        return message


# --- fields: types whose length or range is checked when they are decoded ----------------------


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
# The latest life of each server that the sender knows of, its own included.
LifeField: TypeAlias = Annotated[int, Meta(ge=0, le=LIFE_MOST)]
LivesField: TypeAlias = Annotated[tuple[LifeField, ...], Meta(max_length=limits.NODES)]
AuthenticatorField: TypeAlias = Annotated[
    bytes, Meta(max_length=authenticator_bytes(limits.NODES, knowing=True))
]


class Voucher(Value, frozen=True):
    """`node` vouches for a fact to the other nodes: its authenticator over it.

    The facts are versions of blocks that it hosts, and fates of candidates that it has deduced.
    """

    node: NodeField
    authenticator: AuthenticatorField
