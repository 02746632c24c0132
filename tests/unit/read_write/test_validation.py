from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from bftfs.coding import cross_checksum
from bftfs.coding.erasure import ErasureCode
from bftfs.read_write.validation import ValidatedVersions, item_of, regenerate
from bftfs.read_write.writing import encode

CODE = ErasureCode(3, 6)


@given(st.binary(max_size=200))
def test_an_honest_version_regenerates_from_any_m_fragments(item: bytes) -> None:
    encoded = encode(CODE, item)
    for chosen in combinations(range(6), 3):
        fragments = {index: encoded.fragments[index] for index in chosen}
        generated = regenerate(CODE, encoded.cross_checksum, fragments)
        assert generated is not None
        assert [bytes(fragment) for fragment in generated] == [
            bytes(fragment) for fragment in encoded.fragments
        ]
        assert item_of(CODE, fragments) == item


def test_one_foreign_fragment_poisons_it_for_every_reader() -> None:
    honest = [bytes(fragment) for fragment in encode(CODE, b"one item" * 20).fragments]
    other = [bytes(fragment) for fragment in encode(CODE, b"no items" * 20).fragments]
    for foreign in range(6):
        fragments = [*honest[:foreign], other[foreign], *honest[foreign + 1 :]]
        checksum = cross_checksum.make(fragments)
        for chosen in combinations(range(6), 3):
            given_fragments = {index: fragments[index] for index in chosen}
            assert regenerate(CODE, checksum, given_fragments) is None


def test_fragments_of_different_sizes_are_poisonous() -> None:
    fragments = [b"a" * 10, b"b" * 11, b"c" * 10, b"d" * 10, b"e" * 10, b"f" * 10]
    checksum = cross_checksum.make(fragments)
    assert regenerate(CODE, checksum, {0: fragments[0], 1: fragments[1], 2: fragments[2]}) is None
    assert regenerate(CODE, checksum, dict.fromkeys(range(3), b"")) is None


def test_an_encoding_of_no_item_is_poisonous() -> None:
    code = ErasureCode(1, 3)
    fragments = [b"\x00\x00\xff\xff"] * 3
    checksum = cross_checksum.make(fragments)
    assert regenerate(code, checksum, {0: fragments[0]}) is not None
    assert item_of(code, {0: fragments[0]}) is None


def test_validated_versions_are_bounded_latest_used_first() -> None:
    validated = ValidatedVersions(2)
    validated.add(b"1")
    validated.add(b"2")
    assert b"1" in validated
    validated.add(b"3")
    assert b"1" in validated
    assert b"2" not in validated
    assert b"3" in validated
    validated.add(b"3")
    assert len(validated) == 2
