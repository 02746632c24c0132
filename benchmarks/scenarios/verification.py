"""What does it cost writers and readers that nodes verify what was written, by policy?

The experiments of [LazyVer §3.10], on real processes.  With think time: a single client writes and
reads blocks in turns and pauses after each, for growing numbers of tolerated faults (Figure 3.8).
Without: a client overwrites blocks as fast as nodes let it, with pools of several sizes; a pool is
how many versions nodes host unverified before they make the writer wait (Figure 3.9).  "read-time"
is what the source calls free verification there, since nodes verify nothing and nobody reads.

Messages are counted at the nodes: requests that they served and the replies to them.  What a node
asks itself is left out, as in the source's figure of 20 against 30.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

from benchmarks import exposition
from benchmarks.charts import Lines
from benchmarks.deployment import ROOT, Client, Deployment, System, client_of, deployed
from benchmarks.errors import PhaseError, WorkloadError
from benchmarks.measurement import Latencies, Measure, Sample
from benchmarks.processes import ProcessWatch, WatchedProcess
from benchmarks.scenarios.blocks import numbered_block
from benchmarks.session import Place, Session
from bftfs.cluster import Durability
from bftfs.conversation import Conversation
from bftfs.identifiers import BlockId
from bftfs.read_write.reading import FoundVersion
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.server.block_verification import VerificationPolicy
from nodes.configuration import POSSIBLE_VERSIONS_MOST

POLICIES = tuple(policy.value for policy in VerificationPolicy)
NAME = "verification"

_FREE = VerificationPolicy.READ_TIME.value
_LAZY = (VerificationPolicy.LAZY.value, VerificationPolicy.COOPERATIVE.value)
_BUSY = System(t=1, b=1)  # the cluster of the second experiment
_SIZE = 32 * 1024
_BLOCKS = 64  # that are overwritten in the second experiment
_IN_FLIGHT = 32  # there; four clients with eight each in the source
_VERIFIED_S = 60.0  # in which nodes are to have verified all
_SEED = 1

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Parameters:
    """`operations` of each kind with pauses of `think_ms`; `seconds` of writing at full speed.

    0 of either leaves out that experiment.
    """

    repeat: int
    systems: tuple[System, ...]
    policies: tuple[str, ...]
    operations: int
    think_ms: int
    pools: tuple[int, ...]
    seconds: float
    durability: Durability


def run(session: Session, target: str, below: Path | None, parameters: Parameters) -> None:
    """Measure."""
    for number in range(parameters.repeat):
        for system in parameters.systems if parameters.operations else ():
            for policy in parameters.policies:
                place = Place(target, number, f"{system}, {policy}")
                with (
                    suppress(PhaseError),
                    _nodes(system, policy, POSSIBLE_VERSIONS_MOST, below, parameters) as deployment,
                ):
                    _ThinkTime(session, place, deployment, policy, parameters).run()
        for policy in parameters.policies if parameters.seconds else ():
            for pool in parameters.pools if policy in _LAZY else (0,):
                variant = f"{policy}, pool {pool}" if pool else policy
                with (
                    suppress(PhaseError),
                    _nodes(_BUSY, policy, pool, below, parameters) as deployment,
                ):
                    _full_speed(
                        session,
                        Place(target, number, variant),
                        deployment,
                        pool,
                        policy,
                        parameters,
                    )
    for line in comparison(session.samples):
        session.note(line)


def _nodes(
    system: System, policy: str, pool: int, below: Path | None, parameters: Parameters
) -> AbstractContextManager[Deployment]:
    most = pool or POSSIBLE_VERSIONS_MOST
    configuration = (
        f'verification = "{policy}"\n'
        f"possible_versions = {most}\n"
        f"client_possible_versions = {most}\n"
        f"block_possible_versions = {most}\n"
    )
    return deployed(system, parameters.durability, below=below, configuration=configuration)


def _total(deployment: Deployment, *names: str) -> float:
    """The sum of some figures over all nodes."""
    pages = [
        exposition.figures(deployment.directory.node(member.node))
        for member in deployment.description.members
    ]
    return sum(page.get(name, 0) for page in pages for name in names)


# --- with think time ----------------------------------------------------------------------------


class _ThinkTime:
    """One client that writes and reads in turns, and pauses after each operation."""

    def __init__(
        self,
        session: Session,
        place: Place,
        deployment: Deployment,
        policy: str,
        parameters: Parameters,
    ) -> None:
        self._session = session
        self._place = place
        self._deployment = deployment
        self._policy = policy
        self._parameters = parameters
        self._random = random.Random(_SEED)
        self._details: dict[str, float | str] = {
            "b": deployment.system.b,
            "policy": policy,
        }

    def run(self) -> None:
        count = self._parameters.operations
        with client_of(self._deployment) as writer, client_of(self._deployment) as reader:
            before = self._counts()
            old = self._items(0, count)
            for block, item in old.items():
                self._one(writer, _write(writer, block, item))
            if self._policy in _LAZY:
                self._await_verification(count, before)
            new = self._items(count, count)
            nodes = [WatchedProcess.parse(f"node={pid}") for pid in self._deployment.pids]
            watch = ProcessWatch(nodes)
            writes: list[int] = []
            reads: list[int] = []
            for (known, item), (fresh, contents) in zip(old.items(), new.items(), strict=True):
                found = self._one(reader, partial(_read, reader, known), reads)
                if found.item != item:
                    self._session.fail(self._place, "read", "what was read is not what was written")
                    raise PhaseError
                self._one(writer, _write(writer, fresh, contents), writes)
            cpu_us = sum(node.cpu_s for node in watch.finish()) / (2 * count) * 1e6
        self._details["all_servers_cpu_us"] = round(cpu_us, 1)  # and of verification meanwhile
        self._add("write", writes)
        self._add("read", reads)

    def _items(self, first: int, count: int) -> dict[BlockId, bytes]:
        return {
            numbered_block(number): self._random.randbytes(_SIZE)
            for number in range(first, first + count)
        }

    def _one(
        self,
        client: Client,
        operation: Callable[[], Conversation[Result]],
        latencies_ns: list[int] | None = None,
    ) -> Result:
        (result,) = client.perform([operation], latencies_ns=latencies_ns)
        time.sleep(self._parameters.think_ms / 1000)
        return result

    def _add(self, phase: str, latencies_ns: list[int]) -> None:
        self._session.add(
            Sample(
                target=self._place.target,
                variant=self._place.variant,
                phase=phase,
                round=self._place.round,
                measure=Measure.MICROSECONDS_PER_OPERATION,
                seconds=median(latencies_ns) / 1e9,
                amount=1,
                started_s=0.0,
                latencies=Latencies.of(latencies_ns),
                details=self._details,
            )
        )

    # --- messages ----------------------------------------------------------------------------

    def _counts(self) -> tuple[float, float, float, float]:
        """Requests of readers among the nodes, notices, verifications, and versions settled."""
        names = (
            'bftfs_requests_total{message="ReadRequest"}',
            'bftfs_requests_total{message="Notice"}',
            "bftfs_verified_blocks",
            "bftfs_settled_versions",
        )
        reads, notices, verified, settled = (_total(self._deployment, name) for name in names)
        return reads, notices, verified, settled

    def _await_verification(self, count: int, before: tuple[float, float, float, float]) -> None:
        """Until all nodes know that all is verified; what that took them."""
        n = self._deployment.description.n
        deadline = time.monotonic() + _VERIFIED_S
        while self._counts()[3] - before[3] < count * n:
            if time.monotonic() > deadline:
                self._session.fail(self._place, "verify", f"not done after {_VERIFIED_S:.0f} s")
                raise PhaseError
            time.sleep(0.1)
        reads, notices, verified, _ = (
            now - then for now, then in zip(self._counts(), before, strict=True)
        )
        messages = 2 * (reads - verified) + notices  # each verification asks its own node once
        self._details |= {
            "messages_per_version": round(messages / count, 2),
            "verifications_per_version": round(verified / count, 2),
            "notices_per_version": round(notices / count, 2),
        }


# --- without ------------------------------------------------------------------------------------


def _full_speed(
    session: Session,
    place: Place,
    deployment: Deployment,
    pool: int,
    policy: str,
    parameters: Parameters,
) -> None:
    """Blocks are overwritten at random, with no pause."""
    choose = random.Random(_SEED)
    items = [choose.randbytes(_SIZE) for _ in range(8)]

    def writes(client: Client, until: float) -> Iterator[Callable[[], Conversation[object]]]:
        while time.monotonic() < until:
            block = numbered_block(choose.randrange(_BLOCKS))
            yield partial(client.blocks.write, block, choose.choice(items), ROOT)

    with client_of(deployment) as client:
        latencies_ns: list[int] = []
        started = time.monotonic()
        try:
            client.perform(
                writes(client, started + parameters.seconds),
                in_flight=_IN_FLIGHT,
                latencies_ns=latencies_ns,
            )
        except WorkloadError as error:
            session.fail(place, "overwrite", str(error))
            raise PhaseError from error
        seconds = time.monotonic() - started
        verified = _total(deployment, "bftfs_verified_blocks", "bftfs_convinced_blocks")
    n = deployment.description.n
    session.add(
        Sample(
            target=place.target,
            variant=place.variant,
            phase="overwrite",
            round=place.round,
            measure=Measure.OPERATIONS_PER_SECOND,
            seconds=seconds,
            amount=len(latencies_ns),
            started_s=0.0,
            latencies=Latencies.of(latencies_ns),
            details={
                "policy": policy,
                "pool": pool,
                "blocks_verified_per_write": round(verified / n / len(latencies_ns), 3),
                "writes_that_waited": _total(deployment, "bftfs_verification_demands"),
            },
        )
    )


# --- beside the source --------------------------------------------------------------------------


def comparison(samples: Sequence[Sample]) -> list[str]:
    """Our ratios, and the source's."""
    return [*_with_think_time(samples), *_messages(samples), *_at_full_speed(samples)]


def _with_think_time(samples: Sequence[Sample]) -> Iterator[str]:
    for phase, against in (("write", _FREE), ("read", VerificationPolicy.WRITE_TIME.value)):
        by = _by(samples, phase, "b", "policy")
        for b in sorted({b for b, _ in by}):
            ours, theirs = by.get((b, VerificationPolicy.COOPERATIVE.value)), by.get((b, against))
            if ours and theirs:
                yield (
                    f"{phase}s with think time, b = {b}: lazy+cooperative takes"
                    f" {ours / theirs:.2f} of {against} (source: the same)"
                )


_SOURCE_MESSAGES = {1: (30, 20), 3: (260, 128)}


def _messages(samples: Sequence[Sample]) -> Iterator[str]:
    counted: dict[tuple[float | str, float | str], list[float]] = {}
    for sample in samples:
        found = sample.details.get("messages_per_version")
        if sample.phase == "write" and isinstance(found, int | float):
            key = (sample.details["b"], sample.details["policy"])
            counted.setdefault(key, []).append(found)
    for b in sorted({b for b, _ in counted}, key=float):
        alone, together = (counted.get((b, policy)) for policy in _LAZY)
        if alone and together:
            source = _SOURCE_MESSAGES.get(int(b))
            cited = f"; source, N = 4b + 1: {source[0]} and {source[1]}" if source else ""
            yield (
                f"messages per version, b = {b}: {median(alone):.0f} without cooperation,"
                f" {median(together):.0f} with it{cited}"
            )


def _at_full_speed(samples: Sequence[Sample]) -> Iterator[str]:
    by = _by(samples, "overwrite", "pool", "policy")
    free, proactive = by.get((0, _FREE)), by.get((0, VerificationPolicy.WRITE_TIME.value))
    pools = sorted({pool for pool, _ in by if pool}, key=float)
    if not pools:
        return
    ample = pools[-1]
    alone, together = (by.get((ample, policy)) for policy in _LAZY)
    if together and proactive:
        yield (
            f"write throughput without idle time, pool {ample}: lazy+cooperative makes"
            f" {together / proactive:.1f} times what write-time makes (source: 4)"
        )
    if together and free:
        yield f"… and {together / free:.2f} of free verification (source: 0.91)"
    for pool in pools:
        alone, together = (by.get((pool, policy)) for policy in _LAZY)
        if alone and together:
            yield (
                f"… and {together / alone:.2f} of lazy without cooperation, pool {pool}"
                " (source: 1.53 to 1.86)"
            )


def charts(samples: Sequence[Sample]) -> list[Lines]:
    """The source's Figures 3.8 and 3.9, with our figures: as far as they were measured."""
    drawn = []
    for phase in ("write", "read"):
        lines: dict[str, dict[float, float]] = {}
        for (b, policy), microseconds in _by(samples, phase, "b", "policy").items():
            lines.setdefault(str(policy), {})[float(b)] = microseconds / 1000
        title = f"Latency of a {phase}, with time to think"
        drawn.append(Lines(title, "faults tolerated, b", "ms", lines, {}))
    lines, levels = {}, {}
    for (pool, policy), rate in _by(samples, "overwrite", "pool", "policy").items():
        if pool:
            lines.setdefault(str(policy), {})[float(pool)] = rate
        else:
            levels["no verification at all" if policy == _FREE else str(policy)] = rate
    title = "Writes when nodes are never idle"
    limit = "unverified versions that a node may have"
    drawn.append(Lines(title, limit, "writes/s", lines, levels, logarithmic=True))
    return [chart for chart in drawn if chart.lines]


def _by(samples: Sequence[Sample], phase: str, *names: str) -> dict[tuple[float | str, ...], float]:
    """The medians of a phase over the rounds, by some of the details."""
    values: dict[tuple[float | str, ...], list[float]] = {}
    for sample in samples:
        if sample.phase == phase:
            values.setdefault(tuple(sample.details[name] for name in names), []).append(
                sample.value
            )
    return {key: median(found) for key, found in values.items()}


def _write(
    client: Client, block: BlockId, item: bytes
) -> Callable[[], Conversation[BlockTimestamp]]:
    return partial(client.blocks.write, block, item, ROOT)


async def _read(client: Client, block: BlockId) -> FoundVersion:
    return await client.blocks.read(block)
