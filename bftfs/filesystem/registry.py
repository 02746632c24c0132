"""All methods of the file system, by the names under which operations invoke them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from bftfs.filesystem import (
    attribute_methods,
    directory,
    extended_attributes,
    inode,
    mkfs,
    retention_methods,
    snapshots,
    volume,
)
from bftfs.filesystem.attributes import Attributes, Changes
from bftfs.filesystem.objects import AttributesAfter, NoArguments
from bftfs.identifiers import ObjectKind
from bftfs.query_update.answering import GUARD
from bftfs.query_update.object_type import Method, ObjectTypes, Record

_VOLUME: Final = frozenset({ObjectKind.VOLUME})
_DIRECTORY: Final = frozenset({ObjectKind.DIRECTORY})
_INODE: Final = frozenset({ObjectKind.INODE})
_EITHER: Final = _DIRECTORY | _INODE

LOOKUP: Final = "directory.lookup"
READ_DIRECTORY: Final = "directory.read"
CREATE: Final = "directory.create"
MAKE_DIRECTORY: Final = "directory.make_directory"
LINK: Final = "directory.link"
UNLINK: Final = "directory.unlink"
REMOVE_DIRECTORY: Final = "directory.remove_directory"
RENAME: Final = "directory.rename"
RELOCATE: Final = "directory.relocate"
READ_LINK: Final = "inode.read_link"
WRITE: Final = "inode.write"
TRUNCATE: Final = "inode.truncate"
MERGE: Final = "inode.merge"
GET_ATTRIBUTES: Final = "attributes.get"
PERMIT_HISTORY: Final = GUARD
CHANGE_ATTRIBUTES: Final = "attributes.change"
ACCESSED: Final = "attributes.accessed"
GET_EXTENDED: Final = "extended.get"
LIST_EXTENDED: Final = "extended.list"
SET_EXTENDED: Final = "extended.set"
REMOVE_EXTENDED: Final = "extended.remove"
GET_RETENTION: Final = "retention.get"
SET_RETENTION: Final = "retention.set"
FORMAT: Final = "volume.format"
DESCRIBE: Final = "volume.describe"
LIST_SNAPSHOTS: Final = "volume.list_snapshots"
CREATE_SNAPSHOT: Final = "volume.create_snapshot"
DELETE_SNAPSHOT: Final = "volume.delete_snapshot"


def _query(
    name: str,
    invoke: Callable[..., Any],
    kinds: frozenset[ObjectKind],
    arguments: type[Record],
    answer: type[Record] | None,
    permit: Callable[..., bytes] | None = None,
) -> Method:
    return Method(name, False, (kinds,), arguments, invoke, answer, permit)


def _update(
    name: str,
    invoke: Callable[..., Any],
    kinds: tuple[frozenset[ObjectKind], ...],
    arguments: type[Record],
    answer: type[Record],
    *,
    frees: bool = False,
) -> Method:
    return Method(name, True, kinds, arguments, invoke, answer, frees=frees)


_RENAME_ROLES = (_DIRECTORY, _DIRECTORY, _EITHER, _EITHER)

_METHODS = (
    _query(
        LOOKUP,
        directory.lookup,
        _DIRECTORY,
        directory.Name,
        directory.LookupAnswer,
        directory.permit_lookup,
    ),
    _query(
        READ_DIRECTORY,
        directory.read_directory,
        _DIRECTORY,
        directory.Listing,
        directory.DirectoryPage,
        directory.permit_listing,
    ),
    _update(CREATE, directory.create, (_DIRECTORY, _INODE), directory.Creation, AttributesAfter),
    _update(
        MAKE_DIRECTORY,
        directory.make_directory,
        (_DIRECTORY, _DIRECTORY),
        directory.DirectoryCreation,
        AttributesAfter,
    ),
    _update(LINK, directory.link, (_DIRECTORY, _INODE), directory.Name, AttributesAfter),
    _update(
        UNLINK, directory.unlink, (_DIRECTORY, _INODE), directory.Name, AttributesAfter, frees=True
    ),
    _update(
        REMOVE_DIRECTORY,
        directory.remove_directory,
        (_DIRECTORY, _DIRECTORY),
        directory.Name,
        AttributesAfter,
        frees=True,
    ),
    _update(RENAME, directory.rename, _RENAME_ROLES, directory.Renaming, AttributesAfter),
    _update(
        RELOCATE,
        directory.relocate,
        (*_RENAME_ROLES, _VOLUME),
        directory.Relocation,
        AttributesAfter,
    ),
    _query(READ_LINK, inode.read_link, _INODE, NoArguments, None),
    _update(WRITE, inode.write, (_INODE,), inode.Writing, inode.ContentsChanged),
    _update(
        TRUNCATE, inode.truncate, (_INODE,), inode.Truncation, inode.ContentsChanged, frees=True
    ),
    _update(MERGE, inode.merge, (_INODE,), inode.Merging, inode.ContentsChanged),
    _query(GET_ATTRIBUTES, attribute_methods.get_attributes, _EITHER, NoArguments, Attributes),
    _query(PERMIT_HISTORY, attribute_methods.permit_history, _EITHER, NoArguments, None),
    _update(
        CHANGE_ATTRIBUTES, attribute_methods.change_attributes, (_EITHER,), Changes, AttributesAfter
    ),
    _update(
        ACCESSED, attribute_methods.accessed, (_EITHER,), attribute_methods.Access, AttributesAfter
    ),
    _query(
        GET_EXTENDED,
        extended_attributes.get_extended,
        _EITHER,
        extended_attributes.ExtendedName,
        extended_attributes.ExtendedValue,
        extended_attributes.permit_extended,
    ),
    _query(
        LIST_EXTENDED,
        extended_attributes.list_extended,
        _EITHER,
        NoArguments,
        extended_attributes.ExtendedNames,
    ),
    _update(
        SET_EXTENDED,
        extended_attributes.set_extended,
        (_EITHER,),
        extended_attributes.ExtendedSetting,
        AttributesAfter,
    ),
    _update(
        REMOVE_EXTENDED,
        extended_attributes.remove_extended,
        (_EITHER,),
        extended_attributes.ExtendedName,
        AttributesAfter,
        frees=True,
    ),
    _query(
        GET_RETENTION,
        retention_methods.get_retention,
        _EITHER,
        NoArguments,
        retention_methods.PolicySetting,
    ),
    _update(
        SET_RETENTION,
        retention_methods.set_retention,
        (_EITHER,),
        retention_methods.PolicySetting,
        AttributesAfter,
    ),
    _update(FORMAT, mkfs.format_volume, (_VOLUME, _DIRECTORY), volume.Format, volume.Volume),
    _query(DESCRIBE, volume.describe, _VOLUME, NoArguments, volume.Volume),
    _query(LIST_SNAPSHOTS, snapshots.list_snapshots, _VOLUME, NoArguments, snapshots.Snapshots),
    _update(
        CREATE_SNAPSHOT,
        snapshots.create_snapshot,
        (_VOLUME,),
        snapshots.SnapshotCreation,
        snapshots.Snapshot,
    ),
    _update(
        DELETE_SNAPSHOT,
        snapshots.delete_snapshot,
        (_VOLUME,),
        snapshots.SnapshotName,
        snapshots.Snapshot,
        frees=True,
    ),
)


def file_system_types() -> ObjectTypes:
    """The methods of directories, inodes and volumes."""
    return ObjectTypes(_METHODS)
