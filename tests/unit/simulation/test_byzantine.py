"""Adversaries do what they are called for, and only with what is theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from bftfs.conversation import Pause, Send
from bftfs.crypto.digest import LIFE_MOST, AuthenticatorKeys, life_of, replica_history_digest
from bftfs.identifiers import ClientId, NodeId, ObjectId
from bftfs.query_update.history import parse_history
from bftfs.query_update.messages import Query, QueryReply
from bftfs.read_write.messages import ReadReply, ReadRequest, TimeReply, TimeRequest
from bftfs.server.step import Ready, Role, Sender
from bftfs.simulation.byzantine.positions import NodePosition, mutated
from bftfs.simulation.byzantine.registry import CLIENTS, NODES, corrupted
from bftfs.simulation.deployment import Deployment, Sizes
from bftfs.simulation.network import NetworkFaults, SimulatedNetwork
from bftfs.simulation.scenario import TYPES
from bftfs.simulation.world import START_US, World
from bftfs.storage import MemoryStorage, Table, Write

NODE = NodeId(2)
CLIENT = Sender(Role.CLIENT, ClientId(b"c" * 16))
COUNTER = ObjectId(b"\x01" + bytes(15))
HISTORIES = Query((COUNTER,), "", b"", 0, 0, (), NodeId(0))
TRIES = 40  # enough for everything that happens with some probability


class Stage:
    """A node that an adversary has taken over."""

    def __init__(self, *names: str, seed: int = 1) -> None:
        world = World(seed)
        network = SimulatedNetwork(world, NetworkFaults())
        sizes = Sizes.smallest(t=1, b=1)
        self.deployment = Deployment(world, network, sizes, types=TYPES)
        position = NodePosition(
            NODE,
            self.deployment.servers(NODE),
            self.deployment.keys(NODE),
            sizes,
            Random(seed),
        )
        self.servers = corrupted(position, names)
        self.store = MemoryStorage()

    def step(self, message: Any, sender: Sender = CLIENT) -> Ready:
        return self.servers[type(message)].step(self.store, sender, message, b"", START_US)


@pytest.mark.parametrize("name", sorted(NODES))
def test_every_adversary_serves_every_request_in_its_way(name: str) -> None:
    stage = Stage(name)
    for _ in range(TRIES):
        for message in (
            HISTORIES,
            TimeRequest((bytes(32),)),
            ReadRequest(bytes(32), None, True, 2),
        ):
            stage.step(message)


def _differs(name: str, message: Any) -> bool:
    honest = Stage("fragment-corrupter").step(message).reply
    return any(Stage(name, seed=seed).step(message).reply != honest for seed in range(TRIES))


@pytest.mark.parametrize(
    "name",
    ["mute", "slow", "garbler", "history-forger", "wrong-answers"],
)
def test_what_is_said_of_objects_is_not_what_a_correct_node_says(name: str) -> None:
    assert _differs(name, HISTORIES)


@pytest.mark.parametrize("name", ["mute", "slow", "garbler", "block-forger"])
def test_what_is_said_of_blocks_is_not_what_a_correct_node_says(name: str) -> None:
    assert _differs(name, TimeRequest((bytes(32),)))
    assert _differs(name, ReadRequest(bytes(32), None, True, 2))


def test_a_forged_history_is_authentic_as_ones_own_only() -> None:
    reply: QueryReply | None = None
    for seed in range(TRIES):
        reply = Stage("history-forger", seed=seed).step(HISTORIES).reply
        if reply is not None and reply.histories != (b"",):
            stage = Stage("history-forger", seed=seed)
            break
    assert reply is not None
    assert parse_history(reply.histories[0]).candidates
    digest = replica_history_digest(object=COUNTER, encoded=reply.histories[0])
    (authenticator,) = reply.authenticators
    for node in range(6):
        keys = stage.deployment.keys(NodeId(node))
        assert keys.check(claimed_by=NODE, digest=digest, authenticator=authenticator)
        assert not keys.check(claimed_by=4, digest=digest, authenticator=authenticator)


HISTORY_DIGEST = replica_history_digest(object=COUNTER, encoded=b"history")


def replies_of(name: str, keys: AuthenticatorKeys) -> Iterator[tuple[Stage, Any]]:
    """What an adversary makes of an authentic reply of its node, with one seed after another."""
    authentic = QueryReply(
        (b"history",), (keys.make(HISTORY_DIGEST),), keys.lives, False, 0, b"", True
    )

    class Honest:
        def step(self, *_: Any) -> Ready:
            return Ready(authentic)

    for seed in range(TRIES):
        stage = Stage("mute")
        position = NodePosition(NODE, {Query: Honest()}, keys, stage.deployment.sizes, Random(seed))
        yield stage, NODES[name](position).step(stage.store, CLIENT, HISTORIES, b"", 0).reply


def test_a_selective_authenticator_convinces_some_only() -> None:
    convinced: set[int] = set()
    keys = Stage("mute").deployment.keys(NODE)
    for stage, reply in replies_of("selective-authenticator", keys):
        (authenticator,) = reply.authenticators
        valid = sum(
            stage.deployment.keys(NodeId(node)).check(
                claimed_by=NODE, digest=HISTORY_DIGEST, authenticator=authenticator
            )
            for node in range(6)
        )
        convinced.add(valid)
    assert convinced >= {0, 1, 5}
    assert 6 not in convinced


def test_a_liar_about_lives_signs_validly_in_lives_that_differ() -> None:
    lives: set[int] = set()
    told: set[tuple[int, ...]] = set()
    keys = Stage("mute").deployment.keys(NODE)
    for _, reply in replies_of("lives-liar", keys):
        if reply is not None:
            (authenticator,) = reply.authenticators
            assert keys.is_own(HISTORY_DIGEST, authenticator) == (
                life_of(authenticator) <= LIFE_MOST
            )
            lives.add(life_of(authenticator))
            told.add(reply.lives)
    assert lives >= {0, 1, 2, LIFE_MOST, LIFE_MOST + 1}
    assert len(told) > 2


def test_an_amnesiac_forgets() -> None:
    class Keeper:
        def step(self, *_: Any) -> Ready:
            return Ready(TimeReply((1,)), writes=[Write(Table.META, b"key", b"value")])

    stage = Stage("mute")
    position = NodePosition(
        NODE,
        {TimeRequest: Keeper()},
        stage.deployment.keys(NODE),
        stage.deployment.sizes,
        Random(1),
    )
    adversary = NODES["amnesiac"](position)
    outcomes = [
        adversary.step(stage.store, CLIENT, TimeRequest((bytes(32),)), b"", 0) for _ in range(TRIES)
    ]
    assert all(ready.reply == TimeReply((1,)) for ready in outcomes)
    assert any(not ready.writes for ready in outcomes)


def test_an_equivocator_leads_two_lives() -> None:
    class Counter:
        """Counts its requests in the store."""

        def step(self, view: Any, *_: Any) -> Ready:
            count = int.from_bytes(view.get(Table.META, b"count") or b"\0", "big") + 1
            return Ready(TimeReply((count,)), writes=[Write(Table.META, b"count", bytes([count]))])

    stage = Stage("mute")
    position = NodePosition(
        NODE,
        {TimeRequest: Counter()},
        stage.deployment.keys(NODE),
        stage.deployment.sizes,
        Random(1),
    )
    adversary = NODES["equivocator"](position)
    told: dict[int, list[int]] = {}
    for number in range(8):
        sender = Sender(Role.CLIENT, ClientId(bytes([number]) * 16))
        ready = adversary.step(stage.store, sender, TimeRequest((bytes(32),)), b"", 0)
        assert ready.writes == []
        told.setdefault(ready.reply.times[0], []).append(number)
    assert max(map(len, told.values())) == 2  # two lives have counted so far
    assert stage.store.get(Table.META, b"count") is None


def test_slow_and_flooding_nodes_use_what_hosts_offer() -> None:
    def first_effect(name: str) -> Any:
        (want,) = Stage(name).step(HISTORIES).wants
        conversation = want.fetch(MemoryStorage())
        effect = conversation.send(None)
        conversation.close()
        return effect

    assert isinstance(first_effect("slow"), Pause)
    flood = first_effect("flooding-node")
    assert isinstance(flood, Send)
    assert flood.message == HISTORIES
    assert flood.node != NODE


def test_a_block_forger_binds_the_fragment_it_invents() -> None:
    request = ReadRequest(bytes(32), None, True, 2)
    replies = [Stage("block-forger", seed=seed).step(request) for seed in range(TRIES)]
    assert any(
        isinstance(ready.reply, ReadReply) and ready.reply.versions and ready.body
        for ready in replies
    )


def test_mutated_bytes_differ_nearly_always_and_never_break() -> None:
    random = Random(1)
    original = bytes(range(40))
    results = [mutated(original, random) for _ in range(200)]
    assert sum(result != original for result in results) > 190
    assert mutated(b"", random) is not None


@pytest.mark.parametrize(
    "adversary",
    [*NODES.values(), *(each for clients in CLIENTS.values() for each in clients.values())],
    ids=lambda adversary: adversary.__qualname__,
)
def test_every_adversary_names_its_promise_and_its_checker(adversary: type) -> None:
    """What promises that it is harmless is cited, and what shows it is named."""
    text = " ".join((adversary.__doc__ or "").split())
    assert re.search(r"\[(Q/U|PASIS|LazyVer|design|architecture) ?§", text)
    assert "Shown by" in text
