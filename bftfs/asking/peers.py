"""One principal's record of each node: how the node behaves, and how early to ask it.

Rule 1: nothing here affects safety. The nodes may be asked in any order, at any time, or never; the
protocols decide what counts as evidence.
Rule 2: whichever nodes are left out, a quorum remains. This rule is enforced here, and nowhere
else.

A principal (a mount, a node, a command) has one `Peers`, which both protocols use: a node that lies
to one is known to the other, and a node that is down is found out once. (Only `bftfs inspect` uses
a new one, because it is to show which nodes answer now.) As in etcd/raft, where a leader keeps a
`tracker.Progress` for each follower, there is one record for each node.

**Asked last.** A node that is slow, silent or full, or whose disk is damaged, is asked after the
others, and not waited for as long as the others are a quorum. The others keep their order, which is
a function of the object: so an object's versions stay on the same servers, and the load of a
crashed server is spread over all others. [Q/U §4.3.5] After an interval the node is asked again,
in addition to the others (a probe), and returns to its place when it answers. After its first
silence, its next answer is enough. A node that falls silent again soon after must wait for its next
probe, and the interval doubles each time: so a node that answers only now and then costs as little
as one that never answers.

**Disbelieved.** A client leaves what some servers report out of its history sets. [Q/U §4.3.5,
Malevolent] Four rules tell which:

- A server that said what no correct server says is convicted.
- A server quarrels with another one if it reports that one's authenticator as invalid, or as
  outlived while the other denies it. One of the two is malevolent: correct servers never quarrel.
  If servers that cannot all be lying accuse the same one, it is convicted: no correct server's
  authenticators are invalid at so many others. Of the servers in other quarrels, the smallest set
  that explains all quarrels is disbelieved. That another one's vouchers are invalid counts only
  where b + 1 have refused an update for such.
- A server disputes another one's time if it reports it as insane. Correct servers may do this while
  the time lies between their clocks, however many do. So a dispute proves nothing: it counts like
  a quarrel as long as quarrels and disputes together can be explained by liars alone, and not at
  all otherwise.
- A server is contrary if its histories show, time and again, a candidate that hardly any other
  server has and that only a repair gets rid of. Under contention correct servers do this
  occasionally: divergences are counted, and each agreement takes something off the count.

**Ahead of the clock.** Histories whose times are far ahead of the principal's clock do not count
either, unless servers that cannot all be lying report such times (`query_update.observation`). A
principal that has been told that its own clock is wrong ignores this rule for a while.

**Rule 2** in detail. The set of disbelieved servers is always one that may be all malevolent. A
server that is needed for a quorum of those that answer is not disbelieved for divergences. When
attempts keep failing while the same servers are disbelieved, all suspicions that are not proven are
dropped, because one of these servers may be needed in place of a silent one. When they keep failing
without the servers that are ahead of the clock, the clock is doubted for a while, for the same
reason. Tests: tests/unit/query_update/test_disbelieved_in_need.py.

**Concurrency.** Conversations of one engine share it between their awaits; every method leaves it
consistent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from bftfs import limits
from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.clock_skew import is_ahead, is_due
from bftfs.identifiers import NodeId

HEDGE_US = 20_000  # the shortest silence after which other nodes are asked as well
PATIENCE_US = 200_000  # the shortest silence after which a node counts as silent
_ADAPTED_MAX_US = 2_000_000  # the longest, where the network is slow
_LONGEST_US = 4_000_000  # a longer round counts as this long
_USUAL_TIMES = 8  # times the usual time: a longer silence is unusual
_LATE_US = 2_000  # an answer is late at least this long after half of the nodes answered…
_LATE_TIMES = 4  # …and at least this many times the usual time after

SILENCE_US = 1_000_000  # how long a node is asked last, to begin with
SILENCE_MAX_US = 30_000_000
_RELAPSE = 4  # intervals: a silence within them is a relapse
_LATENESSES = 4  # more or less in a row, until a node counts as slow

MEMORY_US = 300 * limits.SECOND_US  # after this time without news, all are believed again
DIVERGENCES = 4  # in a row, until a server is contrary
_CONFORMITIES = 4  # this many agreements take one divergence off the count
_DIVERGENT = DIVERGENCES * _CONFORMITIES
_FAILURES_BORNE = 8  # failed attempts in a row, until unproven suspicions are dropped
_FAILURES_ALONE = 3  # …if the willing nodes are no quorum
# How long the clock is doubted, if nobody said it is wrong: until after the next pause for clocks.
_DOUBT_US = 2 * limits.CLOCKS_PATIENCE_MOST_US


class Condition(Enum):
    """What is known of a node."""

    WELL = "well"
    SLOW = "slow"  # it was the last that rounds waited for, time and again
    SILENT = "silent"
    FULL = "full"  # it has no room to store anything
    DAMAGED = "damaged"  # it sent a damaged fragment
    CONTRARY = "contrary"  # it contradicts the others, and may be lying
    LYING = "lying"  # it said what no correct node says


class Pace:
    """How long one kind of request takes, and how long to wait for an answer.

    Rounds with silences count as well: a client that backs off for less time than the rounds of
    others take collides with them again and again. (A round of more than `_LONGEST_US` counts as
    that long, because it shows an outage or a clock that was set, and not a pace.)
    """

    def __init__(self, *, hedge_us: int, patience_us: int, judges_lateness: bool = True) -> None:
        """Without `judges_lateness`, no node is late: the replies of a round differ in size."""
        self.judges_lateness = judges_lateness
        self._hedge_us = hedge_us
        self._patience_us = patience_us
        self.mean_us = 0  # average time of a round
        self.usual_us = 0  # average time until half of the nodes have answered
        self.patience_us = patience_us  # a node that has been silent for so long counts as silent
        self.hedge_us = min(hedge_us, patience_us)  # a silence after which others are asked as well
        self.late_us = _LATE_US  # an answer this long after half of the nodes answered is late

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
            self.usual_us += (min(elapsed_us, _LONGEST_US) - self.usual_us) >> 3
            self._adapt()

    def _adapt(self) -> None:
        usual_us = self.usual_us
        self.late_us = max(_LATE_US, _LATE_TIMES * usual_us)
        self.hedge_us = min(max(self._hedge_us, _USUAL_TIMES * usual_us), self.patience_us)


@dataclass(slots=True)
class _NodeRecord:
    """What is known of one node."""

    condition: Condition = Condition.WELL  # why it is asked last (not if it is disbelieved)
    retry_us: int = 0  # when it is probed
    interval_us: int = 0
    relapse_until_us: int = 0
    is_forgivable: bool = False  # True: its next answer puts it back in its place
    lateness: int = 0
    divergences: int = 0


class Peers:
    """The nodes, as one principal knows them."""

    def __init__(self, quorums: QuorumSystem, *, trusted: Nodes = NOBODY) -> None:
        """`trusted` are always believed: a node believes what it has itself accepted."""
        self.quorums = quorums
        self.metadata = Pace(hedge_us=HEDGE_US, patience_us=PATIENCE_US)
        self.bundles = Pace(hedge_us=HEDGE_US, patience_us=PATIENCE_US)
        self.reads = Pace(hedge_us=limits.READ_PATIENCE_US, patience_us=PATIENCE_US)
        self.writes = Pace(hedge_us=limits.READ_PATIENCE_US, patience_us=limits.WRITE_PATIENCE_US)
        self.pages = Pace(hedge_us=HEDGE_US, patience_us=PATIENCE_US, judges_lateness=False)
        self.faults = [0] * quorums.n  # replies that a correct node does not send, so far
        self.disbelieved = NOBODY
        self.convicted = NOBODY  # of these, those that are known to lie
        self._trusted = trusted
        self._records = tuple(_NodeRecord() for _ in range(quorums.n))
        self._last = NOBODY  # nodes that are asked last
        self.mute = NOBODY  # of these, nodes that have not answered since they fell silent
        self._quarrels: set[tuple[NodeId, NodeId]] = set()  # accuser and accused…
        self._disputes: set[tuple[NodeId, NodeId]] = set()  # …of a time only
        self._convicted = NOBODY
        self._watched = NOBODY  # nodes with divergences
        self._forget_us = 0
        self._judges_from_us = 0  # until then the clock is doubted
        self.epoch = 0  # grows when the set of believed servers changes, or trust in the clock

    # --- questions ------------------------------------------------------------------------------

    def others(self, node: NodeId) -> tuple[NodeId, ...]:
        """All nodes but `node`."""
        return tuple(other for other in self.quorums.everyone if other != node)

    def order(
        self, preference: tuple[NodeId, ...], now_us: int
    ) -> tuple[tuple[NodeId, ...], tuple[NodeId, ...]]:
        """The nodes in the order in which to ask them; and probes: nodes to ask in addition.

        A probe is a node that is due to be tried again. The round does not wait for it.
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
        """Sort key of a node: 0 for most, greater for those that are better asked later."""
        later = 4 * (node in self.disbelieved) + 2 * (node in self._last)
        return later + (node in self._last and node in self.mute)

    def willing(self, node: NodeId) -> bool:
        """True if a prompt and useful answer may be expected from `node`."""
        return node not in self._last and node not in self.disbelieved

    def quorum_willing(self, *, without: Nodes = NOBODY) -> bool:
        """True if the willing nodes, without these, are a quorum."""
        willing = self.quorums.everyone - self._last - self.disbelieved - without
        return self.quorums.is_quorum(willing)

    def condition(self, node: NodeId) -> Condition:
        """The worst that is known of `node`."""
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
        """`node` has not answered for longer than others take."""
        self.mute = self.mute.plus(node)
        self._ask_last(node, Condition.SILENT, now_us)

    def full(self, node: NodeId, now_us: int) -> None:
        """`node` has no room: its disk is full."""
        self._ask_last(node, Condition.FULL, now_us)

    def damaged(self, node: NodeId, now_us: int) -> None:
        """`node` sent a damaged fragment: its disk may be damaged."""
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

    def accuse(
        self, accuser: NodeId, forged: Nodes, now_us: int, *, insane: Nodes = NOBODY
    ) -> None:
        """`accuser` says that it culled what the servers `forged` have signed, as not theirs.

        And what the servers `insane` report, for its time.
        """
        self._forget_us = now_us + MEMORY_US
        others = self.quorums.everyone.minus(accuser) - self._trusted
        self._quarrels |= {(accuser, accused) for accused in forged & others}
        self._disputes |= {(accuser, accused) for accused in insane & others}
        self._conclude()

    def diverged(self, nodes: Nodes, now_us: int) -> None:
        """Each of `nodes` reports a candidate that hardly any other has.

        It does not count if they cannot all be lying, or if they are needed for a quorum.
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
        """`nodes` report the same as others."""
        if self._watched is NOBODY:
            return
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
        """An operation's attempts have failed `failures` times in a row.

        The last one left out what the servers `disbelieved` and `ahead_of_clock` report. One of
        these may be needed (Rule 2), so after some failures they count again. If this attempt has
        changed which are disbelieved, the next one may succeed, and they stay left out for now.
        """
        borne = _FAILURES_BORNE if self.quorum_willing() else _FAILURES_ALONE
        # More accusations than liars can explain change nothing, and may hide what would.
        suspects = bool(disbelieved or self._quarrels or self._disputes)
        if failures % borne == 0 and suspects and self.disbelieved == disbelieved:
            self.relent()
        needed = ahead_of_clock and not self.quorum_willing(without=ahead_of_clock)
        if needed and failures % _FAILURES_ALONE == 0:
            self.doubt_clock(now_us + _DOUBT_US)

    # --- the principal's own clock --------------------------------------------------------------

    def is_ahead(self, time_us: int, clock_us: int) -> bool:
        """True if `time_us` is so far ahead of the clock that correct nodes may refuse it."""
        # The client may have heard this time before it began to doubt its clock.
        most_us = 2 * MEMORY_US
        return is_ahead(time_us, clock_us) and is_due(self._judges_from_us, clock_us, most_us)

    def doubt_clock(self, until_us: int) -> None:
        """The principal's clock may be wrong: until `until_us`, nobody counts as ahead of it.

        A server that is ahead may be correct, and needed, because it alone has a certain candidate.
        """
        if is_due(self._judges_from_us, until_us, 2 * MEMORY_US):
            self._judges_from_us = until_us
        self.epoch += 1

    # --- conclusions ----------------------------------------------------------------------------

    def relent(self) -> None:
        """Drop all suspicions that are not proven."""
        self._quarrels.clear()
        self._disputes.clear()
        for record in self._records:
            record.divergences = 0
        self._watched = NOBODY
        self._conclude()

    def forget(self) -> None:
        """Believe everybody again."""
        self._convicted = NOBODY
        self.relent()

    def _conclude(self) -> None:
        """Determine which nodes to disbelieve."""
        includes_benign = self.quorums.includes_benign
        convicted = self._convicted
        for accused in range(self.quorums.n):
            accusers = Nodes.of(one for one, other in self._quarrels if other == accused)
            if includes_benign(accusers):
                convicted = convicted.plus(accused)
        convicted -= self._trusted
        disbelieved = convicted
        # What is known of liars stands even if there are too many disputes: a correct server whose
        # clock is slow disputes the times of all that are ahead of it.
        for quarrels in (self._quarrels, self._quarrels | self._disputes):
            suspected = self._explained(sorted(quarrels), convicted)
            if suspected is not None:
                disbelieved = suspected
        for node, record in enumerate(self._records):
            more = disbelieved.plus(node) - self._trusted
            if record.divergences >= _DIVERGENT and not includes_benign(more):
                disbelieved = more
        if includes_benign(disbelieved):
            disbelieved = NOBODY
        self.convicted = convicted & disbelieved
        if disbelieved != self.disbelieved:
            self.disbelieved = disbelieved
            self.epoch += 1

    def _explained(
        self, quarrels: Sequence[tuple[NodeId, NodeId]], suspected: Nodes
    ) -> Nodes | None:
        """`suspected`, and as few others as have a part in all other quarrels; best the accused.

        None if these cannot all be malevolent. So the search is no deeper than there may be liars.
        """
        if self.quorums.includes_benign(suspected):
            return None
        left = [each for each in quarrels if not suspected & Nodes.of(each)]
        if not left:
            return suspected
        accuser, accused = left[0]
        found = [self._explained(left, suspected.plus(accused))]
        if accuser not in self._trusted:
            found.append(self._explained(left, suspected.plus(accuser)))
        return min((each for each in found if each is not None), key=len, default=None)
