"""A revocation holds at every node that has heard of it, whatever else is in its files."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from bftfs import cluster
from bftfs.cluster import ClientEntry, ClusterDescription
from bftfs.crypto.keys import Identity
from bftfs.server.step import Grant
from nodes.connections import LiveMembership

LAPTOP = Identity.generate(b"l" * 32)
DRAWS = count(1)
NEW = cluster.create(
    [f"tcp:10.0.0.{node}:7000" for node in range(1, 7)],
    t=1,
    b=1,
    draw=lambda length: bytes([next(DRAWS)]) * length,
)
BEFORE = NEW.description.with_client(ClientEntry("laptop", LAPTOP.public_key))


class Machine:
    """A node's machine, and its description's two files."""

    def __init__(self, directory: Path, description: ClusterDescription) -> None:
        self._path = directory / "cluster.toml"
        self.copy_in(description)
        self.membership = LiveMembership(self._path, cluster.load(self._path))

    def copy_in(self, description: ClusterDescription) -> None:
        """The administrator brings both files, signed."""
        for path in (self._path, cluster.signature_path(self._path)):
            path.unlink(missing_ok=True)
        cluster.store(self._path, description, NEW.administrator)

    def restart(self) -> None:
        """Its node starts anew with what its directory has."""
        self.membership = LiveMembership(self._path, cluster.load(self._path))

    @property
    def knows_laptop(self) -> bool:
        return self.membership.principal(LAPTOP.public_key) is not None


def moved(description: ClusterDescription) -> ClusterDescription:
    """The same cluster; one machine has a new address."""
    members = list(description.members)
    members[3] = replace(members[3], address="tcp:10.0.1.4:7000")
    return replace(description, members=tuple(members))


def test_a_revocation_takes_effect(tmp_path: Path) -> None:
    machine = Machine(tmp_path, BEFORE)
    assert machine.knows_laptop
    machine.copy_in(BEFORE.without_client("laptop"))
    assert not machine.knows_laptop


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="what has changed besides is refused, and all of it"
)
def test_a_revocation_takes_effect_beside_a_new_address(tmp_path: Path) -> None:
    """A node that was not restarted goes on with the old address; that is no reason to admit."""
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(moved(BEFORE))
    machine.copy_in(moved(BEFORE).without_client("laptop"))
    assert not machine.knows_laptop


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="descriptions have no order")
@pytest.mark.parametrize("restarts", [False, True])
def test_an_older_description_brings_nobody_back(tmp_path: Path, restarts: bool) -> None:
    """A backup, or somebody's configuration management, puts the old files back."""
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(BEFORE.without_client("laptop"))
    assert not machine.knows_laptop
    machine.copy_in(BEFORE)
    if restarts:
        machine.restart()
    assert not machine.knows_laptop


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="descriptions have no order")
def test_an_older_description_widens_no_grant(tmp_path: Path) -> None:
    narrow = replace(BEFORE.clients[0], grant=Grant(uids=(1000,), write=False))
    machine = Machine(tmp_path, BEFORE.without_client("laptop").with_client(narrow))
    machine.copy_in(BEFORE)  # which was signed before
    sender = machine.membership.principal(LAPTOP.public_key)
    assert sender is None or not sender.grant.write
