"""Two ends of a channel, joined in memory."""

from dataclasses import dataclass, field

from bftfs.crypto.keys import Identity
from bftfs.identifiers import NodeId
from bftfs.wire.channel import ClientChannel, ServerChannel

CLIENT = Identity.generate(b"c" * 32)
STRANGER = Identity.generate(b"s" * 32)
NODES = tuple(Identity.generate(bytes([node]) * 32) for node in range(3))


@dataclass(frozen=True)
class Members:
    """A cluster that knows principals by name."""

    cluster_id: bytes = b"0123456789abcdef"
    view: int = 1
    names: dict[bytes, str] = field(
        default_factory=lambda: {
            CLIENT.public_key: "client",
            **{node.public_key: f"node {number}" for number, node in enumerate(NODES)},
        }
    )

    def principal(self, public_key: bytes) -> str | None:
        return self.names.get(public_key)


def client_end(
    identity: Identity = CLIENT,
    *,
    node: int = 1,
    node_public_key: bytes = NODES[1].public_key,
    cluster_id: bytes = Members().cluster_id,
    view: int = 1,
    entropy: bytes = b"n" * 32,
) -> ClientChannel:
    return ClientChannel(
        identity=identity,
        node=NodeId(node),
        node_public_key=node_public_key,
        cluster_id=cluster_id,
        view=view,
        entropy=entropy,
    )


def server_end(
    identity: Identity = NODES[1], *, node: int = 1, entropy: bytes = b"m" * 32
) -> ServerChannel[str]:
    members = Members()
    return ServerChannel(
        identity=identity,
        node=NodeId(node),
        cluster_id=members.cluster_id,
        view=members.view,
        principal=members.principal,
        entropy=entropy,
    )


def established(
    client: ClientChannel | None = None, server: ServerChannel[str] | None = None
) -> tuple[ClientChannel, ServerChannel[str]]:
    """Two ends whose greetings and confirmation have passed."""
    client, server = greeted(client, server)
    assert server.receive(b"".join(map(bytes, client.confirmation()))) == []
    return client, server


def greeted(
    client: ClientChannel | None = None, server: ServerChannel[str] | None = None
) -> tuple[ClientChannel, ServerChannel[str]]:
    """Two ends that have greeted each other; the client has confirmed nothing yet."""
    client = client or client_end()
    server = server or server_end()
    assert server.receive(client.opening()) == []
    assert client.receive(server.pending_output()) == []
    assert client.established
    return client, server
