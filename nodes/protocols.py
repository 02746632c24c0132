"""The protocols that a storage node speaks, put together."""

from __future__ import annotations

from typing import get_args

from bftfs.cluster import ClusterDescription
from bftfs.crypto.keys import Identity
from bftfs.envelope import REPLIES, REQUESTS
from bftfs.filesystem import object_types
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import Request as QueryUpdateRequest
from bftfs.query_update.server import QueryUpdateServer
from bftfs.quorum import ThresholdQuorums
from bftfs.read_write.messages import Request as ReadWriteRequest
from bftfs.read_write.server import ReadWriteServer
from nodes.authority import InodeAuthority
from nodes.configuration import NodeConfiguration
from nodes.node import Protocols, Servers
from nodes.quota import ClientQuota


def honest_servers(
    description: ClusterDescription,
    identity: Identity,
    node: NodeId,
    configuration: NodeConfiguration,
) -> Servers:
    """The servers of a correct node, by the messages that they serve."""
    keys = description.authenticator_keys(identity, node)
    query_update = QueryUpdateServer(
        node, ThresholdQuorums(description.query_update), keys, object_types()
    )
    read_write = ReadWriteServer(
        node,
        description.read_write,
        keys,
        authority=InodeAuthority(),
        quota=ClientQuota(configuration.client_bytes),
    )
    return {
        **dict.fromkeys(get_args(QueryUpdateRequest), query_update),
        **dict.fromkeys(get_args(ReadWriteRequest), read_write),
    }


HONEST = Protocols(honest_servers, REQUESTS.decode, REPLIES.decode)
