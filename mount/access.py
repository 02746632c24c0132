"""A client of a cluster: its keys, both protocols, the file system and its history."""

from __future__ import annotations

import os
import pwd

from bftfs import description_files
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.cluster import ClusterDescription
from bftfs.credentials import ALL_RIGHTS, NOBODY, Credentials, Grant
from bftfs.crypto.cipher import BlockCipher
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import Identity, read_volume_key
from bftfs.data_directory import DataDirectory
from bftfs.errors import InvalidAuthenticator, UsageError
from bftfs.filesystem import object_types
from bftfs.filesystem.capacity import ClusterCapacity
from bftfs.filesystem.epochs import EpochFollower
from bftfs.filesystem.file_history import History
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.key_epochs import epoch_keys_in
from bftfs.limits import SECOND_US
from bftfs.printable import as_word
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.past_reading import PastReader
from bftfs.read_write.client import ReadWriteClient
from mount.identity import identity_of
from mount.options import MountOptions


def who_mounts(description: ClusterDescription, identity: Identity) -> Credentials:
    """The user for whom the mount itself asks, and who owns the root of a new file system.

    It is the user who mounts. If the client may not act as that user, it is the first one in its
    grant.
    """
    grant = grant_of(description, identity)
    uid = os.geteuid()
    if grant.allows(uid) or not grant.uids:
        return grant.claimable(Credentials(uid, os.getegid()))
    first = grant.uids[0]
    try:
        return grant.claimable(Credentials(first, pwd.getpwuid(first).pw_gid))
    except KeyError:  # a user whom this machine does not know
        return grant.claimable(Credentials(first, next(iter(grant.gids), NOBODY.gid)))


def grant_of(description: ClusterDescription, identity: Identity) -> Grant:
    """The grant of the client with this identity; all rights if it is not listed (any more)."""
    client = description.client(client_id_of(public_key=identity.public_key))
    return ALL_RIGHTS if client is None else client.grant


def credentials_of(
    directory: DataDirectory, options: MountOptions
) -> tuple[ClusterDescription, Identity]:
    """The verified description of the cluster, and the mount's identity in it."""
    description = description_files.load(directory.description)
    identity = identity_of(directory, options.client)
    key = directory.client_key(options.client)
    if description.client(client_id_of(public_key=identity.public_key)) is None:
        raise UsageError(
            f"{as_word(key)}: the cluster does not know this key (any more); ask its "
            "administrator to run "
            f"`bftfs cluster add-client {options.client}`, and copy the new cluster.toml here"
        )
    return description, identity


def _cipher_of(
    directory: DataDirectory, description: ClusterDescription, identity: Identity
) -> BlockCipher:
    """The keys of blocks: those in the description, with the volume key, or that of its file."""
    try:
        found = epoch_keys_in(description, identity)
    except InvalidAuthenticator as fault:
        raise UsageError(
            f"{as_word(directory.description)}: the epoch key that it has for this client does not "
            f"open ({fault.evidence}); ask the administrator to run `bftfs cluster new-epoch`"
        ) from None
    cipher = BlockCipher(None if found else read_volume_key(directory.volume_key))
    for epoch, key in found.items():
        cipher.learn(epoch, key)
    return cipher


def file_system(
    directory: DataDirectory,
    description: ClusterDescription,
    identity: Identity,
    options: MountOptions,
) -> tuple[FileSystem, History]:
    """The file system of a cluster, as its client `identity` sees it, and its history."""
    client = client_id_of(public_key=identity.public_key)
    patience_us = None if options.patience_s is None else round(options.patience_s * SECOND_US)
    peers = Peers(ThresholdQuorums(description.query_update))
    objects = QueryUpdateClient(client, peers, object_types(), patience_total_us=patience_us)
    blocks = ReadWriteClient(client, description.read_write, peers, patience_total_us=patience_us)
    capacity = ClusterCapacity(description.read_write, peers, patience_total_us=patience_us)
    cipher = _cipher_of(directory, description, identity)
    files = FileSystem(
        objects,
        blocks,
        capacity,
        cipher,
        root=description.root,
        volume=description.volume,
        options=Options(
            strict=options.strict,
            read_only=options.read_only,
            attribute_timeout_us=round(options.cached_attributes_s * SECOND_US),
            entry_timeout_us=round(options.cached_entries_s * SECOND_US),
            absence_timeout_us=round(options.cached_absence_s * SECOND_US),
        ),
        epochs=EpochFollower(description, identity, cipher, peers, patience_total_us=patience_us),
    )
    history = History(
        files,
        objects,
        PastReader(objects),
        blocks,
    )
    return files, history
