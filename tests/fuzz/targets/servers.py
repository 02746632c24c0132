"""Server steps: what a client with a valid key may send to nodes, in any order.

All nodes are correct; the sender is not, and has the help of one node's keys. Afterwards a correct
client finds everything as it was, and its operations succeed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from bftfs.credentials import Grant
from bftfs.crypto.digest import voucher_digest
from bftfs.errors import FileSystemError
from bftfs.filesystem.directory import Creation, Name
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.registry import (
    CHANGE_ATTRIBUTES,
    CREATE,
    GET_ATTRIBUTES,
    LOOKUP,
    MAKE_DIRECTORY,
)
from bftfs.identifiers import NodeId
from bftfs.query_update.history import Conditioned, ConditionedKind, Operation
from bftfs.query_update.messages import (
    AttestRequest,
    CatalogueRequest,
    ChainRequest,
    HistoryRequest,
    InlineBarrier,
    InlineUpdate,
    LatestRequest,
    SyncRequest,
    Update,
)
from bftfs.query_update.messages import Request as ObjectRequest
from bftfs.read_write.messages import FragmentsRequest, InventoryRequest, Notice, WriteRequest
from bftfs.read_write.messages import Request as BlockRequest
from bftfs.read_write.timestamp import encoded as encoded_timestamp
from bftfs.simulation.byzantine.positions import as_sent
from bftfs.simulation.network import Kind
from bftfs.simulation.principals import node_endpoint
from bftfs.wire.codec import Voucher, encode
from tests.fuzz.choices import Choices
from tests.fuzz.cluster import (
    BLOCKS,
    DIRECTORY,
    FILE,
    FRESH,
    OBJECTS,
    OWNER,
    ROOT,
    ROOT_USER,
    SIZES,
    ClusterClient,
    FuzzCluster,
    begun,
)
from tests.fuzz.target import MIB, Target
from tests.fuzz.values import generate, mutate

_BYZANTINE = 1  # the node whose keys the attacker has
_MOST_STEPS = 12
_OBJECT_REQUESTS = get_args(ObjectRequest)
_BLOCK_REQUESTS = get_args(BlockRequest)
_BETWEEN_NODES = (
    SyncRequest
    | HistoryRequest
    | CatalogueRequest
    | AttestRequest
    | ChainRequest
    | LatestRequest
    | Notice
    | InventoryRequest
    | FragmentsRequest
)


def _send(
    cluster: FuzzCluster, attacker: ClusterClient, node: int, message: Any, body: bytes
) -> None:
    # Object sync, healing and notices are between nodes; every other request is a client's.
    source = attacker.host.endpoint
    if isinstance(message, _BETWEEN_NODES):
        source = node_endpoint(NodeId(_BYZANTINE))
    message = as_sent(message, node, SIZES.n)
    metadata = message if isinstance(message, bytes) else encode(message)
    cluster.network.send(source, node_endpoint(NodeId(node)), Kind.REQUEST, 1, metadata, body)


def _targets(choices: Choices) -> list[int]:
    """The nodes that a message goes to: one, some or all."""
    if choices.flag():
        return list(range(SIZES.n))
    chosen = choices.number(1 << SIZES.n)
    return [node for node in range(SIZES.n) if chosen >> node & 1]


# --- Q/U ------------------------------------------------------------------------------------


def _composed(choices: Choices, cluster: FuzzCluster, attacker: ClusterClient) -> Any:
    """A request on true and forged histories, as a client makes them that knows the protocol."""
    names = sorted({choices.pick(OBJECTS) for _ in range(1 + choices.number(3))})
    shown = [cluster.history_set(choices, name, forged_by=_BYZANTINE) for name in names]
    sets = tuple(history_set for history_set, _ in shown)
    macs = tuple(authenticators for _, authenticators in shown)
    if choices.flag(6):
        return InlineBarrier(sets[0], macs[0])
    kind = choices.pick((ConditionedKind.METHOD, ConditionedKind.BARRIER, ConditionedKind.COPY))
    operation = None
    if kind is ConditionedKind.METHOD:
        operation = generate(choices, Operation, cluster.pool)
        said = [
            message.conditioned
            for message, _ in cluster.network.requests
            if type(message) is Update
        ]
        if said and choices.flag():
            from bftfs.query_update.history import decode_conditioned

            operation = decode_conditioned(choices.pick(said)).operation or operation
    clock = choices.pick((0, cluster.nodes[0].wall_clock_us(), (1 << 63) - 1))
    conditioned = encode(Conditioned(kind, operation, clock, sets))
    cluster.pool.add(conditioned)
    if choices.flag(4):
        author = choices.pick(cluster.pool.of_length(16))
        return InlineUpdate(conditioned, author, sets[0], macs[0], NodeId(0))  # type: ignore[arg-type]
    return Update(conditioned, macs, (), NodeId(0))


def _object_request(choices: Choices, cluster: FuzzCluster, attacker: ClusterClient) -> Any:
    how = choices.number(4)
    pool, said = cluster.pool, cluster.network.requests
    if how == 0:
        return generate(choices, choices.pick(_OBJECT_REQUESTS), pool)
    if how == 1:
        return _composed(choices, cluster, attacker)
    message = choices.pick(said)[0] if said else generate(choices, _OBJECT_REQUESTS[0], pool)
    for _ in range(choices.number(3)):
        message = mutate(choices, message, ObjectRequest, pool)
    return message


def _attackers_operation(choices: Choices, attacker: ClusterClient) -> Any:
    """An operation that the attacker's own grant and key allow it to try."""
    from bftfs.filesystem.attributes import Changes

    how = choices.number(3)
    if how == 0:
        return attacker.objects.query((choices.pick((ROOT, DIRECTORY)),), LOOKUP, Name(b"f"), OWNER)
    if how == 1:
        creation = Creation(choices.octets(1), 0o100644, 0, 0, b"", 4096)
        names = (DIRECTORY, choices.pick(FRESH))
        return attacker.objects.update(names, CREATE, creation, OWNER)
    return attacker.objects.update((FILE,), CHANGE_ATTRIBUTES, Changes(mode=0o777), OWNER)


def object_requests(data: bytes) -> None:
    """Q/U requests in any order from a client with a valid key, and object sync from a node."""
    choices, cluster = Choices(data), begun()
    attacker = cluster.principal("attacker", grant=Grant(uids=(OWNER.uid,), gids=(OWNER.gid,)))
    honest = cluster.principal("honest")
    for step in range(_MOST_STEPS):
        if choices.exhausted:
            break
        action = choices.number(6)
        if action == 0:
            _honest_objects(cluster, honest, step)
        elif action == 1:
            cluster.start(attacker, _attackers_operation(choices, attacker))
            cluster.go_on(choices.number(200))
        else:
            message = _object_request(choices, cluster, attacker)
            for node in _targets(choices):
                _send(cluster, attacker, node, message, b"")
            cluster.go_on()
        for said, _ in cluster.network.requests[-12:] + cluster.network.replies[-6:]:
            cluster.pool.learn(said)
    attacker.host.crash()
    _honest_objects(cluster, cluster.principal("late"), 100)
    assert attacker.host.malformed == 0, "a correct node's reply is no message"
    cluster.check_servers()


def _honest_objects(cluster: FuzzCluster, client: ClusterClient, step: int) -> None:
    """What no attacker without the right may have changed, and a new file."""
    query, update = client.objects.query, client.objects.update
    for name, identifier in ((b"d", DIRECTORY), (b"f", FILE)):
        found = cluster.run(client, query((ROOT,), LOOKUP, Name(name), ROOT_USER)).answer
        assert found.child.identifier == identifier
    attributes = cluster.run(client, query((FILE,), GET_ATTRIBUTES, NoArguments(), ROOT_USER))
    assert attributes.answer.mode == 0o100644
    name = b"new %d" % step
    fresh = bytes((DIRECTORY[0], step % SIZES.n)) + name.ljust(14, b"-")
    from bftfs.filesystem.directory import DirectoryCreation

    creation = DirectoryCreation(name, 0o755, 0)
    try:
        cluster.run(client, update((ROOT, fresh), MAKE_DIRECTORY, creation, ROOT_USER))  # type: ignore[arg-type]
    except FileSystemError as error:
        raise AssertionError(f"a correct client cannot make a directory: {error}") from error
    found = cluster.run(client, query((ROOT,), LOOKUP, Name(name), ROOT_USER)).answer
    assert found.child.identifier == fresh


# --- PASIS ----------------------------------------------------------------------------------


def _block_request(choices: Choices, cluster: FuzzCluster) -> tuple[Any, bytes]:
    pool, said = cluster.pool, cluster.network.requests
    if choices.flag(4) or not said:
        message, body = generate(choices, choices.pick(_BLOCK_REQUESTS), pool), b""
    else:
        message, body = choices.pick(said)
    for _ in range(choices.number(3)):
        message = mutate(choices, message, BlockRequest, pool)
    if isinstance(message, WriteRequest) and choices.flag():
        digest = voucher_digest(block=message.block, timestamp=encoded_timestamp(message.timestamp))
        voucher = Voucher(NodeId(_BYZANTINE), cluster.keys(_BYZANTINE).make(digest))
        message = WriteRequest(
            message.block,
            message.timestamp,
            message.cross_checksum,
            message.uid,
            message.gid,
            message.groups,
            (voucher,) * (1 + choices.number(3)),
        )
    if choices.flag(4):
        body = choices.octets(choices.number(40))
    return message, body


def block_requests(data: bytes) -> None:
    """PASIS requests in any order: without the right to write, nothing changes; with it, blocks
    can still be read, and written by others."""
    choices, cluster = Choices(data), begun(verifies=True)
    writes = choices.flag()
    attacker = cluster.principal(
        "attacker", grant=Grant(uids=(OWNER.uid,), gids=(OWNER.gid,), write=writes)
    )
    honest = cluster.principal("honest")
    written = [b"first", None, None]
    for step in range(_MOST_STEPS):
        if choices.exhausted:
            break
        action = choices.number(6)
        at = choices.number(len(BLOCKS))
        if action == 0:
            written[at] = b"step %d" % step
            cluster.run(honest, honest.blocks.write(BLOCKS[at], written[at], ROOT_USER))
        elif action == 1:
            block = BLOCKS[at]
            if choices.flag():
                cluster.start(attacker, attacker.blocks.read(block))
            else:
                cluster.start(attacker, attacker.blocks.write(block, b"attack", OWNER))
            cluster.go_on(choices.number(60))
        else:
            message, body = _block_request(choices, cluster)
            for node in _targets(choices):
                _send(cluster, attacker, node, message, body)
            cluster.go_on()
        for said, _ in cluster.network.requests[-12:] + cluster.network.replies[-6:]:
            cluster.pool.learn(said)
    attacker.host.crash()
    late = cluster.principal("late")
    for block, item in zip(BLOCKS, written, strict=True):
        found = cluster.run(late, late.blocks.read(block)).item
        assert writes or found == item
    cluster.run(late, late.blocks.write(BLOCKS[0], b"last", ROOT_USER))
    assert cluster.run(late, late.blocks.read(BLOCKS[0])).item == b"last"
    assert attacker.host.malformed == 0, "a correct node's reply is no message"


def _seeds() -> Iterable[bytes]:
    yield bytes(12)
    for number in range(8):
        yield bytes((number + at * at * 7 + at * number * 3) % 251 for at in range(120))


TARGETS = (
    Target(
        "object-requests",
        object_requests,
        seeds=_seeds,
        work=700_000,
        work_per_byte=2_000,
        memory_bytes=32 * MIB,
        most_bytes=600,
    ),
    Target(
        "block-requests",
        block_requests,
        seeds=_seeds,
        work=500_000,
        work_per_byte=2_000,
        memory_bytes=32 * MIB,
        most_bytes=600,
    ),
)
