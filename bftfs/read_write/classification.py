"""Is a candidate a complete write, one that may be complete, or one that cannot be? [PASIS §3.4.4]

**Rule 1.** With C the nodes whose valid responses host the candidate, and H all nodes whose valid
responses say whether they host it (C ⊆ H):

    |C| >= QC + b  and  |H| >= N - QC + 1      complete                                  (3.2)
    |H| >= N - t   and  |C| <  QC - t          incomplete                                (3.3)
    |H| >= N - t   otherwise                   repairable
    otherwise                                  undecided: hear more nodes

Complete: QC benign nodes host it, whichever b nodes lie. Incomplete: the t nodes not heard may host
it too, and still fewer than QC do. Since b < QC - t (3.4), b liars fabricate nothing that is
repairable, and since m <= QC - t (3.5) whatever is repairable can be decoded. The second half of
the first line is `ReadWriteThresholds.first_asked`: no newer complete write can have been
overlooked.

**Rule 2, damaged nodes.** A response with a false fragment is discarded, and one more is awaited
[PASIS §3.4.3.3]. But if more than b nodes send false fragments, or the others stay silent, disks
are damaged beyond the fault model. If what these nodes list were discarded, good fragments would be
wasted because there are fewer than N - t valid responses. Counting it is safe: among any N - t
responses, b may come from liars anyway. As soon as N - t valid responses decide, they alone count.

**Rule 3, forgetful nodes.** A node that has collected the versions that a read of the past asks
for has not said whether it hosted them. If silent nodes stay silent, up to b forgetful nodes may
stand in for the missing of N - t responses: by (3.4) the other N - t - b share a node with every QC
nodes, so no newer complete version is overlooked. It is unknown whether the forgetful nodes hosted
the candidate: so it counts only if it would be used in the same way in both cases.

**Rule 4, patience.** N - t responses decide. But while the nodes not heard could make an incomplete
candidate repairable, or a repairable one complete, one more round trip to them is cheaper than a
repair, and finds what is left of a version when more was lost than the fault model allows.

Rules 1 to 3 are shown for all small systems in `tests/properties/test_read_write_classification.py`
and `test_read_write_loss.py`.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from bftfs.thresholds import ReadWriteThresholds


class CandidateClass(Enum):
    """What a reader may conclude about a candidate."""

    COMPLETE = "complete"
    REPAIRABLE = "repairable"
    INCOMPLETE = "incomplete"
    UNDECIDED = "undecided"


class Testimony(NamedTuple):
    """What the replies to one read show of one candidate, in numbers of nodes."""

    hosting: int  # valid responses list it
    heard: int  # valid responses say whether the node hosts it
    damaged_hosting: int = 0  # the same two, of nodes that sent a false fragment
    damaged_heard: int = 0
    forgetful: int = 0  # has collected what it may have hosted at or below the candidate
    pending: int = 0  # may still say whether it hosts the candidate


class Judgement(NamedTuple):
    """The class of a candidate, and whether it may still change."""

    classification: CandidateClass
    is_final: bool  # False: more replies decide, or could change it for the better


def classify(thresholds: ReadWriteThresholds, *, hosting: int, heard: int) -> CandidateClass:
    """Rule 1: the class of a candidate that `hosting` of the `heard` nodes host."""
    if hosting >= thresholds.complete and heard >= thresholds.first_asked:
        return CandidateClass.COMPLETE
    if heard < thresholds.responses:
        return CandidateClass.UNDECIDED
    if hosting < thresholds.repairable:
        return CandidateClass.INCOMPLETE
    return CandidateClass.REPAIRABLE


def judge(
    thresholds: ReadWriteThresholds,
    testimony: Testimony,
    *,
    counts_damaged: bool,
    counts_forgetful: bool,
) -> Judgement:
    """Rules 1 to 4; `counts_damaged` and `counts_forgetful` tell whether rules 2 and 3 apply."""
    hosting, heard = testimony.hosting, testimony.heard
    found = classify(thresholds, hosting=hosting, heard=heard)
    if found is CandidateClass.UNDECIDED and counts_damaged:
        hosting += testimony.damaged_hosting
        heard += testimony.damaged_heard
        found = classify(thresholds, hosting=hosting, heard=heard)
    if (
        found is CandidateClass.UNDECIDED
        and counts_forgetful
        and 0 < testimony.forgetful <= thresholds.b
        and heard + testimony.forgetful >= thresholds.responses
    ):
        without, with_them = (
            classify(thresholds, hosting=each, heard=heard + testimony.forgetful)
            for each in (hosting, hosting + testimony.forgetful)
        )
        incomplete = CandidateClass.INCOMPLETE
        if (without is incomplete) is (with_them is incomplete):
            found = without
    if found is CandidateClass.UNDECIDED or found is CandidateClass.COMPLETE:
        return Judgement(found, found is CandidateClass.COMPLETE)
    better = thresholds.complete
    if found is CandidateClass.INCOMPLETE:
        better = thresholds.repairable
    return Judgement(found, not hosting or hosting + testimony.pending < better)
