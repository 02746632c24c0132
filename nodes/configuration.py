"""The settings of a node: `node.toml`, next to the node's key; all are optional.

durability = "interval"            # default: what the cluster description says
capacity_bytes = 200_000_000_000   # the store's share of the disk; default: all of it
pool_bytes = 150_000_000_000       # for versions, current and past; default: nine tenths of that
client_bytes = 50_000_000_000      # for the block versions of one client; default: no limit
metrics = "tcp:127.0.0.1:9100"     # or "unix:/path", or "off"; default: metrics.socket here
log_level = "debug"                # or "info" (default), "warning", "error"
verification = "lazy"              # or "lazy+cooperative" (default), "read-time", "write-time"
possible_versions = 100_000        # unverified versions before writers have to wait…
client_possible_versions = 20_000  # …of one client…
block_possible_versions = 100      # …and of one client and block
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bftfs import limits
from bftfs.addresses import parse_address
from bftfs.cluster import Durability
from bftfs.errors import UsageError
from bftfs.printable import as_word
from bftfs.server.block_verification import VerificationPolicy, VerificationSettings

SIZE_BYTES_MIN = 16 * limits.MIB
LOG_LEVELS = ("debug", "info", "warning", "error")
POSSIBLE_VERSIONS_MOST = 1_000_000  # each costs a node some 700 bytes of memory

_OFF = "off"
_POLICIES = tuple(policy.value for policy in VerificationPolicy)


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= SIZE_BYTES_MIN


def _is_number(value: Any) -> bool:
    return type(value) is int and 1 <= value <= POSSIBLE_VERSIONS_MOST


_SIZE = (_is_size, f"write a whole number, {SIZE_BYTES_MIN} or more")
_NUMBER = (_is_number, f"write a whole number from 1 to {POSSIBLE_VERSIONS_MOST}")
# For each setting: a test of its value, and what to write instead.
_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "durability": (lambda value: value in ("sync", "interval"), 'write "sync" or "interval"'),
    "capacity_bytes": _SIZE,
    "pool_bytes": _SIZE,
    "client_bytes": _SIZE,
    "metrics": (lambda value: isinstance(value, str), 'write an address or "off", in quotes'),
    "log_level": (lambda value: value in LOG_LEVELS, f"write one of {', '.join(LOG_LEVELS)}"),
    "verification": (lambda value: value in _POLICIES, f"write one of {', '.join(_POLICIES)}"),
    "possible_versions": _NUMBER,
    "client_possible_versions": _NUMBER,
    "block_possible_versions": _NUMBER,
}


@dataclass(frozen=True, slots=True)
class NodeConfiguration:
    """The settings of one node."""

    durability: Durability
    capacity_bytes: int | None
    pool_bytes: int | None
    client_bytes: int | None
    metrics: str | None  # an address
    log_level: str
    verification: VerificationSettings

    @classmethod
    def load(cls, path: Path, *, durability: Durability, metrics: str) -> NodeConfiguration:
        """The settings in the file at `path`, if there is one; the arguments are defaults."""
        try:
            settings = tomllib.loads(path.read_text())
        except FileNotFoundError:
            settings = {}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(
                f"{as_word(path)}: cannot be read: {error}; correct or remove it"
            ) from None
        try:
            return cls._from(settings, durability=durability, metrics=metrics)
        except UsageError as error:
            raise UsageError(f"{as_word(path)}: {error.message}") from None

    @classmethod
    def _from(
        cls, settings: dict[str, Any], *, durability: Durability, metrics: str
    ) -> NodeConfiguration:
        for name, value in settings.items():
            if name not in _SETTINGS:
                raise UsageError(
                    f"there is no setting {name!r}; the settings are {', '.join(_SETTINGS)}"
                )
            is_valid, advice = _SETTINGS[name]
            if not is_valid(value):
                raise UsageError(f"{name} = {value!r}; {advice}")
        setting = settings.get
        address = setting("metrics", metrics)
        if address != _OFF:
            parse_address(address)
        return cls(
            durability=Durability(setting("durability", durability.value)),
            capacity_bytes=setting("capacity_bytes"),
            pool_bytes=setting("pool_bytes"),
            client_bytes=setting("client_bytes"),
            metrics=None if address == _OFF else address,
            log_level=setting("log_level", "info"),
            verification=VerificationSettings(
                VerificationPolicy(setting("verification", VerificationPolicy.COOPERATIVE.value)),
                setting("possible_versions", limits.POSSIBLE_VERSIONS),
                setting("client_possible_versions", limits.POSSIBLE_VERSIONS_OF_CLIENT),
                setting("block_possible_versions", limits.POSSIBLE_VERSIONS_OF_BLOCK),
            ),
        )
