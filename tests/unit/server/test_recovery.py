"""What a node that has lost its disk says of itself."""

from __future__ import annotations

from bftfs.server.recovery import BLOCKS, OBJECTS, Recovery, Stage


def test_each_stage_is_durable_before_it_is_told() -> None:
    """A node that is killed as soon as it says that it is whole comes back whole."""
    heard: list[tuple[Stage, bool, bool]] = []
    recovery = Recovery(
        Stage.LOST,
        store=lambda stage, _life: heard.append((stage, recovery.is_lost, recovery.rebuilding)),
    )
    recovery.begun()
    assert heard.pop() == (Stage.REBUILDING, True, True)
    recovery.rebuilt(OBJECTS)
    assert not heard
    recovery.rebuilt(BLOCKS)
    assert heard == [(Stage.REBUILT, False, True)]
    assert not recovery.rebuilding
    recovery.rebuilt(BLOCKS)
    assert len(heard) == 1, "there was nothing to end"


def test_a_node_that_forgets_again_begins_another_life() -> None:
    stages: list[Stage] = []
    recovery = Recovery(store=lambda stage, _life: stages.append(stage))
    recovery.forget(OBJECTS)
    assert (recovery.is_lost, recovery.rebuilding, recovery.doubtful) == (True, True, True)
    recovery.begun()
    recovery.rebuilt(OBJECTS)
    assert stages == [Stage.LOST, Stage.REBUILDING, Stage.REBUILT]
