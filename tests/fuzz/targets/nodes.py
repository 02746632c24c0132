"""A node's own doors: the loop with its connections and its store, status and control sockets."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, get_args

from bftfs import cluster
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.cluster import ClusterDescription, Durability
from bftfs.crypto.keys import Identity
from bftfs.description_files import SignedDescription
from bftfs.envelope import (
    REPLIES,
    REQUESTS,
    HealthReply,
    HealthRequest,
    Request,
    UpkeepReply,
    UpkeepRequest,
    WorkStatus,
)
from bftfs.filesystem import object_types
from bftfs.filesystem.directory import Name
from bftfs.filesystem.inode_authority import InodeAuthority
from bftfs.filesystem.registry import LOOKUP
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import Query, QueryReply
from bftfs.query_update.object_type import encode_record
from bftfs.query_update.server import QueryUpdateServer
from bftfs.read_write.server import ReadWriteServer
from bftfs.runtime.links import Links
from bftfs.server.dispatcher import Dispatcher
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.recovery import Recovery
from bftfs.server.room import Room
from bftfs.server.step import Ready, Sender
from bftfs.server.worker import Throttle
from bftfs.wire.channel import WELCOME_BYTES, ClientChannel, ServerChannel
from bftfs.wire.codec import encode
from nodes.connections import Connections
from nodes.control import Control, ControlFailed, PassState, Upkeep, Work, send_request
from nodes.loop import Batches, Loop
from nodes.membership import LiveMembership
from nodes.metrics import Exposition, LoopTally, NodeCollector
from nodes.node import Guard
from nodes.store import Store
from tests.fuzz.choices import Choices
from tests.fuzz.target import KIB, MIB, Target
from tests.fuzz.values import Pool, generate

_DRAWN = bytes(range(32))
_CLIENT, _ATTACKER, _STRANGER = (Identity(bytes([number]) * 32) for number in (201, 202, 203))
_HEALTHY: HealthReply = generate(Choices(b""), HealthReply, Pool())
_MOST_IDLE = 3
_REQUESTS = get_args(Request)


@cache
def _described() -> tuple[ClusterDescription, tuple[Identity, ...]]:
    drawn = iter(range(1, 200))
    made = cluster.create(
        [f"unix:/nonexistent/{node}" for node in range(6)],
        t=1,
        b=1,
        draw=lambda count: bytes([next(drawn)]) * count,
    )
    description = made.description
    for name, identity in (("client", _CLIENT), ("attacker", _ATTACKER)):
        description = description.with_client(cluster.ClientEntry(name, identity.public_key))
    return description, made.nodes


def _servers() -> dict[type, Any]:
    """What the node serves, without any work of its own."""
    description, identities = _described()
    keys = description.authenticator_keys(identities[0], NodeId(0))
    peers = Peers(ThresholdQuorums(description.query_update))
    objects = QueryUpdateServer(NodeId(0), peers, keys, object_types())
    recovery = Recovery()
    healer = ObjectHealer(NodeId(0), peers, keys, recovery)
    authority = InodeAuthority(recovery, healer)
    blocks = ReadWriteServer(NodeId(0), description.read_write, keys, authority=authority)
    return {**dict.fromkeys(objects._handlers, objects), **dict.fromkeys(blocks._serve, blocks)}


class _Impatient:
    """An epoll that does not wait for what never comes."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self.register, self.modify = epoll.register, epoll.modify
        self.close = epoll.close
        self._idle = 0

    def poll(self, _timeout: float | None, most: int) -> list[tuple[int, int]]:
        events: list[tuple[int, int]] = self._epoll.poll(0.02, most)
        self._idle = 0 if events else self._idle + 1
        assert self._idle < _MOST_IDLE, "a correct client is not answered"
        return events


class _Health:
    """The last thing that the correct client asks for: it ends the run."""

    loop: Loop

    def step(self, view: Any, sender: Sender, *_: Any) -> Ready:
        if sender.client == _described()[0].clients[0].client:
            self.loop._stop(0, None)
        return Ready(_HEALTHY)


@contextmanager
def _node() -> Iterator[tuple[Loop, Path, LoopTally]]:
    """Node 0 of the cluster, with an empty store, listening."""
    description, identities = _described()
    directory = Path(tempfile.mkdtemp(prefix="bftfs-fuzz-"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(directory / "socket"))
        listener.listen(8)
        listener.setblocking(False)
        store = Store.open(
            directory / "store",
            cluster=description.cluster_id,
            node=NodeId(0),
            durability=Durability.INTERVAL,
        )
        tally, room, health = LoopTally(), Room(), _Health()
        faults: list[Exception] = []

        def report(_: Any, error: Exception) -> None:
            faults.append(error)

        with Links(description, identities[0], decode=REPLIES.decode, persistent=False) as links:
            guarded = {kind: Guard(server, room, report) for kind, server in _servers().items()}
            membership = LiveMembership(
                directory / "cluster.toml",
                directory / "kept",
                SignedDescription(description, b"", b""),
            )
            connections = Connections(
                listener=listener,
                new_channel=lambda _: _node_end(membership.principal),
                membership=membership,
                tally=tally,
            )
            batches = Batches(
                connections=connections,
                decode=REQUESTS.decode,
                dispatcher=Dispatcher(
                    servers={**guarded, HealthRequest: health}, engine=links.engine
                ),
                store=store,
                room=room,
                tally=tally,
            )
            health.loop = loop = Loop(batches, links)
            node: Any = connections
            node.epoll = _Impatient(connections.epoll)
            try:
                yield loop, directory / "socket", tally
            finally:
                loop.close()
                store.close()
        if faults:
            raise faults[0]
    finally:
        listener.close()
        shutil.rmtree(directory)


def _node_end(principal: Callable[[bytes], Sender | None]) -> ServerChannel[Sender]:
    description, identities = _described()
    return ServerChannel(
        identity=identities[0],
        node=NodeId(0),
        cluster_id=description.cluster_id,
        view=description.view,
        principal=principal,
        entropy=_DRAWN,
    )


def _session(identity: Identity) -> tuple[ClientChannel, bytes]:
    """A client's end that knows already what the node will say, and its greeting."""
    description, identities = _described()
    channel = ClientChannel(
        identity=identity,
        node=NodeId(0),
        node_public_key=identities[0].public_key,
        cluster_id=description.cluster_id,
        view=description.view,
        entropy=_DRAWN,
    )
    greeting = channel.opening()
    mirror = _node_end(description.principal)
    if description.principal(identity.public_key) is not None:
        mirror.receive(greeting)
        channel.receive(mirror.pending_output())
    return channel, greeting


def _stream(choices: Choices) -> bytes:
    """What somebody sends over one connection."""
    identities = (_ATTACKER, _ATTACKER, _described()[1][1], _STRANGER)
    channel, stream = _session(choices.pick(identities))
    pool = Pool()
    pool.add(_described()[0].root)
    pool.add(_described()[0].volume)
    if channel.established and not choices.flag(8):
        stream += b"".join(map(bytes, channel.confirmation()))
    while channel.established and not choices.exhausted and not choices.flag(6):
        if choices.flag(4):
            metadata = choices.octets(choices.number(60))
        else:
            message = generate(choices, choices.pick(_REQUESTS), pool)
            pool.learn(message)
            metadata = encode(message)
        body = choices.octets(choices.number(50))
        buffers = channel.seal_request(choices.number(1 << 16), metadata, body)
        stream += b"".join(map(bytes, buffers))
    if choices.flag(3) and stream:
        spoiled = bytearray(stream)
        at = choices.number(len(spoiled))
        if choices.flag():
            spoiled[at] ^= 1 << choices.number(8)
        else:
            spoiled[at:at] = choices.octets(1 + choices.number(60))
        stream = bytes(spoiled)
    return stream[: choices.number(len(stream) + 1)] if choices.flag(6) else stream


def connections(data: bytes) -> None:
    """Any bytes on several connections, with and without a key: an honest client is answered."""
    choices = Choices(data)
    with _node() as (loop, path, tally):
        others = []
        for _ in range(1 + choices.number(3)):
            other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            other.connect(str(path))
            other.sendall(_stream(choices))
            if choices.flag(4):
                other.close()
            others.append(other)
        channel, greeting = _session(_CLIENT)
        root = _described()[0].root
        query = Query((root,), LOOKUP, encode_record(Name(b"x")), 0, 0, (), NodeId(0))
        asked = [channel.confirmation()]
        asked += [channel.seal_request(1, encode(query)), channel.seal_request(2, _ASK)]
        honest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        honest.connect(str(path))
        honest.sendall(greeting + b"".join(bytes(part) for parts in asked for part in parts))
        loop.run()
        honest.settimeout(1)
        fresh, again = _session(_CLIENT)
        assert again == greeting
        answer = honest.recv(1 << 20)
        replies = fresh.receive(answer[WELCOME_BYTES:])
        decoded = {frame.number: REPLIES.decode(frame.metadata) for frame in replies}
        assert type(decoded[1]) is QueryReply
        assert decoded[2] == _HEALTHY
        for other in others:
            other.close()
        honest.close()
        assert not tally.refused[5], "a bug of the node, which it has survived"


_ASK = encode(HealthRequest())


def _connection_seeds() -> Iterable[bytes]:
    yield bytes(8)
    for number in range(10):
        yield bytes((number * 11 + at * at * 3 + at * number) % 251 for at in range(200))


# --- the status socket ----------------------------------------------------------------------


class _Asking:
    """A listener at which these peers ask, and then nobody ever."""

    def __init__(self, *peers: socket.socket) -> None:
        self._peers = list(peers)

    def setblocking(self, _: bool) -> None:
        """As a socket has it."""

    def accept(self) -> tuple[socket.socket, str]:
        if not self._peers:
            raise OSError("closed")
        return self._peers.pop(), ""

    def close(self) -> None:
        """As a socket has it."""


@cache
def _exposition() -> Exposition:
    """An exposition that serves when it is told to."""
    collector = NodeCollector(LoopTally(), lambda: _HEALTHY, tuple)
    return Exposition(socket.socket(), collector, is_whole=lambda: True)


def status(data: bytes) -> None:
    """Whatever is asked at the status socket, the next one who asks is served."""
    ours, theirs = socket.socketpair()
    try:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            _exposition().process_request(ours, "")
        theirs.settimeout(1)
        with suppress(ConnectionResetError):
            theirs.recv(1 << 16)
    finally:
        theirs.close()


def _status_seeds() -> Iterable[bytes]:
    yield b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"GET /health HTTP/1.0\r\n\r\n"
    yield b"POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n"
    yield b"GET /\r\n"


# --- the control socket ---------------------------------------------------------------------


class _Called:
    """A node's loop that comes to everything at once."""

    def __call__(self, function: Any, patience_s: float) -> Any:
        return function()


@contextmanager
def _control() -> Iterator[Control]:
    """A control socket without its thread, for work that does nothing."""
    directory = Path(tempfile.mkdtemp(prefix="bftfs-fuzz-"))
    state = PassState(under_way=False, progress=1.0, remaining_us=None, ended_us=0, figures={})
    throttle = Throttle("scrub", rate_bytes=1 << 20)
    control = Control(directory / "control", Upkeep((Work(throttle, lambda _: state),), lambda: ""))
    control._call = _Called()
    try:
        yield control
    finally:
        control.close()
        shutil.rmtree(directory)


def control(data: bytes) -> None:
    """Whatever the node's owner sends is answered."""
    ours, theirs = socket.socketpair()
    with _control() as door, ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        door._listener.close()
        asking: Any = _Asking(ours)
        door._listener = asking
        door._serve()
        theirs.settimeout(1)
        with suppress(ConnectionResetError):
            assert isinstance(REPLIES.decode(theirs.recv(1 << 16)), UpkeepReply)


def _control_seeds() -> Iterable[bytes]:
    yield encode(UpkeepRequest("throttle", "scrub", 1_000_000))
    yield encode(UpkeepRequest("status", "heal"))
    yield encode(UpkeepRequest("status", "h?")).replace(b"?", b"\xff")
    yield b"\n"


def control_answers(data: bytes) -> None:
    """Whatever answers at a node's control socket, its owner is told something."""
    directory = Path(tempfile.mkdtemp(prefix="bftfs-fuzz-"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def answer() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(data)

    thread = threading.Thread(target=answer, daemon=True)
    try:
        listener.bind(str(directory / "control"))
        listener.listen()
        thread.start()
        send_request(directory / "control", UpkeepRequest("status", "scrub"))
    finally:
        thread.join()
        listener.close()
        shutil.rmtree(directory)


def _answer_seeds() -> Iterable[bytes]:
    yield encode(UpkeepReply("the node is too busy to answer"))
    yield encode(UpkeepReply("?")).replace(b"?", b"\xff")
    status = WorkStatus("scrub", "idle", 1.0, 0.0, 1, None, None, {"rows": 7})
    yield encode(UpkeepReply(status=status))
    yield encode(UpkeepReply(metrics="bftfs_objects 7\n"))


TARGETS = (
    Target(
        "connections",
        connections,
        seeds=_connection_seeds,
        work=40_000,
        work_per_byte=400,
        memory_bytes=24 * MIB,
        most_bytes=800,
    ),
    Target(
        "status",
        status,
        seeds=_status_seeds,
        memory_bytes=4 * MIB,
        most_bytes=4 * KIB,
    ),
    Target(
        "control",
        control,
        seeds=_control_seeds,
        memory_bytes=4 * MIB,
        explains=True,
    ),
    Target(
        "control-answers",
        control_answers,
        (ControlFailed,),
        seeds=_answer_seeds,
        memory_bytes=4 * MIB,
    ),
)
