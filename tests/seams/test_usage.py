"""What a node tells of the room that versions take: by file and client, of now and of the past."""

from __future__ import annotations

from collections import Counter

import pytest

from bftfs import limits
from bftfs.envelope import HeldVersions
from bftfs.filesystem.file_history import History
from bftfs.identifiers import ObjectId
from bftfs.query_update.past_reading import PastReader
from bftfs.server.usage import usage_page
from bftfs.simulation.checkers.accounts import stored_bytes
from bftfs.simulation.world import SECOND_US
from tests.seams.world import BLOCK_BYTES, ROOT, VOLUME, User, World

ONE = "x" * BLOCK_BYTES


class Filled:
    """Two clients' files: one was overwritten, one is gone."""

    def __init__(self) -> None:
        self.world = World()
        self.alice: User = self.world.user("alice")
        self.alice.format()
        self.kept: ObjectId = self.alice.make("kept", ONE * 2, mode=0o666)
        self.world.run_for(10 * SECOND_US)
        self.gone: ObjectId = self.alice.make("gone", ONE)
        self.between_us = self.world.now_us
        self.world.run_for(10 * SECOND_US)
        self.bob: User = self.world.user("bob")
        self.bob.put(self.kept, "y" * BLOCK_BYTES)
        self.alice.run(self.alice.files.unlink(ROOT, b"gone", self.alice.who))
        self.world.run_for(10 * SECOND_US)

    def told(self, node: int, *bounds: int) -> dict[tuple[ObjectId, bytes], HeldVersions]:
        """All that a node tells, page by page."""
        found: dict[tuple[ObjectId, bytes], HeldVersions] = {}
        after = b""
        while True:
            page = usage_page(VOLUME, self.world.nodes[node].disk, after, bounds)
            for held in page.held:
                key = held.file, held.client
                found[key] = _together(held, found.get(key))
            if not page.after:
                return found
            assert page.after > after
            after = page.after


def _together(held: HeldVersions, before: HeldVersions | None) -> HeldVersions:
    if before is None:
        return held
    return HeldVersions(
        held.file,
        held.client,
        held.now + before.now,
        held.snapshots + before.snapshots,
        tuple(map(sum, zip(held.past, before.past, strict=True))),
    )


def test_what_files_show_is_told_apart_from_the_past() -> None:
    filled = Filled()
    alice, bob = filled.alice.host.client, filled.bob.host.client
    told = filled.told(0)
    assert set(told) == {(filled.kept, alice), (filled.kept, bob), (filled.gone, alice)}
    of_alice, of_bob, gone = (
        told[filled.kept, alice],
        told[filled.kept, bob],
        told[filled.gone, alice],
    )
    assert of_alice.now == of_alice.past[0] == of_bob.now == gone.past[0] > BLOCK_BYTES / 4
    assert of_bob.past[0] == gone.now == 0


def test_the_past_is_divided_by_when_it_was_superseded() -> None:
    filled = Filled()
    alice = filled.alice.host.client
    before = filled.told(0, filled.between_us)[filled.gone, alice]
    assert before.past[0] == 0 < before.past[1]
    after = filled.told(0, filled.between_us, filled.world.now_us)[filled.gone, alice]
    assert after.past == (0, before.past[1], 0)


def test_what_a_snapshot_shows_is_not_of_the_past() -> None:
    filled = Filled()
    alice = filled.alice
    history = History(alice.files, alice.objects, PastReader(alice.objects), alice.blocks)
    alice.run(history.create_snapshot(b"then", alice.who, time_us=filled.between_us))
    filled.world.run_for(SECOND_US)
    told = filled.told(0)[filled.gone, alice.host.client]
    assert told.snapshots > 0 == told.past[0]


def test_all_pages_together_are_the_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a page: none of them counts a version twice, or leaves one out."""
    filled = Filled()
    whole = filled.told(0)
    for rows in (1, 2, 3):
        monkeypatch.setattr(limits, "USAGE_ROWS", rows)
        assert filled.told(0) == whole
    for node in filled.world.nodes:
        by_client: Counter[bytes] = Counter()
        for (_, client), held in filled.told(int(node.node)).items():
            by_client[client] += held.now + held.snapshots + sum(held.past)
        assert by_client == stored_bytes(node.disk)
