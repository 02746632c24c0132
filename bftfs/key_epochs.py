"""Key epochs of a cluster: which clients have the keys that seal blocks, and from when on.

**Situation.** Every client has the volume key, for ever. A revoked one is cut off; but if it gets
fragments of blocks, from discarded disks or lying nodes, it could open them with that key.

**Rules.**

1. A revocation begins a new epoch; so does the administrator at will (`with_new_epoch`). The signed
   description lists all epochs. It has the latest one's key for each client, in a box that only
   that client opens, and the earlier keys in a keyring that opens with the latest one: so a client
   gets all of them with its own key, and a revoked one gets none of what comes later.
2. Every machine that signs has all keys, since the administrator's secret makes them: a description
   that was made without knowing of an epoch takes it up again, and begins one that has it among the
   earlier ones. Until then concurrent epochs may have the same number, and all their keys are good.
3. A description counts by its signature alone: a client uses the keys of any that the
   administrator has signed for its cluster (`epoch_keys_in`). For what it writes see
   `bftfs.filesystem.epochs`.

**Tests.** `tests/unit/test_key_epochs.py`, `tests/seams/test_key_epochs.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from bftfs.cluster import EPOCHS, ClusterDescription, Epoch
from bftfs.crypto import epochs as keys
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import Identity
from bftfs.errors import InvalidAuthenticator, UsageError
from bftfs.identifiers import FIRST_EPOCH, EpochId

Draw = Callable[[int], bytes]


def with_new_epoch(
    described: ClusterDescription,
    administrator: Identity,
    *,
    volume_key: bytes | None,
    at_s: int,
    draw: Draw,
    others: Iterable[Epoch] = (),
) -> ClusterDescription:
    """This description, with the same serial, in a new epoch, of which its clients get the key.

    `volume_key` counts where the description has no epoch yet, and is needed there. `others` are
    epochs that other descriptions list. `draw(count)` gives `count` unguessable bytes. Raises
    UsageError if there can be no more epochs, or the volume key is not known.
    """
    known = {each.epoch for each in described.epochs}
    taken = {each.epoch: each for each in others if each.epoch not in known}
    cluster_id = described.cluster_id
    made_here = [
        each for each in taken.values() if keys.is_epoch_of(administrator, cluster_id, each.epoch)
    ]
    earlier = sorted((*described.epochs, *made_here), key=lambda each: each.number)
    if len(earlier) >= EPOCHS:
        raise UsageError(
            f"the cluster has had {EPOCHS} key epochs, and can have no more: the present one stays"
        )
    if described.epochs or volume_key is None:
        volume_key = first_key_in(described, administrator, or_else=volume_key)
    number = 1 + max((each.number for each in earlier), default=0)
    entropy = draw(keys.EPOCH_ENTROPY_BYTES)
    latest = keys.new_epoch(administrator, cluster_id, entropy=entropy)
    key = keys.epoch_key(administrator, cluster_id, latest)
    ring = {FIRST_EPOCH: volume_key} | {
        each.epoch: keys.epoch_key(administrator, cluster_id, each.epoch) for each in earlier
    }
    nonce = draw(keys.KEYRING_NONCE_BYTES)
    renewed = replace(
        described,
        epochs=(*earlier, Epoch(number, latest, at_s)),
        keyring=keys.sealed_keyring(ring, latest=latest, key=key, nonce=nonce),
        clients=tuple(replace(each, epoch_key=b"") for each in described.clients),
    )
    return with_keys_for_all(renewed, administrator, draw=draw)


def with_keys_for_all(
    described: ClusterDescription, administrator: Identity, *, draw: Draw
) -> ClusterDescription:
    """This description, in which clients that have not got the present epoch's key have it."""
    if not described.epochs or all(each.epoch_key for each in described.clients):
        return described
    key = keys.epoch_key(administrator, described.cluster_id, described.epoch)
    return replace(
        described,
        clients=tuple(
            each
            if each.epoch_key
            else replace(
                each,
                epoch_key=keys.boxed_key(
                    key, each.public_key, entropy=draw(keys.BOX_ENTROPY_BYTES)
                ),
            )
            for each in described.clients
        ),
    )


def first_key_in(
    described: ClusterDescription, administrator: Identity, *, or_else: bytes | None = None
) -> bytes:
    """The volume key, out of the description: it has been used, whatever file lies beside it.

    Raises UsageError if it is not there, and there is nothing `or_else`.
    """
    if described.epochs:
        latest = described.epoch
        key = keys.epoch_key(administrator, described.cluster_id, latest)
        try:
            return keys.opened_keyring(described.keyring, latest=latest, key=key)[FIRST_EPOCH]
        except (InvalidAuthenticator, KeyError):
            pass
    if or_else is not None:
        return or_else
    raise UsageError(
        "a first new key epoch needs volume.key, to hand it on to clients that come later: copy "
        "the file beside cluster.toml, and run `bftfs cluster new-epoch`",
        exit_code=1,
    )


def epoch_keys_in(described: ClusterDescription, identity: Identity) -> dict[EpochId, bytes]:
    """The keys of all epochs of a signed description, as the client `identity` gets them.

    Empty if it has none, or none for this client. Raises InvalidAuthenticator if what it has does
    not open, as after a mistake in an edit by hand.
    """
    entry = described.client(client_id_of(public_key=identity.public_key))
    if not described.epochs or entry is None or not entry.epoch_key:
        return {}
    latest = described.epoch
    key = keys.unboxed_key(entry.epoch_key, identity)
    return keys.opened_keyring(described.keyring, latest=latest, key=key) | {latest: key}
