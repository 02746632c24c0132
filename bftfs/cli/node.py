"""`bftfs node run`: one storage node in the foreground."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.group()
def node() -> None:
    """Storage nodes: one process, one directory each."""


@node.command()
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
def run(data: Path, description: Path) -> None:
    """Run a node until SIGTERM or Ctrl-C."""
    from nodes.__main__ import main as node_main

    sys.exit(node_main(["--data", str(data), "--cluster", str(description)]))
