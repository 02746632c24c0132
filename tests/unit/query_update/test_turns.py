"""Turns: first come, first served; whoever is abandoned passes its turn on."""

from __future__ import annotations

from typing import Any

from bftfs.conversation import Event, Wait
from bftfs.engine import Engine, Running
from bftfs.identifiers import ObjectId
from bftfs.query_update.turns import Turns
from tests.unit.query_update.building import A, B, C


class World:
    """An engine and conversations that hold turns until they are told to go on."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.engine = Engine(
            send=lambda *_: None, now_us=lambda: 0, monotonic_us=lambda: 0, draw=lambda _: 0
        )
        self.log: list[str] = []
        self.go_on: dict[str, Event] = {}

    def start(self, name: str, *objects: ObjectId) -> Running:
        self.go_on[name] = Event()

        async def conversation() -> None:
            await self.turns.take(objects)
            self.log.append(f"{name} begins")
            try:
                await Wait(self.go_on[name])
            finally:
                self.turns.leave(objects)
                self.log.append(f"{name} ends")

        def ended(_: Any, error: BaseException | None) -> None:
            assert error is None

        return self.engine.start(conversation(), ended)

    def end(self, name: str) -> None:
        self.go_on[name].announce()

    def news(self) -> list[str]:
        news, self.log = self.log, []
        return news


def test_first_come_first_served() -> None:
    world = World()
    for name in ("one", "two", "three"):
        world.start(name, A)
    assert world.news() == ["one begins"]
    assert world.turns.taken((A,))
    world.end("one")
    assert world.news() == ["one ends", "two begins"]
    world.end("two")
    world.end("three")
    assert world.news() == ["two ends", "three begins", "three ends"]
    assert not world.turns.taken((A,))


def test_different_objects_do_not_wait_for_each_other() -> None:
    world = World()
    world.start("one", A)
    world.start("two", B)
    assert world.news() == ["one begins", "two begins"]


def test_all_objects_are_needed() -> None:
    world = World()
    world.start("one", B)
    world.start("two", A, B)
    world.start("three", A)
    assert world.news() == ["one begins"]
    world.end("one")
    assert world.news() == ["one ends", "two begins"]
    world.end("two")
    assert world.news() == ["two ends", "three begins"]


def test_opposite_wishes_do_not_block_each_other() -> None:
    world = World()
    world.start("one", A, C)
    world.start("two", A, B, C)
    world.start("three", B, C)
    world.end("one")
    world.end("three")
    world.end("two")
    assert world.news() == [
        "one begins",
        "one ends",
        "three begins",
        "three ends",
        "two begins",
        "two ends",
    ]


def test_an_abandoned_holder_passes_its_turn_on() -> None:
    world = World()
    one = world.start("one", A)
    world.start("two", A)
    one.cancel()
    assert sorted(world.news()) == ["one begins", "one ends", "two begins"]
    assert world.turns.taken((A,))
    world.end("two")
    assert not world.turns.taken((A,))


def test_an_abandoned_waiter_leaves_the_queue() -> None:
    world = World()
    world.start("one", A)
    two = world.start("two", A, B)
    world.start("three", A)
    two.cancel()
    world.end("one")
    assert world.news() == ["one begins", "one ends", "three begins"]
    assert not world.turns.taken((B,))
    world.end("three")
    assert not world.turns.taken((A,))
