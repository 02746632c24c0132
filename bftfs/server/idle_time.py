"""When a node has idle time: no client asks it for anything, nor its peers. [LazyVer §3.9]

Verification reads from other nodes, so a node that no client happens to ask is not idle while its
peers are busy: serving its reads would delay their clients. Each reply to a node says for how long
no client has asked the peer for anything. Every operation of a client involves a quorum, hence more
than b correct nodes among those that a verifier hears; so the (b + 1)-st latest claim counts. b
liars can neither pretend that all nodes are busy nor hide it.

How long clients must be silent before that counts as idle time is learnt: if a client's request
comes during the work, the gaps between requests are shorter than the work, and the silence required
doubles; undisturbed work halves it. Otherwise verification could slow clients down so far that the
gaps which it causes look like idle time.

**Invariants.** Nothing is refused or delayed for this, here or at a peer: verification on demand
begins at once. In a cluster whose clients never pause, a node still verifies one block a second.
"""

from __future__ import annotations

from bftfs import limits
from bftfs.identifiers import NodeId


class IdleTime:
    """When clients asked this node and its peers for something last, as far as it knows."""

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
        else:
            self.required_us = min(2 * self.required_us, limits.VERIFY_IDLE_MOST_US)
        return undisturbed


def claimed_ms(foreground_us: int, now_us: int) -> int:
    """The claim of a node that a client asked for something last at `foreground_us`."""
    return min(max(now_us - foreground_us, 0), limits.VERIFY_IDLE_MOST_US) // 1_000
