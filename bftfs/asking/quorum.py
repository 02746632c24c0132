"""Quorums, and how to ask one: widen on silence, judge replies as enough, pending or too few.

Nobody is waited for who is not needed. Who has not answered long after others usually have is
replaced by the next server, if one that answers is left; who is too busy is asked again soon, and
then less and less often. Who is late time and again is asked last, like the silent.

A set of servers is a bit mask (bit i: server i), so that counting the servers that share a
candidate is one instruction. The code asks a `QuorumSystem` only; thresholds are one instance, and
recursive thresholds, grids or partitions are others. [Q/U §4.3.3]

Concurrency: a `Probing` belongs to one client; its conversations share it between their awaits, and
every method leaves it consistent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol, TypeAlias

from bftfs import limits
from bftfs.conversation import Now, Receive, Send
from bftfs.errors import QuorumUnavailable
from bftfs.identifiers import NodeId
from bftfs.thresholds import QueryUpdateThresholds

Nodes: TypeAlias = int  # a set of servers: bit i stands for server i

HEDGE_US = 20_000  # silence after which servers that answer are asked besides, at the earliest
PATIENCE_US = 200_000  # silence after which a server counts as silent, to begin with
PATIENCE_MAX_US = 2_000_000  # …and the longest interval between retransmissions
BUSY_US = 5_000  # after which a server that was busy is asked again; doubles with each time
SILENCE_US = 1_000_000  # how long a server found silent is asked last, to begin with
SILENCE_MAX_US = 30_000_000
_RELAPSE = 4  # intervals within which a server that answers again must not fall silent again
_LATE_US = 2_000  # after half of the others, at least, and only then is an answer late
_LATE = 4  # usual times after half of the others
_LATENESSES = 4  # more or less in a row, before a server is asked last for them
_ADAPTED_PATIENCE_MAX_US = 2_000_000
_NEVER = 1 << 62


class QuorumSystem(Protocol):
    """Which sets of servers are quorums, repairable sets, and beyond what can all be lying."""

    @property
    def n(self) -> int:
        """How many servers there are."""

    def is_quorum(self, nodes: Nodes) -> bool:
        """Whether some quorum Q ⊆ `nodes`: a candidate that they share is complete. (4.1)"""

    def is_repairable(self, nodes: Nodes) -> bool:
        """Whether some repairable set R ⊆ `nodes`. (4.1)"""

    def includes_benign(self, nodes: Nodes) -> bool:
        """Whether `nodes` cannot all be malevolent: no B of the fail-prone system covers them."""

    def preference(self, placement: int) -> tuple[NodeId, ...]:
        """All servers in the order in which to ask them for an object; the preferred quorum first.

        [Q/U §4.3.5]: a deterministic function of the object's id.
        """

    def first_quorum(self, order: tuple[NodeId, ...]) -> int:
        """How many servers at the head of `order` make a quorum."""


class ThresholdQuorums:
    """Quorums of q, repairable sets of r, at most b malevolent, among n. [Q/U §4.3.3]"""

    __slots__ = ("_preferences", "b", "n", "q", "r")

    def __init__(self, thresholds: QueryUpdateThresholds) -> None:
        self.n = thresholds.n
        self.q = thresholds.q
        self.r = thresholds.r
        self.b = thresholds.b
        self._preferences = tuple(
            tuple(NodeId((start + step) % self.n) for step in range(self.n))
            for start in range(self.n)
        )

    def is_quorum(self, nodes: Nodes) -> bool:
        """At least q servers."""
        return nodes.bit_count() >= self.q

    def is_repairable(self, nodes: Nodes) -> bool:
        """At least r servers."""
        return nodes.bit_count() >= self.r

    def includes_benign(self, nodes: Nodes) -> bool:
        """More than b servers."""
        return nodes.bit_count() > self.b

    def preference(self, placement: int) -> tuple[NodeId, ...]:
        """The servers from `placement mod n` on, around the ring."""
        return self._preferences[placement % self.n]

    def first_quorum(self, order: tuple[NodeId, ...]) -> int:
        """The first q."""
        return min(self.q, len(order))


class Probing:
    """Which servers were found silent or suspect, and are therefore asked last for a while.

    The order stays a function of the object and of the servers that do not answer: locality
    survives a crash, and the load of a crashed server is dispersed. [Q/U §4.3.5]

    Who is silent again soon after it was back stays away for twice as long: one that answers only
    now and then is noticed as rarely as one that never does.
    """

    __slots__ = (
        "_avoided_until",
        "_last_interval",
        "_lateness",
        "_relapse_until",
        "mean_us",
        "usual_us",
    )

    def __init__(self) -> None:
        self._avoided_until: dict[NodeId, int] = {}
        self._last_interval: dict[NodeId, int] = {}
        self._relapse_until: dict[NodeId, int] = {}
        self._lateness: dict[NodeId, int] = {}
        self.mean_us = 0  # how long rounds take
        self.usual_us = 0  # how long half of those that are asked take

    def order(
        self, preference: tuple[NodeId, ...], now_us: int
    ) -> tuple[tuple[NodeId, ...], tuple[NodeId, ...]]:
        """The servers in the order to ask them; and those to ask along, to see if they are back.

        A server is tried again without anyone waiting for it: it is asked along with a quorum of
        the others, once per interval, and is back in its place when it answers.
        """
        avoided = self._avoided_until
        if not avoided:
            return preference, ()
        probes = tuple(node for node in preference if avoided.get(node, now_us + 1) <= now_us)
        for node in probes:
            avoided[node] = now_us + self._last_interval[node]
        return (
            tuple(node for node in preference if node not in avoided)
            + tuple(node for node in preference if node in avoided),
            probes,
        )

    def avoids(self, node: NodeId) -> bool:
        """Whether `node` is asked last at present."""
        return node in self._avoided_until

    def avoid(self, node: NodeId, now_us: int) -> None:
        """`node` did not answer, or answers with what no correct server would say."""
        if self._avoided_until.get(node, 0) > now_us:
            return
        interval = SILENCE_US
        if node in self._avoided_until or self._relapse_until.get(node, 0) > now_us:
            interval = min(2 * self._last_interval[node], SILENCE_MAX_US)
        self._last_interval[node] = interval
        self._relapse_until[node] = now_us + (1 + _RELAPSE) * interval
        self._avoided_until[node] = now_us + interval

    def answered(self, node: NodeId) -> None:
        """`node` answered: it is asked in its place again."""
        if self._avoided_until:
            self._avoided_until.pop(node, None)

    def late(self, node: NodeId, now_us: int) -> None:
        """`node` alone kept a round waiting."""
        lateness = self._lateness.get(node, 0) + _LATENESSES
        if lateness >= _LATENESSES * _LATENESSES:
            lateness -= _LATENESSES
            self.avoid(node, now_us)
        self._lateness[node] = lateness

    def timely(self, node: NodeId) -> None:
        """`node` was the last that a round waited for, and in time."""
        if self._lateness.get(node):
            self._lateness[node] -= 1

    def took(self, elapsed_us: int) -> None:
        """A round took this long, all waits included; patience and back-off adapt to it.

        Who backs off for less than others take, because what they waited for was not counted,
        collides with them again and again. (How long an outage was says nothing of that.)
        """
        if elapsed_us >= 0:
            self.mean_us += (min(elapsed_us, limits.COUNTED_US) - self.mean_us) >> 3

    def took_half(self, elapsed_us: int) -> None:
        """Half of the servers took this long; what is late is measured by it."""
        if elapsed_us >= 0:
            self.usual_us += (elapsed_us - self.usual_us) >> 3

    @property
    def late_us(self) -> int:
        """What is late, after half of the servers have answered."""
        return max(_LATE_US, _LATE * self.usual_us)

    @property
    def patience_us(self) -> int:
        """How much silence is too much."""
        return min(max(PATIENCE_US, 8 * self.mean_us), _ADAPTED_PATIENCE_MAX_US)

    @property
    def hedge_us(self) -> int:
        """After how much silence others are asked, too."""
        return min(max(HEDGE_US, 8 * self.usual_us), self.patience_us)


class Judgement(Enum):
    """What a reply means for the round."""

    ENOUGH = "enough"  # the round is over
    PENDING = "pending"  # wait for the others that were asked
    MORE = "more"  # ask one server more
    AGAIN = "again"  # counts as no answer: ask one server more, and this one again soon


# Given who is overdue: whom to ask besides, of those not asked yet; None if the round is over.
Hedge: TypeAlias = Callable[[Sequence[NodeId]], Sequence[NodeId] | None]


async def ask(
    *,
    request: Callable[[NodeId], Send],
    order: tuple[NodeId, ...],
    first: int,
    judge: Callable[[NodeId, Any, bytes | memoryview], Judgement],
    suffices: Callable[[], bool],
    probing: Probing,
    now_us: int,
    subject: str,
    probes: tuple[NodeId, ...] = (),
    hedge: Hedge | None = None,
    patience_total_us: int | None = None,
) -> None:
    """Ask the `first` servers of `order`, further ones on silence, until `judge` has ENOUGH.

    Requires: `judge` says ENOUGH at the latest when every server has answered; `suffices()` tells,
    when there is silence, whether the answers so far are all that one can wait for; `hedge` chooses
    of the servers not asked yet whom to ask besides those that answer more slowly than usual, and
    may end the round: by default as many as are overdue.
    Ensures: each server's first answer is judged, and no other; requests are repeated to the
    silent [Q/U §4.3.4, c_quorum_rpc]; QuorumUnavailable is raised once `patience_total_us` has
    passed in silence.
    """
    numbers: dict[int, NodeId] = {}
    heard: set[NodeId] = set()
    asked = order[:first]
    for node in asked:
        numbers[await request(node)] = node
    for node in probes:
        if node not in asked:
            numbers[await request(node)] = node
            asked += (node,)
    rest = [node for node in order if node not in asked]
    half = (first + 1) // 2
    half_us: int | None = None
    patience_us = probing.patience_us
    waited_us = 0
    quiet_us = 0  # of silence since the last answer
    hedge_us = probing.hedge_us  # how much of it, until others are asked too
    busy: list[NodeId] = []
    busy_us = _NEVER  # …until who was busy is asked again
    retries = 0
    while True:
        until_us = min(patience_us, hedge_us, busy_us)
        delivery = await Receive(until_us - quiet_us)
        if delivery is None:
            quiet_us = until_us
            if until_us == busy_us:
                for node in busy:
                    numbers[await request(node)] = node
                busy.clear()
                busy_us = _NEVER
                continue
            silent = [node for node in asked if node not in heard]
            if until_us == hedge_us:
                hedge_us = _NEVER
                spare = rest[: len(silent)] if hedge is None else hedge(silent)
                if spare is None:
                    finished_us = await Now()
                    for node in silent:
                        probing.avoid(node, finished_us)
                    return
                for node in spare:
                    rest.remove(node)
                    numbers[await request(node)] = node
                asked += tuple(spare)
                continue
            quiet_us = 0
            waited_us += patience_us
            if suffices():
                return
            if patience_total_us is not None and waited_us >= patience_total_us:
                raise QuorumUnavailable(heard=len(heard), required=first, subject=subject)
            if heard:
                late_us = await Now()
                for node in silent:
                    probing.avoid(node, late_us)
            further, rest = rest[: len(silent)], rest[len(silent) :]
            asked += tuple(further)
            if not further:
                further = silent
                patience_us = min(2 * patience_us, PATIENCE_MAX_US)
            for node in further:
                numbers[await request(node)] = node
            continue
        node = numbers.get(delivery.request_number, NodeId(-1))
        if node < 0 or node in heard:
            continue
        heard.add(node)
        probing.answered(node)
        judgement = judge(node, delivery.message, delivery.body)
        if judgement is Judgement.ENOUGH:
            finished_us = await Now()
            probing.took(finished_us - now_us)
            if half_us is None or finished_us - half_us <= probing.late_us:
                probing.timely(node)
                return
            for each in order[:first]:
                if each == node:
                    probing.late(each, finished_us)
                elif each not in heard and hedge_us == _NEVER:
                    probing.avoid(each, finished_us)
            return
        if judgement is Judgement.AGAIN:
            heard.discard(node)
            for number in [number for number, owner in numbers.items() if owner == node]:
                del numbers[number]
            busy.append(node)
            if busy_us == _NEVER:
                busy_us = quiet_us + (BUSY_US << min(retries, 16))
                retries += 1
        else:
            quiet_us = 0
            if len(heard) == half:
                half_us = await Now()
                probing.took_half(half_us - now_us)
            if judgement is Judgement.PENDING:
                continue
        if rest:
            node = rest.pop(0)
            asked += (node,)
            numbers[await request(node)] = node
