"""Short runs of the chaos command that together inject every kind of fault; see docs/chaos.md."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.chaos.faults import BENIGN, BYZANTINE
from tests.chaos.network import NoNetworks
from tests.chaos.run import Run
from tests.end_to_end.expectations import program, unavailable
from tests.end_to_end.watchdog import Watchdog

pytestmark = [pytest.mark.timeout(240, func_only=True), pytest.mark.slow]


@pytest.mark.parametrize(
    ("seed", "kinds"), [pytest.param(1, BENIGN, id="benign"), pytest.param(1, BYZANTINE, id="byz")]
)
def test_nobody_notices_and_nothing_is_lost(
    mounting: None,
    playground: Path,
    watchdog: Watchdog,
    seed: int,
    kinds: tuple[str, ...],
) -> None:
    for name in ("ip", "nsenter", "gcc"):
        program(name)
    root = playground / f"chaos-{len(kinds)}"
    root.mkdir()
    run = Run(root, seed=seed, seconds=None, kinds=kinds, mounts=(True, True, False))
    try:
        with watchdog.guard(200, "chaos"):
            report = run.perform()
    except NoNetworks as reason:
        unavailable(str(reason))
    print(report.summary())
    assert not report.findings, "\n".join(report.findings)
    assert set(report.injected) == set(kinds)
    assert report.operations.total() > 200
    assert report.acknowledged > 50
    assert report.verified_files > 0
    shutil.rmtree(root)
