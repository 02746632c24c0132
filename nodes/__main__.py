"""`python -m nodes --data DIR/nodes/I --cluster DIR/cluster.toml`: one storage node."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bftfs.data_directory import NodeDirectory
from bftfs.exit_code import exit_code_of
from nodes.node import Protocols, refuse_optimised_python, run
from nodes.protocols import HONEST


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The node's directory, as `bftfs cluster init` made it (DIR/nodes/I).",
)
@click.option(
    "--cluster",
    "description",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The signed cluster description, cluster.toml.",
)
@click.pass_obj
def node_command(protocols: Protocols, data: Path, description: Path) -> None:
    """Run a storage node until SIGTERM or Ctrl-C."""
    refuse_optimised_python()
    run(NodeDirectory(data), description, protocols)


def main(
    arguments: Sequence[str] | None = None,
    *,
    protocols: Protocols = HONEST,
    name: str = "python -m nodes",
) -> int:
    """Run a node with these command line arguments; the exit code."""
    return exit_code_of(
        lambda: node_command.main(arguments, prog_name=name, standalone_mode=False, obj=protocols),
        program="node",
    )


if __name__ == "__main__":
    sys.exit(main())
