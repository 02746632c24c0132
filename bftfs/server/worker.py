"""The common parts of a node's workers: passes, pages, idle time, retries, progress.

A worker does something of the node's own accord for as long as the node lives (`step.Background`).
Healing and rebuilding, scrubbing, collection, verification and finishing updates are workers.

**Rules.**

1. Clients come first. A worker goes one piece at a time while clients are busy (`in_chunks`), or
   waits until they are idle (`Idle`, `background.give_way`).
2. People come first, too: a worker asks its `Throttle` for permission before each piece.
3. Neither a crash nor silent peers may make a worker forget that something is left to be done.
   Where a walk is, and whether it has left anything behind, is stored (`Walk`).
4. What could not be done is tried again, less and less often (`retry_after_us`).

`tests/unit/server/test_worker.py` has a test for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bftfs import limits
from bftfs.conversation import Conversation, Now, Pause
from bftfs.server.background import clients_are_busy, look
from bftfs.server.step import Host
from bftfs.server.tally import counter
from bftfs.server.throttle import Throttle
from bftfs.storage import StorageView, Table, Write

Item = TypeVar("Item")

_TIRED_MOST_US = 100_000  # between two looks for idle time


@dataclass(slots=True)
class HealingTally:
    """The results of healing since the node was started, and how far the pass under way is."""

    passes: int = counter("Passes over all {what}.")
    progress: float = counter("Of the pass under way.", default=1.0)
    compared: int = counter("{what} compared with peers.")
    rebuilt: int = counter("{what} rebuilt.")
    rebuilt_bytes: int = counter("Bytes rebuilt.", name="bytes")
    lacking: int = counter("{what} found lacking, still.")  # in this pass, or the last one
    failed: int = counter("{what} that could not be.")
    began_us: int = 0  # the pass under way, or the last one…
    began_at: float = 0.0  # …which goes on where another had been stopped
    ended_us: int = 0  # the last one; 0: none since the start

    def begin(self, now_us: int, progress: float) -> None:
        """A pass begins, or goes on."""
        self.began_us, self.began_at, self.progress = now_us, progress, progress
        self.lacking = 0

    def end(self, now_us: int) -> None:
        """A pass is over."""
        self.passes += 1
        self.progress = 1.0
        self.ended_us = now_us

    def remaining_us(self, now_us: int) -> int | None:
        """Until the pass under way is over, if it goes on as it did; None if nobody can tell."""
        if self.progress >= 1.0:
            return 0
        done = self.progress - self.began_at
        if done <= 0:
            return None
        return round((now_us - self.began_us) * (1.0 - self.progress) / done)


class Walk:
    """Passes over everything that a healer looks after, in the order of the keys, page by page."""

    def __init__(
        self,
        name: bytes,
        end: bytes,
        *,
        throttle: Throttle,
        tally: HealingTally,
        fraction: Callable[[bytes], float],
        rebuilding: bool,
    ) -> None:
        """`end` is after all keys; `fraction` tells how much of everything is before a key.

        The walk is stored in Table.META by its `name`.
        """
        self._name = name
        self._end = end
        self._throttle = throttle
        self._tally = tally
        self._fraction = fraction
        # Up to this key, all that others have was here when the walk was there.
        self.complete_until = b"" if rebuilding else end
        self._starts = 0  # how often it began anew

    async def one_pass(
        self, host: Host, heal: Callable[[Host, bytes], Conversation[tuple[bytes, bool] | None]]
    ) -> bool:
        """Go from where the walk is to the end. True if nothing is left to be done.

        `heal(host, after)` does a page. It gives the key that ends it, and whether all of it is
        healed; None if it could not, and the next pass goes on here.
        """
        starts = self._starts
        cursor, complete = await look(host, self._stored)
        self._tally.begin(await Now(), self._fraction(cursor))
        while cursor != self._end:
            await self._throttle.permission()
            self._tally.progress = self._fraction(cursor)
            healed = await heal(host, cursor)
            if healed is None or self._starts != starts:
                complete = False
                break
            cursor = healed[0]
            complete &= healed[1]
            if complete:
                self.complete_until = max(self.complete_until, cursor)
            host.arrange(self._storing(cursor, complete))
        self._tally.end(await Now())
        return complete

    def begin_anew(self) -> Write:
        """Something was lost: break the pass off; the next one begins at the start."""
        self.complete_until = b""
        self._starts += 1
        return Write(Table.META, self._name, None)

    def _stored(self, view: StorageView) -> tuple[bytes, bool]:
        row = view.get(Table.META, self._name)
        return (row[1:], row[0] == 1) if row else (b"", True)

    def _storing(self, cursor: bytes, complete: bool) -> Callable[[StorageView, int], list[Write]]:
        row = b"\1" if cursor == self._end else bytes((complete,)) + cursor
        return lambda _view, _now_us: [Write(Table.META, self._name, row)]


async def passes(
    host: Host, throttle: Throttle, one_pass: Callable[[Host], Conversation[bool]]
) -> None:
    """One pass after the other: soon, if something was left to be done, or when people say so."""
    await throttle.begin(host)
    while True:
        starts = throttle.starts
        complete = await one_pass(host)
        await throttle.rest(limits.HEAL_EVERY_US if complete else limits.HEAL_AGAIN_US, starts)


async def in_chunks(
    host: Host,
    throttle: Throttle,
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Conversation[int]],
) -> None:
    """Have all items worked on, some at a time, or one by one while clients are busy.

    `work` gives the volume that it has handled, in bytes: the throttle says how fast that may be.
    """
    at = 0
    while at < len(items):
        await throttle.permission()
        busy = await clients_are_busy(host)
        chunk = items[at : at + (1 if busy else limits.HEAL_AT_ONCE)]
        at += len(chunk)
        began_us = await Now()
        await throttle.spend(await work(chunk), began_us)


class Idle:
    """Looks for moments in which clients are idle, less and less often while they are not."""

    __slots__ = ("_tired_us",)

    def __init__(self) -> None:
        self._tired_us = 0

    async def clients_are_busy(self, host: Host) -> bool:
        """False if clients are idle; else True, after a pause."""
        if not await clients_are_busy(host):
            self._tired_us = 0
            return False
        self._tired_us = min(2 * self._tired_us + limits.VERIFY_IDLE_US, _TIRED_MOST_US)
        await Pause(self._tired_us)
        return True


def retry_after_us(failures: int) -> int:
    """The pause before the next try, after so many failures and this one."""
    return min(limits.VERIFY_RETRY_US << min(failures, 16), limits.VERIFY_RETRY_MOST_US)
