"""The common parts of a node's workers: steps, idle time, throttle, retries, pages and progress.

A worker does something of the node's own accord for as long as the node lives (`step.Background`).
Healing and rebuilding, scrubbing, collection, verification and finishing updates are workers.

**Rules.**

1. Clients come first. A worker goes one piece at a time while clients are busy (`in_chunks`), waits
   for them to be idle, but only so long (`give_way`), or until they are (`IdleTime`).
2. People come first, too: a worker asks its `Throttle` for permission before each piece.
3. Neither a crash nor silent peers may make a worker forget that something is left to be done.
   Where a walk is, and whether it has left anything behind, is stored (`HealingWalk`).
4. What could not be done is tried again, less and less often (`retry_after_us`).

`tests/unit/server/test_worker.py` and `test_idle_time.py` have a test for each.

**Concurrency.** One thread. Several conversations may go by one throttle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from bftfs import limits
from bftfs.asking.ask import ask_all
from bftfs.asking.peers import Peers
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
_DELAYED_MOST = 6  # times that a worker gives way to others on a busy machine, for each piece


# --- the store and the peers --------------------------------------------------------------------


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


class OtherNodes:
    """All nodes but a worker's own, as the worker asks them."""

    def __init__(self, node: NodeId, peers: Peers) -> None:
        self.nodes = tuple(NodeId(other) for other in range(peers.quorums.n) if other != node)
        self._peers = peers

    async def ask(
        self,
        request: object,
        kind: type[Seen],
        is_possible: Callable[[Seen], bool] = lambda _: True,
        *,
        nodes: Iterable[NodeId] | None = None,
        enough: Callable[[dict[NodeId, Seen]], bool] = lambda _: False,
    ) -> dict[NodeId, Seen]:
        """The answers of this kind that a correct node may have sent, of all (or these) `nodes`."""

        def judge(delivery: Delivery) -> Seen | None:
            answer = delivery.message
            return answer if isinstance(answer, kind) and is_possible(answer) else None

        return await ask_all(
            self._peers,
            dict.fromkeys(self.nodes if nodes is None else nodes, request),
            judge,
            patience_us=limits.HEAL_PATIENCE_US,
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

    How long clients must be silent before that counts as idle time is learnt: if a client's request
    comes during the work, the gaps between requests are shorter than the work, and the silence
    required doubles; undisturbed work halves it. Otherwise the work could slow clients down so far
    that the gaps which it causes look like idle time. So is the number of pieces to do at once.

    Nothing is refused or delayed for this, here or at a peer: work on demand begins at once. In a
    cluster whose clients never pause, a node still does one piece a second.
    """

    def __init__(self, b: int = 0) -> None:
        self._b = b
        self._claims: dict[NodeId, int] = {}  # of this piece of work: when each saw a client last
        self._elsewhere_us = 0  # when clients asked more than b peers for something, as they claim
        self._tired_us = 0  # the least pause, the longer the longer clients are busy
        self._delayed = 0  # how often in a row this node was woken late
        self.required_us = limits.VERIFY_IDLE_US  # silence after which there is idle time
        self.at_once = 1  # pieces of work that are not likely to meet a client's request

    async def clients_are_busy(self, host: Host) -> bool:
        """False if clients are idle; else True, after a pause."""
        began_us = await Now()
        idle_us = began_us - self.foreground_us(host.foreground_us)
        if 0 <= idle_us < self.required_us or 0 < self._delayed < _DELAYED_MOST:
            wait_us = max(self.required_us - max(idle_us, 0), self._tired_us)
            await Pause(wait_us)
            # A node that is woken late shares its processor with more urgent work.
            late_us = await Now() - began_us - wait_us
            self._delayed = self._delayed + 1 if late_us > limits.VERIFY_LATE_US else 0
            self._tired_us = min(2 * self._tired_us + 1_000, _TIRED_MOST_US)
            self.at_once = 1  # what looked like idle time may have been a gap
            return True
        self._tired_us = 0
        if self._delayed:
            self._delayed = self.at_once = 1
        return False

    def heard(self, node: NodeId, idle_ms: int, now_us: int) -> None:
        """`node` claims that no client has asked it for anything since so long."""
        self._claims[node] = now_us - 1_000 * idle_ms

    def foreground_us(self, here_us: int) -> int:
        """When clients asked for something last; this node itself was asked at `here_us`."""
        return max(here_us, self._elsewhere_us)

    def begin(self) -> None:
        """A piece of work begins: only claims heard from now on count."""
        self._claims.clear()

    def end(self, began_us: int, here_us: int) -> bool:
        """The work is done. True if no client asked for anything meanwhile or shortly before."""
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
    """The claim of a node that a client asked for something last at `foreground_us`."""
    return min(max(now_us - foreground_us, 0), limits.VERIFY_IDLE_MOST_US) // 1_000


# --- what people control ------------------------------------------------------------------------


class Throttle:
    """How fast one kind of background work may go, and whether it may go at all.

    What people have said is kept in the store: a node that is started again goes on as it was told.
    """

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
        """Handle at most `rate_bytes` in a second."""
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
        """Wait for `duration_us`, or until somebody has asked for more than `starts` passes."""
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


# --- passes, pages, pieces ----------------------------------------------------------------------


@dataclass(slots=True)
class PassTally:
    """How often a worker has been through everything, and how far the pass under way is."""

    passes: int = counter("Passes over all {what}.")
    progress: float = counter("Of the pass under way.", default=1.0)
    began_us: int = 0  # the pass under way, or the last one…
    began_at: float = 0.0  # …which goes on where another had been stopped
    ended_us: int = 0  # the last one; 0: none since the start

    def begin(self, now_us: int, progress: float) -> None:
        """A pass begins, or goes on."""
        self.began_us, self.began_at, self.progress = now_us, progress, progress

    def end(self, now_us: int) -> None:
        """A pass is over."""
        self.passes += 1
        self.progress = 1.0
        self.ended_us = now_us

    @property
    def under_way(self) -> bool:
        """True while there is a pass."""
        return self.progress < 1.0


@dataclass(slots=True)
class HealingTally(PassTally):
    """The results of healing since the node was started."""

    compared: int = counter("{what} compared with peers.")
    rebuilt: int = counter("{what} rebuilt.")
    rebuilt_bytes: int = counter("Bytes rebuilt.", name="bytes")
    lacking: int = counter("{what} found lacking, still.")  # in this pass, or the last one
    failed: int = counter("{what} that could not be.")

    def begin(self, now_us: int, progress: float) -> None:
        """A pass begins, or goes on."""
        PassTally.begin(self, now_us, progress)
        self.lacking = 0

    def remaining_us(self, now_us: int) -> int | None:
        """Until the pass under way is over, if it goes on as it did; None if nobody can tell."""
        if not self.under_way:
            return 0
        done = self.progress - self.began_at
        if done <= 0:
            return None
        return round((now_us - self.began_us) * (1.0 - self.progress) / done)


class Walk:
    """Passes over everything that a worker looks after, in the order of the keys, page by page.

    Each pass begins at the start. Walks that go on where a restart has stopped them are derived.
    """

    def __init__(
        self,
        end: bytes,
        *,
        tally: PassTally,
        fraction: Callable[[bytes], float],
        throttle: Throttle | None = None,
    ) -> None:
        """`end` is after all keys; `fraction` tells how much of everything is before a key."""
        self._end = end
        self._tally = tally
        self._fraction = fraction
        self._throttle = throttle
        self._starts = 0  # how often it began anew

    async def one_pass(
        self, host: Host, do_page: Callable[[Host, bytes], Conversation[tuple[bytes, bool] | None]]
    ) -> bool:
        """Go from where the walk is to the end. True if nothing is left to be done.

        `do_page(host, after)` gives the key that ends the page, and whether all of it is done; None
        if it could not, and the next pass goes on here.
        """
        starts = self._starts
        cursor, complete = await self._resume(host)
        self._tally.begin(await Now(), self._fraction(cursor))
        while cursor != self._end:
            if self._throttle is not None:
                await self._throttle.permission()
            self._tally.progress = self._fraction(cursor)
            done = await do_page(host, cursor)
            if done is None or self._starts != starts:
                complete = False
                break
            cursor = done[0]
            complete &= done[1]
            self._keep(host, cursor, complete=complete)
        self._tally.end(await Now())
        return complete

    async def _resume(self, _host: Host) -> tuple[bytes, bool]:
        """Where the walk is, and whether nothing before that is left to be done."""
        return b"", True

    def _keep(self, host: Host, cursor: bytes, *, complete: bool) -> None:
        """The walk has come so far."""


class HealingWalk(Walk):
    """A walk whose place, and whether it has left anything behind, survive restarts."""

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
        # Up to this key, all that others have was here when the walk was there.
        self.complete_until = b"" if rebuilding else end

    def begin_anew(self) -> Write:
        """Something was lost: break the pass off; the next one begins at the start."""
        self.complete_until = b""
        self._starts += 1
        return Write(Table.META, self._name, None)

    async def _resume(self, host: Host) -> tuple[bytes, bool]:
        row = await look(host, lambda view: view.get(Table.META, self._name))
        return (row[1:], row[0] == 1) if row else (b"", True)

    def _keep(self, host: Host, cursor: bytes, *, complete: bool) -> None:
        if complete:
            self.complete_until = max(self.complete_until, cursor)
        row = b"\1" if cursor == self._end else bytes((complete,)) + cursor
        host.arrange(lambda _view, _now_us: [Write(Table.META, self._name, row)])


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


def fraction_below(key: bytes) -> float:
    """Roughly how much of all keys is below this one, if they are evenly spread."""
    return int.from_bytes(key[:8].ljust(8, b"\0"), "big") / (1 << 64)


def retry_after_us(failures: int) -> int:
    """The pause before the next try, after this failure and so many before it."""
    return min(limits.VERIFY_RETRY_US << min(failures, 16), limits.VERIFY_RETRY_MOST_US)
