"""Checks that each stored fragment is still the one that its version's timestamp binds.

A damaged fragment is dropped. The version stays listed, since the node has acknowledged it. So the
healer finds that its fragment is missing, and makes it again from those of its peers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice

from bftfs.identifiers import BLOCK_ID_BYTES, BlockId, NodeId
from bftfs.read_write import version_row
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.timestamp import VERSION_KEY_BYTES, VERSIONS_END, timestamp_of
from bftfs.server.background import step
from bftfs.server.scrubber import Page
from bftfs.server.step import Host
from bftfs.storage import StorageView, Table, Write

_ROWS_PER_PAGE = 16  # each of which is read and hashed, in one step


class BlockScrubber:
    """Checks versions of blocks."""

    table = Table.BLOCK

    def __init__(self, node: NodeId, n: int, found: Callable[[], None]) -> None:
        """`found` is called when a fragment was dropped and has to be healed."""
        self._node = node
        self._n = n
        self._found = found

    async def scrub(self, host: Host, after: bytes) -> Page | None:
        """Check the versions that follow `after`."""
        page = await step(host, partial(self._page, after=after))
        if page.damaged:
            self._found()
        return page

    def _page(self, view: StorageView, *, after: bytes) -> tuple[Page, list[Write]]:
        volume = 0
        dropped: list[Write] = []
        rows = list(islice(view.scan(Table.BLOCK, after + b"\0", VERSIONS_END), _ROWS_PER_PAGE))
        for key, row in rows:
            fragment = view.get(Table.FRAGMENT, key)
            volume += len(row) + len(fragment or b"")
            if len(key) != VERSION_KEY_BYTES:  # no version of anything
                dropped.append(Write(Table.BLOCK, key, None))
                continue
            index = fragment_index(BlockId(key[:BLOCK_ID_BYTES]), self._node, self._n)
            if not version_row.is_sound(row, fragment, timestamp_of(key), index):
                dropped.append(Write(Table.FRAGMENT, key, None))
        until = rows[-1][0] if len(rows) == _ROWS_PER_PAGE else b""
        return Page(until, len(rows), volume, len(dropped)), dropped
