"""`bftfs node convert`: takes over a store of the format before, in which LMDB held all fragments.

The rows are copied to a new store beside the old one, and the two change places in one step. So
until then nothing has happened, whatever interrupts it; and what was begun is begun anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import lmdb

from bftfs.cluster import Durability
from bftfs.durable_files import sync_directory
from bftfs.errors import UsageError
from bftfs.identifiers import NodeId
from bftfs.limits import MIB
from bftfs.printable import as_word
from bftfs.server import known_runs
from bftfs.storage import Table, Write
from nodes import store_directory
from nodes.journal import Journal
from nodes.store import MAP_BYTES_INITIAL, MAP_BYTES_MAX, Store
from nodes.store_directory import StepAgain, StoreFull
from nodes.store_place import place_of

FORMAT_BEFORE = 1

_BATCH_BYTES = 4 * MIB
_BATCH_ROWS = 2_000
_OWNER = re.compile(rb"node (\d+) of cluster ([0-9a-f]+)")
_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE
_renameat2 = ctypes.CDLL(None, use_errno=True).renameat2


def convert(path: Path) -> bool:
    """Take over the store at `path`; False if it has the present format already.

    A UsageError says why it cannot be done, and what to do. The store's node must not run.
    """
    if not path.is_dir():
        raise UsageError(f"{as_word(path)}: there is no store; give the node's own directory")
    new = path.with_name(path.name + ".converted")
    lock = store_directory.lock(path)
    try:
        converted = _convert(path, new)
        shutil.rmtree(new, ignore_errors=True)
        store_directory.lock_file(new).unlink(missing_ok=True)
        return converted
    finally:
        os.close(lock)


def _convert(path: Path, new: Path) -> bool:
    """Put the converted store in its place, and the one of the format before at `new`."""
    with store_directory.open_environment(path, _map_bytes(path)) as environment:
        form, owner = store_directory.form_and_owner(path, environment)
        if form == b"%d" % store_directory.FORMAT:
            return False
        found = None if owner is None else _OWNER.fullmatch(owner)
        if form != b"%d" % FORMAT_BEFORE or found is None:
            raise store_directory.other_format(path, form)
        cluster, node = bytes.fromhex(found[2].decode()), NodeId(int(found[1]))
        _copy(path, environment, new, cluster=cluster, node=node)
    _exchange(path, new)
    return True


def _map_bytes(path: Path) -> int:
    """Enough to map the store's file and whatever its journal adds."""
    try:
        size = (path / store_directory.DATA_FILE).stat().st_size
    except FileNotFoundError:
        size = 0  # that it is missing is told when it is opened
    return min(MAP_BYTES_MAX, 2 * size + MAP_BYTES_INITIAL)


def _copy(
    path: Path,
    environment: lmdb.Environment,
    new: Path,
    *,
    cluster: bytes,
    node: NodeId,
) -> None:
    head = store_directory.opened_head(path, environment)
    shutil.rmtree(new, ignore_errors=True)
    _refuse_without_room(path, environment)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, new, ignore_errors=True)
        _copy_rows(path, environment, head, new, cluster=cluster, node=node)
        undo.pop_all()


def _copy_rows(
    path: Path,
    environment: lmdb.Environment,
    head: store_directory.Head,
    new: Path,
    *,
    cluster: bytes,
    node: NodeId,
) -> None:
    # With what its journal has: in a transaction that is never committed.
    with environment.begin(write=True) as transaction:
        journal = Journal(path / store_directory.JOURNAL_FILE, key=head.journal_key, synced=False)
        try:
            for writes in journal.replay(head.checkpoint):
                for write in writes:
                    database = head.databases[write.table]
                    if write.value is None:
                        transaction.delete(write.key, db=database)
                    else:
                        transaction.put(write.key, write.value, db=database)
            if journal.breaks_off():
                raise store_directory.unusable(
                    path, "batches in the middle of its journal are lost"
                )
        finally:
            journal.close()
        store = Store.open(new, cluster=cluster, node=node, durability=Durability.INTERVAL)
        try:
            for batch in _batches(transaction, head.databases):
                _put(store, batch)
            # A node that was killed has noted where its store lies: it was not copied from there.
            with store.batch() as view:
                note = known_runs.moved(view, place_of(path), place_of(new))
            _put(store, note)
        except StoreFull as full:
            raise UsageError(f"{full}; nothing was changed: make room and try again") from None
        finally:
            store.close()
        transaction.abort()


def _put(store: Store, writes: list[Write]) -> None:
    while True:
        try:
            with store.batch() as batch:
                batch.apply(writes)
                batch.commit()
        except StepAgain:
            continue
        store.maintain()
        return


def _batches(
    transaction: lmdb.Transaction[bytes], databases: store_directory.Databases
) -> Iterator[list[Write]]:
    """All rows but the store's own notes."""
    writes: list[Write] = []
    volume = 0
    for table in Table:
        for key, value in transaction.cursor(databases[table]):
            if table is Table.META and key in store_directory.OWN_NOTES:
                continue
            writes.append(Write(table, key, value))
            volume += len(value)
            if volume >= _BATCH_BYTES or len(writes) == _BATCH_ROWS:
                yield writes
                writes, volume = [], 0
    yield writes


def _refuse_without_room(path: Path, environment: lmdb.Environment) -> None:
    disk = os.statvfs(path)
    free, needed = disk.f_bavail * disk.f_frsize, store_directory.used_bytes(environment)
    if free < needed:
        raise UsageError(
            f"{as_word(path)}: a copy of up to {needed // MIB} MiB has to fit beside it for a "
            f"while, and the disk has {free // MIB} MiB; make room, or move this directory away "
            "and start the node: it rebuilds its store from the other nodes"
        )


def _exchange(path: Path, new: Path) -> None:
    """Let the two directories change places, in one step."""
    if _renameat2(_HERE, os.fsencode(path), _HERE, os.fsencode(new), _EXCHANGE):
        why = os.strerror(ctypes.get_errno())
        raise UsageError(
            f"{as_word(new)}: it is the converted store, and cannot be put in its place ({why}); "
            f"move {as_word(path)} away, and it to where that was"
        )
    sync_directory(path.parent)
