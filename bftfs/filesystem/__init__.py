"""Files and directories, expressed in terms of the two protocols. Knows nothing of FUSE.

The replicated side, run by the nodes: `directory`, `inode` and `volume` are methods on objects'
states; `registry` lists them, and `object_types()` gives them to the Q/U server
and client. `inode.may_write_blocks` says who may write blocks.

The client side, run by the mount and the command line: `operations.FileSystem`. Its conversations
(`async def` over effects) are performed by a driver; `write` and a few others are plain calls.
Failures are `FileSystemError(errno)`, or `OperationFailed` where the cluster gave no answer.
`who` is a `Credentials`; names, symlink targets and attribute values are bytes; times nanoseconds.

    FileSystem(metadata, blocks, capacity, cipher, *, root, volume, options=Options())
      .root                                                  ObjectId of the root directory
      await .format(who)                                     make the file system, if there is none

      await .lookup(directory, name, who)                    -> FoundObject(identifier, attributes)
      await .parent(directory, who)                          -> FoundObject   ("..")
      await .attributes(identifier, who)                     -> Attributes
      await .change_attributes(identifier, changes, who)     -> Attributes  (chmod, chown, utimens)
      await .truncate(identifier, size, who)                 -> Attributes
      await .access(identifier, wanted, who)                 EACCES unless permitted
      await .read_link(identifier, who)                      -> bytes

      await .create(directory, name, mode, who, umask=0, flags=O_RDWR)   (O_EXCL is obeyed)
                                                             -> (FoundObject, OpenFile)
      await .make_node(directory, name, mode, who, umask=0, device=0)  -> FoundObject  (files too)
      await .make_symlink(directory, name, target, who)      -> FoundObject
      await .make_directory(directory, name, mode, who, umask=0)       -> FoundObject
      await .link(identifier, directory, name, who)          -> FoundObject
      await .unlink(directory, name, who)                    -> FoundObject, as it is after it
      await .remove_directory(directory, name, who)          -> FoundObject, as it is after it
      await .rename(directory, name, target, target_name, who, flags=0)

      await .open(identifier, flags, who)                    -> OpenFile(.identifier, .keep_cache)
      await .read(file, offset, size)                        -> bytes or memoryview
      .write(file, offset, data, now_ns=...)                 -> bool: if so, `write_behind`
      await .write_behind(file)                              waits while too much is unwritten
      await .flush(file)                                     at each close(2); reports errors once
      await .seal_again(file, first, stop)                   -> how many blocks it sealed anew
      await .synchronize(file)                               fsync, fdatasync
      await .release(file)                                   the last close

      await .open_directory(identifier, who)                 -> OpenDirectory
      await .read_directory(opened, after, count=…, with_attributes=True)
                                                        -> tuple[DirectoryEntry, ...], () at end
                                                  (.name .cookie .identifier .file_type .attributes)
      await .get_extended(identifier, name, who)             -> bytes
      await .set_extended(identifier, name, value, who, flags=0)
      await .list_extended(identifier, who)                  -> tuple[bytes, ...]
      await .remove_extended(identifier, name, who)
      await .statistics(who)                                 -> Statistics

      await .write_back(older_than_us)                       to be called every few seconds
      await .synchronize_all(), .record_accesses()           before unmounting

`file_history.past_file_system(…)` gives the same for a time, read-only; `file_history.History`
gives times, versions and snapshots.

`attributes.Attributes` has the fields of `struct stat`; `attributes.inode_number` gives `st_ino`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bftfs.query_update.object_type import ObjectTypes


def object_types() -> ObjectTypes:
    """All object types that the nodes of a cluster serve."""
    # Here: commands that need a small module of this package start in less time.
    from bftfs.filesystem.registry import file_system_types
    from bftfs.query_update.counter import counter_types

    return counter_types() | file_system_types()
