"""A node's disk: LMDB, one named database per table of `bftfs.storage`, and a journal before it.

The only module that imports lmdb. Equal to `MemoryStorage` by a stateful property test.

A batch is applied to a write transaction that stays open over many batches, and is appended to the
journal; under `sync` durability it then is on stable storage. From time to time, at a checkpoint,
the transaction is committed. After a crash, LMDB holds the last checkpoint whole, and the journal
what followed. A batch that is dropped after writes were applied takes the transaction with it; a
new one is made of the last checkpoint and the journal.

Behind the last page that LMDB uses, its file has a reserve: blocks that the disk has given already,
which nobody else can take. Ordinary batches are refused before they touch it; those that `draw` on
it succeed on a disk that others have filled to the last byte.

Invariants: a batch is applied whole or not at all; what `Batch.commit` has returned for survives a
crash of the process, and under `sync` durability of the machine; a crash of the machine under
`interval` durability leaves the batches up to some moment after the last sync. A store is open in
at most one process; nothing is ever written to a store of another format, cluster or node.

Concurrency: a store belongs to one thread. One batch is open at a time. Under interval durability a
thread of the store's own waits for the disk; it touches nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import lmdb

from bftfs.cluster import Durability
from bftfs.errors import BftfsError, UsageError
from bftfs.identifiers import NodeId
from bftfs.limits import KIB, MIB
from bftfs.storage import Table, Write
from nodes.journal import Journal, Row
from nodes.mapped_memory import MappedFile

FORMAT = 1

MAP_BYTES_INITIAL = 1024 * MIB  # address space, not disk: the file grows as its pages are used
MAP_BYTES_MAX = 1 << 44
HEADROOM_BYTES = 32 * MIB  # that a batch may add without the store making room in its midst
JOURNAL_BYTES = 8 * MIB  # after which a checkpoint is due…
WRITES_PER_CHECKPOINT = 8_192  # …or after so many: until then their pages are kept in memory
RESERVE_BYTES = 64 * MIB  # at most, of room that ordinary batches do not get…
RESERVE_SHARE = 8  # …and at most such a part of the disk, and of what the store may occupy
AHEAD_BYTES = 8 * MIB  # that is taken from the disk at once, at most
ROOM_BYTES = 16 * MIB  # with less than that to spare, a store that was full is so still
STRAIGHT_BYTES = 256 * KIB  # larger batches are not worth writing twice, if they must be synced

_FORMAT_KEY = b"format"
_OWNER_KEY = b"owner"
_CHECKPOINT_KEY = b"checkpoint"  # sequence of the last batch that LMDB holds
_JOURNAL_ROOM_KEY = b"journal"  # how long its file was, by then on stable storage
_JOURNAL_SECRET_KEY = b"journal key"  # of the digests in it, drawn anew in each life
_JOURNAL_KEY_BYTES = 32
_DATA_FILE = "data.mdb"
_JOURNAL_FILE = "journal"
_DAMAGED_FILE = "damaged"  # says why this store must not be used any more
_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)
# Between two lives of a journal. What an earlier life has left behind, and a crash of the machine
# may have kept in part, can then never be taken for what follows in this one.
_SEQUENCES_SKIPPED = 1 << 32
_PAGE_BYTES_PER_WRITE = 8 * KIB  # by which a small write lets the file grow, at most
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


class MapFull(BftfsError):
    """The batch needs more address space than is mapped: leave it, and step it again."""


class NeedsCheckpoint(MapFull):
    """Nor is it the map: how much room there is, is known after a checkpoint only."""


class Batch:
    """A `StorageView` in which the writes of earlier steps show; committed whole, or dropped.

    Left without `commit`, nothing that was applied has happened.
    """

    __slots__ = ("_databases", "_rows", "_store", "_transaction", "bytes_moved", "volume", "writes")

    def __init__(self, store: Store, transaction: lmdb.Transaction[bytes]) -> None:
        self._store = store
        self._transaction = transaction
        self._databases = store.databases
        self._rows: list[Row] = []
        self.writes = 0
        self.volume = 0  # bytes of the values written
        self.bytes_moved = 0  # by values that fill pages of their own

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value at `key`, or None."""
        try:
            value = self._transaction.get(key, None, self._databases[table])
        except lmdb.Error as error:
            raise self._store.failure(error, 0) from error
        if value is not None and len(value) > 2048:
            self.bytes_moved += len(value)
        return value

    def scan(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop in key order, or in reverse key order."""
        try:
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
        except lmdb.Error as error:
            raise self._store.failure(error, 0) from error

    def keys(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Like `scan`, without touching the values."""
        try:
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
        except lmdb.Error as error:
            raise self._store.failure(error, 0) from error

    def count(self, table: Table) -> int:
        """How many rows the table has."""
        try:
            entries: int = self._transaction.stat(self._databases[table])["entries"]
        except lmdb.Error as error:
            raise self._store.failure(error, 0) from error
        return entries

    def apply(self, writes: Iterable[Write]) -> None:
        """Apply all of `writes`, in order; they show in what is read from now on."""
        transaction, databases, rows = self._transaction, self._databases, self._rows
        try:
            for table, key, value in writes:
                self.writes += 1
                if value is None:
                    transaction.delete(key, db=databases[table])
                else:
                    transaction.put(key, value, db=databases[table])
                    self.volume += len(value)
                rows.append((int(table), key, value))
        except lmdb.MapFullError:
            raise MapFull from None
        except lmdb.Error as error:
            raise self._store.failure(error, self.volume) from error

    def commit(self, *, draw: bool = False) -> None:
        """Make the batch durable, as the store's durability says; `draw` on the reserve for it.

        Raises StoreFull if there is no room.
        """
        if self.writes:
            self._store.commit(self._rows, self.volume, draw=draw)
            self.writes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.writes:
            self._store.drop(outgrown=kind is MapFull, checkpoint=kind is NeedsCheckpoint)
        self._store.touched(self.bytes_moved + self.volume)


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
        self._failed = False  # whether damage was found
        self.unsynced = False  # whether something committed is not on stable storage yet
        self._environment = environment
        self._lock = lock
        self._capacity_bytes = capacity_bytes
        self._map_bytes: int = environment.info()["map_size"]
        self._page_bytes: int = environment.stat()["psize"]
        self._mapped = MappedFile(path / _DATA_FILE)
        self._data = os.open(path / _DATA_FILE, os.O_RDWR | os.O_CLOEXEC)
        self._data_bytes = os.fstat(self._data).st_size
        self._journal = Journal(path / _JOURNAL_FILE, synced=durability is Durability.SYNC)
        self._syncing: _Syncing | None = None
        self._transaction: lmdb.Transaction[bytes]
        self._checkpointed = 0  # sequence of the last batch that LMDB holds
        self._writes = 0  # since then
        self._volume = 0
        self._due_bytes, self._due_writes = JOURNAL_BYTES, WRITES_PER_CHECKPOINT
        self._used_bytes = self.used_bytes  # at the last checkpoint
        self._live_bytes = self._used_bytes  # when last measured
        self._taken_bytes = self._used_bytes  # of the file, from the disk, without a gap
        self._crowded = False  # whether the last checkpoint failed for want of room
        disk = os.fstatvfs(self._data)
        whole = min(disk.f_blocks * disk.f_frsize, self._limit_bytes)
        self.reserve_bytes = min(RESERVE_BYTES, whole // RESERVE_SHARE)

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
            environment = _open_environment(path, min(map_bytes, capacity_bytes or map_bytes))
        except BaseException:
            os.close(lock)
            raise
        try:
            store = cls(path, environment, lock, durability, capacity_bytes)
        except OSError as error:
            environment.close()
            os.close(lock)
            raise UsageError(f"{path}: the store cannot be opened ({error.strerror})") from None
        try:
            store._check(owner=_owner(cluster, node))
            store._recover()
            store._has_room_for(0, 0)  # so that the reserve is there from the beginning
        except BaseException:
            store._release()
            raise
        return store

    def batch(self) -> Batch:
        """A new batch. It costs nothing to have one in which nothing is written."""
        held = os.fstat(self._data)
        if not held.st_nlink or held.st_size < self._data_bytes:
            # What is beyond the file's end kills the process; what is in a file without a name is
            # gone after the next start.
            raise self._damaged("somebody has removed or cut short its file while it was in use")
        self.maintain()
        return Batch(self, self._transaction)

    def maintain(self) -> None:
        """Do what is due between batches: better at once after answering than before the next."""
        if (
            self._journal.size >= self._due_bytes
            or self._writes >= self._due_writes
            or self._map_bytes < min(self._used_bytes + self._needed_bytes, self._limit_bytes)
        ):
            try:
                self._checkpoint()
            except StoreFull:
                # Nothing is lost: the journal has it, and grows. Not every batch need try again.
                self._due_bytes = self._journal.size + JOURNAL_BYTES // 4
                self._due_writes = self._writes + WRITES_PER_CHECKPOINT // 4

    def sync(self) -> None:
        """Bring everything that is committed to stable storage."""
        self.finish_sync()
        if self.unsynced:
            self.start_sync(lambda: None)
            self.finish_sync()

    def start_sync(self, done: Callable[[], None]) -> None:
        """Begin to bring what is committed now to stable storage; `done` is called in a thread.

        Requires: no sync has been started that was not finished.
        """
        assert self._syncing is None
        self.unsynced = False
        self._syncing = _Syncing(self._journal, done)
        self._syncing.start()

    def finish_sync(self) -> None:
        """Wait for the sync that was started last, if there is one."""
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.join()
            if syncing.error is not None:
                raise StoreFailed(self.path, f"it cannot be synced ({syncing.error})")

    @property
    def syncing(self) -> bool:
        """Whether a sync has been started and not been finished."""
        return self._syncing is not None

    def close(self) -> None:
        """Sync and close. Another process may open the store from now on."""
        try:
            if self._failed:
                return  # nothing that was not committed can be saved
            self.sync()
            with contextlib.suppress(StoreFull):  # then the journal has it
                self._checkpoint()
            self._transaction.abort()
        finally:
            self._release()

    @property
    def used_bytes(self) -> int:
        """What the store occupies on disk, at the last checkpoint."""
        return (self._environment.info()["last_pgno"] + 1) * self._page_bytes

    @property
    def free_bytes(self) -> int:
        """What it can still hold, without its reserve: by growing, and in its file.

        Any thread may ask.
        """
        disk = os.fstatvfs(self._data)
        return max(0, self._left(disk.f_bavail * disk.f_frsize) - self.reserve_bytes)

    def has_room_again(self) -> bool:
        """Whether there is any to speak of, now that there was none.

        Requires: no batch is open.
        """
        if self._writes:
            with contextlib.suppress(StoreFull):  # it is free or not, all the same
                self._checkpoint()
        self.measured_bytes()
        return self.free_bytes >= min(ROOM_BYTES, self.reserve_bytes)

    @property
    def drawable_bytes(self) -> int:
        """What batches that draw on the reserve still get, if the disk gives nothing more."""
        return max(0, self._left(0))

    def _left(self, available: int) -> int:
        """What can be added, reserve and all, if the disk still gives `available` bytes."""
        used = self.used_bytes
        growth = min(self._taken_bytes + available, self._limit_bytes) - used
        inside = max(0, used - self._live_bytes)
        return growth + inside - self._volume - self._writes * _PAGE_BYTES_PER_WRITE

    def _has_room_for(self, rows: int, volume: int) -> bool:
        """Whether so much may be added, beside what the next checkpoint will bring and the reserve.

        All that is needed for it is taken from the disk.
        """
        end = self._end_with(rows, volume)
        if end <= self._taken_bytes or self._take(end):
            return True
        # The file cannot grow any more: what counts is what is free in it.
        inside = self._used_bytes - self.measured_bytes()
        return end - max(0, inside) <= self._taken_bytes

    def _end_with(self, rows: int, volume: int) -> int:
        """How long the file has to be for so much more, and the reserve behind it."""
        growth = self._volume + volume + (self._writes + rows) * _PAGE_BYTES_PER_WRITE
        return self._used_bytes + growth + self.reserve_bytes

    def _why_full(self, rows: int, volume: int) -> str:
        """Why there is no room for so much more."""
        if self._end_with(rows, volume) > self._limit_bytes:
            return f"the store has reached its {self._limit_bytes} bytes"
        return "the disk is full"

    def _take(self, end: int) -> bool:
        """Have the disk give the file all its blocks up to `end`; False if it does not."""
        if end > self._limit_bytes:
            return False
        begin = self._taken_bytes
        ahead = min(AHEAD_BYTES, self.reserve_bytes)
        for stop in (min(end + ahead, self._limit_bytes), end):
            try:
                os.posix_fallocate(self._data, begin, stop - begin)
            except OSError as error:
                if error.errno not in _OUT_OF_SPACE:
                    raise StoreFailed(self.path, f"it cannot grow ({error})") from error
            else:
                self._taken_bytes = stop
                self._data_bytes = max(self._data_bytes, stop)
                return True
        return False

    def measured_bytes(self) -> int:
        """What the tables occupy now: the rest of the file is used again before it grows."""
        pages = 0
        for database in self.databases:
            counts = self._transaction.stat(database)
            pages += counts["branch_pages"] + counts["leaf_pages"] + counts["overflow_pages"]
        self._live_bytes = pages * self._page_bytes
        return self._live_bytes

    def _release(self) -> None:
        self._environment.close()
        self._journal.close()
        self._mapped.close()
        os.close(self._data)
        os.close(self._lock)

    # --- of Batch ----------------------------------------------------------------------------

    def commit(self, rows: list[Row], volume: int, *, draw: bool) -> None:
        """Make a batch durable whose writes were applied to the transaction."""
        if not draw and not self._has_room_for(len(rows), volume):
            if self._writes and not self._crowded:
                raise NeedsCheckpoint  # they may have come to less than was reckoned with
            raise StoreFull(self.path, self._why_full(len(rows), volume))
        self._writes += len(rows)
        self._volume += volume
        synced = self.durability is Durability.SYNC
        if volume > (STRAIGHT_BYTES if synced else JOURNAL_BYTES // 2):
            self._commit()
            return
        if self._journal.size > 2 * JOURNAL_BYTES:
            raise StoreFull(self.path, "the disk is full")  # for checkpoints, for long
        try:
            self._journal.append(rows)
        except OSError as error:
            if error.errno not in _OUT_OF_SPACE:
                raise StoreFailed(self.path, f"the journal cannot be written ({error})") from error
            self._commit()  # to where there is room
            return
        if synced:
            try:
                self._journal.sync()
            except OSError as error:
                raise StoreFailed(self.path, f"it cannot be synced ({error})") from error
        else:
            self.unsynced = True

    def drop(self, *, outgrown: bool, checkpoint: bool) -> None:
        """Forget a batch whose writes were applied to the transaction."""
        self._transaction.abort()
        try:
            if outgrown:
                self._grow()
        finally:
            self._replay()
        if checkpoint:
            try:
                self._checkpoint()
            except StoreFull:
                self._crowded = True

    def touched(self, size: int) -> None:
        """A batch has read and written values of so many bytes."""
        self._mapped.touched(size)

    # -----------------------------------------------------------------------------------------

    def failure(self, error: lmdb.Error, size: int) -> BftfsError:
        """What an error of LMDB means to the node."""
        if isinstance(error, _DAMAGE):
            return self._damaged(f"it is damaged ({error})")
        # LMDB reports a short write, which is how a full disk shows, as EIO.
        code = getattr(error, "code", errno.EIO)
        if code in _OUT_OF_SPACE or (code == errno.EIO and _disk_is_full(self.path, size + MIB)):
            return StoreFull(self.path, "the disk is full")
        return StoreFailed(self.path, f"the store cannot be used any more ({error})")

    def _damaged(self, reason: str) -> StoreFailed:
        """The store has to be replaced, and says so whenever somebody tries to open it.

        Otherwise the node, started again, would serve until it meets the damage again; and so on.
        """
        self._failed = True
        with contextlib.suppress(OSError):
            (self.path / _DAMAGED_FILE).write_text(reason)
        return StoreFailed(self.path, _advice(reason))

    def _recover(self) -> None:
        """Begin where the last process has ended, in whatever way it did."""
        journal = self._journal
        key = journal.key  # of what there is: it is needed until that is in LMDB's file
        try:
            while True:
                self._replay()
                # Under sync durability a batch is appended once the last one is on stable storage.
                if self.durability is Durability.SYNC and key is not None and journal.breaks_off():
                    raise self._damaged("batches in the midst of its journal are lost")
                journal.key = os.urandom(_JOURNAL_KEY_BYTES)
                journal.sequence += _SEQUENCES_SKIPPED
                try:
                    self._commit()
                    return
                except MapFull:
                    journal.key = key
                    self._grow()
        except StoreFull as full:
            raise UsageError(f"{full}; make room before the node is started") from None

    def _replay(self) -> None:
        """A transaction with all that was committed since the last checkpoint."""
        while True:
            self._transaction = self._environment.begin(write=True)
            self._writes = self._volume = 0
            try:
                for writes in self._journal.replay(self._checkpointed):
                    for table, key, value in writes:
                        if value is None:
                            self._transaction.delete(key, db=self.databases[table])
                        else:
                            self._transaction.put(key, value, db=self.databases[table])
                            self._volume += len(value)
                    self._writes += len(writes)
            except lmdb.MapFullError:
                self._transaction.abort()
                self._grow()
            except lmdb.Error as error:
                raise self.failure(error, self._volume) from error
            except OSError as error:
                raise StoreFailed(self.path, f"the journal cannot be read ({error})") from error
            else:
                return

    def _checkpoint(self) -> None:
        """Bring the transaction to LMDB's file; if there is no room, go on as before and say so."""
        while True:
            try:
                self._commit()
                return
            except MapFull:
                try:
                    self._grow()
                finally:
                    self._replay()
            except StoreFull:
                self._replay()
                raise

    def _commit(self) -> None:
        """Commit the transaction and begin another. After an exception there is none."""
        sequence = self._journal.sequence
        try:
            # LMDB does not write the pages at the end of its file that are free. With the file
            # longer than all of them, one that is too short has lost something.
            self._extend(self._used_bytes + self._needed_bytes)
            meta = self.databases[Table.META]
            self._transaction.put(_CHECKPOINT_KEY, sequence.to_bytes(8, "big"), db=meta)
            room = self._journal.room if self.durability is Durability.SYNC else 0
            self._transaction.put(_JOURNAL_ROOM_KEY, room.to_bytes(8, "big"), db=meta)
            assert self._journal.key is not None
            self._transaction.put(_JOURNAL_SECRET_KEY, self._journal.key, db=meta)
            self._transaction.commit()
        except lmdb.MapFullError:
            self._transaction.abort()  # it is open still if it was not the commit that failed
            raise MapFull from None
        except lmdb.Error as error:
            self._transaction.abort()
            raise self.failure(error, self._volume) from error
        self._journal.clear()
        self._checkpointed = sequence
        self._writes = self._volume = 0
        self._due_bytes, self._due_writes = JOURNAL_BYTES, WRITES_PER_CHECKPOINT
        self._used_bytes = self.used_bytes
        self._taken_bytes = max(self._taken_bytes, self._used_bytes)
        self._crowded = False
        self.unsynced = False
        while self._map_bytes < min(self._used_bytes + self._needed_bytes, self._limit_bytes):
            self._grow()
        self._transaction = self._environment.begin(write=True)

    def _extend(self, size: int) -> None:
        """Make the file at least `size` long; what is added occupies nothing."""
        if size > self._data_bytes:
            os.ftruncate(self._data, size)
            self._data_bytes = size

    def _grow(self) -> None:
        """Map more of the file. Requires: no transaction is open."""
        if self._map_bytes >= self._limit_bytes:
            raise StoreFull(self.path, f"the store has reached its {self._limit_bytes} bytes")
        self._map_bytes = min(2 * self._map_bytes, self._limit_bytes)
        self._environment.set_mapsize(self._map_bytes)
        self._mapped.moved()

    @property
    def _limit_bytes(self) -> int:
        return min(MAP_BYTES_MAX, self._capacity_bytes or MAP_BYTES_MAX)

    @property
    def _needed_bytes(self) -> int:
        """By which the file may have grown at the next checkpoint, with another batch."""
        headroom = min(HEADROOM_BYTES, self._map_bytes // 4)
        return self._volume + self._writes * _PAGE_BYTES_PER_WRITE + headroom

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
            with self._environment.begin(self.databases[Table.META]) as transaction:
                form = transaction.get(_FORMAT_KEY)
                found = transaction.get(_OWNER_KEY)
                checkpoint = transaction.get(_CHECKPOINT_KEY)
                self._journal.key = transaction.get(_JOURNAL_SECRET_KEY)
                room = int.from_bytes(transaction.get(_JOURNAL_ROOM_KEY, b""), "big")
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
        if checkpoint is None:
            raise _unusable(self.path, "it does not say what its journal follows")
        if self._journal.room < room:
            raise _unusable(
                self.path,
                f"its journal is cut short: {self._journal.room} bytes of {room} are left",
            )
        self._checkpointed = int.from_bytes(checkpoint, "big")


class _Syncing(threading.Thread):
    """A sync in progress."""

    def __init__(self, journal: Journal, done: Callable[[], None]) -> None:
        super().__init__(name="sync", daemon=True)
        self.error: OSError | None = None
        self._journal = journal
        self._done = done

    def run(self) -> None:
        """Wait for the disk."""
        try:
            self._journal.sync()
        except OSError as error:
            self.error = error
        self._done()


def _text(value: bytes | None) -> str:
    return "(none)" if value is None else value.decode("ascii", "replace")


def _name(table: Table) -> bytes:
    return table.name.lower().encode()


def _owner(cluster: bytes, node: NodeId) -> bytes:
    return f"node {node} of cluster {cluster.hex()}".encode()


def _unusable(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path}: {_advice(reason)}")


def _advice(reason: str) -> str:
    return (
        f"the store cannot be used: {reason}; move this directory away and start the node "
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


def lock_file(path: Path) -> Path:
    """Stays when the store at `path` is moved away or lost."""
    return path.with_name(path.name + ".lock")


def _lock(path: Path) -> int:
    """Hold the store's lock file, next to it, for as long as the process lives."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_file(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
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
        with _environment(new, MAP_BYTES_INITIAL) as environment:
            databases = [environment.open_db(_name(table)) for table in Table]
            with environment.begin(write=True) as transaction:
                meta = databases[Table.META]
                transaction.put(_FORMAT_KEY, b"%d" % FORMAT, db=meta)
                transaction.put(_OWNER_KEY, owner, db=meta)
                transaction.put(_CHECKPOINT_KEY, bytes(8), db=meta)
        os.truncate(new / _DATA_FILE, 2 * HEADROOM_BYTES)
        (new / _JOURNAL_FILE).touch(mode=0o600)
        _sync_directory(new)
        new.rename(path)
        _sync_directory(path.parent)
    except (OSError, lmdb.Error) as error:
        raise UsageError(f"{path}: the store cannot be made ({error})") from error


def _open_environment(path: Path, map_bytes: int) -> lmdb.Environment:
    with contextlib.suppress(FileNotFoundError):
        raise _unusable(path, (path / _DAMAGED_FILE).read_text(errors="replace"))
    for name in (_DATA_FILE, _JOURNAL_FILE):
        if not (path / name).is_file():
            raise _unusable(path, f"{name} is missing")
    if not (path / _DATA_FILE).stat().st_size:
        raise _unusable(path, f"{_DATA_FILE} is empty")
    try:
        return _environment(path, map_bytes)
    except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
        raise _unusable(path, f"it is damaged ({error})") from error
    except lmdb.Error as error:
        raise UsageError(f"{path}: the store cannot be opened ({error})") from error


def _environment(path: Path, map_bytes: int) -> lmdb.Environment:
    return lmdb.open(str(path), map_size=map_bytes, max_dbs=len(Table), readahead=False, mode=0o600)


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
