"""With one node too few, or one rule of PASIS removed, the checkers find a violation.

Each rule is removed by a substitute that is injected here; the product has no option for it. The
same attacks on the whole protocol find nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.coding.erasure import Buffer, ErasureCode
from bftfs.read_write import validation
from bftfs.read_write.responses import Responses
from bftfs.read_write.server import ReadWriteServer
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.simulation.configuration import Configuration
from bftfs.simulation.deployment import Sizes
from bftfs.simulation.workloads.blocks import BlockMix
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds
from tests.simulation.mutants import ENOUGH, attacked, hunt, unchecked

SEEDS = range(20)


def one_too_few(QC: int) -> Sizes:
    """N = 2t + 2b with everything else as it would be: m = QC - t."""
    return Sizes(
        unchecked(QueryUpdateThresholds, n=4, t=1, b=1, q=3, r=1),
        unchecked(ReadWriteThresholds, N=4, t=1, b=1, QC=QC, m=QC - 1),
    )


JUST_ENOUGH = Sizes(
    unchecked(QueryUpdateThresholds, n=5, t=1, b=1, q=4, r=1),
    ReadWriteThresholds.smallest(t=1, b=1),
)


def attacks(
    *, sizes: Sizes = ENOUGH, node: str | None = None, client: str | None = None
) -> Iterator[Configuration]:
    for seed in SEEDS:
        yield attacked(
            seed,
            kind="blocks",
            sizes=sizes,
            node=node,
            client=client,
            blocks=BlockMix(blocks=1, past_reads=0.0, many=0.0),
        )


def reads_what_nobody_wrote(finding: str) -> bool:
    return "never written" in finding


def not_linearizable(finding: str) -> bool:
    return "was the value" in finding


@pytest.mark.parametrize("node", ["amnesiac", "concealer"])
def test_one_node_too_few_to_keep_a_write(node: str) -> None:
    """[PASIS §3.4.4] QC > N - t - b (3.1): a write may be complete and at too few nodes."""
    assert hunt(attacks(sizes=one_too_few(QC=3), node=node), not_linearizable)
    assert hunt(attacks(sizes=JUST_ENOUGH, node=node)) is None


def test_one_node_too_few_to_fabricate_nothing() -> None:
    """[PASIS §3.4.4] b + t = QC (3.4): what a liar alone vouches for is repairable."""
    assert hunt(attacks(sizes=one_too_few(QC=2), node="block-forger"), reads_what_nobody_wrote)
    assert hunt(attacks(sizes=JUST_ENOUGH, node="block-forger")) is None


def test_no_regeneration_by_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """[PASIS §3.4.2.3] without validated cross-checksums, a poisonous write is read."""
    assert hunt(attacks(client="poisonous-writer")) is None

    def decode_only(
        code: ErasureCode, checksum: CrossChecksum, fragments: Mapping[int, Buffer]
    ) -> tuple[Buffer, ...] | None:
        return code.regenerate({index: fragments[index] for index in sorted(fragments)[: code.m]})

    monkeypatch.setattr(validation, "regenerate", decode_only)
    assert hunt(attacks(client="poisonous-writer"), reads_what_nobody_wrote)


def test_no_verification_by_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """[PASIS §3.4.2.3] without it, a client makes correct nodes appear Byzantine."""
    assert hunt(attacks(client="false-fragment-writer")) is None
    monkeypatch.setattr(ReadWriteServer, "_not_bound", lambda *_: None)
    assert hunt(
        attacks(client="false-fragment-writer"),
        lambda finding: "VersionUnrecoverable" in finding or not_linearizable(finding),
    )


def test_no_second_opinion_on_verified_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """[LazyVer §3.8.1] b + 1: else one liar spares readers the validation that they need."""

    assert hunt(attacks(node="false-verifier", client="poisonous-writer")) is None

    def credulous(responses: Responses, candidate: BlockTimestamp) -> bool:
        return any(hosted.get(candidate) for hosted in responses.hosted.values())

    monkeypatch.setattr(Responses, "verified", credulous)
    assert hunt(
        attacks(node="false-verifier", client="poisonous-writer"),
        lambda finding: reads_what_nobody_wrote(finding) or not_linearizable(finding),
    )
