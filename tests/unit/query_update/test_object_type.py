"""Object types: what a client makes of an answer."""

from __future__ import annotations

import msgspec
import pytest

from bftfs.errors import OperationFailed, UnreadableAnswer
from bftfs.query_update.counter import Count, counter_types
from bftfs.query_update.object_type import encode_record

TYPES = counter_types()
METHOD = TYPES.method("counter.fetch")


def test_an_answer_is_what_was_encoded() -> None:
    assert METHOD is not None
    assert TYPES.decode_answer(METHOD, encode_record(Count(7))) == Count(7)


@pytest.mark.parametrize("content", [b"", b"\xc1", msgspec.msgpack.encode({"value": "seven"})])
def test_an_answer_of_another_version_is_a_failure_that_says_so(content: bytes) -> None:
    assert METHOD is not None
    with pytest.raises(UnreadableAnswer, match=r"counter\.fetch.*another version") as caught:
        TYPES.decode_answer(METHOD, content)
    assert isinstance(caught.value, OperationFailed)
