"""A client's part in PASIS read/write: write and read blocks. [PASIS §3.4.3.2, §3.4.3.3]

**Start here.** A block is a register. Each write makes a new version, named by a timestamp; nodes
keep versions side by side, and each node has one of N fragments of every version, any m of which
give the item back.

One write (`write`, with N = 6, t = b = 1, QC = 4, m = 3):

1. Four nodes are asked for the block's latest time (`writing.TimeRound`). The second largest of
   these times is safe against one liar; the version's time is one above, or this client's clock.
2. Meanwhile the item is encoded to six fragments. Their digests are the cross-checksum, whose
   digest is the verifier in the timestamp (`writing.encode`).
3. Each node is sent its fragment, with timestamp and cross-checksum (`writing.write_at`). It
   checks that the one binds the other, and that this client may write here (`server._write`).
4. After five acknowledgements the write is over: at least four correct nodes host the version.

One read (`read`):

1. Five nodes are asked for their versions, three of them with data (`descent.begin`).
2. The greatest version that they list is the candidate. Hosted by five it is complete
   (`classification.py`): its three fragments are decoded, and returned.
3. If three or four host it, it may be complete. The sixth node is asked. If that does not settle
   it, the reader completes the write itself (`writing.repair`), so that later reads find it too.
4. If fewer host it, it was never complete: the next older version is the candidate.
5. Unless it is known to be valid, all six fragments are generated from three and compared with the
   cross-checksum (`validation.py`): a faulty writer may have written what decodes differently
   from other fragments. Such a version counts as incomplete.

Read in this order: `thresholds.ReadWriteThresholds`, `timestamp.py`, `classification.py`, this
file, `writing.py`, `descent.py` and `reading.py`; for a node, `server.py`, and then
`bftfs/server/block_verification.py` and `block_healing.py`. docs/protocols-read-write.md has a
table of all rules with their tests.

A data-item is opaque bytes here: callers encrypt it.

**Concurrency.** Conversations of one engine share a client, also on the same block: reads and
writes are linearizable whichever client issues them.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.coding.erasure import Buffer
from bftfs.conversation import Compute, Conversation, Now, Together
from bftfs.credentials import NOBODY, Credentials
from bftfs.errors import AdmissionRefused
from bftfs.identifiers import BlockId, ClientId, ObjectId
from bftfs.read_write import vouching
from bftfs.read_write.authorship import Authored, versions_by
from bftfs.read_write.permission import Permission, Permit, while_nodes_disagree
from bftfs.read_write.reading import BlockRead, FoundVersion
from bftfs.read_write.session import Session
from bftfs.read_write.timestamp import BlockTimestamp, beginning_of, successor_of
from bftfs.read_write.writing import Encoded, TimeRound, encode, repair, write_at
from bftfs.thresholds import ReadWriteThresholds
from bftfs.wire.codec import Voucher


class ReadWriteClient:
    """Reads and writes blocks of one cluster as `client`."""

    def __init__(
        self,
        client: ClientId,
        thresholds: ReadWriteThresholds,
        peers: Peers,
        *,
        patience_total_us: int | None = None,
    ) -> None:
        """Rounds and reads give up after `patience_total_us` of silence; with None, never."""
        self._session = Session(client, thresholds, peers, patience_total_us=patience_total_us)
        self._vouchers: OrderedDict[vouching.Version, tuple[Voucher, ...]] = OrderedDict()

    # --- WRITE -------------------------------------------------------------------------------

    async def write(self, block: BlockId, item: Buffer, credentials: Credentials) -> BlockTimestamp:
        """Make `item` the block's newest version; returns once N - t nodes host it.

        Requires: `item` does not change until then.
        Raises AdmissionRefused if more than t nodes refuse it, QuorumUnavailable after
        `patience_total_us` of silence.
        """
        session = self._session
        time_round = TimeRound(session, (block,), await Now())
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
        permit: Permit | None = None,
    ) -> tuple[BlockTimestamp, ...]:
        """`write` for different blocks at once, later than `after_us`; their timestamps, in order.

        One round of TIME_REQUESTs serves them all. Without `is_asking` none is sent: the caller
        assumes that nobody has written these blocks after `after_us`, so that this client's clock
        gives a later time. If that was wrong, the caller has to find out, and to write again. The
        first failure is raised; which of the other writes have taken place is then unknown.

        With `permit`, which asks the object that the blocks belong to, no write fails for lack of
        permission unless `permit` raises that. It is asked only where nodes refuse.
        """
        session = self._session
        permission = None if permit is None else Permission(permit)
        written: list[BlockTimestamp] = []
        for at in range(0, len(items), limits.BLOCKS_PER_TIME_REQUEST):
            batch = items[at : at + limits.BLOCKS_PER_TIME_REQUEST]
            if is_asking:
                blocks = [block for block, _ in batch]
                times = await TimeRound(session, blocks, await Now(), after_us=after_us).times()
            else:
                times = [max(after_us + 1, await Now())] * len(batch)
            writes = tuple(
                partial(
                    self._encode_and_write,
                    block,
                    item,
                    time,
                    after_us,
                    credentials,
                    wants_vouchers=len(items) == 1,
                    permission=permission,
                )
                for (block, item), time in zip(batch, times, strict=True)
            )
            written.extend(await Together(writes))
        return tuple(written)

    async def _encode_and_write(
        self,
        block: BlockId,
        item: Buffer,
        time: int,
        after_us: int,
        credentials: Credentials,
        *,
        wants_vouchers: bool = False,
        permission: Permission | None = None,
    ) -> BlockTimestamp:
        encoded = await Compute(partial(encode, self._session.code, item))
        return await self._write(
            block,
            encoded,
            time,
            after_us,
            credentials,
            wants_vouchers=wants_vouchers,
            permission=permission,
        )

    async def _write(
        self,
        block: BlockId,
        encoded: Encoded,
        time: int,
        after_us: int,
        credentials: Credentials,
        *,
        wants_vouchers: bool = False,
        permission: Permission | None = None,
    ) -> BlockTimestamp:
        session = self._session
        for tries_left in reversed(range(limits.TIMES_PER_WRITE)):
            # [PASIS Figure 3.1] MAKE_TIMESTAMP: at most one set of fragments at any logical time.
            timestamp = BlockTimestamp(time, session.client, encoded.verifier)
            try:
                vouchers = await write_at(
                    session,
                    block,
                    timestamp,
                    encoded,
                    credentials=credentials,
                    wants_vouchers=wants_vouchers,
                    permission=permission,
                )
                if vouchers:
                    self._remember((block, timestamp), vouchers)
                break
            except AdmissionRefused as refused:
                if refused.code != errno.ETIME or not tries_left:
                    raise
            # The write took so long that nodes no longer accept its time. If some nodes host it,
            # readers may have seen it: then it is completed at this timestamp, because its value
            # must not appear twice. Otherwise it is written at a new one.
            everybody = frozenset(session.by_fragment[0])
            if await repair(session, block, timestamp, encoded, hosts=everybody):
                break
            (time,) = await TimeRound(session, (block,), await Now(), after_us=after_us).times()
        session.validated.add(encoded.verifier)
        return timestamp

    # --- vouchers ----------------------------------------------------------------------------

    async def vouched(
        self, versions: Sequence[vouching.Version], who: Credentials, refused: int
    ) -> tuple[Voucher, ...]:
        """N - t nodes' vouchers that they host all of these versions of this client's.

        What came with the write of a single one is returned first, unless nodes may have collected
        it since, as those of a deleted file; then the nodes are asked, in another way if servers
        have `refused` some so often. `who` may write them.
        Raises QuorumUnavailable after `patience_total_us`, VersionGone if one is.
        """
        remembered = self._vouchers.pop(versions[0], ()) if len(versions) == 1 else ()
        enough = len(remembered) >= self._session.thresholds.responses and not refused
        if enough and await Now() - versions[0][1].time < limits.VOUCHED_FOR_US:
            return remembered
        return await vouching.gather(self._session, versions, who, refused=refused)

    def _remember(self, version: vouching.Version, vouchers: tuple[Voucher, ...]) -> None:
        self._vouchers[version] = vouchers
        if len(self._vouchers) > limits.VOUCHED_VERSIONS:
            self._vouchers.popitem(last=False)

    # --- READ --------------------------------------------------------------------------------

    async def read(
        self,
        block: BlockId,
        who: Credentials = NOBODY,
        *,
        before: BlockTimestamp | None = None,
        at_time_us: int | None = None,
        permit: Permit | None = None,
        is_named: bool = False,
    ) -> FoundVersion:
        """The latest complete version, as `who` may read it.

        With `before`, the latest of those strictly below it; with `at_time_us`, the latest of those
        with time <= it. Raises QuorumUnavailable after `patience_total_us` of silence, and
        VersionUnrecoverable if too few fragments are left, NoLongerKept, or AdmissionRefused if
        more than t nodes refuse.

        With `permit`, which asks the object that the block belongs to, it does not fail for lack of
        permission unless `permit` raises that. It is asked only where nodes refuse.

        If the block `is_named`, its caller may ask for a version by name: then AdmissionRefused
        (ESTALE) comes as soon as some node says that the file is gone and others are silent.
        """
        bounds = [bound for bound in (before, _bound(at_time_us)) if bound is not None]
        bound = min(bounds, default=None)
        session = self._session

        if permit is None:
            return await BlockRead(session, block, bound, who, is_named=is_named).run()

        def attempt(number: int) -> Conversation[FoundVersion]:
            silences = session.silences + number - 1
            return BlockRead(session, block, bound, who, silences=silences, is_named=is_named).run()

        return await while_nodes_disagree(
            session, attempt, permit, subject=f"read of block {block.hex()}"
        )

    async def written(
        self,
        block: BlockId,
        timestamp: BlockTimestamp,
        who: Credentials = NOBODY,
        *,
        permit: Permit | None = None,
    ) -> FoundVersion:
        """The version at `timestamp`, which is complete. Raises what `read` raises."""
        return await self.read(block, who, before=successor_of(timestamp), permit=permit)

    async def read_many(
        self, blocks: Sequence[BlockId], who: Credentials = NOBODY, *, at_time_us: int | None = None
    ) -> tuple[FoundVersion, ...]:
        """`read` of different blocks at once; their versions, in order."""
        bound = _bound(at_time_us)
        session = self._session
        reads = tuple(BlockRead(session, block, bound, who).run for block in blocks)
        versions: tuple[FoundVersion, ...] = await Together(reads)
        return versions

    # --- authors ----------------------------------------------------------------------------

    async def versions_by(
        self,
        inodes: Sequence[ObjectId],
        who: Credentials = NOBODY,
        *,
        author: ClientId | None,
        since_us: int,
    ) -> Sequence[Authored]:
        """Versions of blocks of these files that `author` (None: anybody) wrote since then.

        Readers may never have been shown them. None of files that `who` may not
        read. Raises what `read` raises.
        """
        return await versions_by(self._session, inodes, author, since_us, who)


def _bound(at_time_us: int | None) -> BlockTimestamp | None:
    return None if at_time_us is None else beginning_of(at_time_us + 1)
