"""bftfs.restoration.others_work"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bftfs.restoration.others_work import carried_over


@pytest.mark.parametrize(
    ("before", "after", "onto", "expected"),
    [
        (b"a\nb\nc\n", b"a\nB\nc\n", b"a\nb\nc\n", b"a\nB\nc\n"),
        (b"a\nb\nc\n", b"a\nb\nc\nd\n", b"A\nb\nc\n", b"A\nb\nc\nd\n"),
        (b"evil\na\nb\n", b"evil\na\nb\nmine\n", b"a\nb\n", b"a\nb\nmine\n"),
        (b"a\n", b"x\n", b"y\n", None),
        (b"a\nb\n", b"a\nb\nmine\n", b"a\n", None),
        (b"x\ny\na\nb\nc\n", b"a\nb\nc\nb\nc\n", b"a\nb\nc\n", b"a\nb\nc\n"),
        (b"b\n", b"a\n", b"a\nb\n", None),
        (b"anything", b"", b"else", b""),
        (b"", b"mine", b"", b"mine"),
        (b"", b"mine", b"old", None),
        (b"\xff\xfe", b"\xff\xfe\xfd", b"\xff", None),
        (b"same", b"same", b"other", b"other"),
    ],
)
def test_a_change_is_done_to_other_contents(
    before: bytes, after: bytes, onto: bytes, expected: bytes | None
) -> None:
    assert carried_over(before=before, after=after, onto=onto) == expected


def test_binary_contents_are_merged_by_pieces() -> None:
    before = bytes(4096)
    after = bytes(1024) + b"mine" + bytes(3068)
    onto = bytes(3000) + b"old" + bytes(1093)
    expected = bytes(1024) + b"mine" + bytes(1972) + b"old" + bytes(1093)
    assert carried_over(before=before, after=after, onto=onto) == expected
    clash = bytes(1025) + b"x" + bytes(3070)
    assert carried_over(before=before, after=after, onto=clash) is None


lines = st.lists(st.sampled_from("abcde"), max_size=8).map(
    lambda letters: "".join(f"{letter}\n" for letter in letters).encode()
)


@given(lines, lines, lines)
def test_merging_is_the_same_from_both_sides(before: bytes, one: bytes, other: bytes) -> None:
    if before and one and other:
        merged = carried_over(before=before, after=one, onto=other)
        assert merged == carried_over(before=before, after=other, onto=one)
        assert carried_over(before=before, after=one, onto=before) == one
