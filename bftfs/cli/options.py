"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bftfs.data_directory import DataDirectory


def _data_option(opened: Callable[[Path], DataDirectory]) -> Callable[[Any], Any]:
    return click.option(
        "--data",
        "directory",
        type=click.Path(path_type=Path),
        required=True,
        callback=lambda _, __, path: opened(path.absolute()),
        help="The cluster's directory (cluster.toml, keys, nodes).",
    )


data_option = _data_option(DataDirectory.existing)
new_data_option = _data_option(DataDirectory)  # there may be no cluster yet
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
