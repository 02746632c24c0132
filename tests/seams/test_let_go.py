"""What the administrator lets go goes, and nothing else; by nobody else's word.

Here the nodes' collectors are given decisions as a node gives them those of the signed description.
That no other description is taken is shown in `test_descriptions.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from bftfs import limits
from bftfs.errors import FileSystemError, NoLongerKept
from bftfs.filesystem.file_history import History
from bftfs.identifiers import ClientId, ObjectId
from bftfs.query_update.past_reading import PastReader
from bftfs.retention import LetGo
from bftfs.server import file_collection, kept_blocks
from bftfs.server.file_collection import Scope
from bftfs.simulation.checkers.accounts import stored_bytes
from bftfs.simulation.deployment import CollectionPlan
from bftfs.simulation.world import SECOND_US
from tests.seams.world import BLOCK_BYTES, ROOT, VOLUME, User, World

DAY_US = 24 * 3600 * SECOND_US
WINDOW_US = 14 * DAY_US
MINUTE_US = 60 * SECOND_US
EVERYBODY = range(6)


class Story:
    """Alice has two files. Mallory overwrites one and fills another, and root undoes that."""

    def __init__(self, window_us: int = WINDOW_US) -> None:
        roomy = tuple(EVERYBODY)
        self.world = World(collection=CollectionPlan(window_us, roomy), volume=VOLUME)
        self.root: User = self.world.user("root")
        self.root.format()
        self.alice: User = self.world.user("alice")
        self.mallory: User = self.world.user("mallory")
        self.diary: ObjectId = self.alice.make("diary", "monday", mode=0o666)
        self.pass_time()
        self.alice.put(self.diary, "friday")
        self.junk: ObjectId = self.mallory.make("junk", "legacy" * 600, mode=0o666)
        self.pass_time()
        self.stolen_us = self.world.now_us
        self.pass_time()
        self.mallory.put(self.diary, "ransom" * 600)
        self.mallory.put(self.junk, "x" * BLOCK_BYTES)
        self.pass_time(2 * SECOND_US)  # moments of decisions are whole seconds
        self.ransomed_us = self.world.now_us
        self.pass_time()
        self.root.put(self.diary, "friday" * 600)
        self.pass_time(2 * SECOND_US)
        self.undone_us = self.world.now_us
        self.pass_time()

    def pass_time(self, duration_us: int = 10 * MINUTE_US) -> None:
        self.world.run_for(duration_us)

    def decide(self, before_us: int, **options: Any) -> None:
        """All nodes hear of a decision."""
        decision = LetGo(before_us // SECOND_US, self.world.now_us // SECOND_US, 1, **options)
        for collector in self.world.deployment.collectors.values():
            collector.let_go((decision,))
        self.pass_time()

    def decide_about_mallory(self, since_us: int = 0) -> None:
        """To let her work go that nobody sees any more."""
        self.decide(
            self.world.now_us,
            client=self.mallory.host.client,
            since_s=since_us // SECOND_US,
        )

    def read_at(self, identifier: ObjectId, at_us: int) -> str:
        """What a file's first bytes were."""
        reader = self.root
        history = History(reader.files, reader.objects, PastReader(reader.objects), reader.blocks)

        async def read() -> bytes:
            files = history.at(at_us)
            file = await files.open(identifier, 0, reader.who)
            found = bytes(await files.read(file, 0, 6))
            await files.release(file)
            return found

        found: bytes = reader.run(read())
        return found.decode()

    def stored(self) -> Counter[ClientId]:
        """What a node stores of each client's."""
        return stored_bytes(self.world.nodes[0].disk)


def is_gone(read: Callable[[], str]) -> bool:
    try:
        read()
    except (NoLongerKept, FileSystemError):
        return True
    return False


def test_history_of_before_a_moment_goes_and_the_present_stays() -> None:
    story = Story()
    before = story.stored()
    story.decide(story.ransomed_us)
    assert is_gone(lambda: story.read_at(story.diary, story.stolen_us))
    assert story.root.read(story.diary)[:6] == "friday"
    assert story.root.read(story.junk)[:6] == "xxxxxx"
    assert story.read_at(story.diary, story.ransomed_us) == "ransom"
    after = story.stored()
    assert after[story.alice.host.client] < before[story.alice.host.client]


def test_what_was_the_truth_after_the_moment_stays() -> None:
    story = Story()
    story.decide(story.stolen_us)
    assert story.read_at(story.diary, story.stolen_us) == "friday"
    assert story.read_at(story.diary, story.undone_us) == "friday"


def test_of_one_client_only_its_own_goes() -> None:
    story = Story()
    before = story.stored()
    story.decide_about_mallory()
    assert is_gone(lambda: story.read_at(story.diary, story.ransomed_us))
    assert story.read_at(story.diary, story.stolen_us) == "friday"
    assert story.root.read(story.diary)[:6] == "friday"
    assert story.root.read(story.junk)[:6] == "xxxxxx"  # nobody has undone it
    after = story.stored()
    assert after[story.alice.host.client] == before[story.alice.host.client]
    assert after[story.mallory.host.client] < before[story.mallory.host.client]


def test_what_a_client_wrote_before_its_key_was_stolen_stays() -> None:
    story = Story()
    story.decide_about_mallory(since_us=story.stolen_us)
    assert is_gone(lambda: story.read_at(story.diary, story.ransomed_us))
    assert story.read_at(story.junk, story.stolen_us) == "legacy"


def test_a_snapshot_keeps_what_it_shows() -> None:
    story = Story()
    reader = story.root
    history = History(reader.files, reader.objects, PastReader(reader.objects), reader.blocks)
    for name, at_us in ((b"good", story.stolen_us), (b"evidence", story.ransomed_us)):
        reader.run(history.create_snapshot(name, reader.who, time_us=at_us))
    story.pass_time()
    story.decide_about_mallory()
    story.decide(story.undone_us)
    assert story.read_at(story.diary, story.stolen_us) == "friday"
    assert story.read_at(story.diary, story.ransomed_us) == "ransom"


def test_who_made_which_name_is_seen_as_before() -> None:
    """Versions of directories have no contents, and stay. What is gone of a file is not left out:
    whoever restores the tree as of that moment is told that some of it is no longer kept.
    """
    story = Story()
    loot = story.mallory.make("loot", "y" * BLOCK_BYTES)
    then_us = story.world.now_us
    story.pass_time()
    reader = story.root
    reader.run(reader.files.unlink(ROOT, b"loot", reader.who))
    story.pass_time()
    story.decide_about_mallory()
    history = History(reader.files, reader.objects, PastReader(reader.objects), reader.blocks)

    async def names(*, with_attributes: bool) -> set[bytes]:
        files = history.at(then_us)
        opened = await files.open_directory(ROOT, reader.who)
        found = await files.read_directory(opened, 0, with_attributes=with_attributes)
        return {entry.name for entry in found}

    assert reader.run(names(with_attributes=False)) == {b"diary", b"junk", b"loot"}
    assert is_gone(lambda: story.read_at(loot, then_us))
    with pytest.raises(NoLongerKept):
        reader.run(names(with_attributes=True))


def test_what_another_clients_version_shows_stays() -> None:
    """Bob has written to another block, while the file had Mallory's work."""
    story = Story()
    bob = story.world.user("bob")
    story.mallory.put(story.diary, "evil" * 1024)
    story.pass_time()
    bob.put(story.diary, "bob", offset=BLOCK_BYTES)
    then_us = story.world.now_us
    story.pass_time()
    story.root.put(story.diary, "friday" * 600)
    story.pass_time()
    story.decide_about_mallory()
    assert story.read_at(story.diary, then_us) == "evilev"


def of_mallory(*, is_shown: bool = False) -> int:
    """What is left of her work after an undo that wrote the file anew, as `bftfs undo` does."""
    story = Story()
    story.mallory.put(story.diary, "evil" * 1024)
    then_us = story.world.now_us
    story.pass_time()
    story.root.run(story.root.files.truncate(story.diary, 0, story.root.who))
    story.root.put(story.diary, "friday" * 600)
    story.root.run(story.root.files.unlink(ROOT, b"junk", story.root.who))
    story.pass_time()
    if is_shown:
        reader = story.root
        history = History(reader.files, reader.objects, PastReader(reader.objects), reader.blocks)
        reader.run(history.create_snapshot(b"evidence", reader.who, time_us=then_us))
        story.pass_time()
    story.decide_about_mallory()
    if is_shown:
        assert story.read_at(story.diary, then_us) == "evilev"
    assert story.root.read(story.diary)[:6] == "friday"
    return story.stored()[story.mallory.host.client]


def test_what_others_have_cut_off_goes() -> None:
    """The version that cut it off has its names still; they mean nothing."""
    assert of_mallory() == 0
    assert of_mallory(is_shown=True) > 0


def test_must_fail_where_names_of_what_was_cut_off_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_blocks.ShownBlocks, "may_show", lambda *_: True)
    assert of_mallory() > 0


def test_nothing_goes_while_clients_may_still_date_changes_back() -> None:
    story = Story()
    decision = LetGo(story.world.now_us // SECOND_US, story.world.now_us // SECOND_US, 1)
    for collector in story.world.deployment.collectors.values():
        collector.let_go((decision,))
    story.pass_time(limits.CLOCK_SKEW_US - MINUTE_US)
    assert story.read_at(story.diary, story.stolen_us) == "friday"
    story.pass_time(4 * MINUTE_US)
    assert is_gone(lambda: story.read_at(story.diary, story.stolen_us))


def test_a_decision_that_is_heard_again_takes_nothing_more() -> None:
    story = Story()
    story.decide(story.stolen_us)
    story.alice.put(story.diary, "sunday")
    then_us = story.world.now_us
    story.pass_time()
    story.alice.put(story.diary, "nothing")
    before = story.stored()
    for node in EVERYBODY:
        story.world.nodes[node].crash(down_us=None)
    for node in EVERYBODY:
        story.world.nodes[node].start()
    story.pass_time(MINUTE_US)
    story.decide(story.stolen_us)
    assert story.stored() == before
    assert story.read_at(story.diary, then_us) == "sunday"


def test_one_node_that_lets_all_go_destroys_nothing() -> None:
    """It may lie, or have been told by somebody who has its disk."""
    story = Story()
    collector = story.world.deployment.collectors[story.world.nodes[5].node]
    collector.let_go((LetGo(story.undone_us // SECOND_US, 0, 1),))
    story.pass_time()
    assert story.read_at(story.diary, story.stolen_us) == "friday"
    assert story.read_at(story.diary, story.ransomed_us) == "ransom"


# --- must fail ------------------------------------------------------------------------------------


def test_must_fail_where_authors_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scope, "lets_version_go", lambda *_: True)
    monkeypatch.setattr(Scope, "lets_block_go", lambda *_: True)
    with pytest.raises((AssertionError, NoLongerKept)):
        test_what_a_client_wrote_before_its_key_was_stolen_stays()


def test_must_fail_where_only_blocks_authors_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scope, "lets_version_go", lambda *_: True)
    with pytest.raises((AssertionError, NoLongerKept)):
        test_of_one_client_only_its_own_goes()


def test_must_fail_where_snapshots_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_collection, "times_of_snapshots", lambda _: ())
    with pytest.raises((AssertionError, NoLongerKept)):
        test_a_snapshot_keeps_what_it_shows()


def test_must_fail_where_names_keep_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kept_blocks.KeptVersions, "keeps", lambda _self, _key, until_us: until_us is None
    )
    with pytest.raises((AssertionError, NoLongerKept, FileSystemError)):
        test_what_another_clients_version_shows_stays()


def test_must_fail_where_nodes_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LET_GO_SETTLED_US", 0)
    with pytest.raises((AssertionError, NoLongerKept)):
        test_nothing_goes_while_clients_may_still_date_changes_back()
