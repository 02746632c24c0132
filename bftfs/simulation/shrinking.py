"""Make a configuration that fails smaller, while it goes on failing in the same way.

Delta debugging (after Zeller and Hildebrandt) on a configuration: switch faults and adversaries
off, drop clients and single operations, make the faulty phase shorter and the cluster smaller. A
run is deterministic, so one run tells if what is left still fails. What remains is what the
violation needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from bftfs.simulation.configuration import ClientPlan, Configuration
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.faults import FaultPlan
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.principals import DiskFaults
from bftfs.simulation.world import SECOND_US

MOST_RUNS = 400

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

    def simpler(self, now: Configuration, proposed: Configuration) -> Configuration:
        """`proposed`, if that fails as well; else `now`."""
        return proposed if proposed != now and self.try_out(proposed) else now


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


def _take_steps(now: Configuration, runs: _Runs) -> Configuration:
    """Take every step that leaves the failure, the greatest first."""
    for changes in _SIMPLIFICATIONS:
        proposed = now
        for path, value in changes.items():
            proposed = _with(proposed, path, value)
        now = runs.simpler(now, proposed)
    for divisor in (8, 2):
        longest_us = max(SECOND_US, now.faults.longest_us // divisor)
        now = runs.simpler(now, _with(now, "faults.longest_us", longest_us))
    for sizes in (Sizes.smallest(t=1, b=1), Sizes.smallest(t=1, b=0)):
        if _fits(now, sizes):
            skews_us = now.node_skews_us[: sizes.n]
            now = runs.simpler(now, replace(now, sizes=sizes, node_skews_us=skews_us))
    for name in ("byzantine_clients", "byzantine_nodes", "clients"):
        for position in reversed(range(len(getattr(now, name)))):
            fewer = getattr(now, name)
            fewer = (*fewer[:position], *fewer[position + 1 :])
            if fewer or name != "clients":  # one correct client is left
                now = runs.simpler(now, _with(now, name, fewer))
    # A node that several adversaries have taken over is left to one of them.
    for position, (node, names) in enumerate(now.byzantine_nodes):
        for adversary in names if len(names) > 1 else ():
            before = now
            now = runs.simpler(
                now, _with_one(now, "byzantine_nodes", position, (node, (adversary,)))
            )
            if now != before:
                break
    return _with_plainer_clients(now, runs)


_SIMPLIFICATIONS: tuple[dict[str, Any], ...] = (
    {"faults": FaultPlan()},
    {"faults.network": NetworkFaults()},
    {"faults.disk": DiskFaults()},
    *({f"faults.{what}_every_us": 0} for what in ("crash", "partition", "sever", "lose", "jump")),
    {"faults.copies": False},
    {"faults.distances_us": ()},
    *({f"faults.network.{what}": 0.0} for what in ("loss", "duplication", "straggling")),
    {"faults.network.delay_us": NetworkFaults().delay_us},
    {"faulty_share": 1.0},
    {"initiatives": ()},
    {"down_when_quiet": ()},
    {"down_in_audit": ()},
    {"node_skews_us": ()},
    {"collection": None},
    {"possible_objects": None},
    {"client_bytes": None},
    {"verification": None, "collection": None, "possible_objects": None},
    {"commit_us": (20, 200)},
    {"blocks.blocks": 1, "blocks.many": 0.0, "blocks.past_reads": 0.0},
    {"objects.accounts": 0, "objects.counters": 1},
    {"objects.accounts": 2, "objects.counters": 0},
    {"files.names": 2, "files.contents": 0.0, "files.private": 0.0},
    {"files.contents": 0.0},
)


def _with(now: Any, path: str, value: Any) -> Any:
    """`now` with another value of the field at `path`, in whatever record of records."""
    name, _, rest = path.partition(".")
    return replace(now, **{name: _with(getattr(now, name), rest, value) if rest else value})


def _with_one(now: Configuration, name: str, position: int, value: Any) -> Configuration:
    """`now` with another element at a position of one of its tuples."""
    elements = list(getattr(now, name))
    elements[position] = value
    changed: Configuration = _with(now, name, tuple(elements))
    return changed


def _fits(now: Configuration, sizes: Sizes) -> bool:
    """True if a smaller cluster has all nodes that fail, and tolerates as many failures."""
    down = (now.faults.losers, now.down_when_quiet, now.down_in_audit)
    byzantine = [node for node, _ in now.byzantine_nodes]
    bound = sizes.query_update
    return (
        sizes.n < now.sizes.n
        and len(byzantine) <= bound.b
        and len(byzantine) + max(map(len, down)) <= bound.t
        and all(node < sizes.n for node in chain(byzantine, *down))
    )


def _with_plainer_clients(now: Configuration, runs: _Runs) -> Configuration:
    """Correct clients that do one thing after the other, do not crash, and have exact clocks."""
    plain = ClientPlan()
    for position in range(len(now.clients)):
        now = runs.simpler(now, _with_one(now, "clients", position, plain))
        for name in ("width", "crash_every_us", "skew_us", "think_us"):
            client = now.clients[position]
            if client.sane or name != "skew_us":
                plainer = replace(client, **{name: getattr(plain, name)})
                now = runs.simpler(now, _with_one(now, "clients", position, plainer))
    return now


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
        for dropped in [frozenset(kept[at : at + group]) for at in range(0, len(kept), group)]:
            fewer = tuple(number for number in kept if number not in dropped)
            if runs.try_out(replace(configuration, kept=fewer)):
                kept, smaller = fewer, True
        if group == 1 and not smaller:
            break
        group = max(1, min(group // 2, len(kept) // 2)) if not smaller or group > 1 else 1
    if len(kept) == configuration.operations:
        return configuration
    return replace(configuration, kept=kept)
