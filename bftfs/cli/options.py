"""Options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from bftfs.data_directory import DataDirectory
from bftfs.printable import as_word
from mount.mountpoint import containing

DATA_VARIABLE: Final = "BFTFS_DATA"


def default_data() -> Path:
    """Where `make up` keeps its cluster."""
    return Path.home() / ".local" / "share" / "bftfs"


def data_in_use() -> Path:
    """The data directory if the user names none.

    It is that of the mount in which the current directory is; else BFTFS_DATA; else that of
    `make up`.
    """
    try:
        mounted = containing(Path.cwd())
    except FileNotFoundError:
        mounted = None  # the current directory has been removed
    if mounted is not None:
        return Path(mounted.source)
    chosen = os.environ.get(DATA_VARIABLE)
    return Path(chosen) if chosen else default_data()


def data_words(directory: DataDirectory) -> str:
    """The words ` --data DIR` for a command's example, if they are needed for this directory."""
    return (
        "" if directory.path == data_in_use().absolute() else f" --data {as_word(directory.path)}"
    )


def _data_option(opened: Callable[[Path], DataDirectory | Path]) -> Callable[[Any], Any]:
    return click.option(
        "--data",
        "directory",
        type=click.Path(path_type=Path, readable=False),  # we say why it cannot be read
        callback=lambda _, __, path: opened((path or data_in_use()).absolute()),
        help="The cluster's directory (cluster.toml, keys, nodes). [default: that of the mount "
        f"you are in; else ${DATA_VARIABLE}; else ~/.local/share/bftfs]",
    )


data_option = _data_option(DataDirectory.existing)
new_data_option = _data_option(DataDirectory)  # there may be no cluster yet
data_path_option = _data_option(lambda path: path)  # the path of a mount may say it instead
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
