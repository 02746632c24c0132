"""bftfs.restoration.restore: a tree is made what it was, and nothing is touched that is right."""

from __future__ import annotations

from typing import Any

import pytest

from bftfs.filesystem.operations import FoundObject
from bftfs.restoration import restore
from bftfs.restoration.restore import Counts, InTheWay, Restoring
from bftfs.simulation.workloads.undo import FilesTarget

MANY = 2 * restore.AT_ONCE
BEFORE = {"a": "a\n", "b": "b\n", "d": "", "d/c": "c\n"}


def restored(stage: Any, time_us: int, *, delete: bool = True, replaces: bool = True) -> Counts:
    view, run = stage.view(), stage.honest.run
    root = view.files.root
    top = FoundObject(root, run(view.at(time_us).attributes(root, view.who)))
    restoring = Restoring(view, FilesTarget(view.files), time_us, replaces=replaces)
    run(restoring.restore(top, delete=delete))
    return restoring.counts


def test_what_was_is_brought_back_once(stage: Any) -> None:
    then_us, honest = stage.now_us - 1, stage.honest
    honest.chmod("a", 0o640)
    honest.write("b", "other\n")
    honest.rm("d/c")
    honest.mkdir("d/c")
    honest.write("new", "new\n")
    kept_us = stage.now_us - 1
    counts = restored(stage, then_us)
    assert str(counts) == "1 made, 1 rewritten, 4 with other attributes, 2 removed"
    assert stage.tree() == BEFORE
    assert stage.mode("a") == 0o600
    assert not restored(stage, then_us)
    assert restored(stage, kept_us)  # a restore is undone like anything else
    assert stage.tree() == {**BEFORE, "b": "other\n", "d/c": "", "new": "new\n"}


def test_what_came_later_stays_unless_it_is_asked_for(stage: Any) -> None:
    then_us = stage.now_us - 1
    stage.honest.write("new", "new\n")
    stage.honest.rm("a")
    restored(stage, then_us, delete=False)
    assert stage.tree() == {**BEFORE, "new": "new\n"}


@pytest.mark.parametrize("is_linked", [False, True])
def test_what_is_in_the_way_stays_unless_it_may_be_replaced(stage: Any, is_linked: bool) -> None:
    honest = stage.honest
    if is_linked:  # the second name of a file
        honest.rm("b")
        honest.link("a", "b")
    then_us = stage.now_us - 1
    honest.rm("b")
    honest.mkdir("b")
    honest.write("b/precious", "precious\n")
    with pytest.raises(InTheWay, match="b"):
        restored(stage, then_us, delete=False, replaces=False)
    assert stage.tree()["b/precious"] == "precious\n"
    honest.rm("d/c")
    honest.rmdir("d")
    honest.write("d", "precious\n")
    with pytest.raises(InTheWay, match="d"):
        restored(stage, then_us, delete=False, replaces=False)
    assert stage.tree()["d"] == "precious\n"
    assert restored(stage, then_us, delete=False)
    assert stage.tree()["d/c"] == "c\n"


def test_two_files_that_are_one_by_now_are_two_again(stage: Any) -> None:
    then_us, honest = stage.now_us - 1, stage.honest
    honest.rm("b")
    honest.link("a", "b")
    assert restored(stage, then_us)
    assert stage.tree() == BEFORE
    assert honest.find("a") != honest.find("b")


def test_one_file_that_is_two_by_now_is_one_again(stage: Any) -> None:
    honest = stage.honest
    honest.link("a", "d/a")
    then_us = stage.now_us - 1
    honest.rm("a")
    honest.write("a", "other\n")
    assert restored(stage, then_us)
    assert stage.tree() == {**BEFORE, "d/a": "a\n"}
    assert honest.find("a") == honest.find("d/a")


def test_several_objects_are_restored_at_the_same_time(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = stage.honest
    for number in range(MANY):
        honest.write(f"d/{number}", f"{number}\n")
    then_us, before = stage.now_us - 1, stage.tree()

    def duration_us() -> int:
        for name in ("c", *range(MANY)):
            honest.rm(f"d/{name}")
        begun_us = stage.now_us
        restored(stage, then_us)
        took_us: int = stage.now_us - begun_us
        assert stage.tree() == before
        return took_us

    at_once_us = duration_us()
    monkeypatch.setattr(restore, "AT_ONCE", 1)
    assert duration_us() > 2 * at_once_us


def test_what_is_back_already_is_not_written_again(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    then_us, honest = stage.now_us - 1, stage.honest
    for name in ("a", "b", "d/c"):
        honest.rm(name)
    write, written = FilesTarget.write, []

    async def interrupted(target: FilesTarget, path: str, *rest: Any, **more: Any) -> None:
        if path == "b":
            raise KeyboardInterrupt
        await write(target, path, *rest, **more)
        written.append(path)

    monkeypatch.setattr(FilesTarget, "write", interrupted)
    monkeypatch.setattr(restore, "AT_ONCE", 1)
    with pytest.raises(KeyboardInterrupt):
        restored(stage, then_us)
    assert written == ["a"]
    monkeypatch.setattr(FilesTarget, "write", write)
    assert restored(stage, then_us)["made"] == 2
    assert stage.tree() == BEFORE
