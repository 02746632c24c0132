"""Clients: what a Byzantine node may answer, to clients, to auditors, and to nodes that heal.

One of the nodes is not correct: it says, for each request, what the input chooses. It has its own
keys, so that what it forges of itself is authentic. Every operation of the correct clients ends,
with the result that a model gives.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.asking.refusal import Refused
from bftfs.crypto.digest import replica_history_digest
from bftfs.envelope import HealthReply
from bftfs.errors import FileSystemError, PastUnknown
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.capacity import Capacity, ClusterCapacity
from bftfs.filesystem.directory import DirectoryCreation, Name
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.registry import (
    CHANGE_ATTRIBUTES,
    GET_ATTRIBUTES,
    LOOKUP,
    MAKE_DIRECTORY,
    REMOVE_DIRECTORY,
)
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.inspection import inspect as inspect_object
from bftfs.query_update.messages import Query
from bftfs.query_update.messages import Reply as ObjectReply
from bftfs.query_update.past_reading import PastReader
from bftfs.query_update.replica import Replica
from bftfs.read_write.inspection import inspect as inspect_block
from bftfs.read_write.messages import Reply as BlockReply
from bftfs.server.step import Ready, Sender
from bftfs.simulation.checkers.disks import check_redundancy, complete_at
from bftfs.simulation.principals import node_endpoint
from tests.fuzz.choices import Choices
from tests.fuzz.cluster import (
    ACCOUNT,
    BLOCKS,
    DIRECTORY,
    FILE,
    ROOT,
    ROOT_USER,
    SIZES,
    ClusterClient,
    FuzzCluster,
    begun,
)
from tests.fuzz.target import MIB, Target
from tests.fuzz.values import generate, mutate

_MOST_STEPS = 8
_HEALS = 20_000  # events
_NEVER = None


class _Liar:
    """A node's servers, as the input has them answer."""

    def __init__(self, choices: Choices, cluster: FuzzCluster, node: int, union: Any) -> None:
        self._choices = choices
        self._cluster = cluster
        self._node = node
        self._union = union
        self._servers = cluster.deployment.servers(NodeId(node), begins_runs=False)
        self._said: list[tuple[Any, bytes]] = []

    def servers(self) -> dict[type, Any]:
        """Itself, for every request."""
        return dict.fromkeys(self._servers, self)

    def step(self, view: Any, sender: Sender, message: Any, body: Any, now_us: int) -> Ready:
        """What a correct server would say, and then perhaps something else."""
        ready = self._servers[type(message)].step(view, sender, message, body, now_us)
        choices = self._choices
        if ready.wants or choices.exhausted:
            return ready
        how = choices.number(8)
        if how < 2:
            return ready
        reply, given = ready.reply, bytes(ready.body)
        self._cluster.pool.learn(reply)
        self._said.append((reply, given))
        if how == 2:
            return Ready(_NEVER)  # it has accepted nothing, and says nothing
        if how == 3:
            reply, given = choices.pick(self._said)
        elif how == 4:
            reply = generate(choices, choices.pick(get_args(self._union)), self._cluster.pool)
        elif how == 5:
            reply = Refused(1 + choices.number(133), "so it is")
        if how != 3:
            for _ in range(1 + choices.number(3)):
                reply = mutate(choices, reply, self._union, self._cluster.pool)
        if choices.flag():
            reply = self._authentic(message, reply)
        if choices.flag(8):
            given = choices.octets(choices.number(40))
        if choices.flag(16):
            return Ready(choices.octets(choices.number(60)), given)
        return Ready(reply, given, ready.writes if choices.flag() else [])

    def _authentic(self, message: Any, reply: Any) -> Any:
        """The reply with the node's own authenticators over whatever histories it tells."""
        histories = getattr(reply, "histories", ())
        if not histories:
            return reply
        names = _objects_of(message)
        keys = self._cluster.keys(self._node)
        return msgspec.structs.replace(
            reply,
            authenticators=tuple(
                keys.make(replica_history_digest(object=name, encoded=history))
                for name, history in zip(names, histories, strict=False)
            ),
        )


def _objects_of(message: Any) -> list[ObjectId]:
    from bftfs.query_update.history import decode_conditioned

    if isinstance(message, Query):
        return sorted(set(message.objects))
    if hasattr(message, "conditioned"):
        return [each.object for each in decode_conditioned(message.conditioned).sets]
    if hasattr(message, "evidence"):
        return [message.evidence.object]
    return [getattr(message, "object", ROOT)]


def _with_liar(choices: Choices, union: Any, *, verifies: bool = False) -> FuzzCluster:
    cluster = begun(verifies=verifies)
    node = choices.number(SIZES.n)
    liar = _Liar(choices, cluster, node, union)
    cluster.nodes[node].become(liar.servers)
    return cluster


# --- Q/U ------------------------------------------------------------------------------------


class _Names:
    """What is in the directory, as its clients have made it."""

    def __init__(self) -> None:
        self.present: dict[bytes, ObjectId] = {}
        self.made = 0

    def fresh(self) -> ObjectId:
        self.made += 1
        unique = b"model" + bytes([self.made]) * 9
        return ObjectId(bytes((DIRECTORY[0], self.made % SIZES.n)) + unique)


def _object_operation(
    choices: Choices, cluster: FuzzCluster, client: ClusterClient, model: _Names
) -> None:
    """One operation of a correct client, whose result is that of the model."""
    query, update = client.objects.query, client.objects.update
    name = choices.pick((b"a", b"b"))
    how = choices.number(6)
    there = model.present.get(name)
    # One client may be cut off from one node while it begins; then all ways are open again.
    cut = choices.number(2 * SIZES.n)
    if cut < SIZES.n:
        cluster.network.sever(client.host.endpoint, node_endpoint(NodeId(cut)))

    def run(conversation: Any) -> Any:
        outcome = cluster.start(client, conversation)
        if cut < SIZES.n:
            cluster.go_on(choices.number(120))
            cluster.network.heal()
        return cluster.finish(outcome)

    try:
        if how == 0:
            child = run(query((DIRECTORY,), LOOKUP, Name(name), ROOT_USER)).answer.child
            assert (child.identifier if child else None) == there
        elif how in (1, 2) and there is None:
            fresh = model.fresh()
            creation = DirectoryCreation(name, 0o755, 0)
            run(update((DIRECTORY, fresh), MAKE_DIRECTORY, creation, ROOT_USER))
            model.present[name] = fresh
        elif how in (1, 2, 3) and there is not None:
            run(update((DIRECTORY, there), REMOVE_DIRECTORY, Name(name), ROOT_USER))
            del model.present[name]
        elif how == 4:
            mode = choices.pick((0o600, 0o640))
            run(update((FILE,), CHANGE_ATTRIBUTES, Changes(mode=mode), ROOT_USER))
            found = cluster.run(client, query((FILE,), GET_ATTRIBUTES, NoArguments(), ROOT_USER))
            assert found.answer.mode & 0o777 == mode
        else:
            _read_the_past(choices, cluster, client, run)
    finally:
        cluster.network.heal()


def _read_the_past(choices: Choices, cluster: FuzzCluster, client: ClusterClient, run: Any) -> None:
    reader = PastReader(client.objects)
    at_us = cluster.nodes[0].wall_clock_us() - choices.number(1 << 20)
    try:
        if choices.flag():
            run(reader.query(ROOT, LOOKUP, Name(b"f"), ROOT_USER, at_us=at_us))
        else:
            newest = run(reader.latest(DIRECTORY, ROOT_USER))
            listing = reader.versions(
                DIRECTORY, newest=newest, most=4, prefixes=(), credentials=ROOT_USER
            )
            versions = cluster.run(client, listing)
            assert versions[0].timestamp == newest
    except (PastUnknown, FileSystemError):
        return  # declared: nodes may not know so far back


def object_replies(data: bytes) -> None:
    """A Byzantine node's answers to clients of Q/U, and to other nodes' object sync."""
    choices = Choices(data)
    cluster = _with_liar(choices, ObjectReply)
    clients = [cluster.principal("one"), cluster.principal("other")]
    model = _Names()
    for _ in range(_MOST_STEPS):
        _object_operation(choices, cluster, choices.pick(clients), model)
        if choices.exhausted:
            break
    late = cluster.principal("late")
    for name in (b"a", b"b"):
        found = cluster.run(late, late.objects.query((DIRECTORY,), LOOKUP, Name(name), ROOT_USER))
        child = found.answer.child
        assert (child.identifier if child else None) == model.present.get(name)


# --- PASIS ----------------------------------------------------------------------------------


def block_replies(data: bytes) -> None:
    """A Byzantine node's answers to readers and writers of blocks, and to verifying nodes."""
    choices = Choices(data)
    cluster = _with_liar(choices, BlockReply, verifies=True)
    clients = [cluster.principal("one"), cluster.principal("other")]
    written: list[bytes | None] = [b"first", None, None]
    for step in range(_MOST_STEPS):
        client, at = choices.pick(clients), choices.number(len(BLOCKS))
        how = choices.number(4)
        if how == 0:
            written[at] = b"step %d" % step
            cluster.run(client, client.blocks.write(BLOCKS[at], written[at], ROOT_USER))
        elif how == 1:
            items = [(block, b"many %d" % step) for block in BLOCKS]
            cluster.run(client, client.blocks.write_many(items, ROOT_USER))
            written = [item for _, item in items]
        elif how == 2:
            found = cluster.run(client, client.blocks.read_many(BLOCKS))
            assert [version.item for version in found] == written
        else:
            assert cluster.run(client, client.blocks.read(BLOCKS[at])).item == written[at]
        if choices.exhausted:
            break
    late = cluster.principal("late")
    found = cluster.run(late, late.blocks.read_many(BLOCKS))
    assert [version.item for version in found] == written


# --- healing --------------------------------------------------------------------------------


def healing_replies(data: bytes) -> None:
    """A Byzantine node's answers to one that has lost its disk: it heals, and holds what is so."""
    choices = Choices(data)
    cluster = begun(verifies=True)
    deployment = cluster.deployment
    liar = NodeId(choices.number(SIZES.n))
    loser = NodeId((liar + 1 + choices.number(SIZES.n - 1)) % SIZES.n)
    cluster.nodes[liar].become(_Liar(choices, cluster, liar, ObjectReply | BlockReply).servers)
    client = cluster.principal("one")
    creation = DirectoryCreation(b"a", 0o755, 0)
    fresh = ObjectId(bytes((DIRECTORY[0], 3)) + b"h" * 14)
    update = client.objects.update((DIRECTORY, fresh), MAKE_DIRECTORY, creation, ROOT_USER)
    cluster.run(client, update)
    cluster.run(client, client.blocks.write(BLOCKS[1], b"second", ROOT_USER))
    deployment.lose_disk(loser)
    recovery = deployment.recoveries[loser]
    healed = cluster.world.run(until=lambda: not recovery.rebuilding, most_events=_HEALS)
    assert healed, "a node that has lost its disk does not heal"
    disks = {NodeId(node): cluster.nodes[node].disk for node in range(SIZES.n) if node != liar}
    others = [disk for node, disk in disks.items() if node != loser]
    complete = complete_at(others, objects=SIZES.query_update, blocks=SIZES.read_write)
    findings = check_redundancy(loser, disks, complete, blocks=SIZES.read_write)
    assert not findings, findings
    # With another node down in its place, and the liar lying on, all is there.
    down = next(node for node in range(SIZES.n) if node not in (liar, loser))
    cluster.nodes[down].crash(down_us=None)
    late = cluster.principal("late")
    for name in (b"a", b"b"):
        found = cluster.run(late, late.objects.query((DIRECTORY,), LOOKUP, Name(name), ROOT_USER))
        assert (found.answer.child is not None) == (name == b"a")
    read = cluster.run(late, late.blocks.read_many(BLOCKS))
    assert [version.item for version in read] == [b"first", b"second", None]


# --- what people are shown ------------------------------------------------------------------


def testimonies(data: bytes) -> None:
    """A Byzantine node's answers to `statfs`, `bftfs inspect` and `audit`: what is so is shown."""
    choices = Choices(data)
    cluster = _with_liar(choices, ObjectReply | BlockReply | HealthReply)
    client = cluster.principal("one")
    room = cluster.run(client, ClusterCapacity(SIZES.read_write, client.objects.peers).capacity())
    m = SIZES.read_write.m
    assert room == Capacity(m * ACCOUNT.used_bytes, m * ACCOUNT.free_bytes, ACCOUNT.objects)
    peers = Peers(ThresholdQuorums(SIZES.query_update))
    objects = inspect_object(
        peers, DIRECTORY, SIZES.query_update, GET_ATTRIBUTES, NoArguments(), ROOT_USER
    )
    report = cluster.run(client, objects)
    assert report.version == Replica(cluster.nodes[0].disk, DIRECTORY).head
    block = cluster.run(client, inspect_block(peers, SIZES.read_write, BLOCKS[0], ROOT_USER))
    written = cluster.run(client, client.blocks.read(BLOCKS[0]))
    assert block.version == written.timestamp
    assert block.survives >= 0
    listed = cluster.run(
        client, client.blocks.versions_by((FILE,), ROOT_USER, author=None, since_us=0)
    )
    # A liar may add to it: who asks reads what is listed.
    assert (BLOCKS[0], written.timestamp.time) in [(each.block, each.time_us) for each in listed]


def _seeds() -> Iterable[bytes]:
    yield bytes(12)
    for number in range(8):
        yield bytes((number * 5 + at * at * 7 + at * number * 3) % 251 for at in range(150))


TARGETS = (
    Target(
        "object-replies",
        object_replies,
        seeds=_seeds,
        work=700_000,
        work_per_byte=2_000,
        memory_bytes=32 * MIB,
        most_bytes=600,
    ),
    Target(
        "block-replies",
        block_replies,
        seeds=_seeds,
        work=500_000,
        work_per_byte=2_000,
        memory_bytes=32 * MIB,
        most_bytes=600,
    ),
    Target(
        "healing-replies",
        healing_replies,
        seeds=lambda: tuple(_seeds())[:3],  # each takes a while
        work=2_000_000,
        work_per_byte=4_000,
        memory_bytes=32 * MIB,
        most_bytes=600,
    ),
    Target(
        "testimonies",
        testimonies,
        seeds=_seeds,
        work=500_000,
        work_per_byte=2_000,
        memory_bytes=32 * MIB,
        most_bytes=600,
    ),
)
