"""A node's store: LMDB, a database per table of `bftfs.storage`; a journal before it; segments.

**Situation.** A node must not answer before its writes are on stable storage. LMDB alone would need
two flushes and a dozen copied pages for each batch.

**Rule.** The order of a commit:

1. The batch is applied to a write transaction that stays open over many batches.
2. The room that it may need is taken from the disk (`nodes.data_file`).
3. The batch is appended to the journal (`nodes.journal`), or if it has large fragments to a segment
   (`nodes.segments`): from here on it survives a crash.
4. The node answers.
5. At a checkpoint (seldom) segments are flushed, the transaction is committed, the journal begins
   anew, and segments give back the room of fragments that were removed.

LMDB has only the places of fragments that are in segments. Batches of much else, which is too large
to be written twice, skip the journal: a checkpoint commits them. If a batch is dropped after writes
were applied, the transaction is dropped, too; a new one is made from the last checkpoint and the
journal, as after a crash.

**Why it is safe.** A batch is applied whole or not at all. Once `Batch.commit` has returned, the
batch survives a crash of the process, and under `sync` durability of the machine; a crash of the
machine under `interval` durability leaves the batches up to some moment after the last sync. A
store is open in at most one process; nothing is ever written to a store of another format, cluster
or node (`nodes.store_directory`).

**Tests.** `tests/properties/test_store_equivalence.py` (equal to `MemoryStorage`),
`tests/unit/nodes/test_store.py`, `tests/unit/nodes/test_journal.py`,
`tests/unit/nodes/test_segments.py`.

Concurrency: a store belongs to one thread. One batch is open at a time. Under interval durability a
thread of the store's own waits for the disk; it touches nothing else. The only module beside
`nodes.store_directory` that imports lmdb.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import takewhile
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb

from bftfs.cluster import Durability
from bftfs.errors import BftfsError, UsageError
from bftfs.identifiers import NodeId
from bftfs.limits import KIB, MIB
from bftfs.printable import as_word
from bftfs.server.room import Figures
from bftfs.storage import Table, Write
from nodes import store_directory
from nodes.data_file import OUT_OF_SPACE, PAGE_BYTES_PER_WRITE, DiskSpace, MappedFile, disk_is_full
from nodes.journal import Journal, encoded
from nodes.segments import (
    FRAGMENT_BYTES_LEAST,
    NOTES,
    Extent,
    Flush,
    SegmentLost,
    SegmentRecord,
    Segments,
    extent_in,
    inline,
    inlined_in,
)
from nodes.store_directory import (
    MapFull,
    NeedsCheckpoint,
    SegmentsFull,
    StoreFailed,
    StoreFull,
    advice,
    unusable,
)

MAP_BYTES_INITIAL = 1024 * MIB  # address space, not disk: the file grows as its pages are used
MAP_BYTES_MAX = 1 << 44
HEADROOM_BYTES = 32 * MIB  # room for a batch, so that the map need not grow during it
JOURNAL_BYTES = 8 * MIB  # size of the journal at which a checkpoint is due…
WRITES_PER_CHECKPOINT = 8_192  # …or number of writes, whose pages are in memory until then
STRAIGHT_BYTES = 256 * KIB  # larger batches are not worth writing twice, if they must be synced

_TABLE_KEY_VALUE = attrgetter("table", "key", "value")
_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)
# A store that is opened again skips so many sequence numbers. So records of the process before, of
# which a crash of the machine may have kept some, are never taken for records of this one.
_SEQUENCES_SKIPPED = 1 << 32


class Batch:
    """A `StorageView` that shows the writes of its earlier steps; committed whole, or dropped.

    If it is left without `commit`, nothing of it is stored.
    """

    __slots__ = (
        "_databases",
        "_record",
        "_rows",
        "_store",
        "_transaction",
        "bytes_moved",
        "volume",
        "writes",
    )

    def __init__(self, store: Store, transaction: lmdb.Transaction[bytes]) -> None:
        self._store = store
        self._transaction = transaction
        self._databases = store.databases
        self._rows: list[Write] = []
        self._record: SegmentRecord | None = None  # the fragments that go to a segment
        self.writes = 0
        self.volume = 0  # bytes of the values written to LMDB
        self.bytes_moved = 0  # bytes of values that fill pages of their own

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value at `key`, or None."""
        try:
            value = self._transaction.get(key, None, self._databases[table])
        except lmdb.Error as error:
            raise self._store.failure(error, 0) from error
        if value is not None and len(value) > 2048:
            self.bytes_moved += len(value)
        if table is Table.FRAGMENT and value is not None:
            return self._fragment(key, value)
        return value

    def _fragment(self, key: bytes, row: bytes) -> bytes:
        """The fragment that a row holds or points to."""
        extent = extent_in(key, row)
        if extent is None:
            return inlined_in(row)
        if self._record is not None:
            fragment = self._record.fragment_at(extent)
            if fragment is not None:
                return fragment
        return self._store.fragment(extent)

    def scan(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop in key order, or in reverse key order."""
        return self._walk(table, start, stop, reverse, True)

    def keys(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Like `scan`, without touching the values."""
        return self._walk(table, start, stop, reverse, False)

    def _walk(
        self, table: Table, start: bytes, stop: bytes, reverse: bool, values: bool
    ) -> Iterator[Any]:
        """Lazily, the key of each row, or the pair if `values`."""
        try:
            cursor = self._transaction.cursor(self._databases[table])
            found = _last_before(cursor, stop) if reverse else cursor.set_range(start)
            if not found or start >= stop:
                return
            for key in (cursor.iterprev if reverse else cursor.iternext)(True, False):
                if key < start if reverse else key >= stop:
                    return
                if not values:
                    yield key
                elif table is Table.FRAGMENT:
                    yield key, self._fragment(key, cursor.value())
                else:
                    yield key, cursor.value()
        except lmdb.Error as error:
            raise self._store.failure(error, 0) from error

    def count(self, table: Table) -> int:
        """How many rows the table has."""
        try:
            entries: int = self._transaction.stat(self._databases[table])["entries"]
        except lmdb.Error as error:
            raise self._store.failure(error, 0) from error
        return entries

    def apply(self, writes: Sequence[Write]) -> None:
        """Apply all of `writes`, in order; reads see them from now on."""
        rows = [self._row(write) if write.table is Table.FRAGMENT else write for write in writes]
        self.writes += len(rows)
        self._rows += rows
        try:
            self.volume += self._store.put(rows)
        except lmdb.MapFullError:
            raise MapFull from None
        except lmdb.Error as error:
            raise self._store.failure(error, self.volume) from error

    def _row(self, write: Write) -> Write:
        """The row for a fragment, which goes to a segment if it is large."""
        key, fragment = write.key, write.value
        segments = self._store.segments
        if fragment is None:
            return write
        if len(fragment) < FRAGMENT_BYTES_LEAST or segments.is_full:
            return Write(Table.FRAGMENT, key, inline(fragment))
        if self._record is None:
            self._record = segments.record()
        return Write(Table.FRAGMENT, key, self._record.add(fragment).row(key))

    def commit(self, *, use_reserve: bool = False) -> None:
        """Make the batch durable, as the store's durability says.

        Raises StoreFull if there is no room, NeedsCheckpoint if a checkpoint must tell.
        """
        if self.writes:
            self._store.commit(self._rows, self.volume, self._record, use_reserve=use_reserve)
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
            self._store.drop(kind)
        self._store.mapped.touched(self.bytes_moved + self.volume)


class Store:
    """An open store. `with store.batch() as batch: …; batch.commit()`."""

    def __init__(
        self,
        path: Path,
        environment: lmdb.Environment,
        head: store_directory.Head,
        lock: int,
        durability: Durability,
        limit_bytes: int,
    ) -> None:
        self.path = path
        self.durability = durability
        self.databases = head.databases
        self.unsynced = False  # True if something committed is not on stable storage yet
        self._failed = False  # True if damage was found
        self._environment = environment
        self._lock = lock
        self._map_bytes: int = environment.info()["map_size"]
        data = path / store_directory.DATA_FILE
        self.space = DiskSpace(
            data,
            used_bytes=store_directory.used_bytes(environment),
            limit_bytes=limit_bytes,
            content=self._content,
        )
        self.mapped = MappedFile(data)
        synced = durability is Durability.SYNC
        self.segments = Segments(path / store_directory.SEGMENTS, synced=synced)
        self.space.others = self.segments.room
        self._journal = Journal(
            path / store_directory.JOURNAL_FILE,
            key=head.journal_key,
            synced=synced,
        )
        self._syncing: Future[None] | None = None
        self._transaction: lmdb.Transaction[bytes]
        self._checkpointed = head.checkpoint  # sequence of the last batch that LMDB holds
        self._writes = 0  # since then
        self._due_bytes, self._due_writes = JOURNAL_BYTES, WRITES_PER_CHECKPOINT

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
        owner = store_directory.owner_of(cluster, node)
        limit = min(MAP_BYTES_MAX, capacity_bytes or MAP_BYTES_MAX)
        with contextlib.ExitStack() as undo:
            lock = store_directory.lock(path)
            undo.callback(os.close, lock)
            if not path.exists():
                store_directory.create(path, owner=owner, map_bytes=MAP_BYTES_INITIAL)
            environment = store_directory.open_environment(path, min(map_bytes, limit))
            undo.callback(environment.close)
            head = store_directory.read_head(path, environment, owner=owner)
            try:
                store = cls(path, environment, head, lock, durability, limit)
            except OSError as error:
                raise UsageError(
                    f"{as_word(path)}: the store cannot be opened ({error.strerror})"
                ) from None
            undo.pop_all()
            undo.callback(store._release)
            store._load_segments()
            store._recover()
            store.space.fits(0)  # so that the reserve is there from the beginning
            undo.pop_all()
        return store

    def batch(self) -> Batch:
        """A new batch. One in which nothing is written costs nothing."""
        if not self.space.is_intact():
            # Touching a page beyond the end of the file would kill the process; and a file without
            # a name is gone at the next start.
            raise self._damaged("somebody has removed or cut short its file while it was in use")
        self.maintain()
        return Batch(self, self._transaction)

    def maintain(self) -> None:
        """Make a checkpoint if one is due; called after replies have been sent, which do not
        wait."""
        if (
            self._journal.size >= self._due_bytes
            or self._writes >= self._due_writes
            or self._map_is_short
            or self.segments.is_long
        ):
            try:
                self._checkpoint()
            except StoreFull:
                # Nothing is lost: the journal has everything, and grows. Later batches try again.
                self._due_bytes = self._journal.size + JOURNAL_BYTES // 4
                self._due_writes = self._writes + WRITES_PER_CHECKPOINT // 4
                self.segments.put_off()

    def sync(self) -> None:
        """Bring everything that is committed to stable storage."""
        self.finish_sync()
        if self.unsynced:
            self.start_sync(lambda: None)
            self.finish_sync()

    def start_sync(self, done: Callable[[], None]) -> None:
        """Begin to sync everything committed so far; `done` is called in another thread.

        Requires: no sync has been started that was not finished.
        """
        assert self._syncing is None
        self.unsynced = False
        self._syncing = Future()
        self._syncing.add_done_callback(lambda _: done())
        try:
            flush = self.segments.flush()
        except SegmentLost as lost:
            raise self._damaged(str(lost)) from None
        except OSError as error:
            raise self._failed_segment(error) from error
        threading.Thread(
            target=self._sync, args=(self._syncing, flush), name="sync", daemon=True
        ).start()

    def _sync(self, syncing: Future[None], flush: Flush) -> None:
        try:
            flush.run()  # before the records that follow in the journal
            self._journal.sync()
            syncing.set_result(None)
        except OSError as error:
            syncing.set_exception(error)

    def finish_sync(self) -> None:
        """Wait for the sync that was started last, if there is one."""
        syncing, self._syncing = self._syncing, None
        try:
            if syncing is not None:
                syncing.result()
        except OSError as error:
            raise StoreFailed(self.path, f"it cannot be synced ({error})") from error

    @property
    def syncing(self) -> bool:
        """True if a sync has been started and not been finished."""
        return self._syncing is not None

    def settled_figures(self) -> Figures:
        """Its room, after a checkpoint if there is room for one: then the figures are exact.

        Requires: no batch is open.
        """
        if self._writes:
            with contextlib.suppress(StoreFull):
                self._checkpoint()
        self.segments.is_full = False  # the next batch finds out
        return self.space.measure()

    def disk_bytes(self) -> int:
        """The bytes that the store occupies on its disk; some are allocated ahead of need."""
        return store_directory.disk_bytes(self.path) + self.segments.room().held_bytes

    def close(self) -> bool:
        """Sync and close. Another process may open the store from now on.

        False if it has failed: nothing that was not committed can be saved.
        """
        try:
            if self._failed:
                return False
            self.sync()
            with contextlib.suppress(StoreFull):  # then the journal has it
                self._checkpoint()
            self._transaction.abort()
            self.segments.cut_off()
            return True
        finally:
            self._release()

    def _content(self) -> tuple[int, int]:
        """The bytes of all tables, and the number of objects, at the moment."""
        pages = 0
        for database in self.databases:
            counts = self._transaction.stat(database)
            pages += counts["branch_pages"] + counts["leaf_pages"] + counts["overflow_pages"]
        objects: int = self._transaction.stat(self.databases[Table.OBJECT])["entries"]
        return pages * counts["psize"], objects

    def _release(self) -> None:
        self._environment.close()
        self._journal.close()
        self.segments.close()
        self.mapped.close()
        self.space.close()
        os.close(self._lock)

    # --- of Batch ----------------------------------------------------------------------------

    def put(self, rows: Iterable[Write]) -> int:
        """Apply rows to the transaction; the bytes of their values. May raise lmdb's errors."""
        transaction, databases, volume = self._transaction, self.databases, 0
        for table, key, value in map(_TABLE_KEY_VALUE, rows):
            database = databases[table]
            if value is not None:
                volume += len(value)
            if table is Table.FRAGMENT:
                self._put_fragment(key, value, database)
            elif value is None:
                transaction.delete(key, db=database)
            else:
                transaction.put(key, value, db=database)
        return volume

    def _put_fragment(self, key: bytes, row: bytes | None, database: lmdb._Database) -> None:
        """Put or delete a row for a fragment, and note which blocks of segments that frees."""
        if row is None:
            before = self._transaction.pop(key, db=database)
        else:
            before = self._transaction.replace(key, row, db=database)
            extent = extent_in(key, row)
            if extent is not None:
                self.segments.points(extent)
        extent = None if before is None else extent_in(key, before)
        if extent is not None:
            self.segments.points_no_more(extent)

    def fragment(self, extent: Extent) -> bytes:
        """A fragment that a segment holds."""
        try:
            return self.segments.fragment(extent)
        except SegmentLost as lost:
            raise self._damaged(str(lost)) from None
        except OSError as error:
            raise self._failed_segment(error) from error

    def commit(
        self, rows: list[Write], volume: int, record: SegmentRecord | None, *, use_reserve: bool
    ) -> None:
        """Make a batch durable whose writes were applied to the transaction."""
        space = self.space
        growth = volume + len(rows) * PAGE_BYTES_PER_WRITE
        if not use_reserve and not space.fits(growth):
            if self._writes:
                raise NeedsCheckpoint  # the file may have grown less than was assumed
            raise StoreFull(self.path, space.why_full(growth))
        synced = self.durability is Durability.SYNC
        straight = volume > (STRAIGHT_BYTES if synced else JOURNAL_BYTES // 2)
        if record is not None:
            self._append(record, () if straight else rows)
        self._writes += len(rows)
        space.growth_bytes += growth
        if straight or (record is None and not self._log(rows)):
            self._commit_transaction()
        elif not synced:
            self.unsynced = True

    def _append(self, record: SegmentRecord, rows: Sequence[Write]) -> None:
        """Write a batch to a segment, in place of the journal."""
        space, segments, journal = self.space, self.segments, self._journal
        batch = encoded(rows)
        try:
            if segments.take(record.size + len(batch), space.ahead_bytes, space.allows):
                segments.append(record, journal.sequence + 1, journal.key, batch)
                journal.skip()
                return
        except SegmentLost as lost:
            raise self._damaged(str(lost)) from None
        except OSError as error:
            if error.errno not in OUT_OF_SPACE:
                raise self._failed_segment(error) from error
        if segments.freed_bytes and self._writes:
            raise NeedsCheckpoint
        segments.is_full = True  # until the next checkpoint
        raise SegmentsFull

    def _failed_segment(self, error: OSError) -> StoreFailed:
        return StoreFailed(self.path, f"a segment cannot be used any more ({error})")

    def _log(self, rows: list[Write]) -> bool:
        """Append a batch to the journal; False if it does not fit, and only LMDB's file may do."""
        if self._journal.size > 2 * JOURNAL_BYTES:
            raise StoreFull(self.path, "the disk is full")  # checkpoints have failed for long
        try:
            self._journal.append(rows)
        except OSError as error:
            if error.errno in OUT_OF_SPACE:
                return False
            raise StoreFailed(self.path, f"the journal cannot be written ({error})") from error
        if self.durability is Durability.SYNC:
            try:
                self._journal.sync()
            except OSError as error:
                raise StoreFailed(self.path, f"it cannot be synced ({error})") from error
        return True

    def drop(self, reason: type[BaseException] | None) -> None:
        """Forget a batch whose writes were applied, and prepare for it to be stepped again."""
        self._transaction.abort()
        try:
            if reason is MapFull:
                self._grow()
        finally:
            self._replay()
        if reason is NeedsCheckpoint:
            self._checkpoint()

    # -----------------------------------------------------------------------------------------

    def failure(self, error: lmdb.Error, size: int) -> BftfsError:
        """Translates an error of LMDB, which was about to write `size` bytes."""
        if isinstance(error, _DAMAGE):
            return self._damaged(f"it is damaged ({error})")
        # LMDB reports a short write, which is how a full disk shows, as EIO.
        code = getattr(error, "code", errno.EIO)
        if code in OUT_OF_SPACE or (code == errno.EIO and disk_is_full(self.path, size + MIB)):
            return StoreFull(self.path, "the disk is full")
        return StoreFailed(self.path, f"the store cannot be used any more ({error})")

    def _damaged(self, reason: str) -> StoreFailed:
        """Mark the store as damaged, so that it is not opened any more.

        Otherwise the node, started again, would serve until it finds the damage again, and so on.
        """
        self._failed = True
        with contextlib.suppress(OSError):
            (self.path / store_directory.DAMAGED_FILE).write_text(reason)
        return StoreFailed(self.path, advice(reason))

    def _load_segments(self) -> None:
        """Find the segments, and refuse a store that has lost one."""
        try:
            with self._environment.begin(self.databases[Table.META]) as transaction:
                cursor = transaction.cursor()
                first, end = NOTES
                notes = []
                if cursor.set_range(first):
                    notes = list(takewhile(lambda row: row[0] < end, cursor))
            self.segments.load(notes)
        except SegmentLost as lost:
            raise unusable(self.path, str(lost)) from None
        except (OSError, struct.error) as error:
            raise unusable(self.path, f"its segments cannot be read ({error})") from None

    def _recover(self) -> None:
        """Continue where the last process ended, even if it was killed."""
        journal = self._journal
        key = journal.key  # needed until its records are in LMDB's file
        try:
            while True:
                self._replay()
                # Under sync durability a batch is appended once the last one is on stable storage.
                if self.durability is Durability.SYNC and (
                    journal.breaks_off() or self.segments.breaks_off(journal.sequence, journal.key)
                ):
                    raise self._damaged("batches in the middle of its journal are lost")
                journal.key = os.urandom(store_directory.JOURNAL_KEY_BYTES)
                journal.sequence += _SEQUENCES_SKIPPED
                self.segments.end_replay()
                try:
                    self._commit_transaction()
                    return
                except MapFull:
                    journal.key = key
                    self._grow()
        except StoreFull as full:
            raise UsageError(f"{full}; make room before the node is started") from None

    def _replay(self) -> None:
        """Begin a transaction, with all that was committed since the last checkpoint."""
        while True:
            self._transaction = self._environment.begin(write=True)
            self._writes = self.space.growth_bytes = 0
            self.segments.rewind()
            try:
                for writes in self._journal.replay(self._checkpointed, self._recorded):
                    self.space.growth_bytes += self.put(writes)
                    self._writes += len(writes)
                    self.space.growth_bytes += len(writes) * PAGE_BYTES_PER_WRITE
                return
            except lmdb.MapFullError:
                self._transaction.abort()
                self._grow()
            except lmdb.Error as error:
                raise self.failure(error, self.space.growth_bytes) from error
            except OSError as error:
                raise StoreFailed(self.path, f"the journal cannot be read ({error})") from error

    def _recorded(self, sequence: int) -> list[Write] | None:
        return self.segments.next_rows(sequence, self._journal.key)

    def _checkpoint(self) -> None:
        """Write the transaction to LMDB's file. Raises StoreFull if there is no room."""
        while True:
            try:
                self._commit_transaction()
                return
            except MapFull:
                try:
                    self._grow()
                finally:
                    self._replay()
            except StoreFull:
                self._replay()
                raise

    def _commit_transaction(self) -> None:
        """Commit the transaction and begin another. After an exception there is none."""
        journal, space = self._journal, self.space
        sequence = journal.sequence
        room = journal.file_bytes if self.durability is Durability.SYNC else 0
        try:
            # LMDB does not write the pages at the end of its file that are free. With the file
            # longer than all of them, one that is too short has lost something.
            space.extend(self._needed_bytes)
            self.segments.flush().run()  # rows of LMDB's file point to what is there
            self.segments.begin_next()
            self.put(
                Write(Table.META, name, value)
                for name, value in (
                    (store_directory.CHECKPOINT, sequence.to_bytes(8, "big")),
                    (store_directory.JOURNAL_ROOM, room.to_bytes(8, "big")),
                    (store_directory.JOURNAL_KEY, journal.key),
                    *self.segments.notes(),
                )
            )
            self._transaction.commit()
        except lmdb.MapFullError:
            self._transaction.abort()  # still open if something else than the commit failed
            raise MapFull from None
        except lmdb.Error as error:
            self._transaction.abort()
            raise self.failure(error, space.growth_bytes) from error
        except SegmentLost as lost:
            self._transaction.abort()
            raise self._damaged(str(lost)) from None
        except OSError as error:
            self._transaction.abort()
            raise self._failed_segment(error) from error
        journal.clear()
        self._checkpointed = sequence
        self._writes = 0
        self._due_bytes, self._due_writes = JOURNAL_BYTES, WRITES_PER_CHECKPOINT
        self._let_go()
        space.checkpointed(store_directory.used_bytes(self._environment))
        self.unsynced = False
        while self._map_is_short:
            self._grow()
        self._transaction = self._environment.begin(write=True)

    def _let_go(self) -> None:
        """Give back to the disk what the checkpoint has freed in segments."""
        try:
            self.segments.checkpointed()
        except SegmentLost as lost:
            raise self._damaged(str(lost)) from None
        except OSError as error:
            raise self._failed_segment(error) from error

    def _grow(self) -> None:
        """Map more of the file. Requires: no transaction is open."""
        limit = self.space.limit_bytes
        if self._map_bytes >= limit:
            raise StoreFull(self.path, self.space.limit_reached)
        self._map_bytes = min(2 * self._map_bytes, limit)
        self._environment.set_mapsize(self._map_bytes)
        self.mapped.moved()

    @property
    def _needed_bytes(self) -> int:
        """The longest that the file can be after the next checkpoint and another batch."""
        headroom = min(HEADROOM_BYTES, self._map_bytes // 4)
        return self.space.used_bytes + self.space.growth_bytes + headroom

    @property
    def _map_is_short(self) -> bool:
        return self._map_bytes < self._needed_bytes and self._map_bytes < self.space.limit_bytes


def _last_before(cursor: lmdb.Cursor[bytes], stop: bytes) -> bool:
    """Put `cursor` on the last row before `stop`; False if there is none."""
    return cursor.prev() if cursor.set_range(stop) else cursor.last()
