"""Every message has a number of its own, which never changes."""

from __future__ import annotations

from typing import get_args

from bftfs.envelope import Reply, Request

TAGS = {
    "Query": 0x10,
    "Update": 0x11,
    "InlineUpdate": 0x12,
    "InlineBarrier": 0x13,
    "FetchRequest": 0x14,
    "DeduceRequest": 0x15,
    "SyncRequest": 0x16,
    "PastQuery": 0x17,
    "VersionsRequest": 0x18,
    "LifeRequest": 0x19,
    "HistoryRequest": 0x1A,
    "CatalogueRequest": 0x1B,
    "LatestRequest": 0x1C,
    "RunRequest": 0x1D,
    "AttestRequest": 0x1E,
    "ChainRequest": 0x1F,
    "QueryReply": 0x20,
    "UpdateReply": 0x21,
    "FetchReply": 0x24,
    "DeduceReply": 0x25,
    "SyncReply": 0x26,
    "PastReply": 0x27,
    "VersionsReply": 0x28,
    "LifeReply": 0x29,
    "HistoryReply": 0x2A,
    "CatalogueReply": 0x2B,
    "LatestReply": 0x2C,
    "RunReply": 0x2D,
    "AttestReply": 0x2E,
    "TimeRequest": 0x30,
    "WriteRequest": 0x31,
    "ReadRequest": 0x32,
    "VouchRequest": 0x33,
    "VouchSetRequest": 0x37,
    "Notice": 0x34,
    "InventoryRequest": 0x35,
    "AuthoredRequest": 0x36,
    "TimeReply": 0x40,
    "WriteReply": 0x41,
    "ReadReply": 0x42,
    "VouchReply": 0x43,
    "InventoryReply": 0x45,
    "AuthoredReply": 0x46,
    "Refused": 0x50,
    "HealthRequest": 0x51,
    "HealthReply": 0x52,
    "ClockRequest": 0x53,
    "ClockReply": 0x54,
    "UpkeepRequest": 0x55,
    "UpkeepReply": 0x56,
    "Announcement": 0x57,
    "DescriptionRequest": 0x58,
    "DescriptionReply": 0x59,
    "EpochRequest": 0x5A,
    "EpochReply": 0x5B,
}


def test_tags_never_change() -> None:
    kinds = get_args(Request | Reply)
    assert {kind.__name__: kind.__struct_config__.tag for kind in kinds} == TAGS
