"""The options of a mount: consistency, and the sizes of all windows."""

from __future__ import annotations

from dataclasses import dataclass

from bftfs.limits import KIB, MIB, SECOND_US


@dataclass(frozen=True, slots=True)
class Options:
    """`strict`: nothing is cached and nothing postponed; else close-to-open.

    Windows are in bytes, so that the memory of a mount does not depend on the number of open files.
    A byte in flight takes about four bytes of memory: the block, sealed, and its fragments.
    """

    strict: bool = False
    read_only: bool = False
    is_past: bool = False  # blocks are read as of the version of their file that is shown
    access_times: bool = True  # relatime, or none at all
    attribute_timeout_us: int = 1 * SECOND_US
    entry_timeout_us: int = 1 * SECOND_US
    absence_timeout_us: int = SECOND_US // 2  # for negative entries: there is no such name
    write_behind_bytes: int = 8 * MIB  # unwritten bytes from which on they are written behind
    dirty_bytes: int = 32 * MIB  # unwritten bytes from which on a writer waits
    batch_bytes: int = 2 * MIB  # blocks that are written together
    batches_in_flight: int = 4  # of one file
    read_ahead_bytes: int = 8 * MIB  # of one sequential reader
    prefetch_bytes: int = 16 * MIB  # of all readers together, on their way
    cache_bytes: int = 32 * MIB  # clean blocks
    patch_saves_bytes: int = 4 * KIB  # by a patch instead of a whole block, or none is written

    def __post_init__(self) -> None:
        if self.write_behind_bytes > self.dirty_bytes:
            raise ValueError("a writer would wait before anything is written behind")
