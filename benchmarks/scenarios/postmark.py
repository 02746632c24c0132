"""How many PostMark transactions a second does the metadata service take, for growing faults?

[Q/U §4.4.4, Table 4.4]: PostMark [Katcher97] on one client.  It makes a pool of small files, does
transactions, and removes what is left.  A transaction is two steps: a file is created or deleted,
and a file is read or appended to, each chosen with equal chances.

It is done in two ways.  *Namespace*: as in the source only the namespace is served by the nodes,
and contents are kept at the client: to read or append looks the name up and reads or changes the
inode's attributes.  *Mount*: PostMark itself in a mount, where contents lie on the nodes as well.
"""

import os
import random
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import postmark_program
from benchmarks.deployment import (
    Client,
    Deployment,
    System,
    client_of,
    deployed,
    note_shared_machine,
)
from benchmarks.errors import PhaseError, WorkloadError
from benchmarks.measurement import Measure
from benchmarks.mounting import mounted, require_mounts
from benchmarks.scenarios.metadata import Namespace
from benchmarks.session import Phase, Place, Session
from bftfs.cluster import Durability
from bftfs.conversation import Conversation
from bftfs.filesystem import registry
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.directory import Name
from bftfs.filesystem.objects import NoArguments
from bftfs.identifiers import ObjectId

NAME = "postmark"
SOURCE = "source, Table 4.4"
NAMESPACE, MOUNT = "namespace", "mount"

# Transactions a second of the source, by b = t. [Q/U Table 4.4]
_SOURCE_PER_SECOND = (129, 114, 102, 93, 84, 76)
_SMALLEST_BYTES, _LARGEST_BYTES = 500, 10_000  # of a file, and of an append: PostMark's own choice
_SEED = 42
_MEASURE = Measure.OPERATIONS_PER_SECOND


@dataclass(frozen=True, slots=True)
class Parameters:
    """The pool's `files`, and how many transactions are done on them, in each of the `ways`."""

    repeat: int
    systems: tuple[System, ...]
    ways: tuple[str, ...]
    files: int
    transactions: int
    durability: Durability


def run(session: Session, target: str, below: Path | None, parameters: Parameters) -> None:
    """Measure."""
    if MOUNT in parameters.ways:
        require_mounts()
        postmark_program.require_postmark()
    note_shared_machine(session)
    for number in range(parameters.repeat):
        for system in parameters.systems:
            for way in parameters.ways:
                place = Place(target, number, str(system))
                with (
                    deployed(system, parameters.durability, below=below) as deployment,
                    suppress(PhaseError),
                ):
                    _WAYS[way](session, place, deployment, below, parameters)


def _through_the_namespace(
    session: Session,
    place: Place,
    deployment: Deployment,
    below: Path | None,
    parameters: Parameters,
) -> None:
    with (
        client_of(deployment) as client,
        tempfile.TemporaryDirectory(prefix="postmark-", dir=below) as contents,
    ):
        pool = _Pool(client, Path(contents))
        steps = _Steps(session, place, deployment, NAMESPACE, os.getpid())
        with steps.creating(parameters.files):
            for _ in range(parameters.files):
                pool.create()
        with steps.transacting(parameters.transactions):
            for _ in range(parameters.transactions):
                pool.transact()
        steps.cite()


def _through_a_mount(
    session: Session,
    place: Place,
    deployment: Deployment,
    below: Path | None,
    parameters: Parameters,
) -> None:
    with mounted(deployment, below=below) as mount:
        steps = _Steps(session, place, deployment, MOUNT, mount.pid)
        try:
            with postmark_program.running(
                mount.mountpoint, files=parameters.files, transactions=parameters.transactions
            ) as postmark:
                postmark.await_phase(postmark_program.CREATING)
                with steps.creating(parameters.files):
                    postmark.await_phase(postmark_program.TRANSACTING)
                with steps.transacting(parameters.transactions):
                    postmark.await_phase(postmark_program.DELETING)
                postmark_program.verify(postmark.report(), files=parameters.files)
            if left := os.listdir(mount.mountpoint):
                raise WorkloadError(f"{len(left)} files are left that PostMark has deleted")
        except WorkloadError as error:
            session.fail(place, MOUNT, str(error))
            raise PhaseError(str(error)) from error
        steps.cite()


_WAYS: Mapping[str, Callable[[Session, Place, Deployment, Path | None, Parameters], None]] = {
    NAMESPACE: _through_the_namespace,
    MOUNT: _through_a_mount,
}
WAYS = tuple(_WAYS)


@dataclass(frozen=True, slots=True)
class _Steps:
    """Measures what PostMark does in one way; `client` is the process that asks the nodes."""

    session: Session
    place: Place
    deployment: Deployment
    way: str
    client: int

    def creating(self, files: int) -> AbstractContextManager[Phase]:
        """The pool is made in the body."""
        return self._phase(f"create, {self.way}", files)

    def transacting(self, transactions: int) -> AbstractContextManager[Phase]:
        """Transactions are done in the body."""
        return self._phase(self._transactions, transactions)

    def cite(self) -> None:
        """Put the source's figure beside."""
        system = self.deployment.system
        if system.t == system.b < len(_SOURCE_PER_SECOND):
            per_second = _SOURCE_PER_SECOND[system.b]
            self.session.cite(SOURCE, self.place, self._transactions, _MEASURE, amount=per_second)

    @property
    def _transactions(self) -> str:
        return f"transactions, {self.way}"

    def _phase(self, name: str, count: int) -> AbstractContextManager[Phase]:
        return self.deployment.operations(
            self.session,
            self.place,
            name,
            _MEASURE,
            count=count,
            asked=self.deployment.description.query_update.q,
            client=self.client,
        )


class _Pool:
    """The files, whose names and attributes the nodes know, and whose contents lie in `contents`.

    Each step checks that the nodes find the inode that was made under the name.
    """

    def __init__(self, client: Client, contents: Path) -> None:
        self._client = client
        self._contents = contents
        self._namespace = Namespace(client)
        self._chance = random.Random(_SEED)
        self._files: list[tuple[bytes, ObjectId]] = []
        self._made = 0

    def create(self) -> None:
        """One more file."""
        name = b"postmark%d" % self._made
        self._made += 1
        inode = self._namespace.new_identifier(self._namespace.root)
        self._perform(self._namespace.creation(self._namespace.root, name, inode))
        self._write(name)
        self._files.append((name, inode))

    def delete(self) -> None:
        """One file, drawn among all, is gone."""
        place = self._chance.randrange(len(self._files))
        self._files[place], self._files[-1] = self._files[-1], self._files[place]
        name, inode = self._files.pop()
        self._find(name, inode)
        root = self._namespace.root
        self._perform(self._namespace.update((root, inode), registry.UNLINK, Name(name)))
        self._local(name).unlink()

    def transact(self) -> None:
        """Create or delete a file, and read or append to one."""
        if not self._files or self._chance.random() < 0.5:
            self.create()
        else:
            self.delete()
        if not self._files:
            return
        name, inode = self._chance.choice(self._files)
        self._find(name, inode)
        attributes = self._namespace.query((inode,), registry.GET_ATTRIBUTES, NoArguments())
        self._perform(attributes)
        if self._chance.random() < 0.5:
            self._local(name).read_bytes()
        else:
            self._write(name)
            changed = Changes(mode=0o600 + self._chance.randrange(8))
            self._perform(self._namespace.update((inode,), registry.CHANGE_ATTRIBUTES, changed))

    def _find(self, name: bytes, inode: ObjectId) -> None:
        root = self._namespace.root
        found = self._perform(self._namespace.query((root,), registry.LOOKUP, Name(name)))
        child = found.answer.child
        if child is None or child.identifier != inode:
            raise WorkloadError(f"{name.decode()} is another inode than the one that was made")

    def _perform(self, operation: Callable[[], Conversation[Any]]) -> Any:
        [result] = self._client.perform([operation])
        return result

    def _local(self, name: bytes) -> Path:
        return self._contents / name.decode()

    def _write(self, name: bytes) -> None:
        with self._local(name).open("ab") as file:
            file.write(os.urandom(self._chance.randint(_SMALLEST_BYTES, _LARGEST_BYTES)))
