"""Foreign blocks: block versions whose author is not the author of the update that shows them.

A block that a client writes becomes visible when an update of the inode covers it, and that may be
anybody's next update: an intruder's own program need not send one. So a version of a
file may show blocks that its author did not write. A block is foreign if the client in question
wrote it and another's update shows it, or if another wrote it and the client's update shows it. It
counts as the work of whoever wrote it.

A block of the client's that no update covers yet is foreign as well: the next update will show it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from bftfs.errors import FileSystemError
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.file_history import Change, in_batches
from bftfs.identifiers import BlockId, ClientId, ObjectId, block_number_of, inode_of
from bftfs.read_write.authorship import Authored
from bftfs.restoration.viewpoint import Viewpoint


@dataclass(frozen=True, slots=True)
class ForeignBlock:
    """A foreign version of a block."""

    block: BlockId
    time_us: int
    by_client: bool  # written by the client in question, not by another
    shown_by: Change | None  # the update that covered it
    after_us: int  # the time of the version of the block that was visible before


async def find_foreign_blocks(
    view: Viewpoint,
    written: Sequence[Authored],
    changes: Mapping[ObjectId, Sequence[Change]],
    *,
    client: ClientId,
    since_us: int,
) -> dict[ObjectId, list[ForeignBlock]]:
    """The foreign blocks among all block versions `written` since then. `changes` are ascending."""
    versions: dict[BlockId, list[tuple[int, bool]]] = defaultdict(list)
    for each in written:
        versions[each.block].append((each.time_us, each.author == client))
    present: dict[ObjectId, Attributes | None] = {}
    for identifier in dict.fromkeys(map(inode_of, versions)):
        present[identifier] = None
        with suppress(FileSystemError):  # it is gone
            present[identifier] = await view.files.attributes(identifier, view.who)
    searches = [
        _Search(view, client, block, versions[block], present[inode_of(block)])
        for block in sorted(versions)
    ]
    found: dict[ObjectId, list[ForeignBlock]] = defaultdict(list)
    for blocks in await in_batches(
        [
            partial(each.perform, changes.get(inode_of(each.block), ()), since_us)
            for each in searches
        ]
    ):
        for block in blocks:
            found[inode_of(block.block)].append(block)
    return dict(found)


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for foreign versions of one block.

    The list of its versions, as (time, by the client), only says where to look: whose version an
    update shows is read from the block itself, as of that update.
    """

    view: Viewpoint
    client: ClientId
    block: BlockId
    versions: Sequence[tuple[int, bool]]
    present: Attributes | None  # of the file, if it exists

    async def perform(self, changes: Sequence[Change], since_us: int) -> list[ForeignBlock]:
        foreign: list[ForeignBlock] = []
        blocks = self.view.history.blocks
        shown_us = since_us - 1  # versions up to here are visible already, or never will be
        for change in changes:
            after, time_us = change.attributes, change.time_us
            if after is None or after.contents != time_us or not self._is_in(after):
                continue
            by_client = change.client == self.client
            if any(shown_us < at_us <= time_us and by != by_client for at_us, by in self.versions):
                stamp = (await blocks.read(self.block, at_time_us=time_us)).timestamp
                if stamp.time > shown_us and (stamp.client == self.client) != by_client:
                    foreign.append(
                        ForeignBlock(self.block, stamp.time, not by_client, change, shown_us)
                    )
            shown_us = time_us
        if self._may_be_uncovered(shown_us):
            stamp = (await blocks.read(self.block)).timestamp
            if stamp.time > shown_us and stamp.client == self.client:
                foreign.append(ForeignBlock(self.block, stamp.time, True, None, shown_us))
        return foreign

    def _may_be_uncovered(self, shown_us: int) -> bool:
        layout = None if self.present is None else self.present.layout
        if layout is None or not layout.has(self.block):
            return False
        return any(by_client and time_us > shown_us for time_us, by_client in self.versions)

    def _is_in(self, attributes: Attributes) -> bool:
        """True if the block is part of the file."""
        layout = attributes.layout
        return (
            layout is not None
            and layout.has(self.block)
            and block_number_of(self.block) * layout.block_bytes < attributes.size
        )


async def without(
    view: Viewpoint,
    contents: bytes,
    foreign: Sequence[ForeignBlock],
    *,
    client: ClientId,
    block_bytes: int,
) -> bytes:
    """`contents` with the foreign blocks as they were before the foreign versions."""
    patched = bytearray(contents)
    for each in foreign:
        start = block_number_of(each.block) * block_bytes
        stop = min(start + block_bytes, len(patched))
        block = await _before(view, each, client)
        patched[start:stop] = block[: stop - start].ljust(stop - start, b"\0")
    return bytes(patched)


async def _before(view: Viewpoint, foreign: ForeignBlock, client: ClientId) -> bytes:
    """The contents of the block before the author of the foreign version wrote to it."""
    time_us = foreign.time_us - 1
    while True:
        stamp, block = await view.history.block_at(foreign.block, time_us)
        if stamp.time <= foreign.after_us or (stamp.client == client) != foreign.by_client:
            return block
        time_us = stamp.time - 1
