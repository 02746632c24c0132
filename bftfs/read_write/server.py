"""One node's part in PASIS read/write: host versions, and list them. [PASIS §3.4.3.1]

A node keeps every version that it accepts until retention releases it: nothing here deletes or
replaces one (only a damaged fragment is written again), and where one was collected the reply says
so. Keys of a block's versions begin with the block and order newest first, so that every request
touches a constant number of rows at one place of each table.

**Invariants.** A version is hosted only if its fragment is the one that its timestamp binds, so a
fragment that fails this check at a reader convicts the node and never the writer [PASIS §3.4.2.3].
A version's timestamp names the client that wrote it: a node takes a version from its author, or
from a repairing client for which QC - t nodes vouch that they host it.

What a node has said in one life counts no more when it has lost its store and begun another. So
each reply that others count tells the latest lives that the node knows of.
[docs/protocols-read-write.md, What a node has forgotten]
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Protocol

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.coding import cross_checksum
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.credentials import Credentials
from bftfs.crypto.digest import (
    DIGEST_BYTES,
    AuthenticatorKeys,
    Body,
    inventory_digest,
    life_of,
    verifier_of,
    voucher_digest,
)
from bftfs.identifiers import BlockId, ClientId, NodeId
from bftfs.read_write import version_row
from bftfs.read_write.authorship import authored, last_block
from bftfs.read_write.messages import (
    AuthoredRequest,
    Below,
    FragmentsReply,
    FragmentsRequest,
    HostedPart,
    InventoryReply,
    InventoryRequest,
    Listed,
    ReadReply,
    ReadRequest,
    Request,
    TimeReply,
    TimeRequest,
    VouchReply,
    VouchRequest,
    VouchSetRequest,
    WriteReply,
    WriteRequest,
)
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.timestamp import (
    TIMESTAMP_BYTES,
    BlockTimestamp,
    beginning_of,
    digest_of,
    encoded,
    time_of,
    timestamp_of,
    version_key,
)
from bftfs.read_write.version_row import COLLECTED_BELOW, VERIFIED, RowChange
from bftfs.server import known_lives
from bftfs.server.authority import overstepped
from bftfs.server.own_clock import OwnClock
from bftfs.server.recovery import Recovery
from bftfs.server.step import Ready, Role, Sender, Want
from bftfs.storage import StorageView, Table, Write
from bftfs.thresholds import ReadWriteThresholds

# Above every version key of a block: no version has the timestamp whose inverse this is.
_END = b"\xff" * TIMESTAMP_BYTES

_NODE = Role.NODE  # a member of a class takes longer to find

_NO_PART = HostedPart(CrossChecksum(b""), 0)

_GONE = Refused(errno.ESTALE, "the file was deleted, and its contents are no longer kept")
_FORGOTTEN = Refused(errno.ENODATA, "this node is rebuilding its store")
_OUTLIVED = Refused(errno.EKEYEXPIRED, "a node that vouches has lost its store since")


class Authority(Protocol):
    """Decides which blocks a client may write and read.

    The host supplies it: it knows what an inode is.
    """

    def may_write(
        self, view: StorageView, sender: Sender, block: BlockId, credentials: Credentials
    ) -> Refused | Want | None:
        """None if it may; otherwise why not, or what must be brought first to decide it.

        `view` is the one in which the write is about to be stored.
        """

    def may_read(
        self, view: StorageView, sender: Sender, block: BlockId, who: Credentials
    ) -> Refused | Want | None:
        """None if it may; otherwise why not, or what must be brought first to decide it."""

    def reached_us(self, view: StorageView, block: BlockId) -> int:
        """When the contents that `block` belongs to were changed last; 0 if unknown."""


class Quota(Protocol):
    """Limits the room that each client's versions take. The host supplies it."""

    def refusal(self, view: StorageView, client: ClientId, volume: int) -> Refused | None:
        """Why the client must not write a new version of `volume` bytes, if so."""


class Watch(Protocol):
    """The node's verifier, which bounds the versions that nobody has verified. [LazyVer §3.8]"""

    def before_write(self, block: BlockId, client: ClientId, now_us: int) -> Want | Refused | None:
        """What must be done before a new version of `block` is accepted, or why it is refused."""

    def written(self, block: BlockId, timestamp: BlockTimestamp, now_us: int) -> Want | None:
        """Note that a version is hosted; returns what must be done before it is acknowledged."""

    def idle_ms(self, now_us: int) -> int:
        """For how long no client has sent this node a request; its peers are told."""


class Memory(Protocol):
    """The node's healer, which knows how much of a lost store has been rebuilt."""

    def may_answer(self, block: BlockId) -> bool:
        """True if this node knows which versions of `block` it should host."""

    def remembers(self, until: bytes) -> bool:
        """True if it lacks none of the versions that it has accepted, up to this key."""

    @property
    def recovery(self) -> Recovery:
        """Whether the node has lost something, and how far it has come since."""


class RetainedPast(Protocol):
    """The node's collector, which knows which old versions are still here."""

    def knows(self, view: StorageView, block: BlockId, at_us: int) -> bool:
        """True if all versions are here that `block` may have shown at that time."""

    def is_gone(self, view: StorageView, block: BlockId) -> bool:
        """True if the file is deleted and its contents were collected."""

    def may_have_had(self, view: StorageView, block: BlockId, at_us: int) -> bool:
        """False if a version of `block` of that time is too young to have been collected."""

    def wants(self, view: StorageView, key: bytes) -> bool:
        """True if the version with this key would be kept."""

    def may_be_named(
        self, view: StorageView, versions: Sequence[tuple[BlockId, BlockTimestamp]]
    ) -> bool:
        """False if an update can name one of these no more, by what this node has."""


class GrantAuthority:
    """The authority of a node that knows nothing of files: the client's grant."""

    def may_write(
        self, view: StorageView, sender: Sender, block: BlockId, credentials: Credentials
    ) -> Refused | None:
        """Every block is open to a client that may write as this user."""
        return overstepped(sender, credentials, writes=True)

    def may_read(
        self, view: StorageView, sender: Sender, block: BlockId, who: Credentials
    ) -> Refused | None:
        """Every block is open to a client that may act as this user."""
        return overstepped(sender, who, writes=False)

    def reached_us(self, view: StorageView, block: BlockId) -> int:
        """Nothing is known of any file."""
        return 0


class NoQuota:
    """Every client may use all the room there is."""

    def refusal(self, view: StorageView, client: ClientId, volume: int) -> Refused | None:
        """None."""


class ReadWriteServer:
    """Serves PASIS requests for node `node`. Stateless: everything is in the store."""

    def __init__(
        self,
        node: NodeId,
        thresholds: ReadWriteThresholds,
        keys: AuthenticatorKeys,
        *,
        authority: Authority | None = None,
        quota: Quota | None = None,
        watch: Watch | None = None,
        memory: Memory | None = None,
        past: RetainedPast | None = None,
        clock: OwnClock | None = None,
    ) -> None:
        self._clock = clock or OwnClock(thresholds.N)
        self._node = node
        self._thresholds = thresholds
        self._keys = keys
        self._authority = authority or GrantAuthority()
        self._quota = quota or NoQuota()
        self._watch = watch
        self._memory = memory
        self._past = past
        self._serve: dict[type, Callable[..., Ready]] = {
            TimeRequest: self._time,
            WriteRequest: self._write,
            ReadRequest: self._read,
            VouchRequest: self._vouch,
            VouchSetRequest: self._vouch_for_all,
            InventoryRequest: self._inventory,
            FragmentsRequest: self._fragments,
            AuthoredRequest: self._authored,
        }

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Request,
        body: Body,
        now_us: int,
    ) -> Ready:
        """Serve one request. [PASIS §3.4.3.1]"""
        memory = self._memory
        if memory is not None:
            recovery = memory.recovery
            if recovery.awaits is not None:
                return Ready(wants=(recovery.awaits,))
            if recovery.rebuilding and not _remembers(memory, message):
                return Ready(reply=_FORGOTTEN)
        return self._serve[type(message)](view, sender, message, body, now_us)

    # --- TIME_REQUEST ------------------------------------------------------------------------

    def _time(self, view: StorageView, _sender: Any, message: TimeRequest, *_: Any) -> Ready:
        times = []
        for block in message.blocks:
            newest = next(iter(view.keys(Table.BLOCK, block, block + _END)), None)
            times.append(0 if newest is None else time_of(newest))
        return Ready(reply=TimeReply(tuple(times)))

    # --- WRITE -------------------------------------------------------------------------------

    def _write(
        self,
        view: StorageView,
        sender: Sender,
        message: WriteRequest,
        fragment: Body,
        now_us: int,
    ) -> Ready:
        """Host a version: its author writes it, or somebody completes it by a repair."""
        block, timestamp = message.block, message.timestamp
        refusal = self._not_bound(block, message, fragment)
        if refusal is not None:
            return Ready(reply=refusal)
        key = version_key(block, timestamp)
        hosted = view.get(Table.BLOCK, key)
        if hosted is not None:
            writes = self._restored(view, key, hosted, message, fragment)
            return Ready(reply=self._hosts(message), writes=writes, uses_reserve=True)
        repairs = (
            bool(message.vouchers)
            or sender.client != timestamp.client
            or sender.role is not Role.CLIENT
        )
        watch = self._watch
        if repairs:
            refusal = self._not_vouched(message)
        else:
            credentials = Credentials(message.uid, message.gid, message.groups)
            answer = self._authority.may_write(view, sender, block, credentials)
            if isinstance(answer, Want):
                return Ready(wants=(answer,))
            stopped = self._clock.stops(now_us) if answer is None else None
            if stopped is not None:
                return stopped
            refusal = answer or self._insane(view, block, timestamp.time, now_us)
        if refusal is not None:
            return Ready(reply=refusal)
        if repairs:
            if self._past is not None and not self._past.wants(view, key):
                # A repair makes sure that no later reader misses the version; this node tells
                # readers that it has collected it, and so counts for none of them.
                return Ready(reply=WriteReply(self._keys.told))
        else:
            wait = None if watch is None else watch.before_write(block, timestamp.client, now_us)
            if isinstance(wait, Refused):
                return Ready(reply=wait)
            if wait is not None:
                return Ready(wants=(wait,))
            volume = len(fragment) + len(message.cross_checksum)
            refusal = self._quota.refusal(view, timestamp.client, volume)
            if refusal is not None:
                return Ready(reply=refusal)
        checksum = message.cross_checksum
        writes = version_row.added(view, key, timestamp.client, checksum, fragment)
        want = None if watch is None else watch.written(block, timestamp, now_us)
        if want is not None:  # before the version is acknowledged
            return Ready(writes=writes, wants=(want,), uses_reserve=repairs)
        return Ready(reply=self._hosts(message), writes=writes, uses_reserve=repairs)

    def _hosts(self, message: WriteRequest) -> WriteReply:
        """The node hosts the version; it vouches for that if that is wanted."""
        if not message.wants_voucher:
            return WriteReply(self._keys.told)
        digest = digest_of(((message.block, message.timestamp),))
        return WriteReply(self._keys.told, self._keys.make_knowing(digest))

    def _not_bound(self, block: BlockId, message: WriteRequest, fragment: Body) -> Refused | None:
        """Storage-node verification of a write. [PASIS §3.4.2.3]

        The fragment against its hash in the cross-checksum, and the cross-checksum against the
        verifier in the timestamp; a correct node executes only writes that pass both.
        """
        checksum, N = message.cross_checksum, self._thresholds.N
        if len(checksum) != N * DIGEST_BYTES:
            return Refused(errno.EBADMSG, f"a cross-checksum that is not one of {N} fragments")
        if verifier_of(checksum) != message.timestamp.verifier:
            return Refused(errno.EBADMSG, "the timestamp does not bind the cross-checksum")
        if not cross_checksum.matches(checksum, fragment_index(block, self._node, N), fragment):
            return Refused(errno.EBADMSG, "the cross-checksum does not list the fragment")
        return None

    def _restored(
        self,
        view: StorageView,
        key: bytes,
        hosted: bytes,
        message: WriteRequest,
        fragment: Body,
    ) -> list[Write]:
        """The writes for a version that is hosted already: none, unless its fragment is damaged.

        A reader that repairs a version sends it to all nodes; so it heals damaged fragments.
        """
        index = fragment_index(message.block, self._node, self._thresholds.N)
        stored = view.get(Table.FRAGMENT, key)
        if stored is not None and cross_checksum.matches(message.cross_checksum, index, stored):
            return []
        row = version_row.unverified(message.cross_checksum, before=hosted)
        return version_row.stored(view, (RowChange(key, row, fragment),))

    def _not_vouched(self, message: WriteRequest) -> Refused | None:
        """A repair is taken if QC - t nodes host the version already.

        If the version is complete, any N - t nodes include as many benign ones that vouch for it:
        no repair that a reader owes is refused by a correct node. And of more than t + b nodes one
        is correct and knows the inode as it is, of which t may lack the last update: it has checked
        the author's authority. (docs/threat-model.md, G4)

        Nodes that have lost their stores since may not host it any more: their vouchers do not
        count. The client is told that this is the reason, because the version may be complete.
        """
        digest = _voucher_digest(message.block, message)
        least = self._thresholds.repairable
        vouching, outlived = set(), set()
        for voucher in message.vouchers:
            node, made = voucher.node, voucher.authenticator
            if self._keys.check(claimed_by=node, digest=digest, authenticator=made):
                vouching.add(node)
            elif self._keys.is_outlived(claimed_by=node, digest=digest, authenticator=made):
                outlived.add(node)
        if len(vouching) >= least:
            return None
        if len(vouching | outlived) >= least:
            return _OUTLIVED
        return Refused(
            errno.EPERM, "only its author may write a version for which too few nodes vouch"
        )

    def _insane(
        self, view: StorageView, block: BlockId, time_us: int, now_us: int
    ) -> Refused | None:
        """An author's time must be near the node's clock, on either side.

        No liar can push time away: a time beyond clock and skew is malformed. [design §4] But a
        file that was changed while all clocks were ahead goes on from there, by a few steps at a
        time. (docs/decisions/0017-clock-jumps.md)

        Versions are found by their time: a client that could place a new one in the past would
        change what history shows there. A writer that was delayed for so long takes a new
        timestamp. (A repair may be of any time: of those that vouch one is correct.)
        """
        if time_us < now_us - limits.CLOCK_SKEW_US:
            behind = (now_us - time_us) // limits.SECOND_US
            return Refused(
                errno.ETIME, f"the time is {behind} s behind this node: check the client's clock"
            )
        if (
            time_us > now_us + limits.CLOCK_SKEW_US
            and time_us > self._authority.reached_us(view, block) + limits.STEPS_AHEAD_US
        ):
            ahead = (time_us - now_us) // limits.SECOND_US
            return Refused(
                errno.ETIME, f"the time is {ahead} s ahead of this node: check the client's clock"
            )
        return None

    # --- READ_LATEST, READ_PREV --------------------------------------------------------------

    def _read(
        self,
        view: StorageView,
        sender: Sender,
        message: ReadRequest,
        _body: Body,
        now_us: int,
    ) -> Ready:
        block, before = message.block, message.before
        if sender.role is not _NODE:
            who = Credentials(message.uid, message.gid, message.groups)
            answer = self._authority.may_read(view, sender, block, who)
            if isinstance(answer, Want):
                return Ready(wants=(answer,))
            if answer is not None:
                return Ready(reply=answer)
        if before is not None and self._may_lack(view, block, before):
            return Ready(self._collected())
        start = block if before is None else version_key(block, before) + b"\x00"
        listed: list[Listed] = []
        below, checksum, fragment = Below.ORIGIN, CrossChecksum(b""), b""
        verified_us = 0
        for key, row in view.scan(Table.BLOCK, start, block + _END):
            if len(listed) > message.history:
                below = Below.MORE
                break
            if message.want_data and not listed:
                checksum = version_row.checksum_of(row)
                verified_us = version_row.verified_us(row)
                fragment = view.get(Table.FRAGMENT, key) or b""
            listed.append(Listed(timestamp_of(key), bool(row[0] & VERIFIED)))
            if row[0] & COLLECTED_BELOW:
                below = Below.COLLECTED
                break
        if not listed and self._past is not None and self._past.is_gone(view, block):
            if before is None:
                return Ready(_GONE)
            # A version written after this node collected the file never was at this node.
            if self._past.may_have_had(view, block, before.time):
                return Ready(self._collected())
        idle_ms = 0  # only nodes are told for how long no client has asked this one for anything
        if sender.role is _NODE and self._watch is not None:
            idle_ms = self._watch.idle_ms(now_us)
        lives = self._keys.told
        reply = ReadReply(tuple(listed), below, checksum, idle_ms, verified_us, lives)
        return Ready(reply=reply, body=fragment)

    def _collected(self) -> ReadReply:
        return ReadReply((), Below.COLLECTED, CrossChecksum(b""), lives=self._keys.told)

    def _may_lack(self, view: StorageView, block: BlockId, before: BlockTimestamp) -> bool:
        """True if the latest version below `before` may have been collected here."""
        if self._past is None:
            return False
        start = version_key(block, before)
        above = next(view.scan(Table.BLOCK, block, start + b"\0", reverse=True), None)
        if above is not None and not above[1][0] & COLLECTED_BELOW:
            return False
        at_us = before.time - (before == beginning_of(before.time))
        below = next(iter(view.keys(Table.BLOCK, start + b"\0", block + _END)), None)
        if below is not None and time_of(below) == at_us:
            return False
        return not self._past.knows(view, block, at_us)

    # --- healing: which versions this node hosts, for a peer that compares ---------------------

    def _inventory(
        self, view: StorageView, sender: Sender, message: InventoryRequest, *_: Any
    ) -> Ready:
        if sender.role is not Role.NODE:
            return Ready(reply=Refused(errno.EPERM, "inventories are for nodes"))
        assert sender.node is not None
        writes = known_lives.note(view, self._keys, sender.node, message.proof)
        life = life_of(message.proof if writes else known_lives.proof_of(view, sender.node))
        listed = view.keys(Table.BLOCK, message.after + b"\0", message.until + b"\0")
        keys = tuple(islice(listed, limits.KEYS_IN_INVENTORY + 1))
        more = len(keys) > limits.KEYS_IN_INVENTORY
        same = not more and inventory_digest(keys) == message.digest
        keys = () if same else keys[: limits.KEYS_IN_INVENTORY]
        remembers = self._memory is None or self._memory.remembers(
            keys[-1] if more else message.until
        )
        reply = InventoryReply(keys, more, same, remembers, life, view.count(Table.BLOCK))
        return Ready(reply, writes=writes, uses_reserve=True)

    def _fragments(
        self, view: StorageView, sender: Sender, message: FragmentsRequest, *_: Any
    ) -> Ready:
        """The fragments that are here, of these versions, until there are `FRAGMENTS_BYTES`.

        Each proves itself, also where this node rebuilds its own store. Fewer than were asked
        for mean that the limit was reached.
        """
        if sender.role is not Role.NODE:
            return Ready(reply=Refused(errno.EPERM, "whole sets of fragments are for nodes"))
        parts: list[HostedPart] = []
        fragments: list[bytes] = []
        volume = 0
        for key in message.keys:
            row = view.get(Table.BLOCK, key)
            fragment = None if row is None else view.get(Table.FRAGMENT, key)
            if row is None or fragment is None:
                parts.append(_NO_PART)
                continue
            parts.append(HostedPart(version_row.checksum_of(row), len(fragment)))
            fragments.append(fragment)
            volume += len(fragment)
            if volume >= limits.FRAGMENTS_BYTES:
                break
        return Ready(FragmentsReply(tuple(parts)), b"".join(fragments))

    # --- authors ----------------------------------------------------------------------------

    def _authored(
        self, view: StorageView, sender: Sender, message: AuthoredRequest, *_: Any
    ) -> Ready:
        who = Credentials(message.uid, message.gid, message.groups)
        inodes = []
        for inode in sorted(set(message.inodes)):
            answer = self._authority.may_read(view, sender, last_block(inode), who)
            if isinstance(answer, Want):
                return Ready(wants=(answer,))
            if answer is None:
                inodes.append(inode)
        return Ready(reply=authored(view, message, inodes))

    # --- vouching ----------------------------------------------------------------------------

    def _vouch(self, view: StorageView, _sender: Any, message: VouchRequest, *_: Any) -> Ready:
        lives = self._keys.told
        if view.get(Table.BLOCK, version_key(message.block, message.timestamp)) is None:
            return Ready(VouchReply(b"", lives))
        digest = _voucher_digest(message.block, message)
        return Ready(VouchReply(self._keys.make(digest), lives))

    def _vouch_for_all(
        self, view: StorageView, _sender: Any, message: VouchSetRequest, *_: Any
    ) -> Ready:
        lives = self._keys.told
        versions = [(each.block, each.timestamp) for each in message.versions]
        is_late = self._past is not None and not self._past.may_be_named(view, versions)
        for block, timestamp in versions:
            if view.get(Table.BLOCK, version_key(block, timestamp)) is None:
                return Ready(VouchReply(b"", lives, is_late))
        return Ready(VouchReply(self._keys.make_knowing(digest_of(versions)), lives, is_late))


def _voucher_digest(block: BlockId, message: WriteRequest | VouchRequest) -> bytes:
    return voucher_digest(block=block, timestamp=encoded(message.timestamp))


def _remembers(memory: Memory, message: Request) -> bool:
    """False if this node is rebuilding its store and has not come to the blocks in question.

    If it listed no versions of them, it would deny some that it has acknowledged. It accepts writes
    as soon as it has begun a new life; before, it does not know which lives others have begun.
    """
    if memory.recovery.is_lost:
        return False
    match message:
        case TimeRequest():
            return all(map(memory.may_answer, message.blocks))
        case VouchSetRequest():
            return all(memory.may_answer(each.block) for each in message.versions)
        case ReadRequest() | VouchRequest():
            return memory.may_answer(message.block)
        case AuthoredRequest():
            return memory.may_answer(last_block(max(message.inodes)))
        case _:
            return True
