"""All methods of the file system, by the names under which operations invoke them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, get_type_hints

from bftfs.crypto.digest import Digest
from bftfs.filesystem import directory, inode, volume
from bftfs.filesystem.block_names import OVERTAKEN
from bftfs.identifiers import ObjectKind
from bftfs.query_update.object_type import Method, ObjectTypes, Record
from bftfs.query_update.server import GUARD

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
MEND: Final = "directory.mend"
RENAME: Final = "directory.rename"
RELOCATE: Final = "directory.relocate"
READ_LINK: Final = "inode.read_link"
WRITE: Final = "inode.write"
TRUNCATE: Final = "inode.truncate"
MERGE: Final = "inode.merge"
REWRITE: Final = "inode.rewrite"
GET_BLOCKS: Final = "inode.blocks"
PERMIT_WRITING: Final = "inode.permit_writing"
PERMIT_READING: Final = "inode.permit_reading"
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
LIST_SCHEDULES: Final = "volume.list_schedules"
SET_SCHEDULE: Final = "volume.set_schedule"
DELETE_SCHEDULE: Final = "volume.delete_schedule"
FOLLOW_SCHEDULE: Final = "volume.follow_schedule"

# Updates that nobody would call a change of what they are about.
UNCHANGING: Final = frozenset((ACCESSED, PERMIT_WRITING, PERMIT_READING))

# Updates of a file's contents that leave its bytes as they are.
SAME_BYTES: Final = frozenset((MERGE, REWRITE))


def _method(
    name: str,
    invoke: Callable[..., Any],
    *kinds: frozenset[ObjectKind],
    update: bool = True,
    frees: bool = False,
    for_readers: bool = False,
    permit: Callable[..., bytes] | None = None,
    rests_on: Callable[..., Digest | None] | None = None,
    names: tuple[tuple[str, int], ...] = (),
    overtaken: int = 0,
    brief: bool = False,
) -> Method:
    """A method, whose arguments and answer are of the types that `invoke` is annotated with."""
    types = get_type_hints(invoke)
    answer = types["return"] if issubclass(types["return"], Record) else None
    return Method(
        name,
        update,
        kinds,
        types["arguments"],
        invoke,
        answer,
        permit,
        frees,
        rests_on,
        for_readers,
        names,
        overtaken,
        brief,
    )


_query = partial(_method, update=False)
_naming = partial(_method, names=(("name", 0),))
_renaming = partial(_method, names=(("name", 0), ("target_name", 1)))

_METHODS = (
    _query(LOOKUP, directory.lookup, _DIRECTORY, permit=directory.permit_lookup),
    _query(READ_DIRECTORY, directory.read_directory, _DIRECTORY, permit=inode.permit_reading),
    _naming(CREATE, directory.create, _DIRECTORY, _INODE),
    _naming(MAKE_DIRECTORY, directory.make_directory, _DIRECTORY, _DIRECTORY),
    _naming(LINK, directory.link, _DIRECTORY, _INODE),
    _naming(UNLINK, directory.unlink, _DIRECTORY, _INODE, frees=True),
    _naming(REMOVE_DIRECTORY, directory.remove_directory, _DIRECTORY, _DIRECTORY, frees=True),
    _naming(MEND, directory.mend, _DIRECTORY, _EITHER, frees=True),
    _renaming(RENAME, directory.rename, _DIRECTORY, _DIRECTORY, _EITHER, _EITHER),
    _renaming(RELOCATE, volume.relocate, _DIRECTORY, _DIRECTORY, _EITHER, _EITHER, _VOLUME),
    _query(READ_LINK, inode.read_link, _INODE),
    _method(WRITE, inode.write, _INODE, rests_on=inode.blocks_written, overtaken=OVERTAKEN),
    _method(TRUNCATE, inode.truncate, _INODE, frees=True, rests_on=inode.blocks_written),
    _method(MERGE, inode.merge, _INODE, rests_on=inode.blocks_written),
    _method(REWRITE, inode.rewrite, _INODE, rests_on=inode.blocks_written),
    _query(GET_BLOCKS, inode.get_blocks, _INODE),
    _method(PERMIT_WRITING, inode.permit_writing, _INODE),
    _method(PERMIT_READING, inode.permit_reading_blocks, _INODE, for_readers=True),
    _query(GET_ATTRIBUTES, inode.get_attributes, _EITHER, brief=True),
    _query(PERMIT_HISTORY, inode.permit_history, _EITHER),
    _method(CHANGE_ATTRIBUTES, inode.change_attributes, _EITHER),
    _method(ACCESSED, inode.accessed, _EITHER),
    _query(GET_EXTENDED, inode.get_extended, _EITHER, permit=inode.permit_extended),
    _query(LIST_EXTENDED, inode.list_extended, _EITHER),
    _method(SET_EXTENDED, inode.set_extended, _EITHER, permit=inode.permit_extended),
    _method(
        REMOVE_EXTENDED,
        inode.remove_extended,
        _EITHER,
        frees=True,
        permit=inode.permit_extended,
    ),
    _query(GET_RETENTION, inode.get_retention, _EITHER),
    _method(SET_RETENTION, inode.set_retention, _EITHER),
    _method(FORMAT, volume.format_volume, _VOLUME, _DIRECTORY),
    _query(DESCRIBE, volume.describe, _VOLUME),
    _query(LIST_SNAPSHOTS, volume.list_snapshots, _VOLUME),
    _method(CREATE_SNAPSHOT, volume.create_snapshot, _VOLUME),
    _method(DELETE_SNAPSHOT, volume.delete_snapshot, _VOLUME, frees=True),
    _query(LIST_SCHEDULES, volume.list_schedules, _VOLUME),
    _method(SET_SCHEDULE, volume.set_schedule, _VOLUME),
    _method(DELETE_SCHEDULE, volume.delete_schedule, _VOLUME, frees=True),
    _method(FOLLOW_SCHEDULE, volume.follow_schedule, _VOLUME),
)


def file_system_types() -> ObjectTypes:
    """The methods of directories, inodes and volumes."""
    return ObjectTypes(_METHODS)
