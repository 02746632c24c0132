"""mount.operations"""

import errno
import inspect

import pytest

from bftfs import errors
from mount.operations import TABLE, errno_of


def test_an_answer_of_posix_keeps_its_number():
    assert errno_of(errors.FileSystemError(errno.ENOTEMPTY, "d")) == errno.ENOTEMPTY


def test_a_refusal_by_the_nodes_keeps_its_number():
    assert errno_of(errors.AdmissionRefused(code=errno.ENOSPC, reason="full")) == errno.ENOSPC


@pytest.mark.parametrize(
    ("failure", "number"),
    [
        (errors.QuorumUnavailable(heard=3, required=5, subject="read"), errno.ETIMEDOUT),
        (errors.ContentionExhausted(attempts=9, subject="rename"), errno.ETIMEDOUT),
        (errors.FateUnknown("rename"), errno.EIO),
        (errors.VersionUnrecoverable("block"), errno.EIO),
        (errors.OperationFailed("of some kind yet unknown"), errno.EIO),
    ],
)
def test_a_failure_is_told_by_the_closest_number(failure: Exception, number: int):
    assert errno_of(failure) == number


def test_a_fault_of_ours_has_no_number():
    assert errno_of(KeyError("x")) is None
    assert errno_of(errors.UsageError("x")) is None


def test_every_failure_of_an_operation_stands_in_the_table():
    failures = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.OperationFailed | errors.FileSystemError)
    }
    assert failures == {kind for kind, _ in TABLE}


def test_no_entry_of_the_table_hides_another():
    for position, (kind, _) in enumerate(TABLE):
        assert not any(issubclass(kind, earlier) for earlier, _ in TABLE[:position])
