"""`python -m tests.integration.patient_node`: a node that finishes no client's updates unasked.

To the others that is as if what it sends for this were late, for as long as a test lasts. With the
argument `forgiving` it also counts what servers said before they lost their disks.
"""

from __future__ import annotations

import sys
from typing import Any

from bftfs.crypto.digest import AuthenticatorKeys
from bftfs.server.incomplete_updates import Finisher
from nodes.__main__ import main


async def nothing(*_: Any) -> None:
    """In place of background work."""


def forgive() -> None:
    """An authenticator is never outlived."""
    refuted = AuthenticatorKeys.refuted
    AuthenticatorKeys.refuted = lambda *keys, **given: (refuted(*keys, **given)[0], [])  # type: ignore[method-assign]


if __name__ == "__main__":
    Finisher.run = nothing  # type: ignore[method-assign]
    arguments = sys.argv[1:]
    if arguments[:1] == ["forgiving"]:
        forgive()
        arguments = arguments[1:]
    raise SystemExit(main(arguments))
