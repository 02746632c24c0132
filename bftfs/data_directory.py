"""The layout of a data directory: where a cluster's files are.

DIR/cluster.toml, cluster.toml.sig    the description, signed by the administrator
DIR/admin.key                         the administrator's identity (needed to change the above)
DIR/volume.key                        encrypts file contents; clients have it, nodes do not
DIR/clients/NAME.key                  one client's identity
DIR/nodes/I/                          all that node I needs, to be copied to its machine
DIR/mount.log                         the log of mount processes
DIR/unfinished                        there while the files of a new cluster are made
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bftfs.errors import UsageError
from bftfs.printable import as_word

DEFAULT_CLIENT = "local"

# All that a cluster has in its directory, as patterns: of descriptions with their signatures.
_OWN: Final = (
    "cluster.toml*",
    "cluster.signed.toml*",
    "cluster.before.toml*",
    "cluster.other.toml*",
    ".cluster.*.new",  # of one that was killed while it wrote these
    "admin.key",
    "volume.key",
    "clients",
    "nodes",
    "mount.log*",
    "unfinished",
)


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
    unfinished = _File("unfinished")
    _as_signed = _File("cluster.signed.toml")

    def require_free(self) -> None:
        """A `UsageError` if a new cluster may not be made here, since something else is.

        Its directory is a cluster's alone: it is closed to others, and `bftfs down --destroy`
        deletes it. Empty directories do not count, such as `lost+found` or one to mount on.
        """
        stores = self.path.glob("nodes/*/store")
        if self.unfinished.exists() and not any(stores) and not self._as_signed.exists():
            return
        shown = as_word(self.path)
        if any(self._own()):
            raise UsageError(
                f"{shown}: there are keys or stores of a cluster, and its cluster.toml is missing; "
                "bring that back (cluster.signed.toml is a copy of it, cluster.toml.sig belongs to "
                "it), or choose another directory with --data"
            )
        try:
            first = next(_things_in(self.path), None)
        except OSError as error:
            raise UsageError(
                f"{as_word(error.filename)}: cannot be looked into ({error.strerror}); choose "
                "another directory with --data"
            ) from None
        if first is not None:
            raise UsageError(
                f"{shown}: is not empty (there is {as_word(first)}); a cluster has a directory of "
                f"its own: choose an empty or a new one with --data, such as {shown}/bftfs"
            )

    def destroy(self) -> list[str]:
        """Delete all of the cluster, and the directory if nothing else is in it; what else is."""
        for path in self._own():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        left = sorted(os.listdir(self.path))
        if not left:
            self.path.rmdir()
        return left

    def _own(self) -> list[Path]:
        return [path for pattern in _OWN for path in self.path.glob(pattern)]


def _things_in(directory: Path) -> Iterator[Path]:
    """The files in a directory and in all directories below it."""
    for entry in sorted(directory.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _things_in(entry)
        else:
            yield entry
