"""The configuration of a run, drawn from its seed.

Each seed switches some faults off altogether (swarm testing), because faults hide one another: a
node that crashes all the time never shows what it does under contention.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeVar

import msgspec

from bftfs.identifiers import NodeId
from bftfs.limits import CLOCK_SKEW_US
from bftfs.server.block_verification import VerificationPolicy, VerificationSettings
from bftfs.simulation.byzantine.registry import CLIENTS, CONSPIRATORS, INITIATIVES, NODES
from bftfs.simulation.deployment import CollectionPlan, Sizes
from bftfs.simulation.faults import FaultPlan
from bftfs.simulation.network import NetworkFaults
from bftfs.simulation.principals import DiskFaults
from bftfs.simulation.workloads.blocks import BlockMix
from bftfs.simulation.workloads.files import FileMix
from bftfs.simulation.workloads.objects import ObjectMix
from bftfs.simulation.world import SECOND_US
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds

KINDS = ("blocks", "objects", "files")

Drawn = TypeVar("Drawn")


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """One correct client."""

    skew_us: int = 0
    width: int = 1  # operations at once
    think_us: tuple[int, int] = (0, 2_000)
    crash_every_us: int = 0  # mean; 0: never
    sane: bool = True  # its clock is within bounds; else nodes may refuse what it does


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that a run depends on."""

    seed: int
    kind: str
    operations: int
    sizes: Sizes
    node_skews_us: tuple[int, ...]
    commit_us: tuple[int, int]
    clients: tuple[ClientPlan, ...]
    faults: FaultPlan
    byzantine_nodes: tuple[tuple[NodeId, tuple[str, ...]], ...] = ()
    byzantine_clients: tuple[str, ...] = ()  # an adversary each
    down_when_quiet: tuple[NodeId, ...] = ()
    down_in_audit: tuple[NodeId, ...] = ()
    blocks: BlockMix = field(default_factory=BlockMix)
    objects: ObjectMix = field(default_factory=ObjectMix)
    files: FileMix = field(default_factory=FileMix)
    verification: VerificationSettings | None = None  # of blocks by nodes, in idle time
    collection: CollectionPlan | None = None  # of the past, by nodes that verify
    possible_objects: int | None = None  # that one client may leave incomplete, if not the usual
    faulty_share: float = 1.0  # of the operations: when so many have ended, faults stop
    client_bytes: int | None = None  # of a node, that the versions of one client may take
    # What Byzantine nodes start themselves, as clients do.
    initiatives: tuple[tuple[NodeId, str], ...] = ()
    # The numbers of the operations that take place, if not all: what shrinking has left.
    kept: tuple[int, ...] | None = None

    @property
    def intruders(self) -> tuple[str, ...]:
        """The names of the Byzantine clients."""
        numbered = enumerate(self.byzantine_clients)
        return tuple(f"intruder {number} {adversary}" for number, adversary in numbered)


def to_json(configuration: Configuration) -> bytes:
    """`configuration` as a file that survives changes of how seeds are drawn."""
    return msgspec.json.format(msgspec.json.encode(configuration))


def from_json(encoded: bytes) -> Configuration:
    """The inverse of `to_json`. Raises one of `UNREADABLE` if `encoded` is something else."""
    return msgspec.json.decode(encoded, type=Configuration)


def draw(seed: int, *, operations: int, kind: str | None = None) -> Configuration:
    """The configuration of `seed`."""
    random = Random(f"configuration {seed}")
    # Drawn apart, so that another kind or adversary leaves the rest of a seed as it was.
    kind = kind or Random(f"kind {seed}").choice(KINDS)
    intrigue = Random(f"adversaries {seed}")
    sizes = _draw_sizes(random)
    # Rarely, cuts outlast what clocks may differ by, and so do the operations that wait for them.
    long = random.random() < 0.04
    n, b, t = sizes.n, sizes.query_update.b, sizes.query_update.t
    byzantine = random.sample(range(n), random.randint(0, b)) if random.random() < 0.8 else []
    names = sorted(NODES.keys() - {"rewound"})  # that has its own part of the seeds
    adversaries = tuple(
        (NodeId(node), tuple(intrigue.sample(names, intrigue.choice((1, 1, 2, 4)))))
        for node in sorted(byzantine)
    )
    others = [NodeId(node) for node in range(n) if node not in byzantine]
    spare = t - len(byzantine)
    drawn = Configuration(
        seed=seed,
        kind=kind,
        operations=operations,
        sizes=sizes,
        node_skews_us=_draw_node_skews(random, n),
        commit_us=random.choice(((20, 200), (20, 2_000), (5_000, 20_000))),
        clients=_draw_clients(random, long=long),
        faults=_draw_faults(random, n, long=long),
        byzantine_nodes=adversaries,
        byzantine_clients=_draw_intruders(intrigue, kind),
        faulty_share=random.choice((0.3, 0.7, 1.0)),
        down_when_quiet=tuple(sorted(random.sample(others, random.randint(0, spare)))),
        down_in_audit=tuple(sorted(random.sample(others, spare))),
        blocks=BlockMix(
            blocks=random.randint(1, 4),
            writes=random.choice((0.2, 0.5, 0.8)),
            past_reads=random.choice((0.0, 0.2)),
            many=random.choice((0.0, 0.2)),
        ),
        objects=ObjectMix(
            counters=random.randint(1, 3),
            accounts=random.choice((0, 2, 3, 5)),
            updates=random.choice((0.2, 0.5, 0.9)),
            ledger=random.choice((0.2, 0.7, 1.0)),
            several=random.choice((0.1, 0.7, 1.0)),
        ),
        files=FileMix(
            names=random.choice((2, 4, 8)),
            contents=random.choice((0.0, 0.3, 0.8)),
            directories=random.choice((0.1, 0.5)),
            private=random.choice((0.0, 0.3)),
        ),
        verification=_draw_verification(Random(f"verification {seed}"), often=t > 1),
    )
    if drawn.verification is not None and not long:
        drawn = _with_losses(drawn, Random(f"losses {seed}"), others, most=spare)
        drawn = _with_copies(drawn, Random(f"copies {seed}"))
    drawn = _with_limits(drawn, Random(f"admission {seed}"))
    if drawn.verification is not None and not long:
        drawn = _with_collection(drawn, Random(f"collection {seed}"))
    drawn = _with_initiatives(drawn, Random(f"initiatives {seed}"))
    drawn = _with_pact(drawn, Random(f"pact {seed}"))
    drawn = _with_power_failures(drawn, Random(f"power {seed}"))
    drawn = replace(drawn, files=_draw_rare_uses(drawn, Random(f"uses {seed}")))
    drawn = _with_jumps(drawn, Random(f"jumps {seed}"))
    drawn = _with_revocations(drawn, Random(f"revocations {seed}"))
    return _with_epochs(drawn, Random(f"epochs {seed}"))


def _with_jumps(drawn: Configuration, random: Random) -> Configuration:
    """In a part of the seeds, all clocks jump ahead together, and back, again and again.

    None is Byzantine there: within the hour in which nodes bear with such times, it could leave an
    object at one of them (docs/decisions/0017-clock-jumps.md). What is undone and restored is found
    by its time, and blocks of no file have nothing that would move on with them. A client
    that waits for others so long that the clocks jump twice meanwhile fails with ETIME.
    """
    if (
        random.random() >= 0.3
        or drawn.kind == "blocks"
        or drawn.byzantine_nodes
        or drawn.collection is not None
        or drawn.files.undo
        or not all(client.sane for client in drawn.clients)
    ):
        return drawn
    faults = replace(
        drawn.faults,
        jump_every_us=random.choice((SECOND_US, 5 * SECOND_US)),
        jumps_us=random.choice(((CLOCK_SKEW_US // 2,), (3 * CLOCK_SKEW_US, 10**13), (10**14,))),
        jumped_us=(1_000, random.choice((SECOND_US, 10 * SECOND_US))),
    )
    return replace(drawn, faults=faults)


def _with_revocations(drawn: Configuration, random: Random) -> Configuration:
    """In a part of the seeds, Byzantine clients are revoked while they are at work."""
    if not drawn.byzantine_clients or random.random() >= 0.3:
        return drawn
    faults = replace(
        drawn.faults,
        revoke_every_us=random.choice((SECOND_US // 5, SECOND_US, 5 * SECOND_US)),
        hear_us=(0, random.choice((1_000, SECOND_US, 10 * SECOND_US))),
    )
    return replace(drawn, faults=faults)


def _with_epochs(drawn: Configuration, random: Random) -> Configuration:
    """Where clients of files are revoked, mostly: contents are sealed, and each begins an epoch.

    Clients pause, so that some of what they write is written when nodes have heard.
    """
    revokes = drawn.kind == "files" and drawn.faults.revoke_every_us
    if not revokes or random.random() >= 0.7:
        return drawn
    think_us = (0, random.choice((1, 3)) * SECOND_US)
    return replace(
        drawn,
        clients=tuple(
            replace(client, think_us=max(client.think_us, think_us)) for client in drawn.clients
        ),
        files=replace(drawn.files, epochs=True, contents=0.6),
    )


def _with_initiatives(drawn: Configuration, random: Random) -> Configuration:
    """In a part of the seeds, Byzantine nodes start repairs as well."""
    names = sorted(INITIATIVES[drawn.kind])
    return replace(
        drawn,
        initiatives=tuple(
            (node, random.choice(names))
            for node, _ in drawn.byzantine_nodes
            if random.random() < 0.3
        ),
    )


def _with_pact(drawn: Configuration, random: Random) -> Configuration:
    """In a part of the seeds, a client has a pact with all Byzantine nodes."""
    if not drawn.byzantine_nodes or random.random() >= 0.25:
        return drawn
    alone = random.random() < 0.5
    return replace(
        drawn,
        byzantine_nodes=tuple(
            (node, ("confederate", *(() if alone else names)))
            for node, names in drawn.byzantine_nodes
        ),
        byzantine_clients=(
            *drawn.byzantine_clients,
            random.choice(CONSPIRATORS[drawn.kind]),
        ),
    )


def _with_power_failures(drawn: Configuration, random: Random) -> Configuration:
    """In a few seeds, the machines of nodes that may lie lose power; the nodes are correct else."""
    if random.random() >= 0.05:
        return drawn
    rewound = tuple((node, ("rewound",)) for node, _ in drawn.byzantine_nodes)
    return replace(drawn, byzantine_nodes=rewound, initiatives=())


def _with_limits(drawn: Configuration, random: Random) -> Configuration:
    """In some seeds, one client soon reaches the limit of incomplete updates, or of bytes."""
    if drawn.verification is not None and random.random() < 0.5:
        drawn = replace(drawn, possible_objects=random.choice((1, 2, 4)))
    all_whole = not drawn.faults.losers and not drawn.byzantine_nodes
    if drawn.kind == "blocks" and all_whole and random.random() < 0.1:
        # Nodes count a client's bytes differently, because each may have missed other writes. If t
        # nodes are silent and another one refuses, a write rightly waits for the silent ones: one
        # refusal may be a lie. In the quiet phase all nodes answer, so that every write ends.
        client_bytes = drawn.operations * random.choice((20, 40, 100))
        drawn = replace(drawn, client_bytes=client_bytes, down_when_quiet=())
    return drawn


def _draw_rare_uses(drawn: Configuration, random: Random) -> FileMix:
    """Now and then, mounts make files and write them, and the auditor undoes and restores, or files
    are open to a stranger for a while, or all clients write the same two.

    Where nodes collect, what would have to be restored may be gone.
    """
    files = drawn.files
    if random.random() < 0.1:
        files = replace(files, made=0.1)
    if random.random() < 0.1 and drawn.collection is None:
        files = replace(files, undo=True, modes=0.1)
    elif random.random() < 0.3:
        doors, guests = random.choice((0.05, 0.2)), random.choice((0.0, 0.3))
        files = replace(files, doors=doors, guests=guests, contents=0.6)
    if random.random() < 0.15 and not files.undo:
        files = replace(files, shared=random.choice((0.3, 0.8)))
    if random.random() < 0.5:
        files = replace(files, bundles=random.choice((0.1, 0.5)))
    return files


def _with_collection(drawn: Configuration, random: Random) -> Configuration:
    """In half of the seeds, nodes collect what is older than some seconds; clients pause as long.

    As in real nodes, the window is longer by as much as clocks may differ [design §8]: a client
    whose clock is behind still makes versions of the past. Blocks of no file are not collected.
    """
    if drawn.kind == "blocks" or random.random() >= 0.5:
        return drawn
    n = drawn.sizes.n
    window_us = random.choice((10 * SECOND_US, 40 * SECOND_US))
    window_us += max((0, *drawn.node_skews_us))
    window_us += max((0, *(min(-client.skew_us, CLOCK_SKEW_US) for client in drawn.clients)))
    plan = CollectionPlan(
        window_us,
        roomy=tuple(map(NodeId, sorted(random.sample(range(n), random.choice((0, 0, 1, n // 2)))))),
        rest_us=random.choice((0, window_us + 60 * SECOND_US)),
    )
    think_us = (0, random.choice((2, 5)) * SECOND_US)
    return replace(
        drawn,
        collection=plan,
        clients=tuple(replace(client, think_us=think_us) for client in drawn.clients),
        files=replace(drawn.files, past=random.choice((0.0, 0.1)), contents=0.5),
    )


def _with_losses(
    drawn: Configuration, random: Random, others: list[NodeId], *, most: int
) -> Configuration:
    """In half of the seeds, up to `most` nodes lose their disks in the faulty phase.

    No other node fails until they are healed. In the audit others are down in their place, so that
    what they have rebuilt is needed. Where several may fail it happens nearly always: few seeds are
    like that, and some servers then do not hear of what others have lost.
    """
    several = drawn.sizes.query_update.t > 1
    if not most or random.random() >= (0.9 if several else 0.5):
        return drawn
    losers = tuple(sorted(random.sample(others, random.randint(1, most))))
    faults = replace(
        drawn.faults,
        lose_every_us=random.choice((SECOND_US, 10 * SECOND_US, 60 * SECOND_US)),
        losers=losers,
    )
    whole = [node for node in others if node not in losers]
    down = random.sample(whole, min(len(drawn.down_in_audit), len(whole)))
    return replace(drawn, faults=faults, down_when_quiet=(), down_in_audit=tuple(sorted(down)))


def _with_copies(drawn: Configuration, random: Random) -> Configuration:
    """In half of these seeds, their folders are put back from copies now and then, unannounced."""
    if not drawn.faults.losers or random.random() >= 0.5:
        return drawn
    return replace(drawn, faults=replace(drawn.faults, copies=True))


def _draw_verification(random: Random, *, often: bool) -> VerificationSettings | None:
    """The settings of verification; often with limits that are soon reached."""
    policy = random.choice(
        (VerificationPolicy.COOPERATIVE, VerificationPolicy.LAZY, *VerificationPolicy)
    )
    if random.random() < (0.3 if often else 0.6):
        return None
    if random.random() < 0.5:
        return VerificationSettings(policy)
    block = random.choice((1, 3))
    return VerificationSettings(policy, node=16 * block, client=4 * block, block=block)


def _draw_intruders(random: Random, kind: str) -> tuple[str, ...]:
    count = random.choice((0, 0, 1, 1, 2, 4))
    names = sorted(CLIENTS[kind])
    return tuple(random.choices(names, k=count)) if names else ()


def _draw_sizes(random: Random) -> Sizes:
    (t, b), extra = (
        random.choices(((1, 1), (1, 0), (2, 1), (2, 2), (2, 0)), weights=(60, 15, 12, 8, 5))[0],
        random.choices((0, 1), weights=(85, 15))[0],
    )
    n = 3 * t + 2 * b + 1 + extra
    QC = random.randint(t + b + 1, n - t - b)
    blocks = (
        ReadWriteThresholds.for_nodes(n, t=t, b=b)
        if random.random() < 0.6
        else ReadWriteThresholds(n, t, b, QC, random.randint(1, QC - t))
    )
    return Sizes(QueryUpdateThresholds.for_nodes(n, t=t, b=b), blocks)


def _draw_node_skews(random: Random, n: int) -> tuple[int, ...]:
    most_us = random.choice((0, 1_000, SECOND_US, 100 * SECOND_US))
    return tuple(random.randint(-most_us, most_us) for _ in range(n))


def _draw_clients(random: Random, *, long: bool) -> tuple[ClientPlan, ...]:
    count = random.choices((1, 2, 3, 5), weights=(15, 35, 35, 15))[0]
    most_us = random.choice((0, 1_000, SECOND_US, 100 * SECOND_US))
    crash_every_us = random.choice((0, 0, SECOND_US // 2, 5 * SECOND_US))
    think_us = random.choice(((0, 0), (0, 2_000), (0, 200_000)))
    if long:
        think_us = (0, 20 * SECOND_US)
    insane = random.random() < 0.15
    return tuple(
        ClientPlan(
            skew_us=(
                random.choice((-3_600, 3_600)) * SECOND_US
                if insane and number == 0
                else random.randint(-most_us, most_us)
            ),
            width=random.choice((1, 1, 2, 4)),
            think_us=think_us,
            crash_every_us=crash_every_us if random.random() < 0.7 else 0,
            sane=not (insane and number == 0),
        )
        for number in range(count)
    )


def _draw_faults(random: Random, n: int, *, long: bool) -> FaultPlan:
    far_us = random.choice((0, 0, 2_000, 100_000))
    distances_us = tuple(random.randint(0, far_us) if far_us else 0 for _ in range(n))
    delay_us = random.choice(((50, 500), (50, 5_000), (1_000, 60_000), (10, 20)))
    return FaultPlan(
        network=NetworkFaults(
            loss=_sometimes(random, 0.5, 0.001, 0.02, 0.2),
            duplication=_sometimes(random, 0.4, 0.01, 0.2),
            delay_us=delay_us,
            straggling=_sometimes(random, 0.4, 0.005, 0.05),
        ),
        disk=DiskFaults(
            before_commit=_sometimes(random, 0.4, 0.001, 0.01),
            after_commit=_sometimes(random, 0.4, 0.001, 0.01),
        ),
        crash_every_us=_sometimes(random, 0.4, SECOND_US // 5, 2 * SECOND_US),
        partition_every_us=(
            _sometimes(random, 0.5, CLOCK_SKEW_US)
            if long
            else _sometimes(random, 0.3, SECOND_US, 5 * SECOND_US)
        ),
        sever_every_us=(
            CLOCK_SKEW_US // 3 if long else _sometimes(random, 0.3, SECOND_US // 2, 2 * SECOND_US)
        ),
        cut_us=(CLOCK_SKEW_US // 2, 2 * CLOCK_SKEW_US) if long else (1_000, 2_000_000),
        distances_us=distances_us,
        longest_us=6 * CLOCK_SKEW_US if long else 120 * SECOND_US,
    )


def _sometimes(random: Random, chance: float, *values: Drawn) -> Drawn | int:
    drawn, value = random.random(), random.choice(values)
    return value if drawn < chance else 0
