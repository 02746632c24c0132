"""Where commands print tables: text as it is, since names and nodes' words may be anything.

By itself, rich takes `[red]` for a colour, `[/x]` for a mistake that ends the program, and `:x:`
for an emoji. A node that lies, or who may name a file, could say such things.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """A console that prints text as it is; `options` are those of rich's."""
    return Console(highlight=False, markup=False, emoji=False, **options)
