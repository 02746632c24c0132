"""Errors of a benchmark: the user's mistakes, and a file system that misbehaves."""


class BenchmarkError(Exception):
    """The benchmark cannot be run as asked; the message says what is wrong and what to do."""


class WorkloadError(Exception):
    """The workload ran and gave a wrong or no result: a wrong byte, a failed command."""


class PhaseError(Exception):
    """A phase failed and the failure has been recorded; the rest of its round cannot be run."""
