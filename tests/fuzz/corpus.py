"""The corpus: inputs kept in the repository, one file each, named after what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.target import Finding, Target, judge

CORPUS = Path(__file__).parent / "corpus"


def directory_of(target: Target) -> Path:
    """Where a target's inputs are kept."""
    return CORPUS / target.name


def inputs_of(target: Target) -> list[bytes]:
    """The inputs that are kept for a target, the same in every run."""
    directory = directory_of(target)
    if not directory.is_dir():
        return []
    return [path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()]


def keep(directory: Path, data: bytes) -> Path:
    """Write an input into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


def minimal(target: Target, inputs: Iterable[bytes]) -> tuple[list[bytes], list[Finding]]:
    """The inputs, short ones first, that take an edge no shorter one takes; and what was found."""
    kept: list[bytes] = []
    found: list[Finding] = []
    edges: set[int] = set()
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        try:
            outcome = judge(target, data, measure_memory=False)
            if outcome.edges - edges:
                judge(target, data)
        except Finding as finding:
            found.append(finding)
            continue
        if outcome.edges - edges:
            edges |= outcome.edges
            kept.append(data)
    return kept, found
