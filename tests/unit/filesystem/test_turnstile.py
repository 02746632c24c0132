"""A turnstile lets conversations pass one by one, in order, and survives those that give up."""

from __future__ import annotations

from bftfs.conversation import Event, Wait
from bftfs.filesystem.turnstile import Turnstile
from tests.unit.filesystem.world import Host


def test_conversations_pass_one_by_one_in_the_order_in_which_they_came() -> None:
    host, turnstile, go = Host(), Turnstile(), Event()
    inside: list[str] = []

    async def visitor(name: str) -> None:
        async with turnstile:
            inside.append(name)
            await Wait(go)
            inside.append("-" + name)

    outcomes = [host.start(visitor(name)) for name in "abc"]
    assert inside == ["a"]
    for _ in "abc":
        go.announce()
    assert inside == ["a", "-a", "b", "-b", "c", "-c"]
    assert outcomes == [[None]] * 3
    assert turnstile.is_idle


def test_whoever_gives_up_waiting_is_passed_over() -> None:
    host, turnstile, go = Host(), Turnstile(), Event()
    inside: list[str] = []

    async def visitor(name: str) -> None:
        async with turnstile:
            inside.append(name)
            await Wait(go)

    host.start(visitor("a"))
    impatient = host.engine.start(visitor("b"), lambda *_: None)
    host.start(visitor("c"))
    impatient.cancel()
    go.announce()
    assert inside == ["a", "c"]


def test_a_turn_given_to_one_who_is_gone_passes_on() -> None:
    host, turnstile, go = Host(), Turnstile(), Event()
    inside: list[str] = []

    async def visitor(name: str) -> None:
        async with turnstile:
            inside.append(name)
            await Wait(go)

    async def leaving() -> None:
        async with turnstile:
            await Wait(go)
        impatient.cancel()  # has the turn by now, and has not gone on yet

    host.start(leaving())
    impatient = host.engine.start(visitor("b"), lambda *_: None)
    host.start(visitor("c"))
    go.announce()
    assert inside == ["c"]
    go.announce()
    assert turnstile.is_idle


def test_a_holder_that_is_cancelled_leaves() -> None:
    host, turnstile, go = Host(), Turnstile(), Event()

    async def visitor() -> None:
        async with turnstile:
            await Wait(go)

    holder = host.engine.start(visitor(), lambda *_: None)
    holder.cancel()
    assert turnstile.is_idle
