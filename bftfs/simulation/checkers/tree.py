"""A file system's names form a tree: every link counted, nothing lost, no loops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bftfs.identifiers import ObjectId


@dataclass(slots=True)
class TreeNode:
    """A directory or an inode, as its attributes and a listing of it say."""

    is_directory: bool
    links: int
    parent: ObjectId | None = None  # of a directory
    counted: int = 0  # how many entries a directory says that it has
    entries: dict[bytes, ObjectId] = field(default_factory=dict)


def check_tree(nodes: Mapping[ObjectId, TreeNode], *, root: ObjectId) -> list[str]:
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
        if node.is_directory and node.counted != len(node.entries):
            findings.append(
                f"tree: {_short(identifier)} says that it has {node.counted} entries, and has "
                f"{len(node.entries)}"
            )
    for identifier, node in nodes.items():
        places = names.get(identifier, [])
        if node.is_directory:
            findings += _check_directory(identifier, node, places, nodes, root=root)
        elif node.links != len(places):
            findings.append(
                f"tree: {_short(identifier)} says that it has {node.links} names, and has {places}"
            )
    reached = _reachable(nodes, root)
    findings += [
        f"tree: {_short(identifier)} is in use and cannot be reached"
        for identifier, node in nodes.items()
        if node.links and identifier not in reached
    ]
    return findings


def _check_directory(
    identifier: ObjectId,
    node: TreeNode,
    places: list[tuple[ObjectId, bytes]],
    nodes: Mapping[ObjectId, TreeNode],
    *,
    root: ObjectId,
) -> list[str]:
    findings = []
    if not node.links:
        if places or node.counted:
            findings.append(f"tree: {_short(identifier)} was removed, and is at {places}")
        return findings
    below = sum(child in nodes and nodes[child].is_directory for child in node.entries.values())
    if node.links != 2 + below:
        findings.append(
            f"tree: directory {_short(identifier)} says that it has {node.links} links, and has "
            f"{below} directories in it"
        )
    wanted = 0 if identifier == root else 1
    if len(places) != wanted:
        findings.append(f"tree: directory {_short(identifier)} has the names {places}")
    elif places and places[0][0] != node.parent:
        findings.append(f"tree: directory {_short(identifier)} does not know where it stands")
    return findings


def _reachable(nodes: Mapping[ObjectId, TreeNode], root: ObjectId) -> set[ObjectId]:
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
