"""What `bftfs status` says of a node's background work."""

from __future__ import annotations

from bftfs.cli.status import _work


def test_a_node_without_work_says_nothing() -> None:
    assert _work({}) == []
    assert _work({"background": {"bftfs_heal_blocks_progress": 1.0}}) == []


def test_healing_what_could_not_be_healed_and_writers_that_wait() -> None:
    figures = {
        "bftfs_heal_blocks_progress": 0.25,
        "bftfs_heal_blocks_rebuilt": 40.0,
        "bftfs_heal_objects_progress": 1.0,
        "bftfs_heal_objects_failed": 2.0,
        "bftfs_verification_demands": 7.0,
    }
    assert _work({"background": figures}) == [
        "2 times objects could not be rebuilt",
        "heals: 25% of blocks compared, 40 rebuilt",
        "7 writes waited for verification: their client was at a limit",
    ]
