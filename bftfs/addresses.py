"""Addresses of nodes, as the cluster description and messages have them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from bftfs.errors import UsageError

_TCP = re.compile(
    r"tcp:(?:(?P<host>[A-Za-z0-9._-]+)|\[(?P<six>[0-9A-Fa-f:.]+)\]):(?P<port>[0-9]{1,5})", re.ASCII
)
_UNIX_PATH_BYTES = 107  # sun_path of Linux, without its final zero


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
        f"{text!r} is not an address; write `unix:/path/to/socket`, `tcp:host:port` "
        "or, for IPv6, `tcp:[::1]:port`, with a port from 1 to 65535"
    )
