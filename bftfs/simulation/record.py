"""The record of a campaign, seed by seed, which it can be taken up again from; and its summary.

The first line says what is simulated, and at which commit; every other line is one seed. A line
that was cut off by the end of the machine is that of a seed that is simulated again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from bftfs.errors import UsageError
from bftfs.simulation.campaign import COUNTED, CampaignTally, SeedResult
from bftfs.wire.codec import UNREADABLE


class Heading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Identifies a campaign: another one must not go on with its record."""

    commit: str
    operations: int  # of correct clients, per seed, as they are drawn
    kind: str | None


class CampaignRecord:
    """A file that reports are appended to."""

    def __init__(self, path: Path, heading: Heading) -> None:
        self.tally = CampaignTally()
        self.seeds: set[int] = set()
        fresh = not path.exists() or path.stat().st_size == 0
        whole = 0 if fresh else self._take_up(path, heading)
        self._file: IO[bytes] = path.open("ab")
        if not fresh:
            self._file.truncate(whole)
        else:
            self._write(heading)

    def _take_up(self, path: Path, heading: Heading) -> int:
        """Add up what is there; how many bytes of it are whole lines."""
        with path.open("rb") as file:
            first = file.readline()
            try:
                found = msgspec.json.decode(first, type=Heading)
            except UNREADABLE as error:
                raise UsageError(f"{path}: not the record of a campaign: {error}") from error
            if found != heading:
                raise UsageError(
                    f"{path}: the record of another campaign ({found}); this one is {heading}. "
                    "Give it a record of its own."
                )
            whole = len(first)
            for encoded in file:
                if not encoded.endswith(b"\n"):
                    break
                try:
                    result = msgspec.json.decode(encoded, type=SeedResult)
                except UNREADABLE as error:
                    raise UsageError(f"{path}: a damaged line: {error}") from error
                whole += len(encoded)
                self.seeds.add(result.seed)
                self.tally.add(result)
        return whole

    def add(self, result: SeedResult) -> None:
        """Take down one seed."""
        self.tally.add(result)
        self.seeds.add(result.seed)
        self._write(result)

    def close(self) -> None:
        """Nothing more will be added."""
        self._file.close()

    def _write(self, line: Heading | SeedResult) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()


def summary(tally: CampaignTally, *, heading: Heading, command: str) -> str:
    """A page about a campaign."""
    kinds = _table(
        ("workload", "seeds", "operations"),
        [(kind, tally.seeds[kind], tally.operations[kind]) for kind in sorted(tally.seeds)]
        + [("all", tally.seeds.total(), tally.operations.total())],
    )
    violations = (
        "None."
        if not tally.failed
        else "\n".join(
            f"- seed {seed}: {'; '.join(findings)}"
            for seed, findings in sorted(tally.failed.items())
        )
    )
    return f"""# A campaign of the simulator

`{command}` at commit {heading.commit}.

{tally.operations.total():,} operations of correct clients in {tally.seeds.total():,} runs, each
with a cluster, faults and adversaries of its own, drawn from its seed. An operation is a call that
a correct client made, and that the checkers judged. Violations found: {len(tally.failed)}. This
page is written by `bftfs simulate --summary`.

## Operations

{kinds}

## Clusters

{_table(("size", "seeds"), _ranked(tally.sizes))}

## Faults and events

{_table(("what", "how many"), ((what, tally.counts[what]) for what in COUNTED))}

## Adversaries

How often each took part; Byzantine nodes go on in the quiet phase.

{_table(("adversary", "how often"), sorted(tally.adversaries.items()))}

## Violations

{violations}
"""


def _ranked(counted: Counter[str]) -> Iterable[tuple[str, int]]:
    return sorted(counted.items(), key=lambda pair: -pair[1])


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str | int, ...]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" + " ---: |" * (len(titles) - 1)]
    lines += [
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in row) + " |"
        for row in rows
    ]
    return "\n".join(lines)
