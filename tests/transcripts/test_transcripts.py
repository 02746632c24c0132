"""What principals say to each other in a few situations is what the kept transcripts say.

After a change that is meant: `python -m tests.transcripts` writes them anew; read the difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transcripts.scenes import SCENES

KEPT = Path(__file__).parent


@pytest.mark.parametrize("name", SCENES)
def test_a_transcript_is_as_it_was(name: str) -> None:
    assert SCENES[name]() == (KEPT / f"{name}.txt").read_text()


def test_no_transcript_is_left_over() -> None:
    assert {path.stem for path in KEPT.glob("*.txt")} == set(SCENES)
