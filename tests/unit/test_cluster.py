"""The cluster description: a value, its file, its signature, and every mistake people make."""

import tomllib
from dataclasses import replace
from itertools import combinations, count
from pathlib import Path

import pytest
import tomli_w

from bftfs import cluster, description_files
from bftfs.addresses import TcpAddress, UnixAddress, parse_address
from bftfs.cluster import ClientEntry, ClusterDescription, Durability, NewCluster, PastClient
from bftfs.credentials import Credentials, Grant
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import Identity
from bftfs.errors import UsageError
from bftfs.identifiers import ClientId, NodeId, ObjectKind, kind_of
from bftfs.server.step import Role, Sender
from bftfs.thresholds import QueryUpdateThresholds, ReadWriteThresholds
from bftfs.wire.channel import ClientChannel, ServerChannel

LAPTOP = Identity.generate(b"l" * 32)
STRANGER = Identity.generate(b"s" * 32)
ADDRESSES = [f"unix:/run/bftfs/{node}" for node in range(6)]


def new_cluster(first: int = 1, **changes) -> NewCluster:
    draws = count(first)
    arguments = {"addresses": ADDRESSES, "t": 1, "b": 1} | changes
    return cluster.create(draw=lambda length: bytes([next(draws)]) * length, **arguments)


NEW = new_cluster()
DESCRIPTION = NEW.description.with_client(
    ClientEntry("laptop", LAPTOP.public_key, Grant(uids=(0, 1000), write=False, gids=(10, 1000)))
)


# --- the value --------------------------------------------------------------------------------


def test_a_new_cluster() -> None:
    description = NEW.description
    assert description.n == 6
    assert description.view == 1
    assert [member.node for member in description.members] == [0, 1, 2, 3, 4, 5]
    assert [member.address for member in description.members] == ADDRESSES
    assert [member.public_key for member in description.members] == [
        identity.public_key for identity in NEW.nodes
    ]
    assert description.administrator == NEW.administrator.public_key
    assert description.clients == ()
    assert kind_of(description.volume) == ObjectKind.VOLUME
    assert kind_of(description.root) == ObjectKind.DIRECTORY
    assert description.durability is Durability.SYNC
    assert description.block_bytes == 128 * 1024
    assert new_cluster(first=100).description.cluster_id != description.cluster_id


def test_thresholds_follow() -> None:
    assert DESCRIPTION.query_update == QueryUpdateThresholds(n=6, t=1, b=1, q=5, r=3)
    assert DESCRIPTION.read_write == ReadWriteThresholds(N=6, t=1, b=1, QC=4, m=3)
    alone = new_cluster(addresses=["unix:/one"], t=0, b=0).description
    assert (alone.query_update.q, alone.read_write.m) == (1, 1)


def test_members_and_clients_are_found() -> None:
    assert DESCRIPTION.member(NodeId(3)) is DESCRIPTION.members[3]
    entry = DESCRIPTION.client(client_id_of(LAPTOP.public_key))
    assert entry is not None
    assert entry.name == "laptop"
    assert DESCRIPTION.client(ClientId(bytes(16))) is None
    for node in (-1, 6):
        with pytest.raises(UsageError, match=f"there is no node {node}"):
            DESCRIPTION.member(NodeId(node))


def test_principals() -> None:
    assert DESCRIPTION.principal(LAPTOP.public_key) == Sender(
        Role.CLIENT,
        client_id_of(LAPTOP.public_key),
        grant=Grant(uids=(0, 1000), write=False, gids=(10, 1000)),
    )
    node = DESCRIPTION.principal(NEW.nodes[2].public_key)
    assert node is not None
    assert (node.role, node.node) == (Role.NODE, 2)
    assert not node.grant.allows(0)
    assert not node.grant.write
    assert DESCRIPTION.principal(STRANGER.public_key) is None
    administrator = DESCRIPTION.principal(NEW.administrator.public_key)
    assert administrator is not None
    assert (administrator.role, administrator.node) == (Role.ADMINISTRATOR, None)
    assert not administrator.grant.write
    assert not administrator.grant.allows(0)


def test_a_channel_knows_whom_the_description_knows() -> None:
    client = ClientChannel(
        identity=LAPTOP,
        node=NodeId(4),
        node_public_key=DESCRIPTION.member(NodeId(4)).public_key,
        cluster_id=DESCRIPTION.cluster_id,
        view=DESCRIPTION.view,
        entropy=b"n" * 32,
    )
    server: ServerChannel[Sender] = ServerChannel(
        identity=NEW.nodes[4],
        node=NodeId(4),
        cluster_id=DESCRIPTION.cluster_id,
        view=DESCRIPTION.view,
        principal=DESCRIPTION.principal,
        entropy=b"m" * 32,
    )
    server.receive(client.opening())
    client.receive(server.pending_output())
    server.receive(b"".join(client.confirmation()))
    assert server.peer == DESCRIPTION.principal(LAPTOP.public_key)


def test_authenticators_work_between_all_nodes() -> None:
    keys = [
        DESCRIPTION.authenticator_keys(identity, NodeId(node))
        for node, identity in enumerate(NEW.nodes)
    ]
    for maker in keys:
        made = maker.make(b"d" * 32)
        assert all(
            key.check(claimed_by=maker.node, digest=b"d" * 32, authenticator=made) for key in keys
        )


def test_descriptions_have_an_order() -> None:
    grown = DESCRIPTION.with_client(ClientEntry("desk", STRANGER.public_key))
    shrunk = grown.without_client("desk", at_s=7)
    in_order = (NEW.description, DESCRIPTION, grown, shrunk)
    for earlier, later in combinations(in_order, 2):
        assert earlier.is_superseded_by(later)
        assert not later.is_superseded_by(earlier)
    assert not grown.is_superseded_by(grown)
    assert not grown.is_superseded_by(replace(DESCRIPTION.without_client("laptop", at_s=7)))
    elsewhere = new_cluster(first=100).description
    assert not DESCRIPTION.is_superseded_by(replace(elsewhere, serial=9))


def test_a_description_of_before_there_was_an_order_is_the_first() -> None:
    encoded = cluster.encode(DESCRIPTION).replace(b"serial = 1\n", b"")
    assert cluster.decode(encoded, source="here") == replace(DESCRIPTION, serial=0)


def test_clients_come_and_go() -> None:
    grown = DESCRIPTION.with_client(ClientEntry("desk", STRANGER.public_key))
    assert [entry.name for entry in grown.clients] == ["laptop", "desk"]
    assert grown.digest != DESCRIPTION.digest
    shrunk = grown.without_client("desk", at_s=7)
    [past] = shrunk.past_clients
    assert past == PastClient("desk", grown.clients[1].client, None, 7)
    as_before = replace(shrunk, serial=DESCRIPTION.serial, past_clients=())
    assert as_before == DESCRIPTION
    assert as_before.digest == DESCRIPTION.digest
    with pytest.raises(UsageError, match="past client 'desk' and client 'desk' have the same id"):
        shrunk.with_client(grown.clients[1])
    with pytest.raises(UsageError, match="there is no client 'desk'; the clients are: laptop"):
        DESCRIPTION.without_client("desk", at_s=7)
    with pytest.raises(UsageError, match="have the same name"):
        DESCRIPTION.with_client(ClientEntry("laptop", STRANGER.public_key))
    with pytest.raises(UsageError, match="have the same public key"):
        DESCRIPTION.with_client(ClientEntry("desk", LAPTOP.public_key))
    with pytest.raises(UsageError, match="have the same public key"):
        DESCRIPTION.with_client(ClientEntry("desk", NEW.nodes[0].public_key))
    with pytest.raises(UsageError, match="the public key of client 'desk' is not valid"):
        DESCRIPTION.with_client(ClientEntry("desk", bytes(64)))


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "ä", "a\n", "x" * 65])
def test_a_clients_name_is_the_name_of_a_file(name: str) -> None:
    with pytest.raises(UsageError, match="is not a name for a client"):
        DESCRIPTION.with_client(ClientEntry(name, STRANGER.public_key))


@pytest.mark.parametrize("subtree", ["", "home", "/home"])
def test_a_grant_that_nodes_cannot_enforce_is_refused(subtree: str) -> None:
    with pytest.raises(UsageError, match="nodes cannot hold a client"):
        DESCRIPTION.with_client(ClientEntry("x", STRANGER.public_key, Grant(subtree=subtree)))


@pytest.mark.parametrize(
    ("count", "t", "b", "message"),
    [
        (5, 1, 1, r"5 nodes cannot tolerate t=1 faults, b=1 .* at least 6 members"),
        (0, 0, 0, r"0 nodes cannot tolerate .* at least 1 members"),
        (6, 0, 1, r"0 <= b <= t does not hold"),
        (65, 1, 1, r"at most 64 nodes"),
    ],
)
def test_impossible_sizes(count: int, t: int, b: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        new_cluster(addresses=[f"unix:/{node}" for node in range(count)], t=t, b=b)


@pytest.mark.parametrize("size", [0, 1, 4095, 100_000, 2048, 8 << 20])
def test_impossible_block_sizes(size: int) -> None:
    with pytest.raises(UsageError, match="is not a power of two"):
        new_cluster(block_bytes=size)


# --- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a:b c", UnixAddress("/run/a:b c")),
        ("unix:/" + "x" * 106, UnixAddress("/" + "x" * 106)),
        ("tcp:node-1.example.org:7000", TcpAddress("node-1.example.org", 7000)),
        ("tcp:127.0.0.1:65535", TcpAddress("127.0.0.1", 65535)),
        ("tcp:[fe80::1]:1", TcpAddress("fe80::1", 1)),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "unix:run/a",
        "unix:/" + "x" * 107,
        "unix:/a\0b",
        "tcp:host",
        "tcp:host:",
        "tcp::7000",
        "tcp:host:0",
        "tcp:host:65536",
        "tcp:host:٣",
        "tcp:fe80::1:7000",
        "tcp:a host:7000",
        "host:7000",
        "http://host:7000",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="address"):
        parse_address(text)


# --- files ------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    description_files.store(path, DESCRIPTION, NEW.administrator)
    return path


def test_what_is_stored_is_loaded(stored: Path) -> None:
    assert description_files.load(stored) == DESCRIPTION
    assert description_files.load(stored, administrator=NEW.administrator.public_key) == DESCRIPTION
    assert sorted(entry.name for entry in stored.parent.iterdir()) == [
        "cluster.signed.toml",
        "cluster.signed.toml.sig",
        "cluster.toml",
        "cluster.toml.sig",
    ]


def test_an_altered_description_is_refused(stored: Path) -> None:
    stored.write_bytes(stored.read_bytes().replace(b"write = false", b"write = true "))
    with pytest.raises(UsageError, match="is not signed by its administrator") as raised:
        description_files.load(stored)
    assert str(stored) in str(raised.value)
    assert "bftfs cluster sign" in str(raised.value)


def test_a_forged_description_is_refused(stored: Path) -> None:
    forged = new_cluster(first=100)
    description_files.store(stored, forged.description, forged.administrator)
    assert description_files.load(stored) == forged.description
    with pytest.raises(UsageError, match="another administrator"):
        description_files.load(stored, administrator=NEW.administrator.public_key)


def test_only_the_administrator_can_store(stored: Path) -> None:
    with pytest.raises(UsageError, match="not that of the administrator"):
        description_files.store(stored, DESCRIPTION, LAPTOP)
    assert description_files.load(stored) == DESCRIPTION


@pytest.mark.parametrize("signature", [b"", b"\n", b"00" * 64, b"\xff\xfe", b"zz\n"])
def test_a_broken_signature_file_is_refused(stored: Path, signature: bytes) -> None:
    description_files.signature_path(stored).write_bytes(signature)
    with pytest.raises(UsageError, match="is not signed"):
        description_files.load(stored)


def test_missing_files_are_named(stored: Path) -> None:
    description_files.signature_path(stored).unlink()
    with pytest.raises(UsageError, match=r"there is no signature .*cluster\.toml\.sig"):
        description_files.load(stored)
    stored.unlink()
    with pytest.raises(UsageError, match=r"there is no cluster description .*cluster\.toml"):
        description_files.load(stored)
    with pytest.raises(UsageError, match="cannot read the cluster description"):
        description_files.load(stored.parent)
    with pytest.raises(UsageError, match="cannot write"):
        description_files.store(
            stored.parent / "nowhere" / "cluster.toml", DESCRIPTION, NEW.administrator
        )


class CrashError(Exception):
    """The machine stops here."""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_crash_while_replacing_leaves_a_signed_description(
    stored: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    remaining = count(renames, -1)
    rename = Path.replace

    def crashing(self: Path, target: Path) -> Path:
        if next(remaining) == 0:
            raise CrashError
        return rename(self, target)

    grown = DESCRIPTION.with_client(ClientEntry("desk", STRANGER.public_key))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crashing)
        with pytest.raises(CrashError):
            description_files.store(stored, grown, NEW.administrator)
    assert description_files.load(stored) == DESCRIPTION
    description_files.store(stored, grown, NEW.administrator)
    assert description_files.load(stored) == grown


def test_what_lay_there_unsigned_is_not_signed_by_replacing_it(stored: Path) -> None:
    tampered = stored.read_bytes().replace(b"write = false", b"write = true ")
    stored.write_bytes(tampered)
    description_files.store(stored, DESCRIPTION, NEW.administrator)
    stored.write_bytes(tampered)
    with pytest.raises(UsageError, match="is not signed"):
        description_files.load(stored)


def test_a_change_by_hand_is_signed_again(stored: Path) -> None:
    stored.write_bytes(stored.read_bytes().replace(b"write = false", b"write = true "))
    description_files.store(stored, description_files.load_unsigned(stored), NEW.administrator)
    assert description_files.load(stored).clients[0].grant.write


# --- TOML -------------------------------------------------------------------------------------


def test_toml_keeps_everything() -> None:
    other = new_cluster(
        addresses=["tcp:[::1]:7000"], t=0, b=0, durability=Durability.INTERVAL, block_bytes=4096
    ).description.with_client(ClientEntry("all", STRANGER.public_key))
    dated = DESCRIPTION.with_client(ClientEntry("desk", STRANGER.public_key, added_s=1_790_000_000))
    past = dated.without_client("desk", at_s=1_790_000_001)
    unknown = DESCRIPTION.without_client("laptop", at_s=1_790_000_000)
    for description in (DESCRIPTION, other, NEW.description, dated, past, unknown):
        assert cluster.decode(cluster.encode(description), source="here") == description


def explained(**changes: object) -> str:
    """The message for the description with `changes`; None removes a field."""
    document = tomllib.loads(cluster.encode(DESCRIPTION).decode())
    for place, value in changes.items():
        table = document
        *path, name = place.split("__")
        for step in path:
            table = table[int(step)] if step.isdigit() else table[step]
        if value is None:
            del table[name]
        else:
            table[name] = value
    with pytest.raises(UsageError) as raised:
        cluster.decode(tomli_w.dumps(document).encode(), source="dir/cluster.toml")
    message = str(raised.value)
    assert message.startswith("dir/cluster.toml: ")
    return message.removeprefix("dir/cluster.toml: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": None}, "Object missing required field `t`; correct it there"),
        ({"t": "1"}, "t = '1': Expected `int`, got `str`; correct it there"),
        ({"t": True}, "t = True: Expected `int`, got `bool`"),
        ({"t": -1}, "6 nodes cannot tolerate t=-1 faults, b=1 of them Byzantine: 0 <= b <= t"),
        ({"t": 2}, "6 nodes cannot tolerate t=2 faults"),
        ({"format": 2}, "format = 2, and this bftfs reads format 1"),
        ({"view": 0}, "view = 0: Expected `int` >= 1; correct it there"),
        ({"cluster_id": "abc"}, "cluster_id = 'abc': write 32 hexadecimal digits"),
        ({"cluster_id": "é" * 32}, f"cluster_id = '{'é' * 32}': write 32 hexadecimal digits"),
        ({"cluster_id": " ".join(["00"] * 16)}, "cluster_id = '00 00 00 00 00 00 00 00 00"),
        ({"durability": "fast"}, "durability = 'fast': write sync or interval"),
        ({"block_bytes": 5000}, "block_bytes = 5000 is not a power of two"),
        ({"volume": "03" * 16}, f"volume = '{'03' * 16}': write 02, the mark of a VOLUME"),
        ({"root": 5}, "root = 5: Expected `str`, got `int`"),
        ({"detection_window": "soon"}, "detection_window: 'soon' is not a length of time; write"),
        ({"colour": "red"}, "Object contains unknown field `colour`"),
        ({"members": 5}, "members = 5: Expected `array`, got `int`"),
        ({"members": [5]}, "members[0] = 5: Expected `object`, got `int`"),
        (
            {"members__2__adress": "x"},
            "members[2]: Object contains unknown field `adress`; correct it there",
        ),
        (
            {"members__2__address": None},
            "members[2]: Object missing required field `address`",
        ),
        ({"members__2__address": "host:1"}, "members[2].address: 'host:1' is not an address"),
        ({"members__2__address": "unix:/run/bftfs/1"}, "member 2 and member 1 have the same addr"),
        ({"members__2__node": 1}, "member 2 has node = 1; members are numbered from 0"),
        ({"members__2__public_key": "00"}, "members[2].public_key = '00': write 128 hexadecimal"),
        ({"members__2__public_key": "00" * 64}, "the public key of member 2 is not valid"),
        ({"clients__0__name": "a/b"}, "'a/b' is not a name for a client"),
        ({"clients__0__write": 1}, "clients[0].write = 1: Expected `bool`, got `int`"),
        ({"clients__0__uids": 1000}, "clients[0].uids = 1000: Expected `array | null`, got `int`"),
        ({"clients__0__uids": [True]}, "clients[0].uids[0] = True: Expected `int`, got `bool`"),
        ({"clients__0__uids": [-1]}, "client 'laptop': -1 is not a uid"),
        ({"clients__0__gids": [1 << 32]}, "client 'laptop': 4294967296 is not a gid; gids are 0"),
        ({"clients__0__gids": 10}, "clients[0].gids = 10: Expected `array`, got `int`"),
        ({"clients__0__squash_root": True}, "client 'laptop': root is to act as nobody"),
        ({"clients__0__uids": None}, "client 'laptop' may act as any uid, and so with any group"),
        (
            {"clients__0__subtree": "home"},
            "client 'laptop': nodes cannot hold a client to the subtree 'home'",
        ),
    ],
    ids=repr,
)
def test_mistakes_are_explained(changes: dict[str, object], message: str) -> None:
    assert explained(**changes).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"t = 1\nb = =", r"is not valid TOML: .* \(at line 2, column 5\)"),
        (b"t = 1\nt = 2", "is not valid TOML"),
        (b"t = " + b"9" * 5000, "is not valid TOML"),
        (b"t = " + b"[" * 100_000, "is not valid TOML"),
        (b"", "Object missing required field `format`"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_toml_is_explained(text: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=f"^here:? {message}"):
        cluster.decode(text, source="here")


def test_absent_uids_mean_all_and_no_uids_mean_none() -> None:
    def grant(**changes: object) -> Grant:
        entry = ClientEntry("c", STRANGER.public_key, Grant(**changes))
        encoded = cluster.encode(NEW.description.with_client(entry))
        description: ClusterDescription = cluster.decode(encoded, source="here")
        return description.clients[0].grant

    assert grant().allows(12345)
    assert not grant(uids=()).allows(0)


def test_absent_gids_mean_none() -> None:
    lines = cluster.encode(DESCRIPTION).decode().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("gids"))
    stop = next(at for at in range(start, len(lines)) if lines[at] == "]")
    older = "\n".join(lines[:start] + lines[stop + 1 :]).encode()
    (laptop,) = cluster.decode(older, source="here").clients
    assert laptop.grant.gids == ()
    assert laptop.grant.uncovered(Credentials(1000, 1000)) == "gid 1000"
