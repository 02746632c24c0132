"""A command's session with a cluster: finds paths and times, and reads files as of any time.

`PATH@TIME` names the object at a path at a time, or in a snapshot; `PATH` alone the present one.
The commands ask the nodes themselves, with the key of the mount and as the user who runs them: a
read must be permitted both then and now, as in `.history`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Self, TypeVar

import click

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.cli.decisions import decisions_known
from bftfs.cli.processes import mount_processes
from bftfs.cli.times import AmbiguousTime, past_time, says_time
from bftfs.conversation import Conversation
from bftfs.credentials import Credentials
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import read_identity
from bftfs.data_directory import DEFAULT_CLIENT, DataDirectory
from bftfs.envelope import REPLIES
from bftfs.errors import FileSystemError, UsageError
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.file_history import Change, several_at_once
from bftfs.filesystem.operations import FileSystem, FoundObject
from bftfs.filesystem.time_names import format_time_name
from bftfs.identifiers import ClientId, ObjectId, ObjectKind, kind_of
from bftfs.known_clients import labels_of
from bftfs.printable import as_word
from bftfs.restoration.viewpoint import Viewpoint
from bftfs.retention import LetGo
from bftfs.runtime import clock
from bftfs.runtime.blocking import BlockingNetwork
from bftfs.server.comparison import health_reports
from mount.access import credentials_of, file_system, grant_of
from mount.mountpoint import FILE_SYSTEM_TYPE, Mounted, containing
from mount.options import MountOptions, parse

Result = TypeVar("Result")

PATIENCE_S = 30.0
TEXT_BYTES = 16 << 20  # of a file that is compared line by line


@dataclass(frozen=True, slots=True)
class Located:
    """An object at a time (None: now), and the path that was asked for."""

    path: Path  # in the mount, as it was given
    given: str  # the path with its time, exactly
    identifier: ObjectId
    attributes: Attributes
    time_us: int | None

    @property
    def shown(self) -> str:
        """The path with its time, to be printed."""
        return as_word(self.given)

    @property
    def node(self) -> FoundObject:
        """The object, without the path."""
        return FoundObject(self.identifier, self.attributes)


_FIRST_PAGE = 16  # versions; the next one has twice as many
_GONE = "no such file (at that time); `bftfs log` shows when there was one"
_LOST = "nothing is left of what this name stands for; `bftfs mend` removes the name"
_NO_DIRECTORY = "a name before its last one is that of a file, and not of a directory"
_REASONS = {errno.ENOENT: _GONE, errno.ESTALE: _GONE, errno.ENOTDIR: _NO_DIRECTORY}
_REASONS_NOW = _REASONS | {errno.ESTALE: _LOST}


@contextmanager
def refusals_explained(shown: str, reasons: Mapping[int, str] = _REASONS) -> Iterator[None]:
    """Explain a refusal of `shown`: by one of `reasons` if it has the errno, else by the errno."""
    try:
        yield
    except FileSystemError as refusal:
        why = reasons.get(refusal.code, os.strerror(refusal.code))
        raise UsageError(f"{shown}: {why}", exit_code=1) from None


class CommandSession:
    """A connection, as the client called `name`, to the cluster whose file system a path is in."""

    def __init__(
        self, mounted: Mounted, directory: DataDirectory, name: str, *, read_only: bool = False
    ) -> None:
        options = MountOptions(client=name, patience_s=PATIENCE_S, read_only=read_only)
        try:
            self.description, identity = credentials_of(directory, options)
        except PermissionError as error:
            raise UsageError(
                f"{as_word(error.filename)}: you may not read the mount's key; run this as "
                "its owner or as "
                "root"
            ) from None
        self.mounted = mounted
        self.directory = directory
        self.client = client_id_of(public_key=identity.public_key)  # as which nodes are asked
        self.network = BlockingNetwork(
            self.description,
            identity,
            decode=REPLIES.decode,
            say=lambda words: click.echo(f"bftfs: {words}", err=True),
        )
        self.files, self.history = file_system(directory, self.description, identity, options)
        me = Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()))
        self.who = grant_of(self.description, identity).claimable(me)
        self.now_us = clock.now_us()
        self.view = Viewpoint(self.files, self.history, self.who, self.now_us)
        self._labels = labels_of(self.description)
        self._keys: dict[ClientId, str] | None = None  # of clients, by id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.network.close()

    def perform(self, conversation: Conversation[Result]) -> Result:
        """The result of a conversation with the nodes."""
        return self.network.perform(conversation)

    def let_go(self) -> tuple[LetGo, ...]:
        """The latest decisions to let history go, as a correct node tells them."""
        described = self.description
        peers = Peers(ThresholdQuorums(described.query_update))
        replies = self.perform(
            health_reports(peers, range(described.n), needed=described.n - described.t)
        )
        return decisions_known(described, [reply.let_go for reply in replies.values()])

    # --- times and clients -------------------------------------------------------------------

    def time(self, text: str) -> int:
        """The time that `text` stands for, or the snapshot of that name."""
        time_us = self.time_called(text)
        if time_us is None:
            raise UsageError(
                f"{text!r} is neither a time (2026-11-21T10:02, '10 minutes ago', "
                "'yesterday 14:00') nor a snapshot (`bftfs snapshot list` shows these)"
            )
        return time_us

    def time_called(self, text: str) -> int | None:
        """The time that `text` stands for, or the snapshot of that name; None if it is neither."""
        # Times first: a snapshot called "yesterday" does not change the meaning of the word.
        unclear: AmbiguousTime | None = None
        try:
            time_us = past_time(text, now_us=self.now_us)
        except AmbiguousTime as error:
            time_us, unclear = None, error
        if time_us is None:
            named = self.perform(self.history.snapshots(self.who))
            named_so = (each.time_us for each in named if each.name == os.fsencode(text))
            time_us = next(named_so, None)
        if time_us is None and unclear is not None:
            raise unclear
        return time_us

    def client_name(self, client: ClientId) -> str:
        """The client's name, with its id where others have had that name; else its id.

        For one that was revoked before descriptions remembered it: the name of its key, if it is
        on this machine.
        """
        label = self._labels.get(client)
        if label is not None:
            return label
        if self._keys is None:
            self._keys = {}
            for key in self.directory.client_key("*").parent.glob("*.key"):
                with suppress(OSError, UsageError):
                    name = client_id_of(public_key=read_identity(key).public_key)
                    self._keys[name] = key.stem
        return self._keys.get(client, client.hex())

    # --- paths -------------------------------------------------------------------------------

    def locate(self, given: str) -> Located:
        """The object that `PATH` or `PATH@TIME` names."""
        path_text, at, time_text = given.rpartition("@")
        if (
            not at
            or not path_text
            or (os.path.lexists(given) and not says_time(time_text, now_us=self.now_us))
        ):
            path_text, time_us = given, None
        else:
            time_us = self.time(time_text)
        return self.locate_at(absolute(path_text), time_us)

    def locate_at(self, path: Path, time_us: int | None) -> Located:
        """The object at a path at a time (None: now)."""
        given = str(path) if time_us is None else f"{path}@{format_time_name(time_us)}"
        shown = as_word(given)
        files = self.view.at(time_us)
        with refusals_explained(shown, _REASONS_NOW if time_us is None else _REASONS):
            try:
                *_, (_, identifier) = self.steps(files, path)
                attributes = self.perform(files.attributes(identifier, self.who))
            except FileSystemError:
                if time_us is not None:
                    self.require_root(shown, time_us)
                raise
        return Located(path, given, identifier, attributes, time_us)

    def steps(self, files: FileSystem, path: Path) -> Iterator[tuple[str, ObjectId]]:
        """The objects that lead to a path, with their names, and its own."""
        identifier = files.root
        yield "/", identifier
        for name in self.names(path):
            identifier = self._child(files, identifier, os.fsencode(name))
            yield name, identifier

    def _child(self, files: FileSystem, directory: ObjectId, name: bytes) -> ObjectId:
        """The object that has this name in the directory."""
        if kind_of(directory) != ObjectKind.DIRECTORY:
            raise FileSystemError(errno.ENOTDIR, "what is before the name is no directory")
        return self.perform(files.lookup(directory, name, self.who)).identifier

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
            raise UsageError(f"{as_word(path)}: name the time as PATH@TIME instead of by .history")
        return names

    def find(self, path: Path) -> tuple[ObjectId, int | None]:
        """The object at a path. If there is none now: the last one, and when it was removed."""
        identifier, gone_us = self.files.root, None
        so_far = self.mounted.path
        for name in self.names(path):
            so_far /= name
            encoded = os.fsencode(name)
            if gone_us is None:
                with refusals_explained(as_word(path)):
                    try:
                        identifier = self._child(self.files, identifier, encoded)
                        continue
                    except FileSystemError as refusal:
                        if refusal.code != errno.ENOENT:
                            raise
            last = last_removal(self.changes(identifier), encoded)
            if last is None:
                raise UsageError(
                    f"{as_word(so_far)}: nothing ever had this name; `bftfs log "
                    f"{as_word(so_far.parent)}` lists the names that were there",
                    exit_code=1,
                )
            identifier, removed_us = last
            gone_us = removed_us if gone_us is None else min(gone_us, removed_us)
        return identifier, gone_us

    def earlier(self, path: Path, identifier: ObjectId) -> Iterator[tuple[ObjectId, int]]:
        """The other objects that the name stood for, the latest first, and when each ended to.

        So the history of a name goes on before an undelete, or before a program that saves a file
        by renaming a new one to its name. None, where the directory may not be read.
        """
        found = {identifier}
        name = os.fsencode(path.name)
        if not self.names(path):
            return
        with suppress(UsageError):
            parent, _ = self.find(path.parent)
            directories = chain(((parent, self.now_us),), self.earlier(path.parent, parent))
            for directory, ended_us in directories:
                for child, until_us in self._children(directory, name, ended_us):
                    if child not in found:
                        found.add(child)
                        yield child, until_us

    def _children(
        self, directory: ObjectId, name: bytes, ended_us: int
    ) -> Iterator[tuple[ObjectId, int]]:
        """The objects that had this name before `ended_us`, each with its end, the latest first."""
        for change in self.changes(directory):
            for changed, entry in change.entries:
                if changed == name and change.time_us <= ended_us:
                    if entry is not None:
                        yield entry.child, ended_us
                    ended_us = change.time_us

    # --- contents ----------------------------------------------------------------------------

    def changes(self, identifier: ObjectId, *, since_us: int = 0) -> Iterator[Change]:
        """The versions of an object, the latest first; older ones are read as they are taken."""
        with refusals_explained("its history"):
            pages = self.perform(self.view.pages(identifier, since_us=since_us))
        most = _FIRST_PAGE
        while True:
            with refusals_explained("its history"):
                page = self.perform(pages.next(most))
            if not page:
                return
            yield from page
            most = min(2 * most, limits.VERSIONS_IN_REPLY)

    def changes_of(self, identifiers: Sequence[ObjectId]) -> list[list[Change]]:
        """The versions of each of several objects, the latest first."""
        with refusals_explained("its history"):
            histories = [partial(self.view.changes, each) for each in identifiers]
            return self.perform(several_at_once(histories))

    def with_names(self, change: Change) -> Change:
        """A change with all the names that the user may know."""
        return self.perform(self.history.with_names(change, self.who))

    def text(self, node: FoundObject, time_us: int | None) -> str | None:
        """A file's contents as text; None if it is no text, or too large to compare by line."""
        attributes = node.attributes
        if stat.S_ISLNK(attributes.mode):
            target = self.perform(self.view.link_target(node.identifier, time_us))
            return f"symlink to {as_word(target)}\n"
        if not attributes.is_regular or attributes.size > TEXT_BYTES:
            return None
        contents = self.perform(self.view.contents(node.identifier, time_us))
        try:
            return None if b"\0" in contents else contents.decode()
        except UnicodeDecodeError:
            return None

    def tree(self, located: Located) -> dict[str, FoundObject]:
        """All objects below a directory, by relative path; the directory has the empty path."""
        return self.perform(self.view.tree(located.node, located.time_us))


def absolute(text: str) -> Path:
    """The absolute path for `text`; a symlink at its end is not followed."""
    return Path(os.path.abspath(text))


def last_removal(changes: Iterable[Change], name: bytes) -> tuple[ObjectId, int] | None:
    """The last object that `name` in a directory stood for, and when that ended."""
    gone_us = None
    for change in changes:
        for changed, entry in change.entries:
            if changed == name:
                if entry is not None:
                    return entry.child, clock.now_us() if gone_us is None else gone_us
                gone_us = change.time_us
    return None


def session_at(given: str) -> CommandSession:
    """A session with the cluster that is mounted where `PATH` or `PATH@TIME` is."""
    mounted = containing(absolute(given)) or containing(absolute(given.rpartition("@")[0] or given))
    if mounted is None:
        raise UsageError(
            f"{as_word(given)}: not in a mount of bftfs; `bftfs mount` or `bftfs up` makes "
            "one, and "
            "/proc/mounts lists those of this machine"
        )
    directory = DataDirectory.existing(Path(mounted.source))
    return CommandSession(mounted, directory, client_of_mount(mounted, directory))


def client_of_mount(mounted: Mounted, directory: DataDirectory) -> str:
    """The name of the client as which the nodes are asked in a mount."""
    of_mount = (
        parse(process.options, sloppy=True).client
        for process in mount_processes(directory)
        if process.mountpoint == mounted.path
    )
    return next(of_mount, DEFAULT_CLIENT)


def session_of(data: Path, *, client: str, read_only: bool = False) -> CommandSession:
    """A session with the cluster in a data directory: paths begin at its root directory."""
    directory = DataDirectory.existing(data.absolute())
    whole = Mounted(Path("/"), "", FILE_SYSTEM_TYPE, str(directory.path))
    return CommandSession(whole, directory, client, read_only=read_only)
