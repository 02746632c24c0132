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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bftfs.cluster import Durability, parse_address
from bftfs.errors import UsageError
from bftfs.limits import (
    MIB,
    POSSIBLE_VERSIONS,
    POSSIBLE_VERSIONS_OF_BLOCK,
    POSSIBLE_VERSIONS_OF_CLIENT,
)
from bftfs.server.block_verification import VerificationPolicy, VerificationSettings

SIZE_BYTES_MIN = 16 * MIB
_SIZES = ("capacity_bytes", "pool_bytes", "client_bytes")
LOG_LEVELS = ("debug", "info", "warning", "error")

POSSIBLE_VERSIONS_MOST = 1_000_000  # each costs a node some 700 bytes of memory

_OFF = "off"
_POSSIBLE = {
    "possible_versions": POSSIBLE_VERSIONS,
    "client_possible_versions": POSSIBLE_VERSIONS_OF_CLIENT,
    "block_possible_versions": POSSIBLE_VERSIONS_OF_BLOCK,
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
            raise UsageError(f"{path}: cannot be read: {error}; correct or remove it") from None
        try:
            return cls._from(settings, durability=durability, metrics=metrics)
        except UsageError as error:
            raise UsageError(f"{path}: {error.message}") from None

    @classmethod
    def _from(
        cls, settings: dict[str, Any], *, durability: Durability, metrics: str
    ) -> NodeConfiguration:
        known = ("durability", *_SIZES, "metrics", "log_level", "verification", *_POSSIBLE)
        for name in settings:
            if name not in known:
                raise UsageError(
                    f"there is no setting {name!r}; the settings are {', '.join(known)}"
                )
        chosen = settings.get("durability", durability.value)
        if chosen not in [one.value for one in Durability]:
            raise UsageError(f'durability = {chosen!r}; write "sync" or "interval"')
        sizes = {name: settings.get(name) for name in _SIZES}
        for name, size in sizes.items():
            if size is not None and (type(size) is not int or size < SIZE_BYTES_MIN):
                raise UsageError(
                    f"{name} = {size!r}; write a whole number, {SIZE_BYTES_MIN} or more"
                )
        address = settings.get("metrics", metrics)
        if not isinstance(address, str):
            raise UsageError(f'metrics = {address!r}; write an address or "off", in quotes')
        if address != _OFF:
            parse_address(address)
        level = settings.get("log_level", "info")
        if level not in LOG_LEVELS:
            raise UsageError(f"log_level = {level!r}; write one of {', '.join(LOG_LEVELS)}")
        return cls(
            durability=Durability(chosen),
            **sizes,
            metrics=None if address == _OFF else address,
            log_level=level,
            verification=_verification(settings),
        )


def _verification(settings: dict[str, Any]) -> VerificationSettings:
    policies = [one.value for one in VerificationPolicy]
    policy = settings.get("verification", VerificationPolicy.COOPERATIVE.value)
    if policy not in policies:
        raise UsageError(f"verification = {policy!r}; write one of {', '.join(policies)}")
    chosen = {name: settings.get(name, default) for name, default in _POSSIBLE.items()}
    for name, most in chosen.items():
        if type(most) is not int or not 1 <= most <= POSSIBLE_VERSIONS_MOST:
            raise UsageError(
                f"{name} = {most!r}; write a whole number from 1 to {POSSIBLE_VERSIONS_MOST}"
            )
    node, client, block = chosen.values()
    return VerificationSettings(VerificationPolicy(policy), node, client, block)
