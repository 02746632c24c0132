"""What people and other programs write: descriptions, settings, keys, options, addresses, times."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from bftfs import cluster, description_files
from bftfs.addresses import parse_address
from bftfs.cli.times import parse_time
from bftfs.cluster import Durability
from bftfs.crypto.keys import Identity, read_identity, read_volume_key
from bftfs.errors import UsageError
from bftfs.filesystem.time_names import format_time_name, looks_like_a_time_name, parse_time_name
from bftfs.key_epochs import with_new_epoch
from bftfs.retention import parse_policy
from mount import options
from nodes.configuration import NodeConfiguration
from tests.fuzz.choices import Choices
from tests.fuzz.target import KIB, MIB, Target

_SCRATCH = Path(tempfile.mkdtemp(prefix="bftfs-fuzz-"))


def _text(data: bytes) -> str:
    return os.fsdecode(data)  # as the command line gives it


def _description() -> cluster.NewCluster:
    drawn = iter(range(1, 250))
    return cluster.create(
        [f"unix:/run/{node}" for node in range(6)],
        t=1,
        b=1,
        draw=lambda count: bytes([next(drawn)]) * count,
    )


def descriptions(data: bytes) -> None:
    """A cluster description is refused in one sentence, or means what it is written as again."""
    description = cluster.decode(data, source="cluster.toml")
    again = cluster.decode(cluster.encode(description), source="again")
    assert again == description


def _description_seeds() -> Iterable[bytes]:
    made = _description().description
    client = cluster.ClientEntry("laptop", Identity(b"c" * 32).public_key)
    yield cluster.encode(made)
    yield cluster.encode(made.with_client(client))
    yield cluster.encode(
        with_new_epoch(
            made.with_client(client),
            _description().administrator,
            volume_key=bytes(32),
            at_s=7,
            draw=bytes,
        )
    )
    yield b'format = 1\ncluster_id = ""\n[[members]]\n'


def signatures(data: bytes) -> None:
    """Nothing but the administrator's signatures makes a description valid."""
    made = _description()
    path = _SCRATCH / "cluster.toml"
    encoded = cluster.encode(made.description)
    path.write_bytes(encoded)
    choices = Choices(data)
    real = made.administrator.sign(b"bftfs cluster description 1\0" + encoded).hex().encode()
    lines = [real if choices.flag(8) else choices.octets(choices.number(140)) for _ in range(3)]
    description_files.signature_path(path).write_bytes(b"\n".join(lines))
    description_files.load(path, administrator=made.administrator.public_key)
    assert real in b"\n".join(lines).split()[:2]


def settings(data: bytes) -> None:
    """A node's settings are refused in one sentence, or taken."""
    path = _SCRATCH / "node.toml"
    path.write_bytes(data)
    NodeConfiguration.load(path, durability=Durability.SYNC, metrics="off")


def _settings_seeds() -> Iterable[bytes]:
    yield b'durability = "interval"\ncapacity_bytes = 200_000_000_000\nlog_level = "debug"\n'
    yield b'client_bytes = 50_000_000\nmetrics = "tcp:127.0.0.1:9100"\n'


def keys(data: bytes) -> None:
    """A key file is refused in one sentence, or holds a key of the right size."""
    path = _SCRATCH / "client.key"
    path.write_bytes(data)
    path.chmod(0o600)
    read: Callable[[Path], object] = (
        read_volume_key if data.startswith(b"bftfs-volume") else read_identity
    )
    read(path)


def _key_seeds() -> Iterable[bytes]:
    yield b"bftfs-identity-1 " + b"17" * 32 + b"\n"
    yield b"bftfs-volume-key-1 " + b"ab" * 32 + b"\n"


def mount_options(data: bytes) -> None:
    """Mount options are refused in one sentence, or taken."""
    sloppy, text = data[:1] == b"s", _text(data[1:])
    parsed = options.parse(text, sloppy=sloppy)
    assert parsed.patience_s is None or parsed.patience_s > 0


def _option_seeds() -> Iterable[bytes]:
    yield b"-strict,soft,timeout=10,ro,allow_other,client=laptop,nodev"
    yield b"sentry_timeout=1.5,attr_timeout=0,negative_timeout=1,x-systemd.automount,whatever"


def addresses(data: bytes) -> None:
    """An address is refused in one sentence, or is written as it was read."""
    text = _text(data)
    address = parse_address(text)
    assert parse_address(str(address)) == address


def _address_seeds() -> Iterable[bytes]:
    yield b"unix:/run/bftfs/socket"
    yield b"tcp:node-1.example:9100"
    yield b"tcp:[::1]:9100"


def times(data: bytes) -> None:
    """A name in `.history`, a time after `@` and a policy say something, or nothing."""
    text = _text(data)
    moment = parse_time_name(data.decode(errors="replace"))  # as the mount takes a name
    if moment is not None:
        assert looks_like_a_time_name(data)
        assert parse_time(text, now_us=_NOW_US) == moment
    said = parse_time(text, now_us=_NOW_US)
    if said is not None and 0 <= said <= _NOW_US:
        assert parse_time_name(format_time_name(said)) == said
    policy = parse_policy(text)
    assert parse_policy(str(policy)) == policy


_NOW_US = 1_795_255_323_000_000


def _time_seeds() -> Iterable[bytes]:
    yield b"2026-11-21T10:02:03.123456+01:00"
    yield b"1 hour and 30 min ago"
    yield b"last monday at 9:30"
    yield b"@1700000000.5"
    yield b"all 30d, hourly 60d, daily 1y, weekly"
    yield b"@" + 400 * b"9"
    yield b"a" * 90 + b"!"


TARGETS = (
    Target(
        "descriptions",
        descriptions,
        (UsageError,),
        seeds=_description_seeds,
        work=100_000,
        memory_bytes=4 * MIB,
    ),
    Target(
        "signatures", signatures, (UsageError,), seeds=lambda: (bytes(range(256)),), work=60_000
    ),
    Target("settings", settings, (UsageError,), seeds=_settings_seeds, memory_bytes=8 * MIB),
    Target("keys", keys, (UsageError,), seeds=_key_seeds, most_bytes=512),
    Target(
        "mount-options",
        mount_options,
        (UsageError,),
        seeds=_option_seeds,
        most_bytes=1 * KIB,
        work=60_000,
        work_per_byte=200,
    ),
    Target("addresses", addresses, (UsageError,), seeds=_address_seeds, most_bytes=512),
    Target("times", times, (UsageError,), seeds=_time_seeds, most_bytes=512),
)
