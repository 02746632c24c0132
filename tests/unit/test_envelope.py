"""Every message has a number of its own, which never changes."""

from __future__ import annotations

from typing import Any, get_args

from msgspec import inspect

from bftfs import envelope
from bftfs.envelope import DescriptionReply, EpochReply, Reply, Request, bulk_of
from bftfs.identifiers import FIRST_EPOCH
from bftfs.limits import KIB
from bftfs.query_update.messages import Status, UpdateReply

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
    "BundleReply": 0x2F,
    "TimeRequest": 0x30,
    "WriteRequest": 0x31,
    "ReadRequest": 0x32,
    "VouchRequest": 0x33,
    "VouchSetRequest": 0x37,
    "Notice": 0x34,
    "InventoryRequest": 0x35,
    "AuthoredRequest": 0x36,
    "FragmentsRequest": 0x38,
    "TimeReply": 0x40,
    "WriteReply": 0x41,
    "ReadReply": 0x42,
    "VouchReply": 0x43,
    "InventoryReply": 0x45,
    "AuthoredReply": 0x46,
    "FragmentsReply": 0x48,
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
    "Bundle": 0x60,
}


def test_tags_never_change() -> None:
    kinds = get_args(Request | Reply)
    assert {kind.__name__: kind.__struct_config__.tag for kind in kinds} == TAGS


def most(kind: Any) -> int:
    """How many bytes a value of this type has at most; a tuple without a limit counts as one."""
    match kind:
        case inspect.BytesType() | inspect.StrType():
            assert kind.max_length is not None
            return kind.max_length
        case inspect.VarTupleType():
            return (kind.max_length or 1) * most(kind.item_type)
        case inspect.StructType():
            return sum(most(field.type) for field in kind.fields)
        case inspect.UnionType():
            return max(map(most, kind.types))
        case inspect.DictType():
            return (kind.max_length or 1) * (most(kind.key_type) + most(kind.value_type))
        case _:
            return 8


def test_what_is_large_in_replies_is_counted() -> None:
    counted = (*envelope._LARGE, "histories")
    for each in get_args(Reply):
        fields = {field.name: field.type for field in inspect.type_info(each).fields}
        rest = {name: most(kind) for name, kind in fields.items() if name not in counted}
        assert sum(rest.values()) < 512 * KIB, each


def test_a_reply_counts_as_what_it_has() -> None:
    assert bulk_of(DescriptionReply(b"12345", b"67")) == 5
    assert bulk_of(UpdateReply(Status.SUCCESS, (b"12", b"3"), (), (), answer=b"4567")) == 7
    assert bulk_of(EpochReply(FIRST_EPOCH)) == 0
