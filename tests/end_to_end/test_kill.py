"""kill -9 of anything, at random moments, under load: what was acknowledged is there.

The moments are drawn from a seed, in acknowledged operations of the load, so that every process is
hit while it has work.
"""

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.end_to_end.cluster import Cluster, kill
from tests.end_to_end.durability import Writer
from tests.end_to_end.expectations import (
    assert_contents,
    eventually,
    fails_with,
    payload,
    works_or_fails_with,
)
from tests.end_to_end.watchdog import Watchdog

pytestmark = [pytest.mark.timeout(120, func_only=True), pytest.mark.slow]

WRITERS = 2


@pytest.fixture(scope="module")
def own_cluster(mounting: None, playground: Path, watchdog: Watchdog) -> Iterator[Cluster]:
    """A cluster to be killed."""
    cluster = Cluster(playground / "killed")
    try:
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def cluster(own_cluster: Cluster, guarded: None) -> Cluster:
    own_cluster.up()
    return own_cluster


@pytest.fixture
def load(cluster: Cluster, outside: Path) -> Iterator[Callable[[str], list[Writer]]]:
    """Starts writers; they end with the test."""
    started: list[Writer] = []

    def start(name: str) -> list[Writer]:
        writers = [
            Writer(
                cluster.mountpoint / f"{outside.name}-{name}-{number}",
                outside / f"{name}-{number}.journal",
                seed=number,
            )
            for number in range(WRITERS)
        ]
        started.extend(writers)
        return writers

    yield start
    for writer in started:
        writer.stop()


def _verify(cluster: Cluster, writers: list[Writer], playground: Path) -> None:
    """Through the mount, and through a new one, which knows only what the nodes know."""
    with ExitStack() as stack:
        fresh = stack.enter_context(cluster.mount(playground / "fresh"))
        for writer in writers:
            assert writer.acknowledged() > 0
            writer.verify(writer.directory)
            writer.verify(fresh / writer.directory.relative_to(cluster.mountpoint))


def test_each_node_in_turn(
    cluster: Cluster, load: Callable[[str], list[Writer]], playground: Path
) -> None:
    """One node at a time may fail: nobody notices, before, during, and after its return."""
    choice = random.Random(1)
    writers = load("node")
    nodes = cluster.nodes()
    for node in choice.sample(nodes, 3):
        for writer in writers:
            writer.wait_for(choice.randint(3, 12))
        kill(node.pid)
        for writer in writers:
            writer.wait_for(10)
        cluster.up()
    for writer in writers:
        writer.wait_for(5)
        writer.stop()
        assert writer.failure() is None
    assert all(node.healthy for node in cluster.nodes())
    _verify(cluster, writers, playground)


@pytest.mark.parametrize("seed", range(2))
def test_the_mount(
    cluster: Cluster, load: Callable[[str], list[Writer]], playground: Path, seed: int
) -> None:
    choice = random.Random(seed)
    writers = load("mount")
    for writer in writers:
        writer.wait_for(choice.randint(5, 25))
    kill(*cluster.mount_pids(cluster.mountpoint))
    for writer in writers:
        writer.wait_for_failure()
        assert writer.failure() is not None
    cluster.up()
    _verify(cluster, writers, playground)


@pytest.mark.parametrize("seed", range(2))
def test_all_nodes(
    cluster: Cluster, load: Callable[[str], list[Writer]], playground: Path, seed: int
) -> None:
    """The mount waits, as its option `hard` says, and the programs with it; then they go on."""
    choice = random.Random(seed)
    writers = load("nodes")
    for writer in writers:
        writer.wait_for(choice.randint(5, 25))
    kill(*(node.pid for node in cluster.nodes()))
    cluster.up()
    for writer in writers:
        writer.wait_for(5)
        writer.stop()
        assert writer.failure() is None
    _verify(cluster, writers, playground)


@pytest.mark.parametrize("seed", range(2))
def test_everything(
    cluster: Cluster, load: Callable[[str], list[Writer]], playground: Path, seed: int
) -> None:
    """As when the power fails; and no repair is needed before the next start."""
    choice = random.Random(seed)
    writers = load("everything")
    for writer in writers:
        writer.wait_for(choice.randint(5, 25))
    victims = [node.pid for node in cluster.nodes()] + cluster.mount_pids()
    choice.shuffle(victims)
    kill(*victims)
    for writer in writers:
        writer.wait_for_failure()
    cluster.up()
    _verify(cluster, writers, playground)


def test_soft_mount_gives_up(cluster: Cluster, playground: Path) -> None:
    """Without a quorum a soft mount answers with an error; and works again when there is one."""
    with cluster.mount(playground / "soft", "soft,timeout=2") as soft:
        (soft / "before").write_bytes(b"before")
        kill(*(node.pid for node in cluster.nodes()[:3]))
        with fails_with(errno.ETIMEDOUT, errno.EIO, errno.EHOSTUNREACH):
            (soft / "meanwhile").write_bytes(b"meanwhile")
        cluster.up()

        def works_again() -> bool:
            try:
                (soft / "after").write_bytes(b"after")
            except OSError:
                return False
            return True

        eventually(works_again, within_s=20, what="the soft mount works again")
        assert_contents(soft / "before", b"before")


def test_files_of_a_dead_mount_fail_and_do_not_hang(cluster: Cluster) -> None:
    """Whoever has a file open gets an error; the next mount has all that was synced."""
    path = cluster.mountpoint / "open"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    os.write(descriptor, payload(100_000))
    os.fsync(descriptor)
    kill(*cluster.mount_pids(cluster.mountpoint))
    with fails_with(errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):
        os.pwrite(descriptor, b"more", 0)
        os.fsync(descriptor)
    with fails_with(errno.ENOTCONN, errno.ECONNABORTED):
        os.listdir(cluster.mountpoint)
    with works_or_fails_with(errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):
        os.close(descriptor)
    cluster.up()
    assert_contents(path, payload(100_000))
