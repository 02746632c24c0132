"""Names and files in one small tree that all clients change; in the end it must be a tree.

Clients use the file system as a mount does, without caches (`strict`). Contents are single blocks
that are read and overwritten whole, so that each file's contents are a register.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from random import Random
from typing import Any

from bftfs import limits
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import NOBODY, Nodes, ThresholdQuorums
from bftfs.coding.erasure import Buffer
from bftfs.conversation import Conversation, Now, Pause
from bftfs.credentials import Credentials
from bftfs.crypto.cipher import NONCE_BYTES, BlockCipher
from bftfs.errors import AdmissionRefused, FileSystemError, PastUnknown, PeerFault
from bftfs.filesystem import acl as acls
from bftfs.filesystem import registry
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.capacity import ClusterCapacity
from bftfs.filesystem.contents import OpenFile
from bftfs.filesystem.directory import Creation, DirectoryCreation, Name, Renaming
from bftfs.filesystem.epochs import CONFIRMED_US, EpochFollower
from bftfs.filesystem.file_history import History, past_file_system
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.identifiers import (
    BlockId,
    ClientId,
    ObjectId,
    ObjectKind,
    block_id,
    inode_of,
    kind_of,
    object_id,
)
from bftfs.query_update.client import Answered, EarlierAttempt, QueryUpdateClient, Vouch
from bftfs.query_update.history import LogicalTimestamp, time_of
from bftfs.query_update.object_type import ObjectTypes, Record
from bftfs.query_update.past_reading import PastReader
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.permission import Permit
from bftfs.read_write.timestamp import BlockTimestamp, version_key
from bftfs.restoration.viewpoint import Viewpoint
from bftfs.simulation.checkers.candidates import chain_of, check_chain
from bftfs.simulation.checkers.disks import check_bound, check_convergence
from bftfs.simulation.checkers.namespace import Call, Established, check_namespace
from bftfs.simulation.checkers.past import ListedVersions, PastTree, WrittenContents, check_past
from bftfs.simulation.checkers.permission import (
    ANY_USE,
    Denied,
    Doors,
    Exposed,
    Shown,
    check_denied,
    check_exposed,
    check_permitted,
)
from bftfs.simulation.checkers.registers import RegisterOperation, check_register, check_regular
from bftfs.simulation.checkers.secrecy import Sealed, Thief, check_secrecy
from bftfs.simulation.checkers.shared_files import SharedFiles, check_shared_files
from bftfs.simulation.checkers.tree import SeenObject, check_tree
from bftfs.simulation.checkers.undo import Restored, Undone, check_restored, check_undone
from bftfs.simulation.deployment import CREDENTIALS, STRANGER, Sizes
from bftfs.simulation.key_epochs import KeyEpochs, identity
from bftfs.simulation.principals import SimulatedClient
from bftfs.simulation.workloads import CorrectNodes, Task
from bftfs.simulation.workloads.past import CONTENT_BYTES, tree_of, versions_of
from bftfs.simulation.workloads.shared_files import (
    make_shared_files,
    read_shared_files,
    use_shared_files,
)
from bftfs.simulation.workloads.undo import ROOT, restore, undo
from bftfs.simulation.world import SECOND_US, START_US

PASTS = 4  # times at which the auditor looks at the tree as it was, and one more
WALKS = 4  # of the tree, at most, until two of them agree
PAUSE_US = 300_000  # between a file's creation and the first write to it, at most
PATCH_SAVES_BYTES = 64  # small blocks are patched as well
LISTED = 12  # objects whose versions it lists
INTRUSIONS = 8  # of a client's changes, at most, are taken back
Path = tuple[bytes, ...]  # of names, from the root on

SUPERUSER = Credentials(uid=0, gid=0)


def _acl(mask: int) -> bytes:
    """An ACL that names the stranger, with the permissions that the mask leaves."""
    tag = acls.Tag
    entries = (
        acls.AclEntry(tag.OWNER, 0o6),
        acls.AclEntry(tag.USER, 0o6, STRANGER.uid),
        acls.AclEntry(tag.OWNING_GROUP, 0),
        acls.AclEntry(tag.MASK, mask),
        acls.AclEntry(tag.OTHERS, 0),
    )
    return acls.AccessControlList(entries).encode()


_ACL_OPEN, _ACL_MASKED = _acl(0o6), _acl(0o4)

_WITH_ATTRIBUTES = (ObjectKind.DIRECTORY, ObjectKind.INODE)
_BUNDLED = 6  # objects in a bundle

GROUPS = 0o660  # the mode of new files: also for a group that the stranger is not in
FORBIDDEN = b"forbidden"  # a name that only clients without the right to it create


@dataclass(frozen=True, slots=True)
class FileMix:
    """How names and contents are used."""

    names: int = 4  # that everybody contends for, in each directory
    contents: float = 0.3  # the share of operations on contents
    directories: float = 0.4  # the share of operations on names that are about directories
    private: float = 0.2  # the share of creations under names that nobody else uses
    made: float = 0.0  # the share of operations that make a file, write it and close it
    past: float = 0.0  # the share of operations that read the tree as it was
    modes: float = 0.0  # the share of operations that change permissions
    doors: float = 0.0  # the share of those that permit a stranger to write a file, or forbid it
    guests: float = 0.0  # the share of writes that the stranger makes, permitted or not
    shared: float = 0.0  # the share of operations that write two files which all clients write
    undo: bool = False  # the auditor undoes a client's changes, and restores a former state
    epochs: bool = False  # contents are sealed, and revocations begin key epochs
    bundles: float = 0.0  # the share of queries before which many objects' attributes are asked for


@dataclass(slots=True)
class _Private:
    """A name that one client uses once: created, and perhaps removed."""

    name: bytes
    created: bool = False  # as acknowledged
    removing: bool = False  # as begun
    removed: bool = False  # as acknowledged


class FileWorkload:
    """Clients that change one tree."""

    def __init__(
        self,
        random: Random,
        sizes: Sizes,
        types: ObjectTypes,
        mix: FileMix,
        key_epochs: KeyEpochs | None = None,
        possible_versions: int | None = None,
    ) -> None:
        """A node takes `possible_versions` of one client, if nodes verify."""
        self.random = random
        self.sizes = sizes
        self.types = types
        self.mix = mix
        self.key_epochs = key_epochs
        self.possible_versions = possible_versions
        self.sealed: list[Sealed] = []  # by correct clients
        self.unread: list[str] = []  # what they could not open, as findings
        self.root = self._identifier(ObjectKind.DIRECTORY)
        self.volume = self._identifier(ObjectKind.VOLUME)
        self.names = [b"%d" % number for number in range(mix.names)]
        self.private: list[_Private] = []
        self.known: dict[ObjectId, None] = {self.root: None}  # every object heard of, in order
        self.contents: dict[ObjectId, list[RegisterOperation]] = {}
        self.made: set[ObjectId] = set()  # by mounts that show what they write when they close it
        self.calls: list[Call] = []  # on the namespace, by correct clients
        self.correct: dict[ClientId, None] = {}
        self.shared = SharedFiles()
        self.tree: dict[ObjectId, SeenObject] | None = None  # as the auditor has found it
        self.pasts: list[PastTree] = []  # likewise, as of times
        self.listed: dict[ObjectId, ListedVersions] = {}  # versions of objects, likewise
        self.kept_since_us: Callable[[], int] | None = None
        self.no_longer_kept = 0  # times at which what was then had gone, as it may
        self.past_reads = 0  # before the audit
        self.undone: Undone | None = None  # what the auditor took back
        self.restored: Restored | None = None  # …and what it brought back
        self.blocks: dict[ObjectId, WrittenContents] = {}  # what correct clients wrote in files
        self.acknowledged: list[bytes] = []  # the keys of these versions
        self.strange: dict[bytes, float] = {}  # contents that the stranger wrote, and since when
        self.exposed: list[tuple[ObjectId, bytes, float]] = []  # to the stranger, and when
        self.cut_off: set[str] = set()
        self.denied: dict[Credentials, list[Denied]] = {}  # writes that were refused to users
        self.done: list[str] = []  # operations that ended, for the digest
        self._items = 0

    def _identifier(self, kind: ObjectKind) -> ObjectId:
        return object_id(
            kind, placement=self.random.randrange(256), unique=self.random.randbytes(14)
        )

    @property
    def operations(self) -> int:
        """The number of calls begun: on the namespace, and of contents."""
        return len(self.calls) + sum(map(len, self.contents.values())) + self.past_reads

    @property
    def objects(self) -> list[ObjectId]:
        """The objects that there may be."""
        return list(self.known)

    def session(self, host: SimulatedClient, name: str) -> FileSession:
        """A client's session."""
        return FileSession(self, host, name)

    def new_content(self, name: str) -> bytes:
        """Contents that no file has had."""
        self._items += 1
        return f"{name}#{self._items}".encode().ljust(CONTENT_BYTES, b".")

    def attempted(self, name: str, at: float) -> tuple[str, tuple[ObjectId, ...], Record]:
        """An update that a Byzantine client may make: any method, with objects as they come.

        Not `relocate`: that a directory does not move below itself is for its client to see to.
        """
        del name, at
        random = self.random
        known = list(self.known)
        directories = [each for each in known if kind_of(each) == ObjectKind.DIRECTORY]
        inodes = [each for each in known if kind_of(each) == ObjectKind.INODE] or [
            self._identifier(ObjectKind.INODE)
        ]
        directory, other = random.choice(directories), random.choice(directories)
        inode, title = random.choice(inodes), random.choice(self.names)
        match random.randrange(7):
            case 0:
                fresh = random.choice((inode, self._identifier(ObjectKind.INODE)))
                self.known[fresh] = None
                creation = Creation(title, stat.S_IFREG | 0o600, 0, 0, b"", limits.BLOCK_BYTES_MIN)
                return registry.CREATE, (directory, fresh), creation
            case 1:
                fresh = random.choice((other, self._identifier(ObjectKind.DIRECTORY)))
                self.known[fresh] = None
                return (
                    registry.MAKE_DIRECTORY,
                    (directory, fresh),
                    DirectoryCreation(title, 0o700, 0),
                )
            case 2:
                return registry.LINK, (directory, inode), Name(title)
            case 3:
                return registry.UNLINK, (directory, inode), Name(title)
            case 4:
                return registry.REMOVE_DIRECTORY, (directory, other), Name(title)
            case 5:
                return registry.CHANGE_ATTRIBUTES, (inode,), Changes(mode=random.randrange(0o1000))
            case _:
                target = random.choice(self.names)
                child = random.choice((inode, other))
                replaced = random.choice((child, inode, other))
                roles = (directory, random.choice((directory, other)), child, replaced)
                return registry.RENAME, roles, Renaming(title, target, random.choice((0, 0, 1, 2)))

    def forbidden(self) -> tuple[str, tuple[ObjectId, ...], Record]:
        """An update that must never take place."""
        fresh = self._identifier(ObjectKind.INODE)
        creation = Creation(FORBIDDEN, stat.S_IFREG | 0o600, 0, 0, b"", limits.BLOCK_BYTES_MIN)
        return registry.CREATE, (self.root, fresh), creation

    def block_of_a_file(self) -> BlockId:
        """The only block of a file that there may be."""
        inodes = [each for each in self.known if kind_of(each) == ObjectKind.INODE] or [
            self._identifier(ObjectKind.INODE)
        ]
        return block_id(self.random.choice(inodes), incarnation=0, number=0)

    def intruding(self, name: str, block: BlockId, at: float) -> bytes:
        """Contents that a Byzantine client may write from now on, as the stranger."""
        content = self.new_content(name)
        if name in self.cut_off:
            return content
        self.strange[content] = at
        identifier = inode_of(block)
        begun = RegisterOperation(name, "write", content, at)
        self.contents.setdefault(identifier, []).append(begun)
        self.blocks.setdefault(identifier, WrittenContents()).begins(content)
        if self.key_epochs is None:
            return content
        nonce = self.random.randbytes(NONCE_BYTES)
        return BlockCipher(self.key_epochs.volume_key).seal(block, content, nonce=nonce)

    def expose(self, name: str, block: BlockId, item: bytes, at: float) -> None:
        """A Byzantine client has put together a block, for the stranger."""
        if self.key_epochs is not None:
            try:
                item = self.key_epochs.cipher_of(name).open(block, item)
            except PeerFault:
                return
        self.exposed.append((inode_of(block), item, at))

    # --- judging -----------------------------------------------------------------------------

    def findings(self) -> list[str]:
        """Errors in the tree, in private names, and in contents."""
        found: list[str] = []
        for identifier, operations in self.contents.items():
            check = check_regular if identifier in self.made else check_register
            found += check(operations, name=f"file {identifier.hex()[-6:]}")
        found += check_shared_files(self.shared)
        found += self.unread
        found += check_secrecy(self.sealed, self._begun(), self._thieves())
        if self.tree is None:
            return found
        found += check_tree(self.tree, root=self.root)
        there = self.tree[self.root].entries if self.root in self.tree else {}
        if FORBIDDEN in there:
            found.append(f"{FORBIDDEN!r} was created by a client without the right to")
        for private in self.private:
            if private.created and not private.removing and private.name not in there:
                found.append(f"{private.name!r} was created, and is lost")
            if private.removed and private.name in there:
                found.append(f"{private.name!r} was removed, and is there")
        return found

    def findings_on_disks(self, evidence: CorrectNodes) -> list[str]:
        """Each object has one chain, and hosted blocks are what was written."""
        found = list(evidence.candidates.findings)
        found += check_bound(evidence.disks, N=self.sizes.read_write.N)
        if evidence.retention is not None:
            found += evidence.retention.findings_on_blocks(self.acknowledged)
        established = self.sizes.query_update.q - evidence.byzantine
        for identifier, accepted in evidence.candidates.accepted.items():
            found += check_chain(
                accepted, established=established, name=f"object {identifier.hex()[:8]}"
            )
        # The auditor has updated the root, when nobody else did anything any more.
        settled = {}
        if self.tree is not None:
            root = evidence.candidates.accepted[self.root]
            settled[self.root] = chain_of(root, established=established)[-1]
        found += check_convergence(evidence.disks, settled=settled, needed=established)
        taken = Established(evidence.candidates, established, self.types)
        found += check_past(self.pasts, self.listed, taken, contents=self.blocks)
        if self.undone is not None:
            found += check_undone(
                self.undone,
                taken,
                contents=self.blocks,
                auditor=self.calls[-1].author,
                root=self.root,
            )
        if self.restored is not None:
            time_us = self.restored.time_us
            then = next(past for past in self.pasts if past.time_us == time_us)
            found += check_restored(self.restored, then, root=self.root)
        found += check_permitted(self._shown(), Doors(taken, self.calls, STRANGER))
        found += check_exposed(self._exposed(), Doors(taken, self.calls, STRANGER, ANY_USE))
        for who, denied in self.denied.items():
            found += check_denied(denied, Doors(taken, self.calls, who))
        return found + check_namespace(self.calls, taken, correct=self.correct)

    def _begun(self) -> dict[bytes, float]:
        """The contents that were written, and when that began."""
        return {
            each.value: each.invoked
            for operations in self.contents.values()
            for each in operations
            if each.kind == "write"
        }

    def _thieves(self) -> dict[str, Thief]:
        """The clients whose revocation has reached enough nodes."""
        epochs = self.key_epochs
        if epochs is None:
            return {}
        return {
            name: Thief(epochs.cipher_of(name), epochs.reached[place] + CONFIRMED_US)
            for name, place in epochs.revoked.items()
            if place < len(epochs.reached)
        }

    def _shown(self) -> Iterator[Shown]:
        """What was read of the stranger's bytes."""
        for identifier, operations in self.contents.items():
            for each in operations:
                if each.kind == "read" and each.value in self.strange and each.responded < inf:
                    began = self.strange[each.value]
                    yield Shown(identifier, each.value, began, each.responded)
        for past in self.pasts:
            for identifier, seen in past.objects.items():
                if seen.content in self.strange:
                    began = self.strange[seen.content]
                    yield Shown(identifier, seen.content, began, inf)

    def _exposed(self) -> Iterator[Exposed]:
        """The bytes of others that the stranger has put together from fragments.

        Where fewer fragments make a block than nodes may be behind and lie together, nothing is
        promised: a real cluster has no such thresholds.
        """
        sizes = self.sizes.read_write
        if sizes.m <= sizes.t + sizes.b:
            return
        for identifier, content, ended in self.exposed:
            written = (
                each.invoked
                for each in self.contents.get(identifier, ())
                if each.kind == "write" and each.value == content
            )
            if content not in self.strange:
                yield Exposed(identifier, content, next(written, -inf), ended)

    def past_times(self) -> list[int]:
        """Times to look at: when something changed, just before, and any others."""
        changed = {
            time_of(version)
            for call in self.calls
            if call.update and not call.error
            for version in call.named[:1]
        }
        if not changed or self.mix.shared:  # files of several blocks are no registers
            return []
        chosen = self.random.sample(sorted(changed), min(PASTS, len(changed)))
        times = [
            *(time_us - self.random.choice((0, 0, 1)) for time_us in chosen),
            self.random.randint(min(changed), max(changed)),
        ]
        if self.kept_since_us is not None:
            times += (self.kept_since_us() + SECOND_US, max(changed))  # which have to be there
        return times

    def intrusion(self) -> tuple[ClientId, int] | None:
        """A client, and a time since which it has changed a little."""
        changed: dict[ClientId, list[int]] = {}
        for call in self.calls:
            made = call.update and call.responded < inf and not call.error
            if made and call.method != registry.FORMAT:
                changed.setdefault(call.author, []).append(time_of(call.named[0]))
        changed.pop(self.calls[-1].author, None)  # the auditor
        if not changed:
            return None
        client = self.random.choice(sorted(changed))
        return client, self.random.choice(sorted(changed[client])[-INTRUSIONS:])

    def digested(self) -> Iterable[str]:
        """The operations, line by line."""
        return self.done


class _RecordedMetadata(QueryUpdateClient):
    """A client's access to metadata, which takes down every call and what became of it."""

    def __init__(
        self, workload: FileWorkload, host: SimulatedClient, name: str, peers: Peers
    ) -> None:
        super().__init__(host.client, peers, workload.types)
        self._workload = workload
        self._host = host
        self._name = name
        workload.correct[host.client] = None

    async def query(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        credentials: Credentials,
    ) -> Answered:
        """Invoke a query, at times behind a bundle: mounts here cache nothing, and ask for none."""
        workload = self._workload
        if workload.mix.bundles and workload.random.random() < workload.mix.bundles:
            known = [name for name in workload.known if kind_of(name) in _WITH_ATTRIBUTES]
            await self.bundle(
                known[-_BUNDLED:], registry.GET_ATTRIBUTES, NoArguments(), credentials
            )
        asking = super().query(objects, method, arguments, credentials)
        return await self._witnessed(method, objects, arguments, asking, update=False)

    async def bundle(
        self,
        objects: Sequence[ObjectId],
        method: str,
        arguments: Record,
        credentials: Credentials,
    ) -> dict[ObjectId, Answered]:
        """Invoke a query of each object: each is a call of its own."""
        world = self._host.world
        calls = {
            name: Call(
                self._name, method, (name,), arguments, False, world.now_us, author=self.client
            )
            for name in objects
        }
        self._workload.calls += calls.values()
        found = await super().bundle(objects, method, arguments, credentials)
        for name, answered in found.items():
            call = calls[name]
            call.answer, call.named = answered.answer, (answered.timestamp,)
            call.responded = world.now_us
        return found

    async def update(
        self,
        objects: tuple[ObjectId, ...],
        method: str,
        arguments: Record,
        credentials: Credentials,
        *,
        not_before_us: int = 0,
        vouch: Vouch | None = None,
        reaching: Nodes = NOBODY,
        earlier: list[EarlierAttempt] | None = None,
    ) -> Answered:
        """Invoke an update."""
        asking = super().update(
            objects,
            method,
            arguments,
            credentials,
            not_before_us=not_before_us,
            vouch=vouch,
            reaching=reaching,
            earlier=earlier,
        )
        return await self._witnessed(method, objects, arguments, asking, update=True)

    async def _witnessed(
        self,
        method: str,
        objects: tuple[ObjectId, ...],
        arguments: Record,
        asking: Conversation[Answered],
        *,
        update: bool,
    ) -> Answered:
        world = self._host.world
        call = Call(
            self._name, method, objects, arguments, update, world.now_us, author=self.client
        )
        self._workload.calls.append(call)
        try:
            answered = await asking
        except FileSystemError as refusal:
            call.error = refusal.code
            call.named = tuple(map(LogicalTimestamp, refusal.versions))
            call.responded = world.now_us
            raise
        call.answer = answered.answer
        call.named = (answered.timestamp,) * len(set(call.objects))
        call.responded = world.now_us
        return answered


class _RecordedBlocks(ReadWriteClient):
    """A client's access to blocks, which takes down what was written, and what became of it."""

    def __init__(
        self, workload: FileWorkload, client: ClientId, peers: Peers, cipher: BlockCipher | None
    ) -> None:
        super().__init__(client, workload.sizes.read_write, peers)
        self._workload = workload
        self._cipher = cipher

    async def write_many(
        self,
        items: Sequence[tuple[BlockId, Buffer]],
        credentials: Credentials,
        *,
        after_us: int = 0,
        is_asking: bool = True,
        permit: Permit | None = None,
    ) -> tuple[BlockTimestamp, ...]:
        """Write blocks."""
        contents = [self._opened(block, bytes(item)) for block, item in items]
        for (block, _), content in zip(items, contents, strict=True):
            self._contents(block).begins(content)
        times = await super().write_many(
            items, credentials, after_us=after_us, is_asking=is_asking, permit=permit
        )
        for (block, _), content, made in zip(items, contents, times, strict=True):
            self._contents(block).ends(content, made)
            self._workload.acknowledged.append(version_key(block, made))
        return times

    def _opened(self, block: BlockId, item: bytes) -> bytes:
        """The contents of a data-item, which is taken down if it is sealed."""
        if self._cipher is None:
            return item
        content = self._cipher.open(block, item)
        self._workload.sealed.append(Sealed(block, item, content))
        return content

    def _contents(self, block: BlockId) -> WrittenContents:
        return self._workload.blocks.setdefault(inode_of(block), WrittenContents())


class FileSession:
    """One client, from its start to its crash."""

    def __init__(self, workload: FileWorkload, host: SimulatedClient, name: str) -> None:
        self.workload = workload
        self.host = host
        self.name = name
        peers = Peers(ThresholdQuorums(workload.sizes.query_update))
        self._objects = _RecordedMetadata(workload, host, name, peers)
        self._past = PastReader(self._objects)
        cipher, follower = self._keys(peers)
        self._blocks = _RecordedBlocks(workload, host.client, peers, cipher)
        self._capacity = ClusterCapacity(workload.sizes.read_write, peers)
        # The second one is that of a mount that is not strict, the third one a stranger's.
        self._system, self._closing, self._strangers = (
            FileSystem(
                self._objects,
                self._blocks,
                self._capacity,
                cipher,
                root=workload.root,
                volume=workload.volume,
                options=self._options(strict=strict),
                epochs=follower,
            )
            for strict in (True, False, True)
        )

    def _options(self, *, strict: bool) -> Options:
        """The options of a mount.

        It writes no more blocks at once than a node takes unverified of one client. Limits that are
        drawn are a thousandth of the real ones, which no mount comes near: of a batch that is
        larger than the limit each node takes other blocks, and none of them is complete.
        """
        options = Options(strict=strict, access_times=False, patch_saves_bytes=PATCH_SAVES_BYTES)
        most = self.workload.possible_versions
        if most is None or most * limits.BLOCK_BYTES_MIN >= options.batch_bytes:
            return options
        return replace(options, batch_bytes=most * limits.BLOCK_BYTES_MIN, batches_in_flight=1)

    def _keys(self, peers: Peers) -> tuple[BlockCipher | None, EpochFollower | None]:
        """The keys of a machine that has got any of the descriptions, and what keeps them new."""
        epochs = self.workload.key_epochs
        if epochs is None:
            return None, None
        described = self.workload.random.choice(epochs.signed).description
        cipher = BlockCipher(None if described.epochs else epochs.volume_key)
        return cipher, EpochFollower(described, identity(self.name), cipher, peers)

    def prepare(self) -> Iterator[Task]:
        """Make the file system."""
        yield self._task(
            "format",
            partial(self._system.format, CREDENTIALS, block_bytes=limits.BLOCK_BYTES_MIN),
        )
        if self.workload.mix.shared:
            making = partial(make_shared_files, self._system, self.workload.root)
            yield self._task("make shared files", making)

    def next_task(self) -> Task:
        """An operation on names or contents."""
        random, mix = self.workload.random, self.workload.mix
        if mix.shared and random.random() < mix.shared:
            system = random.choice((self._system, self._closing, self._closing))
            root, shared = self.workload.root, self.workload.shared
            using = use_shared_files(system, root, shared, random, self.name)
            return self._task("use shared files", lambda: using, saves=True)
        if mix.made and random.random() < mix.made:
            return self._make_file()
        if mix.past and random.random() < mix.past:
            return self._read_past()
        if mix.modes and random.random() < mix.modes:
            return self._change_mode()
        if mix.doors and random.random() < mix.doors:
            return self._open_or_close()
        if mix.guests and random.random() < mix.contents * mix.guests:
            return self._intrude()
        if random.random() < mix.contents:
            return random.choice((self._read, self._write))()
        if random.random() < mix.private:
            return self._private()
        return self._on_names()

    def audit(self) -> Iterator[Task]:
        """Make and remove something in the root, by a client alone; walk the tree, now and then."""
        root, system, name = self.workload.root, self._system, b"audited"
        yield self._task("mkdir", partial(system.make_directory, root, name, 0o700, CREDENTIALS))
        yield self._task("rmdir", partial(system.remove_directory, root, name, CREDENTIALS))
        # Servers may be finishing what a client has left behind: a walk is many queries, and shows
        # one tree if the next one shows the same.
        before = None
        for _ in range(WALKS):
            yield self._task("walk", self._walk)
            if self.workload.tree == before:
                break
            before = self.workload.tree
        for time_us in self.workload.past_times():
            walk = partial(self._walk_past, time_us)
            yield self._task(f"walk at {time_us}", walk)
        if self.workload.mix.shared:
            reading = partial(read_shared_files, self._system, root, self.workload.shared)
            yield self._task("read shared files", reading)
        # A state of which nodes have removed a part is no model of anything.
        if self.workload.mix.undo and self.workload.kept_since_us is None:
            yield from self._undo_and_restore()
        for identifier in list(self.workload.known)[:LISTED]:
            list_versions = partial(self._list_versions, identifier)
            yield self._task(f"log {identifier.hex()}", list_versions)

    def _undo_and_restore(self) -> Iterator[Task]:
        """Take back what one client did since a time; restore the tree as it was at another."""
        workload = self.workload
        whose = workload.intrusion()
        if whose is None:
            return
        client, since_us = whose
        taking_back = partial(self._undo, client, since_us)
        yield self._task(f"undo since {since_us}", taking_back, may_fail=False)
        pasts = [past for past in workload.pasts if past.objects]
        if pasts:
            past, delete = workload.random.choice(pasts), workload.random.random() < 0.7
            restoring = partial(self._restore, past.time_us, delete=delete)
            yield self._task(f"restore {past.time_us}", restoring, may_fail=False)

    # --- operations --------------------------------------------------------------------------

    def _task(
        self,
        name: str,
        conversation: Callable[[], Conversation[Any]],
        *,
        may_fail: bool = True,
        saves: bool = False,
    ) -> Task:
        """An operation, which may fail as operations on names do, if it is one of a user."""

        async def perform() -> None:
            what, world, done = f"{self.name} {name}", self.host.world, self.workload.done
            try:
                await conversation()
            except Exception as error:
                done.append(f"{what} {world.now_us} {error!r}")
                lacks_key = isinstance(error, FileSystemError) and error.code == errno.EIO
                if lacks_key and self.workload.key_epochs is not None:
                    self.workload.unread.append(f"secrecy: {what} at {world.now_us}: {error!r}")
                # A write may be refused for want of permission, by nodes that are behind as well;
                # a mount tells it to the program that closes the file.
                refused = isinstance(error, AdmissionRefused) and error.code == errno.EACCES
                if not may_fail or not (refused or isinstance(error, FileSystemError)):
                    raise
            else:
                done.append(f"{what} {world.now_us}")

        return Task(name, perform, saves)

    def _on_names(self) -> Task:
        random, mix = self.workload.random, self.workload.mix
        one, other = random.choice(self.workload.names), random.choice(self.workload.names)
        about_directories = random.random() < mix.directories
        kinds: tuple[Callable[..., Conversation[Any]], ...] = (
            (self._make_directory, self._remove_directory, self._rename)
            if about_directories
            else (self._create, self._create, self._link, self._unlink, self._rename)
        )
        operation = random.choice(kinds)
        places = [self._path(), self._path()]
        conversation = partial(operation, *places, one, other)
        return self._task(f"{operation.__name__} {places} {one!r} {other!r}", conversation)

    def _path(self) -> Path:
        """Where: the root, or a directory that may be there."""
        random = self.workload.random
        return tuple(random.choices(self.workload.names, k=random.choice((0, 0, 0, 1, 1, 2))))

    async def _resolve(self, path: Path) -> ObjectId:
        identifier = self.workload.root
        for name in path:
            identifier = (await self._system.lookup(identifier, name, CREDENTIALS)).identifier
            self.workload.known[identifier] = None
            if kind_of(identifier) != ObjectKind.DIRECTORY:
                raise FileSystemError(errno.ENOTDIR)  # as a kernel would
        return identifier

    async def _create(self, place: Path, _: Path, name: bytes, __: bytes) -> None:
        directory = await self._resolve(place)
        mode = stat.S_IFREG | GROUPS
        found = await self._system.make_node(directory, name, mode, CREDENTIALS)
        self.workload.known[found.identifier] = None

    async def _make_directory(self, place: Path, _: Path, name: bytes, __: bytes) -> None:
        directory = await self._resolve(place)
        found = await self._system.make_directory(directory, name, 0o700, CREDENTIALS)
        self.workload.known[found.identifier] = None

    async def _link(self, place: Path, other: Path, name: bytes, title: bytes) -> None:
        found = await self._system.lookup(await self._resolve(place), name, CREDENTIALS)
        await self._system.link(found.identifier, await self._resolve(other), title, CREDENTIALS)

    async def _unlink(self, place: Path, _: Path, name: bytes, __: bytes) -> None:
        await self._system.unlink(await self._resolve(place), name, CREDENTIALS)

    async def _remove_directory(self, place: Path, _: Path, name: bytes, __: bytes) -> None:
        await self._system.remove_directory(await self._resolve(place), name, CREDENTIALS)

    async def _rename(self, place: Path, other: Path, name: bytes, title: bytes) -> None:
        source, target = await self._resolve(place), await self._resolve(other)
        flags = self.workload.random.choice((0, 0, 0, 1, 2))
        await self._system.rename(source, name, target, title, CREDENTIALS, flags=flags)

    def _change_mode(self) -> Task:
        """Give a file or directory other permissions, its owner's among them."""
        random = self.workload.random
        place, name = self._path(), random.choice(self.workload.names)
        mode = 0o700 | random.choice((0, 0o40, 0o55))

        async def change() -> None:
            found = await self._system.lookup(await self._resolve(place), name, CREDENTIALS)
            await self._system.change_attributes(found.identifier, Changes(mode=mode), CREDENTIALS)

        return self._task(f"chmod {place} {name!r} {mode:o}", change)

    def _open_or_close(self) -> Task:
        """Permit the stranger to write a file, or forbid it: by mode, ACL, owner or group."""
        random = self.workload.random
        place, name = self._path(), random.choice(self.workload.names)
        way, opens = random.randrange(4), random.random() < 0.5

        async def change() -> None:
            system = self._system
            found = (await system.lookup(await self._resolve(place), name, CREDENTIALS)).identifier
            if kind_of(found) != ObjectKind.INODE:
                return
            match way:
                case 0:
                    changes = Changes(mode=0o606 if opens else random.choice((0o600, 0o664)))
                    await system.change_attributes(found, changes, CREDENTIALS)
                case 1:
                    acl = _ACL_OPEN if opens else random.choice((b"", _ACL_MASKED))
                    await system.set_extended(found, acls.ACCESS, acl, CREDENTIALS)
                case 2:
                    gid = STRANGER.gid if opens else CREDENTIALS.gid
                    changes = Changes(mode=0o660, gid=gid)
                    await system.change_attributes(found, changes, SUPERUSER)
                case _:
                    uid = STRANGER.uid if opens else CREDENTIALS.uid
                    await system.change_attributes(found, Changes(uid=uid), SUPERUSER)

        return self._task(f"{'open' if opens else 'close'} {way} {place} {name!r}", change)

    def _intrude(self) -> Task:
        """Overwrite a file's contents as the stranger, permitted or not."""
        workload, world = self.workload, self.host.world
        place, name = self._path(), workload.random.choice(workload.names)
        content = workload.new_content(self.name)

        async def write() -> None:
            directory = await self._resolve(place)
            found = (await self._system.lookup(directory, name, CREDENTIALS)).identifier
            workload.strange[content] = world.now_us
            # As another: the mount itself would check whether the stranger may open it.
            file = await self._strangers.open(found, os.O_RDWR, SUPERUSER)
            file.who = STRANGER
            await self._overwrite(self._strangers, found, file, content)

        return self._task(f"intrude {place} {name!r}", write)

    def _private(self) -> Task:
        """Create a name that nobody else uses, or remove one."""
        workload, system = self.workload, self._system
        random = workload.random
        mine = [each for each in workload.private if each.created and not each.removing]
        if mine and random.random() < 0.4:
            private = random.choice(mine)

            async def unlink() -> None:
                private.removing = True
                await system.unlink(workload.root, private.name, CREDENTIALS)
                private.removed = True

            return self._task(f"unlink {private.name!r}", unlink)
        private = _Private(b"private %d" % len(workload.private))
        workload.private.append(private)

        async def create() -> None:
            await system.make_node(workload.root, private.name, stat.S_IFREG | 0o600, CREDENTIALS)
            private.created = True

        return self._task(f"create {private.name!r}", create)

    def _write(self) -> Task:
        """Overwrite a file's contents."""
        workload = self.workload
        place, name = self._path(), workload.random.choice(workload.names)
        content = workload.new_content(self.name)

        async def write() -> None:
            directory = await self._resolve(place)
            found = (await self._system.lookup(directory, name, CREDENTIALS)).identifier
            file = await self._system.open(found, os.O_RDWR, CREDENTIALS)
            await self._overwrite(self._system, found, file, content)

        return self._task(f"write {place} {name!r}", write)

    async def _overwrite(
        self, system: FileSystem, identifier: ObjectId, file: OpenFile, content: bytes
    ) -> None:
        """Write an open file's contents, close it, and take that down."""
        world = self.host.world
        begun = RegisterOperation(self.name, "write", content, world.now_us)
        self.workload.contents.setdefault(identifier, []).append(begun)
        try:
            if system.write(file, 0, content, now_ns=(START_US + world.now_us) * 1_000):
                await system.write_behind(file)
            await system.synchronize(file)
            await system.release(file)
        except (AdmissionRefused, FileSystemError) as refused:
            if refused.code == errno.EACCES:
                denied = Denied(identifier, content, begun.invoked, world.now_us)
                self.workload.denied.setdefault(file.who, []).append(denied)
            raise
        begun.responded = world.now_us

    def _make_file(self) -> Task:
        """Make a file, and write it a moment later, when others may have done so."""
        workload = self.workload
        place, name = self._path(), workload.random.choice(workload.names)
        content, pause_us = workload.new_content(self.name), workload.random.randrange(PAUSE_US)

        async def make() -> None:
            closing = self._closing
            directory = await self._resolve(place)
            found, file = await closing.create(directory, name, GROUPS, CREDENTIALS)
            workload.known[found.identifier] = None
            workload.made.add(found.identifier)
            await Pause(pause_us)
            await self._overwrite(closing, found.identifier, file, content)
            await Pause(1)
            await self._look(found.identifier)

        return self._task(f"make {place} {name!r}", make)

    def _read(self) -> Task:
        """Read a file's contents."""
        workload = self.workload
        place, name = self._path(), workload.random.choice(workload.names)

        async def read() -> None:
            place_now = await self._resolve(place)
            await self._look((await self._system.lookup(place_now, name, CREDENTIALS)).identifier)

        return self._task(f"read {place} {name!r}", read)

    async def _look(self, identifier: ObjectId) -> None:
        """Read a file's contents, and take them down."""
        system, invoked = self._system, self.host.world.now_us
        file = await system.open(identifier, os.O_RDONLY, CREDENTIALS)
        content = bytes(await system.read(file, 0, CONTENT_BYTES))
        await system.release(file)
        operations = self.workload.contents.setdefault(identifier, [])
        # A mount shows its own programs what it has on its way to the nodes, whatever others
        # have closed meanwhile: no register does.
        if not any(
            each.kind == "write" and each.client == self.name and each.responded >= invoked
            for each in operations
        ):
            operations.append(
                RegisterOperation(
                    self.name, "read", content.strip(b"\0") or None, invoked, self.host.world.now_us
                )
            )

    # --- audit -------------------------------------------------------------------------------

    async def _walk(self) -> None:
        """Take down every object that is reachable or was heard of."""
        known = list(self.workload.known)
        self.workload.tree = await tree_of(self._system, known, CREDENTIALS, with_contents=False)

    def _read_past(self) -> Task:
        """Read the tree as it was a while ago, while it may be collected.

        It has to be there. What it contains is not judged: a client whose clock is behind may still
        change it.
        """
        workload = self.workload
        kept_since_us = workload.kept_since_us
        now_us = START_US + self.host.world.now_us
        oldest_us = now_us - SECOND_US if kept_since_us is None else 2 * kept_since_us() - now_us
        time_us = workload.random.randint(min(oldest_us, now_us), now_us)

        async def read() -> None:
            workload.past_reads += 1
            await self._tree_at(time_us)

        return self._task(f"tree of {time_us}", read)

    async def _walk_past(self, time_us: int) -> None:
        """Take down everything that the root led to at a time."""
        tree = await self._tree_at(time_us)
        if tree is not None:
            self.workload.pasts.append(tree)

    async def _tree_at(self, time_us: int) -> PastTree | None:
        """Everything that the root led to at a time; None if that is no longer kept."""
        view = past_file_system(
            self._system,
            self._past,
            self._blocks,
            at_us=time_us,
        )
        try:
            return PastTree(time_us, await tree_of(view, [self.workload.root], CREDENTIALS))
        except PastUnknown:
            kept_since_us = self.workload.kept_since_us
            if kept_since_us is None or time_us >= kept_since_us():
                raise
            self.workload.no_longer_kept += 1
            return None

    async def _view(self) -> Viewpoint:
        """The history as the commands see it."""
        history = History(
            self._system,
            self._objects,
            self._past,
            self._blocks,
        )
        # Clients whose clocks are ahead have made what is seen: not before that.
        latest_us = max((past.time_us for past in self.workload.pasts), default=0)
        await Pause(max(0, latest_us - await Now()) + 1)
        return Viewpoint(self._system, history, ROOT, await Now())

    async def _undo(self, client: ClientId, since_us: int) -> None:
        self.workload.undone = await undo(await self._view(), client, since_us)

    async def _restore(self, time_us: int, *, delete: bool) -> None:
        self.workload.restored = await restore(await self._view(), time_us, delete=delete)

    async def _list_versions(self, identifier: ObjectId) -> None:
        kept_since_us = self.workload.kept_since_us
        try:
            versions = await versions_of(self._past, identifier)
        except PastUnknown:
            if kept_since_us is None:
                raise
            return  # where each node has collected up to another version, no b + 1 lists are alike
        kept_us = 0 if kept_since_us is None else kept_since_us()
        self.workload.listed[identifier] = ListedVersions(versions, CREDENTIALS.uid, kept_us)
