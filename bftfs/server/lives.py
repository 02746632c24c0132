"""A server's lives: how it begins one, and how servers tell each other which they live.

**Situation.** A server that lost its store has forgotten what it accepted, and what it signed stays
with clients and peers for as long as they like. So it begins a new *life*: a number that is larger
than any it has had. All that it signs names its life, and a server that knows the new one takes
nothing that was signed in an earlier one.
[docs/protocols-query-update.md, A server that lost its store]

**Rules.**

1. It asks q - 1 others which of its lives is the latest that they know of. They answer with the
   *proof*: its own authenticator of that life, which nobody else can make. It takes one more, and
   stores that before anybody hears of it.
2. It signs nothing in the new life before q - 1 others have stored its proof; nor does it tell
   anybody before in which life it is (`QueryUpdateServer._history`): it would deny the latest.
3. They tell it in the same way of all other servers' lives, which it has forgotten, too.

**Why no life is begun twice.** Two times q - 1 of the n - 1 others share 2q - 2 - (n - 1) > b: one
of the servers that are asked is benign, has stored the latest life, and shows its proof. If all
forget it together, the server still knows which number it took (`Recovery.life`): clients have not
forgotten, and would take the second life of one number for the first.

**Tests.** `tests/unit/server/test_lives.py`, `tests/seams/test_lost_disks.py`.
"""

from __future__ import annotations

from functools import partial

from bftfs.asking.quorum import Nodes, QuorumSystem
from bftfs.crypto.digest import LIFE_DIGEST, LIFE_MOST, AuthenticatorKeys, life_of
from bftfs.identifiers import NodeId
from bftfs.query_update.messages import LifeReply, LifeRequest
from bftfs.server.known_lives import note, proof_of, stored
from bftfs.server.recovery import Recovery
from bftfs.server.step import Host
from bftfs.server.worker import OtherNodes, look, step
from bftfs.storage import StorageView, Write


async def begin(
    host: Host,
    keys: AuthenticatorKeys,
    others: OtherNodes,
    quorums: QuorumSystem,
    recovery: Recovery,
) -> bool:
    """Begin a new life.

    False if too few others answer, if what it stores is lost for want of room, or if this server
    has used up all lives: it has been Byzantine with the key that it has, and needs another one.
    """
    me = keys.node

    def enough(answers: dict[NodeId, LifeReply]) -> bool:
        return quorums.is_quorum(Nodes.of(answers).plus(me))

    def told(life: int, reply: LifeReply) -> bool:
        return len(reply.proofs) == quorums.n and life_of(reply.proofs[me]) >= life

    known = await others.ask(LifeRequest(b""), LifeReply, partial(told, 0), enough=enough)
    if not enough(known):
        return False

    def choose(view: StorageView) -> tuple[bytes | None, list[Write]]:
        latest = max(life_of(proof_of(view, me)), recovery.life)
        writes = {}
        for reply in known.values():
            for maker, proof in enumerate(reply.proofs):
                if maker != me:
                    for write in note(view, keys, maker, proof):
                        if life_of(proof) >= keys.lives[maker]:
                            writes[maker] = write
                elif keys.is_own(LIFE_DIGEST, proof):
                    latest = max(latest, life_of(proof))
        if latest >= LIFE_MOST:
            return None, list(writes.values())
        proof = keys.make(LIFE_DIGEST, life=latest + 1)
        return proof, [*writes.values(), stored(me, proof)]

    proof = await step(host, choose)
    if proof is None or await look(host, lambda view: proof_of(view, me)) != proof:
        return False
    life = life_of(proof)
    recovery.choose(life)
    knowing = await others.ask(LifeRequest(proof), LifeReply, partial(told, life), enough=enough)
    if not enough(knowing):
        return False
    keys.learn(me, life)
    return True
