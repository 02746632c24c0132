"""Snapshots by schedule, `bftfs send` and `bftfs receive`, on a real mount."""

import json
import os
from pathlib import Path

from tests.end_to_end.cluster import Cluster, bftfs
from tests.end_to_end.test_history import HISTORY
from tests.end_to_end.test_history_commands import fails


def snapshots_of(directory: Path) -> list[str]:
    """The names of the snapshots that the schedule of a directory has made."""
    rows = json.loads(bftfs("snapshot", "list", directory, "--json"))
    return [row["name"] for row in rows if row["schedule"] == str(directory)]


def test_snapshots_are_made_by_schedule(directory: Path, cluster: Cluster) -> None:
    (directory / "file").write_text("one")
    (directory / "below").mkdir()
    assert bftfs("snapshot", "schedule", directory) == ""
    said = bftfs("snapshot", "schedule", directory, "every 1h keep 24, every 1d keep 30")
    assert "every 1h keep 24, every 1d keep 30" in said
    bftfs("snapshot", "schedule", directory / "below", "every 1w keep 2", "--name", "low")
    shown = json.loads(bftfs("snapshot", "schedule", "--json", directory))
    assert sorted((row["path"], row["rules"], row["snapshots"]) for row in shown) == [
        (str(directory), "every 1h keep 24, every 1d keep 30", []),
        (str(directory / "below"), "every 1w keep 2", []),
    ]
    said = bftfs("snapshot", "run", directory)
    [name] = snapshots_of(directory)
    assert f"{directory}: made {name}" in said
    assert name.startswith(f"{directory.name}-20")
    assert "below: made low-20" in said
    assert bftfs("snapshot", "run", directory) == "", "nothing is due"
    (directory / "file").write_text("two")
    assert (directory / HISTORY / name / "file").read_text() == "one"
    assert bftfs("cat", f"{directory}/file@{name}") == "one"
    assert f"{name}  (schedule of {directory})" in bftfs("snapshot", "list", directory)

    os.rmdir(directory / "below")
    assert bftfs("snapshot", "run", directory) == ""
    for path, left in ((directory, 1), (directory / "below", 1)):
        said = bftfs("snapshot", "schedule", path, "--remove")
        assert f"its {left} snapshots stay" in said
    assert "you have no schedule for it" in fails("snapshot", "schedule", directory, "--remove")
    assert name in bftfs("snapshot", "list", directory)
    for row in json.loads(bftfs("snapshot", "list", directory, "--json")):
        if row["name"].startswith((directory.name, "low-")):
            bftfs("snapshot", "delete", directory, row["name"])


def test_mistakes_about_schedules_get_clear_answers(directory: Path, cluster: Cluster) -> None:
    (directory / "file").touch()
    set_ = ("snapshot", "schedule", directory)
    assert "a rule is `every TIME keep NUMBER`" in fails(*set_, "hourly")
    assert "not a length of time" in fails(*set_, "every 1x keep 2")
    assert "from 1 to 128" in fails(*set_, "every 1h keep 0")
    assert "not a directory" in fails("snapshot", "schedule", directory / "file", "every 1h keep 2")
    assert "cannot begin so" in fails(*set_, "every 1h keep 2", "--name", "")
    assert "cannot begin so" in fails(*set_, "every 1h keep 2", "--name", "a/b")
    assert "either rules or --remove" in fails(*set_, "every 1h keep 2", "--remove")
    assert "not in a mount" in fails("snapshot", "run", "/etc")
