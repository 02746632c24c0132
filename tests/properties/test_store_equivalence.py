"""The LMDB store of a node and the in-memory store that specifies it give the same answers."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bftfs.cluster import Durability
from bftfs.identifiers import NodeId
from bftfs.limits import KIB
from bftfs.storage import MemoryStorage, StorageView, Table, Write
from nodes import segments
from nodes import store as stores
from nodes.segments import extent_in
from nodes.store import Store
from nodes.store_directory import MapFull

CLUSTER = b"c" * 16

tables = st.sampled_from((Table.STATE, Table.PAST, Table.FRAGMENT))
# Few distinct keys, so that they collide; some share prefixes, some are as long as they may be.
keys = st.one_of(
    st.binary(min_size=1, max_size=2),
    st.sampled_from((b"a" * 400, b"a" * 400 + b"\0", b"a" * 400 + b"\xff", b"\xff", b"\xff\xff")),
)
bounds = st.one_of(st.just(b""), keys)
values = st.one_of(
    st.binary(max_size=40),
    st.binary(min_size=1, max_size=1).map(lambda byte: byte * 30 * KIB),
)
writes = st.lists(
    st.builds(Write, tables, keys, st.one_of(st.none(), values, values.map(memoryview))),
    max_size=8,
)


def everything(view: StorageView) -> dict[Table, list[tuple[bytes, bytes]]]:
    """All that protocols have stored; the store keeps its own affairs in Table.META."""
    return {
        table: list(view.scan(table, b"", b"\xff" * 500))
        for table in Table
        if table is not Table.META
    }


class StoreEquivalence(RuleBasedStateMachine):
    """Batches applied to both stores; looked at at once, after checkpoints, and after reopening."""

    durability = Durability.SYNC

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="store-"))
        self.committed = MemoryStorage()
        self.store = self.opened()
        self.model = self.committed.snapshot()
        self.batch = self.store.batch()
        self.applied: list[Write] = []

    def opened(self) -> Store:
        return Store.open(
            self.path / "store",
            cluster=CLUSTER,
            node=NodeId(0),
            durability=self.durability,
            map_bytes=128 * KIB,  # so that it is outgrown
        )

    def teardown(self) -> None:
        self.batch.__exit__(None, None, None)
        self.store.close()
        shutil.rmtree(self.path)

    def end_batch(self, error: type[BaseException] | None = None) -> None:
        self.batch.__exit__(error, None, None)

    @rule(written=writes)
    def apply(self, written: list[Write]) -> None:
        self.applied += written
        self.model.apply(written)
        try:
            self.batch.apply(written)
        except MapFull:
            self.step_again()

    def step_again(self) -> None:
        """Leave the batch, and apply everything to one in a larger map."""
        while True:
            self.end_batch(MapFull)
            self.batch = self.store.batch()
            assert everything(self.batch) == everything(self.committed)
            try:
                self.batch.apply(self.applied)
            except MapFull:
                continue
            return

    @rule()
    def commit(self) -> None:
        while True:
            try:
                self.batch.commit()
                break
            except MapFull:
                self.step_again()
        self.end_batch()
        self.committed = self.model.snapshot()
        self.batch, self.applied = self.store.batch(), []

    @rule()
    def abort(self) -> None:
        self.end_batch()
        self.model = self.committed.snapshot()
        self.batch, self.applied = self.store.batch(), []

    @rule()
    def checkpoint(self) -> None:
        self.end_batch()
        self.store._checkpoint()
        self.model = self.committed.snapshot()
        self.batch, self.applied = self.store.batch(), []

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        self.end_batch()
        if clean:
            self.store.close()
        else:
            self.store._transaction.abort()  # what a process does not live to say
            self.store._release()
        self.store = self.opened()
        self.model = self.committed.snapshot()
        self.batch, self.applied = self.store.batch(), []

    @rule(table=tables, key=keys)
    def get(self, table: Table, key: bytes) -> None:
        assert self.batch.get(table, key) == self.model.get(table, key)

    @rule(table=tables, start=bounds, stop=bounds, reverse=st.booleans())
    def scan(self, table: Table, start: bytes, stop: bytes, reverse: bool) -> None:
        expected = list(self.model.scan(table, start, stop, reverse=reverse))
        assert list(self.batch.scan(table, start, stop, reverse=reverse)) == expected
        assert list(self.batch.keys(table, start, stop, reverse=reverse)) == [
            key for key, _ in expected
        ]

    @rule(table=tables, start=bounds, stop=bounds, reverse=st.booleans())
    def look_at_the_first_row_only(
        self, table: Table, start: bytes, stop: bytes, reverse: bool
    ) -> None:
        expected = next(self.model.scan(table, start, stop, reverse=reverse), None)
        assert next(self.batch.scan(table, start, stop, reverse=reverse), None) == expected

    @invariant()
    def the_batch_shows_what_was_applied(self) -> None:
        assert everything(self.batch) == everything(self.model)


class IntervalStoreEquivalence(StoreEquivalence):
    """The same, synced from time to time."""

    durability = Durability.INTERVAL

    @rule()
    def sync(self) -> None:
        self.end_batch()
        self.store.sync()
        self.model = self.committed.snapshot()
        self.batch, self.applied = self.store.batch(), []


class StraightStoreEquivalence(StoreEquivalence):
    """The same, with most batches large enough to go straight to LMDB's file."""

    @initialize()
    def lower_the_threshold(self) -> None:
        self.threshold = stores.STRAIGHT_BYTES
        stores.STRAIGHT_BYTES = 50

    def teardown(self) -> None:
        stores.STRAIGHT_BYTES = self.threshold
        super().teardown()


class SegmentStoreEquivalence(StoreEquivalence):
    """The same, with most fragments in segments, of which there are many."""

    @initialize()
    def lower_the_thresholds(self) -> None:
        self.thresholds = (stores.FRAGMENT_BYTES_LEAST, segments.SEGMENT_BYTES)
        stores.FRAGMENT_BYTES_LEAST, segments.SEGMENT_BYTES = 5, 40 * KIB

    def teardown(self) -> None:
        super().teardown()
        stores.FRAGMENT_BYTES_LEAST, segments.SEGMENT_BYTES = self.thresholds

    @invariant()
    def live_bytes_are_those_of_the_rows(self) -> None:
        self.end_batch()
        self.store._checkpoint()
        live: Counter[int] = Counter()
        with self.store._transaction.cursor(self.store.databases[Table.FRAGMENT]) as cursor:
            for key, row in cursor:
                extent = extent_in(key, row)
                if extent is not None:
                    live[extent.segment] += extent.block_bytes
        kept = self.store.segments._counts
        assert {number: each.live_bytes for number, each in kept.items() if each.live_bytes} == live
        names = {int(file.name) for file in (self.path / "store" / "segments").iterdir()}
        assert live.keys() <= names <= live.keys() | {self.store.segments.number}
        self.batch = self.store.batch()
        self.batch.apply(self.applied)


bounded = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestStoreEquivalence = StoreEquivalence.TestCase
TestStoreEquivalence.settings = bounded
TestIntervalStoreEquivalence = IntervalStoreEquivalence.TestCase
TestIntervalStoreEquivalence.settings = bounded
TestStraightStoreEquivalence = StraightStoreEquivalence.TestCase
TestStraightStoreEquivalence.settings = bounded
TestSegmentStoreEquivalence = SegmentStoreEquivalence.TestCase
TestSegmentStoreEquivalence.settings = bounded
