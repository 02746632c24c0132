"""The common parts of a node's workers: steps, idle time, throttle, retries, pages and progress.

A worker does something of the node's own accord for as long as the node lives (`step.Background`).
Healing and rebuilding, scrubbing, collection, verification and finishing updates are workers.

**Rules.**

1. Clients come first. While clients are busy, a worker does one piece at a time (`in_chunks`),
   waits for a limited time until they are idle (`give_way`), or does nothing before they are
   (`IdleTime`).
2. Administrators decide how fast a worker goes: it asks its `Throttle` before each piece.
3. Neither a crash nor silent peers may make a worker forget that something is left to be done.
   A walk stores its position, and whether it has skipped anything (`HealingWalk`).
4. What failed is tried again, at growing intervals (`retry_after_us`).

`tests/unit/server/test_worker.py` and `test_idle_time.py` have a test for each.

**Concurrency.** One thread. Several conversations may go by one throttle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from struct import Struct
from typing import TypeVar

from bftfs import limits
from bftfs.asking.ask import ask_all
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import NOBODY, QuorumSystem
from bftfs.conversation import Conversation, Delivery, Event, Now, Pause, Spawn, Wait
from bftfs.errors import DamagedRow
from bftfs.identifiers import NodeId
from bftfs.server.step import Host
from bftfs.server.tally import counter
from bftfs.storage import StorageView, Table, Write

Seen = TypeVar("Seen")
Item = TypeVar("Item")

RATE_BYTES_LEAST = 1024
_SAMPLES = 16  # over which a rate is measured, of a second or more each
_TIRED_MOST_US = 100_000  # between two looks for idle time
_NEARLY = 0.99  # of a pass that is under way is done at most
_COUNTS = Struct("!QQ")  # done, and in all
_COUNT_MOST = (1 << 64) - 1
_DELAYED_MOST = 6  # how often a worker gives way before each piece, on a busy machine


# --- the store and the peers --------------------------------------------------------------------


async def look(host: Host, function: Callable[[StorageView], Seen]) -> Seen:
    """Read from the store in a step of its own; return what `function` returns."""
    return await step(host, lambda view: (function(view), []))


async def step(host: Host, function: Callable[[StorageView], tuple[Seen, list[Write]]]) -> Seen:
    """Run `function` as a step of its own: apply the writes that it returns, return its result.

    Raises `DamagedRow` if a row that `function` reads is damaged.
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


async def is_stored(host: Host, lost: int) -> bool:
    """True if all that was written since `host.lost` was `lost` is durable."""
    await look(host, lambda _view: None)  # its batch comes after those with these writes
    return host.lost == lost


async def carry_on(host: Host, work: Callable[[Host], Conversation[None]]) -> None:
    """Do `work`. If a damaged row stops it, report the row and begin again after a while."""
    while True:
        try:
            await work(host)
        except DamagedRow as damage:
            host.note_damage(damage)
        else:
            return
        await Pause(limits.HEAL_AGAIN_US)


class OtherNodes:
    """All nodes except the worker's own; sends them requests for the worker."""

    def __init__(self, node: NodeId, peers: Peers) -> None:
        self.nodes = peers.others(node)
        self._peers = peers

    async def ask(
        self,
        request: object,
        kind: type[Seen],
        is_possible: Callable[[Seen], bool] = lambda _: True,
        *,
        nodes: Iterable[NodeId] | None = None,
        patience_us: int = limits.HEAL_PATIENCE_US,
        silent_us: int | None = None,
        enough: Callable[[dict[NodeId, Seen]], bool] = lambda _: False,
    ) -> dict[NodeId, Seen]:
        """Ask `nodes` (by default all); return answers of type `kind` that pass `is_possible`.

        `silent_us` is the patience with those that were silent before, if it is another.
        """

        def judge(delivery: Delivery, _now_us: int) -> Seen | None:
            answer = delivery.message
            return answer if isinstance(answer, kind) and is_possible(answer) else None

        return await ask_all(
            self._peers,
            dict.fromkeys(self.nodes if nodes is None else nodes, request),
            judge,
            patience_us=patience_us,
            silent_us=silent_us,
            enough=enough,
        )


# --- idle time ----------------------------------------------------------------------------------


async def clients_are_busy(host: Host) -> bool:
    """True if a client has asked for something just now."""
    return 0 <= await Now() - host.foreground_us < limits.VERIFY_IDLE_US


async def give_way(host: Host, most_us: int) -> None:
    """Wait for clients to be idle, but no longer than that."""
    waited_us = 0
    while waited_us < most_us and await clients_are_busy(host):
        await Pause(limits.VERIFY_IDLE_US)
        waited_us += limits.VERIFY_IDLE_US


class IdleTime:
    """Looks for moments in which no client asks this node for anything, nor its peers.

    Verification reads from other nodes, so a node that no client happens to ask is not idle while
    its peers are busy: serving its reads would delay their clients. Each reply to a node says for
    how long no client has asked the peer for anything. Every operation of a client involves a
    quorum, hence more than b correct nodes among those that a verifier hears; so the (b + 1)-st
    latest claim counts. b liars can neither pretend that all nodes are busy nor hide it.
    [LazyVer §3.9]

    How long clients must be silent before work begins is adapted (`required_us`): it doubles when a
    client's request comes during the work, because then the gaps between requests are shorter than
    the work, and it halves after undisturbed work. Otherwise the work could slow clients down so
    far that the gaps which it causes look like idle time. The number of pieces done at once is
    adapted in the same way (`at_once`).

    This delays background work only: no request of a client or a peer is refused or delayed for it,
    and work on demand begins at once. If clients never pause, a node still does one piece a second.
    """

    def __init__(self, b: int = 0) -> None:
        self._b = b
        self._claims: dict[NodeId, int] = {}  # when each last saw a client, as it said meanwhile
        self._elsewhere_us = 0  # when a client last asked a peer, as more than b peers claim
        self._tired_us = 0  # the shortest pause; grows while clients are busy
        self._delayed = 0  # how many times in a row a pause took too long
        self.required_us = limits.VERIFY_IDLE_US  # silence of clients that counts as idle time
        self.at_once = 1  # pieces of work to do in one idle time

    async def clients_are_busy(self, host: Host) -> bool:
        """False if clients are idle; else True, after a pause."""
        began_us = await Now()
        idle_us = began_us - self.foreground_us(host.foreground_us)
        if 0 <= idle_us < self.required_us or 0 < self._delayed < _DELAYED_MOST:
            wait_us = max(self.required_us - max(idle_us, 0), self._tired_us)
            await Pause(wait_us)
            # If the pause took too long, other programs need the processor.
            late_us = await Now() - began_us - wait_us
            self._delayed = self._delayed + 1 if late_us > limits.VERIFY_LATE_US else 0
            self._tired_us = min(2 * self._tired_us + 1_000, _TIRED_MOST_US)
            self.at_once = 1  # the last idle time may have been only a gap between requests
            return True
        self._tired_us = 0
        if self._delayed:
            self._delayed = self.at_once = 1
        return False

    def heard(self, node: NodeId, idle_ms: int, now_us: int) -> None:
        """`node` claims that no client has asked it for anything for `idle_ms`."""
        self._claims[node] = now_us - 1_000 * idle_ms

    def foreground_us(self, here_us: int) -> int:
        """When a client last asked a node; `here_us` is when one last asked this node."""
        return max(here_us, self._elsewhere_us)

    def begin(self) -> None:
        """A piece of work begins: forget what peers claimed before."""
        self._claims.clear()

    def end(self, began_us: int, here_us: int) -> bool:
        """The work is done. True if no client asked for anything during it or shortly before."""
        if len(self._claims) > self._b:
            latest_us = sorted(self._claims.values(), reverse=True)[self._b]
            self._elsewhere_us = max(self._elsewhere_us, latest_us)
        undisturbed = self.foreground_us(here_us) <= began_us - self.required_us
        if undisturbed:
            self.required_us = max(self.required_us // 2, limits.VERIFY_IDLE_US)
            self.at_once = min(2 * self.at_once, limits.VERIFY_AT_ONCE)
        else:
            self.required_us = min(2 * self.required_us, limits.VERIFY_IDLE_MOST_US)
            self.at_once = 1
        return undisturbed


def claimed_ms(foreground_us: int, now_us: int) -> int:
    """What a node tells its peers if a client last asked it at `foreground_us`."""
    return min(max(now_us - foreground_us, 0), limits.VERIFY_IDLE_MOST_US) // 1_000


# --- what administrators control ----------------------------------------------------------------


class Throttle:
    """How fast one kind of background work may go, and whether it may go at all.

    Administrators control it. Their settings are stored, and hold after a restart as well.
    """

    def __init__(self, name: str, *, rate_bytes: int, stores: bool = False) -> None:
        """With `stores`, the work adds rows to the store, so it waits while the disk is full."""
        self.name = name
        self._stores = stores
        self.paused = False
        self.rate_bytes = rate_bytes
        self.starts = 0  # how often a pass was requested
        self.resting = 0  # kinds of work that wait for their next pass
        self._changed = Event()
        self._host: Host | None = None
        self._done = 0  # bytes handled since the start
        self._samples: deque[tuple[int, int]] = deque(maxlen=_SAMPLES)

    # --- administrators ----------------------------------------------------------------------

    def start(self) -> None:
        """Begin a pass now instead of waiting until it is due; resume if paused."""
        self.hurry()
        self.resume()

    def hurry(self) -> None:
        """Begin a pass now, because there is something to do; but stay paused if paused."""
        self.starts += 1
        self._changed.announce()

    def pause(self) -> None:
        """Stop after the present piece of work."""
        self.paused = True
        self._keep()

    def resume(self) -> None:
        """Continue after a pause."""
        self.paused = False
        self._keep()

    def set_rate(self, rate_bytes: int) -> None:
        """Handle at most `rate_bytes` in a second."""
        self.rate_bytes = max(rate_bytes, RATE_BYTES_LEAST)
        self._keep()

    def measured_rate(self, now_us: int) -> float:
        """Bytes handled per second, over the last seconds."""
        if not self._samples:
            return 0.0
        since_us, done = self._samples[0]
        return (self._done - done) * limits.SECOND_US / max(now_us - since_us, limits.SECOND_US)

    # --- the work ----------------------------------------------------------------------------

    async def begin(self, host: Host) -> None:
        """Load the settings that were stored before the node was started."""
        if self._host is None:
            self._host = host
            row = await look(host, lambda view: view.get(Table.META, self._key))
            if row:
                self.paused = row[0] == 1
                self.rate_bytes = max(int.from_bytes(row[1:], "big"), RATE_BYTES_LEAST)

    async def permission(self) -> None:
        """Wait while the work is paused, or while it needs room and the disk is full."""
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
        """`volume` bytes were handled since `began_us`: wait until the rate allows more."""
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
        """Wait for `duration_us`, or until a pass is requested (`starts` were before)."""
        self._samples.clear()
        until_us = await Now() + duration_us
        await Spawn(partial(self._ring, duration_us))
        self.resting += 1
        while self.starts == starts and await Now() < until_us:
            await Wait(self._changed)
        self.resting -= 1

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
        return b"steering " + self.name.encode()  # existing stores have this key


def healing_throttle() -> Throttle:
    """The throttle that healing of objects and of blocks share."""
    return Throttle("heal", rate_bytes=limits.HEAL_RATE_BYTES, stores=True)


# --- passes, pages, pieces ----------------------------------------------------------------------


@dataclass(slots=True)
class PassTally:
    """How many passes a worker has completed, and how far the current pass is."""

    passes: int = counter("Completed passes over all {what}.")
    progress: float = counter(
        "How much of the current pass over all {what} is done; 1 if there is none.", default=1.0
    )
    began_us: int = 0  # when the current or last pass began or was resumed…
    began_at: float = 0.0  # …and at which fraction
    ended_us: int = 0  # when the last pass ended; 0: none has since the start
    whole_us: int = 0  # when the last pass that went over everything began; 0: none since the start

    def begin(self, now_us: int, progress: float) -> None:
        """A pass begins, or continues after a restart."""
        self.began_us, self.began_at, self.progress = now_us, progress, progress

    def end(self, now_us: int, *, at_end: bool) -> None:
        """The current pass is over; `at_end`: it has come to the last key."""
        if at_end and self.began_at == 0:
            self.whole_us = self.began_us
        self.passes += 1
        self.progress = 1.0
        self.ended_us = now_us

    @property
    def under_way(self) -> bool:
        """True during a pass."""
        return self.progress < 1.0


@dataclass(slots=True)
class HealingTally(PassTally):
    """The results of healing since the node was started."""

    compared: int = counter("Number of {what} compared with peers.")
    rebuilt: int = counter("Number of {what} rebuilt.")
    rebuilt_bytes: int = counter("Bytes of {what} rebuilt.", name="bytes")
    lacking: int = counter("Number of {what} that the current or the last pass left missing.")
    failed: int = counter("Attempts to rebuild {what} that failed.")

    done: int = 0  # that the current pass has compared and brought, before a restart as well
    total: int = 0  # that there are
    begun: int = 0  # `done` when the pass began or was resumed

    def begin(self, now_us: int, progress: float) -> None:
        """A pass begins, or continues after a restart."""
        PassTally.begin(self, now_us, progress)
        self.lacking = 0
        self.begun = self.done

    def expect(self, totals: Mapping[NodeId, int], quorums: QuorumSystem) -> None:
        """Each of these peers says how many there are in all; one that is benign says no less."""
        claiming = NOBODY
        for node in sorted(totals, key=totals.__getitem__, reverse=True):
            claiming = claiming.plus(node)
            if quorums.includes_benign(claiming):
                self.total = totals[node]
                return

    def has_done(self, count: int) -> None:
        """So many more are compared, and brought if they were lacking (or that has failed)."""
        self.done += count
        self.progress = self.share

    @property
    def share(self) -> float:
        """The share of all that is compared and brought; less than 1 during a pass."""
        return min(self.done / self.total, _NEARLY) if self.total else 0.0

    def remaining_us(self, now_us: int) -> int | None:
        """How long the current pass will take at its present speed; None if unknown."""
        if not self.under_way:
            return 0
        done = self.done - self.begun
        if done <= 0:
            return None
        return max(now_us - self.began_us, 0) * max(self.total - self.done, 0) // done


class Walk:
    """Passes over all keys that a worker looks after, in order, page by page.

    Each pass begins with the first key. A `HealingWalk` continues after a restart where it was.
    """

    def __init__(
        self,
        end: bytes,
        *,
        tally: PassTally,
        fraction: Callable[[bytes], float],
        throttle: Throttle | None = None,
    ) -> None:
        """`end` is greater than all keys; `fraction` is the share of keys below a given one."""
        self._end = end
        self._tally = tally
        self._fraction = fraction
        self._throttle = throttle
        self._starts = 0  # how often a pass was broken off to begin again

    async def one_pass(
        self, host: Host, do_page: Callable[[Host, bytes], Conversation[tuple[bytes, bool] | None]]
    ) -> bool:
        """Walk from the current position to the end. True if nothing is left to be done.

        `do_page(host, after)` handles the keys that follow `after`. It returns the last key of the
        page and True if all of the page is done; or None if it failed, and then the pass ends, and
        the next one continues here.
        """
        starts = self._starts
        cursor, complete = await self._resume(host)
        self._tally.begin(await Now(), self._fraction(cursor))
        while cursor != self._end:
            if self._throttle is not None:
                await self._throttle.permission()
            self._tally.progress = self._progress(cursor)
            done = await do_page(host, cursor)
            if done is None or self._starts != starts:
                complete = False
                break
            cursor = done[0]
            complete &= done[1]
            self._keep(host, cursor, complete=complete)
        self._tally.end(await Now(), at_end=cursor == self._end)
        return complete

    def _progress(self, cursor: bytes) -> float:
        """How much of the pass is done when it is at `cursor`."""
        return self._fraction(cursor)

    async def _resume(self, _host: Host) -> tuple[bytes, bool]:
        """The position of the walk, and True if nothing before it is left to be done."""
        return b"", True

    def _keep(self, host: Host, cursor: bytes, *, complete: bool) -> None:
        """Remember the position of the walk."""


class HealingWalk(Walk):
    """A walk that stores its position, and whether it has skipped anything.

    Its progress is told in numbers of what is compared, not in shares of the keys: most keys may
    be of one kind. While a lost store is rebuilt, it is not done between two passes either.
    """

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
        """The walk is stored in Table.META by its `name`."""
        super().__init__(end, tally=tally, fraction=fraction, throttle=throttle)
        self._name = name
        self._healing = tally
        self._pace = throttle
        if rebuilding:
            tally.progress = 0.0
        # Up to this key, nothing was missing here when the walk passed.
        self.complete_until = b"" if rebuilding else end

    def begin_anew(self) -> Write:
        """Something was lost: break off this pass, and begin the next one now, at the first key."""
        if self._pace.resting:  # a pass that has begun breaks off by itself
            self._pace.hurry()
        self.complete_until = b""
        self._starts += 1
        self._healing.progress, self._healing.done, self._healing.begun = 0.0, 0, 0
        return Write(Table.META, self._name, None)

    async def one_pass(
        self, host: Host, do_page: Callable[[Host, bytes], Conversation[tuple[bytes, bool] | None]]
    ) -> bool:
        complete = await super().one_pass(host, do_page)
        if self.complete_until != self._end:
            self._healing.progress = self._healing.share
        return complete

    def _progress(self, cursor: bytes) -> float:
        return self._healing.share

    async def _resume(self, host: Host) -> tuple[bytes, bool]:
        row, counts = await look(
            host,
            lambda view: (view.get(Table.META, self._name), view.get(Table.META, self._counts)),
        )
        cursor, complete = (row[1:], row[0] == 1) if row else (b"", True)
        tally = self._healing
        tally.done = 0
        if cursor and counts:
            tally.done, tally.total = _COUNTS.unpack(counts)
        return cursor, complete

    def _keep(self, host: Host, cursor: bytes, *, complete: bool) -> None:
        if complete:
            self.complete_until = max(self.complete_until, cursor)
        row = b"\1" if cursor == self._end else bytes((complete,)) + cursor
        tally = self._healing
        counts = _COUNTS.pack(min(tally.done, _COUNT_MOST), min(tally.total, _COUNT_MOST))
        host.arrange(
            lambda _view, _now_us: [
                Write(Table.META, self._name, row),
                Write(Table.META, self._counts, counts),
            ]
        )

    @property
    def _counts(self) -> bytes:
        return self._name + b", counted"


async def passes(
    host: Host,
    throttle: Throttle,
    one_pass: Callable[[Host], Conversation[bool]],
    node: NodeId,
    n: int,
) -> None:
    """Make one pass after the other: early if something is left to be done, or on request.

    The first pause of `node` is shorter, by how much depends on its number: nodes that were started
    together do not compare everything with each other at the same moment, every time.
    """
    await throttle.begin(host)
    pause_us = limits.HEAL_EVERY_US * (node + 1) // n
    while True:
        starts = throttle.starts
        if await one_pass(host):
            await throttle.rest(pause_us, starts)
            pause_us = limits.HEAL_EVERY_US
        else:
            await throttle.rest(limits.HEAL_AGAIN_US, starts)


async def in_chunks(
    host: Host,
    throttle: Throttle,
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Conversation[int]],
) -> None:
    """Call `work` on all items, some at a time, or one by one while clients are busy.

    `work` returns how many bytes it has handled; `throttle` limits these bytes per second.
    """
    at = 0
    while at < len(items):
        await throttle.permission()
        busy = await clients_are_busy(host)
        chunk = items[at : at + (1 if busy else limits.HEAL_AT_ONCE)]
        at += len(chunk)
        began_us = await Now()
        await throttle.spend(await work(chunk), began_us)


def fraction_below(key: bytes) -> float:
    """Roughly the share of keys that are below `key`, if they are evenly spread."""
    return int.from_bytes(key[:8].ljust(8, b"\0"), "big") / (1 << 64)


def retry_after_us(failures: int) -> int:
    """How long to wait before the next attempt, after `failures` earlier failures."""
    return min(limits.VERIFY_RETRY_US << min(failures, 16), limits.VERIFY_RETRY_MOST_US)
