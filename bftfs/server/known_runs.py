"""The runs of servers in a server's store: the proof of the latest run of each. [`.runs`]

A proof is the number of the run, and the server's authenticator over it. And the row that tells in
which place the store lay in the present run.
"""

from __future__ import annotations

from bftfs.crypto.digest import AuthenticatorKeys, run_digest
from bftfs.storage import StorageView, Table, Write

RUN_MOST = (1 << 63) - 1
_NUMBER_BYTES = 8
_PLACE = b"place"


def made(keys: AuthenticatorKeys, run: int) -> bytes:
    """This server's proof of a run."""
    number = run.to_bytes(_NUMBER_BYTES, "big")
    return number + keys.make(run_digest(number))


def run_of(proof: bytes) -> int:
    """The number of the run; 0 for nothing, which stands for a server that has not begun any."""
    return int.from_bytes(proof[:_NUMBER_BYTES], "big")


def is_own(keys: AuthenticatorKeys, proof: bytes) -> bool:
    """True if this server has made the proof, in whatever life."""
    number = proof[:_NUMBER_BYTES]
    return keys.is_own(run_digest(number), proof[_NUMBER_BYTES:])


def proof_of(view: StorageView, maker: int) -> bytes:
    """The proof of the latest run of a server that is stored here; empty if there is none."""
    return view.get(Table.META, _key(maker)) or b""


def own(view: StorageView, keys: AuthenticatorKeys) -> int:
    """The latest run that this server knows it has begun."""
    proof = proof_of(view, keys.node)
    return run_of(proof) if is_own(keys, proof) else 0


def note(view: StorageView, keys: AuthenticatorKeys, maker: int, proof: bytes) -> list[Write]:
    """The write that keeps another server's proof, if it is of a later run. It may be of any life:
    runs are counted through all of them.
    """
    if not run_of(proof_of(view, maker)) < run_of(proof) <= RUN_MOST:
        return []
    digest, authenticator = run_digest(proof[:_NUMBER_BYTES]), proof[_NUMBER_BYTES:]
    is_valid = keys.check(
        claimed_by=maker, digest=digest, authenticator=authenticator
    ) or keys.is_outlived(claimed_by=maker, digest=digest, authenticator=authenticator)
    return [stored(maker, proof)] if is_valid else []


def stored(maker: int, proof: bytes) -> Write:
    """The write that keeps the proof of a server's run."""
    return Write(Table.META, _key(maker), proof)


def lies_elsewhere(view: StorageView, place: bytes) -> bool:
    """True if the store was copied to `place` while it was in use."""
    return view.get(Table.META, _PLACE) not in {None, place}


def lies_in(place: bytes) -> Write:
    """The write that notes where the store is in use."""
    return Write(Table.META, _PLACE, place)


def laid_down(view: StorageView, place: bytes) -> list[Write]:
    """The write that notes that the store is not in use any more: a copy has all that was accepted.

    Nothing, if the store has been copied here, and nobody has noticed that yet.
    """
    return [Write(Table.META, _PLACE, None)] if view.get(Table.META, _PLACE) == place else []


def moved(view: StorageView, before: bytes, after: bytes) -> list[Write]:
    """The write that notes that the store, which was in use at `before`, is the one at `after`.

    Nothing, if it was not in use, or was copied to `before` and nobody has noticed that yet.
    """
    return [lies_in(after)] if view.get(Table.META, _PLACE) == before else []


def _key(maker: int) -> bytes:
    return b"run" + maker.to_bytes(2, "big")
