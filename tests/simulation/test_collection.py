"""Garbage collection races readers and writers; whatever has to be kept is read as it was.

Clients change one small tree while every node collects all that it may, under constant pressure,
and nodes crash and come back in the midst of it.
A model takes down each state of the tree with the time from which it was the truth. Now and then
moments are read back: those within the window and those of snapshots must be as the model has them;
older ones must be so, or be said to be no longer kept.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.errors import NoLongerKept
from bftfs.filesystem.capacity import ClusterCapacity
from bftfs.filesystem.file_history import History
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.filesystem.registry import file_system_types
from bftfs.identifiers import NodeId, ObjectId, ObjectKind, block_id, object_id
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.past_reading import PastReader
from bftfs.query_update.replica import stored_row, stored_version
from bftfs.read_write.client import ReadWriteClient
from bftfs.retention import Policy
from bftfs.server.block_verification import VerificationSettings
from bftfs.simulation.deployment import CREDENTIALS, CollectionPlan, Deployment, Sizes
from bftfs.simulation.network import NetworkFaults, SimulatedNetwork
from bftfs.simulation.world import SECOND_US, START_US, World
from bftfs.storage import Table

SIZES = Sizes.smallest(t=1, b=1)
WINDOW_US = 40 * SECOND_US
BLOCK = limits.BLOCK_BYTES_MIN
VOLUME = object_id(ObjectKind.VOLUME, placement=0, unique=b"v" * 14)
ROOT = object_id(ObjectKind.DIRECTORY, placement=0, unique=b"r" * 14)

Tree = dict[bytes, bytes]  # name: contents


@pytest.fixture(autouse=True)
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes look for what may go all the time."""
    monkeypatch.setattr(limits, "COLLECT_EVERY_US", 5 * SECOND_US)


def _peers() -> Peers:
    return Peers(ThresholdQuorums(SIZES.query_update))


class Simulation:
    """Six nodes, clients, and a model of what they did."""

    def __init__(
        self,
        seed: int,
        *,
        window_us: int = WINDOW_US,
        short: bool = True,
        roomy: frozenset[int] = frozenset(),
    ) -> None:
        plan = CollectionPlan(window_us, tuple(map(NodeId, roomy if short else range(SIZES.n))))
        self.random = Random(seed)
        self.world = World(seed)
        self.network = SimulatedNetwork(self.world, NetworkFaults(loss=0.01, duplication=0.01))
        self.deployment = Deployment(
            self.world,
            self.network,
            SIZES,
            types=file_system_types(),
            verification=VerificationSettings(),
            collection=plan,
            volume=VOLUME,
        )
        self.systems: list[FileSystem] = []
        self.hosts = [self.deployment.client(f"client {number}") for number in range(3)]
        for host in self.hosts:
            peers = _peers()
            self.systems.append(
                FileSystem(
                    QueryUpdateClient(host.client, peers, file_system_types()),
                    ReadWriteClient(host.client, SIZES.read_write, peers),
                    ClusterCapacity(SIZES.read_write, peers),
                    None,
                    root=ROOT,
                    volume=VOLUME,
                    options=Options(strict=True, access_times=False),
                )
            )
        self.tree: Tree = {}
        self.states: list[tuple[int, Tree]] = []  # since when, and what
        self.begun: list[int] = []  # when changes began
        self.snapshots: dict[int, Tree] = {}

    @property
    def now_us(self) -> int:
        return START_US + self.world.now_us

    def run(self, conversation: Coroutine[Any, Any, Any], *, client: int = 0) -> Any:
        ended: list[tuple[Any, BaseException | None]] = []
        self.hosts[client].start(conversation, lambda result, error: ended.append((result, error)))
        assert self.world.run(until=lambda: bool(ended), most_events=2_000_000), "it never ends"
        result, error = ended[0]
        if error is not None:
            raise error
        return result

    def pass_time(self, duration_us: int) -> None:
        until_us = self.world.now_us + duration_us
        self.world.after(duration_us, lambda: None)
        self.world.run(until=lambda: self.world.now_us >= until_us, most_events=10_000_000)

    def history(self, client: int = 0) -> History:
        name, peers = self.hosts[client].client, _peers()
        objects = QueryUpdateClient(name, peers, file_system_types())
        return History(
            self.systems[client],
            objects,
            PastReader(objects),
            ReadWriteClient(name, SIZES.read_write, peers),
        )

    # --- changes -------------------------------------------------------------------------------

    async def _change(self, system: FileSystem, kind: str, name: bytes, contents: bytes) -> None:
        if kind == "remove":
            await system.unlink(ROOT, name, CREDENTIALS)
            return
        if kind == "create":
            _, file = await system.create(ROOT, name, 0o600, CREDENTIALS)
        else:
            found = await system.lookup(ROOT, name, CREDENTIALS)
            if kind == "truncate":
                await system.truncate(found.identifier, len(contents), CREDENTIALS)
                return
            if kind == "rename":
                await system.rename(ROOT, name, ROOT, contents, CREDENTIALS)
                return
            file = await system.open(found.identifier, 2, CREDENTIALS)
        system.write(file, 0, contents, now_ns=self.now_us * 1000)
        await system.flush(file)
        await system.release(file)

    def change(self) -> None:
        """Something happens to the tree, and the model takes it down."""
        random, tree = self.random, dict(self.tree)
        name = random.choice((b"a", b"b", b"c"))
        client = random.randrange(len(self.systems))
        if name not in tree:
            kind = "create"
        else:
            kind = random.choice(("write", "write", "truncate", "remove", "rename"))
        contents = random.randbytes(random.choice((5, BLOCK + 7, 2 * BLOCK + 11)))
        if kind == "truncate":
            contents = tree[name][: random.randrange(len(tree[name]) + 1)]
        if kind == "rename":
            contents = random.choice((b"a", b"b", b"c"))
            if contents == name:
                return
            tree[contents] = tree.pop(name)
        elif kind == "remove":
            del tree[name]
        elif kind == "write":
            tree[name] = contents + tree[name][len(contents) :]
        else:
            tree[name] = contents
        self.begun.append(self.now_us)
        self.run(self._change(self.systems[client], kind, name, contents), client=client)
        # Times of versions are microseconds of this very clock: what follows is later.
        self.pass_time(1_000)
        self.tree = tree
        self.states.append((self.now_us, tree))
        self.pass_time(1_000)

    def make(self, name: bytes, contents: bytes) -> None:
        self.run(self._change(self.systems[0], "create", name, contents))

    def attack(self, kind: str, name: bytes, contents: bytes = b"") -> None:
        change = self._change(self.systems[ATTACKER], kind, name, contents)
        self.run(change, client=ATTACKER)

    def identifier(self, name: bytes) -> ObjectId:
        found = self.run(self.systems[0].lookup(ROOT, name, CREDENTIALS))
        identifier: ObjectId = found.identifier
        return identifier

    def crash_a_node(self, *, down_us: int) -> None:
        if all(node.up for node in self.deployment.nodes):
            self.random.choice(self.deployment.nodes).crash(down_us=down_us)

    def take_snapshot(self) -> None:
        name = b"s%d" % len(self.snapshots)
        made = self.run(self.history().create_snapshot(name, CREDENTIALS))
        self.snapshots[made.time_us] = self.tree
        self.pass_time(1_000)

    # --- reading back ---------------------------------------------------------------------------

    async def _read_tree(self, system: FileSystem) -> Tree:
        directory = await system.open_directory(ROOT, CREDENTIALS)
        found: Tree = {}
        for listed in await system.read_directory(directory, 0):
            identifier: ObjectId = listed.identifier
            file = await system.open(identifier, 0, CREDENTIALS)
            found[listed.name] = bytes(await system.read(file, 0, 1 << 20))
            await system.release(file)
        return found

    def tree_at(self, at_us: int) -> Tree | None:
        """The tree at a moment, as a client that has never seen it reads it; None: not kept."""
        view = self.history().at(at_us)
        try:
            return dict(self.run(self._read_tree(view)))
        except NoLongerKept:
            return None

    def read_back(self, *, moments: int) -> list[str]:
        """What is wrong with what is kept."""
        wrong = []
        for since_us, tree in self.random.sample(self.states, min(moments, len(self.states))):
            until_us = min((each for each in self.begun if each > since_us), default=self.now_us)
            found = self.tree_at(since_us)
            horizon_us = self.now_us - WINDOW_US
            if found is None and until_us > horizon_us:
                wrong.append(f"{since_us - START_US} is within the window, and gone")
            elif found is not None and found != tree:
                wrong.append(f"{since_us - START_US} is not as it was")
        for at_us, tree in self.snapshots.items():
            if self.tree_at(at_us) != tree:
                wrong.append(f"the snapshot of {at_us - START_US} is not as it was")
        if self.run(self._read_tree(self.systems[0])) != self.tree:
            wrong.append("the present is not as it was left")
        return wrong

    def rows(self, node: int) -> dict[Table, frozenset[bytes]]:
        """The keys of the versions that a node has, of blocks and of objects."""
        disk = self.deployment.nodes[node].disk
        return {
            table: frozenset(disk.keys(table, b"", b"\xff" * 200))
            for table in (Table.BLOCK, Table.FRAGMENT, Table.VERSION)
        }


def run(seed: int, *, window_us: int = WINDOW_US) -> tuple[Simulation, list[str]]:
    simulation = Simulation(seed, window_us=window_us)
    simulation.run(simulation.systems[0].format(CREDENTIALS, block_bytes=BLOCK))
    wrong: list[str] = []
    for number in range(30):
        simulation.change()
        simulation.pass_time(simulation.random.randrange(5 * SECOND_US))
        if number % 3 == 2:  # one after the other, so that no more than t are down
            simulation.crash_a_node(down_us=6 * SECOND_US)
        if number in {7, 19}:
            simulation.take_snapshot()
        if number % 10 == 9:
            wrong += simulation.read_back(moments=5)
    simulation.pass_time(2 * WINDOW_US)
    wrong += simulation.read_back(moments=10)
    return simulation, wrong


@pytest.mark.parametrize("seed", range(3))
def test_what_has_to_be_kept_is(seed: int) -> None:
    simulation, wrong = run(seed)
    assert not wrong, wrong
    assert None in [simulation.tree_at(since_us) for since_us, _ in simulation.states[:-5]]


def test_a_collector_that_ignores_the_window_is_found_out() -> None:
    _, wrong = run(0, window_us=0)
    assert any("within the window" in each for each in wrong)


@pytest.mark.parametrize("table", list(Table), ids=lambda table: table.name)
def test_rows_that_rot_while_nodes_collect_are_mended(table: Table) -> None:
    """One node of them has them, as few as one disk may damage; it looks for what may go."""
    simulation = Simulation(5)
    simulation.run(simulation.systems[0].format(CREDENTIALS, block_bytes=BLOCK))
    damaged = simulation.deployment.nodes[2]
    for number in range(24):
        simulation.change()
        simulation.pass_time(simulation.random.randrange(5 * SECOND_US))
        if number % 4 == 3:
            keys = sorted(damaged.disk.keys(table, b"", b"\xff" * 200))
            for key in simulation.random.sample(keys, min(3, len(keys))):
                for position in range(24):
                    damaged.disk.rot(table, key, position)
    simulation.pass_time(WINDOW_US)
    assert not simulation.read_back(moments=5)
    scrubber = simulation.deployment.scrubbers[NodeId(2)]
    scrubber.throttle.start()
    simulation.pass_time(60 * SECOND_US)
    assert scrubber.tally.passes
    assert not simulation.deployment.recoveries[NodeId(2)].damaged
    for _, row in damaged.disk.scan(Table.OBJECT, b"", b"\xff" * 200):
        assert stored_row(row)
    for _, row in damaged.disk.scan(Table.VERSION, b"", b"\xff" * 200):
        assert stored_version(row)


# --- attacks -----------------------------------------------------------------------------------

OLD = b"as it was" * 300  # of the file that is attacked
ATTACKER = 1
BY_THE_CLOCK_US = WINDOW_US + limits.CLOCK_SKEW_US  # what nodes keep, as clocks may differ


def attacked(*, window_us: int = WINDOW_US, short: bool = True) -> Simulation:
    """A file that has been there for long, and a client that is about to attack it."""
    simulation = Simulation(7, window_us=window_us, short=short)
    simulation.run(simulation.systems[0].format(CREDENTIALS, block_bytes=BLOCK))
    simulation.make(b"a", OLD)
    simulation.make(b"b", b"another")
    simulation.pass_time(400 * SECOND_US)
    return simulation


def overwrite(simulation: Simulation) -> None:
    simulation.attack("write", b"a", b"garbage" * 300)


def many_times(simulation: Simulation) -> None:
    for number in range(40):
        simulation.attack("write", b"a", b"%d" % number * 2_000)


def dated(skew_us: int) -> Callable[[Simulation], None]:
    def attack(simulation: Simulation) -> None:
        simulation.hosts[ATTACKER].skew_us = skew_us
        overwrite(simulation)

    return attack


def asking_for_nothing(simulation: Simulation) -> None:
    history = simulation.history(ATTACKER)
    for name in (b"a", None):
        identifier = ROOT if name is None else simulation.identifier(name)
        conversation = history.set_retention(identifier, Policy(()), CREDENTIALS)
        simulation.run(conversation, client=ATTACKER)
    overwrite(simulation)


def without_covering(simulation: Simulation) -> None:
    """Blocks are overwritten, and the inode is never told."""
    block = block_id(simulation.identifier(b"a"), incarnation=0, number=0)
    client = ReadWriteClient(simulation.hosts[ATTACKER].client, SIZES.read_write, _peers())
    simulation.run(client.write(block, b"garbage" * 300, CREDENTIALS), client=ATTACKER)


WAYS: dict[str, Callable[[Simulation], None]] = {
    "deleting": lambda simulation: simulation.attack("remove", b"a"),
    "overwriting": overwrite,
    "truncating": lambda simulation: simulation.attack("truncate", b"a", b""),
    "renaming over": lambda simulation: simulation.attack("rename", b"b", b"a"),
    "filling the pool": many_times,
    "asking for retention 0": asking_for_nothing,
    "a clock that is behind": dated(-290 * SECOND_US),
    "a clock that is ahead": dated(290 * SECOND_US),
    "without covering": without_covering,
}


def survives(simulation: Simulation, way: str) -> tuple[bool, bool]:
    """Whether the file is kept until the window has passed; and whether long after that."""
    moment_us = simulation.now_us
    if "behind" in way:  # what is younger than clocks may differ by can still be added to
        moment_us -= limits.CLOCK_SKEW_US
    simulation.pass_time(SECOND_US)
    WAYS[way](simulation)
    simulation.pass_time(WINDOW_US - 5 * SECOND_US)
    within = simulation.tree_at(moment_us) == {b"a": OLD, b"b": b"another"}
    simulation.pass_time(3 * limits.CLOCK_SKEW_US)
    after = simulation.tree_at(moment_us)
    assert after in (None, {b"a": OLD, b"b": b"another"})
    return within, after is not None


@pytest.mark.parametrize("way", sorted(set(WAYS) - {"without covering"}))
def test_no_client_destroys_what_the_window_keeps(way: str) -> None:
    """And under this pressure, nothing else is kept."""
    assert survives(attacked(window_us=BY_THE_CLOCK_US), way) == (True, False)


def test_blocks_that_the_inode_shows_are_kept() -> None:
    assert survives(attacked(), "without covering") == (True, True)


def test_a_policy_counts_behind_the_window_only() -> None:
    assert survives(attacked(short=False), "overwriting") == (True, True)
    assert survives(attacked(short=False), "asking for retention 0") == (True, False)
    simulation = attacked(short=False)
    for each in (b"a", b"b", None):
        identifier = ROOT if each is None else simulation.identifier(each)
        simulation.run(simulation.history().set_retention(identifier, Policy(()), CREDENTIALS))
    simulation.pass_time(2 * WINDOW_US)  # now it is older than the window
    assert survives(simulation, "overwriting") == (True, False)
    simulation.make(b"c", b"new")  # and new files inherit it
    history = simulation.history()
    conversation = history.retention(simulation.identifier(b"c"), CREDENTIALS)
    assert simulation.run(conversation) == Policy(())


@pytest.mark.parametrize("way", ["deleting", "a clock that is behind"])
def test_a_window_that_is_too_short_is_found_out(way: str) -> None:
    """Must fail: without any window; and without what clocks may differ by."""
    window_us = 0 if way == "deleting" else WINDOW_US
    assert survives(attacked(window_us=window_us), way)[0] is False


# --- healing -----------------------------------------------------------------------------------


def test_healing_brings_nothing_back_that_was_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the nodes keep it, and could give it to the others."""
    monkeypatch.setattr(limits, "SCRUB_EVERY_US", 60 * SECOND_US)
    monkeypatch.setattr(limits, "HEAL_EVERY_US", 30 * SECOND_US)
    simulation = Simulation(3, roomy=frozenset({3, 4, 5}))
    simulation.run(simulation.systems[0].format(CREDENTIALS, block_bytes=BLOCK))
    for _ in range(12):
        simulation.change()
        simulation.pass_time(SECOND_US)
    simulation.pass_time(3 * WINDOW_US)
    collected, kept = simulation.rows(0), simulation.rows(5)
    assert len(collected[Table.VERSION]) < len(kept[Table.VERSION]) / 2
    assert len(collected[Table.BLOCK]) < len(kept[Table.BLOCK])
    for _ in range(400):  # often enough to see it before it is collected again
        simulation.pass_time(SECOND_US // 2)
        assert simulation.rows(0) == collected
    assert simulation.rows(5) == kept
    scrubber = simulation.deployment.scrubbers[NodeId(0)]
    assert scrubber.tally.passes >= 2
    assert not scrubber.tally.found_damaged
    assert simulation.run(simulation._read_tree(simulation.systems[1])) == simulation.tree
