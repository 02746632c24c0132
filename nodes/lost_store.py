"""Remembers across crashes that a node has lost its store, or a part of it.

A node that lost its store has forgotten which updates it accepted. It must not act as if it had
accepted none (`bftfs.server.recovery` has the rule), so it notes the loss before a new store is
made.
"""

from __future__ import annotations

import structlog

from bftfs.data_directory import NodeDirectory
from bftfs.durable_files import replace_file
from bftfs.errors import UsageError
from bftfs.limits import CLOCK_SKEW_US
from bftfs.runtime import clock
from bftfs.server.recovery import Recovery
from nodes.store_directory import lock_file

_REBUILDING = "rebuilding"
_REBUILT = "rebuilt"


def resumed(directory: NodeDirectory) -> Recovery:
    """The node's recovery state. To be called before its store is opened, which makes a new one.

    A node that has had a store, as its lock file shows, and has none has lost it.
    """
    if lock_file(directory.store).exists() and not directory.store.exists():
        # It has refused times that were ahead: all that it has accepted is earlier than this.
        _write(directory, clock.now_us() + CLOCK_SKEW_US, _REBUILDING)
    try:
        floor, state = directory.recovery.read_text().split()
        floor_us, rebuilding = int(floor), state != _REBUILT
    except FileNotFoundError:
        return _recovery(directory, 0, rebuilding=False)
    except (OSError, ValueError):
        raise UsageError(
            f"{directory.recovery}: it does not say what the node has forgotten; move the store "
            "away and start the node again: it rebuilds its store"
        ) from None

    return _recovery(directory, floor_us, rebuilding=rebuilding)


def _recovery(directory: NodeDirectory, floor_us: int, *, rebuilding: bool) -> Recovery:
    def lose(floor_us: int) -> None:
        _write(directory, floor_us, _REBUILDING)
        structlog.get_logger().warning("rebuilding", reason="a part of its store is damaged")

    def end() -> None:
        _write(directory, recovery.floor_us, _REBUILT)
        structlog.get_logger().info("rebuilt")

    recovery = Recovery(floor_us=floor_us, rebuilding=rebuilding, on_loss=lose, on_end=end)
    return recovery


def _write(directory: NodeDirectory, floor_us: int, state: str) -> None:
    replace_file(directory.recovery, f"{floor_us} {state}\n".encode())
