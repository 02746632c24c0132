"""What one protocol knows, used against the other: lying clients and nodes, no mounts.

Each attack is one of `tests/seams`, where it is tried in every variety.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bftfs.cluster import Durability
from bftfs.crypto.keys import write_identity
from bftfs.errors import AdmissionRefused
from bftfs.limits import BLOCK_BYTES_MAX, MIB
from bftfs.runtime import clock
from tests.integration.deployment import Deployment
from tests.integration.process_hand import ProcessHand, admit
from tests.integration.test_protocols import ROOT, Client, block
from tests.seams.world import READERS_GRANT, Version, accepted, refused

HONEST = ("nodes",)
CARELESS = ("tests.integration.careless_node",)
LIAR = 5
CORRECT = range(5)
QUOTA = 16 * MIB
WITHIN_QUOTA = 3 * QUOTA // BLOCK_BYTES_MAX - 1  # blocks, of which a node has a third each


# --- quotas ---------------------------------------------------------------------------------------


class Stored:
    """A client has stored at two nodes all that his quota allows; then it comes to all nodes."""

    def __init__(self, deployment: Deployment) -> None:
        self._numbers = itertools.count()
        self._author = ProcessHand(deployment, "author", (LIAR,))
        with self._author, ProcessHand(deployment, "reader") as reader:
            for version in [self._version() for _ in range(WITHIN_QUOTA)]:
                assert accepted(self._author.write(version, (0, 1), who=ROOT)) == [0, 1]
                vouchers = self._author.vouchers(version)
                assert set(accepted(reader.finish(version, vouchers))) >= set(CORRECT)
            self.refused = refused(self._author.write(self._version(), CORRECT, who=ROOT))

    def _version(self) -> Version:
        item = os.urandom(BLOCK_BYTES_MAX)
        return Version(self._author, block(next(self._numbers)), item, clock.now_us())


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[Callable[[tuple[str, ...]], Deployment]]:
    """Makes six nodes of this program, all but one, with a quota for each client."""
    deployment = Deployment(tmp_path / "cluster", module="nodes", durability=Durability.INTERVAL)
    for node in deployment.nodes:
        deployment.node(node).configuration.write_text(f"client_bytes = {QUOTA}\n")
    path = deployment.directory.client_key("author")
    path.parent.mkdir()
    write_identity(path, deployment.clients[0])
    admit(deployment, "reader", READERS_GRANT)

    def started(program: tuple[str, ...]) -> Deployment:
        deployment.start(CORRECT, program=program)
        deployment.start([LIAR], program=("tests.lying_node", "accomplice"))
        return deployment

    yield started
    deployment.close()


def test_who_is_over_his_quota_is_refused_everywhere(
    metered: Callable[[tuple[str, ...]], Deployment],
) -> None:
    """He wrote to two nodes; a liar vouched for it, and a reader brought it to all."""
    deployment = metered(HONEST)
    stored = Stored(deployment)
    assert stored.refused == dict.fromkeys(CORRECT, errno.EDQUOT)
    author, other = Client(deployment), Client(deployment, 1)
    with author.network, other.network:
        with pytest.raises(AdmissionRefused) as failure:
            author.write_all({1_000: os.urandom(BLOCK_BYTES_MAX)})
        assert failure.value.code == errno.EDQUOT
        other.write_all({1_001: b"others go on"})
        assert author.read_all({1_001: b""}) == {1_001: b"others go on"}


def test_must_fail_where_repairs_are_free(
    metered: Callable[[tuple[str, ...]], Deployment],
) -> None:
    assert not Stored(metered(CARELESS)).refused
