"""bftfs.read_write.authorship: which versions a client has written, whoever lies about it."""

from __future__ import annotations

from typing import Any

import pytest

from bftfs import limits
from bftfs.identifiers import BlockId, ObjectId, ObjectKind, block_id, object_id
from bftfs.read_write import authorship
from bftfs.read_write.authorship import Authored
from bftfs.read_write.messages import AuthoredReply, AuthoredRequest
from bftfs.read_write.timestamp import VERSIONS_END, BlockTimestamp, version_key
from bftfs.server.step import Sender
from bftfs.simulation.world import START_US
from tests.unit.read_write.harness import Answer, Honest, Node, Principal, World, mute

FILES = tuple(
    object_id(ObjectKind.INODE, placement=0, unique=bytes(13) + bytes((at,))) for at in range(3)
)


def block(file: int, number: int, incarnation: int = 0) -> BlockId:
    return block_id(FILES[file], incarnation=incarnation, number=number)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def alice(world: World) -> Principal:
    return world.client("alice")


@pytest.fixture
def mallory(world: World) -> Principal:
    return world.client("mallory")


def listed(
    asker: Principal, author: Principal | None, *, since_us: int = 0, files: Any = FILES
) -> list[Authored]:
    found: list[Authored] = asker.do(
        asker.client.versions_by(files, author=author and author.id, since_us=since_us)
    )
    return found


def hide(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
    """Says that nobody has written anything."""
    if isinstance(message, AuthoredRequest):
        return AuthoredReply((), VERSIONS_END), b""
    return honest()


def dawdle(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
    """Always comes only one key further."""
    if isinstance(message, AuthoredRequest):
        return AuthoredReply((), message.after + b"\0"), b""
    return honest()


def invent(_node: Node, _sender: Sender, message: Any, honest: Honest) -> Answer:
    """Lists what is not asked for."""
    if isinstance(message, AuthoredRequest):
        other = object_id(ObjectKind.INODE, placement=0, unique=b"x" * 14)
        key = version_key(
            block_id(other, incarnation=0, number=0),
            BlockTimestamp(START_US, message.author or b"c" * 16, b"v" * 32),
        )
        return AuthoredReply((key,), VERSIONS_END), b""
    return honest()


def test_a_clients_versions_are_told_and_no_others(
    world: World, alice: Principal, mallory: Principal
) -> None:
    alice.write(b"honest", block(0, 0))
    one = mallory.write(b"evil", block(0, 0))
    alice.write(b"honest again", block(0, 0))
    other = mallory.write(b"evil", block(2, 7, incarnation=5))
    assert listed(alice, mallory) == [
        Authored(block(0, 0), one.time, mallory.id),
        Authored(block(2, 7, incarnation=5), other.time, mallory.id),
    ]
    assert listed(alice, mallory, files=FILES[:1]) == [Authored(block(0, 0), one.time, mallory.id)]
    assert len(listed(alice, None)) == 4
    assert [each.block for each in listed(alice, None, since_us=other.time)] == [
        block(2, 7, incarnation=5)
    ]


@pytest.mark.parametrize("behaviour", [hide, dawdle, invent, mute])
def test_no_b_liars_hide_anything(
    world: World, alice: Principal, mallory: Principal, behaviour: Any
) -> None:
    for number in range(3):
        mallory.write(b"evil", block(0, number))
    for liar in range(6):
        world.nodes[liar].behaviour = behaviour
        found = listed(alice, mallory)
        assert [each.block for each in found] == [block(0, number) for number in range(3)]
        world.nodes[liar].behaviour = lambda *_: _[3]()


def test_must_fail_more_than_t_and_b_liars_hide_something(
    world: World, alice: Principal, mallory: Principal
) -> None:
    mallory.write(b"evil", block(0, 0))
    for node in world.nodes:
        node.behaviour = hide
    assert listed(alice, mallory) == []


def test_pages_are_put_together(
    world: World, alice: Principal, mallory: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "AUTHORED_ROWS", 3)
    monkeypatch.setattr(limits, "AUTHORED_INODES", 2)
    for file in range(3):
        for number in range(2):
            for client in (alice, mallory, alice, mallory):
                client.write(b"item", block(file, number))
    world.nodes[3].behaviour = mute
    found = listed(alice, mallory)
    assert len(found) == 12
    assert [(each.block, -each.time_us) for each in found] == sorted(
        (each.block, -each.time_us) for each in found
    )
    assert {each.block for each in found} == {block(f, n) for f in range(3) for n in range(2)}


def test_a_node_looks_at_a_bounded_number_of_versions(
    world: World, mallory: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "AUTHORED_ROWS", 4)
    for _ in range(10):
        mallory.write(b"evil", block(0, 0))
    request = AuthoredRequest((ObjectId(FILES[0]),), None, 0, b"")
    reply = authorship.authored(world.nodes[0].storage, request, FILES[:1])
    assert len(reply.keys) == 4
    assert reply.until == reply.keys[-1]
    old = AuthoredRequest((FILES[0],), None, START_US + 10**9, b"")
    assert authorship.authored(world.nodes[0].storage, old, FILES[:1]) == AuthoredReply(
        (), VERSIONS_END
    )
