"""A node loses its disk between barrier and copy, or gets an old one, as a process, under mounts.

The schedule is that of `tests/seams/test_lost_disks.py`, where it is tried in every variety. Four
nodes, none of which lies, and messages of two clients that are late. Root moves a file from one
directory to another; who lists both finds it, once.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from bftfs.conversation import Conversation
from bftfs.crypto.keys import write_identity, write_volume_key
from bftfs.identifiers import NodeId, ObjectId, placement_of
from bftfs.query_update.history import ConditionedKind, decode_conditioned
from bftfs.query_update.messages import Query, Status, Update
from bftfs.server.recovery import Stage
from tests.end_to_end.cluster import Cluster
from tests.end_to_end.watchdog import Watchdog
from tests.integration.deployment import PATIENCE_S, Deployment, await_that
from tests.integration.test_collection import Mounted
from tests.integration.test_node import metric
from tests.integration.test_protocols import ROOT

pytestmark = [pytest.mark.timeout(120, func_only=True), pytest.mark.slow]

PATIENT = ("tests.integration.patient_node",)
FORGIVING, UNAWARE = (*PATIENT, "forgiving"), (*PATIENT, "unaware")
NODES = 4  # t = 1, b = 0
CONTENTS = "what root wrote"
TURN_S = 0.05


def kind_of_update(message: Any) -> ConditionedKind | None:
    if not isinstance(message, Update):
        return None
    return decode_conditioned(message.conditioned).kind


def is_copy(message: Any) -> bool:
    return kind_of_update(message) is ConditionedKind.COPY


class DyingClient(Mounted):
    """A client that dies, and of whose messages some are late."""

    def __init__(self, deployment: Deployment, number: int) -> None:
        super().__init__(deployment, number, patience_s=PATIENCE_S)
        self.is_late: Callable[[int, Any], bool] = lambda *_: False
        self.held: list[tuple[NodeId, int, Any, Any]] = []
        self.answered: set[int] = set()  # numbers of requests
        self.updates: set[int] = set()  # numbers of those requests that invoke a method
        self.accepted: set[int] = set()  # nodes that have accepted one
        engine = self.network.links.engine
        self._send, self._deliver = engine._send, engine.deliver
        engine._send, engine.deliver = self._hold, self._hear  # type: ignore[method-assign]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.network.close()

    def find(self, path: Path) -> ObjectId:
        async def found() -> ObjectId:
            identifier = self.root
            for name in path.parts:
                identifier = (await self.files.lookup(identifier, name.encode(), ROOT)).identifier
            return identifier

        return self.network.perform(found())

    def _hold(self, node: NodeId, number: int, message: Any, body: Any) -> None:
        if kind_of_update(message) is ConditionedKind.METHOD:
            self.updates.add(number)
        if self.is_late(node, message):
            self.held.append((node, number, message, body))
        else:
            self._send(node, number, message, body)

    def _hear(self, node: NodeId, number: int, message: Any, body: Any = b"") -> None:
        self.answered.add(number)
        if number in self.updates and getattr(message, "status", None) is Status.SUCCESS:
            self.accepted.add(node)
        self._deliver(node, number, message, body)

    def await_that(self, condition: Callable[[], bool]) -> None:
        """Let messages come and go until then."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            self.network.links.turn(TURN_S)
            self.network.links.expire()

    def die_when(self, condition: Callable[[], bool], conversation: Conversation[Any]) -> None:
        """Hold a conversation until then, which does not end before."""
        ended: list[Any] = []
        links = self.network.links
        running = links.engine.start(conversation, lambda *outcome: ended.append(outcome))
        links.flush()
        self.await_that(lambda: condition() or bool(ended))
        assert not ended, ended
        running.cancel()

    def release_copies(self) -> None:
        """The copies that were late arrive, and are answered."""
        self.network.links.turn()  # notices who has been restarted
        released = [held for held in self.held if is_copy(held[2])]
        for held in released:
            self._send(*held)
        self.network.links.flush()
        self.await_that(lambda: self.answered >= {number for _, number, _, _ in released})


class LosingCluster:
    """Four nodes and two mounts."""

    def __init__(self, cluster: Cluster) -> None:
        self.deployment = deployment = Deployment(
            cluster.data, module="nodes", nodes=NODES, b=0, clients=4
        )
        write_volume_key(deployment.directory.volume_key, bytes(32))
        deployment.directory.client_key("any").parent.mkdir()
        for number, identity in enumerate(deployment.clients):
            write_identity(deployment.directory.client_key(f"client{number}"), identity)
        self.user = self.reader = cluster.mountpoint
        self._program: tuple[str, ...] = ()
        self._numbers = itertools.count()

    def run(self, program: tuple[str, ...]) -> None:
        """Have all nodes run this program."""
        if program != self._program:
            for node in list(self.deployment.processes):
                self.deployment.kill(node)
            self.deployment.start(program=program)
            self._program = program

    def lose_disk(self, node: int, program: tuple[str, ...], copy: Path | None = None) -> None:
        """A node comes back with an empty disk; or with a copy of what it had before.

        It has compared what it has with the others then. It knows that it has to, unless it is
        unaware.
        """
        directory, deployment = self.deployment.node(node), self.deployment
        deployment.kill(node)
        shutil.rmtree(directory.store)
        if copy is not None:
            shutil.copytree(copy, directory.store)
        directory.log.unlink()
        deployment.start([node], program=program)
        if program != UNAWARE:
            said = '"event": "%s"' % ("rebuilding" if copy is None else "forgotten")
            await_that(lambda: said in directory.log.read_text())
            await_that(lambda: directory.recovery.read_text().split()[-1] == Stage.REBUILT.value)
        await_that(lambda: metric(deployment, "bftfs_heal_objects_passes", node) > 0)

    def copy_of(self, node: int) -> Path:
        """What a node has stored."""
        process = self.deployment.processes[node]
        process.send_signal(signal.SIGSTOP)
        try:
            target = self.deployment.directory.path / f"copy-{next(self._numbers)}"
            return Path(shutil.copytree(self.deployment.node(node).store, target))
        finally:
            process.send_signal(signal.SIGCONT)

    def moved(self, program: tuple[str, ...], *, is_copied: bool = False) -> list[Path]:
        """Where a reader finds a file that somebody began to move from a directory to another.

        The nodes of the directories' preferred quorum are 0, 1 and 2. The move reaches nodes 1 and
        3. Somebody else bars the target at 0, 1 and 2, and copies what is before the move; the
        copy is late. Node 0 loses its disk, or what it had before `is_copied` back to it; and it
        learns of the move. Somebody uses the source, who does not reach node 2: there, the move has
        taken place. Then the copy arrives.
        """
        self.run(program)
        path = Path(f"case-{next(self._numbers)}")
        for directory in (path, path / "source", path / "target"):
            (self.user / directory).mkdir()
        (self.user / path / "source" / "file").write_text(CONTENTS)
        with DyingClient(self.deployment, 0) as moving, DyingClient(self.deployment, 1) as barring:
            # What it meets incomplete, it repairs.
            source, target, _ = map(
                moving.find, (path / "source", path / "target", path / "source" / "file")
            )
            nodes = [(placement_of(source) + number) % NODES for number in range(NODES)]
            hosts = {nodes[1], nodes[3]}
            copy = self.copy_of(nodes[0]) if is_copied else None
            moving.is_late = lambda node, message: (
                node not in hosts and not isinstance(message, Query)
            )
            moving.die_when(
                lambda: moving.accepted == hosts,
                moving.files.rename(source, b"file", target, b"file", ROOT),
            )
            barring.is_late = lambda node, message: node == nodes[3] or is_copy(message)
            barring.die_when(
                lambda: any(is_copy(message) for _, _, message, _ in barring.held),
                barring.files.make_directory(target, b"new", 0o700, ROOT),
            )
            self.lose_disk(nodes[0], program, copy)
            # Of those that somebody hears who uses the source, all may have the move there.
            with DyingClient(self.deployment, 0) as using:
                using.is_late = lambda node, message: node == nodes[2]
                using.network.perform(using.files.make_directory(source, b"new", 0o700, ROOT))
            barring.release_copies()
        return list((self.reader / path).glob("*/file"))


@pytest.fixture(scope="module")
def losing(mounting: None, playground: Path, watchdog: Watchdog) -> Iterator[LosingCluster]:
    cluster = Cluster(playground / "lost-disks")
    losing = LosingCluster(cluster)
    try:
        losing.run(PATIENT)
        with contextlib.ExitStack() as stack:
            for number, name in enumerate(("user", "reader"), start=2):
                mount = cluster.mount(cluster.data.parent / name, f"client=client{number}")
                setattr(losing, name, stack.enter_context(mount))
            yield losing
    finally:
        losing.deployment.close()


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_file_is_moved_or_it_is_not(
    guarded: None, losing: LosingCluster, is_copied: bool
) -> None:
    (found,) = losing.moved(PATIENT, is_copied=is_copied)
    assert found.read_text() == CONTENTS


def test_must_fail_nodes_that_count_what_was_said_before_a_loss(
    guarded: None, losing: LosingCluster
) -> None:
    assert not losing.moved(FORGIVING)


def test_must_fail_nodes_that_do_not_notice_what_was_copied_back(
    guarded: None, losing: LosingCluster
) -> None:
    assert not losing.moved(UNAWARE, is_copied=True)
