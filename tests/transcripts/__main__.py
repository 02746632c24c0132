"""`python -m tests.transcripts`: writes the kept transcripts anew."""

from __future__ import annotations

from pathlib import Path

from tests.transcripts.scenes import SCENES

for name, scene in SCENES.items():
    (Path(__file__).parent / f"{name}.txt").write_text(scene())
