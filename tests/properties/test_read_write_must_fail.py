"""With one rule removed, the checkers find a violation: checks that cannot fail prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bftfs.coding.erasure import ErasureCode
from bftfs.errors import AdmissionRefused
from bftfs.identifiers import NodeId
from bftfs.read_write.server import ReadWriteServer
from bftfs.read_write.session import Gathering
from bftfs.read_write.validation import item_of
from bftfs.read_write.writing import write_at
from bftfs.simulation.world import START_US
from bftfs.thresholds import ReadWriteThresholds
from tests.unit.read_write import adversaries
from tests.unit.read_write.campaign import Campaign
from tests.unit.read_write.harness import BLOCK, DEFAULT, World, mute, poisoned

ITEM, NEWER = b"an item" * 30, b"another" * 30


def finds_a_violation(world: Callable[[int], World], seeds: range) -> bool:
    for seed in seeds:
        try:
            Campaign(world(seed), mallory=True).run(60)
        except AssertionError:
            return True
    return False


def jittery(seed: int) -> World:
    return World(seed=seed, delay_us=(100, 20_000), loss=0.02)


def test_the_campaign_finds_nothing_in_the_real_protocol() -> None:
    assert not finds_a_violation(jittery, range(10))


def test_without_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pretend(*_: Any, **_named: Any) -> bool:
        return True

    monkeypatch.setattr("bftfs.read_write.reading.repair", pretend)
    assert finds_a_violation(jittery, range(40))


def test_without_waiting_for_acknowledgements(monkeypatch: pytest.MonkeyPatch) -> None:
    async def send_only(gathering: Gathering[Any], *_: Any) -> dict[Any, Any]:
        await gathering.send()
        return {}

    async def hasty(*given: Any, **named: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Gathering, "answers", send_only)
            await write_at(*given, **named)

    monkeypatch.setattr("bftfs.read_write.client.write_at", hasty)

    def lossy(seed: int) -> World:
        return World(seed=seed, delay_us=(100, 20_000), loss=0.3)

    assert finds_a_violation(lossy, range(40))


def test_with_more_liars_than_b() -> None:
    def world_of_liars(seed: int) -> World:
        world = World(seed=seed)
        for number in range(DEFAULT.N - DEFAULT.repairable + 1):
            world.nodes[number].behaviour = adversaries.acknowledge_without_storing
        return world

    assert finds_a_violation(world_of_liars, range(20))


def test_without_validation_of_cross_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readers see two values of one poisonous write."""

    def what_two_readers_see() -> set[Any]:
        seen = set()
        for down in (0, 5):
            world = World()
            alice, mallory = world.client("alice"), world.client("mallory")
            world.placed(alice, ITEM, range(6), time_us=START_US)
            world.place(mallory, poisoned(world.encoded(NEWER), 4), range(6), time_us=START_US + 1)
            world.nodes[down].behaviour = mute
            seen.add(world.client("bob").read().item)
        return seen

    assert what_two_readers_see() == {ITEM}

    def believe(code: ErasureCode, _checksum: Any, fragments: Any) -> Any:
        item = item_of(code, fragments)
        return None if item is None else code.encode(item)

    monkeypatch.setattr("bftfs.read_write.validation.regenerate", believe)
    monkeypatch.setattr("bftfs.read_write.responses.Responses.verified", lambda *_: False)
    assert what_two_readers_see() - {ITEM}


def test_without_storage_node_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Byzantine client makes correct nodes look Byzantine, and reads lose good responses."""
    monkeypatch.setattr(ReadWriteServer, "_not_bound", lambda *_: None)
    world = World()
    alice, mallory, bob = (world.client(name) for name in ("alice", "mallory", "bob"))
    world.placed(alice, ITEM, range(6), time_us=START_US)
    encoded = world.encoded(NEWER)
    mangled = tuple(bytes(fragment)[::-1] for fragment in encoded.fragments)
    world.place(mallory, encoded._replace(fragments=mangled), range(6), time_us=START_US + 1)
    outcome = bob.start(bob.client.read(BLOCK))
    with pytest.raises(AssertionError, match="did not come to an end"):
        world.run(outcome, most_events=2_000)
    assert sum(bob.peers.faults) > 0


def test_with_qc_plus_b_first_responses_in_a_larger_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """[PASIS §3.5.1.2] as printed, with QC < N - t - b: a reader overlooks what another saw."""
    sizes = ReadWriteThresholds(N=9, t=1, b=1, QC=3, m=1)

    def new_then_old() -> bool:
        world = World(sizes)
        alice, carol = world.client("alice"), world.client("carol")
        world.placed(alice, ITEM, range(9), time_us=START_US)
        # Under way: QC benign nodes have it, and a liar who also says so.
        world.placed(alice, NEWER, [0, 1, 2, 3], time_us=START_US + 1)
        first = world.client("bob").read().item
        world.nodes[3].behaviour = adversaries.deny_everything
        for number in (0, 1, 2, 3):
            carol.peers.silent(NodeId(number), START_US)
        second = carol.read().item
        return first == NEWER and second == ITEM

    assert not new_then_old()
    monkeypatch.setattr(ReadWriteThresholds, "first_asked", property(lambda self: self.complete))
    assert new_then_old()


def test_with_the_largest_reported_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """[PASIS Figure 3.1] as printed: one liar pushes time beyond what correct nodes accept."""
    monkeypatch.setattr("bftfs.read_write.writing.least_safe_time", lambda times, _b: max(times))
    refused = 0
    for seed in range(10):
        world = World(seed=seed)
        world.nodes[2].behaviour = adversaries.fabricate_newer_versions
        try:
            world.client("alice").write(ITEM)
        except AdmissionRefused as refusal:
            refused += "ahead of this node" in refusal.reason
    assert refused
