"""The erasure code: its format, its bounds, and what it does not copy."""

from itertools import combinations

import pytest

from bftfs.coding.erasure import ErasureCode
from bftfs.errors import MalformedMessage
from bftfs.thresholds import ReadWriteThresholds

CODE = ErasureCode(3, 6)


def item_of(length: int) -> bytes:
    return bytes((index * 7 + 1) & 0xFF for index in range(length))


def test_vector() -> None:
    fragments = CODE.encode(bytes(range(20)))
    assert [bytes(fragment).hex() for fragment in fragments] == [
        "0001020304050607",
        "08090a0b0c0d0e0f",
        "1011121300000014",
        "202122235c5b522d",
        "40414243e9f4d363",
        "80818283aad3580f",
    ]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 100, 4096, 131100])
def test_any_m_fragments_decode(length: int) -> None:
    item = item_of(length)
    fragments = CODE.encode(item)
    assert len(fragments) == 6
    assert {len(fragment) for fragment in fragments} == {CODE.fragment_bytes(length)}
    for chosen in combinations(range(6), 3):
        given = {index: fragments[index] for index in chosen}
        assert CODE.decode(given) == item
        assert [*map(bytes, CODE.regenerate(given))] == [*map(bytes, fragments)]


@pytest.mark.parametrize(
    "thresholds",
    [
        *(ReadWriteThresholds.smallest(t=b, b=b) for b in range(6)),
        *(ReadWriteThresholds.for_nodes(3 * b + 2 * b + 1, t=b, b=b) for b in range(6)),
        ReadWriteThresholds.smallest(t=3, b=1),
    ],
    ids=repr,
)
def test_every_configuration_codes(thresholds: ReadWriteThresholds) -> None:
    code = ErasureCode(thresholds.m, thresholds.N)
    item = item_of(1000)
    fragments = code.encode(item)
    first = {index: fragments[index] for index in range(thresholds.m)}
    last = {index: fragments[index] for index in range(code.N - code.m, code.N)}
    assert code.decode(first) == item
    assert code.decode(last) == item


def test_more_fragments_than_needed_are_no_harm() -> None:
    item = item_of(50)
    assert CODE.decode(dict(enumerate(CODE.encode(item)))) == item


def test_whole_stripes_are_views_of_the_item() -> None:
    item = item_of(131100)
    fragments = CODE.encode(item)
    for stripe in fragments[:2]:
        assert isinstance(stripe, memoryview)
        assert stripe.obj is item


def test_a_view_can_be_encoded() -> None:
    item = item_of(5000)
    assert [*map(bytes, CODE.encode(memoryview(item)))] == [*map(bytes, CODE.encode(item))]


@pytest.mark.parametrize(
    "fragments",
    [
        {},
        {0: b"1234", 1: b"1234"},  # too few
        {0: b"1234", 1: b"1234", 2: b"123"},  # different sizes
        {0: b"", 1: b"", 2: b""},
        {0: b"1234", 1: b"1234", 6: b"1234"},  # no such fragment
        {-1: b"1234", 1: b"1234", 2: b"1234"},
        {0: b"1234", 1: b"1234", 2: b"\xff\xff\xff\xff"},  # a length beyond what is there
        {0: b"1234", 1: b"1234", 2: b"\x00\x00\x00\x09"},  # longer than fits before the length
        {0: b"1234", 1: b"1234", 2: b"\x00\x00\x00\x05"},  # smaller fragments would have done
        {0: b"1", 1: b"1", 2: b"1"},  # no room for a length
        {0: b"12345", 1: b"12345", 2: b"9\x00\x00\x00\x0a"},  # padding that is not zero
    ],
)
def test_what_is_no_encoding_is_malformed(fragments: dict[int, bytes]) -> None:
    with pytest.raises(MalformedMessage):
        CODE.decode(fragments)


def test_an_item_has_one_encoding() -> None:
    """Padding and length are determined, so that regenerated fragments are the writer's."""
    encoded = [b"12345", b"12345", b"\x00\x00\x00\x00\x0a"]
    assert CODE.decode(dict(enumerate(encoded))) == b"1234512345"
    assert [*map(bytes, CODE.encode(b"1234512345"))][:3] == encoded
