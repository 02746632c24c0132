"""Counts the bytecode instructions that an operation takes at the client and all nodes.

The counts are the same on every machine, however busy it is. They are no measure of time: hashing,
encoding and the store are C code, and sockets and channels are not in the simulated deployment. So
they show whether a change has made the product's own code longer on the way of an operation, and
where; `python -m benchmarks turns` says what that means.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.rooms.cluster import BLOCK_BYTES, Cluster
from benchmarks.rooms.names import Product
from benchmarks.rooms.tracing import is_product

REPEATED = 10


class Counter:
    """Counts the instructions of product functions below `tree`."""

    def __init__(self, tree: Path) -> None:
        self.executed = 0
        self._prefix = f"{tree}/"
        self._counted: dict[str, bool] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what happens inside."""
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in self._counted:
            below = file.removeprefix(self._prefix)
            self._counted[file] = below != file and is_product(below)
        if not self._counted[file]:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "opcode":
            self.executed += 1
        return self._step


def count(product: Product, tree: Path) -> dict[str, int]:
    """Instructions per operation, once everything that it needs was used before."""
    cluster = Cluster(product, full=True, more_types=product.counter_types())
    mount, reader, who = cluster.mount("client"), cluster.mount("reader"), cluster.credentials
    mount.format()
    mount.write(mount.create(b"first"))
    reader.read(reader.open(b"first"), 0)
    names = [b"%d" % number for number in range(REPEATED)]
    counter = product.object_id(product.ObjectKind.COUNTER, placement=0, unique=bytes(14))
    inode = product.object_id(product.ObjectKind.INODE, placement=0, unique=bytes(14))
    blocks = [product.block_id(inode, incarnation=1, number=number) for number in range(REPEATED)]
    item = bytes(BLOCK_BYTES)
    written: list[Any] = []
    opened: list[Any] = []

    def increment(_: int) -> None:
        mount.run(mount.objects.update((counter,), "counter.increment", product.Increment(1), who))

    def fetch(_: int) -> None:
        mount.run(mount.objects.query((counter,), "counter.fetch", product.Fetch(), who))

    def write_block(number: int) -> None:
        mount.run(mount.blocks.write(blocks[number], item, who))

    operations: dict[str, Callable[[int], Any]] = {
        "create": lambda number: written.append(mount.create(names[number])),
        "write of 4 KiB with flush": lambda number: mount.write(written[number]),
        "read of 4 KiB": lambda number: reader.read(opened[number], 1),
        "lookup of a cached name": lambda number: reader.lookup(names[number]),
        "counter, increment": increment,
        "counter, fetch": fetch,
        "block, write": write_block,
        "block, read": lambda number: mount.run(mount.blocks.read(blocks[number])),
    }
    found = {}
    increment(0)
    for name, operation in operations.items():
        cluster.settle()
        if name == "read of 4 KiB":  # the second, since the first may be read by opening the file
            for each in written:
                mount.write(each, blocks=2)
            cluster.settle()
            opened += map(reader.open, names)
            cluster.settle()
        if name == "lookup of a cached name":
            for each in names:
                reader.lookup(each)
        counted = Counter(tree)
        with counted.counting():
            for number in range(REPEATED):
                operation(number)
        found[name] = counted.executed // REPEATED
    return found
