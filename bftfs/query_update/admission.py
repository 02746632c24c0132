"""A server's memory of its clients between requests, which keeps it fair to all of them.

- `Lines`: the clients that were too late at an object, so that contending ones take turns.
- `Allowance`: how many barriers and copies a client may still make. [Q/U §4.3.5]
- `BarrierBudget`: how often an object may still be barred, so that no others' updates stop for it.
- `IncompleteUpdates`: whose latest candidates may be incomplete, so that one client leaves
  only so many incomplete, over all objects. `bftfs.server.incomplete_updates` finishes them.

All of it is in memory, and a restart loses it: only whether a request is refused, or has to wait,
depends on it, never what is accepted for an object.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from bftfs import limits
from bftfs.clock_skew import is_due
from bftfs.conversation import Conversation, Event
from bftfs.identifiers import ClientId, ObjectId
from bftfs.query_update.history import LogicalTimestamp, client_of
from bftfs.server.step import Want
from bftfs.server.tally import counter
from bftfs.storage import Write

_UPDATE_US = limits.SECOND_US // limits.BARRIER_UPDATES  # what an update adds to the shared budget
_REST_TICKS = 2  # ticks of a second each that an object is left alone: one to two seconds


class Lines:
    """The clients that were too late at each object, in the order in which they came."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        # By object, and by client: when it was last too late.
        self._lines: OrderedDict[ObjectId, dict[ClientId, int]] = OrderedDict()

    def join(self, objects: list[ObjectId], client: ClientId, now_us: int) -> int:
        """Put `client` into these objects' lines, or keep it there.

        Returns how many others are ahead of it, in the line where these are most.
        """
        ahead = 0
        for identifier in objects:
            line = self._lines.setdefault(identifier, {})
            self._lines.move_to_end(identifier)
            _expire(line, now_us)
            if client in line or len(line) < limits.CONTENDERS:
                line[client] = now_us
            for place, other in enumerate(line):
                if other == client:
                    ahead = max(ahead, place)
                    break
            else:
                ahead = len(line)
        while len(self._lines) > limits.CONTENDED_OBJECTS:
            self._lines.popitem(last=False)
        return ahead

    def leave(self, objects: list[ObjectId], client: ClientId, now_us: int) -> int:
        """Take `client` out of these lines, since its update was accepted.

        Returns how many others stand in the longest of them.
        """
        longest = 0
        for identifier in objects if self._lines else ():
            line = self._lines.get(identifier)
            if line is not None:
                line.pop(client, None)
                _expire(line, now_us)
                longest = max(longest, len(line))
                if not line:
                    del self._lines[identifier]
        return longest


def _expire(line: dict[ClientId, int], now_us: int) -> None:
    """Remove from the line the clients that have not tried again."""
    for client, late_us in tuple(line.items()):
        if is_due(late_us + limits.CONTENDED_US, now_us, limits.CONTENDED_US):
            del line[client]


class Bucket:
    """Tokens that come with time, one each `each_us`, up to `most`; it is full at first."""

    __slots__ = ("_each_us", "_full_us", "_saved_us", "_since_us")

    def __init__(self, each_us: int, most: int) -> None:
        self._each_us = each_us
        self._full_us = self._saved_us = most * each_us
        self._since_us = 0

    def add(self, time_us: int) -> None:
        """Fill it as if `time_us` more had passed."""
        self._saved_us += time_us

    def has(self, now_us: int, count: int) -> bool:
        """True if there are so many tokens."""
        self._fill(now_us)
        return self._saved_us >= count * self._each_us

    def take(self, now_us: int, count: int = 1) -> bool:
        """Take so many tokens; False if there are not as many."""
        if not self.has(now_us, count):
            return False
        self._saved_us -= count * self._each_us
        return True

    @property
    def left(self) -> int:
        """How many tokens there were when some were taken last; less than 0 if some are owed."""
        return self._saved_us // self._each_us

    def lower(self, most: int) -> None:
        """Let there be no more than `most` tokens, for now."""
        self._saved_us = min(self._saved_us, most * self._each_us)

    def copy(self) -> Bucket:
        """Another one with as many tokens."""
        found = Bucket(self._each_us, 0)
        found._full_us, found._saved_us = self._full_us, self._saved_us
        found._since_us = self._since_us
        return found

    def owe(self, now_us: int) -> None:
        """Take a token even if there is none; at most as many are owed as the bucket can hold."""
        self._fill(now_us)
        self._saved_us = max(self._saved_us - self._each_us, -self._full_us)

    def _fill(self, now_us: int) -> None:
        self._saved_us += max(0, now_us - self._since_us)
        self._since_us = now_us
        self._saved_us = min(self._saved_us, self._full_us)


class Allowance:
    """How many barriers and copies each client may still make."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: dict[ClientId, Bucket] = {}

    def take(self, client: ClientId, now_us: int) -> bool:
        """Take one; False if there is none left."""
        bucket = self._buckets.get(client)
        if bucket is None:
            each_us = limits.SECOND_US // limits.REPAIRS_PER_SECOND
            bucket = self._buckets[client] = Bucket(each_us, limits.REPAIRS_BURST)
        return bucket.take(now_us)


@dataclass(slots=True)
class _Left:
    """What one client may still do at one object: barriers, and steps ahead of clocks."""

    barriers: int
    steps: Bucket | None = None  # None: all of them


class _Own:
    """What is left to one client at the objects that it has used of late, and at all others."""

    __slots__ = ("_barriers", "_objects", "_steps")

    def __init__(self) -> None:
        self._objects: OrderedDict[ObjectId, _Left] = OrderedDict()
        # At objects that are not remembered: as little as where it had least of those forgotten.
        self._barriers = Bucket(limits.BARRIER_BACK_US, limits.BARRIERS_EARNED)
        self._steps = _steps()

    def at(self, name: ObjectId) -> _Left:
        """What is left to it at an object."""
        objects = self._objects
        found = objects.get(name)
        if found is not None:
            objects.move_to_end(name)
            return found
        found = objects[name] = _Left(self._barriers.left, self._steps.copy())
        if len(objects) > limits.OBJECTS_BARRED_OF_CLIENT:
            _, forgotten = objects.popitem(last=False)
            self._barriers.lower(forgotten.barriers)
            if forgotten.steps is not None:
                self._steps.lower(forgotten.steps.left)
        return found

    def go_on(self, now_us: int) -> None:
        """Time has passed: some of what was used at objects that are forgotten comes back."""
        self._barriers.take(now_us, 0)
        self._steps.take(now_us, 0)


def _steps() -> Bucket:
    return Bucket(limits.BARRIER_STEP_EVERY_US, limits.BARRIER_STEPS)


def _in_steps(ahead_us: int) -> int:
    return -(-ahead_us // limits.BARRIER_STEP_US)


class BarrierBudget:
    """How often each object may be barred: by those that update it, and by all others together.

    A barrier stops all updates of an object until a copy follows. A client that updates the object
    earns barriers by its updates, and needs them where clients contend. All other clients share a
    few. Each client begins with as many as one update earns: otherwise one attacker could spend
    the shared ones as they come, with another barrier at each server, and no new client would
    ever bar the object at all servers.

    Each client may also put an object's time ahead of the server's clock by a few steps, on one
    server's word. If these came back soon, a node that forges histories could push the time on
    at the server with the fastest clock, again and again, and the others could never follow. If
    they were shared, it could use them up, and nobody could go on from what it has pushed.

    What is forgotten gives nobody anything back: a client that uses many objects is forgotten
    itself where it has done so longest ago, and may do as little at others as it may there.
    """

    __slots__ = ("_forgotten", "_own", "_shared")

    def __init__(self) -> None:
        self._own: dict[ClientId, _Own] = {}
        # By object: what all that have used up their own share. Least, at one that is forgotten.
        self._shared: OrderedDict[ObjectId, Bucket] = OrderedDict()
        self._forgotten = Bucket(limits.SECOND_US, limits.BARRIERS_OF_OTHERS)

    def earn(self, name: ObjectId, client: ClientId) -> None:
        """The client has updated the object."""
        left = self._at(name, client)
        if left.barriers < limits.BARRIERS_MOST:
            left.barriers = min(left.barriers + limits.BARRIERS_EARNED, limits.BARRIERS_MOST)
        left.steps = None
        others = self._shared.get(name)
        if others is not None:
            others.add(_UPDATE_US)

    def take(self, name: ObjectId, client: ClientId, now_us: int) -> bool:
        """Take one; False if there is none left for this client."""
        return self._take_own(name, client, now_us) or self._others(name, now_us).take(now_us)

    def may_move(self, name: ObjectId, client: ClientId, ahead_us: int, now_us: int) -> bool:
        """False if the client has put the object's time ahead too often to put it so far ahead."""
        left = self._at(name, client, now_us)
        if left.steps is None:
            left.steps = _steps()
        return left.steps.has(now_us, _in_steps(ahead_us))

    def move(self, name: ObjectId, client: ClientId, ahead_us: int, now_us: int) -> None:
        """Put the object's time so far ahead, which the client may do: take its steps."""
        steps = self._at(name, client, now_us).steps
        if steps is not None:
            steps.take(now_us, _in_steps(ahead_us))

    def charge(self, name: ObjectId, client: ClientId, now_us: int) -> None:
        """Charge the client for a barrier that other servers report; it is never refused.

        Otherwise a client could make one barrier more for each server that lets it make one.
        """
        if not self._take_own(name, client, now_us):
            self._others(name, now_us).owe(now_us)

    def _take_own(self, name: ObjectId, client: ClientId, now_us: int) -> bool:
        left = self._at(name, client, now_us)
        is_left = left.barriers > 0
        left.barriers -= is_left
        return is_left

    def _at(self, name: ObjectId, client: ClientId, now_us: int | None = None) -> _Left:
        own = self._own.get(client)
        if own is None:
            own = self._own[client] = _Own()
        if now_us is not None:
            own.go_on(now_us)
        return own.at(name)

    def _others(self, name: ObjectId, now_us: int) -> Bucket:
        shared = self._shared
        found = shared.get(name)
        if found is not None:
            shared.move_to_end(name)
            return found
        self._forgotten.take(now_us, 0)
        found = shared[name] = self._forgotten.copy()
        if len(shared) > limits.CONTENDED_OBJECTS:
            _, forgotten = shared.popitem(last=False)
            forgotten.take(now_us, 0)
            self._forgotten.lower(forgotten.left)
        return found


@dataclass(slots=True)
class Entry:
    """An object whose latest candidate here is not known to be complete."""

    timestamp: LogicalTimestamp
    tick: int  # when it was accepted
    failures: int = 0
    retry_us: int = 0

    def is_due(self, now_us: int) -> bool:
        """True if it is time for another attempt to finish it."""
        return is_due(self.retry_us, now_us, limits.VERIFY_RETRY_MOST_US)


@dataclass(slots=True)
class IncompleteTally:
    """Counts what a server has done about incomplete updates."""

    settled: int = counter("Objects that turned out to be complete.", name="settled_objects")
    repaired: int = counter("Objects repaired by this node.", name="repaired_objects")
    failed: int = counter("Repairs of objects that failed.", name="repairs_failed")
    demands: int = counter("Updates that waited for a repair.", name="repair_demands")


class IncompleteUpdates:
    """The objects whose latest candidates at this server may be incomplete, by client."""

    def __init__(self, most_of_client: int | None = None) -> None:
        """`most_of_client`: the limit of objects for one client, if not the usual one."""
        self._most_of_client = most_of_client or limits.POSSIBLE_OBJECTS_OF_CLIENT
        self.tally = IncompleteTally()
        self.total = 0
        self.tick = 0
        # Settles a client's objects on demand; the worker sets it when it runs.
        self.demand: Callable[[ClientId], Conversation[list[Write] | None]] | None = None
        self.arrived = Event()
        self._of: dict[ClientId, dict[ObjectId, Entry]] = {}  # each in the order of acceptance
        self._client: dict[ObjectId, ClientId] = {}

    def accepted(self, name: ObjectId, timestamp: LogicalTimestamp) -> None:
        """The server has accepted a candidate for `name`, which is its latest now."""
        if name in self._client:
            self.settle(name)
        client = client_of(timestamp)
        self._of.setdefault(client, {})[name] = Entry(timestamp, self.tick)
        self._client[name] = client
        self.total += 1
        if self.total == 1:
            self.arrived.announce()
        elif self.total > limits.POSSIBLE_OBJECTS:
            self.settle(next(iter(self._client)))

    def found(self, name: ObjectId, timestamp: LogicalTimestamp) -> None:
        """Healing has found that `name`, whose latest candidate here this is, is not in order.

        If that is known, it has been tried, and is tried again when it is due.
        """
        entry = self.entry(name)
        if entry is None or entry.timestamp != timestamp:
            self.accepted(name, timestamp)

    def settle(self, name: ObjectId) -> None:
        """Nothing is left to do about `name`."""
        client = self._client.pop(name, None)
        if client is not None:
            entries = self._of[client]
            del entries[name]
            if not entries:
                del self._of[client]
            self.total -= 1

    def of_client(self, client: ClientId) -> int:
        """How many objects may be incomplete because of `client`."""
        return len(self._of.get(client, ()))

    def entry(self, name: ObjectId) -> Entry | None:
        """The entry of `name`, if it may be incomplete."""
        client = self._client.get(name)
        return None if client is None else self._of[client][name]

    def rested(self, entry: Entry) -> bool:
        """True if its client has had the time to finish it."""
        return entry.tick <= self.tick - _REST_TICKS

    def due(self, now_us: int, most: int) -> list[ObjectId]:
        """At most `most` objects that have rested."""
        chosen: list[ObjectId] = []
        for entries in self._of.values():
            for name, entry in entries.items():
                if not self.rested(entry):
                    break
                if entry.is_due(now_us):
                    chosen.append(name)
                    if len(chosen) == most:
                        return chosen
        return chosen

    def oldest(self, client: ClientId, now_us: int, most: int) -> list[ObjectId]:
        """The objects of `client` that may be tried now, the oldest first."""
        entries = self._of.get(client, {})
        worthwhile = (name for name, entry in entries.items() if entry.is_due(now_us))
        return list(islice(worthwhile, most))

    def before_update(self, client: ClientId, now_us: int) -> Want | bool:
        """The want that an update of `client` has to wait for; else True if it may be accepted."""
        if self.demand is None or self.of_client(client) < self._most_of_client:
            return True
        self.tally.demands += 1
        if not self.oldest(client, now_us, 1):
            return False
        demand = self.demand
        return Want(b"finish" + client, lambda _view: demand(client))
