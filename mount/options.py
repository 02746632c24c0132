"""Mount options, as `-o` and /etc/fstab give them, in one value."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from bftfs.data_directory import DEFAULT_CLIENT
from bftfs.errors import UsageError


class Consistency(Enum):
    """When another mount's changes are seen."""

    CLOSE_TO_OPEN = "close-to-open"  # contents at open; names and attributes within their timeouts
    STRICT = "strict"  # at once


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a file system is mounted."""

    consistency: Consistency = Consistency.CLOSE_TO_OPEN
    read_only: bool = False
    patience_s: float | None = None  # after which an operation fails (soft); None: never (hard)
    client: str = DEFAULT_CLIENT
    at: str | None = None  # a time or a snapshot: mount the past
    entry_timeout_s: float = 5.0
    attr_timeout_s: float = 5.0
    negative_timeout_s: float = 1.0
    allow_other: bool = False
    kernel: tuple[str, ...] = ()  # for the kernel alone: nodev, nosuid, noexec …

    @property
    def strict(self) -> bool:
        return self.consistency is Consistency.STRICT

    # The kernel may cache an answer that came from the cache of the mount process. Each of the two
    # caches keeps answers for half of the time, so that both together keep the option's promise.

    @property
    def cached_entries_s(self) -> float:
        return self.entry_timeout_s / 2

    @property
    def cached_attributes_s(self) -> float:
        return self.attr_timeout_s / 2

    @property
    def cached_absence_s(self) -> float:
        return self.negative_timeout_s / 2


SOFT_PATIENCE_S = 30.0
LONGEST_TIMEOUT_S = 86_400.0


def _seconds(field: str, *, least: float = 0.0) -> Callable[[str, str], dict[str, Any]]:
    """An option that sets `field` to a number of seconds."""

    def read(name: str, value: str) -> dict[str, Any]:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not least <= seconds <= LONGEST_TIMEOUT_S:  # NaN is not either
            raise UsageError(
                f"mount option {name}={value}: must be a number of seconds from {least:g} to "
                f"{LONGEST_TIMEOUT_S:g}"
            )
        return {field: seconds}

    return read


def _client(_: str, name: str) -> dict[str, Any]:
    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"mount option client={name}: must be the name of a client of the cluster")
    return {"client": name}


# The value that an option takes, if it takes one, and the fields of `MountOptions` that it sets.
_OWN: dict[str, tuple[str, Callable[[str, str], dict[str, Any]]]] = {
    "close-to-open": ("", lambda *_: {"consistency": Consistency.CLOSE_TO_OPEN}),
    "strict": ("", lambda *_: {"consistency": Consistency.STRICT}),
    "ro": ("", lambda *_: {"read_only": True}),
    "rw": ("", lambda *_: {"read_only": False}),
    "hard": ("", lambda *_: {"soft": False}),
    "soft": ("", lambda *_: {"soft": True}),
    "timeout": ("SECONDS", _seconds("patience_s", least=1.0)),
    "allow_other": ("", lambda *_: {"allow_other": True}),
    "client": ("NAME", _client),
    "at": ("TIME", lambda _, value: {"at": value, "read_only": True}),
    "entry_timeout": ("SECONDS", _seconds("entry_timeout_s")),
    "attr_timeout": ("SECONDS", _seconds("attr_timeout_s")),
    "negative_timeout": ("SECONDS", _seconds("negative_timeout_s")),
}
# Understood by the kernel, with the option that each of them contradicts: the last one counts.
_KERNEL = {
    "nodev": "dev", "dev": "dev", "nosuid": "suid", "suid": "suid", "noexec": "exec",
    "exec": "exec", "sync": "sync", "async": "sync", "dirsync": "dirsync",
}  # fmt: skip
# For mount(8), systemd and the like, and ignored here. Times follow relatime anyway.
_FOR_OTHERS = frozenset(
    (
        "auto", "defaults", "default_permissions", "group", "nofail", "noauto", "nogroup",
        "noowner", "nouser", "nousers", "owner", "relatime", "user", "users", "_netdev",
    )
)  # fmt: skip
_FOR_OTHERS_PREFIXES = ("x-", "X-", "comment=", "uhelper=", "helper=", "user=")


def parse(text: str, *, sloppy: bool = False) -> MountOptions:
    """The options in a comma-separated list; a `sloppy` caller has unknown ones ignored."""
    chosen: dict[str, Any] = {}
    kernel: dict[str, str] = {}
    for word in filter(None, text.split(",")):
        name, equals, value = word.partition("=")
        argument, fields = _OWN.get(name, ("", None))
        if fields is not None and bool(argument) == bool(equals):
            chosen |= fields(name, value)
        elif word in _KERNEL:
            kernel[_KERNEL[word]] = word
        elif word not in _FOR_OTHERS and not word.startswith(_FOR_OTHERS_PREFIXES) and not sloppy:
            raise UsageError(_unknown(word))
    if chosen.pop("soft", False):
        chosen.setdefault("patience_s", SOFT_PATIENCE_S)
    elif "patience_s" in chosen:
        raise UsageError("mount option timeout=SECONDS is how long a soft mount waits: add soft")
    options = MountOptions(**chosen, kernel=tuple(kernel.values()))
    if options.strict:
        options = replace(options, entry_timeout_s=0.0, attr_timeout_s=0.0, negative_timeout_s=0.0)
    return options


def _unknown(word: str) -> str:
    close = difflib.get_close_matches(word.partition("=")[0], _OWN, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    own = (f"{name}={argument}" if argument else name for name, (argument, _) in _OWN.items())
    return f"mount option {word}: unknown{hint}; there are {', '.join((*own, *_KERNEL))}"
