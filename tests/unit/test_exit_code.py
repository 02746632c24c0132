"""bftfs.exit_code"""

from __future__ import annotations

import click
import pytest

from bftfs.errors import OperationFailed, UsageError
from bftfs.exit_code import exit_code_of


@pytest.mark.parametrize(("outcome", "code"), [(None, 0), (0, 0), (1, 1), ("done", 0)])
def test_what_ends_well_gives_its_own_exit_code(outcome: object, code: int) -> None:
    assert exit_code_of(lambda: outcome) == code


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (UsageError("there is no node 9"), 2, "node: there is no node 9\n"),
        (UsageError("it is not yours", exit_code=1), 1, "node: it is not yours\n"),
        (OperationFailed("too few answers"), 1, "node: too few answers\n"),
        (click.UsageError("no such option"), 2, "Error: no such option\n"),
        (KeyboardInterrupt(), 130, "node: interrupted\n"),
        (click.exceptions.Abort(), 130, "node: interrupted\n"),
    ],
    ids=repr,
)
def test_a_failure_is_told_in_one_sentence(
    failure: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise failure

    assert exit_code_of(work, program="node") == code
    assert capsys.readouterr().err == said


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code_of(lambda: 1 // 0)
