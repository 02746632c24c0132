"""What a node that has lost its disk says of itself."""

from __future__ import annotations

from bftfs.server.recovery import BLOCKS, OBJECTS, Recovery


def test_the_end_of_rebuilding_is_durable_before_it_is_told() -> None:
    """A node that is killed as soon as it says that it is whole comes back whole."""
    heard: list[bool] = []
    recovery = Recovery(rebuilding=True, on_end=lambda: heard.append(recovery.rebuilding))
    recovery.rebuilt(OBJECTS)
    assert not heard
    recovery.rebuilt(BLOCKS)
    assert heard == [True]
    assert not recovery.rebuilding
    recovery.rebuilt(BLOCKS)
    assert heard == [True], "there was nothing to end"
