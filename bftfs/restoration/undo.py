"""Taking back what a client has done, and keeping what everybody else has.

For each name and each file that the client has changed, it is asked what would be there if only the
others' changes had been made. Where that cannot be known, both versions are kept: what is there
stays, and what was there before stands beside it, under the name with `.before-CLIENT` behind it.
Undoing is history itself: the client's versions stay in the log.

Concurrency: others may work meanwhile. Each step is one operation on the objects that it names, by
the client of whoever undoes; a step whose premises have changed is refused.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, groupby
from typing import Final

from bftfs.conversation import Conversation, Now
from bftfs.errors import FileSystemError
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.directory import RENAME_EXCHANGE, RENAME_NOREPLACE
from bftfs.filesystem.file_history import Change
from bftfs.filesystem.registry import CREATE, MERGE, TRUNCATE, WRITE
from bftfs.identifiers import ObjectId, ObjectKind, kind_of
from bftfs.restoration.merging import carried_over
from bftfs.restoration.owed import Owed, everything, left, owed, settle
from bftfs.restoration.sight import PIECE_BYTES, Sight
from bftfs.restoration.strays import Stray, without
from bftfs.restoration.trail import Name, Trail, begins

_CONTENTS: Final = frozenset((CREATE, WRITE, TRUNCATE))


@dataclass(frozen=True, slots=True)
class Step:
    """Something to be done; or, without `perform`, a conflict that somebody has to look at."""

    what: str
    perform: Callable[[], Conversation[object]] | None = None
    conflict: bool = False
    name: Name | None = None  # of a conflict: where it is


@dataclass(frozen=True, slots=True)
class _State:
    """What one side has made of a file: as after a change, without what the other side wrote."""

    is_own: bool
    change: Change
    strays: list[Stray]


class Undoing:
    """The steps that take a client's changes back."""

    def __init__(self, sight: Sight, trail: Trail, *, label: str) -> None:
        self._sight = sight
        self._trail = trail
        self._label = label
        self._who = sight.who
        # Of names that the client changed: what they are to stand for, and what others put in the
        # place of what it took.
        self._wanted: dict[Name, ObjectId | None] = {}
        self._taken: dict[Name, ObjectId] = {}
        self._entries = dict(trail.entries)  # as they will be after the steps so far
        self._names: list[Name] = []  # of which it is asked what they are to stand for
        self._reserved: set[Name] = set()  # beside others
        self._remade: dict[ObjectId, ObjectId] = {}  # inodes that were gone

    async def steps(self) -> list[Step]:
        """What is to be done, in an order in which it can be done."""
        trail = self._trail
        self._names = [
            Name(directory, name)
            for directory in trail.touched()
            if kind_of(directory) == ObjectKind.DIRECTORY and directory in self._kept()
            for name in self._names_touched(directory)
        ]
        for name in self._names:
            await self._judge(name)
        conflicts: list[Step] = []
        targets: dict[Name, ObjectId] = {}
        staying: set[Name] = set()
        for name in self._names:
            wanted, there = self._wanted[name], trail.entries.get(name)
            if there is not None and there != wanted and self._has_others_work(there):
                staying.add(name)
                if wanted is None:
                    conflicts.append(self._staying(name))
                else:
                    self._taken[name] = wanted
            elif wanted is not None and there != wanted:
                targets[name] = wanted
        await self._keep_taken(staying, targets, conflicts)
        moves, copies = await self._placed(targets, conflicts)
        brought: set[ObjectId] = set()
        for identifier in copies.values():
            brought |= await self._below(identifier)
        links = await self._unlinked(staying, brought, copies, conflicts)
        removals = self._removed(staying, conflicts)
        # What is linked to its old place when that is brought back, is removed from its new one
        # after it.
        late = any(identifier in brought for _, identifier in links)
        early = {name: step for name, step in removals.items() if not late or name in copies}
        return [
            *moves,
            *(() if late else links.values()),
            *early.values(),
            *(
                Step(f"bring back {trail.path(name)}", partial(self._copy_back, identifier, name))
                for name, identifier in copies.items()
            ),
            *(links.values() if late else ()),
            *(step for name, step in removals.items() if name not in early),
            *await self._changed_in_place(),
            *conflicts,
            *self._renamed_by_others(),
        ]

    # --- names -------------------------------------------------------------------------------

    def _names_touched(self, directory: ObjectId) -> list[bytes]:
        return sorted(
            {
                name
                for change in self._trail.changes.get(directory, ())
                if self._trail.by_client(change)
                for name, _ in change.entries
            }
        )

    async def _judge(self, name: Name) -> None:
        """What the name would stand for if only others had changed it, and what they replaced."""
        happened = self._trail.of_name(name)
        first = next(at for at, each in enumerate(happened) if self._trail.by_client(each[0]))
        past = self._sight.history.at(happened[first][0].time_us - 1)
        wanted: ObjectId | None = None
        with suppress(FileSystemError):  # it stood for nothing
            wanted = (await past.lookup(name.directory, name.name, self._who)).identifier
        taken = False
        for change, entry in happened[first:]:
            if self._trail.by_client(change):
                taken = wanted is not None and (entry is None or entry.child != wanted)
                continue
            if taken and wanted is not None:
                self._taken[name] = wanted
            taken = False
            wanted = None if entry is None else entry.child
        self._wanted[name] = wanted
        if wanted is not None and self._taken.get(name) == wanted:
            del self._taken[name]

    async def _keep_taken(
        self, staying: set[Name], targets: dict[Name, ObjectId], conflicts: list[Step]
    ) -> None:
        """Give what the client took, and others have replaced, a place beside what stays there."""
        for name, taken in self._taken.items():
            if self._is_right(taken):
                if name in staying:
                    conflicts.append(self._staying(name))
                continue
            if await self._is_back(taken, name):
                continue
            beside, is_there = await self._beside(name, partial(self._stands_for, taken))
            if not is_there:
                targets[beside] = taken
            if name in staying:
                conflicts.append(self._staying(name, beside))
            elif not is_there:
                what = f"{self._trail.path(name)}: removed by {self._label}, and since used by "
                what += f"others; what it was is {_shown(beside.name)}"
                conflicts.append(Step(what, conflict=True, name=name))

    def _places(self, identifier: ObjectId) -> list[Name]:
        """Where something will stand after the steps so far."""
        return [
            place
            for place in self._trail.places.get(identifier, ())
            if self._entries.get(place) == identifier
        ] + [
            place
            for place, there in self._entries.items()
            if there == identifier and self._trail.entries.get(place) != identifier
        ]

    def _is_right(self, identifier: ObjectId) -> bool:
        """Whether something stands where it may stay."""
        return any(
            self._wanted.get(place, identifier) == identifier for place in self._places(identifier)
        )

    def _stands(self, identifier: ObjectId) -> Name:
        """Where to look for something that is there after the steps so far."""
        places = self._places(identifier) or self._trail.places[identifier]
        right = (each for each in places if self._wanted.get(each, identifier) == identifier)
        return next(right, places[0])

    def _misplaced(self, identifier: ObjectId) -> Name | None:
        """Where the client has put something that is wanted elsewhere."""
        return next(
            (
                place
                for place in self._places(identifier)
                if self._wanted.get(place, identifier) != identifier
            ),
            None,
        )

    def _has_others_work(self, identifier: ObjectId) -> bool:
        """Whether others have changed what the client made, or what it made in that."""
        trail = self._trail
        if not trail.is_made_by_client(identifier):
            return False
        return any(not trail.by_client(change) for change in trail.changes[identifier]) or any(
            self._has_others_work(child)
            for name, child in trail.entries.items()
            if name.directory == identifier
        )

    async def _beside(
        self,
        name: Name,
        is_it: Callable[[ObjectId], Conversation[bool]],
        *,
        also: Sequence[Name] = (),
    ) -> tuple[Name, bool]:
        """Where something has its place beside a name; and whether it stands there already.

        Or beside one of the other names that the same thing has `also`.
        """
        for each in (name, *also):
            for beside in self._besides(each):
                there = self._entries.get(beside)
                if there is None:
                    break
                if self._wanted.get(beside, there) == there and await is_it(there):
                    self._reserved.add(beside)
                    return beside, True
        beside = next(
            each
            for each in self._besides(name)
            if self._entries.get(each) is None and self._wanted.get(each) is None
        )
        self._reserved.add(beside)
        return beside, False

    def _besides(self, name: Name) -> Iterator[Name]:
        """The places beside a name that nothing is to come to yet."""
        for number in count(1):
            suffix = f".before-{self._label}" + (f"-{number}" if number > 1 else "")
            beside = Name(name.directory, name.name + suffix.encode())
            if beside not in self._reserved:
                yield beside

    def _staying(self, name: Name, beside: Name | None = None) -> Step:
        what = f"{self._trail.path(name)}: made by {self._label}, and others have worked in it: "
        what += "it stays"
        if beside is not None:
            what += f"; what was there before is {_shown(beside.name)}"
        return Step(what, conflict=True, name=name)

    async def _placed(
        self, targets: dict[Name, ObjectId], conflicts: list[Step]
    ) -> tuple[list[Step], dict[Name, ObjectId]]:
        """Moves that give things their places back, and what has to be made anew for that."""
        trail = self._trail
        moves: list[Step] = []
        copies: dict[Name, ObjectId] = {}
        waiting = deque(targets.items())
        put_off = 0  # in a row
        while waiting:
            target, identifier = waiting.popleft()
            if self._entries.get(target) == identifier:
                continue  # it has come there in exchange
            source = self._misplaced(identifier)
            if source is not None and self._is_in(target.directory, identifier):
                if put_off < len(waiting):
                    waiting.append((target, identifier))  # until that has been moved out of it
                    put_off += 1
                    continue
                conflicts.append(
                    Step(
                        f"{trail.path(target)}: moved by {self._label}, and what it stood in was "
                        f"moved into it by others: it stays {trail.paths[identifier]}",
                        conflict=True,
                        name=source,
                    )
                )
                self._wanted[source] = identifier
                continue
            there = self._entries.get(target)
            if source is not None and there is not None and self._is_in(source.directory, there):
                if put_off < len(waiting):
                    waiting.append((target, identifier))  # until that has been moved itself
                    put_off += 1
                    continue
                aside, _ = await self._beside(target, _nothing)
                moves.append(
                    Step(
                        f"move {trail.path(source)} out of {trail.path(target)}",
                        partial(self._move, source, aside, RENAME_NOREPLACE),
                    )
                )
                del self._entries[source]
                self._entries[aside] = identifier
                self._names.append(aside)  # where what is in its place comes in exchange
                self._wanted[aside] = None
                source = aside
            put_off = 0
            if source is not None:
                flags = RENAME_NOREPLACE if there is None else RENAME_EXCHANGE
                moves.append(
                    Step(
                        f"move {trail.path(source)} back to {trail.path(target)}",
                        partial(self._move, source, target, flags),
                    )
                )
                self._entries[target] = identifier
                if there is None:
                    del self._entries[source]
                else:
                    self._entries[source] = there
            elif kind_of(identifier) == ObjectKind.DIRECTORY and self._places(identifier):
                conflicts.append(
                    Step(
                        f"{trail.path(target)}: moved by {self._label}, and then by others: it "
                        f"stays {trail.paths[identifier]}",
                        conflict=True,
                        name=target,
                    )
                )
            else:
                copies[target] = identifier
        return moves, copies

    def _is_in(self, directory: ObjectId, other: ObjectId) -> bool:
        """Whether a directory is another one, or somewhere below it, after the steps so far."""
        passed: set[ObjectId] = set()
        while directory != other and directory not in passed:
            passed.add(directory)
            place = next(iter(self._places(directory)), None)
            if place is None:
                return False
            directory = place.directory
        return directory == other

    async def _unlinked(
        self,
        staying: set[Name],
        brought: set[ObjectId],
        copies: dict[Name, ObjectId],
        conflicts: list[Step],
    ) -> dict[tuple[Name, ObjectId], Step]:
        """Where the client has put what it has not made, and that has a place of its own."""
        links: dict[tuple[Name, ObjectId], Step] = {}
        for name in self._names:
            there = self._entries.get(name)
            if (
                there is None
                or there == self._wanted[name]
                or name in staying
                or self._trail.is_made_by_client(there)
            ):
                continue
            if not self._is_right(there) and (there not in brought or name in copies):
                what = (
                    f"{self._trail.path(name)}: put there by {self._label}, and there is no other "
                )
                what += "place for it: it stays"
                if name in copies:
                    lost = copies.pop(name)
                    beside, is_there = await self._beside(name, partial(self._stands_for, lost))
                    if not is_there:
                        copies[beside] = lost
                    what += f"; what was there before is {_shown(beside.name)}"
                conflicts.append(Step(what, conflict=True, name=name))
                continue
            if kind_of(there) != ObjectKind.DIRECTORY:  # else it is moved when that is brought back
                links[name, there] = self._removal(name, there)
            del self._entries[name]
        return links

    def _removal(self, name: Name, there: ObjectId) -> Step:
        what = f"what {self._label} put in place of " if self._wanted[name] else ""
        return Step(f"remove {what}{self._trail.path(name)}", partial(self._remove, name, there))

    def _removed(self, staying: set[Name], conflicts: list[Step]) -> dict[Name, Step]:
        """What the client has made."""
        removals: dict[Name, Step] = {}
        for name in self._names:
            there = self._entries.get(name)
            if (
                there is None
                or there == self._wanted[name]
                or name in staying
                or not self._trail.is_made_by_client(there)
            ):
                continue
            if self._is_clear(there):
                removals[name] = self._removal(name, there)
            else:
                conflicts.append(self._staying(name))
        whole = {self._entries[name] for name in removals}
        return {name: step for name, step in removals.items() if not self._is_below(name, whole)}

    def _is_below(self, name: Name, directories: set[ObjectId]) -> bool:
        """Whether the name is in one of the directories, or in one that the client made in them."""
        directory = name.directory
        while directory not in directories:
            place = next(iter(self._places(directory)), None)
            if place is None or not self._trail.is_made_by_client(directory):
                return False
            directory = place.directory
        return True

    def _is_clear(self, identifier: ObjectId) -> bool:
        """Whether nothing is in what the client made but what it made."""
        return all(
            self._trail.is_made_by_client(child) and self._is_clear(child)
            for name, child in self._entries.items()
            if name.directory == identifier
        )

    def _renamed_by_others(self) -> list[Step]:
        """Conflicts about what the client made, where others have put it."""
        trail = self._trail
        return [
            Step(
                f"{trail.path(place)}: made by {self._label}, and named so by others: it stays",
                conflict=True,
                name=place,
            )
            for identifier in trail.touched()
            if trail.is_made_by_client(identifier)
            for place in trail.places.get(identifier, ())
            if place not in self._wanted or self._wanted[place] == identifier
        ]

    async def _below(self, identifier: ObjectId) -> set[ObjectId]:
        """What is brought back with something that is gone."""
        found = {identifier}
        if kind_of(identifier) == ObjectKind.DIRECTORY and not self._places(identifier):
            entries = await self._entries_then(identifier, self._last_seen_us(identifier))
            for child in entries.values():
                if child not in found:
                    found |= await self._below(child)
        return found

    async def _is_back(self, lost: ObjectId, name: Name) -> bool:
        """Whether something that is gone was brought back before, under its name."""
        there = self._trail.entries.get(name)
        if there is None or self._wanted.get(name, there) != there:
            return False
        return await self._stands_for(lost, there)

    async def _stands_for(self, lost: ObjectId, there: ObjectId) -> bool:
        """Whether what is there is what was brought back of something that is gone."""
        if self._places(lost) or self._trail.is_made_by_client(there):
            return False
        return await self._is_like(lost, there)

    async def _is_like(self, lost: ObjectId, there: ObjectId) -> bool:
        """Whether what is there now has all that was lost."""
        if kind_of(there) != kind_of(lost):
            return False
        time_us = self._last_seen_us(lost)
        if kind_of(lost) == ObjectKind.DIRECTORY:
            return all(
                Name(there, name) in self._trail.entries
                for name in await self._entries_then(lost, time_us)
            )
        past = self._sight.history.at(time_us)
        was = await past.attributes(lost, self._who)
        if not was.is_regular:
            return stat.S_ISLNK(was.mode)
        return await self._contents_left(lost) == await self._sight.contents(there, None)

    # --- contents and attributes -------------------------------------------------------------

    async def _changed_in_place(self) -> list[Step]:
        """What is to be done to files and directories that are where they belong."""
        trail = self._trail
        steps = []
        for identifier in trail.touched():
            if trail.is_made_by_client(identifier) or identifier not in self._kept():
                continue
            path = trail.paths.get(identifier, identifier.hex())
            if kind_of(identifier) == ObjectKind.INODE:
                steps += await self._contents_steps(identifier, path)
        # After all that changes times by the way.
        for identifier in trail.touched():
            if trail.is_made_by_client(identifier) or identifier not in self._kept():
                continue
            debt = await owed(self._sight, trail, identifier)
            if debt:
                path = trail.paths.get(identifier, identifier.hex())
                steps.append(
                    Step(
                        f"give {path} its attributes back ({debt})",
                        partial(settle, self._sight, identifier, debt),
                    )
                )
        return steps

    def _kept(self) -> set[ObjectId]:
        """What is there now, or is moved back."""
        return set(self._trail.places) | {next(iter(self._trail.paths))}

    async def _contents_steps(self, identifier: ObjectId, path: str) -> list[Step]:
        trail = self._trail
        changes = self._changes_of_contents(identifier)
        first = next((each for each in changes if trail.is_tainted(identifier, each)), None)
        # What waits for the next update to come to light stays behind when the file is rewritten.
        lurking = any(stray.shown_by is None for stray in trail.strays.get(identifier, ()))
        if first is None and not lurking:
            return []
        honest = await self._honest_contents(identifier)
        if honest is not None:
            if honest == await self._sight.contents(identifier, None) and not lurking:
                return []
            return [
                Step(f"take back what was written to {path}",
                     partial(self._rewrite, identifier, honest))
            ]  # fmt: skip
        assert first is not None, "what nobody has covered is in nobody's way"
        steps = []
        if lurking:
            shown = await self._sight.contents(identifier, self._sight.now_us)
            steps.append(
                Step(f"take back what was written to {path}, and is not covered",
                     partial(self._rewrite, identifier, shown))
            )  # fmt: skip
        place = self._stands(identifier)
        past = self._sight.history.at(first.time_us - 1)
        if trail.by_client(first):
            before = await self._sight.contents(identifier, first.time_us - 1)
        else:  # others covered it with what they had written themselves
            strays = trail.strays_in(identifier, first)
            before = await self._contents_after(identifier, _State(False, first, strays))
        attributes = await everything(self._sight, past, identifier)
        beside, is_there = await self._beside(
            place, partial(self._holds, before), also=self._places(identifier)
        )
        if is_there:
            return steps
        return [
            *steps,
            Step(
                f"{self._trail.path(place)}: changed by {self._label}, and then by others in the "
                f"same places; "
                f"what it was before is {_shown(beside.name)}",
                partial(self._write_new, beside, before, attributes),
                True,
                place,
            ),
        ]

    async def _holds(self, contents: bytes, there: ObjectId) -> bool:
        """Whether what is there is a file with these contents."""
        if kind_of(there) != ObjectKind.INODE:
            return False
        found = await self._sight.files.attributes(there, self._who)
        return found.is_regular and await self._sight.contents(there, None) == contents

    def _changes_of_contents(self, identifier: ObjectId) -> list[Change]:
        """What changed the file's bytes. Who rearranges blocks changes none, unless he lies."""
        trail = self._trail
        return [
            change
            for change in trail.changes.get(identifier, ())
            if change.operation.method in _CONTENTS
            or (change.operation.method == MERGE and trail.is_tainted(identifier, change))
        ]

    async def _contents_left(self, identifier: ObjectId) -> bytes:
        """The contents as others left them; as the last of them saw them, if that is unknown."""
        honest = await self._honest_contents(identifier)
        if honest is None:
            last_us = max(
                change.time_us
                for change in self._changes_of_contents(identifier)
                if not self._trail.by_client(change)
            )
            honest = await self._sight.contents(identifier, last_us)
        return honest

    async def _honest_contents(self, identifier: ObjectId) -> bytes | None:
        """The contents as others' changes alone would have left them; None if that is unknown."""
        trail = self._trail
        changes = self._changes_of_contents(identifier)
        tainted = (at for at, each in enumerate(changes) if trail.is_tainted(identifier, each))
        first = next(tainted, None)
        if first is None:
            known = trail.changes.get(identifier)
            return await self._sight.contents(
                identifier, known[-1].time_us if known else self._sight.now_us
            )
        was = honest = b""  # if the client has made it
        if not begins(changes[first]):
            was = honest = await self._sight.contents(identifier, changes[first].time_us - 1)
        states: list[_State] = []
        for change in changes[first:]:
            strays, is_own = trail.strays_in(identifier, change), trail.by_client(change)
            states.append(_State(is_own, change, strays))
            if strays:
                states.append(_State(not is_own, change, []))  # with what the other side wrote
        # A program that rewrites a file makes several versions: what one client did in a row is one
        # change.
        for is_own, run in groupby(states, key=lambda state: state.is_own):
            is_now = await self._contents_after(identifier, list(run)[-1])
            if not is_own:
                merged = carried_over(before=was, after=is_now, onto=honest)
                # Who writes what is there already has meant it; or has written it before the
                # client covered it.
                if merged is None or (is_now == was and is_now != honest):
                    return None
                honest = merged
            was = is_now
        return honest

    async def _contents_after(self, identifier: ObjectId, state: _State) -> bytes:
        contents = await self._sight.contents(identifier, state.change.time_us)
        attributes = state.change.attributes
        if not state.strays or attributes is None or attributes.layout is None:
            return contents
        return await without(
            self._sight,
            contents,
            state.strays,
            self._trail.client,
            attributes.layout.block_bytes,
        )

    # --- what steps do -----------------------------------------------------------------------

    async def _move(self, source: Name, target: Name, flags: int) -> None:
        await self._sight.files.rename(
            source.directory, source.name, target.directory, target.name, self._who, flags=flags
        )

    async def _remove(self, name: Name, expected: ObjectId) -> None:
        """Remove what the client put there, with all that is in it."""
        files, who = self._sight.files, self._who
        found = await files.lookup(name.directory, name.name, who)
        if found.identifier != expected:
            raise FileSystemError(errno.ESTALE, "it is something else by now")
        if kind_of(expected) != ObjectKind.DIRECTORY:
            await files.unlink(name.directory, name.name, who)
            return
        for child, node in await self._sight.listing(expected, None):
            if not self._trail.is_made_by_client(node.identifier):
                raise FileSystemError(errno.ENOTEMPTY, "there is something in it by now")
            await self._remove(Name(expected, child), node.identifier)
        await files.remove_directory(name.directory, name.name, who)

    async def _copy_back(self, identifier: ObjectId, name: Name) -> None:
        """Make anew what is gone, as others left it."""
        files, who, sight, trail = self._sight.files, self._who, self._sight, self._trail
        time_us = self._last_seen_us(identifier)
        past = sight.history.at(time_us)
        attributes = await past.attributes(identifier, who)
        if not attributes.is_directory:
            there = self._remade.get(identifier, identifier)
            if there != identifier or identifier in trail.places:
                await files.link(there, name.directory, name.name, who)
                return
        elif (source := self._misplaced(identifier)) is not None:
            await self._move(source, name, RENAME_NOREPLACE)
            return
        if attributes.is_directory:
            found = await files.make_directory(name.directory, name.name, 0o700, who)
            made = found.identifier
            entries = await self._entries_then(identifier, time_us)
            for child_name, child in entries.items():
                await self._copy_back(child, Name(made, child_name))
            await settle(sight, made, await left(sight, trail, identifier))
        elif stat.S_ISLNK(attributes.mode):
            target = await sight.link_target(identifier, time_us)
            found = await files.make_symlink(name.directory, name.name, target, who)
            self._remade[identifier] = found.identifier
        elif attributes.is_regular:
            self._remade[identifier] = await self._write_new(
                name, await self._contents_left(identifier), await left(sight, trail, identifier)
            )
        else:
            mode, device = attributes.mode, attributes.device
            found = await files.make_node(name.directory, name.name, mode, who, device=device)
            self._remade[identifier] = found.identifier

    def _last_seen_us(self, identifier: ObjectId) -> int:
        """A time at which the thing was as it was before the client's first change of it."""
        changes = self._trail.changes.get(identifier, ())
        tainted = (
            each
            for each in changes
            if self._trail.is_tainted(identifier, each) and not begins(each)
        )
        first = next(tainted, None)
        return self._sight.now_us if first is None else first.time_us - 1

    async def _entries_then(self, directory: ObjectId, time_us: int) -> dict[bytes, ObjectId]:
        """What a directory held, with what others did to it later."""
        listed = await self._sight.listing(directory, time_us)
        entries = {name: node.identifier for name, node in listed}
        for change in self._trail.changes.get(directory, ()):
            if change.time_us > time_us and not self._trail.by_client(change):
                for name, entry in change.entries:
                    if entry is None:
                        entries.pop(name, None)
                    else:
                        entries[name] = entry.child
        return entries

    async def _write_new(self, name: Name, contents: bytes, attributes: Owed) -> ObjectId:
        files, who = self._sight.files, self._who
        flags = os.O_WRONLY | os.O_EXCL
        mode = stat.S_IFREG | 0o600
        found, opened = await files.create(name.directory, name.name, mode, who, flags=flags)
        await self._fill(opened, contents)
        await settle(self._sight, found.identifier, attributes)
        return found.identifier

    async def _rewrite(self, identifier: ObjectId, contents: bytes) -> None:
        files = self._sight.files
        opened = await files.open(identifier, os.O_WRONLY | os.O_TRUNC, self._who)
        await self._fill(opened, contents)

    async def _fill(self, opened: OpenFile, contents: bytes) -> None:
        files = self._sight.files
        try:
            for offset in range(0, len(contents), PIECE_BYTES):
                piece = contents[offset : offset + PIECE_BYTES]
                if files.write(opened, offset, piece, now_ns=(await Now()) * 1000):
                    await files.write_behind(opened)
        finally:
            await files.release(opened)


async def _nothing(_: ObjectId) -> bool:
    return False


def _shown(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
