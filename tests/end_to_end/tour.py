"""Carries out what README and the pages on operations show, command by command, as who runs it.

`python -m tests.end_to_end.tour` needs an empty HOME. It makes a cluster there and a mount, as
`make up` does, prepares what the README presupposes, runs each command that the README shows behind
a `$`, and compares what it prints with what the README shows. Times, uids and the home directory
may differ. Then it runs the commands of docs/backup.md, and those of docs/operations-nodes.md and
of docs/operations.md, as far as they are about one machine. The first difference, and the first
command that fails, end it with exit code 1.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[2]
COMMAND_TIMEOUT_S = 60
HOME_IN_README = "/home/ann"
TIME_BEFORE_MISTAKE = "15:31:38"  # as the README's commands name it…
TIME_BEFORE_THEFT = "15:31:48"  # …and the time before the stolen key was used

_COMMAND = re.compile(r"    \$ (.+)")
_ROW = re.compile(r"^\|[^|]*\|(?P<commands>.*)\|$", re.MULTILINE)
_LISTED = re.compile(
    r"^ {4}(bftfs (?:inspect|heal|scrub) .+?|curl .+?)(?:  +[a-z].*)?$", re.MULTILINE
)
_CHOICE = re.compile(r"\S+(?:\|\S+(?: RATE)?)+")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+00:00)?")

# What the README presupposes of bread.txt, and what somebody does with a stolen key afterwards.
_BREAD = r"printf 'flour 500 g\nyeast 7 g\n' > bread.txt"
_TEAM = r"mkdir team; cp bread.txt team; echo buy yeast > team/todo.txt"
_MARKED = r"printf 'we were here\nflour 500 g\nyeast 7 g\n%s' {} > team/bread.txt"
_THEFT = f"rm team/todo.txt; echo pay > team/ransom.txt; {_MARKED.format('')}"
_OTHERS = _MARKED.format("'salt 10 g\n'")


class Shown(NamedTuple):
    """A command, and the lines that it prints."""

    command: str
    output: list[str]


def shown_in(text: str) -> Iterator[Shown]:
    """The commands behind a `$` in indented blocks of a page, with what they print."""
    lines = iter(text.splitlines())
    shown: Shown | None = None
    for line in lines:
        started = _COMMAND.fullmatch(line)
        if shown is not None and (started or not line.startswith("    ")):
            yield shown
            shown = None
        if started:
            shown = Shown(started[1], [])
        elif shown is not None:
            shown.output.append(line[4:])
    if shown is not None:
        yield shown


def commands_in_table(text: str) -> list[str]:
    """The whole commands in the table that follows; forms with `…` or `[` are left out."""
    rows = _ROW.finditer(text)
    commands = [each for row in rows for each in re.findall(r"`(bftfs [^`]+)`", row["commands"])]
    return [command for command in commands if not re.search(r"[…\[]", command)]


def commands_in_blocks(text: str) -> list[str]:
    """The commands in indented blocks: each of `a|b` by itself, without `[what may be added]`."""
    commands = []
    for line in _LISTED.findall(text):
        command = re.sub(r" \[[^]]*\]", "", line)
        choice = _CHOICE.search(command)
        chosen = choice[0].split("|") if choice else []
        commands += [_CHOICE.sub(each, command) for each in chosen] or [command]
    return [re.sub(r" +", " ", command) for command in commands]


class Tour:
    """A user's home, and what the user types there."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.mount = home / "bftfs"
        self.data = home / ".local/share/bftfs"
        binaries = home / "bin"
        binaries.mkdir()
        command = binaries / "bftfs"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bftfs "$@"\n')
        command.chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
        }
        self._environment.pop("BFTFS_DATA", None)

    def types(self, command: str, *, where: Path | None = None) -> list[str]:
        """What the command prints. It must succeed; `diff` must find a difference."""
        finished = subprocess.run(
            ["bash", "-euc", command],
            cwd=where or self.mount,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if finished.returncode != (1 if command.startswith("bftfs diff") else 0):
            raise SystemExit(f"{command}: exit code {finished.returncode}\n{finished.stdout}")
        return finished.stdout.splitlines()

    def follows(self, shown: Shown, times: dict[str, str]) -> None:
        """Type a command of the README; it must print what the README shows."""
        command = shown.command
        for shown_time, time in times.items():
            command = re.sub(rf"(\d{{4}}-\d\d-\d\dT)?{shown_time}(?!\.)", time, command)
        printed = "\n".join(self.types(command))
        expected, found = (self._alike(text) for text in ("\n".join(shown.output), printed))
        if found != expected:
            raise SystemExit(f"$ {command}\nshown:\n{expected}\n\nprinted:\n{found}")

    def _alike(self, text: str) -> str:
        """The text without what differs from one user and time to another."""
        text = _TIME.sub("<time>", text.replace(str(self.home), HOME_IN_README))
        text = re.sub(r"uid \d+", "uid <uid>", text)
        return "\n".join(re.sub(r"\s+", " ", line).rstrip() for line in text.splitlines()).strip()


def now() -> str:
    """The time, as commands take it."""
    return datetime.now(UTC).isoformat()


def follow_the_readme(tour: Tour) -> int:
    """Everything that the README shows behind a `$`; how many commands."""
    commands = list(shown_in((PROJECT / "README.md").read_text()))
    theft = next(n for n, shown in enumerate(commands) if "revoke-client" in shown.command)
    tour.types(_BREAD)
    times = {TIME_BEFORE_MISTAKE: now()}
    for shown in commands[:theft]:
        tour.follows(shown, times)
    tour.types(_TEAM)
    laptop = tour.home / "laptop"
    who = "" if os.getuid() else " --uid 0"  # root has to say that it means itself
    tour.types(f"bftfs cluster add-client laptop{who}")
    tour.types(f"mkdir {laptop}; bftfs mount -o client=laptop {laptop}")
    times[TIME_BEFORE_THEFT] = now()
    tour.types(_THEFT, where=laptop)
    tour.types(_OTHERS)
    for shown in commands[theft:]:
        tour.follows(shown, times)
    tour.types(f"bftfs unmount {laptop}")
    return len(commands)


def follow_backup(tour: Tour) -> int:
    """The commands behind a `$` of the page on backups."""
    tour.types("mkdir photos; echo sunrise > photos/sunrise.txt")
    commands = list(shown_in((PROJECT / "docs/backup.md").read_text()))
    for shown in commands:
        tour.types(shown.command)
    return len(commands)


def follow_operations(tour: Tour) -> int:
    """The commands in blocks, and those of the table "One machine", which ends with `down`."""
    page = (PROJECT / "docs/operations.md").read_text()
    nodes = (PROJECT / "docs/operations-nodes.md").read_text()
    table = page.partition("## One machine")[2].partition("\n## ")[0]
    commands = [*commands_in_blocks(nodes), *commands_in_blocks(page), *commands_in_table(table)]
    other = tour.home / "other"
    other.mkdir()
    places = {
        "OTHER_MOUNTPOINT": other,
        "MOUNTPOINT": tour.mount,
        "DIR": tour.data,
        "/PATH": "/bread.txt",
        "PATH": tour.mount / "bread.txt",
        "RATE": "4MiB",
        "I": "0",
    }
    for command in commands:
        words = [str(places.get(word, word)) for word in command.split()]
        words = [re.sub(r"^DIR\b", str(tour.data), word) for word in words]
        tour.types(" ".join(words), where=tour.home)
    return len(commands)


def main() -> None:
    """Carry out everything."""
    tour = Tour(Path.home())
    tour.types(f"bftfs up --data {tour.data} --mount {tour.mount}", where=tour.home)
    try:
        shown = follow_the_readme(tour)
        copied = follow_backup(tour)
        listed = follow_operations(tour)
    finally:
        if tour.data.exists():
            tour.types(f"bftfs down --data {tour.data}", where=tour.home)
    print(
        f"{shown} commands of README, {copied} of backup, {listed} of operations "
        "did what they should"
    )


if __name__ == "__main__":
    main()
