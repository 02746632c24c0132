"""Nodes that lie about blocks. [PASIS §3.4.2.2, §3.4.4]"""

from __future__ import annotations

import dataclasses
import errno
from typing import Any

from msgspec.structs import replace

from bftfs import limits
from bftfs.asking.refusal import Refused
from bftfs.coding import cross_checksum
from bftfs.coding.erasure import ErasureCode
from bftfs.conversation import Send
from bftfs.crypto.digest import DIGEST_BYTES, voucher_digest
from bftfs.identifiers import CLIENT_ID_BYTES, BlockId, ClientId
from bftfs.read_write.messages import (
    AuthoredReply,
    Below,
    FragmentsReply,
    FragmentsRequest,
    InventoryReply,
    Listed,
    Notice,
    ReadReply,
    ReadRequest,
    TimeReply,
    TimeRequest,
    VouchReply,
    VouchRequest,
    WriteReply,
    WriteRequest,
)
from bftfs.read_write.placement import fragment_index
from bftfs.read_write.timestamp import ZERO, BlockTimestamp, encoded, version_key
from bftfs.server.step import Ready, Role
from bftfs.simulation.byzantine.positions import Asked, NodeAdversary, NodePosition
from bftfs.storage import Table, Write


class BlockForger(NodeAdversary):
    """Claims times and versions that were never written, with fragments that fit them.

    [PASIS §3.4.4] (3.4) b + t < QC: "Byzantine storage-nodes can never fabricate write requests"
    that are repairable. [design §4] writers take the (b+1)-th largest time. Shown by
    linearizability: what is read was written.
    """

    chances = (0.2, 1.0)

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        thresholds = position.sizes.read_write
        self._code = ErasureCode(thresholds.m, thresholds.N)
        self._forged: dict[BlockId, tuple[BlockTimestamp, Any, Any]] = {}

    def answer(self, asked: Asked) -> Ready:
        """Add an invented version to those that the node hosts."""
        ready = self.honest(asked)
        if not self.misbehaves():
            return ready
        match asked.message, ready.reply:
            case TimeRequest(), TimeReply(times):
                ready.reply = TimeReply(tuple(time + self._leap() for time in times))
            case ReadRequest(), ReadReply():
                self._forge(asked.message, ready, asked.now_us)
            case VouchRequest(block=block, timestamp=timestamp), _:
                forged = self._forged.get(block)
                if forged is not None and forged[0] == timestamp:
                    own = voucher_digest(block=block, timestamp=encoded(timestamp))
                    digest = self.random.choice((own, self.random.randbytes(DIGEST_BYTES)))
                    ready.reply = VouchReply(self.position.keys.make(digest))
            case _:
                pass
        return ready

    def _leap(self) -> int:
        bound = limits.CLOCK_SKEW_US
        return self.random.choice(
            (1, 1_000, 200_000_000, bound - 1_000_000, bound, bound + 1_000_000, 1 << 60)
        )

    def _forge(self, message: ReadRequest, ready: Ready, now_us: int) -> None:
        random, block = self.random, message.block
        forged = self._forged.get(block)
        if forged is None or random.random() < 0.1:
            item = b"forged by node %d: " % self.position.node + random.randbytes(
                random.randrange(99)
            )
            fragments = self._code.encode(item)
            checksum = cross_checksum.make(fragments)
            time = now_us + random.choice((-1_000_000, 0, 1_000, limits.CLOCK_SKEW_US // 2))
            author = ClientId(random.randbytes(CLIENT_ID_BYTES))
            timestamp = BlockTimestamp(time, author, cross_checksum.verifier(checksum))
            forged = self._forged[block] = (timestamp, checksum, fragments)
        timestamp, checksum, fragments = forged
        if message.before is not None and timestamp >= message.before:
            return
        honest: ReadReply = ready.reply
        older = tuple(version for version in honest.versions if version.timestamp < timestamp)
        verified = random.random() < 0.5
        versions = (Listed(timestamp, verified), *older)[: message.history + 1]
        below = honest.below if len(versions) == len(older) + 1 else Below.MORE
        index = fragment_index(block, self.position.node, self.position.sizes.n)
        if message.want_data:
            ready.reply = ReadReply(versions, below, checksum)
            ready.body = bytes(fragments[index])
        else:
            ready.reply = ReadReply(versions, below, cross_checksum.CrossChecksum(b""))


class FragmentCorrupter(NodeAdversary):
    """Sends fragments that are not what was written.

    [PASIS §3.4.2.2] "Cross checksums enable read operations to detect data-fragments that have been
    modified by storage-nodes." Shown by linearizability.
    """

    chances = (0.3, 1.0)

    def answer(self, asked: Asked) -> Ready:
        """Give the right version with a wrong fragment."""
        ready = self.honest(asked)
        random = self.random
        asks = isinstance(asked.message, ReadRequest | FragmentsRequest)
        if asks and ready.body and self.misbehaves():
            fragment = bytearray(bytes(ready.body))
            fragment[random.randrange(len(fragment))] ^= 1 << random.randrange(8)
            ready.body = bytes(fragment)[: random.choice((None, -1))]
        return ready


class ChecksumLiar(NodeAdversary):
    """Sends cross-checksums that fit its own false fragment, or nothing at all.

    [PASIS §3.4.2.3] "the hash of the cross checksum is placed in the low order bits of the logical
    timestamp": a checksum that is not the version's own does not verify. Shown by linearizability.
    """

    def answer(self, asked: Asked) -> Ready:
        """Give the right version with a wrong cross-checksum."""
        ready = self.honest(asked)
        reply = ready.reply
        if isinstance(reply, FragmentsReply):
            randbytes = self.random.randbytes
            ready.reply = FragmentsReply(
                tuple(
                    replace(
                        part,
                        cross_checksum=cross_checksum.CrossChecksum(
                            randbytes(len(part.cross_checksum))
                        ),
                    )
                    for part in reply.parts
                )
            )
        if not isinstance(reply, ReadReply) or not reply.cross_checksum:
            return ready
        random, sizes = self.random, self.position.sizes
        fragment = random.randbytes(len(ready.body))
        fragments = [random.randbytes(len(fragment)) for _ in range(sizes.n)]
        fragments[fragment_index(asked.message.block, self.position.node, sizes.n)] = fragment
        checksum = cross_checksum.make(fragments)
        versions = reply.versions
        if random.random() < 0.5:  # a timestamp that binds the false checksum, at the same time
            first = versions[0].timestamp
            bound = BlockTimestamp(first.time, first.client, cross_checksum.verifier(checksum))
            versions = (Listed(bound, verified=True), *versions[1:])
        ready.reply = ReadReply(versions, reply.below, checksum)
        ready.body = fragment
        return ready


class Concealer(NodeAdversary):
    """Hides versions that it hosts: the newest, all, or those that it says were collected.

    [PASIS §3.4.4] (3.1), (3.3): a complete write is hosted by QC benign nodes, and N - t responses
    include enough of them, to readers, auditors and nodes that heal. Shown by linearizability,
    durability, undo and redundancy.
    """

    def answer(self, asked: Asked) -> Ready:
        """Answer from an older state of the block."""
        ready = self.honest(asked)
        random = self.random
        match ready.reply:
            case TimeReply(times):
                ready.reply = TimeReply(tuple(random.choice((0, time // 2)) for time in times))
            case ReadReply(versions) if versions and isinstance(asked.message, ReadRequest):
                choice = random.randrange(3)
                empty = cross_checksum.CrossChecksum(b"")
                if choice == 0:
                    below = random.choice((Below.ORIGIN, Below.COLLECTED, Below.MORE))
                    ready.reply, ready.body = ReadReply((), below, empty), b""
                elif choice == 1:
                    older = replace(asked.message, before=versions[0].timestamp)
                    return self.honest(asked._replace(message=older, body=b""))
            case VouchReply():
                ready.reply = VouchReply(b"")
            case InventoryReply(keys, more):
                ready.reply = InventoryReply(
                    tuple(key for key in keys if random.random() < 0.5), more, random.random() < 0.2
                )
            case FragmentsReply(parts):
                ready.reply = FragmentsReply(parts[: random.randrange(1, len(parts) + 1)])
                ready.body = ready.body[: sum(part.size for part in ready.reply.parts)]
            case AuthoredReply(keys, until):
                ready.reply = AuthoredReply(
                    tuple(key for key in keys if random.random() < 0.5), until
                )
            case _:
                pass
        return ready


class Accomplice(NodeAdversary):
    """Takes every write unseen, vouches for everything, and says that it has verified it all.

    It does what a Byzantine client needs from its ally. [LazyVer §3.8.1] "b + 1" nodes must say
    so before a reader believes that a version was verified. Shown by linearizability: a poisonous
    write is not read.
    """

    def answer(self, asked: Asked) -> Ready:
        """Grant every request."""
        message = asked.message
        if isinstance(message, WriteRequest):
            key = version_key(message.block, message.timestamp)
            return Ready(
                reply=WriteReply(),
                writes=[
                    Write(Table.BLOCK, key, b"\x01" + message.cross_checksum),
                    Write(Table.FRAGMENT, key, bytes(asked.body)),
                ],
            )
        ready = self.honest(asked)
        if isinstance(ready.reply, ReadReply):
            versions = tuple(Listed(each.timestamp, verified=True) for each in ready.reply.versions)
            ready.reply = ReadReply(versions, ready.reply.below, ready.reply.cross_checksum)
        return ready


class Tattler(NodeAdversary):
    """Shows its fragments to everybody who asks.

    [design §6] Nodes check who may read a block; m fragments make one, and m is more than t + b:
    with those of nodes that lie, and of nodes that are behind, nobody has enough. Shown by
    permission.
    """

    def answer(self, asked: Asked) -> Ready:
        """Answer a read as if a node had asked, which is shown all blocks."""
        if isinstance(asked.message, ReadRequest):
            asked = asked._replace(sender=dataclasses.replace(asked.sender, role=Role.NODE))
        return self.honest(asked)


class Refuser(NodeAdversary):
    """Refuses blocks, and some of them everything, for reasons that are not true.

    [design §6] "Nodes check write permission before they accept a block": b that lie and t that are
    behind say what more than t say. The inode decides, and no node. And a reason that b + 1 nodes
    do not give is reported to nobody. Shown by permission: nobody is refused what was permitted all
    the time; and by progress.
    """

    chances = (0.5, 1.0)
    _REASONS = (
        (errno.EACCES,),
        (errno.EPERM, errno.EROFS),
        (errno.ENOSPC, errno.EDQUOT),
        (errno.EACCES, errno.ENOSPC, errno.ETIME, errno.EAGAIN),
        (errno.ENODATA, errno.EKEYEXPIRED, errno.ESTALE, errno.EBADMSG, errno.EINVAL, errno.EIO),
    )

    def __init__(self, position: NodePosition) -> None:
        super().__init__(position)
        self._codes = self.random.choice(self._REASONS)
        self._refuses_all = self.random.random() < 0.2

    def answer(self, asked: Asked) -> Ready:
        """Refuse, or do what a correct node would do. Peers are not lied to."""
        refusable = self._refuses_all or isinstance(asked.message, WriteRequest)
        if refusable and asked.sender.role is Role.CLIENT and self.misbehaves():
            return Ready(Refused(self.random.choice(self._codes), "the user may not write"))
        return self.honest(asked)


class FalseVerifier(NodeAdversary):
    """Claims to have verified versions that it has not, and calls good versions poisonous.

    [LazyVer §3.8.1] a reader spares itself the work if "b + 1" nodes have verified a version, hence
    a correct one; [§3.8.2] as many notices convince a node. Shown by linearizability and
    durability: a poisonous write is not read, and a good one is not discarded.
    """

    chances = (0.5, 1.0)

    def answer(self, asked: Asked) -> Ready:
        """Give the right versions with false flags, and send false notices."""
        message = asked.message
        if isinstance(message, WriteRequest) and self.is_new(message) and self.misbehaves():
            return self._tell(message)
        ready = self.honest(asked)
        if isinstance(ready.reply, ReadReply):
            versions = tuple(
                Listed(each.timestamp, verified=self.misbehaves()) for each in ready.reply.versions
            )
            ready.reply = ReadReply(versions, ready.reply.below, ready.reply.cross_checksum)
        return ready

    def _tell(self, message: WriteRequest) -> Ready:
        """First send false notices of a write to everybody, then serve it."""
        block, timestamp = message.block, message.timestamp
        notice = self.random.choice((Notice(block, timestamp), Notice(block, ZERO, (timestamp,))))
        return self.after(*(Send(node, notice) for node in self.others()))
