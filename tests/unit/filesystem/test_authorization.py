"""Who may write blocks, as a node decides it."""

from __future__ import annotations

import errno
import stat
from typing import Any

import pytest

from bftfs.filesystem import registry
from bftfs.filesystem.inode import UNKNOWN_INODE, ExtendedSetting, may_write_blocks
from bftfs.identifiers import ObjectId, ObjectKind
from tests.builders import Overlay
from tests.unit.filesystem.test_acl import acl
from tests.unit.filesystem.test_attribute_methods import file_of
from tests.unit.filesystem.test_directory import Tree, tree
from tests.unit.filesystem.world import ALICE, BOB, CAROL, ROOT, fresh

__all__ = ["tree"]


def state_of(tree: Tree, inode: ObjectId) -> Overlay:
    return Overlay(inode, tree.objects.rows[inode])


@pytest.mark.parametrize(
    ("who", "mode", "code"),
    [
        (ALICE, 0o000, 0),  # the owner may whatever the mode says, as with NFS
        (ROOT, 0o000, 0),
        (BOB, 0o775, errno.EACCES),
        (BOB, 0o772, 0),
        (CAROL, 0o757, 0),  # not in the owning group
    ],
)
def test_permissions(tree: Tree, who: Any, mode: int, code: int) -> None:
    assert may_write_blocks(state_of(tree, file_of(tree, mode)), who) == code


def test_an_access_list_decides(tree: Tree) -> None:
    file = file_of(tree)
    listed = acl("u::rw-,u:1001:-w-,g::---,m::-w-,o::---")
    tree.objects.perform(
        registry.SET_EXTENDED,
        (file,),
        ExtendedSetting(b"system.posix_acl_access", listed.encode(), 0),
        ROOT,
    )
    assert stat.S_IMODE(tree.get(file).mode) == 0o620
    assert may_write_blocks(state_of(tree, file), BOB) == 0


def test_a_node_that_does_not_know_the_inode_has_no_say() -> None:
    unknown = Overlay(fresh(ObjectKind.INODE), {})
    assert may_write_blocks(unknown, BOB) == UNKNOWN_INODE
