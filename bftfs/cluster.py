"""The cluster description: the nodes, the clients, and what all of them have to agree on.

A frozen value, kept as TOML in `cluster.toml` and signed by the administrator: the file next to it,
`cluster.toml.sig`, holds detached Ed25519 signatures, one per line. It keeps the signature of the
previous description beside the current one, so that at every moment of a replacement the
description that is there is a signed one.

Every mistake in the file is a `UsageError` that names the file, the place, the reason and the next
step: people edit this file.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from bftfs import limits
from bftfs.crypto.digest import AuthenticatorKeys, Digest, client_id_of, cluster_digest
from bftfs.crypto.keys import (
    PUBLIC_KEY_BYTES,
    Identity,
    is_public_key,
    pairwise_key,
    verify_signature,
)
from bftfs.durable_files import replace_file
from bftfs.errors import ImpossibleThresholds, UsageError
from bftfs.identifiers import (
    OBJECT_ID_BYTES,
    ClientId,
    NodeId,
    ObjectId,
    ObjectKind,
    kind_of,
    object_id,
)
from bftfs.retention import format_duration, parse_duration
from bftfs.server.step import Grant, Role, Sender
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds

FORMAT = 1
CLUSTER_ID_BYTES = 16

_CLIENTS = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # also the name of a key file
_TCP = re.compile(
    r"tcp:(?:(?P<host>[A-Za-z0-9._-]+)|\[(?P<six>[0-9A-Fa-f:.]+)\]):(?P<port>[0-9]{1,5})", re.ASCII
)
_UNIX_PATH_BYTES = 107  # sun_path of Linux, without its final zero
_SIGNATURES = 2  # in a signature file: of the description, and of the one that it replaced
_SIGNED = b"bftfs cluster description 1\x00"
_NO_GRANT = Grant(uids=(), write=False)  # a node acts for no user
_COMMENT = (
    "# A bftfs cluster. Nodes and clients accept it only as signed in the file next to it;\n"
    "# after a change by hand, run `bftfs cluster sign`.\n\n"
)

Chosen = TypeVar("Chosen", bound=Enum)


class Durability(Enum):
    """When a node replies to a write: once it is on stable storage, or before (synced soon)."""

    SYNC = "sync"
    INTERVAL = "interval"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host, by name or number, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """The address that `unix:/path` or `tcp:host:port` stands for; UsageError if none."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix":
        if not rest.startswith("/") or "\0" in rest:
            raise UsageError(f"the address {text!r} needs an absolute path: `unix:/path/to/socket`")
        if len(os.fsencode(rest)) > _UNIX_PATH_BYTES:
            raise UsageError(
                f"the path in the address {text!r} is longer than the {_UNIX_PATH_BYTES} bytes "
                "that a Unix socket may have; choose a directory with a shorter name"
            )
        return UnixAddress(rest)
    tcp = _TCP.fullmatch(text)
    if tcp and 1 <= int(tcp["port"]) <= 65535:
        return TcpAddress(tcp["six"] or tcp["host"], int(tcp["port"]))
    raise UsageError(
        f"{text!r} is no address; write `unix:/path/to/socket`, `tcp:host:port` "
        "or, for IPv6, `tcp:[::1]:port`, with a port from 1 to 65535"
    )


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

    @property
    def client(self) -> ClientId:
        """The client's id in timestamps and accounts."""
        return client_id_of(self.public_key)


@dataclass(frozen=True)
class ClusterDescription:
    """One version of the description that the administrator has signed.

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
    window_us: int = limits.DETECTION_WINDOW_US  # history younger than that stays [design §8]

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

    def member(self, node: NodeId) -> Member:
        """The node with this number."""
        if not 0 <= node < self.n:
            raise UsageError(f"there is no node {node}; the cluster has nodes 0 to {self.n - 1}")
        return self.members[node]

    def client(self, client: ClientId) -> ClientEntry | None:
        """The client with this id, if it is listed."""
        return self._clients_by_id.get(client)

    def principal(self, public_key: bytes) -> Sender | None:
        """The holder of `public_key`, as an origin of messages; None if it is unknown."""
        return self._senders.get(public_key)

    def authenticator_keys(self, identity: Identity, node: NodeId) -> AuthenticatorKeys:
        """The keys with which node `node`, which is `identity`, makes and checks authenticators."""
        return AuthenticatorKeys(
            node,
            tuple(
                pairwise_key(identity, member.public_key, purpose="authenticator")
                for member in self.members
            ),
        )

    def with_client(self, entry: ClientEntry) -> ClusterDescription:
        """This description with one more client."""
        return replace(self, clients=(*self.clients, entry))

    def without_client(self, name: str) -> ClusterDescription:
        """This description without the client called `name`."""
        remaining = tuple(entry for entry in self.clients if entry.name != name)
        if len(remaining) == len(self.clients):
            known = ", ".join(entry.name for entry in self.clients) or "none"
            raise UsageError(f"there is no client {name!r}; the clients are: {known}")
        return replace(self, clients=remaining)

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
        parse_address(member.address)
    for entry in description.clients:
        _validate_client(entry)
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
            raise UsageError(f"the public key of {owner} is not one; copy the key again")


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
        _ = description.query_update, description.read_write
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
    size = description.block_bytes
    if size & (size - 1) or not limits.BLOCK_BYTES_MIN <= size <= limits.BLOCK_BYTES_MAX:
        raise UsageError(
            f"block_bytes = {size} is not a power of two "
            f"from {limits.BLOCK_BYTES_MIN} to {limits.BLOCK_BYTES_MAX}; "
            f"the default is {limits.BLOCK_BYTES_DEFAULT}"
        )


def _validate_client(entry: ClientEntry) -> None:
    if not _NAME.fullmatch(entry.name):
        raise UsageError(
            f"{entry.name!r} is no name for a client; use 1 to 64 letters, digits, dots, dashes "
            "and underscores, and begin with a letter or digit"
        )
    if entry.grant.subtree != "/":
        raise UsageError(
            f"client {entry.name!r}: nodes cannot hold a client to the subtree "
            f'{entry.grant.subtree!r} yet; write `subtree = "/"`, and limit the client by uids'
        )
    for uid in entry.grant.uids or ():
        if not 0 <= uid < 1 << 32:
            raise UsageError(f"client {entry.name!r}: {uid} is no uid; uids are 0 to 4294967295")


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
    )
    return NewCluster(description, administrator, nodes)


# --- files -----------------------------------------------------------------------------------


def signature_path(path: Path) -> Path:
    """Where the signatures of the description in `path` are."""
    return path.with_name(path.name + ".sig")


def load(path: Path, *, administrator: bytes | None = None) -> ClusterDescription:
    """The description in `path`, verified.

    With `administrator`, it must be signed by that key, wherever the file comes from; without, by
    the key that it names itself, which protects against accidents and not against forgery.
    """
    encoded = _read(path, "cluster description", "create a cluster with `bftfs cluster init`")
    signatures = _read(
        signature_path(path), "signature", "sign the description with `bftfs cluster sign`"
    )
    description = decode(encoded, source=str(path))
    if administrator is not None and administrator != description.administrator:
        raise UsageError(
            f"{path} names another administrator than the one this machine trusts; "
            "get the description from your administrator again"
        )
    if not any(
        _is_signed(encoded, line, description.administrator)
        for line in signatures.split()[:_SIGNATURES]
    ):
        raise UsageError(
            f"{path} is not signed by its administrator: {signature_path(path)} does not match; "
            "if you have changed the file, run `bftfs cluster sign`, else get both files again"
        )
    return description


def load_unsigned(path: Path) -> ClusterDescription:
    """The description in `path` as it stands, for its administrator to sign."""
    encoded = _read(path, "cluster description", "create a cluster with `bftfs cluster init`")
    return decode(encoded, source=str(path))


def store(path: Path, description: ClusterDescription, administrator: Identity) -> None:
    """Replace the description in `path`, signed; at no moment is there an unsigned one."""
    if administrator.public_key != description.administrator:
        raise UsageError(
            f"the key given is not that of the administrator whom {path} names; "
            "give the `admin.key` that was made with the cluster"
        )
    encoded = encode(description)
    signatures = signature_path(path)
    lines = [administrator.sign(_SIGNED + encoded).hex().encode()]
    try:
        if path.exists() and signatures.exists():
            replaced = path.read_bytes()
            lines += (
                line
                for line in signatures.read_bytes().split()
                if _is_signed(replaced, line, administrator.public_key)
            )
        replace_file(signatures, b"\n".join(lines[:_SIGNATURES]) + b"\n")
        replace_file(path, encoded)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; check that its directory exists and is yours"
        ) from error


def _is_signed(encoded: bytes, line: bytes, administrator: bytes) -> bool:
    return verify_signature(administrator, message=_SIGNED + encoded, signature=_from_hex(line))


def _read(path: Path, what: str, next_step: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"there is no {what} {path}; {next_step}") from error
    except OSError as error:
        raise UsageError(
            f"cannot read the {what} {path}: {error.strerror}; check the path and its permissions"
        ) from error


def _from_hex(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return b""


# --- TOML ------------------------------------------------------------------------------------


def encode(description: ClusterDescription) -> bytes:
    """The description as TOML."""
    document = {
        "format": FORMAT,
        "cluster_id": description.cluster_id.hex(),
        "view": description.view,
        "t": description.t,
        "b": description.b,
        "administrator": description.administrator.hex(),
        "durability": description.durability.value,
        "block_bytes": description.block_bytes,
        "detection_window": format_duration(description.window_us),
        "volume": description.volume.hex(),
        "root": description.root.hex(),
        "members": [
            {
                "node": member.node,
                "address": member.address,
                "public_key": member.public_key.hex(),
            }
            for member in description.members
        ],
        "clients": [_client_table(entry) for entry in description.clients],
    }
    return (_COMMENT + tomli_w.dumps(document)).encode()


def _client_table(entry: ClientEntry) -> dict[str, Any]:
    table: dict[str, Any] = {
        "name": entry.name,
        "public_key": entry.public_key.hex(),
        "write": entry.grant.write,
        "subtree": entry.grant.subtree,
    }
    if entry.grant.uids is not None:
        table["uids"] = list(entry.grant.uids)
    return table


def decode(encoded: bytes, *, source: str) -> ClusterDescription:
    """The description that TOML text stands for; `source` names it in messages."""
    try:
        document = tomllib.loads(encoded.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8 text; get the file again") from error
    except (ValueError, RecursionError) as error:  # a superclass of tomllib.TOMLDecodeError
        raise UsageError(f"{source} is not valid TOML: {error}; correct it there") from error
    try:
        return _description(_Table(document, ""))
    except UsageError as error:
        raise UsageError(f"{source}: {error.message}") from error


def _description(table: _Table) -> ClusterDescription:
    found = table.integer("format", low=0)
    if found != FORMAT:
        raise UsageError(
            f"format = {found}, and this bftfs reads format {FORMAT}; "
            "use the version of bftfs that wrote the file"
        )
    description = ClusterDescription(
        cluster_id=table.octets("cluster_id", CLUSTER_ID_BYTES),
        view=table.integer("view", low=1, high=(1 << 32) - 1),
        t=table.integer("t", low=0),
        b=table.integer("b", low=0),
        administrator=table.public_key("administrator"),
        durability=table.choice("durability", Durability),
        block_bytes=table.integer("block_bytes", low=0),
        window_us=table.duration("detection_window", limits.DETECTION_WINDOW_US),
        volume=table.object_id("volume", ObjectKind.VOLUME),
        root=table.object_id("root", ObjectKind.DIRECTORY),
        members=tuple(map(_member, table.tables("members"))),
        clients=tuple(map(_client, table.tables("clients"))),
    )
    table.finish()
    return description


def _member(table: _Table) -> Member:
    member = Member(
        NodeId(table.integer("node", low=0)),
        table.text("address"),
        table.public_key("public_key"),
    )
    table.finish()
    return member


def _client(table: _Table) -> ClientEntry:
    entry = ClientEntry(
        table.text("name"),
        table.public_key("public_key"),
        Grant(
            uids=table.optional_integers("uids"),
            write=table.flag("write"),
            subtree=table.text("subtree"),
        ),
    )
    table.finish()
    return entry


class _Table:
    """A TOML table whose fields are taken and checked one by one; one left over is a mistake."""

    def __init__(self, values: dict[str, Any], place: str) -> None:
        self._values = dict(values)
        self._place = place

    def integer(self, name: str, *, low: int, high: int = (1 << 63) - 1) -> int:
        value: int = self._take(name, int, "a whole number")
        if not low <= value <= high:
            raise self._wrong(name, f"{value} is not from {low} to {high}")
        return value

    def text(self, name: str) -> str:
        value: str = self._take(name, str, 'text in quotes, "…"')
        return value

    def duration(self, name: str, default_us: int) -> int:
        if name not in self._values:
            return default_us
        try:
            return parse_duration(self.text(name))
        except UsageError as error:
            raise self._wrong(name, error.message) from None

    def flag(self, name: str) -> bool:
        value: bool = self._take(name, bool, "true or false")
        return value

    def choice(self, name: str, kind: type[Chosen]) -> Chosen:
        value = self.text(name)
        for one in kind:
            if one.value == value:
                return one
        raise self._wrong(name, f"{value!r} is none of {', '.join(one.value for one in kind)}")

    def octets(self, name: str, length: int) -> bytes:
        value = self.text(name)
        octets = _from_hex(value.encode("utf-8", "replace"))
        if len(octets) != length or len(value) != 2 * length:
            raise self._wrong(name, f"it must have {2 * length} hexadecimal digits")
        return octets

    def public_key(self, name: str) -> bytes:
        return self.octets(name, PUBLIC_KEY_BYTES)

    def object_id(self, name: str, kind: ObjectKind) -> ObjectId:
        identifier = ObjectId(self.octets(name, OBJECT_ID_BYTES))
        if kind_of(identifier) != kind:
            raise self._wrong(name, f"it must begin with {kind:02x}, the mark of a {kind.name}")
        return identifier

    def optional_integers(self, name: str) -> tuple[int, ...] | None:
        if name not in self._values:
            return None
        values: list[Any] = self._take(name, list, "a list of whole numbers")
        if not all(type(value) is int for value in values):
            raise self._wrong(name, "it must be a list of whole numbers")
        return tuple(values)

    def tables(self, name: str) -> list[_Table]:
        values: list[Any] = self._values.pop(name, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self._wrong(name, f"write each one as a table, headed [[{name}]]")
        return [_Table(value, f"{name}[{at}]") for at, value in enumerate(values)]

    def finish(self) -> None:
        """Raise UsageError if there are fields that were not taken."""
        for name in self._values:
            raise self._wrong(name, "there is no such field; check its spelling or remove it")

    def _take(self, name: str, kind: type, wanted: str) -> Any:
        if name not in self._values:
            raise self._wrong(name, f"it is missing; it must be {wanted}")
        value = self._values.pop(name)
        if type(value) is not kind:
            raise self._wrong(name, f"it must be {wanted}, not {value!r}")
        return value

    def _wrong(self, name: str, reason: str) -> UsageError:
        return UsageError(f"{self._place}.{name}: {reason}".removeprefix("."))
