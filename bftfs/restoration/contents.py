"""The contents that a file would have if only others had changed it.

The situation: versions of a file alternate between the client's and others', and one update may
show blocks of both sides (`foreign_blocks`). The stored operations say how long a file became and
which blocks are valid, never which bytes were meant: a program that inserts a line rewrites whole
blocks, among them what the client had written.

The rule: start with the contents before the client's first change. Then compare each version that
others made with the version before it, and carry that difference over. Consecutive
versions of one side count as one change, since programs make several versions when they rewrite a
file. Where the difference cannot be carried over, the contents are unknown (None): a conflict.

Text is merged line by line; other contents of unchanged length piece by piece. Where both have
changed the same place there is no answer, and a person has to look.

Tests: `tests/unit/restoration/test_merging.py`, `test_foreign_blocks.py`, `test_undo.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby, pairwise
from typing import Final

from bftfs.filesystem.file_history import Change
from bftfs.filesystem.registry import CREATE, MERGE, TRUNCATE, WRITE
from bftfs.identifiers import ObjectId
from bftfs.restoration.changes import ChangeLog, creates
from bftfs.restoration.foreign_blocks import ForeignBlock, without
from bftfs.restoration.viewpoint import Viewpoint

_PIECE_BYTES = 512
_METHODS: Final = frozenset((CREATE, WRITE, TRUNCATE))


# --- carrying a change over ------------------------------------------------------------------


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


# --- versions of a file ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Version:
    """A file after a change, without the blocks of the other side that the change showed."""

    by_client: bool
    change: Change
    foreign: Sequence[ForeignBlock]


def changes_of_contents(log: ChangeLog, identifier: ObjectId) -> list[Change]:
    """The changes of the file's bytes. A merge of block ranges changes none, unless it lies."""
    return [
        change
        for change in log.changes.get(identifier, ())
        if change.operation.method in _METHODS
        or (change.operation.method == MERGE and log.is_tainted(identifier, change))
    ]


def first_tainted(log: ChangeLog, identifier: ObjectId) -> Change | None:
    """The first change of the file's bytes with work of the client in it."""
    changes = changes_of_contents(log, identifier)
    return next((each for each in changes if log.is_tainted(identifier, each)), None)


async def others_contents(view: Viewpoint, log: ChangeLog, identifier: ObjectId) -> bytes | None:
    """The contents that others' changes alone would have left; None if that is unknown."""
    first = first_tainted(log, identifier)
    if first is None:
        return await view.contents(identifier, log.now_us)
    merged = before = b""
    if not creates(first):
        merged = before = await view.contents(identifier, first.time_us - 1)
    for by_client, run in groupby(_versions(log, identifier, first), key=lambda v: v.by_client):
        *_, last = run
        after = await _contents_of(view, log, identifier, last)
        if not by_client:
            carried = carried_over(before=before, after=after, onto=merged)
            # Others who write what is there already have meant it, or wrote it before the client
            # made it visible.
            if carried is None or (after == before and after != merged):
                return None
            merged = carried
        before = after
    return merged


def _versions(log: ChangeLog, identifier: ObjectId, first: Change) -> list[_Version]:
    """The versions from `first` on; a change that shows blocks of both sides counts as two."""
    versions: list[_Version] = []
    for change in changes_of_contents(log, identifier):
        if change.timestamp >= first.timestamp:
            by_client, foreign = log.by_client(change), log.foreign_blocks_in(identifier, change)
            versions.append(_Version(by_client, change, foreign))
            if foreign:
                versions.append(_Version(not by_client, change, ()))
    return versions


async def _contents_of(
    view: Viewpoint, log: ChangeLog, identifier: ObjectId, version: _Version
) -> bytes:
    contents = await view.contents(identifier, version.change.time_us)
    attributes = version.change.attributes
    if not version.foreign or attributes is None or attributes.layout is None:
        return contents
    size = attributes.layout.block_bytes
    return await without(view, contents, version.foreign, client=log.client, block_bytes=size)


async def others_or_last_contents(view: Viewpoint, log: ChangeLog, identifier: ObjectId) -> bytes:
    """The contents as others left them; if that is unknown, as the last of them saw the file."""
    merged = await others_contents(view, log, identifier)
    if merged is not None:
        return merged
    changes = changes_of_contents(log, identifier)
    last_us = max(change.time_us for change in changes if not log.by_client(change))
    return await view.contents(identifier, last_us)


async def contents_before(
    view: Viewpoint, log: ChangeLog, identifier: ObjectId, change: Change
) -> bytes:
    """The contents before the client's work came in with `change`."""
    if log.by_client(change):
        return await view.contents(identifier, change.time_us - 1)
    foreign = log.foreign_blocks_in(identifier, change)
    return await _contents_of(view, log, identifier, _Version(False, change, foreign))
