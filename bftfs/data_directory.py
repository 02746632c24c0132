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
from dataclasses import dataclass
from pathlib import Path

from bftfs.errors import UsageError

DEFAULT_CLIENT = "local"


@dataclass(frozen=True, slots=True)
class NodeDirectory:
    """The files of one node."""

    path: Path

    @property
    def key(self) -> Path:
        return self.path / "node.key"

    @property
    def configuration(self) -> Path:
        return self.path / "node.toml"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def recovery(self) -> Path:
        """There once a store was lost; says when, and if it is rebuilt."""
        return self.path / "recovery"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def pid(self) -> Path:
        return self.path / "pid"

    @property
    def socket(self) -> Path:
        return self.path / "socket"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.socket"

    @property
    def control(self) -> Path:
        """Where the node's owner controls its background work."""
        return self.path / "control.socket"


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
        if not directory.description.is_file():
            raise UsageError(
                f"{path}: no cluster here (cluster.toml is missing); "
                f"make one with `bftfs up --data {path} --mount DIR` or `bftfs cluster init`"
            )
        return directory

    @property
    def description(self) -> Path:
        return self.path / "cluster.toml"

    @property
    def administrator_key(self) -> Path:
        return self.path / "admin.key"

    @property
    def volume_key(self) -> Path:
        return self.path / "volume.key"

    def client_key(self, name: str) -> Path:
        return self.path / "clients" / f"{name}.key"

    def node(self, number: int) -> NodeDirectory:
        return NodeDirectory(self.path / "nodes" / str(number))

    @property
    def mount_log(self) -> Path:
        return self.path / "mount.log"
