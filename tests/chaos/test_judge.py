"""Must-fail: whatever is planted in a recorded history is found, and what may be is not."""

from __future__ import annotations

import json
from collections.abc import Collection
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.history import Event, Recorder, read_history
from tests.chaos.judge import judge, judge_tree
from tests.chaos.machines import Ending
from tests.chaos.run import Report, Run

ENOENT, EEXIST = {"error": "ENOENT"}, {"error": "EEXIST"}


def at(
    invoked: float,
    name: str,
    *arguments: str,
    answer: Any = None,
    strict: bool = True,
    subject: str = "cell-1",
    length: float = 0.5,
    worker: str = "w",
) -> Event:
    return Event(worker, strict, subject, name, arguments, answer, invoked, invoked + length)


def block(invoked: float, name: str, *arguments: str, **more: Any) -> Event:
    return at(invoked, name, *arguments, subject="file-0/0", **more)


def test_a_correct_history_is_judged_correct() -> None:
    history = [
        at(0, "create", "a", "1"),
        at(1, "create", "a", "2", answer=EEXIST),
        at(2, "mkdir", "b"),
        at(3, "list", answer=["a", "b"]),
        at(4, "rename", "a", "c"),
        at(5, "identify", "c", answer="1"),
        at(6, "identify", "a", answer=ENOENT),
        at(7, "identify", "b", answer={"error": "EINVAL"}),
        at(8, "exchange", "b", "c"),
        at(9, "identify", "b", answer="1"),
        at(10, "rename-new", "b", "c", answer=EEXIST),
        at(11, "rmdir", "c"),
        at(12, "unlink", "b"),
        at(13, "list", answer=[]),
        block(14, "write", "x"),
        block(15, "read", answer="x"),
        block(16, "stat", answer=262144),
    ]
    assert judge(history, killed=()) == []


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([at(0, "create", "a", "1"), at(1, "create", "a", "2")], id="one name twice"),
        pytest.param(
            [at(0, "create", "a", "1"), at(1, "identify", "a", answer=ENOENT)], id="lost a name"
        ),
        pytest.param(
            [at(0, "create", "a", "1"), at(1, "unlink", "a"), at(2, "identify", "a", answer="1")],
            id="a name came back",
        ),
        pytest.param(
            [at(0, "create", "a", "1"), at(1, "rename", "a", "b"), at(2, "list", answer=["a"])],
            id="a rename that was forgotten",
        ),
        pytest.param(
            [at(0, "mkdir", "a"), at(1, "rename", "a", "b"), at(2, "list", answer=["a", "b"])],
            id="half of a rename",
        ),
        pytest.param(
            [at(0, "create", "a", "1"), at(1, "identify", "a", answer="2")], id="another file"
        ),
        pytest.param([at(0, "create", "a", "1", answer=EEXIST)], id="refused without a reason"),
        pytest.param(
            [
                at(0, "create", "a", "1"),
                at(1, "create", "b", "2"),
                at(2, "exchange", "a", "b"),
                at(3, "identify", "a", answer="2"),
                at(4, "identify", "b", answer="2"),
            ],
            id="half of an exchange",
        ),
        pytest.param(
            [at(0, "mkdir", "a"), at(1, "rename-new", "b", "a")], id="renamed what is not there"
        ),
        pytest.param(
            [at(0, "mkdir", "a", strict=False), at(1, "mkdir", "a", strict=False)],
            id="two directories of one name, in mounts with caches",
        ),
        pytest.param([at(0, "mkdir", "a", answer={"error": "EIO"})], id="an error"),
        pytest.param([block(0, "write", "x", answer={"error": "ENOSPC"})], id="a full disk shows"),
        pytest.param([block(0, "write", "x"), block(1, "read")], id="a lost write"),
        pytest.param(
            [block(0, "write", "x", strict=False), block(1, "read", strict=False)],
            id="a lost write, in mounts with caches",
        ),
        pytest.param([block(0, "read", answer="torn: …")], id="a torn block"),
        pytest.param(
            [
                block(0, "write", "x"),
                block(1, "write", "y", length=9),
                block(2, "read", answer="y"),
                block(3, "read", answer="x"),
            ],
            id="back and forth",
        ),
        pytest.param([block(0, "stat", answer=0)], id="a lost size"),
    ],
)  # fmt: skip
def test_a_planted_violation_is_found(history: list[Event]) -> None:
    assert judge(history, killed=())


def test_a_kernel_may_find_one_file_behind_both_names() -> None:
    """It looked `a` up before the exchange and `b` after it: nothing to do, it thought."""
    history = [
        at(0, "mkdir", "a"),
        at(1, "create", "b", "1"),
        at(2, "exchange", "a", "b", length=2),
        at(2.1, "rename", "a", "b", length=2),
        at(5, "list", answer=["a", "b"]),
    ]
    assert judge(history, killed=()) == []


def test_back_and_forth_is_allowed_where_contents_are_cached() -> None:
    history = [
        block(0, "write", "x"),
        block(1, "write", "y", length=9),
        block(2, "read", answer="y", strict=False),
        block(3, "read", answer="x", strict=False),
    ]
    assert judge(history, killed=()) == []


def test_what_a_killed_mount_answers_may_have_taken_place_or_not() -> None:
    dead = {"error": "ENOTCONN"}
    history = [at(0, "mkdir", "a", answer=dead, worker="victim"), at(1, "rmdir", "a")]
    assert judge(history, killed={"victim"}) == []
    assert judge([history[0], at(1, "rmdir", "a", answer=ENOENT)], killed={"victim"}) == []
    assert judge(history, killed=())


def test_a_journal_gives_what_was_recorded(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "journal", "w", strict=True)

    def refuse() -> None:
        raise FileExistsError(17, "there")

    recorder.record("cell-1", "list", (), lambda: ["a"])
    with pytest.raises(FileExistsError):
        recorder.record("cell-1", "mkdir", ("a",), refuse)
    with pytest.raises(KeyboardInterrupt):
        recorder.record("file-0/0", "write", ("w:1",), _interrupt)
    listing, refused, interrupted = read_history(tmp_path / "journal")
    assert (listing.name, listing.answer, listing.failed) == ("list", ["a"], None)
    assert (refused.failed, refused.arguments) == ("EEXIST", ("a",))
    assert listing.invoked <= listing.responded <= refused.invoked <= refused.responded
    assert (interrupted.answer, interrupted.responded) == (None, inf)
    lines = (tmp_path / "journal").read_text().splitlines()
    assert all(json.loads(line) for line in lines)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_tree_with_a_name_that_cannot_be_seen_is_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d" / "e").mkdir(parents=True)
    (root / "f").write_bytes(b"")
    (root / "d" / "g").hardlink_to(root / "f")
    (root / "d" / "s").symlink_to("nowhere")
    assert judge_tree(root) == []
    (tmp_path / "outside").hardlink_to(root / "f")
    (finding,) = judge_tree(root)
    assert "has 3 names" in finding


def run_with(*endings: Ending, log: str = "", suspects: Collection[int] = ()) -> Run:
    """A run that is over, with one node, which has logged this and ended so often."""
    run = object.__new__(Run)
    run.report = Report(seed=1)
    node: Any = SimpleNamespace(number=2, endings=list(endings), whole_log=log)
    run._machines = SimpleNamespace(nodes=[node])  # type: ignore[assignment]
    run._suspects, run._filled = set(suspects), {2}
    run._workers, run._writers = [], []
    return run


FULL = Ending(2, 1, "the disk is full; make room before the node is started")
TRACEBACK = 'Traceback (most recent call last):\n  File "x"\nKeyError: 7'


@pytest.mark.parametrize(
    ("run", "found"),
    [
        (run_with(), None),
        (run_with(FULL), None),
        (run_with(Ending(2, 1, "no reason")), "ended by itself"),
        (run_with(log='{"level": "error"}'), "met a fault"),
        (run_with(log=TRACEBACK), "met a fault"),
        (run_with(Ending(2, 1, "the store is damaged"), suspects={2}), None),
        (run_with(Ending(2, 1, TRACEBACK), suspects={2}), "without a reason"),
        (run_with(Ending(2, -11, "cut short"), suspects={2}), "without a reason"),
    ],
)
def test_nodes_that_end_or_meet_faults_are_found(run: Run, found: str | None) -> None:
    run._judge_nodes()
    if found is None:
        assert not run.report.findings
    else:
        assert any(found in finding for finding in run.report.findings)


def test_an_operation_that_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with()
    monkeypatch.setattr(run._machines, "nodes", [])
    monkeypatch.setattr(run, "_pause", lambda _seconds: None)

    def worker(ends: bool) -> Any:
        name = "ended" if ends else "hanging"
        return SimpleNamespace(name=name, stop=lambda: None, join=lambda _patience: ends)

    run._workers = [worker(True), worker(False)]
    run._calm_down()
    assert run.report.findings == ["hanging: its operation does not end"]
