"""The past that clients were shown, against a model that keeps every state.

The chains of established versions at correct nodes tell what took place. It is replayed in the
order of times: after all operations with times up to T, the model has the tree as of T. What a
client has read as of T must be that tree: one state of the namespace, each directory with its
entries, each object with its counts, each file with the contents that an update had named last. The
lists of versions that a client has got must be those of the chain, with the clients that made the
versions and what they asked for. [design §8: a consistent cut]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final

import msgspec

from bftfs.credentials import ROOT
from bftfs.filesystem import registry
from bftfs.filesystem.file_history import CHANGES_SHOWN
from bftfs.identifiers import ObjectId
from bftfs.query_update.history import LogicalTimestamp, Operation, client_of, time_of
from bftfs.query_update.messages import PastVersion
from bftfs.query_update.object_type import encode_record
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.simulation.checkers.namespace import (
    Established,
    NamespaceModel,
)
from bftfs.simulation.checkers.tree import SeenObject

_ON_NAMES: Final = frozenset(
    (
        registry.CREATE,
        registry.MAKE_DIRECTORY,
        registry.LINK,
        registry.UNLINK,
        registry.REMOVE_DIRECTORY,
        registry.MEND,
        registry.RENAME,
        registry.RELOCATE,
    )
)


@dataclass(slots=True)
class PastTree:
    """The tree as it was shown of a time: everything below the root; empty if there was no root."""

    time_us: int
    objects: dict[ObjectId, SeenObject]


@dataclass(slots=True)
class ListedVersions:
    """The versions of an object that were listed, the newest first."""

    versions: Sequence[PastVersion]
    uid: int  # of the user who asked
    kept_since_us: int = 0  # what is older may be left out


@dataclass(slots=True)
class WrittenContents:
    """Everything that was ever written to a file's only block."""

    acknowledged: dict[BlockTimestamp, bytes] = field(default_factory=dict)
    # Writes without an acknowledgement, by content: a restored content is written again.
    attempted: Counter[bytes] = field(default_factory=Counter)

    def begins(self, content: bytes) -> None:
        """Somebody writes this."""
        self.attempted[content] += 1

    def ends(self, content: bytes, version: BlockTimestamp) -> None:
        """A write of this content has ended, and has made this version."""
        self.acknowledged[version] = content
        self.attempted -= Counter((content,))  # -= also removes entries that are 0

    def named(self, version: BlockTimestamp | None) -> set[bytes]:
        """The contents that the file may have if this version of its block is named, or none."""
        if version is None:
            return {b""}
        content = self.acknowledged.get(version)
        return set(self.attempted) if content is None else {content}


@dataclass(slots=True)
class NamedVersions:
    """Which version of each file's only block is named, by the operations that took place so far.

    The operation says what its client has written. Of two versions the later counts; but a block
    that was written anew in another incarnation is another block, whatever time the old one had.
    """

    versions: dict[ObjectId, BlockTimestamp] = field(default_factory=dict)

    def apply(self, timestamp: LogicalTimestamp, operation: Operation, arguments: Any) -> None:
        """One more operation."""
        if operation.method not in (registry.WRITE, registry.MERGE, registry.REWRITE):
            return
        (identifier,) = operation.objects
        for block in arguments.blocks:
            version = BlockTimestamp(block.time_us, client_of(timestamp), block.verifier)
            before = self.versions.get(identifier, version)
            is_later = operation.method == registry.MERGE or version > before
            self.versions[identifier] = version if is_later else before

    def get(self, identifier: ObjectId) -> BlockTimestamp | None:
        """The version of the file's block, if one is named."""
        return self.versions.get(identifier)


def check_past(
    trees: Sequence[PastTree],
    listed: Mapping[ObjectId, ListedVersions],
    taken: Established,
    *,
    contents: Mapping[ObjectId, WrittenContents],
) -> list[str]:
    """Findings against what was shown of the past."""
    findings: list[str] = []
    model = NamespaceModel()
    waiting = sorted(taken.operations, reverse=True)
    named = NamedVersions()
    for tree in sorted(trees, key=attrgetter("time_us")):
        while waiting and time_of(waiting[-1]) <= tree.time_us:
            timestamp = waiting.pop()
            operation = taken.operations[timestamp]
            arguments = taken.arguments_of(operation)
            refusal = model.apply(operation.method, operation.objects, arguments)
            if refusal:
                findings.append(
                    f"past: {operation.method} at {time_of(timestamp)} could not take place after "
                    f"all that is older: errno {refusal}"
                )
            named.apply(timestamp, operation, arguments)
        findings += _check_tree(tree, model, contents, named)
    for identifier, listing in listed.items():
        findings += _check_versions(identifier, listing, taken)
    return findings


def _check_tree(
    tree: PastTree,
    model: NamespaceModel,
    contents: Mapping[ObjectId, WrittenContents],
    named: NamedVersions,
) -> list[str]:
    right = model.reachable()
    where = f"past: at {tree.time_us}"
    if set(tree.objects) != right:
        return [f"{where} there were {_names(right)}, and {_names(tree.objects)} were shown"]
    findings = []
    for identifier, seen in tree.objects.items():
        entries = model.entries(identifier)
        if seen.entries != entries:
            findings.append(
                f"{where} {_name(identifier)} had {entries}, and {seen.entries} were shown"
            )
        wrong = model.differs(identifier, seen.attributes)
        if wrong:
            findings.append(f"{where} {wrong}, and {seen.attributes} was shown")
        if seen.content is None:
            continue
        known = contents.get(identifier, WrittenContents())
        possible = known.named(named.get(identifier))
        if seen.content not in possible:
            findings.append(
                f"{where} {_name(identifier)} had one of {sorted(possible)}, and {seen.content!r} "
                "was shown"
            )
    return findings


def _check_versions(identifier: ObjectId, listing: ListedVersions, taken: Established) -> list[str]:
    """Compare listed versions of one object, the newest first, with those that were made.

    Where nodes collect, the oldest may be left out, but for those that have to be kept.
    """
    shown = [each for each in reversed(listing.versions) if each.operation is not None]
    made = list(taken.versions.get(identifier, ()))
    gone = made[: max(0, len(made) - len(shown))]
    where = f"past: {_name(identifier)}"
    if [each.timestamp for each in shown] != made[len(gone) :] or any(
        time_of(each) >= listing.kept_since_us for each in gone
    ):
        times = [time_of(each.timestamp) for each in shown]
        return [f"{where} has the versions {list(map(time_of, made))}, and {times} were listed"]
    findings = []
    for each in shown:
        at = f"{where} was changed at {time_of(each.timestamp)}"
        operation = taken.operations.get(each.timestamp)
        if operation is not None and listing.uid not in (ROOT, operation.uid):
            operation = _without_names(identifier, operation, taken.arguments_of(operation))
        if each.operation != operation:
            findings.append(f"{at} by {operation}, and {each.operation} was listed")
        delta = taken.record.contents[identifier, each.timestamp].delta
        changes = tuple(change for change in delta if change[0].startswith(CHANGES_SHOWN))
        if each.changes != changes:
            findings.append(f"{at}: {changes}, and {each.changes} were listed")
    return findings


def _without_names(identifier: ObjectId, operation: Operation, arguments: Any) -> Operation:
    """An operation as an object's history tells it others: without the names in other objects.

    And then without what nobody can guess, so that nobody can try names.
    """
    sides = (("name", 0), ("target_name", 1))  # in which of its objects each argument is a name
    foreign = {
        field: b""
        for field, role in sides
        if operation.method in _ON_NAMES
        and hasattr(arguments, field)
        and operation.objects[role] != identifier
    }
    if not foreign:
        return operation
    encoded = encode_record(msgspec.structs.replace(arguments, **foreign))
    return msgspec.structs.replace(operation, arguments=encoded, serial=0)


def _name(identifier: ObjectId) -> str:
    return identifier.hex()[-6:]


def _names(objects: Iterable[ObjectId]) -> list[str]:
    return sorted(map(_name, objects))
