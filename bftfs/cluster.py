"""The cluster description: nodes, clients, and settings on which all of them must agree.

A frozen value, and its form as TOML. `description_files.py` signs it and keeps it in files.

Each description has a number, its serial, one more than that of the description it was made from.
So a machine that has seen a description recognises older ones, even if a backup brings them back.
It also names the latest ones that its signer knew of (`FollowedDescription`). So a machine tells if
one was made in ignorance of another, on a second machine of the administrator's, whatever the
numbers of the two are.

Every mistake in the file is a `UsageError` that names the file, the place, the reason and the next
step: people edit this file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import tomli_w

from bftfs import limits
from bftfs.addresses import parse_address
from bftfs.credentials import Grant
from bftfs.crypto import epochs as epoch_keys
from bftfs.crypto.digest import AuthenticatorKeys, Digest, client_id_of, cluster_digest
from bftfs.crypto.keys import (
    PUBLIC_KEY_BYTES,
    Identity,
    authenticator_key,
    is_public_key,
)
from bftfs.errors import ImpossibleThresholds, UsageError
from bftfs.identifiers import (
    CLIENT_ID_BYTES,
    EPOCH_ID_BYTES,
    FIRST_EPOCH,
    OBJECT_ID_BYTES,
    ClientId,
    EpochId,
    NodeId,
    ObjectId,
    ObjectKind,
    object_id,
)
from bftfs.retention import LetGo, format_duration, parse_duration
from bftfs.server.step import Role, Sender
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds

FORMAT = 1
CLUSTER_ID_BYTES = 16

Parsed = TypeVar("Parsed")

_CLIENTS = 4096
_LET_GO = 1024  # decisions that are remembered; beyond, those that were signed first are forgotten
EPOCHS = 1024  # after the first one; no more can be made
FOLLOWED = 32  # descriptions that a description names as known
FOLLOWED_BYTES = 16  # of the digest of each
_PAST_CLIENTS = 4096  # that are remembered; beyond, those that were revoked first are forgotten
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # also the name of a key file
_END_S = 1 << 37  # beyond the year 6000: no date of ours
_NO_GRANT = Grant(uids=(), write=False)  # nodes and the administrator act for no user
_COMMENT = (
    "# A bftfs cluster. Nodes and clients accept it only as signed in the file next to it;\n"
    "# after a change by hand, run `bftfs cluster sign`.\n\n"
)


class Durability(Enum):
    """When a node replies to a write: once it is on stable storage, or before (synced soon)."""

    SYNC = "sync"
    INTERVAL = "interval"


@dataclass(frozen=True, slots=True)
class Member:
    """A storage node."""

    node: NodeId
    address: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class ClientEntry:
    """A client and its rights."""

    name: str
    public_key: bytes
    grant: Grant = field(default_factory=Grant)
    added_s: int | None = None  # since the epoch; None: not known
    share: int | None = None  # of the room of a node, in percent; None: what the description says
    epoch_key: bytes = b""  # that of the latest epoch, for this client; empty: it has not got it

    @property
    def client(self) -> ClientId:
        """The client's id in timestamps and accounts."""
        return client_id_of(self.public_key)


@dataclass(frozen=True, slots=True)
class PastClient:
    """A client that was revoked: whose its id was, in histories."""

    name: str
    client: ClientId
    added_s: int | None  # since the epoch; None: not known
    revoked_s: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """A time during which clients seal what they write with one key. (`bftfs.key_epochs`)"""

    number: int  # of two epochs, the later one's is higher; concurrent ones may have the same
    epoch: EpochId
    begun_s: int  # since the epoch of Unix


class FollowedDescription(NamedTuple):
    """A description that a later one's signer knew of."""

    serial: int
    digest: bytes  # its beginning


@dataclass(frozen=True)
class ClusterDescription:
    """One version of the description that the administrator has signed.

    Of two versions, the one with the higher serial is valid.

    Node i is the i-th member. All public keys, addresses and client names differ.
    """

    cluster_id: bytes
    view: int
    t: int
    b: int
    administrator: bytes
    members: tuple[Member, ...]
    clients: tuple[ClientEntry, ...]
    volume: ObjectId
    root: ObjectId
    durability: Durability = Durability.SYNC
    block_bytes: int = limits.BLOCK_BYTES_DEFAULT
    window_us: int = limits.DETECTION_WINDOW_US  # younger history is always kept [design §8]
    serial: int = 0
    client_share: int = 100  # of the room of a node that each client may use, in percent
    past_clients: tuple[PastClient, ...] = ()  # in the order in which they were revoked
    let_go: tuple[LetGo, ...] = ()  # in the order in which they were signed
    epochs: tuple[Epoch, ...] = ()  # after the first one, in their order; the last one is alone
    keyring: bytes = b""  # the keys of earlier epochs, sealed with that of the last one
    # The latest descriptions that its signer knew of, ascending, and from which serial on it lists
    # all of these. Without any it is said to know of all with lower serials.
    follows: tuple[FollowedDescription, ...] = ()
    follows_from: int | None = None

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def n(self) -> int:
        """The number of nodes."""
        return len(self.members)

    @cached_property
    def query_update(self) -> QueryUpdateThresholds:
        """The quorums of the Q/U objects."""
        return QueryUpdateThresholds.for_nodes(self.n, t=self.t, b=self.b)

    @cached_property
    def read_write(self) -> ReadWriteThresholds:
        """The sizes of the block protocol."""
        return ReadWriteThresholds.for_nodes(self.n, t=self.t, b=self.b)

    @cached_property
    def digest(self) -> Digest:
        """Identifies this version of the description."""
        return cluster_digest(encode(self))

    @property
    def epoch(self) -> EpochId:
        """The latest key epoch."""
        return self.epochs[-1].epoch if self.epochs else FIRST_EPOCH

    @property
    def epoch_number(self) -> int:
        """The number of the latest key epoch; 0 for the first one."""
        return self.epochs[-1].number if self.epochs else 0

    @property
    def as_followed(self) -> FollowedDescription:
        """How later descriptions name this one."""
        return FollowedDescription(self.serial, self.digest[:FOLLOWED_BYTES])

    def knows_of(self, other: ClusterDescription) -> bool:
        """True if the signer of this one knew `other`, or it is older than what this one lists.

        Otherwise this one gives back no right that `other` takes: its signer did not know of that.
        """
        if other.serial < self._follows_from or other.digest == self.digest:
            return True
        return other.as_followed in self.follows

    def replaces(self, other: ClusterDescription) -> bool:
        """True if it names `other`, and so has everything of it that counts."""
        return other.as_followed in self.follows and self.has_ends_of(other)

    def has_ends_of(self, other: ClusterDescription) -> bool:
        """True if it has all epochs of `other`, and calls each client revoked that `other` does."""
        revoked = {past.client for past in self.past_clients}
        epochs = {each.epoch for each in self.epochs}
        return all(past.client in revoked for past in other.past_clients) and all(
            each.epoch in epochs for each in other.epochs
        )

    def following(self, others: Iterable[ClusterDescription]) -> ClusterDescription:
        """This description, with the same serial, whose signer knows of itself and of `others`."""
        each = (self, *others)
        known = sorted({known for one in each for known in (*one.follows, one.as_followed)})
        begin = max(one._follows_from for one in each)
        if len(known) > FOLLOWED:
            begin = max(begin, known[-FOLLOWED - 1].serial + 1)
        follows = tuple(one for one in known[-FOLLOWED:] if one.serial >= begin)
        return replace(self, follows=follows, follows_from=begin)

    @property
    def _follows_from(self) -> int:
        return self.serial if self.follows_from is None else self.follows_from

    def member(self, node: NodeId) -> Member:
        """The node with this number."""
        if not 0 <= node < self.n:
            raise UsageError(f"there is no node {node}; the cluster has nodes 0 to {self.n - 1}")
        return self.members[node]

    def client(self, client: ClientId) -> ClientEntry | None:
        """The client with this id, if it is listed."""
        return self._clients_by_id.get(client)

    def share_of(self, client: ClientId) -> float:
        """The part of a node's history pool that the client's versions of blocks may use."""
        entry = self.client(client)
        chosen = None if entry is None else entry.share
        return (self.client_share if chosen is None else chosen) / 100

    def principal(self, public_key: bytes) -> Sender | None:
        """The holder of `public_key`, as an origin of messages; None if it is unknown."""
        return self._senders.get(public_key)

    def authenticator_keys(self, identity: Identity, node: NodeId) -> AuthenticatorKeys:
        """The keys with which node `node`, which is `identity`, makes and checks authenticators."""
        return AuthenticatorKeys(
            node,
            tuple(authenticator_key(identity, member.public_key) for member in self.members),
        )

    def with_client(self, entry: ClientEntry) -> ClusterDescription:
        """This description with one more client, whose key must be new: not a revoked one."""
        return replace(self, clients=(*self.clients, entry), serial=self.serial + 1)

    def without_client(self, name: str, *, at_s: int) -> ClusterDescription:
        """This description without the client called `name`, which is revoked at `at_s`."""
        entry = next((entry for entry in self.clients if entry.name == name), None)
        if entry is None:
            known = ", ".join(entry.name for entry in self.clients) or "none"
            raise UsageError(f"there is no client {name!r}; the clients are: {known}")
        past = PastClient(entry.name, entry.client, entry.added_s, at_s)
        return replace(
            self,
            clients=tuple(each for each in self.clients if each is not entry),
            past_clients=(*self.past_clients, past)[-_PAST_CLIENTS:],
            serial=self.serial + 1,
        )

    def letting_go(
        self, *, before_s: int, at_s: int, client: ClientId | None = None, since_s: int = 0
    ) -> ClusterDescription:
        """This description with the decision, of `at_s`, to let history of before go."""
        decision = LetGo(before_s, at_s, self.serial + 1, client, since_s)
        decisions = (*self.let_go, decision)[-_LET_GO:]
        return replace(self, let_go=decisions, serial=self.serial + 1)

    def with_revocations_of(self, other: ClusterDescription) -> ClusterDescription:
        """This description, with the same serial, without clients that `other` calls revoked."""
        known = {past.client for past in self.past_clients}
        more = tuple(past for past in other.past_clients if past.client not in known)
        gone = {past.client for past in more}
        return replace(
            self,
            clients=tuple(each for each in self.clients if each.client not in gone),
            past_clients=(*self.past_clients, *more)[-_PAST_CLIENTS:],
        )

    def narrowed_by(self, other: ClusterDescription) -> ClusterDescription:
        """This description, with the same serial, with the rights that `other` grants as well.

        Of clients that both list: grants, and shares of the room.
        """
        return replace(self, clients=tuple(self._narrowed(each, other) for each in self.clients))

    def _narrowed(self, entry: ClientEntry, other: ClusterDescription) -> ClientEntry:
        theirs = other.client(entry.client)
        if theirs is None:
            return entry
        if theirs.grant != entry.grant:
            entry = replace(entry, grant=entry.grant.narrowed_by(theirs.grant))
        share = other.share_of(entry.client)
        if share < self.share_of(entry.client):
            entry = replace(entry, share=round(100 * share))
        return entry

    def is_superseded_by(self, other: ClusterDescription) -> bool:
        """True if a machine that has seen this description replaces it by `other`.

        If two descriptions have the same serial, because both were made from the same older one, a
        machine keeps the one that it has seen first.
        """
        return other.cluster_id == self.cluster_id and other.serial > self.serial

    @cached_property
    def _clients_by_id(self) -> dict[ClientId, ClientEntry]:
        return {entry.client: entry for entry in self.clients}

    @cached_property
    def _senders(self) -> dict[bytes, Sender]:
        senders = {
            entry.public_key: Sender(Role.CLIENT, entry.client, grant=entry.grant)
            for entry in self.clients
        }
        for member in self.members:
            senders[member.public_key] = Sender(
                Role.NODE, client_id_of(member.public_key), node=member.node, grant=_NO_GRANT
            )
        senders[self.administrator] = Sender(
            Role.ADMINISTRATOR, client_id_of(self.administrator), grant=_NO_GRANT
        )
        return senders


def _validate(description: ClusterDescription) -> None:
    """Raise UsageError unless the parts of the description fit together."""
    _validate_sizes(description)
    for position, member in enumerate(description.members):
        if member.node != position:
            raise UsageError(
                f"member {position} has node = {member.node}; "
                "members are numbered from 0 in the order in which they are listed"
            )
        _parsed(f"members[{position}].address", member.address, parse_address)
    for entry in description.clients:
        _validate_client(entry)
    for past in description.past_clients:
        _validate_name(past.name)
    for decision in description.let_go:
        _validate_let_go(decision)
    _validate_epochs(description)
    if len(description.follows) > FOLLOWED:
        raise UsageError(f"follows: {len(description.follows)} descriptions, {FOLLOWED} at most")
    _distinct("address", ((m.address, f"member {m.node}") for m in description.members))
    _distinct("name", ((c.name, f"client {c.name!r}") for c in description.clients))
    keys = [
        (description.administrator, "the administrator"),
        *((m.public_key, f"member {m.node}") for m in description.members),
        *((c.public_key, f"client {c.name!r}") for c in description.clients),
    ]
    _distinct("public key", keys)
    for key, owner in keys:
        if not is_public_key(key):
            raise UsageError(f"the public key of {owner} is not valid; copy the key again")
    _distinct(
        "id",
        (
            *((c.client, f"client {c.name!r}") for c in description.clients),
            *((c.client, f"past client {c.name!r}") for c in description.past_clients),
        ),
    )


def _validate_let_go(decision: LetGo) -> None:
    if decision.since_s and decision.client is None:
        raise UsageError("history is let go since a time only where it is of one client")
    after_s = 0 if decision.client else limits.LET_GO_AFTER_US // limits.SECOND_US
    if decision.before_s + after_s > decision.signed_s:
        raise UsageError(
            f"history of before {_moment(decision.before_s)} is let go by a decision of "
            f"{_moment(decision.signed_s)}, and has to be {after_s} s older than that"
        )


def _validate_epochs(description: ClusterDescription) -> None:
    epochs = description.epochs
    if len(epochs) > EPOCHS:
        raise UsageError(f"{len(epochs)} key epochs; a cluster has at most {EPOCHS}")
    _distinct("id", ((each.epoch, f"epoch {each.number}") for each in epochs))
    numbers = [each.number for each in epochs]
    if numbers != sorted(numbers) or numbers.count(max(numbers, default=0)) > 1 or 0 in numbers:
        raise UsageError("the numbers of key epochs begin with 1 and grow; the last one is alone")
    ring = epoch_keys.KEYRING_OVERHEAD_BYTES + epoch_keys.KEYRING_ENTRY_BYTES * len(epochs)
    if len(description.keyring) != (ring if epochs else 0):
        raise UsageError(
            f"the keyring has {len(description.keyring)} bytes, and the keys that come before "
            f"{len(epochs)} epochs take {ring if epochs else 0}; get the description again"
        )
    for entry in description.clients:
        if len(entry.epoch_key) not in ((0, epoch_keys.BOX_BYTES) if epochs else (0,)):
            raise UsageError(
                f"client {entry.name!r}: its epoch key has {len(entry.epoch_key)} bytes, not "
                f"{epoch_keys.BOX_BYTES if epochs else 0}; get the description again"
            )


def _validate_sizes(description: ClusterDescription) -> None:
    if len(description.members) > limits.NODES:
        raise UsageError(
            f"{len(description.members)} members; a cluster has at most {limits.NODES} nodes"
        )
    if len(description.clients) > _CLIENTS:
        raise UsageError(
            f"{len(description.clients)} clients; a cluster has at most {_CLIENTS}, "
            "remove those that are no longer used"
        )
    try:
        _ = description.query_update
        description.read_write.require_knowing_vouchers()
    except ImpossibleThresholds as error:
        t, b = description.t, description.b
        raise UsageError(
            f"{len(description.members)} nodes cannot tolerate t={t} faults, b={b} of them "
            f"Byzantine: {error.inequality} does not hold ({error.given}); "
            f"lower t or b, or list at least {max(3 * t + 2 * b + 1, 1)} members"
        ) from error
    seconds, rest = divmod(description.window_us, limits.SECOND_US)
    if rest or not 0 <= seconds <= limits.DETECTION_WINDOW_MOST_US // limits.SECOND_US:
        raise UsageError(
            "the detection window is a number of whole seconds, at most a hundred years"
        )
    if len(description.past_clients) > _PAST_CLIENTS:
        raise UsageError(
            f"{len(description.past_clients)} past clients; at most {_PAST_CLIENTS} are remembered"
        )
    if len(description.let_go) > _LET_GO:
        raise UsageError(
            f"history was let go {len(description.let_go)} times; at most {_LET_GO} are remembered"
        )
    for share in (description.client_share, *(each.share for each in description.clients)):
        if share is not None and not 1 <= share <= 100:
            raise UsageError(f"{share} is not a share of the room: write 1 to 100, in percent")
    size = description.block_bytes
    if size & (size - 1) or not limits.BLOCK_BYTES_MIN <= size <= limits.BLOCK_BYTES_MAX:
        raise UsageError(
            f"block_bytes = {size} is not a power of two "
            f"from {limits.BLOCK_BYTES_MIN} to {limits.BLOCK_BYTES_MAX}; "
            f"the default is {limits.BLOCK_BYTES_DEFAULT}"
        )


def _validate_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a name for a client; use 1 to 64 letters, digits, dots, dashes "
            "and underscores, and begin with a letter or digit"
        )


def _validate_client(entry: ClientEntry) -> None:
    _validate_name(entry.name)
    if entry.grant.subtree != "/":
        raise UsageError(
            f"client {entry.name!r}: nodes cannot hold a client to the subtree "
            f'{entry.grant.subtree!r} yet; write `subtree = "/"`, and limit the client by uids'
        )
    for what, numbers in (("uid", entry.grant.uids or ()), ("gid", entry.grant.gids)):
        for number in numbers:
            if not 0 <= number < 1 << 32:
                raise UsageError(
                    f"client {entry.name!r}: {number} is not a {what}; {what}s are 0 to 4294967295"
                )
    if entry.grant.squash_root and 0 in (entry.grant.uids or ()):
        raise UsageError(
            f"client {entry.name!r}: root is to act as nobody, and so uid 0 is not one of its "
            "uids: remove it, or `squash_root`"
        )
    if entry.grant.gids and entry.grant.uids is None:
        raise UsageError(
            f"client {entry.name!r} may act as any uid, and so with any group: leave `gids` out, "
            "or name the `uids` that it may act as"
        )


def _distinct(what: str, named: Iterable[tuple[Any, str]]) -> None:
    seen: dict[Any, str] = {}
    for value, owner in named:
        if value in seen:
            raise UsageError(
                f"{owner} and {seen[value]} have the same {what}; each needs one of its own"
            )
        seen[value] = owner


# --- making one ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewCluster:
    """A description and the identities that were made for it."""

    description: ClusterDescription
    administrator: Identity
    nodes: tuple[Identity, ...]


def create(
    addresses: Sequence[str],
    *,
    t: int,
    b: int,
    draw: Callable[[int], bytes],
    durability: Durability = Durability.SYNC,
    block_bytes: int = limits.BLOCK_BYTES_DEFAULT,
    window_us: int = limits.DETECTION_WINDOW_US,
    client_share: int = 100,
) -> NewCluster:
    """A new cluster with a node at each address; `draw(count)` gives `count` unguessable bytes."""
    administrator = Identity.generate(draw(32))
    nodes = tuple(Identity.generate(draw(32)) for _ in addresses)
    description = ClusterDescription(
        cluster_id=draw(CLUSTER_ID_BYTES),
        view=1,
        t=t,
        b=b,
        administrator=administrator.public_key,
        members=tuple(
            Member(NodeId(node), address, identity.public_key)
            for node, (address, identity) in enumerate(zip(addresses, nodes, strict=True))
        ),
        clients=(),
        volume=object_id(ObjectKind.VOLUME, placement=0, unique=draw(OBJECT_ID_BYTES - 2)),
        root=object_id(ObjectKind.DIRECTORY, placement=0, unique=draw(OBJECT_ID_BYTES - 2)),
        durability=durability,
        block_bytes=block_bytes,
        window_us=window_us,
        client_share=client_share,
    )
    return NewCluster(description, administrator, nodes)


# --- TOML ------------------------------------------------------------------------------------


class _MemberTable(msgspec.Struct, forbid_unknown_fields=True):
    node: int
    address: str
    public_key: str


class _ClientTable(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    public_key: str
    write: bool
    subtree: str
    uids: tuple[int, ...] | None = None
    gids: tuple[int, ...] = ()
    squash_root: bool = False
    added: datetime | None = None
    share: int | None = None
    epoch_key: str = ""


class _PastTable(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    id: str
    revoked: datetime
    added: datetime | None = None


class _LetGoTable(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    before: datetime
    signed: datetime
    number: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    client: str | None = None
    since: datetime | None = None


class _EpochTable(msgspec.Struct, forbid_unknown_fields=True):
    number: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
    id: str
    begun: datetime


class _FollowedTable(msgspec.Struct, forbid_unknown_fields=True):
    serial: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    digest: str


class _Document(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The file, field by field; bytes are hexadecimal digits."""

    format: int
    cluster_id: str
    serial: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] = 0
    view: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
    t: int
    b: int
    administrator: str
    durability: str
    block_bytes: int
    detection_window: str = format_duration(limits.DETECTION_WINDOW_US)
    client_share: int | msgspec.UnsetType = msgspec.UNSET
    volume: str
    root: str
    keyring: str | msgspec.UnsetType = msgspec.UNSET
    members: tuple[_MemberTable, ...] = ()
    clients: tuple[_ClientTable, ...] = ()
    past_clients: tuple[_PastTable, ...] | msgspec.UnsetType = msgspec.UNSET
    let_go: tuple[_LetGoTable, ...] | msgspec.UnsetType = msgspec.UNSET
    epochs: tuple[_EpochTable, ...] | msgspec.UnsetType = msgspec.UNSET
    follows_from: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] | msgspec.UnsetType = msgspec.UNSET
    follows: tuple[_FollowedTable, ...] | msgspec.UnsetType = msgspec.UNSET


def encode(description: ClusterDescription) -> bytes:
    """The description as TOML."""
    document = _Document(
        format=FORMAT,
        cluster_id=description.cluster_id.hex(),
        serial=description.serial,
        view=description.view,
        t=description.t,
        b=description.b,
        administrator=description.administrator.hex(),
        durability=description.durability.value,
        block_bytes=description.block_bytes,
        detection_window=format_duration(description.window_us),
        client_share=msgspec.UNSET if description.client_share == 100 else description.client_share,
        volume=description.volume.hex(),
        root=description.root.hex(),
        keyring=description.keyring.hex() or msgspec.UNSET,
        members=tuple(
            _MemberTable(member.node, member.address, member.public_key.hex())
            for member in description.members
        ),
        clients=tuple(
            _ClientTable(
                entry.name,
                entry.public_key.hex(),
                entry.grant.write,
                entry.grant.subtree,
                entry.grant.uids,
                entry.grant.gids,
                entry.grant.squash_root,
                _date(entry.added_s),
                entry.share,
                entry.epoch_key.hex(),
            )
            for entry in description.clients
        ),
        past_clients=tuple(
            _PastTable(each.name, each.client.hex(), _moment(each.revoked_s), _date(each.added_s))
            for each in description.past_clients
        )
        or msgspec.UNSET,
        let_go=tuple(
            _LetGoTable(
                _moment(each.before_s),
                _moment(each.signed_s),
                each.number,
                None if each.client is None else each.client.hex(),
                _date(each.since_s or None),
            )
            for each in description.let_go
        )
        or msgspec.UNSET,
        epochs=tuple(
            _EpochTable(each.number, each.epoch.hex(), _moment(each.begun_s))
            for each in description.epochs
        )
        or msgspec.UNSET,
        follows_from=(
            msgspec.UNSET if description.follows_from is None else description.follows_from
        ),
        follows=tuple(
            _FollowedTable(each.serial, each.digest.hex()) for each in description.follows
        )
        or msgspec.UNSET,
    )
    tables = msgspec.to_builtins(document, builtin_types=(datetime,))
    return (_COMMENT + tomli_w.dumps(tables)).encode()


def decode(encoded: bytes, *, source: str) -> ClusterDescription:
    """The description that TOML text stands for; `source` names it in messages."""
    try:
        document = tomllib.loads(encoded.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8 text; get the file again") from error
    except (ValueError, RecursionError) as error:  # a superclass of tomllib.TOMLDecodeError
        raise UsageError(f"{source} is not valid TOML: {error}; correct it there") from error
    found = document.get("format", FORMAT)
    if found != FORMAT:
        raise UsageError(
            f"{source}: format = {found}, and this bftfs reads format {FORMAT}; "
            "use the version of bftfs that wrote the file"
        )
    try:
        return _described(msgspec.convert(document, _Document))
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        where = _shown(document, place.rstrip("`"))
        raise UsageError(f"{source}: {where}{reason}; correct it there") from error
    except UsageError as error:
        raise UsageError(f"{source}: {error.message}") from error


def _shown(document: Any, place: str) -> str:
    """The field at `place`, such as `members[1].node`, with the value found there."""
    for key in re.findall(r"\w+", place):
        document = document[int(key) if isinstance(document, list) else key]
    if not place or isinstance(document, (dict, list)):
        return f"{place}: " if place else ""
    return f"{place} = {document!r}: "


def _described(document: _Document) -> ClusterDescription:
    kinds = [kind.value for kind in Durability]
    if document.durability not in kinds:
        raise UsageError(f"durability = {document.durability!r}: write {' or '.join(kinds)}")
    return ClusterDescription(
        cluster_id=_octets("cluster_id", document.cluster_id, CLUSTER_ID_BYTES),
        view=document.view,
        t=document.t,
        b=document.b,
        administrator=_octets("administrator", document.administrator, PUBLIC_KEY_BYTES),
        members=tuple(
            Member(
                NodeId(each.node),
                each.address,
                _octets(f"members[{at}].public_key", each.public_key, PUBLIC_KEY_BYTES),
            )
            for at, each in enumerate(document.members)
        ),
        clients=tuple(_client(f"clients[{at}]", each) for at, each in enumerate(document.clients)),
        past_clients=tuple(
            _past_client(f"past_clients[{at}]", each)
            for at, each in enumerate(document.past_clients or ())
        ),
        let_go=tuple(
            _decision(f"let_go[{at}]", each) for at, each in enumerate(document.let_go or ())
        ),
        epochs=tuple(
            Epoch(
                each.number,
                EpochId(_octets(f"epochs[{at}].id", each.id, EPOCH_ID_BYTES)),
                _seconds(f"epochs[{at}].begun", each.begun) or 0,
            )
            for at, each in enumerate(document.epochs or ())
        ),
        keyring=_any_octets("keyring", document.keyring or ""),
        follows=tuple(
            FollowedDescription(
                each.serial, _octets(f"follows[{at}].digest", each.digest, FOLLOWED_BYTES)
            )
            for at, each in enumerate(document.follows or ())
        ),
        follows_from=None if document.follows_from is msgspec.UNSET else document.follows_from,
        volume=_object_id("volume", document.volume, ObjectKind.VOLUME),
        root=_object_id("root", document.root, ObjectKind.DIRECTORY),
        durability=Durability(document.durability),
        block_bytes=document.block_bytes,
        window_us=_parsed("detection_window", document.detection_window, parse_duration),
        serial=document.serial,
        client_share=100 if document.client_share is msgspec.UNSET else document.client_share,
    )


def _client(place: str, table: _ClientTable) -> ClientEntry:
    return ClientEntry(
        table.name,
        _octets(f"{place}.public_key", table.public_key, PUBLIC_KEY_BYTES),
        Grant(table.uids, table.write, table.subtree, table.gids, table.squash_root),
        _seconds(f"{place}.added", table.added),
        table.share,
        _any_octets(f"{place}.epoch_key", table.epoch_key),
    )


def _past_client(place: str, table: _PastTable) -> PastClient:
    return PastClient(
        table.name,
        ClientId(_octets(f"{place}.id", table.id, CLIENT_ID_BYTES)),
        _seconds(f"{place}.added", table.added),
        _seconds(f"{place}.revoked", table.revoked) or 0,
    )


def _decision(place: str, table: _LetGoTable) -> LetGo:
    client = None
    if table.client is not None:
        client = ClientId(_octets(f"{place}.client", table.client, CLIENT_ID_BYTES))
    return LetGo(
        _seconds(f"{place}.before", table.before) or 0,
        _seconds(f"{place}.signed", table.signed) or 0,
        table.number,
        client,
        _seconds(f"{place}.since", table.since) or 0,
    )


def _parsed(name: str, text: str, parse: Callable[[str], Parsed]) -> Parsed:
    """Parse the `text` of the field `name`. Raises UsageError, which names the field."""
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError(f"{name}: {error.message}") from None


def _moment(since_epoch_s: int) -> datetime:
    return datetime.fromtimestamp(since_epoch_s, UTC)


def _date(since_epoch_s: int | None) -> datetime | None:
    return None if since_epoch_s is None else _moment(since_epoch_s)


def _seconds(name: str, moment: datetime | None) -> int | None:
    """Seconds since the epoch. Raises UsageError, which names the field."""
    if moment is None:
        return None
    if moment.tzinfo is None or not 0 <= (seconds := moment.timestamp()) < _END_S:
        raise UsageError(f"{name} = {moment}: write a time such as 2026-11-23T15:00:00Z")
    return int(seconds)


def _octets(name: str, digits: str, length: int) -> bytes:
    try:
        octets = bytes.fromhex(digits)
    except ValueError:
        octets = b""
    if len(octets) != length or len(digits) != 2 * length:
        raise UsageError(f"{name} = {digits!r}: write {2 * length} hexadecimal digits")
    return octets


def _any_octets(name: str, digits: str) -> bytes:
    return _octets(name, digits, len(digits) // 2)


def _object_id(name: str, digits: str, kind: ObjectKind) -> ObjectId:
    octets = _octets(name, digits, OBJECT_ID_BYTES)
    if octets[0] != kind:
        raise UsageError(
            f"{name} = {digits!r}: write {kind:02x}, the mark of a {kind.name}, at its beginning"
        )
    return ObjectId(octets)
