"""Whoever's version it is, its author's account pays, by whatever way it came to a node."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import pytest

from bftfs.identifiers import ObjectId
from bftfs.read_write import version_row
from bftfs.read_write.timestamp import timestamp_of
from bftfs.server.block_verification import VerificationPolicy
from bftfs.simulation.world import SECOND_US
from bftfs.storage import StorageView, Table, Write
from tests.seams.world import (
    READERS_GRANT,
    STRANGERS_GRANT,
    Hand,
    User,
    Version,
    World,
    accepted,
    refused,
)

QUOTA = 20_000
LIAR = 5
CORRECT = range(5)


class Store:
    """A file that a stranger may write to, and what he stores in it."""

    def __init__(self, policy: VerificationPolicy = VerificationPolicy.COOPERATIVE) -> None:
        self.world = World(client_bytes=QUOTA, policy=policy)
        self.root: User = self.world.user("root")
        self.root.format()
        self.identifier: ObjectId = self.root.make("shared", "what root wrote", mode=0o666)
        self.world.run_for(605 * SECOND_US)
        self.root.put(self.identifier, "what root wrote")
        self.stranger: Hand = self.world.hand("stranger", grant=STRANGERS_GRANT, allies=(LIAR,))
        self._reader = self.world.hand("reader", grant=READERS_GRANT)
        self._blocks = 0

    def version(self, *, again: Version | None = None) -> Version:
        """A version of a block that was never written; or another one of a block that was."""
        if again is not None:
            return self.stranger.version(again.block, "y" * 3_000, self.world.now_us)
        self._blocks += 1
        found = self.root.attributes(self.identifier)
        assert found.layout is not None
        block = found.layout.block(self.identifier, self._blocks)
        return self.stranger.version(block, "x" * 3_000, self.world.now_us)

    def fill(self, nodes: Iterable[int]) -> list[Version]:
        """Write to some nodes, and to no others, until one of them refuses it."""
        written = []
        while True:
            version = self.version()
            replies = self.stranger.write(version, nodes)
            if errno.EDQUOT in refused(replies).values():
                return written
            written.append(version)
            assert len(written) < 100, "somebody must refuse it"

    def finish(self, versions: Iterable[Version]) -> None:
        """A client that may only read sends all nodes their fragments, with vouchers."""
        for version in versions:
            self._reader.finish(version, self.stranger.vouchers(version))

    def stored(self, node: int) -> int:
        """What a node stores of the stranger's fragments and cross-checksums, in bytes."""
        client, disk = self.stranger.host.client, self.world.nodes[node].disk
        checksums = 32 * self.world.sizes.n
        return sum(
            len(row) + checksums
            for key, row in disk.scan(Table.FRAGMENT, b"", b"\xff" * 128)
            if timestamp_of(key).client == client
        )

    def account(self, node: int) -> int:
        row = self.world.nodes[node].disk.get(Table.ADMISSION, self.stranger.host.client)
        return int.from_bytes(row or b"", "big")


def test_a_quota_bounds_what_is_stored() -> None:
    """Each correct node is filled with other versions; a liar vouches, a reader finishes them.

    Versions that were accepted directly by t + 1 correct nodes each may come to all.
    """
    store = Store()
    versions = [version for node in CORRECT for version in store.fill((node,))]
    store.finish(versions)
    sizes = store.world.sizes
    most = QUOTA * (sizes.n - sizes.read_write.b) // (sizes.read_write.t + 1)
    stored = [store.stored(node) for node in CORRECT]
    assert max(stored) <= most, f"{stored} bytes, where {QUOTA} are allowed"


def test_who_is_over_his_quota_is_refused_everywhere() -> None:
    """Two nodes are filled, and the versions finished everywhere: all accounts are full then."""
    store = Store()
    store.finish(store.fill((0, 1)))
    replies = store.stranger.write(store.version(), CORRECT)
    assert not accepted(replies)


def test_must_fail_where_repairs_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def for_nothing(
        _view: StorageView, key: bytes, row: bytes, fragment: bytes, *_author_and_charge: object
    ) -> list[Write]:
        return [Write(Table.BLOCK, key, row), Write(Table.FRAGMENT, key, fragment)]

    monkeypatch.setattr(version_row, "hosted", for_nothing)
    with pytest.raises(AssertionError):
        test_the_account_says_what_is_stored("repaired")


@pytest.mark.parametrize("how", ["repaired", "verified", "healed"])
def test_the_account_says_what_is_stored(how: str) -> None:
    """A version that a reader repairs, that a node verifies or that it heals is its author's."""
    policies = VerificationPolicy
    store = Store(policies.READ_TIME if how == "healed" else policies.COOPERATIVE)
    version = store.version()
    nodes = (0, 1) if how == "repaired" else (0, 1, 2, 3, 4)
    store.stranger.write(version, nodes)
    match how:
        case "repaired":
            store.finish((version,))
        case "verified":  # what another version of the block makes node 5 do
            store.stranger.write(store.version(again=version), (5,))
            store.world.run_for(60 * SECOND_US)
        case "healed":
            store.world.run_for(1_300 * SECOND_US)
    hosts = store.world.hosting(version.block, version.timestamp)
    assert len(hosts) > len(nodes)
    assert [store.account(node) for node in hosts] == [store.stored(node) for node in hosts]
