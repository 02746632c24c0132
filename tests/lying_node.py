"""A node process that lies, for tests and measurements only: it is no part of what is installed.

    python -m tests.lying_node ADVERSARY[,ADVERSARY…] --data DIR/nodes/I --cluster DIR/cluster.toml

takes the place of `python -m nodes …`. The adversaries are those of `bftfs.simulation.byzantine`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from bftfs.cluster import ClusterDescription
from bftfs.crypto.keys import Identity
from bftfs.identifiers import NodeId
from bftfs.server.recovery import Recovery
from bftfs.simulation.byzantine.positions import NodePosition
from bftfs.simulation.byzantine.registry import NODES, corrupted
from bftfs.simulation.deployment import Sizes
from nodes.__main__ import main
from nodes.configuration import NodeConfiguration
from nodes.node import Protocols, Services
from nodes.protocols import HONEST, honest_services


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
        position = NodePosition(
            node,
            honest.servers,
            description.authenticator_keys(identity, node),
            Sizes(description.query_update, description.read_write),
            Random(node),
        )
        return replace(honest, servers=corrupted(position, adversaries))

    return replace(HONEST, services=services)


if __name__ == "__main__":
    names = sys.argv[1].split(",") if len(sys.argv) > 1 else []
    if not names or not set(names) <= set(NODES):
        sys.exit(f"name adversaries, separated by commas: {', '.join(NODES)}")
    sys.exit(main(sys.argv[2:], protocols=lying(names)))
