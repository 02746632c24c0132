"""The lives of servers in a server's store: the proof of the latest life of each. [`.lives`]"""

from __future__ import annotations

from bftfs.crypto.digest import LIFE_DIGEST, AuthenticatorKeys, life_of
from bftfs.storage import StorageView, Table, Write


def recall(view: StorageView, keys: AuthenticatorKeys) -> None:
    """Load the lives that are stored, when the server starts."""
    for maker in range(len(keys.lives)):
        keys.learn(maker, life_of(proof_of(view, maker)))


def proof_of(view: StorageView, maker: int) -> bytes:
    """The proof of the latest life of a server that is stored here; empty for its first life."""
    return view.get(Table.META, _key(maker)) or b""


def note(view: StorageView, keys: AuthenticatorKeys, maker: int, proof: bytes) -> list[Write]:
    """Learn of another server's life, and the write that keeps its proof, if it is a later one."""
    if not keys.check(claimed_by=maker, digest=LIFE_DIGEST, authenticator=proof):
        return []
    if life_of(proof) <= life_of(proof_of(view, maker)):
        return []
    return [stored(maker, proof)]


def stored(maker: int, proof: bytes) -> Write:
    """The write that keeps the proof of a server's life."""
    return Write(Table.META, _key(maker), proof)


def _key(maker: int) -> bytes:
    return b"life" + maker.to_bytes(2, "big")
