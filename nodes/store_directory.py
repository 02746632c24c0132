"""A store's directory: made all at once, locked, and checked before it is used.

    data.mdb   LMDB's file, one named database per table of `bftfs.storage`
    journal    the write-ahead log (`nodes.journal`)
    segments/  the fragments (`nodes.segments`)
    place      tells the directory from copies of it (`nodes.store_place`)
    damaged    there only if this store must not be used any more; says why

The lock file is beside the directory, so it stays when the directory is moved away or lost. It
tells a node that it once had a store. Under `interval` durability another file beside it says in
which run of the machine the store was open last: if the machine has been started again since, the
writes that were not synced are lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lmdb

from bftfs.cluster import Durability
from bftfs.data_directory import NodeDirectory
from bftfs.durable_files import replace_file, sync_directory
from bftfs.errors import BftfsError, UsageError
from bftfs.identifiers import NodeId
from bftfs.limits import MIB
from bftfs.printable import as_word
from bftfs.runtime.log import PROCESS_LOG
from bftfs.server.recovery import Recovery, Stage
from bftfs.storage import Table

FORMAT = 2

DATA_FILE = "data.mdb"
JOURNAL_FILE = "journal"
SEGMENTS = "segments"
DAMAGED_FILE = "damaged"
JOURNAL_KEY_BYTES = 32

# Keys of Table.META.
_FORMAT = b"format"
_OWNER = b"owner"
CHECKPOINT = b"checkpoint"  # sequence of the last batch that LMDB holds
JOURNAL_ROOM = b"journal"  # length of the journal's file that was on stable storage then
JOURNAL_KEY = b"journal key"  # of the digests in it, drawn whenever the store is opened
OWN_NOTES = frozenset((_FORMAT, _OWNER, CHECKPOINT, JOURNAL_ROOM, JOURNAL_KEY))

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NEW_BYTES = 1 * MIB  # of a new data file, more than its first pages take

Databases = tuple[lmdb._Database, ...]  # by table


class StoreError(BftfsError):
    """A failure of a store: its path and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{as_word(self.path)}: {self.reason}"


class StoreFull(StoreError):
    """There is no room for a batch, on the disk or in the store's share; it was not applied."""


class StoreFailed(StoreError):
    """The disk fails, or the store on it is damaged; the node has to stop."""


class StepAgain(BftfsError):
    """Leave this batch, for which the store must prepare, and step its requests in a new one."""


class MapFull(StepAgain):
    """The batch needs more address space than is mapped; leaving it maps more."""


class SegmentsFull(StepAgain):
    """The disk has no room for the batch's fragments; LMDB's file may have, if it is left."""


class NeedsCheckpoint(StepAgain):
    """Free space is unknown until a checkpoint; leaving the batch makes one.

    If that fails for want of room, leaving the batch raises StoreFull.
    """


def unusable(path: Path, reason: str) -> UsageError:
    """The error of a node that was started on a store that cannot be used."""
    return UsageError(f"{as_word(path)}: {advice(reason)}")


def advice(reason: str) -> str:
    """Why a store cannot be used, and what to do."""
    return (
        f"the store cannot be used: {reason}; move this directory away and start the node "
        "again: it rejoins the cluster with an empty store (until it has caught up it counts as "
        "one of the failed nodes that the cluster masks)"
    )


class Head(NamedTuple):
    """The store's own notes, in Table.META."""

    databases: Databases
    checkpoint: int  # sequence of the last batch that LMDB holds
    journal_key: bytes


def owner_of(cluster: bytes, node: NodeId) -> bytes:
    """The name under which a store belongs to a node."""
    return f"node {node} of cluster {cluster.hex()}".encode()


def lock_file(path: Path) -> Path:
    """The lock file of the store at `path`."""
    return path.with_name(path.name + ".lock")


def lock(path: Path) -> int:
    """Hold the store's lock file for as long as the process lives, or the descriptor is open."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock_file(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"{as_word(path)}: the store cannot be opened ({error.strerror})"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise UsageError(
            f"{as_word(path)}: the store is in use by process {holder or '(unknown)'}; stop "
            "that node first"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def create(path: Path, *, owner: bytes, map_bytes: int) -> None:
    """Make an empty store. It appears at `path` complete."""
    new = path.with_name(path.name + ".new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        with _environment(new, map_bytes) as environment:
            meta = [environment.open_db(_name(table)) for table in Table][Table.META]
            with environment.begin(write=True) as transaction:
                transaction.put(_FORMAT, b"%d" % FORMAT, db=meta)
                transaction.put(_OWNER, owner, db=meta)
                transaction.put(CHECKPOINT, bytes(8), db=meta)
                transaction.put(JOURNAL_KEY, os.urandom(JOURNAL_KEY_BYTES), db=meta)
        os.truncate(new / DATA_FILE, _NEW_BYTES)
        (new / JOURNAL_FILE).touch(mode=0o600)
        (new / SEGMENTS).mkdir()
        sync_directory(new)
        new.rename(path)
        sync_directory(path.parent)
    except (OSError, lmdb.Error) as error:
        raise UsageError(f"{as_word(path)}: the store cannot be made ({error})") from error


def open_environment(path: Path, map_bytes: int) -> lmdb.Environment:
    """LMDB's environment at `path`. A UsageError says why it cannot be used."""
    with contextlib.suppress(FileNotFoundError):
        raise unusable(path, (path / DAMAGED_FILE).read_text(errors="replace"))
    for name in (DATA_FILE, JOURNAL_FILE):
        if not (path / name).is_file():
            raise unusable(path, f"{name} is missing")
    if not (path / DATA_FILE).stat().st_size:
        raise unusable(path, f"{DATA_FILE} is empty")
    try:
        return _environment(path, map_bytes)
    except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
        raise unusable(path, f"it is damaged ({error})") from error
    except lmdb.Error as error:
        raise UsageError(f"{as_word(path)}: the store cannot be opened ({error})") from error


def form_and_owner(path: Path, environment: lmdb.Environment) -> tuple[bytes | None, bytes | None]:
    """The store's format and the name of its owner."""
    used, held = used_bytes(environment), (path / DATA_FILE).stat().st_size
    if used > held:
        # Touching a page beyond the end of the file would kill the process.
        raise unusable(path, f"it is cut short: {held} bytes of {used} are left")
    with _explained(path):
        meta = environment.open_db(_name(Table.META), create=False)
        with environment.begin(meta) as transaction:
            return transaction.get(_FORMAT), transaction.get(_OWNER)


def opened_head(path: Path, environment: lmdb.Environment) -> Head:
    """Open the tables, and read the notes; a UsageError if this is no whole store."""
    with _explained(path):
        databases = tuple(environment.open_db(_name(table), create=False) for table in Table)
        with environment.begin(databases[Table.META]) as transaction:
            checkpoint, key = (transaction.get(name) for name in (CHECKPOINT, JOURNAL_KEY))
            journal_bytes = int.from_bytes(transaction.get(JOURNAL_ROOM, b""), "big")
    if checkpoint is None or key is None:
        raise unusable(path, "the key or the beginning of its journal is missing")
    length = (path / JOURNAL_FILE).stat().st_size
    if length < journal_bytes:
        raise unusable(
            path, f"its journal is cut short: {length} bytes of {journal_bytes} are left"
        )
    return Head(databases, int.from_bytes(checkpoint, "big"), key)


def read_head(path: Path, environment: lmdb.Environment, *, owner: bytes) -> Head:
    """Open the tables; a UsageError if this is no whole store of `owner`."""
    form, found = form_and_owner(path, environment)
    if form != b"%d" % FORMAT:
        raise other_format(path, form)
    if found != owner:
        raise UsageError(
            f"{as_word(path)}: this store belongs to {_text(found)}, not to {_text(owner)}; "
            "give the node its own directory back"
        )
    if not (path / SEGMENTS).is_dir():
        raise unusable(path, f"{SEGMENTS} is missing")
    return opened_head(path, environment)


def other_format(path: Path, form: bytes | None) -> UsageError:
    """The error of a store that another version of the program has written."""
    advice = (
        f"stop the node and run `bftfs node convert --data {as_word(path.parent)}`"
        if form == b"1"
        else "run the version of bftfs that wrote it"
    )
    return UsageError(
        f"{as_word(path)}: this store has format {_text(form)}, and this program reads format "
        f"{FORMAT}; {advice}"
    )


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except lmdb.NotFoundError:
        raise unusable(path, "it is not the store of a bftfs node") from None
    except lmdb.Error as error:
        raise unusable(path, f"it is damaged ({error})") from error


def disk_bytes(path: Path) -> int:
    """The bytes that LMDB's file and the journal occupy; some are allocated ahead of need.

    A file that somebody has removed counts as none. The store itself finds that it is gone, and
    ends the node with a reason; a question about its health does not.
    """
    occupied = 0
    for name in (DATA_FILE, JOURNAL_FILE):
        with contextlib.suppress(FileNotFoundError):
            occupied += 512 * (path / name).stat().st_blocks
    return occupied


def used_bytes(environment: lmdb.Environment) -> int:
    """The data file up to the last page in use, at the last checkpoint."""
    pages: int = environment.info()["last_pgno"] + 1
    return pages * environment.stat()["psize"]


def _environment(path: Path, map_bytes: int) -> lmdb.Environment:
    return lmdb.open(str(path), map_size=map_bytes, max_dbs=len(Table), readahead=False, mode=0o600)


def _name(table: Table) -> bytes:
    return table.name.lower().encode()


def _text(value: bytes | None) -> str:
    return "(none)" if value is None else value.decode("ascii", "replace")


def resumed(directory: NodeDirectory, *, alone: bool = False) -> Recovery:
    """The node's recovery state. To be called before its store is opened, which makes a new one.

    A node that is `alone` in its cluster has nobody to ask for what it has forgotten.
    """

    def store(stage: Stage, life: int, **facts: str) -> None:
        replace_file(directory.recovery, f"{life} {stage.value}\n".encode())
        PROCESS_LOG.warning(stage.value, life=life, **facts)

    forgotten = "" if alone else _forgotten(directory)
    try:
        *before, last = directory.recovery.read_text().split()
        stage, life = Stage(last), int(before[0]) if before else 0
    except FileNotFoundError:
        stage, life = Stage.REBUILT, 0
    except (OSError, ValueError):
        if not forgotten:
            raise UsageError(
                f"{as_word(directory.recovery)}: it does not say what the node has forgotten; "
                "move the "
                "store away and start the node again: it rebuilds its store"
            ) from None
        stage, life = Stage.LOST, 0
    if forgotten:
        stage = Stage.LOST
        store(stage, life, reason=forgotten)
    return Recovery(stage, life=life, store=store)


def _forgotten(directory: NodeDirectory) -> str:
    """Why the node has forgotten something, as its directory shows; empty if it has not."""
    if lock_file(directory.store).exists() and not directory.store.exists():
        return "its store is gone"
    with contextlib.suppress(FileNotFoundError):
        last = directory.unsynced.read_text().strip()
        if not last or last != _boot():
            return "its machine has ended without syncing what the store held"
    return ""


def note_unsynced(directory: NodeDirectory, durability: Durability) -> None:
    """The store is opened, and is on stable storage as a whole: note that this may end now."""
    if durability is Durability.INTERVAL:
        replace_file(directory.unsynced, f"{_boot()}\n".encode())
    else:
        note_synced(directory)


def note_synced(directory: NodeDirectory) -> None:
    """Note that the store is on stable storage as a whole."""
    if directory.unsynced.exists():
        directory.unsynced.unlink()
        sync_directory(directory.path)


def _boot() -> str:
    """The name of this run of the machine; empty if the system does not tell."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
