"""Node processes under mounts, one of which lies: what lying clients attack."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from bftfs import description_files
from bftfs.credentials import Grant
from bftfs.crypto.keys import write_identity, write_volume_key
from bftfs.filesystem.attributes import Attributes
from bftfs.identifiers import NodeId, ObjectId
from tests.end_to_end.cluster import Cluster
from tests.integration.deployment import Deployment, await_that
from tests.integration.process_hand import ProcessHand, admit
from tests.integration.test_collection import Mounted
from tests.integration.test_node import metric
from tests.seams.world import READERS_GRANT, STRANGER, STRANGERS_GRANT

NODES = tuple(map(NodeId, range(6)))
LIAR = NodeId(3)
CORRECT = tuple(node for node in NODES if node != LIAR)
BEHIND = 5  # outside of the preferred quorum of the root directory, and of the files in it
GRANTS: Mapping[str, Grant] = {"stranger": STRANGERS_GRANT, "reader": READERS_GRANT}


class Attacked:
    """The nodes, the mounts, and what the test process knows of them."""

    def __init__(self, cluster: Cluster, grants: Mapping[str, Grant] = GRANTS) -> None:
        self.cluster = cluster
        self.deployment = deployment = Deployment(cluster.data, module="nodes")
        write_volume_key(deployment.directory.volume_key, bytes(32))
        deployment.directory.client_key("any").parent.mkdir()
        for number, identity in enumerate(deployment.clients):
            write_identity(deployment.directory.client_key(f"client{number}"), identity)
        for name, grant in grants.items():
            admit(deployment, name, grant)
        self.programs: dict[int, tuple[str, ...]] = {}
        self._numbers = itertools.count()
        self.owner = self.other = cluster.mountpoint

    def run(self, correct: tuple[str, ...], liar: tuple[str, ...]) -> None:
        """Have the nodes run these programs; the others than the liar have healed then."""
        wanted = dict.fromkeys(self.deployment.nodes, correct) | {LIAR: liar}
        changed = [node for node in wanted if self.programs.get(node) != wanted[node]]
        for node in changed:
            if node in self.programs:
                self.deployment.kill(node)
        for program in (correct, liar):
            nodes = [node for node in changed if wanted[node] == program]
            self.deployment.start(nodes, program=program)
        self.programs = wanted
        passes = "bftfs_heal_objects_passes"
        healing = [node for node in changed if node != LIAR]
        await_that(lambda: all(metric(self.deployment, passes, node) for node in healing))

    @contextmanager
    def mounted(self) -> Iterator[Self]:
        """Two mounts of root's, of the clients 0 and 1. Requires: the nodes run."""
        place = self.cluster.data.parent
        with ExitStack() as stack:
            for number, name in enumerate(("owner", "other")):
                mount = self.cluster.mount(place / name, f"client=client{number}")
                setattr(self, name, stack.enter_context(mount))
            yield self

    def reload(self) -> None:
        """The administrator has changed the description."""
        directory = self.deployment.directory
        self.deployment.description = description_files.load(directory.description)

    def new_name(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"

    def attributes(self, name: str) -> tuple[ObjectId, Attributes]:
        """What a client that may read is told of a file in the root directory."""
        onlooker = Mounted(self.deployment, 1)
        files, root = onlooker.files, onlooker.root

        async def asked() -> tuple[ObjectId, Attributes]:
            found = await files.lookup(root, name.encode(), STRANGER)
            return found.identifier, await files.attributes(found.identifier, STRANGER)

        try:
            return onlooker.network.perform(asked())
        finally:
            onlooker.network.close()

    def hand(self, name: str) -> ProcessHand:
        return ProcessHand(self.deployment, name, (LIAR,))


def write(path: Path, mode: int, contents: str) -> None:
    """Write a file, which is private until it has its mode."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(contents)


@contextmanager
def stopped(attacked: Attacked, node: int) -> Iterator[None]:
    """A node that does not hear what is said meanwhile."""
    process = attacked.deployment.processes[node]
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
