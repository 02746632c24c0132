"""The model of what files had at a time, in the checker of the past."""

from __future__ import annotations

from bftfs.filesystem import registry
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.block_names import CoveredBlock
from bftfs.filesystem.inode import Merging, Writing
from bftfs.identifiers import ObjectKind, object_id
from bftfs.query_update.history import Operation, logical_timestamp
from bftfs.query_update.object_type import encode_record
from bftfs.simulation.checkers.past import NamedVersions
from bftfs.simulation.deployment import client_named

FILE = object_id(ObjectKind.INODE, placement=0, unique=bytes(14))
CLIENT = client_named("client")


def named_after(*operations: tuple[str, int]) -> list[int]:
    """The times of the versions that are named after each operation on the file."""
    named, times = NamedVersions(), []
    for at, (method, time_us) in enumerate(operations):
        blocks = (CoveredBlock(0, time_us, bytes(32)),)
        arguments = (
            Writing(1, 0, 1, Changes(), blocks)
            if method == registry.WRITE
            else Merging(0, 1, 7, 1, blocks)
        )
        operation = Operation(method, (FILE,), encode_record(arguments), 0, 0, (), at)
        timestamp = logical_timestamp(time_us=at, barrier=False, client=CLIENT, digest=bytes(32))
        named.apply(timestamp, operation, arguments)
        version = named.get(FILE)
        assert version is not None
        times.append(version.time)
    return times


def test_the_later_of_two_versions_counts_within_an_incarnation() -> None:
    assert named_after((registry.WRITE, 5), (registry.WRITE, 4)) == [5, 5]


def test_another_incarnation_has_blocks_of_its_own() -> None:
    """A writer gives a file one when its blocks are ahead of all clocks."""
    operations = (registry.WRITE, 10**12), (registry.MERGE, 6), (registry.WRITE, 7)
    assert named_after(*operations) == [10**12, 6, 7]
