"""Background work that people steer: they start, pause, resume and throttle it.

What they have said is kept in the store: a node that is started again goes on as it was told.

**Concurrency.** One thread. Several conversations may go by one throttle.
"""

from __future__ import annotations

from collections import deque
from functools import partial

from bftfs import limits
from bftfs.conversation import Event, Now, Pause, Spawn, Wait
from bftfs.server.background import look
from bftfs.server.step import Host
from bftfs.storage import StorageView, Table, Write

RATE_BYTES_LEAST = 1024
_SAMPLES = 16  # over which a rate is measured, of a second or more each


class Throttle:
    """How fast one kind of background work may go, and whether it may go at all."""

    def __init__(self, name: str, *, rate_bytes: int, stores: bool = False) -> None:
        """`stores`: it adds to what is stored, and so waits while the disk is full."""
        self.name = name
        self._stores = stores
        self.paused = False
        self.rate_bytes = rate_bytes
        self.starts = 0  # how often somebody has asked for a pass
        self._changed = Event()
        self._host: Host | None = None
        self._done = 0  # bytes, ever
        self._samples: deque[tuple[int, int]] = deque(maxlen=_SAMPLES)

    # --- people ------------------------------------------------------------------------------

    def start(self) -> None:
        """Do a pass now, instead of when one is due; go on, if it is paused."""
        self.hurry()
        self.resume()

    def hurry(self) -> None:
        """There is something to do: do a pass now, unless it is paused."""
        self.starts += 1
        self._changed.announce()

    def pause(self) -> None:
        """Stop after the present piece of work."""
        self.paused = True
        self._keep()

    def resume(self) -> None:
        """Go on where it was paused."""
        self.paused = False
        self._keep()

    def set_rate(self, rate_bytes: int) -> None:
        """Handle no more than so many bytes in a second."""
        self.rate_bytes = max(rate_bytes, RATE_BYTES_LEAST)
        self._keep()

    def measured_rate(self, now_us: int) -> float:
        """Bytes per second, in the last seconds."""
        if not self._samples:
            return 0.0
        since_us, done = self._samples[0]
        return (self._done - done) * limits.SECOND_US / max(now_us - since_us, limits.SECOND_US)

    # --- the work ----------------------------------------------------------------------------

    async def begin(self, host: Host) -> None:
        """Take up the orders that people gave before the node was started."""
        if self._host is None:
            self._host = host
            row = await look(host, lambda view: view.get(Table.META, self._key))
            if row:
                self.paused = row[0] == 1
                self.rate_bytes = max(int.from_bytes(row[1:], "big"), RATE_BYTES_LEAST)

    async def permission(self) -> None:
        """Wait for as long as the work is paused, or has no room."""
        while True:
            if self.paused:
                self._samples.clear()
                await Wait(self._changed)
            elif self._stores and self._host is not None and self._host.full:
                self._samples.clear()
                await Pause(limits.SECOND_US)
            else:
                return

    async def spend(self, volume: int, began_us: int) -> None:
        """`volume` bytes have been handled since `began_us`: wait until more may be."""
        now_us = await Now()
        if not self._samples or now_us - self._samples[-1][0] >= limits.SECOND_US:
            self._samples.append((now_us, self._done))
        self._done += volume
        await Pause(1_000)
        while True:
            now_us = await Now()
            due_us = began_us + volume * limits.SECOND_US // self.rate_bytes
            if now_us >= due_us or now_us < began_us:
                return
            await Pause(min(due_us - now_us, limits.SECOND_US))

    async def rest(self, duration_us: int, starts: int) -> None:
        """Wait until so much time has passed, or somebody asks for more than `starts` passes."""
        self._samples.clear()
        until_us = await Now() + duration_us
        await Spawn(partial(self._ring, duration_us))
        while self.starts == starts and await Now() < until_us:
            await Wait(self._changed)

    async def _ring(self, duration_us: int) -> None:
        await Pause(max(duration_us, 1_000))
        self._changed.announce()

    # -----------------------------------------------------------------------------------------

    def _keep(self) -> None:
        self._changed.announce()
        if self._host is not None:
            self._host.arrange(self._kept)

    def _kept(self, _view: StorageView, _now_us: int) -> list[Write]:
        return [
            Write(Table.META, self._key, bytes((self.paused,)) + self.rate_bytes.to_bytes(8, "big"))
        ]

    @property
    def _key(self) -> bytes:
        return b"steering " + self.name.encode()  # as stores have it


def healing_throttle() -> Throttle:
    """How healing goes unless somebody says otherwise."""
    return Throttle("heal", rate_bytes=limits.HEAL_RATE_BYTES, stores=True)
