"""How a program ends: with an exit code, and at most one sentence instead of a traceback.

0: done. 1: an operation has failed. 2: the user's mistake. 130: interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from bftfs.errors import BftfsError
from bftfs.printable import as_word, printable, printable_lines


def exit_code_of(work: Callable[[], object], *, program: str = "bftfs") -> int:
    """The exit code of `work`, or the one that it gives; a failure is printed for people."""
    try:
        outcome = work()
    except (click.exceptions.Abort, KeyboardInterrupt):
        print(f"{program}: interrupted", file=sys.stderr, flush=True)
        return 130
    except click.ClickException as mistake:
        mistake.show()
        return mistake.exit_code
    except BftfsError as failure:
        print(printable_lines(f"{program}: {failure}"), file=sys.stderr, flush=True)
        return failure.exit_code
    except PermissionError as error:
        what = as_word(error.filename) if error.filename else "something it needs"
        print(
            printable(f"{program}: {what}: {error.strerror}; run this as its owner or as root"),
            file=sys.stderr,
            flush=True,
        )
        return 1
    return outcome if isinstance(outcome, int) else 0
