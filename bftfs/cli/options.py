"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="The cluster's directory (cluster.toml, keys, nodes).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
