"""The auditor at the end of a simulation: it performs `bftfs audit`, `undo` and `restore`.

The conversations are those of the commands. Only the target of a restore differs: the file
system itself instead of a path in a mount of it.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from bftfs.conversation import Now
from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError
from bftfs.filesystem.attributes import Attributes, Changes
from bftfs.filesystem.operations import FileSystem, FoundObject
from bftfs.identifiers import ClientId, ObjectId
from bftfs.restoration.changes import audited, read_changes
from bftfs.restoration.name_plan import UndoStep
from bftfs.restoration.restore import PathStatus, Restoring
from bftfs.restoration.undo import Undo, carry_out
from bftfs.restoration.viewpoint import Reading, Viewpoint
from bftfs.simulation.checkers.undo import Restored, Undone
from bftfs.simulation.workloads.past import tree_of

LABEL: Final = "intruder"
ROOT: Final = Credentials(uid=0, gid=0)  # who may look at everything


async def undo(view: Viewpoint, client: ClientId, since_us: int) -> Undone:
    """`bftfs audit`, and `bftfs undo` twice."""
    root = view.files.root
    log = await read_changes(view, root, path="", client=client, since_us=since_us)
    own, _ = audited(log)
    undone = Undone(
        client,
        since_us,
        frozenset(change.timestamp for _, change in own),
        await tree_of(view.files, [root], ROOT),
        LABEL,
    )
    undone.steps = await Undo(view, log, label=LABEL).steps()

    def told(step: UndoStep, failure: Exception | None) -> None:
        if failure is not None:
            undone.failed.append(f"{step.what} ({failure!r})")

    await carry_out(undone.steps, told)
    undone.after = await tree_of(view.files, [root], ROOT)
    later = Viewpoint(view.files, view.history, view.who, await Now())
    log = await read_changes(later, root, path="", client=client, since_us=since_us)
    undone.again = await Undo(later, log, label=LABEL).steps()
    return undone


async def restore(view: Viewpoint, time_us: int, *, delete: bool) -> Restored:
    """`bftfs restore` of everything, twice."""
    root = view.files.root
    top = FoundObject(root, await view.at(time_us).attributes(root, view.who))
    left = ""
    for _ in range(2):
        restoring = Restoring(view, FilesTarget(view.files), time_us)
        await restoring.restore(top, delete=delete)
        left = str(restoring.counts) if restoring.counts else ""
    return Restored(time_us, delete, left, await tree_of(view.files, [root], ROOT))


class FilesTarget:
    """The file system itself, from its root on; see `restoration.restore.Target`."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files

    async def _find(self, path: str) -> ObjectId:
        identifier = self._files.root
        for name in filter(None, path.split("/")):
            found = await self._files.lookup(identifier, os.fsencode(name), ROOT)
            identifier = found.identifier
        return identifier

    async def _place(self, path: str) -> tuple[ObjectId, bytes]:
        above, _, name = path.rpartition("/")
        return await self._find(above), os.fsencode(name)

    async def status(self, path: str) -> PathStatus | None:
        """The status of what is at the path; None if nothing is."""
        try:
            identifier = await self._find(path)
        except FileSystemError:
            return None
        found = await self._files.attributes(identifier, ROOT)
        return PathStatus(identifier, found.mode, found.uid, found.gid, found.size, found.mtime_ns)

    async def names(self, path: str) -> list[str]:
        """The names in a directory."""
        opened = await self._files.open_directory(await self._find(path), ROOT)
        found: list[str] = []
        after = 0
        while page := await self._files.read_directory(opened, after, with_attributes=False):
            found += [os.fsdecode(entry.name) for entry in page]
            after = page[-1].cookie
        return found

    async def remove(self, path: str) -> None:
        """Remove it, with all that is in it."""
        directory, name = await self._place(path)
        found = await self._files.lookup(directory, name, ROOT)
        if not found.attributes.is_directory:
            await self._files.unlink(directory, name, ROOT)
            return
        for each in await self.names(path):
            await self.remove(f"{path}/{each}")
        await self._files.remove_directory(directory, name, ROOT)

    async def make_directory(self, path: str) -> None:
        """Make a directory."""
        directory, name = await self._place(path)
        await self._files.make_directory(directory, name, 0o700, ROOT)

    async def make_node(self, path: str, mode: int, device: int) -> None:
        """Make a special file."""
        directory, name = await self._place(path)
        await self._files.make_node(directory, name, mode, ROOT, device=device)

    async def make_symlink(self, path: str, leads_to: bytes) -> None:
        """Make a symlink."""
        directory, name = await self._place(path)
        await self._files.make_symlink(directory, name, leads_to, ROOT)

    async def leads_to(self, path: str) -> bytes:
        """Where a symlink leads."""
        return await self._files.read_link(await self._find(path), ROOT)

    async def link(self, first: str, path: str) -> None:
        """Give it another name."""
        directory, name = await self._place(path)
        await self._files.link(await self._find(first), directory, name, ROOT)

    async def holds(self, path: str, reading: Reading) -> bool:
        """True if the file has the contents that are read."""
        file = await self._files.open(await self._find(path), os.O_RDONLY, ROOT)
        try:
            offset = 0
            while piece := await reading.next():
                if bytes(await self._files.read(file, offset, len(piece))) != piece:
                    return False
                offset += len(piece)
        finally:
            await self._files.release(file)
        return True

    async def write(self, path: str, reading: Reading, attributes: Attributes) -> None:
        """Write what is read to the file."""
        files = self._files
        directory, name = await self._place(path)
        mode = stat.S_IFREG | 0o600
        found: FoundObject
        found, file = await files.create(directory, name, mode, ROOT, flags=os.O_WRONLY)
        try:
            offset = 0
            while piece := await reading.next():
                if files.write(file, offset, piece, now_ns=(await Now()) * 1000):
                    await files.write_behind(file)
                offset += len(piece)
        finally:
            await files.release(file)
        if found.attributes.size > offset:
            await files.truncate(found.identifier, offset, ROOT)

    async def change_owner(self, path: str, uid: int, gid: int) -> bool:
        """Give it to somebody, if that is permitted."""
        return await self._changed(path, Changes(uid=uid, gid=gid))

    async def change_mode(self, path: str, mode: int) -> None:
        """Set its permission bits."""
        await self._changed(path, Changes(mode=mode))

    async def change_times(self, path: str, *, atime_ns: int, mtime_ns: int) -> None:
        """Set its times."""
        await self._changed(path, Changes(atime_ns=atime_ns, mtime_ns=mtime_ns))

    async def _changed(self, path: str, changes: Changes) -> bool:
        await self._files.change_attributes(await self._find(path), changes, ROOT)
        return True

    async def extended(self, path: str) -> dict[bytes, bytes]:
        """Its extended attributes."""
        found, files = await self._find(path), self._files
        names = await files.list_extended(found, ROOT)
        return {name: await files.get_extended(found, name, ROOT) for name in names}

    async def change_extended(self, path: str, name: bytes, value: bytes | None) -> bool:
        """Set or remove an extended attribute."""
        found, files = await self._find(path), self._files
        if value is None:
            await files.remove_extended(found, name, ROOT)
        else:
            await files.set_extended(found, name, value, ROOT)
        return True
