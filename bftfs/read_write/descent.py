"""One descent of a read: which candidate is next, and which node is asked for what.

Decisions only: nothing here sends, waits or reads a clock. `reading.py` sends the questions, hands
in the replies and reports each silence; after either it asks `decide` what follows.

**Theory of operation.** [PASIS §3.4.3.3, §3.5.1.2] The first questions go to as many nodes as can
prove a candidate complete. m of them are asked for data, those with the stripes if possible; the
others are witnesses, which only list their versions. The candidate is the greatest version listed
below the cursor. `classification.judge` says what it is:

- complete or repairable: if m fragments are in hand it is usable; else nodes that list it are
  asked for theirs, by its timestamp;
- incomplete, or found to be poisonous when it was used: it is passed over, and the cursor goes
  down to it;
- not decided, or it might still get better: further nodes are asked, and those whose listing ended
  above the candidate are asked for more of it.

A node that lists a version and does not send its fragment while patience runs out withholds it: it
counts as silent about that version. On the second silence the silent nodes are asked again.

**Lives.** A node may have lost what it has listed. If a candidate is complete only with hosts of
which other hosts know that they have begun a new life since, these are asked again.

**Garbage collection.** A node that has collected versions says so. Where nobody else can be asked,
a read of the latest version has been overtaken by a newer complete one, and starts anew
[LazyVer §3.8.3]; a read of the past fails if more than b nodes, hence a correct one, say so.

A descent ends: every question moves a cursor or a depth down, and a liar that goes on listing for
ever is asked `LISTINGS_AT_ONCE` times before others are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from bftfs import limits
from bftfs.asking.lives import Heard, Lives
from bftfs.asking.refusal import Refused
from bftfs.crypto.digest import Body
from bftfs.errors import NoLongerKept, VersionUnrecoverable
from bftfs.identifiers import BlockId, NodeId
from bftfs.read_write.classification import CandidateClass, Judgement, Testimony, judge
from bftfs.read_write.messages import Below, ReadReply
from bftfs.read_write.placement import rotation_of
from bftfs.read_write.responses import ReplyVerdict, Responses
from bftfs.read_write.timestamp import ZERO, BlockTimestamp, successor_of
from bftfs.thresholds import ReadWriteThresholds


class Question(msgspec.Struct, frozen=True, gc=False):
    """A request for a node's versions strictly below `before`."""

    node: NodeId
    before: BlockTimestamp | None
    want_data: bool
    history: int  # how many further versions the reply may list
    fetches: BlockTimestamp | None = None  # the version whose fragment is wanted; None: a listing
    asked: int = 0  # when, by `Lives`, for a listing


class Usable(NamedTuple):
    """A candidate that is complete or repairable, with m fragments in hand (or it is ZERO)."""

    timestamp: BlockTimestamp
    classification: CandidateClass


_VALID = ReplyVerdict.VALID  # faster than to look it up in the enum

# No questions: wait for replies. None: garbage collection has overtaken the descent, and the read
# starts anew.
Decision = list[Question] | Usable | None


class Descent:
    """The state of one descent below `before`."""

    def __init__(
        self,
        thresholds: ReadWriteThresholds,
        block: BlockId,
        before: BlockTimestamp | None,
        nodes: tuple[NodeId, ...],
        lives: Lives,
        *,
        silent: frozenset[NodeId] = frozenset(),
        probes: tuple[NodeId, ...] = (),
    ) -> None:
        """`nodes` in the order in which to ask them; `silent` ones are not waited for.

        `probes` are asked besides the first ones.
        """
        self._thresholds = thresholds
        self._first_asked = thresholds.first_asked
        self._block = block
        self._before = before
        self._nodes = nodes
        self.responses = Responses(thresholds, rotation_of(block, thresholds.N))
        self._cursor = before  # candidates at or above it were passed over
        self._candidate: BlockTimestamp | None = None
        self._listed: dict[NodeId, int] = {}  # how many listings a node has been asked for
        self._listing: dict[NodeId, bool] = {}  # listings on their way; True: with data
        self._fetching: set[NodeId] = set()  # nodes whose fragment of the candidate is on its way
        self._withheld: set[NodeId] = set()  # nodes that list the candidate and do not send it
        self._silent = set(silent)
        self._lives = lives
        self._asked: dict[NodeId, int] = {}  # when a node was asked for its list
        self._anew: dict[NodeId, int] = {}  # how often a node was asked anew for its list
        self._since: dict[NodeId, int] = {}  # when that was last, by `Lives`
        self._probes = probes
        self._lapses = 0

    # --- what happens ------------------------------------------------------------------------

    def begin(self) -> list[Question]:
        """The first questions. [PASIS §3.5.1.2]"""
        first = self._nodes[: self._first_asked]
        nodes = (*first, *(node for node in self._probes if node not in first))
        return [
            self._list(
                node,
                self._before,
                want_data=position < self._thresholds.m,
                history=limits.HISTORY_AT_FIRST,
            )
            for position, node in enumerate(nodes)
        ]

    def take(self, question: Question, message: Any, body: Body) -> ReplyVerdict:
        """Take the reply to a question."""
        node, wanted, responses = question.node, question.fetches, self.responses
        if wanted is None:
            if question.asked < self._since.get(node, 0):
                return _VALID  # it was asked anew since
            self._listing.pop(node, None)
        elif wanted == self._candidate:
            self._fetching.discard(node)
            self._withheld.discard(node)
        self._silent.discard(node)
        if isinstance(message, ReadReply):
            verdict = responses.add(
                node,
                message,
                body,
                before=question.before,
                want_data=question.want_data,
                lists=wanted is None,
            )
            if wanted is None and self._asked.get(node, question.asked) >= question.asked:
                self._asked[node] = question.asked
            if verdict is _VALID:
                if wanted is None:
                    if node not in responses.lives:
                        self._ask_anew(node)
                elif not responses.has_fragment_of(node, wanted):
                    collected = message.below is Below.COLLECTED
                    responses.withdraw(node, wanted, collected=collected)
                return verdict
        elif isinstance(message, Refused):
            self._silent.add(node)
            return _VALID
        else:
            verdict = ReplyVerdict.IMPOSSIBLE
            responses.discard(node)
        self._withheld.discard(node)
        return verdict

    def _ask_anew(self, node: NodeId) -> None:
        """Drop what `node` has said: it has lost its store since, or another node claims so.

        A claim that it denies holds nobody up again, and each of b liars can make one before and
        one after the node has really begun a life. A node that needs more is in league with them,
        and the read leaves it out.
        """
        self.responses.damaged.pop(node, None)
        self._since[node] = self._lives.begin()
        times = self._anew[node] = self._anew.get(node, 0) + 1
        if times > 2 * self._thresholds.b + 1:
            self.responses.discard(node)
            return
        self._asked.pop(node, None)
        self.responses.drop(node)
        self._listed.pop(node, None)

    def lapse(self) -> list[Question]:
        """A silence: questions to further nodes; from the second one on, the silent nodes again."""
        responses, candidate = self.responses, self._candidate
        self._lapses += 1
        self._silent.update(node for node in self._nodes if node not in responses.depth)
        self._silent.update(self._listing)
        mute, self._withheld = self._withheld, self._withheld | self._fetching
        self._listing.clear()
        self._fetching.clear()
        again = self._lapses > 1
        if again and self._before is not None:
            # Peers may meanwhile have brought a node the versions that it lacked.
            responses.hear_anew(candidate)
        questions = self._hear_more(again=again)
        if again and candidate is not None:
            questions += [self._fetch_from(node, candidate) for node in sorted(mute)]
        return questions

    @property
    def is_overtaken(self) -> bool:
        """True if a silence means that the read of the latest version has to start anew."""
        return self._before is None and bool(self.responses.forgetful(self._candidate))

    def pass_over(self, candidate: BlockTimestamp) -> None:
        """The candidate is incomplete or poisonous: go on below it. [PASIS Figure 3.2 line 18]"""
        self._cursor = candidate

    # --- what follows ------------------------------------------------------------------------

    def decide(self) -> Decision:
        """What to do next.

        Raises NoLongerKept, or VersionUnrecoverable if too few fragments of a version are left.
        """
        responses, thresholds = self.responses, self._thresholds
        if self._listing and len(responses.depth) < self._first_asked:
            return []
        while (candidate := self._next_candidate()) is not None:
            classification, is_final = self._judge(candidate)
            if not is_final:
                break
            if classification is not CandidateClass.INCOMPLETE:
                if classification is CandidateClass.COMPLETE and self._has_outlived(candidate):
                    continue
                if candidate == ZERO or len(responses.fragments(candidate)) >= thresholds.m:
                    return Usable(candidate, classification)
                return self._fetch(candidate)
            self.pass_over(candidate)
        if self._listing.keys() - self._silent:
            return []  # no read waits for a silent node, even if it was asked again
        questions = self._hear_more(again=False)
        if questions or len(responses.forgetful(candidate)) <= thresholds.b:
            return questions
        if self._before is None:
            return None
        raise NoLongerKept(subject=f"block {self._block.hex()}", at_us=self._before.time)

    def _next_candidate(self) -> BlockTimestamp | None:
        candidate = self.responses.candidate(self._cursor)
        if candidate != self._candidate:
            self._candidate = candidate
            self._fetching.clear()
            self._withheld.clear()
        return candidate

    def _judge(self, candidate: BlockTimestamp) -> Judgement:
        responses, withheld = self.responses, len(self._withheld)
        heard = responses.heard(candidate)
        # A node that lists a version and does not send its fragment counts as silent.
        testimony = Testimony(len(responses.hosts(candidate)) - withheld, len(heard) - withheld)
        if testimony.hosting < self._first_asked:  # otherwise it is complete
            testimony = testimony._replace(
                damaged_hosting=len(responses.damaged_hosts(candidate)),
                damaged_heard=len(responses.damaged_heard(candidate)),
                forgetful=len(responses.forgetful(candidate)),
                pending=sum(
                    1
                    for node in self._nodes
                    if node not in heard
                    and self._listed.get(node, 0) <= 1  # a liar's history can be very long
                    and node not in self._silent
                    and node not in responses.discarded
                    and node not in responses.collected
                ),
            )
        return judge(
            self._thresholds,
            testimony,
            counts_damaged=(len(responses.damaged) > self._thresholds.b or self._lapses > 0),
            counts_forgetful=self._before is not None and self._lapses > 1,
        )

    def _has_outlived(self, candidate: BlockTimestamp) -> bool:
        """True if a host has begun a new life since it listed `candidate`, as other hosts know.

        Such hosts are to be asked anew.
        """
        if candidate == ZERO:
            return False
        told = self.responses.told(candidate)
        if len(set(told.values())) == 1:
            return False
        asked = self._asked
        outlived = self._lives.outlived(
            {node: Heard(lives, asked[node]) for node, lives in told.items() if node in asked}
        )
        for node in outlived:
            self._ask_anew(node)
        return bool(outlived)

    # --- questions ---------------------------------------------------------------------------

    def _list(
        self, node: NodeId, before: BlockTimestamp | None, *, want_data: bool, history: int
    ) -> Question:
        self._listing[node] = want_data
        self._listed[node] = self._listed.get(node, 0) + 1
        return Question(node, before, want_data, history, asked=self._lives.begin())

    def _hear_more(self, *, again: bool) -> list[Question]:
        """Questions to all nodes that have not said whether they host the candidate.

        Nodes that were asked and are silent are asked once more only if `again`.
        """
        responses = self.responses
        candidate = responses.candidate(self._cursor)
        wanted = self._thresholds.m - sum(self._listing.values())
        if candidate is not None:
            wanted -= len(responses.fragments(candidate)) + len(self._fetching)
        most = limits.LISTINGS_AT_ONCE * (1 + self._lapses)
        history = limits.HISTORY_IN_REPLY
        questions: list[Question] = []
        for node in self._nodes:
            if node in responses.discarded or node in self._listing:
                continue
            depth = responses.depth.get(node)
            if depth is None:
                if node not in self._listed or again:
                    data = wanted > 0
                    wanted -= data
                    questions.append(
                        self._list(node, self._cursor, want_data=data, history=history)
                    )
            elif (
                (candidate is None or depth > candidate)
                and node not in responses.collected
                and self._listed[node] < most
            ):
                # [PASIS §3.5.1.2] Further rounds fetch only version histories.
                questions.append(self._list(node, depth, want_data=False, history=history))
        return questions

    def _fetch(self, candidate: BlockTimestamp) -> list[Question]:
        """Questions for fragments of `candidate` that are not in hand. [PASIS §3.5.1.2]"""
        responses = self.responses
        in_hand = len(responses.fragments(candidate))
        coming = sum(data for node, data in self._listing.items() if node not in self._silent)
        wanted = self._thresholds.m - in_hand - coming - len(self._fetching - self._withheld)
        if wanted <= 0:
            return []
        unavailable = self._fetching | self._withheld
        hosts = [
            node
            for node in responses.hosts(candidate)
            if node not in unavailable and not responses.has_fragment_of(node, candidate)
        ]
        if hosts:
            hosts.sort(key=self._nodes.index)
            return [self._fetch_from(node, candidate) for node in hosts[:wanted]]
        if self._fetching or self._listing:
            return []
        questions = self._hear_more(again=False)
        known = {*responses.heard(candidate), *responses.discarded} - self._withheld
        if not questions and known.issuperset(self._nodes):
            raise VersionUnrecoverable(
                f"block {self._block.hex()}: only {in_hand} of the {self._thresholds.m} fragments "
                f"needed are left of its version of time {candidate.time}"
            )
        return questions

    def _fetch_from(self, node: NodeId, candidate: BlockTimestamp) -> Question:
        self._fetching.add(node)
        return Question(node, successor_of(candidate), True, 0, fetches=candidate)
