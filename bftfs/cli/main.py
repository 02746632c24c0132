"""The program `bftfs`: parser, exit codes, and the composition root that may import anything.

A user's mistake ends in one message on standard error and exit code 2; an operation that failed in
exit code 1; an interrupt in 130. None of them prints a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

import bftfs
from bftfs.cli import cluster, local, mount, node, simulate, status
from bftfs.errors import BftfsError, UsageError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(bftfs.__version__, prog_name="bftfs")
def program() -> None:
    """A Byzantine fault-tolerant file system that mounts like any other.

    Start with `bftfs up --data DIR --mount DIR`.
    """


program.add_command(local.up)
program.add_command(local.down)
program.add_command(status.status)
program.add_command(cluster.cluster)
program.add_command(node.node)
program.add_command(mount.mount)
program.add_command(mount.unmount)
program.add_command(simulate.simulate)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; does not return."""
    try:
        outcome = program.main(args=arguments, prog_name="bftfs", standalone_mode=False)
    except click.exceptions.Abort:
        print("bftfs: interrupted", file=sys.stderr)
        sys.exit(130)
    except click.ClickException as mistake:
        mistake.show()
        sys.exit(mistake.exit_code)
    except UsageError as mistake:
        print(f"bftfs: {mistake}", file=sys.stderr)
        sys.exit(mistake.exit_code)
    except BftfsError as failure:
        print(f"bftfs: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("bftfs: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(outcome if isinstance(outcome, int) else 0)
