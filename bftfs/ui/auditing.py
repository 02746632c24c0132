"""What a client has changed below a path, and what an undo would do; nothing is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from bftfs.restoration.changes import read_changes, unreadable
from bftfs.restoration.name_plan import UndoStep
from bftfs.restoration.telling import audit_report
from bftfs.restoration.undo import Undo
from bftfs.ui.paths import Names, find
from bftfs.ui.source import Source

ROWS_SHOWN: Final = 200  # of each table


@dataclass(frozen=True, slots=True)
class AuditShown:
    """The client's changes, others' that build on them, and the steps of an undo."""

    changes: list[dict[str, Any]]
    built_on: list[dict[str, Any]]
    steps: list[UndoStep]
    command: str  # that takes them back

    @property
    def conflicts(self) -> int:
        """The steps that need a person."""
        return sum(step.conflict for step in self.steps)


def audit_shown(source: Source, names: Names, client: str, since_us: int) -> AuditShown:
    """The audit of the client called `client`, by name or id, since a time."""
    view = source.view
    found = source.perform(find(view, names, None))
    log = source.perform(
        read_changes(
            view,
            found.identifier,
            path=source.path(names),
            client=source.client_called(client),
            since_us=since_us,
        )
    )
    missing = source.perform(unreadable(log, view))
    report = audit_report(log, missing, label=client, client_name=source.client_name)
    steps = source.perform(Undo(view, log, label=client).steps())
    return AuditShown(
        report["changes"],
        report["built_on"],
        steps,
        source.undo_command(names, client, since_us),
    )
