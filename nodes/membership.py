"""Decides who may connect to a node: the clients in the latest description that it has seen.

**Situation.** An administrator changes the clients while nodes run, copies files by hand, and has
backups. A machine may have an old description again, or one that differs in more than its clients.

**Rules.**

1. A node stores the latest description that it has seen beside its store, with its signature,
   before it uses it. It uses a description only if that supersedes the stored one, also when it
   starts. So an old file cannot admit a revoked client, or give anybody more rights.
2. The clients are those of the latest description, whatever else has changed in it. For all other
   settings the node uses those with which it was started; its health report says that it must be
   restarted to use the new ones.
3. A client that is not listed any more is cut off. So is a client whose rights have changed; it
   connects again and has the new ones.

A folder that was restored from a backup may have old descriptions only. The node's peers know that
(`bftfs.server.comparison`).

**Tests.** `tests/seams/test_descriptions.py`.

Concurrency: belongs to the loop's thread.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import structlog

from bftfs import cluster
from bftfs.cluster import ClusterDescription, SignedDescription, signature_path
from bftfs.errors import UsageError
from bftfs.server.step import Role, Sender

_OF_CLIENTS = {"clients", "serial"}  # the fields that nodes take over at once
RESTART = "more than its clients has changed in its cluster description: restart the node to use it"


def latest_description(path: Path, kept: Path) -> ClusterDescription:
    """The description to start with: that in `path`, unless a later one is kept in `kept`."""
    given = cluster.read(path)
    if not kept.exists():
        cluster.keep(kept, given)
        return given.description
    try:
        known = cluster.load(kept)
    except UsageError as mistake:
        raise UsageError(
            f"{kept}, the latest cluster description that this node has seen, cannot be used "
            f"({mistake.message}); if {path} is the latest one there is, remove {kept}"
        ) from mistake
    described = given.description
    if (known.cluster_id, known.administrator) != (described.cluster_id, described.administrator):
        raise UsageError(
            f"{path} describes another cluster than {kept}, which this node belongs to; "
            "give the node its own directory, or the description of its cluster"
        )
    if not known.is_superseded_by(described):
        return known
    cluster.keep(kept, given)
    return described


class LiveMembership:
    """The clients in the latest cluster description.

    The files in `path` are looked at when a greeting arrives, at most once a second while there are
    requests to serve, and on SIGHUP.
    """

    def __init__(self, path: Path, kept: Path, description: ClusterDescription) -> None:
        """`description` is that of `latest_description`, with which the node has started."""
        self._path = path
        self._kept = kept
        self._files = (path, signature_path(path))
        self._started = description
        self.latest = description
        self.unused = ""  # why the files are not used; empty if they are
        self.is_partial = False  # True: parts of the latest description wait for a restart
        self._peers_serial = 0  # the serial of the peers' description
        # Of each file: inode, size, change time.
        self._seen: tuple[tuple[int, int, int], ...] | None = None
        self._logger = structlog.get_logger()

    def principal(self, public_key: bytes) -> Sender | None:
        """The holder of `public_key`, if the latest description lists it.

        The administrator is the same in all descriptions.
        """
        self.refresh()
        member = self._started.principal(public_key)
        if member is not None and member.node is not None:
            return member
        client = self.latest.principal(public_key)
        return client if client is not None and client.node is None else None

    def admits(self, sender: Sender) -> bool:
        """True if `sender` may still connect, with the same rights."""
        if sender.role is not Role.CLIENT:
            return True
        entry = self.latest.client(sender.client)
        return entry is not None and entry.grant == sender.grant

    def refresh(self) -> None:
        """Read the description again if its files have changed."""
        try:
            seen = tuple(
                (status.st_ino, status.st_size, status.st_mtime_ns)
                for status in (path.stat() for path in self._files)
            )
        except OSError:
            return  # it is being replaced, or was removed: keep the one read before
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._consider(cluster.read(self._path, administrator=self._started.administrator))
        except UsageError as mistake:
            self._logger.warning("cluster description not taken over", reason=str(mistake))

    def _consider(self, signed: SignedDescription) -> None:
        """Use this description if it supersedes the latest one. Raises UsageError."""
        described, latest = signed.description, self.latest
        if latest.is_superseded_by(described):
            self.latest = described  # even if it cannot be stored: revoked clients are cut off
            if described.clients != latest.clients:
                names = [each.name for each in described.clients]
                self._logger.info("clients changed", serial=described.serial, clients=names)
        elif described.digest != latest.digest:
            self.unused = (
                f"{self._path} is not used: it is number {described.serial} of the descriptions, "
                f"and the node has seen another one, number {latest.serial} ({self._kept}); copy "
                "the latest cluster.toml and cluster.toml.sig here, or sign this one again"
            )
            raise UsageError(self.unused)
        self.unused = ""
        self.is_partial = any(
            getattr(described, each.name) != getattr(self._started, each.name)
            for each in fields(described)
            if each.name not in _OF_CLIENTS
        )
        if self.is_partial:
            self._logger.warning("cluster description taken over in part", reason=RESTART)
        if described is self.latest:
            cluster.keep(self._kept, signed)

    def compare(self, peers_serial: int) -> None:
        """Some correct peer has the description with this serial, or a later one."""
        if peers_serial > max(self._peers_serial, self.latest.serial):
            self._peers_serial = peers_serial
            self._logger.warning("old cluster description", reason=self.outdated)

    @property
    def outdated(self) -> str:
        """A message if the latest description here is older than that of the peers; else empty."""
        if self._peers_serial <= self.latest.serial:
            return ""
        return (
            f"its cluster description, number {self.latest.serial}, is older than its peers', "
            f"number {self._peers_serial}: copy cluster.toml and cluster.toml.sig to its machine"
        )
