"""One storage node: store, servers, dispatcher, connections, started and stopped together."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bftfs.asking.peers import Peers
from bftfs.asking.refusal import Refused
from bftfs.cluster import ClusterDescription
from bftfs.crypto.digest import Body
from bftfs.crypto.keys import Identity, read_identity
from bftfs.data_directory import NodeDirectory
from bftfs.envelope import (
    Announcement,
    DescriptionRequest,
    EpochRequest,
    HealthRequest,
    UpkeepRequest,
)
from bftfs.errors import DamagedRow, UsageError
from bftfs.identifiers import NodeId, ObjectId
from bftfs.limits import CONNECTIONS, MIB
from bftfs.printable import as_word
from bftfs.query_update.messages import Update
from bftfs.runtime import supervisor
from bftfs.runtime.links import Links
from bftfs.runtime.log import PROCESS_LOG
from bftfs.runtime.process import collect_rarely, keep_freed_memory
from bftfs.runtime.sockets import forget, listen
from bftfs.server.comparison import Comparison
from bftfs.server.dispatcher import Dispatcher
from bftfs.server.known_runs import laid_down
from bftfs.server.own_clock import OwnClock
from bftfs.server.recovery import Recovery
from bftfs.server.room import Room
from bftfs.server.step import Background, Ready, Role, Sender, Server
from bftfs.server.tally import Figure
from bftfs.server.usage import usage_page
from bftfs.storage import StorageView
from bftfs.wire.channel import ServerChannel
from nodes.configuration import NodeConfiguration
from nodes.connections import Connections
from nodes.control import Control, Upkeep, Work
from nodes.loop import Batches, Loop
from nodes.membership import LiveMembership, MembershipServer, latest_description
from nodes.metrics import (
    REBUILDING,
    Exposition,
    Health,
    LoopTally,
    MetricsText,
    NodeCollector,
)
from nodes.store import Store
from nodes.store_directory import (
    StepAgain,
    StoreFailed,
    StoreFull,
    note_synced,
    note_unsynced,
    resumed,
)
from nodes.store_place import place_of

FREED_BYTES_KEPT = 16 * MIB  # a batch of blocks
DESCRIPTORS_BESIDE_CONNECTIONS = 256  # for store, peers, metrics
_ADMINISTRATOR = Role.ADMINISTRATOR  # a member of a class takes longer to find


@dataclass(frozen=True, slots=True)
class Services:
    """The servers of a node, by message class, and its background work."""

    servers: Mapping[type, Server]
    peers: Peers  # what the node knows of the other nodes
    background: tuple[Background, ...] = ()
    gauges: Callable[[], tuple[Figure, ...]] = tuple  # of the background work
    works: tuple[Work, ...] = ()  # kinds of work that the owner may control
    on_damage: Callable[[ObjectId], None] = lambda _object: None  # called with damaged objects
    room: Room = field(default_factory=Room)  # decides which writes are taken
    own_clock: OwnClock = field(default_factory=lambda: OwnClock(0))
    ahead: Callable[[], tuple[ObjectId, ...]] = tuple  # objects whose times are in the future
    recall: Callable[[StorageView], None] = lambda _view: None  # loads facts before any step
    # Called with each later description of the cluster that the node has seen.
    described: Callable[[ClusterDescription], None] = lambda _description: None


@dataclass(frozen=True, slots=True)
class Protocols:
    """The protocols of a node. Tests replace the servers by others, which lie."""

    services: Callable[
        [ClusterDescription, Identity, NodeId, NodeConfiguration, Recovery], Services
    ]
    decode_request: Callable[[bytes], Any]
    decode_reply: Callable[[bytes], Any]


class Guard:
    """Wraps a protocol's server: writes only what the node has room for, and survives most bugs.

    It serves clients and nodes; the administrator's key is for upkeep only (`nodes.control`).

    If a step raises an exception, nothing was changed: its request is refused, and the node goes
    on. But an AssertionError shows that the server's state is wrong: it stops the node, as a
    failing store does, and the cluster masks that. Errors about damaged rows are passed on to the
    dispatcher, which reports them to the healer.
    """

    __slots__ = ("_report", "_room", "_step")

    def __init__(
        self, server: Server, room: Room, report: Callable[[Any, Exception], None]
    ) -> None:
        self._step = server.step
        self._room = room
        self._report = report

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: Body,
        now_us: int,
    ) -> Ready:
        """Serve one message, or refuse it."""
        if sender.role is _ADMINISTRATOR:
            return Ready(Refused(errno.EACCES, "the administrator's key is for upkeep only"))
        try:
            ready = self._step(view, sender, message, body, now_us)
        except (AssertionError, DamagedRow, StepAgain, StoreFailed, StoreFull):
            raise
        except Exception as error:
            self._report(message, error)
            return Ready(Refused(errno.EIO, "a fault in the node, which has logged it"))
        if not ready.writes:
            return ready
        refusal = self._refusal(view, sender, message, ready)
        return ready if refusal is None else Ready(refusal)

    def _refusal(
        self, view: StorageView, sender: Sender, message: Any, ready: Ready
    ) -> Refused | None:
        client, writes, uses_reserve = sender.client, ready.writes, ready.uses_reserve
        room = self._room
        if type(message) is Update and not ready.wants:
            refusal = room.admits_update(view, client, writes, uses_reserve=uses_reserve)
            if refusal is not None:
                return refusal
        if not room.why_full:
            return None
        return room.admits(client, writes, uses_reserve=uses_reserve)


def run(directory: NodeDirectory, description_file: Path, protocols: Protocols) -> None:
    """Run the node whose directory this is, until SIGTERM or SIGINT.

    The node listens when its address can be connected to; its pid file is written before that.
    """
    signed = latest_description(description_file, directory.description)
    description = signed.description
    identity = read_identity(directory.key)
    node = _number_of(identity, description, directory)
    configuration = NodeConfiguration.load(
        directory.configuration,
        durability=description.durability,
        metrics=f"unix:{directory.metrics.absolute()}",
    )
    configure_log(configuration.log_level, node=node)
    _allow_descriptors()
    keep_freed_memory(FREED_BYTES_KEPT)
    recovery = resumed(directory, alone=description.n == 1)
    with contextlib.ExitStack() as stack:
        store = Store.open(
            directory.store,
            cluster=description.cluster_id,
            node=node,
            durability=configuration.durability,
            capacity_bytes=configuration.capacity_bytes,
        )
        recovery.place = place_of(directory.store)
        note_unsynced(directory, configuration.durability)
        stack.callback(_close, store, directory)
        tally = LoopTally()
        links = stack.enter_context(
            Links(
                description,
                identity,
                decode=protocols.decode_reply,
                persistent=False,
                report=_report_peer,
            )
        )
        services = protocols.services(description, identity, node, configuration, recovery)
        with store.batch() as batch:
            services.recall(batch)
        room = services.room
        room.attach(store.space.measure)
        membership = LiveMembership(description_file, directory.description, signed)
        room.share_of = membership.share_of
        comparison = Comparison(node, description, services.peers, membership)
        health = Health(
            disk_bytes=store.disk_bytes,
            links=links,
            room=room,
            tally=tally,
            recovery=recovery,
            membership=membership,
            own_clock=services.own_clock,
            gauges=services.gauges,
            ahead=services.ahead,
        )

        def report(message: Any, error: Exception) -> None:
            tally.faults += 1
            PROCESS_LOG.error("request failed", message=type(message).__name__, error=error)

        servers = {kind: Guard(server, room, report) for kind, server in services.servers.items()}
        _note_pid(directory.pid)
        stack.callback(directory.pid.unlink, missing_ok=True)
        collector = NodeCollector(tally, health.reply, services.gauges)
        upkeep = Upkeep(services.works, MetricsText(collector))
        upkeep.usage = partial(usage_page, description.volume)
        exposition: Exposition | None = None
        if configuration.metrics is not None:
            exposition = Exposition(
                listen(configuration.metrics), collector, is_whole=lambda: recovery.is_whole
            )
            stack.callback(forget, configuration.metrics)
            stack.callback(exposition.server_close)
        control = Control(directory.control, upkeep)
        stack.callback(control.close)
        address = description.member(node).address
        listener = stack.enter_context(listen(address))
        stack.callback(forget, address)
        connections = Connections(
            listener=listener,
            new_channel=lambda entropy: ServerChannel[Sender](
                identity=identity,
                node=node,
                cluster_id=description.cluster_id,
                view=description.view,
                principal=membership.principal,
                entropy=entropy,
            ),
            membership=membership,
            tally=tally,
        )

        def reconsider() -> None:
            connections.reconsider()
            services.described(membership.latest)

        membership.on_change = reconsider
        upkeep.clients = connections.uses
        batches = Batches(
            connections=connections,
            decode=protocols.decode_request,
            dispatcher=Dispatcher(
                servers={
                    **servers,
                    HealthRequest: health,
                    UpkeepRequest: upkeep,
                    **dict.fromkeys(
                        (Announcement, DescriptionRequest, EpochRequest),
                        MembershipServer(membership),
                    ),
                },
                engine=links.engine,
                background=(*services.background, comparison),
                on_damage=services.on_damage,
                is_full=lambda: room.full,
                admits=membership.admits,
            ),
            store=store,
            room=room,
            tally=tally,
        )
        loop = Loop(batches, links)
        stack.callback(loop.close)
        control.serve(loop.call)
        if exposition is not None:
            exposition.start(loop.call)
        loop.stop_on_signals()
        PROCESS_LOG.info(
            "ready",
            address=address,
            metrics=configuration.metrics,
            durability=configuration.durability.value,
            store_bytes=store.disk_bytes(),
        )
        if recovery.rebuilding:
            PROCESS_LOG.warning("rebuilding", reason=REBUILDING)
        collect_rarely()
        supervisor.tell(supervisor.READY)
        loop.run()
        supervisor.tell(supervisor.STOPPING)
        _lay_down(store, recovery)
        PROCESS_LOG.info("stopped", requests=sum(tally.requests.values()), commits=tally.commits)


def _report_peer(peer: NodeId, why: str) -> None:
    if why:
        PROCESS_LOG.warning("peer lost", peer=peer, reason=why)
    else:
        PROCESS_LOG.info("peer found", peer=peer)


def _lay_down(store: Store, recovery: Recovery) -> None:
    """Note that nothing is accepted any more: from now on a copy of the store has all there is."""
    with contextlib.suppress(StoreFull, StepAgain), store.batch() as batch:
        batch.apply(laid_down(batch, recovery.place))
        batch.commit()


def _close(store: Store, directory: NodeDirectory) -> None:
    if store.close():
        note_synced(directory)


def _note_pid(path: Path) -> None:
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise UsageError(f"{as_word(path)}: it cannot be written ({error.strerror})") from None


def _number_of(
    identity: Identity, description: ClusterDescription, directory: NodeDirectory
) -> NodeId:
    sender = description.principal(identity.public_key)
    if sender is None or sender.node is None:
        raise UsageError(
            f"{as_word(directory.key)} is not the key of any node in the cluster description; "
            "give the node the directory that was made with this cluster"
        )
    return sender.node


def _allow_descriptors() -> None:
    """Allow as many connections as the limits name, if the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + DESCRIPTORS_BESIDE_CONNECTIONS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def refuse_optimised_python() -> None:
    """Refuse to run without assertions: they stop a node whose state is wrong."""
    if sys.flags.optimize:
        raise UsageError("a node does not run under `python -O`; start it without -O")


_STANDARD_ERROR = 2


def configure_log(level: str, *, node: NodeId) -> None:
    """Log from now on, at `level` and above, as node `node`.

    A signal that ends the process is logged as well: SIGBUS ends it if somebody truncates a file
    that is mapped into memory.
    """
    faulthandler.enable(_STANDARD_ERROR)
    PROCESS_LOG.configure(level, node=node)
