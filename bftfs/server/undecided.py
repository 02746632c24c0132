"""What a server must not decide while it rebuilds its store: copies that others have begun.

**Situation.** A copy rests on a barrier, which kept a quorum from accepting what the copy leaves
behind. A server S of that quorum that lost its store has forgotten the barrier, and accepts what
the others refuse: it takes it over from a repairable set, or gets it from its author, or as a
repair. Then both are possible: that what was left behind is complete, S counted; and that the copy
is finished, on the evidence of the old barrier, since servers that have it vouch for it.

**Rule.** S waits at an object as long as a copy later than all that it can take over is at so many
of those that it has asked that it may be shown by a repairable set one day: together with those
that have not answered, and with any b that lie. Their repairs decide about the copy meanwhile, and
need no answer of S. (`object_healing` asks again.)

**Why that is enough.** A correct server that has answered S accepts no copy that counts S's old
word for a barrier. So if such a copy is at fewer, it is never repairable: nobody can finish it,
and what S does at the object contradicts nothing. And a copy that rests on a barrier at q others is
decided as if S had never been.

**Why it ends.** Those that have the copy, or the barrier, repair the object without S, unasked
(`incomplete_updates`): q others are not faulty. What then is at a quorum of them is later than the
copy, or it is the copy itself, and S takes it over. Nor can b liars keep an object waiting by a
copy that nobody has: they, and those that do not answer, are fewer than t beside S, and with b more
they are fewer than r.

Where more have forgotten something than may fail, repairs decide, and S does not wait.
(`contradictions`)

**Tests.** `tests/seams/test_lost_disks.py`, which has the must-fail test.
"""

from __future__ import annotations

from bftfs.asking.quorum import QuorumSystem
from bftfs.identifiers import NodeId
from bftfs.query_update.classification import shared_candidates, sharing
from bftfs.query_update.history import ZERO, CulledObjectHistorySet, LogicalTimestamp


def is_undecided(
    history_set: CulledObjectHistorySet,
    quorums: QuorumSystem,
    me: NodeId,
    own_latest: LogicalTimestamp,
) -> bool:
    """True if a later copy may yet be finished than all that server `me` has or can take over.

    `history_set` is what others have, of which it is known that they remember it.
    """
    shared = shared_candidates(history_set, quorums)
    above = max(own_latest, shared[0].candidate.timestamp if shared else ZERO)
    copies = {
        candidate.timestamp
        for history, _ in history_set.hosted
        for candidate in history.candidates
        if candidate.copy and candidate.timestamp > above
    }
    unheard = quorums.everyone.minus(me) - history_set.nodes
    return any(
        quorums.may_be_repairable(sharing(history_set, timestamp) | unheard) for timestamp in copies
    )
