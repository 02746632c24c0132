"""`python docs/packaging/man.py DIRECTORY`: writes a manual page for each command, from its help.

It needs click-man, which `pip install '.[test]'` brings.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click
from click_man.core import write_man_pages

import bftfs
from bftfs.cli.main import program
from nodes.__main__ import node_command

# Commands that hand their arguments to a program, which has the help.
_PROGRAMS = {"bftfs node run": node_command}


def whole(command: click.Command, context: click.Context) -> click.Command:
    """The command, with all commands below it, each named by the whole first sentence of its help.

    click-man looks for them in a table, which a group that imports them as they are used has not.
    """
    command = _PROGRAMS.get(context.command_path, command)
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    command.help = text.replace("\\", "\\e").replace("\n.", "\n\\&.").replace("\n'", "\n\\&'")
    command.short_help = " ".join(command.help.split("\n\n")[0].split())
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            inner = click.Context(found, info_name=name, parent=context)
            command.commands[name] = whole(found, inner)
    return command


def main(directory: Path) -> None:
    """Write the pages."""
    directory.mkdir(parents=True, exist_ok=True)
    cli = whole(program, click.Context(program, info_name="bftfs"))
    write_man_pages("bftfs", cli, version=bftfs.__version__, target_dir=str(directory))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
