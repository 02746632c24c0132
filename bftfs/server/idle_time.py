"""When a node may work on its own: while clients leave it alone, and its peers too. [LazyVer §3.9]

Verification reads from other nodes, so a node that no client happens to ask is not idle as long as
its peers are busy: its reads would be served at the expense of their clients. Peers say with every
reply to a node how long no client has asked them for anything. Whatever clients do involves a
quorum, hence more than b correct nodes among those that a verifier hears; so the (b + 1)-st latest
claim counts. b liars can neither pretend that everybody is busy nor hide that everybody is.

How long a silence of clients must last before it counts as idle time is learnt: where work was met
by a client's request again and again, the gaps between requests are shorter than the work, and the
silence that is required doubles; work that nobody disturbed halves it. Without that, verification
could slow clients down so far that the gaps which it has made itself look like idle time.

**Invariants.** Nothing is refused or kept waiting, here or at a peer: who has to verify at once, on
demand, does. In a cluster whose clients never pause, a node still verifies one block a second.
"""

from __future__ import annotations

from bftfs import limits
from bftfs.identifiers import NodeId


class IdleTime:
    """One node's knowledge of when clients asked for something last, here and elsewhere."""

    __slots__ = ("_b", "_claims", "_elsewhere_us", "required_us")

    def __init__(self, b: int) -> None:
        self._b = b
        self._claims: dict[NodeId, int] = {}  # of this piece of work: when each saw a client last
        self._elsewhere_us = 0  # when clients asked more than b peers for something, as they claim
        self.required_us = limits.VERIFY_IDLE_US  # silence after which there is idle time

    def heard(self, node: NodeId, idle_ms: int, now_us: int) -> None:
        """`node` claims that no client has asked it for anything since so long."""
        self._claims[node] = now_us - 1_000 * idle_ms

    def foreground_us(self, here_us: int) -> int:
        """When clients asked for something last; this node itself was asked at `here_us`."""
        return max(here_us, self._elsewhere_us)

    def begin(self) -> None:
        """The node takes up a piece of work: what counts is what it hears from now on."""
        self._claims.clear()

    def end(self, began_us: int, here_us: int) -> bool:
        """The work is done; whether no client was there meanwhile, or shortly before."""
        if len(self._claims) > self._b:
            latest_us = sorted(self._claims.values(), reverse=True)[self._b]
            self._elsewhere_us = max(self._elsewhere_us, latest_us)
        undisturbed = self.foreground_us(here_us) <= began_us - self.required_us
        if undisturbed:
            self.required_us = max(self.required_us // 2, limits.VERIFY_IDLE_US)
        else:
            self.required_us = min(2 * self.required_us, limits.VERIFY_IDLE_MOST_US)
        return undisturbed


def claimed_ms(foreground_us: int, now_us: int) -> int:
    """What a node that clients asked for something at `foreground_us` tells its peers."""
    return min(max(now_us - foreground_us, 0), limits.VERIFY_IDLE_MOST_US) // 1_000
