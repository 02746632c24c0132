"""Mount options: what `-o` and /etc/fstab may say, as one value."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

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
    patience_s: float | None = None  # how long an operation may take (soft); None: for ever (hard)
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

    # An answer may be given from our cache, and be kept by the kernel from then on. Each of the two
    # has half of the time, so that together they keep what the option promises.

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

# Understood by the kernel. Of two that contradict each other the last one counts.
_KERNEL = (
    ("nodev", "dev"),
    ("nosuid", "suid"),
    ("noexec", "exec"),
    ("sync", "async"),
    ("dirsync",),
)
# For mount(8), systemd and the like: nothing is left to do for us. Times follow relatime anyway.
_FOR_OTHERS = frozenset(
    (
        "auto", "defaults", "default_permissions", "group", "nofail", "noauto", "nogroup",
        "noowner", "nouser", "nousers", "owner", "relatime", "rw", "user", "users", "_netdev",
    )
)  # fmt: skip
_FOR_OTHERS_PREFIXES = ("x-", "X-", "comment=", "uhelper=", "helper=", "user=")
_OWN = (
    *(kind.value for kind in Consistency),
    "ro", "hard", "soft", "timeout=SECONDS", "allow_other", "client=NAME", "at=TIME",
    "entry_timeout=SECONDS", "attr_timeout=SECONDS", "negative_timeout=SECONDS",
)  # fmt: skip


def parse(text: str, *, sloppy: bool = False) -> MountOptions:
    """The options in a comma-separated list; a `sloppy` caller has unknown ones ignored."""
    options = MountOptions()
    kernel: dict[int, str] = {}
    patience: float | None = None
    soft = False
    for word in _words(text):
        name, equals, value = word.partition("=")
        if word in _FOR_OTHERS or word.startswith(_FOR_OTHERS_PREFIXES):
            if word == "rw":
                options = replace(options, read_only=False)
        elif word in ("close-to-open", "strict"):
            options = replace(options, consistency=Consistency(word))
        elif word == "ro":
            options = replace(options, read_only=True)
        elif word in ("hard", "soft"):
            soft = word == "soft"
        elif name == "timeout" and equals:
            patience = _seconds(name, value, least=1.0)
        elif word == "allow_other":
            options = replace(options, allow_other=True)
        elif name == "client" and equals:
            options = replace(options, client=_client_name(value))
        elif name == "at" and equals:
            options = replace(options, at=value, read_only=True)
        elif name == "entry_timeout" and equals:
            options = replace(options, entry_timeout_s=_seconds(name, value))
        elif name == "attr_timeout" and equals:
            options = replace(options, attr_timeout_s=_seconds(name, value))
        elif name == "negative_timeout" and equals:
            options = replace(options, negative_timeout_s=_seconds(name, value))
        else:
            group = next((at for at, names in enumerate(_KERNEL) if word in names), None)
            if group is not None:
                kernel[group] = word
            elif not sloppy:
                raise UsageError(_unknown(word))
    if patience is not None and not soft:
        raise UsageError("mount option timeout=SECONDS is how long a soft mount waits: add soft")
    if soft:
        options = replace(options, patience_s=SOFT_PATIENCE_S if patience is None else patience)
    if options.strict:
        options = replace(options, entry_timeout_s=0.0, attr_timeout_s=0.0, negative_timeout_s=0.0)
    return replace(options, kernel=tuple(kernel.values()))


def _words(text: str) -> Iterator[str]:
    return (word for word in text.split(",") if word)


def _seconds(name: str, value: str, *, least: float = 0.0) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= LONGEST_TIMEOUT_S:  # NaN is not either
        raise UsageError(
            f"mount option {name}={value}: must be a number of seconds from {least:g} to "
            f"{LONGEST_TIMEOUT_S:g}"
        )
    return seconds


def _client_name(name: str) -> str:
    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"mount option client={name}: must be the name of a client of the cluster")
    return name


def _unknown(word: str) -> str:
    names = [option.partition("=")[0] for option in _OWN]
    close = difflib.get_close_matches(word.partition("=")[0], names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    known = ", ".join((*_OWN, *(name for names in _KERNEL for name in names)))
    return f"mount option {word}: unknown{hint}; there are {known}"
