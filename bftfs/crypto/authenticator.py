"""Authenticators: one MAC per server over a digest of what a server reports. [Q/U §4.3.4]

Server s makes n MACs, the i-th with the key that it shares with server i, so that every server can
check that s really reported that replica history (or hosts that version of a block; the digest's
tag tells which). An authenticator is one value of 16·n bytes.

The key of a pair is the same in both directions; the MAC's input therefore begins with the number
of the server that makes it, and a server's MAC cannot be handed back to it as its peer's.
"""

from __future__ import annotations

import hashlib
import hmac

from bftfs.identifiers import NodeId

MAC_BYTES = 16


class AuthenticatorKeys:
    """The keys that server `node` shares with every server, itself included, by server number."""

    __slots__ = ("_from", "_mine", "_to", "node")

    def __init__(self, node: NodeId, keys: tuple[bytes, ...]) -> None:
        self.node = node
        self._to = tuple(_state(key, maker=node) for key in keys)
        self._from = tuple(_state(key, maker=maker) for maker, key in enumerate(keys))
        self._mine = slice(MAC_BYTES * node, MAC_BYTES * (node + 1))

    def make(self, digest: bytes) -> bytes:
        """This server's authenticator over `digest`."""
        macs = []
        for prepared in self._to:
            state = prepared.copy()
            state.update(digest)
            macs.append(state.digest())
        return b"".join(macs)

    def check(self, *, claimed_by: int, digest: bytes, authenticator: bytes) -> bool:
        """True if our MAC in server `claimed_by`'s `authenticator` over `digest` is valid.

        A Byzantine server may make MACs that are valid for some servers only: other servers may
        find theirs invalid.
        """
        if len(authenticator) != MAC_BYTES * len(self._from):
            return False
        if not 0 <= claimed_by < len(self._from):
            return False
        state = self._from[claimed_by].copy()
        state.update(digest)
        return hmac.compare_digest(state.digest(), authenticator[self._mine])

    def refuted(self, *, makers: bytes, digest: bytes, authenticators: bytes) -> int:
        """The servers among `makers` whose MACs for us are not valid, as a bit mask.

        Requires: `authenticators` are the makers' over `digest`, concatenated; makers are servers.
        """
        position, end = self._mine.start, self._mine.stop
        width = MAC_BYTES * len(self._from)
        states = self._from
        refuted = 0
        for maker in makers:
            state = states[maker].copy()
            state.update(digest)
            if not hmac.compare_digest(state.digest(), authenticators[position:end]):
                refuted |= 1 << maker
            position += width
            end += width
        return refuted


def _state(key: bytes, *, maker: int) -> hashlib.blake2b:
    """A keyed state that has taken in the maker's number; copying it spares both."""
    return hashlib.blake2b(
        maker.to_bytes(2, "big"), key=key, digest_size=MAC_BYTES, person=b"bftfs.entry"
    )
