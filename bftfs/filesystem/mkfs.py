"""Making a file system: the volume and its root directory, in one update."""

from __future__ import annotations

from bftfs.filesystem.directory import new_directory
from bftfs.filesystem.objects import States, Subject
from bftfs.filesystem.volume import Format, Volume, is_formatted, record_of, store_new
from bftfs.query_update.object_type import Caller


def format_volume(states: States, arguments: Format, caller: Caller) -> Volume:
    """Make the file system, owned by the caller, unless it exists. Roles: volume, root directory.

    Repeating it changes nothing, so that every start of a cluster may begin with it.
    """
    volume, root = states
    if is_formatted(volume):
        return record_of(volume)
    directory = Subject.created(
        root, new_directory(caller, mode=arguments.mode, gid=caller.gid, parent=root.object)
    )
    directory.conclude(caller)
    return store_new(volume, arguments, caller, root=root.object)
