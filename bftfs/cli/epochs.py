"""Key epochs where the description is changed: clients that get the present key, or have it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import click

from bftfs.cli.client_table import day
from bftfs.cluster import ClusterDescription
from bftfs.crypto import keys
from bftfs.crypto.keys import Identity
from bftfs.data_directory import DataDirectory
from bftfs.errors import UsageError
from bftfs.key_epochs import with_keys_for_all, with_new_epoch


def _in_a_new_epoch(
    directory: DataDirectory,
    administrator: Identity,
    description: ClusterDescription,
    seen: Iterable[ClusterDescription] = (),
) -> ClusterDescription:
    """The description in a new key epoch, with the earlier ones of all that were seen.

    Raises UsageError if the volume key is not here, and is needed, or there can be no more epochs.
    """
    path = directory.volume_key
    volume_key = keys.read_volume_key(path) if path.exists() else None
    return with_new_epoch(
        description,
        administrator,
        volume_key=volume_key,
        at_s=int(time.time()),
        draw=os.urandom,
        others=[each for other in seen for each in other.epochs],
    )


def with_keys_settled(
    directory: DataDirectory, description: ClusterDescription, seen: Iterable[ClusterDescription]
) -> ClusterDescription:
    """The description, with the present key for all of its clients, and for nobody else.

    A new epoch begins if the present key was given to a client that is not listed any more, as the
    descriptions that were `seen` tell, or if one of these has an epoch that is not known here.
    """
    administrator = keys.read_identity(directory.administrator_key)
    seen = tuple(seen)
    listed = {each.client for each in description.clients}
    known = {each.epoch for each in description.epochs}
    has_left = any(
        entry.client not in listed
        for other in seen
        if other.epoch == description.epoch
        for entry in other.clients
    )
    is_unknown = any(each.epoch not in known for other in seen for each in other.epochs)
    if has_left or is_unknown:
        try:
            description = _in_a_new_epoch(directory, administrator, description, seen)
        except UsageError as mistake:
            click.echo(
                "bftfs: no new key epoch begins: a revoked client could open what is written from "
                f"now on, if it came by the nodes' fragments; {mistake.message}",
                err=True,
            )
        else:
            _tell(description)
    return with_keys_for_all(description, administrator, draw=os.urandom)


def epoch_shown(description: ClusterDescription) -> str:
    """The present key epoch, for people."""
    if not description.epochs:
        return "key epoch 0, since the cluster was made"
    return f"key epoch {description.epoch_number}, since {day(description.epochs[-1].begun_s)}"


def _tell(description: ClusterDescription) -> None:
    click.echo(
        f"Key epoch {description.epoch_number} begins: the clients that are left "
        f"({len(description.clients)}) get its key from the nodes, and write with it from then on."
    )


def begin_epoch(directory: DataDirectory, described: ClusterDescription) -> ClusterDescription:
    """The next description, in a new epoch, and say so."""
    administrator = keys.read_identity(directory.administrator_key)
    renewed = _in_a_new_epoch(directory, administrator, described)
    _tell(renewed)
    return renewed
