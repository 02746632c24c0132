"""The contents that a file would have if only others had changed it.

The situation: versions of a file alternate between the client's and others', and one update may
show blocks of both sides (`foreign_blocks`). The stored operations say how long a file became and
which blocks are valid, never which bytes were meant: a program that inserts a line rewrites whole
blocks, among them what the client had written.

The rule: start with the contents before the client's first change. Then compare each version that
others made with the version before it, and carry that difference over (`merging`). Consecutive
versions of one side count as one change, since programs make several versions when they rewrite a
file. Where the difference cannot be carried over, the contents are unknown (None): a conflict.

Tests: `tests/unit/restoration/test_merging.py`, `test_foreign_blocks.py`, `test_undo.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from bftfs.filesystem.file_history import Change
from bftfs.filesystem.registry import CREATE, MERGE, TRUNCATE, WRITE
from bftfs.identifiers import ObjectId
from bftfs.restoration.changes import ChangeLog, creates
from bftfs.restoration.foreign_blocks import ForeignBlock, without
from bftfs.restoration.merging import carried_over
from bftfs.restoration.viewpoint import Viewpoint

_METHODS: Final = frozenset((CREATE, WRITE, TRUNCATE))


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
