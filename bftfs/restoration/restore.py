"""Restoring a tree as of a time: it is read from the nodes, and written to a target.

A target is a path on a machine, or the file system itself. Restoring changes only what differs, so
that a second restore changes nothing. A file that exists is written in place, so that its history
goes on. Owners and extended attributes are set as far as the user who restores may set them.
"""

from __future__ import annotations

import errno
import stat
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from bftfs.errors import FileSystemError
from bftfs.filesystem import acl
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

    async def write(self, path: str, reading: Reading) -> None:
        """Write what is read to a file, in place; make it if it does not exist."""

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


class Counts(Counter[str]):
    """How much a restore has changed."""

    def __str__(self) -> str:
        kinds = (_MADE, _REWRITTEN, _CHANGED, _REMOVED)
        words = [f"{self[kind]} {kind}" for kind in kinds if self[kind]]
        return ", ".join(words) or "nothing had to be changed"


class Restoring:
    """The restore of one tree. `counts` is right at any moment, also after a failure."""

    def __init__(
        self,
        view: Viewpoint,
        target: Target,
        time_us: int | None,
        *,
        told: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        """`told` hears after each object how many are done, of how many."""
        self._told = told
        self._view = view
        self._target = target
        self._time_us = time_us
        self._links: dict[ObjectId, str] = {}  # files with several names: the first path
        self._used: dict[object, ObjectId] = {}  # existing files: what each was restored as
        self.counts = Counts()

    async def restore(self, top: FoundObject, *, delete: bool) -> None:
        """Make the target what `top` was; with `delete`, also remove what was not in `top` then."""
        view = self._view
        tree = {"": top}
        if top.attributes.is_directory:
            tree = await view.tree(top, self._time_us)
        for done, path in enumerate(sorted(tree), 1):
            await self._restore(path, tree[path])
            self._told(done, len(tree))
        if delete and top.attributes.is_directory:
            await self._remove_others("", tree)
        for path in sorted(tree, reverse=True):  # making entries has changed their times
            if tree[path].attributes.is_directory:
                await self._restore_attributes(path, tree[path], made=False)

    async def _restore(self, path: str, node: FoundObject) -> None:
        target, counts, attributes = self._target, self.counts, node.attributes
        form = stat.S_IFMT(attributes.mode)
        there = await target.status(path)
        first = self._links.get(node.identifier)
        if first is not None:
            await self._restore_link(first, path, there)
            return
        if there is not None and (
            stat.S_IFMT(there.mode) != form
            # Two files of then may be one now: the first one that was restored to it keeps it.
            or self._used.setdefault(there.identity, node.identifier) != node.identifier
        ):
            await target.remove(path)
            counts[_REMOVED] += 1
            there = None
        made = there is None
        if form == stat.S_IFDIR:
            if made:
                await target.make_directory(path)
                counts[_MADE] += 1
            return
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
            await target.make_node(path, attributes.mode, attributes.device)
            counts[_MADE] += 1
        if attributes.links > 1:
            self._links[node.identifier] = path
        await self._restore_attributes(path, node, made=made)

    async def _restore_link(self, first: str, path: str, there: PathStatus | None) -> None:
        target = self._target
        found = await target.status(first)
        assert found is not None, "it was restored before"
        if there is not None and there.identity == found.identity:
            return
        if there is not None:
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
        await self._read(path, node, self._target.write)
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
        is_link = stat.S_ISLNK(status.mode)
        changed = False
        if (status.uid, status.gid) != (attributes.uid, attributes.gid):
            changed |= await target.change_owner(path, attributes.uid, attributes.gid)
        if not is_link:
            changed |= await self._restore_extended(path, node)
            mode = stat.S_IMODE(attributes.mode)
            if stat.S_IMODE((await self._status(path)).mode) != mode:
                await target.change_mode(path, mode)
                changed = True
        if (await self._status(path)).mtime_ns != attributes.mtime_ns:
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

    async def _restore_extended(self, path: str, node: FoundObject) -> bool:
        wanted = await self._view.extended(node, self._time_us)
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

    async def _remove_others(self, path: str, tree: dict[str, FoundObject]) -> None:
        """Remove what did not exist then."""
        for name in await self._target.names(path):
            full = f"{path}/{name}" if path else name
            if full not in tree:
                await self._target.remove(full)
                self.counts[_REMOVED] += 1
            elif tree[full].attributes.is_directory:
                await self._remove_others(full, tree)
