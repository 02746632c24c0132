"""Under which key a client seals what it writes, and how it learns the keys of others.

**Situation.** The administrator has begun a new key epoch (`bftfs.key_epochs`), and has told the
nodes. Mounts run, or sleep, with the description of before. A revoked client must not be able to
open what they write from now on; every other client must.

**Rules.**

1. Nodes tell a client the latest epoch of their description, and the description itself. A client
   believes the description for the administrator's signature, and uses all keys that it finds.
2. Before it seals anything, a client has asked at most `CONFIRMED_US` ago, and n - t nodes have
   answered. So it needs no timer, and a machine that wakes up asks before it writes.
3. It seals under an epoch that at least t + b + 1 of these nodes have, in their latest description
   or in one that they keep beside it. At least t + 1 of them are correct, and keep it. So a client
   that asks n - t nodes hears of it from one of them: what was written can be read though t nodes
   have failed since. Once a revocation has reached n - t correct nodes, n - 2t >= t + 2b + 1 of
   those that answer have it, or later ones: so all those who ask find it at t + b + 1, though they
   have not read what b others of these name.
4. Of several such epochs it takes the one whose key the fewest revoked clients have got, by all
   signed descriptions that it has read; of these one that none of them lists as an earlier one; and
   then that with the highest serial. So a later description whose signer did not know of a
   revocation brings no client back to a key that the revoked client has, not even a mount that
   begins now: nodes keep the revocation beside it. A client that has got an epoch's key has got
   those of the epochs before it, which the keyring has. A client changes its choice only for what
   is signed; so it goes back only if that shows that more revoked clients have the key. It
   remembers who has got the keys of the present epoch and of the best others, and assumes that all
   revoked clients have got the rest: old descriptions that a node shows, however many, displace
   none of these. Of an epoch whose own description it has not read it cannot tell who has the key.
   If t + b + 1 nodes have such a one, it needs another that lists it: if three machines sign at
   once, few nodes may have each description, and all of them what it follows. Then the client
   seals nothing, and asks again, until nodes have told each other.
5. A writer asks for all descriptions that are named, and waits until it has read everything that
   all but b of the nodes name. A node that names one that is not read counts for none of the epochs
   before it: while several revocations spread, many nodes may each name another. More than b such
   nodes are not all liars; a correct one sends what it names. If that is lost, or a later one comes
   in its place, the writer asks all nodes again, and seals nothing meanwhile. It does not wait for
   the last b: one that lies could keep all writers waiting, by naming what it does not send.
6. A reader that meets an epoch whose key it lacks asks n - t nodes before it fails, and waits for
   what any of them names; at most once a second, since a writer may have named one that does not
   exist. It asks again as a writer does.

A client that has the key and hands it on, or seals with an old one on purpose, could hand on the
contents as well: nobody can stop it, and nodes, which see neither, do not try.

**Tests.** `tests/seams/test_key_epochs.py`, `tests/unit/filesystem/test_epochs.py`;
`tests/unit/filesystem/test_spreading_epochs.py` for rules 3 and 5.

**Concurrency.** One engine. One conversation asks at a time.
"""

from __future__ import annotations

import errno
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from bftfs import description_files
from bftfs.asking.ask import Asking, ask_all
from bftfs.asking.peers import Peers
from bftfs.cluster import ClusterDescription
from bftfs.conversation import Compute, Delivery, Draw, Event, Now, Pause, Send, Spawn, Wait
from bftfs.crypto.cipher import NONCE_BYTES, BlockCipher, epoch_named
from bftfs.crypto.digest import DIGEST_BYTES, Digest, cluster_digest
from bftfs.crypto.keys import Identity
from bftfs.envelope import DescriptionReply, DescriptionRequest, EpochReply, EpochRequest
from bftfs.errors import (
    FileSystemError,
    PeerFault,
    QuorumUnavailable,
    UnknownEpoch,
    UsageError,
)
from bftfs.filesystem.block_memory import Buffer
from bftfs.identifiers import FIRST_EPOCH, BlockId, ClientId, EpochId, NodeId
from bftfs.key_epochs import epoch_keys_in
from bftfs.limits import SECOND_US
from bftfs.lock import Lock

CONFIRMED_US: Final = 5 * SECOND_US  # how long an answer counts for what is sealed
SOUGHT_US: Final = SECOND_US  # between two searches for keys that are not known
_FETCH_PATIENCE_US: Final = 2 * SECOND_US
_HOLDERS_KEPT: Final = 8  # epochs of which it is remembered which clients have their keys: the best


@dataclass(slots=True)
class _Search:
    """Nodes are asked for the descriptions that they named: how many questions are under way."""

    under_way: int = 0
    progress: Event = field(default_factory=Event)  # announced when one of them ends


class EpochFollower:
    """Keeps a cipher in the present epoch, by the rules above."""

    def __init__(
        self,
        description: ClusterDescription,
        identity: Identity,
        cipher: BlockCipher,
        peers: Peers,
        *,
        patience_total_us: int | None = None,
    ) -> None:
        """`description` is the one that the client has in its files.

        Raises InvalidAuthenticator if its keys do not open.
        """
        self._description = description
        self._identity = identity
        self._cipher = cipher
        self._peers = peers
        self._patience_total_us = patience_total_us
        self._b = description.b
        self._enough = description.t + description.b + 1  # nodes that have an epoch in use
        self._lock = Lock()
        self._asked_us: int | None = None  # when nodes were asked last, that have answered
        self._search = _Search()  # for what nodes named then
        self._read: set[Digest] = set()  # descriptions whose keys are known
        # The epochs that a description lists, by its digest, and by its latest epoch.
        self._lists: dict[bytes, frozenset[EpochId]] = {FIRST_EPOCH: frozenset((FIRST_EPOCH,))}
        # Of descriptions, by their latest epoch: serials, and the clients that have its key, of the
        # last few.
        self._serials: dict[EpochId, int] = {}
        self._holders: dict[EpochId, frozenset[ClientId]] = {}
        self._earlier: set[EpochId] = set()  # epochs that were followed by others
        self._revoked: set[ClientId] = set()
        self._use(description)

    async def confirm(self) -> None:
        """Make sure that the cipher seals for the present clients only.

        Raises QuorumUnavailable or AdmissionRefused if too few nodes answer.
        """
        began_us = await Now()
        while not self._is_recent(await Now(), CONFIRMED_US):
            async with self._lock:
                if self._is_recent(await Now(), CONFIRMED_US) or await self._ask():
                    return
            await self._pause(began_us)

    async def seek(self, epoch: EpochId) -> bool:
        """Ask the nodes for the key of an epoch; True if it is known now. Raises as `confirm`."""
        began_us = await Now()
        while True:
            async with self._lock:
                now_us = await Now()
                is_over = self._cipher.knows(epoch) or began_us < (self._asked_us or 0) <= now_us
                if not is_over:
                    if self._asked_us is not None and self._is_recent(now_us, SOUGHT_US):
                        await Pause(self._asked_us + SOUGHT_US - now_us)
                    is_over = await self._ask()
                search = self._search
            while search.under_way and not self._cipher.knows(epoch):
                await Wait(search.progress)
            if is_over or self._cipher.knows(epoch):
                return self._cipher.knows(epoch)
            await self._pause(began_us)

    async def _pause(self, began_us: int) -> None:
        """Wait before nodes are asked again, unless the client gives up."""
        patience_us = self._patience_total_us
        if patience_us is not None and await Now() - began_us >= patience_us:
            raise QuorumUnavailable(heard=0, required=1, subject="a description of key epochs")
        await Pause(SOUGHT_US)

    def _is_recent(self, now_us: int, for_us: int) -> bool:
        return self._asked_us is not None and 0 <= now_us - self._asked_us < for_us

    # -----------------------------------------------------------------------------------------

    async def _ask(self) -> bool:
        """Ask n - t nodes, take the keys that they offer, and change to the best epoch.

        False if it has to ask again: by rule 5, or by rule 4.
        """
        now_us = await Now()
        claims = await self._claims(now_us)
        naming: defaultdict[bytes, list[NodeId]] = defaultdict(list)
        for node, told in claims.items():
            for name in dict.fromkeys((told.epoch, *told.others)):
                if name not in self._lists:
                    naming[name].append(node)
        search = self._search = _Search()
        for name, nodes in naming.items():
            for node in nodes[: self._b + 1]:
                search.under_way += 1
                await Spawn(partial(self._fetch, node, name, search))
        while search.under_way and not self._has_read(claims.values()):
            await Wait(search.progress)
        if not self._has_read(claims.values()) or not self._choose(claims.values()):
            return False
        self._asked_us = now_us
        return True

    def _has_read(self, claims: Iterable[EpochReply]) -> bool:
        """True if it has read all descriptions that all but b of these nodes name."""
        return self._b >= sum(
            not {told.epoch, *told.others} <= self._lists.keys() for told in claims
        )

    async def _claims(self, now_us: int) -> dict[NodeId, EpochReply]:
        """The latest epochs that n - t nodes tell. Claims: a node may lie."""
        described = self._description
        claims: dict[NodeId, EpochReply] = {}
        asking = Asking(
            self._peers,
            tuple(NodeId(node) for node in range(described.n)),
            lambda node: Send(node, EpochRequest()),
            first=described.n,
            needed=lambda _: False,
            required=described.n - described.t,
            now_us=now_us,
            subject="key epochs",
            patience_total_us=self._patience_total_us,
        )

        def take(reply: Delivery) -> None:
            if not isinstance(reply.message, EpochReply):
                asking.refused(reply)
                return
            claims[reply.node] = reply.message
            if len(claims) == described.n - described.t:
                asking.enough()

        await asking.collect(take)
        return claims

    async def _fetch(self, node: NodeId, name: bytes, search: _Search) -> None:
        """Ask a node for the description that it has named, by its digest or its latest epoch."""

        def judge(delivery: Delivery, _now_us: int) -> DescriptionReply | None:
            return delivery.message if isinstance(delivery.message, DescriptionReply) else None

        try:
            request = DescriptionRequest(name if len(name) == DIGEST_BYTES else b"")
            answers = await ask_all(
                self._peers, {node: request}, judge, patience_us=_FETCH_PATIENCE_US
            )
            for reply in answers.values():
                await self._take(reply, source=f"node {node}'s description")
        finally:
            search.under_way -= 1
            search.progress.announce()

    async def _take(self, reply: DescriptionReply, *, source: str) -> None:
        """Use what a node has sent, if the administrator has signed it for this cluster.

        Each description is read once: a liar cannot keep the client busy with long ones.
        """
        if cluster_digest(reply.encoded) in self._read:
            return
        verify = partial(
            description_files.verified,
            reply.encoded,
            reply.signature,
            administrator=self._description.administrator,
            source=source,
        )
        try:
            found = (await Compute(verify)).description
            if found.cluster_id == self._description.cluster_id:
                self._use(found)
        except (UsageError, PeerFault):
            return  # the node lies, or somebody has spoilt the description before it was signed

    def _use(self, described: ClusterDescription) -> None:
        """Learn the keys in a signed description, and what it says of epochs and clients."""
        latest = described.epoch
        listed = frozenset((FIRST_EPOCH, *(each.epoch for each in described.epochs)))
        self._read.add(described.digest)
        self._lists[described.digest] = self._lists[latest] = listed
        self._earlier |= listed - {latest}
        self._revoked |= {each.client for each in described.past_clients}
        for epoch, key in epoch_keys_in(described, self._identity).items():
            self._cipher.learn(epoch, key)
        if described.epochs:
            held = {each.client for each in described.clients if each.epoch_key}
            if latest not in self._holders:
                self._begin_holders(latest)
            for epoch in listed & self._holders.keys():  # the keyring has the earlier keys
                self._holders[epoch] |= held
            self._serials[latest] = max(described.serial, self._serials.get(latest, 0))
            if len(self._holders) > _HOLDERS_KEPT:
                del self._holders[min(self._replaceable(), key=self._rank)]

    def _begin_holders(self, epoch: EpochId) -> None:
        """Note which clients have the key of an epoch: all that have the key of a later one.

        If it is forgotten of one of these, or of the epoch itself, that stays so.
        """
        known = [each for each in self._serials if epoch in self._lists[each]]
        if all(each in self._holders for each in known):
            held = (self._holders[each] for each in known)
            self._holders[epoch] = frozenset[ClientId]().union(*held)

    def _replaceable(self) -> Iterable[EpochId]:
        """The epochs of which it may be forgotten which clients have their keys.

        Not the present one: it would seem to be worse than it is.
        """
        return self._holders.keys() - {self._cipher.present}

    def _choose(self, claims: Iterable[EpochReply]) -> bool:
        """Go on to the best epoch that enough nodes have, unless the present one is better.

        False, and no change, if enough nodes have one that none of those in question lists.
        """
        nothing: frozenset[EpochId] = frozenset()
        counts = Counter(
            epoch
            for told in claims
            for epoch in nothing.union(
                *(self._lists.get(name, nothing) for name in (told.epoch, *told.others))
            )
            if self._cipher.knows(epoch)
        )
        shared = {epoch for epoch, count in counts.items() if count >= self._enough}
        usable = {self._cipher.present, *(shared & self._serials.keys())}
        if not shared <= nothing.union(*(self._lists.get(each, nothing) for each in usable)):
            return False
        self._cipher.present = max(usable, key=self._rank)
        return True

    def _rank(self, epoch: EpochId) -> tuple[int, bool, int, EpochId]:
        """A key to sort epochs by: the greatest is the one to seal under. No two are equal."""
        holders = self._holders.get(epoch, self._revoked)  # of one that is long past: all of them
        serial = self._serials.get(epoch, -1)
        return -len(holders & self._revoked), epoch not in self._earlier, serial, epoch


@dataclass(frozen=True, slots=True)
class Sealing:
    """Seals and opens the blocks of files: the one place where a file system uses keys."""

    cipher: BlockCipher | None  # None: blocks are written as they are
    epochs: EpochFollower | None = None  # None: the cipher's keys are all that there are

    async def refresh(self) -> None:
        """Make sure that the present epoch is known. Raises as `EpochFollower.confirm`."""
        if self.epochs is not None:
            await self.epochs.confirm()

    def is_present(self, item: bytes) -> bool:
        """True if a data-item names the present epoch; also where nothing is sealed."""
        return self.cipher is None or epoch_named(item) == self.cipher.present

    async def seal(self, block: BlockId, plaintext: Buffer) -> tuple[BlockId, bytes]:
        """The block with the data-item to write for it. Raises as `EpochFollower.confirm`."""
        cipher = self.cipher
        if cipher is None:
            return block, bytes(plaintext)
        await self.refresh()
        nonce = (await Draw(1 << 8 * NONCE_BYTES)).to_bytes(NONCE_BYTES, "big")
        view = plaintext if isinstance(plaintext, bytes) else memoryview(plaintext)
        return block, await Compute(partial(cipher.seal, block, view, nonce=nonce))

    async def open(self, block: BlockId, item: bytes | None) -> bytes:
        """The contents of a data-item; empty if it was never written. EIO if it does not open."""
        if item is None:
            return b""
        if self.cipher is None:
            return item
        opening = partial(self.cipher.open, block, item)
        plaintext: bytes
        try:
            try:
                plaintext = await Compute(opening)
            except UnknownEpoch as unknown:
                if self.epochs is None or not await self.epochs.seek(EpochId(unknown.epoch)):
                    raise
                plaintext = await Compute(opening)
        except PeerFault as fault:
            raise FileSystemError(errno.EIO, str(fault)) from fault
        return plaintext
