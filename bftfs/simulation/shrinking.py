"""Make a configuration that fails smaller, while it goes on failing in the same way.

Delta debugging (after Zeller and Hildebrandt) on a configuration: switch faults and adversaries
off, drop clients and single operations, make the faulty phase shorter and the cluster smaller. A
run is deterministic, so one run tells if what is left still fails. What remains is what the
violation needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from bftfs.errors import ImpossibleThresholds
from bftfs.simulation.configuration import ClientPlan, Configuration
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.faults import FaultPlan
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.principals import DiskFaults
from bftfs.simulation.world import SECOND_US

MOST_RUNS = 400

Element = TypeVar("Element")
Judge = Callable[[Configuration], bool]  # true if a configuration fails as the first one did


@dataclass(slots=True)
class _Runs:
    """Runs the candidates, as long as runs are left."""

    fails: Judge
    left: int

    def try_out(self, configuration: Configuration) -> bool:
        """True if `configuration` fails; false also if no runs are left to find out."""
        if self.left <= 0:
            return False
        self.left -= 1
        return self.fails(configuration)


def sort_of(finding: str) -> str:
    """The sort of a finding: its words up to the first number, name or value."""
    words = re.match(r"[A-Za-z ]*", finding)
    return words.group().strip() if words else ""


def shrink(
    configuration: Configuration, *, fails: Judge, most_runs: int = MOST_RUNS
) -> Configuration:
    """A smaller configuration for which `fails` is true as well.

    Requires: it is true for `configuration`.
    Ensures:  unless runs ran out, no single step makes the result smaller.
    """
    runs = _Runs(fails, most_runs)
    while True:
        before = configuration
        configuration = _fewer_operations(configuration, runs)
        configuration = _take_steps(configuration, runs)
        configuration = _without_needless_operations(configuration, runs)
        if configuration == before or runs.left <= 0:
            return configuration


def _take_steps(configuration: Configuration, runs: _Runs) -> Configuration:
    """Take every step that leaves the failure, the greatest first."""
    steps = _steps(configuration)
    proposed = next(steps, None)
    while proposed is not None:
        taken = proposed != configuration and runs.try_out(proposed)
        if taken:
            configuration = proposed
        try:
            proposed = steps.send(taken)
        except StopIteration:
            proposed = None
    return configuration


Steps = Generator[Configuration, bool, Configuration]


def _steps(now: Configuration) -> Steps:
    """Proposals, each on top of those that were accepted."""
    for simplification in _simplifications():
        simpler = _changed(now, simplification(now))
        if simpler is not None and (yield simpler):
            now = simpler
    for name in ("byzantine_clients", "byzantine_nodes", "clients"):
        now = yield from _fewer(now, name)
    now = yield from _one_adversary_each(now)
    return (yield from _plainer_clients(now))


def _fewer(now: Configuration, name: str) -> Steps:
    """Drop clients, or adversaries, one by one; one correct client is left."""
    kept: Sequence[Any] = getattr(now, name)
    for position in reversed(range(len(kept))):
        fewer = (*kept[:position], *kept[position + 1 :])
        if fewer or name != "clients":
            changes: dict[str, Any] = {name: fewer}
            proposed = replace(now, **changes)
            if (yield proposed):
                now, kept = proposed, fewer
    return now


def _one_adversary_each(now: Configuration) -> Steps:
    """A node that several adversaries have taken over is left to one of them."""
    for position, (node, names) in enumerate(now.byzantine_nodes):
        for adversary in names if len(names) > 1 else ():
            nodes = list(now.byzantine_nodes)
            nodes[position] = (node, (adversary,))
            proposed = replace(now, byzantine_nodes=tuple(nodes))
            if (yield proposed):
                now = proposed
                break
    return now


def _plainer_clients(now: Configuration) -> Steps:
    """Correct clients that do one thing after the other, do not crash, and have exact clocks."""
    plain = ClientPlan()
    for position in range(len(now.clients)):
        one_by_one = (
            replace(now.clients[position], **{name: getattr(plain, name)})
            for name in ("width", "crash_every_us", "skew_us", "think_us")
            if now.clients[position].sane or name != "skew_us"
        )
        for plan in (plain, *one_by_one):
            clients = list(now.clients)
            clients[position] = plan
            proposed = replace(now, clients=tuple(clients))
            if proposed != now and (yield proposed):
                now = proposed
    return now


Changes = Callable[[Configuration], dict[str, Any]]


def _simplifications() -> Iterator[Changes]:
    """Changes to a configuration, the greatest simplification first."""
    yield lambda _: {"faults": FaultPlan()}
    yield lambda now: {"faults": replace(now.faults, network=NetworkFaults())}
    for name, value in (
        ("disk", DiskFaults()),
        ("crash_every_us", 0),
        ("partition_every_us", 0),
        ("sever_every_us", 0),
        ("lose_every_us", 0),
        ("distances_us", ()),
    ):
        yield _in_faults(name, value)
    for name, harmless in (("loss", 0.0), ("duplication", 0.0), ("straggling", 0.0)):
        yield _in_network(name, harmless)
    yield _in_network("delay_us", NetworkFaults().delay_us)
    for divisor in (8, 2):
        yield _shorter_faults(divisor)
    yield lambda _: {"faulty_share": 1.0}
    yield lambda _: {"down_when_quiet": ()}
    yield lambda _: {"down_in_audit": ()}
    yield lambda _: {"node_skews_us": ()}
    yield lambda _: {"collection": None}
    yield lambda _: {"possible_objects": None}
    yield lambda _: {"client_bytes": None}
    yield lambda _: {"verification": None, "collection": None, "possible_objects": None}
    yield lambda _: {"commit_us": (20, 200)}
    for sizes in (Sizes.smallest(t=1, b=1), Sizes.smallest(t=1, b=0)):
        yield _fewer_nodes(sizes)
    yield lambda now: {"blocks": replace(now.blocks, blocks=1, many=0.0, past_reads=0.0)}
    yield lambda now: {"objects": replace(now.objects, accounts=0, counters=1)}
    yield lambda now: {"objects": replace(now.objects, accounts=2, counters=0)}
    yield lambda now: {"files": replace(now.files, names=2, contents=0.0, private=0.0)}
    yield lambda now: {"files": replace(now.files, contents=0.0)}


def _in_faults(name: str, value: Any) -> Changes:
    return lambda now: {"faults": replace(now.faults, **{name: value})}


def _shorter_faults(divisor: int) -> Changes:
    def shorter(now: Configuration) -> dict[str, Any]:
        longest_us = max(SECOND_US, now.faults.longest_us // divisor)
        return {"faults": replace(now.faults, longest_us=longest_us)}

    return shorter


def _in_network(name: str, value: Any) -> Changes:
    return lambda now: {
        "faults": replace(now.faults, network=replace(now.faults.network, **{name: value}))
    }


def _fewer_nodes(sizes: Sizes) -> Changes:
    def fewer(now: Configuration) -> dict[str, Any]:
        if sizes.n >= now.sizes.n:
            return {}
        return {"sizes": sizes, "node_skews_us": now.node_skews_us[: sizes.n]}

    return fewer


def _changed(now: Configuration, changes: dict[str, Any]) -> Configuration | None:
    """`now` with these changes, if there is such a configuration."""
    try:
        changed = replace(now, **changes)
    except ImpossibleThresholds:
        return None
    named = (
        *(node for node, _ in changed.byzantine_nodes),
        *changed.down_when_quiet,
        *changed.down_in_audit,
        *changed.faults.losers,
    )
    bound = changed.sizes.query_update
    failing = len(changed.byzantine_nodes) + max(
        len(changed.faults.losers), len(changed.down_when_quiet), len(changed.down_in_audit)
    )
    if any(node >= changed.sizes.n for node in named) or (
        changes.get("sizes") and (len(changed.byzantine_nodes) > bound.b or failing > bound.t)
    ):
        return None
    return changed


def _fewer_operations(configuration: Configuration, runs: _Runs) -> Configuration:
    """As few as show the failure, found by bisection. What is left begins as the whole did."""
    least, most = 0, configuration.operations
    while most - least > max(1, most // 20):
        middle = (least + most) // 2
        if runs.try_out(replace(configuration, operations=middle)):
            most = middle
        else:
            least = middle
    return replace(configuration, operations=most)


def _without_needless_operations(configuration: Configuration, runs: _Runs) -> Configuration:
    """Drop single operations, in ever smaller groups."""
    kept = (
        tuple(range(1, configuration.operations + 1))
        if configuration.kept is None
        else tuple(number for number in configuration.kept if number <= configuration.operations)
    )
    group = max(1, len(kept) // 2)
    while runs.left > 0:
        smaller = False
        for dropped in list(_groups(kept, group)):
            fewer = tuple(number for number in kept if number not in dropped)
            if runs.try_out(replace(configuration, kept=fewer)):
                kept, smaller = fewer, True
        if group == 1 and not smaller:
            break
        group = max(1, min(group // 2, len(kept) // 2)) if not smaller or group > 1 else 1
    if len(kept) == configuration.operations:
        return configuration
    return replace(configuration, kept=kept)


def _groups(kept: Sequence[Element], size: int) -> Iterable[frozenset[Element]]:
    for start in range(0, len(kept), size):
        yield frozenset(kept[start : start + size])
