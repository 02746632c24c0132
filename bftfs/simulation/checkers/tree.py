"""A file system's names form a tree: every link counted, nothing lost, no loops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bftfs.filesystem.attributes import Attributes
from bftfs.identifiers import ObjectId


@dataclass(slots=True)
class SeenObject:
    """A directory or an inode, as a client was shown it."""

    attributes: Attributes
    entries: dict[bytes, ObjectId] = field(default_factory=dict)
    content: bytes | None = None  # of a file, if it was read


def check_tree(nodes: Mapping[ObjectId, SeenObject], *, root: ObjectId) -> list[str]:
    """Findings against `nodes`, which are all objects that there are, reachable or not."""
    findings: list[str] = []
    if root not in nodes:
        return ["tree: there is no root"]
    names: dict[ObjectId, list[tuple[ObjectId, bytes]]] = {}
    for identifier, node in nodes.items():
        for name, child in node.entries.items():
            names.setdefault(child, []).append((identifier, name))
            if child not in nodes:
                findings.append(f"tree: {name!r} in {_short(identifier)} stands for nothing")
    reached = _reachable(nodes, root)
    for identifier, node in nodes.items():
        said, places = node.attributes, names.get(identifier, [])
        if said.is_directory:
            findings += _check_directory(identifier, node, places, nodes, root=root)
        elif said.links != len(places):
            findings.append(
                f"tree: {_short(identifier)} says that it has {said.links} names, and has {places}"
            )
        if said.links and identifier not in reached:
            findings.append(f"tree: {_short(identifier)} is in use and cannot be reached")
    return findings


def _check_directory(
    identifier: ObjectId,
    node: SeenObject,
    places: list[tuple[ObjectId, bytes]],
    nodes: Mapping[ObjectId, SeenObject],
    *,
    root: ObjectId,
) -> Iterator[str]:
    said, where = node.attributes, f"tree: directory {_short(identifier)}"
    if said.entries != len(node.entries):
        yield f"{where} says that it has {said.entries} entries, and has {len(node.entries)}"
    if not said.links:
        if places or said.entries:
            yield f"{where} was removed, and is at {places}"
        return
    children = [nodes[child] for child in node.entries.values() if child in nodes]
    below = sum(child.attributes.is_directory for child in children)
    if said.links != 2 + below:
        yield f"{where} says that it has {said.links} links, and has {below} directories in it"
    if len(places) != (0 if identifier == root else 1):
        yield f"{where} has the names {places}"
    elif places and places[0][0] != said.parent:
        yield f"{where} does not know where it stands"


def _reachable(nodes: Mapping[ObjectId, SeenObject], root: ObjectId) -> set[ObjectId]:
    reached = {root}
    waiting = [root]
    while waiting:
        for child in nodes[waiting.pop()].entries.values():
            if child in nodes and child not in reached:
                reached.add(child)
                waiting.append(child)
    return reached


def _short(identifier: ObjectId) -> str:
    return identifier.hex()[-6:]
