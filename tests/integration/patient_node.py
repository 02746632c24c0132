"""`python -m tests.integration.patient_node [forgiving|unaware]`: it finishes nothing unasked.

To the others that is as if what it sends to finish clients' updates were late, for as long as a
test lasts. One that is forgiving also counts what servers have said before they lost their disks;
one that is unaware does not notice that its folder was copied back.
"""

from __future__ import annotations

import sys
from typing import Any

from bftfs.crypto.digest import AuthenticatorKeys
from bftfs.server.incomplete_updates import Finisher
from bftfs.server.runs import Runs
from nodes.__main__ import main


async def nothing(*_: Any) -> None:
    """In place of background work."""


def forgive() -> None:
    """An authenticator is never outlived."""
    refuted = AuthenticatorKeys.refuted

    def counted(keys: AuthenticatorKeys, **given: Any) -> tuple[list[int], list[int]]:
        return refuted(keys, **given)[0], []

    AuthenticatorKeys.refuted = counted  # type: ignore[method-assign]


def notice_nothing() -> None:
    """Neither by the place where the store lies, nor by the run that others know of."""
    Runs._forget = lambda *_: None  # type: ignore[method-assign]


WITHOUT = {"forgiving": forgive, "unaware": notice_nothing}


if __name__ == "__main__":
    Finisher.run = nothing  # type: ignore[method-assign]
    for name in WITHOUT.keys() & set(sys.argv):
        WITHOUT[name]()
    raise SystemExit(main([each for each in sys.argv[1:] if each not in WITHOUT]))
