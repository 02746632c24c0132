"""`python -m nodes --data DIR/nodes/I --cluster DIR/cluster.toml`: one storage node."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bftfs.data_directory import NodeDirectory
from bftfs.errors import BftfsError, UsageError
from nodes.node import Protocols, refuse_optimised_python, run
from nodes.protocols import HONEST


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The node's directory, with its key and its store.",
)
@click.option(
    "--cluster",
    "description",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The signed cluster description.",
)
@click.pass_obj
def _node(protocols: Protocols, data: Path, description: Path) -> None:
    """Run a storage node until SIGTERM or Ctrl-C."""
    refuse_optimised_python()
    run(NodeDirectory(data), description, protocols)


def main(arguments: Sequence[str] | None = None, *, protocols: Protocols = HONEST) -> int:
    """Run a node with these command line arguments; the exit code."""
    try:
        _node.main(arguments, prog_name="python -m nodes", standalone_mode=False, obj=protocols)
    except click.ClickException as mistake:
        mistake.show()
        return mistake.exit_code
    except UsageError as mistake:
        print(f"node: {mistake}", file=sys.stderr)
        return mistake.exit_code
    except BftfsError as failure:
        print(f"node: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
