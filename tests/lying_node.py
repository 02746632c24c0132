"""A node process that lies, for tests and measurements only: it is no part of what is installed.

    python -m tests.lying_node ADVERSARY[,ADVERSARY…] --data DIR/nodes/I --cluster DIR/cluster.toml

takes the place of `python -m nodes …`. The adversaries are those of `bftfs.simulation.byzantine`:
what answers falsely, and what repairs the root directory for no reason, as a node may by itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from bftfs.cluster import ClusterDescription
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import Identity
from bftfs.identifiers import NodeId, ObjectId
from bftfs.server.recovery import Recovery
from bftfs.simulation.byzantine.initiative import Initiative
from bftfs.simulation.byzantine.positions import ClientPosition, NodePosition
from bftfs.simulation.byzantine.registry import INITIATIVES, NODES, corrupted
from bftfs.simulation.deployment import Sizes
from nodes.__main__ import main
from nodes.configuration import NodeConfiguration
from nodes.node import Protocols, Services
from nodes.protocols import HONEST, honest_services

STARTED = INITIATIVES["objects"]  # by the node itself
PAUSE_US = 4_000  # between two acts
ACTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Targets:
    """What it attacks of its own accord."""

    objects: tuple[ObjectId, ...]


def lying(adversaries: Sequence[str]) -> Protocols:
    """The protocols as a node speaks them that these adversaries have taken over."""

    def services(
        description: ClusterDescription,
        identity: Identity,
        node: NodeId,
        configuration: NodeConfiguration,
        recovery: Recovery,
    ) -> Services:
        honest = honest_services(description, identity, node, configuration, recovery)
        sizes = Sizes(description.query_update, description.read_write)
        keys = description.authenticator_keys(identity, node)
        position = NodePosition(node, honest.servers, keys, sizes, Random(node))
        itself = ClientPosition(
            f"node {node}",
            client_id_of(public_key=identity.public_key),
            sizes,
            position.random,
            Targets((description.root,)),
            time.time,
            (position,),
        )
        started = [
            Initiative(STARTED[name](itself), every_us=PAUSE_US, acts=ACTS)
            for name in adversaries
            if name in STARTED
        ]
        heads = [name for name in adversaries if name in NODES]
        return replace(
            honest,
            servers=corrupted(position, heads) if heads else honest.servers,
            background=(*honest.background, *started),
        )

    return replace(HONEST, services=services)


if __name__ == "__main__":
    names = sys.argv[1].split(",") if len(sys.argv) > 1 else []
    known = (*NODES, *STARTED)
    if not names or not set(names) <= set(known):
        sys.exit(f"name adversaries, separated by commas: {', '.join(known)}")
    sys.exit(main(sys.argv[2:], protocols=lying(names)))
