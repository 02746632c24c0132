"""A command's session with a cluster: finds paths and times, and reads files as of any time.

`PATH@TIME` names the object at a path at a time, or in a snapshot; `PATH` alone the present one.
The commands ask the nodes themselves, with the key of the mount and as the user who runs them: a
read must be permitted both then and now, as in `.history`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from bftfs.cli.mount import mount_processes
from bftfs.cli.times import parse_time
from bftfs.cluster import ClusterDescription
from bftfs.conversation import Conversation
from bftfs.credentials import Credentials
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import read_identity
from bftfs.data_directory import DataDirectory
from bftfs.envelope import REPLIES
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.file_history import Change, History
from bftfs.filesystem.names import shown
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.time_names import format_time_name
from bftfs.identifiers import ClientId, ObjectId
from bftfs.restoration.viewpoint import Node, Viewpoint
from bftfs.runtime import clock
from bftfs.runtime.blocking import BlockingNetwork
from mount.access import credentials_of, file_system
from mount.mountpoint import FILE_SYSTEM_TYPE, Mounted, mounts
from mount.options import MountOptions, parse

Result = TypeVar("Result")

PATIENCE_S = 30.0
TEXT_BYTES = 16 << 20  # of a file that is compared line by line


@dataclass(frozen=True, slots=True)
class Located:
    """An object at a time (None: now), and the path that was asked for."""

    path: Path  # in the mount, as it was given
    shown: str  # the path with its time
    identifier: ObjectId
    attributes: Attributes
    time_us: int | None

    @property
    def node(self) -> Node:
        """The object, without the path."""
        return Node(self.identifier, self.attributes)


class CommandSession:
    """A connection to the cluster whose file system a path is in."""

    def __init__(
        self,
        mounted: Mounted,
        directory: DataDirectory,
        description: ClusterDescription,
        network: BlockingNetwork,
        client: ClientId,
        files: FileSystem,
        history: History,
    ) -> None:
        self.client = client  # the client as which nodes are asked
        self.mounted = mounted
        self.directory = directory
        self.description = description
        self.network = network
        self.files = files
        self.history = history
        self.who = Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()[:64]))
        self.now_us = clock.now_us()
        self.view = Viewpoint(files, history, self.who, self.now_us)
        self._keys: dict[ClientId, str] | None = None  # of clients, by id

    def perform(self, conversation: Conversation[Result]) -> Result:
        """The result of a conversation with the nodes."""
        return self.network.perform(conversation)

    def at(self, time_us: int | None) -> FileSystem:
        """The file system at a time; None: now."""
        return self.view.at(time_us)

    # --- times and clients -------------------------------------------------------------------

    def time(self, text: str) -> int:
        """The time that `text` stands for, or the snapshot of that name."""
        # Times first: a snapshot called "yesterday" does not change the meaning of the word.
        time_us = parse_time(text, now_us=self.now_us)
        if time_us is None:
            named = self.perform(self.history.snapshots(self.who))
            encoded = os.fsencode(text)
            time_us = next((each.time_us for each in named if each.name == encoded), None)
        if time_us is None:
            raise UsageError(
                f"{text!r} is neither a time (2026-11-21T10:02, '10 minutes ago', "
                "'yesterday 14:00') nor a snapshot (`bftfs snapshot list` shows these)"
            )
        if time_us > self.now_us:
            raise UsageError(f"{text}: that time is yet to come")
        return time_us

    def is_time(self, text: str) -> bool:
        """True if `text` stands for a time, or is the name of a snapshot."""
        if parse_time(text, now_us=self.now_us) is not None:
            return True
        named = self.perform(self.history.snapshots(self.who))
        return any(each.name == os.fsencode(text) for each in named)

    def client_name(self, client: ClientId) -> str:
        """The client's name in the cluster; for a revoked one, the name of its key on this machine.

        If there is none, the beginning of its id.
        """
        entry = self.description.client(client)
        if entry is not None:
            return entry.name
        if self._keys is None:
            self._keys = {}
            for key in self.directory.client_key("*").parent.glob("*.key"):
                with suppress(OSError, UsageError):
                    name = client_id_of(public_key=read_identity(key).public_key)
                    self._keys[name] = key.stem
        return self._keys.get(client, client.hex()[:12])

    # --- paths -------------------------------------------------------------------------------

    def locate(self, given: str) -> Located:
        """The object that `PATH` or `PATH@TIME` names."""
        path_text, at, time_text = given.rpartition("@")
        if not at or not path_text or (parse_time(time_text, now_us=self.now_us) is None
                                       and os.path.lexists(given)):  # fmt: skip
            path_text, time_us = given, None
        else:
            time_us = self.time(time_text)
        path = absolute(path_text)
        return self.locate_at(path, time_us)

    def locate_at(self, path: Path, time_us: int | None) -> Located:
        """The object at a path at a time (None: now)."""
        shown = str(path) if time_us is None else f"{path}@{format_time_name(time_us)}"
        files = self.at(time_us)
        try:
            identifier = files.root
            for name in self.names(path):
                identifier = self.perform(
                    files.lookup(identifier, os.fsencode(name), self.who)
                ).identifier
            attributes = self.perform(files.attributes(identifier, self.who))
        except FileSystemError as refusal:
            if time_us is not None:
                self.require_root(shown, time_us)
            raise UsageError(_why_not(shown, refusal.code), exit_code=1) from None
        return Located(path, shown, identifier, attributes, time_us)

    def require_root(self, shown: str, time_us: int) -> None:
        """Refuse a time at which there was no file system."""
        files = self.history.at(time_us)
        try:
            self.perform(files.attributes(files.root, self.who))
        except FileSystemError as refusal:
            if refusal.code in (errno.ENOENT, errno.ESTALE):
                raise UsageError(
                    f"{shown}: the file system did not exist yet", exit_code=1
                ) from None
            raise

    def names(self, path: Path) -> tuple[str, ...]:
        """The names that lead from the root of the mount to `path`."""
        names = path.relative_to(self.mounted.path).parts
        if ".history" in names:
            raise UsageError(f"{path}: name the time as PATH@TIME instead of by .history")
        return names

    def find(self, path: Path) -> tuple[ObjectId, int | None]:
        """The object at a path. If there is none now: the last one, and when it was removed."""
        identifier, gone_us = self.files.root, None
        so_far = self.mounted.path
        for name in self.names(path):
            so_far /= name
            encoded = os.fsencode(name)
            if gone_us is None:
                try:
                    identifier = self.perform(
                        self.files.lookup(identifier, encoded, self.who)
                    ).identifier
                    continue
                except FileSystemError as refusal:
                    if refusal.code != errno.ENOENT:
                        raise UsageError(_why_not(str(path), refusal.code), exit_code=1) from None
            last = last_removal(self.changes(identifier), encoded)
            if last is None:
                raise UsageError(
                    f"{so_far}: nothing ever had this name; `bftfs log {so_far.parent}` lists the "
                    "names that were there",
                    exit_code=1,
                )
            identifier, removed_us = last
            gone_us = removed_us if gone_us is None else min(gone_us, removed_us)
        return identifier, gone_us

    # --- contents ----------------------------------------------------------------------------

    def changes(self, identifier: ObjectId, *, since_us: int = 0) -> list[Change]:
        """The versions of an object, the latest first."""
        try:
            return self.perform(self.view.changes(identifier, since_us=since_us))
        except FileSystemError as refusal:
            raise UsageError(_why_not("its history", refusal.code), exit_code=1) from None

    def pieces(self, identifier: ObjectId, time_us: int | None) -> Iterator[bytes]:
        """The contents of a file."""
        reading = self.perform(self.view.reading(identifier, time_us))
        try:
            while piece := self.perform(reading.next()):
                yield piece
        finally:
            self.perform(reading.close())

    def contents(self, identifier: ObjectId, time_us: int | None) -> bytes:
        """The contents of a file, as a whole."""
        return self.perform(self.view.contents(identifier, time_us))

    def link_target(self, identifier: ObjectId, time_us: int | None) -> bytes:
        """The target of a symlink."""
        return self.perform(self.view.link_target(identifier, time_us))

    def text(self, node: Node, time_us: int | None) -> str | None:
        """A file's contents as text; None if it is no text, or too large to compare by line."""
        attributes = node.attributes
        if stat.S_ISLNK(attributes.mode):
            return f"symlink to {shown(self.link_target(node.identifier, time_us))}\n"
        if not attributes.is_regular or attributes.size > TEXT_BYTES:
            return None
        contents = self.contents(node.identifier, time_us)
        try:
            return None if b"\0" in contents else contents.decode()
        except UnicodeDecodeError:
            return None

    def tree(self, located: Located) -> dict[str, Node]:
        """All objects below a directory, by relative path; the directory has the empty path."""
        return self.perform(self.view.tree(located.node, located.time_us))


def absolute(text: str) -> Path:
    """The absolute path for `text`; a symlink at its end is not followed."""
    return Path(os.path.abspath(text))


def last_removal(changes: list[Change], name: bytes) -> tuple[ObjectId, int] | None:
    """The last object that `name` in a directory stood for, and when that ended."""
    gone_us = None
    for change in changes:
        for changed, entry in change.entries:
            if changed == name:
                if entry is not None:
                    return entry.child, clock.now_us() if gone_us is None else gone_us
                gone_us = change.time_us
    return None


@contextmanager
def session_at(given: str) -> Iterator[CommandSession]:
    """A session with the cluster that is mounted where `PATH` or `PATH@TIME` is."""
    mounted = _mount_of(absolute(given)) or _mount_of(absolute(given.rpartition("@")[0] or given))
    if mounted is None:
        raise UsageError(
            f"{given}: not in a mount of bftfs; `bftfs mount` or `bftfs up` makes one, and "
            "/proc/mounts lists those of this machine"
        )
    directory = DataDirectory.existing(Path(mounted.source))
    options = next(
        (
            parse(process.options, sloppy=True)
            for process in mount_processes(directory)
            if process.mountpoint == mounted.path
        ),
        MountOptions(),
    )
    with _session(mounted, directory, options.client) as session:
        yield session


@contextmanager
def session_of(data: Path, *, client: str) -> Iterator[CommandSession]:
    """A session with the cluster in a data directory: paths begin at its root directory."""
    directory = DataDirectory.existing(data.absolute())
    whole = Mounted(Path("/"), "", FILE_SYSTEM_TYPE, str(directory.path))
    with _session(whole, directory, client) as session:
        yield session


@contextmanager
def _session(mounted: Mounted, directory: DataDirectory, name: str) -> Iterator[CommandSession]:
    options = MountOptions(client=name, patience_s=PATIENCE_S)
    try:
        description, identity = credentials_of(directory, options)
    except PermissionError as error:
        raise UsageError(
            f"{error.filename}: you may not read the mount's key; run this as its owner or as root"
        ) from None
    with BlockingNetwork(description, identity, decode=REPLIES.decode) as network:
        files, history = file_system(directory, description, identity, options)
        client = client_id_of(public_key=identity.public_key)
        yield CommandSession(mounted, directory, description, network, client, files, history)


def _mount_of(path: Path) -> Mounted | None:
    """The mount of bftfs that `path` is in, if it is in one."""
    above = (path, *path.parents)
    best: Mounted | None = None
    for mounted in mounts():
        if mounted.path in above and (
            best is None or len(mounted.path.parts) >= len(best.path.parts)
        ):
            best = mounted
    return best if best is not None and best.kind == FILE_SYSTEM_TYPE else None


def _why_not(shown: str, code: int) -> str:
    match code:
        case errno.ENOENT | errno.ESTALE:
            return f"{shown}: no such file (at that time); `bftfs log` shows when there was one"
        case _:
            return f"{shown}: {os.strerror(code)}"


def file_kind(attributes: Attributes) -> str:
    """The kind of an object, in a word."""
    return {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symlink",
    }.get(stat.S_IFMT(attributes.mode), "special file")


path_argument = click.argument("path", type=str, metavar="PATH")
