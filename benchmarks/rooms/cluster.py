"""The simulated cluster, on the code of any tree: six nodes, b = t = 1, stores in memory.

Nodes are bare by default: only what serves a request runs there. *Full* nodes also have a quota
for each client, verify and heal, as real nodes do.

Everything is deterministic: the same tree gives the same counts each time.
"""

from collections.abc import Callable, Coroutine
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.rooms.names import Product
from benchmarks.rooms.tracing import Call, Figures, Recorder, figures, first

SETTLE_US = 5_000_000  # in which nodes finish what an operation has begun
EVENTS_MOST = 1_000_000
BLOCK_BYTES = 4096


class Cluster:
    """Nodes and the clients that use them."""

    def __init__(self, product: Product, *, full: bool = False, more_types: Any = None) -> None:
        """With `more_types`, there are objects of these types as well."""
        simulation = product.simulation
        self.product = product
        self.sizes = simulation.Sizes.smallest(t=1, b=1)
        self.types = product.file_system_types()
        if more_types is not None:
            self.types |= more_types
        self.world = simulation.World(1)
        self.network = simulation.either("SimulatedNetwork", "Network")(
            self.world, simulation.NetworkFaults()
        )
        self.deployment = simulation.Deployment(
            self.world,
            self.network,
            self.sizes,
            types=self.types,
            verification=product.VerificationSettings() if full else None,
            client_bytes=1 << 40 if full else None,
        )
        self.volume, self.root = (
            product.object_id(kind, placement=0, unique=bytes(14))
            for kind in (product.ObjectKind.VOLUME, product.ObjectKind.DIRECTORY)
        )
        self.credentials = product.Credentials(uid=1000, gid=1000)

    def mount(self, name: str) -> "Mount":
        """A new client with the file system mounted, with the options that are usual."""
        return Mount(self, name)

    def settle(self) -> None:
        """Let time pass until everything that was begun is over."""
        until_us = self.world.now_us + SETTLE_US
        self.world.after(SETTLE_US, lambda: None)
        self.world.run(until=lambda: self.world.now_us >= until_us, most_events=EVENTS_MOST)


class Mount:
    """One client's file system."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        product, sizes = cluster.product, cluster.sizes
        self.cluster = cluster
        self.host = cluster.deployment.client(name)
        parts = {
            "client": self.host.client,
            "quorums": product.ThresholdQuorums(sizes.query_update),
            "thresholds": sizes.read_write,
            "types": cluster.types,
        }
        kinds = product.QueryUpdateClient, product.ReadWriteClient
        if any("peers" in signature(kind).parameters for kind in kinds):
            parts["peers"] = product.Peers(parts["quorums"])  # what both know of the nodes
        self.objects, self.blocks = (_made(kind, parts) for kind in kinds)
        self.files = product.FileSystem(
            self.objects,
            self.blocks,
            None,  # nobody asks how much space there is
            None,  # contents are not encrypted
            root=cluster.root,
            volume=cluster.volume,
            options=product.Options(),
        )

    def run(self, conversation: Coroutine[Any, Any, Any]) -> Any:
        """Its result, as soon as it ends."""
        ended: list[tuple[Any, BaseException | None]] = []
        self.host.start(conversation, lambda result, error: ended.append((result, error)))
        if not self.cluster.world.run(until=lambda: bool(ended), most_events=EVENTS_MOST):
            raise RuntimeError("an operation of the simulated cluster does not end")
        result, error = ended[0]
        if error is not None:
            raise error
        return result

    def format(self) -> None:
        """Make the file system."""
        self.run(self.files.format(self.cluster.credentials, block_bytes=BLOCK_BYTES))
        self.cluster.settle()

    def create(self, name: bytes) -> Any:
        """Create a file; it is open."""
        cluster = self.cluster
        _, opened = self.run(self.files.create(cluster.root, name, 0o600, cluster.credentials))
        return opened

    def open(self, name: bytes) -> Any:
        """Open a file."""
        found = self.lookup(name)
        return self.run(self.files.open(found.identifier, 0, self.cluster.credentials))

    def lookup(self, name: bytes) -> Any:
        """Look a name up in the root directory."""
        cluster = self.cluster
        return self.run(self.files.lookup(cluster.root, name, cluster.credentials))

    def write(self, opened: Any, *, blocks: int = 1) -> None:
        """Write the first blocks and flush them, as `close` does."""
        now_ns = 1_000 * self.host.wall_clock_us()
        self.files.write(opened, 0, b"x" * (blocks * BLOCK_BYTES), now_ns=now_ns)
        self.run(self.files.flush(opened))

    def read(self, opened: Any, block: int) -> bytes:
        """Read a block."""
        return bytes(self.run(self.files.read(opened, block * BLOCK_BYTES, BLOCK_BYTES)))


def _made(kind: Any, parts: dict[str, Any]) -> Any:
    """An instance, made of those parts that the constructor of this tree takes."""
    wanted = signature(kind).parameters
    return kind(**{name: part for name, part in parts.items() if name in wanted})


def _request(frame: FrameType) -> str | None:
    """What a node's dispatcher is asked to handle: the class of the message."""
    if frame.f_code.co_qualname != "Dispatcher.handle":
        return None
    handled = frame.f_locals.get("request")  # its record; older trees pass its parts
    return type(frame.f_locals["message"] if handled is None else handled.message).__name__


def trace(tree: Path, action: Callable[[], Any]) -> list[Call]:
    """The calls of `action`; the requests that nodes handle meanwhile are noted."""
    recorder = Recorder(tree, _request)
    with recorder.recording():
        action()
    return recorder.calls


def operations(product: Product, tree: Path, *, full: bool) -> dict[str, Figures]:
    """Each operation that is counted, once everything it needs was used before."""
    cluster = Cluster(product, full=full)
    mount = cluster.mount("client")
    mount.format()
    mount.write(mount.create(b"first"))
    cluster.settle()
    opened = []
    create = trace(tree, lambda: opened.append(mount.create(b"file")))
    cluster.settle()
    write = trace(tree, lambda: mount.write(opened[0]))
    cluster.settle()
    mount.lookup(b"file")
    lookup = trace(tree, lambda: mount.lookup(b"file"))

    def at_node(calls: list[Call], request: str) -> Figures:
        return figures(calls, first(calls, request), with_coroutines=False)

    return {
        "create, whole cluster": figures(create),
        "create, one server's Update": at_node(create, "Update"),
        "write of 4 KiB with flush, whole cluster": figures(write),
        "write, one node's WriteRequest": at_node(write, "WriteRequest"),
        "write, one server's Update of the inode": at_node(write, "Update"),
        "lookup of a cached name": figures(lookup),
    }
