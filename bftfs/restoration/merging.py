"""Carrying a change over to other contents: what somebody did to one version, done to another.

Text is merged line by line; other contents of unchanged length piece by piece. Where both have
changed the same place there is no answer, and a person has to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise

_PIECE_BYTES = 512


def carried_over(*, before: bytes, after: bytes, onto: bytes) -> bytes | None:
    """`onto` with the change from `before` to `after`; None if that contradicts itself."""
    if onto == before or not after:  # an emptied file is empty whatever was in it
        return after
    if after in (onto, before):
        return onto
    if not before:
        return None  # it was written anew, while `onto` is something else
    if len(before) == len(after) == len(onto) and b"\0" in before + after + onto:
        return _pieces(before, after, onto)
    try:
        texts = [each.decode().splitlines(keepends=True) for each in (before, after, onto)]
    except UnicodeDecodeError:
        return None
    merged = merged_lines(*texts)
    return None if merged is None else "".join(merged).encode()


def _pieces(before: bytes, after: bytes, onto: bytes) -> bytes | None:
    merged = []
    for start in range(0, len(before), _PIECE_BYTES):
        was, one, other = (each[start : start + _PIECE_BYTES] for each in (before, after, onto))
        if was not in (one, other) and one != other:
            return None
        merged.append(other if one == was else one)
    return b"".join(merged)


def merged_lines(
    before: Sequence[str], after: Sequence[str], onto: Sequence[str]
) -> list[str] | None:
    """A three-way merge: the changes of both sides; None where they overlap or touch."""
    # Runs of lines that all three have, as (position in before, in after, in onto, length).
    merged: list[str] = []
    anchors = [(0, 0, 0, 0), *_common(before, after, onto)]
    anchors.append((len(before), len(after), len(onto), 0))
    for (b, a, o, length), (b_next, a_next, o_next, _) in pairwise(anchors):
        merged += before[b : b + length]
        was = before[b + length : b_next]
        one, other = after[a + length : a_next], onto[o + length : o_next]
        if one in (was, other):
            merged += other
        elif other == was:
            merged += one
        else:
            return None
    return merged


def _common(
    before: Sequence[str], after: Sequence[str], onto: Sequence[str]
) -> list[tuple[int, int, int, int]]:
    """Runs of `before` that are unchanged on both sides."""
    sides = []
    for other in (after, onto):
        position: dict[int, int] = {}
        blocks = SequenceMatcher(a=before, b=other, autojunk=False).get_matching_blocks()
        for block in blocks:
            for offset in range(block.size):
                position[block.a + offset] = block.b + offset
        sides.append(position)
    runs: list[tuple[int, int, int, int]] = []
    for b in sorted(sides[0].keys() & sides[1].keys()):
        a, o = sides[0][b], sides[1][b]
        if runs:
            first_b, first_a, first_o, length = runs[-1]
            if (b, a, o) == (first_b + length, first_a + length, first_o + length):
                runs[-1] = (first_b, first_a, first_o, length + 1)
                continue
        runs.append((b, a, o, 1))
    return runs
