"""A correct client in a process of its own, and what the clients of one cluster share.

    python -m benchmarks.victim --data DIR --client NAME --number I

reads a line from its input, prepares what it needs, and says `ready`.  Then it reads lines
"WORKLOAD SECONDS", and answers each with a line of JSON: how long it worked, how long each
operation took, what failed, and how much processor time it used.  Whoever attacks it (a program of
the tests) works in the same way, and finds here which objects and blocks there are.  Its lines end
with the processor time that it may use.
"""

import argparse
import itertools
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.cluster import ClusterDescription
from bftfs.conversation import Conversation
from bftfs.credentials import Credentials
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import read_identity
from bftfs.data_directory import DataDirectory
from bftfs.description_files import load
from bftfs.envelope import REPLIES
from bftfs.errors import BftfsError
from bftfs.filesystem import object_types, registry
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.directory import Creation, DirectoryCreation, Name
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.volume import Format
from bftfs.identifiers import (
    BlockId,
    ClientId,
    ObjectId,
    ObjectKind,
    block_id,
    object_id,
    placement_of,
)
from bftfs.query_update.client import QueryUpdateClient
from bftfs.read_write.client import ReadWriteClient
from bftfs.runtime.blocking import BlockingNetwork

METADATA = "metadata"
BLOCKS = "blocks"
WORKLOADS = (METADATA, BLOCKS)

BLOCK_BYTES = 16 * limits.KIB
_BLOCKS = 16  # of each client
_PATIENCE_US = 30 * limits.SECOND_US  # after so much silence an operation has failed
_SPREAD = 41  # placements between the directories of two clients


class Work(msgspec.Struct):
    """One line of a victim's output."""

    seconds: float
    latencies_us: list[int]
    failures: dict[str, int]
    processor_s: float


def directory_of(number: int) -> ObjectId:
    """The directory of one client."""
    return object_id(
        ObjectKind.DIRECTORY, placement=_SPREAD * number % 256, unique=b"%014d" % (number + 1)
    )


def blocks_of(number: int) -> tuple[BlockId, ...]:
    """The blocks that one client uses; they belong to no file, so that anyone may write them."""
    inode = object_id(
        ObjectKind.INODE, placement=_SPREAD * number % 256, unique=b"%014d" % (number + 1)
    )
    return tuple(block_id(inode, incarnation=0, number=each) for each in range(_BLOCKS))


def credentials_of(number: int) -> Credentials:
    """The user that one client acts for."""
    return Credentials(uid=2000 + number, gid=2000 + number)


def new_inode(directory: ObjectId) -> ObjectId:
    """An inode to be made in a directory, with the directory's preferred quorum."""
    return object_id(ObjectKind.INODE, placement=placement_of(directory), unique=os.urandom(14))


def creation(name: bytes) -> Creation:
    """A new empty file."""
    return Creation(name, stat.S_IFREG | 0o644, 0, 0, b"", limits.BLOCK_BYTES_DEFAULT)


def connected(data: Path, client: str) -> tuple[ClusterDescription, ClientId, BlockingNetwork]:
    """A cluster's description, a client's id there, and its connections."""
    directory = DataDirectory(data)
    description = load(directory.description)
    identity = read_identity(directory.client_key(client))
    network = BlockingNetwork(description, identity, decode=REPLIES.decode)
    return description, client_id_of(public_key=identity.public_key), network


def obey(prepare: Callable[[], None], work: Callable[..., Work]) -> None:
    """Do what each line of the input says, until it ends."""
    sys.stdin.readline()
    prepare()
    print("ready", flush=True)
    for line in sys.stdin:
        workload, *seconds = line.split()
        print(msgspec.json.encode(work(workload, *map(float, seconds))).decode(), flush=True)


class Victim:
    """A correct client at work, one operation after the other."""

    def __init__(self, data: Path, client: str, number: int) -> None:
        description, name, self._network = connected(data, client)
        peers = Peers(ThresholdQuorums(description.query_update))
        self._objects = QueryUpdateClient(
            name, peers, object_types(), patience_total_us=_PATIENCE_US
        )
        self._blocks = ReadWriteClient(
            name, description.read_write, peers, patience_total_us=_PATIENCE_US
        )
        self._description = description
        self._number = number
        self._credentials = credentials_of(number)
        self._directory = directory_of(number)
        self._endless = {METADATA: self._metadata(), BLOCKS: self._block_operations()}

    def prepare(self) -> None:
        """Make the directory of this client; the first one makes the file system."""
        root = self._description.root
        if self._number == 0:
            form = Format(limits.BLOCK_BYTES_DEFAULT, 0o777)
            self._network.perform(
                self._objects.update(
                    (self._description.volume, root), registry.FORMAT, form, Credentials(0, 0)
                )
            )
        made = DirectoryCreation(b"victim%d" % self._number, 0o755, 0)
        self._network.perform(self._update((root, self._directory), registry.MAKE_DIRECTORY, made))
        for block in blocks_of(self._number):
            self._network.perform(
                self._blocks.write(block, os.urandom(BLOCK_BYTES), self._credentials)
            )

    def work(self, workload: str, seconds: float) -> Work:
        """As many operations as begin in this time."""
        latencies_us: list[int] = []
        failures: Counter[str] = Counter()
        used = time.process_time()
        began = before = time.perf_counter()
        for operation in self._endless[workload]:
            try:
                self._network.perform(operation)
            except BftfsError as error:
                failures[type(error).__name__] += 1
            now = time.perf_counter()
            latencies_us.append(round((now - before) * 1e6))
            before = now
            if now - began >= seconds:
                break
        processor_s = time.process_time() - used
        return Work(before - began, latencies_us, dict(failures), processor_s)

    def _metadata(self) -> Iterator[Conversation[Any]]:
        """A file's life, over and over, and a look at what all clients share."""
        own, root = self._directory, self._description.root
        for number in itertools.count():
            name, inode = b"file%d" % number, new_inode(own)
            yield self._update((own, inode), registry.CREATE, creation(name))
            yield self._query(own, registry.LOOKUP, Name(name))
            yield self._query(inode, registry.GET_ATTRIBUTES, NoArguments())
            yield self._update((inode,), registry.CHANGE_ATTRIBUTES, Changes(mode=0o600))
            yield self._query(root, registry.LOOKUP, Name(b"victim%d" % self._number))
            yield self._update((own, inode), registry.UNLINK, Name(name))

    def _block_operations(self) -> Iterator[Conversation[Any]]:
        """Each block is written, and read again."""
        item = os.urandom(BLOCK_BYTES)
        for block in itertools.cycle(blocks_of(self._number)):
            yield self._blocks.write(block, item, self._credentials)
            yield self._blocks.read(block)

    def _query(self, name: ObjectId, method: str, arguments: Any) -> Conversation[Any]:
        return self._objects.query((name,), method, arguments, self._credentials)

    def _update(
        self, objects: tuple[ObjectId, ...], method: str, arguments: Any
    ) -> Conversation[Any]:
        return self._objects.update(objects, method, arguments, self._credentials)


def client_arguments(description: str) -> argparse.Namespace:
    """The `data`, `client` and `number` with which a correct client's program was started."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--client", required=True)
    parser.add_argument("--number", type=int, required=True)
    return parser.parse_args()


def main() -> None:
    """Run the program."""
    arguments = client_arguments("A correct client.")
    victim = Victim(arguments.data, arguments.client, arguments.number)
    obey(victim.prepare, victim.work)


if __name__ == "__main__":
    main()
