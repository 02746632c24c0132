"""Is a candidate a complete write, one that may be complete, or one that cannot be? [PASIS §3.4.4]

**Rule.** With C the nodes whose valid responses host the candidate, and H all nodes whose valid
responses say whether they host it (C ⊆ H):

    |C| >= QC + b  and  |H| >= N - QC + 1      complete                                  (3.2)
    |H| >= N - t   and  |C| <  QC - t          incomplete                                (3.3)
    |H| >= N - t   otherwise                   repairable
    otherwise                                  undecided: hear more nodes

Complete: QC benign nodes host it, whoever lies. Incomplete: the t nodes not heard may host it
too, and still fewer than QC do. Since b < QC - t (3.4), b liars fabricate nothing that is
repairable, and since m <= QC - t (3.5) whatever is repairable can be decoded. The second half of
the first line is `ReadWriteThresholds.first_asked`: no newer complete write can have been
overlooked.
"""

from __future__ import annotations

from enum import Enum

from bftfs.thresholds import ReadWriteThresholds


class Classification(Enum):
    """What a reader may conclude about a candidate."""

    COMPLETE = "complete"
    REPAIRABLE = "repairable"
    INCOMPLETE = "incomplete"
    UNDECIDED = "undecided"


def classify(thresholds: ReadWriteThresholds, *, hosting: int, heard: int) -> Classification:
    """The class of a candidate that `hosting` of the `heard` nodes host."""
    if hosting >= thresholds.complete and heard >= thresholds.first_asked:
        return Classification.COMPLETE
    if heard < thresholds.responses:
        return Classification.UNDECIDED
    if hosting < thresholds.repairable:
        return Classification.INCOMPLETE
    return Classification.REPAIRABLE
