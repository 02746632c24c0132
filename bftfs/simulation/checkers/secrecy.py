"""A revoked client opens nothing that was written once nodes knew of it, whatever it gathers.

It has all keys that it ever got, every description, and every data-item that correct clients have
sent to any node. [docs/decisions/0031-key-epochs.md]

Once the revocation has reached n - t correct nodes, every client that asks finds it; and each has
asked at most `CONFIRMED_US` before it seals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bftfs.crypto.cipher import BlockCipher
from bftfs.errors import PeerFault
from bftfs.identifiers import BlockId


class Sealed(NamedTuple):
    """A block that a correct client has sealed, and its content."""

    block: BlockId
    item: bytes
    content: bytes


class Thief(NamedTuple):
    """A revoked client."""

    keys: BlockCipher  # that it has
    since: float  # what is written later must not open


def check_secrecy(
    sealed: Iterable[Sealed], begun: Mapping[bytes, float], thieves: Mapping[str, Thief]
) -> list[str]:
    """Findings against what was sealed; `begun` tells when each content began to be written."""
    return [
        f"secrecy: {each.content!r} was written from {begun[each.content]} on, and {name} opens "
        f"it, whose revocation had to be heeded since {thief.since}"
        for each in sealed
        for name, thief in thieves.items()
        if begun.get(each.content, 0) > thief.since and _opens(thief.keys, each)
    ]


def _opens(keys: BlockCipher, sealed: Sealed) -> bool:
    try:
        keys.open(sealed.block, sealed.item)
    except PeerFault:
        return False
    return True
