"""One message, one encoding; whatever else arrives is malformed."""

from typing import Annotated

import msgspec
import pytest

from bftfs.errors import MalformedMessage
from bftfs.wire.codec import (
    BlockField,
    ClientField,
    Decoder,
    DigestField,
    Message,
    NodeField,
    ObjectField,
    TimeField,
    UserField,
    Value,
    encode,
)


class Item(Value, frozen=True):
    key: Annotated[bytes, msgspec.Meta(max_length=4)]
    count: int = 0


class Ask(Message, frozen=True, tag=0x10):
    number: int
    items: tuple[Item, ...] = ()


class Tell(Message, frozen=True, tag=0x20):
    text: str


class Nested(Message, frozen=True, tag=0x30):
    inner: "Nested | None"


DECODER: Decoder[Ask | Tell] = Decoder(Ask | Tell)
ASK = Ask(7, (Item(b"key", -1),))


def raw(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


def test_vector() -> None:
    assert encode(ASK).hex() == "93100791" + "92c4036b6579ff"


@pytest.mark.parametrize("message", [ASK, Ask(0), Ask(2**63 - 1), Tell(""), Tell("ä" * 100)])
def test_what_is_encoded_decodes(message: Ask | Tell) -> None:
    assert DECODER.decode(encode(message)) == message


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xc1",
        raw(None),
        raw([]),
        raw([0x11, 7, []]),  # no such message
        raw([0x10, "7", []]),  # wrong type
        raw([0x10, 7.0, []]),
        raw([0x10, True, []]),
        raw([0x10, 7, [], 1]),  # one field too many
        raw([0x10, 7]),  # a default left out: not canonical
        raw([0x10, 7, [[b"key"]]]),
        raw([0x10, 7, [[b"a key", 1]]]),  # too long
        raw({"type": 0x10, "number": 7}),
        encode(ASK) + b"\x00",  # trailing bytes
        encode(ASK)[:-1],
        bytes.fromhex("9310cc0790"),  # 7 in two bytes
        bytes.fromhex("93cc100790"),  # the tag in two bytes
        bytes.fromhex("dc0003100790"),  # the array's length in two bytes
        bytes.fromhex("92" + "20" + "d90161"),  # a string's length in one byte too many
        bytes.fromhex("92" + "20" + "a1ff"),  # not UTF-8
        raw([0x10, 2**64 - 1, []]) + b"\x00",
    ],
    ids=bytes.hex,
)
def test_anything_else_is_malformed(encoded: bytes) -> None:
    with pytest.raises(MalformedMessage):
        DECODER.decode(encoded)


def test_deep_nesting_is_malformed() -> None:
    depth = 100_000
    with pytest.raises(MalformedMessage):
        Decoder[Nested](Nested).decode(b"\x92\x30" * depth + b"\xc0")


def test_the_size_is_checked_first() -> None:
    small: Decoder[Tell] = Decoder(Tell, limit=10)
    assert small.decode(encode(Tell("1234567"))) == Tell("1234567")
    with pytest.raises(MalformedMessage, match="11 bytes where 10 are the limit"):
        small.decode(encode(Tell("12345678")))


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (NodeField, (0, 63), (-1, 64)),
        (ClientField, (bytes(16),), (bytes(15), bytes(17))),
        (ObjectField, (bytes(16),), (bytes(15), bytes(17))),
        (BlockField, (bytes(32),), (bytes(31), bytes(33))),
        (DigestField, (bytes(32),), (bytes(31), bytes(33))),
        (TimeField, (0, 2**63 - 1), (-1, 2**63)),
        (UserField, (0, 2**32 - 1), (-1, 2**32)),
    ],
)
def test_fields_are_bounded(field: object, good: tuple, bad: tuple) -> None:
    decoder: Decoder[object] = Decoder(field)
    for value in good:
        assert decoder.decode(raw(value)) == value
    for value in bad:
        with pytest.raises(MalformedMessage):
            decoder.decode(raw(value))


def test_messages_are_values() -> None:
    with pytest.raises(AttributeError):
        ASK.number = 8  # type: ignore[misc]
    assert hash(ASK) == hash(Ask(7, (Item(b"key", -1),)))
