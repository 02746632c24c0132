"""A client's part in PASIS read/write: write and read blocks. [PASIS §3.4.3.2, §3.4.3.3]

A data-item is opaque bytes here: whoever encrypts does so above.

**Concurrency.** One engine's conversations may use a client by turns, also on the same block: reads
and writes are linearizable whoever issues them.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial

from bftfs import limits
from bftfs.coding.erasure import Buffer
from bftfs.conversation import Compute, Now, Together
from bftfs.credentials import Credentials
from bftfs.errors import AdmissionRefused
from bftfs.identifiers import BlockId, ClientId, ObjectId
from bftfs.read_write.authorship import Authored, versions_by
from bftfs.read_write.reading import Reading, Version
from bftfs.read_write.repair import Repair
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import BlockTimestamp, beginning_of, successor_of
from bftfs.read_write.writing import Encoded, TimeRound, encode, write_at
from bftfs.thresholds import ReadWriteThresholds


class ReadWriteClient:
    """Reads and writes blocks of one cluster as `client`."""

    __slots__ = ("_session",)

    def __init__(
        self,
        client: ClientId,
        thresholds: ReadWriteThresholds,
        *,
        patience_total_us: int | None = None,
    ) -> None:
        """Operations give up after `patience_total_us` of silence; with None they wait for ever."""
        self._session = Session(client, thresholds, patience_total_us=patience_total_us)

    @property
    def faults(self) -> tuple[int, ...]:
        """For each node, how many of its replies no correct node would have sent."""
        return tuple(self._session.standings.faults)

    # --- WRITE -------------------------------------------------------------------------------

    async def write(self, block: BlockId, item: Buffer, credentials: Credentials) -> BlockTimestamp:
        """Make `item` the block's newest version; over once N - t nodes host it.

        Requires: `item` does not change until then.
        Raises AdmissionRefused if more than t nodes refuse it, QuorumUnavailable after
        `patience_total_us` of silence.
        """
        session = self._session
        time_round = TimeRound(session, (block,))
        await time_round.send()
        # The time is not needed before the fragments are made; meanwhile the nodes answer.
        encoded = await Compute(partial(encode, session.code, item))
        (time,) = await time_round.times()
        return await self._write(block, encoded, time, 0, credentials)

    async def write_many(
        self,
        items: Sequence[tuple[BlockId, Buffer]],
        credentials: Credentials,
        *,
        after_us: int = 0,
        is_asking: bool = True,
    ) -> tuple[BlockTimestamp, ...]:
        """`write` for different blocks at once, later than `after_us`; their timestamps, in order.

        One round of TIME_REQUESTs serves them all. None is sent if the caller answers for it that
        nobody has written these blocks at a time after `after_us`: then this client's clock tells
        a later one. Where he may be wrong, he finds out, and writes again. The first failure is
        raised; which of the other writes have taken place is then unknown.
        """
        session = self._session
        written: list[BlockTimestamp] = []
        for at in range(0, len(items), limits.BLOCKS_PER_TIME_REQUEST):
            batch = items[at : at + limits.BLOCKS_PER_TIME_REQUEST]
            if is_asking:
                time_round = TimeRound(session, [block for block, _ in batch], after_us=after_us)
                await time_round.send()
                times = await time_round.times()
            else:
                times = [max(after_us + 1, await Now())] * len(batch)
            writes = tuple(
                partial(self._encode_and_write, block, item, time, after_us, credentials)
                for (block, item), time in zip(batch, times, strict=True)
            )
            written.extend(await Together(writes))
        return tuple(written)

    async def _encode_and_write(
        self, block: BlockId, item: Buffer, time: int, after_us: int, credentials: Credentials
    ) -> BlockTimestamp:
        encoded = await Compute(partial(encode, self._session.code, item))
        return await self._write(block, encoded, time, after_us, credentials)

    async def _write(
        self,
        block: BlockId,
        encoded: Encoded,
        time: int,
        after_us: int,
        credentials: Credentials,
    ) -> BlockTimestamp:
        session = self._session
        silence = session.silence(session.write_patience)
        for tries_left in reversed(range(limits.TIMES_PER_WRITE)):
            # [PASIS Figure 3.1] MAKE_TIMESTAMP: at most one set of fragments at any logical time.
            timestamp = BlockTimestamp(time, session.client, encoded.verifier)
            try:
                await write_at(
                    session, block, timestamp, encoded, credentials=credentials, silence=silence
                )
                break
            except AdmissionRefused as refused:
                if refused.code != errno.ETIME or not tries_left:
                    raise
            # The write was held up for so long that its time has passed. Some nodes may host it all
            # the same, and readers have seen it: then it must be finished at this timestamp, as
            # its value may not appear twice. Otherwise it takes a new one.
            repair = Repair(session, block, timestamp, encoded, hosts=frozenset())
            if await repair.run():
                break
            time_round = TimeRound(session, (block,), after_us=after_us)
            await time_round.send()
            (time,) = await time_round.times()
        session.validated.add(encoded.verifier)
        return timestamp

    # --- READ --------------------------------------------------------------------------------

    async def read(
        self,
        block: BlockId,
        *,
        before: BlockTimestamp | None = None,
        at_time_us: int | None = None,
    ) -> Version:
        """The latest complete version.

        With `before`, the latest of those strictly below it; with `at_time_us`, the latest of those
        with time <= it. Raises QuorumUnavailable after `patience_total_us` of silence, and
        VersionUnrecoverable if too few fragments are left, or NoLongerKept.
        """
        bounds = [bound for bound in (before, _bound(at_time_us)) if bound is not None]
        return await Reading(self._session, block, min(bounds, default=None)).run()

    async def written(self, block: BlockId, timestamp: BlockTimestamp) -> Version:
        """The version at `timestamp`, which is complete. Raises what `read` raises."""
        return await self.read(block, before=successor_of(timestamp))

    async def read_many(
        self, blocks: Sequence[BlockId], *, at_time_us: int | None = None
    ) -> tuple[Version, ...]:
        """`read` of different blocks at once; their versions, in order."""
        bound = _bound(at_time_us)
        session = self._session
        reads = tuple(Reading(session, block, bound).run for block in blocks)
        versions: tuple[Version, ...] = await Together(reads)
        return versions

    # --- who wrote what ----------------------------------------------------------------------

    async def versions_by(
        self, inodes: Sequence[ObjectId], *, author: ClientId | None, since_us: int
    ) -> Sequence[Authored]:
        """Versions of blocks of these files that `author`, or anybody, wrote since then.

        Whether readers are shown them is another matter. Raises as `read` does.
        """
        return await versions_by(self._session, inodes, author, since_us)


def _bound(at_time_us: int | None) -> BlockTimestamp | None:
    return None if at_time_us is None else beginning_of(at_time_us + 1)
