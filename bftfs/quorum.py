"""Quorums, and how to ask one: widen on silence, judge replies as enough, pending or too few.

A set of servers is a bit mask (bit i: server i), so that counting the servers that share a
candidate is one instruction. The code asks a `QuorumSystem` only; thresholds are one instance, and
recursive thresholds, grids or partitions are others. [Q/U §4.3.3]

Concurrency: a `Probing` belongs to one client; its conversations share it between their awaits, and
every method leaves it consistent.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol, TypeAlias

from bftfs.conversation import Now, Receive, Send
from bftfs.errors import QuorumUnavailable
from bftfs.identifiers import NodeId
from bftfs.thresholds import QueryUpdateThresholds

Nodes: TypeAlias = int  # a set of servers: bit i stands for server i

PATIENCE_US = 200_000  # silence after which further servers are asked, to begin with
PATIENCE_MAX_US = 2_000_000  # …and the longest interval between retransmissions
SILENCE_US = 1_000_000  # how long a server found silent is asked last, to begin with
SILENCE_MAX_US = 30_000_000
_ADAPTED_PATIENCE_MAX_US = 2_000_000


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
    """

    __slots__ = ("_avoided_until", "_last_interval", "mean_us")

    def __init__(self) -> None:
        self._avoided_until: dict[NodeId, int] = {}
        self._last_interval: dict[NodeId, int] = {}
        self.mean_us = 0  # how long rounds take

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
        along = tuple(node for node in preference if avoided.get(node, now_us + 1) <= now_us)
        for node in along:
            avoided[node] = now_us + self._last_interval[node]
        return (
            tuple(node for node in preference if node not in avoided)
            + tuple(node for node in preference if node in avoided),
            along,
        )

    def avoids(self, node: NodeId) -> bool:
        """Whether `node` is asked last at present."""
        return node in self._avoided_until

    def avoid(self, node: NodeId, now_us: int) -> None:
        """`node` did not answer, or answers with what no correct server would say."""
        if self._avoided_until.get(node, 0) > now_us:
            return
        interval = min(2 * self._last_interval.get(node, SILENCE_US // 2), SILENCE_MAX_US)
        self._last_interval[node] = interval
        self._avoided_until[node] = now_us + interval

    def answered(self, node: NodeId) -> None:
        """`node` answered: it is asked in its place again."""
        if self._avoided_until and self._avoided_until.pop(node, None) is not None:
            self._last_interval.pop(node, None)

    def took(self, elapsed_us: int) -> None:
        """A round took this long; patience adapts to it."""
        if elapsed_us >= 0:
            self.mean_us += (elapsed_us - self.mean_us) >> 3

    @property
    def patience_us(self) -> int:
        """How much silence is too much."""
        return min(max(PATIENCE_US, 8 * self.mean_us), _ADAPTED_PATIENCE_MAX_US)


class Judgement(Enum):
    """What a reply means for the round."""

    ENOUGH = "enough"  # the round is over
    PENDING = "pending"  # wait for the others that were asked
    MORE = "more"  # ask one server more
    AGAIN = "again"  # counts as no answer: ask one server more, and this one again later


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
    along: tuple[NodeId, ...] = (),
    patience_total_us: int | None = None,
) -> None:
    """Ask the `first` servers of `order`, further ones on silence, until `judge` has ENOUGH.

    Requires: `judge` says ENOUGH at the latest when every server has answered; `suffices()` tells,
    when there is silence, whether the answers so far are all that one can wait for.
    Ensures: each server's first answer is judged, and no other; requests are repeated to the
    silent [Q/U §4.3.4, c_quorum_rpc]; QuorumUnavailable is raised once `patience_total_us` has
    passed in silence.
    """
    numbers: dict[int, NodeId] = {}
    heard: set[NodeId] = set()
    asked = order[:first]
    for node in asked:
        numbers[await request(node)] = node
    for node in along:
        if node not in asked:
            numbers[await request(node)] = node
            asked += (node,)
    rest = [node for node in order if node not in asked]
    patience_us = probing.patience_us
    waited_us = 0
    while True:
        delivery = await Receive(patience_us)
        if delivery is None:
            waited_us += patience_us
            if suffices():
                return
            if patience_total_us is not None and waited_us >= patience_total_us:
                raise QuorumUnavailable(heard=len(heard), required=first, subject=subject)
            silent = [node for node in asked if node not in heard]
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
        if judgement is Judgement.PENDING:
            continue
        if judgement is Judgement.ENOUGH:
            probing.took(await Now() - now_us)
            return
        if judgement is Judgement.AGAIN:
            heard.discard(node)
            for number in [number for number, owner in numbers.items() if owner == node]:
                del numbers[number]
        if rest:
            node = rest.pop(0)
            asked += (node,)
            numbers[await request(node)] = node
