"""The key epochs of a simulated cluster: what the administrator signs, and when nodes hear of it.

Every principal has a key here, and clients seal the contents of files. A revocation begins an
epoch. Each node tells the description that it goes by. (`bftfs.key_epochs`, decision 31)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from bftfs import cluster, description_files
from bftfs.cluster import ClientEntry
from bftfs.crypto.cipher import BlockCipher
from bftfs.crypto.digest import Body
from bftfs.crypto.keys import VOLUME_KEY_BYTES, Identity
from bftfs.envelope import DescriptionReply, EpochReply, EpochRequest
from bftfs.identifiers import NodeId
from bftfs.key_epochs import epoch_keys_in, with_new_epoch
from bftfs.server.step import Ready, Sender
from bftfs.storage import StorageView
from bftfs.thresholds import QueryUpdateThresholds


class KeyEpochs:
    """The signed descriptions of one run, the latest last, and the keys of its clients."""

    def __init__(
        self,
        names: Iterable[str],
        thresholds: QueryUpdateThresholds,
        *,
        correct: Iterable[NodeId],
        draw: Callable[[int], bytes],
        now: Callable[[], float],
    ) -> None:
        """`names` are those of all clients that there will be; `correct` are the correct nodes."""
        self._draw = draw
        self._now = now
        self._needed = thresholds.n - thresholds.t
        self.volume_key = draw(VOLUME_KEY_BYTES)
        addresses = [f"tcp:10.0.0.{node}:7000" for node in range(thresholds.n)]
        made = cluster.create(addresses, t=thresholds.t, b=thresholds.b, draw=draw)
        self._administrator = made.administrator
        described = made.description
        for name in names:
            described = described.with_client(ClientEntry(_word(name), identity(name).public_key))
        self.signed = [description_files.signed(described, self._administrator)]
        self.revoked: dict[str, int] = {}  # clients, and the place in `signed` that revokes each
        # By place in `signed`: when n - t correct nodes had it or a later one.
        self.reached: list[float] = []
        self._heard = dict.fromkeys(correct, -1)

    def revoke(self, name: str) -> None:
        """The administrator signs a description without this client, in a new epoch."""
        described = with_new_epoch(
            self.signed[-1].description.without_client(_word(name), at_s=0),
            self._administrator,
            volume_key=self.volume_key,
            at_s=0,
            draw=self._draw,
        )
        self.revoked[name] = len(self.signed)
        self.signed.append(description_files.signed(described, self._administrator))

    def heard(self, node: NodeId, place: int) -> None:
        """A node goes by the description in this place of `signed`."""
        if node not in self._heard:
            return
        self._heard[node] = place
        reached = sorted(self._heard.values())[-self._needed]
        self.reached += [self._now()] * (reached + 1 - len(self.reached))

    def cipher_of(self, name: str) -> BlockCipher:
        """All keys that a client can have: it has its own, and comes by every description."""
        cipher = BlockCipher(self.volume_key)
        for each in self.signed:
            for epoch, key in epoch_keys_in(each.description, identity(name)).items():
                cipher.learn(epoch, key)
        return cipher


class DescriptionServer:
    """Tells clients the description that a node goes by. [nodes.membership]"""

    def __init__(self, key_epochs: KeyEpochs, place: Callable[[], int]) -> None:
        """`place()` is that of the node's description in `KeyEpochs.signed`."""
        self._key_epochs = key_epochs
        self._place = place

    def step(
        self, view: StorageView, sender: Sender, message: Any, body: Body, now_us: int
    ) -> Ready:
        """Serve an `EpochRequest` or a `DescriptionRequest`."""
        del view, sender, body, now_us
        shown = self._key_epochs.signed[self._place()]
        if type(message) is EpochRequest:
            return Ready(EpochReply(shown.description.epoch))
        return Ready(DescriptionReply(shown.encoded, shown.signature))


def identity(name: str) -> Identity:
    """The keys of a simulated client."""
    return Identity.generate(hashlib.blake2b(name.encode(), digest_size=32).digest())


def _word(name: str) -> str:
    """A client's name as descriptions may have it."""
    return name.replace(" ", "-")
