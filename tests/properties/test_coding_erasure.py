"""Any m fragments of an item give it back; any other fragments are malformed or some item."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from bftfs.coding import cross_checksum
from bftfs.coding.erasure import ErasureCode
from bftfs.errors import MalformedMessage

FUZZ = settings(max_examples=300, deadline=None, derandomize=True)
CODE = ErasureCode(3, 6)


@st.composite
def codes(draw: st.DrawFn) -> ErasureCode:
    m = draw(st.integers(1, 8))
    return ErasureCode(m, draw(st.integers(m, 20)))


@FUZZ
@given(codes(), st.binary(max_size=500), st.data())
def test_any_m_fragments_suffice(code: ErasureCode, item: bytes, data: st.DataObject) -> None:
    fragments = code.encode(item)
    chosen = data.draw(st.permutations(range(code.N)))[: code.m]
    given_fragments = {index: fragments[index] for index in chosen}
    assert code.decode(given_fragments) == item
    regenerated = code.regenerate(given_fragments)
    assert cross_checksum.make(regenerated) == cross_checksum.make(fragments)


@FUZZ
@given(st.dictionaries(st.integers(-1, 7), st.binary(max_size=12), max_size=7))
def test_any_fragments(fragments: dict[int, bytes]) -> None:
    with contextlib.suppress(MalformedMessage):
        CODE.decode(fragments)


@FUZZ
@given(st.sampled_from([(0, 1, 2), (1, 3, 5), (3, 4, 5)]), st.integers(1, 12), st.data())
def test_what_decodes_is_the_item_of_those_fragments(
    indices: tuple[int, ...], size: int, data: st.DataObject
) -> None:
    """An item has one encoding, so regenerating and comparing finds every poisonous write."""
    lies = {index: data.draw(st.binary(min_size=size, max_size=size)) for index in indices}
    try:
        item = CODE.decode(lies)
    except MalformedMessage:
        return
    fragments = CODE.encode(item)
    assert {index: bytes(fragments[index]) for index in indices} == lies
