"""What does one Byzantine node, or do Byzantine clients, cost the correct clients?

The same clients do the same work on two clusters, in many short turns: on one where everybody is
correct, and on one that is attacked.  In the attacked one either node 0 is run by an adversary, or
one of four clients, or three of ten; the others count.  In the correct one there are as many
clients, and those in the liars' place work as well.  Each attacked turn is compared with the
correct one beside it, and the median of these ratios counts: other work on the machine strikes only
some.  Clients and nodes share this machine's processors.  So that the nodes' rules are measured and
not the machine's scheduler, a Byzantine client uses no more processor time than a correct one used
in the mean in the last turn of the correct cluster.
"""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client_processes import ClientProcess, working
from benchmarks.deployment import Deployment, System, deployed
from benchmarks.errors import BenchmarkError, PhaseError
from benchmarks.measurement import Latencies, Measure, Sample, Spread
from benchmarks.session import Place, Session
from benchmarks.victim import BLOCKS, METADATA, WORKLOADS, Work
from bftfs.cluster import Durability
from bftfs.credentials import Grant
from bftfs.simulation.byzantine.registry import CLIENTS, GRANTS, NODES

NAME = "fragility"
FAULT_FREE = "fault-free"
SYSTEM = System(t=1, b=1)

_VICTIMS = 7
_CROWD = 3  # clients that are Byzantine, or correct in the fault-free cluster
_FEW_VICTIMS = 3  # clients when a node or one client is Byzantine
_LIAR = 0
_NODE = "node:"
_ATTACKERS: Mapping[str, Mapping[str, object]] = {
    METADATA: CLIENTS["objects"],
    BLOCKS: CLIENTS["blocks"],
}

ADVERSARIES = tuple(
    dict.fromkeys((*NODES, *(name for kind in _ATTACKERS.values() for name in kind)))
)


@dataclass(frozen=True, slots=True)
class Parameters:
    """Each turn takes so many seconds; `adversaries` are names of nodes and clients."""

    repeat: int
    seconds: float
    adversaries: tuple[str, ...]
    durability: Durability


@dataclass(frozen=True, slots=True)
class Attack:
    """One adversary, in the place of a node or of so many clients."""

    name: str
    liars: int  # 0: it is a node

    @property
    def victims(self) -> int:
        """How many correct clients count."""
        return _VICTIMS if self.liars == _CROWD else _FEW_VICTIMS

    @property
    def workloads(self) -> tuple[str, ...]:
        """The workloads it attacks: a node all of them, a client the one it was made for."""
        if not self.liars:
            return WORKLOADS
        return tuple(workload for workload in WORKLOADS if self.name in _ATTACKERS[workload])

    @property
    def variant(self) -> str:
        """How it is called in tables."""
        if not self.liars:
            return f"{_NODE} {self.name}"
        return f"{self.liars} of {self.victims + self.liars} clients: {self.name}"


def attacks_of(names: Sequence[str]) -> list[Attack]:
    """The attacks of these adversaries. `BenchmarkError` names what is unknown."""
    unknown = [name for name in names if name not in ADVERSARIES]
    if unknown:
        raise BenchmarkError(
            f"--adversary {unknown[0]}: there is none of this name; there are"
            f" {', '.join(ADVERSARIES)}"
        )
    attacks = [Attack(name, 0) for name in names if name in NODES]
    clients = [name for name in names if any(name in kind for kind in _ATTACKERS.values())]
    return attacks + [Attack(name, liars) for name in clients for liars in (1, _CROWD)]


def run(session: Session, target: str, below: Path | None, parameters: Parameters) -> None:
    """Measure."""
    for attack in attacks_of(parameters.adversaries):
        with suppress(PhaseError):
            _measure(session, target, below, parameters, attack)


def _measure(
    session: Session, target: str, below: Path | None, parameters: Parameters, attack: Attack
) -> None:
    """One adversary, in turns with a cluster of the same age in which everybody is correct."""
    correct = [f"client{number}" for number in range(attack.victims + attack.liars)]
    names = correct[: attack.victims]
    liars = [f"liar{number}" for number in range(attack.liars)]
    grants = GRANTS.get(attack.name, (Grant(),))
    clients = dict.fromkeys(names, Grant()) | {
        name: grants[number % len(grants)] for number, name in enumerate(liars)
    }
    programs = {} if liars else {_LIAR: ("-m", "tests.lying_node", attack.name)}
    arguments = (attack.name, "--victims", str(attack.victims))
    with (
        deployed(
            SYSTEM, parameters.durability, below=below, clients=dict.fromkeys(correct, Grant())
        ) as faultless,
        working(_victims(faultless, correct)) as fault_free,
        deployed(
            SYSTEM, parameters.durability, below=below, clients=clients, programs=programs
        ) as deployment,
        working(_victims(deployment, names)) as victims,
        working(
            [ClientProcess(deployment, name, "tests.lying_client", *arguments) for name in liars]
        ) as attackers,
    ):
        seconds = parameters.seconds
        processor_s: dict[str, float] = {}  # of a correct client where all are, by workload
        for number in range(parameters.repeat):
            for workload in attack.workloads:
                for is_attacked in (False, True) if number % 2 == 0 else (True, False):
                    if is_attacked:
                        works = _turn(victims, workload, seconds, attackers, processor_s[workload])
                    else:
                        works = _turn(fault_free, workload, seconds)
                        used = [work.processor_s for work in works]
                        processor_s[workload] = statistics.fmean(used)
                    name = target if is_attacked else FAULT_FREE
                    place = Place(name, number, attack.variant)
                    _record(session, place, workload, works[: attack.victims])


def _turn(
    workers: Sequence[ClientProcess],
    workload: str,
    seconds: float,
    attackers: Sequence[ClientProcess] = (),
    processor_s: float = 0,
) -> list[Work]:
    """Everybody works at the same time, the attackers with so much processor time each."""
    for worker in workers:
        worker.begin(workload, seconds)
    for attacker in attackers:
        attacker.begin(workload, seconds, processor_s)
    for attacker in attackers:
        attacker.finish()
    return [worker.finish() for worker in workers]


def _record(session: Session, place: Place, workload: str, works: Sequence[Work]) -> None:
    """Record what correct clients have got done in one turn."""
    latencies = [each for work in works for each in work.latencies_us]
    failures: dict[str, int] = {}
    for work in works:
        for error, times in work.failures.items():
            failures[error] = failures.get(error, 0) + times
    done = len(latencies) - sum(failures.values())
    if not done:
        session.fail(place, workload, f"no operation of a correct client succeeded: {failures}")
        raise PhaseError
    # Each client's own rate, so that one that is stalled beyond the others does not count as idle.
    rate = sum(
        (len(work.latencies_us) - sum(work.failures.values())) / work.seconds for work in works
    )
    session.add(
        Sample(
            target=place.target,
            variant=place.variant,
            phase=workload,
            round=place.round,
            measure=Measure.OPERATIONS_PER_SECOND,
            seconds=done / rate,
            amount=done,
            started_s=0,
            latencies=Latencies.of([1000 * each for each in latencies]),
            details={f"{error}s": times for error, times in failures.items()},
        )
    )


def _victims(deployment: Deployment, names: Sequence[str]) -> list[ClientProcess]:
    return [
        ClientProcess(deployment, name, "benchmarks.victim", "--number", str(number))
        for number, name in enumerate(names)
    ]


# --- the table --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One adversary and workload, in ratios to the fault-free turn right before or after."""

    variant: str
    workload: str
    throughput: Spread
    median: float
    p99: float
    longest: float
    stall_s: float  # the longest single operation under attack, in all rounds
    aim: float

    @property
    def falls_short(self) -> bool:
        """True if correct clients keep less than they should, or wait for long."""
        return self.throughput.median < self.aim or self.stall_s > STALL_S


STALL_S = 3.0  # "a few seconds"
_AIM_OF_ONE = 0.5  # beside one node or client
_AIM_OF_A_CROWD = 0.75  # beside 30 % of the clients


def lines(samples: Sequence[Sample]) -> list[Line]:
    """The table's lines, in the order in which they were measured."""
    groups: dict[tuple[str, str], dict[int, dict[bool, Sample]]] = {}
    for sample in samples:
        rounds = groups.setdefault((sample.variant, sample.phase), {})
        rounds.setdefault(sample.round, {})[sample.target == FAULT_FREE] = sample
    found = []
    for (variant, workload), rounds in groups.items():
        pairs = [(turns[False], turns[True]) for turns in rounds.values() if len(turns) == 2]
        tails = [
            (attacked.latencies, fault_free.latencies)
            for attacked, fault_free in pairs
            if attacked.latencies is not None and fault_free.latencies is not None
        ]
        if not tails:
            continue
        found.append(
            Line(
                variant,
                workload,
                Spread.of(attacked.value / fault_free.value for attacked, fault_free in pairs),
                statistics.median(one.median / other.median for one, other in tails),
                statistics.median(one.p99 / other.p99 for one, other in tails),
                statistics.median(one.maximum / other.maximum for one, other in tails),
                max(one.maximum for one, _ in tails) / 1e6,
                _AIM_OF_ONE if variant.startswith((_NODE, "1 of")) else _AIM_OF_A_CROWD,
            )
        )
    return found
