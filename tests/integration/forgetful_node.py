"""`python -m tests.integration.forgetful_node`: a node that collects, and knows no window."""

from __future__ import annotations

from typing import Any

from bftfs.server.file_collection import Collector
from nodes import protocols
from nodes.__main__ import main


class ForgetfulCollector(Collector):
    """What has been superseded is behind the window at once."""

    def __init__(self, *place: Any, window_us: int, **means: Any) -> None:
        super().__init__(*place, window_us=0, **means)


if __name__ == "__main__":
    protocols.Collector = ForgetfulCollector  # type: ignore[misc]
    raise SystemExit(main())
