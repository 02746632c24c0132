"""The checker of trees accepts a tree, and finds each way of not being one."""

from __future__ import annotations

import stat
from typing import Any

import pytest
from msgspec.structs import replace

from bftfs.filesystem.attributes import Attributes
from bftfs.identifiers import ObjectId
from bftfs.simulation.checkers.tree import SeenObject, check_tree

ROOT, SUB, DEEP, FILE, GONE = (ObjectId(bytes([number]) * 16) for number in range(1, 6))


def _directory(
    links: int, parent: ObjectId, counted: int, entries: dict[bytes, ObjectId]
) -> SeenObject:
    said = Attributes(stat.S_IFDIR, 0, 0, links, 0, 0, 0, 0, 0, parent=parent, entries=counted)
    return SeenObject(said, entries)


def _say(node: SeenObject, **changes: Any) -> None:
    node.attributes = replace(node.attributes, **changes)


def tree() -> dict[ObjectId, SeenObject]:
    """A root with a file under two names, and a directory with one in it; something was removed."""
    return {
        ROOT: _directory(3, ROOT, 2, {b"sub": SUB, b"file": FILE}),
        SUB: _directory(3, ROOT, 2, {b"again": FILE, b"deep": DEEP}),
        DEEP: _directory(2, SUB, 0, {}),
        FILE: SeenObject(Attributes(stat.S_IFREG, 0, 0, 2, 0, 0, 0, 0, 0)),
        GONE: _directory(0, ROOT, 0, {}),
    }


def test_a_tree_passes() -> None:
    assert check_tree(tree(), root=ROOT) == []


def _more_names(nodes: dict[ObjectId, SeenObject]) -> None:
    _say(nodes[FILE], links=3)


def _an_orphan(nodes: dict[ObjectId, SeenObject]) -> None:
    del nodes[SUB].entries[b"deep"]
    _say(nodes[SUB], entries=1, links=2)


def _a_name_of_nothing(nodes: dict[ObjectId, SeenObject]) -> None:
    del nodes[DEEP]


def _a_wrong_count(nodes: dict[ObjectId, SeenObject]) -> None:
    _say(nodes[ROOT], entries=3)


def _a_wrong_parent(nodes: dict[ObjectId, SeenObject]) -> None:
    _say(nodes[DEEP], parent=ROOT)


def _a_second_name_of_a_directory(nodes: dict[ObjectId, SeenObject]) -> None:
    nodes[ROOT].entries[b"other"] = DEEP
    _say(nodes[ROOT], entries=3, links=4)


def _a_loop(nodes: dict[ObjectId, SeenObject]) -> None:
    del nodes[ROOT].entries[b"sub"]
    _say(nodes[ROOT], entries=1, links=2)
    nodes[DEEP].entries[b"sub"] = SUB
    _say(nodes[DEEP], entries=1, links=3)
    _say(nodes[SUB], parent=DEEP)
    _say(nodes[FILE], links=2)


def _a_removed_directory_in_use(nodes: dict[ObjectId, SeenObject]) -> None:
    _say(nodes[DEEP], links=0)


@pytest.mark.parametrize(
    "damage",
    [
        _more_names,
        _an_orphan,
        _a_name_of_nothing,
        _a_wrong_count,
        _a_wrong_parent,
        _a_second_name_of_a_directory,
        _a_loop,
        _a_removed_directory_in_use,
    ],
    ids=lambda damage: damage.__name__.strip("_"),
)
def test_each_damage_is_found(damage: object) -> None:
    nodes = tree()
    assert callable(damage)
    damage(nodes)
    assert check_tree(nodes, root=ROOT)


def test_a_tree_without_a_root_is_found() -> None:
    assert check_tree({}, root=ROOT)
