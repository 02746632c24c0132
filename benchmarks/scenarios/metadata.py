"""How long do the nine metadata operations of the source's Table 4.3 take, as Q/U operations?

Each is one operation of the Q/U client, one after the other, on objects that it has used before, as
in the source: neither FUSE nor a cache stands between.  The files lie in one directory.
"""

import itertools
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.deployment import ROOT, Client, Deployment, System, client_of, deployed
from benchmarks.errors import PhaseError
from benchmarks.measurement import Measure
from benchmarks.session import Place, Session
from bftfs import limits
from bftfs.cluster import Durability
from bftfs.conversation import Conversation
from bftfs.filesystem import registry
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.directory import Creation, DirectoryCreation, Listing, Name, Renaming
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.volume import Format
from bftfs.identifiers import ObjectId, ObjectKind, object_id, placement_of
from bftfs.query_update.object_type import Record

SOURCE = "source, Table 4.3"
SYSTEM = System(t=1, b=1)

_MEASURE = Measure.MICROSECONDS_PER_OPERATION

# Mean latencies in µs of the source's metadata service with b = 1. [Q/U Table 4.3]
_SOURCE_US = {
    "getattr": 570,
    "lookup": 586,
    "readlink": 563,
    "readdir": 586,
    "setattr": 624,
    "create": 718,
    "link": 690,
    "unlink": 686,
    "rename": 780,
}
_PAGE_BYTES = 8192  # of a listing, as one READDIR of NFS asks for


@dataclass(frozen=True, slots=True)
class Parameters:
    """`operations` of each kind, in each round."""

    repeat: int
    operations: int
    durability: Durability


def run(session: Session, target: str, below: Path | None, parameters: Parameters) -> None:
    """Measure."""
    with (
        deployed(SYSTEM, parameters.durability, below=below) as deployment,
        client_of(deployment) as client,
        suppress(PhaseError),
    ):
        namespace = Namespace(client)
        for number in range(parameters.repeat):
            operations = namespace.table_4_3(parameters.operations, prefix=b"%d-" % number)
            for name, conversations in operations.items():
                place = Place(target, number)
                _measure(session, place, name, deployment, client, conversations)
                session.cite(SOURCE, place, name, _MEASURE, seconds=_SOURCE_US[name] / 1e6)


def _measure(
    session: Session,
    place: Place,
    name: str,
    deployment: Deployment,
    client: Client,
    conversations: Sequence[Callable[[], Conversation[Any]]],
) -> None:
    with deployment.operations(
        session,
        place,
        name,
        _MEASURE,
        count=len(conversations),
        asked=deployment.description.query_update.q,
    ) as phase:
        client.perform(conversations, latencies_ns=phase.latencies_ns)


class Namespace:
    """The methods of directories and inodes, called without a cache in between."""

    def __init__(self, client: Client) -> None:
        """Makes the file system, and a file and a symbolic link in its root directory."""
        self._client = client
        self.root = client.description.root
        self._numbers = itertools.count()
        volume = client.description.volume
        form = Format(limits.BLOCK_BYTES_DEFAULT, 0o755)
        client.perform([self.update((volume, self.root), registry.FORMAT, form)])
        self._file = self.new_identifier(self.root)
        self._symlink = self.new_identifier(self.root)
        client.perform([self.creation(self.root, b"file", self._file)])
        client.perform([self.creation(self.root, b"symlink", self._symlink, target=b"file")])

    def new_identifier(self, directory: ObjectId) -> ObjectId:
        """Of an inode that is to stand in the directory: it has its preferred quorum."""
        number = next(self._numbers)
        return object_id(
            ObjectKind.INODE,
            placement=placement_of(directory),
            unique=number.to_bytes(4, "big") + os.urandom(10),
        )

    def table_4_3(
        self, count: int, *, prefix: bytes
    ) -> dict[str, Sequence[Callable[[], Conversation[Any]]]]:
        """`count` conversations for each operation, to be performed in this order.

        Their names begin with `prefix`; in the end all of them are gone.
        """
        root, file = self.root, self._file
        made = [(prefix + b"made%d" % i, self.new_identifier(root)) for i in range(count)]
        lookups = self.query((root,), registry.LOOKUP, Name(b"file"))
        listing = self.query((root,), registry.READ_DIRECTORY, Listing(0, _PAGE_BYTES))
        return {
            "getattr": [self.query((file,), registry.GET_ATTRIBUTES, NoArguments())] * count,
            "lookup": [lookups] * count,
            "readlink": [self.query((self._symlink,), registry.READ_LINK, NoArguments())] * count,
            "readdir": [listing] * count,
            "setattr": [
                self.update((file,), registry.CHANGE_ATTRIBUTES, Changes(mode=0o600 + i % 8))
                for i in range(count)
            ],
            "create": [self.creation(root, name, inode) for name, inode in made],
            "link": [
                self.update((root, inode), registry.LINK, Name(b"link-" + name))
                for name, inode in made
            ],
            "unlink": [
                self.update((root, inode), registry.UNLINK, Name(b"link-" + name))
                for name, inode in made
            ],
            "rename": [
                self.update(
                    (root, root, inode, inode),
                    registry.RENAME,
                    Renaming(name, b"renamed-" + name, 0),
                )
                for name, inode in made
            ],
        }

    def make_directory(self, number: int) -> ObjectId:
        """A new directory in the root; neighbours in number have different preferred quorums."""
        made = object_id(ObjectKind.DIRECTORY, placement=number % 256, unique=b"%014d" % number)
        creation = DirectoryCreation(b"directory%d" % number, 0o755, 0)
        self._client.perform([self.update((self.root, made), registry.MAKE_DIRECTORY, creation)])
        return made

    def creation(
        self, directory: ObjectId, name: bytes, inode: ObjectId, *, target: bytes = b""
    ) -> Callable[[], Conversation[Any]]:
        """A new file; or a symbolic link, if there is a target."""
        mode = stat.S_IFLNK | 0o777 if target else stat.S_IFREG | 0o644
        made = Creation(name, mode, 0, 0, target, limits.BLOCK_BYTES_DEFAULT)
        return self.update((directory, inode), registry.CREATE, made)

    def query(
        self, objects: tuple[ObjectId, ...], method: str, arguments: Record
    ) -> Callable[[], Conversation[Any]]:
        """A query by root."""
        return partial(self._client.objects.query, objects, method, arguments, ROOT)

    def update(
        self, objects: tuple[ObjectId, ...], method: str, arguments: Record
    ) -> Callable[[], Conversation[Any]]:
        """An update by root."""
        return partial(self._client.objects.update, objects, method, arguments, ROOT)
