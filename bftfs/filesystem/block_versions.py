"""Changes a file's bytes in two halves: versions of blocks, then the update that names them.

The situation: blocks are versioned by the read/write protocol, each by itself; the inode is an
object of Query/Update. A byte belongs to the file if the inode names the version that has it.

The rule: versions are written first, later than all that the inode has named so far; then an
update of the inode names them, at a time that is not before theirs. A quorum of nodes vouches that
it has the versions, so none is named that was never written.

Why it is safe: a reader of the inode before the update finds the older names, whose versions are
still there; a reader after it finds versions that are complete. A writer that fails in between
leaves versions that no reader is shown.
(tests/unit/filesystem/test_contents.py::test_blocks_are_written_before_their_cover)

`BlockPusher` and `BlockRewriter` write, `BlockWriter` and `BlockRewriter` name.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from bftfs.clock_skew import is_ahead
from bftfs.conversation import Now
from bftfs.credentials import Credentials
from bftfs.errors import AdmissionRefused, FileSystemError
from bftfs.filesystem import inode
from bftfs.filesystem.attributes import NO_CHANGES
from bftfs.filesystem.block_memory import BlockCache
from bftfs.filesystem.block_names import BlockName
from bftfs.filesystem.contents import Contents
from bftfs.filesystem.metadata import Metadata
from bftfs.filesystem.registry import WRITE
from bftfs.identifiers import WHOLE, BlockId, ObjectId, block_id, slot_of
from bftfs.limits import STEPS_AHEAD_US
from bftfs.query_update.client import EarlierAttempt
from bftfs.query_update.object_type import Record
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.timestamp import BlockTimestamp

ATTEMPTS: Final = 32  # at an update that other mounts' changes keep overtaking


@dataclass(slots=True, eq=False)
class VersionWriter:
    """Writes versions of blocks, and has inodes name them."""

    metadata: Metadata
    blocks: ReadWriteClient
    cache: BlockCache

    async def write(
        self,
        contents: Contents,
        items: Sequence[tuple[BlockId, bytes]],
        who: Credentials,
        *,
        is_asking: bool = True,
    ) -> Sequence[BlockTimestamp]:
        """Make blocks durable, later than what is covered. Their timestamps."""
        after_us = contents.version if is_asking else max(contents.version, contents.pushed_us)
        permit = partial(self.metadata.permit_writing, contents.identifier, who)
        try:
            written = await self.blocks.write_many(
                items, who, after_us=after_us, is_asking=is_asking, permit=permit
            )
        except AdmissionRefused as refused:
            if refused.code != errno.ETIME or not is_ahead(contents.version, await Now()):
                raise
            await self.move_on(contents, who)
            written = await self.blocks.write_many(
                items, who, after_us=contents.version, permit=permit
            )
        contents.pushed_us = max(contents.pushed_us, *(timestamp.time for timestamp in written))
        return written

    async def move_on(self, contents: Contents, who: Credentials) -> None:
        """Let a file that is ahead of all clocks go on by as much as nodes take at once.

        Its blocks have to come soon after its last version, and others have left some there.
        """
        contents.pushed_us = max(contents.pushed_us, contents.version + STEPS_AHEAD_US)
        mtime_ns = contents.attributes.mtime_ns
        arguments = inode.Writing(0, contents.layout.newest, mtime_ns, NO_CHANGES)
        await self.name(contents, WRITE, arguments, who, {})

    async def name(
        self,
        contents: Contents,
        method: str,
        arguments: Record,
        who: Credentials,
        names: Mapping[int, BlockName],
        attempts: list[EarlierAttempt] | None = None,
    ) -> inode.ContentsChanged:
        """Update the inode, which names these blocks from then on, but for those behind.

        At a time not before that of the blocks that were written for it.
        """
        versions = [_latest(contents.identifier, number, name) for number, name in names.items()]
        versions.sort(key=lambda version: slot_of(version[0]) != WHOLE)  # as the method lists them
        answer: inode.ContentsChanged = await self.metadata.update(
            (contents.identifier,),
            method,
            arguments,
            who,
            not_before_us=contents.pushed_us,
            vouch=partial(self.blocks.vouched, versions, who) if versions else None,
            earlier=attempts,
        )
        if contents.on_version == answer.before:
            contents.on_version = answer.attributes.contents
        self.metadata.learn(contents.identifier, answer.attributes, await Now())
        size = contents.attributes.size
        contents.adopt(answer.attributes, ours_after=answer.before)
        if contents.version == answer.attributes.contents:
            number, valid = divmod(size, contents.layout.block_bytes)
            contents.names.put(names)
            if size < answer.attributes.size and valid:
                name = names.get(number)
                if name is None:
                    contents.names.limit(number, valid)
                    self.cache.drop(contents.identifier, number)
                elif name.patches:
                    contents.names.limit(number, valid, but=name.latest[0])
        return answer


def kept_overtaking() -> FileSystemError:
    """The failure of a mount that has been overtaken by others `ATTEMPTS` times."""
    return FileSystemError(errno.EAGAIN, "other mounts keep changing the file")


def _latest(identifier: ObjectId, number: int, name: BlockName) -> tuple[BlockId, BlockTimestamp]:
    """The block and timestamp of the latest version that `name` stands for."""
    slot, timestamp = name.latest
    block = block_id(identifier, incarnation=name.incarnation, number=number, slot=slot)
    return block, timestamp
