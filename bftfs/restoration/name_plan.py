"""The plan for names: the tree that is to be once a client's changes are taken back.

The rule: each name that the client changed is to stand for the object that others last put there;
if they have not changed it since, for the object that it stood for before the client's first
change. All other names stay as they are. That is the tree which a replay of others' operations
alone would make, wherever such a replay would refuse none of them (decision 13).

Three corrections make sure that the result is a tree, and that nothing of others' is lost. Each
correction is a conflict, which is reported:

1. A directory has one place. If others have moved it on, it stays there.
2. An object that the client took from a name, and that others have replaced there, is put beside
   the name.
3. Every object that others made or changed has a place. If it has none, it stays where it is, and
   the object that was to be there is put beside it. A file that the client made and others changed
   stays at its name as well, unless it is moved to where others had put it.

Why nothing is lost: an undo removes only objects that have no place in the final tree, and after
the third correction these are objects that the client made and nobody else changed.

`read_names` reads what the rule needs; `plan_names` is pure. Tests:
`tests/unit/restoration/test_undo.py`; in the simulator every undo is compared with a model that was
given others' work alone (`simulation/checkers/undo.py`).
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial

from bftfs.conversation import Conversation
from bftfs.identifiers import ObjectId, ObjectKind, kind_of
from bftfs.printable import as_word
from bftfs.restoration.changes import ChangeLog, Slot, SpareNames
from bftfs.restoration.others_work import others_or_last_contents
from bftfs.restoration.viewpoint import Viewpoint

# --- reading ---------------------------------------------------------------------------------


@dataclass(slots=True)
class NameHistory:
    """The names that the client changed, and the objects that others had put there."""

    wanted: dict[Slot, ObjectId | None] = field(default_factory=dict)  # by the rule
    taken: dict[Slot, ObjectId] = field(default_factory=dict)  # by the client; replaced by others
    # The entries of directories that are gone, with others' later changes.
    lost: dict[ObjectId, dict[bytes, ObjectId]] = field(default_factory=dict)
    # Where an earlier undo has put the copy of an object that was to be at a name.
    returned: dict[tuple[Slot, ObjectId], Slot] = field(default_factory=dict)

    def stays(self, name: Slot, there: ObjectId) -> bool:
        """True if the name may keep the object that it has."""
        return self.wanted.get(name, there) == there

    def returned_to(self, name: Slot, lost: ObjectId) -> Slot | None:
        """Where an earlier undo has put the copy of `lost`; of a directory there is only one."""
        found = self.returned.get((name, lost))
        if found is None and kind_of(lost) == ObjectKind.DIRECTORY:
            places = (place for (_, each), place in self.returned.items() if each == lost)
            found = next(places, None)
        return found


async def read_names(view: Viewpoint, log: ChangeLog, spare: SpareNames) -> NameHistory:
    """Read which objects others had at the names that the client changed."""
    history = NameHistory()
    for directory in log.touched():
        if kind_of(directory) == ObjectKind.DIRECTORY and log.is_there(directory):
            entries, taken = await _entries_by_others(view, log, directory)
            own = filter(log.takes_name, log.changes[directory])
            for name in sorted({name for change in own for name, _ in change.entries}):
                history.wanted[Slot(directory, name)] = entries.get(name)
            history.taken |= taken
    waiting = [*filter(None, history.wanted.values()), *history.taken.values()]
    while waiting:
        each = waiting.pop()
        is_directory = kind_of(each) == ObjectKind.DIRECTORY
        if is_directory and not log.is_there(each) and each not in history.lost:
            history.lost[each], _ = await _entries_by_others(view, log, each)
            waiting += history.lost[each].values()
    for place, lost in (*history.taken.items(), *history.wanted.items()):
        if lost is not None and not log.is_there(lost):
            names = (place, *spare.used_beside(place))
            is_it = partial(_is_made_anew, view, log, history, lost)
            returned = await find_staying(log, history, names, is_it)
            if returned is not None:
                history.returned[place, lost] = returned
    return history


async def _entries_by_others(
    view: Viewpoint, log: ChangeLog, directory: ObjectId
) -> tuple[dict[bytes, ObjectId], dict[Slot, ObjectId]]:
    """A directory's entries before the client's first change, with others' later changes.

    Also the objects that the client took from a name and that others then replaced there.
    """
    time_us = log.last_untouched_us(directory)
    entries = await view.entries(directory, time_us)
    away: set[bytes] = set()  # names from which the client has taken what is in `entries`
    taken: dict[bytes, ObjectId] = {}
    for change in log.changes.get(directory, ()):
        if change.time_us <= time_us:
            continue
        for name, entry in change.entries:
            child = None if entry is None else entry.child
            if not log.takes_name(change):
                before = entries.pop(name, None)
                if name in away and before is not None:
                    taken[name] = before
                if child is not None:
                    entries[name] = child
                away.discard(name)
            elif child != entries.get(name):
                away.add(name)
            else:
                away.discard(name)
    return entries, {
        Slot(directory, name): child for name, child in taken.items() if entries.get(name) != child
    }


async def find_staying(
    log: ChangeLog,
    history: NameHistory,
    names: Iterable[Slot],
    is_it: Callable[[ObjectId], Conversation[bool]],
) -> Slot | None:
    """The first of some names whose object stays there and is accepted by `is_it`."""
    for name in names:
        there = log.tree.get(name)
        if there is not None and history.stays(name, there) and await is_it(there):
            return name
    return None


async def _is_made_anew(
    view: Viewpoint, log: ChangeLog, history: NameHistory, lost: ObjectId, there: ObjectId
) -> bool:
    """True if `there` may be the copy of a removed object that an earlier undo has made."""
    if log.is_made_by_client(there) or kind_of(there) != kind_of(lost):
        return False
    if lost in history.lost:
        for each in history.lost[lost]:
            child = log.tree.get(Slot(there, each))
            # An entry that the client has put there is no part of a copy.
            if child is None or not history.stays(Slot(there, each), child):
                return False
        return True
    time_us = log.last_untouched_us(lost)
    was = await view.at(time_us).attributes(lost, view.who)
    now = await view.files.attributes(there, view.who)
    if stat.S_IFMT(was.mode) != stat.S_IFMT(now.mode):
        return False
    if stat.S_ISLNK(was.mode):
        return await view.link_target(lost, time_us) == await view.link_target(there, None)
    if not was.is_regular:
        return was.device == now.device
    contents = await others_or_last_contents(view, log, lost)
    return contents == await view.contents(there, None)


# --- planning --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UndoStep:
    """Something to do; or a conflict: both sides have changed something, and a person has to look.

    Without `perform`, nothing is done. Steps may be done at the same time if neither changes what
    the other one changes, or the directories in which the other one changes names.
    """

    what: str
    perform: Callable[[], Conversation[object]] | None = None
    conflict: bool = False
    name: Slot | None = None  # of a conflict: where it is
    changes: frozenset[ObjectId] | None = frozenset()  # None: it is done alone
    within: frozenset[ObjectId] = frozenset()  # directories in which it changes names


def plan_names(log: ChangeLog, history: NameHistory, spare: SpareNames, *, label: str) -> NamePlan:
    """The tree by the rule and its corrections. `label` is what the client is called."""
    plan = NamePlan(log, history, spare, label)
    plan.apply_rule()
    while plan.correct():
        pass
    plan.report_names_by_others()
    assert all(each in plan.kept or not log.is_others(each) for each in log.tree.objects())
    return plan


class NamePlan:
    """The tree that is to be, the objects that have a place in it (`kept`), and the conflicts."""

    def __init__(self, log: ChangeLog, history: NameHistory, spare: SpareNames, label: str) -> None:
        self._log = log
        self._history = history
        self._spare = spare
        self._label = label
        self.tree = log.tree.copy()
        self.kept: set[ObjectId] = set()
        self.conflicts: list[UndoStep] = []
        # Names beside which an object of theirs was put, and names that are left as they are.
        self._corrected: set[Slot] = set()
        self._staying: set[Slot] = set()

    def apply_rule(self) -> None:
        for name, wanted in self._history.wanted.items():
            self.tree.put(name, wanted)
            if wanted is not None:
                self._spare.use(name)
        for directory, entries in self._history.lost.items():
            for each, child in entries.items():
                self.tree.put(Slot(directory, each), child)
        self._keep_all_again()

    def correct(self) -> bool:
        """Make the corrections. False if there were none; else they may have made others necessary.

        That ends, because each name is corrected once.
        """
        count = len(self.conflicts)
        self._give_directories_one_place()
        # Objects that the client has taken get their place in the next correction.
        self._let_others_work_stay(0, but=self._history.taken.values())
        self._put_taken_beside()
        for stage in range(3):
            self._let_others_work_stay(stage)
        return len(self.conflicts) > count

    def _give_directories_one_place(self) -> None:
        for directory in sorted(self.kept):
            if kind_of(directory) != ObjectKind.DIRECTORY:
                continue
            places = [each for each in self.tree.places(directory) if each.directory in self.kept]
            if len(places) > 1:
                now = self._log.tree.places(directory)
                stays = next((each for each in places if each in now), places[0])
                self._put(stays, directory)
                where = as_word(self._log.path(stays))
                for place in places:
                    if place != stays:
                        what = f"moved by {self._label}, and then by others: it stays {where}"
                        self._report(place, self._log.path(place), what)
        self._keep_all_again()

    def _put_taken_beside(self) -> None:
        for name, taken in self._history.taken.items():
            if (
                name.directory in self.kept
                and name not in self._corrected
                and self._is_missing(taken)
                and self._history.returned_to(name, taken) is None
            ):
                self._corrected.add(name)
                what = f"removed by {self._label}, and since changed by others; what it was is "
                self._report(name, self._log.path(name), what + self._put_beside(name, taken))

    def _let_others_work_stay(self, stage: int, *, but: Collection[ObjectId] = ()) -> None:
        for name in self._history.wanted:
            there = self._log.tree.get(name)
            if there is not None and there not in but and self._stage(name, there) <= stage:
                self._let_stay(name)

    def report_names_by_others(self) -> None:
        """Report the objects that the client made and to which others have given a name.

        Not the root: what is below it is taken back, and its own name is left as it is.
        """
        log, reported = self._log, {conflict.name for conflict in self.conflicts}
        for identifier in log.touched():
            is_below = identifier in self.kept and identifier != log.root
            if is_below and log.is_made_by_client(identifier):
                for place in self.tree.places(identifier):
                    if place.directory in self.kept and place not in reported:
                        what = f"made by {self._label}, and named so by others: it stays"
                        self._report(place, log.path(place), what)

    def _stage(self, name: Slot, there: ObjectId) -> int:
        """The stage in which it is decided that the object at a name stays there; 3 if in none."""
        if name in self._staying or not self._log.is_others(there):
            return 3
        places = self.tree.places(there)
        if there in self.kept:
            # A file of the client's keeps its name, unless it is moved to where others had it.
            is_moved = any(self._log.tree.get(each) != there for each in places)
            is_named = name in places or is_moved or not self._log.is_made_by_client(there)
            return 3 if is_named else 2
        if not places:
            return 0
        return 1 if any(self.tree.is_in(each.directory, there) for each in places) else 2

    def _let_stay(self, name: Slot) -> None:
        """Leave the name, and the directories above it, as they are now."""
        log, there = self._log, self._log.tree.get(name)
        assert there is not None, "only such names are kept as they are"
        if name.directory not in self.kept:
            self._let_stay(log.tree.places(name.directory)[0])
        self._staying.add(name)
        wanted, elsewhere = self.tree.get(name), self.tree.places(there)
        self._put(name, there)
        if wanted == there:
            return
        path = log.path(name)
        if kind_of(there) == ObjectKind.DIRECTORY and elsewhere:
            path = log.path(elsewhere[0])
            what = f"moved by {self._label}, and what it stood in was moved into it by others: "
            what += f"it stays {as_word(log.path(name))}"
        elif log.is_made_by_client(there):
            what = f"made by {self._label}, and others have worked in it: it stays"
        else:
            what = f"put there by {self._label}, and there is no other place for it: it stays"
        if wanted is not None:
            self._see_if_kept(wanted)
            if self._is_missing(wanted):
                returned = self._history.returned_to(name, wanted)
                there_now = None if returned is None else as_word(returned.name)
                beside = there_now or self._put_beside(name, wanted)
                what += f"; what was there before is {beside}"
        self._report(name, path, what)

    def _is_missing(self, identifier: ObjectId) -> bool:
        """True if the object is gone, or has no place in the tree so far."""
        # A file that is gone is put at each name that needs it: a second run can only compare
        # contents, and has to find it there.
        is_gone_file = kind_of(identifier) == ObjectKind.INODE and not self._log.is_there(
            identifier
        )
        return identifier not in self.kept or is_gone_file

    def _put_beside(self, name: Slot, identifier: ObjectId) -> str:
        beside = self._spare.take_beside(name)
        self._put(beside, identifier)
        return as_word(beside.name)

    def _put(self, name: Slot, identifier: ObjectId) -> None:
        if kind_of(identifier) == ObjectKind.DIRECTORY:
            for each in self.tree.places(identifier):
                self.tree.put(each, None)
        self.tree.put(name, identifier)
        self._keep(identifier)

    def _keep(self, identifier: ObjectId) -> None:
        self.kept.update(self.tree.below((identifier,)))

    def _see_if_kept(self, identifier: ObjectId) -> None:
        """Update `kept` after the object has lost a place."""
        if kind_of(identifier) == ObjectKind.DIRECTORY:
            self._keep_all_again()
        elif all(each.directory not in self.kept for each in self.tree.places(identifier)):
            self.kept.discard(identifier)

    def _keep_all_again(self) -> None:
        self.kept = set(self.tree.below(tops(self._log)))

    def _report(self, name: Slot, path: str, what: str) -> None:
        self.conflicts.append(UndoStep(f"{as_word(path)}: {what}", conflict=True, name=name))


def tops(log: ChangeLog) -> list[ObjectId]:
    """The root, and directories outside it of which no name is known."""
    return [log.root, *(each for each in log.tree.directories() if not log.is_there(each))]
