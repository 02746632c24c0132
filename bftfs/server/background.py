"""How background work reaches the store, asks all peers, and spares clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from bftfs import limits
from bftfs.conversation import Conversation, Event, Now, Pause, Receive, Send, Wait
from bftfs.errors import DamagedRow
from bftfs.identifiers import NodeId
from bftfs.server.step import Host
from bftfs.storage import StorageView, Write

Seen = TypeVar("Seen")


async def look(host: Host, function: Callable[[StorageView], Seen]) -> Seen:
    """The result of `function` on the store, in a step of its own."""
    return await step(host, lambda view: (function(view), []))


async def step(host: Host, function: Callable[[StorageView], tuple[Seen, list[Write]]]) -> Seen:
    """The first thing that `function` gives in a step of its own, which applies its writes.

    Raises `DamagedRow` if what it has to read cannot be read.
    """
    seen: list[Seen] = []
    damages: list[DamagedRow] = []
    event = Event()

    def task(view: StorageView, _now_us: int) -> list[Write]:
        writes: list[Write] = []
        try:
            result, writes = function(view)
            seen.append(result)
        except DamagedRow as damage:
            damages.append(damage)
        event.announce()
        return writes

    host.arrange(task)
    while not seen and not damages:
        await Wait(event)
    if damages:
        raise damages[0]
    return seen[0]


async def carry_on(host: Host, work: Callable[[Host], Conversation[None]]) -> None:
    """Do the work. If a damaged row stops it, begin anew when the row may be mended."""
    while True:
        try:
            await work(host)
        except DamagedRow as damage:
            host.note_damage(damage)
        else:
            return
        await Pause(limits.HEAL_AGAIN_US)


async def clients_are_busy(host: Host) -> bool:
    """True if a client has asked for something just now."""
    return 0 <= await Now() - host.foreground_us < limits.VERIFY_IDLE_US


async def give_way(host: Host, most_us: int) -> None:
    """Wait for clients to be idle, but no longer than that."""
    waited_us = 0
    while waited_us < most_us and await clients_are_busy(host):
        await Pause(limits.VERIFY_IDLE_US)
        waited_us += limits.VERIFY_IDLE_US


async def ask_all(
    peers: Sequence[NodeId],
    request: object,
    judge: Callable[[object], Seen | None],
    enough: Callable[[dict[NodeId, Seen]], bool] = lambda _: False,
) -> dict[NodeId, Seen]:
    """The usable answers of all peers, waiting for the silent only so long.

    Once there are `enough`, nobody is waited for.
    """
    numbers = {await Send(peer, request): peer for peer in peers}
    answers: dict[NodeId, Seen] = {}
    deadline_us = await Now() + limits.HEAL_PATIENCE_US
    while numbers:
        delivery = await Receive(max(deadline_us - await Now(), 1))
        if delivery is None:
            break
        peer = numbers.pop(delivery.request_number, None)
        if peer is not None:
            answer = judge(delivery.message)
            if answer is not None:
                answers[peer] = answer
                if enough(answers):
                    break
    return answers
