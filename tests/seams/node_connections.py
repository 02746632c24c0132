"""A node's connections and channels, on sockets of one process, for the tests of this directory."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from bftfs import cluster
from bftfs.cluster import ClientEntry
from bftfs.crypto.keys import Identity
from bftfs.identifiers import NodeId
from bftfs.runtime.sockets import listen
from bftfs.server.step import Sender
from bftfs.wire.channel import ClientChannel, ServerChannel
from nodes.connections import Connections
from nodes.metrics import LoopTally

LAPTOP, PHONE = (Identity.generate(bytes([number]) * 32) for number in (101, 102))
NEW = cluster.create([f"unix:/nonexistent/{node}" for node in range(6)], t=1, b=1, draw=os.urandom)
FLOCK = [Identity.generate(bytes([number]) * 32) for number in range(103, 111)]
NAMED = {"laptop": LAPTOP, "phone": PHONE} | {f"sheep{at}": key for at, key in enumerate(FLOCK)}
DESCRIPTION = replace(
    NEW.description,
    clients=tuple(ClientEntry(name, key.public_key) for name, key in NAMED.items()),
)


class Peer:
    """A socket, and a client's end of a channel."""

    def __init__(self, path: str, identity: Identity) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.channel = ClientChannel(
            identity=identity,
            node=NodeId(0),
            node_public_key=DESCRIPTION.members[0].public_key,
            cluster_id=DESCRIPTION.cluster_id,
            view=DESCRIPTION.view,
            entropy=os.urandom(32),
        )

    def heard(self) -> bytes | None:
        """What the node has sent; None if it has closed the connection."""
        try:
            return self.socket.recv(4096) or None
        except BlockingIOError:
            return b""
        except ConnectionResetError:
            return None


class Node:
    """A node's connections, and who has connected."""

    def __init__(self, path: Path) -> None:
        self._path = f"{path}/socket"
        self._listener = listen(f"unix:{self._path}")
        self._peers: list[Peer] = []
        membership: Any = None  # it is asked when requests are served
        self.tally = LoopTally()
        self.connections = Connections(
            listener=self._listener,
            new_channel=lambda entropy: ServerChannel[Sender](
                identity=NEW.nodes[0],
                node=NodeId(0),
                cluster_id=DESCRIPTION.cluster_id,
                view=DESCRIPTION.view,
                principal=DESCRIPTION.principal,
                entropy=entropy,
            ),
            membership=membership,
            tally=self.tally,
        )

    def dial(self, identity: Identity = LAPTOP) -> Peer:
        """A connection that the node has not accepted yet."""
        peer = Peer(self._path, identity)
        self._peers.append(peer)
        return peer

    def peer(self, identity: Identity = LAPTOP) -> Peer:
        """A connection that has said nothing yet."""
        peer = self.dial(identity)
        self.connections.begin_turn()
        self.connections.accept()
        return peer

    def replay(self, greeting: bytes) -> Peer:
        """A connection of the network's that sends what it has recorded."""
        peer = self.peer()
        peer.socket.sendall(greeting)
        self.turn()
        return peer

    def greet(self, identity: Identity = LAPTOP) -> Peer:
        """A connection of somebody who holds the key."""
        peer = self.peer(identity)
        peer.socket.sendall(peer.channel.opening())
        self.turn()
        self.prove(peer)
        return peer

    def prove(self, peer: Peer) -> None:
        """The peer hears the answer to its greeting, if any, and shows that it has the key."""
        peer.channel.receive(peer.heard() or b"")
        if peer.channel.established:
            with contextlib.suppress(BrokenPipeError):
                peer.socket.sendall(b"".join(peer.channel.confirmation()))
            self.turn()

    def turn(self) -> None:
        """The node reads what all have sent."""
        for connection in tuple(self.connections.by_descriptor.values()):
            self.connections.begin_turn()
            self.connections.receive(connection)

    def close(self) -> None:
        """End all connections."""
        self.connections.close_all()
        self._listener.close()
        for peer in self._peers:
            peer.socket.close()
