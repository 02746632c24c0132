"""A revocation holds at every node that has heard of it, whatever else is in its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from bftfs import cluster
from bftfs.cluster import ClientEntry, ClusterDescription
from bftfs.credentials import Grant
from bftfs.crypto.keys import Identity
from bftfs.errors import UsageError
from nodes.membership import LiveMembership, latest_description

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
        self._kept = directory / "description.toml"
        self.copy_in(description)
        self.restart()

    def copy_in(self, description: ClusterDescription) -> None:
        """The administrator brings both files, signed."""
        for path in (self._path, cluster.signature_path(self._path)):
            path.unlink(missing_ok=True)
        cluster.store(self._path, description, NEW.administrator)

    def restart(self) -> None:
        """Its node starts anew with what its directory has."""
        latest = latest_description(self._path, self._kept)
        self.membership = LiveMembership(self._path, self._kept, latest)

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


def test_a_revocation_takes_effect_beside_a_new_address(tmp_path: Path) -> None:
    """A node that was not restarted goes on with the old address; that is no reason to admit."""
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(moved(BEFORE))
    machine.copy_in(moved(BEFORE).without_client("laptop"))
    assert not machine.knows_laptop


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


def test_an_older_description_widens_no_grant(tmp_path: Path) -> None:
    narrow = replace(BEFORE.clients[0], grant=Grant(uids=(1000,), write=False))
    machine = Machine(tmp_path, BEFORE.without_client("laptop").with_client(narrow))
    machine.copy_in(BEFORE)  # which was signed before
    sender = machine.membership.principal(LAPTOP.public_key)
    assert sender is None or not sender.grant.write


def test_a_node_says_what_waits_for_its_restart(tmp_path: Path) -> None:
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(BEFORE.without_client("laptop"))
    machine.membership.refresh()
    assert not machine.membership.is_partial
    machine.copy_in(moved(BEFORE.without_client("laptop").with_client(BEFORE.clients[0])))
    assert machine.knows_laptop
    assert machine.membership.is_partial
    machine.restart()
    assert machine.knows_laptop
    assert not machine.membership.is_partial


def test_a_node_says_that_a_file_is_older_than_another(tmp_path: Path) -> None:
    after = BEFORE.without_client("laptop")
    machine = Machine(tmp_path, after)
    machine.copy_in(BEFORE)
    machine.membership.refresh()
    assert "number 1" in machine.membership.unused
    assert "number 2" in machine.membership.unused
    machine.copy_in(after)
    machine.membership.refresh()
    assert machine.membership.unused == ""


def test_of_two_with_one_number_the_first_is_kept(tmp_path: Path) -> None:
    """The administrator has worked on two machines, and neither knew of the other."""
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(BEFORE.without_client("laptop"))
    assert not machine.knows_laptop
    machine.copy_in(
        BEFORE.with_client(ClientEntry("desk", Identity.generate(b"d" * 32).public_key))
    )
    assert not machine.knows_laptop
    assert "sign this one again" in machine.membership.unused


def test_a_grant_that_narrows_cuts_off_who_has_the_old_one(tmp_path: Path) -> None:
    narrow = replace(BEFORE.clients[0], grant=Grant(uids=(1000,), write=False))
    machine = Machine(tmp_path, BEFORE)
    before = machine.membership.principal(LAPTOP.public_key)
    assert before is not None
    machine.copy_in(moved(BEFORE.without_client("laptop").with_client(narrow)))
    machine.membership.refresh()
    assert not machine.membership.admits(before)
    now = machine.membership.principal(LAPTOP.public_key)
    assert now is not None
    assert now.grant == narrow.grant
    assert machine.membership.admits(now)


def test_what_a_node_has_seen_survives_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any moment of its being kept: the older or the newer one is there, signed."""
    after = BEFORE.without_client("laptop")
    rename = Path.replace
    for survived in range(3):
        directory = tmp_path / str(survived)
        directory.mkdir()
        machine = Machine(directory, BEFORE)
        machine.copy_in(after)
        replaced = count()

        def crashing(
            self: Path, target: Path, last: int = survived, replaced: Iterator[int] = replaced
        ) -> Path:
            if next(replaced) == last:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", crashing)
            if survived < 2:
                with pytest.raises(KeyboardInterrupt):
                    machine.membership.refresh()
            else:
                machine.membership.refresh()
        found = cluster.load(directory / "description.toml")
        assert found == (after if survived == 2 else BEFORE)
        machine.restart()
        assert not machine.knows_laptop


def test_a_nodes_own_description_is_not_swapped(tmp_path: Path) -> None:
    """What it has seen is as good as its signature, and of one cluster."""
    machine = Machine(tmp_path, BEFORE)
    kept = tmp_path / "description.toml"
    whole = kept.read_bytes()
    kept.write_bytes(whole.replace(b"serial = 1", b"serial = 9"))
    with pytest.raises(UsageError, match=r"is not signed .*remove"):
        machine.restart()
    kept.write_bytes(whole)
    machine.restart()
    other = cluster.create(["unix:/a"], t=0, b=0, draw=lambda length: bytes([next(DRAWS)]) * length)
    path = tmp_path / "other.toml"
    cluster.store(path, other.description, other.administrator)
    with pytest.raises(UsageError, match="describes another cluster"):
        latest_description(path, kept)


def test_must_fail_where_any_signed_description_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClusterDescription, "is_superseded_by", lambda *_: True)
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(BEFORE.without_client("laptop"))
    assert not machine.knows_laptop
    machine.copy_in(BEFORE)
    assert machine.knows_laptop


def test_must_fail_where_nothing_is_kept(tmp_path: Path) -> None:
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(BEFORE.without_client("laptop"))
    assert not machine.knows_laptop
    machine.copy_in(BEFORE)
    (tmp_path / "description.toml").unlink()
    machine.restart()
    assert machine.knows_laptop
