"""A network that flips bits in what it carries, and reads it: users notice nothing of the first but
the time, and it learns nothing from the second but sizes and times."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bftfs.wire.channel import MAGIC
from tests.end_to_end.cluster import Cluster
from tests.end_to_end.expectations import BLOCK, payload
from tests.end_to_end.watchdog import Watchdog

pytestmark = [pytest.mark.timeout(120, func_only=True), pytest.mark.slow]

FILES = 5
LARGE_BYTES = 4096  # pieces as large as this are bodies, nearly all of them


class DamagingProxy:
    """Takes the place of a node's socket, and flips a bit now and then."""

    def __init__(self, path: Path) -> None:
        self.flipped = 0
        self.carried: list[bytearray] = []  # of each connection, each direction
        self._path = path
        self._behind = path.with_suffix(".behind")
        path.rename(self._behind)
        self._random = random.Random(str(path.parent.name))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Give the node its socket back."""
        self._listener.close()
        self._behind.rename(self._path)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._behind))
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        carried = bytearray()
        self.carried.append(carried)
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(1 << 16)):
                carried += data
                if len(data) >= LARGE_BYTES and self._random.random() < 0.2:
                    data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
                    self.flipped += 1
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cluster(mounting: None, playground: Path, watchdog: Watchdog) -> Iterator[Cluster]:
    cluster = Cluster(playground / "damaged")
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def test_damage_on_the_way_is_sent_again(cluster: Cluster, guarded: None, playground: Path) -> None:
    """`fsync` and `close` succeed, and every file has its bytes, for all clients.

    No name, no target of a link, and nothing of what is in files passes in the open.
    """
    secrets = [b"confidential-name", b"confidential-target", payload(BLOCK, 0)[:16]]
    proxies = [DamagingProxy(Path(node.address.removeprefix("unix:"))) for node in cluster.nodes()]
    try:
        with cluster.mount(playground / "behind-proxies") as mount:
            written = {
                mount / f"confidential-name{number}": payload(3 * BLOCK, number)
                for number in range(FILES)
            }
            (mount / "link").symlink_to("confidential-target")
            for path, contents in written.items():
                with path.open("wb") as file:
                    file.write(contents)
                    file.flush()
                    os.fsync(file.fileno())
        with cluster.mount(playground / "behind-proxies-again"):
            for path, contents in written.items():
                again = playground / "behind-proxies-again" / path.name
                assert again.read_bytes() == contents
            link = playground / "behind-proxies-again" / "link"
            assert os.readlink(link) == "confidential-target"
    finally:
        for proxy in proxies:
            proxy.close()
    assert sum(proxy.flipped for proxy in proxies) > FILES
    carried = [stream for proxy in proxies for stream in proxy.carried]
    assert sum(map(len, carried)) > 2 * FILES * 3 * BLOCK
    assert all(stream.startswith(MAGIC) for stream in carried if stream)
    assert not [secret for secret in secrets for stream in carried if secret in stream]
    for path, contents in written.items():
        assert (cluster.mountpoint / path.name).read_bytes() == contents
