"""A Byzantine client of real nodes, which has the keys of the nodes that it is in league with."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Mapping
from typing import Any, Self

from bftfs.cluster import ClientEntry
from bftfs.credentials import Grant
from bftfs.crypto.cipher import NONCE_BYTES, BlockCipher
from bftfs.crypto.digest import AuthenticatorKeys, client_id_of
from bftfs.crypto.keys import Identity, read_identity, read_volume_key, write_identity
from bftfs.envelope import REPLIES
from bftfs.identifiers import BlockId, NodeId
from bftfs.limits import SECOND_US
from bftfs.runtime.blocking import BlockingNetwork
from bftfs.simulation.deployment import Sizes
from tests.integration.deployment import Deployment
from tests.seams.world import FreeHand, Version


def admit(deployment: Deployment, name: str, grant: Grant) -> None:
    """Give a client a key and a grant, before the nodes are started."""
    identity = Identity(os.urandom(32))
    entry = ClientEntry(name, identity.public_key, grant)
    deployment.describe(deployment.description.with_client(entry))
    path = deployment.directory.client_key(name)
    path.parent.mkdir(exist_ok=True)
    write_identity(path, identity)


class ProcessHand(FreeHand):
    """One that this process is."""

    def __init__(self, deployment: Deployment, name: str, allies: tuple[int, ...] = ()) -> None:
        self._deployment = deployment
        identity = read_identity(deployment.directory.client_key(name))
        description = deployment.description
        self.network = BlockingNetwork(description, identity, decode=REPLIES.decode)
        super().__init__(
            client_id_of(public_key=identity.public_key),
            Sizes(description.query_update, description.read_write),
            allies,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.network.close()

    def perform(self, conversation: Coroutine[Any, Any, Any]) -> Any:
        return self.network.perform(conversation)

    def ask(
        self, requests: Mapping[int, tuple[Any, bytes]], *, patience_us: int = 3 * SECOND_US
    ) -> dict[int, Any]:
        """As above; processes may be slow."""
        return super().ask(requests, patience_us=patience_us)

    def keys(self, ally: int) -> AuthenticatorKeys:
        identity = self._deployment.identities[ally]
        return self._deployment.description.authenticator_keys(identity, NodeId(ally))

    def version(self, block: BlockId, contents: str, time_us: int) -> Version:
        """One that a mount shows as these contents."""
        cipher = BlockCipher(read_volume_key(self._deployment.directory.volume_key))
        item = cipher.seal(block, contents.encode(), nonce=os.urandom(NONCE_BYTES))
        return Version(self, block, item, time_us)
