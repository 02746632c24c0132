"""An honest user and an intruder in one small file system, in virtual time."""

from __future__ import annotations

import os
import stat
from functools import partial

import pytest

from bftfs.coding import cross_checksum
from bftfs.conversation import Now
from bftfs.filesystem.attributes import NO_CHANGES, Changes
from bftfs.filesystem.block_names import CoveredBlock, covered
from bftfs.filesystem.file_history import History
from bftfs.filesystem.inode import Access, Writing
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import ACCESSED, WRITE
from bftfs.identifiers import ObjectId, ObjectKind, object_id
from bftfs.query_update.past_reading import PastReader
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.read_write.writing import Encoded, encode
from bftfs.restoration.changes import ChangeLog, read_changes
from bftfs.restoration.undo import Undo, UndoStep, carry_out
from bftfs.restoration.viewpoint import Viewpoint
from bftfs.simulation.deployment import CREDENTIALS
from bftfs.storage import Table
from tests.builders import ClusterClient, SimulatedCluster

VOLUME = object_id(ObjectKind.VOLUME, placement=0, unique=b"v" * 14)
ROOT = object_id(ObjectKind.DIRECTORY, placement=0, unique=b"r" * 14)
BLOCK = 4096


class User(ClusterClient):
    """A client, and the calls that its programs make."""

    def __init__(self, stage: Stage, name: str) -> None:
        super().__init__(stage, stage.deployment.client(name))
        self.files = FileSystem(
            self.objects,
            self.blocks,
            self.capacity,
            None,
            root=ROOT,
            volume=VOLUME,
            options=Options(strict=True, access_times=False),
        )

    def find(self, path: str) -> ObjectId:
        identifier = ROOT
        for name in path.split("/") if path else ():
            identifier = self.run(
                self.files.lookup(identifier, name.encode(), CREDENTIALS)
            ).identifier
        return identifier

    def _place(self, path: str) -> tuple[ObjectId, bytes]:
        above, _, name = path.rpartition("/")
        return self.find(above), name.encode()

    def write(self, path: str, contents: str) -> None:
        async def write(directory: ObjectId, name: bytes) -> None:
            mode = stat.S_IFREG | 0o600
            _, file = await self.files.create(
                directory, name, mode, CREDENTIALS, flags=os.O_WRONLY | os.O_TRUNC
            )
            self.files.write(file, 0, contents.encode(), now_ns=await Now() * 1000)
            await self.files.release(file)

        self.run(write(*self._place(path)))

    def scribble(self, path: str, contents: str, *, number: int = 0) -> CoveredBlock:
        """Write to a block of a file, and do not cover it."""
        identifier = self.find(path)
        found = self.run(self.files.attributes(identifier, CREDENTIALS))
        block = found.layout.block(identifier, number)
        items = [(block, contents.encode())]
        (timestamp,) = self.run(self.blocks.write_many(items, CREDENTIALS))
        return covered(number, timestamp)

    def poison(self, path: str, *, number: int = 0) -> CoveredBlock:
        """Write what nobody can decode to a block of a file, and do not cover it."""
        identifier = self.find(path)
        found = self.run(self.files.attributes(identifier, CREDENTIALS))
        pieces = encode(self.blocks._session.code, bytes(range(256)) * (BLOCK // 256))
        fragments = (*pieces.fragments[1:], pieces.fragments[0])
        checksum = cross_checksum.make(fragments)
        poison = Encoded(fragments, checksum, cross_checksum.verifier(checksum))
        block = found.layout.block(identifier, number)
        time_us = found.contents + 1
        timestamp = self.run(self.blocks._write(block, poison, time_us, 0, CREDENTIALS))
        return covered(number, timestamp)

    def cover(
        self, path: str, *blocks: CoveredBlock, end: int = 0, is_written: bool = True
    ) -> None:
        """Cover blocks of a file: those that this client has written, or any."""
        identifier = self.find(path)
        found = self.run(self.files.attributes(identifier, CREDENTIALS))
        arguments = Writing(end, found.layout.newest, found.mtime_ns, NO_CHANGES, blocks)
        versions = [
            (
                found.layout.block(identifier, each.number),
                BlockTimestamp(each.time_us, self.host.client, each.verifier),
            )
            for each in blocks
        ]
        vouch = None
        if versions and is_written:
            vouch = partial(self.blocks.vouched, versions, CREDENTIALS)
        self.run(self.objects.update((identifier,), WRITE, arguments, CREDENTIALS, vouch=vouch))

    def put(self, path: str, contents: str, offset: int) -> None:
        """Write to a part of a file."""

        async def put(identifier: ObjectId) -> None:
            file = await self.files.open(identifier, os.O_RDWR, CREDENTIALS)
            self.files.write(file, offset, contents.encode(), now_ns=await Now() * 1000)
            await self.files.release(file)

        self.run(put(self.find(path)))

    def touch(self, path: str) -> None:
        """Note that the file has been read."""
        arguments = Access(self.cluster.now_us * 1000)
        update = self.objects.update((self.find(path),), ACCESSED, arguments, CREDENTIALS)
        self.run(update)

    def mkdir(self, path: str) -> None:
        self.run(self.files.make_directory(*self._place(path), 0o700, CREDENTIALS))

    def link(self, path: str, other: str) -> None:
        self.run(self.files.link(self.find(path), *self._place(other), CREDENTIALS))

    def rm(self, path: str) -> None:
        self.run(self.files.unlink(*self._place(path), CREDENTIALS))

    def rmdir(self, path: str) -> None:
        self.run(self.files.remove_directory(*self._place(path), CREDENTIALS))

    def mend(self, path: str) -> None:
        self.run(self.files.mend(*self._place(path), CREDENTIALS))

    def mv(self, path: str, other: str, flags: int = 0) -> None:
        places = (*self._place(path), *self._place(other))
        self.run(self.files.rename(*places, CREDENTIALS, flags=flags))

    def chmod(self, path: str, mode: int) -> None:
        self.run(self.files.change_attributes(self.find(path), Changes(mode=mode), CREDENTIALS))


class Stage(SimulatedCluster):
    """A cluster with an honest user and an intruder."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.honest, self.intruder = User(self, "honest"), User(self, "intruder")
        self.honest.run(self.honest.files.format(CREDENTIALS, block_bytes=BLOCK))
        self._since_us = 0

    def lose(self, path: str) -> None:
        """More nodes than may fail forget what the path stands for, and not its name."""
        lost = self.honest.find(path)
        for node in self.deployment.nodes:
            for table in Table:
                for key in tuple(node.disk.keys(table, lost, lost + b"\xff" * 80)):
                    node.disk.lose(table, bytes(key))

    def begin(self) -> None:
        """From now on the intruder's changes are to be taken back."""
        self._since_us = self.now_us

    def view(self) -> Viewpoint:
        """What the honest user sees."""
        honest = self.honest
        history = History(
            honest.files,
            honest.objects,
            PastReader(honest.objects),
            honest.blocks,
        )
        return Viewpoint(honest.files, history, CREDENTIALS, self.now_us)

    def log(self, view: Viewpoint | None = None, *, path: str = "") -> ChangeLog:
        """What the intruder did below a directory."""
        following = read_changes(
            view or self.view(),
            self.honest.find(path),
            path=path,
            client=self.intruder.host.client,
            since_us=self._since_us,
        )
        log: ChangeLog = self.honest.run(following)
        return log

    def steps(self, path: str = "") -> list[UndoStep]:
        """What is to be done against the intruder below a directory."""
        view = self.view()
        log = self.log(view, path=path)
        steps: list[UndoStep] = self.honest.run(Undo(view, log, label="K").steps())
        return steps

    def undo(self, path: str = "") -> list[str]:
        """Take back what the intruder did below a directory; the conflicts."""
        steps = self.steps(path)

        def told(_: UndoStep, failure: Exception | None) -> None:
            if failure is not None:
                raise failure

        self.honest.run(carry_out(steps, told))
        again = self.steps(path)
        assert not [step.what for step in again if step.perform is not None]
        return [step.what for step in steps if step.conflict]

    def tree(self) -> dict[str, str]:
        """What there is: contents of files; nothing of directories."""
        files = self.honest.files
        found: dict[str, str] = {}
        waiting = [("", ROOT)]
        while waiting:
            path, directory = waiting.pop()
            opened = self.honest.run(files.open_directory(directory, CREDENTIALS))
            for entry in self.honest.run(files.read_directory(opened, 0)):
                full = f"{path}{entry.name.decode()}"
                if entry.attributes.is_directory:
                    found[full] = ""
                    waiting.append((f"{full}/", entry.identifier))
                    continue
                file = self.honest.run(files.open(entry.identifier, os.O_RDONLY, CREDENTIALS))
                found[full] = bytes(self.honest.run(files.read(file, 0, 100))).decode()
                self.honest.run(files.release(file))
        return found

    def contents(self, path: str) -> str:
        """All of a file."""
        contents: bytes = self.honest.run(self.view().contents(self.honest.find(path), None))
        return contents.decode()

    def mode(self, path: str) -> int:
        found = self.honest.run(self.honest.files.attributes(self.honest.find(path), CREDENTIALS))
        return stat.S_IMODE(found.mode)

    def kill_honest(self) -> None:
        """What the honest user does ends at once, wherever it is; there is another one."""
        self.honest.host.crash()
        self.honest = User(self, "honest again")


@pytest.fixture
def stage() -> Stage:
    """A file `a`, a file `b`, and a file `d/c`."""
    return furnished()


def furnished() -> Stage:
    """The same, not as a fixture."""
    stage = Stage()
    for name in ("a", "b"):
        stage.honest.write(name, f"{name}\n")
    stage.honest.mkdir("d")
    stage.honest.write("d/c", "c\n")
    stage.begin()
    return stage
