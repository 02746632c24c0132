"""The descriptions of a cluster that its administrator signs, and the one that each node goes by.

Only what they say of clients: which there are, and what each may do. A node takes over a
description whose serial is higher than that of its own, from whatever sender, and serves only
clients that it lists. [docs/threat-model.md, G4; nodes/membership.py]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from bftfs.identifiers import NodeId
from bftfs.server.step import Sender
from bftfs.simulation.key_epochs import KeyEpochs
from bftfs.simulation.network import Endpoint


class ClientLists:
    """All descriptions so far; the latest is the last one."""

    def __init__(
        self,
        senders: Mapping[Endpoint, Sender],
        nodes: Iterable[NodeId],
        key_epochs: KeyEpochs | None = None,
    ) -> None:
        """The first one lists all `senders`, also those that are added to them later."""
        self._senders = senders
        self._revoked: list[frozenset[Endpoint]] = [frozenset()]  # by serial
        self._serials = dict.fromkeys(nodes, 0)
        self._key_epochs = key_epochs
        for node in self._serials:
            self.offer(node, 0)

    @property
    def latest(self) -> int:
        """The serial of the latest one."""
        return len(self._revoked) - 1

    def revoke(self, client: Endpoint, name: str) -> int:
        """A description without this client: its serial. No node has heard of it."""
        self._revoked.append(self._revoked[-1] | {client})
        if self._key_epochs is not None:
            self._key_epochs.revoke(name)
        return self.latest

    def offer(self, node: NodeId, serial: int) -> None:
        """Somebody brings a node a description, which may be old."""
        self._serials[node] = max(self._serials[node], serial)
        if self._key_epochs is not None:
            self._key_epochs.heard(node, self._serials[node])

    def serial(self, node: NodeId) -> int:
        """The serial of the description that a node goes by."""
        return self._serials[node]

    def admits(self, node: NodeId, sender: Endpoint) -> bool:
        """True if the node's description lists the sender."""
        return sender not in self._revoked[self._serials[node]]

    def at(self, node: NodeId) -> Mapping[Endpoint, Sender]:
        """The principals that a node serves."""
        return _ListedSenders(self, node, self._senders)


class _ListedSenders(Mapping[Endpoint, Sender]):
    """The senders that the description of one node lists."""

    def __init__(
        self, descriptions: ClientLists, node: NodeId, senders: Mapping[Endpoint, Sender]
    ) -> None:
        self._descriptions = descriptions
        self._node = node
        self._senders = senders

    def __getitem__(self, endpoint: Endpoint) -> Sender:
        sender = self._senders[endpoint]
        if not self._descriptions.admits(self._node, endpoint):
            raise KeyError(endpoint)
        return sender

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._senders)

    def __len__(self) -> int:
        return len(self._senders)
