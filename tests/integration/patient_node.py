"""`python -m tests.integration.patient_node`: a node that finishes no client's updates unasked.

To the others that is as if what it sends for this were late, for as long as a test lasts.
"""

from __future__ import annotations

from typing import Any

from bftfs.server.incomplete_updates import Finisher
from nodes.__main__ import main


async def nothing(*_: Any) -> None:
    """In place of background work."""


if __name__ == "__main__":
    Finisher.run = nothing  # type: ignore[method-assign]
    raise SystemExit(main())
