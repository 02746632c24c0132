"""A simulated cluster with real nodes, for attacks that use one protocol against the other.

The nodes are those of `bftfs.simulation`. Byzantine clients send what they like (`Hand`), with the
keys of lying nodes if the two work together. Any message can be held back for as long as a schedule
wants (`Ways.hold`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.asking.refusal import Refused
from bftfs.coding import cross_checksum
from bftfs.coding.erasure import ErasureCode
from bftfs.conversation import Now, Receive, Send
from bftfs.credentials import Credentials, Grant
from bftfs.crypto.digest import (
    AuthenticatorKeys,
    padded,
    replica_history_digest,
    voucher_digest,
)
from bftfs.filesystem import object_types
from bftfs.filesystem.attributes import Attributes, Changes
from bftfs.filesystem.block_reading import BlockReader
from bftfs.filesystem.capacity import ClusterCapacity
from bftfs.filesystem.contents import Contents
from bftfs.filesystem.objects import ATTRIBUTES_KEY
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.identifiers import BlockId, ClientId, NodeId, ObjectId, ObjectKind, object_id
from bftfs.query_update.client import QueryUpdateClient
from bftfs.query_update.history import (
    Conditioned,
    ConditionedKind,
    Known,
    Operation,
    assemble,
)
from bftfs.query_update.messages import Query, QueryReply, Status, Update, UpdateReply, VouchedBy
from bftfs.query_update.object_type import Record, encode_record
from bftfs.query_update.replica import Replica
from bftfs.read_write.client import ReadWriteClient
from bftfs.read_write.messages import (
    VersionName,
    VouchReply,
    VouchRequest,
    VouchSetRequest,
    WriteReply,
    WriteRequest,
)
from bftfs.read_write.placement import rotation_of
from bftfs.read_write.timestamp import BlockTimestamp, digest_of, encoded, version_key
from bftfs.read_write.writing import Encoded, encode
from bftfs.server.block_verification import VerificationPolicy, VerificationSettings
from bftfs.server.recovery import Recovery, Stage
from bftfs.simulation.byzantine.positions import as_sent
from bftfs.simulation.deployment import Deployment, Sizes
from bftfs.simulation.disk import Tables
from bftfs.simulation.network import Kind, NetworkFaults, SimulatedNetwork
from bftfs.simulation.principals import SimulatedClient, SimulatedPrincipal
from bftfs.simulation.workloads.ledger import ledger_types
from bftfs.simulation.world import SECOND_US, START_US
from bftfs.simulation.world import World as Agenda
from bftfs.storage import Table
from bftfs.wire.codec import Voucher
from bftfs.wire.codec import encode as encode_message


async def latest_complete(
    reader: BlockReader, contents: Contents, number: int, _load: Any, who: Credentials
) -> bytes:
    """In place of `BlockReader._shown`: what nodes host counts, and not what the inode names."""
    block = contents.layout.block(contents.identifier, number)
    version = await reader.blocks.read(block, who, at_time_us=contents.version)
    return bytes(version.item or b"")


TYPES = object_types() | ledger_types()

VOLUME = object_id(ObjectKind.VOLUME, placement=0, unique=b"v" * 14)
ROOT = object_id(ObjectKind.DIRECTORY, placement=0, unique=b"r" * 14)
BLOCK_BYTES = 4096

SUPERUSER = Credentials(uid=0, gid=0)
STRANGER = Credentials(uid=4242, gid=4242)
STRANGERS_GRANT = Grant(uids=(STRANGER.uid,), gids=(STRANGER.gid,))
READERS_GRANT = Grant(uids=(STRANGER.uid,), gids=(STRANGER.gid,), write=False)


class Ways(SimulatedNetwork):
    """A network that holds messages back, if told to, and counts those that it carries."""

    def __init__(self, agenda: Agenda, delay_us: tuple[int, int]) -> None:
        super().__init__(agenda, NetworkFaults(delay_us=delay_us))
        self._holds: Callable[..., bool] | None = None
        self._held: list[tuple[Any, ...]] = []
        self.watch: Callable[..., None] | None = None

    def send(
        self, source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if self.watch is not None:
            self.watch(source, target, kind, message)
        if self._holds is not None and self._holds(source, target, kind, message):
            self._held.append((source, target, kind, number, message, body))
            return
        super().send(source, target, kind, number, message, body)

    def hold(self, holds: Callable[[Any, Any, Kind, Any], bool]) -> None:
        """Hold back from now on what `holds` says; what was held stays so."""
        self._holds = holds

    def release(self, which: Callable[[Any, Any, Kind, Any], bool] | None = None) -> int:
        """Let go of what was held, or of some of it; how many messages that was."""
        held, self._held = self._held, []
        released = 0
        for message in held:
            if which is None or which(*message[:3], message[4]):
                released += 1
                super().send(*message)
            else:
                self._held.append(message)
        return released

    def flow(self) -> None:
        """Hold nothing back any more."""
        self._holds = None
        self.release()


class World:
    """Nodes and clients in virtual time. `verifying` nodes verify, repair and heal unasked."""

    def __init__(
        self,
        t: int = 1,
        b: int = 1,
        *,
        verifying: bool = True,
        policy: VerificationPolicy = VerificationPolicy.COOPERATIVE,
        sizes: Sizes | None = None,
        delay_us: tuple[int, int] = (50, 500),
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.sizes = sizes or Sizes.smallest(t=t, b=b)
        self.agenda = Agenda(seed)
        self.ways = Ways(self.agenda, delay_us)
        self.deployment = Deployment(
            self.agenda,
            self.ways,
            self.sizes,
            types=TYPES,
            verification=VerificationSettings(policy) if verifying else None,
            **options,
        )
        self.nodes = self.deployment.nodes
        self.quorums = ThresholdQuorums(self.sizes.query_update)

    @property
    def now_us(self) -> int:
        return START_US + self.agenda.now_us

    def run_for(self, duration_us: int, *, most_events: int = 2_000_000) -> None:
        end_us = self.agenda.now_us + duration_us
        self.agenda.after(duration_us, lambda: None)
        assert self.agenda.run(
            until=lambda: self.agenda.now_us >= end_us, most_events=most_events
        ), "too much happens"

    def run_until(self, condition: Callable[[], bool], *, within_us: int = 600 * SECOND_US) -> None:
        """Let things happen until then. Fails after `within_us`."""
        end_us = self.agenda.now_us + within_us
        self.agenda.after(within_us, lambda: None)
        assert self.agenda.run(
            until=lambda: condition() or self.agenda.now_us >= end_us, most_events=2_000_000
        ), "too much happens"
        assert condition(), f"it has not happened within {within_us // SECOND_US} s"

    def start(self, host: SimulatedPrincipal, conversation: Coroutine[Any, Any, Any]) -> list[Any]:
        """Begin a conversation; what it comes to (a result or an error) appears in the list."""
        ended: list[Any] = []

        def end(result: Any, error: BaseException | None) -> None:
            ended.append(result if error is None else error)

        if isinstance(host, SimulatedClient):
            host.start(conversation, end)
        else:
            host.engine.start(conversation, end)
            host.arm()
        return ended

    def run(
        self,
        host: SimulatedPrincipal,
        conversation: Coroutine[Any, Any, Any],
        *,
        within_us: int = 600 * SECOND_US,
    ) -> Any:
        """The result of a conversation."""
        ended = self.start(host, conversation)
        self.run_until(lambda: bool(ended), within_us=within_us)
        if isinstance(ended[0], BaseException):
            raise ended[0]
        return ended[0]

    def user(self, name: str, who: Credentials = SUPERUSER, **options: Any) -> User:
        return User(self, name, who, **options)

    def hand(self, name: str, *, grant: Grant | None = None, allies: Iterable[int] = ()) -> Hand:
        return Hand(self, name, grant, tuple(allies))

    # --- disks -------------------------------------------------------------------------------

    def copy_of(self, node: int) -> Tables:
        """What a node has stored."""
        return self.nodes[node].disk.copy()

    def put_back(self, copies: Mapping[int, Tables], *, elsewhere: bool = True) -> None:
        """These nodes start again, at the same time, with what they had stored at some moment.

        As it is when a folder was copied back. Nobody tells the nodes; unless by the place where
        the store lies, if that is `elsewhere`.
        """
        for node in copies:
            self.nodes[node].crash(down_us=None)
        for node, copy in copies.items():
            self.nodes[node].disk.put_back(copy, elsewhere=elsewhere)
            self.nodes[node].start()

    def lose_power(self, copies: Mapping[int, Tables], *, says_so: bool = True) -> None:
        """All machines fail and start again; these nodes lose what they had not synced.

        A node knows that its machine has ended uncleanly, and not whether it has lost anything
        [nodes/store_directory.py]; unless nothing `says_so`: disks that do not sync when told to.
        """
        recoveries = self.deployment.recoveries
        for node in recoveries if says_so else ():
            recoveries[node] = Recovery(Stage.LOST, life=recoveries[node].life)
        all_of_them = {node: copies.get(node, self.copy_of(node)) for node in range(self.sizes.n)}
        self.put_back(all_of_them, elsewhere=False)

    # --- what nodes have ---------------------------------------------------------------------

    def knowing(self, identifier: ObjectId) -> list[int]:
        """The nodes that know of an inode or directory."""
        return [
            int(node.node)
            for node in self.nodes
            if Replica(node.disk, identifier).workspace.get(ATTRIBUTES_KEY) is not None
        ]

    def hosting(self, block: BlockId, timestamp: BlockTimestamp) -> list[int]:
        """The nodes that host a version."""
        key = version_key(block, timestamp)
        return [int(node.node) for node in self.nodes if node.disk.get(Table.BLOCK, key)]


class User:
    """A correct client with a mount that shows and stores everything at once."""

    def __init__(
        self,
        world: World,
        name: str,
        who: Credentials,
        *,
        grant: Grant | None = None,
        skew_us: int = 0,
    ) -> None:
        self._world = world
        self.who = who
        self.host = world.deployment.client(name, grant=grant, skew_us=skew_us)
        self.objects = QueryUpdateClient(self.host.client, Peers(world.quorums), TYPES)
        self.blocks = ReadWriteClient(self.host.client, world.sizes.read_write, self.objects.peers)
        self.capacity = ClusterCapacity(world.sizes.read_write, self.objects.peers)
        self.files = self.filesystem(Options(strict=True, access_times=False))

    def filesystem(self, options: Options) -> FileSystem:
        """A mount with these options."""
        return FileSystem(
            self.objects,
            self.blocks,
            self.capacity,
            None,
            root=ROOT,
            volume=VOLUME,
            options=options,
        )

    def run(self, conversation: Coroutine[Any, Any, Any], **bounds: Any) -> Any:
        return self._world.run(self.host, conversation, **bounds)

    def format(self) -> None:
        self.run(self.files.format(self.who, block_bytes=BLOCK_BYTES))

    def make(self, name: str, contents: str, mode: int = 0o600) -> ObjectId:
        """A new file in the root directory."""

        async def make() -> ObjectId:
            found, file = await self.files.create(
                ROOT, name.encode(), stat.S_IFREG | mode, self.who, flags=os.O_WRONLY
            )
            self.files.write(file, 0, contents.encode(), now_ns=await Now() * 1000)
            await self.files.release(file)
            return found.identifier

        identifier: ObjectId = self.run(make())
        return identifier

    def put(self, identifier: ObjectId, contents: str, offset: int = 0, **bounds: Any) -> None:
        """Write to a file."""
        self.run(self.putting(identifier, contents, offset), **bounds)

    async def putting(self, identifier: ObjectId, contents: str, offset: int = 0) -> None:
        file = await self.files.open(identifier, os.O_WRONLY, self.who)
        self.files.write(file, offset, contents.encode(), now_ns=await Now() * 1000)
        await self.files.release(file)

    def read(self, identifier: ObjectId, size: int = 100) -> str:
        """A file's first bytes, as a mount that knows nothing of it yet shows them."""

        async def read() -> bytes:
            file = await self.files.open(identifier, os.O_RDONLY, self.who)
            contents = bytes(await self.files.read(file, 0, size))
            await self.files.release(file)
            return contents

        contents: bytes = self.run(read())
        return contents.decode()

    def chmod(self, identifier: ObjectId, mode: int) -> None:
        self.run(self.files.change_attributes(identifier, Changes(mode=mode), self.who))

    def attributes(self, identifier: ObjectId) -> Attributes:
        found: Attributes = self.run(self.files.attributes(identifier, self.who))
        return found


class Version:
    """A version of a block that a hand makes: who has it is another matter."""

    def __init__(
        self, hand: FreeHand, block: BlockId, item: bytes, time_us: int, *, poisonous: bool = False
    ) -> None:
        sizes = hand.sizes.read_write
        self.block = block
        self.pieces: Encoded = encode(ErasureCode(sizes.m, sizes.N), item)
        if poisonous:  # the fragments change places
            fragments = (*self.pieces.fragments[1:], self.pieces.fragments[0])
            checksum = cross_checksum.make(fragments)
            self.pieces = Encoded(fragments, checksum, cross_checksum.verifier(checksum))
        self.timestamp = BlockTimestamp(time_us, hand.client, self.pieces.verifier)
        self._rotation = rotation_of(block, sizes.N)
        self._sizes = sizes

    def request(self, who: Credentials, vouchers: tuple[Voucher, ...] = ()) -> WriteRequest:
        return WriteRequest(
            self.block,
            self.timestamp,
            self.pieces.cross_checksum,
            who.uid,
            who.gid,
            who.groups,
            vouchers,
        )

    def fragment(self, node: int) -> bytes:
        return bytes(self.pieces.fragments[(node - self._rotation) % self._sizes.N])


async def now() -> int:
    return await Now()


class FreeHand:
    """A client that sends what it likes, and has the keys of the nodes it is in league with."""

    def __init__(self, client: ClientId, sizes: Sizes, allies: tuple[int, ...]) -> None:
        self.client = client
        self.sizes = sizes
        self.allies = allies

    def perform(self, conversation: Coroutine[Any, Any, Any]) -> Any:
        """The result of a conversation."""
        raise NotImplementedError

    def keys(self, ally: int) -> AuthenticatorKeys:
        """An ally's."""
        raise NotImplementedError

    def ask(
        self, requests: Mapping[int, tuple[Any, bytes]], *, patience_us: int = SECOND_US
    ) -> dict[int, Any]:
        """Send each node its request; the replies."""

        async def ask() -> dict[int, Any]:
            numbers = {
                await Send(NodeId(node), as_sent(message, node, self.sizes.n), body): node
                for node, (message, body) in requests.items()
            }
            replies: dict[int, Any] = {}
            while numbers:
                delivery = await Receive(patience_us)
                if delivery is None:
                    break
                node = numbers.pop(delivery.request_number, None)
                if node is not None:
                    replies[node] = delivery.message
            return replies

        replies: dict[int, Any] = self.perform(ask())
        return replies

    def ask_all(self, message: Any) -> dict[int, Any]:
        return self.ask(dict.fromkeys(range(self.sizes.n), (message, b"")))

    # --- blocks ------------------------------------------------------------------------------

    def version(self, block: BlockId, contents: str, time_us: int) -> Version:
        return Version(self, block, contents.encode(), time_us)

    def poisonous(self, block: BlockId, contents: str, time_us: int) -> Version:
        """A version that decodes to nothing."""
        return Version(self, block, contents.encode(), time_us, poisonous=True)

    def write(
        self,
        version: Version,
        nodes: Iterable[int],
        *,
        vouchers: tuple[Voucher, ...] = (),
        who: Credentials = STRANGER,
    ) -> dict[int, Any]:
        """WRITE of a version to some nodes; what they say."""
        request = version.request(who, vouchers)
        return self.ask({node: (request, version.fragment(node)) for node in nodes})

    def vouchers(self, version: Version) -> tuple[Voucher, ...]:
        """What nodes vouch for; and allies, whether or not they host it."""
        replies = self.ask_all(VouchRequest(version.block, version.timestamp))
        given = {
            node: reply.authenticator
            for node, reply in replies.items()
            if isinstance(reply, VouchReply) and reply.authenticator
        }
        digest = voucher_digest(block=version.block, timestamp=encoded(version.timestamp))
        for ally in self.allies:
            given[ally] = self.keys(ally).make(digest)
        return tuple(Voucher(NodeId(node), made) for node, made in sorted(given.items()))

    def claims(self, versions: Sequence[Version]) -> tuple[Voucher, ...]:
        """What nodes vouch for that host all of these; and allies, whether or not they do."""
        named = [(version.block, version.timestamp) for version in versions]
        replies = self.ask_all(VouchSetRequest(tuple(VersionName(*each) for each in named)))
        given = {
            node: reply.authenticator
            for node, reply in replies.items()
            if isinstance(reply, VouchReply) and reply.authenticator
        }
        for ally in self.allies:
            given[ally] = self.keys(ally).make(digest_of(named))
        return tuple(Voucher(NodeId(node), made) for node, made in sorted(given.items()))

    def finish(self, version: Version, vouchers: tuple[Voucher, ...]) -> dict[int, Any]:
        """Send a version to all nodes, as the repair of somebody else's."""
        return self.write(version, range(self.sizes.n), vouchers=vouchers)

    # --- objects -----------------------------------------------------------------------------

    def prepared(
        self,
        name: ObjectId,
        method: str,
        arguments: Record,
        who: Credentials,
        *,
        claims: tuple[Voucher, ...] = (),
        without: Iterable[int] = (),
    ) -> Update:
        """The request of an update of one object, on what nodes report, `without` some of them."""
        replies = self.ask_all(Query((name,), "", b"", 0, 0, (), NodeId(0)))
        known = {
            NodeId(node): Known(reply.histories[0], reply.authenticators[0])
            for node, reply in replies.items()
            if isinstance(reply, QueryReply) and node not in without
        }
        history_set, authenticators, _ = assemble(name, known)
        operation = Operation(method, (name,), encode_record(arguments), *who, 0)
        clock_us = self.perform(now())
        conditioned = Conditioned(ConditionedKind.METHOD, operation, clock_us, (history_set,))
        shown = VouchedBy(
            bytes(each.node for each in claims), padded([each.authenticator for each in claims])
        )
        return Update(encode_message(conditioned), (authenticators,), (), NodeId(0), shown)

    def update(
        self,
        name: ObjectId,
        method: str,
        arguments: Record,
        who: Credentials,
        *,
        claims: tuple[Voucher, ...] = (),
        asked: Iterable[int] = (),
        without: Iterable[int] = (),
    ) -> list[Status]:
        """An update of one object, with these vouchers; what nodes say: all, or those `asked`.

        `without` what some nodes report.
        """
        update = self.prepared(name, method, arguments, who, claims=claims, without=without)
        nodes = tuple(asked) or range(self.sizes.n)
        replies = self.ask(dict.fromkeys(nodes, (update, b"")))
        return [each.status for each in replies.values() if isinstance(each, UpdateReply)]

    def forged(self, node: int, name: ObjectId, history: bytes) -> Known:
        """A replica history that an ally reports."""
        digest = replica_history_digest(object=name, encoded=history)
        return Known(history, self.keys(node).make(digest))


class Hand(FreeHand):
    """One in a simulated world."""

    def __init__(
        self, world: World, name: str, grant: Grant | None, allies: tuple[int, ...]
    ) -> None:
        self.world = world
        self.host = world.deployment.client(name, grant=grant)
        super().__init__(self.host.client, world.sizes, allies)

    def perform(self, conversation: Coroutine[Any, Any, Any]) -> Any:
        return self.world.run(self.host, conversation)

    def keys(self, ally: int) -> AuthenticatorKeys:
        return self.world.deployment.keys(NodeId(ally))


def accepted(replies: Mapping[int, Any]) -> list[int]:
    """The nodes that host a version, by their replies to a WRITE."""
    return sorted(node for node, reply in replies.items() if isinstance(reply, WriteReply))


def refused(replies: Mapping[int, Any]) -> dict[int, int]:
    """The codes of refusals."""
    return {node: reply.code for node, reply in replies.items() if isinstance(reply, Refused)}


def private_file(t: int, b: int, contents: str) -> tuple[World, User, ObjectId]:
    """A world, its root, and a file 0600 that root has just made: t nodes have not heard of it."""
    world = World(t, b)
    root = world.user("root")
    root.format()
    world.run_for(2 * SECOND_US)
    identifier = root.make("secret", contents, mode=0o600)
    assert world.knowing(identifier) == list(range(world.sizes.query_update.q))
    return world, root, identifier
