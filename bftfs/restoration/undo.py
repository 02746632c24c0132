"""Undo: taking back what one client has changed since a time, and keeping what others did.

The situation: a client's key was stolen, or its program ran wild. Its changes are mixed with
others', which often rest on them. Every version is still there, and says whose it is.

The rule: everything is to be as if only others had changed it. Where that cannot be known, both
versions are kept: the present one stays, and the one from before the client is put beside it, as
NAME.before-CLIENT. That is a conflict, which is reported.

The steps:

1. `changes.read_changes` reads which objects the client and others have changed.
2. `name_plan` computes the object that each name is to stand for: a tree, and conflicts.
3. `actions` finds the way from the present names to that tree, and performs it.
4. `contents` merges others' changes of each file that the client changed.
5. `attribute_changes` does the same for mode, owner, times, extended attributes and ACLs. They are
   set last, because all other actions change times.

Why nothing is lost: an undo removes only what the client made and nobody else changed, and it is
made of ordinary changes. The client's versions stay in the history, and so does the state before
the undo. A second run finds nothing to do.

docs/decisions/0013-undo.md says why undo does not invoke others' operations once more instead.
Tests: `tests/unit/restoration`, `tests/end_to_end/test_undo.py`; `tests/simulation/test_undo.py`
compares with a model, while nodes lie.

Concurrency: others may work meanwhile; see `actions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bftfs.conversation import Conversation
from bftfs.filesystem.directory import shown
from bftfs.identifiers import ObjectId, ObjectKind, kind_of
from bftfs.restoration.actions import CarryingOut, order_actions
from bftfs.restoration.attribute_changes import (
    attributes_at,
    attributes_to_restore,
    set_attributes,
)
from bftfs.restoration.changes import ChangeLog, Slot, SpareNames
from bftfs.restoration.contents import contents_before, first_tainted, others_contents
from bftfs.restoration.name_plan import (
    NameHistory,
    NamePlan,
    find_staying,
    plan_names,
    read_names,
)
from bftfs.restoration.viewpoint import Viewpoint


@dataclass(frozen=True, slots=True)
class UndoStep:
    """Something to do; or, without `perform`, a conflict in which nothing is done."""

    what: str
    perform: Callable[[], Conversation[object]] | None = None
    conflict: bool = False
    name: Slot | None = None  # of a conflict: where it is


class Undo:
    """The steps that take a client's changes back; `label` is what the client is called."""

    def __init__(self, view: Viewpoint, log: ChangeLog, *, label: str) -> None:
        self._view = view
        self._log = log
        self._label = label
        self._carrying_out = CarryingOut(view, log)
        self._spare = SpareNames(label, log.tree)

    async def steps(self) -> list[UndoStep]:
        """The steps, in an order in which they can be done."""
        log = self._log
        history = await read_names(self._view, log, self._spare)
        plan = plan_names(log, history, self._spare, label=self._label)
        steps = [
            UndoStep(group.text, partial(self._carrying_out.perform, group.actions))
            for group in order_actions(log, plan, self._spare)
        ]
        # Objects that the client made stay as they are, if they stay at all.
        changed = [
            each for each in log.touched() if log.is_there(each) and not log.is_made_by_client(each)
        ]
        for identifier in changed:
            if kind_of(identifier) == ObjectKind.INODE:
                steps += await self._contents_steps(identifier, history, plan)
        for identifier in changed:
            attributes = await attributes_to_restore(self._view, log, identifier)
            if attributes:
                steps.append(
                    UndoStep(
                        f"give {log.path_of(identifier)} its attributes back ({attributes})",
                        partial(set_attributes, self._view, identifier, attributes),
                    )
                )
        conflicts = (UndoStep(each.text, conflict=True, name=each.name) for each in plan.conflicts)
        return [*steps, *conflicts]

    async def _contents_steps(
        self, identifier: ObjectId, history: NameHistory, plan: NamePlan
    ) -> list[UndoStep]:
        view, log = self._view, self._log
        first = first_tainted(log, identifier)
        # Blocks that no update covers yet are left behind when the file is rewritten.
        uncovered = any(each.shown_by is None for each in log.foreign_blocks.get(identifier, ()))
        if first is None and not uncovered:
            return []
        text = f"take back what was written to {log.path_of(identifier)}"
        wanted = await others_contents(view, log, identifier)
        if wanted is not None:
            if wanted == await view.contents(identifier, None) and not uncovered:
                return []
            return [UndoStep(text, partial(self._carrying_out.rewrite, identifier, wanted))]
        assert first is not None, "blocks that no update covers contradict nobody"
        steps: list[UndoStep] = []
        if uncovered:
            covered = await view.contents(identifier, log.now_us)
            rewrite = partial(self._carrying_out.rewrite, identifier, covered)
            steps.append(UndoStep(f"{text}, and is not covered", rewrite))
        before = await contents_before(view, log, identifier, first)
        names = [each for each in plan.tree.places(identifier) if each.directory in plan.kept]
        candidates = (each for name in names for each in self._spare.used_beside(name))
        if await find_staying(log, history, candidates, partial(self._holds, before)) is not None:
            return steps
        beside = self._spare.take_beside(names[0])
        attributes = await attributes_at(view, identifier, first.time_us - 1)
        steps.append(
            UndoStep(
                f"{log.path(names[0])}: changed by {self._label}, and then by others in the same "
                f"places; what it was before is {shown(beside.name)}",
                partial(self._carrying_out.write_new, beside, before, attributes),
                conflict=True,
                name=names[0],
            )
        )
        return steps

    async def _holds(self, contents: bytes, there: ObjectId) -> bool:
        """True if the object is a file with these contents."""
        if kind_of(there) != ObjectKind.INODE:
            return False
        found = await self._view.files.attributes(there, self._view.who)
        return found.is_regular and await self._view.contents(there, None) == contents
