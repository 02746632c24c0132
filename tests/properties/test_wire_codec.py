"""Any bytes decode to a message or are malformed; what decodes has one encoding."""

from typing import Annotated

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bftfs.errors import MalformedMessage
from bftfs.wire.codec import (
    Decoder,
    DigestField,
    Message,
    NodeField,
    ObjectField,
    TimeField,
    Value,
    encode,
)

FUZZ = settings(max_examples=500, deadline=None, derandomize=True)


class Entry(Value, frozen=True):
    node: NodeField
    digest: DigestField | None
    times: Annotated[tuple[TimeField, ...], msgspec.Meta(max_length=3)] = ()


class Ask(Message, frozen=True, tag=0x10):
    object: ObjectField
    name: Annotated[str, msgspec.Meta(max_length=20)]
    entries: tuple[Entry, ...]
    urgent: bool


class Tell(Message, frozen=True, tag=0x20):
    serial: int
    answer: bytes


DECODER: Decoder[Ask | Tell] = Decoder(Ask | Tell)

times = st.integers(0, 2**63 - 1)
entries = st.builds(
    Entry,
    st.integers(0, 63),
    st.none() | st.binary(min_size=32, max_size=32),
    st.lists(times, max_size=3).map(tuple),
)
messages = st.builds(
    Ask,
    st.binary(min_size=16, max_size=16),
    st.text(max_size=20),
    st.lists(entries, max_size=4).map(tuple),
    st.booleans(),
) | st.builds(Tell, st.integers(-(2**63), 2**63 - 1), st.binary(max_size=300))
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


def decoded_or_malformed(encoded: bytes) -> Ask | Tell | None:
    try:
        message = DECODER.decode(encoded)
    except MalformedMessage:
        return None
    assert type(message) in (Ask, Tell)
    assert encode(message) == encoded
    return message


@FUZZ
@given(messages)
def test_what_is_encoded_decodes(message: Ask | Tell) -> None:
    assert decoded_or_malformed(encode(message)) == message


@FUZZ
@given(st.binary(max_size=200))
@example(b"\x91" * 100_000)
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x93\x10\xc6\xff\xff\xff\xff")
def test_any_bytes(encoded: bytes) -> None:
    decoded_or_malformed(encoded)


@FUZZ
@given(anything)
def test_any_structure(value: object) -> None:
    decoded_or_malformed(msgspec.msgpack.encode(value))


@FUZZ
@given(messages, st.data())
def test_any_alteration(message: Ask | Tell, data: st.DataObject) -> None:
    """An altered encoding is malformed or another message: no two encodings mean the same."""
    encoded = encode(message)
    start = data.draw(st.integers(0, len(encoded)))
    stop = data.draw(st.integers(start, min(len(encoded), start + 3)))
    altered = encoded[:start] + data.draw(st.binary(max_size=3)) + encoded[stop:]
    if altered != encoded:
        assert decoded_or_malformed(altered) != message
