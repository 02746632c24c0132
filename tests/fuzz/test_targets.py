"""Every fuzz target in the tests: its corpus again, and a few new inputs, the same in every run."""

from __future__ import annotations

import zlib
from random import Random

import pytest

from tests.fuzz.corpus import CORPUS, inputs_of
from tests.fuzz.mutation import Campaign
from tests.fuzz.targets import all_targets

_EXECUTIONS = 75
_WORK = 60_000  # lines of the product, over the whole corpus and all that is new
_CORPUS_BYTES = 1_500_000

_TARGETS = all_targets()


@pytest.mark.parametrize("name", _TARGETS)
def test_any_input_is_taken_or_refused_as_declared(name: str) -> None:
    target = _TARGETS[name]
    campaign = Campaign(target, Random(zlib.crc32(name.encode())))
    campaign.start([*target.seeds(), *inputs_of(target)])
    assert campaign.edges, "the target runs none of the product"
    least = campaign.executions + 3
    while campaign.executions < least or (
        campaign.executions < _EXECUTIONS and campaign.work < _WORK
    ):
        campaign.step()


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= set(_TARGETS)
    assert sum(path.stat().st_size for path in files) < _CORPUS_BYTES
