"""Whoever's version it is, its author's account pays, by whatever way it came to a node."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import pytest

from bftfs.identifiers import ObjectId
from bftfs.read_write import version_row
from bftfs.read_write.timestamp import VERSIONS_END, BlockTimestamp, timestamp_of, version_key
from bftfs.server import room
from bftfs.server.block_verification import VerificationPolicy
from bftfs.simulation.checkers.accounts import check_accounts, stored_bytes
from bftfs.simulation.world import SECOND_US
from bftfs.storage import Table
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
        return stored_bytes(self.world.nodes[node].disk)[self.stranger.host.client]

    def hosted(self, node: int) -> list[BlockTimestamp]:
        """The stranger's versions at a node."""
        keys = self.world.nodes[node].disk.keys(Table.BLOCK, b"", VERSIONS_END)
        found = [timestamp_of(key) for key in keys]
        return [each for each in found if each.client == self.stranger.host.client]

    def wrong_accounts(self) -> list[str]:
        return check_accounts({node.node: node.disk for node in self.world.nodes})


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


# --- accounts -------------------------------------------------------------------------------------


def discard(store: Store) -> None:
    """Versions that decode to nothing; each node finds out, and keeps none of them."""
    found = store.root.attributes(store.identifier)
    assert found.layout is not None
    block = found.layout.block(store.identifier, 9)
    good = store.stranger.version(block, "x" * 3_000, store.world.now_us)
    bad = store.stranger.poisonous(block, "y" * 3_000, store.world.now_us + 1)
    store.stranger.write(good, CORRECT)
    store.stranger.write(bad, CORRECT)
    assert bad.timestamp in store.hosted(0)
    store.world.run_for(60 * SECOND_US)
    assert store.hosted(0) == [good.timestamp]


def damage(store: Store) -> None:
    """A disk damages a fragment, which scrubbing drops and a repair or healing brings again."""
    version = store.version()
    store.stranger.write(version, CORRECT)
    node, key = store.world.nodes[0], version_key(version.block, version.timestamp)
    node.disk.rot(Table.FRAGMENT, key, 7)
    store.world.deployment.scrubbers[node.node].throttle.start()
    store.world.run_until(lambda: node.disk.get(Table.FRAGMENT, key) is None)
    assert not store.wrong_accounts()
    store.world.run_until(lambda: node.disk.get(Table.FRAGMENT, key) is not None)


def restore(store: Store) -> None:
    """A disk has cut a fragment off, and its author repeats the write."""
    version = store.version()
    store.stranger.write(version, CORRECT)
    disk, key = store.world.nodes[0].disk, version_key(version.block, version.timestamp)
    row = disk.get(Table.BLOCK, key)
    assert row is not None
    disk.apply(version_row.stored(disk, [version_row.RowChange(key, row, b"a part")]))
    disk.commit()
    store.stranger.write(version, (0,))
    assert disk.get(Table.FRAGMENT, key) == version.fragment(0)


WAYS = {"discarded": discard, "damaged": damage, "restored": restore}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_discarded_or_mended_is_given_back(way: str) -> None:
    store = Store()
    WAYS[way](store)
    assert not store.wrong_accounts()


@pytest.mark.parametrize("way", ["discarded", "damaged"])
def test_must_fail_where_nothing_is_given_back(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    charged = room.charged
    monkeypatch.setattr(
        room, "charged", lambda view, moves: charged(view, [one for one in moves if one[1] > 0])
    )
    with pytest.raises(AssertionError):
        test_what_is_discarded_or_mended_is_given_back(way)


def test_must_fail_where_repairs_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    version = store.version()
    store.stranger.write(version, (0, 1))
    monkeypatch.setattr(room, "charged", lambda *_: [])
    store.finish((version,))
    assert store.wrong_accounts()


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
    assert not store.wrong_accounts()
