"""Whether a block may be written, or read, where nodes disagree about it.

**Situation.** Each node judges by its own replica of the object that the block belongs to. So nodes
disagree while a change of permission is under way, and for as long as some of them are behind. If
others are down, neither the nodes that accept a write nor those that refuse it may be enough, for
as long as these are down. And b liars and t nodes that are behind are more than t that refuse what
is permitted.

**Rule.** For lack of permission no write fails by the word of nodes. The writer asks the object, by
an operation that takes place in the order of all updates. If that refuses, the write has failed.
Otherwise the operation has reached the nodes that had refused: so those that were behind know
better now, and the write is sent again. Readers do the same.

Each attempt tolerates one silence more than the one before. Nodes that are far away answer later
than a liar that is near, and all silences are bounded: if they did not become more, no attempt
would last until the others have answered, and the liar would have it all made again for ever. A
client's next read begins with one silence more than any needed lately that was refused by some: a
question for each block would use up the barriers that the reader has at the file's inode, and
others with keys for reading could leave it without any more.

**Why nobody gets past the nodes by that.** The answer only ends a write, or has it sent again; what
a node takes, it judges itself, as before. [docs/threat-model.md, G4]

**Concurrency.** The writes of one `write_many` share a question: what is asked already is not asked
again. Everything is touched between awaits only.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import count
from typing import Final, TypeVar

from bftfs.asking.quorum import NOBODY, Nodes, QuorumSystem
from bftfs.conversation import Conversation, Event, Now, Pause, Wait
from bftfs.errors import QuorumUnavailable
from bftfs.limits import SECOND_US
from bftfs.read_write.session import Session

Result = TypeVar("Result")

# Asks the object, and reaches these nodes by that. Raises what it refuses with.
Permit = Callable[[Nodes], Conversation[None]]

# By the inode's permissions, or by the client's grant as the node knows it.
FORBIDDEN: Final = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))

_PAUSE_US: Final = 20_000  # before a write is sent a third time; doubles…
_PAUSE_MOST_US: Final = 2 * SECOND_US  # …up to this


class NodesDisagree(Exception):
    """Some nodes may permit it, and these do not: this ends a round or a read, and no more."""

    def __init__(self, forbidding: Nodes, *, heard: int) -> None:
        """`heard`: how many nodes do not forbid it, as far as is known."""
        super().__init__(forbidding, heard)
        self.forbidding = forbidding
        self.heard = heard


def require_enough(
    quorums: QuorumSystem, forbidding: Nodes, refusing: Nodes, *, heard: int
) -> None:
    """Raise NodesDisagree if no quorum is left without those that forbid it, or refuse it else."""
    if not quorums.is_quorum(quorums.everyone - forbidding - refusing):
        raise NodesDisagree(forbidding, heard=heard)


async def while_nodes_disagree(
    session: Session, attempt: Callable[[int], Conversation[Result]], ask: Permit, *, subject: str
) -> Result:
    """What an attempt comes to, which is made again as often as nodes disagree and `ask` permits.

    An attempt is given its number, from 1 on: it tolerates at least as many silences before it says
    that nodes disagree, and more than the one before. Raises what `ask` raises, or
    QuorumUnavailable if total patience runs out.
    """
    began_us = now_us = await Now()
    for number in count(1):
        try:
            return await attempt(number)
        except NodesDisagree as disagree:
            heard, forbidding = disagree.heard, disagree.forbidding
        await ask(forbidding)
        most_us = session.patience_total_us
        if most_us is not None and now_us - began_us > most_us:
            break
        await _pause_before(number)
        now_us = await Now()
    raise QuorumUnavailable(heard=heard, required=session.thresholds.responses, subject=subject)


class Permission:
    """What the object says of some writes."""

    __slots__ = ("_answered", "_forbidding", "_is_asking", "_permit")

    def __init__(self, permit: Permit) -> None:
        self._permit = permit
        self._forbidding = NOBODY  # nodes that refuse one of the writes
        self._is_asking = False
        self._answered = Event()

    async def confirm(self, forbidding: Nodes) -> None:
        """Ask; these nodes refuse. Raises what the object refuses with, or FileSystemError."""
        self._forbidding |= forbidding
        if self._is_asking:
            await Wait(self._answered)  # if it refuses, this conversation is ended as well
            return
        self._is_asking = True
        try:
            await self._permit(self._forbidding)
        finally:
            self._is_asking = False
            self._answered.announce()


async def _pause_before(attempt: int) -> None:
    """Let the nodes change their minds; the first two attempts are made at once."""
    if attempt > 1:
        await Pause(min(_PAUSE_US << min(attempt - 2, 16), _PAUSE_MOST_US))
