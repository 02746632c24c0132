"""Where does the time of a create and of a block write go, in the client and in a node?

Each workload runs twice on real nodes.  The first run tells what an operation costs the client and
one node, in the kernel and outside; the second, with both under a profiler, in what shares the
latter goes to which kind of work.  A profiler slows small functions down more than large ones, and
cannot tell work from waiting for the processor: the shares are less exact than the sums.  Calls of
sockets are left to the kernel's row, since the process that they wake often takes over there.

Nodes run with `interval` durability unless told otherwise: waiting for a disk is not CPU time, and
a profiler of calls cannot tell the two apart.
"""

import cProfile
import os
import pstats
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.deployment import ROOT, Client, System, client_of, deployed
from benchmarks.errors import PhaseError
from benchmarks.measurement import Measure, Sample
from benchmarks.scenarios.blocks import numbered_block
from benchmarks.scenarios.metadata import Namespace
from benchmarks.session import Place, Session
from bftfs.cluster import Durability
from bftfs.conversation import Conversation

WORKLOADS = ("create", "block-write", "block-read")

_SYSTEM = System(t=1, b=1)
_PROFILED_NODE = 0

Operations = Sequence[Callable[[], Conversation[Any]]]
_Function = tuple[str, int, str]  # as `pstats` names one: file, line, name

_KERNEL = "in the kernel"
_UNCOUNTED = "uncounted"
# A function is of the first kind whose pattern is found in `FILE:NAME`.  Python's own functions
# that no pattern knows are counted with those who call them.
_KINDS = (
    (
        _UNCOUNTED,
        r"'poll' of 'select|'acquire' of '_thread|f(data)?sync|'sync' of 'Env"
        r"|'(send|sendmsg|recv|recv_into)' of '_socket",
    ),
    ("LMDB", r" of '(Transaction|Environment|Cursor)'"),
    ("encoding (msgspec)", r"msgspec"),
    ("erasure code (zfec)", r"of '_fec\."),
    ("fragment hashes (blake3)", r"blake3|crypto/digest.py:fragment_digest"),
    ("MACs and small hashes", r"_blake2|hashlib|_hmac|compare_digest|crypto/(auth|digest)"),
    ("channel and frames", r"bftfs/(wire|crypto)/"),
    ("connections", r"bftfs/runtime/"),
    ("engine", r"bftfs/(engine|conversation|server/(dispatcher|step))\.py"),
    ("Query/Update", r"bftfs/(query_update|asking)/"),
    ("read/write", r"bftfs/(read_write|coding)/"),
    ("file system methods", r"bftfs/filesystem/"),
    ("store", r"nodes/(store|data_file|checkpoint)\.py|bftfs/storage\.py"),
    ("node loop", r"nodes/"),
    ("the benchmark itself", r"benchmarks/"),
)
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class Parameters:
    """`operations`, so many `in_flight`; creates in flight are in different directories."""

    repeat: int
    workloads: tuple[str, ...]
    in_flight: int
    operations: int
    size: int
    durability: Durability


def run(session: Session, target: str, below: Path | None, parameters: Parameters) -> None:
    """Measure."""
    for workload in parameters.workloads:
        for number in range(parameters.repeat):
            place = Place(target, number, f"{workload}, {parameters.in_flight} in flight")
            with suppress(PhaseError):
                costs = _costs(session, place, below, workload, parameters)
                profiles = _profiles(below, workload, parameters)
                for process, cost in costs.items():
                    _add_shares(session, place, process, cost, profiles[process])


@dataclass(frozen=True, slots=True)
class _Cost:
    """CPU time of an operation in one process, in µs."""

    all_us: float
    system_us: float


def _costs(
    session: Session, place: Place, below: Path | None, workload: str, parameters: Parameters
) -> dict[str, _Cost]:
    """The cost of an operation for the client and one node."""
    with (
        deployed(_SYSTEM, parameters.durability, below=below) as deployment,
        client_of(deployment) as client,
    ):
        prepared = _prepared(client, workload, parameters)
        with deployment.operations(
            session,
            place,
            "undisturbed",
            Measure.MICROSECONDS_PER_OPERATION,
            count=parameters.operations,
            asked=deployment.description.n,
        ) as phase:
            client.perform(
                prepared, in_flight=parameters.in_flight, latencies_ns=phase.latencies_ns
            )
        return {
            process: _Cost(
                float(phase.details[f"{name}_cpu_us"]), float(phase.details[f"{name}_system_us"])
            )
            for process, name in (("client", "client"), ("node", "server"))
        }


def _profiles(below: Path | None, workload: str, parameters: Parameters) -> dict[str, pstats.Stats]:
    """Of the client and of one node."""
    with tempfile.TemporaryDirectory(prefix="profile-") as scratch:
        of_node = Path(scratch) / "node"
        program = ("-m", "benchmarks.profiled_node", str(of_node))
        of_client = cProfile.Profile()
        with (
            deployed(
                _SYSTEM, parameters.durability, below=below, programs={_PROFILED_NODE: program}
            ) as deployment,
            client_of(deployment) as client,
        ):
            prepared = _prepared(client, workload, parameters)
            of_client.runcall(client.perform, prepared, in_flight=parameters.in_flight)
        return {"client": pstats.Stats(of_client), "node": pstats.Stats(str(of_node))}


def _add_shares(
    session: Session, place: Place, process: str, cost: _Cost, profile: pstats.Stats
) -> None:
    by_kind = kinds_of(profile)
    per_second = (cost.all_us - cost.system_us) / max(sum(by_kind.values()), 1e-9)
    rows = [(kind, seconds * per_second) for kind, seconds in by_kind.most_common()]
    for kind, share_us in [(_KERNEL, cost.system_us), *rows]:
        session.samples.append(
            Sample(
                target=place.target,
                variant=f"{place.variant}: {process}",
                phase=kind,
                round=place.round,
                measure=Measure.MICROSECONDS_PER_OPERATION,
                seconds=share_us / 1e6,
                amount=1,
                started_s=session.samples[-1].started_s,
            )
        )


def _prepared(client: Client, workload: str, parameters: Parameters) -> Operations:
    """The operations of a workload; everything that they need is there."""
    numbers = range(parameters.operations)
    blocks = [numbered_block(number) for number in numbers]
    writes = [
        partial(client.blocks.write, block, os.urandom(parameters.size), ROOT) for block in blocks
    ]
    if workload == "block-write":
        return writes
    if workload == "block-read":
        client.perform(writes, in_flight=parameters.in_flight)
        return [partial(client.blocks.read, block) for block in blocks]
    namespace = Namespace(client)
    directories = [namespace.make_directory(number) for number in range(parameters.in_flight)]
    return [
        namespace.creation(directory, b"file%d" % number, namespace.new_identifier(directory))
        for number in numbers
        for directory in (directories[number % len(directories)],)
    ]


def kinds_of(profile: pstats.Stats) -> Counter[str]:
    """Seconds by kind, without waiting and without calls of sockets."""
    found: Counter[str] = Counter()
    entries: dict[_Function, Any] = profile.stats  # type: ignore[attr-defined]
    for function, (_, _, own_s, _, callers) in entries.items():
        kind = _kind(function)
        if kind is not None:
            found[kind] += own_s
        elif not callers:
            found[_OTHER] += own_s
        for caller, (_, _, part_s, _) in callers.items() if kind is None else ():
            found[_kind(caller) or _OTHER] += part_s
    del found[_UNCOUNTED]
    return found


def _kind(function: _Function) -> str | None:
    file, _, name = function
    text = f"{file}:{name}"
    return next((kind for kind, pattern in _KINDS if re.search(pattern, text)), None)
