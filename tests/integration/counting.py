"""The smallest protocol that a node can host: counters, each in one row of the store.

Stands in for the real protocols where a test is about the node and not about them.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.asking.refusal import Refused
from bftfs.cluster import ClusterDescription
from bftfs.conversation import Conversation, Receive, Send
from bftfs.crypto.digest import Body
from bftfs.envelope import (
    Announcement,
    DescriptionReply,
    DescriptionRequest,
    HealthReply,
    HealthRequest,
    UpkeepReply,
)
from bftfs.identifiers import NodeId
from bftfs.server.step import Ready, Sender, Want
from bftfs.storage import StorageView, Table, Write
from bftfs.wire.codec import Decoder, Message
from nodes.node import Protocols, Services

NameField = Annotated[bytes, Meta(min_length=1, max_length=64)]


class Increment(Message, tag=0x70):
    """Add `by` to a counter; `ballast` makes the request longer. The body is kept with it."""

    counter: NameField
    by: int
    ballast: bytes = b""


class Fetch(Message, tag=0x71):
    """The value of a counter; with its body, if `whole`."""

    counter: NameField
    whole: bool = False


class Adopt(Message, tag=0x72):
    """The value of a counter, which the node takes from a peer if it has none."""

    counter: NameField
    peer: int


class Counted(Message, tag=0x7F):
    """The value of a counter after a request."""

    value: int


Request = Increment | Fetch | Adopt | HealthRequest | Announcement | DescriptionRequest
Reply = Counted | Refused | HealthReply | UpkeepReply | DescriptionReply

REQUESTS = Decoder[Request](Request)
REPLIES = Decoder[Reply](Reply)


class CountingServer:
    """Counters in the table of states."""

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: Body,
        now_us: int,
    ) -> Ready:
        """Serve one message."""
        stored = view.get(Table.STATE, message.counter)
        value = 0 if stored is None else int.from_bytes(stored, "big")
        match message:
            case Increment(counter, by, ballast):
                writes = [Write(Table.STATE, counter, (value + by).to_bytes(8, "big"))]
                if ballast:
                    writes.append(Write(Table.REQUEST, counter + b"%20d" % value, ballast))
                if body:
                    writes.append(Write(Table.FRAGMENT, counter, body))
                return Ready(Counted(value + by), writes=writes)
            case Fetch(counter, whole):
                kept = (view.get(Table.FRAGMENT, counter) or b"") if whole else b""
                return Ready(Counted(value), kept)
            case Adopt(counter, peer):
                if stored is None:
                    return Ready(wants=(Want(counter, lambda _: adopt(counter, NodeId(peer))),))
                return Ready(Counted(value))
            case _:
                raise TypeError(message)


async def adopt(counter: bytes, peer: NodeId) -> Conversation[list[Write] | None]:
    """Another node's counter, as writes."""
    await Send(peer, Fetch(counter))
    delivery = await Receive(patience_us=2_000_000)
    if delivery is None or not isinstance(delivery.message, Counted):
        return None
    return [Write(Table.STATE, counter, delivery.message.value.to_bytes(8, "big"))]


def services(description: ClusterDescription, *_: Any) -> Services:
    """What a node does that only counts."""
    server = CountingServer()
    peers = Peers(ThresholdQuorums(description.query_update))
    return Services({Increment: server, Fetch: server, Adopt: server}, peers)


PROTOCOLS = Protocols(services, REQUESTS.decode, REPLIES.decode)


async def ask(node: NodeId, message: Request, body: bytes = b"") -> Conversation[Any]:
    """One request to one node; its reply and body."""
    await Send(node, message, body)
    delivery = await Receive(patience_us=10_000_000)
    assert delivery is not None, f"node {node} is silent"
    return delivery.message, delivery.body


async def ask_all(
    nodes: int, message: Request, required: int, body: bytes = b""
) -> Conversation[int]:
    """One request to each of `nodes` nodes; how many of the first `required` counted."""
    for node in range(nodes):
        await Send(NodeId(node), message, body)
    counted = 0
    for _ in range(required):
        delivery = await Receive(patience_us=5_000_000)
        if delivery is None:
            break
        counted += isinstance(delivery.message, Counted)
    return counted
