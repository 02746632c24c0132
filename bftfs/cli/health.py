"""Each node's report on itself, for `bftfs status` and `bftfs inspect`."""

from __future__ import annotations

from contextlib import suppress

from bftfs.asking.ask import Calls
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.cluster import ClusterDescription
from bftfs.conversation import Now, Send
from bftfs.envelope import HealthReply, HealthRequest
from bftfs.errors import QuorumUnavailable
from bftfs.identifiers import NodeId
from bftfs.limits import SECOND_US

PATIENCE_US = 2 * SECOND_US


async def health_reports(description: ClusterDescription) -> dict[NodeId, HealthReply]:
    """The reports of those nodes that answer in time. They are claims: a node may lie."""
    peers = Peers(ThresholdQuorums(description.query_update))
    calls: Calls[None] = Calls(
        peers,
        peers.metadata,
        subject="health",
        required=description.n,
        patience_total_us=PATIENCE_US,
        now_us=await Now(),
    )
    for member in description.members:
        calls.sent(await Send(member.node, HealthRequest()), member.node, None)
    replies: dict[NodeId, object] = {}
    with suppress(QuorumUnavailable):
        while len(replies) < description.n:
            answer = await calls.reply()
            if answer is not None:
                replies[answer[0].node] = answer[0].message
    return {node: reply for node, reply in replies.items() if isinstance(reply, HealthReply)}
