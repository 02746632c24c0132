"""An intruder writes blocks and covers none of them, or covers what he has not written."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from bftfs.crypto.digest import Digest
from bftfs.errors import AdmissionRefused, FileSystemError
from bftfs.filesystem.block_names import CoveredBlock
from bftfs.filesystem.block_reading import BlockReader
from bftfs.restoration.changes import unreadable
from bftfs.simulation.deployment import CREDENTIALS
from tests.unit.filesystem.test_contents import latest_version
from tests.unit.restoration.conftest import BLOCK

BEFORE = {"a": "a\n", "b": "b\n", "d": "", "d/c": "c\n"}


def test_nobody_covers_what_another_has_written(stage: Any) -> None:
    evil = stage.intruder.scribble("a", "E\n")
    assert stage.tree() == BEFORE
    stage.honest.cover("a")
    assert stage.tree() == BEFORE
    with pytest.raises(AdmissionRefused):  # no node hosts it as the honest user's
        stage.honest.cover("b", evil, is_written=False)
    assert stage.steps() == []
    assert stage.tree() == BEFORE


def test_a_backdated_block_does_not_show(stage: Any) -> None:
    stage.honest.put("a", "b\n", 0)
    identifier = stage.honest.find("a")
    found = stage.honest.run(stage.honest.files.attributes(identifier, CREDENTIALS))
    block = found.layout.block(identifier, 0)
    blocks = stage.intruder.blocks
    stage.intruder.run(blocks._encode_and_write(block, b"E\n", found.contents, 0, CREDENTIALS))
    assert stage.tree() == {**BEFORE, "a": "b\n"}
    assert stage.honest.run(stage.view().contents(identifier, found.contents)) == b"b\n"


def test_growth_shows_no_block_that_was_left_behind_the_end(stage: Any) -> None:
    stage.intruder.scribble("a", "evil\n", number=1)
    stage.honest.put("a", "honest\n", 2 * BLOCK)
    assert stage.contents("a") == "a\n" + "\0" * (2 * BLOCK - 2) + "honest\n"


def test_what_others_write_has_nothing_of_it(stage: Any) -> None:
    stage.honest.put("a", "line\n" * 1000, 0)
    stage.intruder.scribble("a", "EVIL\n" + "line\n" * 818 + "l")
    stage.honest.put("a", "last\n", 5000)
    stage.honest.put("a", "LINE\n", 5)
    assert stage.contents("a") == "line\nLINE\n" + "line\n" * 998 + "last\n"


def test_an_audit_tells_it(stage: Any) -> None:
    for path, number in (("a", 0), ("a", 1), ("b", 0)):
        stage.intruder.scribble(path, "E\n", number=number)
    stage.intruder.cover("b", stage.intruder.scribble("b", "E\n"))
    log = stage.log()
    told = {log.path_of(identifier): len(blocks) for identifier, blocks in log.uncovered.items()}
    assert told == {"/a": 2, "/b": 1}
    assert [log.path_of(each) for each in log.touched()] == ["/b"]


def test_what_is_covered_is_no_part_of_it(stage: Any) -> None:
    for user in (stage.intruder, stage.honest, stage.intruder):
        user.write("a", f"{user.host.client.hex()}\n")
        stage.intruder.run(stage.intruder.files.truncate(stage.intruder.find("a"), 3, CREDENTIALS))
    assert stage.log().uncovered == {}


def test_an_audit_marks_what_cannot_be_read(stage: Any) -> None:
    stage.intruder.put("a", "A" * 2 * BLOCK, 0)
    poison = stage.intruder.poison("b", number=1)
    stage.intruder.cover("b", stage.intruder.scribble("b", "E\n"), poison, end=2 * BLOCK)
    log, view = stage.log(), stage.view()
    marked = stage.honest.run(unreadable(log, view))
    (change,) = log.changes[stage.honest.find("b")]
    assert marked == {change.timestamp: 1}


@pytest.mark.parametrize("number", [0, 1])
def test_a_block_that_was_covered_and_cannot_be_read_is_taken_back(stage: Any, number: int) -> None:
    """Nobody can read it: it is as if he had overwritten it."""
    stage.honest.put("a", "o" * 2 * BLOCK, 0)
    before = stage.contents("a")
    stage.begin()
    never = CoveredBlock(number, stage.now_us, Digest(bytes(32)))
    with pytest.raises(AdmissionRefused):
        stage.intruder.cover("a", never, end=2 * BLOCK, is_written=False)
    assert stage.contents("a") == before
    stage.intruder.cover("a", stage.intruder.poison("a", number=number), end=2 * BLOCK)
    with pytest.raises(FileSystemError) as failure:
        stage.contents("a")
    assert failure.value.code == errno.EIO
    assert stage.undo() == []
    assert stage.contents("a") == before


def test_must_fail_where_readers_are_shown_the_latest_version(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockReader, "_shown", latest_version)
    stage.intruder.scribble("a", "E\n")
    assert stage.tree() != BEFORE
