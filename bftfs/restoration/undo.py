"""Undo: taking back what one client has changed since a time, and keeping what others did.

The situation: a client's key was stolen, or a program did damage. The client's changes are mixed
with others', which often build on them. Every version is still there, and names its author.

The rule: everything is to be as if only others had changed it. Where that cannot be known, both
versions are kept: the present one stays, and the one from before the client is put beside it, as
NAME.before-CLIENT. That is a conflict, which is reported.

The steps:

1. `changes.read_changes` reads which objects the client and others have changed.
2. `name_plan` computes the object that each name is to stand for: a tree, and conflicts.
3. `order_actions` finds the way from the present names to that tree, and `CarryingOut` performs it.
4. `others_work` merges others' changes of each file that the client changed.
5. It does the same for mode, owner, times, extended attributes and ACLs. They are
   set last, because all other actions change times.

Why nothing is lost: an undo removes only what the client made and nobody else changed, and it is
made of ordinary changes. The client's versions stay in the history, and so does the state before
the undo. A second run finds nothing to do.

docs/decisions/0013-undo.md says why undo does not invoke others' operations once more instead.
Tests: `tests/unit/restoration`, `tests/end_to_end/test_undo.py`; `tests/simulation/test_undo.py`
compares with a model, while nodes lie.

Concurrency: others may work meanwhile; see `CarryingOut`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from bftfs.conversation import Now
from bftfs.errors import FileSystemError
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.directory import RENAME_EXCHANGE, RENAME_NOREPLACE
from bftfs.identifiers import ObjectId, ObjectKind, kind_of
from bftfs.printable import as_word
from bftfs.restoration import others_work
from bftfs.restoration.changes import ChangeLog, Slot, SpareNames
from bftfs.restoration.name_plan import (
    NameHistory,
    NamePlan,
    UndoStep,
    find_staying,
    plan_names,
    read_names,
    tops,
)
from bftfs.restoration.others_work import AttributeChanges
from bftfs.restoration.viewpoint import PIECE_BYTES, Viewpoint


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
            attributes = await others_work.attributes_to_restore(self._view, log, identifier)
            if attributes:
                path = as_word(log.path_of(identifier))
                steps.append(
                    UndoStep(
                        f"give {path} its attributes back ({attributes})",
                        partial(others_work.set_attributes, self._view, identifier, attributes),
                    )
                )
        return [*steps, *plan.conflicts]

    async def _contents_steps(
        self, identifier: ObjectId, history: NameHistory, plan: NamePlan
    ) -> list[UndoStep]:
        view, log = self._view, self._log
        first = others_work.first_by_client(log, identifier)
        if first is None:
            return []
        wanted = await others_work.others_contents(view, log, identifier)
        if wanted is not None:
            if wanted == await view.contents_if_whole(identifier, None):
                return []
            text = f"take back what was written to {as_word(log.path_of(identifier))}"
            return [UndoStep(text, partial(self._carrying_out.rewrite, identifier, wanted))]
        before = await view.contents(identifier, first.time_us - 1)
        names = [each for each in plan.tree.places(identifier) if each.directory in plan.kept]
        candidates = (each for name in names for each in self._spare.used_beside(name))
        if await find_staying(log, history, candidates, partial(self._holds, before)) is not None:
            return []
        beside = self._spare.take_beside(names[0])
        attributes = await others_work.attributes_at(view, identifier, first.time_us - 1)
        path = as_word(log.path(names[0]))
        return [
            UndoStep(
                f"{path}: changed by {self._label}, and then by others in the same "
                f"places; what it was before is {as_word(beside.name)}",
                partial(self._carrying_out.write_new, beside, before, attributes),
                conflict=True,
                name=names[0],
            )
        ]

    async def _holds(self, contents: bytes, there: ObjectId) -> bool:
        """True if the object is a file with these contents."""
        if kind_of(there) != ObjectKind.INODE:
            return False
        found = await self._view.files.attributes(there, self._view.who)
        return found.is_regular and await self._view.contents(there, None) == contents


@dataclass(frozen=True, slots=True)
class Move:
    """Move what is at `source` to `target`: in exchange for what is there, or to a free name."""

    source: Slot
    target: Slot
    exchange: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Let a free name stand for an object: by a link if it exists; else it is made anew.

    `inside` puts the entries into a directory that is made anew.
    """

    name: Slot
    identifier: ObjectId
    inside: Sequence[Action] = ()


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove an object from a name; a directory together with the client's objects in it."""

    name: Slot
    identifier: ObjectId


Action = Move | Place | Remove


@dataclass(frozen=True, slots=True)
class Group:
    """Actions that belong together, and a description of them."""

    text: str
    actions: Sequence[Action]


def order_actions(log: ChangeLog, plan: NamePlan, spare: SpareNames) -> list[Group]:
    """The actions that turn the present names into the planned tree."""
    ordering = _Ordering(log, plan, spare)
    groups = [
        group
        for directory in plan.tree.below(tops(log))
        for name, wanted in plan.tree.names(directory)
        if (group := ordering.reach(name, wanted)) is not None
    ]
    return groups + ordering.removals()


class _Ordering:
    """The names as the actions so far leave them; the actions come in an order that works.

    `order_actions` goes through the planned tree from the top down. So a directory is in its final
    place before anything is done in it, and no move puts a directory below itself. Each name that
    is to stand for another object gets it in one of these ways:

    - An object that stands at a wrong name is moved. An object that is in the way takes its place
      in exchange; it is moved or removed when its own turn comes.
    - Otherwise, an existing file gets one more link, and an object that is gone is made anew; a
      directory with all its entries. An object that is in the way is removed, or put aside if it or
      anything in it is kept.

    At the end, objects that still stand at wrong names are removed: links to files that are kept,
    then the objects that the client made. Tests: `tests/unit/restoration/test_undo.py`.
    """

    def __init__(self, log: ChangeLog, plan: NamePlan, spare: SpareNames) -> None:
        self._log = log
        self._plan = plan
        self._spare = spare
        self._now = log.tree.copy()

    def reach(self, name: Slot, wanted: ObjectId) -> Group | None:
        """The actions that let the name stand for `wanted`; None if it does already."""
        if self._now.get(name) == wanted:
            return None
        path = as_word(self._log.path(name))
        places = self._now.places(wanted)
        source = next((each for each in places if self._plan.tree.get(each) != wanted), None)
        if source is not None:
            moved = as_word(self._log.path(source))
            return Group(f"move {moved} back to {path}", self._fetch(source, name))
        return Group(f"bring back {path}", self._bring_back(name, wanted))

    def removals(self) -> list[Group]:
        """The removal of all objects that are left at wrong names."""
        left = [
            (name, there)
            for directory in self._now.below(tops(self._log))
            for name, there in self._now.names(directory)
            if self._plan.tree.get(name) != there
        ]
        kept = self._plan.kept
        links = [each for each in left if each[1] in kept]
        made = [each for each in left if each[1] not in kept and each[0].directory in kept]
        return [
            Group(f"remove {as_word(self._log.path(name))}", [Remove(name, there)])
            for name, there in (*links, *made)
        ]

    def _fetch(self, source: Slot, name: Slot) -> list[Action]:
        there = self._now.get(name)
        if there is None or not self._now.is_in(source.directory, there):
            return [self._move(source, name)]
        aside = self._spare.take_aside(name)  # `there` cannot change places with what is inside it
        return [self._move(source, aside), self._move(aside, name)]

    def _move(self, source: Slot, target: Slot) -> Move:
        moved, there = self._now.get(source), self._now.get(target)
        self._now.put(source, None)
        self._now.put(target, moved)
        self._now.put(source, there)
        return Move(source, target, there is not None)

    def _bring_back(self, name: Slot, wanted: ObjectId) -> list[Action]:
        cleared = self._clear(name)
        self._now.put(name, wanted)
        groups = [self.reach(each, child) for each, child in self._plan.tree.names(wanted)]
        inside = [action for group in groups if group is not None for action in group.actions]
        return [*cleared, Place(name, wanted, inside)]

    def _clear(self, name: Slot) -> list[Action]:
        there = self._now.get(name)
        if there is None:
            return []
        is_right_elsewhere = any(
            self._plan.tree.get(each) == there for each in self._now.places(there)
        )
        if is_right_elsewhere or self._plan.kept.isdisjoint(self._now.below((there,))):
            self._now.put(name, None)
            return [Remove(name, there)]
        return [self._move(name, self._spare.take_aside(name))]


class CarryingOut:
    """One undo, carried out; it remembers which objects it has made anew.

    Each action is one operation on the objects that it names, in the name of the user who undoes.
    If others have changed these objects meanwhile, it is refused, and undo can be run again.
    """

    def __init__(self, view: Viewpoint, log: ChangeLog) -> None:
        self._view = view
        self._log = log
        self._made: dict[ObjectId, ObjectId] = {}  # by the removed objects

    async def perform(self, actions: Sequence[Action]) -> None:
        """Carry out actions, in their order."""
        for action in actions:
            match action:
                case Move(source, target, exchange):
                    flags = RENAME_EXCHANGE if exchange else RENAME_NOREPLACE
                    places = (*self._translated(source), *self._translated(target))
                    await self._view.files.rename(*places, self._view.who, flags=flags)
                case Place(name, identifier, inside):
                    await self._place(self._translated(name), identifier, inside)
                case Remove(name, identifier):
                    await self._remove(self._translated(name), identifier)
                case _:
                    assert_never(action)

    async def rewrite(self, identifier: ObjectId, contents: bytes) -> None:
        """Replace the contents of a file."""
        files, view = self._view.files, self._view
        await self._fill(await files.open(identifier, os.O_WRONLY | os.O_TRUNC, view.who), contents)

    async def write_new(self, name: Slot, contents: bytes, attributes: AttributeChanges) -> None:
        """Make a file."""
        await self._make_file(self._translated(name), contents, attributes)

    def _translated(self, name: Slot) -> Slot:
        """The same name in the directory that was made anew, if its directory was."""
        return name._replace(directory=self._made.get(name.directory, name.directory))

    async def _place(self, name: Slot, identifier: ObjectId, inside: Sequence[Action]) -> None:
        files, who, view = self._view.files, self._view.who, self._view
        if kind_of(identifier) == ObjectKind.DIRECTORY:
            found = await files.make_directory(*name, 0o700, who)
            self._made[identifier] = found.identifier
            await self.perform(inside)  # this changes the directory's times
            attributes = await others_work.others_attributes(view, self._log, identifier)
            await others_work.set_attributes(view, found.identifier, attributes)
            return
        there = self._made.get(identifier, identifier)
        if there != identifier or self._log.is_there(identifier):
            await files.link(there, *name, who)
            return
        time_us = self._log.last_untouched_us(identifier)
        was = await view.at(time_us).attributes(identifier, who)
        if was.is_regular:
            contents = await others_work.others_or_last_contents(view, self._log, identifier)
            attributes = await others_work.others_attributes(view, self._log, identifier)
            made = await self._make_file(name, contents, attributes)
        elif stat.S_ISLNK(was.mode):
            target = await view.link_target(identifier, time_us)
            made = (await files.make_symlink(*name, target, who)).identifier
        else:
            made = (await files.make_node(*name, was.mode, who, device=was.device)).identifier
        self._made[identifier] = made

    async def _remove(self, name: Slot, expected: ObjectId) -> None:
        files, who = self._view.files, self._view.who
        found = await files.lookup(*name, who)
        if found.identifier != expected:
            raise FileSystemError(errno.ESTALE, "the name stands for something else by now")
        if kind_of(expected) != ObjectKind.DIRECTORY:
            await files.unlink(*name, who)
            return
        for child, identifier in (await self._view.entries(expected, None)).items():
            if not self._log.is_made_by_client(identifier):
                raise FileSystemError(errno.ENOTEMPTY, "there is something in it by now")
            await self._remove(Slot(expected, child), identifier)
        await files.remove_directory(*name, who)

    async def _make_file(
        self, name: Slot, contents: bytes, attributes: AttributeChanges
    ) -> ObjectId:
        files, flags, mode = self._view.files, os.O_WRONLY | os.O_EXCL, stat.S_IFREG | 0o600
        found, opened = await files.create(*name, mode, self._view.who, flags=flags)
        await self._fill(opened, contents)
        await others_work.set_attributes(self._view, found.identifier, attributes)
        return found.identifier

    async def _fill(self, opened: OpenFile, contents: bytes) -> None:
        files = self._view.files
        try:
            for offset in range(0, len(contents), PIECE_BYTES):
                piece = contents[offset : offset + PIECE_BYTES]
                if files.write(opened, offset, piece, now_ns=(await Now()) * 1000):
                    await files.write_behind(opened)
        finally:
            await files.release(opened)
