"""The layout of a data directory: where a cluster's files are.

DIR/cluster.toml, cluster.toml.sig    the description, signed by the administrator
DIR/admin.key                         the administrator's identity (needed to change the above)
DIR/volume.key                        encrypts file contents; clients have it, nodes do not
DIR/clients/NAME.key                  one client's identity
DIR/nodes/I/                          all that node I needs, to be copied to its machine
DIR/mount.log                         the log of mount processes
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from bftfs.errors import UsageError
from bftfs.printable import as_word

DEFAULT_CLIENT = "local"


class _File:
    """The path of a file of a directory."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, directory: NodeDirectory | DataDirectory, _: type | None = None) -> Path:
        return directory.path / self._name


@dataclass(frozen=True, slots=True)
class NodeDirectory:
    """The files of one node."""

    path: Path

    key = _File("node.key")
    configuration = _File("node.toml")
    store = _File("store")
    description = _File("description.toml")  # the latest that the node has seen, with its signature
    recovery = _File("recovery")  # there once a store was lost; says how far it is rebuilt
    unsynced = _File("unsynced")  # there while the store may hold what is not on stable storage
    log = _File("log")
    pid = _File("pid")
    socket = _File("socket")
    metrics = _File("metrics.socket")
    control = _File("control.socket")  # where the node's owner controls its background work


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The files of a cluster, as its administrator or a local client sees them."""

    path: Path

    def __post_init__(self) -> None:
        # Processes are known by this path on their command lines: it has one form only.
        object.__setattr__(self, "path", Path(os.path.normpath(self.path)))

    @classmethod
    def existing(cls, path: Path) -> DataDirectory:
        """The data directory at `path`; a `UsageError` if no cluster was ever made there."""
        directory = cls(path)
        if not directory.has_cluster():
            raise UsageError(
                f"{as_word(path)}: no cluster here (cluster.toml is missing); say with --data "
                "or BFTFS_DATA "
                f"where it is, or make one with `bftfs up --data {as_word(path)} --mount DIR` "
                "or `bftfs "
                "cluster init`"
            )
        return directory

    def has_cluster(self) -> bool:
        """True if a cluster was made here; a `UsageError` if that cannot be seen."""
        try:
            return stat.S_ISREG(os.stat(self.description).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise UsageError(
                f"{as_word(self.path)}: cannot be looked into ({error.strerror}); run this as "
                "its owner, or "
                "choose another directory with --data"
            ) from None

    description = _File("cluster.toml")
    administrator_key = _File("admin.key")
    volume_key = _File("volume.key")

    def client_key(self, name: str) -> Path:
        return self.path / "clients" / f"{name}.key"

    def node(self, number: int) -> NodeDirectory:
        return NodeDirectory(self.path / "nodes" / str(number))

    mount_log = _File("mount.log")
