"""One reply of one node is false: where its handling leads in the client, and who remembers it.

Each lie is told once, in reply to one request of an operation; after that operation, the client
does another one, while the node is correct again. The same two operations without the lie are the
comparison. The lie has passed

- what the client executed between the arrival of the false reply and its waiting for the next one;
- and what it executed in either operation, and did not execute without the lie.

The network, frames and channels of a real mount come in addition.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from benchmarks.rooms.cluster import Cluster, Mount
from benchmarks.rooms.memories import Memory, learned
from benchmarks.rooms.names import Product
from benchmarks.rooms.tracing import SIMULATOR, Call, Recorder, figures

LIAR = 3
FILES = 12  # of the block of some of which a reader wants the liar's fragment
FAR_US = 1_000  # by which the others' way is longer, so that the liar is heard first

Reply = tuple[Any, bytes]  # message and body


@dataclass(frozen=True, slots=True)
class Lie:
    """How a reply is spoilt: `tell(cluster, request, message, body)` gives what is sent instead."""

    name: str
    request: str  # the class of request that is answered falsely
    tell: Callable[[Cluster, Any, Any, bytes], Reply] | None  # None: the node is dead
    prepare: Callable[[Cluster], tuple[Mount, Callable[[], Any], Callable[[], Any]]]


@dataclass(slots=True)
class Followed:
    """What a lie came to."""

    passed: dict[str, set[str]]  # functions by file
    on_arrival: list[str]  # files, of these
    memories: list[str]  # `file: Class.attribute`


def _creating(cluster: Cluster) -> tuple[Mount, Callable[[], Any], Callable[[], Any]]:
    mount = cluster.mount("client")
    mount.format()
    mount.create(b"first")
    cluster.settle()
    return mount, lambda: mount.create(b"lied to"), lambda: mount.create(b"after")


def _reading(cluster: Cluster) -> tuple[Mount, Callable[[], Any], Callable[[], Any]]:
    """Two files of whose second block the liar holds a fragment that a reader asks for.

    Of the second, since the first may have been read when the file was opened.
    """
    writer, scout, reader = map(cluster.mount, ("writer", "scout", "reader"))
    writer.format()
    names = [b"%d" % number for number in range(FILES)]
    for name in names:
        writer.write(writer.create(name), blocks=2)
    cluster.settle()
    chosen = [name for name in names if _sends_fragment(cluster, scout, name)][:2]
    first, second = map(reader.open, chosen)
    cluster.settle()
    return reader, lambda: reader.read(first, 1), lambda: reader.read(second, 1)


def _sends_fragment(cluster: Cluster, mount: Mount, name: bytes) -> bool:
    """True if the liar sends `mount` part of the second block of a file."""
    opened, sent = mount.open(name), []
    with _sending(cluster) as send:

        def watch(source: Any, target: Any, *arguments: Any) -> None:
            if (source, target) == (_endpoint(cluster), mount.host.endpoint):
                sent.append(len(arguments) > 3 and len(arguments[3]) > 0)
            send(source, target, *arguments)

        cluster.network.send = watch
        mount.read(opened, 1)
    return any(sent)


def _endpoint(cluster: Cluster) -> Any:
    return cluster.deployment.nodes[LIAR].endpoint


@contextmanager
def _sending(cluster: Cluster) -> Iterator[Callable[..., None]]:
    """How the network sends; what it is replaced by holds for the block only."""
    send = cluster.network.send
    try:
        yield send
    finally:
        cluster.network.send = send


def _both(cluster: Cluster) -> tuple[Mount, Callable[[], Any], Callable[[], Any]]:
    """An operation of either protocol, and the same again."""
    mount, read, again = _reading(cluster)
    return (
        mount,
        lambda: (mount.create(b"one"), read()),
        lambda: (mount.create(b"other"), again()),
    )


def _false_answer(_cluster: Cluster, _request: Any, reply: Any, body: bytes) -> Reply:
    return msgspec.structs.replace(reply, answer=b"a lie", whole=True), body


def _no_history(_cluster: Cluster, _request: Any, reply: Any, body: bytes) -> Reply:
    histories = tuple(b"a lie" for _ in reply.histories)
    return msgspec.structs.replace(reply, histories=histories), body


def _invented_candidate(cluster: Cluster, request: Any, reply: Any, body: bytes) -> Reply:
    """Histories with one more candidate, as the latest, that nobody ever made."""
    product = cluster.product
    conditioned = product.Decoder(product.Conditioned).decode(request.conditioned)
    names = sorted(set(conditioned.operation.objects))
    histories = []
    for history in reply.histories:
        parsed = product.parse_history(history)
        timestamp = product.logical_timestamp(
            time_us=cluster.deployment.nodes[LIAR].wall_clock_us(),
            barrier=False,
            client=bytes(16),
            digest=bytes(32),
        )
        invented = product.Candidate(timestamp, parsed.latest_object.timestamp)
        candidates = (*parsed.candidates, invented)
        histories.append(product.history_of(candidates, initial=parsed.initial))
    keys = cluster.deployment.keys(LIAR)
    authenticators = tuple(
        keys.make(product.replica_history_digest(object=name, encoded=history))
        for name, history in zip(names, histories, strict=True)
    )
    replace = msgspec.structs.replace
    return replace(reply, histories=tuple(histories), authenticators=authenticators), body


def _false_fragment(_cluster: Cluster, _request: Any, reply: Any, body: bytes) -> Reply:
    return reply, bytes([body[0] ^ 1]) + body[1:]


LIES = (
    Lie("false answer to an Update", "Update", _false_answer, _creating),
    Lie("history that is none", "Update", _no_history, _creating),
    Lie("history with an invented candidate", "Update", _invented_candidate, _creating),
    Lie("false fragment of a block", "ReadRequest", _false_fragment, _reading),
    Lie("no reply: the node is dead", "", None, _both),
)


class _Liar:
    """Stands between the liar and the network, and spoils one reply to one client."""

    def __init__(self, cluster: Cluster, mount: Mount, lie: Lie) -> None:
        self._cluster = cluster
        self._client = mount.host.endpoint
        self._node = cluster.deployment.nodes[LIAR].endpoint
        self._lie = lie
        self._requests: dict[int, Any] = {}
        self._send = cluster.network.send
        self.number = 0  # of the request that was answered falsely
        cluster.network.send = self.send

    def send(
        self, source: Any, target: Any, kind: Any, number: int, message: Any, body: Any = b""
    ) -> None:
        """As the network does."""
        wanted = type(message).__name__ == self._lie.request
        if (source, target) == (self._client, self._node) and wanted:
            self._requests[number] = message
        told = (source, target) == (self._node, self._client) and number in self._requests
        if told and not self.number and self._lie.tell is not None:
            self.number = number
            request = self._requests[number]
            message, body = self._lie.tell(self._cluster, request, message, bytes(body))
        self._send(source, target, kind, number, message, body)


@dataclass(slots=True)
class _Played:
    calls: list[Call]
    before: Memory
    after: Memory


def _play(product: Product, tree: Path, lie: Lie, *, honest: bool) -> _Played:
    cluster = Cluster(product)
    nodes = cluster.deployment.nodes
    for node in nodes:
        if node.node != LIAR:
            cluster.network.distances_us[node.endpoint] = FAR_US
    mount, action, again = lie.prepare(cluster)
    host, liar = mount.host, None
    if not honest and lie.tell is not None:
        liar = _Liar(cluster, mount, lie)
    elif not honest:
        nodes[LIAR].crash(down_us=None)

    def note(frame: FrameType) -> str | None:
        """Marks what happens at the client, and the arrival of the lie."""
        if SIMULATOR not in frame.f_code.co_filename or frame.f_locals.get("self") is not host:
            return None
        arrives = frame.f_code.co_name == "_receive" and liar is not None
        return "lie" if arrives and frame.f_locals["number"] == liar.number else "client"

    recorder = Recorder(tree, note)
    has_sets = (tree / "bftfs/asking/quorum.py").exists()
    before = Memory(mount.files, LIAR, len(nodes), integers=not has_sets)
    with recorder.recording():
        action()
    after = Memory(mount.files, LIAR, len(nodes), integers=not has_sets)
    with recorder.recording():
        again()
    if liar is not None and not liar.number:
        raise RuntimeError(f"nobody asked node {LIAR} for what it was to lie about: {lie.name}")
    return _Played(recorder.calls, before, after)


def follow(product: Product, tree: Path, lie: Lie) -> Followed:
    """Tell `lie`, and see what becomes of it."""
    honest = _play(product, tree, lie, honest=True)
    lying = _play(product, tree, lie, honest=False)
    usual = figures(honest.calls, lambda call: call.note is not None).passed
    passed = figures(lying.calls, lambda call: call.note == "lie").passed
    on_arrival = sorted(passed)
    for file, functions in figures(lying.calls, lambda call: call.note is not None).passed.items():
        if more := functions - usual.get(file, set()):
            passed[file] = passed.get(file, set()) | more
    return Followed(passed, on_arrival, learned(lying.before, lying.after, honest.after))
