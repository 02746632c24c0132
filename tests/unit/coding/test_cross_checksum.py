"""The cross-checksum names every fragment, and the verifier names the cross-checksum."""

import pytest

from bftfs.coding import cross_checksum
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.coding.erasure import ErasureCode

FRAGMENTS = ErasureCode(3, 6).encode(bytes(range(20)))
CHECKSUM = cross_checksum.make(FRAGMENTS)


def test_vector() -> None:
    assert CHECKSUM[:32].hex() == (
        "b7be0b8b83aafec47910136d3c7751efd67034f230f6a43ee94e2491d9ea911e"
    )
    assert cross_checksum.verifier(CHECKSUM).hex() == (
        "c4b2b3d0d4052699afa1eb92e8b04aa8710e19290cce9bfffda99e4db268e6e6"
    )


def test_each_fragment_matches_at_its_own_index_only() -> None:
    for index in range(6):
        matching = [
            position
            for position in range(6)
            if cross_checksum.matches(CHECKSUM, position, FRAGMENTS[index])
        ]
        assert matching == [index]


@pytest.mark.parametrize("index", [-6, -1, 6, 7, 1 << 40])
def test_there_is_nothing_outside_of_it(index: int) -> None:
    assert not cross_checksum.matches(CHECKSUM, index, FRAGMENTS[5])


def test_a_checksum_cut_short_matches_nothing_at_its_end() -> None:
    cut = CrossChecksum(CHECKSUM[:-1])
    assert not cross_checksum.matches(cut, 5, FRAGMENTS[5])
    assert not cross_checksum.matches(CrossChecksum(b""), 0, FRAGMENTS[0])


def test_the_verifier_depends_on_every_digest() -> None:
    for index in range(6):
        altered = bytearray(CHECKSUM)
        altered[32 * index] ^= 1
        assert cross_checksum.verifier(CrossChecksum(bytes(altered))) != cross_checksum.verifier(
            CHECKSUM
        )
