"""What one principal knows of each node: how it behaves, and whom to ask first.

Rule 1: nothing here affects safety. Any node may be asked in any order, at any time, or never; what
counts as evidence is decided by the protocols.
Rule 2: whoever is left out, a quorum remains. It is enforced here, and nowhere else.

A principal (a mount, a node, a command) has one `Peers`, which both protocols use: a node that lies
to one is known to the other, and a node that is down is found out once. (Only `bftfs inspect` uses
a new one, because it is to show which nodes answer now.) As in etcd/raft, where a leader keeps a
`tracker.Progress` for each follower, there is one record for each node.

**Asked last.** A node that is slow, silent or full, or whose disk is damaged, is asked after the
others, and nobody waits for it as long as the others are a quorum. The order stays a function of
the object and of these nodes: locality survives a crash, and the load of a crashed server is
dispersed. [Q/U §4.3.5] Once its interval is over the node is asked besides the others, as a probe,
and is back in its place when it answers. A first silence is forgiven at the next answer. A node
that falls silent again soon after waits for its probe, and each time for twice as long: one that
answers only now and then is noticed as rarely as one that never does.

**Disbelieved.** A client leaves out of its history sets what some servers report. [Q/U §4.3.5,
Malevolent] A server that said what no correct server says is convicted. One that reports another's
authenticator as invalid, or as outlived while the other one denies it, quarrels with it: one of the
two is malevolent, for correct servers never quarrel (over an insane time they may, while it lies
between their clocks). A server accused by a
set that includes a benign one has corrupted more than it can deny, and is convicted. Of the others,
as few as explain all quarrels are disbelieved; and servers whose histories time and again show
something that hardly anybody else has, and that only a repair gets rid of. Under contention correct
servers do so now and then: the divergences are counted, and agreement makes up for them.

**Ahead of the clock.** Histories whose times are far ahead of the principal's clock do not count
either, unless a benign server must have them (`query_update.observation`). A principal that has
been told that its own clock is wrong does not judge by it for a while.

**Rule 2.** Never are so many disbelieved that they cannot all be malevolent. Nobody is disbelieved
for divergences without whom those that answer are no quorum. And when attempts fail time and again
while the same servers are disbelieved, all that is not proven is forgotten: one of them may be
needed, because another one is silent. So may one that is ahead of the clock: then the clock is in
doubt, and does not judge for a while. Tests: tests/unit/query_update/test_shunned_in_need.py.

**Concurrency.** Conversations of one engine share it between their awaits; every method leaves it
consistent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import combinations

from bftfs import limits
from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.clock_skew import is_ahead, is_due
from bftfs.identifiers import NodeId

HEDGE_US = 20_000  # silence after which others are asked as well, at the earliest
PATIENCE_US = 200_000  # silence after which a node counts as silent, to begin with
_ADAPTED_MAX_US = 2_000_000  # what both grow to at most, where the network is slow
_LONGEST_US = 4_000_000  # what a round that took longer counts for
_USUAL_TIMES = 8  # the usual time, after which a silence means something
_LATE_US = 2_000  # after half of the others, at least, and only then is an answer late
_LATE_TIMES = 4  # the usual time after half of the others

SILENCE_US = 1_000_000  # how long a node is asked last, to begin with
SILENCE_MAX_US = 30_000_000
_RELAPSE = 4  # intervals within which a node that answers again must not fall silent again
_LATENESSES = 4  # more or less in a row, before a node is asked last for them

MEMORY_US = 300 * limits.SECOND_US  # without news, after which everybody is believed again
DIVERGENCES = 4  # in a row, before a server is disbelieved for them
_CONFORMITIES = 4  # agreements that make up for one divergence
_DIVERGENT = DIVERGENCES * _CONFORMITIES
_FAILURES_BORNE = 8  # in a row, before what is not proven is forgotten
_FAILURES_ALONE = 3  # …if those that are left are no quorum
_DOUBT_US = 2 * limits.SECOND_US  # of the own clock, where nobody has said that it is wrong


class Condition(Enum):
    """What is known of a node."""

    WELL = "well"
    SLOW = "slow"  # it was the last that rounds waited for, time and again
    SILENT = "silent"
    FULL = "full"  # it has no room to store anything
    DAMAGED = "damaged"  # it sent a fragment that is not what it was made to be
    CONTRARY = "contrary"  # it contradicts the others, and may be lying
    LYING = "lying"  # it said what no correct node says


class Pace:
    """How long one kind of request takes, and how long to wait for an answer.

    All waits count: a client that backs off for less than the others' rounds take collides with
    them again and again. (Waits of more than `_LONGEST_US` count as that long: they tell of
    an outage.)
    """

    def __init__(self, *, hedge_us: int, patience_us: int, judges_lateness: bool = True) -> None:
        """Without `judges_lateness`, no node is late: the replies of a round differ in size."""
        self.judges_lateness = judges_lateness
        self._hedge_us = hedge_us
        self._patience_us = patience_us
        self.mean_us = 0  # how long rounds take
        self.usual_us = 0  # how long half of the nodes that are asked take
        self.patience_us = patience_us  # a node that has been silent for so long counts as silent
        self.hedge_us = min(hedge_us, patience_us)  # after which other nodes are asked as well
        self.late_us = _LATE_US  # an answer is late so long after half of the nodes have answered

    def took(self, elapsed_us: int) -> None:
        """A round took this long."""
        if elapsed_us >= 0:
            self.mean_us += (min(elapsed_us, _LONGEST_US) - self.mean_us) >> 3
            adapted_us = min(_USUAL_TIMES * self.mean_us, _ADAPTED_MAX_US)
            patience_us = max(self._patience_us, adapted_us)
            if patience_us != self.patience_us:
                self.patience_us = patience_us
                self._adapt()

    def took_half(self, elapsed_us: int) -> None:
        """The first half of the nodes took this long."""
        if elapsed_us >= 0:
            self.usual_us += (elapsed_us - self.usual_us) >> 3
            self._adapt()

    def _adapt(self) -> None:
        usual_us = self.usual_us
        self.late_us = max(_LATE_US, _LATE_TIMES * usual_us)
        self.hedge_us = min(max(self._hedge_us, _USUAL_TIMES * usual_us), self.patience_us)


@dataclass(slots=True)
class _Record:
    """What is known of one node."""

    condition: Condition = Condition.WELL  # why it is asked last; disbelief is another matter
    retry_us: int = 0  # when it is to be probed
    interval_us: int = 0
    relapse_until_us: int = 0
    is_forgivable: bool = False  # whether its next answer puts it back in its place
    lateness: int = 0
    divergences: int = 0


class Peers:
    """The nodes, as one principal knows them."""

    def __init__(self, quorums: QuorumSystem, *, trusted: Nodes = NOBODY) -> None:
        """`trusted` are always believed: a node believes what it has itself accepted."""
        self.quorums = quorums
        self.metadata = Pace(hedge_us=HEDGE_US, patience_us=PATIENCE_US)
        self.reads = Pace(hedge_us=limits.READ_PATIENCE_US, patience_us=PATIENCE_US)
        self.writes = Pace(hedge_us=limits.READ_PATIENCE_US, patience_us=limits.WRITE_PATIENCE_US)
        self.pages = Pace(hedge_us=HEDGE_US, patience_us=PATIENCE_US, judges_lateness=False)
        self.faults = [0] * quorums.n  # replies that a correct node does not send, so far
        self.disbelieved = NOBODY
        self._trusted = trusted
        self._records = tuple(_Record() for _ in range(quorums.n))
        self._last = NOBODY  # those that are asked last
        self.mute = NOBODY  # of these, those that have not answered since they were waited for
        self._quarrels: set[tuple[NodeId, NodeId]] = set()  # accuser and accused
        self._convicted = NOBODY
        self._watched = NOBODY  # those with divergences
        self._forget_us = 0
        self._judges_from_us = 0  # when the clock is trusted again
        self.epoch = 0  # grows when other servers are believed, or the clock is trusted or not

    # --- what is asked of it --------------------------------------------------------------------

    def order(
        self, preference: tuple[NodeId, ...], now_us: int
    ) -> tuple[tuple[NodeId, ...], tuple[NodeId, ...]]:
        """The nodes in the order in which to ask them; and probes: nodes to ask besides.

        A probe is a node whose time has come to be tried again. Nobody waits for it.
        """
        if not (self._last or self.disbelieved):
            return preference, ()
        if self.disbelieved and is_due(self._forget_us, now_us, MEMORY_US):
            self.forget()
        probes = []
        for node in preference:
            if node in self._last:
                record = self._records[node]
                if is_due(record.retry_us, now_us, record.interval_us):
                    record.retry_us = now_us + record.interval_us
                    record.is_forgivable = True
                    probes.append(node)
        return tuple(sorted(preference, key=self._place)), tuple(probes)

    def _place(self, node: NodeId) -> int:
        """Where it comes in an order: those that are asked last, and have not answered, later."""
        later = 4 * (node in self.disbelieved) + 2 * (node in self._last)
        return later + (node in self._last and node in self.mute)

    def willing(self, node: NodeId) -> bool:
        """True if a prompt and useful answer may be expected from `node`."""
        return node not in self._last and node not in self.disbelieved

    def quorum_willing(self, *, without: Nodes = NOBODY) -> bool:
        """True if the willing ones are a quorum, also without these."""
        willing = self.quorums.everyone - self._last - self.disbelieved - without
        return self.quorums.is_quorum(willing)

    def condition(self, node: NodeId) -> Condition:
        """What is known of `node`, the worst first."""
        if node in self._convicted:
            return Condition.LYING
        if node in self.disbelieved:
            return Condition.CONTRARY
        return self._records[node].condition

    # --- what has happened: answers, or none ----------------------------------------------------

    def answered(self, node: NodeId) -> None:
        """`node` has answered."""
        if self._last.bits >> node & 1:
            self.mute = self.mute.minus(node)
            if self._records[node].is_forgivable:
                self._last = self._last.minus(node)
                self._records[node].condition = Condition.WELL

    def silent(self, node: NodeId, now_us: int) -> None:
        """`node` has not answered in the time that others take."""
        self.mute = self.mute.plus(node)
        self._ask_last(node, Condition.SILENT, now_us)

    def full(self, node: NodeId, now_us: int) -> None:
        """`node` has no room: its disk is full, and stays so for now."""
        self._ask_last(node, Condition.FULL, now_us)

    def damaged(self, node: NodeId, now_us: int) -> None:
        """`node` sent a fragment that is not what it was made to be: its disk may be damaged."""
        self.faults[node] += 1
        self._ask_last(node, Condition.DAMAGED, now_us, limits.AVOID_FAULTY_US)

    def late(self, node: NodeId, now_us: int) -> None:
        """`node` alone kept a round waiting."""
        record = self._records[node]
        record.lateness += _LATENESSES
        if record.lateness >= _LATENESSES * _LATENESSES:
            record.lateness -= _LATENESSES
            self._ask_last(node, Condition.SLOW, now_us)

    def timely(self, node: NodeId) -> None:
        """A round ended with the reply of `node`, which was not late."""
        record = self._records[node]
        if record.lateness:
            record.lateness -= 1

    def _ask_last(
        self, node: NodeId, condition: Condition, now_us: int, interval_us: int = 0
    ) -> None:
        record = self._records[node]
        known = node in self._last
        if known and not interval_us and not is_due(record.retry_us, now_us, record.interval_us):
            return
        relapsing_us = (1 + _RELAPSE) * record.interval_us
        relapsed = known or not is_due(record.relapse_until_us, now_us, relapsing_us)
        if not interval_us:
            interval_us = SILENCE_US
            if relapsed:
                interval_us = min(2 * record.interval_us, SILENCE_MAX_US)
        self._last = self._last.plus(node)
        record.condition = condition
        record.interval_us = interval_us
        record.retry_us = now_us + interval_us
        record.relapse_until_us = now_us + (1 + _RELAPSE) * interval_us
        record.is_forgivable = condition is not Condition.DAMAGED and not relapsed

    # --- what has happened: lies and contradictions ---------------------------------------------

    def convict(self, nodes: Nodes, now_us: int) -> None:
        """`nodes` said what no correct node says."""
        if not nodes:
            return
        for node in nodes:
            self.faults[node] += 1
        if nodes - self._convicted:
            self._forget_us = now_us + MEMORY_US
            self._convicted |= nodes
            self._conclude()

    def accuse(self, accuser: NodeId, forged: Nodes, now_us: int) -> None:
        """`accuser` says that it culled the histories of the servers `forged`."""
        self._forget_us = now_us + MEMORY_US
        self._quarrels |= {
            (accuser, accused) for accused in forged & self.quorums.everyone if accused != accuser
        }
        self._conclude()

    def diverged(self, nodes: Nodes, now_us: int) -> None:
        """Each of `nodes` reports something that hardly anybody else has.

        It does not count if a benign one is among them, or if they are needed for a quorum.
        """
        if not nodes or self.quorums.includes_benign(nodes):
            return
        if not self.quorum_willing(without=nodes):
            return
        self._watched |= nodes
        for node in nodes:
            record = self._records[node]
            before = record.divergences
            record.divergences = min(before + _CONFORMITIES, 2 * _DIVERGENT)
            if before < _DIVERGENT <= before + _CONFORMITIES:
                self._forget_us = now_us + MEMORY_US
                self._conclude()

    def conformed(self, nodes: Nodes) -> None:
        """`nodes` report what others report."""
        for node in nodes & self._watched:
            record = self._records[node]
            record.divergences -= 1
            if not record.divergences:
                self._watched = self._watched.minus(node)
            elif record.divergences == _DIVERGENT - 1:
                self._conclude()

    def failed(
        self, failures: int, *, disbelieved: Nodes, ahead_of_clock: Nodes, now_us: int
    ) -> None:
        """An operation's attempts have failed, `failures` in a row, the last without these servers.

        Rule 2: one of them may be needed, and then it is enough to count what it reports. But a
        suspicion that this attempt has raised is given a chance first: the others may only be slow.
        """
        borne = _FAILURES_BORNE if self.quorum_willing() else _FAILURES_ALONE
        if failures % borne == 0 and disbelieved and self.disbelieved == disbelieved:
            self.relent()
        needed = ahead_of_clock and not self.quorum_willing(without=ahead_of_clock)
        if needed and failures % _FAILURES_ALONE == 0:
            self.doubt_clock(now_us + _DOUBT_US)

    # --- the principal's own clock --------------------------------------------------------------

    def is_ahead(self, time_us: int, clock_us: int) -> bool:
        """True if `time_us` is so far ahead of the clock that correct nodes may refuse it."""
        # What is judged may have been heard a while before the clock was doubted.
        most_us = 2 * MEMORY_US
        return is_ahead(time_us, clock_us) and is_due(self._judges_from_us, clock_us, most_us)

    def doubt_clock(self, until_us: int) -> None:
        """The clock seems to be wrong: until then, nobody is ahead of it.

        A correct server that alone has what somebody has left there may be needed.
        """
        if is_due(self._judges_from_us, until_us, 2 * MEMORY_US):
            self._judges_from_us = until_us
        self.epoch += 1

    # --- conclusions ----------------------------------------------------------------------------

    def relent(self) -> None:
        """Forget what is not proven."""
        self._quarrels.clear()
        for record in self._records:
            record.divergences = 0
        self._watched = NOBODY
        self._conclude()

    def forget(self) -> None:
        """Believe everybody again."""
        self._convicted = NOBODY
        self.relent()

    def _conclude(self) -> None:
        """Find out whom to disbelieve."""
        includes_benign = self.quorums.includes_benign
        convicted = self._convicted
        for accused in range(self.quorums.n):
            accusers = Nodes.of(one for one, other in self._quarrels if other == accused)
            if includes_benign(accusers):
                convicted = convicted.plus(accused)
        convicted -= self._trusted
        cover = _least_cover(
            {
                (one, other)
                for one, other in self._quarrels
                if one not in convicted and other not in convicted
            }
        )
        # What is proven stands, whatever accusations there are besides: a correct server whose
        # clock is slow accuses all that are ahead of it.
        suspected = (convicted | cover) - self._trusted
        disbelieved = convicted if includes_benign(suspected) else suspected
        for node, record in enumerate(self._records):
            more = disbelieved.plus(node) - self._trusted
            if record.divergences >= _DIVERGENT and not includes_benign(more):
                disbelieved = more
        if includes_benign(disbelieved):
            disbelieved = NOBODY
        if disbelieved != self.disbelieved:
            self.disbelieved = disbelieved
            self.epoch += 1


def _least_cover(quarrels: set[tuple[NodeId, NodeId]]) -> Nodes:
    """The fewest servers of which each of `quarrels` has one; the accused rather."""
    accused = sorted({other for _, other in quarrels})
    accusers = sorted({one for one, _ in quarrels}.difference(accused))
    involved = accused + accusers
    for size in range(len(involved) + 1):
        for chosen in combinations(involved, size):
            if all(one in chosen or other in chosen for one, other in quarrels):
                return Nodes.of(chosen)
    raise AssertionError("all the involved are a cover")
