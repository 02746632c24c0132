"""Strict serializability of operations on Q/U objects, from the versions that they report.

Every operation tells which version of each object it made or read: its logical timestamp. That
fixes the order of versions, so a serial order exists exactly if the graph of these edges has no
cycle:

- version order: an update follows the operation that made the version before, and every operation
  that read the version before;
- a query follows the update whose version it read, and precedes the update that made the next one;
- real time: an operation precedes all that were invoked after it had ended.

The operations are then replayed in a serial order on a model, and every answer must be the model's.
An update that never ended may have taken place. If it is known from elsewhere that it did, and
which versions it made, it takes part; otherwise the versions that it may have made are gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any

from bftfs.query_update.history import ZERO, LogicalTimestamp


@dataclass(slots=True)
class ObjectEntry:
    """One operation on objects as its client saw it.

    `versions` names, per object, the version that was made (update) or read (query); versions of
    one object compare in their order, and the initial one is the least. `responded` is infinite for
    an operation that never ended; its `versions` are empty unless it is known to have taken place.
    """

    client: str
    method: str
    objects: tuple[Any, ...]
    arguments: Any
    update: bool
    invoked: float = inf
    responded: float = inf
    answer: Any = None
    error: int = 0  # that it was refused with
    timestamp: LogicalTimestamp = ZERO  # of the version, once it is known
    versions: Mapping[Hashable, Any] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class _Node:
    operation: ObjectEntry | None
    successors: list[int] = field(default_factory=list)
    predecessors: int = 0


_CYCLE_STARTS = 200  # from how many operations a shortest cycle is looked for

Model = Callable[[ObjectEntry], Any]


def check_operations(operations: Iterable[ObjectEntry], *, model: Model | None = None) -> list[str]:
    """Findings against strict serializability; `model(operation)` gives the answer expected.

    The model is stateful and is called in a serial order.
    """
    placed = [each for each in operations if each.responded < inf or each.versions]
    nodes = [_Node(operation) for operation in placed]
    findings = _order_versions(placed, nodes)
    _order_real_time(placed, nodes)
    serial = _topological(nodes)
    if len(serial) < len(nodes):
        findings.append(
            "no serial order: "
            + " -> ".join(_describe(operation) for operation in _shortest_cycle(nodes))
            + " -> the first again"
        )
        return findings
    if model is not None:
        for position in serial:
            operation = nodes[position].operation
            if operation is None:
                continue
            expected = model(operation)
            if operation.responded < inf and expected != operation.answer:
                findings.append(f"{_describe(operation)}: the answer should have been {expected!r}")
    return findings


def _describe(operation: ObjectEntry) -> str:
    answer = f"errno {operation.error}" if operation.error else repr(operation.answer)
    return (
        f"{operation.client} {operation.method} {operation.objects} {operation.arguments} -> "
        f"{answer} "
        f"[{operation.invoked}, {operation.responded}] at {dict(operation.versions)!r}"
    )


def _edge(nodes: list[_Node], source: int, target: int) -> None:
    nodes[source].successors.append(target)
    nodes[target].predecessors += 1


def _order_versions(placed: list[ObjectEntry], nodes: list[_Node]) -> list[str]:
    """Edges between makers and readers of versions; findings if a version has two makers."""
    makers, readers, findings = _makers_and_readers(placed)
    for subject in makers.keys() | readers.keys():
        _order_versions_of(nodes, makers.get(subject, {}), readers.get(subject, {}))
    return findings


def _makers_and_readers(
    placed: list[ObjectEntry],
) -> tuple[dict[Hashable, dict[Any, int]], dict[Hashable, dict[Any, list[int]]], list[str]]:
    """Of each subject and version: the update that made it, and the queries that saw it."""
    findings: list[str] = []
    makers: dict[Hashable, dict[Any, int]] = {}
    readers: dict[Hashable, dict[Any, list[int]]] = {}
    for position, operation in enumerate(placed):
        for subject, version in operation.versions.items():
            if operation.update and not operation.error:
                previous = makers.setdefault(subject, {}).setdefault(version, position)
                if previous != position:
                    findings.append(
                        f"two updates made version {version!r} of {subject!r}: "
                        f"{_describe(placed[previous])} and {_describe(operation)}"
                    )
            else:
                readers.setdefault(subject, {}).setdefault(version, []).append(position)
    return makers, readers, findings


def _order_versions_of(
    nodes: list[_Node], made: dict[Any, int], read: dict[Any, list[int]]
) -> None:
    """One subject: makers in the order of versions, and readers between them."""
    earlier_maker: int | None = None
    earlier_readers: list[int] = []
    for version in sorted(made.keys() | read.keys()):
        maker = made.get(version)
        here = read.get(version, [])
        if maker is not None:
            if earlier_maker is not None:
                _edge(nodes, earlier_maker, maker)
            for reader in earlier_readers:
                _edge(nodes, reader, maker)
            earlier_maker, earlier_readers = maker, []
        else:
            # Its maker never ended, or is not known; it took place before these readers, and
            # after the readers of the version before.
            if earlier_readers and here:
                hub = len(nodes)
                nodes.append(_Node(None))
                for reader in earlier_readers:
                    _edge(nodes, reader, hub)
                for reader in here:
                    _edge(nodes, hub, reader)
            earlier_readers = []
        for reader in here:
            if earlier_maker is not None:
                _edge(nodes, earlier_maker, reader)
        earlier_readers = [*earlier_readers, *here]


def _order_real_time(placed: list[ObjectEntry], nodes: list[_Node]) -> None:
    """Edges from each operation to those invoked after it ended, through a chain of instants.

    Operations lead to the instant of their response, instants lead to the next one, and the last
    instant strictly before an invocation leads to that operation: O(n) edges instead of O(n^2).
    """
    instants = sorted({each.responded for each in placed if each.responded < inf})
    first = len(nodes)
    for offset in range(len(instants)):
        nodes.append(_Node(None))
        if offset:
            _edge(nodes, first + offset - 1, first + offset)
    place = {instant: first + offset for offset, instant in enumerate(instants)}
    order = sorted(range(len(placed)), key=lambda position: placed[position].invoked)
    latest = -1
    for position in order:
        while latest + 1 < len(instants) and instants[latest + 1] < placed[position].invoked:
            latest += 1
        if latest >= 0:
            _edge(nodes, first + latest, position)
        if placed[position].responded < inf:
            _edge(nodes, position, place[placed[position].responded])


def _shortest_cycle(nodes: list[_Node]) -> list[ObjectEntry]:
    """The operations of a shortest cycle through one of the nodes that are on any.

    Requires: `_topological` has left the nodes on cycles, and those behind them, with predecessors.
    """
    best: list[int] = []
    stuck = [position for position, node in enumerate(nodes) if node.predecessors > 0]
    for start in stuck[:_CYCLE_STARTS]:
        came_from = {start: start}
        fresh = [start]
        while fresh and start not in nodes[fresh[-1]].successors:
            position = fresh.pop(0)
            for target in nodes[position].successors:
                if target == start:
                    fresh = [position]
                    break
                if target not in came_from:
                    came_from[target] = position
                    fresh.append(target)
            else:
                continue
            break
        if not fresh:
            continue
        cycle = [fresh[-1]]
        while cycle[-1] != start:
            cycle.append(came_from[cycle[-1]])
        if not best or len(cycle) < len(best):
            best = cycle
    found = [nodes[position].operation for position in reversed(best)]
    return [operation for operation in found if operation is not None]


def _topological(nodes: list[_Node]) -> list[int]:
    """Positions in an order that respects all edges; shorter than `nodes` if there is a cycle."""
    ready = [position for position, node in enumerate(nodes) if node.predecessors == 0]
    heapify(ready)
    serial: list[int] = []
    while ready:
        position = heappop(ready)
        serial.append(position)
        for target in nodes[position].successors:
            nodes[target].predecessors -= 1
            if nodes[target].predecessors == 0:
                heappush(ready, target)
    return serial
