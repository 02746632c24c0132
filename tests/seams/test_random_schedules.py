"""Random schedules: each update takes effect once, or never, as its client was told.

Disks fill up and get room again, grants are withdrawn and given back, clocks jump at one client or
node before the others; clients abandon what they do; any message is held back, and any request
arrives again at any later time. Up to b nodes have several faces: each is a correct node with a
store of its own, for its own part of the clients and nodes. Accounts show what took place.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest

from bftfs.asking.refusal import Refused
from bftfs.credentials import Grant
from bftfs.engine import Running
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import InlineUpdate, Update, UpdateReply
from bftfs.server.step import Ready, Sender, Server
from bftfs.simulation.disk import Disk
from bftfs.simulation.network import Kind
from bftfs.simulation.principals import NodeServices, SimulatedClient
from bftfs.simulation.workloads.objects import ObjectMix, ObjectSession, ObjectWorkload
from bftfs.simulation.world import SECOND_US
from tests.seams.world import TYPES, World
from tests.simulation.mutants import end_attempts_by_refusals, leave_requests_under_way

HOUR_US = 3_600 * SECOND_US
NOBODYS = 1 << 40  # the number of a request to which nobody waits for a reply
SIZES = [(0, 0), (1, 0), (1, 1), (1, 1), (2, 1)]
STEPS = 60
ACTS = ["hold", "flow", "fill", "forbid", "jump", "abandon", "repeat", "permit", "permit"]


class Gate:
    """A correct node whose disk may be full, and that may know of withdrawn grants."""

    def __init__(self, schedule: Schedule, node: int, server: Server) -> None:
        self._schedule, self._node, self._server = schedule, node, server

    def step(self, view: Any, sender: Sender, message: Any, body: Any, now_us: int) -> Ready:
        if (self._node, sender.client) in self._schedule.forbidden:
            sender = replace(sender, grant=Grant(write=False))
        ready = self._server.step(view, sender, message, body, now_us)
        is_new = ready.reply is not None and ready.writes and not ready.uses_reserve
        if is_new and self._node in self._schedule.full:
            return Ready(Refused(errno.ENOSPC, "the disk is full"))
        return ready


class ManyFaced:
    """A lying node: a correct one with another store for each part of the clients and nodes."""

    def __init__(self, random: Random, faces: list[NodeServices]) -> None:
        self._random = random
        self._faces = [(face, Disk()) for face in faces]
        self._shown: dict[Any, int] = {}
        self._silent = random.choice((0.0, 0.3))

    def step(self, view: Any, sender: Sender, message: Any, body: Any, now_us: int) -> Ready:
        random = self._random
        if sender.client not in self._shown or random.random() < 0.02:
            self._shown[sender.client] = random.randrange(len(self._faces))
        servers, disk = self._faces[self._shown[sender.client]]
        ready = servers[type(message)].step(disk, sender, message, body, now_us)
        if ready.wants:  # only the host asks other nodes, for the store that it has
            return servers[type(message)].step(view, sender, message, body, now_us)
        disk.apply(ready.writes)
        disk.commit()
        return Ready() if random.random() < self._silent else Ready(ready.reply, ready.body)


class Schedule:
    """Clients that update accounts, and what happens to them."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(f"schedule {seed}")
        t, b = random.choice(SIZES)
        self.world = world = World(t, b, verifying=False, seed=seed)
        self.full: set[int] = set()
        self.forbidden: set[tuple[int, Any]] = set()
        self.copies: list[tuple[Any, Any, Any]] = []
        world.ways.watch = self._watch
        liars = random.sample(range(world.sizes.n), random.randint(0, b))
        for node in world.nodes:
            node.become(partial(self._lying if node.node in liars else self._gated, node.node))
        mix = ObjectMix(counters=0, accounts=2, updates=0.9, ledger=1.0, several=0.4)
        self.workload = ObjectWorkload(random, world.sizes, TYPES, mix)
        hosts = [world.deployment.client(f"client {number}") for number in range(2)]
        self.clients = [(host, self.workload.session(host, "client")) for host in hosts]
        self.running: dict[SimulatedClient, Running] = {}

    def _gated(self, node: NodeId) -> NodeServices:
        made = self.world.deployment.servers(node)
        return NodeServices({kind: Gate(self, node, each) for kind, each in made.items()}, (), _no)

    def _lying(self, node: NodeId) -> NodeServices:
        services = self.world.deployment.servers
        faces = [NodeServices(services(node, begins_runs=False), (), _no) for _ in range(2)]
        return NodeServices(dict.fromkeys(faces[0], ManyFaced(self.random, faces)), (), _no)

    def _watch(self, source: Any, target: Any, kind: Kind, message: Any) -> None:
        if kind is Kind.REQUEST and isinstance(message, Update | InlineUpdate):
            self.copies.append((source, target, message))

    def repeat(self, copies: Iterable[tuple[Any, Any, Any]]) -> None:
        """These requests arrive again."""
        for source, target, message in tuple(copies):
            self.world.ways.send(source, target, Kind.REQUEST, NOBODYS, message)

    def _begin(self, host: SimulatedClient, session: ObjectSession) -> None:
        def end(_result: Any, error: BaseException | None) -> None:
            self.running.pop(host, None)
            assert error is None or isinstance(error, Exception)

        begun = len(self.workload.history)
        running = host.start(session.next_task().conversation(), end)
        if self.workload.history[begun].responded > self.world.agenda.now_us:
            self.running[host] = running

    def _act(self) -> None:
        random, world = self.random, self.world
        n, ways = world.sizes.n, world.ways
        host, _ = random.choice(self.clients)
        some = random.sample(range(n), random.randint(1, n))
        ends = {world.nodes[node].endpoint for node in some}
        match random.choice(ACTS):
            case "hold":
                both = random.random() < 0.5
                ways.hold(
                    lambda source, target, *message: (
                        (both and target in ends and source == host.endpoint)
                        or (target == host.endpoint and isinstance(message[1], UpdateReply))
                    )
                )
            case "flow":
                ways.flow()
            case "fill":
                self.full = set(some)
            case "forbid":
                self.forbidden |= {(node, host.client) for node in some}
            case "jump":
                host.skew_us = random.choice((0, HOUR_US, -HOUR_US))
            case "abandon" if host in self.running:
                self.running.pop(host).cancel()
            case "repeat":
                self.repeat(random.sample(self.copies, min(len(self.copies), 5)))
            case "permit":  # nodes would take now what they have refused
                self._permit(host.skew_us)
                self.repeat(self.copies[-20:])
            case _:
                pass

    def _permit(self, skew_us: int) -> None:
        self.full.clear()
        self.forbidden.clear()
        for node in self.world.nodes:
            node.skew_us = skew_us

    def findings(self) -> list[str]:
        """What is wrong in the end."""
        world, random = self.world, self.random
        for _ in range(STEPS):
            for host, session in self.clients:
                if host not in self.running and random.random() < 0.7:
                    self._begin(host, session)
            self._act()
            world.run_for(random.choice((100, 500, 2_000, 20_000, 300_000)))
        self._permit(2 * HOUR_US)  # later than anything that was made
        for host, _ in self.clients:
            host.skew_us = 2 * HOUR_US
        world.ways.flow()
        world.run_until(lambda: not self.running)
        self.repeat(self.copies)
        world.run_for(SECOND_US)
        auditor = world.deployment.client("auditor", skew_us=2 * HOUR_US)
        for task in self.workload.session(auditor, "auditor").audit():
            world.run(auditor, task.conversation())
        return self.workload.findings()


def _no(_object: Any) -> None:
    """Nothing is damaged."""


def test_updates_take_effect_once_or_never_as_reported() -> None:
    for seed in range(12):
        findings = Schedule(seed).findings()
        assert not findings, (seed, findings)


@pytest.mark.parametrize("mutant", [end_attempts_by_refusals, leave_requests_under_way])
def test_must_fail_clients_that_forget_what_is_under_way(
    monkeypatch: pytest.MonkeyPatch, mutant: Any
) -> None:
    mutant(monkeypatch)
    assert any(
        "took place" in finding for seed in range(12) for finding in Schedule(seed).findings()
    )
