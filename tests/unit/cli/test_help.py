"""Each command's help says what it does, and has an example that its own parser takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from bftfs.cli.main import program


def commands(
    command: click.Command, name: str, context: click.Context | None = None
) -> Iterator[tuple[str, click.Command]]:
    """All commands, with the words that lead to each."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    inner = click.Context(command, info_name=name, parent=context)
    for each in command.list_commands(inner):
        found = command.get_command(inner, each)
        assert found is not None
        yield from commands(found, f"{name} {each}", inner)


ALL = dict(commands(program, "bftfs"))


@pytest.mark.parametrize("name", [name for name in ALL if name != "bftfs node run"])
def test_the_help_has_an_example(name: str) -> None:
    command = ALL[name]
    text = " ".join((command.help or "").split())
    found = re.search(r"Example: (.*)$", text)
    assert found is not None, "the help ends with an example"
    words = shlex.split(found[1].replace("\\", " "))
    assert words[: len(name.split())] == name.split()
    arguments = words[len(name.split()) :]
    parser = command.make_parser(click.Context(command))
    _, left, _ = parser.parse_args(args=list(arguments))
    assert not left
