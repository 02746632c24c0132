"""Byzantine clients as processes of their own, each with a valid key, against real nodes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec
import pytest

from benchmarks.victim import (
    BLOCK_BYTES,
    BLOCKS,
    METADATA,
    Work,
    blocks_of,
    creation,
    credentials_of,
    directory_of,
    new_inode,
)
from bftfs import limits
from bftfs.cluster import ClientEntry
from bftfs.credentials import Credentials, Grant
from bftfs.crypto.keys import Identity, write_identity
from bftfs.filesystem import registry
from bftfs.filesystem.directory import DirectoryCreation, Listing, Name
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.volume import Format
from bftfs.identifiers import BlockId, ObjectId
from bftfs.query_update.object_type import Record
from bftfs.simulation.byzantine.registry import GRANTS
from tests.integration.deployment import PROJECT, Deployment
from tests.integration.test_protocols import Client

SECONDS = 1.5
ROOT = Credentials(0, 0)
UPDATERS = (
    "barrier-spammer",
    "impatient-updater",
    "half-multi-object",
    "trespasser",
)
WRITERS = ("poisonous-writer", "partial-writer", "timestamp-racer", "impersonator")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Six nodes that run, and know all of the clients here."""
    path = tmp_path_factory.mktemp("attacked") / "cluster"
    deployment = Deployment(path, module="nodes")
    admit(deployment, UPDATERS + WRITERS)
    deployment.start()
    yield deployment
    deployment.close()


class Liar:
    """A process that misbehaves when it is told to."""

    def __init__(self, deployment: Deployment, adversary: str, victims: int) -> None:
        self._log = deployment.directory.path / f"{adversary}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.lying_client", adversary),
                    *("--data", str(deployment.directory.path), "--client", adversary),
                    *("--victims", str(victims)),
                ],
                cwd=PROJECT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def hear(self) -> bytes:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self._log.read_text()
        return line

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def attacked(deployment: Deployment, adversaries: Sequence[str], workload: str) -> Iterator[None]:
    """All of these at once misbehave for a while; after it they have stopped."""
    with ExitStack() as stack:
        liars = []
        for adversary in adversaries:
            liars.append(Liar(deployment, adversary, 2))
            stack.callback(liars[-1].end)
        for liar in liars:
            liar.tell(b"prepare 0")
        for liar in liars:
            liar.hear()
        for liar in liars:
            liar.tell(b"%s %g" % (workload.encode(), SECONDS))
        yield
        for liar in liars:
            assert msgspec.json.decode(liar.hear(), type=Work).latencies_us, "it did nothing"


def admit(deployment: Deployment, adversaries: Sequence[str]) -> None:
    """Give each a key of its own, and the grant that it oversteps."""
    description = deployment.description
    for number, adversary in enumerate(adversaries):
        identity = Identity(bytes([number + 1]) * 32)
        grant = GRANTS.get(adversary, (Grant(),))[-1]
        description = description.with_client(ClientEntry(adversary, identity.public_key, grant))
        path = deployment.directory.client_key(adversary)
        path.parent.mkdir(exist_ok=True)
        write_identity(path, identity)
    deployment.describe(description)


class Correct(Client):
    """A correct client, with a directory and blocks of its own."""

    def __init__(self, deployment: Deployment, number: int) -> None:
        super().__init__(deployment, number)
        self.number = number
        self.root = deployment.description.root
        self.own = directory_of(number)

    def update(self, objects: tuple[ObjectId, ...], method: str, arguments: Record) -> None:
        who = credentials_of(self.number)
        self.network.perform(self.objects.update(objects, method, arguments, who))

    def ask(self, name: ObjectId, method: str, arguments: Record) -> object:
        answered = self.objects.query((name,), method, arguments, ROOT)
        return self.network.perform(answered).answer

    def names(self, directory: ObjectId) -> dict[bytes, ObjectId]:
        page = self.ask(directory, registry.READ_DIRECTORY, Listing(0, limits.LISTING_BYTES))
        assert page.complete
        return {entry.name: entry.identifier for entry in page.entries}

    def put(self, block: BlockId, item: bytes) -> None:
        self.network.perform(self.blocks.write(block, item, credentials_of(self.number)))

    def get(self, block: BlockId) -> bytes | None:
        item: bytes | None = self.network.perform(
            self.blocks.read(block, credentials_of(self.number))
        ).item
        return item


@pytest.fixture
def correct(deployment: Deployment) -> Iterator[Callable[[], list[Correct]]]:
    clients: list[Correct] = []

    def both() -> list[Correct]:
        clients.extend(Correct(deployment, number) for number in range(2))
        return clients

    yield both
    for client in clients:
        client.network.close()


def test_clients_that_misuse_metadata_change_nothing_else(
    deployment: Deployment, correct: Callable[[], list[Correct]]
) -> None:
    clients = correct()
    first = clients[0]
    objects = (deployment.description.volume, first.root)
    form = Format(limits.BLOCK_BYTES_DEFAULT, 0o777)
    first.network.perform(first.objects.update(objects, registry.FORMAT, form, ROOT))
    for client in clients:
        made = DirectoryCreation(b"victim%d" % client.number, 0o755, 0)
        client.update((client.root, client.own), registry.MAKE_DIRECTORY, made)
    models: list[dict[bytes, ObjectId]] = [{}, {}]
    with attacked(deployment, UPDATERS, METADATA):
        for turn in range(6):
            for client, model in zip(clients, models, strict=True):
                name, inode = b"file%d" % turn, new_inode(client.own)
                client.update((client.own, inode), registry.CREATE, creation(name))
                model[name] = inode
                if turn % 3 == 2:
                    gone = b"file%d" % (turn - 1)
                    client.update((client.own, model.pop(gone)), registry.UNLINK, Name(gone))
                # In the directory that everybody changes, too.
                shared = b"shared%d-%d" % (client.number, turn)
                inode = new_inode(client.root)
                client.update((client.root, inode), registry.CREATE, creation(shared))
                assert client.names(client.own) == model
    for client, other in zip(clients, reversed(clients), strict=True):
        assert other.names(client.own) == models[client.number]
    entries = first.names(first.root)
    shared_names = {b"shared%d-%d" % (number, turn) for number in range(2) for turn in range(6)}
    assert shared_names <= entries.keys()
    assert not any(name.startswith((b"forbidden", b"trespasser")) for name in entries)
    # Whatever they have begun took place at the directory and at the inode, or at neither.
    for name, identifier in entries.items():
        attributes = first.ask(identifier, registry.GET_ATTRIBUTES, NoArguments())
        assert attributes.links == (2 if name.startswith(b"victim") else 1), name
    assert all(process.poll() is None for process in deployment.processes.values())


def test_clients_that_misuse_blocks_show_nobody_anything_false(
    deployment: Deployment, correct: Callable[[], list[Correct]]
) -> None:
    writer, reader = correct()
    blocks = blocks_of(0)
    with attacked(deployment, WRITERS, BLOCKS):
        for turn in range(2):
            for block in blocks:
                item = (b"turn %d " % turn).ljust(BLOCK_BYTES, b"-")
                writer.put(block, item)
                found = reader.get(block)
                # What was written last, or what a client wrote meanwhile that may write.
                assert found == item or is_an_intruders(found)
    for block in blocks:  # nobody writes any more: all see the same
        found = reader.get(block)
        assert found == writer.get(block)
        assert found == b"turn 1 ".ljust(BLOCK_BYTES, b"-") or is_an_intruders(found)
        reader.put(block, b"last")
        assert writer.get(block) == b"last"
    assert all(process.poll() is None for process in deployment.processes.values())


def is_an_intruders(item: bytes | None) -> bool:
    """Whether an adversary has written that as one item, and as itself."""
    return item is not None and len(item) == BLOCK_BYTES and not item.startswith(b"turn")
