"""The checker of trees accepts a tree, and finds each way of not being one."""

from __future__ import annotations

import pytest

from bftfs.identifiers import ObjectId
from bftfs.simulation.checkers.tree import TreeNode, check_tree

ROOT, SUB, DEEP, FILE, GONE = (ObjectId(bytes([number]) * 16) for number in range(1, 6))


def tree() -> dict[ObjectId, TreeNode]:
    """A root with a file under two names, and a directory with one in it; something was removed."""
    return {
        ROOT: TreeNode(True, 3, ROOT, 2, {b"sub": SUB, b"file": FILE}),
        SUB: TreeNode(True, 3, ROOT, 2, {b"again": FILE, b"deep": DEEP}),
        DEEP: TreeNode(True, 2, SUB, 0, {}),
        FILE: TreeNode(False, 2),
        GONE: TreeNode(True, 0, ROOT, 0, {}),
    }


def test_a_tree_passes() -> None:
    assert check_tree(tree(), root=ROOT) == []


def _more_names(nodes: dict[ObjectId, TreeNode]) -> None:
    nodes[FILE].links = 3


def _an_orphan(nodes: dict[ObjectId, TreeNode]) -> None:
    del nodes[SUB].entries[b"deep"]
    nodes[SUB].counted, nodes[SUB].links = 1, 2


def _a_name_of_nothing(nodes: dict[ObjectId, TreeNode]) -> None:
    del nodes[DEEP]


def _a_wrong_count(nodes: dict[ObjectId, TreeNode]) -> None:
    nodes[ROOT].counted = 3


def _a_wrong_parent(nodes: dict[ObjectId, TreeNode]) -> None:
    nodes[DEEP].parent = ROOT


def _a_second_name_of_a_directory(nodes: dict[ObjectId, TreeNode]) -> None:
    nodes[ROOT].entries[b"other"] = DEEP
    nodes[ROOT].counted, nodes[ROOT].links = 3, 4


def _a_loop(nodes: dict[ObjectId, TreeNode]) -> None:
    del nodes[ROOT].entries[b"sub"]
    nodes[ROOT].counted, nodes[ROOT].links = 1, 2
    nodes[DEEP].entries[b"sub"] = SUB
    nodes[DEEP].counted, nodes[DEEP].links = 1, 3
    nodes[SUB].parent = DEEP
    nodes[FILE].links = 2


def _a_removed_directory_in_use(nodes: dict[ObjectId, TreeNode]) -> None:
    nodes[DEEP].links = 0


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
