"""bftfs.restoration.undo: one intruder and one honest client, who get into each other's way."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from os import O_WRONLY
from typing import Any

import pytest

from bftfs import limits
from bftfs.conversation import Pause
from bftfs.errors import FileSystemError
from bftfs.filesystem.block_pushing import BlockPusher
from bftfs.filesystem.directory import RENAME_EXCHANGE
from bftfs.filesystem.registry import MEND, RENAME, UNLINK, WRITE
from bftfs.identifiers import ObjectId
from bftfs.restoration import undo
from bftfs.restoration.changes import ChangeLog, audited
from bftfs.restoration.undo import UndoStep, carry_out, in_stages
from tests.unit.restoration.conftest import User, furnished

MANY = 2 * undo.AT_ONCE
BEFORE = {"a": "a\n", "b": "b\n", "d": "", "d/c": "c\n"}


def exchange(_: Any, intruder: Any) -> None:
    intruder.mv("a", "b", RENAME_EXCHANGE)


def turn_round(_: Any, intruder: Any) -> None:
    intruder.mv("a", "x")
    intruder.mv("b", "a")
    intruder.mv("d/c", "b")
    intruder.mv("x", "d/c")


def replace(_: Any, intruder: Any) -> None:
    intruder.mv("a", "b")
    intruder.write("a", "evil\n")


def remove_a_tree(_: Any, intruder: Any) -> None:
    intruder.rm("d/c")
    intruder.rmdir("d")


def take_out_and_remove(_: Any, intruder: Any) -> None:
    intruder.mv("d/c", "x")
    intruder.rmdir("d")


def hide_in_a_tree(_: Any, intruder: Any) -> None:
    intruder.mkdir("e")
    intruder.mkdir("e/f")
    intruder.write("e/f/g", "evil\n")
    intruder.mv("a", "e/f/a")
    intruder.mv("d", "e/d")


def put_a_directory_in_place_of_a_file(_: Any, intruder: Any) -> None:
    intruder.rm("a")
    intruder.mkdir("a")
    intruder.write("a/x", "evil\n")
    intruder.mv("b", "a/b")


def put_a_directory_in_place_of_what_it_contains(_: Any, intruder: Any) -> None:
    intruder.mkdir("x")
    intruder.mv("d", "x/d")
    intruder.mv("x", "d")


@pytest.mark.parametrize(
    "intrude",
    [
        put_a_directory_in_place_of_what_it_contains,
        exchange,
        turn_round,
        replace,
        remove_a_tree,
        take_out_and_remove,
        hide_in_a_tree,
        put_a_directory_in_place_of_a_file,
    ],
)
def test_what_nobody_else_has_touched_is_as_before(
    stage: Any, intrude: Callable[[Any, Any], None]
) -> None:
    intrude(stage.honest, stage.intruder)
    assert stage.tree() != BEFORE
    assert stage.undo() == []
    assert stage.tree() == BEFORE


def test_what_was_one_file_is_one_file_again(stage: Any) -> None:
    stage.intruder.rm("a")  # before it, so that there is something else to do, too
    stage.honest.link("b", "d/b")
    stage.intruder.rm("b")
    stage.intruder.rm("d/b")
    assert stage.undo() == []
    assert stage.tree() == {**BEFORE, "d/b": "b\n"}
    assert stage.honest.find("b") == stage.honest.find("d/b")


def test_a_link_to_what_others_write_goes(stage: Any) -> None:
    stage.intruder.link("a", "x")
    stage.honest.write("a", "new\n")
    assert stage.undo() == []
    assert stage.tree() == {**BEFORE, "a": "new\n"}


def test_a_mode_that_both_have_set_stays(stage: Any) -> None:
    for user in (stage.intruder, stage.honest):
        user.chmod("a", 0o640)
    stage.intruder.chmod("b", 0o604)
    assert stage.undo() == []
    assert (stage.mode("a"), stage.mode("b")) == (0o640, 0o600)


def test_what_is_brought_back_has_what_others_made_of_it(stage: Any) -> None:
    stage.intruder.chmod("a", 0o604)
    stage.honest.chmod("a", 0o640)
    stage.honest.write("a", "new\n")
    stage.intruder.rm("a")
    assert stage.undo() == []
    assert stage.tree() == {**BEFORE, "a": "new\n"}
    assert stage.mode("a") == 0o640


def test_others_files_go_back_with_a_moved_directory(stage: Any) -> None:
    stage.honest.mkdir("d/x")
    stage.begin()
    stage.intruder.mv("d/x", "x")
    stage.honest.mv("a", "x/a")
    stage.honest.write("x/new", "new\n")
    assert stage.undo() == []
    assert stage.tree() == {
        "b": "b\n",
        "d": "",
        "d/c": "c\n",
        "d/x": "",
        "d/x/a": "a\n",
        "d/x/new": "new\n",
    }


def test_directories_turned_inside_out_are_turned_back(stage: Any) -> None:
    stage.honest.mkdir("d/x")
    stage.honest.mkdir("d/x/y")
    before = stage.tree()
    stage.begin()
    stage.intruder.mv("d/x", "x")
    stage.intruder.mv("x/y", "y")
    stage.intruder.mv("x", "y/x")
    stage.intruder.mv("d", "y/x/d")
    assert stage.undo() == []
    assert stage.tree() == before


def test_a_directory_in_place_of_its_child_gives_way(stage: Any) -> None:
    stage.honest.mkdir("x")
    before = stage.tree()
    stage.begin()
    stage.intruder.mv("d", "x/d")
    stage.intruder.mv("x", "d")
    assert stage.undo() == []
    assert stage.tree() == before


# --- conflicts -----------------------------------------------------------------------------------


def test_what_was_moved_away_stands_beside(stage: Any) -> None:
    stage.intruder.mv("a", "x")
    stage.honest.write("a", "new\n")
    (conflict,) = stage.undo()
    assert conflict.startswith("/a: removed by K")
    assert stage.tree() == {**BEFORE, "a": "new\n", "a.before-K": "a\n"}


def test_others_moves_are_not_turned_round(stage: Any) -> None:
    stage.honest.mkdir("d/x")
    stage.begin()
    stage.intruder.mv("d/x", "x")
    stage.honest.mv("d", "x/d")
    (conflict,) = stage.undo()
    assert conflict.startswith("x/d/x: moved by K") or "/x: moved by K" in conflict
    assert stage.tree() == {"a": "a\n", "b": "b\n", "x": "", "x/d": "", "x/d/c": "c\n"}


def test_a_directory_that_was_moved_away_is_not_lost(stage: Any) -> None:
    stage.intruder.mv("d", "x")
    stage.honest.mkdir("d")
    assert len(stage.undo()) == 1
    before = {name: contents for name, contents in BEFORE.items() if not name.startswith("d")}
    assert stage.tree() == {**before, "d": "", "d.before-K": "", "d.before-K/c": "c\n"}


def test_others_work_in_the_intruders_file_stays(stage: Any) -> None:
    stage.intruder.rm("a")
    stage.intruder.write("a", "evil\n")
    stage.honest.write("a", "evil, mended\n")
    assert len(stage.undo()) == 1
    assert stage.tree() == {**BEFORE, "a": "evil, mended\n", "a.before-K": "a\n"}


def test_what_others_made_of_the_intruders_file_stays(stage: Any) -> None:
    stage.intruder.write("x", "evil\n")
    stage.honest.mv("x", "y")
    (conflict,) = stage.undo()
    assert conflict.startswith("/y: made by K")
    assert stage.tree() == {**BEFORE, "y": "evil\n"}


def test_a_directory_that_others_moved_on_stays_where_it_is(stage: Any) -> None:
    stage.intruder.mv("d", "x")
    stage.honest.mv("x", "y")
    (conflict,) = stage.undo()
    assert conflict.startswith("/d: moved by K")
    assert stage.tree() == {"a": "a\n", "b": "b\n", "y": "", "y/c": "c\n"}


def test_what_was_displaced_by_what_stays_is_beside(stage: Any) -> None:
    stage.honest.mkdir("d/x")
    stage.honest.mkdir("x")
    stage.begin()
    stage.intruder.mv("x", "d/x")
    stage.honest.write("x", "first\n")
    stage.intruder.rm("x")
    stage.honest.write("x", "second\n")
    conflicts = stage.undo()
    assert any(each.startswith("/d/x: put there by K") for each in conflicts)
    assert any(each.startswith("/x: removed by K") for each in conflicts)
    assert stage.tree() == {
        **BEFORE,
        "d/x": "",
        "d/x.before-K": "",
        "x": "second\n",
        "x.before-K": "first\n",
    }


def test_others_work_before_the_intruders_stands_beside(stage: Any) -> None:
    stage.honest.write("a", "honest\n")
    stage.intruder.write("a", "evil\n")
    stage.honest.write("a", "evil, mended\n")
    (conflict,) = stage.undo()
    assert conflict.startswith("/a: changed by K")
    assert stage.tree() == {**BEFORE, "a": "evil, mended\n", "a.before-K": "honest\n"}


def test_a_name_may_be_in_conflict_twice(stage: Any) -> None:
    stage.intruder.rm("a")
    stage.honest.write("x", "x\n")
    stage.intruder.write("x", "evil\n")
    stage.honest.write("x", "mended\n")
    stage.honest.mv("x", "a")
    assert len(stage.undo()) == 2
    assert stage.tree() == {
        **BEFORE,
        "a": "mended\n",
        "a.before-K": "a\n",
        "a.before-K-2": "x\n",
    }


def test_of_a_file_with_two_names_one_copy_is_beside(stage: Any) -> None:
    stage.honest.link("a", "d/a")
    stage.begin()
    stage.intruder.write("a", "evil\n")
    stage.honest.write("a", "evil, mended\n")
    stage.intruder.rm("a")
    assert len(stage.undo()) == 1
    mended = {"a": "evil, mended\n", "d/a": "evil, mended\n"}
    assert stage.tree() == {**BEFORE, **mended, "d/a.before-K": "a\n"}


def test_a_directory_that_the_intruder_has_filled_is_not_what_was_brought_back(stage: Any) -> None:
    stage.intruder.rm("d/c")
    stage.intruder.rmdir("d")
    stage.honest.mkdir("d")
    stage.intruder.write("d/c", "evil\n")
    assert len(stage.undo()) == 1
    others = {"a": "a\n", "b": "b\n", "d": "", "d.before-K": "", "d.before-K/c": "c\n"}
    assert stage.tree() == others


def test_a_file_that_is_put_beside_may_be_in_conflict_itself(stage: Any) -> None:
    stage.honest.mkdir("e")
    stage.honest.mkdir("e/f")
    stage.begin()
    stage.intruder.mv("a", "e/f", RENAME_EXCHANGE)
    stage.intruder.write("e/f", "evil\n")
    stage.honest.write("e/f", "mended\n")
    stage.honest.mv("e", "a/e")
    assert len(stage.undo()) == 2
    others = {name: contents for name, contents in BEFORE.items() if name != "a"}
    beside = {"a.before-K": "mended\n", "a.before-K.before-K": "a\n"}
    assert stage.tree() == {**others, "a": "", "a/e": "", **beside}


def test_what_stands_beside_already_stays(stage: Any) -> None:
    stage.honest.write("a.before-K", "of an earlier undo\n")
    stage.begin()
    stage.intruder.rm("a")
    stage.honest.write("a", "new\n")
    assert len(stage.undo()) == 1
    assert stage.tree() == {
        **BEFORE,
        "a": "new\n",
        "a.before-K": "of an earlier undo\n",
        "a.before-K-2": "a\n",
    }


def test_what_goes_away_again_is_not_what_was_brought_back(stage: Any) -> None:
    stage.honest.write("x", "a\n")
    stage.begin()
    stage.intruder.rm("a")
    stage.honest.write("a", "new\n")
    stage.honest.rm("a")
    stage.intruder.mv("x", "a")  # with the same contents
    assert len(stage.undo()) == 1
    others = {name: contents for name, contents in BEFORE.items() if name != "a"}
    assert stage.tree() == {**others, "a.before-K": "a\n", "x": "a\n"}


def test_others_work_in_a_tree_of_the_intruder_keeps_it(stage: Any) -> None:
    stage.intruder.mkdir("e")
    stage.intruder.write("e/x", "evil\n")
    stage.honest.write("e/y", "mine\n")
    (conflict,) = stage.undo()
    assert conflict.startswith("/e: made by K")
    assert stage.tree() == {**BEFORE, "e": "", "e/y": "mine\n"}


def test_a_step_whose_premise_has_changed_is_refused(stage: Any) -> None:
    stage.intruder.mkdir("e")
    (step,) = (step for step in stage.steps() if step.what.startswith("remove"))
    stage.honest.write("e/y", "mine\n")
    assert step.perform is not None
    with pytest.raises(FileSystemError) as refused:
        stage.honest.run(step.perform())
    assert refused.value.code == errno.ENOTEMPTY


# --- what random histories have found ------------------------------------------------------------


def test_a_file_that_others_have_only_read_is_removed(stage: Any) -> None:
    stage.intruder.write("x", "evil\n")
    stage.honest.touch("x")
    assert audited(stage.log())[1] == [], "who has read it has built nothing on it"
    assert stage.undo() == []
    assert stage.tree() == BEFORE


def test_a_name_of_full_length_has_a_name_beside_it(stage: Any) -> None:
    name = "n" * limits.NAME_BYTES
    stage.honest.write(name, "n\n")
    stage.begin()
    stage.intruder.rm(name)
    stage.honest.write(name, "new\n")
    assert len(stage.undo()) == 1
    beside = name[: -len(".before-K")] + ".before-K"
    assert stage.tree() == {**BEFORE, name: "new\n", beside: "n\n"}


def test_a_file_that_was_taken_from_two_names_is_beside_both(stage: Any) -> None:
    stage.honest.link("a", "x")
    stage.begin()
    for name in ("a", "x"):
        stage.intruder.rm(name)
        stage.honest.write(name, "new\n")
    assert len(stage.undo()) == 2
    kept = {"a.before-K": "a\n", "x.before-K": "a\n"}
    assert stage.tree() == {**BEFORE, "a": "new\n", "x": "new\n", **kept}
    assert stage.honest.find("a.before-K") == stage.honest.find("x.before-K")


def test_what_is_put_aside_takes_no_place_from_a_conflict(stage: Any) -> None:
    stage.honest.link("a", "x")
    stage.begin()
    stage.intruder.write("a", "evil\n")
    stage.honest.write("a", "evil, mended\n")
    stage.intruder.rm("a")
    stage.intruder.mkdir("a")
    stage.intruder.mv("x", "a/x")
    assert len(stage.undo()) == 1
    mended = {"a": "evil, mended\n", "x": "evil, mended\n"}
    assert stage.tree() == {**BEFORE, **mended, "a.before-K": "a\n"}


def test_a_link_in_what_gives_way_to_its_own_directory(stage: Any) -> None:
    stage.intruder.link("d/c", "x")
    stage.intruder.rm("d/c")
    stage.intruder.rmdir("d")
    stage.intruder.rm("a")
    stage.intruder.mkdir("a")
    stage.intruder.mv("x", "a/x")
    assert stage.undo() == []
    assert stage.tree() == BEFORE


def test_a_directory_in_one_that_is_put_beside_has_one_place(stage: Any) -> None:
    stage.honest.mkdir("d/x")
    stage.begin()
    stage.intruder.mv("d/x", "x")
    stage.intruder.mv("d", "y")
    stage.honest.mkdir("d")
    stage.honest.mkdir("z")
    stage.honest.mv("x", "z/x")
    assert len(stage.undo()) == 2
    others = {"a": "a\n", "b": "b\n", "d": "", "d.before-K": "", "d.before-K/c": "c\n"}
    assert stage.tree() == {**others, "z": "", "z/x": ""}


# --- names of which nothing was left -------------------------------------------------------------


@pytest.mark.parametrize("lost", ["a", "d/c", "d"])
def test_what_was_mended_stays_mended(stage: Any, lost: str) -> None:
    """The intruder has removed a name whose object nodes have lost: there is nothing to bring back.

    All else that he did is taken back.
    """
    stage.lose(lost)
    stage.intruder.mend(lost)
    stage.intruder.rm("b")
    stage.intruder.write("e", "evil\n")
    audit, _ = audited(stage.log())
    assert audit[0][1].operation.method == MEND
    assert stage.undo() == []
    assert stage.tree() == {
        path: what for path, what in BEFORE.items() if not path.startswith(lost)
    }


@pytest.mark.parametrize("directory", ["", "d/"])
def test_what_takes_a_mended_name_is_taken_back(stage: Any, directory: str) -> None:
    name = f"{directory}{'c' if directory else 'a'}"
    stage.lose(name)
    stage.intruder.mend(name)
    stage.intruder.write(name, "evil\n")
    assert stage.undo() == []
    assert stage.tree() == {path: what for path, what in BEFORE.items() if path != name}


def test_a_directory_comes_back_without_what_was_mended_in_it(stage: Any) -> None:
    stage.honest.write("d/e", "e\n")
    stage.lose("d/c")
    stage.intruder.mend("d/c")
    stage.intruder.rm("d/e")
    stage.intruder.rmdir("d")
    assert stage.undo() == []
    assert stage.tree() == {"a": "a\n", "b": "b\n", "d": "", "d/e": "e\n"}


def test_what_somebody_else_has_mended_is_in_nobodys_way(stage: Any) -> None:
    stage.lose("d/c")
    User(stage, "somebody else").mend("d/c")
    stage.intruder.rmdir("d")
    stage.intruder.rm("a")
    assert stage.undo() == []
    assert stage.tree() == {"a": "a\n", "b": "b\n", "d": ""}


def test_must_fail_an_undo_that_takes_back_what_was_mended(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChangeLog, "takes_name", ChangeLog.by_client)
    with pytest.raises(FileSystemError) as stale:
        test_what_was_mended_stays_mended(stage, "a")
    assert stale.value.code == errno.ESTALE


def paths_audited(stage: Any, path: str) -> set[str]:
    log: ChangeLog = stage.log(path=path)
    own, built_on = audited(log)
    return {log.path_of(identifier) for identifier, _ in (*own, *built_on)} | {
        log.path_of(identifier) for identifier in log.uncovered
    }


def spoil_siblings(stage: Any) -> None:
    """The intruder works in `x`, and beside it; others build on both."""
    stage.intruder.write("x/evil", "evil\n")
    stage.intruder.write("a", "evil\n")
    stage.intruder.write("d/evil", "evil\n")
    stage.intruder.scribble("b", "evil\n")
    stage.intruder.rm("d/c")
    stage.intruder.chmod("d", 0o777)
    stage.honest.write("d/good", "good\n")


SPOILT = {"a": "evil\n", "b": "b\n", "d": "", "d/evil": "evil\n", "d/good": "good\n", "x": ""}


def test_beside_a_directory_that_was_made_since_nothing_is_taken_back(stage: Any) -> None:
    stage.honest.mkdir("x")
    spoil_siblings(stage)
    assert paths_audited(stage, "x") == {"x/evil"}
    assert stage.undo("x") == []
    assert stage.tree() == SPOILT
    assert paths_audited(stage, "") >= {"/a", "/d", "/b", "/d/evil"}


def test_beside_a_directory_that_was_moved_since_nothing_is_taken_back(stage: Any) -> None:
    stage.honest.mkdir("y")
    stage.honest.write("y/kept", "kept\n")
    stage.begin()
    stage.honest.mkdir("d/z")
    stage.honest.mv("y", "d/z/y")
    stage.intruder.rm("d/c")
    stage.intruder.mv("d/z/y", "x")
    spoil = stage.intruder
    spoil.write("a", "evil\n")
    spoil.rm("x/kept")
    paths = paths_audited(stage, "x")
    assert "x/kept" in paths
    assert not {path for path in paths if path.endswith(("a", "c", "z"))}
    assert stage.undo("x") == []
    tree = stage.tree()
    assert (tree["a"], tree["x/kept"]) == ("evil\n", "kept\n")
    assert "d/c" not in tree


def test_the_directory_itself_is_no_conflict_if_the_client_made_it(stage: Any) -> None:
    stage.intruder.mkdir("x")
    stage.intruder.write("x/evil", "evil\n")
    assert stage.undo("x") == []
    assert stage.tree() == {**BEFORE, "x": ""}


def test_must_fail_where_others_named_what_the_client_made(stage: Any) -> None:
    """Below the directory, what others gave a name stays, and is reported."""
    stage.intruder.mkdir("x")
    stage.intruder.write("x/evil", "evil\n")
    stage.honest.mv("x/evil", "x/good")
    assert any("x/good" in conflict for conflict in stage.undo("x"))
    assert stage.tree() == {**BEFORE, "x": "", "x/good": "evil\n"}


def test_what_was_moved_out_is_still_accounted_for(stage: Any) -> None:
    """Also if the directory to which it was moved has changes of its own."""
    stage.intruder.write("a", "evil\n")
    stage.intruder.mv("d/c", "c")
    stage.intruder.write("c", "evil\n")
    stage.intruder.write("new", "evil\n")
    log: ChangeLog = stage.log(path="d")
    own, _ = audited(log)
    assert [change.operation.method for _, change in own].count(RENAME) == 1
    assert "a" not in {log.path_of(identifier) for identifier, _ in own}
    assert stage.undo("d") == []
    assert {name: text for name, text in stage.tree().items() if text} == {
        "a": "evil\n",
        "b": "b\n",
        "c": "c\n",
        "d/c": "c\n",
        "new": "evil\n",
    }


# --- several steps at the same time ------------------------------------------------------------


def step(what: str, changes: str | None = "", within: str = "") -> UndoStep:
    """A step that changes some objects, of one letter each."""

    def objects(letters: str) -> frozenset[ObjectId]:
        return frozenset(ObjectId(letter.encode()) for letter in letters)

    return UndoStep(
        what, changes=None if changes is None else objects(changes), within=objects(within)
    )


@pytest.mark.parametrize(
    ("steps", "stages"),
    [
        ([step("1", "a", "d"), step("2", "b", "d"), step("3", "c")], ["123"]),
        ([step("1", "a"), step("2", "a")], ["1", "2"]),
        ([step("1", "a", "d"), step("2", "d")], ["1", "2"]),
        ([step("1", "d"), step("2", "a", "d")], ["1", "2"]),
        ([step("1", "a"), step("2", None), step("3", "b"), step("4", "c")], ["1", "2", "34"]),
        ([step("1", None), step("2", None)], ["1", "2"]),
        ([], []),
    ],
)
def test_steps_that_concern_the_same_things_follow_each_other(
    steps: list[UndoStep], stages: list[str]
) -> None:
    assert ["".join(each.what for each in stage) for stage in in_stages(steps)] == stages


def spoil_many(stage: Any) -> None:
    """The intruder writes to files, changes their modes, and removes some."""
    for number in range(MANY):
        stage.honest.write(f"d/{number}", f"{number}\n")
    stage.begin()
    for number in range(MANY):
        if number % 4 == 0:
            stage.intruder.rm(f"d/{number}")
        else:
            stage.intruder.write(f"d/{number}", "evil\n")
            stage.intruder.chmod(f"d/{number}", 0o777)


def test_several_things_are_taken_back_at_the_same_time(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def duration_us() -> int:
        before = stage.tree()
        spoil_many(stage)
        begun_us = stage.now_us
        assert not stage.undo()
        took_us: int = stage.now_us - begun_us
        contents = {f"d/{number}": f"{number}\n" for number in range(MANY)}
        assert stage.tree() == {**before, **contents}
        return took_us

    at_once_us = duration_us()
    monkeypatch.setattr(undo, "AT_ONCE", 1)
    assert duration_us() > 2 * at_once_us


def test_an_interrupted_undo_goes_on(stage: Any) -> None:
    spoil_many(stage)
    done: list[UndoStep] = []

    def told(each: UndoStep, _: Exception | None) -> None:
        done.append(each)
        if len(done) == 10:
            raise KeyboardInterrupt

    steps = stage.steps()
    with pytest.raises(KeyboardInterrupt):
        stage.honest.run(carry_out(steps, told))
    left = stage.steps()
    assert 0 < len(left) <= len(steps) - len(done)
    assert not stage.undo()
    assert all(stage.contents(f"d/{each}") == f"{each}\n" for each in range(MANY))


def write_much(_: Any, intruder: Any) -> None:
    intruder.write("a", "evil\n" * 5)


def append(_: Any, intruder: Any) -> None:
    intruder.put("a", "\0evil", 2)  # behind all that is there, and no text


def write_little(_: Any, intruder: Any) -> None:
    intruder.write("a", "e")


def empty(_: Any, intruder: Any) -> None:
    intruder.write("a", "")


def remove(_: Any, intruder: Any) -> None:
    intruder.rm("a")


def remove_a_deep_tree(_: Any, intruder: Any) -> None:
    intruder.rm("d/e/f")
    intruder.rmdir("d/e")
    intruder.rm("d/c")
    intruder.rmdir("d")


def wrong_after_kills(intrude: Callable[[Any, Any], None], *, each_us: int) -> dict[int, Any]:
    """By the moments at which an undo was killed: what a second one leaves, if it is wrong.

    What was made aside may be found there; nothing else may tell of the first.
    """
    wrong = {}
    is_over = False
    killed_us = 0
    while not is_over:
        stage = furnished()
        stage.honest.mkdir("d/e")
        stage.honest.write("d/e/f", "f\n")
        before = stage.tree()
        stage.begin()
        intrude(stage.honest, stage.intruder)
        outcome = stage.honest.start(carry_out(stage.steps(), lambda *_: None))
        stage.run_for(killed_us)
        is_over = outcome.done
        stage.kill_honest()
        conflicts = stage.undo()
        after = stage.tree()
        left = {path: text for path, text in after.items() if ".aside-K" not in path}
        if conflicts or left != before:
            wrong[killed_us] = conflicts, left
        killed_us += each_us
    return wrong


@pytest.mark.parametrize(
    ("intrude", "each_us"),
    [
        (write_much, 500),
        (append, 500),
        (write_little, 500),
        (empty, 500),
        (remove, 1_500),
        (remove_a_deep_tree, 4_000),
    ],
)
def test_an_undo_that_was_killed_goes_on(intrude: Callable[[Any, Any], None], each_us: int) -> None:
    assert wrong_after_kills(intrude, each_us=each_us) == {}


def test_must_fail_an_undo_that_empties_files_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite = undo.CarryingOut.rewrite

    async def empties(self: Any, identifier: ObjectId, contents: bytes) -> None:
        await self._view.files.truncate(identifier, 0, self._view.who)
        await rewrite(self, identifier, contents)

    monkeypatch.setattr(undo.CarryingOut, "rewrite", empties)
    assert any(left["a"] == "" for _, left in wrong_after_kills(write_much, each_us=500).values())


def test_must_fail_an_undo_that_writes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the client has appended to, it would make all that is there its own in between."""

    async def rewrite(self: Any, identifier: ObjectId, contents: bytes) -> None:
        files, who = self._view.files, self._view.who
        await self._fill(await files.open(identifier, O_WRONLY, who), contents)
        await files.truncate(identifier, len(contents), who)

    monkeypatch.setattr(undo.CarryingOut, "rewrite", rewrite)
    assert any("a" in str(found) for found, _ in wrong_after_kills(append, each_us=500).values())


@pytest.mark.parametrize(("intrude", "path"), [(remove, "a"), (remove_a_deep_tree, "d/e/f")])
def test_must_fail_an_undo_that_makes_things_where_they_stand(
    intrude: Callable[[Any, Any], None], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stands(*_: Any) -> None:
        """Nothing is moved."""

    monkeypatch.setattr(undo.SpareNames, "take_aside", lambda _, name: name)
    monkeypatch.setattr(undo.CarryingOut, "_give_name", stands)
    wrong = wrong_after_kills(intrude, each_us=1_500)
    assert any(left.get(path, "") == "" for _, left in wrong.values())


def test_an_undo_tells_of_its_steps_in_their_order(stage: Any) -> None:
    """Though some take longer, and are done at the same time as others."""

    async def wait(pause_us: int) -> None:
        await Pause(pause_us)
        if pause_us == 200:
            raise FileSystemError(errno.EACCES)

    steps = [
        UndoStep(f"{pause_us}", perform=partial(wait, pause_us)) for pause_us in (300, 100, 200, 50)
    ]
    heard: list[tuple[str, bool]] = []
    telling = carry_out(steps, lambda each, failure: heard.append((each.what, failure is None)))
    stage.honest.run(telling)
    assert heard == [("300", True), ("100", True), ("200", False), ("50", True)]


LINES = [f"line {number}\n" for number in range(1_000)]  # of three blocks


def lost_by_moments(
    intrude: Callable[[Any], None], change: Callable[[Any], None], mark: str, *, each_us: int
) -> dict[int, Any]:
    """By the moments of an undo at which somebody else changes the file: what is wrong then.

    Their line is to be there after it and after a second one, or in what is put beside a conflict.
    """
    wrong = {}
    is_over = False
    moment_us = 0
    while not is_over:
        stage = furnished()
        other = User(stage, "other")
        stage.honest.write("a", "".join(LINES))
        stage.begin()
        intrude(stage.intruder)
        outcome = stage.honest.start(carry_out(stage.steps(), lambda *_: None))
        stage.run_for(moment_us)
        is_over = outcome.done
        change(other)
        stage.run_for(10_000_000)
        assert outcome.done
        left = [stage.contents("a")]
        conflicts = stage.undo()
        left.append(stage.contents("a"))
        if conflicts or not all(mark in each for each in left) or "evil" in left[-1]:
            wrong[moment_us] = conflicts, left
        moment_us += each_us
    return wrong


def spoil_a_line(intruder: Any) -> None:
    intruder.put("a", "evil", len("".join(LINES[:10])))


def spoil_the_end(intruder: Any) -> None:
    intruder.put("a", "evil\n" * 2_000, len("".join(LINES[:900])))


def spoil_all(intruder: Any) -> None:
    intruder.write("a", "evil\n")


def change_a_line(other: Any) -> None:
    other.put("a", "LINE", len("".join(LINES[:800])))


def change_the_first_line(other: Any) -> None:
    other.put("a", "LINE", 0)


@pytest.mark.parametrize(
    ("intrude", "change"),
    [
        (spoil_a_line, change_a_line),
        (spoil_a_line, change_the_first_line),
        (spoil_the_end, change_a_line),
        (spoil_the_end, change_the_first_line),
    ],
)
def test_what_others_write_during_an_undo_is_kept(
    intrude: Callable[[Any], None], change: Callable[[Any], None]
) -> None:
    assert lost_by_moments(intrude, change, "LINE", each_us=1_000) == {}


def test_must_fail_an_undo_that_takes_what_it_has_read_for_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bftfs.filesystem.operations.FileSystem.bind", lambda *_: None)
    assert lost_by_moments(spoil_a_line, change_a_line, "LINE", each_us=1_000)


def test_must_fail_whole_blocks_that_replace_any_version(monkeypatch: pytest.MonkeyPatch) -> None:
    push = BlockPusher._push_blocks

    async def unbound(self: Any, contents: Any, *rest: Any) -> None:
        version, contents.on_version = contents.on_version, None
        try:
            await push(self, contents, *rest)
        finally:
            contents.on_version = version

    monkeypatch.setattr(BlockPusher, "_push_blocks", unbound)
    assert lost_by_moments(spoil_a_line, change_a_line, "LINE", each_us=200)


def silently_removed(*, each_us: int) -> list[int]:
    """The moments of an undo at which somebody writes to what it removes, and nobody is told."""
    silent = []
    is_over = False
    moment_us = -each_us  # after the comparison, and before anything is done
    while not is_over:
        stage = furnished()
        other = User(stage, "other")
        stage.begin()
        stage.intruder.write("new", "evil\n")
        identifier = other.find("new")
        failures: list[Exception] = []

        def told(
            _: UndoStep, failure: Exception | None, *, heard: list[Exception] = failures
        ) -> None:
            if failure is not None:
                heard.append(failure)

        steps = stage.steps()
        if moment_us < 0:
            other.put("new", "LINE\n", 5)
        outcome = stage.honest.start(carry_out(steps, told))
        stage.run_for(max(0, moment_us))
        is_over = outcome.done
        with suppress(FileSystemError):  # it is gone already
            other.put("new", "LINE\n", 5)
        stage.run_for(10_000_000)
        assert outcome.done
        # What is written through a handle to a file that was removed is none of its business.
        changes = stage.honest.run(stage.view().changes(identifier))
        methods = [each.operation.method for each in reversed(changes)]
        removed = methods.index(UNLINK) if UNLINK in methods else 0
        if methods[:removed].count(WRITE) > 1 and not failures:
            silent.append(moment_us)
        moment_us += each_us
    return silent


def test_nothing_is_removed_silently_to_which_others_write_meanwhile() -> None:
    assert silently_removed(each_us=500) == []


def test_must_fail_an_undo_that_does_not_look_at_what_it_removes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(undo.CarryingOut, "_is_newer", lambda *_: False)
    assert silently_removed(each_us=500)
