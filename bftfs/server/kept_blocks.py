"""Which versions of a file's blocks stay when a node collects: what is shown, named, or may be.

**Situation.** Blocks are versioned each by itself, and the inode says which of their versions are
part of the file. Retention keeps versions of the inode. A node has to tell, by its own rows alone,
which versions of blocks belong to these; some blocks have no names, of before inodes had any.

**Rules.** A version of a block stays

1. if a kept version of the inode names it, and its layout has not cut the block off (`kept_names`);
2. if it has no name, and is the one that a kept version of the inode shows by its time
   (`ShownBlocks.keeps`);
3. as long as an update may still name it (`may_be_named`), while the file lives, or if the version
   is of the window: programs that have a deleted file open go on to write to it.

**Why it is safe.** A node that does not know enough, or would have to look at too many rows, keeps
everything. What it knows of names is established, so no update that is later can name an earlier
version: rule 3 goes by versions of the inode, and by no clock.

`file_collection` walks over the versions and removes the others. Nothing here performs an effect.

**Tests.** tests/seams/test_collected_names.py, tests/simulation/test_retention.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import islice
from math import inf
from typing import NamedTuple

from bftfs import limits
from bftfs.errors import DamagedRow
from bftfs.filesystem.attributes import Attributes, Layout, decode_attributes
from bftfs.filesystem.block_names import decode_name, key_of_block, name_at
from bftfs.filesystem.objects import ATTRIBUTES_KEY
from bftfs.identifiers import (
    BLOCK_ID_BYTES,
    WHOLE,
    BlockId,
    block_number_of,
    incarnation_of,
    inode_of,
    slot_of,
)
from bftfs.query_update.history import ZERO, LogicalTimestamp, time_of
from bftfs.query_update.messages import (
    Looked,
)
from bftfs.query_update.past_state import newest_at, state_at
from bftfs.query_update.replica import NUMBER_BYTES, Replica, past_prefix
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.read_write.timestamp import time_of as block_time_of
from bftfs.read_write.timestamp import timestamp_of as block_timestamp_of
from bftfs.read_write.version_row import (
    VERIFIED,
)
from bftfs.retention import (
    Keeps,
)
from bftfs.storage import StorageView, Table, after_keys
from bftfs.wire.codec import UNREADABLE

_LAYOUTS_LOOKED_AT = 64  # of versions with one name; if there are more, they count as showing it


class ShownBlocks(NamedTuple):
    """The times at which the kept versions of one inode show its blocks."""

    alive: Layout | None  # at the beginning of the window; None: it was deleted by then
    from_us: int  # the time of its contents at the beginning of the window
    shown_at: tuple[tuple[int, Layout], ...]  # times of earlier kept contents, and their layouts
    # The layouts that stay, in order: each with the first version that has it and the first one
    # that has another; for the present one that is None.
    layouts: tuple[tuple[int, int | None, Layout], ...]
    horizon_us: int  # when the window began

    def may_show(self, block: BlockId, since: int, until: int) -> bool:
        """False if the versions [since, until), which name a version of the block, have cut it off.

        Versions are meant by their numbers. A name of another incarnation than the layout's means
        nothing.
        """
        incarnation, number = incarnation_of(block), block_number_of(block)
        first = bisect_right(self.layouts, float(since), key=_end)
        for position in range(first, len(self.layouts)):
            begun, _, layout = self.layouts[position]
            if begun >= until:
                return False
            if layout.incarnation(number) == incarnation or position - first == _LAYOUTS_LOOKED_AT:
                return True
        return False

    def keeps(self, block: BlockId) -> Keeps:
        """The rule that says which versions of one block are kept."""
        incarnation, number = incarnation_of(block), block_number_of(block)
        alive = self.alive
        lives = alive is not None and (
            alive.incarnation(number) == incarnation or incarnation > alive.newest
        )
        times = [
            time_us
            for time_us, layout in self.shown_at
            if layout.incarnation(number) == incarnation
        ]

        def keeps(since_us: int, until_us: int | None) -> bool:
            if lives and (until_us is None or until_us > self.from_us):
                return True
            return any(
                since_us <= time_us and (until_us is None or time_us < until_us)
                for time_us in times
            )

        return keeps


def _end(layout: tuple[int, int | None, Layout]) -> float:
    return inf if layout[1] is None else layout[1]


def established_at(replica: Replica, at_us: int) -> LogicalTimestamp | None:
    """The latest established version at `at_us`; None if there was none, or if unknown."""
    looked, version = newest_at(replica, at_us, b"")
    known = looked is Looked.FOUND and ZERO < version <= replica.row.established
    return version if known else None


def shown_by(replica: Replica, horizon_us: int) -> ShownBlocks | None:
    """The blocks that a file's versions still show after collection up to `horizon_us`.

    None if the node does not know enough: then all blocks are kept.
    """
    version = established_at(replica, horizon_us)
    if version is None:
        return None
    state = state_at(replica, version)
    encoded = None if state is None else state.get(ATTRIBUTES_KEY)
    if encoded is None:
        return None
    attributes = attributes_in(replica, encoded)
    if attributes.layout is None:
        return None
    shown_at: dict[tuple[int, Layout], None] = {}
    prefix = past_prefix(replica.object, ATTRIBUTES_KEY)
    rows = replica.view.scan(Table.PAST, prefix, prefix + after_keys(NUMBER_BYTES))
    layouts: list[tuple[int, int | None, Layout]] = []
    for key, row in islice(rows, limits.VERSIONS_SHOWN + 1):
        before = attributes_in(replica, row[NUMBER_BYTES:])
        if before.layout is not None:
            layouts.append((_number(row), _number(key[-NUMBER_BYTES:]), before.layout))
        if before.version < attributes.version and before.layout is not None and before.links:
            shown_at[before.contents, before.layout] = None
            _add_unnamed(shown_at, before)
    now = replica.workspace.get(ATTRIBUTES_KEY)
    present = None if now is None else attributes_in(replica, now).layout
    if present is not None:
        layouts.append((layouts[-1][1] or 0 if layouts else 0, None, present))
    deleted = not attributes.links and version == replica.head
    if not deleted:
        _add_unnamed(shown_at, attributes)
    if len(layouts) > limits.VERSIONS_SHOWN:
        return None
    return ShownBlocks(
        None if deleted else attributes.layout,
        attributes.contents,
        tuple(sorted(shown_at)),
        tuple(layouts),
        horizon_us,
    )


def _number(stored: bytes) -> int:
    """The number of a version, as rows of PAST begin with it and their keys end."""
    return int.from_bytes(stored[:NUMBER_BYTES], "big")


def _add_unnamed(shown_at: dict[tuple[int, Layout], None], attributes: Attributes) -> None:
    """Blocks without names are shown as of another time than that of the contents."""
    if attributes.unnamed_until_us and attributes.layout is not None:
        shown_at[attributes.unnamed_until_us, attributes.layout] = None


def kept_names(
    replica: Replica, block: BlockId, shown: ShownBlocks
) -> frozenset[BlockTimestamp] | None:
    """The versions of a block that kept versions of its inode name; None if they are too many.

    What is left in the past of the inode is what versions see that are kept; they may have cut the
    block off. What is named now may have been deleted since, or cut off.
    """
    key, incarnation = key_of_block(block_number_of(block)), incarnation_of(block)
    slot = slot_of(block)
    prefix = past_prefix(replica.object, key)
    rows = replica.view.scan(Table.PAST, prefix, prefix + after_keys(NUMBER_BYTES))
    stored = tuple(islice(rows, limits.VERSIONS_SHOWN + 1))
    if len(stored) > limits.VERSIONS_SHOWN:
        return None
    names: set[BlockTimestamp] = set()
    for past_key, row in stored:
        name = decode_name(row[NUMBER_BYTES:])
        if name.incarnation == incarnation and shown.may_show(
            block, _number(row), _number(past_key[-NUMBER_BYTES:])
        ):
            names.update(timestamp for at, timestamp in name.parts() if at == slot)
    now = name_at(replica.workspace, block_number_of(block))
    if now is not None and now.incarnation == incarnation:
        shows = shown.keeps(block)
        names.update(
            timestamp for at, timestamp in now.parts() if at == slot and shows(timestamp.time, None)
        )
    return frozenset(names)


def may_be_named(replica: Replica, block: BlockId, timestamp: BlockTimestamp) -> bool:
    """True if an update may still name this version of a block, by what is established here."""
    return _nameable_after(replica, replica.row.established)(block, timestamp)


def _nameable_after(
    replica: Replica, version: LogicalTimestamp
) -> Callable[[BlockId, BlockTimestamp], bool]:
    """The rule that says which versions of blocks an update may name after that of the inode.

    It cannot name one if that version of the inode is later than every update that names it
    (`limits.COVERED_WITHIN_US`), or names a later one, or has cut the block off.
    """
    state = state_at(replica, version)
    encoded = None if state is None else state.get(ATTRIBUTES_KEY)
    layout = None if encoded is None else attributes_in(replica, encoded).layout

    def may_be_named(block: BlockId, timestamp: BlockTimestamp) -> bool:
        if time_of(version) > timestamp.time + limits.COVERED_WITHIN_US:
            return False
        if state is None or encoded is None:
            return True
        if layout is None:
            return False
        incarnation, number = incarnation_of(block), block_number_of(block)
        if incarnation <= layout.newest and incarnation != layout.incarnation(number):
            return False
        name = name_at(state, number)
        return name is None or (name.incarnation, name.latest[1]) < (incarnation, timestamp)

    return may_be_named


class KeptVersions:
    """Which versions of one block stay, as things are in one step.

    Those that kept versions of the file show or name, and those that an update may still name,
    while the file lives or the window lasts.
    """

    def __init__(self, replica: Replica, block: BlockId, shown: ShownBlocks) -> None:
        self._replica = replica
        self._block = block
        self._is_alive = shown.alive is not None
        self._horizon_us = shown.horizon_us
        # Whole blocks may have no name, and are shown by their times; patches have one or nothing.
        self._shows = shown.keeps(block) if slot_of(block) == WHOLE else None
        self._names = kept_names(replica, block, shown)

    def keeps(self, key: bytes, until_us: int | None) -> bool:
        """True if the version with this key stays.

        `until_us` is the time of the oldest later version that this node has verified.
        """
        if self._names is None:
            return True
        if self._shows is not None and self._shows(block_time_of(key), until_us):
            return True
        timestamp = block_timestamp_of(key)
        if timestamp in self._names:
            return True
        is_in_use = self._is_alive or timestamp.time > self._horizon_us
        return is_in_use and may_be_named(self._replica, self._block, timestamp)


class CollectedPast:
    """Answers questions of the block server and the healer about collected versions."""

    def knows(self, view: StorageView, block: BlockId, at_us: int) -> bool:
        """True if no version that was the latest of `block` at `at_us` can have been collected."""
        replica = Replica(view, inode_of(block))
        collected_us = replica.row.collected_us
        if not collected_us or at_us >= collected_us:
            return True
        shown = shown_by(replica, collected_us)
        if shown is None:
            return False
        # The inode's version of that time may be removed while a later one, which stays, shows
        # the block.
        return (shown.alive is not None and at_us >= shown.from_us) or any(
            at_us == time_us for time_us, _ in shown.shown_at
        )

    def is_gone(self, view: StorageView, block: BlockId) -> bool:
        """True if the file was deleted, and its contents were collected."""
        replica = Replica(view, inode_of(block))
        if not replica.row.collected_us:
            return False
        shown = shown_by(replica, replica.row.collected_us)
        return shown is not None and shown.alive is None

    def may_have_had(self, view: StorageView, block: BlockId, at_us: int) -> bool:
        """False if a version of `block` of that time is too young to have been collected."""
        return at_us <= Replica(view, inode_of(block)).row.collected_us

    def may_be_named(
        self, view: StorageView, versions: Sequence[tuple[BlockId, BlockTimestamp]]
    ) -> bool:
        """False if an update can name one of these no more, by the latest version of its inode.

        Nothing is removed by this, so that need not be established.
        """
        replicas = [Replica(view, inode) for inode in {inode_of(block) for block, _ in versions}]
        rules = {each.object: _nameable_after(each, each.head) for each in replicas}
        return all(rules[inode_of(block)](block, timestamp) for block, timestamp in versions)

    def wants(self, view: StorageView, key: bytes) -> bool:
        """True if collection would keep the version of a block with this key."""
        block = BlockId(key[:BLOCK_ID_BYTES])
        replica = Replica(view, inode_of(block))
        collected_us = replica.row.collected_us
        shown = shown_by(replica, collected_us) if collected_us else None
        if shown is None:
            return True
        newer = view.scan(Table.BLOCK, block, key, reverse=True)
        until_us = next((block_time_of(at) for at, row in newer if row[0] & VERIFIED), None)
        return KeptVersions(replica, block, shown).keeps(key, until_us)


def attributes_in(replica: Replica, encoded: bytes) -> Attributes:
    """The attributes of an object, as they are stored. Raises DamagedRow."""
    try:
        return decode_attributes(encoded)
    except UNREADABLE as error:
        raise DamagedRow(replica.object, str(error)) from error
