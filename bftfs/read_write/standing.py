"""What a client remembers of the nodes' conduct: whom to ask last, and how long to wait.

Nothing here touches safety: a node in bad standing is asked later, never believed less. Standing is
forgiven after a while, so that a node that has come back gets its share again. Silence is forgiven
at the next answer, but only once in a while: who answers now and then would have every other
reader wait for him.
"""

from __future__ import annotations

from bftfs import limits
from bftfs.identifiers import NodeId


class Standings:
    """Silence and proven faults of each node, as one client has seen them."""

    __slots__ = ("_avoided_until_us", "_silent", "_watched_until_us", "faults", "marked")

    def __init__(self, N: int) -> None:
        self._avoided_until_us = [0] * N
        self._watched_until_us = [0] * N  # no silence before this is forgiven at the next answer
        self._silent: set[NodeId] = set()  # whose next answer is enough
        self.faults = [0] * N  # replies that convict the node, so far
        self.marked = False  # whether any node is in bad standing

    def silent(self, node: NodeId, now_us: int) -> None:
        """`node` let a reader's patience run out."""
        if now_us >= max(self._avoided_until_us[node], self._watched_until_us[node]):
            self._silent.add(node)
        self._avoid(node, now_us + limits.AVOID_SILENT_US)

    def faulty(self, node: NodeId, now_us: int) -> None:
        """`node` sent what no correct node sends."""
        self.faults[node] += 1
        self._avoid(node, now_us + limits.AVOID_FAULTY_US)
        self._silent.discard(node)

    def heard(self, node: NodeId, now_us: int) -> None:
        """`node` has answered: if only a first silence was held against it, it is forgiven."""
        if node in self._silent:
            self._silent.remove(node)
            self._avoided_until_us[node] = 0
            self._watched_until_us[node] = now_us + limits.WATCH_FORGIVEN_US
            self.marked = any(self._avoided_until_us)

    def avoided(self, now_us: int) -> frozenset[NodeId]:
        """The nodes to ask last."""
        avoided = []
        for node, until_us in enumerate(self._avoided_until_us):
            if until_us > now_us:
                avoided.append(NodeId(node))
            elif until_us:
                self._avoided_until_us[node] = 0
                self._silent.discard(NodeId(node))
        self.marked = bool(avoided)
        return frozenset(avoided)

    def _avoid(self, node: NodeId, until_us: int) -> None:
        self._avoided_until_us[node] = max(self._avoided_until_us[node], until_us)
        self.marked = True


class Patience:
    """How long a silence lasts before it means something; grows where the network is slower.

    A reply that comes after its silence shows that patience was too short; it doubles then, and
    shrinks slowly while silences do not occur.
    """

    __slots__ = ("_least_us", "us")

    def __init__(self, least_us: int) -> None:
        self._least_us = least_us
        self.us = least_us

    def was_too_short(self) -> None:
        """A node answered after all."""
        self.us = min(2 * self.us, limits.PATIENCE_MOST_US)

    def sufficed(self) -> None:
        """An operation ended without a silence."""
        if self.us > self._least_us:
            self.us = max(self.us - (self.us >> 6), self._least_us)
