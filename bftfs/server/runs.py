"""A server's runs: how it notices that its store is an older copy.

**Situation.** A node's folder may come from a backup, or from the administrator's machine, which
keeps it as it was made. Nothing in it tells what the node has accepted since. If the node acts as
if it had accepted nothing more, it lies without knowing it.

**Rules.** A *run* is a number. A server begins one whenever it starts, and another one from time to
time.

1. It asks the others which of its runs is the latest that they know of, until q - 1 have answered.
   They answer with the *proof*: its own authenticator, which nobody else can make. If there is one
   of a later run than its store knows, then it has forgotten something, and begins a new life.
2. Its store notes in which place it lies while it is in use, in each run. If it lies somewhere
   else, then it was copied within a run, and the server has forgotten something as well.
3. It takes one more than the latest run, stores that, and then asks the others until q - 1 have
   stored the proof. Before, at its start, it answers nothing but the same question of others.
4. The others tell it in the same way of their own runs, which it may have forgotten.

**Why it is safe.** Say that a server has accepted something since a copy of its store was made. If
it did so in a later run than the copy knows, then q - 1 others had stored the proof of that run
before, and of the q - 1 that it asks now one shows it: 2q - 2 - (n - 1) >= t + 2b are in both, and
t - 1 of these lie or have forgotten it, too. If in the same run, then the copy lies in another
place, by rule 2. A store that was not copied knows every run that it has begun, since that is
stored before anybody else hears of it; so nobody is thought to have forgotten something without
reason, whatever liars say.

**Why it is live.** q - 1 others have to be up, as for any operation of a client; and they answer
before they have begun a run themselves, so that all may start at once.

[docs/protocols-query-update.md, A server whose store is an older copy]

**Tests.** `tests/unit/server/test_runs.py`, `tests/seams/test_copied_folders.py`, which has the
must-fail tests.

**Concurrency.** One thread. Requests that wait for a run share the attempt to begin it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import Nodes
from bftfs.conversation import Pause
from bftfs.crypto.digest import AuthenticatorKeys
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import RunReply, RunRequest
from bftfs.server import known_runs
from bftfs.server.known_runs import RUN_MOST, run_of
from bftfs.server.recovery import BLOCKS, OBJECTS, Recovery
from bftfs.server.step import Host, Want
from bftfs.server.worker import OtherNodes, look, step
from bftfs.storage import StorageView, Write

# With those that have not answered yet; then they are asked again.
_PATIENCE_US = tuple(limits.SECOND_US * quarters // 4 for quarters in (1, 2, 4, 8))
# A request that waits for an attempt looks so often if it has ended. It does not wait for an event:
# a crash closes an attempt, and may not wake what it is about to close, while an attempt that fails
# has to wake all.
_LOOK_US = 5_000

_COPIED = "its store was copied from somewhere else while it was in use"
_OLDER = "others know of a later run of this node than its store does: it is an older copy"


class Runs:
    """Begins the runs of one server."""

    def __init__(
        self,
        node: NodeId,
        peers: Peers,
        keys: AuthenticatorKeys,
        recovery: Recovery,
        *,
        report: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        """From now on all requests wait until a run has begun. `report` is told what is noticed."""
        self._node = node
        self._quorums = peers.quorums
        self._keys = keys
        self._recovery = recovery
        self._report = report
        self._others = OtherNodes(node, peers)
        self._host: Host | None = None
        self._beginning = False
        recovery.awaits = Want(b"run", lambda _view: self._begin_on_demand())

    async def run(self, host: Host) -> None:
        """Begin a run at the start, and another one from time to time."""
        self._host = host
        while True:
            begun = await self._begin(host)
            await Pause(limits.RUN_EVERY_US if begun else limits.RUN_AGAIN_US)

    async def _begin_on_demand(self) -> list[Write] | None:
        """What requests wait for that come before a run has begun."""
        if self._host is not None:
            await self._begin(self._host)
        return [] if self._recovery.awaits is None else None

    async def _begin(self, host: Host) -> bool:
        """Begin a run. False if that is not possible now."""
        if self._beginning:
            while self._beginning:
                await Pause(_LOOK_US)
            return self._recovery.awaits is None
        self._beginning = True
        try:
            begun = await self._begin_alone(host)
            self._recovery.note_run(begun=begun)
        finally:
            self._beginning = False
        return begun

    async def _begin_alone(self, host: Host) -> bool:
        keys, place = self._keys, self._recovery.place
        if await look(host, lambda view: known_runs.lies_elsewhere(view, place)):
            self._forget(_COPIED)
        known = await self._ask(b"")
        if known is None:
            return False
        latest = max(map(self._latest, known.values()), default=0)
        if latest > await look(host, lambda view: known_runs.own(view, keys)):
            self._forget(_OLDER)
        run = await step(host, partial(self._store, known, latest))
        # Nobody hears of a run that a crash would make this server forget: the next step comes
        # after what this one has written is durable, unless that was lost for want of room.
        if await look(host, lambda view: known_runs.own(view, keys)) != run:
            return False
        return await self._ask(known_runs.made(keys, run)) is not None

    async def _ask(self, proof: bytes) -> dict[NodeId, RunReply] | None:
        """What q - 1 others know, once they have stored the proof, if there is one.

        None if too few answer.
        """
        answers: dict[NodeId, RunReply] = {}

        def is_told(reply: RunReply) -> bool:
            return len(reply.proofs) == self._quorums.n and self._latest(reply) >= run_of(proof)

        def are_enough(further: dict[NodeId, RunReply]) -> bool:
            heard = Nodes.of(answers) | Nodes.of(further)
            return self._quorums.is_quorum(heard.plus(self._node))

        for patience_us in _PATIENCE_US:
            answers |= await self._others.ask(
                RunRequest(proof),
                RunReply,
                is_told,
                nodes=[node for node in self._others.nodes if node not in answers],
                patience_us=patience_us,
                enough=are_enough,
            )
            if are_enough({}):
                return answers
        return None

    def _latest(self, reply: RunReply) -> int:
        """The latest run of this server that another one can prove; 0 if there is none."""
        proof = reply.proofs[self._node]
        return run_of(proof) if known_runs.is_own(self._keys, proof) else 0

    def _store(
        self, known: dict[NodeId, RunReply], latest: int, view: StorageView
    ) -> tuple[int, list[Write]]:
        """The next run, and the writes that keep it, and what others have told of theirs."""
        keys = self._keys
        run = max(latest, known_runs.own(view, keys)) + 1
        if run > RUN_MOST:  # it has been Byzantine with the key that it has, and needs another one
            return 0, []
        theirs = sorted(
            (run_of(proof), maker, proof)
            for reply in known.values()
            for maker, proof in enumerate(reply.proofs)
            if maker != self._node
        )
        writes = [  # the latest one last
            write
            for _, maker, proof in theirs
            for write in known_runs.note(view, keys, maker, proof)
        ]
        own = known_runs.stored(self._node, known_runs.made(keys, run))
        return run, [*writes, own, known_runs.lies_in(self._recovery.place)]

    def _forget(self, reason: str) -> None:
        """Whatever this server has accepted, it may not know of."""
        if not self._recovery.is_lost:
            self._recovery.forget(OBJECTS, BLOCKS)
            self._report(reason)
