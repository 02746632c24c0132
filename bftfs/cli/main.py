"""The program `bftfs`: its parser, and the composition root that may import anything.

A command's module is imported when the command is used, so that each needs only what it uses, and
starts quickly.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

import bftfs
from bftfs.errors import OperationFailed
from bftfs.exit_code import exit_code_of
from bftfs.printable import as_word

# Command -> the module below `bftfs.cli` that defines it, and its purpose.
_COMMANDS = {
    "up": ("local_cluster", "Start a local cluster (made if there is none) and mount it."),
    "down": ("local_cluster", "Unmount a local cluster and stop its nodes. The data stays."),
    "status": ("status", "Show the state of the nodes, and what limits the cluster."),
    "usage": ("usage", "Show who and what holds the room, and what becomes free when."),
    "heal": ("upkeep", "Control how nodes fetch objects and blocks that they lack."),
    "scrub": ("upkeep", "Control how nodes read and check all that they store."),
    "metrics": ("upkeep", "Print the metrics of a node."),
    "inspect": ("inspect", "Show the objects and blocks of a path, and the faults they survive."),
    "ui": ("ui", "Show files, their past and the nodes in a browser."),
    "mount": ("processes", "Mount a cluster whose nodes are running."),
    "unmount": ("processes", "Unmount, after writing all data to the nodes."),
    "log": ("versions", "List the versions of a file or directory."),
    "cat": ("versions", "Print a file as it was at a time."),
    "diff": ("versions", "Show what changed between two times."),
    "annotate": ("versions", "Show the version that each line of a file comes from."),
    "restore": ("restore", "Bring back a file or tree as it was at a time."),
    "undelete": ("restore", "Bring back a file or tree that was removed."),
    "mend": ("mend", "Remove a name whose file or directory was lost."),
    "snapshot": ("retention", "Give times names."),
    "retention": ("retention", "Choose which old versions are kept."),
    "send": ("backup", "Write a directory, as of a time, as a backup to the standard output."),
    "receive": ("backup", "Make or bring up to date a directory from such a backup."),
    "audit": ("restore", "What a client has changed, and what others built on it."),
    "undo": ("restore", "Take back what a client has changed."),
    "re-encrypt": ("re_encrypt", "Write files again with the present key of the cluster."),
    "cluster": ("cluster", "Make a cluster, and manage its clients."),
    "node": ("local_cluster", "Storage nodes: one process, one directory each."),
    "simulate": ("simulate", "Run the protocols in a simulated world full of faults."),
}


class Commands(click.Group):
    """The commands, imported as they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which users need them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"bftfs.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, purpose) for name, (_, purpose) in _COMMANDS.items()])


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(bftfs.__version__, prog_name="bftfs")
def program() -> None:
    """A Byzantine fault-tolerant file system that mounts like any other.

    Start with `bftfs up --data DIR --mount DIR`.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; does not return."""
    sys.exit(exit_code_of(lambda: _perform(arguments)))


def _perform(arguments: Sequence[str] | None) -> object:
    """Perform the command. What the machine refuses is a failure, as what the nodes refuse."""
    try:
        return program.main(arguments, prog_name="bftfs", standalone_mode=False)
    except PermissionError:
        raise  # of which more can be said
    except OSError as error:
        # An error without a file name is one of the output: a full disk, or a closed terminal.
        what = as_word(os.fsdecode(error.filename)) if error.filename else "its output"
        why = error.strerror or "it failed"
        raise OperationFailed(f"{what}: {why}; run the command again when that is mended") from None
