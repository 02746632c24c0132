"""One storage node: store, servers, dispatcher, connections, started and stopped together."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from bftfs import cluster
from bftfs.cluster import ClusterDescription
from bftfs.crypto.keys import Identity, read_identity
from bftfs.data_directory import NodeDirectory
from bftfs.envelope import HealthRequest
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId, ObjectId
from bftfs.limits import CONNECTIONS, MIB
from bftfs.runtime.links import Links
from bftfs.runtime.memory import collect_rarely, keep_freed_memory
from bftfs.runtime.sockets import forget, listen
from bftfs.server.dispatcher import Dispatcher
from bftfs.server.recovery import Recovery
from bftfs.server.room import Room
from bftfs.server.step import Background, Sender, Server
from bftfs.server.tally import Figure
from bftfs.wire.channel import ServerChannel
from nodes import log
from nodes.configuration import NodeConfiguration
from nodes.control import Control, Work
from nodes.guard import Guard
from nodes.health import REBUILDING, Health
from nodes.loop import Loop
from nodes.lost_store import resumed
from nodes.membership import LiveMembership
from nodes.metrics import Exposition, Tally
from nodes.store import Store

FREED_BYTES_KEPT = 16 * MIB  # a batch of blocks
DESCRIPTORS_BESIDE_CONNECTIONS = 256  # store, peers, metrics

Servers = Mapping[type, Server]


@dataclass(frozen=True, slots=True)
class Services:
    """The servers of a node, by message class, and its background work."""

    servers: Servers
    background: tuple[Background, ...] = ()
    gauges: Callable[[], tuple[Figure, ...]] = tuple  # of the background work
    works: tuple[Work, ...] = ()  # that the owner may control
    on_damage: Callable[[ObjectId], None] = lambda _object: None  # is told of objects to be mended
    room: Room = field(default_factory=Room)  # decides which writes are taken


@dataclass(frozen=True, slots=True)
class Protocols:
    """The protocols of a node. Tests put other servers in the place of the honest ones."""

    services: Callable[
        [ClusterDescription, Identity, NodeId, NodeConfiguration, Recovery], Services
    ]
    decode_request: Callable[[bytes], Any]
    decode_reply: Callable[[bytes], Any]


def run(directory: NodeDirectory, description_file: Path, protocols: Protocols) -> None:
    """Run the node whose directory this is, until SIGTERM or SIGINT.

    The node listens when its address can be connected to; its pid file is written before that.
    """
    description = cluster.load(description_file)
    identity = read_identity(directory.key)
    node = _number_of(identity, description, directory)
    configuration = NodeConfiguration.load(
        directory.configuration,
        durability=description.durability,
        metrics=f"unix:{directory.metrics.absolute()}",
    )
    log.configure(configuration.log_level, node=node)
    logger = structlog.get_logger()
    _allow_descriptors()
    keep_freed_memory(FREED_BYTES_KEPT)
    recovery = resumed(directory)
    with contextlib.ExitStack() as stack:
        store = Store.open(
            directory.store,
            cluster=description.cluster_id,
            node=node,
            durability=configuration.durability,
            capacity_bytes=configuration.capacity_bytes,
        )
        stack.callback(store.close)
        tally = Tally()
        links = stack.enter_context(
            Links(description, identity, decode=protocols.decode_reply, persistent=False)
        )
        services = protocols.services(description, identity, node, configuration, recovery)
        room = services.room
        room.attach(store.space.measure)
        health = Health(
            space=store.space,
            links=links,
            room=room,
            tally=tally,
            recovery=recovery,
            gauges=services.gauges,
        )

        def report(message: Any, error: Exception) -> None:
            tally.faults += 1
            logger.error("request failed", message=type(message).__name__, exc_info=error)

        servers = {kind: Guard(server, room, report) for kind, server in services.servers.items()}
        _note_pid(directory.pid)
        stack.callback(directory.pid.unlink, missing_ok=True)
        if configuration.metrics is not None:
            exposition = Exposition(
                listen(configuration.metrics), tally, health.reply, services.gauges
            )
            stack.callback(forget, configuration.metrics)
            stack.callback(exposition.server_close)
            exposition.start()
        control = Control(directory.control, services.works)
        stack.callback(control.close)
        address = description.member(node).address
        listener = stack.enter_context(listen(address))
        stack.callback(forget, address)
        membership = LiveMembership(description_file, description)
        loop = Loop(
            listener=listener,
            new_channel=lambda nonce: ServerChannel[Sender](
                identity=identity, node=node, cluster=membership, nonce=nonce
            ),
            membership=membership,
            decode=protocols.decode_request,
            dispatcher=Dispatcher(
                servers={**servers, HealthRequest: health},
                engine=links.engine,
                background=services.background,
                on_damage=services.on_damage,
                is_full=lambda: room.full,
            ),
            store=store,
            links=links,
            room=room,
            tally=tally,
        )
        stack.callback(loop.close)
        control.serve(loop.call)
        loop.stop_on_signals()
        logger.info(
            "ready",
            address=address,
            metrics=configuration.metrics,
            durability=configuration.durability.value,
            store_bytes=store.space.used_bytes,
        )
        if recovery.rebuilding:
            logger.warning("rebuilding", reason=REBUILDING)
        collect_rarely()
        loop.run()
        logger.info("stopped", requests=sum(tally.requests.values()), commits=tally.commits)


def _note_pid(path: Path) -> None:
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise UsageError(f"{path}: it cannot be written ({error.strerror})") from None


def _number_of(
    identity: Identity, description: ClusterDescription, directory: NodeDirectory
) -> NodeId:
    sender = description.principal(identity.public_key)
    if sender is None or sender.node is None:
        raise UsageError(
            f"{directory.key} is not the key of any node in the cluster description; "
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
    """Assertions are how a node notices that it is wrong, and stops: never run without them."""
    if sys.flags.optimize:
        raise UsageError("a node does not run under `python -O`; start it without -O")
