"""The protocols that a storage node speaks, put together."""

from __future__ import annotations

from typing import get_args

from bftfs.cluster import ClusterDescription
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import Identity
from bftfs.envelope import REPLIES, REQUESTS
from bftfs.filesystem import object_types
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import Request as QueryUpdateRequest
from bftfs.query_update.server import QueryUpdateServer
from bftfs.quorum import ThresholdQuorums
from bftfs.read_write.lazy_verifier import LazyVerifier
from bftfs.read_write.messages import Notice
from bftfs.read_write.messages import Request as ReadWriteRequest
from bftfs.read_write.server import ReadWriteServer
from nodes.authority import InodeAuthority
from nodes.configuration import NodeConfiguration
from nodes.metrics import Gauge
from nodes.node import Protocols, Services
from nodes.quota import ClientQuota


def honest_services(
    description: ClusterDescription,
    identity: Identity,
    node: NodeId,
    configuration: NodeConfiguration,
) -> Services:
    """What a correct node does."""
    keys = description.authenticator_keys(identity, node)
    query_update = QueryUpdateServer(
        node, ThresholdQuorums(description.query_update), keys, object_types()
    )
    verifier = LazyVerifier(
        node,
        description.read_write,
        client_id_of(public_key=identity.public_key),
        configuration.verification,
    )
    read_write = ReadWriteServer(
        node,
        description.read_write,
        keys,
        authority=InodeAuthority(),
        quota=ClientQuota(configuration.client_bytes),
        watch=verifier,
    )
    return Services(
        {
            **dict.fromkeys(get_args(QueryUpdateRequest), query_update),
            **dict.fromkeys(get_args(ReadWriteRequest), read_write),
            Notice: verifier,
        },
        (verifier,),
        lambda: _gauges(verifier),
    )


def _gauges(verifier: LazyVerifier) -> tuple[Gauge, ...]:
    backlog, tally = verifier.backlog, verifier.tally
    return (
        Gauge("bftfs_possible_versions", "Versions of blocks not verified yet.", backlog.total),
        Gauge("bftfs_possible_blocks", "Blocks that have such versions.", backlog.blocks),
        Gauge("bftfs_verified_blocks", "Verifications of blocks by this node.", tally.verified),
        Gauge("bftfs_convinced_blocks", "Verifications taken from notices.", tally.convinced),
        Gauge("bftfs_settled_versions", "Versions that are possible no more.", tally.settled),
        Gauge("bftfs_poisonous_versions", "Versions found poisonous.", tally.poisonous),
        Gauge("bftfs_verifications_failed", "Those that settled nothing.", tally.failed),
        Gauge("bftfs_notices", "Notices sent to other nodes.", tally.notices),
        Gauge("bftfs_verification_demands", "Writes that had to wait for it.", tally.demands),
    )


HONEST = Protocols(honest_services, REQUESTS.decode, REPLIES.decode)
