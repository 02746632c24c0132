"""Restoring a tree as of a time: it is read from the nodes, and written to a target.

A target is a path on a machine, or the file system itself. Restoring changes only what differs, so
that a second restore changes nothing. A file that exists is written in place, so that its history
goes on. Owners and extended attributes are set as far as the user who restores may set them.
"""

from __future__ import annotations

import errno
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

from bftfs.conversation import Conversation
from bftfs.errors import FileSystemError
from bftfs.filesystem import acl
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.file_history import several_at_once
from bftfs.filesystem.operations import FoundObject
from bftfs.identifiers import ObjectId
from bftfs.restoration.viewpoint import Reading, Viewpoint

_Result = TypeVar("_Result")

_ACLS: Final = (acl.ACCESS, acl.DEFAULT)


@dataclass(frozen=True, slots=True)
class PathStatus:
    """The attributes of what is at a path, links not followed."""

    identity: object  # equal for two names of one file
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int


class InTheWay(Exception):
    """Something of another type is at a path of the target, and may not be removed."""

    def __init__(self, path: str, *, there: int, wanted: int) -> None:
        super().__init__(path)
        self.path = path
        self.there = stat.S_IFMT(there)
        self.wanted = stat.S_IFMT(wanted)


class Target(Protocol):
    """Where a tree is restored to. Paths are relative; the empty path is the target itself."""

    async def status(self, path: str) -> PathStatus | None:
        """The status of what is at the path; None if nothing is."""

    async def names(self, path: str) -> list[str]:
        """The names in a directory."""

    async def remove(self, path: str) -> None:
        """Remove what is at the path, a directory with its contents."""

    async def make_directory(self, path: str) -> None:
        """Make a directory that only its owner may use."""

    async def make_node(self, path: str, mode: int, device: int) -> None:
        """Make a special file."""

    async def make_symlink(self, path: str, leads_to: bytes) -> None:
        """Make a symlink."""

    async def leads_to(self, path: str) -> bytes:
        """The target of a symlink."""

    async def link(self, first: str, path: str) -> None:
        """Make a hard link `path` to the file at `first`."""

    async def holds(self, path: str, reading: Reading) -> bool:
        """True if a file of the same length has the contents that are read."""

    async def write(self, path: str, reading: Reading, attributes: Attributes) -> None:
        """Write what is read to a file, in place; make it if it does not exist.

        May set its attributes as well, if that is cheaper at the same time.
        """

    async def change_owner(self, path: str, uid: int, gid: int) -> bool:
        """Change owner and group; False if that is not permitted."""

    async def change_mode(self, path: str, mode: int) -> None:
        """Set its permission bits."""

    async def change_times(self, path: str, *, atime_ns: int, mtime_ns: int) -> None:
        """Set its times."""

    async def extended(self, path: str) -> dict[bytes, bytes]:
        """Its extended attributes, ACLs among them."""

    async def change_extended(self, path: str, name: bytes, value: bytes | None) -> bool:
        """Set or remove (None) an extended attribute; False if that is not permitted."""


_MADE, _REWRITTEN, _CHANGED, _REMOVED = "made", "rewritten", "with other attributes", "removed"

AT_ONCE: Final = 16  # objects that are restored at the same time; of each, one piece is held


class Counts(Counter[str]):
    """How much a restore has changed."""

    def __str__(self) -> str:
        kinds = (_MADE, _REWRITTEN, _CHANGED, _REMOVED)
        words = [f"{self[kind]} {kind}" for kind in kinds if self[kind]]
        return ", ".join(words) or "nothing had to be changed"


class Restoring:
    """The restore of one tree. `counts` is right at any moment, also after a failure.

    `found` counts the objects that were there already, with these contents or others.

    Directories are made first, level by level; then what is in them, several objects at a time;
    then further names of files; at last the attributes of directories, from the deepest up.
    """

    def __init__(
        self,
        view: Viewpoint,
        target: Target,
        time_us: int | None,
        *,
        replaces: bool = True,
        told: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        """`told` hears after each object how many are done, of how many.

        `replaces` says whether what is in the way, of another type, is removed; else the restore
        ends with InTheWay.
        """
        self._replaces = replaces
        self._told = told
        self._view = view
        self._target = target
        self._time_us = time_us
        self._tree: dict[str, FoundObject] = {}
        self._done = 0
        self._present: set[str] = set()  # paths below the target at which something is
        self._used: dict[object, ObjectId] = {}  # existing files: what each was restored as
        self.counts = Counts()
        self.found = 0

    async def restore(self, top: FoundObject, *, delete: bool) -> None:
        """Make the target what `top` was; with `delete`, also remove what was not in `top` then."""
        tree = self._tree = {"": top}
        if top.attributes.is_directory:
            tree = self._tree = await self._view.tree(top, self._time_us)
        if await self._target.status("") is not None:
            self._present.add("")
        levels = self._levels()
        for level in levels:
            await self._for_each(self._restore_directory, level)
        first: dict[ObjectId, str] = {}  # of several names of a file, which share its contents
        objects = [path for path in sorted(tree) if not tree[path].attributes.is_directory]
        is_link = {
            path: first.setdefault(tree[path].identifier, path) != path
            for path in objects
            if tree[path].attributes.links > 1
        }
        await self._for_each(
            self._restore_object, [each for each in objects if not is_link.get(each)]
        )
        links = [each for each in objects if is_link.get(each)]
        await self._for_each(
            lambda path: self._restore_link(first[tree[path].identifier], path), links
        )
        if delete:
            surplus = self._present - tree.keys()
            await several_at_once([partial(self._remove, each) for each in sorted(surplus)])
        for level in reversed(levels):  # making entries has changed their times
            await several_at_once(
                [partial(self._restore_attributes, each, tree[each], made=False) for each in level],
                most=AT_ONCE,
            )

    def _levels(self) -> list[list[str]]:
        """The directories of the tree: the top, those in it, those in these …"""
        levels: dict[int, list[str]] = {}
        for path in sorted(self._tree):
            if self._tree[path].attributes.is_directory:
                levels.setdefault(path.count("/") + bool(path), []).append(path)
        return [levels[depth] for depth in sorted(levels)]

    async def _for_each(
        self, restore: Callable[[str], Conversation[None]], paths: Sequence[str]
    ) -> None:
        async def restored(path: str) -> None:
            await restore(path)
            self._done += 1
            self._told(self._done, len(self._tree))

        await several_at_once([partial(restored, path) for path in paths], most=AT_ONCE)

    async def _status_of(self, path: str) -> PathStatus | None:
        """The status of what is at a path, of whose directory the names were listed."""
        there = await self._target.status(path) if path in self._present else None
        self.found += there is not None
        return there

    async def _restore_directory(self, path: str) -> None:
        there = await self._status_of(path)
        if there is not None and not stat.S_ISDIR(there.mode):
            self._may_replace(path, there)
            await self._remove(path)
            there = None
        if there is None:
            await self._target.make_directory(path)
            self.counts[_MADE] += 1
            return
        for name in await self._target.names(path):
            self._present.add(f"{path}/{name}" if path else name)

    async def _restore_object(self, path: str) -> None:
        target, counts, node = self._target, self.counts, self._tree[path]
        form = stat.S_IFMT(node.attributes.mode)
        there = await self._status_of(path)
        if there is not None and (
            stat.S_IFMT(there.mode) != form
            # Two files of then may be one now: one of them keeps it.
            or self._used.setdefault(there.identity, node.identifier) != node.identifier
        ):
            self._may_replace(path, there)
            await self._remove(path)
            there = None
        made = there is None
        if form == stat.S_IFREG:
            await self._restore_contents(path, node, there)
        elif form == stat.S_IFLNK:
            leads_to = await self._view.link_target(node.identifier, self._time_us)
            if made or await target.leads_to(path) != leads_to:
                if not made:
                    await target.remove(path)
                await target.make_symlink(path, leads_to)
                counts[_MADE] += 1
        elif made:
            await target.make_node(path, node.attributes.mode, node.attributes.device)
            counts[_MADE] += 1
        await self._restore_attributes(path, node, made=made)

    def _may_replace(self, path: str, there: PathStatus) -> None:
        """Raise InTheWay if what is at the path may not be removed."""
        wanted = self._tree[path].attributes.mode
        if not self._replaces and stat.S_IFMT(there.mode) != stat.S_IFMT(wanted):
            raise InTheWay(path, there=there.mode, wanted=wanted)

    async def _remove(self, path: str) -> None:
        await self._target.remove(path)
        self.counts[_REMOVED] += 1

    async def _restore_link(self, first: str, path: str) -> None:
        target = self._target
        there = await self._status_of(path)
        if there is not None:
            found = await self._status(first)
            if there.identity == found.identity:
                return
            self._may_replace(path, there)
            await target.remove(path)
        await target.link(first, path)
        self.counts[_MADE] += 1

    async def _restore_contents(
        self, path: str, node: FoundObject, there: PathStatus | None
    ) -> None:
        """Write a file in place, unless it has the contents already."""
        if (
            there is not None
            and there.size == node.attributes.size
            and await self._read(path, node, self._target.holds)
        ):
            return
        await self._read(path, node, partial(self._target.write, attributes=node.attributes))
        if there is None:
            self.counts[_MADE] += 1
        else:
            self.counts[_REWRITTEN] += 1

    async def _read(
        self, path: str, node: FoundObject, use: Callable[[str, Reading], Awaitable[_Result]]
    ) -> _Result:
        reading = await self._view.reading(node.identifier, self._time_us)
        try:
            return await use(path, reading)
        finally:
            await reading.close()

    async def _restore_attributes(self, path: str, node: FoundObject, *, made: bool) -> None:
        """Restore owner, mode, times and extended attributes, as far as the user may set them."""
        target, attributes = self._target, node.attributes
        status = await self._status(path)
        changed = False
        if (status.uid, status.gid) != (attributes.uid, attributes.gid):
            changed |= await target.change_owner(path, attributes.uid, attributes.gid)
        if not stat.S_ISLNK(status.mode):
            changed |= await self._restore_extended(path, node, made=made)
            if changed:
                status = await self._status(path)  # both may have changed the mode
            mode = stat.S_IMODE(attributes.mode)
            if stat.S_IMODE(status.mode) != mode:
                await target.change_mode(path, mode)
                changed = True
        if status.mtime_ns != attributes.mtime_ns:
            await target.change_times(
                path, atime_ns=attributes.atime_ns, mtime_ns=attributes.mtime_ns
            )
            changed = True
        if changed and not made:
            self.counts[_CHANGED] += 1

    async def _status(self, path: str) -> PathStatus:
        found = await self._target.status(path)
        if found is None:
            raise FileSystemError(errno.ENOENT, "it was removed while it was restored")
        return found

    async def _restore_extended(self, path: str, node: FoundObject, *, made: bool) -> bool:
        wanted = await self._view.extended(node, self._time_us)
        if made and not wanted:
            return False
        there = {
            name: value
            for name, value in (await self._target.extended(path)).items()
            if name not in _ACLS or name in wanted
        }
        changed = False
        for name, value in wanted.items():
            if there.get(name) != value:
                changed |= await self._target.change_extended(path, name, value)
        for name in there.keys() - wanted.keys():
            changed |= await self._target.change_extended(path, name, None)
        return changed
