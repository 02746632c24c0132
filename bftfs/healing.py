"""What healing and scrubbing share: looking at the store, asking all peers, sparing clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bftfs import limits
from bftfs.conversation import Event, Now, Receive, Send, Wait
from bftfs.identifiers import NodeId
from bftfs.step import Host
from bftfs.storage import StorageView, Write

Seen = TypeVar("Seen")


@dataclass(slots=True)
class HealingTally:
    """What healing has done; each number but the last only grows."""

    passes: int = 0
    compared: int = 0  # versions (or objects) that were looked at
    rebuilt: int = 0
    rebuilt_bytes: int = 0
    failed: int = 0  # that should be here and could not be made
    progress: float = 1.0  # of the pass under way: how much of the key space it has seen


async def look(host: Host, function: Callable[[StorageView], Seen]) -> Seen:
    """What `function` sees in the store, in a step of its own."""
    return await step(host, lambda view: (function(view), []))


async def step(host: Host, function: Callable[[StorageView], tuple[Seen, list[Write]]]) -> Seen:
    """The first thing that `function` gives in a step of its own, which applies its writes."""
    seen: list[Seen] = []
    event = Event()

    def task(view: StorageView, _now_us: int) -> list[Write]:
        result, writes = function(view)
        seen.append(result)
        event.announce()
        return writes

    host.arrange(task)
    while not seen:
        await Wait(event)
    return seen[0]


async def clients_are_busy(host: Host) -> bool:
    """Whether a client has asked for something just now."""
    return 0 <= await Now() - host.foreground_us < limits.VERIFY_IDLE_US


async def ask_all(
    peers: Sequence[NodeId], request: object, judge: Callable[[object], Seen | None]
) -> dict[NodeId, Seen]:
    """The usable answers of all peers, waiting for the silent only so long."""
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
    return answers
