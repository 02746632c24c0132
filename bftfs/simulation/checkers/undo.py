"""Checks restores and undos against models.

A restored tree must be equal to the tree that clients were shown of that time, which another
checker compares with a model that keeps every state (`past`): names, kinds, contents, modes, and
which names are one file.

After an undo, the tree must be equal to that of a model which is given everybody's operations but
the client's: each name stands for the object that the others alone would have left there, each file
has their contents and mode. Wherever it differs, the undo must have reported a conflict and kept
both versions. Objects that the client made, and others use, must be as they were. If others'
operations would all have gone the same way without the client, only contents may be in conflict. An
audit must list exactly the client's changes. The model is the checker's own: it shares no code with
the product.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bftfs.filesystem import registry
from bftfs.identifiers import ClientId, ObjectId
from bftfs.query_update.history import LogicalTimestamp, client_of, time_of
from bftfs.restoration.name_plan import UndoStep
from bftfs.simulation.checkers.namespace import Established, NamespaceModel
from bftfs.simulation.checkers.past import NamedVersions, PastTree, WrittenContents
from bftfs.simulation.checkers.tree import SeenObject

Path = tuple[bytes, ...]


@dataclass(slots=True)
class Undone:
    """An undo of a client's changes since a time, and its result."""

    client: ClientId
    since_us: int
    own: frozenset[LogicalTimestamp]  # what an audit said that it changed
    before: dict[ObjectId, SeenObject]  # all that there was
    label: str  # what is put beside something bears this name
    steps: list[UndoStep] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # steps that were not done, and why
    again: list[UndoStep] = field(default_factory=list)  # what a second run found to be done
    after: dict[ObjectId, SeenObject] = field(default_factory=dict)


@dataclass(slots=True)
class Restored:
    """A restore of the tree as of a time, and its result."""

    time_us: int
    delete: bool
    left: str  # what a second run has changed; nothing, if all is well
    after: dict[ObjectId, SeenObject]


# --- restore ---------------------------------------------------------------------------------


def check_restored(restored: Restored, then: PastTree, *, root: ObjectId) -> list[str]:
    """Findings against a tree that was to be what was shown of a time."""
    where = f"restore: as of {restored.time_us}"
    wanted, found = _by_path(then.objects, root), _by_path(restored.after, root)
    findings = [f"{where} {_shown(path)} is missing" for path in wanted if path not in found]
    if restored.delete:
        findings += [f"{where} {_shown(path)} was not there" for path in found.keys() - wanted]
    if restored.left:
        findings.append(f"{where} a second run changed something: {restored.left}")
    for path, (_, right) in wanted.items():
        if path in found:
            wrong = _difference(found[path][1], right.attributes.mode, {right.content})
            findings += [f"{where} {_shown(path)} {each}" for each in wrong]
    common = [path for path in wanted if path in found]
    if _shared(common, wanted) != _shared(common, found):
        findings.append(f"{where} other names were one file than then")
    return findings


_Tree = dict[Path, tuple[ObjectId, SeenObject]]


def _by_path(objects: Mapping[ObjectId, SeenObject], root: ObjectId) -> _Tree:
    found: _Tree = {}
    waiting: list[tuple[Path, ObjectId]] = [((), root)]
    while waiting:
        path, identifier = waiting.pop()
        seen = objects[identifier]
        found[path] = identifier, seen
        waiting += [((*path, name), child) for name, child in seen.entries.items()]
    return found


def _shared(paths: Iterable[Path], tree: _Tree) -> set[frozenset[Path]]:
    """The sets of paths that are one file."""
    groups: dict[ObjectId, set[Path]] = {}
    for path in paths:
        groups.setdefault(tree[path][0], set()).add(path)
    return {frozenset(group) for group in groups.values()}


def _difference(seen: SeenObject, mode: int, contents: set[bytes | None]) -> Iterator[str]:
    if seen.attributes.mode != mode:
        yield f"has the mode {seen.attributes.mode:o}, and not {mode:o}"
    if seen.content is not None and seen.content not in contents:
        yield f"has the contents {seen.content!r}, and not {contents}"


def _shown(path: Path) -> str:
    return "/" + b"/".join(path).decode(errors="backslashreplace")


# --- undo ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Honest:
    """The file system as the others would have left it; `whole` is the one with the client."""

    whole: NamespaceModel = field(default_factory=NamespaceModel)
    alone: NamespaceModel = field(default_factory=NamespaceModel)
    entries: dict[ObjectId, dict[bytes, ObjectId]] = field(default_factory=dict)
    modes: dict[ObjectId, int] = field(default_factory=dict)
    contents: dict[ObjectId, set[bytes]] = field(default_factory=dict)  # what may be there
    before: dict[ObjectId, set[bytes]] = field(default_factory=dict)  # before the client
    taken: dict[tuple[ObjectId, bytes], set[ObjectId]] = field(default_factory=dict)  # by name
    merged: set[ObjectId] = field(default_factory=set)  # files that others wrote after the client
    made: set[ObjectId] = field(default_factory=set)  # by the client
    independent: bool = True  # all operations of others go the same way without the client's


def check_undone(
    undone: Undone,
    taken: Established,
    *,
    contents: Mapping[ObjectId, WrittenContents],
    auditor: ClientId,
    root: ObjectId,
) -> list[str]:
    """Findings against an undo; `auditor` is the client that performed it."""
    findings: list[str] = []
    honest = _Honest()
    own: set[LogicalTimestamp] = set()
    named = NamedVersions()
    there: set[ObjectId] = set()  # since then
    for timestamp in sorted(taken.operations):
        author = client_of(timestamp)
        if author == auditor:
            continue
        operation = taken.operations[timestamp]
        is_own = author == undone.client and time_of(timestamp) >= undone.since_us
        if time_of(timestamp) >= undone.since_us:
            there = there or honest.whole.reachable()
            if there & {*operation.objects}:  # else nobody can find it any more
                there |= {*operation.objects}
                own |= {timestamp} if is_own else set()
        arguments = taken.arguments_of(operation)
        _replay(honest, operation.method, operation.objects, arguments, is_own=is_own)
        named.apply(timestamp, operation, arguments)
        if operation.method in (registry.WRITE, registry.TRUNCATE):
            identifier = operation.objects[0]
            known = contents.get(identifier, WrittenContents())
            _write(honest, identifier, known.named(named.get(identifier)), is_own=is_own)
    where = f"undo: since {undone.since_us}"
    if undone.own != own:
        findings.append(
            f"{where} {len(own - undone.own)} changes were not listed, and "
            f"{len(undone.own - own)} are not the client's"
        )
    findings += [f"{where} not done: {failure}" for failure in undone.failed]
    findings += [f"{where} a second run: {step.what}" for step in undone.again if step.perform]
    if honest.independent and any(
        honest.alone.entries(each) != honest.entries[each] for each in honest.alone.reachable()
    ):
        findings.append(f"{where} the model contradicts itself")
    return findings + [f"{where} {each}" for each in _Comparison(undone, honest).findings(root)]


def _replay(
    honest: _Honest, method: str, objects: Sequence[ObjectId], arguments: object, *, is_own: bool
) -> None:
    """One operation, with the client and without it."""
    before = _entries(honest.whole, objects)
    honest.whole.apply(method, objects, arguments)
    changes = _changes(before, _entries(honest.whole, objects))
    for each in objects:
        made = honest.whole.objects.get(each)
        if made is not None and each not in before:
            honest.entries[each] = {}
            honest.modes[each] = made.mode
            honest.contents[each] = {b""}
            if is_own:
                honest.made.add(each)
    for each, name, child in changes:
        left = honest.entries[each].get(name)
        if is_own:
            if left is not None:
                honest.taken.setdefault((each, name), set()).add(left)
        elif child is None:
            honest.entries[each].pop(name, None)
        else:
            honest.entries[each][name] = child
    if is_own:
        return
    before = _entries(honest.alone, objects)
    refused = honest.alone.apply(method, objects, arguments)
    if refused or _changes(before, _entries(honest.alone, objects)) != changes:
        honest.independent = False
    if method == registry.CHANGE_ATTRIBUTES:
        honest.modes[objects[0]] = honest.whole.objects[objects[0]].mode


_Entries = dict[ObjectId, dict[bytes, ObjectId]]


def _entries(model: NamespaceModel, objects: Sequence[ObjectId]) -> _Entries:
    return {each: dict(model.entries(each)) for each in objects if each in model.objects}


def _changes(before: _Entries, after: _Entries) -> set[tuple[ObjectId, bytes, ObjectId | None]]:
    """The names that stand for another object, or for none."""
    return {
        (each, name, entries.get(name))
        for each, entries in after.items()
        for name in before.get(each, {}).keys() | entries.keys()
        if before.get(each, {}).get(name) != entries.get(name)
    }


def _write(honest: _Honest, identifier: ObjectId, written: set[bytes], *, is_own: bool) -> None:
    if is_own:
        honest.before.setdefault(identifier, honest.contents[identifier])
        return
    if identifier in honest.before:
        honest.merged.add(identifier)
    honest.contents[identifier] = written


class _Comparison:
    """Compares the tree after an undo with the one that the others alone would have left."""

    def __init__(self, undone: Undone, honest: _Honest) -> None:
        self._undone = undone
        self._honest = honest
        self._beside = re.compile(rf"(\.before-{re.escape(undone.label)}(-\d+)?)+$".encode())
        self._placed = {child for each in honest.entries.values() for child in each.values()}
        self._conflicts = {step.name for step in undone.steps if step.conflict}
        self._findings: list[str] = []
        # Files that hold what they held before the undo, and not what others would have left.
        self._unchanged: dict[ObjectId, Path] = {}
        # Files in conflict, beside which there is what they were before the client.
        self._kept_both: set[ObjectId] = set()

    def findings(self, root: ObjectId) -> list[str]:
        """All differences that are no reported conflicts."""
        self._compare((), root, root, ())
        return self._findings + [
            f"{_shown(path)} holds what it held, without a conflict that keeps both versions"
            for each, path in self._unchanged.items()
            if each not in self._kept_both
        ]

    def _compare(
        self, path: Path, wanted: ObjectId, there: ObjectId, above: tuple[ObjectId, ...]
    ) -> None:
        """Compare what stands at `path`, which is to be `wanted`, with all that is in it."""
        seen = self._undone.after[there]
        honest = self._honest
        if honest.whole.objects[wanted].directory != seen.attributes.is_directory:
            self._findings.append(f"{_shown(path)} is another kind of thing")
            return
        mode = stat.S_IFMT(seen.attributes.mode) | honest.modes[wanted]
        contents: set[bytes | None] = {*honest.contents[wanted]}
        before = self._undone.before.get(there)
        if before is not None and there in honest.made:
            # An object that the client made stays as it is, if others use it: it was nothing before
            # the client.
            mode, contents = before.attributes.mode, {before.content}
        else:
            contents |= self._unmerged(path, there)
        self._findings += [f"{_shown(path)} {wrong}" for wrong in _difference(seen, mode, contents)]
        entries = honest.entries[wanted]
        for name in sorted(entries.keys() | seen.entries.keys()):
            full, child = (*path, name), seen.entries.get(name)
            # An undo knows a directory by what it was, also if it has made it anew.
            reported = (wanted, name) in self._conflicts
            if reported:
                self._require_conflict(full, entries.get(name), child)
                if child is not None and self._is_earlier_beside(name, child, seen.entries):
                    self._kept_both.add(child)
            if name not in entries and self._beside.search(name):
                self._check_kept(full, wanted, there, child)
            elif name not in entries or child is None:
                if not reported:
                    self._findings.append(
                        f"{_shown(full)} is {'lost' if child is None else 'too much'}"
                    )
            elif entries[name] not in (*above, wanted) and (not reported or child == entries[name]):
                self._compare(full, entries[name], child, (*above, wanted))

    def _unmerged(self, path: Path, there: ObjectId) -> set[bytes | None]:
        """The contents that a file had before the undo, if they stay: others wrote it as well."""
        before = self._undone.before.get(there)
        if before is None or there not in self._honest.merged:
            return set()
        content = self._undone.after[there].content
        if content == before.content and content not in self._honest.contents[there]:
            self._unchanged.setdefault(there, path)
        return {before.content}

    def _is_earlier_beside(
        self, name: bytes, child: ObjectId, entries: Mapping[bytes, ObjectId]
    ) -> bool:
        """True if beside the file there is one with what it was before the client wrote it."""
        earlier = self._honest.before.get(child, set())
        return any(
            self._undone.after[each].content in earlier
            for other, each in entries.items()
            if other.startswith(name) and self._beside.match(other, len(name))
        )

    def _require_conflict(
        self, path: Path, wanted: ObjectId | None, there: ObjectId | None
    ) -> None:
        """A conflict is reported only where both the client and others have changed something."""
        honest = self._honest
        if wanted is None and there in honest.whole.objects.keys() - honest.made - self._placed:
            return  # others removed it from where they had it; undo removes nothing of theirs
        if honest.independent and (wanted is None or wanted != there):
            self._findings.append(f"{_shown(path)} is in conflict with nothing")
        if honest.independent and wanted not in honest.merged:
            self._findings.append(f"{_shown(path)} has contents in conflict with nothing")

    def _check_kept(
        self, path: Path, wanted: ObjectId, directory: ObjectId, there: ObjectId | None
    ) -> None:
        """An object beside a name must be one that stood there before, and must be in conflict."""
        honest = self._honest
        base = self._beside.sub(b"", path[-1])
        if (wanted, base) not in self._conflicts or there is None:
            self._findings.append(f"{_shown(path)} is nobody's")
            return
        seen = self._undone.after[there]
        if seen.content is None:
            return
        own = {honest.entries[wanted].get(base), *honest.taken.get((wanted, base), ())}
        own.add(self._undone.after[directory].entries.get(base))  # what stays, as it was before
        right: set[bytes | None] = {
            content
            for each in own
            if each in honest.contents
            for content in honest.contents[each] | honest.before.get(each, set())
        }
        if there in own:  # it stood there itself, and what it holds can be in conflict, too
            right |= self._unmerged(path, there)
        if seen.content not in right:
            self._findings.append(f"{_shown(path)} holds {seen.content!r}, and not {right}")
