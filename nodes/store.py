"""A node's disk: one LMDB environment, one named database per table of `bftfs.storage`.

The only module that imports lmdb. Equal to `MemoryStorage` by a stateful property test.

Invariants: a batch is applied whole or not at all, and once `Batch.commit` has returned under
`sync` durability it is on stable storage; a store is open in at most one process; nothing is ever
written to a store of another format, cluster or node. A crash of the machine leaves the last synced
snapshot (under `sync` durability: the last commit); see `nodes.checkpoint` for how.

Concurrency: a store belongs to one thread. One batch is open at a time. Under interval durability a
thread of the store's own waits for the disk; it touches nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import lmdb

from bftfs.cluster import Durability
from bftfs.errors import BftfsError, UsageError
from bftfs.identifiers import NodeId
from bftfs.limits import MIB
from bftfs.storage import Table, Write
from nodes.checkpoint import Checkpoint, boot_id
from nodes.residence import MappedFile

FORMAT = 1

MAP_BYTES_INITIAL = 1024 * MIB  # address space, not disk: the file grows as its pages are used
MAP_BYTES_MAX = 1 << 44
HEADROOM_BYTES = 32 * MIB  # that a batch may add without the store making room in its midst
ROWS_PER_LOOK = 16  # rows that a `CommittedView` reads in one transaction

_FORMAT_KEY = b"format"
_OWNER_KEY = b"owner"
_DATA_FILE = "data.mdb"
_CHECKPOINT_FILE = "checkpoint"
_HEAD_PAGES = 2  # that say where LMDB's two latest snapshots begin
_OUT_OF_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class StoreFull(BftfsError):
    """No room for a batch, on the disk or in the node's share of it; nothing of it was applied."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class StoreFailed(BftfsError):
    """The disk fails, or what it holds is damaged; the node has to stop."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class MapOutgrown(BftfsError):
    """The batch needs more address space than is mapped: leave it, and step it again."""


class Batch:
    """A `StorageView` in which the writes of earlier steps show; committed whole, or dropped.

    Left without `commit`, nothing that was applied has happened.
    """

    __slots__ = ("_databases", "_store", "_transaction", "bytes_moved", "writes")

    def __init__(self, store: Store, transaction: lmdb.Transaction[bytes]) -> None:
        self._store = store
        self._transaction = transaction
        self._databases = store.databases
        self.writes = 0
        self.bytes_moved = 0  # by values that fill pages of their own

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value at `key`, or None."""
        value = self._transaction.get(key, None, self._databases[table])
        if value is not None and len(value) > 2048:
            self.bytes_moved += len(value)
        return value

    def scan(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop in key order, or in reverse key order."""
        cursor = self._transaction.cursor(self._databases[table])
        if not _position(cursor, start, stop, reverse=reverse):
            return
        advance = cursor.prev if reverse else cursor.next
        while True:
            key = cursor.key()
            if key < start if reverse else key >= stop:
                return
            yield key, cursor.value()
            if not advance():
                return

    def keys(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Like `scan`, without touching the values."""
        cursor = self._transaction.cursor(self._databases[table])
        if not _position(cursor, start, stop, reverse=reverse):
            return
        advance = cursor.prev if reverse else cursor.next
        while True:
            key = cursor.key()
            if key < start if reverse else key >= stop:
                return
            yield key
            if not advance():
                return

    def apply(self, writes: Iterable[Write]) -> None:
        """Apply all of `writes`, in order; they show in what is read from now on."""
        transaction = self._transaction
        databases = self._databases
        try:
            for table, key, value in writes:
                if value is None:
                    transaction.delete(key, db=databases[table])
                else:
                    transaction.put(key, value, db=databases[table])
                    self.bytes_moved += len(value)
                self.writes += 1
        except lmdb.MapFullError:
            raise MapOutgrown from None
        except lmdb.Error as error:
            raise self._store.failure(error, self.bytes_moved) from error

    def commit(self) -> None:
        """Make the batch durable, as the store's durability says."""
        if not self.writes:
            self._transaction.abort()
            return
        self._store.about_to_commit(self.bytes_moved)
        try:
            self._transaction.commit()
        except lmdb.MapFullError:
            raise MapOutgrown from None
        except lmdb.Error as error:
            raise self._store.failure(error, self.bytes_moved) from error
        self._store.committed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._transaction.abort()  # of no effect after a commit
        self._store.left(self, outgrown=kind is MapOutgrown)


class CommittedView:
    """A `StorageView` of whatever is committed at the moment of each call.

    For conversations that span many batches: it pins nothing between two calls.
    """

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value at `key`, or None."""
        with self._store.snapshot() as view:
            return view.get(table, key)

    def scan(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop in key order, or in reverse key order."""
        while True:
            with self._store.snapshot() as view:
                rows = list(islice(view.scan(table, start, stop, reverse=reverse), ROWS_PER_LOOK))
            yield from rows
            if len(rows) < ROWS_PER_LOOK:
                return
            if reverse:
                stop = rows[-1][0]
            else:
                start = rows[-1][0] + b"\0"

    def keys(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Like `scan`, without the values."""
        while True:
            with self._store.snapshot() as view:
                rows = list(islice(view.keys(table, start, stop, reverse=reverse), ROWS_PER_LOOK))
            yield from rows
            if len(rows) < ROWS_PER_LOOK:
                return
            if reverse:
                stop = rows[-1]
            else:
                start = rows[-1] + b"\0"


class Store:
    """An open store. `with store.batch() as batch: …; batch.commit()`."""

    def __init__(
        self,
        path: Path,
        environment: lmdb.Environment,
        lock: int,
        durability: Durability,
        capacity_bytes: int | None,
    ) -> None:
        self.path = path
        self.durability = durability
        self.databases: tuple[lmdb._Database, ...] = ()
        self.unsynced = False  # whether something committed is not on stable storage yet
        self._environment = environment
        self._lock = lock
        self._capacity_bytes = capacity_bytes
        self._map_bytes: int = environment.info()["map_size"]
        self._page_bytes: int = environment.stat()["psize"]
        self._mapped = MappedFile(path / _DATA_FILE)
        self._data = os.open(path / _DATA_FILE, os.O_RDWR | os.O_CLOEXEC)
        self._data_bytes = os.fstat(self._data).st_size
        self._checkpoint: Checkpoint | None = None  # under interval durability
        self._synced: lmdb.Transaction[bytes] | None = None  # reads the last synced snapshot
        self._syncing: _Syncing | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        cluster: bytes,
        node: NodeId,
        durability: Durability = Durability.SYNC,
        capacity_bytes: int | None = None,
        map_bytes: int = MAP_BYTES_INITIAL,
    ) -> Store:
        """The store at `path`, made if there is none. A `UsageError` says why it cannot be used."""
        lock = _lock(path)
        try:
            if not path.exists():
                _create(path, owner=_owner(cluster, node))
            environment = _open_environment(
                path, durability, min(map_bytes, capacity_bytes or map_bytes)
            )
        except BaseException:
            os.close(lock)
            raise
        store = cls(path, environment, lock, durability, capacity_bytes)
        try:
            store._check(owner=_owner(cluster, node))
            store._prepare()
        except BaseException:
            store._release()
            raise
        return store

    def batch(self) -> Batch:
        """A new batch. It costs nothing to have one in which nothing is written."""
        try:
            return Batch(self, self._environment.begin(write=True))
        except lmdb.Error as error:
            raise self.failure(error, 0) from error

    def snapshot(self) -> Batch:
        """A view of what is committed now; nothing can be applied to it."""
        try:
            return Batch(self, self._environment.begin())
        except lmdb.Error as error:
            raise self.failure(error, 0) from error

    def sync(self) -> None:
        """Bring everything that is committed to stable storage."""
        self.finish_sync()
        if self.unsynced:
            self.start_sync(lambda: None)
            self.finish_sync()

    def start_sync(self, done: Callable[[], None]) -> None:
        """Begin to bring what is committed now to stable storage; `done` is called in a thread.

        Requires: no batch is open, and no sync has been started that was not finished.
        """
        assert self._syncing is None
        assert self._checkpoint is not None
        head = os.pread(self._data, _HEAD_PAGES * self._page_bytes, 0)
        snapshot = self._environment.begin()
        self.unsynced = False
        self._syncing = _Syncing(self._environment, self._checkpoint, head, snapshot, done)
        self._syncing.start()

    def finish_sync(self) -> None:
        """Wait for the sync that was started last, if there is one."""
        syncing, self._syncing = self._syncing, None
        if syncing is None:
            return
        syncing.join()
        if syncing.error is not None:
            raise StoreFailed(self.path, f"it cannot be synced ({syncing.error})")
        # From now on the pages of this snapshot must not be overwritten, those of the last one may.
        if self._synced is not None:
            self._synced.abort()
        self._synced = syncing.snapshot

    @property
    def syncing(self) -> bool:
        """Whether a sync has been started and not been finished."""
        return self._syncing is not None

    def close(self) -> None:
        """Sync and close. Another process may open the store from now on."""
        try:
            self.sync()
            if self._synced is not None:
                self._synced.abort()
        finally:
            self._release()

    @property
    def used_bytes(self) -> int:
        """What the store occupies on disk."""
        return (self._environment.info()["last_pgno"] + 1) * self._page_bytes

    def _release(self) -> None:
        self._environment.close()
        if self._checkpoint is not None:
            self._checkpoint.close()
        self._mapped.close()
        os.close(self._data)
        os.close(self._lock)

    # --- of Batch ----------------------------------------------------------------------------

    def about_to_commit(self, bytes_moved: int) -> None:
        """A batch that moved so many bytes is going to be committed."""
        if bytes_moved > self._headroom_bytes // 2:
            self._extend(self.used_bytes + 2 * bytes_moved + self._headroom_bytes)

    def committed(self) -> None:
        """A batch was committed."""
        if self.durability is Durability.INTERVAL:
            self.unsynced = True

    def left(self, batch: Batch, *, outgrown: bool) -> None:
        """A batch is over; no transaction is open."""
        if outgrown:
            self._grow()
        elif batch.writes:
            self._make_room()
        self._mapped.touched(batch.bytes_moved)

    def failure(self, error: lmdb.Error, size: int) -> BftfsError:
        """What an error of LMDB means to the node."""
        # LMDB reports a short write, which is how a full disk shows, as EIO.
        code = getattr(error, "code", errno.EIO)
        if code in _OUT_OF_SPACE or (code == errno.EIO and _disk_is_full(self.path, size + MIB)):
            return StoreFull(self.path, "the disk is full")
        return StoreFailed(self.path, f"the store cannot be used any more ({error})")

    @property
    def _limit_bytes(self) -> int:
        return min(MAP_BYTES_MAX, self._capacity_bytes or MAP_BYTES_MAX)

    @property
    def _headroom_bytes(self) -> int:
        return min(HEADROOM_BYTES, self._map_bytes // 4)

    def _prepare(self) -> None:
        """Make the store ready for the first batch."""
        path = self.path / _CHECKPOINT_FILE
        if self.durability is Durability.INTERVAL:
            try:
                self._checkpoint = Checkpoint(path)
            except OSError as error:
                raise UsageError(f"{path}: cannot be made ({error.strerror})") from None
        if self._checkpoint is None:
            try:
                self._environment.sync(True)
            except lmdb.Error as error:
                raise self.failure(error, 0) from error
            path.unlink(missing_ok=True)  # what it kept is superseded by every commit
        else:
            self.unsynced = True  # by whoever had the store before
            self.sync()
        self._make_room()

    def _make_room(self) -> None:
        """See to it that the next batch finds room, in the map and in the file.

        LMDB does not write the pages at the end of its file that are free. With the file longer
        than all of them, a file that is too short has lost something.
        """
        used = self.used_bytes
        if used + self._headroom_bytes > self._map_bytes < self._limit_bytes:
            self._grow()
        if used + self._headroom_bytes > self._data_bytes:
            self._extend(used + 2 * self._headroom_bytes)

    def _extend(self, size: int) -> None:
        """Make the file at least `size` long; what is added occupies nothing."""
        if size > self._data_bytes:
            os.ftruncate(self._data, size)
            self._data_bytes = size

    def _grow(self) -> None:
        if self._map_bytes >= self._limit_bytes:
            raise StoreFull(self.path, f"the store has reached its {self._limit_bytes} bytes")
        self._map_bytes = min(2 * self._map_bytes, self._limit_bytes)
        self.sync()
        if self._synced is not None:
            self._synced.abort()  # a map must not move under a transaction
        self._environment.set_mapsize(self._map_bytes)
        if self._synced is not None:
            self._synced = self._environment.begin()
        self._mapped.moved()

    def _check(self, *, owner: bytes) -> None:
        """Refuse what is not a whole store of this node; then open the tables."""
        if self.used_bytes > self._data_bytes:
            # Touching a page beyond the end of the file would kill the process.
            raise _unusable(
                self.path,
                f"it is cut short: {self._data_bytes} bytes of {self.used_bytes} are left",
            )
        try:
            self.databases = tuple(
                self._environment.open_db(_name(table), create=False) for table in Table
            )
            with self.snapshot() as view:
                form = view.get(Table.META, _FORMAT_KEY)
                found = view.get(Table.META, _OWNER_KEY)
        except lmdb.NotFoundError:
            raise _unusable(self.path, "it is no store of a bftfs node") from None
        except lmdb.Error as error:
            raise _unusable(self.path, f"it is damaged ({error})") from error
        if form != b"%d" % FORMAT:
            raise UsageError(
                f"{self.path}: this store has format {_text(form)}, and this program reads format "
                f"{FORMAT}; run the version of bftfs that wrote it"
            )
        if found != owner:
            raise UsageError(
                f"{self.path}: this store belongs to {_text(found)}, not to {_text(owner)}; "
                "give the node its own directory back"
            )


class _Syncing(threading.Thread):
    """A sync in progress."""

    def __init__(
        self,
        environment: lmdb.Environment,
        checkpoint: Checkpoint,
        head: bytes,
        snapshot: lmdb.Transaction[bytes],
        done: Callable[[], None],
    ) -> None:
        super().__init__(name="sync", daemon=True)
        self.snapshot = snapshot  # what is synced at least
        self.error: Exception | None = None
        self._environment = environment
        self._checkpoint = checkpoint
        self._head = head
        self._done = done

    def run(self) -> None:
        """Wait for the disk."""
        try:
            self._environment.sync(True)
            self._checkpoint.save(self._head)
        except (lmdb.Error, OSError) as error:
            self.error = error
        self._done()


def _text(value: bytes | None) -> str:
    return "(none)" if value is None else value.decode("ascii", "replace")


def _name(table: Table) -> bytes:
    return table.name.lower().encode()


def _owner(cluster: bytes, node: NodeId) -> bytes:
    return f"node {node} of cluster {cluster.hex()}".encode()


def _unusable(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"{path}: the store cannot be used: {reason}; move this directory away and start the node "
        "again: it rejoins the cluster with an empty store (until it has caught up it counts as "
        "one of the failed nodes that the cluster masks)"
    )


def _position(cursor: lmdb.Cursor[bytes], start: bytes, stop: bytes, *, reverse: bool) -> bool:
    """Put `cursor` on the first row to give; False if there is none."""
    if start >= stop:
        return False
    if not reverse:
        return cursor.set_range(start)
    return cursor.prev() if cursor.set_range(stop) else cursor.last()


def _lock(path: Path) -> int:
    """Hold the store's lock file, next to it, for as long as the process lives."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path}: the store cannot be opened ({error.strerror})") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise UsageError(
            f"{path}: the store is in use by process {holder or '(unknown)'}; stop that node first"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    return lock


def _create(path: Path, *, owner: bytes) -> None:
    """An empty store; it appears at `path` all at once, so that it is never there half made."""
    new = path.with_name(path.name + ".new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        with _environment(new, Durability.SYNC, MAP_BYTES_INITIAL) as environment:
            databases = [environment.open_db(_name(table)) for table in Table]
            with environment.begin(write=True) as transaction:
                meta = databases[Table.META]
                transaction.put(_FORMAT_KEY, b"%d" % FORMAT, db=meta)
                transaction.put(_OWNER_KEY, owner, db=meta)
        os.truncate(new / _DATA_FILE, 2 * HEADROOM_BYTES)
        _sync_directory(new)
        new.rename(path)
        _sync_directory(path.parent)
    except (OSError, lmdb.Error) as error:
        raise UsageError(f"{path}: the store cannot be made ({error})") from error


def _open_environment(path: Path, durability: Durability, map_bytes: int) -> lmdb.Environment:
    data = path / _DATA_FILE
    try:
        size = data.stat().st_size
    except FileNotFoundError:
        raise _unusable(path, f"{_DATA_FILE} is missing") from None
    except OSError as error:
        raise UsageError(f"{data}: cannot be opened ({error.strerror})") from None
    if not size:
        raise _unusable(path, f"{_DATA_FILE} is empty")
    _restore_head(path)
    try:
        return _environment(path, durability, map_bytes)
    except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
        raise _unusable(path, f"it is damaged ({error})") from error
    except lmdb.Error as error:
        raise UsageError(f"{path}: the store cannot be opened ({error})") from error


def _environment(path: Path, durability: Durability, map_bytes: int) -> lmdb.Environment:
    return lmdb.open(
        str(path),
        map_size=map_bytes,
        max_dbs=len(Table),
        sync=durability is Durability.SYNC,
        readahead=False,
        mode=0o600,
    )


def _restore_head(path: Path) -> None:
    """Go back to the last synced snapshot, if the page cache with later ones is gone."""
    if not (path / _CHECKPOINT_FILE).exists():
        return
    checkpoint = Checkpoint(path / _CHECKPOINT_FILE)
    head = checkpoint.newest()
    checkpoint.close()
    if head is not None and head.boot != boot_id():
        data = os.open(path / _DATA_FILE, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.pwrite(data, head.content, 0)
            os.fsync(data)
        finally:
            os.close(data)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_is_full(path: Path, size: int) -> bool:
    """Whether `size` more bytes cannot be had from the file system at `path`."""
    probe = path / "probe"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        return error.errno in _OUT_OF_SPACE
    return False
