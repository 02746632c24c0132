from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.envelope import REPLIES as REPLY_DECODER
from bftfs.envelope import REQUESTS as REQUEST_DECODER
from bftfs.errors import MalformedMessage
from bftfs.read_write.messages import (
    AuthoredReply,
    AuthoredRequest,
    Below,
    Listed,
    ReadReply,
    ReadRequest,
    TimeReply,
    TimeRequest,
    VouchReply,
    VouchRequest,
    WriteReply,
    WriteRequest,
)
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.wire.codec import Voucher, encode
from tests.unit.read_write.harness import BLOCK

TIMESTAMP = BlockTimestamp(2**62, b"c" * 16, b"v" * 32)
REQUESTS: list[Any] = [
    TimeRequest((BLOCK,) * 3),
    WriteRequest(BLOCK, TIMESTAMP, b"x" * 192, 1, 2, (3, 4), (Voucher(5, b"m" * 96),)),
    WriteRequest(BLOCK, TIMESTAMP, b"x" * 192, 0, 0, ()),
    ReadRequest(BLOCK, None, True, 0),
    ReadRequest(BLOCK, TIMESTAMP, False, 16),
    VouchRequest(BLOCK, TIMESTAMP),
    AuthoredRequest((b"i" * 16,) * 256, b"c" * 16, 1, b""),
    AuthoredRequest((b"i" * 16,), None, 0, b"k" * 89),
]
REPLIES: list[Any] = [
    TimeReply((0, 2**63 - 1)),
    WriteReply(),
    ReadReply((Listed(TIMESTAMP, True),) * 17, Below.MORE, b"x" * 192),
    ReadReply((), Below.ORIGIN, b""),
    VouchReply(b""),
    VouchReply(b"a" * 96, (1,) * 6, is_late=True),
    AuthoredReply((b"k" * 88,) * 1_024, b"\xff" * 89),
    Refused(13, "no"),
]


@pytest.mark.parametrize("message", REQUESTS)
def test_requests_survive_the_wire(message: Any) -> None:
    assert REQUEST_DECODER.decode(encode(message)) == message


@pytest.mark.parametrize("message", REPLIES)
def test_replies_survive_the_wire(message: Any) -> None:
    assert REPLY_DECODER.decode(encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        TimeRequest(()),
        TimeRequest((BLOCK,) * (limits.BLOCKS_PER_TIME_REQUEST + 1)),
        AuthoredRequest((), None, 0, b""),
        AuthoredRequest((b"i" * 16,) * 257, None, 0, b""),
        AuthoredRequest((b"i" * 16,), b"c", 0, b""),
        TimeRequest((BLOCK[:-1],)),
        ReadRequest(BLOCK, None, True, limits.HISTORY_IN_REPLY + 1),
        ReadRequest(BLOCK, None, True, -1),
        ReadRequest(BLOCK, BlockTimestamp(2**63, b"c" * 16, b"v" * 32), True, 0),
        ReadRequest(BLOCK, BlockTimestamp(-1, b"c" * 16, b"v" * 32), True, 0),
        ReadRequest(BLOCK, BlockTimestamp(1, b"c" * 15, b"v" * 32), True, 0),
        ReadRequest(BLOCK, BlockTimestamp(1, b"c" * 16, b"v" * 33), True, 0),
        WriteRequest(BLOCK, TIMESTAMP, b"x" * 192, -1, 0, ()),
        WriteRequest(BLOCK, TIMESTAMP, b"x" * (32 * limits.NODES + 1), 0, 0, ()),
        WriteRequest(BLOCK, TIMESTAMP, b"x" * 192, 0, 0, (0,) * (limits.GROUPS + 1)),
        WriteRequest(
            BLOCK, TIMESTAMP, b"x" * 192, 0, 0, (), (Voucher(0, b""),) * (limits.NODES + 1)
        ),
    ],
)
def test_what_exceeds_a_limit_is_no_request(message: Any) -> None:
    with pytest.raises(MalformedMessage):
        REQUEST_DECODER.decode(encode(message))


def test_what_exceeds_a_limit_is_no_reply() -> None:
    for message in (
        TimeReply((2**63,)),
        ReadReply((Listed(TIMESTAMP, True),) * (limits.HISTORY_IN_REPLY + 2), Below.MORE, b""),
        Refused(0, ""),
        Refused(1, "x" * 513),
    ):
        with pytest.raises(MalformedMessage):
            REPLY_DECODER.decode(encode(message))
    with pytest.raises(MalformedMessage):
        REPLY_DECODER.decode(msgspec.msgpack.encode([0x42, [], 3, b""]))  # no such Below


def test_replies_are_no_requests() -> None:
    for message in REPLIES:
        with pytest.raises(MalformedMessage):
            REQUEST_DECODER.decode(encode(message))
