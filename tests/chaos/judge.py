"""Judges what the workers saw, with the checkers of the simulator."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TypeAlias

from bftfs.filesystem.attributes import Attributes
from bftfs.identifiers import ObjectId
from bftfs.simulation.checkers.models import ModelOperation, SearchExhausted, check_model
from bftfs.simulation.checkers.registers import RegisterOperation, check_register, check_regular
from bftfs.simulation.checkers.tree import SeenObject, check_tree
from tests.chaos.history import Event
from tests.chaos.workers import BLOCK_BYTES, BLOCKS_PER_FILE, NAMES

DIRECTORY = "(directory)"
_EMPTY: tuple[str | None, ...] = (None,) * len(NAMES)

State: TypeAlias = tuple[str | None, ...]

# What a program may be told although all is well, by operation. Nothing else ever is, since no
# more nodes are disturbed than the cluster masks.
_REFUSALS = {
    "create": ("EEXIST",),
    "mkdir": ("EEXIST",),
    "unlink": ("ENOENT", "EISDIR"),
    "rmdir": ("ENOENT", "ENOTDIR"),
    "identify": ("ENOENT", "EINVAL"),
    "rename": ("ENOENT", "EISDIR", "ENOTDIR"),
    "rename-new": ("ENOENT", "EEXIST"),
    "exchange": ("ENOENT",),
}
_DEAD_MOUNT = ("ENOTCONN", "ECONNABORTED", "EIO", "ENODEV")


def judge(events: Iterable[Event], *, killed: Collection[str]) -> list[str]:
    """Findings against all that was recorded; `killed` are the workers whose mount was killed."""
    findings: list[str] = []
    registers: dict[str, list[Event]] = defaultdict(list)
    cells: dict[str, list[Event]] = defaultdict(list)
    for recorded in events:
        event = recorded
        if event.worker in killed and event.failed in _DEAD_MOUNT:
            event = replace(recorded, answer=None, responded=inf)
        if event.failed is not None and event.failed not in _REFUSALS.get(event.name, ()):
            findings.append(f"an error that nobody may see: {event}")
        elif event.name in ("read", "write"):
            registers[event.subject].append(event)
        elif event.name == "stat" and event.responded < inf:
            if event.answer != BLOCK_BYTES * BLOCKS_PER_FILE:
                findings.append(f"{event.subject}: a size that it never had: {event}")
        elif event.subject.startswith("cell-"):
            cells[event.subject].append(event)
    for subject, history in sorted(registers.items()):
        findings += judge_register(subject, history)
    for subject, history in sorted(cells.items()):
        findings += judge_names(subject, history)
    return findings


def judge_register(subject: str, history: Iterable[Event]) -> list[str]:
    """Linearizable as strict mounts see it, and regular as the others do. [docs/consistency.md]

    A block is written between `open` and `close` whatever the mount; what a mount with caches reads
    is as old as its `open`.
    """
    operations = []
    linearizable = []
    for event in history:
        value = event.arguments[0] if event.name == "write" else event.answer
        operation = RegisterOperation(
            event.worker, event.name, value, event.invoked, event.responded
        )
        operations.append(operation)
        if event.name == "write" or event.strict:
            linearizable.append(operation)
    return [
        *check_register(linearizable, name=f"{subject} in strict mounts"),
        *check_regular(operations, name=subject),
    ]


def judge_names(subject: str, history: Iterable[Event]) -> list[str]:
    """There is one order of all operations on these names that respects real time and explains
    every answer: strict serializability against the model, in one directory.

    In mounts that cache names a refusal, a look or a listing may be outdated; what they changed is
    not.
    """
    operations = [
        ModelOperation(
            event.worker, event.name, event.arguments, event.answer, event.invoked, event.responded
        )
        for event in history
        if event.strict or not (event.failed or event.name in ("identify", "list"))
    ]
    try:
        return check_model(operations, initial=_EMPTY, model=names_model, name=subject)
    except SearchExhausted:
        return [f"{subject}: {len(operations)} operations are too entangled to be judged"]


def names_model(state: Hashable, operation: ModelOperation) -> Iterable[State]:
    """What names may stand for after an operation on them."""
    assert isinstance(state, tuple)
    error = operation.answer.get("error") if isinstance(operation.answer, dict) else None
    match operation.name:
        case "list":
            present = sorted(n for n, v in zip(NAMES, state, strict=True) if v is not None)
            return [state] if operation.answer in (None, present) else []
        case "identify":
            found = _at(state, operation.arguments[0])
            told = {None: {"error": "ENOENT"}, DIRECTORY: {"error": "EINVAL"}}.get(found, found)
            return [state] if operation.answer in (None, told) else []
    return [
        after
        for refusal, after in _outcomes(state, operation)
        if operation.responded == inf or refusal == error
    ]


Outcome: TypeAlias = tuple[str | None, State]  # an error, or None; and the state that follows


def _outcomes(state: State, operation: ModelOperation) -> list[Outcome]:
    name = operation.arguments[0]
    found = _at(state, name)
    match operation.name:
        case "create" | "mkdir":
            if found is not None:
                return [("EEXIST", state)]
            made = DIRECTORY if operation.name == "mkdir" else operation.arguments[1]
            return [(None, _with(state, {name: made}))]
        case "unlink" | "rmdir":
            if found is None:
                return [("ENOENT", state)]
            if (found == DIRECTORY) != (operation.name == "rmdir"):
                return [("ENOTDIR" if operation.name == "rmdir" else "EISDIR", state)]
            return [(None, _with(state, {name: None}))]
    return _renamings(state, operation.name, name, operation.arguments[1])


def _renamings(state: State, how: str, source: str, target: str) -> list[Outcome]:
    """A kernel looks up the source and then the target before it asks for the renaming; so a
    refusal may rest on either alone. And if it finds the same file behind both, as it can while
    somebody else renames it, it tells of success and does nothing. [rename(2)]
    """
    moved, there = _at(state, source), _at(state, target)
    possible: list[Outcome] = []
    if moved is None or (how == "exchange" and there is None):
        possible.append(("ENOENT", state))
    if how == "rename":
        possible += [("EISDIR", state), ("ENOTDIR", state)]
    if there is not None:
        possible.append(("EEXIST", state) if how == "rename-new" else (None, state))
    if moved is None:
        return possible
    if how == "exchange":
        exchanged = _with(state, {source: there, target: moved})
        return possible if there is None else [*possible, (None, exchanged)]
    fits = there is None or (how == "rename" and (there == DIRECTORY) == (moved == DIRECTORY))
    after = _with(state, {source: None, target: moved})
    return [*possible, (None, after)] if fits else possible


def _at(state: State, name: str) -> str | None:
    return state[NAMES.index(name)]


def _with(state: State, changes: Mapping[str, str | None]) -> State:
    return tuple(changes.get(n, v) for n, v in zip(NAMES, state, strict=True))


def judge_tree(root: Path) -> list[str]:
    """The names below a mount form a tree, with every link counted."""
    nodes: dict[ObjectId, SeenObject] = {}

    def visit(path: Path, parent: ObjectId) -> ObjectId:
        status = os.lstat(path)
        identifier = ObjectId(status.st_ino.to_bytes(16, "big"))
        names = os.listdir(path) if stat.S_ISDIR(status.st_mode) else []
        attributes = Attributes(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            links=status.st_nlink,
            size=status.st_size,
            atime_ns=status.st_atime_ns,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            version=0,
            parent=parent,
            entries=len(names),
        )
        node = nodes.setdefault(identifier, SeenObject(attributes))
        for name in names:
            node.entries[name.encode()] = visit(path / name, identifier)
        return identifier

    return check_tree(nodes, root=visit(root, ObjectId(b"")))
