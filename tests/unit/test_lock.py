"""A lock lets conversations pass one by one, in order, and survives those that give up."""

from __future__ import annotations

from typing import Any

from bftfs.conversation import Event, Wait
from bftfs.engine import Engine, Running
from bftfs.identifiers import ObjectId
from bftfs.lock import Lock, Locks
from tests.unit.filesystem.world import Host
from tests.unit.query_update.building import A, B, C


def test_conversations_pass_a_lock_in_order() -> None:
    host, lock, go = Host(), Lock(), Event()
    inside: list[str] = []

    async def visitor(name: str) -> None:
        async with lock:
            inside.append(name)
            await Wait(go)
            inside.append("-" + name)

    outcomes = [host.start(visitor(name)) for name in "abc"]
    assert inside == ["a"]
    for _ in "abc":
        go.announce()
    assert inside == ["a", "-a", "b", "-b", "c", "-c"]
    assert outcomes == [[None]] * 3
    assert lock.is_idle


def test_whoever_gives_up_waiting_is_passed_over() -> None:
    host, lock, go = Host(), Lock(), Event()
    inside: list[str] = []

    async def visitor(name: str) -> None:
        async with lock:
            inside.append(name)
            await Wait(go)

    host.start(visitor("a"))
    impatient = host.engine.start(visitor("b"), lambda *_: None)
    host.start(visitor("c"))
    impatient.cancel()
    go.announce()
    assert inside == ["a", "c"]


def test_a_turn_given_to_one_who_is_gone_passes_on() -> None:
    host, lock, go = Host(), Lock(), Event()
    inside: list[str] = []

    async def visitor(name: str) -> None:
        async with lock:
            inside.append(name)
            await Wait(go)

    async def leaving() -> None:
        async with lock:
            await Wait(go)
        impatient.cancel()  # has the turn by now, and has not gone on yet

    host.start(leaving())
    impatient = host.engine.start(visitor("b"), lambda *_: None)
    host.start(visitor("c"))
    go.announce()
    assert inside == ["c"]
    go.announce()
    assert lock.is_idle


def test_a_holder_that_is_cancelled_leaves() -> None:
    host, lock, go = Host(), Lock(), Event()

    async def visitor() -> None:
        async with lock:
            await Wait(go)

    holder = host.engine.start(visitor(), lambda *_: None)
    holder.cancel()
    assert lock.is_idle


# --- one lock for each object ---------------------------------------------------------------


class World:
    """An engine and conversations that hold locks until they are told to go on."""

    def __init__(self) -> None:
        self.locks = Locks[ObjectId]()
        self.engine = Engine(
            send=lambda *_: None, now_us=lambda: 0, monotonic_us=lambda: 0, draw=lambda _: 0
        )
        self.log: list[str] = []
        self.go_on: dict[str, Event] = {}

    def start(self, name: str, *objects: ObjectId) -> Running:
        self.go_on[name] = Event()

        async def conversation() -> None:
            await self.locks.acquire(objects)
            self.log.append(f"{name} begins")
            try:
                await Wait(self.go_on[name])
            finally:
                self.locks.release(objects)
                self.log.append(f"{name} ends")

        def ended(_: Any, error: BaseException | None) -> None:
            assert error is None

        return self.engine.start(conversation(), ended)

    def end(self, name: str) -> None:
        self.go_on[name].announce()

    def news(self) -> list[str]:
        news, self.log = self.log, []
        return news


def test_locks_are_first_come_first_served() -> None:
    world = World()
    for name in ("one", "two", "three"):
        world.start(name, A)
    assert world.news() == ["one begins"]
    assert world.locks.is_held((A,))
    world.end("one")
    assert world.news() == ["one ends", "two begins"]
    world.end("two")
    world.end("three")
    assert world.news() == ["two ends", "three begins", "three ends"]
    assert not world.locks.is_held((A,))


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


def test_an_abandoned_holder_passes_its_lock_on() -> None:
    world = World()
    one = world.start("one", A)
    world.start("two", A)
    one.cancel()
    assert sorted(world.news()) == ["one begins", "one ends", "two begins"]
    assert world.locks.is_held((A,))
    world.end("two")
    assert not world.locks.is_held((A,))


def test_an_abandoned_waiter_leaves_the_queue() -> None:
    world = World()
    world.start("one", A)
    two = world.start("two", A, B)
    world.start("three", A)
    two.cancel()
    world.end("one")
    assert world.news() == ["one begins", "one ends", "three begins"]
    assert not world.locks.is_held((B,))
    world.end("three")
    assert not world.locks.is_held((A,))
