"""A client's part in PASIS read/write: write and read. [PASIS §3.4.3.2, §3.4.3.3]"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bftfs.coding.erasure import Buffer
from bftfs.credentials import NOBODY, Credentials
from bftfs.identifiers import BlockId, ClientId
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.thresholds import ReadWriteThresholds


@dataclass(frozen=True, slots=True)
class Version:
    """What a read returns. `item` is None for a block that was never written (timestamp ZERO)."""

    timestamp: BlockTimestamp
    item: bytes | None


class ReadWriteClient:
    """Reads and writes blocks of one cluster as `client`."""

    def __init__(
        self,
        client: ClientId,
        thresholds: ReadWriteThresholds,
        *,
        patience_total_us: int | None = None,  # None: wait for ever
    ) -> None: ...

    async def write(
        self, block: BlockId, item: Buffer, credentials: Credentials
    ) -> BlockTimestamp:
        """Make `item` the block's newest version; returns once N - t nodes host it.

        Raises AdmissionRefused if more than t nodes refuse it, QuorumUnavailable after
        `patience_total_us` without N - t answers.
        """
        raise NotImplementedError

    async def write_many(
        self, items: Sequence[tuple[BlockId, Buffer]], credentials: Credentials
    ) -> tuple[BlockTimestamp, ...]:
        """`write` for different blocks at once; their timestamps, in order."""
        raise NotImplementedError

    async def read(
        self,
        block: BlockId,
        credentials: Credentials = NOBODY,
        *,
        before: BlockTimestamp | None = None,
        at_time_us: int | None = None,
    ) -> Version:
        """The latest complete version; with `before` strictly below it; with `at_time_us`, with
        time <= that.
        """
        raise NotImplementedError

    async def read_many(
        self,
        blocks: Sequence[BlockId],
        credentials: Credentials = NOBODY,
        *,
        at_time_us: int | None = None,
    ) -> tuple[Version, ...]:
        """`read` of different blocks at once; their versions, in order."""
        raise NotImplementedError
