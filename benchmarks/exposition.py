"""The figures that nodes expose, read without asking them for anything as a client would."""

import socket

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
