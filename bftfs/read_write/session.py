"""What all reads and writes of one client share.

**Concurrency.** Conversations of one engine share it; nothing is left half-changed across an await.
"""

from __future__ import annotations

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.coding.erasure import ErasureCode
from bftfs.identifiers import ClientId
from bftfs.read_write.placement import nodes_by_fragment
from bftfs.read_write.validation import ValidatedVersions
from bftfs.thresholds import ReadWriteThresholds


class Session:
    """One client, its view of the nodes, and the versions that it knows to be valid."""

    __slots__ = (
        "by_fragment",
        "client",
        "code",
        "patience_total_us",
        "peers",
        "thresholds",
        "validated",
    )

    def __init__(
        self,
        client: ClientId,
        thresholds: ReadWriteThresholds,
        peers: Peers,
        *,
        patience_total_us: int | None,
    ) -> None:
        self.client = client
        self.thresholds = thresholds
        self.peers = peers
        self.patience_total_us = patience_total_us  # how much silence a round or a read bears
        self.code = ErasureCode(thresholds.m, thresholds.N)
        self.by_fragment = nodes_by_fragment(thresholds.N)
        self.validated = ValidatedVersions(limits.VALIDATED_VERSIONS)
