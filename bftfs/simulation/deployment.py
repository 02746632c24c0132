"""A cluster in a world: its nodes, the secrets that they share, and the clients that it knows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import get_args

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes, ThresholdQuorums
from bftfs.conversation import Event
from bftfs.credentials import Credentials, Grant
from bftfs.crypto.digest import AuthenticatorKeys
from bftfs.envelope import ClockRequest, DescriptionRequest, EpochRequest
from bftfs.filesystem.inode_authority import InodeAuthority
from bftfs.identifiers import CLIENT_ID_BYTES, ClientId, NodeId, ObjectId
from bftfs.query_update.messages import Request as QueryUpdateRequest
from bftfs.query_update.object_type import ObjectTypes
from bftfs.query_update.server import QueryUpdateServer
from bftfs.read_write.messages import Notice
from bftfs.read_write.messages import Request as ReadWriteRequest
from bftfs.read_write.server import ReadWriteServer
from bftfs.read_write.session import Session
from bftfs.server import clock_comparison, known_lives
from bftfs.server.block_healing import BlockHealer
from bftfs.server.block_verification import LazyVerifier, VerificationSettings
from bftfs.server.clock_comparison import ClockComparison, ClockServer
from bftfs.server.file_collection import Collector
from bftfs.server.incomplete_updates import Finisher
from bftfs.server.kept_blocks import CollectedPast
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.own_clock import OwnClock
from bftfs.server.recovery import Recovery, Stage
from bftfs.server.room import ClientQuota, Room
from bftfs.server.runs import Runs
from bftfs.server.scrubbing import (
    BlockScrubber,
    HistoryScrubber,
    RequestScrubber,
    Scrubber,
    VersionScrubber,
)
from bftfs.server.step import Background, Role, Sender, Server
from bftfs.simulation.descriptions import ClientLists
from bftfs.simulation.disk import Tables
from bftfs.simulation.key_epochs import DescriptionServer, KeyEpochs
from bftfs.simulation.network import Endpoint, SimulatedNetwork
from bftfs.simulation.principals import (
    NodeServices,
    Servers,
    SimulatedClient,
    SimulatedNode,
    node_endpoint,
)
from bftfs.simulation.world import World
from bftfs.storage import Write
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds

CREDENTIALS = Credentials(uid=1000, gid=1000)
STRANGER = Credentials(uid=2000, gid=2000)  # owns nothing but what others give away
# As requests name them:
USER = (CREDENTIALS.uid, CREDENTIALS.gid, CREDENTIALS.groups)
STRANGERS = (STRANGER.uid, STRANGER.gid, STRANGER.groups)

OnCommit = Callable[[NodeId, Sequence[Write]], None]


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """Which nodes of a cluster collect, and what.

    A real window is days, and longer by what clocks may differ by [design §8]. Here it is seconds,
    so that within one run nearly everything becomes old. It is compared with the times of versions,
    whatever the clocks of their authors: a version stays if its successor's time lies within the
    window of the node.
    """

    window_us: int
    roomy: tuple[NodeId, ...] = ()  # nodes that are never short of room, and keep everything
    rest_us: int = 0  # between quiet phase and audit, for what is old to go


class ConstantPool:
    """A pool that is always too small, or never."""

    def __init__(self, *, short: bool) -> None:
        self.shortage = Event()
        self._short = short

    def is_short(self) -> bool:
        """True if versions that no rule keeps have to go."""
        return self._short


@dataclass(frozen=True, slots=True)
class Sizes:
    """The thresholds of both protocols on the same nodes."""

    query_update: QueryUpdateThresholds
    read_write: ReadWriteThresholds

    @property
    def n(self) -> int:
        """The number of nodes."""
        return self.query_update.n

    @classmethod
    def smallest(cls, *, t: int, b: int) -> Sizes:
        """As few nodes as Q/U needs, with blocks as compact as they then can be."""
        query_update = QueryUpdateThresholds.smallest(t=t, b=b)
        return cls(query_update, ReadWriteThresholds.for_nodes(query_update.n, t=t, b=b))


@dataclass
class Deployment:
    """The nodes of one cluster in `world`, all correct and up.

    Without `verification` settings, nodes neither verify nor heal of their own accord.

    With them, nodes collect as `collection` says, by the snapshots of `volume`, and
    `possible_objects` are all that one client may leave incomplete. The versions of blocks of
    one client may take `client_bytes` of a node.
    """

    world: World
    network: SimulatedNetwork
    sizes: Sizes
    _: KW_ONLY
    types: ObjectTypes
    skews_us: tuple[int, ...] = ()
    commit_us: tuple[int, int] = (20, 200)
    on_commit: OnCommit | None = None
    on_notice: Callable[[NodeId, Notice], None] | None = None  # that a node sends to another
    on_loss: Callable[[NodeId], None] | None = None  # of a node's disk
    verification: VerificationSettings | None = None
    collection: CollectionPlan | None = None
    volume: ObjectId | None = None
    possible_objects: int | None = None
    client_bytes: int | None = None
    compares_clocks: bool = False  # of each node with its peers', as real ones do
    key_epochs: KeyEpochs | None = None  # that nodes tell clients
    jumps: int = field(default=0, init=False)  # of all clocks, ahead and back
    # Of nodes that have lost their disk:
    recoveries: dict[NodeId, Recovery] = field(default_factory=dict, init=False)
    clocks: dict[NodeId, OwnClock] = field(default_factory=dict, init=False)
    clients: list[SimulatedClient] = field(default_factory=list, init=False)
    # Of nodes that verify and heal:
    scrubbers: dict[NodeId, Scrubber] = field(default_factory=dict, init=False)
    collectors: dict[NodeId, Collector] = field(default_factory=dict, init=False)
    healers: dict[NodeId, tuple[ObjectHealer, BlockHealer]] = field(
        default_factory=dict, init=False
    )
    _senders: dict[Endpoint, Sender] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        world, sizes = self.world, self.sizes
        # One secret per pair of nodes; only the two of them hold it.
        self._secrets = {
            (one, other): world.random.randbytes(32)
            for one in range(sizes.n)
            for other in range(one, sizes.n)
        }
        for node in range(sizes.n):
            self._senders[node_endpoint(NodeId(node))] = Sender(
                Role.NODE, client_named(f"node {node}"), NodeId(node), Grant(uids=(), write=False)
            )
        numbers = map(NodeId, range(sizes.n))
        self.descriptions = ClientLists(self._senders, numbers, self.key_epochs)
        self.nodes = tuple(
            SimulatedNode(
                world,
                self.network,
                NodeId(node),
                servers=partial(self.servers, NodeId(node)),
                senders=self.descriptions.at(NodeId(node)),
                skew_us=self.skews_us[node] if self.skews_us else 0,
                commit_us=self.commit_us,
                on_commit=self.on_commit,
                on_notice=self.on_notice,
            )
            for node in range(sizes.n)
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where nodes and clients are reached."""
        return tuple(self._senders)

    def keys(self, node: NodeId) -> AuthenticatorKeys:
        """The secrets that `node` shares with the others."""
        return AuthenticatorKeys(
            node,
            tuple(
                self._secrets[min(node, other), max(node, other)] for other in range(self.sizes.n)
            ),
        )

    def servers(self, node: NodeId, *, begins_runs: bool = True) -> Servers:
        """The servers of a correct node, by request, with nothing in memory.

        Of one that is not correct as a whole they serve without a run.
        """
        keys, sizes = self.keys(node), self.sizes.read_write
        faults = self.sizes.query_update
        clock = OwnClock(faults.t, b=faults.b, compared=self.compares_clocks)
        self.clocks[node] = clock
        recovery = self.recoveries.get(node)
        if recovery is None:
            recovery = self.recoveries[node] = Recovery()
        else:  # it starts again
            disk = self.nodes[node].disk
            known_lives.recall(disk, keys)
            clock_comparison.recall(disk, clock)
            recovery.place = disk.place
        recovery.awaits = None
        peers = Peers(ThresholdQuorums(self.sizes.query_update), trusted=Nodes.of([node]))
        objects_healer = ObjectHealer(node, peers, keys, recovery)
        objects = QueryUpdateServer(
            node,
            peers,
            keys,
            self.types,
            recovery=recovery,
            doubts=objects_healer,
            clock=clock,
            possible_objects=self.possible_objects,
        )
        servers: dict[type, Server] = dict.fromkeys(get_args(QueryUpdateRequest), objects)
        background: list[Background] = []
        if self.key_epochs is not None:
            told = DescriptionServer(self.key_epochs, partial(self.descriptions.serial, node))
            servers |= dict.fromkeys((EpochRequest, DescriptionRequest), told)
        if self.compares_clocks:
            servers[ClockRequest] = ClockServer(clock)
            background.append(ClockComparison(node, peers, clock))
        limit = self.client_bytes
        quota = ClientQuota(Room(client_bytes=limit))
        authority = InodeAuthority(recovery, objects_healer)
        if self.verification is None:
            blocks = ReadWriteServer(
                node, sizes, keys, authority=authority, quota=quota, clock=clock
            )
            asked = (kind for kind in get_args(ReadWriteRequest) if kind is not Notice)
            servers |= dict.fromkeys(asked, blocks)
            return NodeServices(servers, tuple(background), lambda _object: None)
        session = Session(
            client_named(f"node {node}"), sizes, peers, patience_total_us=limits.VERIFY_PATIENCE_US
        )
        verifier = LazyVerifier(node, session, self.verification)
        past = CollectedPast()
        healer = BlockHealer(
            node,
            session,
            keys,
            recovery,
            wants=past.wants,
        )
        blocks = ReadWriteServer(
            node,
            sizes,
            keys,
            authority=authority,
            quota=quota,
            watch=verifier,
            memory=healer,
            past=past,
            clock=clock,
        )
        servers |= dict.fromkeys(get_args(ReadWriteRequest), blocks) | {Notice: verifier}
        finisher = Finisher(node, peers, objects.incomplete, objects_healer)
        self.healers[node] = objects_healer, healer
        scrubber = self.scrubbers[node] = Scrubber(
            (
                BlockScrubber(node, sizes.N, healer.throttle.hurry),
                VersionScrubber(node, peers, objects_healer),
                HistoryScrubber(keys, objects_healer),
                RequestScrubber(sizes.N),
            )
        )
        if begins_runs:
            background.append(Runs(node, peers, keys, recovery))
        background += (verifier, finisher, objects_healer, healer, scrubber)
        if self.collection is not None:
            assert self.volume is not None
            collector = self.collectors[node] = Collector(
                node,
                peers,
                self.volume,
                window_us=self.collection.window_us,
                pool=ConstantPool(short=node not in self.collection.roomy),
                clock=clock if self.compares_clocks else None,
                knowledge=objects_healer,
            )
            background.append(collector)
        return NodeServices(servers, tuple(background), objects_healer.note_damage)

    def lose_disk(self, number: NodeId) -> None:
        """A node comes back at once with an empty disk, and knows it. [nodes/store_directory.py]"""
        node = self.nodes[number]
        node.crash(down_us=None)
        node.disk.wipe()
        if self.on_loss is not None:
            self.on_loss(number)
        self.recoveries[number] = Recovery(Stage.LOST)
        node.start()

    def put_back(self, number: NodeId, tables: Tables, *, elsewhere: bool = True) -> None:
        """A node's folder is put back from a copy, and nobody tells it. [nodes/store_place.py]"""
        node = self.nodes[number]
        node.crash(down_us=None)
        node.disk.put_back(tables, elsewhere=elsewhere)
        if self.on_loss is not None:
            self.on_loss(number)
        self.recoveries[number] = Recovery()
        node.start()

    def client(self, name: str, *, skew_us: int = 0, grant: Grant | None = None) -> SimulatedClient:
        """A new client that all nodes know."""
        client = SimulatedClient(self.world, self.network, client_named(name), skew_us=skew_us)
        self._senders[client.endpoint] = Sender(Role.CLIENT, client.client, None, grant or Grant())
        self.clients.append(client)
        return client

    def set_clocks(self, by_us: int) -> None:
        """All clocks jump, of nodes and clients."""
        self.jumps += 1
        for host in (*self.nodes, *self.clients):
            host.skew_us += by_us

    def twin_of_node(self, node: NodeId) -> SimulatedNode:
        """Another instance of a node, with its keys and a disk of its own."""
        endpoint = twin_endpoint(node_endpoint(node))
        self._senders[endpoint] = self._senders[node_endpoint(node)]
        return SimulatedNode(
            self.world,
            self.network,
            node,
            servers=partial(self.servers, node, begins_runs=False),
            senders=self.descriptions.at(node),
            commit_us=(20, 20),
            endpoint=endpoint,
        )

    def twin_of_client(self, client: SimulatedClient) -> SimulatedClient:
        """Another instance of a client, with its key and a memory of its own."""
        endpoint = twin_endpoint(client.endpoint)
        self._senders[endpoint] = self._senders[client.endpoint]
        return SimulatedClient(self.world, self.network, client.client, endpoint=endpoint)


def twin_endpoint(endpoint: Endpoint) -> Endpoint:
    """Where the other instance of a principal is reached."""
    return (*endpoint, "twin")  # type: ignore[misc]


def client_named(name: str) -> ClientId:
    """The id that a simulated principal has instead of a public key's digest."""
    return ClientId(hashlib.blake2b(name.encode(), digest_size=CLIENT_ID_BYTES).digest())
