"""The changes of an object, page by page: nodes are asked for no more than is taken."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, cast

import pytest

from bftfs.filesystem import registry
from bftfs.filesystem.file_history import ChangePages
from bftfs.identifiers import ObjectKind, object_id
from bftfs.query_update.history import (
    TIMESTAMP_BYTES,
    LogicalTimestamp,
    Operation,
    time_of,
)
from bftfs.query_update.messages import PastVersion
from bftfs.query_update.past_reading import PastReader
from tests.unit.filesystem.world import ROOT

FILE = object_id(ObjectKind.INODE, placement=0, unique=bytes(14))
VERSIONS = 600  # one in each microsecond
COPIES = range(200, 300)  # versions that repair made
CHANGES = [number for number in range(VERSIONS, 0, -1) if number not in COPIES]


def at(time_us: int) -> LogicalTimestamp:
    return LogicalTimestamp(time_us.to_bytes(8, "big").ljust(TIMESTAMP_BYTES, b"\0"))


def version(number: int) -> PastVersion:
    made = Operation(registry.WRITE, (FILE,), b"", 0, 0, (), number)
    operation = None if number in COPIES else made
    return PastVersion(at(number), at(number - 1), (FILE,), operation, ())


class Past:
    """A file's versions, of which those up to `collected` are no longer kept."""

    def __init__(self, collected: int = 0) -> None:
        self.collected = collected
        self.told = 0  # versions

    async def versions(
        self, _: object, *, newest: LogicalTimestamp, most: int, **__: object
    ) -> tuple[PastVersion, ...]:
        number = time_of(newest)
        page = range(number, max(number - most, self.collected), -1)
        self.told += len(page)
        return tuple(map(version, page))


def pages_of(past: Past, *, since_us: int = 0) -> ChangePages:
    reader = cast(PastReader, past)
    return ChangePages(reader, FILE, ROOT, newest=at(VERSIONS), since_us=since_us)


def result(conversation: Coroutine[Any, Any, list[Any]]) -> list[int]:
    """The times of a page."""
    with pytest.raises(StopIteration) as ended:
        conversation.send(None)
    return [change.time_us for change in ended.value.value]


@pytest.mark.parametrize("most", [1, 7, 64, 100, 256])
@pytest.mark.parametrize(
    ("collected", "since_us"), [(0, 0), (0, 250), (250, 0), (0, 600), (0, 601)]
)
def test_pages_show_each_change_once(most: int, collected: int, since_us: int) -> None:
    past = Past(collected)
    pages = pages_of(past, since_us=since_us)
    shown = []
    while page := result(pages.next(most)):
        assert len(page) <= most
        shown += page
    assert shown == [each for each in CHANGES if each > collected and each >= since_us]
    assert not result(pages.next(most)), "it stays at its end"


def test_nodes_are_asked_for_what_is_taken() -> None:
    past = Past()
    pages = pages_of(past)
    assert result(pages.next(5)) == CHANGES[:5]
    assert past.told == 5
    assert result(pages.next(10)) == CHANGES[5:15]
    assert past.told == 15
