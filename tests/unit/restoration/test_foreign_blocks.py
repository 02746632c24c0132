"""Foreign blocks: an intruder writes blocks, and leaves the inode to others."""

from __future__ import annotations

from typing import Any

import pytest

from bftfs.simulation.deployment import CREDENTIALS
from tests.unit.restoration.conftest import BLOCK

BEFORE = {"a": "a\n", "b": "b\n", "d": "", "d/c": "c\n"}


def test_an_uncovered_block_is_taken_back(stage: Any) -> None:
    stage.intruder.scribble("a", "E\n")
    (step,) = stage.steps()
    assert step.what == "take back what was written to /a"
    assert stage.undo() == []
    stage.honest.cover("a")
    assert stage.tree() == BEFORE


def test_a_block_that_others_covered_is_its_authors(stage: Any) -> None:
    stage.intruder.scribble("a", "E\n")
    stage.honest.cover("a")
    assert stage.tree() == {**BEFORE, "a": "E\n"}
    assert stage.undo() == []
    assert stage.tree() == BEFORE


def test_a_backdated_block_is_taken_back(stage: Any) -> None:
    stage.honest.put("a", "b\n", 0)
    identifier = stage.honest.find("a")
    found = stage.honest.run(stage.honest.files.attributes(identifier, CREDENTIALS))
    block = found.layout.block(identifier, 0)
    blocks = stage.intruder.blocks
    stage.intruder.run(blocks._encode_and_write(block, b"E\n", found.contents, 0, CREDENTIALS))
    assert stage.tree() == {**BEFORE, "a": "E\n"}
    ((foreign,),) = stage.log().foreign_blocks.values()
    assert foreign.shown_by.time_us == found.contents
    assert stage.undo() == []
    assert stage.tree() == {**BEFORE, "a": "b\n"}


def test_what_others_wrote_to_the_same_block_stays(stage: Any) -> None:
    stage.honest.put("a", "line\n" * 1000, 0)
    stage.begin()
    stage.intruder.scribble("a", "EVIL\n" + "line\n" * 818 + "l")
    stage.honest.put("a", "last\n", 5000)
    assert stage.contents("a") == ("EVIL\n" + "line\n" * 999 + "last\n")
    assert stage.undo() == []
    assert stage.contents("a") == "line\n" * 1000 + "last\n"


def test_a_block_that_growth_shows_is_taken_back(stage: Any) -> None:
    stage.intruder.scribble("a", "evil\n", number=1)
    stage.honest.cover("a")
    assert stage.tree() == BEFORE
    stage.honest.put("a", "honest\n", 2 * BLOCK)
    assert "evil" in stage.contents("a")
    assert stage.undo() == []
    assert stage.contents("a") == "a\n" + "\0" * (2 * BLOCK - 2) + "honest\n"


def test_a_block_behind_the_end_is_taken_back(stage: Any) -> None:
    stage.intruder.scribble("a", "evil\n", number=1)
    assert stage.undo() == []
    stage.honest.put("a", "honest\n", 2 * BLOCK)
    assert stage.contents("a") == "a\n" + "\0" * (2 * BLOCK - 2) + "honest\n"


def test_a_block_that_the_client_covered_is_its_authors(stage: Any) -> None:
    stage.honest.put("a", "\0" * 3 * BLOCK, 0)
    stage.begin()
    stage.honest.scribble("a", "h" * BLOCK, number=1)
    stage.intruder.scribble("a", "E" * BLOCK, covered=True)
    stage.honest.scribble("a", "h" * BLOCK, number=2, covered=True)
    assert stage.undo() == []
    assert stage.contents("a") == "\0" * BLOCK + "h" * 2 * BLOCK


def test_where_both_wrote_to_a_block_both_are_kept(stage: Any) -> None:
    stage.intruder.scribble("a", "E\n")
    stage.honest.cover("a")
    stage.honest.put("a", "e\n", 0)
    stage.intruder.scribble("a", "evil again\n")
    (conflict,) = stage.undo()
    assert conflict.startswith("/a: changed by K")
    stage.honest.cover("a")
    assert stage.tree() == {**BEFORE, "a": "e\n", "a.before-K": "a\n"}


def test_an_audit_tells_it(stage: Any) -> None:
    stage.intruder.scribble("a", "E\n")
    stage.intruder.scribble("b", "E\n")
    stage.honest.cover("b")
    log = stage.log()
    told = {
        log.path_of(identifier): [each.shown_by and each.shown_by.client for each in blocks]
        for identifier, blocks in log.foreign_blocks.items()
    }
    assert told == {"/a": [None], "/b": [stage.honest.host.client]}


def test_who_covers_its_own_has_no_foreign_blocks(stage: Any) -> None:
    for user in (stage.intruder, stage.honest, stage.intruder):
        user.write("a", f"{user.host.client.hex()}\n")
    assert stage.log().foreign_blocks == {}


def test_must_fail_if_blocks_count_for_who_covers_them(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*_: Any, **__: Any) -> dict[Any, Any]:
        return {}

    monkeypatch.setattr("bftfs.restoration.changes.find_foreign_blocks", none)
    stage.intruder.scribble("a", "E\n")
    stage.honest.cover("a")
    assert stage.undo() == []
    assert stage.tree() != BEFORE
