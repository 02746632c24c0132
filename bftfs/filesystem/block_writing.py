"""From dirty bytes to a saved file: the order in which blocks are pushed, placed and covered.

`BlockWriter` says the rules, and `contents` the states that bytes pass through. `unsaved` counts
what waits, `block_pushing` writes it to the nodes, `block_versions` has the inode name it, and
`block_rewriting` cuts.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Final

from bftfs import limits
from bftfs.conversation import Draw, Now, Pause
from bftfs.credentials import Credentials
from bftfs.errors import AdmissionRefused, FateUnknown, FileSystemError, VersionGone
from bftfs.filesystem import inode
from bftfs.filesystem.attributes import NO_CHANGES
from bftfs.filesystem.block_memory import Extent
from bftfs.filesystem.block_names import OVERTAKEN, covered, covered_patch
from bftfs.filesystem.block_pushing import BlockPusher
from bftfs.filesystem.block_reading import BlockReader
from bftfs.filesystem.block_rewriting import BlockRewriter
from bftfs.filesystem.block_versions import ATTEMPTS, VersionWriter, kept_overtaking
from bftfs.filesystem.contents import UNPLACED, Contents, Cover, Sharing, Uncovered
from bftfs.filesystem.registry import WRITE
from bftfs.filesystem.unsaved import Unsaved

OVERTAKEN_ATTEMPTS: Final = 1_000  # at one of which each attempt has made way for another mount's
BACK_OFF_US: Final = 1_000  # bound of the first random pause between these; it doubles…
BACK_OFF_DOUBLINGS: Final = 2  # …so often: shorter than the time for which a winner steps back


class _Covered(Enum):
    """The outcome of an attempt to cover blocks."""

    ALL = 0  # all that nodes held
    NOT_ALL = 1
    OVERTAKEN = 2  # nothing: other mounts have changed these blocks, or the size, meanwhile


@dataclass(slots=True, eq=False)
class BlockWriter:
    """Writes a file's bytes: pushes dirty blocks to the nodes, then has an inode update cover them.

    The rules [design §6]:

    1. A block is written before the inode update that covers it, which names its version: nobody
       else sees it before that update. It is later than what is covered already, and the update's
       time is not before its own. One update names so many blocks, in their order; each extends
       the size as far as that.
    2. The update names the newest incarnation that blocks were written under, and its answer the
       version of the contents that it found. If another mount has cut the file or changed it in
       between, what it has overtaken is written again and covered once more (`Sharing`, in
       `contents`). Only then is the write saved.
    3. A truncation saves first what is unsaved, also behind the cut: if it is interrupted, the file
       is as it was, or is cut. Then `BlockRewriter` cuts.
    4. A block that is merged on another version is covered on that version alone, and bytes are
       appended at the file's end alone: the update names both, and is refused if they are not the
       latest. Then rule 2 applies. One whose fate is unknown is repeated as it was, before
       anything else is written: it takes effect once. Where nodes have collected all that would
       tell its fate, what the inode names now may tell it (`_judge_by_names`). Otherwise programs
       are told, and their bytes are not written again, lest they are there twice.
    5. A block that cannot be written is dirty again, beneath newer writes. Bytes that are dirty, or
       on their way, are bounded. One that nodes have collected before it was covered is lost, with
       all that was appended in one stretch with it, and programs are told
       (`BlockPusher.take_back`).

    (tests/unit/filesystem/test_contents.py, for example
    `test_blocks_are_written_before_their_cover`,
    `test_a_cut_noticed_before_the_cover_loses_nothing` and
    `test_failed_writes_are_tried_again_with_newer_ones`.)

    Concurrency: callers of `push`, `cover` and `truncate` hold the file's lock, so that no block is
    on its way twice and covers are in order. Reads and `take` go on meanwhile.
    """

    versions: VersionWriter
    pusher: BlockPusher
    rewriter: BlockRewriter
    reader: BlockReader
    unsaved: Unsaved

    async def push(self, contents: Contents, numbers: Iterable[int]) -> None:
        """Write dirty blocks to the nodes, and again what others have overtaken.

        Ensures: what was dirty at the beginning is uncovered at the end, up to `push_stop`.
        """
        numbers = frozenset(numbers)
        await self._settle(contents)
        numbers |= await self._place_appends(contents)
        try:
            await self._push(contents, numbers)
        except AdmissionRefused as refused:
            await self.rewriter.leave_behind(contents, refused)
            await self._push(contents, numbers | _held_before(contents))

    async def _push(self, contents: Contents, numbers: frozenset[int]) -> None:
        await self.pusher.write_again(contents)
        await self.pusher.push(contents, contents.dirty.keys() & numbers)

    async def truncate(self, contents: Contents, size: int, who: Credentials) -> None:
        """Set the size; takes effect at once, for all mounts.

        If there is no room for the bytes behind the cut, they are forgotten before it: it is to
        make room. Every handle reports that, once, if the cut fails then.
        """
        try:
            await self._save(contents)
        except (FileSystemError, AdmissionRefused) as refused:
            if refused.code not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.unsaved.cut(contents, size)
            try:
                await self._save(contents)
                await self.rewriter.cut(contents, size, who)
            except BaseException:
                contents.fail(refused)
                raise
        else:
            await self.rewriter.cut(contents, size, who)

    async def _save(self, contents: Contents) -> None:
        if contents.dirty or contents.uncovered or contents.changes:
            await self.push(contents, contents.dirty)
            await self.cover(contents)

    # --- appending --------------------------------------------------------------------------------

    async def _place_appends(self, contents: Contents) -> frozenset[int]:
        """Put what was appended behind what other mounts have written there since.

        Programs here have seen it elsewhere: it was not closed or synced yet. Gives the blocks that
        were taken back for that: they were at the nodes, and are to be there again.
        """
        who = contents.writer
        if not contents.appends or contents.attributes.size == contents.appended_to:
            return frozenset()
        assert who is not None, "what is unsaved has a writer"
        place = contents.place_of_appends()
        if len(contents.appends) == 1 and contents.appends[0][0] == place:
            contents.appended_to = contents.attributes.size
            return frozenset()
        block_bytes, (first, last) = contents.layout.block_bytes, _bounds(contents.appends)
        numbers = [
            n for n in contents.uncovered if first // block_bytes <= n <= last // block_bytes
        ]
        taken = await self.pusher.take_back(contents, numbers, who)
        if not contents.appends:
            return taken  # what was appended was lost
        # From here on there is no await: no program sees the file without these bytes.
        appended = self.unsaved.take_appended(contents)
        place = contents.place_of_appends()
        contents.moved(place)
        self.unsaved.take(contents, place, appended)
        return taken

    # --- covering ---------------------------------------------------------------------------------

    async def cover(self, contents: Contents) -> None:
        """Update the inode, so that it covers all blocks that were written."""
        tries_left, overtaken = ATTEMPTS, 0
        while tries_left and overtaken < OVERTAKEN_ATTEMPTS and contents.is_unsaved:
            uncovered = len(contents.uncovered)
            match await self._cover(contents):
                case _Covered.ALL:
                    return
                case _Covered.OVERTAKEN:
                    if overtaken:
                        await Pause(
                            1 + await Draw(BACK_OFF_US << min(overtaken, BACK_OFF_DOUBLINGS))
                        )
                    overtaken += 1
                case _Covered.NOT_ALL:
                    # Of very many blocks, each update covers some: that is no failure.
                    tries_left -= len(contents.uncovered) >= uncovered
        if contents.is_unsaved:
            raise kept_overtaking()

    async def _settle(self, contents: Contents) -> None:
        """Repeat an update whose fate is unknown as it was, until that is known.

        Before anything else is written: what it has covered is not to be written again, since
        other mounts may have cut it off or overwritten it.
        """
        for _ in range(ATTEMPTS):
            if contents.cover is None:
                return
            await self._attempt(contents, contents.cover)
        raise kept_overtaking()

    async def _cover(self, contents: Contents) -> _Covered:
        """Settle what is unsettled, and make one attempt to cover the rest."""
        contents.cover = cover = await self._next_cover(contents)
        return await self._attempt(contents, cover)

    async def _attempt(self, contents: Contents, cover: Cover) -> _Covered:
        """One attempt at an update that covers blocks."""
        arguments, who = cover.arguments, cover.who
        version, size = contents.version, contents.attributes.size
        try:
            answer = await self.versions.name(
                contents, WRITE, arguments, who, cover.names, cover.attempts
            )
        except AdmissionRefused as refused:
            if not cover.attempts:
                contents.cover = None
            await self.rewriter.leave_behind(contents, refused)
            return _Covered.NOT_ALL
        except FateUnknown:
            return await self._judge_by_names(contents, cover)
        except VersionGone:
            # The update has not taken effect: what is at hand of the blocks is written again.
            contents.cover = None
            await self.reader.refresh(contents, who)
            contents.must_ask(cover.names)
            return _Covered.NOT_ALL
        except FileSystemError as refusal:
            contents.cover = None
            if refusal.code == OVERTAKEN:
                await self._look_again(contents, cover)
                return _Covered.OVERTAKEN
            if refusal.code == errno.EAGAIN:
                await self.rewriter.look_again(contents, version, who)
            elif arguments.changes and refusal.code in (errno.EPERM, errno.EACCES):
                # The user has lost the right to change attributes, not to write: without these
                # changes the bytes can still be saved.
                contents.changes = NO_CHANGES
                contents.fail(refusal)
            else:
                raise
            return _Covered.NOT_ALL
        contents.cover = None
        if answer.before == version and contents.appended_to == size:
            # Bytes appended meanwhile already stand behind everything that this mount has covered.
            contents.appended_to = answer.attributes.size
        return self._covered(contents, cover, answer)

    async def _judge_by_names(self, contents: Contents, cover: Cover) -> _Covered:
        """Settle a cover of which nodes have collected all but what the inode names now.

        Every handle reports, once, if that does not tell either. Then what the cover named is not
        written again: others may have cut it off, or put theirs in its place.
        """
        took_effect = await self._took_effect(contents, cover)
        contents.cover = None
        if took_effect is False:
            contents.must_ask(cover.names)
            return _Covered.NOT_ALL
        if took_effect is None:
            unknown = "nobody knows any more if what was written was saved"
            contents.fail(FileSystemError(errno.EIO, unknown))
        answer = inode.ContentsChanged(contents.attributes, before=UNPLACED)
        outcome = self._covered(contents, cover, answer)
        contents.covered_before_others(cover)
        return outcome

    async def _took_effect(self, contents: Contents, cover: Cover) -> bool | None:
        """True if the inode names what the cover named; False if it would, had it taken effect.

        A name gives way to a later one alone, or is cut off. None if that has happened to all; or
        to some that have no base: the cover may have found them so, and put them behind.
        """
        took_effect, may_be_behind = None, False
        await self.reader.refresh(contents, cover.who, min(cover.names, default=0))
        for number, ours in cover.names.items():
            while not contents.names.has_page_of(number):
                await self.reader.refresh(contents, cover.who, number)
            named, (slot, timestamp) = contents.names.get(number), ours.latest
            if named is not None and named.names(ours.incarnation, timestamp, slot):
                took_effect = True
            elif contents.layout.incarnation(number) == ours.incarnation and (
                named is None
                or (named.incarnation, named.latest[1]) < (ours.incarnation, timestamp)
            ):
                return False
            else:
                may_be_behind |= contents.uncovered[number].pushed.base is None
        if not cover.names:
            return False
        return None if may_be_behind else took_effect

    async def _next_cover(self, contents: Contents) -> Cover:
        """An update that covers what nodes hold, and all that was appended until now."""
        await self._settle(contents)
        await self._renew(contents)
        taken = await self._place_appends(contents)
        contents.push_stop = contents.end  # what is appended at once is covered at once
        try:
            numbers = contents.dirty if contents.appends else taken | _held_before(contents)
            await self.push(contents, numbers)
        finally:
            contents.push_stop = None
        contents.require_version()  # of which the bases of these blocks are, then
        assert contents.writer is not None, "what is unsaved has a writer"
        blocks = _covered_together(contents.uncovered)
        is_last = len(blocks) == len(contents.uncovered)
        # Bytes that were written since the blocks were pushed are covered another time.
        end = contents.pushed_end
        if not is_last:  # it has grown as far as blocks have names
            end = min(end, (max(blocks) + 1) * contents.layout.block_bytes)
        is_appending = any(start < end for start, _ in contents.appends)
        arguments = inode.Writing(
            end,
            contents.layout.newest,
            contents.mtime_ns,
            contents.changes,
            tuple(
                covered(number, block.pushed.timestamp, block.pushed.base)
                for number, block in blocks.items()
                if block.pushed.under is None
            ),
            contents.appended_to if is_appending else None,
            tuple(
                covered_patch(number, block.pushed.slot, block.pushed.timestamp, block.pushed.base)
                for number, block in blocks.items()
                if block.pushed.under is not None
            ),
        )
        return Cover(
            arguments,
            {number: block.name for number, block in blocks.items()},
            contents.writer,
            contents.writes,
            is_all=not contents.dirty,
            is_last=is_last,
            attempts=[],
        )

    async def _look_again(self, contents: Contents, cover: Cover) -> None:
        """Other mounts were faster: have written again what was merged on older versions.

        And the block in which appended bytes begin, if they are where the file still ends: perhaps
        another mount has replaced it.
        """
        await self.reader.refresh(contents, cover.who, min(cover.names, default=0))
        if cover.arguments.appended_to == contents.attributes.size:
            contents.must_ask(
                contents.uncovered.keys()
                & {contents.attributes.size // contents.layout.block_bytes}
            )
        merged = [
            number for number, block in contents.uncovered.items() if block.pushed.base is not None
        ]
        for number in merged:
            if not contents.names.has_page_of(number):
                await self.reader.refresh(contents, cover.who, number)
        for number in merged:
            if contents.is_outdated(number):
                contents.write_again(number)

    def _covered(self, contents: Contents, cover: Cover, answer: inode.ContentsChanged) -> _Covered:
        """Take note of a cover that took effect."""
        contents.must_ask(answer.behind)
        # The versions that the cover named follow those it found, and precede all later ones.
        named = cover.names.keys() - set(answer.behind)
        overtaken = set(contents.overtaken()) - named
        contents.covered(cover, answer.attributes.size, overtaken)
        if contents.version != answer.attributes.contents:
            contents.covered_before_others(cover)
        if overtaken or not cover.is_last:
            return _Covered.NOT_ALL
        if contents.sharing is Sharing.OVERTAKEN:
            contents.sharing = Sharing.SHARED
        if cover.is_all and contents.writes == cover.writes:
            self.unsaved.saved(contents, cover.writes)
        return _Covered.ALL

    async def _renew(self, contents: Contents) -> None:
        """Have what nodes would name no more written again, in time.

        The inode may be ahead of all clocks, by a change of its attributes, and its contents not.
        These are brought up to it first: new blocks come after them.
        """
        reached_us = max(await Now(), contents.attributes.version)
        oldest_us = reached_us - limits.COVERED_WITHIN_US // 2
        uncovered = contents.uncovered.items()
        old = [number for number, block in uncovered if block.pushed.timestamp.time < oldest_us]
        if old and max(await Now(), contents.version) < oldest_us:
            assert contents.writer is not None, "what is uncovered has a writer"
            await self.versions.move_on(contents, contents.writer)
        contents.must_ask(old)


def _held_before(contents: Contents) -> frozenset[int]:
    """Dirty blocks before the end of what nodes have held, and no update has covered.

    They were to be written again, and nodes have refused that. An update that let the file grow as
    far would show zeros in their place.
    """
    blocks = -(-contents.pushed_end // contents.layout.block_bytes)
    return frozenset(number for number in contents.dirty if number < blocks)


def _covered_together(uncovered: Mapping[int, Uncovered]) -> dict[int, Uncovered]:
    """The first of these blocks, as many as one update names."""
    together, patches = {}, 0
    for number, block in islice(sorted(uncovered.items()), limits.BLOCKS_PER_COVER):
        patches += block.pushed.under is not None
        if patches > limits.PATCHES_PER_COVER:
            break
        together[number] = block
    return together


def _bounds(extents: Sequence[Extent]) -> Extent:
    return extents[0][0], extents[-1][1]
