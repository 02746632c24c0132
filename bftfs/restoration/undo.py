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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

from bftfs.conversation import Now
from bftfs.errors import FileSystemError, OperationFailed
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.directory import RENAME_EXCHANGE, RENAME_NOREPLACE
from bftfs.filesystem.file_history import Change, several_at_once
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

AT_ONCE: Final = 16  # objects that are compared, and steps that are done, at the same time


@dataclass(frozen=True, slots=True)
class _Compared:
    """How an object that the client changed differs from what it is to be."""

    identifier: ObjectId
    attributes: AttributeChanges  # that give it its own back
    first: Change | None = None  # of its contents, by the client; None if these need no step
    wanted: bytes | None = None  # its contents as others alone would have left them, if known


class Undo:
    """The steps that take a client's changes back; `label` is what the client is called."""

    def __init__(self, view: Viewpoint, log: ChangeLog, *, label: str) -> None:
        self._view = view
        self._log = log
        self._label = label
        self._spare = SpareNames(label, log.tree)
        self._carrying_out = CarryingOut(view, log, self._spare)

    async def steps(self, *, told: Callable[[int, int], None] = lambda *_: None) -> list[UndoStep]:
        """The steps, in an order in which they can be done.

        `told` hears after each object that the client changed how many are compared, of how many.
        """
        log = self._log
        history = await read_names(self._view, log, self._spare)
        plan = plan_names(log, history, self._spare, label=self._label)
        steps = [
            UndoStep(
                group.text,
                partial(self._carrying_out.perform, group.actions),
                changes=group.changes(),
                within=group.within(),
            )
            for group in order_actions(log, plan, self._spare)
        ]
        # Objects that the client made stay as they are, if they stay at all.
        changed = [
            each for each in log.touched() if log.is_there(each) and not log.is_made_by_client(each)
        ]
        done = 0

        async def compared(identifier: ObjectId) -> _Compared:
            nonlocal done
            found = await self._compare(identifier)
            done += 1
            told(done, len(changed))
            return found

        found = await several_at_once([partial(compared, each) for each in changed], most=AT_ONCE)
        for each in found:
            steps += await self._contents_steps(each, history, plan)
        for each in found:
            if each.attributes:
                path = as_word(log.path_of(each.identifier))
                steps.append(
                    UndoStep(
                        f"give {path} its attributes back ({each.attributes})",
                        partial(
                            others_work.set_attributes,
                            self._view,
                            each.identifier,
                            each.attributes,
                        ),
                        changes=frozenset((each.identifier,)),
                    )
                )
        return [*steps, *plan.conflicts]

    async def _compare(self, identifier: ObjectId) -> _Compared:
        """Compare an object that the client changed with what undo would make of it."""
        view, log = self._view, self._log
        attributes = await others_work.attributes_to_restore(view, log, identifier)
        first = None
        if kind_of(identifier) == ObjectKind.INODE:
            first = others_work.first_by_client(log, identifier)
        if first is None:
            return _Compared(identifier, attributes)
        wanted = await others_work.others_contents(view, log, identifier)
        if wanted is not None and wanted == await view.contents_if_whole(identifier, None):
            return _Compared(identifier, attributes)
        return _Compared(identifier, attributes, first, wanted)

    async def _contents_steps(
        self, found: _Compared, history: NameHistory, plan: NamePlan
    ) -> list[UndoStep]:
        view, log, identifier = self._view, self._log, found.identifier
        if found.first is None:
            return []
        if found.wanted is not None:
            text = f"take back what was written to {as_word(log.path_of(identifier))}"
            rewrite = partial(self._carrying_out.rewrite, identifier, found.wanted)
            return [UndoStep(text, rewrite, changes=frozenset((identifier,)))]
        before_us = found.first.time_us - 1
        before = await view.contents(identifier, before_us)
        names = [each for each in plan.tree.places(identifier) if each.directory in plan.kept]
        candidates = (each for name in names for each in self._spare.used_beside(name))
        if await find_staying(log, history, candidates, partial(self._holds, before)) is not None:
            return []
        beside = self._spare.take_beside(names[0])
        attributes = await others_work.attributes_at(view, identifier, before_us)
        path = as_word(log.path(names[0]))
        return [
            UndoStep(
                f"{path}: changed by {self._label}, and then by others in the same "
                f"places; what it was before is {as_word(beside.name)}",
                partial(self._carrying_out.write_new, beside, before, attributes),
                conflict=True,
                name=names[0],
                within=frozenset((beside.directory,)),
            )
        ]

    async def _holds(self, contents: bytes, there: ObjectId) -> bool:
        """True if the object is a file with these contents."""
        if kind_of(there) != ObjectKind.INODE:
            return False
        found = await self._view.files.attributes(there, self._view.who)
        return found.is_regular and await self._view.contents(there, None) == contents


async def carry_out(
    steps: Iterable[UndoStep], told: Callable[[UndoStep, Exception | None], None]
) -> None:
    """Do the steps, in an order that works; some at the same time.

    `told` hears of each step when it is done, or why it cannot be done: then others go on. It hears
    of them in their order, so that an undo says the same each time.
    """
    for stage in in_stages(steps):
        await _carry_out_together(stage, told)


async def _carry_out_together(
    stage: Sequence[UndoStep], told: Callable[[UndoStep, Exception | None], None]
) -> None:
    ended: dict[int, Exception | None] = {}  # by position; those that `told` has not heard of yet
    first = 0

    async def perform(position: int, step: UndoStep) -> None:
        nonlocal first
        ended[position] = await _failure_of(step)
        while first in ended:
            told(stage[first], ended.pop(first))
            first += 1

    await several_at_once([partial(perform, *each) for each in enumerate(stage)], most=AT_ONCE)


async def _failure_of(step: UndoStep) -> Exception | None:
    """Do the step; why it cannot be done, if so."""
    try:
        if step.perform is not None:
            await step.perform()
    except (FileSystemError, OperationFailed) as failure:
        return failure
    return None


def in_stages(steps: Iterable[UndoStep]) -> Iterator[list[UndoStep]]:
    """The steps in their order, those together that may be done at the same time."""
    stage: list[UndoStep] = []
    changed: set[ObjectId] = set()
    within: set[ObjectId] = set()
    for step in steps:
        changes = step.changes
        if stage and (
            changes is None
            or not (changes.isdisjoint(changed) and changes.isdisjoint(within))
            or not step.within.isdisjoint(changed)
        ):
            yield stage
            stage, changed, within = [], set(), set()
        if changes is None:
            yield [step]
            continue
        stage.append(step)
        changed |= changes
        within |= step.within
    if stage:
        yield stage


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

    def changes(self) -> frozenset[ObjectId] | None:
        """The files whose names it changes; None if it changes those of directories."""
        changed: set[ObjectId] = set()
        for action in self.actions:
            if isinstance(action, Move) or kind_of(action.identifier) == ObjectKind.DIRECTORY:
                return None
            changed.add(action.identifier)
        return frozenset(changed)

    def within(self) -> frozenset[ObjectId]:
        """The directories in which it places or removes names."""
        return frozenset(
            action.name.directory for action in self.actions if not isinstance(action, Move)
        )


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

    An undo may be killed at any moment, and a second one cannot know what the first has meant to
    do. So what is made anew is made aside, and gets its name when it is whole; and a file that is
    written in place is never shorter or longer than `others_work.carried_over` understands.
    """

    def __init__(self, view: Viewpoint, log: ChangeLog, spare: SpareNames) -> None:
        self._view = view
        self._log = log
        self._spare = spare
        self._made: dict[ObjectId, ObjectId] = {}  # by the removed objects
        self._unfinished: set[ObjectId] = set()  # removed directories that are being made anew

    async def perform(self, actions: Sequence[Action]) -> None:
        """Carry out actions, in their order."""
        for action in actions:
            match action:
                case Move(source, target, exchange):
                    flags = RENAME_EXCHANGE if exchange else RENAME_NOREPLACE
                    places = (*self._translated(source), *self._translated(target))
                    await self._view.files.rename(*places, self._view.who, flags=flags)
                case Place(name, identifier, inside):
                    await self._bring_back(name, identifier, inside)
                case Remove(name, identifier):
                    await self._remove(self._translated(name), identifier)
                case _:
                    assert_never(action)

    async def rewrite(self, identifier: ObjectId, contents: bytes) -> None:
        """Replace the contents of a file, as far as they are known: not what others write now.

        What is behind them is cut off last: an emptied file would count as emptied on purpose.
        What begins with them is only cut off: to write the same bytes once more would, in between,
        look as if somebody had made all of the client's bytes their own.
        """
        files, view = self._view.files, self._view
        opened = await files.open(identifier, os.O_WRONLY, view.who)
        try:
            files.bind(opened, self._log.contents_of(identifier))
            there = await view.contents_if_whole(identifier, None)
            if there is None or not there.startswith(contents):
                await self._write(opened, contents)
                await files.flush(opened)
            if opened.contents.size > len(contents):
                await files.truncate(identifier, len(contents), view.who)
        except Exception:
            with suppress(FileSystemError, OperationFailed):
                await files.release(opened)
            raise
        await files.release(opened)

    async def write_new(self, name: Slot, contents: bytes, attributes: AttributeChanges) -> None:
        """Make a file."""
        aside = self._translated(self._spare.take_aside(name))
        await self._make_file(aside, contents, attributes)
        await self._give_name(aside, self._translated(name))

    def _translated(self, name: Slot) -> Slot:
        """The same name in the directory that was made anew, if its directory was."""
        return name._replace(directory=self._made.get(name.directory, name.directory))

    async def _bring_back(self, name: Slot, identifier: ObjectId, inside: Sequence[Action]) -> None:
        there = self._made.get(identifier, identifier)
        if there != identifier or self._log.is_there(identifier):
            await self._view.files.link(there, *self._translated(name), self._view.who)
        elif name.directory in self._unfinished:
            await self._make(self._translated(name), identifier, inside)
        else:
            aside = self._translated(self._spare.take_aside(name))
            await self._make(aside, identifier, inside)
            await self._give_name(aside, self._translated(name))

    async def _give_name(self, aside: Slot, name: Slot) -> None:
        """Move what was made aside to its name, now that it is whole."""
        await self._view.files.rename(*aside, *name, self._view.who, flags=RENAME_NOREPLACE)

    async def _make(self, name: Slot, identifier: ObjectId, inside: Sequence[Action]) -> None:
        """Make what is gone anew."""
        files, who, view = self._view.files, self._view.who, self._view
        if kind_of(identifier) == ObjectKind.DIRECTORY:
            found = await files.make_directory(*name, 0o700, who)
            self._made[identifier] = found.identifier
            self._unfinished.add(identifier)
            await self.perform(inside)  # this changes the directory's times
            self._unfinished.discard(identifier)
            attributes = await others_work.others_attributes(view, self._log, identifier)
            await others_work.set_attributes(view, found.identifier, attributes)
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
            if self._is_newer(expected, await files.latest_attributes(expected, who)):
                raise FileSystemError(errno.ESTALE, "others have changed it meanwhile")
            removed = await files.unlink(*name, who)
            if self._is_newer(expected, removed.attributes) and not removed.attributes.links:
                raise FileSystemError(
                    errno.ESTALE,
                    "others changed it at the moment when it was removed: `bftfs undelete` brings "
                    "it back",
                )
            return
        for child, identifier in (await self._view.entries(expected, None)).items():
            if not self._log.is_made_by_client(identifier):
                raise FileSystemError(errno.ENOTEMPTY, "there is something in it by now")
            await self._remove(Slot(expected, child), identifier)
        await files.remove_directory(*name, who)

    def _is_newer(self, identifier: ObjectId, attributes: Attributes) -> bool:
        """True if the contents of an object have changed since its changes were read."""
        log = self._log
        return identifier in log.changes and attributes.contents > log.contents_of(identifier)

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
            await self._write(opened, contents)
        except Exception:
            await files.release(opened)
            raise
        await files.release(opened)  # and not if the conversation is abandoned: it cannot wait then

    async def _write(self, opened: OpenFile, contents: bytes) -> None:
        files = self._view.files
        for offset in range(0, len(contents), PIECE_BYTES):
            piece = contents[offset : offset + PIECE_BYTES]
            if files.write(opened, offset, piece, now_ns=(await Now()) * 1000):
                await files.write_behind(opened)
