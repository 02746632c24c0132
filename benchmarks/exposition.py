"""The figures that nodes expose, read without asking them for anything as a client would."""

import socket
from collections.abc import Sequence
from contextlib import suppress

from benchmarks.errors import WorkloadError
from bftfs.data_directory import NodeDirectory

_PATIENCE_S = 10.0
_RECEIVED_BYTES = 1 << 16


def figures(node: NodeDirectory) -> dict[str, float]:
    """All figures of a node that runs, by name and labels as they stand on its page."""
    page = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE_S)
        try:
            connection.connect(str(node.metrics))
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            while received := connection.recv(_RECEIVED_BYTES):
                page += received
        except OSError as error:
            raise WorkloadError(f"{node.metrics}: {error.strerror or error}") from error
    lines = (line.rpartition(" ") for line in page.decode().splitlines() if line[:5] == "bftfs")
    return {name: float(value) for name, _, value in lines}


class TrafficWatch:
    """Counts what all nodes together are asked between `__init__` and `finish`.

    What they ask each other counts as well, as for verification in the background.
    """

    def __init__(self, nodes: Sequence[NodeDirectory]) -> None:
        self._nodes = nodes
        self._before = [_traffic(node) for node in nodes]

    def finish(self, amount: float) -> dict[str, float | str]:
        """Requests, and bytes to and from nodes, for each unit of `amount`.

        A node that does not tell its figures, or was started meanwhile, does not count.
        """
        totals = dict.fromkeys(_COUNTED, 0.0)
        for node, before in zip(self._nodes, self._before, strict=True):
            after = _traffic(node)
            if all(before.get(name, 0) <= after.get(name, 0) for name in _COUNTED):
                for name in _COUNTED:
                    totals[name] += after.get(name, 0) - before.get(name, 0)
        return {_COUNTED[name]: round(total / amount, 3) for name, total in totals.items()}


_COUNTED = {
    "bftfs_requests_total": "requests",
    "bftfs_received_bytes_total": "bytes_to_nodes",
    "bftfs_sent_bytes_total": "bytes_from_nodes",
}


def _traffic(node: NodeDirectory) -> dict[str, float]:
    """The counted figures of a node, each summed over its labels; empty if it does not answer."""
    found: dict[str, float] = {}
    with suppress(WorkloadError):
        for name, value in figures(node).items():
            bare = name.partition("{")[0]
            if bare in _COUNTED:
                found[bare] = found.get(bare, 0) + value
    return found
